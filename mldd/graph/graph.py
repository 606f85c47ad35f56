"""Adjacency of a graph and its operations: subgraphs, k-hop neighbourhood, normalisation.

Everything is vectorised over nodes and edges and runs on the CPU; tensors go in and out, NumPy and SciPy do the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Graph:
    """Hold a symmetric adjacency in compressed rows, without self loops or duplicate edges.

    Parameters
    ----------
    indptr : LongTensor, shape (n + 1,)
        Where the row of each node begins in `indices`.
    indices : LongTensor, shape (E,)
        Neighbours, ascending within each row; every undirected edge occurs twice.
    weights : Tensor, shape (E,), float64, optional
        Positive strength of every entry; `partition` cuts weak edges first. None means that all are equal.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("indptr", self.indptr), ("indices", self.indices)):
            if tensor.dtype != torch.int64 or tensor.dim() != 1:
                raise ValueError(
                    f"`{name}` must be int64 of one dimension, got {kind_of(tensor)}; use Graph.from_edges"
                )
        if self.weights is not None:
            _check_weights(self.weights, self.edges)

    @classmethod
    def from_edges(cls, edge_index: Tensor, nodes: int, weights: Tensor | None = None) -> Graph:
        """Build a graph from any list of edges: A = max(B, B^T) off the diagonal, B[i, j] = sum of weights of (i, j).

        Parameters
        ----------
        edge_index : Tensor, shape (2, E), int64
            Ends of the edges, in one direction or in both; self loops and duplicates are allowed and vanish.
        nodes : int
            Number of nodes n.
        weights : Tensor, shape (E,), optional
            Positive weights.

        Raises
        ------
        ValueError
            For a wrong shape or dtype, an index outside of 0..n-1, or weights that are not positive and finite.
        """
        if nodes < 1:
            raise ValueError(f"`nodes` must be >= 1, got {nodes}")
        _check_edges(edge_index, nodes)
        if weights is not None:
            _check_weights(weights, edge_index.shape[1])
        row, col = edge_index.cpu().numpy()
        data = np.ones(len(row)) if weights is None else weights.cpu().double().numpy()
        keep = row != col
        directed = sp.coo_matrix((data[keep], (row[keep], col[keep])), shape=(nodes, nodes)).tocsr()
        matrix = directed.maximum(directed.T).tocsr()
        return cls._from_matrix(matrix, weights is not None)

    @classmethod
    def _from_matrix(cls, matrix: Any, weighted: bool) -> Graph:
        """Take over the pieces of a symmetric SciPy matrix without diagonal."""
        matrix.sort_indices()
        indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (matrix.indptr, matrix.indices))
        return cls(indptr, indices, torch.from_numpy(matrix.data.astype(np.float64)) if weighted else None)

    @property
    def nodes(self) -> int:
        """Count the nodes."""
        return len(self.indptr) - 1

    @property
    def edges(self) -> int:
        """Count the directed entries, twice the number of undirected edges."""
        return len(self.indices)

    @property
    def degree(self) -> Tensor:
        """Count the neighbours of every node, shape (n,)."""
        return self.indptr.diff()

    @property
    def edge_index(self) -> Tensor:
        """List the directed entries row by row, shape (2, E)."""
        return torch.stack([torch.repeat_interleave(torch.arange(self.nodes), self.degree), self.indices])

    def scipy(self, *, weighted: bool = True) -> sp.csr_matrix:
        """Return the adjacency as a float64 matrix: the weights if there are any and `weighted` is true, else ones."""
        data = np.ones(self.edges) if self.weights is None or not weighted else self.weights.numpy()
        return sp.csr_matrix((data, self.indices.numpy(), self.indptr.numpy()), shape=(self.nodes, self.nodes))

    def components(self) -> Tensor:
        """Label every node with its connected component, 0, 1, ..., shape (n,)."""
        labels = sp.csgraph.connected_components(self.scipy(weighted=False), directed=False)[1]
        return torch.from_numpy(labels.astype(np.int64))

    def subgraph(self, nodes: Tensor) -> Graph:
        """Return the graph induced by `nodes`, shape (k,), without repetition, renumbered in the order given."""
        index = nodes.cpu().numpy()
        return Graph._from_matrix(self.scipy()[index][:, index].tocsr(), self.weights is not None)


def grow(graph: Graph, nodes: Tensor, hops: int) -> Tensor:
    """Return the nodes within `hops` edges of the given ones: the support of (A + I)^hops m.

    Parameters
    ----------
    nodes : Tensor, shape (k,) int64, or (n,) or (n, p) bool
        Node numbers, a mask, or p masks at once.
    hops : int
        Number of layers, >= 0.

    Returns
    -------
    BoolTensor, shape (n,) or (n, p)
        Mask that includes the given nodes.
    """
    if hops < 0:
        raise ValueError(f"`hops` must be >= 0, got {hops}")
    mask = _mask(graph.nodes, nodes).numpy()
    matrix = graph.scipy(weighted=False)
    for _ in range(hops):
        grown = mask | (matrix @ mask.astype(np.float64) > 0)
        if np.array_equal(grown, mask):
            break
        mask = grown
    return torch.from_numpy(mask)


def _mask(size: int, nodes: Tensor) -> Tensor:
    """Turn node numbers into a mask; check a mask."""
    if nodes.dtype == torch.bool:
        if nodes.dim() not in (1, 2) or nodes.shape[0] != size:
            raise ValueError(f"`nodes` as a mask must have shape ({size},) or ({size}, p), got {tuple(nodes.shape)}")
        return nodes.cpu().clone()
    if nodes.dtype != torch.int64 or nodes.dim() != 1:
        raise ValueError(f"`nodes` must be int64 of shape (k,) or a mask, got {kind_of(nodes)}")
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= size):
        raise ValueError(f"`nodes` must lie in 0..{size - 1}, got {int(nodes.min())}..{int(nodes.max())}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[nodes.cpu()] = True
    return mask


def neighbourhoods(graph: Graph) -> sp.csr_matrix:
    """Return A + I with ones as entries: row v holds v and its neighbours.

    Parameters
    ----------
    graph : Graph
    """
    return (graph.scipy(weighted=False) + sp.identity(graph.nodes, format="csr")).tocsr()


def kind_of(tensor: Tensor) -> str:
    """Name dtype and shape in an error."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_edges(edge_index: Tensor, nodes: int) -> None:
    if edge_index.dtype != torch.int64 or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"`edge_index` must be int64 of shape (2, E), got {kind_of(edge_index)}")
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= nodes):
        least, largest = int(edge_index.min()), int(edge_index.max())
        raise ValueError(f"`edge_index` must hold nodes 0..{nodes - 1}, got {least}..{largest}")


def _check_weights(weights: Tensor, edges: int) -> None:
    if weights.shape != (edges,) or not weights.dtype.is_floating_point:
        raise ValueError(f"`weights` must be floating-point of shape ({edges},), got {kind_of(weights)}")
    if weights.numel() and not (bool(torch.isfinite(weights).all()) and float(weights.min()) > 0):
        raise ValueError(f"`weights` must be positive and finite, got a minimum of {float(weights.min())}")
