"""Read time series: the known sets, and any NetCDF, Zarr or npz file with time, coordinates and variables."""

from __future__ import annotations

import contextlib
import io
import json
import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.graph import Graph
from mldd.problems.data.formats import DataError
from mldd.problems.data.known_files import KnownFile, content, obtain
from mldd.problems.data.series import Series, arranged
from mldd.problems.data.weather_files import Field, read_grib, read_molene

NAMES = ("era5-uk", "molene", "metr-la")
SUFFIXES = (".nc", ".zarr", ".npz")
Array = NDArray[Any]

_GITHUB = "https://raw.githubusercontent.com"
_TGCN = f"{_GITHUB}/lehaifeng/T-GCN/219a2346f5bf68d54d91a948e7a41a08f9edc46b/T-GCN/T-GCN-PyTorch/data"
_DCRNN = f"{_GITHUB}/liyaguang/DCRNN/602afd9d767d3aa1c9b3eac51710d6aeee12c227/data/sensor_graph"
# The file as a data folder has it, then the one of the same contents that can be downloaded.
_ERA5 = (
    KnownFile(
        "weather/era5_t2m_uk_201903/era5_t2m_uk_201903.npz",
        "bd74173205341e430a776d00fc05c572c02fee755f16cef692219705149e1fd9",
        None,
    ),
    KnownFile(
        "weather/era5_t2m_uk_201903/era5-2mt-2019-03-uk.grib",
        "e5e82609f0e28e84822852e15d20c88dbb4b142a30264a7e6f87b9b5c7501df9",
        f"{_GITHUB}/pydata/xarray-data/58de68cb45bcbd1557df11a92827758495481b4e/era5-2mt-2019-03-uk.grib",
    ),
)
_MOLENE = {
    37: (
        KnownFile(
            "weather/molene/molene_temperature_37.npz",
            "105974757df9ef7bfb51c4cf1e07fe5216d930f23b0fb6039ed55207b49c1ab7",
            None,
        ),
        KnownFile(
            "weather/molene/gsp_molene_data.mat",
            "16ad27be959c32154b9ae01afd993686da8169ea05479f1415f937615379ca78",
            f"{_GITHUB}/bgirault-usc/Molene-Dataset/a32fd4459e8ecaf986477a459b1a50b94dc75ab3/Matlab/gsp_molene_data.mat",
        ),
    ),
    46: (
        KnownFile(
            "weather/molene/molene_hourly_201401.npz",
            "1c49bfbd1e76bcd5af5efa724eebb557cc44e16898fb9ffc4a6939df58d8dc83",
            None,
        ),
    ),
}
_METR_LA = {
    "speed": KnownFile(
        "traffic/metr_la_week/los_speed.csv",
        "7b732d86ae32b2930595becba28aff39dacbfb2197e250fc0332e1744ce2cbf4",
        f"{_TGCN}/los_speed.csv",
    ),
    "adjacency": KnownFile(
        "traffic/metr_la_week/los_adj.csv",
        "7a6eb41e10677992b5af50f5ab187c6c05c5c3a92cb973950cfddbf857361e76",
        f"{_TGCN}/los_adj.csv",
    ),
    "places": KnownFile(
        "traffic/metr_la_week/graph_sensor_locations.csv",
        "eb8ea96e07358b45d0e4ba3b89c2673fa20c54af50150249e627389e749ade6f",
        f"{_DCRNN}/graph_sensor_locations.csv",
    ),
}
_UNITS = {
    "era5-uk": {"t2m": "K"},
    "molene": {"t": "K", "t_max": "K", "t_min": "K", "td": "K", "u": "%", "dd": "degrees", "ff": "m/s", "fxi": "m/s"}
    | {"rr1": "kg/m2", "pres": "Pa", "pmer": "Pa"},
}
_UTC = np.timedelta64(8, "h")  # Los Angeles keeps Pacific standard time in the first week of March
_TIMES, _LATITUDES, _LONGITUDES = ("time", "valid_time"), ("latitude", "lat"), ("longitude", "lon")
_ALTITUDES = ("altitude", "elevation")


