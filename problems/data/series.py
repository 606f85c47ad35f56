"""Time series on nodes with coordinates: fields on grids, stations, sensors; everything is checked when it is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Graph
from mldd.problems.data.calendars import STANDARD, Calendar, monthly
from mldd.problems.data.contents import DataError, Supplement, checksum
from mldd.problems.data.geography import area_weights, closed

Floats = NDArray[np.float64]
_DAY = 86400  # seconds
_MOST = 20  # as many times may be missing per time that is there, before the step is taken for irregular


@dataclass(frozen=True, eq=False)
class Series:
    """Hold a time series on n nodes.

    Parameters
    ----------
    name : str
        Of the series, for messages and titles.
    values : ndarray, shape (T, n, V), float64
        NaN where an observation is missing (a gap).
    time : ndarray of datetime64[s], shape (T,)
        Ascending with one step, in seconds or as the calendar says; `arranged` brings others into this form.
    latitude, longitude : ndarray, shape (n,)
        Degrees; any longitude in -180..360.
    variables : tuple of str
        Names of the V variables.
    altitude : ndarray, shape (n,), optional
        Metres.
    grid : tuple of int, optional
        Rows and columns of a latitude-longitude grid, nodes row by row.
    units : tuple of str
        Of the variables, where they are known.
    notes : tuple of str
        What was done to the data, and what the user should know about them.
    calendar : Calendar
        How times follow each other: equal steps of the standard calendar by default.
    supplement : Supplement
        Static fields, shape (n,) each, mean and deviation of the variables, a graph: where the file has them.

    Raises
    ------
    DataError
        If anything of this does not hold.
    """

    name: str
    values: Floats
    time: Any
    latitude: Floats
    longitude: Floats
    variables: tuple[str, ...]
    altitude: Floats | None = None
    grid: tuple[int, int] | None = None
    units: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    calendar: Calendar = STANDARD
    supplement: Supplement = Supplement()  # noqa: RUF009 (frozen)

    def __post_init__(self) -> None:
        """Refuse what is no series."""
        self._check_values()
        self._check_nodes()
        _check_time(self.name, self.time)
        apart = self.time.astype("datetime64[M]") if self.calendar.months else self.time
        if len(np.unique(np.diff(apart))) > 1:
            _refuse(self.name, f"times must have one step, got {_steps(self.time)}; use `arranged`")

    def _check_values(self) -> None:
        values = self.values
        if values.ndim != 3 or values.dtype != np.float64 or 0 in values.shape:
            _refuse(self.name, f"values must be float64 of shape (T, n, V), got {values.dtype} {values.shape}")
        if len(self.time) != len(values):
            _refuse(self.name, f"there must be one time per row of values, got {len(self.time)} for {len(values)} rows")
        if len(set(self.variables)) != len(self.variables) or len(self.variables) != values.shape[2]:
            _refuse(self.name, f"there must be {values.shape[2]} different names of variables, got {self.variables}")
        if np.isinf(values).any():
            _refuse(
                self.name, f"values must be finite or NaN, got {int(np.isinf(values).sum())} infinite; make them NaN"
            )
        for name, empty in zip(self.variables, np.atleast_1d(np.isnan(values).all((0, 1))), strict=True):
            if empty:
                _refuse(self.name, f"variable {name} must have values, got gaps only; choose another")

    def _check_nodes(self) -> None:
        n = self.nodes
        given = {"latitude": self.latitude, "longitude": self.longitude, "altitude": self.altitude}
        given |= self.supplement.static
        for name, array in given.items():
            if array is not None and (array.shape != (n,) or not np.isfinite(array).all()):
                bad = int((~np.isfinite(array)).sum())
                got = f"shape {array.shape}" + f" with {bad} not finite" * bool(bad)
                _refuse(self.name, f"{name} must be {n} finite numbers, got {got}; correct the file")
        for name, low, high in (("latitude", -90, 90), ("longitude", -180, 360)):
            of_nodes = given[name]
            assert of_nodes is not None
            span = float(of_nodes.min()), float(of_nodes.max())
            if span[0] < low - 1e-6 or span[1] > high + 1e-6:
                _refuse(self.name, f"{name} must be in {low}..{high} degrees, got {span[0]:g}..{span[1]:g}")
        if self.grid is not None and self.grid[0] * self.grid[1] != n:
            _refuse(self.name, f"the grid must have {n} nodes, got {self.grid}")
        if self.graph is not None and self.graph.nodes != n:
            _refuse(self.name, f"the graph must have {n} nodes, got {self.graph.nodes}")

    # -------------------------------------------------------------------------------- sizes

    @property
    def graph(self) -> Graph | None:
        """The graph that is given with the data, if there is one."""
        return self.supplement.graph

    @property
    def times(self) -> int:
        """Number T of times."""
        return len(self.values)

    @property
    def nodes(self) -> int:
        """Number n of nodes."""
        return int(self.values.shape[1])

    @property
    def step(self) -> int:
        """Seconds between two times, on average where they are months apart."""
        return int((self.time[-1] - self.time[0]) / np.timedelta64(1, "s")) // (self.times - 1)

    @property
    def per_day(self) -> int:
        """Steps of a day where a day is a whole number of them and they take an hour or more, else 0."""
        return _DAY // self.step if self.step >= 3600 and self.step < _DAY and _DAY % self.step == 0 else 0

    def moments(self, index: Any) -> Any:
        """Return the dates of times, datetime64[s]; of another calendar those at the same place in the year.

        Parameters
        ----------
        index : array of int, shape (S,)
            Which times; those behind the end of the series, too.
        """
        return self.calendar.moments(self.time[0], self.step, np.asarray(index))

    @cached_property
    def weights(self) -> Floats:
        """Area of every node, mean 1: cos(latitude) on a grid and for cells of one, ones for stations; shape (n,)."""
        if self.supplement.area is not None:
            return np.asarray(self.supplement.area / self.supplement.area.mean())
        return np.ones(self.nodes) if self.grid is None else area_weights(self.latitude)

    @cached_property
    def gaps(self) -> int:
        """Number of missing observations."""
        return int(np.isnan(self.values).sum())

    # -------------------------------------------------------------------------------- other series

    def chosen(self, names: tuple[str, ...]) -> Series:
        """Return the series of some of the variables.

        Parameters
        ----------
        names : tuple of str
            Of the variables, in the order in which they are wanted.

        Raises
        ------
        DataError
            No such variable.
        """
        for name in names:
            if name not in self.variables:
                _refuse(self.name, f"variable must be one of {', '.join(self.variables)}, got {name!r}")
        index = [self.variables.index(name) for name in names]
        units = tuple(self.units[k] for k in index) if self.units else ()
        values, supplement = np.ascontiguousarray(self.values[:, :, index]), self.supplement.of_variables(index)
        return replace(self, values=values, variables=names, units=units, supplement=supplement)

    def with_known(self, names: tuple[str, ...]) -> Series:
        """Return the series in which some variables are covariates that are known about the future, too.

        Parameters
        ----------
        names : tuple of str
            Of the variables.

        Raises
        ------
        DataError
            No such variable, or one with gaps: what is known is known at all times.
        """
        rest = self.chosen(tuple(name for name in self.variables if name not in names))
        known = {name: self.chosen((name,)).values[..., 0] for name in names}
        for name, values in known.items():
            gaps = int(np.isnan(values).sum())
            if gaps:
                _refuse(self.name, f"known covariate {name} must have no gaps, got {gaps}; fill them, or leave it out")
        return replace(rest, supplement=replace(rest.supplement, known=known))

    def with_boundary(self, rows: int) -> Series:
        """Return the series of a region whose outer nodes are inputs: another model knows them ahead.

        Parameters
        ----------
        rows : int
            Outer rows and columns of the grid.

        Raises
        ------
        DataError
            No grid of a region, or nothing left inside of it.
        """
        if self.grid is None or closed(self.longitude, self.grid):
            _refuse(self.name, "a boundary must be that of a regional latitude-longitude grid, got none; leave it out")
        assert self.grid is not None
        if 2 * rows >= min(self.grid):
            _refuse(self.name, f"boundary must leave nodes inside of {self.grid[0]} x {self.grid[1]}, got {rows} rows")
        outer = np.ones(self.grid, dtype=np.bool_)
        outer[rows:-rows, rows:-rows] = False
        note = f"the outer {int(outer.sum())} nodes are inputs: they are not forecast, and do not count"
        supplement = replace(self.supplement, outer=outer.ravel())
        return replace(self, supplement=supplement, notes=(*self.notes, note))

    def observed(self) -> Series:
        """Return the series of the nodes that have ever been observed, as the sea in data of the land has not.

        A graph that came with the series keeps all of its nodes.
        """
        seen = np.asarray(~np.isnan(self.values).all((0, 2)))
        lost = int((~seen).sum())
        if lost == 0:
            return self
        if self.graph is not None:
            note = f"{lost} of {self.nodes} nodes were never observed; the graph of the data keeps them"
            return replace(self, notes=(*self.notes, note))
        area = self.weights if self.grid is not None or self.supplement.area is not None else None
        return replace(
            self,
            values=np.ascontiguousarray(self.values[:, seen]),
            latitude=self.latitude[seen],
            longitude=self.longitude[seen],
            altitude=None if self.altitude is None else self.altitude[seen],
            grid=None,
            supplement=replace(self.supplement, area=area).of_nodes(seen),
            notes=(*self.notes, f"{lost} of {self.nodes} nodes were never observed and are left out"),
        )

    @cached_property
    def digest(self) -> str:
        """SHA-256 of values, times and coordinates."""
        return checksum(self.values, self.time.astype(np.int64), self.latitude, self.longitude)

    def label(self, variable: int) -> str:
        """Return the name of a variable with its unit.

        Parameters
        ----------
        variable : int
            Its number.
        """
        unit = self.units[variable] if self.units else ""
        return f"{self.variables[variable]} ({unit})" if unit else self.variables[variable]

    def carried(self) -> Floats:
        """Return the values with gaps filled by the last observation of the node; NaN before its first one.

        Only the past fills a gap, so that no forecast sees the future.
        """
        known = ~np.isnan(self.values)
        last = np.where(known, np.arange(self.times)[:, None, None], -1)
        np.maximum.accumulate(last, axis=0, out=last)
        filled = np.take_along_axis(self.values, np.maximum(last, 0), axis=0)
        filled[last < 0] = np.nan
        return filled


def arranged(
    name: str, values: Floats, time: Any, *, sort: bool = False, calendar: str = "standard", **rest: Any
) -> Series:
    """Return a series of times that need not be in order or complete: missing ones become gaps.

    Parameters
    ----------
    name : str
        Of the series.
    values : array, shape (T, n, V)
        NaN where an observation is missing.
    time : array of datetime64, shape (T,)
        Multiples of one step in seconds, or of calendar months, but for those that are missing.
    sort : bool
        Sort the times; otherwise unsorted ones are refused.
    calendar : str
        Name as in `Calendar`.
    **rest
        Other fields of `Series`.

    Raises
    ------
    DataError
        Times that are unsorted, occur twice, or are no multiples of one step.
    """
    time = np.asarray(time).astype("datetime64[s]")
    values = np.asarray(values, dtype=np.float64)
    if sort and len(time) == len(values) and not np.isnat(time).any():
        order = np.argsort(time, kind="stable")
        time, values = time[order], values[order]
    _check_time(name, time)
    months = 0 if calendar != "standard" or _is_even(time) else monthly(time)
    places = time.astype("datetime64[M]") if months else time
    offset = (places - places[0]).astype(np.int64)
    step = months or int(np.diff(offset).min())
    slots = offset // step
    if (offset % step).any() or slots[-1] + 1 > _MOST * len(time):
        _refuse(name, f"times must be multiples of one step, got {_steps(time)}; resample the series")
    counted = Calendar(calendar, months)
    missing = int(slots[-1]) + 1 - len(time)
    if missing == 0:
        return Series(name, values, time, calendar=counted, **rest)
    whole = np.full((int(slots[-1]) + 1, *values.shape[1:]), np.nan)
    whole[slots] = values
    filled = (places[0] + step * np.arange(len(whole))).astype("datetime64[s]")  # in the unit of places
    filled[slots] = time
    absent = filled[np.setdiff1d(np.arange(len(whole)), slots)]
    listed = ", ".join(str(t).replace("T", " ")[:16] for t in absent[:3]) + (", ..." if missing > 3 else "")
    notes = (*rest.pop("notes", ()), f"{missing} missing times were inserted as gaps: {listed}")
    return Series(name, whole, filled, notes=notes, calendar=counted, **rest)


def _is_even(time: Any) -> bool:
    """Say whether times are multiples of their shortest step, nearly all of them one step apart."""
    steps = np.diff(time).astype(np.int64)
    return not (steps % steps.min()).any() and bool(np.median(steps) == steps.min()) and steps.min() < 28 * _DAY


def _check_time(name: str, time: Any) -> None:
    if np.asarray(time).ndim != 1 or len(time) < 2:
        _refuse(name, f"there must be at least two times, got {np.asarray(time).size}; give a longer series")
    if time.dtype.kind != "M" or np.isnat(time).any():
        _refuse(name, "times must be dates (datetime64), got others or missing ones; convert them or leave them out")
    steps = np.diff(time).astype("timedelta64[s]").astype(np.int64)
    if (steps < 0).any():
        _refuse(name, f"times must ascend, got {int((steps < 0).sum())} that go back; sort them or set sort=true")
    if (steps == 0).any():
        _refuse(name, f"every time must occur once, got {int((steps == 0).sum())} twice; leave the doubles out")


def _steps(time: Any) -> str:
    """List the most frequent steps of an irregular series."""
    steps, counts = np.unique(np.diff(time).astype("timedelta64[s]").astype(np.int64), return_counts=True)
    order = np.argsort(-counts)[:3]
    return ", ".join(f"{counts[k]} of {steps[k]} s" for k in order)


def _refuse(name: str, what: str) -> NoReturn:
    raise DataError(f"{name}: {what}")
