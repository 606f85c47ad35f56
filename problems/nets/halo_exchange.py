"""A rank's share of a graph with one layer of nodes around it, whose states are fetched behind every propagation."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mldd.ranks import Communicator, Halo, linear


@dataclass(frozen=True, eq=False)
class OneLayer:
    """What a rank holds of a graph: its own nodes, those that send to them, and perhaps one that stands for the rest.

    A network is called on all of these rows. What a propagation of torch_geometric returns is right at the own nodes,
    which have all their edges; the rows of the others are fetched from their owners at once, so that all that a network
    does with rows before the next propagation is right at every row: computing queries, keys and values, scores of
    edges, dropout, normalisation.

    Parameters
    ----------
    nodes : Tensor, shape (m,), int64
        Global numbers: own nodes, halo, and one node outside where edges of the halo are kept.
    edges : Tensor, shape (e,), int64
        Global numbers of the edges.
    ends : Tensor, shape (2, e), int64
        Their ends, as rows.
    halo : Halo
        Whom the rows behind the own ones belong to.
    trims : bool
        Whether only edges to own nodes send messages: others are there for degrees, or not at all.
    """

    nodes: Tensor
    edges: Tensor
    ends: Tensor
    halo: Halo
    trims: bool = False

    @property
    def own(self) -> int:
        """Number of own nodes, the first ones."""
        return self.halo.own

    @property
    def work(self) -> int:
        """Rows of nodes and edges that a layer is evaluated at."""
        return len(self.nodes) + (int((self.ends[1] < self.own).sum()) if self.trims else len(self.edges))

    def trimmed(self, module: Any, inputs: tuple[Any, ...]) -> Any:
        """Return what a layer propagates, without the edges to others than own nodes.

        Parameters
        ----------
        module : MessagePassing
            The layer.
        inputs : tuple
            Edges, sizes, and a dict of what has a row per node or edge.
        """
        edges, size, given = inputs
        if type(edges) is not Tensor or edges.shape[1] == len(self.nodes):  # nodes cannot be told from edges
            return None
        count = edges.shape[1]
        kept = (edges[1 if module.flow == "source_to_target" else 0] < self.own).nonzero().flatten()
        of_edges = {k: v[kept] for k, v in given.items() if isinstance(v, Tensor) and v.dim() and len(v) == count}
        return edges[:, kept], size, given | of_edges


def one_layer(edge_index: Tensor, owner: Tensor, wanted: Tensor, comm: Communicator, degrees: bool) -> OneLayer:
    """Return the nodes of this rank with those that send to them; called by all ranks.

    Parameters
    ----------
    edge_index : Tensor, shape (2, E), int64
        Ends of all edges: messages go from the first to the second.
    owner : Tensor, shape (n,), int64
        Rank that evaluates each node, -1 for nodes that nothing wanted depends on.
    wanted : Tensor, shape (k,), int64
        Nodes whose outputs this rank needs, whoever owns them.
    comm : Communicator
        The ranks.
    degrees : bool
        Whether every edge at the own nodes and the halo is kept, so that these have their degrees: other ends are
        joined in one node. Without, the edges to own nodes are kept alone.
    """
    device = owner.device
    source, target = edge_index
    inside = owner == comm.rank
    near = torch.zeros_like(inside)
    near[source[inside[target]]] = True
    near[wanted] = True
    near &= ~inside & (owner >= 0)
    halo = near.nonzero().flatten()
    halo = halo[torch.argsort(owner[halo], stable=True)]
    own = inside.nonzero().flatten()
    held = torch.cat([own, halo])
    outside = (~(inside | near)).nonzero().flatten()[:1] if degrees else held[:0]
    nodes = torch.cat([held, outside])
    place = torch.full((len(owner),), len(held) if degrees else -1, dtype=torch.int64, device=device)
    place[held] = torch.arange(len(held), device=device)
    ends = place[edge_index]
    kept = (ends < len(held)).any(0) if degrees else inside[target] & (ends[0] >= 0)
    kept = kept.nonzero().flatten()
    ranks, numbers = owner[halo].cpu(), _numbers(owner, comm.ranks)[halo].cpu()
    return OneLayer(nodes, kept, ends[:, kept], Halo(comm, len(own), ranks, numbers))


def _numbers(owner: Tensor, ranks: int) -> Tensor:
    """Return the number of every node among those of its owner."""
    numbers = torch.zeros_like(owner)
    for rank in range(ranks):
        its = owner == rank
        numbers[its] = torch.arange(int(its.sum()), device=owner.device)
    return numbers


@dataclass(frozen=True, eq=False)
class Fetching:
    """Fetches rows of the halo behind the propagations of a network.

    Parameters
    ----------
    layer : OneLayer
        What the network is called on.
    shapes : tuple of tuple of int
        Per propagation of a call the shape that it returns.
    needed : tuple of bool
        Per propagation whether the outputs that are wanted depend on rows of the halo.
    """

    layer: OneLayer
    shapes: tuple[tuple[int, ...], ...]
    needed: tuple[bool, ...]

    @property
    def exchanges(self) -> int:
        """Number of exchanges of a call, and as many for its derivative."""
        return sum(self.needed)

    @contextmanager
    def behind(self, net: nn.Module, spoilt: int = -1) -> Iterator[None]:
        """Yield nothing; rows are fetched while the network is called in the block, once.

        Parameters
        ----------
        net : nn.Module
            The network, of which the same propagations are expected in the same order.
        spoilt : int
            Number of a propagation whose rows of the halo are made NaN, to see what depends on them.

        Raises
        ------
        RuntimeError
            It propagates otherwise than it did when this was made.
        """
        hook = _Fetch(self, spoilt)
        with _hooked(net, hook, self.layer):
            yield
        if hook.calls != len(self.shapes):
            raise RuntimeError(
                f"{type(net).__name__} must propagate {len(self.shapes)} times per call as at the start, got "
                f"{hook.calls}; use halo=deep"
            )


class _Fetch:
    """Replaces the rows of the halo of what a propagation returns."""

    def __init__(self, fetching: Fetching, spoilt: int) -> None:
        self.fetching, self.spoilt, self.calls = fetching, spoilt, 0

    def __call__(self, module: Any, inputs: Any, out: Any) -> Any:
        shapes, number = self.fetching.shapes, self.calls
        self.calls += 1
        if number >= len(shapes) or tuple(out.shape) != shapes[number]:
            raise RuntimeError(
                f"propagation {number + 1} must return the shape it did at the start, got {tuple(out.shape)}; use "
                "halo=deep"
            )
        if number != self.spoilt and not self.fetching.needed[number]:
            return None
        halo, axis = self.fetching.layer.halo, rows_axis(module, out)
        rows = out.movedim(axis, 0)
        if number == self.spoilt:
            fetched = torch.full_like(rows[halo.own : halo.own + halo.size], torch.nan)
            return torch.cat([rows[: halo.own], fetched, rows[halo.own + halo.size :]]).movedim(0, axis)
        return fetched_into(halo, rows).movedim(0, axis)


def fetched_into(halo: Halo, rows: Tensor) -> Tensor:
    """Return own rows, the halo's as their owners have them, and what follows, differentiable any number of times.

    Parameters
    ----------
    halo : Halo
        With n own rows and h others.
    rows : Tensor, shape (m, ...)
        Own rows, rows of the halo that are replaced, and perhaps more.
    """
    n, end = halo.own, halo.own + halo.size

    def apply(rows: Tensor) -> Tensor:
        out = rows.clone(memory_format=torch.contiguous_format)
        out[n:end] = halo.end(halo.begin(out[:n]))
        return out

    def adjoint(g: Tensor) -> Tensor:
        out = g.clone(memory_format=torch.contiguous_format)
        pending = halo.begin_back(out[n:end])
        out[n:end] = 0.0
        halo.end_back(pending, out[:n])
        return out

    return linear(apply, adjoint, rows) if rows.requires_grad and torch.is_grad_enabled() else apply(rows)


@dataclass(frozen=True, eq=False)
class Seen:
    """What propagations return, looked at without fetching anything.

    Parameters
    ----------
    shapes : list of tuple of int
        Of what each returned.
    rows : list of int
        Numbers of nodes that each returned a row for; -1 where it returned no tensor.
    widths : list of tuple of int
        Of what each returned for a node.
    """

    shapes: list[tuple[int, ...]] = field(default_factory=list)
    rows: list[int] = field(default_factory=list)
    widths: list[tuple[int, ...]] = field(default_factory=list)

    @contextmanager
    def of(self, net: nn.Module, layer: OneLayer) -> Iterator[None]:
        """Yield nothing; propagations are looked at while the network is called in the block.

        Parameters
        ----------
        net : nn.Module
            The network.
        layer : OneLayer
            What it is called on.
        """
        with _hooked(net, self._look, layer):
            yield

    def _look(self, module: Any, inputs: Any, out: Any) -> None:
        is_tensor = isinstance(out, Tensor) and out.dim() > 0
        axis = rows_axis(module, out) % out.dim() if is_tensor else 0
        self.shapes.append(tuple(out.shape) if is_tensor else ())
        self.rows.append(out.shape[axis] if is_tensor else -1)
        self.widths.append(self.shapes[-1][:axis] + self.shapes[-1][axis + 1 :])


def rows_axis(module: Any, out: Tensor) -> int:
    """Return the axis of nodes of what a propagation returns.

    Parameters
    ----------
    module : MessagePassing
        Whose.
    out : Tensor
        What it returned.
    """
    axis = int(module.node_dim)
    return axis if axis >= 0 else max(axis, -out.dim())


@contextmanager
def _hooked(net: nn.Module, hook: Any, layer: OneLayer) -> Iterator[None]:
    """Call the hook behind every propagation of torch_geometric's message passing inside of the block."""
    passing: list[Any] = [m for m in net.modules() if hasattr(m, "register_propagate_forward_hook")]
    handles = [m.register_propagate_forward_hook(hook) for m in passing]
    if layer.trims:
        handles += [m.register_propagate_forward_pre_hook(layer.trimmed) for m in passing]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