def load_series(
    name: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    variables: tuple[str, ...] = (),
    stations: int = 37,
    sort: bool = False,
) -> Series:
    """Load a time series by name, or from a file of the user's.

    Parameters
    ----------
    name : str or path
        One of `NAMES`, or a file `.nc` (NetCDF), `.zarr` or `.npz` that has the arrays `time` (dates, or whole hours
        since 1970), `latitude`, `longitude` and variables whose first dimension is time.
    data : path, optional
        Folder to look into first for the known sets.
    variables : tuple of str
        Which ones; by default the only one of a file, the temperature of `molene`.
    stations : int
        Of `molene`: the 37 without gaps, or all 46.
    sort : bool
        Sort the times of a file; otherwise unsorted ones are refused.

    Raises
    ------
    DataError
        If the set is unknown, nowhere to be had, damaged, or makes no sense.
    """
    key = os.fspath(name)
    if key == "era5-uk":
        return _from_field(key, _known(key, _ERA5, data), variables or ("t2m",))
    if key == "molene":
        if stations not in _MOLENE:
            raise DataError(f"molene: `stations` must be 37 (complete) or 46 (with gaps), got {stations}")
        return _from_field(key, _known(key, _MOLENE[stations], data), variables or ("t",))
    if key == "metr-la":
        return _metr_la({what: obtain(key, (file,), data)[1] for what, file in _METR_LA.items()}, variables)
    path = Path(key)
    if path.suffix not in SUFFIXES:
        raise DataError(f"series must be one of {', '.join(NAMES)}, or a file .nc, .zarr or .npz, got {key!r}")
    field = _npz(content(path), key, variables) if path.suffix == ".npz" else _xarray(path, variables)
    return _from_field(key, field, variables, sort)


def _known(key: str, files: tuple[KnownFile, ...], data: str | os.PathLike[str] | None) -> Field:
    """Read a known file in whichever format it is at hand."""
    file, found = obtain(key, files, data)
    if file.place.endswith(".grib"):
        return read_grib(found, key, "t2m")
    return read_molene(found, key) if file.place.endswith(".mat") else _npz(found, key)


# ---------------------------------------------------------------------------------------------------- npz


def _npz(raw: bytes, where: str, wanted: tuple[str, ...] = ()) -> Field:
    """Read arrays from an npz file; nothing in it is ever unpickled."""
    try:
        with np.load(io.BytesIO(raw), allow_pickle=False) as archive:
            missing = [name for name in wanted if name not in archive.files]
            names = [name for name in archive.files if not wanted or missing or name in wanted + _COORDINATES]
            arrays = {name: archive[name] for name in names}
    except Exception as error:  # a damaged or hostile file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: expected an npz file of plain arrays, got {reason[:160]}; write it anew") from None
    time = _named(arrays, _TIMES, where)
    latitude, longitude = _named(arrays, _LATITUDES, where), _named(arrays, _LONGITUDES, where)
    altitude = next((arrays[name] for name in _ALTITUDES if name in arrays), None)
    rest = {
        name: array
        for name, array in arrays.items()
        if name not in _COORDINATES and array.ndim >= 2 and len(array) == time.size and array.dtype.kind in "fiu"
    }
    return Field(time, latitude, longitude, altitude, rest, {})


_COORDINATES = _TIMES + _LATITUDES + _LONGITUDES + _ALTITUDES


def _named(arrays: Mapping[str, Array], names: tuple[str, ...], where: str) -> Array:
    for name in names:
        if name in arrays:
            return arrays[name]
    raise DataError(f"{where}: expected an array {' or '.join(names)}, got {', '.join(arrays) or 'none'}; add it")


def _dates(time: Array, where: str) -> Any:
    """Take dates, or whole hours since 1970."""
    if time.dtype.kind == "M":
        return time.astype("datetime64[s]")
    if time.dtype.kind in "iu":
        return time.astype("datetime64[h]").astype("datetime64[s]")
    raise DataError(f"{where}: times must be dates or whole hours since 1970, got {time.dtype}; convert them")


# ---------------------------------------------------------------------------------------------------- fields


