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
    edge_attributes : Tensor, shape (E, k), float64, optional
        k numbers of every entry: entry (i, j) has those of the edge from j to i, along which i reads j.

    Raises
    ------
    ValueError
        For a wrong shape or dtype, or weights that are not positive and finite.
    """

    indptr: Tensor
    indices: Tensor
    weights: Tensor | None = None
    edge_attributes: Tensor | None = None

    def __post_init__(self) -> None:
        for name, tensor in (("indptr", self.indptr), ("indices", self.indices)):
            if tensor.dtype != torch.int64 or tensor.dim() != 1:
                raise ValueError(
                    f"`{name}` must be int64 of one dimension, got {kind_of(tensor)}; use Graph.from_edges"
                )
        if self.weights is not None:
            _check_weights(self.weights, self.edges)
        if self.edge_attributes is not None:
            _check_attributes(self.edge_attributes, self.edges)

    @classmethod
    def from_edges(
        cls, edge_index: Tensor, nodes: int, weights: Tensor | None = None, edge_attributes: Tensor | None = None
    ) -> Graph:
        """Return a graph from any list of edges: A = max(B, B^T) off the diagonal, B[i, j] = sum of weights of (i, j).

        Parameters
        ----------
        edge_index : Tensor, shape (2, E), int64
            Ends of the edges, in one direction or in both; self loops and duplicates are allowed and vanish.
        nodes : int
            Number of nodes n.
        weights : Tensor, shape (E,), optional
            Positive weights.
        edge_attributes : Tensor, shape (E, k), optional
            Of edges from the first end to the second. Duplicates count by their mean; an edge that is listed in one
            direction has the same attributes in the other.

        Raises
        ------
        ValueError
            For a wrong shape or dtype, an index outside of 0..n-1, weights that are not positive and finite, or
            attributes that are not finite.
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
        if edge_attributes is None:
            return cls._from_matrix(matrix, weights is not None)
        _check_attributes(edge_attributes, edge_index.shape[1])
        given = edge_attributes.cpu().double().numpy()[keep]
        return cls._from_matrix(matrix, weights is not None, _by_entry(matrix, row[keep], col[keep], given))

    @classmethod
    def _from_matrix(cls, matrix: Any, weighted: bool, edge_attributes: Floats | None = None) -> Graph:
        """Take over the pieces of a symmetric SciPy matrix without diagonal, attributes in the order of its entries."""
        matrix.sort_indices()
        indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (matrix.indptr, matrix.indices))
        weights = torch.from_numpy(matrix.data.astype(np.float64)) if weighted else None
        return cls(indptr, indices, weights, None if edge_attributes is None else torch.from_numpy(edge_attributes))

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
        """Return the adjacency as a float64 matrix: the weights if there are any and `weighted` is true, else ones.

        Parameters
        ----------
        weighted : bool
            Whether entries are weights.
        """
        data = np.ones(self.edges) if self.weights is None or not weighted else self.weights.numpy()
        return sp.csr_matrix((data, self.indices.numpy(), self.indptr.numpy()), shape=(self.nodes, self.nodes))

    def components(self) -> Tensor:
        """Return the connected component 0, 1, ... of every node, shape (n,)."""
        labels = sp.csgraph.connected_components(self.scipy(weighted=False), directed=False)[1]
        return torch.from_numpy(labels.astype(np.int64))

    def subgraph(self, nodes: Tensor) -> Graph:
        """Return the graph induced by some nodes.

        Parameters
        ----------
        nodes : LongTensor, shape (k,)
            Numbers without repetition; they are numbered anew in the order given.
        """
        index = nodes.cpu().numpy()
        matrix = self.scipy()[index][:, index].tocsr()
        if self.edge_attributes is None:
            return Graph._from_matrix(matrix, self.weights is not None)
        numbers = np.arange(1.0, self.edges + 1)  # of entries; no entry is zero
        kept = sp.csr_matrix((numbers, self.indices.numpy(), self.indptr.numpy()), shape=(self.nodes, self.nodes))
        kept = kept[index][:, index].tocsr()
        kept.sort_indices()
        of = self.edge_attributes.numpy()[kept.data.astype(np.int64) - 1]
        return Graph._from_matrix(matrix, self.weights is not None, of)


def grow(graph: Graph, nodes: Tensor, hops: int) -> Tensor:
    """Return the nodes within `hops` edges of the given ones: the support of (A + I)^hops m.

    Parameters
    ----------
    graph : Graph
        Whose edges count.
    nodes : Tensor, shape (k,) int64, or (n,) or (n, p) bool
        Node numbers, a mask, or p masks at once.
    hops : int
        Number of layers, >= 0.

    Returns
    -------
    BoolTensor, shape (n,) or (n, p)
        Mask that includes the given nodes.

    Raises
    ------
    ValueError
        A negative number of layers, or nodes that are neither numbers nor masks of this graph.
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
        Its weights play no role.
    """
    return (graph.scipy(weighted=False) + sp.identity(graph.nodes, format="csr")).tocsr()


def kind_of(tensor: Tensor) -> str:
    """Return dtype and shape in words, for an error.

    Parameters
    ----------
    tensor : Tensor
        What was given.
    """
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


def _check_attributes(attributes: Tensor, edges: int) -> None:
    if attributes.dim() != 2 or len(attributes) != edges or not attributes.dtype.is_floating_point:
        raise ValueError(
            f"`edge_attributes` must be floating-point of shape ({edges}, k), one row per edge, got "
            f"{kind_of(attributes)}"
        )
    if not bool(torch.isfinite(attributes).all()):
        raise ValueError("`edge_attributes` must be finite, got NaN or infinity; clean them first")


def _by_entry(matrix: Any, source: Ints, target: Ints, given: Floats) -> Floats:
    """Return the attributes of every entry (i, j) of a symmetric CSR matrix: of j -> i, or of i -> j if that is all."""
    matrix.sort_indices()
    n, columns = matrix.shape[0], matrix.indices.astype(np.int64)
    rows = np.repeat(np.arange(n), np.diff(matrix.indptr))
    keys, which, counts = np.unique(target * n + source, return_inverse=True, return_counts=True)
    sums = sp.csr_matrix((np.ones(len(which)), (which.ravel(), np.arange(len(which)))), shape=(len(keys), len(which)))
    means = np.asarray(sums @ given) / counts[:, None]
    place = np.searchsorted(keys, rows * n + columns).clip(max=max(len(keys) - 1, 0))
    there = keys[place] == rows * n + columns
    return np.asarray(means[np.where(there, place, np.searchsorted(keys, columns * n + rows))])
