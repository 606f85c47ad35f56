"""Deep halos or halos of one layer that are exchanged: which of them are exact for a network, and which is cheaper."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mldd.algebra import FlatModule
from mldd.problems.modules.one_graph.graph_loss import GraphPiece
from mldd.problems.modules.one_graph.graph_pieces import GraphPieces
from mldd.problems.modules.one_graph.locality import NotLocalError, close
from mldd.problems.nets import Fetching, OneLayer, Seen, one_layer

HALOS = ("auto", "deep", "exchange")
# Costs of an exchange and its adjoint, in nodes or edges that a layer and its derivative are evaluated at (measured).
_ROW = 0.5  # of a row sent or received
_CALL = 400.0  # of whatever size


@dataclass(frozen=True, eq=False)
class Shares:
    """What every rank evaluates of a graph.

    Parameters
    ----------
    model : FlatModule
        The network.
    at : Tensor, shape (N,)
        Parameters that are tried, none of which is zero.
    pieces : GraphPieces
        Makes the graphs.
    halo : {"auto", "deep", "exchange"}
        Evaluate every node that the own outputs depend on, or fetch the states of neighbours behind every propagation,
        which is for layers that are torch_geometric's ``MessagePassing``; or what costs less.
    reason : str
        Why halos are deep where `halo` says so, in words.
    """

    model: FlatModule
    at: Tensor
    pieces: GraphPieces
    halo: Literal["auto", "deep", "exchange"] = "auto"
    reason: str = "as asked for"

    def piece(self, items: Tensor) -> GraphPiece:
        """Return what this rank evaluates for the mean loss over some items.

        Parameters
        ----------
        items : Tensor, shape (m,), int64
            Positions of the items, the same on all ranks.
        """
        fetching = self.fetching
        if fetching is None:
            return self.pieces.share(items)
        mine = self.pieces.mine(items)
        task = self.pieces.task
        rows, targets = self._rows(fetching.layer)[task.items[..., mine]], task.targets[mine]
        return replace(self._whole, rows=rows, targets=targets, weight=len(mine) / len(items))

    @cached_property
    def _whole(self) -> GraphPiece:
        """The nodes of this rank and one layer of others, without items."""
        fetching = self.fetching
        assert fetching is not None
        layer = fetching.layer
        values = self.pieces.arguments.taken(layer.nodes, layer.edges, layer.ends)
        none = layer.nodes[:0]
        return GraphPiece(values, none, none, 0.0, layer.nodes, layer.edges, layer.own, fetching)

    def _rows(self, layer: OneLayer) -> Tensor:
        """Return the row of every node that the rank has, shape (n,)."""
        rows = torch.full_like(self.pieces.rank_of, -1)
        rows[layer.nodes] = torch.arange(len(layer.nodes), device=rows.device)
        return rows

    # -------------------------------------------------------------------------------- what is chosen

    @property
    def fetching(self) -> Fetching | None:
        """What fetches states of neighbours; None for deep halos."""
        return self._chosen[0]

    @property
    def told(self) -> str:
        """What was chosen and why, in words."""
        return self._chosen[1]

    @cached_property
    def _chosen(self) -> tuple[Fetching | None, str]:
        if self.halo == "deep":
            return None, f"deep, {self.reason}"
        found, why = self._exact()
        if found is None:
            return None, f"deep, as an exchange behind every propagation is not exact: {why}"
        deep, shallow = self._costs(found)
        rows = f"{found.layer.halo.size} rows fetched behind {found.exchanges} of {len(found.shapes)} propagations"
        costs = f"exchanges cost {shallow:.4g} rows of nodes and edges per sweep of the busiest rank, deep {deep:.4g}"
        if self.halo == "auto" and deep <= shallow:
            return None, f"deep: {costs}"
        return found, f"exchanged, {rows}: {costs}"

    def _costs(self, found: Fetching) -> tuple[float, float]:
        """Return the costs of a sweep of the busiest rank with deep halos, infinite if none is exact, and exchanges."""
        layers, halo = len(found.shapes), found.layer.halo
        try:
            deep = layers * self.pieces.share(self.pieces.task.fitted).work
        except NotLocalError:  # it reads degrees of nodes that others send to, say, which an exchange keeps
            deep = math.inf
        fetched = found.exchanges * (_ROW * (halo.size + len(halo.index)) + _CALL)
        every = self.pieces.comm.gather_items((deep, layers * found.layer.work + fetched))
        return max(a for a, _ in every), max(b for _, b in every)

    # -------------------------------------------------------------------------------- whether it is exact

    @cached_property
    def _owner(self) -> Tensor:
        """The rank that evaluates each node, -1 for those that the loss does not depend on."""
        pieces = self.pieces
        if pieces.statistics:
            return pieces.rank_of
        items = torch.unique(pieces.task.items[..., pieces.task.fitted])
        reached = pieces.arguments.reached(items, pieces.hops()).to(items.device)
        owner = torch.full_like(pieces.rank_of, -1)
        owner[reached] = pieces.rank_of[reached]
        return owner

    @cached_property
    def _wanted(self) -> Tensor:
        """Nodes whose outputs this rank needs."""
        pieces = self.pieces
        wanted = pieces.task.items[..., pieces.mine(pieces.task.fitted)].flatten()
        if pieces.statistics:
            wanted = torch.cat([wanted, (pieces.rank_of == pieces.comm.rank).nonzero().flatten()])
        unique: Tensor = torch.unique(wanted)
        return unique

    def _exact(self) -> tuple[Fetching | None, str]:
        """Return what fetches just enough for exact outputs, or why nothing does."""
        why = ""
        edges, comm = self.pieces.arguments.edge_index, self.pieces.comm
        for degrees, trims in ((False, False), (True, True), (True, False)):
            layer = replace(one_layer(edges, self._owner, self._wanted, comm, degrees), trims=trims)
            seen = self._seen(layer)
            if isinstance(seen, str):
                why = seen
                continue
            every = Fetching(layer, tuple(seen.shapes), (True,) * len(seen.shapes))
            if not self._agrees(every):
                why = "outputs were others than on the whole graph"
                continue
            needed = [not self._agrees(every, k) for k in range(len(seen.shapes))]
            found = replace(every, needed=tuple(needed))
            return (found, "") if self._agrees(found) else (every, "")
        return None, why

    @contextmanager
    def _trying(self) -> Iterator[None]:
        modes = dict.fromkeys(self.model.module.modules(), False)
        with self.model.at(self.at, modes=modes):
            yield

    def _seen(self, layer: OneLayer) -> Seen | str:
        """Return the propagations of a call, or what is wrong with them; the same on all ranks."""
        seen, arguments = Seen(), self.pieces.arguments
        values, failed = arguments.taken(layer.nodes, layer.edges, layer.ends), ""
        with self._trying(), torch.no_grad(), seen.of(self.model.module, layer):
            try:
                arguments.call(self.model.module, values)
            except (RuntimeError, IndexError, ValueError) as error:  # tensors of its own with a row per node
                failed = f"the network cannot be called on a part of the graph ({error})".splitlines()[0]
        if not failed and not seen.shapes:
            failed = "no layer is a MessagePassing of torch_geometric"
        if not failed and any(rows != len(layer.nodes) for rows in seen.rows):
            failed = "a layer propagates to other rows than the nodes"
        every = self.pieces.comm.gather_items((failed, seen.widths))
        failures = [text for text, _ in every if text]
        if not failures and any(widths != seen.widths for _, widths in every):
            failures = ["ranks propagate differently"]
        return failures[0] if failures else seen

    @cached_property
    def _expected(self) -> Tensor:
        """Outputs at the wanted nodes, of a call on the whole graph."""
        arguments = self.pieces.arguments
        with self._trying(), torch.no_grad():
            return arguments.call(self.model.module, arguments.whole)[self._wanted]

    def _agrees(self, fetching: Fetching, spoilt: int = -1) -> bool:
        """Return whether outputs are those of the whole graph on all ranks, and without NaN the gradient is finite."""
        net, layer, expected = self.model.module, fetching.layer, self._expected
        values, good = self.pieces.arguments.taken(layer.nodes, layer.edges, layer.ends), True
        with self._trying(), fetching.behind(net, spoilt), torch.set_grad_enabled(spoilt < 0):
            made = self.pieces.arguments.call(net, values)[self._rows(layer)[self._wanted]]
            if spoilt < 0:
                leaves = [p for p in net.parameters() if p.requires_grad]
                slopes = torch.autograd.grad(made.sum(), leaves, allow_unused=True)
                good = all(g is None or bool(g.isfinite().all()) for g in slopes)
        good = good and (len(expected) == 0 or close(made.detach(), expected))
        return all(self.pieces.comm.gather_items(good))