def _from_field(key: str, field: Field, wanted: tuple[str, ...] = (), sort: bool = False) -> Series:
    """Make a series of the arrays of a file: nodes are the points of a grid, or stations."""
    names = wanted or tuple(field.variables)
    if not field.variables or (not wanted and len(names) > 1):
        found = ", ".join(field.variables) or "none"
        raise DataError(f"{key}: expected one variable over time and nodes, got {found}; choose by variable=NAME")
    for name in names:
        if name not in field.variables:
            _no_variable(key, name, field.variables)
    rows, columns = field.latitude.size, field.longitude.size
    shape = field.variables[names[0]].shape[1:]
    on_grid = len(shape) == 2 and shape == (rows, columns)
    if not on_grid and shape != (rows,):
        raise DataError(
            f"{key}: variable {names[0]} must have the dimensions (time, latitude, longitude) or (time, node), got "
            f"{shape} with {rows} latitudes and {columns} longitudes; select a level or member first"
        )
    for name in ("latitude", "longitude", "altitude"):
        given = getattr(field, name)
        if given is not None and given.dtype.kind not in "fiu":
            raise DataError(f"{key}: {name} must be numbers, got {given.dtype}; convert them")
    latitude, longitude = field.latitude.astype(np.float64).ravel(), field.longitude.astype(np.float64).ravel()
    if on_grid:
        latitude, longitude = np.repeat(latitude, columns), np.tile(longitude, rows)
    n = len(latitude)
    altitude = None if field.altitude is None else field.altitude.astype(np.float64).ravel()
    if any(field.variables[name].shape[1:] != shape for name in names):
        raise DataError(f"{key}: variables must have the same nodes, got {', '.join(names)}; choose others")
    values = np.stack([field.variables[name].reshape(-1, n).astype(np.float64) for name in names], axis=-1)
    return arranged(
        key,
        values,
        _dates(field.time, key),
        sort=sort,
        latitude=latitude,
        longitude=longitude,
        variables=names,
        altitude=altitude,
        grid=(rows, columns) if on_grid else None,
        units=tuple((field.units | _UNITS.get(key, {})).get(name, "") for name in names),
    )


def _no_variable(key: str, name: str, known: Mapping[str, Any]) -> NoReturn:
    raise DataError(f"{key}: variable must be one of {', '.join(known)}, got {name!r}")


def _metr_la(contents: Mapping[str, bytes], variables: tuple[str, ...]) -> Series:
    """Read the road sensors; their graph is that of the file: a Gaussian kernel of road distances."""
    if variables not in ((), ("speed",)):
        _no_variable("metr-la", variables[0], {"speed": None})
    speed = np.loadtxt(io.BytesIO(contents["speed"]), delimiter=",", skiprows=1)
    adjacency = np.loadtxt(io.BytesIO(contents["adjacency"]), delimiter=",")
    places = np.loadtxt(io.BytesIO(contents["places"]), delimiter=",", skiprows=1)
    row, column = np.nonzero(adjacency)
    edges, weights = torch.from_numpy(np.stack([row, column])), torch.from_numpy(adjacency[row, column])
    time = np.datetime64("2012-03-01T00:00", "s") + _UTC + np.arange(len(speed)) * np.timedelta64(300, "s")
    return Series(
        "metr-la",
        np.ascontiguousarray(speed[:, :, None]),
        time,
        places[:, 2],
        places[:, 3],
        ("speed",),
        graph=Graph.from_edges(edges, len(adjacency), weights),
        units=("mile/h",),
    )


# ---------------------------------------------------------------------------------------------------- xarray


def _xarray(path: Path, wanted: tuple[str, ...]) -> Field:
    """Read NetCDF or Zarr by xarray."""
    try:
        import xarray
    except ImportError:
        raise DataError(
            f"{path}: NetCDF and Zarr need xarray, which is not installed: pip install mldd[fields]"
        ) from None
    if not path.exists():
        raise DataError(f"{path}: expected a file, got none; correct the path")
    if path.suffix == ".zarr":
        _refuse_pickles(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about attributes that other programs have written
            with _opened(xarray, path) as dataset:
                return _read(dataset, str(path), wanted)
    except DataError:
        raise
    except Exception as error:  # every back end has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{path}: expected NetCDF or Zarr that xarray can read, got {type(error).__name__}: {reason[:200]}; "
            "pip install mldd[fields] has the readers of NetCDF-4 and Zarr"
        ) from None


