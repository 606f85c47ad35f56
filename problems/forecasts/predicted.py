"""Forecasts that are asked for: where they begin, members, and the coordinates and units that CF conventions name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.models import Field, Prediction, joined
from mldd.problems.data import CALENDARS, DataError, Series, meaning

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_TIME = {"standard_name": "forecast_reference_time", "long_name": "time at which the forecast begins"}
_VALID = {"standard_name": "time", "long_name": "time of which the forecast is"}
_NORTH = {"standard_name": "latitude", "units": "degrees_north"}
_EAST = {"standard_name": "longitude", "units": "degrees_east"}


@dataclass(frozen=True)
class PerturbedStarts:
    """Say which members forecasts have, and what each begins at.

    Parameters
    ----------
    members : int
        The first one begins at the observations, the others at perturbed ones.
    perturb : float
        Standard deviation of independent normal errors of all observations, in those of the variables.
    seed : int
        Of the perturbations.

    Raises
    ------
    ValueError
        Members without perturbations, or perturbations of a single one.
    """

    members: int = 1
    perturb: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse members without perturbations."""
        if self.members < 1 or (self.members > 1) != (self.perturb > 0):
            raise ValueError(
                f"an ensemble must have members >= 2 and perturb > 0, got members={self.members}, "
                f"perturb={self.perturb:g}; give both, or neither"
            )

    def predicted(self, values: Floats, deviation: Floats, forecast: Callable[[Floats], Prediction]) -> Prediction:
        """Return the forecasts from all starts, over members where there are several.

        Parameters
        ----------
        values : ndarray, shape (T, n, V)
            Observations.
        deviation : ndarray, shape (V,)
            Of the variables.
        forecast : callable
            Returns the forecasts from observations of this shape.
        """
        made = [forecast(values)]
        for member in range(1, self.members):
            random = np.random.default_rng([self.seed, member])
            made.append(forecast(values + self.perturb * deviation * random.standard_normal(values.shape)))
        return made[0] if self.members == 1 else joined(made)


def starts_of(start: Any, name: str, moments: Any, first: int) -> Ints:
    """Return the numbers of the times that are asked for.

    Parameters
    ----------
    start : str or sequence of int
        ``last``, ``all``, a date, two dates as in ``2019-03-30T06..2019-03-31``, or numbers of times.
    name : str
        Of the series, for messages.
    moments : ndarray of datetime64[s], shape (last + 1,)
        Dates of the times up to the last one that a forecast may begin at.
    first : int
        The first time that one may begin at.

    Raises
    ------
    DataError
        No date, or dates at which no forecast can begin.
    """
    last = len(moments) - 1
    if not isinstance(start, str):
        return np.asarray(start)
    if start == "last":
        return np.array([last])
    if start == "all":
        return np.arange(first, last + 1)
    begin, two, end = start.partition("..")
    try:
        dates = np.datetime64(begin, "s"), np.datetime64(end or begin, "s")
    except ValueError:
        raise DataError(
            f"`start` must be last, all, a date or two, as in 2019-03-30T06..2019-03-31, got {start!r}; correct it"
        ) from None
    found = np.flatnonzero((moments >= dates[0]) & (moments <= dates[1]))
    if len(found[found >= first]) == 0 or (not two and found[0] < first):
        raise DataError(f"{name}: `start` must lie in {moments[first]}..{moments[last]}, got {start}; choose others")
    return found[found >= first]


def forecast_of(series: Series, leads: Ints, origins: Ints, values: Floats, trained_on: str) -> Prediction:
    """Return forecasts as a prediction over origins, lead times and nodes.

    Parameters
    ----------
    series : Series
        That they begin in.
    leads : ndarray, shape (L,), int64
        Lead times in steps.
    origins : ndarray, shape (S,), int64
        Steps at which they begin.
    values : ndarray, shape (S, n, L, V)
        In units of the series.
    trained_on : str
        Name of the series of the training.
    """
    places, coordinates = _places(series)
    sizes = [len(coordinates[name].values) for name in places]
    by_lead = values.transpose(0, 2, 1, 3)
    fields = {
        name: Field(
            ("time", "lead_time", *places),
            by_lead[..., v].reshape(len(origins), len(leads), *sizes),
            _described(series, v),
        )
        for v, name in enumerate(series.variables)
    }
    moments = {
        "time": _dates(series, ("time",), origins, _TIME),
        "lead_time": _lead_times(series, leads),
        "valid_time": _dates(series, ("time", "lead_time"), origins[:, None] + leads, _VALID),
    }
    title = {"title": f"forecasts of {series.name} by a network trained on {trained_on}"}
    return Prediction(fields, moments | coordinates, ("time", "lead_time", *places), title, series.notes)


def _described(series: Series, variable: int) -> dict[str, str]:
    """Return the attributes of a variable: those of its file before those that name and unit tell."""
    name, said = series.variables[variable], dict(series.supplement.attributes.get(series.variables[variable], {}))
    title = f"forecast of {said.pop('long_name', name)}"
    return {"long_name": title, **meaning(name, series.units[variable] if series.units else ""), **said}


def _places(series: Series) -> tuple[tuple[str, ...], dict[str, Field]]:
    """Return the dimensions of the nodes, and the coordinates along them."""
    if series.grid is not None:
        rows, columns = series.grid
        latitude, longitude = series.latitude.reshape(rows, columns)[:, 0], series.longitude[:columns]
        return ("latitude", "longitude"), {
            "latitude": Field(("latitude",), latitude, _NORTH),
            "longitude": Field(("longitude",), longitude, _EAST),
        }
    found = {
        "node": Field(("node",), np.arange(series.nodes), {"long_name": "number of the node"}),
        "latitude": Field(("node",), series.latitude, _NORTH),
        "longitude": Field(("node",), series.longitude, _EAST),
    }
    if series.supplement.area is not None:
        named = {"long_name": "weight of the node in means, proportional to the area of its cell", "units": "1"}
        found["area_weight"] = Field(("node",), series.weights, named)
    if series.altitude is not None:
        found["altitude"] = Field(("node",), series.altitude, {"standard_name": "altitude", "units": "m"})
    return ("node",), found


def _lead_times(series: Series, leads: Ints) -> Field:
    attributes = {"standard_name": "forecast_period", "long_name": "time since the forecast began"}
    if series.calendar.months:
        return Field(("lead_time",), leads * series.calendar.months, {**attributes, "units": "months"})
    return Field(("lead_time",), leads * series.step / 3600.0, {**attributes, "units": "hours"})


def _dates(series: Series, dims: tuple[str, ...], index: Ints, attributes: dict[str, Any]) -> Field:
    """Return the dates of times; in the calendar of a model those are numbers with units."""
    if series.calendar.name in CALENDARS and not series.calendar.months:
        units = f"seconds since {str(series.time[0]).replace('T', ' ')}"
        more = {"units": units, "calendar": series.calendar.name}
        return Field(dims, index * float(series.step), {**attributes, **more})
    return Field(dims, series.moments(index), attributes)
