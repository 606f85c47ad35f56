"""Points on the sphere: distances, neighbours, graphs from coordinates, area weights."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.graph import Graph
from mldd.problems.data.mesh_levels import farthest_points, on_sphere

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
GraphKind = Literal["knn", "radius", "grid", "mesh"]
EARTH = 6371.0  # mean radius in kilometres
_APART = np.radians(1e-3)  # of the sphere: nodes that are nearer to each other are the same
_WRAP = 1.5  # steps of longitude that may be missing where a grid goes around the globe


def distance(one: Floats, other: Floats) -> Floats:
    """Return great-circle distances in kilometres.

    Parameters
    ----------
    one, other : ndarray, shapes (..., 3)
        Points of the unit sphere.
    """
    chord = np.linalg.norm(one - other, axis=-1)
    return np.asarray(2.0 * EARTH * np.arcsin(np.clip(0.5 * chord, 0.0, 1.0)))


def nearest(points: Floats, neighbours: int) -> Ints:
    """Return the nearest other points of each, nearest first, shape (n, neighbours).

    Parameters
    ----------
    points : ndarray, shape (n, 3)
        On the unit sphere.
    neighbours : int
        How many of each point.

    Raises
    ------
    ValueError
        As many neighbours as points, or none.
    """
    from scipy.spatial import cKDTree

    n = len(points)
    if not 1 <= neighbours < n:
        raise ValueError(f"`neighbours` must be in 1..{n - 1} for {n} nodes, got {neighbours}")
    found = cKDTree(points).query(points, neighbours + 1)[1].astype(np.int64)
    own = found == np.arange(n)[:, None]
    own[~own.any(1), -1] = True  # many points in one place: the point itself need not be among them
    return np.asarray(found[~own].reshape(n, neighbours))


def places_of(one: tuple[Floats, Floats], other: tuple[Floats, Floats]) -> Ints:
    """Return which of other nodes every node is, -1 where it is none of them, shape (n,).

    Parameters
    ----------
    one, other : tuple of ndarray, shapes (n,) and (m,)
        Latitudes and longitudes in degrees; nodes within a thousandth of a degree are the same.
    """
    own, others = on_sphere(*one), on_sphere(*other)
    if own.shape == others.shape and np.linalg.norm(own - others, axis=1).max() < _APART:
        return np.arange(len(own))
    from scipy.spatial import cKDTree

    far, places = cKDTree(others).query(own)
    return np.where(far > _APART, -1, places).astype(np.int64)


def area_weights(latitude: Floats) -> Floats:
    """Return the weights of the nodes of a latitude-longitude grid, proportional to cos(latitude), mean 1.

    Parameters
    ----------
    latitude : ndarray, shape (n,)
        Degrees.
    """
    weights = np.clip(np.cos(np.radians(latitude)), 1e-6, None)  # a pole has little area, not none
    return np.asarray(weights / weights.mean())


def connect(
    latitude: Floats,
    longitude: Floats,
    kind: GraphKind = "knn",
    neighbours: int = 8,
    radius: float = 100.0,
    grid: tuple[int, int] | None = None,
) -> Graph:
    """Return the graph of nodes near each other; an edge has the weight ``1 / (1 + (d / m)^2)``, m the median length.

    Parameters
    ----------
    latitude, longitude : ndarray, shape (n,)
        Degrees.
    kind : {"knn", "radius", "grid", "mesh"}
        Nearest neighbours on the sphere (either one of the other), all within `radius`, those of a grid, or a mesh of
        several levels: nearest neighbours among all nodes, a quarter of them, a sixteenth, ..., farthest points first.
    neighbours : int
        Of each node; 4 or 8 on a grid.
    radius : float
        Kilometres.
    grid : tuple of int, optional
        Rows and columns of the grid; it is closed where its longitudes go around the globe.

    Raises
    ------
    ValueError
        No such kind, no grid, or a number of neighbours or a radius that makes no sense.
    """
    from scipy.spatial import cKDTree

    points = on_sphere(latitude, longitude)
    if kind == "knn":
        ends = nearest(points, neighbours)
        edges = np.stack([np.repeat(np.arange(len(points)), neighbours), ends.ravel()])
    elif kind == "mesh":
        edges = _mesh_edges(points, neighbours)
    elif kind == "radius":
        if not radius > 0:
            raise ValueError(f"`radius` must be > 0 km, got {radius}")
        chord = 2.0 * np.sin(min(radius / (2.0 * EARTH), np.pi / 2))
        edges = cKDTree(points).query_pairs(chord, output_type="ndarray").T.astype(np.int64)
    elif kind == "grid":
        edges = _grid_edges(latitude, longitude, grid, neighbours)
    else:
        raise ValueError(f"`edges` must be knn, radius, grid or mesh, got {kind!r}")
    return _weighted(points, edges)


def closed(longitude: Floats, grid: tuple[int, int] | None) -> bool:
    """Return whether the columns of a grid go around the globe.

    Parameters
    ----------
    longitude : ndarray, shape (n,)
        Degrees, row by row.
    grid : tuple of int or None
        Rows and columns.
    """
    if grid is None or grid[1] < 3:
        return False
    gaps = _gaps(longitude[: grid[1]])[1]
    return bool(gaps.max() < _WRAP * np.median(gaps))


def _gaps(longitude: Floats) -> tuple[Ints, Floats]:
    """Return meridians from west to east on the circle, and the degrees from each to the next."""
    turned = np.mod(longitude, 360.0)
    order = np.argsort(turned, kind="stable")
    return order, np.diff(turned[order], append=turned[order[0]] + 360.0)


def _eastward(longitude: Floats) -> Ints:
    """Order the columns of a grid from west to east, from the eastern end of the widest gap on.

    So a region across Greenwich begins at its western end, whether its file counts from -180 or from 0 degrees.
    """
    order, gaps = _gaps(longitude)
    if len(order) < 2 or not gaps.max() > _WRAP * np.median(gaps):
        return order
    return np.roll(order, -1 - int(gaps.argmax()))


def _grid_edges(latitude: Floats, longitude: Floats, grid: tuple[int, int] | None, neighbours: int) -> Ints:
    if grid is None:
        raise ValueError(
            "`edges` must be knn, radius or mesh for nodes that are not on a latitude-longitude grid, got grid"
        )
    if neighbours not in (4, 8):
        raise ValueError(f"`neighbours` must be 4 or 8 on a grid, got {neighbours}")
    northward, eastward = np.argsort(latitude[:: grid[1]], kind="stable"), _eastward(longitude[: grid[1]])
    number = np.arange(grid[0] * grid[1]).reshape(grid)[np.ix_(northward, eastward)]
    wide = np.concatenate([number, number[:, :1]], axis=1) if closed(longitude, grid) else number
    pairs = [(wide[:, :-1], wide[:, 1:]), (number[:-1], number[1:])]
    if neighbours == 8:
        pairs += [(wide[:-1, :-1], wide[1:, 1:]), (wide[:-1, 1:], wide[1:, :-1])]
    return np.concatenate([np.stack([a.ravel(), b.ravel()]) for a, b in pairs], axis=1)


def _mesh_edges(points: Floats, neighbours: int) -> Ints:
    """Unite the nearest neighbours among the nodes of every level that has more nodes than neighbours."""
    order = farthest_points(points, max(len(points) // 4, 1))
    levels, size = [np.arange(len(points))], len(order)
    while size > neighbours:
        levels.append(order[:size])
        size //= 4
    united = []
    for nodes in levels:
        ends = nodes[nearest(points[nodes], neighbours)]
        united.append(np.stack([np.repeat(nodes, neighbours), ends.ravel()]))
    return np.concatenate(united, axis=1)


def _weighted(points: Floats, edges: Any) -> Graph:
    length = distance(points[edges[0]], points[edges[1]])
    middle = float(np.median(length)) if len(length) else 1.0
    weights = 1.0 / (1.0 + (length / max(middle, 1e-9)) ** 2)
    index = torch.from_numpy(np.ascontiguousarray(edges))
    # `from_edges` adds up what occurs twice: each pair once, whichever of the two is the neighbour of the other
    low, high = index.min(0).values, index.max(0).values
    unique, first = np.unique(torch.stack([low, high]).numpy(), axis=1, return_index=True)
    return Graph.from_edges(torch.from_numpy(unique), len(points), torch.from_numpy(weights[first]))
