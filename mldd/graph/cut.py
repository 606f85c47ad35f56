"""What a partitioner is given, what it returns, and the weights in the forms that libraries ask for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mldd.graph.graph import Graph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_WEIGHT, _LARGEST_SUM = 1000.0, 2.0**30  # of integer weights; sums have to fit into 32 bits


@dataclass(frozen=True, eq=False)
class Cut:
    """What is to be cut, and how.

    Attributes
    ----------
    graph : Graph
        Of n nodes; symmetric, ascending in each row, without self loops. It has an edge or `coordinates` are given:
        for other graphs `partition` asks ``contiguous``.
    parts : int
        At least 2, fewer than nodes.
    seed : int
        Of what the partitioner draws.
    imbalance : float
        A part may weigh as much as `heaviest` says.
    weights : array of float64, shape (n,), optional
        Of the nodes; None counts them.
    coordinates : array of float64, shape (n, d), optional
        Cartesian.
    """

    graph: Graph
    parts: int
    seed: int = 0
    imbalance: float = 0.03
    weights: Floats | None = None
    coordinates: Floats | None = None

    @property
    def load(self) -> Floats:
        """Weights of the nodes, ones where there are none."""
        return np.ones(self.graph.nodes) if self.weights is None else self.weights


class Partitioner(Protocol):
    """A function that cuts a graph; `partition` calls it by its name, or as ``file.py:function``."""

    def __call__(self, cut: Cut, /) -> Ints:
        """Return the part of every node.

        Parameters
        ----------
        cut : Cut
            What is to be cut; its arrays and tensors are not to be changed.

        Returns
        -------
        array of int64, shape (n,)
            Numbers 0..parts-1, the same for the same seed. Parts may come out empty, which `partition` repairs, or
            heavier than `heaviest`, which it repairs only where several weights are to be balanced.
        """
        ...


def heaviest(weights: Floats, parts: int, imbalance: float) -> Floats:
    """Return what a part may weigh: max((1 + e) m, m + (1 - 1 / p) w), m the mean over p parts, w the heaviest node.

    The second term is what list scheduling reaches whatever the weights are (Graham, doi:10.1137/0117039).

    Parameters
    ----------
    weights : array, shape (n,) or (n, c)
        Of every node, c kinds at most.
    parts : int
        Number p of parts.
    imbalance : float
        e, the share by which a part may exceed the mean.

    Returns
    -------
    array, shape () or (c,)
    """
    mean = weights.sum(axis=0) / parts
    bound = np.maximum((1 + imbalance) * mean, mean + (1 - 1 / parts) * weights.max(axis=0))
    return np.asarray(bound * (1 + 1e-12), dtype=np.float64)  # room for the rounding of sums


def integers(weights: Floats, *, least: int) -> Ints:
    """Return weights as integers: the largest becomes 1000, or less where the sum would not fit into 32 bits.

    Parameters
    ----------
    weights : array, shape (m,)
        Non-negative weights.
    least : int
        Smaller ones become this.

    Returns
    -------
    array of int64, shape (m,)
    """
    scale = min(_LARGEST_WEIGHT / weights.max(), _LARGEST_SUM / weights.sum()) if weights.size else 1.0
    return np.maximum(np.rint(weights * scale), least).astype(np.int64)


def whole_loads(cut: Cut) -> tuple[Ints, float]:
    """Return integer weights of nodes, and the imbalance over the rounded mean that leads to `heaviest`.

    Parameters
    ----------
    cut : Cut
        Its weights of nodes, or ones.

    Returns
    -------
    array of int64, shape (n,)
    float
    """
    load = np.ones(cut.graph.nodes, dtype=np.int64) if cut.weights is None else integers(cut.weights, least=0)
    allowed = float(heaviest(load.astype(np.float64), cut.parts, cut.imbalance))
    return load, max(allowed / -(-int(load.sum()) // cut.parts) - 1, 0.0)
