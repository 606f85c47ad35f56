"""Hidden meshes of encode-process-decode networks: grid to mesh, multi-scale mesh, mesh to grid, and aggregated grids.

Regional grids and stations get a mesh of some of their own points, farthest points first, so that coarser levels are
the first of its nodes; global ones the icosphere, whose coarser levels come first likewise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from mldd.problems.data.meshes import icosphere, icosphere_levels

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_COARSENING = 4  # nodes of a level over those of the next coarser one, as with triangles cut into four
_LEAST = 3  # nodes of the coarsest level
_GLOBAL = 120.0, 60.0  # degrees of latitude at least, and of longitude without a node at most
_DIGITS = 12  # of squared distances, so that rounding does not choose between points that are equally far


@dataclass(frozen=True, eq=False)
class Link:
    """Directed edges from n senders to m receivers, with their static features.

    Parameters
    ----------
    matrix : csr_matrix, shape (m, n)
        Row i has the edges into receiver i; entries are the weights of their messages in the sum.
    features : ndarray, shape (nnz, 4)
        In the order of the entries: length, and sender minus receiver in the receiver's coordinates.
    """

    matrix: Any
    features: Floats

    @staticmethod
    def of(edges: Ints, receivers: Floats, senders: Floats, *, mean: bool = True) -> Link:
        """Return the link of edges between points on the unit sphere; features are divided by the longest length.

        Parameters
        ----------
        edges : array of int, shape (2, E)
            Receiver and sender of every edge, each pair once.
        receivers, senders : array, shapes (m, 3) and (n, 3)
            Points on the unit sphere.
        mean : bool
            Whether the messages of a receiver are averaged or summed.

        References
        ----------
        Lam et al., arXiv:2212.12794, supplement 3.2 (features of edges and the receiver's coordinates).
        """
        shape = (len(receivers), len(senders))
        order = np.lexsort((edges[1], edges[0]))
        rows, columns = edges[:, order]
        degree = np.bincount(rows, minlength=shape[0])
        values = 1.0 / degree[rows] if mean else np.ones(len(rows))
        indptr = np.concatenate([[0], np.cumsum(degree)])
        features = edge_features(receivers[rows], senders[columns])
        longest = features[:, 0].max(initial=0.0)
        return Link(sp.csr_matrix((values, columns, indptr), shape=shape), features / (longest or 1.0))

    def cut(self, rows: Ints, columns: Ints) -> Link:
        """Return the edges between some receivers and senders, renumbered in the order given.

        Parameters
        ----------
        rows, columns : array of int
            Which receivers and which senders.
        """
        numbers = sp.csr_matrix((np.arange(1, self.matrix.nnz + 1), self.matrix.indices, self.matrix.indptr))
        numbers.resize(self.matrix.shape)
        kept = numbers[rows][:, columns].tocsr()
        kept.sort_indices()
        chosen = kept.data - 1
        matrix = sp.csr_matrix((self.matrix.data[chosen], kept.indices, kept.indptr), shape=kept.shape)
        return Link(matrix, self.features[chosen])

    def merged(self, receivers: Ints, senders: Ints) -> Link:
        """Return the link between clusters of receivers and of senders.

        The message between two clusters has the summed weight of the edges that it stands for, averaged over the
        receivers, and their weighted mean features: exact where edges, senders and receivers of a cluster are alike.

        Parameters
        ----------
        receivers, senders : array of int, shapes (m,) and (n,)
            The cluster of each.
        """
        shape = (int(receivers.max()) + 1, int(senders.max()) + 1)
        fine = self.matrix.tocoo()
        keys = receivers[fine.row] * shape[1] + senders[fine.col]
        unique, where = np.unique(keys, return_inverse=True)
        total = np.bincount(where, fine.data, len(unique))
        features = [np.bincount(where, fine.data * column, len(unique)) / total for column in self.features.T]
        rows, columns = np.divmod(unique, shape[1])
        weights = total / np.bincount(receivers, minlength=shape[0])[rows]
        indptr = np.concatenate([[0], np.cumsum(np.bincount(rows, minlength=shape[0]))])
        return Link(sp.csr_matrix((weights, columns, indptr), shape=shape), np.stack(features, axis=1))


def on_sphere(latitude: Floats, longitude: Floats) -> Floats:
    """Return points on the unit sphere, shape (n, 3), on which no longitude is a border.

    Parameters
    ----------
    latitude, longitude : array, shape (n,)
        Degrees.

    Raises
    ------
    ValueError
        Shapes that differ, or coordinates that are not finite.

    Examples
    --------
    >>> east, west = on_sphere(np.zeros(2), np.array([180.0, -180.0]))
    >>> bool(np.allclose(east, west))
    True
    """
    if latitude.shape != longitude.shape or latitude.ndim != 1:
        raise ValueError(
            f"`latitude` and `longitude` must have one shape (n,), got {latitude.shape} and {longitude.shape}"
        )
    if not (np.isfinite(latitude).all() and np.isfinite(longitude).all() and (np.abs(latitude) <= 90 + 1e-6).all()):
        raise ValueError("`latitude` must be in -90..90 and `longitude` finite; leave out points without coordinates")
    phi, theta = np.radians(latitude), np.radians(longitude)
    return np.stack([np.cos(phi) * np.cos(theta), np.cos(phi) * np.sin(theta), np.sin(phi)], axis=1)


def edge_features(receivers: Floats, senders: Floats) -> Floats:
    """Return length and local difference of edges, shape (E, 4).

    The receiver's coordinates are those in which it lies at latitude and longitude zero: the components of
    ``s - r`` outwards, to the east and to the north.

    Parameters
    ----------
    receivers, senders : array, shape (E, 3)
        Ends of the edges on the unit sphere.

    Examples
    --------
    From the equator a quarter of the way round to the pole: as far down as up to the north.

    >>> edge_features(np.array([[1.0, 0.0, 0.0]]), np.array([[0.0, 0.0, 1.0]])).round(3)
    array([[ 1.414, -1.   ,  0.   ,  1.   ]])
    """
    x, y, z = receivers.T
    level = np.hypot(x, y)
    at_pole = level < 1e-12
    safe = np.where(at_pole, 1.0, level)
    east = np.stack([-y / safe, np.where(at_pole, 1.0, x / safe), np.zeros_like(x)], axis=1)
    north = np.cross(receivers, east)
    difference = senders - receivers
    local = [(difference * axis).sum(axis=1) for axis in (receivers, east, north)]
    return np.stack([np.linalg.norm(difference, axis=1), *local], axis=1)


def farthest_points(points: Floats, count: int) -> Ints:
    """Return `count` of the points, shape (count,), each as far as possible from those before it.

    The first is the one nearest to the mean. Every beginning of the list covers the points evenly, so that coarser
    levels are nested. It costs n `count` distances.

    Parameters
    ----------
    points : array, shape (n, d)
        In a space of d dimensions.
    count : int
        How many are chosen.

    References
    ----------
    Gonzalez, Clustering to minimize the maximum intercluster distance, doi:10.1016/0304-3975(85)90224-5.

    Examples
    --------
    >>> farthest_points(np.array([[0.0], [1.0], [2.0], [3.0], [4.0]]), 3)
    array([2, 0, 4])
    """
    chosen = np.empty(count, dtype=np.int64)
    chosen[0] = np.argmin(np.square(points - points.mean(axis=0)).sum(axis=1).round(_DIGITS))
    distance = np.full(len(points), np.inf)
    for k in range(1, count):
        np.minimum(distance, np.square(points - points[chosen[k - 1]]).sum(axis=1), out=distance)
        chosen[k] = np.argmax(distance.round(_DIGITS))
    return chosen


def nearest(points: Floats, to: Floats, k: int) -> Ints:
    """Return the nearest points of some places, nearest first, shape (q, k).

    Parameters
    ----------
    points : array, shape (n, d)
        Among which to choose.
    to : array, shape (q, d)
        The places.
    k : int
        Points per place.
    """
    from scipy.spatial import cKDTree

    found = cKDTree(points).query(to, k)[1]
    return np.asarray(found, dtype=np.int64).reshape(len(to), k)


@dataclass(frozen=True, eq=False)
class HiddenMesh:
    """Grid nodes, hidden mesh and the edges between and inside them.

    Parameters
    ----------
    grid, points : ndarray, shapes (n, 3) and (m, 3)
        Grid and mesh on the unit sphere; the first ``sizes[l]`` mesh nodes are level l.
    sizes : tuple of int
        Mesh nodes of every level, finest first.
    encode, process, decode : Link
        Grid to mesh, shape (m, n); inside the mesh, (m, m), edges of all levels; mesh to grid, (n, m).
    """

    grid: Floats
    points: Floats
    sizes: tuple[int, ...]
    encode: Link
    process: Link
    decode: Link

    @cached_property
    def static(self) -> Floats:
        """Sine of the latitude, cosine and sine of the longitude of the mesh nodes, shape (m, 3)."""
        level = np.maximum(np.hypot(self.points[:, 0], self.points[:, 1]), 1e-12)
        return np.stack([self.points[:, 2], self.points[:, 0] / level, self.points[:, 1] / level], axis=1)

    @cached_property
    def nearest_grid(self) -> Ints:
        """The nearest grid node of every mesh node, shape (m,)."""
        return nearest(self.grid, self.points, 1)[:, 0]

    def nearest_points(self, level: int = 0) -> Ints:
        """Return the nearest mesh node of a level for every grid node, shape (n,).

        Parameters
        ----------
        level : int
            0 is the finest.

        Raises
        ------
        ValueError
            The mesh has no such level.
        """
        if not 0 <= level < len(self.sizes):
            raise ValueError(f"`level` must be in 0..{len(self.sizes) - 1}, got {level}")
        return nearest(self.points[: self.sizes[level]], self.grid, 1)[:, 0]

    def labels(self, level: int = 0) -> Ints:
        """Return the nearest mesh node as `nearest_points` does, numbered 0, 1, ... without gaps, shape (n,).

        Parameters
        ----------
        level : int
            0 is the finest.
        """
        return np.unique(self.nearest_points(level), return_inverse=True)[1].astype(np.int64)

    def owners(self, part: Tensor | Ints) -> Ints:
        """Return the part of every mesh node, shape (m,): that of the nearest grid node.

        Parameters
        ----------
        part : array of int, shape (n,)
            The part of every grid node.
        """
        return np.asarray(part, dtype=np.int64)[self.nearest_grid]


def hidden_mesh(latitude: Floats, longitude: Floats, nodes: int = 0) -> HiddenMesh:
    """Return the icosphere for nodes all round the globe, and a mesh of some of the points for others.

    Parameters
    ----------
    latitude, longitude : ndarray, shape (n,)
        Degrees. All round the globe means latitudes over 120 degrees or more and no gap of 60 degrees in longitude.
    nodes : int
        Wanted number of mesh nodes, of icospheres the next smaller one (but 12 at least); 0: a quarter of n.
    """
    around = np.unique(np.mod(longitude, 360.0))
    gap = np.diff(around, append=around[0] + 360.0).max()
    if np.ptp(latitude) < _GLOBAL[0] or gap > _GLOBAL[1]:
        return regional_mesh(latitude, longitude, nodes)
    wanted = nodes or len(latitude) // _COARSENING
    return global_mesh(latitude, longitude, max(0, int(np.log2(max(wanted - 2, 10) / 10) / 2 + 1e-9)))


def regional_mesh(
    latitude: Floats,
    longitude: Floats,
    nodes: int = 0,
    *,
    levels: int = 3,
    links: int = 4,
    neighbours: int = 6,
    mean: bool = True,
) -> HiddenMesh:
    """Return a mesh of some of the points themselves, each level with a quarter of the nodes of the finer one.

    Every grid node sends to its `links` nearest mesh nodes and receives from the same. On every level a mesh node is
    connected with its `neighbours` nearest ones, both ways; the edges of all levels are united.

    Parameters
    ----------
    latitude, longitude : ndarray, shape (n,)
        Degrees; any longitudes, 359 is next to 1.
    nodes : int
        Mesh nodes m; 0: a quarter of the grid nodes.
    levels : int
        Upper bound of the number of levels; none has fewer than 3 nodes.
    links : int
        Mesh nodes that a grid node is linked with.
    neighbours : int
        Mesh nodes of its level that a mesh node is connected with.
    mean : bool
        Whether messages are averaged or summed.

    Raises
    ------
    ValueError
        Fewer than three distinct points, more mesh nodes than points, or counts below one.
    """
    grid = on_sphere(np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64))
    for name, given in (("levels", levels), ("links", links), ("neighbours", neighbours)):
        if given < 1:
            raise ValueError(f"`{name}` must be >= 1, got {given}")
    distinct = np.unique(grid.round(9), axis=0, return_index=True)[1]
    count = nodes or max(_LEAST, len(grid) // _COARSENING)
    if not _LEAST <= count <= len(distinct):
        raise ValueError(f"`nodes` must be in {_LEAST}..{len(distinct)} (distinct points), got {count}")
    points = grid[distinct][farthest_points(grid[distinct], count)]
    sizes = [count]
    while len(sizes) < levels and sizes[-1] // _COARSENING >= _LEAST:
        sizes.append(sizes[-1] // _COARSENING)
    pairs = np.concatenate([_neighbours(points[:size], neighbours) for size in sizes], axis=1)
    return _linked(grid, points, tuple(sizes), pairs, links, mean)


def global_mesh(
    latitude: Floats, longitude: Floats, resolution: int, *, links: int = 3, mean: bool = True
) -> HiddenMesh:
    """Return the multi-scale icosphere of a resolution as the hidden mesh of a global grid.

    Parameters
    ----------
    latitude, longitude : ndarray, shape (n,)
        Degrees.
    resolution : int
        The mesh has 10 4^r + 2 nodes.
    links : int
        Mesh nodes that a grid node is linked with.
    mean : bool
        Whether messages are averaged or summed.

    References
    ----------
    Lam et al., arXiv:2212.12794 (GraphCast): the multi-mesh, and three mesh nodes for every grid node.
    """
    grid = on_sphere(np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64))
    graph, phi, theta = icosphere(resolution)
    sizes = tuple(np.bincount(icosphere_levels(graph.nodes).numpy()).cumsum()[::-1].tolist())
    points = on_sphere(phi.numpy(), theta.numpy())
    return _linked(grid, points, sizes, graph.edge_index.numpy(), links, mean)


def _neighbours(points: Floats, k: int) -> Ints:
    """List the edges between every point and its k nearest, both ways, shape (2, E)."""
    k = min(k, len(points) - 1)
    near = nearest(points, points, k + 1)[:, 1:]
    one_way = np.stack([np.repeat(np.arange(len(points)), k), near.ravel()])
    return np.concatenate([one_way, one_way[::-1]], axis=1)


def _linked(grid: Floats, points: Floats, sizes: Sequence[int], pairs: Ints, links: int, mean: bool) -> HiddenMesh:
    """Link grid and mesh; `pairs` are the edges inside the mesh, repeated ones and loops allowed."""
    unique = np.unique(pairs[:, pairs[0] != pairs[1]], axis=1)
    k = min(links, len(points))
    near = nearest(points, grid, k)
    down = np.stack([np.repeat(np.arange(len(grid)), k), near.ravel()])
    return HiddenMesh(
        grid=grid,
        points=points,
        sizes=tuple(sizes),
        encode=Link.of(down[::-1], points, grid, mean=mean),
        process=Link.of(unique, points, points, mean=mean),
        decode=Link.of(down, grid, points, mean=mean),
    )
