"""Graphs that a network is evaluated on: shares of ranks, parts with the nodes around them, and aggregated graphs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mldd.graph import grow, partition
from mldd.problems.modules.graph_arguments import Arguments
from mldd.problems.modules.graph_loss import Piece
from mldd.problems.modules.graph_task import Task
from mldd.problems.nets import Ints, shares_of
from mldd.ranks import SERIAL, Communicator


@dataclass(frozen=True, eq=False)
class GraphPieces:
    """Makes the graphs that a network is evaluated on.

    Parameters
    ----------
    arguments : Arguments
        What the network is called with on the whole graph.
    task : Task
        Its labelled nodes or pairs.
    hops : callable
        Returns how many edges away a node may be that an output depends on.
    statistics : bool
        Whether all nodes of a rank count, for batch statistics, and not those alone that the loss depends on.
    seed : int
        Of the partition to ranks.
    comm : Communicator
        Ranks that share the nodes.
    """

    arguments: Arguments
    task: Task
    hops: Callable[[], int]
    statistics: bool = False
    seed: int = 0
    comm: Communicator = SERIAL

    @property
    def _device(self) -> torch.device:
        return self.arguments.edge_index.device

    @cached_property
    def everything(self) -> Piece:
        """The whole graph with all training items."""
        nodes = torch.arange(self.arguments.nodes, device=self._device)
        edges = torch.arange(self.arguments.edge_index.shape[1], device=self._device)
        items = self.task.fitted
        rows = self.task.items[..., items]
        return Piece(self.arguments.whole, rows, self.task.targets[items], 1.0, nodes, edges, len(nodes))

    def exact(self, items: Tensor, weight: float, own: Tensor | None = None, rings: int | None = None) -> Piece:
        """Return the graph that the outputs at some items depend on.

        Parameters
        ----------
        items : Tensor, shape (m,), int64
            Positions of the items.
        weight : float
            Of the mean over them.
        own : Tensor, shape (k,), int64, optional
            Nodes that count in batch statistics, whose states are all exact; by default those of the items.
        rings : int, optional
            Layers of nodes around them, where there are to be fewer than outputs depend on.
        """
        wanted = torch.unique(self.task.items[..., items])
        first = wanted if own is None else own
        owned = len(first)
        if own is not None:
            there = torch.zeros(self.arguments.nodes, dtype=torch.bool, device=wanted.device)
            there[own] = True
            first = torch.cat([own, wanted[~there[wanted]]])
        far = self.hops() if rings is None else min(rings, self.hops())
        nodes = self.arguments.reached(first, far).to(self._device)
        values, edges = self.arguments.part(nodes)
        place = torch.full((self.arguments.nodes,), -1, dtype=torch.int64, device=self._device)
        place[nodes] = torch.arange(len(nodes), device=self._device)
        rows = place[self.task.items[..., items]]
        return Piece(values, rows, self.task.targets[items], weight, nodes, edges, owned)

    def own(self, inside: Tensor, rings: int | None = None) -> Piece:
        """Return the part of the graph that gives the mean loss over the items at some nodes.

        Parameters
        ----------
        inside : Tensor, shape (n,), bool
            The nodes; without a labelled one the loss is zero.
        rings : int, optional
            Layers of nodes around them, where there are to be fewer than outputs depend on.
        """
        chosen = self._fitted(inside)
        return self.exact(chosen, 1.0 if len(chosen) else 0.0, inside.nonzero().flatten().to(self._device), rings)

    def _fitted(self, inside: Tensor) -> Tensor:
        items = self.task.fitted
        return items[inside.to(items.device)[self._first(items)]]

    def shares(self, part: Tensor, parts: int, overlap: int) -> Tensor:
        """Return the share of every part in all training items, shape (parts,), float64.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            The part of every node.
        parts : int
            Number of parts.
        overlap : int
            Layers of nodes that are added to every part.
        """
        return shares_of([self._fitted(grow(self.arguments.graph, part == k, overlap)) for k in range(parts)])

    def _first(self, items: Tensor) -> Tensor:
        """Return the node of every item, of a pair the first."""
        at = self.task.items[..., items]
        return at if at.dim() == 1 else at[0]

    def aggregated(self, labels: Ints) -> Piece:
        """Return the graph of clusters; an item counts where its node has gone.

        Parameters
        ----------
        labels : ndarray, shape (n,), int64
            Cluster of every node.
        """
        items = self.task.fitted
        of_node = torch.from_numpy(np.ascontiguousarray(labels)).to(self._device)
        none = torch.zeros(0, dtype=torch.int64)
        rows = of_node[self.task.items[..., items]]
        return Piece(self.arguments.aggregated(labels), rows, self.task.targets[items], 1.0, none, none, 0)

    @cached_property
    def rank_of(self) -> Tensor:
        """The rank that owns every node, shape (n,)."""
        return partition(self.arguments.graph, self.comm.ranks, seed=self.seed).to(self._device)

    def share(self, items: Tensor) -> Piece:
        """Return what this rank evaluates for the mean loss over some items.

        Parameters
        ----------
        items : Tensor, shape (m,), int64
            Positions of the items, the same on all ranks.
        """
        if self.comm.ranks == 1:
            if len(items) == len(self.task.fitted):
                return self.everything
            return self.exact(items, 1.0, self.everything.nodes if self.statistics else None)
        mine = self.mine(items)
        own = (self.rank_of == self.comm.rank).nonzero().flatten() if self.statistics else None
        return self.exact(mine, len(mine) / len(items), own)

    def mine(self, items: Tensor) -> Tensor:
        """Return those of some items that this rank evaluates.

        Parameters
        ----------
        items : Tensor, shape (m,), int64
            Positions of the items, the same on all ranks.
        """
        return items[self.rank_of[self._first(items)] == self.comm.rank]

    def work(self, piece: Piece) -> float:
        """Return the cost of a piece over that of the whole graph, in proportion to nodes and edges.

        Parameters
        ----------
        piece : Piece
            What is evaluated.
        """
        return piece.work / (self.arguments.nodes + self.arguments.edge_index.shape[1])
