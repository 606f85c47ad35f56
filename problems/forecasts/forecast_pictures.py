"""Pictures of a forecast: a map of forecast, truth and error, errors by variable and lead time, parts and halos."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mldd.figures import draw_parts, maps
from mldd.loop import replacing
from mldd.problems.data import Series
from mldd.problems.forecasts.forecast_data import ForecastData
from mldd.problems.forecasts.forecast_metrics import Moments, moments

if TYPE_CHECKING:
    from mldd.problems.forecasts.forecasting import Forecasting

Floats = NDArray[np.float64]


def draw(problem: Forecasting, folder: Path, x: Tensor, parts: int = 1) -> list[Path]:
    """Draw all pictures of the network with parameters `x` into `folder`, with a table, and return their files.

    Parameters
    ----------
    problem : Forecasting
        What has been trained.
    folder : Path
        Where figures are written.
    x : Tensor, shape (N,)
        Parameters of the network.
    parts : int
        Of the decomposition; nothing is drawn of a single part.
    """
    found = {"network": moments(problem.forecast_data, "test", lambda origins: problem.forecasts(x, origins))}
    found |= problem.references
    drawn = [_forecast(problem, folder, x), _table(problem.forecast_data, folder, found)]
    drawn.append(_errors(problem, folder, found))
    if parts > 1:
        drawn.append(folder / "parts.png")
        draw_parts(
            problem.graph, {f"{parts} parts": problem.parts(parts)}, drawn[-1], problem.coordinates, _name(problem)
        )
    return drawn


def _places(problem: Forecasting) -> Floats:
    return np.stack([problem.series.latitude, maps.around(problem.series.longitude)], axis=1)


def _forecast(problem: Forecasting, folder: Path, x: Tensor) -> Path:
    """Draw the test forecast of the longest lead time whose error is the median one."""
    data, series = problem.forecast_data, problem.series
    lead = data.plan.reached[-1]
    origins = data.origins["test"]
    if (origins + lead < series.times).any():
        origins = origins[origins + lead < series.times]
    else:
        lead = data.plan.reached[0]
    made = problem.forecasts(x, origins)[:, :, data.plan.reached.index(lead), 0]
    truth = series.values[origins + lead, :, 0]
    there = ~np.isnan(made - truth)
    squares = np.where(there, (made - truth) ** 2, 0.0).sum(1) / np.maximum(there.sum(1), 1)
    one = int(np.argsort(squares)[len(squares) // 2])
    error = f"RMSE {np.sqrt(squares[one]):.3g}, the median of the test part"
    panels = {
        f"value at {_moment(series, origins[one])}": data.carried[origins[one], :, 0],
        f"forecast for {_moment(series, origins[one] + lead)}": made[one],
        "observation": truth[one],
        "forecast minus observation": made[one] - truth[one],
    }
    maps.fields(
        _places(problem),
        panels,
        folder / "forecast.png",
        errors=("forecast minus observation",),
        grid=series.grid,
        label=series.label(0),
        title=f"{_name(problem)}: {series.variables[0]}, {span(data, lead)} ahead, {error}",
    )
    return folder / "forecast.png"


def _name(problem: Forecasting) -> str:
    return Path(problem.series.name).name


def _moment(series: Series, time: int) -> str:
    return str(series.moments(np.array([time]))[0].astype("datetime64[m]")).replace("T", " ")


def _table(data: ForecastData, folder: Path, found: Mapping[str, Moments]) -> Path:
    """Write the errors of all variables and lead times over the test part, in units of the series, as a table."""
    series, names = data.series, list(found)
    head = ["variable", "unit", "lead_hours", "bias", *("rmse" + f"_{n}" * (n != "network") for n in names)]
    path = folder / "lead_times.csv"
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerow(head + [f"skill_{name}" for name in names[1:]])
        for v, variable in enumerate(series.variables):
            for k, lead in enumerate(data.plan.reached):
                squares = np.array([found[name].square[k, v] for name in names])
                with np.errstate(divide="ignore", invalid="ignore"):
                    numbers = [found["network"].bias[k, v], *np.sqrt(squares), *(1.0 - squares[0] / squares[1:])]
                unit = series.units[v] if series.units else ""
                rows.writerow([variable, unit, f"{lead * series.step / 3600:g}", *(f"{x:.8g}" for x in numbers)])
    return path


def _errors(problem: Forecasting, folder: Path, found: Mapping[str, Moments]) -> Path:
    """Draw the errors of all variables against lead time."""
    data, series = problem.forecast_data, problem.series
    shown = {"persistence": "persistence", "climatology": "climatology", "linear": "linear model"}
    shown["network"] = f"{problem.network.model} network"
    hours = series.step >= 3600
    unit = 3600.0 if hours else 60.0
    path = folder / "skill.png"
    maps.skill(
        [lead * series.step / unit for lead in data.plan.reached],
        {
            series.label(v): {text: np.sqrt(found[name].square[:, v]) for name, text in shown.items()}
            for v in range(len(series.variables))
        },
        path,
        unit="h" if hours else "min",
        title=f"{_name(problem)}, test part",
    )
    return path


def span(data: ForecastData, lead: int) -> str:
    """Return a lead time in hours or minutes.

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    lead : int
        Steps ahead.
    """
    seconds = lead * data.series.step
    return f"{seconds / 3600:g} h" if seconds >= 3600 else f"{seconds / 60:g} min"
