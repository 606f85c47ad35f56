"""Climatology of a short series: the mean of every node at every hour of the day."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import Series, hour

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def hourly_means(series: Series, end: int) -> Callable[[Ints], Floats]:
    """Return a function of times that gives the mean of every node at their hour, shape (S, n, V).

    Where no value of an hour was observed, and for steps of a day or longer, it is the mean of the node; where a node
    has none at all, that of the variable.

    Parameters
    ----------
    series : Series
        What is averaged.
    end : int
        Number of leading times that are averaged over.
    """
    past, slots = series.values[:end], _second_of_day(series, np.arange(end))
    whole = _mean(past.reshape(-1, past.shape[2]), np.zeros(past.shape[2]))
    usual = _mean(past, whole[None])
    means = {int(slot): _mean(past[slots == slot], usual) for slot in np.unique(slots)}

    def at(times: Ints) -> Floats:
        return np.stack([means.get(int(slot), usual) for slot in _second_of_day(series, times)])

    return at


def _second_of_day(series: Series, times: Ints) -> Ints:
    """Return the second of the day of times, shape (S,); zeros for steps of a day or longer."""
    if series.step >= 86400:
        return np.zeros(len(times), dtype=np.int64)
    return np.asarray(np.rint(3600.0 * hour(series.moments(times)))).astype(np.int64)


def _mean(values: Floats, instead: Floats) -> Floats:
    """Return the mean over the first axis of what is observed, and `instead` where nothing is."""
    count = (~np.isnan(values)).sum(0)
    return np.where(count > 0, np.nansum(values, 0) / np.maximum(count, 1), instead)
