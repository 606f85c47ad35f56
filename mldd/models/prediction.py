"""Predictions: named arrays with dimensions, coordinates and units, and the files they are written to."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.algebra import way_to_install
from mldd.loop import replacing
from mldd.models.store import check_store, replacing_folder

Array = NDArray[Any]
_EPOCH = "seconds since 1970-01-01"
_WITHOUT_XARRAY = f"NetCDF and Zarr need xarray, which is not installed: {way_to_install('xarray')}"


@dataclass(frozen=True, eq=False)
class Field:
    """An array over named dimensions.

    Parameters
    ----------
    dims : tuple of str
        A name per axis.
    values : ndarray
        Numbers, or dates as datetime64.
    attributes : dict
        As the CF conventions name them: units, standard_name, long_name.
    """

    dims: tuple[str, ...]
    values: Array
    attributes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says about data.

    Parameters
    ----------
    fields : dict of str to Field
        What was predicted.
    coordinates : dict of str to Field
        Where and when.
    rows : tuple of str
        Dimensions that number the rows of a table; what has others, too, fills several columns.
    attributes : dict
        Of the whole: title and source.
    notes : tuple of str
        What the user should know, a sentence each.
    """

    fields: Mapping[str, Field]
    coordinates: Mapping[str, Field]
    rows: tuple[str, ...]
    attributes: Mapping[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __getitem__(self, name: str) -> Array:
        """Return the values of a field or coordinate."""
        return (self.fields[name] if name in self.fields else self.coordinates[name]).values

    @property
    def all(self) -> dict[str, Field]:
        """Coordinates and fields."""
        return {**self.coordinates, **self.fields}

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension."""
        return {dim: n for f in self.all.values() for dim, n in zip(f.dims, f.values.shape, strict=True)}

    def dataset(self) -> Any:
        """Return an `xarray.Dataset` as the CF conventions describe it, the same as from the file that `write` makes.

        Raises
        ------
        ValueError
            xarray is not installed.
        """
        made = self._encoded()
        import xarray

        return xarray.decode_cf(made, decode_timedelta=False)

    def _encoded(self) -> Any:
        """Return the dataset with times as numbers with units, as they are written."""
        try:
            import xarray
        except ImportError:
            raise ValueError(_WITHOUT_XARRAY) from None
        pairs = {name: _numbered(f) for name, f in self.all.items()}
        made = {name: (f.dims, f.values, dict(f.attributes)) for name, f in pairs.items()}
        return xarray.Dataset(
            {name: made[name] for name in self.fields},
            {name: made[name] for name in self.coordinates},
            {"Conventions": "CF-1.11", **self.attributes},
        )

    def write(self, path: Path | str) -> None:
        """Write a file, whole or not at all: NetCDF, Zarr, an archive of NumPy, or a table, as its suffix says.

        Parameters
        ----------
        path : Path or str
            Of the file: ``.nc``, ``.zarr`` (a folder), ``.npz`` (with units in ``NAME_units``) or ``.csv``.

        Raises
        ------
        ValueError
            Another suffix, or xarray is missing.
        OSError
            It cannot be written.
        """
        writer = _writer(Path(path))
        with (replacing_folder if writer is _zarr else replacing)(Path(path)) as new:
            writer(self, new)

    def _label(self, dim: str, place: int) -> str:
        return str(self.coordinates[dim].values[place] if dim in self.coordinates else place)

    def table(self) -> Iterator[tuple[str, Array]]:
        """Yield the columns of a table, one row per element of `rows`; a field over more fills several columns."""
        sizes = self.sizes
        shape = tuple(sizes[dim] for dim in self.rows)
        for name, f in self.all.items():
            more = [dim for dim in f.dims if dim not in self.rows]
            if more and name in self.coordinates:
                continue  # it names columns
            for index in itertools.product(*(range(sizes[dim]) for dim in more)):
                at = dict(zip(more, index, strict=True))
                piece = f.values[tuple(at.get(dim, slice(None)) for dim in f.dims)]
                own = [dim for dim in f.dims if dim in self.rows]
                piece = piece.transpose(np.argsort([self.rows.index(dim) for dim in own]))
                spread = piece.reshape([sizes[dim] if dim in own else 1 for dim in self.rows])
                labels = (
                    str(self.coordinates[d].values[k]) if d in self.coordinates else str(k) for d, k in at.items()
                )
                yield "_".join((name, *labels)), np.broadcast_to(spread, shape).ravel()


def joined(predictions: Sequence[Prediction]) -> Prediction:
    """Return predictions of the same places and times as one over members, in their order.

    Parameters
    ----------
    predictions : sequence of Prediction
        With members already, or one member each.

    Raises
    ------
    ValueError
        They are of other places, times or quantities.
    """
    first, *others = (_with_members(made) for made in predictions)
    for k, other in enumerate(others):
        unlike = [name for name in {**first.all, **other.all} if not _is_alike(first, other, name)]
        if unlike:
            raise ValueError(
                f"members must be predictions of the same, got another {unlike[0]} in number {k + 1} than in number 0; "
                "write them into files of their own"
            )
    fields = {
        name: replace(f, values=np.concatenate([made.fields[name].values for made in (first, *others)]))
        for name, f in first.fields.items()
    }
    count = sum(made.sizes["member"] for made in (first, *others))
    notes = tuple(dict.fromkeys(note for made in predictions for note in made.notes))
    return replace(first, fields=fields, coordinates={**first.coordinates, "member": _members(count)}, notes=notes)


def _with_members(made: Prediction) -> Prediction:
    if "member" in made.coordinates:
        return made
    fields = {name: replace(f, dims=("member", *f.dims), values=f.values[None]) for name, f in made.fields.items()}
    return replace(made, fields=fields, coordinates={**made.coordinates, "member": _members(1)})


def _members(count: int) -> Field:
    return Field(("member",), np.arange(count), {"standard_name": "realization", "units": "1"})


def _is_alike(one: Prediction, other: Prediction, name: str) -> bool:
    """Say whether a coordinate is the same, and a field has the same dimensions and unit."""
    if name not in one.all or name not in other.all or one.all[name].dims != other.all[name].dims:
        return False
    if name in one.fields:
        return one.fields[name].attributes.get("units") == other.fields[name].attributes.get("units")
    return name == "member" or np.array_equal(one[name], other[name])


def check_target(path: Path, overwrite: bool = False) -> None:
    """Refuse a file of a prediction that cannot be written, or that is there.

    Parameters
    ----------
    path : Path
        Of the file.
    overwrite : bool
        Whether a file of this name may be replaced.

    Raises
    ------
    ValueError
        A suffix without a format, or xarray is missing.
    OSError
        It is there, or its folder is not.
    """
    _writer(path)
    for suffix, package in ((".nc", "xarray"), (".zarr", "xarray"), (".zarr", "zarr")):
        if path.suffix.lower() == suffix and find_spec(package) is None:
            raise ValueError(f"{suffix} needs {package}, which is not installed: {way_to_install(package)}")
    if not path.absolute().parent.is_dir():
        raise OSError(f"the folder of {path} must be there, got none; make it, or give another place")
    if path.suffix.lower() == ".zarr":
        check_store(path)
    if path.exists() and not overwrite:
        raise OSError(f"{path} must be a new file, got one that is there; give another name, or --overwrite")


def _numbered(f: Field) -> Field:
    """Return dates as numbers with units."""
    if f.values.dtype.kind != "M":
        return f
    seconds = f.values.astype("datetime64[s]").astype(np.int64).astype(np.float64)
    return Field(f.dims, seconds, {**f.attributes, "units": _EPOCH, "calendar": "standard"})


def _netcdf(prediction: Prediction, path: Path) -> None:
    engine = "h5netcdf" if find_spec("h5netcdf") is not None else "scipy"
    prediction._encoded().to_netcdf(path, engine=engine, encoding={n: {"_FillValue": None} for n in prediction.all})


def _zarr(prediction: Prediction, path: Path) -> None:
    encoded = prediction._encoded()
    plain: dict[str, Any] = {name: {"_FillValue": None} for name in prediction.all}
    encoded.to_zarr(path, mode="w-", zarr_format=2, consolidated=True, encoding=plain)


def _archive(prediction: Prediction, path: Path) -> None:
    units = {
        f"{name}_{key}": np.array(str(f.attributes[key]))
        for name, f in prediction.all.items()
        for key in ("units", "calendar")
        if key in f.attributes
    }
    arrays: dict[str, Any] = {name: f.values for name, f in prediction.all.items()} | units
    np.savez(path, **arrays)


def _comma_separated(prediction: Prediction, path: Path) -> None:
    columns = dict(prediction.table())
    texts = [a.astype(str) if a.dtype.kind == "M" else a.tolist() for a in columns.values()]
    with open(path, "w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*texts, strict=True))


_WRITERS: dict[str, Callable[[Prediction, Path], None]] = {
    ".nc": _netcdf,
    ".zarr": _zarr,
    ".npz": _archive,
    ".csv": _comma_separated,
}


def _writer(path: Path) -> Callable[[Prediction, Path], None]:
    if path.suffix.lower() not in _WRITERS:
        raise ValueError(f"predictions must be written as {' '.join(_WRITERS)}, got {path.name!r}; give such a suffix")
    return _WRITERS[path.suffix.lower()]
