"""Nodes of a torus: neighbours, parts, and local graphs whose nodes are ordered by their distance from the own ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mldd.graph import Graph, partition
from mldd.problems.nets import Sparse

Ints = NDArray[np.int64]
Cut = Literal["rectangles", "metis"]


def adjacency(n: int) -> Any:
    """Return the adjacency of the four neighbours on a torus of n x n nodes, a csr_matrix of ones, shape (n^2, n^2).

    Parameters
    ----------
    n : int
        Nodes of a side, at least 3.
    """
    number = np.arange(n * n).reshape(n, n)
    pairs = [(number, np.roll(number, step, axis)) for axis in (0, 1) for step in (1, -1)]
    rows, columns = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
    return sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(n * n, n * n))


def averaging(matrix: Any) -> Any:
    """Return the mean over the neighbours that there are, rows of a matrix of ones divided by their sums.

    Parameters
    ----------
    matrix : csr_matrix, shape (m, n)
        Ones at neighbours.
    """
    return sp.csr_matrix(sp.diags(1.0 / np.maximum(np.asarray(matrix.sum(1)).ravel(), 1.0)) @ matrix)


def parts_of(n: int, parts: int, cut: Cut, seed: int = 0) -> Ints:
    """Return the part of every node, shape (n^2,).

    Parameters
    ----------
    n : int
        Nodes of a side.
    parts : int
        Number of parts.
    cut : {"rectangles", "metis"}
        A grid of rectangles as near to squares as the number of parts allows, or parts by METIS.
    seed : int
        Of METIS.

    Raises
    ------
    ValueError
        More rectangles than rows of nodes.
    """
    if cut == "metis":
        matrix = adjacency(n)
        edges = torch.from_numpy(np.stack(matrix.nonzero()).astype(np.int64))
        return np.asarray(partition(Graph.from_edges(edges, n * n), parts, seed=seed).numpy())
    down = max(k for k in range(1, int(np.sqrt(parts)) + 1) if parts % k == 0)
    across = parts // down
    if across > n:
        raise ValueError(
            f"{parts} parts are {down} x {across} rectangles, which {n} x {n} nodes do not have; use another number "
            "of parts, or cut=metis"
        )
    places = np.arange(n)
    row, column = (((places + 1) * count - 1) // n for count in (down, across))
    return np.asarray((row[:, None] * across + column[None]).ravel(), dtype=np.int64)


@dataclass(frozen=True, eq=False)
class LocalGraph:
    """A part of the nodes with rings of neighbours around them.

    Parameters
    ----------
    nodes : ndarray, shape (m,)
        Global numbers: the own nodes first, then ring by ring.
    sizes : tuple of int
        How many nodes have at most the distance 0, 1, ... from the own ones.
    matrix : csr_matrix, shape (m, m)
        Ones at neighbours.
    """

    nodes: Ints
    sizes: tuple[int, ...]
    matrix: Any

    @staticmethod
    def around(matrix: Any, own: NDArray[np.bool_], rings: int) -> LocalGraph:
        """Return the subgraph of own nodes and rings of neighbours.

        Parameters
        ----------
        matrix : csr_matrix, shape (n, n)
            Ones at neighbours.
        own : ndarray, shape (n,), bool
            The own nodes.
        rings : int
            Number of rings; those beyond the whole graph are empty.
        """
        inside, found = own.copy(), [np.flatnonzero(own)]
        for _ in range(rings):
            grown = inside | ((matrix @ inside.astype(np.float64)) > 0)
            found.append(np.flatnonzero(grown & ~inside))
            inside = grown
        nodes = np.concatenate(found)
        return LocalGraph(nodes, tuple(np.cumsum([len(ring) for ring in found]).tolist()), matrix[nodes][:, nodes])


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
        Per layer the means over neighbours of the nodes that it keeps; block-diagonal.
    rows : tuple of int
        Nodes of every graph that are read, and that every layer keeps; with padding.
    """

    nodes: torch.Tensor
    weights: torch.Tensor
    means: tuple[Any, ...]
    rows: tuple[int, ...]

    @staticmethod
    @lru_cache(maxsize=4)
    def whole(n: int, layers: int, dtype: torch.dtype, device: torch.device | str) -> GraphBatch:
        """Return the whole torus as one graph.

        Parameters
        ----------
        n : int
            Nodes of a side.
        layers : int
            Of the network.
        dtype : torch.dtype
            Of the means.
        device : torch.device or str
            Where they are.
        """
        graph = LocalGraph.around(adjacency(n), np.ones(n * n, dtype=bool), 0)
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
                blocks = [_block(graph.matrix, place, kept, read) for graph, place in pairs]
                made[kept, read] = Sparse.of(sp.block_diag(blocks, format="csr"), dtype, device)
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


def _block(matrix: Any, places: Ints, kept: int, read: int) -> Any:
    """Return the means over neighbours with rows and columns at their places, cut to those that are kept and read."""
    entries = averaging(matrix).tocoo()
    rows, columns = places[entries.row], places[entries.col]
    there = (rows < kept) & (columns < read)
    return sp.csr_matrix((entries.data[there], (rows[there], columns[there])), shape=(kept, read))
