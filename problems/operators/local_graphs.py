"""Domains of nodes with neighbours, and local graphs whose nodes are ordered by their distance from the own ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mldd.graph import Graph, partition
from mldd.problems.nets import Sparse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Cut = Literal["auto", "rectangles", "metis"]


def averaging(matrix: Any) -> Any:
    """Return the mean over the neighbours that there are, rows of a matrix of ones divided by their sums.

    Parameters
    ----------
    matrix : csr_matrix, shape (m, n)
        Ones at neighbours.
    """
    return sp.csr_matrix(sp.diags(1.0 / np.maximum(np.asarray(matrix.sum(1)).ravel(), 1.0)) @ matrix)


def metis_parts(matrix: Any, parts: int, seed: int = 0) -> Ints:
    """Return the part of every node by METIS, shape (n,).

    Parameters
    ----------
    matrix : csr_matrix, shape (n, n)
        Ones at neighbours.
    parts : int
        Number of parts.
    seed : int
        Of METIS.

    Raises
    ------
    ValueError
        A part without a node.
    """
    edges = torch.from_numpy(np.stack(matrix.nonzero()).astype(np.int64))
    part = np.asarray(partition(Graph.from_edges(edges, matrix.shape[0]), parts, seed=seed).numpy())
    if np.bincount(part, minlength=parts).min() == 0:
        raise ValueError(f"every part needs a node, got one without of {parts}; use fewer parts")
    return part


class NodeDomain(Protocol):
    """Nodes with neighbours on which an operator is learned."""

    def __hash__(self) -> int:
        """Return the same for equal domains: graphs of them are kept."""
        ...

    @property
    def nodes(self) -> int:
        """Number n of nodes."""
        ...

    @property
    def matrix(self) -> Any:
        """Ones at neighbours, a csr_matrix of shape (n, n)."""
        ...

    @property
    def derivatives(self) -> tuple[Any, ...]:
        """Weights w of derivatives ``sum_j w_ij (u_j - u_i)`` at neighbours, csr_matrices of shape (n, n)."""
        ...

    @property
    def places(self) -> Floats:
        """Place of every node in a picture, shape (n, 2)."""
        ...

    @property
    def grid(self) -> tuple[int, int] | None:
        """Rows and columns, where the nodes are a grid."""
        ...

    @property
    def axes(self) -> tuple[str, str]:
        """What the places are."""
        ...

    def parts(self, parts: int, cut: Cut, seed: int = 0) -> Ints:
        """Return the part of every node, shape (n,).

        Parameters
        ----------
        parts : int
            Number of parts.
        cut : {"auto", "rectangles", "metis"}
            How the nodes are cut.
        seed : int
            Of the partitioner.
        """
        ...


def aggregations(matrix: Any, derivatives: Sequence[Any]) -> list[Any]:
    """Return what a layer makes of neighbours: their mean, and derivatives, which vanish for constants.

    Where neighbours are missing, the mean is over the others, and derivatives leave out their differences.

    Parameters
    ----------
    matrix : csr_matrix, shape (m, m)
        Ones at neighbours.
    derivatives : sequence of csr_matrix, shape (m, m)
        Weights of differences to neighbours.
    """
    differences = [sp.csr_matrix(w - sp.diags(np.asarray(w.sum(1)).ravel())) for w in derivatives]
    return [averaging(matrix), *differences]


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """A part of the nodes with rings of neighbours around them.

    Parameters
    ----------
    nodes : ndarray, shape (m,)
        Global numbers: the own nodes first, then ring by ring.
    sizes : tuple of int
        How many nodes have at most the distance 0, 1, ... from the own ones.
    aggregations : list of csr_matrix, shape (m, m)
        Means over neighbours, and derivatives.
    """

    nodes: Ints
    sizes: tuple[int, ...]
    aggregations: list[Any]

    @staticmethod
    def around(domain: NodeDomain, own: NDArray[np.bool_], rings: int) -> LocalGraph:
        """Return the subgraph of own nodes and rings of neighbours.

        Parameters
        ----------
        domain : NodeDomain
            All nodes.
        own : ndarray, shape (n,), bool
            The own nodes.
        rings : int
            Number of rings; those beyond the whole graph are empty.
        """
        inside, found = own.copy(), [np.flatnonzero(own)]
        for _ in range(rings):
            grown = inside | ((domain.matrix @ inside.astype(np.float64)) > 0)
            found.append(np.flatnonzero(grown & ~inside))
            inside = grown
        nodes = np.concatenate(found)
        matrix, *derivatives = (every[nodes][:, nodes] for every in (domain.matrix, *domain.derivatives))
        sizes = np.cumsum([len(ring) for ring in found]).tolist()
        return LocalGraph(nodes, tuple(sizes), aggregations(matrix, derivatives))


@dataclass(frozen=True, eq=False)
class GraphBatch:
    """Local graphs that are evaluated together, padded ring by ring to equal numbers of nodes.

    Parameters
    ----------
    nodes : Tensor, shape (p, m), int64
        Global numbers; that of the first node at padding.
    weights : Tensor, shape (p, k)
        Of the errors at own nodes in a mean, zero at padding.
    means : tuple of Operator
        Per layer the aggregations for the nodes that it keeps, one kind below the other, each block-diagonal.
    rows : tuple of int
        Nodes of every graph that are read, and that every layer keeps; with padding.
    """

    nodes: torch.Tensor
    weights: torch.Tensor
    means: tuple[Any, ...]
    rows: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=4)
    def whole(domain: NodeDomain, layers: int, dtype: torch.dtype, device: torch.device | str) -> GraphBatch:
        """Return the whole domain as one graph; the latest ones are kept.

        Parameters
        ----------
        domain : NodeDomain
            All nodes.
        layers : int
            Of the network.
        dtype : torch.dtype
            Of the means.
        device : torch.device or str
            Where they are.
        """
        graph = LocalGraph.around(domain, np.ones(domain.nodes, dtype=bool), 0)
        return GraphBatch.of([graph], layers, dtype, device)

    @staticmethod
    def of(graphs: Sequence[LocalGraph], layers: int, dtype: torch.dtype, device: torch.device | str) -> GraphBatch:
        """Return the batch: layer l of L keeps the nodes within L - l rings, all that later layers read.

        Parameters
        ----------
        graphs : sequence of LocalGraph
            With equal numbers of rings.
        layers : int
            L.
        dtype : torch.dtype
            Of the means.
        device : torch.device or str
            Where they are.
        """
        rings = len(graphs[0].sizes) - 1
        widths = np.max([np.diff(graph.sizes, prepend=0) for graph in graphs], axis=0)
        sizes = np.cumsum(widths)
        places = [_places(graph.sizes, widths) for graph in graphs]
        pairs = list(zip(graphs, places, strict=True))
        nodes = np.stack([_padded(graph.nodes, place, int(sizes[-1])) for graph, place in pairs])
        weights = np.stack([(np.arange(sizes[0]) < graph.sizes[0]) / graph.sizes[0] for graph in graphs])
        rows = tuple(int(sizes[min(rings, layers - k)]) for k in range(layers + 1))
        made: dict[tuple[int, int], Sparse] = {}
        for kept, read in zip(rows[1:], rows, strict=False):
            if (kept, read) not in made:
                made[kept, read] = Sparse.of(_stacked(pairs, kept, read), dtype, device)
        means = tuple(made[pair] for pair in zip(rows[1:], rows, strict=False))
        tensors = torch.from_numpy(nodes).to(device), torch.from_numpy(weights).to(device, dtype)
        return GraphBatch(*tensors, means, rows)


def _places(sizes: Sequence[int], widths: Ints) -> Ints:
    """Return the places of the nodes of a graph where every ring begins where that of the widest graph does."""
    starts = np.cumsum(widths) - widths
    counts = np.diff(sizes, prepend=0)
    return np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)])


def _padded(nodes: Ints, places: Ints, size: int) -> Ints:
    out = np.full(size, nodes[0])
    out[places] = nodes
    return out


def _stacked(pairs: Sequence[tuple[LocalGraph, Ints]], kept: int, read: int) -> Any:
    """Return the aggregations of graphs with their nodes at their places, one kind below the other."""
    kinds = range(len(pairs[0][0].aggregations))
    of_kind = [[_block(graph.aggregations[k], places, kept, read) for graph, places in pairs] for k in kinds]
    return sp.vstack([sp.block_diag(blocks) for blocks in of_kind], format="csr")


def _block(matrix: Any, places: Ints, kept: int, read: int) -> Any:
    """Return a matrix with rows and columns at their places, cut to those that are kept and read."""
    entries = matrix.tocoo()
    rows, columns = places[entries.row], places[entries.col]
    there = (rows < kept) & (columns < read)
    return sp.csr_matrix((entries.data[there], (rows[there], columns[there])), shape=(kept, read))
