"""Levels for node classification: coarse graphs, narrower or shallower networks, fewer labelled nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import Identity, Transfer
from mldd.graph import Graph, nested
from mldd.problems.graphs.similarity import similar
from mldd.problems.nets import GraphNet, Piece, Source, coarser, copies, most_levels, transfer

Clustering = Literal["metis", "matching", "features"]
_KINDS = ("graph", "width", "depth", "data")
_QUARTER = 4  # nodes of a coarse graph per node of the next


def kinds_of(coarsen: str) -> tuple[str, ...]:
    """Read what is coarsened, names joined by '+'.

    Parameters
    ----------
    coarsen : str
        As in ``graph+width``.

    Returns
    -------
    tuple of str
        The kinds, in the order in which they were named.

    Examples
    --------
    >>> kinds_of("graph+width")
    ('graph', 'width')

    Raises
    ------
    ValueError
        Another name, or one twice.
    """
    kinds = tuple(coarsen.split("+"))
    if not set(kinds) <= set(_KINDS) or len(set(kinds)) < len(kinds):
        raise ValueError(f"`coarsen` must be some of {', '.join(_KINDS)} joined by '+', got {coarsen!r}")
    return kinds


@dataclass(frozen=True, eq=False)
class Rung:
    """What a coarse level is made of.

    Parameters
    ----------
    net : GraphNet
        The network of the level.
    decay : float
        Weight decay that makes the loss that of the finer network (see `mldd.problems.nets.coarse_networks`).
    piece : Piece
        Graph, features and targets.
    transfer : Transfer
        From the next finer level.
    """

    net: GraphNet
    decay: float
    piece: Piece
    transfer: Transfer


@dataclass(frozen=True, eq=False)
class Ladder:
    """Coarser and coarser problems, each coarser than the one before in every way of `kinds`.

    ``graph``: `clusters` nodes, then a quarter each, the clusters of a level being unions of those of the level before.
    ``width``: half the hidden units. ``depth``: every second layer. ``data``: half the labelled nodes of every class,
    weighted so that each class counts as in the whole.

    Parameters
    ----------
    kinds : tuple of str
        In which ways levels are coarser.
    graph : Graph
        The finest one.
    source : Source
        What the finest batch is cut from.
    net : GraphNet
        The finest network.
    decay : float
        Weight decay of the finest network.
    classes : ndarray, shape (n,), int64
        Label of every node.
    labelled : ndarray, shape (n,), bool
        Which nodes are in the loss.
    clusters : int
        Nodes of the first coarse graph.
    method : {"metis", "matching", "features"}
        Clusters of neighbours (`mldd.graph.aggregation`), or of nodes with similar inputs
        (`mldd.problems.graphs.similarity`).
    kept : float
        Share of the entries of coarse features that are kept, the largest ones; see `thinned`.
    seed : int
        Of clusters and of the choice of nodes.
    """

    kinds: tuple[str, ...]
    graph: Graph
    source: Source
    net: GraphNet
    decay: float
    classes: NDArray[np.int64]
    labelled: NDArray[np.bool_]
    clusters: int
    method: Clustering = "metis"
    kept: float = 1.0
    seed: int = 0

    @property
    def most(self) -> int:
        """Number of coarse levels that there can be."""
        counts = []
        if "graph" in self.kinds:
            counts.append(len(self._sizes))
        if "data" in self.kinds:
            counts.append(len(self._fewer))
        if self._of_network != (False, False):
            counts.append(most_levels(self.net, *self._of_network) - 1)
        return min(counts)

    def rungs(self, count: int, dtype: torch.dtype, device: torch.device) -> list[Rung]:
        """Return `count` coarse levels, the finest first.

        Parameters
        ----------
        count : int
            At most `most`.
        dtype, device
            Of the transfers.
        """
        maps = clustered(self.graph, self.source, self.net.layers, self._sizes[:count], self.method, self.seed)
        made: list[Rung] = []
        net, decay = self.net, self.decay
        for k in range(count):
            between: Transfer = Identity(net.layout.size)
            if self._of_network != (False, False):
                between = transfer(net, *self._of_network, dtype, device)
                small = coarser(net, *self._of_network)
                net, decay = small, decay * copies(net, small)
            source = replace(self.source, targets=self._thinned(self._fewer[k])) if self._fewer else self.source
            if maps:
                piece = source.aggregated(maps[k], net.layers)
                piece = replace(piece, features=tuple(thinned(term, self.kept) for term in piece.features))
            else:
                piece = source.piece(np.flatnonzero(source.targets.any(1)), net.layers)
            made.append(Rung(net, decay, piece, between))
        return made

    @property
    def _of_network(self) -> tuple[bool, bool]:
        """Whether width and depth are coarsened."""
        return "width" in self.kinds, "depth" in self.kinds

    @property
    def _sizes(self) -> list[int]:
        """Numbers of nodes of the coarse graphs, at least two."""
        if "graph" not in self.kinds:
            return []
        sizes = [self.clusters // _QUARTER**k for k in range(32)]
        return [size for size in sizes if size >= 2]

    @cached_property
    def _fewer(self) -> list[NDArray[np.bool_]]:
        """Nested sets of labelled nodes, each with half (rounded up) of every class of the one before."""
        if "data" not in self.kinds:
            return []
        nodes = np.random.default_rng(self.seed).permutation(np.flatnonzero(self.labelled))
        nodes = nodes[np.argsort(self.classes[nodes], kind="stable")]
        kept = np.bincount(self.classes[nodes])
        place = np.arange(len(nodes)) - np.repeat(np.cumsum(kept) - kept, kept)
        masks = []
        while kept.max(initial=0) > 1:
            kept = -(-kept // 2)
            mask = np.zeros(self.graph.nodes, dtype=bool)
            mask[nodes[place < kept[self.classes[nodes]]]] = True
            masks.append(mask)
        return masks

    def _thinned(self, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Return the targets of the nodes in `mask`, shape (n, C)."""
        few = np.where(mask[:, None], self.source.targets, 0.0)
        whole, left = self.source.targets.sum(0), few.sum(0)
        return np.asarray(few * np.divide(whole, left, out=np.ones_like(whole), where=left > 0))


