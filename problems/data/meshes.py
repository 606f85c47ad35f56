"""Meshes and random graphs of any size: icosahedral, grid, geometric, power law; nothing loops over nodes."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_GOLDEN = (1 + math.sqrt(5)) / 2
_PENTAGONS = np.array(
    [[-1, _GOLDEN, 0], [1, _GOLDEN, 0], [-1, -_GOLDEN, 0], [1, -_GOLDEN, 0]]
    + [[0, -1, _GOLDEN], [0, 1, _GOLDEN], [0, -1, -_GOLDEN], [0, 1, -_GOLDEN]]
    + [[_GOLDEN, 0, -1], [_GOLDEN, 0, 1], [-_GOLDEN, 0, -1], [-_GOLDEN, 0, 1]]
) / math.hypot(1, _GOLDEN)
_TRIANGLES = np.array(
    [[0, 11, 5], [0, 5, 1], [0, 1, 7], [0, 7, 10], [0, 10, 11], [1, 5, 9], [5, 11, 4]]
    + [[11, 10, 2], [10, 7, 6], [7, 1, 8], [3, 9, 4], [3, 4, 2], [3, 2, 6], [3, 6, 8]]
    + [[3, 8, 9], [4, 9, 5], [2, 4, 11], [6, 2, 10], [8, 6, 7], [9, 8, 1]]
)
_STENCIL = ((0, 1), (1, 0), (1, 1), (1, -1), (0, 2), (2, 0))  # by distance; the opposite of each belongs to it
_FINEST = 10  # resolution: 10 million nodes


def icosphere(resolution: int, multiscale: bool = True) -> tuple[Graph, Tensor, Tensor]:
    """Return the icosahedron whose triangles are cut into four `resolution` times, on the sphere.

    It has 10 4^r + 2 nodes and 30 4^r undirected edges; the nodes of resolution q < r come first, with the same numbers
    as in the coarser mesh. With `multiscale` the edges of all coarser meshes are added: 10 (4^(r+1) - 1) undirected
    edges in all, none of them twice.

    Parameters
    ----------
    resolution : int
        r in 0..10.
    multiscale : bool
        Whether the edges of the coarser meshes belong to the graph.

    Returns
    -------
    Graph
        With n nodes.
    Tensor, shape (n,), float64
        Latitude in degrees, -90..90.
    Tensor, shape (n,), float64
        Longitude in degrees, in (-180, 180].

    References
    ----------
    Lam et al., arXiv:2212.12794 (GraphCast): the multi-mesh.
    """
    points, faces = _refined(resolution)
    pairs = np.concatenate([_sides(f) for f in (faces if multiscale else faces[-1:])])
    graph = Graph.from_edges(torch.from_numpy(np.ascontiguousarray(pairs.T)), len(points))
    return graph, *_degrees(points)


def icosphere_faces(resolution: int) -> Tensor:
    """Return the corners of the 20 4^r triangles of an icosphere, shape (faces, 3), int64.

    Parameters
    ----------
    resolution : int
        r in 0..10.
    """
    return torch.from_numpy(_refined(resolution)[1][-1])


def icosphere_levels(nodes: int) -> Tensor:
    """Return for every node of an icosphere the least resolution that has it, shape (nodes,), int64.

    Parameters
    ----------
    nodes : int
        Of the icosphere, 10 4^r + 2.

    Raises
    ------
    ValueError
        No icosphere has this number of nodes.
    """
    resolution = max(0, round(math.log((nodes - 2) / 10, 4))) if nodes > 2 else 0
    if 10 * 4**resolution + 2 != nodes:
        raise ValueError(f"`nodes` must be 10 4^r + 2 (12, 42, 162, 642, 2562, 10242, ...), got {nodes}")
    ends = torch.tensor([10 * 4**q + 2 for q in range(resolution + 1)])
    return torch.bucketize(torch.arange(nodes), ends, right=True)


def _refined(resolution: int) -> tuple[Floats, list[Ints]]:
    """Return the points of the finest icosphere and the triangles of every resolution."""
    if not 0 <= resolution <= _FINEST:
        raise ValueError(f"`resolution` must be in 0..{_FINEST}, got {resolution}")
    points, faces = _PENTAGONS, [_TRIANGLES]
    for _ in range(resolution):
        points, finer = _quartered(points, faces[-1])
        faces.append(finer)
    return points, faces


def _quartered(points: Floats, faces: Ints) -> tuple[Floats, Ints]:
    """Cut every triangle into four by the middles of its sides; new points follow the old ones."""
    sides = np.sort(faces[:, [[0, 1], [1, 2], [2, 0]]].reshape(-1, 2), axis=1)
    keys, where = np.unique(sides[:, 0] * len(points) + sides[:, 1], return_inverse=True)
    middles = points[keys // len(points)] + points[keys % len(points)]
    middles /= np.linalg.norm(middles, axis=1, keepdims=True)
    m = len(points) + where.reshape(-1, 3)
    a, b, c = faces.T
    quarters = [(a, m[:, 0], m[:, 2]), (b, m[:, 1], m[:, 0]), (c, m[:, 2], m[:, 1]), (m[:, 0], m[:, 1], m[:, 2])]
    return np.concatenate([points, middles]), np.concatenate([np.stack(q, axis=1) for q in quarters])


def _sides(faces: Ints) -> Ints:
    """List the sides of triangles in one direction each (neighbours run along a side in opposite directions)."""
    return np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])


def _degrees(points: Floats) -> tuple[Tensor, Tensor]:
    """Turn points of the unit sphere into latitude and longitude."""
    latitude = np.degrees(np.arctan2(points[:, 2], np.hypot(points[:, 0], points[:, 1])))
    return torch.from_numpy(latitude), torch.from_numpy(np.degrees(np.arctan2(points[:, 1], points[:, 0])))


def grid_mesh(rows: int, columns: int, neighbours: int = 4) -> tuple[Graph, Tensor]:
    """Return a grid numbered row by row, every inner node connected to its nearest ones.

    Parameters
    ----------
    rows, columns : int
        Nodes in both directions, >= 1.
    neighbours : {2, 4, 6, 8, 10, 12}
        2: along the row; 4: and along the column (five-point stencil); 6: and along one diagonal (triangles); 8: and
        along the other; 10, 12: and second neighbours along row and column. Nodes on the boundary have fewer.

    Returns
    -------
    Graph
        With rows * columns nodes.
    Tensor, shape (rows * columns, 2), float64
        Row and column of every node.
    """
    indptr, indices = grid_rows(rows, columns, neighbours, 0, rows)
    where = np.divmod(np.arange(rows * columns), columns)
    coordinates = torch.from_numpy(np.stack(where, axis=1).astype(np.float64))
    return Graph(torch.from_numpy(indptr), torch.from_numpy(indices)), coordinates


def grid_rows(rows: int, columns: int, neighbours: int, first: int, last: int) -> tuple[Ints, Ints]:
    """Return rows first..last-1 of the adjacency of `grid_mesh`: memory is that of this block alone.

    Parameters
    ----------
    rows, columns : int
        Nodes of the grid in both directions.
    neighbours : int
        As in `grid_mesh`.
    first, last : int
        Rows of the grid that are asked for.

    Returns
    -------
    NDArray, shape ((last - first) * columns + 1,), int64
        Where the row of each node of the block begins.
    NDArray, shape (entries,), int64
        Neighbours as numbers of the whole grid, ascending within each row.

    Raises
    ------
    ValueError
        Sizes, a number of neighbours, or rows that do not exist.
    """
    _check_grid(rows, columns, neighbours)
    if not 0 <= first <= last <= rows:
        raise ValueError(f"`first` and `last` must be 0 <= first <= last <= {rows}, got {first} and {last}")
    half = np.array(_STENCIL[: neighbours // 2])
    steps = np.concatenate([half, -half])
    steps = steps[np.lexsort((steps[:, 1], steps[:, 0]))]  # ascending numbers of neighbours inside the grid
    i = np.arange(first, last)[:, None, None] + steps[:, 0]
    j = np.arange(columns)[None, :, None] + steps[:, 1]
    inside = (i >= 0) & (i < rows) & (j >= 0) & (j < columns)
    indptr = np.concatenate([[0], np.cumsum(inside.sum(axis=2).ravel())])
    return indptr, (i * columns + j)[inside]


def _check_grid(rows: int, columns: int, neighbours: int) -> None:
    if rows < 1 or columns < 1:
        raise ValueError(f"`rows` and `columns` must be >= 1, got {rows} and {columns}")
    if neighbours not in range(2, 2 * len(_STENCIL) + 1, 2):
        raise ValueError(f"`neighbours` must be 2, 4, 6, 8, 10 or 12, got {neighbours}")


def power_law(nodes: int, degree: float = 10.0, exponent: float = 2.5, seed: int = 0) -> Graph:
    """Return a random graph whose degrees follow a power law: P(degree = k) ~ k^-exponent (Chung and Lu).

    Node i (before a random renumbering) has the weight w_i = c (i0 + i)^(-1 / (exponent - 1)), with c and i0 such that
    the mean is `degree` and the largest sqrt(n degree); n degree / 2 edges are drawn, each with ends i and j of
    probabilities w_i / sum w and w_j / sum w. Loops and repeated edges vanish, so that hubs have somewhat fewer
    neighbours than w_i; nodes without a neighbour are possible.

    Parameters
    ----------
    nodes : int
        n >= 2.
    degree : float
        Mean degree before loops and repeated edges vanish, >= 1 and < n.
    exponent : float
        Above 2.
    seed : int
        The same seed gives the same graph.

    Raises
    ------
    ValueError
        Too few nodes, or a degree or an exponent without such a graph.

    References
    ----------
    Chung and Lu, The average distances in random graphs with given expected degrees, PNAS 99 (2002),
    doi:10.1073/pnas.252631999.
    """
    if nodes < 2 or not 1 <= degree < nodes:
        raise ValueError(f"`nodes` must be >= 2 and `degree` in [1, nodes), got {nodes} and {degree}")
    if not exponent > 2:
        raise ValueError(f"`exponent` must be > 2 (the mean degree is infinite otherwise), got {exponent}")
    random = np.random.default_rng(seed)
    total = np.cumsum(_expected_degrees(nodes, degree, exponent))
    draws = random.random((2, round(nodes * degree / 2))) * total[-1]
    names = random.permutation(nodes)
    return Graph.from_edges(torch.from_numpy(names[np.searchsorted(total, draws, side="right")]), nodes)


def _expected_degrees(nodes: int, degree: float, exponent: float) -> Floats:
    """Return the weights w_i of Chung and Lu, scaled to the mean `degree` exactly; shape (n,), decreasing."""
    largest = math.sqrt(nodes * degree)
    shift = nodes * (degree * (exponent - 2) / (largest * (exponent - 1))) ** (exponent - 1)
    weights = (np.arange(nodes) + shift) ** (-1.0 / (exponent - 1))
    return np.asarray(weights * (degree * nodes / weights.sum()))


def geometric(
    nodes: int, k: int | None = None, *, radius: float | None = None, dimension: int = 2, seed: int = 0
) -> tuple[Graph, Tensor]:
    """Return a graph of random points of the unit square (or cube) connected to near ones.

    Parameters
    ----------
    nodes : int
        n >= 2.
    k : int, optional
        Connect every node to its k nearest; edges in one direction count for both, degrees are k or more.
    radius : float, optional
        Connect nodes at most this far apart. Exactly one of `k` and `radius` has to be given.
    dimension : int
        Of the space, >= 1.
    seed : int
        The same seed gives the same graph.

    Returns
    -------
    Graph
        With n nodes.
    Tensor, shape (n, dimension), float64
        Coordinates of the points, in [0, 1).

    Raises
    ------
    ValueError
        Too few nodes, no dimension, or not exactly one of `k` and `radius`.
    """
    if nodes < 2 or dimension < 1:
        raise ValueError(f"`nodes` must be >= 2 and `dimension` >= 1, got {nodes} and {dimension}")
    if (k is None) == (radius is None):
        raise ValueError(f"exactly one of `k` and `radius` must be given, got {k} and {radius}")
    points = np.random.default_rng(seed).random((nodes, dimension))
    pairs = _nearest(points, k) if k is not None else _within(points, float(radius or 0.0))
    return Graph.from_edges(torch.from_numpy(pairs), nodes), torch.from_numpy(points)


def _nearest(points: Floats, k: int) -> Ints:
    """List the edges from every point to its k nearest, shape (2, n k)."""
    from scipy.spatial import cKDTree

    if not 1 <= k < len(points):
        raise ValueError(f"`k` must be in 1..{len(points) - 1}, got {k}")
    found = cKDTree(points).query(points, k + 1)[1][:, 1:]
    return np.stack([np.repeat(np.arange(len(points)), k), found.ravel()])


def _within(points: Floats, radius: float) -> Ints:
    """List the pairs of points at most `radius` apart, shape (2, pairs)."""
    from scipy.spatial import cKDTree

    if not radius > 0:
        raise ValueError(f"`radius` must be > 0, got {radius}")
    return np.ascontiguousarray(cKDTree(points).query_pairs(radius, output_type="ndarray").T)
