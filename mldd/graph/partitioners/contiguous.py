"""Runs of the numbering, for comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def contiguous(cut: Cut) -> Ints:
    """Cut the numbering of the nodes into runs of equal weight.

    Parameters
    ----------
    cut : Cut

    Returns
    -------
    array of int64, shape (n,)
    """
    return runs(cut.load, cut.parts)


def runs(load: Floats, parts: int) -> Ints:
    """Cut a sequence into runs of nearly equal weight.

    Parameters
    ----------
    load : array, shape (n,)
    parts : int

    Returns
    -------
    array of int64, shape (n,)
    """
    before = np.cumsum(load) - load
    return np.asarray(np.minimum(before * parts // load.sum(), parts - 1), dtype=np.int64)
