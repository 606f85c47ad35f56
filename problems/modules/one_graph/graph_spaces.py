"""Subdomains and coarse levels of a network on a graph: its losses on parts of the graph and on aggregated graphs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from torch import Tensor

from mldd.algebra import (
    FlatModule,
    Hierarchy,
    Identity,
    Level,
    Objective,
    Price,
    SharedDecomposition,
    corrected_models,
)
from mldd.graph import Graph, aggregate, grow, partition
from mldd.problems.modules.one_graph.graph_loss import FastPath, GraphLoss, GraphPiece
from mldd.problems.modules.one_graph.graph_options import Division
from mldd.problems.modules.one_graph.graph_pieces import GraphPieces
from mldd.problems.nets import composite_labels
from mldd.ranks import Communicator

_SHARE = 0.037  # of the nodes: clusters of the first coarse graph


@dataclass(eq=False)
class GraphSpaces:
    """Makes the losses of subdomains and coarse levels, all without dropout.

    Parameters
    ----------
    model : FlatModule
        The network.
    pieces : GraphPieces
        Makes the graphs that it is evaluated on.
    fast : FastPath or None
        What evaluates it in the place of its own calls.
    division : Division
        What local models are, and how many clusters a coarse graph has.
    blocks : sequence of slice
        The layers of the network, as slices of its parameters.
    seed : int
        Of partitions and clusters.
    """

    model: FlatModule
    pieces: GraphPieces
    fast: FastPath | None
    division: Division
    blocks: Sequence[slice]
    seed: int = 0

    def __post_init__(self) -> None:
        """No subdomains have been made so far."""
        self.one_by_one = 0  # subdomains of this rank that are evaluated one after the other

    @property
    def _graph(self) -> Graph:
        return self.pieces.arguments.graph

    @property
    def _clusters(self) -> int:
        """Nodes of the first coarse graph."""
        n = self._graph.nodes
        return min(n, self.division.clusters or max(4, round(_SHARE * n)))

    def hierarchy(self, objective: Objective, levels: int) -> Hierarchy:
        """Return the loss and those of the same network on coarser graphs, a quarter of the nodes each.

        Parameters
        ----------
        objective : Objective
            The loss on the graph itself.
        levels : int
            Number of levels, the finest one included.

        Raises
        ------
        ValueError
            No level, or more than the graph has nodes for.
        """
        sizes = [self._clusters // 4**k for k in range(max(levels - 1, 0))]
        if levels < 1 or (sizes and sizes[-1] < 2):
            most = 1 + sum(self._clusters // 4**k >= 2 for k in range(64))
            raise ValueError(f"`levels` must be in 1..{most} for {self._graph.nodes} nodes, got {levels}")
        coarse = [self.coarse(size) for size in sizes]
        below = [Level(f, Identity(self.model.size), f.price.gradient) for f in coarse]
        return Hierarchy((Level(objective), *below))

    def coarse(self, clusters: int) -> GraphLoss:
        """Return the loss on the aggregated graph.

        Parameters
        ----------
        clusters : int
            How many nodes it has.

        Raises
        ------
        ValueError
            The network cannot be called with another graph.
        """
        made = self._loss([self.pieces.aggregated(aggregate(self._graph, clusters, seed=self.seed).numpy())])
        made.value(self.model.flat)  # a network for this very graph is refused here
        return made

    def _loss(self, pieces: Sequence[GraphPiece], batched: bool = False) -> GraphLoss:
        made, price = self.pieces, Price(sum(map(self.pieces.work, pieces)), fine=False)
        return GraphLoss(self.model, made.arguments, made.task, tuple(pieces), price, batched=batched, fast=self.fast)

    def parts(self, parts: int) -> Tensor:
        """Return the part of every node, shape (n,): METIS.

        Parameters
        ----------
        parts : int
            Number of parts.
        """
        return partition(self._graph, parts, seed=self.seed)

    def decomposition(self, parts: int, overlap: int, comm: Communicator) -> SharedDecomposition:
        """Return the decomposition into parts of the graph; local models are first-order corrected.

        Parameters
        ----------
        parts : int
            Number of parts.
        overlap : int
            Layers of nodes that are added to every part.
        comm : Communicator
            The ranks that share the parts.

        Raises
        ------
        ValueError
            More parts than nodes, fewer than ranks, a negative overlap, or a network that cannot be cut.
        """
        for name, least, given in (("parts", comm.ranks, parts), ("overlap", 0, overlap)):
            if given < least:
                raise ValueError(f"`{name}` must be >= {least}, got {given}")
        part, mine = self.parts(parts), comm.share(parts)

        @cache
        def losses(chosen: range) -> GraphLoss:
            return self.local_losses(part, chosen, overlap)

        @cache
        def shares() -> Tensor:
            return self.pieces.shares(part, parts, 0 if self.division.local == "restricted" else overlap)

        build: Any = corrected_models(lambda decomposition, f: losses(decomposition.local))
        losses(mine)  # here, where bad parts are refused, and outside of any clock
        made = SharedDecomposition(self.model.size, parts, build, None, mine, device=self.model.flat.device)
        is_composite = self.division.local == "composite"
        return replace(made, blocks=self.blocks, shares=None if is_composite else lambda f: shares())

    def local_losses(self, part: Tensor, chosen: Sequence[int], overlap: int = 0) -> GraphLoss:
        """Return the local losses of some parts as a batch of (p, N), without correction.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            The part of every node.
        chosen : sequence of int
            Which parts.
        overlap : int
            Layers of nodes that are added to every part.
        """
        layers, rings = (0, overlap) if self.division.local == "restricted" else (overlap, None)
        own = [grow(self._graph, part == k, layers) for k in chosen]
        if self.fast is None:
            self.one_by_one = len(own)
        is_composite = self.division.local == "composite"
        pieces = self._composites(part, own) if is_composite else [self.pieces.own(nodes, rings) for nodes in own]
        return self._loss(pieces, batched=True)

    def _composites(self, part: Tensor, own: Sequence[Tensor]) -> list[GraphPiece]:
        within = max(self._clusters, int(part.max()) + 1)
        clusters = aggregate(self._graph, within, seed=self.seed, within=part).numpy()
        return [self.pieces.aggregated(composite_labels(nodes.numpy(), clusters)) for nodes in own]
