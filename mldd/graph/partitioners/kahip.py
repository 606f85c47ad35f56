"""KaHIP, for few edges."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mldd.graph import Cut, integers, whole_loads
from mldd.graph.partitioners.wheel import wheel

Ints = NDArray[np.int64]


def kahip(cut: Cut) -> Ints:
    """Cut few and weak edges by KaHIP's kaffpa, preset eco; its social variant for graphs with hubs.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)

    References
    ----------
    Sanders and Schulz, doi:10.1007/978-3-642-38527-8_16.
    """
    module = wheel("kahip")
    graph = cut.graph
    degree = graph.degree.numpy()
    load, epsilon = whole_loads(cut)
    weights = np.ones(graph.edges) if graph.weights is None else graph.weights.numpy()
    preset = module.ECOSOCIAL if degree.max() > 10 * degree.mean() else module.ECO
    arrays = (load, graph.indptr.numpy(), integers(weights, least=1), graph.indices.numpy())
    narrow = (array.astype(np.int32) for array in arrays)
    _, labels = module.kaffpa(*narrow, cut.parts, epsilon, True, cut.seed, preset)
    return np.asarray(labels, dtype=np.int64)
