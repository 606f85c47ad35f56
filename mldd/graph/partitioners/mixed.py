"""Parts that resemble each other: unions of many small parts, dealt out at random."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut
from mldd.graph.partitioners.metis import metis

Ints = NDArray[np.int64]
_PIECES = 25  # per part: the losses of parts on Cora then differ by a tenth in their curvature, not by half


def mixed(cut: Cut) -> Ints:
    """Unite small parts of METIS, 25 per part, at random: parts then differ little, and more edges are cut.

    For methods whose parts train on their own losses. In random order every small part goes to the lightest union, so
    that weights of unions differ by at most that of one small part.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)

    References
    ----------
    Chiang et al., arXiv 1905.07953, section 3.2 (stochastic multiple partitions), with unions that do not change.
    """
    nodes = cut.graph.nodes
    pieces = min(nodes, _PIECES * cut.parts)
    small = np.arange(nodes) if pieces == nodes else metis(replace(cut, parts=pieces))
    weights = np.bincount(small, cut.weights, minlength=pieces)
    union, loads = np.zeros(pieces, dtype=np.int64), np.zeros(cut.parts)
    counts = np.zeros(cut.parts, dtype=np.int64)
    for piece in np.random.default_rng(cut.seed).permutation(pieces):
        lightest = np.lexsort((counts, loads))[0]
        union[piece] = lightest
        loads[lightest] += weights[piece]
        counts[lightest] += 1
    return union[small]
