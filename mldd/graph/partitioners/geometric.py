"""Recursive bisection of points in space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut
from mldd.graph.partitioners.bisection import beyond_median

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def geometric(cut: Cut) -> Ints:
    """Bisect recursively across the longest principal axis of each part, at the weighted median.

    All parts of one level are cut together. On a sphere the axes are those of the points in space, so no meridian is a
    seam.

    Parameters
    ----------
    cut : Cut
        With coordinates.

    Returns
    -------
    array of int64, shape (n,)

    Raises
    ------
    ValueError
        There are no coordinates.

    References
    ----------
    Simon, doi:10.1016/0956-0521(91)90014-V (recursive coordinate bisection; here across the axis of largest variance).
    """
    points, load, nodes = cut.coordinates, cut.load, cut.graph.nodes
    if points is None:
        raise ValueError(f"method geometric needs `coordinates` of shape ({nodes}, 2) or ({nodes}, d), got none")
    label = np.zeros(nodes, dtype=np.int64)  # the first part of the run of parts that a node may come into
    group = np.zeros(nodes, dtype=np.int64)
    width = np.full(1, cut.parts)  # parts that each group is still to be cut into
    while width.max() > 1:
        along = np.einsum("nd,nd->n", points, _main_axes(points, load, group, len(width))[group])
        right = beyond_median(along, load, group, width)
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
