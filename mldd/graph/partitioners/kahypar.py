"""Mt-KaHyPar, for few edges or for few halo rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.graph import Cut, integers, neighbourhoods, whole_loads
from mldd.graph.partitioners.wheel import wheel

Ints = NDArray[np.int64]


def kahypar(cut: Cut) -> Ints:
    """Cut few and weak edges by Mt-KaHyPar.

    The deterministic quality preset: the others differ from run to run, with one thread too. That preset ignores seeds,
    so every seed but 0 shuffles the nodes.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)

    References
    ----------
    Gottesbueren, Heuer, Maas, Sanders and Schlag, doi:10.1145/3626527.
    """
    row, col = cut.graph.edge_index.numpy()
    new = _shuffle(cut)
    upper = row < col
    ends = np.stack([new[row[upper]], new[col[upper]]], axis=1)
    weights = np.ones(len(ends)) if cut.graph.weights is None else cut.graph.weights.numpy()[upper]
    edges = [tuple(pair) for pair in ends.tolist()]
    return _mt_kahypar(cut, "CUT", "create_graph", new, edges, integers(weights, least=1).tolist())


def kahypar_km1(cut: Cut) -> Ints:
    """Lower the halo rows by Mt-KaHyPar: the connectivity of the hypergraph of neighbourhoods.

    The net of a node is the node and its neighbours; one that touches l parts costs l - 1 rows of halo. Weights of
    edges play no role.

    Parameters
    ----------
    cut : Cut
        What is to be cut, into how many parts.

    Returns
    -------
    array of int64, shape (n,)

    References
    ----------
    Demirci, Haldar and Ferhatosmanoglu, arXiv:2212.05009 (the model for graph networks).
    """
    nets = neighbourhoods(cut.graph)
    new = _shuffle(cut)
    pins = [net.tolist() for net in np.split(new[nets.indices], nets.indptr[1:-1])]
    return _mt_kahypar(cut, "KM1", "create_hypergraph", new, pins, [1] * cut.graph.nodes)


def _shuffle(cut: Cut) -> Ints:
    nodes = cut.graph.nodes
    return np.random.default_rng(cut.seed).permutation(nodes) if cut.seed else np.arange(nodes)


def _mt_kahypar(cut: Cut, objective: str, create: str, new: Ints, edges: list[Any], weights: list[int]) -> Ints:
    """Call Mt-KaHyPar on edges or nets whose ends are renumbered: node v is number new[v] there."""
    module = wheel("mtkahypar")
    load, epsilon = whole_loads(cut)
    start = module.initialize(torch.get_num_threads(), False)
    context = start.context_from_preset(module.PresetType.DETERMINISTIC_QUALITY)
    context.set_partitioning_parameters(cut.parts, epsilon, getattr(module.Objective, objective))
    context.logging = False
    module.set_seed(cut.seed)
    renumbered = np.empty_like(load)
    renumbered[new] = load
    graph = getattr(start, create)(context, cut.graph.nodes, len(edges), edges, renumbered.tolist(), weights)
    return np.asarray(graph.partition(context).get_partition(), dtype=np.int64)[new]
