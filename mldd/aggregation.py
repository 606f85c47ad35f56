"""Clusters of neighbouring nodes: what coarse graphs are made of."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph, kind_of
from mldd.partition import partition

Ints = NDArray[np.int64]


def aggregate(graph: Graph, clusters: int, *, seed: int = 0, within: Tensor | None = None) -> Tensor:
    """Group the nodes into about `clusters` clusters of neighbours (METIS).

    Parameters
    ----------
    clusters : int
        Number of clusters wanted, 1..n.
    seed : int
        As in `partition`.
    within : LongTensor, shape (n,), optional
        A part per node; clusters do not cross parts. Every part gets its share by size and at least one cluster, so the
        total is exact unless there are more parts than clusters.

    Returns
    -------
    LongTensor, shape (n,)
        Labels 0..k-1, each of which occurs; the clusters of one part are consecutive.
    """
    if not 1 <= clusters <= graph.nodes:
        raise ValueError(f"`clusters` must be in 1..{graph.nodes} (nodes of the graph), got {clusters}")
    if within is None:
        return partition(graph, clusters, seed=seed)
    if within.dtype != torch.int64 or within.shape != (graph.nodes,):
        raise ValueError(f"`within` must be int64 of shape ({graph.nodes},), got {kind_of(within)}")
    _, part, sizes = np.unique(within.cpu().numpy(), return_inverse=True, return_counts=True)
    shares = _shares(sizes, clusters)
    members = np.split(np.argsort(part, kind="stable"), np.cumsum(sizes)[:-1])
    labels = torch.empty(graph.nodes, dtype=torch.int64)
    start = 0
    for index, share in zip(members, shares.tolist(), strict=True):
        nodes = torch.from_numpy(index)
        labels[nodes] = start + partition(graph.subgraph(nodes), share, seed=seed)
        start += share
    return labels


def _shares(sizes: Ints, clusters: int) -> Ints:
    """Share `clusters` out in proportion to the sizes: every share at least 1, the rest by largest remainder."""
    spare = max(clusters - sizes.size, 0)
    quota = spare * (sizes - 1) / max(int((sizes - 1).sum()), 1)
    shares = np.floor(quota).astype(np.int64)
    rest = spare - int(shares.sum())
    shares[np.argsort(shares - quota, kind="stable")[:rest]] += 1
    return 1 + shares
