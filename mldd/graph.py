"""Adjacency of a graph and its operations: partition, k-hop neighbourhood, aggregation, normalisation.

Everything is vectorised over nodes and edges and runs on the CPU; tensors go in and out, NumPy and SciPy do the work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_WEIGHT, _LARGEST_SUM = 1000.0, 2.0**30  # of the integer weights for METIS; sums have to fit into 32 bits
_CHUNK = 4_000_000  # entries gathered at a time by `edge_weights`


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
                raise ValueError(f"`{name}` must be int64 of one dimension, got {_kind(tensor)}; use Graph.from_edges")
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


def partition(graph: Graph, parts: int, *, seed: int = 0, node_weights: Tensor | None = None) -> Tensor:
    """Cut the graph into parts of nearly equal weight so that few and weak edges are cut (METIS).

    Parameters
    ----------
    graph : Graph
        Its weights, if any, are scaled to integers in 1..1000.
    parts : int
        Number of parts; none of them comes out empty.
    seed : int
        The same seed gives the same partition.
    node_weights : Tensor, shape (n,), optional
        Non-negative weights to balance; the default counts nodes.

    Returns
    -------
    LongTensor, shape (n,)
        The part of every node, 0..parts-1.

    Raises
    ------
    ValueError
        If there are fewer nodes than parts, or the weights do not fit.
    ImportError
        If pymetis is missing.

    References
    ----------
    Karypis and Kumar, doi:10.1137/S1064827595287997.
    """
    nodes = graph.nodes
    if parts < 1 or parts > nodes:
        raise ValueError(f"`parts` must be >= 1 and <= nodes of the graph ({nodes}), got {parts}")
    weights = None if node_weights is None else _check_node_weights(node_weights, nodes)
    if parts == 1:
        return torch.zeros(nodes, dtype=torch.int64)
    if parts == nodes:
        return torch.arange(nodes)
    if graph.edges == 0 and weights is None:
        return torch.arange(nodes) * parts // nodes
    labels = _metis(graph, parts, seed, weights)
    return torch.from_numpy(_repaired(labels, parts))


def _metis(graph: Graph, parts: int, seed: int, node_weights: Floats | None) -> Ints:
    """Call METIS; recursive bisection below 8 parts, k-way from there on."""
    try:
        import pymetis
    except ImportError as error:
        raise ImportError("partitioning a graph needs pymetis, which is not installed: pip install pymetis") from error
    options: dict[str, Any] = {}
    if graph.weights is not None:
        options["eweights"] = _integers(graph.weights.numpy(), least=1)
    if node_weights is not None:
        options["vweights"] = _integers(node_weights, least=0)
    _, labels = pymetis.part_graph(
        parts,
        pymetis.CSRAdjacency(graph.indptr.numpy(), graph.indices.numpy()),
        recursive=parts < 8,
        options=pymetis.Options(seed=seed),
        **options,
    )
    return np.asarray(labels, dtype=np.int64)


def _integers(weights: Floats, *, least: int) -> Ints:
    """Scale weights to integers: the largest becomes 1000, or less where the sum would not fit into 32 bits."""
    scale = min(_LARGEST_WEIGHT / weights.max(), _LARGEST_SUM / weights.sum()) if weights.size else 1.0
    return np.maximum(np.rint(weights * scale), least).astype(np.int64)


def _repaired(labels: Ints, parts: int) -> Ints:
    """Fill empty parts: each takes half the nodes of one of the largest parts, until none is empty."""
    labels = labels.copy()
    while True:
        sizes = np.bincount(labels, minlength=parts)
        empty = np.flatnonzero(sizes == 0)
        if empty.size == 0:
            return labels
        donors = np.argsort(-sizes, kind="stable")[: empty.size]
        donors = donors[sizes[donors] >= 2]
        heir = np.full(parts, -1)
        heir[donors] = empty[: donors.size]
        rank = _rank(labels, sizes)
        moves = (heir[labels] >= 0) & (rank >= (sizes[labels] + 1) // 2)
        labels[moves] = heir[labels[moves]]


def _rank(labels: Ints, sizes: Ints) -> Ints:
    """Return the place 0, 1, ... of every node within its part."""
    order = np.argsort(labels, kind="stable")
    start = np.cumsum(sizes) - sizes
    rank = np.empty(labels.size, dtype=np.int64)
    rank[order] = np.arange(labels.size) - start[labels[order]]
    return rank


def edge_weights(graph: Graph, features: Tensor) -> Tensor:
    """Weigh every edge by the similarity of its ends: 1 + <u, v> / (|u| |v|), at least 0.001.

    Parameters
    ----------
    graph : Graph
        With E directed entries.
    features : Tensor, shape (n, F), dense or sparse CSR
        One row per node; a row of zeros is similar to nothing.

    Returns
    -------
    Tensor, shape (E,), float64
        In the order of `graph.indices`, equal in both directions: `Graph(graph.indptr, graph.indices, weights)`.
    """
    if features.dim() != 2 or features.shape[0] != graph.nodes:
        raise ValueError(f"`features` must have shape ({graph.nodes}, F), got {tuple(features.shape)}")
    rows = _matrix(features)
    row, col = graph.edge_index.numpy()
    density = rows.nnz / max(rows.shape[0], 1) if sp.issparse(rows) else rows.shape[1]
    step = max(1, int(_CHUNK / max(density, 1)))
    norms = np.sqrt(_row_dot(rows, rows))
    unit = np.divide(1.0, norms, out=np.zeros_like(norms), where=norms > 0)
    result = np.empty(graph.edges)
    for start in range(0, graph.edges, step):
        i, j = row[start : start + step], col[start : start + step]
        result[start : start + step] = _row_dot(rows[i], rows[j]) * (unit[i] * unit[j])
    return torch.from_numpy(np.maximum(1.0 + result, 1e-3))


def _matrix(features: Tensor) -> Any:
    """View features as a NumPy array or a SciPy CSR matrix, float64."""
    if features.layout == torch.strided:
        return features.detach().cpu().double().numpy()
    csr = features.detach().cpu().double()
    csr = csr if csr.layout == torch.sparse_csr else csr.to_sparse_csr()
    pieces = (csr.values().numpy(), csr.col_indices().numpy(), csr.crow_indices().numpy())
    return sp.csr_matrix(pieces, shape=tuple(csr.shape))


def _row_dot(a: Any, b: Any) -> Floats:
    """Return the inner products of the rows of two dense or two sparse matrices, shape (rows,)."""
    if sp.issparse(a):
        return np.asarray(a.multiply(b).sum(axis=1), dtype=np.float64).ravel()
    return np.asarray(np.einsum("ij,ij->i", a, b), dtype=np.float64)


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
        raise ValueError(f"`nodes` must be int64 of shape (k,) or a mask, got {_kind(nodes)}")
    if nodes.numel() and (int(nodes.min()) < 0 or int(nodes.max()) >= size):
        raise ValueError(f"`nodes` must lie in 0..{size - 1}, got {int(nodes.min())}..{int(nodes.max())}")
    mask = torch.zeros(size, dtype=torch.bool)
    mask[nodes.cpu()] = True
    return mask


def aggregate(graph: Graph, clusters: int, *, seed: int = 0, within: Tensor | None = None) -> Tensor:
    """Group the nodes into about `clusters` clusters of neighbours (METIS).

    Parameters
    ----------
    clusters : int
        Number of clusters wanted, 1..n.
    seed : int
        As in `partition`.
    within : LongTensor, shape (n,), optional
        A part per node; clusters do not cross parts. Every part gets its share by size and at least one cluster, so the
        total is exact unless there are more parts than clusters.

    Returns
    -------
    LongTensor, shape (n,)
        Labels 0..k-1, each of which occurs; the clusters of one part are consecutive.
    """
    if not 1 <= clusters <= graph.nodes:
        raise ValueError(f"`clusters` must be in 1..{graph.nodes} (nodes of the graph), got {clusters}")
    if within is None:
        return partition(graph, clusters, seed=seed)
    if within.dtype != torch.int64 or within.shape != (graph.nodes,):
        raise ValueError(f"`within` must be int64 of shape ({graph.nodes},), got {_kind(within)}")
    _, part, sizes = np.unique(within.cpu().numpy(), return_inverse=True, return_counts=True)
    shares = _shares(sizes, clusters)
    members = np.split(np.argsort(part, kind="stable"), np.cumsum(sizes)[:-1])
    labels = torch.empty(graph.nodes, dtype=torch.int64)
    start = 0
    for index, share in zip(members, shares.tolist(), strict=True):
        nodes = torch.from_numpy(index)
        labels[nodes] = start + partition(graph.subgraph(nodes), share, seed=seed)
        start += share
    return labels


def _shares(sizes: Ints, clusters: int) -> Ints:
    """Share `clusters` out in proportion to the sizes: every share at least 1, the rest by largest remainder."""
    spare = max(clusters - sizes.size, 0)
    quota = spare * (sizes - 1) / max(int((sizes - 1).sum()), 1)
    shares = np.floor(quota).astype(np.int64)
    rest = spare - int(shares.sum())
    shares[np.argsort(shares - quota, kind="stable")[:rest]] += 1
    return 1 + shares


def normalised(graph: Graph, kind: Literal["gcn", "mean"] = "gcn", *, weighted: bool = False) -> sp.csr_matrix:
    """Return the propagation matrix of a graph layer: D^-1/2 (A + I) D^-1/2 (`gcn`) or D^-1 A (`mean`).

    Parameters
    ----------
    kind : {'gcn', 'mean'}
        D is the diagonal of the row sums of A + I for `gcn`, and of A for `mean` (rows of isolated nodes stay zero).
    weighted : bool
        Use the weights of the graph instead of ones (for coarse graphs; partition weights are no model weights).

    Returns
    -------
    csr_matrix, shape (n, n), float64

    References
    ----------
    Kipf and Welling, arXiv:1609.02907, equation 2.
    """
    matrix = graph.scipy(weighted=weighted)
    if kind not in ("gcn", "mean"):
        raise ValueError(f"`kind` must be 'gcn' or 'mean', got {kind!r}")
    if kind == "gcn":
        matrix = (matrix + sp.identity(graph.nodes, format="csr")).tocsr()
    sums = np.asarray(matrix.sum(axis=1), dtype=np.float64).ravel()
    inverse = np.divide(1.0, sums, out=np.zeros_like(sums), where=sums > 0)
    if kind == "mean":
        return sp.csr_matrix(sp.diags(inverse) @ matrix)
    root = sp.diags(np.sqrt(inverse))
    result = sp.csr_matrix(root @ matrix @ root)
    result.sort_indices()
    return result


def report(graph: Graph, part: Tensor) -> dict[str, Any]:
    """Describe a partition.

    Parameters
    ----------
    part : LongTensor, shape (n,)
        The part of every node.

    Returns
    -------
    dict
        `parts`; `sizes` (nodes per part); `cut` (undirected edges between parts), `cut_fraction`; `balance` (largest
        part over the average); `halo` (per part, nodes of other parts that it reads in one hop), `halo_rows` (the sum).
    """
    if part.dtype != torch.int64 or part.shape != (graph.nodes,) or int(part.min()) < 0:
        raise ValueError(f"`part` must be int64 >= 0 of shape ({graph.nodes},), got {_kind(part)}")
    parts = int(part.max()) + 1
    row, col = graph.edge_index
    crossing = part[row] != part[col]
    pairs = torch.unique(part[row[crossing]] * graph.nodes + col[crossing])
    halo = torch.bincount(pairs // graph.nodes, minlength=parts)
    sizes = torch.bincount(part, minlength=parts)
    cut = int(crossing.sum()) // 2
    return {
        "parts": parts,
        "sizes": sizes.tolist(),
        "cut": cut,
        "cut_fraction": 2 * cut / max(graph.edges, 1),
        "balance": int(sizes.max()) * parts / graph.nodes,
        "halo": halo.tolist(),
        "halo_rows": int(halo.sum()),
    }


def _kind(tensor: Tensor) -> str:
    """Name dtype and shape in an error."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _check_edges(edge_index: Tensor, nodes: int) -> None:
    if edge_index.dtype != torch.int64 or edge_index.dim() != 2 or edge_index.shape[0] != 2:
        raise ValueError(f"`edge_index` must be int64 of shape (2, E), got {_kind(edge_index)}")
    if edge_index.numel() and (int(edge_index.min()) < 0 or int(edge_index.max()) >= nodes):
        least, largest = int(edge_index.min()), int(edge_index.max())
        raise ValueError(f"`edge_index` must hold nodes 0..{nodes - 1}, got {least}..{largest}")


def _check_weights(weights: Tensor, edges: int) -> None:
    if weights.shape != (edges,) or not weights.dtype.is_floating_point:
        raise ValueError(f"`weights` must be floating-point of shape ({edges},), got {_kind(weights)}")
    if weights.numel() and not (bool(torch.isfinite(weights).all()) and float(weights.min()) > 0):
        raise ValueError(f"`weights` must be positive and finite, got a minimum of {float(weights.min())}")


def _check_node_weights(weights: Tensor, nodes: int) -> Floats:
    if weights.shape != (nodes,) or weights.dtype.is_complex:
        raise ValueError(f"`node_weights` must have shape ({nodes},), got {_kind(weights)}")
    values = weights.cpu().double()
    if not bool(torch.isfinite(values).all()) or float(values.min()) < 0 or float(values.sum()) <= 0:
        raise ValueError(f"`node_weights` must be finite, >= 0, not all zero, got a minimum of {float(values.min())}")
    return np.asarray(values.numpy(), dtype=np.float64)
