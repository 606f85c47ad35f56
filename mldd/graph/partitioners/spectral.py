"""Recursive bisection of eigenvectors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.graph import Cut
from mldd.graph.partitioners.bisection import beyond_median

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_DENSE = 200  # nodes up to which eigenvectors are taken from a dense matrix
_FIEDLER_STEPS, _FIEDLER_TOLERANCE = 300, 1e-4  # of LOBPCG; the tolerance is relative to the largest degree


def spectral(cut: Cut) -> Ints:
    """Bisect recursively at the weighted median of the Fiedler vector; whole components stay together where they can.

    Components are lined up by size, and only the one in which the median falls is cut.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)

    References
    ----------
    Pothen, Simon and Liou, doi:10.1137/0611030.
    """
    matrix, load = cut.graph.scipy(), cut.load
    label = np.zeros(len(load), dtype=np.int64)
    rng = np.random.default_rng(cut.seed)
    todo = [(np.arange(len(load)), 0, cut.parts)]
    while todo:  # one entry per bisection
        nodes, first, width = todo.pop()
        label[nodes] = first
        if width > 1:
            value = _fiedler_order(matrix[nodes][:, nodes], load[nodes], (width // 2) / width, rng)
            right = beyond_median(value, load[nodes], np.zeros(len(nodes), dtype=np.int64), np.array([width]))
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
