"""The linear model that forecasts are measured against: one ridge regression for all nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import Series, hour, nearest, on_sphere

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_RIDGE = 1.0
_CHUNK = 2_000_000  # rows of the regression that are in memory at once


@dataclass(frozen=True, eq=False)
class LinearForecast:
    """A forecast of one variable that is linear in its past at the node and near it.

    Parameters
    ----------
    lead, history : int
        Steps ahead, and values of the past that are inputs.
    day : int
        Steps of a day where the value one day before the target is an input, else 0.
    phase : ndarray, shape (T + lead, 2) or (T + lead, 0)
        Sine and cosine of the hour of every time, those after the end of the series included.
    near : ndarray, shape (n, k), int64
        Neighbours of every node.
    weights : ndarray, shape (n, k)
        Of the mean over neighbours.
    coefficients : ndarray, shape (F + 1,)
        In units of the series, the constant last.
    """

    lead: int
    history: int
    day: int
    phase: Floats
    near: Ints
    weights: Floats
    coefficients: Floats

    def inputs(self, values: Floats, origins: Ints) -> Floats:
        """Return the inputs of the regression, shape (S, n, F).

        Parameters
        ----------
        values : ndarray, shape (T, n)
            The field, without gaps.
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        """
        columns = []
        for k in range(self.history):
            past = values[origins - k]
            columns += [past, (past[:, self.near] * self.weights).sum(-1)]
        if self.day:
            columns.append(values[origins + self.lead - self.day])
        table = np.stack(columns, axis=-1)
        phase = self.phase[origins + self.lead]
        repeated = np.broadcast_to(phase[:, None], (*table.shape[:2], phase.shape[1]))
        return np.concatenate([table, repeated], axis=-1)

    def __call__(self, values: Floats, origins: Ints) -> Floats:
        """Return the forecasts from `origins`, shape (S, n), for values without gaps, shape (T, n)."""
        return np.asarray(self.inputs(values, origins) @ self.coefficients[:-1] + self.coefficients[-1])


def fit_linear(series: Series, values: Floats, observed: NDArray[np.bool_], lead: int, end: int) -> LinearForecast:
    """Return the ridge regression (1 on normalised inputs) of one variable to all targets before `end`.

    The inputs are the last 6 values (12 for steps below an hour) of the node and of the mean over its neighbours; for
    steps of an hour or more also sine and cosine of the hour of the target, and for lead times below a day the value
    one day before it. The neighbours are the 8 nearest nodes on a grid, the 5 nearest among stations, the 4 strongest
    where the series comes with a graph.

    Parameters
    ----------
    series : Series
        Where the variable is from.
    values : ndarray, shape (T, n)
        One variable, its gaps filled.
    observed : ndarray, shape (T, n), bool
        Origins and targets that count.
    lead, end : int
        Steps ahead, and number of leading times that the model is fitted to.
    """
    empty = linear_model(series, lead, np.zeros(0))
    origins = np.arange(first_origin(series, lead), end - lead)
    return replace(empty, coefficients=_solved(empty, values, observed, origins))


def linear_model(series: Series, lead: int, coefficients: Floats) -> LinearForecast:
    """Return the linear model of a variable of a series, see `fit_linear`, with coefficients that were fitted before.

    Parameters
    ----------
    series : Series
        Where forecasts begin.
    lead : int
        Steps ahead.
    coefficients : ndarray, shape (F + 1,)
        In units of the series, the constant last.
    """
    history, day = _memory(series, lead)
    time = series.moments(np.arange(series.times + lead))
    angle = 2 * np.pi * hour(time) / 24.0
    phase = np.stack([np.sin(angle), np.cos(angle)], axis=-1) if series.step >= 3600 else np.zeros((len(time), 0))
    return LinearForecast(lead, history, day, phase, *_neighbours(series), coefficients)


def first_origin(series: Series, lead: int) -> int:
    """Return the first origin with all inputs of the linear model.

    Parameters
    ----------
    series : Series
        Its step says how long the memory is.
    lead : int
        Steps ahead.
    """
    history, day = _memory(series, lead)
    return max(history - 1, day - lead if day else 0)


def _memory(series: Series, lead: int) -> tuple[int, int]:
    """Return how many past values are inputs, and the steps of a day if the value a day before the target is one."""
    return 6 if series.step >= 3600 else 12, series.per_day if lead < series.per_day else 0


def _solved(model: LinearForecast, values: Floats, observed: NDArray[np.bool_], origins: Ints) -> Floats:
    """Return the coefficients from normal equations that are summed up in chunks of origins.

    With moments of (inputs, target, 1) the normalised system is ``(C / (s s^T) + ridge / m) w = c / s``, where C and c
    are covariances over the m rows and s deviations.
    """
    total: Any = 0.0
    shift = float(values[origins].mean()) if len(origins) else 0.0  # of all values: digits that would cancel
    chunk = max(1, _CHUNK // (values.shape[1] * 20))
    for start in range(0, len(origins), chunk):
        t = origins[start : start + chunk]
        keep = observed[t] & observed[t + model.lead]
        rows = model.inputs(values - shift, t)[keep]
        both = np.column_stack([rows, (values[t + model.lead] - shift)[keep], np.ones(len(rows))])
        total = total + both.T @ both
    size = 2 * model.history + bool(model.day) + model.phase.shape[1]
    if np.ndim(total) == 0 or total[-1, -1] < 1:
        persistence = np.zeros(size + 1)
        persistence[0] = 1.0
        return persistence
    rows = total[-1, -1]
    mean = total[:-1, -1] / rows
    covariance = total[:-1, :-1] / rows - np.outer(mean, mean)
    deviation = np.sqrt(np.maximum(np.diag(covariance)[:-1], 0.0))
    deviation = np.where(deviation > 1e-9, deviation, np.inf)
    system = covariance[:-1, :-1] / np.outer(deviation, deviation) + _RIDGE / rows * np.eye(size)
    w = np.linalg.solve(system, covariance[:-1, -1] / deviation) / deviation
    values_share = w[: size - model.phase.shape[1]].sum()
    return np.append(w, mean[-1] - w @ mean[:-1] + shift * (1.0 - values_share))


def _neighbours(series: Series) -> tuple[Ints, Floats]:
    """Return the neighbours of every node and their weights in the mean."""
    if series.graph is None:
        count = min(8 if series.grid is not None else 5, series.nodes - 1)
        if count < 1:
            return np.zeros((1, 1), dtype=np.int64), np.ones((1, 1))
        near = nearest(on_sphere(series.latitude, series.longitude), count)
        return near, np.full(near.shape, 1.0 / count)
    matrix = series.graph.scipy()
    n, count = series.nodes, 4
    order = np.lexsort((-matrix.data, np.repeat(np.arange(n), np.diff(matrix.indptr))))
    degree = np.diff(matrix.indptr)
    place = matrix.indptr[:-1, None] + np.arange(count)
    there = np.arange(count) < degree[:, None]
    own = np.arange(n)[:, None]
    ends = np.append(matrix.indices[order], 0)  # there may be no edge at all
    near = np.where(there, ends[np.minimum(place, len(order))], own).astype(np.int64)
    there[degree == 0, 0] = True  # an isolated node is its own neighbour
    return near, there / there.sum(1, keepdims=True)
