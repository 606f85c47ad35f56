"""Errors of forecasts over the parts of a series, beside persistence, climatology and the linear model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mldd.problems.forecasts.daily_climatology import hourly_means
from mldd.problems.forecasts.forecast_data import ForecastData, Part
from mldd.problems.forecasts.linear_forecast import fit_linear

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Forecast = Callable[[Ints], Floats]


@dataclass(frozen=True, eq=False)
class Moments:
    """Weighted means of errors over origins and nodes, per lead time and variable, shapes (L, V).

    Attributes
    ----------
    bias, square : ndarray
        Of forecast minus observation, every node with the same weight.
    area : ndarray
        Squares with the areas of the nodes as weights.
    missing : int
        Forecasts without an observation, or from a missing one: they do not count.
    """

    bias: Floats
    square: Floats
    area: Floats
    missing: int


def moments(data: ForecastData, part: Part, forecast: Forecast) -> Moments:
    """Return the moments of the errors of a forecast, which gives the shape (S, n, L, V) for S origins.

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    part : {"train", "validation", "test"}
        Whose origins count.
    forecast : Forecast
        What is scored.
    """
    origins, end = data.origins[part], data.end_of(part)
    weights, leads, variables = data.series.weights[:, None], data.plan.reached, len(data.series.variables)
    made = forecast(origins)
    sums, missing = np.zeros((5, len(leads), variables)), 0
    for k, lead in enumerate(leads):
        t = origins[origins + lead < end]
        truth = data.series.values[t + lead]
        counts = ~np.isnan(truth) & data.observed[t] & data.inner[:, None]
        error = np.where(counts, made[: len(t), :, k] - truth, 0.0)
        missing += int((~counts)[:, data.inner].sum())
        terms = (error, error**2, error**2 * weights, counts, counts * weights)
        sums[:, k] = [of.sum((0, 1)) for of in terms]
    bias, square, area, count, total = sums
    with np.errstate(invalid="ignore"):
        return Moments(bias / count, square / count, area / total, missing)


def persistence(data: ForecastData) -> Forecast:
    """Return the forecast x(t + h) = x(t).

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    """
    return lambda origins: np.repeat(data.carried[origins][:, :, None], len(data.plan.reached), axis=2)


def climatology(data: ForecastData) -> Forecast:
    """Return the forecast by the mean of every node at the hour of the target, over all before the test part.

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    """
    means = hourly_means(data.series, data.cuts[1])
    return lambda origins: np.stack([means(origins + lead) for lead in data.plan.reached], axis=2)


def linear(data: ForecastData) -> Forecast:
    """Return the linear model fitted to all before the test part, whatever the network is fitted to.

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    """
    series, fields = data.series, range(len(data.series.variables))
    models = [
        [fit_linear(series, data.carried[:, :, v], data.observed[:, :, v], lead, data.cuts[1]) for v in fields]
        for lead in data.plan.reached
    ]

    def forecast(origins: Ints) -> Floats:
        of_leads = [np.stack([of[v](data.carried[:, :, v], origins) for v in fields], -1) for of in models]
        return np.stack(of_leads, axis=2)

    return forecast


def references(data: ForecastData) -> dict[str, Moments]:
    """Return the moments over the test part of the forecasts that need no network, by name.

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    """
    made = {"persistence": persistence(data), "climatology": climatology(data), "linear": linear(data)}
    return {name: moments(data, "test", forecast) for name, forecast in made.items()}


def scored(data: ForecastData, forecast: Forecast, against: Mapping[str, Moments]) -> dict[str, float]:
    """Return root mean square errors, biases and skills by name.

    ``test_rmse``, ``test_bias``, ``test_rmse_persistence``, ``test_rmse_climatology``, ``test_rmse_linear`` (units of
    the series, every node with the same weight) and the skills ``test_skill = 1 - MSE / MSE_persistence``,
    ``test_skill_climatology`` and ``test_skill_linear`` of the test part, ``train_rmse`` and ``validation_rmse`` of the
    others (with ``labels=all`` both were fitted to). On grids names
    that end in ``_area`` are the same with areas as weights. With several lead times names end in the lead time in
    steps, as in ``test_rmse_6``, and without it they are root mean squares over all of them; with several variables
    names are of the first one, and of all with the name of the variable in front of the lead time. ``test_gaps`` are
    forecasts that do not count, if there are any.

    Parameters
    ----------
    data : ForecastData
        Samples of the series.
    forecast : Forecast
        That of the network.
    against : dict of Moments
        Those of `references`.

    References
    ----------
    A. H. Murphy, Mon. Weather Rev. 116, 1988, p. 2417, equation 4 (skill).
    """
    found = {"test": moments(data, "test", forecast)}
    scores: dict[str, float] = {}
    others: tuple[Part, ...] = ("train", "validation")
    for part in others:
        scores |= _named(data, f"{part}_rmse", np.sqrt(moments(data, part, forecast).square), True)
    on_grid = data.series.grid is not None
    for suffix, field in (("", "square"), ("_area", "area")) if on_grid else (("", "square"),):
        own = getattr(found["test"], field)
        scores |= _named(data, f"test_rmse{suffix}", np.sqrt(own), True)
        for name, other in against.items():
            square = getattr(other, field)
            scores |= _named(data, f"test_rmse_{name}{suffix}", np.sqrt(square), True)
            skill = "test_skill" if name == "persistence" else f"test_skill_{name}"
            scores |= _skills(data, f"{skill}{suffix}", own, square)
    scores |= _named(data, "test_bias", found["test"].bias, False)
    scores |= {"test_gaps": float(found["test"].missing)} if found["test"].missing else {}
    split = {f"_{v}" for v in data.series.variables} | {f"_{lead}" for lead in data.plan.reached}
    return dict(sorted(scores.items(), key=lambda item: item[0].endswith(tuple(split))))  # those of the whole first


def _named(data: ForecastData, name: str, table: Floats, root: bool) -> dict[str, float]:
    """Name the entries of a table (L, V), and their mean over lead times: of squares where they are roots."""
    mean = np.sqrt((table**2).mean(0)) if root else table.mean(0)
    return _spread(data, name, table, mean)


def _skills(data: ForecastData, name: str, own: Floats, other: Floats) -> dict[str, float]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return _spread(data, name, 1.0 - own / other, 1.0 - own.mean(0) / other.mean(0))


def _spread(data: ForecastData, name: str, table: Floats, mean: Floats) -> dict[str, float]:
    leads, variables = data.plan.reached, data.series.variables
    named = {name: float(mean[0])}
    fields = [(f"_{v}", k) for k, v in enumerate(variables)] if len(variables) > 1 else []
    named |= {f"{name}{of}": float(mean[k]) for of, k in fields}
    if len(leads) > 1:
        named |= {f"{name}{of}_{h}": float(table[i, k]) for of, k in fields or [("", 0)] for i, h in enumerate(leads)}
    return named
