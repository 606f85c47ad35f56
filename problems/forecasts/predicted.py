"""Forecasts with coordinates and units, as the CF conventions name them."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.models import Field, Prediction
from mldd.problems.data import CALENDARS, Series, meaning
from mldd.problems.forecasts.forecast_data import ForecastData

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_TIME = {"standard_name": "forecast_reference_time", "long_name": "time at which the forecast begins"}
_VALID = {"standard_name": "time", "long_name": "time of which the forecast is"}
_NORTH = {"standard_name": "latitude", "units": "degrees_north"}
_EAST = {"standard_name": "longitude", "units": "degrees_east"}


def forecast_of(data: ForecastData, origins: Ints, values: Floats, trained_on: str) -> Prediction:
    """Return forecasts as a prediction over origins, lead times and nodes.

    Parameters
    ----------
    data : ForecastData
        Of the series that they begin in.
    origins : ndarray, shape (S,), int64
        Steps at which they begin.
    values : ndarray, shape (S, n, L, V)
        In units of the series, at the first L lead times of the plan.
    trained_on : str
        Name of the series of the training.
    """
    series, leads = data.series, np.array(data.plan.reached[: values.shape[2]])
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
