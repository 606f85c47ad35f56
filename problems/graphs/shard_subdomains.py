"""Subdomains of a graph in shards, the same on any number of ranks: shards, pieces of them, or unions of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.graph import partition
from mldd.problems.data import Shard
from mldd.problems.graphs.shard_graph import ShardGraph
from mldd.problems.nets import Piece, Source

Ints = NDArray[np.int64]


def subdomains(shard: Shard, parts: int, ranks: int, seed: int) -> Ints:
    """Return the subdomain of every own node, numbered over all ranks, shape (m,), int64.

    Every shard is cut into as many pieces, or consecutive shards are joined; either way a rank holds all of its
    subdomains.

    Parameters
    ----------
    shard : Shard
        What this rank holds.
    parts : int
        Number of subdomains of all ranks.
    ranks : int
        Number of ranks.
    seed : int
        Of cutting.

    Raises
    ------
    ValueError
        Neither a multiple of the number of shards nor a divisor of it that the ranks can share, or more pieces than a
        shard has nodes.
    """
    part, sizes, shards = shard.part, shard.whole.sizes, shard.whole.parts
    if parts < 1:
        raise ValueError(f"`parts` must be >= 1, got {parts}")
    if shards % parts == 0 and (parts == shards or parts % ranks == 0):
        return np.asarray(part // (shards // parts))
    if parts % shards:
        raise ValueError(
            f"`parts` must be a multiple of the {shards} shards, or a divisor of {shards} and a multiple of the "
            f"{ranks} ranks, got {parts}; parts={shards} always fits"
        )
    each, least = parts // shards, int(sizes.min())
    if each > least:
        raise ValueError(f"`parts` must be <= {least * shards} for {least} nodes in a shard, got {parts}")
    of = np.empty(len(part), dtype=np.int64)
    for k in range(int(part[0]), int(part[-1]) + 1):
        members = np.flatnonzero(part == k)
        inside = shard.inside.subgraph(torch.from_numpy(members))
        of[members] = k * each + partition(inside, each, seed=seed).numpy()
    return of


def own_piece(graph: ShardGraph, nodes: Ints, labelled: NDArray[Any], layers: int) -> Piece:
    """Return the graph of the nodes of a subdomain, with the mean loss over its labelled nodes as targets.

    Only a propagation of the features that is done beforehand sees other nodes.

    Parameters
    ----------
    graph : ShardGraph
        The own nodes of this rank.
    nodes : ndarray, shape (k,), int64
        Those of the subdomain.
    labelled : ndarray, shape (k,), bool
        Which of them are in the loss.
    layers : int
        Of the network.
    """
    data, outputs = graph.shard.data, np.flatnonzero(labelled)
    targets = np.eye(graph.shard.whole.classes)[data.labels[nodes]] * labelled[:, None]
    source = Source(
        graph.kind,
        operator=graph.operator[nodes][:, nodes],
        features=data.features[nodes],
        terms=tuple(term[nodes] for term in graph.terms),
        targets=targets / max(len(outputs), 1),
        attributes=tuple(e[nodes][:, nodes] for e in graph.attributes),
    )
    return source.piece(outputs, layers, propagated=graph.layer.beforehand)
