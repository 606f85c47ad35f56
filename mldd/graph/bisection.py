"""Recursive bisection at weighted medians, of points in space and of eigenvectors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_DENSE = 200  # nodes up to which eigenvectors are taken from a dense matrix
_FIEDLER_STEPS, _FIEDLER_TOLERANCE = 300, 1e-4  # of LOBPCG; the tolerance is relative to the largest degree


def geometric(points: Floats, load: Floats, parts: int) -> Ints:
    """Bisect recursively across the longest principal axis of each part, at the weighted median.

    All parts of one level are cut together. On a sphere the axes are those of the points in space, so no meridian is a
    seam.

    Parameters
    ----------
    points : array, shape (n, d)
    load : array, shape (n,)
        Weights of the points.
    parts : int
        At most n.

    Returns
    -------
    array, shape (n,), int64

    References
    ----------
    Simon, doi:10.1016/0956-0521(91)90014-V (recursive coordinate bisection; here across the axis of largest variance).
    """
    label = np.zeros(len(points), dtype=np.int64)  # the first part of the run of parts that a node may come into
    group = np.zeros(len(points), dtype=np.int64)
    width = np.full(1, parts)  # parts that each group is still to be cut into
    while width.max() > 1:
        along = np.einsum("nd,nd->n", points, _main_axes(points, load, group, len(width))[group])
        right = _beyond_median(along, load, group, width)
        label += right * (width // 2)[group]
        kept, group = np.unique(2 * group + right, return_inverse=True)
        half = np.where(width > 1, width // 2, 1)
        width = np.stack([half, width - half], axis=1).ravel()[kept]
    return label


def _main_axes(points: Floats, load: Floats, group: Ints, groups: int) -> Floats:
    """Return the direction of largest variance of each group, shape (groups, d)."""
    d = points.shape[1]

    def sums(values: Floats) -> Floats:
        return np.asarray(np.bincount(group, weights=values, minlength=groups), dtype=np.float64)

    mass = np.maximum(sums(load), np.finfo(float).tiny)
    centre = np.stack([sums(load * points[:, k]) / mass for k in range(d)], axis=1)
    apart = points - centre[group]
    covariance = np.empty((groups, d, d))
    for i in range(d):
        for j in range(d):
            covariance[:, i, j] = sums(load * apart[:, i] * apart[:, j])
    axis = np.linalg.eigh(covariance)[1][:, :, -1]
    largest = np.take_along_axis(axis, np.abs(axis).argmax(axis=1)[:, None], axis=1)
    return np.asarray(axis * np.sign(largest), dtype=np.float64)  # the sign of an eigenvector is arbitrary


def _beyond_median(value: Floats, load: Floats, group: Ints, width: Ints) -> NDArray[np.bool_]:
    """Say which nodes lie beyond the weighted median of their group; each side keeps a node for each of its parts."""
    order = np.lexsort((value, group))
    sizes = np.bincount(group, minlength=len(width))
    start = np.cumsum(sizes) - sizes
    total = np.bincount(group, weights=load, minlength=len(width))
    of = group[order]
    running = np.cumsum(load[order])
    middle = running - load[order] / 2 - (np.cumsum(total) - total)[of]  # weight up to the middle of the node
    place = np.arange(len(value)) - start[of]
    left = width // 2
    beyond = middle > (total * left / width)[of]
    beyond = (beyond | (place >= (sizes - (width - left))[of])) & (place >= left[of]) & (width > 1)[of]
    result = np.empty(len(value), dtype=bool)
    result[order] = beyond
    return result


def spectral(matrix: Any, load: Floats, parts: int, seed: int) -> Ints:
    """Bisect recursively at the weighted median of the Fiedler vector; whole components stay together where they can.

    Components are lined up by size, and only the one in which the median falls is cut.

    Parameters
    ----------
    matrix : sparse matrix, shape (n, n)
        Symmetric adjacency with positive weights.
    load : array, shape (n,)
        Weights of the nodes.
    parts : int
        At most n.
    seed : int
        Of the start of the eigensolver.

    Returns
    -------
    array, shape (n,), int64

    References
    ----------
    Pothen, Simon and Liou, doi:10.1137/0611030.
    """
    label = np.zeros(len(load), dtype=np.int64)
    rng = np.random.default_rng(seed)
    todo = [(np.arange(len(load)), 0, parts)]
    while todo:  # one entry per bisection
        nodes, first, width = todo.pop()
        label[nodes] = first
        if width > 1:
            value = _fiedler_order(matrix[nodes][:, nodes], load[nodes], (width // 2) / width, rng)
            right = _beyond_median(value, load[nodes], np.zeros(len(nodes), dtype=np.int64), np.array([width]))
            todo += [(nodes[right], first + width // 2, width - width // 2), (nodes[~right], first, width // 2)]
    return label


def _fiedler_order(matrix: Any, load: Floats, share: float, rng: np.random.Generator) -> Floats:
    """Return values that line the nodes up: by component, the one at `share` of the weight by its Fiedler vector."""
    count, component = sp.csgraph.connected_components(matrix, directed=False)
    weight = np.bincount(component, weights=load, minlength=count)
    order = np.argsort(-weight, kind="stable")
    reached = np.cumsum(weight[order])
    middle = int(order[min(int(np.searchsorted(reached, share * reached[-1])), count - 1)])
    place = np.empty(count)
    place[order] = 2.0 * np.arange(count)
    value = place[component]
    nodes = np.flatnonzero(component == middle)
    if len(nodes) > 2:
        vector = _fiedler(matrix[nodes][:, nodes], rng)
        value[nodes] += vector / max(float(np.abs(vector).max()), np.finfo(float).tiny) / 2  # within -0.5 .. 0.5
    return np.asarray(value, dtype=np.float64)


def _fiedler(matrix: Any, rng: np.random.Generator) -> Floats:
    """Return the eigenvector of the second smallest eigenvalue of the Laplacian of a connected graph."""
    n = matrix.shape[0]
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    laplacian = sp.diags(degree) - matrix
    if n <= _DENSE:
        return np.asarray(np.linalg.eigh(laplacian.toarray())[1][:, 1], dtype=np.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a rough vector will do: only its order is used
        values, vectors = sp.linalg.lobpcg(
            laplacian.tocsr(),
            rng.standard_normal((n, 4)),
            M=sp.diags(1 / degree),
            Y=np.ones((n, 1)),
            tol=_FIEDLER_TOLERANCE * float(degree.max()),
            maxiter=_FIEDLER_STEPS,
            largest=False,
        )
    return np.asarray(vectors[:, int(np.argmin(values))], dtype=np.float64)
