"""Scales of inputs and targets, and the order of their axes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import hour

Floats = NDArray[np.float64]


def waves(time: Any) -> Floats:
    """Return a constant and two harmonics of the hour, shape (T, 5).

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Moments in UTC.
    """
    angle = 2 * np.pi * hour(time) / 24.0
    return np.stack([np.ones_like(angle), *(f(k * angle) for k in (1, 2) for f in (np.sin, np.cos))], axis=-1)


def by_node(array: Any) -> Any:
    """Return an array (S, n, k) as (n, S, k).

    Parameters
    ----------
    array : ndarray, shape (S, n, k)
        By sample.
    """
    return np.ascontiguousarray(array.transpose(1, 0, 2))


def rms(array: Floats) -> Floats:
    """Return root mean squares over the first two axes, 1 where nothing varies.

    Parameters
    ----------
    array : ndarray, shape (S, n, k)
        Values.
    """
    return scale(np.sqrt((array**2).mean((0, 1))))


def scale(array: Any) -> Floats:
    """Return scales, those of nothing replaced by 1.

    Parameters
    ----------
    array : ndarray
        Of standard deviations or root mean squares.
    """
    return np.where(np.isfinite(array) & (array > 1e-12), array, 1.0)