def _opened(xarray: Any, path: Path) -> Any:
    if path.suffix == ".zarr":
        return xarray.open_zarr(path, chunks=None, consolidated=None)
    with path.open("rb") as file:
        classic = file.read(3) == b"CDF"
    return xarray.open_dataset(path, engine="scipy" if classic else "h5netcdf")


def _refuse_pickles(path: Path) -> None:
    """Refuse a store with an array of pickled objects before anything of it is read."""
    for file in (*path.rglob(".zarray"), *path.rglob("zarr.json"), *path.rglob(".zmetadata")):
        text = content(file)
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text)).encode()  # a name may be written in escapes
        if b"pickle" in text:
            raise DataError(f"{path}: expected plain arrays, got pickled objects in {file.name}; write it without them")


def _read(dataset: Any, where: str, wanted: tuple[str, ...]) -> Field:
    known = {str(name): dataset[name] for name in dataset.variables}
    time = _coordinate(known, _TIMES, ("time",), where)
    latitude = _coordinate(known, _LATITUDES, ("latitude", "degrees_north"), where)
    longitude = _coordinate(known, _LONGITUDES, ("longitude", "degrees_east"), where)
    axes = list(dict.fromkeys([*time.dims, *latitude.dims, *longitude.dims]))
    if time.ndim != 1 or latitude.ndim != 1 or longitude.ndim != 1:
        raise DataError(f"{where}: time and coordinates must have one dimension each; regrid the field")
    chosen = {}
    for name in wanted or [str(name) for name in dataset.data_vars]:
        if name not in known:
            _no_variable(where, name, dict(_fields(dataset, axes)))
        if set(axes) <= set(known[name].dims) and known[name].dtype.kind in "fiu":
            chosen[name] = _lean(known[name], axes, where).to_numpy()
        elif wanted:
            raise DataError(
                f"{where}: variable {name} must be numbers over {', '.join(axes)}, got {known[name].dtype} over "
                f"{', '.join(map(str, known[name].dims))}; choose one of {', '.join(dict(_fields(dataset, axes)))}"
            )
        if not wanted and len(chosen) > 1:
            found = ", ".join(dict(_fields(dataset, axes)))
            raise DataError(f"{where}: expected one variable over time and nodes, got {found}; choose by variable=NAME")
    altitude = next((known[name] for name in _ALTITUDES if name in known), None)
    height = None if altitude is None else altitude.transpose(*[a for a in axes if a in altitude.dims]).to_numpy()
    units = {name: str(known[name].attrs.get("units", "")) for name in chosen}
    return Field(time.to_numpy(), latitude.to_numpy(), longitude.to_numpy(), height, chosen, units)


def _fields(dataset: Any, axes: list[Any]) -> Iterator[tuple[str, None]]:
    for name, array in dataset.data_vars.items():
        if set(axes) <= set(array.dims) and array.dtype.kind in "fiu":
            yield str(name), None


def _coordinate(known: Mapping[str, Any], names: tuple[str, ...], marks: tuple[str, ...], where: str) -> Any:
    """Find a coordinate by its name, its standard name or its units."""
    for name in names:
        if name in known:
            return known[name]
    for array in known.values():
        if array.attrs.get("standard_name") in marks or array.attrs.get("units") in marks:
            return array
    raise DataError(f"{where}: expected a coordinate {' or '.join(names)}, got {', '.join(known)}; rename it")


def _lean(array: Any, axes: list[Any], where: str) -> Any:
    """Bring the dimensions into order; others of length one vanish."""
    rest = [d for d in array.dims if d not in axes]
    long = [f"{d} ({array.sizes[d]})" for d in rest if array.sizes[d] != 1]
    if long:
        raise DataError(
            f"{where}: {array.name} must vary over {', '.join(axes)} alone, got {', '.join(long)} too; select"
        )
    return array.squeeze(rest, drop=True).transpose(*axes)
