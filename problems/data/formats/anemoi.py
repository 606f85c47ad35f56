"""Data sets of Anemoi (Zarr, layout gridded), read by zarr itself: the variables that are asked for, chunk by chunk."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.loop import UntrustedError, check_fits
from mldd.problems.data import DataError, File, SeriesArrays, Supplement, one_line
from mldd.problems.data.formats.conventions import no_variable

_GRAVITY = 9.80665  # m/s^2: geopotential at the surface over height
Array = NDArray[Any]
_NEEDED = ("data", "dates", "latitudes", "longitudes")


def is_anemoi(path: Path) -> bool:
    """Return whether a store is a data set of Anemoi: `data` over time, variable, ensemble and cell.

    Parameters
    ----------
    path : Path
        The folder.
    """
    import zarr

    try:
        group: Any = zarr.open_group(str(path), mode="r")
        return "variables" in group.attrs and all(name in group for name in _NEEDED) and group["data"].ndim == 4
    except Exception:  # of whatever a damaged store raises; who reads it as a plain store says what is wrong
        return False


def read_anemoi(file: File) -> SeriesArrays:
    """Return variables of a data set of Anemoi as a series, with the statistics in the file.

    Of an ensemble one member is read, ``select=ensemble=0`` the first. Rows of ``missing_dates`` are gaps. Constant
    fields are static inputs, of which the geopotential ``z`` at the surface becomes the altitude. Computed forcings are
    left out, and said: forecasts make theirs from time and place. Variables are normalised by the statistics in the
    file.

    Parameters
    ----------
    file : File
        The store, the variables that are to be forecast, by default the only one that is neither forcing nor
        constant, and the member.

    Raises
    ------
    DataError
        Variables or a member that are not there, several where none is asked for, or arrays that do not belong
        together.
    """
    with damage_said(file.name):
        return AnemoiStore(file).arrays()


@contextmanager
def damage_said(where: str) -> Iterator[None]:
    """Return a context that turns what a damaged store raises into a refusal.

    Parameters
    ----------
    where : str
        The store, for the message.

    Raises
    ------
    DataError
        A damaged chunk, or metadata of another kind.
    """
    try:
        yield
    except (DataError, ImportError, MemoryError):
        raise
    except UntrustedError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # of whatever zarr and its codecs raise
        raise DataError(
            f"{where}: expected a data set of Anemoi that zarr can read, got {one_line(error)}; write it anew by "
            "anemoi-datasets"
        ) from None


class AnemoiStore:
    """A data set, and which of its variables are to be forecast, forcings, or constant.

    Parameters
    ----------
    file : File
        The store, the variables that are to be forecast, and the member.
    key : str
        Where the user has said the member, for messages.

    Raises
    ------
    DataError
        Arrays that do not belong together, or a member that is not there.
    """

    def __init__(self, file: File, key: str = "select") -> None:
        import zarr

        group: Any = zarr.open_group(str(file.path), mode="r")
        self.group, self.file, self.where = group, file, file.name
        self.names = [str(name) for name in group.attrs["variables"]]
        self.metadata = {str(k): v or {} for k, v in dict(group.attrs.get("variables_metadata", {})).items()}
        self.constant = {str(name) for name in group.attrs.get("constant_fields", ())}
        self._check()
        self.member = self._member(key)
        self.time = np.asarray(group["dates"][:]).astype("datetime64[s]")

    def _check(self) -> None:
        shape = self.group["data"].shape
        dates, latitudes, longitudes = (self.group[name].shape[0] for name in _NEEDED[1:])
        expected = (dates, len(self.names), shape[2], latitudes)
        if tuple(shape) != expected or latitudes != longitudes:
            raise DataError(
                f"{self.where}: expected data of shape {expected} (dates, variables, members, cells), got "
                f"{tuple(shape)}"
            )

    def _member(self, key: str) -> int:
        """Return the number of the member that is read, from 0."""
        members = self.group["data"].shape[2]
        words = [[word.strip() for word in text.partition("=")[::2]] for text in self.file.select]
        if [name for name, _ in words] not in ([], ["ensemble"]):
            raise DataError(
                f"{self.where}: `select` must be one member of the data, ensemble=0, got "
                f"{', '.join(self.file.select)}; correct it"
            )
        if not words and members > 1:
            raise DataError(
                f"{self.where}: expected one ensemble member, got {members}; choose one by select=ensemble=0, or "
                f"another of 0..{members - 1}"
            )
        given = words[0][1] if words else "0"
        if given not in map(str, range(members)):
            raise DataError(f"{self.where}: ensemble must be one of 0..{members - 1}, got {given!r}; correct `{key}`")
        return int(given)

    def unit(self, name: str) -> str:
        """Return the unit of a variable as the metadata say it, empty where they do not.

        Parameters
        ----------
        name : str
            The variable.
        """
        return str(self.metadata.get(name, {}).get("units", ""))

    def is_computed(self, name: str) -> bool:
        """Return whether a variable is made from time and place, as the sine of the latitude and the insolation.

        Parameters
        ----------
        name : str
            Of the variable.
        """
        return bool(self.metadata.get(name, {}).get("computed_forcing"))

    def is_constant(self, name: str) -> bool:
        """Return whether a variable does not change in time.

        Parameters
        ----------
        name : str
            Of the variable.
        """
        return bool(self.metadata.get(name, {}).get("constant_in_time")) or name in self.constant

    @property
    def free(self) -> list[str]:
        """Variables that are neither computed nor constant."""
        return [name for name in self.names if not self.is_computed(name) and not self.is_constant(name)]

    def wanted(self) -> list[str]:
        """Return the variables that are to be forecast.

        Raises
        ------
        DataError
            One that is not there, or several or none where none is asked for.
        """
        for name in self.file.variables:
            if name not in self.names:
                no_variable(self.where, name, self.names)
        if self.file.variables:
            return list(self.file.variables)
        free = self.free
        if len(free) != 1:
            raise DataError(
                f"{self.where}: expected one variable that is neither forcing nor constant, got "
                f"{', '.join(free) or 'none'}; choose by variable=NAME or variable=(NAME,NAME)"
            )
        return free

    def arrays(self) -> SeriesArrays:
        """Return what is asked of the store."""
        wanted = self.wanted()
        values, notes = self._values(wanted)
        rest = [name for name in self.names if name not in wanted]
        computed = [name for name in rest if self.is_computed(name)]
        static = {name: self.constant_field(name) for name in rest if self.is_constant(name) and name not in computed}
        height = static.pop("z", None)
        if computed:
            notes.append(f"forcings are made from time and place, not read: {', '.join(computed)}")
        statistics = self.statistics(wanted)
        if statistics[0] is not None:
            ends = [str(self.group.attrs.get(f"statistics_{end}_date", "?"))[:10] for end in ("start", "end")]
            notes.append(f"normalised by the statistics in the file, of {ends[0]} to {ends[1]}")
        grid = self.grid()
        shape = grid or (self.cells,)
        latitude, longitude = self.coordinates
        if grid:
            latitude, longitude = latitude.reshape(grid)[:, 0], longitude.reshape(grid)[0]
        return SeriesArrays(
            self.time,
            latitude,
            longitude,
            {name: values[:, k].reshape(-1, *shape) for k, name in enumerate(wanted)},
            {name: self.unit(name) for name in wanted},
            None if height is None else (height / _GRAVITY).reshape(shape),
            unused=tuple(name for name in rest if name not in computed and not self.is_constant(name)),
            notes=tuple(notes),
            supplement=Supplement({name: of.reshape(shape) for name, of in static.items()}, *statistics),
        )

    def _values(self, wanted: list[str]) -> tuple[Array, list[str]]:
        """Return variables over time and cells, shape (T, V, C), float32, and what is to be said of them."""
        times, cells = len(self.time), self.cells
        check_fits(times * len(wanted) * cells * 12, self.where, "variables")  # and once more in float64
        values = np.empty((times, len(wanted), cells), np.float32)
        rows = max(1, self.group["data"].chunks[0])
        for start in range(0, times, rows):  # every chunk is read once
            values[start : start + rows] = self.rows(slice(start, start + rows), wanted)
        missing = self.missing
        notes = []
        if missing.any():
            notes.append(f"{int(missing.sum())} times are missing_dates of the file: gaps")
        bare = int((np.isnan(values).all((1, 2)) & ~missing).sum())
        if bare:
            notes.append(f"{bare} times have no values, and are no missing_dates of the file: gaps")
        return values, notes

    @property
    def cells(self) -> int:
        """Number of cells."""
        return int(self.group["data"].shape[3])

    @cached_property
    def missing(self) -> NDArray[np.bool_]:
        """Which times are ``missing_dates`` of the file, shape (T,)."""
        named = np.array(self.group.attrs.get("missing_dates", []), dtype="datetime64[s]")
        return np.asarray(np.isin(self.time, named))

    def rows(self, times: Any, names: Sequence[str], cells: Any = slice(None)) -> Array:
        """Return values of the member as they are in the file, shape (t, v, c), float32; gaps are NaN.

        Parameters
        ----------
        times : slice or array of int, shape (t,)
            Numbers of the times.
        names : sequence of str
            Of the v variables.
        cells : slice or array of int, shape (c,)
            Numbers of the cells, all by default.
        """
        columns = [self.names.index(name) for name in names]
        return np.asarray(self.group["data"].oindex[times, columns, self.member, cells], np.float32)

    @cached_property
    def coordinates(self) -> tuple[Array, Array]:
        """Latitudes and longitudes of the cells in degrees, shape (C,) each."""
        latitude, longitude = (np.asarray(self.group[name][:], np.float64) for name in ("latitudes", "longitudes"))
        return latitude, longitude

    def constant_field(self, name: str) -> Array:
        """Return a constant field at the first time that has it, shape (C,), float64.

        Parameters
        ----------
        name : str
            Of the variable.

        Raises
        ------
        DataError
            There are gaps in it at all times.
        """
        for row in range(len(self.time)):
            field: Array = self.rows([row], [name])[0, 0].astype(np.float64)
            if np.isfinite(field).all():
                return field
        raise DataError(f"{self.where}: expected values of the constant field {name} at some time, got gaps in all")

    def statistics(self, wanted: Sequence[str]) -> tuple[Array | None, Array | None]:
        """Return mean and standard deviation of variables, shape (v,) each, None where the file does not have them.

        Parameters
        ----------
        wanted : sequence of str
            Names of the v variables.

        Raises
        ------
        DataError
            They are not finite, or a deviation is negative.
        """
        if "mean" not in self.group or "stdev" not in self.group:
            return None, None
        columns = [self.names.index(name) for name in wanted]
        mean, deviation = (np.asarray(self.group[name][:], np.float64)[columns] for name in ("mean", "stdev"))
        if not (np.isfinite(mean).all() and np.isfinite(deviation).all() and (deviation >= 0).all()):
            raise DataError(f"{self.where}: expected finite statistics of {', '.join(wanted)}, got {mean}, {deviation}")
        return mean, deviation

    def grid(self) -> tuple[int, int] | None:
        """Return rows and columns of a latitude-longitude grid, None where the cells are no such grid."""
        shape = tuple(int(n) for n in self.group.attrs.get("field_shape") or ())
        if len(shape) != 2 or shape[0] * shape[1] != self.cells:
            return None
        latitude, longitude = (of.reshape(shape) for of in self.coordinates)
        regular = bool((latitude == latitude[:, :1]).all() and (longitude == longitude[:1]).all())
        return shape if regular else None
