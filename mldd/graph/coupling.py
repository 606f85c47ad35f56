"""How strongly the ends of an edge are coupled: weights that `partition` cuts last where they are large.

Every function returns positive weights of shape (E,), float64, in the order of `graph.indices` and equal in both
directions: ``Graph(graph.indptr, graph.indices, weights)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph.graph import Graph, kind_of

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_CHUNK = 4_000_000  # entries gathered at a time
_LEAST = 1e-3  # of the mean: no edge is free to cut


def edge_weights(graph: Graph, features: Tensor) -> Tensor:
    """Weigh every edge by the similarity of its ends: ``1 + <u, v> / (|u| |v|)``, at least 0.001.

    Parameters
    ----------
    graph : Graph
        With E directed entries.
    features : Tensor, shape (n, F), dense or sparse CSR
        One row per node; a row of zeros is similar to nothing.

    Returns
    -------
    Tensor, shape (E,), float64

    Raises
    ------
    ValueError
        Features of another shape.
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


def distance_weights(graph: Graph, coordinates: Tensor) -> Tensor:
    """Weigh every edge by the mean length over its own, l_mean / l; ends in one place count as l_mean / 1000 apart.

    Parameters
    ----------
    graph : Graph
        Whose nodes are meant.
    coordinates : Tensor, shape (n, 2) or (n, d)
        As in `points`. Latitude and longitude give lengths along great circles.

    Returns
    -------
    Tensor, shape (E,), float64
    """
    place = points(coordinates, graph.nodes)
    row, col = graph.edge_index.numpy()
    length = np.linalg.norm(place[row] - place[col], axis=1)
    if coordinates.shape[1] == 2:
        length = 2 * np.arcsin(np.minimum(length / 2, 1.0))  # of the arc over the chord, on the unit sphere
    mean = float(length.mean()) if length.size else 1.0
    return torch.from_numpy(mean / np.maximum(length, _LEAST * mean) if mean > 0 else np.ones_like(length))


def attention_weights(graph: Graph, attention: Tensor) -> Tensor:
    """Weigh every edge by what its ends pay to each other: |a_ij| + |a_ji|, the mean over heads.

    Parameters
    ----------
    graph : Graph
        Whose entries are meant.
    attention : Tensor, shape (E,) or (E, heads)
        One value per directed entry, in the order of `graph.indices`.

    Returns
    -------
    Tensor, shape (E,), float64
        At least 0.001 times their mean.

    Raises
    ------
    ValueError
        Attention of another shape, or not finite.
    """
    if attention.dim() not in (1, 2) or attention.shape[0] != graph.edges:
        raise ValueError(f"`attention` must have shape ({graph.edges},) or (E, heads), got {kind_of(attention)}")
    values = _finite(attention, "attention")
    return _positive(graph, np.abs(values) if values.ndim == 1 else np.abs(values).mean(axis=1))


def points(coordinates: Tensor, nodes: int) -> Floats:
    """Return points in space: latitude and longitude in degrees become points of the unit sphere, so 180 is no border.

    Parameters
    ----------
    coordinates : Tensor, shape (n, 2) or (n, d)
        Two columns are latitude and longitude; one, three and more are Cartesian. Points of a plane get a third column
        of zeros.
    nodes : int
        Number of nodes.

    Returns
    -------
    array, shape (n, 3) or (n, d), float64

    Raises
    ------
    ValueError
        A wrong shape, a coordinate that is not finite, a latitude beyond 90 degrees.
    """
    if coordinates.dim() != 2 or coordinates.shape[0] != nodes or coordinates.shape[1] < 1:
        raise ValueError(f"`coordinates` must have shape ({nodes}, 2) or ({nodes}, d), got {kind_of(coordinates)}")
    values = _finite(coordinates, "coordinates")
    if values.shape[1] != 2:
        return values
    if np.abs(values[:, 0]).max() > 90:
        raise ValueError(
            "two columns of `coordinates` must be latitude (-90..90) and longitude in degrees, got a latitude of "
            f"{values[np.abs(values[:, 0]).argmax(), 0]:g}; give points of a plane three columns: x, y, 0"
        )
    latitude, longitude = np.radians(values.T)
    flat = np.cos(latitude)
    return np.stack([flat * np.cos(longitude), flat * np.sin(longitude), np.sin(latitude)], axis=1)


def _finite(tensor: Tensor, name: str) -> Floats:
    values = tensor.detach().cpu().double().numpy()
    if not np.isfinite(values).all():
        raise ValueError(f"`{name}` must be finite, got {int((~np.isfinite(values)).sum())} values that are not")
    return np.asarray(values, dtype=np.float64)


def _positive(graph: Graph, values: Floats) -> Tensor:
    """Add up both directions; keep the result away from zero."""
    both = values + values[opposite(graph)]
    mean = float(both.mean()) if both.size else 0.0
    return torch.from_numpy(np.maximum(both, _LEAST * mean) if mean > 0 else np.ones_like(both))


def opposite(graph: Graph) -> Ints:
    """Return where in `graph.indices` the opposite direction of every entry is, shape (E,).

    Parameters
    ----------
    graph : Graph
        With a symmetric adjacency.
    """
    number = np.arange(graph.edges)
    pieces = (number, graph.indices.numpy(), graph.indptr.numpy())
    there = sp.csr_matrix(pieces, shape=(graph.nodes, graph.nodes)).T.tocsr()
    there.sort_indices()
    return np.asarray(there.data, dtype=np.int64)


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