def clustered(
    graph: Graph,
    source: Source,
    layers: int,
    sizes: Sequence[int],
    method: Clustering,
    seed: int,
    within: Tensor | None = None,
) -> list[NDArray[np.int64]]:
    """Return the clusters of every node, one map of shape (n,) per number of clusters in `sizes`.

    Clusters of neighbours are nested and do not cross the parts `within`; those of nodes with similar inputs may.

    Parameters
    ----------
    graph : Graph
        Its neighbours are joined.
    source : Source
        Features and propagation.
    layers : int
        Of the network: how many hops its outputs see.
    sizes : Sequence of int
        Numbers of clusters, in descending order.
    method : Clustering
        Clusters of neighbours, or of nodes with similar inputs.
    seed : int
        Of the clustering.
    within : Tensor, shape (n,), optional
        Part of every node; clusters of neighbours stay within it.
    """
    if method == "features":
        first = source.terms[0]  # A X where that is all that the first layer sees, else X
        hops = layers - 1 if source.layer.beforehand and source.layer.terms[0] else layers
        maps = similar(source.operator, first, hops, sizes, seed=seed)
    else:
        maps = nested(graph, sizes, seed=seed, within=within, method=method) if sizes else []
    return [labels.numpy() for labels in maps]


def thinned(matrix: Any, kept: float) -> Any:
    """Return a matrix with a share of the entries, the largest in magnitude; rows keep their sums if none is negative.

    Means over clusters fill in: most of their entries are small, and all cost the same. With entries of both signs
    nothing is scaled: the sum of a row may nearly vanish, and says nothing of the size of its entries.

    Parameters
    ----------
    matrix : ndarray or sparse matrix, shape (n, F)
        Returned as it is where all is kept.
    kept : float
        Share of the non-zero entries, in (0, 1].

    Examples
    --------
    >>> thinned(np.array([[3.0, 1.0], [0.0, 4.0]]), 2 / 3).toarray()
    array([[4., 0.],
           [0., 4.]])
    """
    rows = sp.csr_matrix(matrix, copy=True) if kept < 1 else None
    if rows is None or rows.nnz == 0:
        return matrix
    unsigned, sums = rows.data.min() >= 0, np.asarray(rows.sum(axis=1)).ravel()
    least = min(round((1 - kept) * rows.nnz), rows.nnz - 1)  # of the entries, by magnitude
    rows.data[np.argpartition(np.abs(rows.data), least)[:least]] = 0.0
    rows.eliminate_zeros()
    if not unsigned:
        return rows
    left = np.asarray(rows.sum(axis=1)).ravel()
    return sp.csr_matrix(sp.diags(np.divide(sums, left, out=np.ones_like(sums), where=left > 0)) @ rows)
