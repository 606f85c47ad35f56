"""Cuts of many groups of nodes at their weighted medians."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def beyond_median(value: Floats, load: Floats, group: Ints, width: Ints) -> NDArray[np.bool_]:
    """Say which nodes lie beyond the weighted median of their group; each side keeps a node for each of its parts.

    Parameters
    ----------
    value, load : array, shape (n,)
        What lines the nodes up, and their weights.
    group : array of int64, shape (n,)
        The group of every node, 0..g-1.
    width : array of int64, shape (g,)
        Parts that each group is still to be cut into; a group of one part is left as it is.

    Returns
    -------
    array of bool, shape (n,)
    """
    order = np.lexsort((value, group))
    sizes = np.bincount(group, minlength=len(width))
    start = np.cumsum(sizes) - sizes
    total = np.bincount(group, weights=load, minlength=len(width))
    of = group[order]
    running = np.cumsum(load[order])
    middle = running - load[order] / 2 - (np.cumsum(total) - total)[of]  # weight up to the middle of the node
    place = np.arange(len(value)) - start[of]
    left = width // 2
    beyond = middle > (total * left / width)[of]
    beyond = (beyond | (place >= (sizes - (width - left))[of])) & (place >= left[of]) & (width > 1)[of]
    result = np.empty(len(value), dtype=bool)
    result[order] = beyond
    return result
