"""Hybrid partitions of graphs with hubs: the edges of a hub are spread over the parts of their other ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.graph.graph import Graph
from mldd.graph.partitioning import partition

_HUB = 10.0  # times the mean degree: nodes above it are hubs by default


@dataclass(frozen=True, eq=False)
class VertexCut:
    """Which part does the work of which edge, and which nodes it needs for that.

    Attributes
    ----------
    parts : int
        Number of parts.
    part : LongTensor, shape (n,)
        The part that owns each node: its features, its label, the sum over its edges.
    edge_part : LongTensor, shape (E,)
        The part that evaluates each directed entry of the adjacency.
    hubs : BoolTensor, shape (n,)
        The nodes whose edges are spread.
    replicas : LongTensor, shape (2, R)
        Pairs of part and node, sorted: every part has the nodes that it owns, and both ends of its edges.
    """

    parts: int
    part: Tensor
    edge_part: Tensor
    hubs: Tensor
    replicas: Tensor

    def report(self) -> dict[str, Any]:
        """Describe the cut.

        Returns
        -------
        dict
            `hubs` (their number), `replication_factor` (replicas per node), `balance` (replicas of the largest part
            over the average), `edge_balance` (the same for directed edges), `copies` (replicas that are not the
            owner's: rows that move in one layer, states to a part that reads them, partial sums from one that has some
            of a hub's edges).
        """
        nodes, held = len(self.part), torch.bincount(self.replicas[0], minlength=self.parts)
        work = torch.bincount(self.edge_part, minlength=self.parts)
        return {
            "hubs": int(self.hubs.sum()),
            "replication_factor": self.replicas.shape[1] / nodes,
            "balance": int(held.max()) * self.parts / max(int(held.sum()), 1),
            "edge_balance": int(work.max()) * self.parts / max(len(self.edge_part), 1),
            "copies": self.replicas.shape[1] - nodes,
        }


def vertex_cut(
    graph: Graph,
    parts: int,
    hubs: float | None = None,
    method: str = "metis",
    *,
    seed: int = 0,
    imbalance: float = 0.03,
) -> VertexCut:
    """Return a cut of a graph through its hubs: part(i) does the work of an edge (i, j), or part(j) if i is a hub.

    Entry (i, j) of the adjacency is what node i reads of node j. A node of low degree keeps all it reads in its own
    part, as under `partition`; a hub, whose neighbours are everywhere, has them summed up where they are, so that
    instead of the states of all its neighbours one partial sum per part moves. The underlying partition balances the
    nodes and the edges that end up in a part together.

    Parameters
    ----------
    graph : Graph
        The graph that is cut.
    parts : int
        Number of parts.
    hubs : float, optional
        Nodes of a larger degree are hubs; the default is 10 times the mean degree.
    method, seed, imbalance
        As in `mldd.graph.partitioning.partition`.

    Returns
    -------
    VertexCut

    Raises
    ------
    ValueError
        A negative degree, or what `partition` refuses.

    References
    ----------
    Chen, Shi, Chen and Chen, PowerLyra, doi:10.1145/2741948.2741970 (hybrid-cut).
    """
    if hubs is not None and not hubs >= 0:
        raise ValueError(f"`hubs` must be a degree >= 0, got {hubs}")
    degree = graph.degree
    hub = degree > (_HUB * float(degree.double().mean()) if hubs is None else hubs)
    row, col = graph.edge_index
    low = torch.where(hub[row], col, row)  # the end whose part does the work
    work = torch.bincount(low, minlength=graph.nodes).double()
    loads = torch.stack([torch.ones_like(work), work], dim=1) if graph.edges else None
    part = partition(graph, parts, method, seed=seed, node_weights=loads, imbalance=imbalance)
    edge_part = part[low]
    held = torch.cat([part * graph.nodes + torch.arange(graph.nodes), edge_part * graph.nodes + row])
    held = torch.unique(torch.cat([held, edge_part * graph.nodes + col]))
    return VertexCut(parts, part, edge_part, hub, torch.stack([held // graph.nodes, held % graph.nodes]))
