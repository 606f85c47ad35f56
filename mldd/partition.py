"""Partitions of graphs, what their edges weigh, and what a partition costs."""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph, kind_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_LARGEST_WEIGHT, _LARGEST_SUM = 1000.0, 2.0**30  # of the integer weights for METIS; sums have to fit into 32 bits
_CHUNK = 4_000_000  # entries gathered at a time by `edge_weights`


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
        raise ValueError(f"`part` must be int64 >= 0 of shape ({graph.nodes},), got {kind_of(part)}")
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


def _check_node_weights(weights: Tensor, nodes: int) -> Floats:
    if weights.shape != (nodes,) or weights.dtype.is_complex:
        raise ValueError(f"`node_weights` must have shape ({nodes},), got {kind_of(weights)}")
    values = weights.cpu().double()
    if not bool(torch.isfinite(values).all()) or float(values.min()) < 0 or float(values.sum()) <= 0:
        raise ValueError(f"`node_weights` must be finite, >= 0, not all zero, got a minimum of {float(values.min())}")
    return np.asarray(values.numpy(), dtype=np.float64)
