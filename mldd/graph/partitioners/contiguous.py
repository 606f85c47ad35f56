"""Runs of the numbering, for comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def contiguous(cut: Cut) -> Ints:
    """Return runs of the numbering of equal weight.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)
    """
    return runs(cut.load, cut.parts)


def runs(load: Floats, parts: int) -> Ints:
    """Return the number of a run for every member of a sequence; runs have nearly equal weight.

    Parameters
    ----------
    load : array, shape (n,)
        Weights.
    parts : int
        Number of runs.

    Returns
    -------
    array of int64, shape (n,)
    """
    before = np.cumsum(load) - load
    return np.asarray(np.minimum(before * parts // load.sum(), parts - 1), dtype=np.int64)
