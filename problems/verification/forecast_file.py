"""Forecasts in NetCDF or Zarr: starts, lead times, places and members, found by their CF names."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.algebra import way_to_install
from mldd.problems.data import DataError, meaning, one_line, winds

Floats = NDArray[np.float64]
_START = ("forecast_reference_time",), ("time", "init_time", "forecast_reference_time", "start")
_LEAD = ("forecast_period",), ("lead_time", "step", "prediction_timedelta", "lead")
_MEMBER = ("realization",), ("member", "number", "realization", "ensemble")
_NORTH = ("latitude",), ("latitude", "lat")
_EAST = ("longitude",), ("longitude", "lon")
_SECONDS = {"second": 1, "s": 1, "minute": 60, "min": 60, "hour": 3600, "h": 3600, "day": 86400, "d": 86400}


@dataclass(frozen=True, eq=False)
class ForecastFile:
    """Forecasts of several variables from several starts.

    Parameters
    ----------
    name : str
        Of the file.
    starts : ndarray of datetime64[s], shape (S,)
        When forecasts begin.
    valid : ndarray of datetime64[s], shape (S, L)
        Of which times they are.
    latitude, longitude : ndarray, shape (n,)
        Degrees.
    grid : tuple of int or None
        Rows and columns of a latitude-longitude grid.
    arrays : dict of str to DataArray
        The variables over (member, start, lead time, places), read when they are asked for.
    area : ndarray, shape (n,), or None
        Weights of the places, where the file has them.
    notes : tuple of str
        What the user should know of the file.
    """

    name: str
    starts: Any
    valid: Any
    latitude: Floats
    longitude: Floats
    grid: tuple[int, int] | None
    arrays: dict[str, Any]
    area: Floats | None = None
    notes: tuple[str, ...] = ()

    @property
    def variables(self) -> tuple[str, ...]:
        """Names of the variables."""
        return tuple(self.arrays)

    @property
    def units(self) -> tuple[str, ...]:
        """Units of the variables, empty where the file has none."""
        return tuple(str(array.attrs.get("units", "")) for array in self.arrays.values())

    @property
    def hours(self) -> Floats:
        """Lead times in hours, on average over starts where months differ, shape (L,)."""
        return np.asarray((self.valid - self.starts[:, None]).astype(np.int64).mean(0) / 3600.0)

    @cached_property
    def vectors(self) -> dict[str, tuple[int, int]]:
        """Numbers of the components of every wind, by name."""
        named = zip(self.variables, self.units, self.arrays.values(), strict=True)
        known = [str(a.attrs.get("standard_name") or meaning(v, u).get("standard_name", "")) for v, u, a in named]
        return winds(self.variables, known)

    def values(self, lead: int) -> Floats:
        """Return the forecasts of one lead time, shape (M, S, n, V).

        Parameters
        ----------
        lead : int
            Its number.
        """
        made = [array[:, :, lead].to_numpy().astype(np.float64) for array in self.arrays.values()]
        return np.stack([of.reshape(*of.shape[:2], -1) for of in made], axis=-1)


def read_forecasts(path: str | os.PathLike[str]) -> ForecastFile:
    """Return the forecasts in a file.

    Parameters
    ----------
    path : str or path
        NetCDF, or the folder of a Zarr store.

    Raises
    ------
    DataError
        It cannot be read, or holds no forecasts over starts, lead times and places.
    """
    name = os.fspath(path)
    if not Path(path).exists():
        raise DataError(f"{name}: expected a file of forecasts, got none; correct the path")
    try:
        import xarray
    except ImportError:
        raise DataError(f"{name}: xarray is not installed, which reads forecasts: {way_to_install('xarray')}") from None
    try:
        dataset = xarray.open_dataset(path, decode_timedelta=False)
    except Exception as error:  # every back end has errors of its own
        raise DataError(
            f"{name}: expected NetCDF or Zarr that xarray can read, got {one_line(error)}; write it anew"
        ) from None
    return _found(dataset, name)


def _found(dataset: Any, name: str) -> ForecastFile:
    start, lead = _named(dataset, _START, name), _named(dataset, _LEAD, name)
    places = _named(dataset, _NORTH, name), _named(dataset, _EAST, name)
    latitude, longitude = (np.asarray(place.to_numpy(), np.float64) for place in places)
    member = _coordinate(dataset, _MEMBER)
    dims = list(dict.fromkeys([*places[0].dims, *places[1].dims]))
    is_grid = latitude.ndim == longitude.ndim == 1 and places[0].dims != places[1].dims
    grid = (latitude.size, longitude.size) if is_grid else None
    if is_grid:
        latitude, longitude = np.repeat(latitude, grid[1]), np.tile(longitude, grid[0])  # type: ignore[index]
    starts, valid = _moments(dataset, start, lead, name)
    axes = [_dim(member, "member"), _dim(start, "start"), _dim(lead, "lead"), *dims]
    arrays, left = {}, []
    for key, array in dataset.data_vars.items():
        missing = [axis for axis, of in zip(axes[:3], (member, start, lead), strict=True) if of is None or not of.dims]
        if array.dtype.kind in "fiu" and set(axes) - set(missing) == set(array.dims):
            arrays[str(key)] = array.expand_dims(missing).transpose(*axes)
        else:
            left.append(str(key))
    if not arrays:
        raise DataError(
            f"{name}: expected variables over {', '.join(map(str, axes[1:]))}, got {', '.join(left) or 'none'}; select "
            "one of other dimensions, as in ds.isel(level=0)"
        )
    notes = (f"not verified, having other dimensions: {', '.join(left)}",) if left else ()
    order = np.argsort(starts, kind="stable")  # blocks of the bootstrap are of neighbours in time
    arrays = {key: array if (np.diff(order) == 1).all() else array[:, order] for key, array in arrays.items()}
    area = _coordinate(dataset, (("cell_area",), ("area_weight", "cell_area")))
    if area is not None:
        area = area.transpose(*dims).to_numpy().astype(np.float64).ravel() if set(area.dims) == set(dims) else None
    where = latitude.ravel(), longitude.ravel(), grid
    return ForecastFile(name, starts[order], valid[order], *where, arrays, area, notes)


def _coordinate(dataset: Any, names: tuple[Sequence[str], Sequence[str]]) -> Any:
    """Return the coordinate with one of the standard names, or else with one of the names; None where there is none."""
    standard, usual = names
    for key in dataset.variables:
        if dataset[key].attrs.get("standard_name") in standard and dataset[key].ndim <= 2:
            return dataset[key]
    return next((dataset[key] for key in usual if key in dataset.variables), None)


def _named(dataset: Any, names: tuple[Sequence[str], Sequence[str]], where: str) -> Any:
    found = _coordinate(dataset, names)
    if found is None:
        listed = ", ".join(map(str, dataset.variables)) or "nothing"
        raise DataError(f"{where}: expected a coordinate {' or '.join(names[1])}, got {listed}; rename it")
    return found


def _dim(coordinate: Any, otherwise: str) -> Any:
    return otherwise if coordinate is None or not coordinate.dims else coordinate.dims[0]


def _moments(dataset: Any, start: Any, lead: Any, name: str) -> tuple[Any, Any]:
    """Return the starts, shape (S,), and the times that forecasts are of, shape (S, L)."""
    if start.ndim > 1 or lead.ndim > 1:
        raise DataError(f"{name}: starts and lead times must be rows, got {start.dims} and {lead.dims}; select some")
    if start.dtype.kind != "M":
        raise DataError(f"{name}: starts must be dates of the standard calendar, got {start.dtype}; convert them")
    starts = np.atleast_1d(start.to_numpy()).astype("datetime64[s]")
    unit = str(lead.attrs.get("units", "")).strip().lower()
    seconds = _SECONDS.get(unit, _SECONDS.get(unit.rstrip("s")))
    if seconds is not None:
        ahead = np.rint(np.atleast_1d(lead.to_numpy()).astype(np.float64) * seconds).astype("timedelta64[s]")
        return starts, starts[:, None] + ahead
    there = dataset.variables.get("valid_time")
    shape = len(starts), np.atleast_1d(lead.to_numpy()).size
    if there is None or there.dtype.kind != "M" or there.size != shape[0] * shape[1]:
        raise DataError(
            f"{name}: lead times must be in seconds, minutes, hours or days, got unit {unit!r}; set the attribute "
            "units, or give the coordinate valid_time"
        )
    ordered = dataset["valid_time"].transpose(*(axis for axis in (*start.dims, *lead.dims)))
    return starts, ordered.to_numpy().astype("datetime64[s]").reshape(shape)
