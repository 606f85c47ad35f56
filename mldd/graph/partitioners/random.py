"""Parts at random, for comparison."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut
from mldd.graph.partitioners.contiguous import runs

Ints = NDArray[np.int64]


def random(cut: Cut) -> Ints:
    """Deal the nodes out at random, equal weight to every part.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)
    """
    order = np.random.default_rng(cut.seed).permutation(cut.graph.nodes)
    label = np.empty(cut.graph.nodes, dtype=np.int64)
    label[order] = runs(cut.load[order], cut.parts)
    return label
