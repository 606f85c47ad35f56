"""The loss of a network over pieces of a graph: one whose share every rank evaluates, or one with parameters each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mldd.algebra import Bounds, FlatModule, ModuleObjective, Price
from mldd.problems.modules import Noise, PartFunctions, has_statistics, left_alone
from mldd.problems.modules.one_graph.graph_arguments import Arguments
from mldd.problems.modules.one_graph.graph_task import Task
from mldd.problems.nets import Batch, BuiltIn, Fetching, Wanted, built_in, stored
from mldd.ranks import Communicator

_TOGETHER = 2**18  # entries of the first state of a piece up to which pieces are faster together (measured)


@dataclass(frozen=True, eq=False)
class GraphPiece:
    """A graph that the network is evaluated on, and what of it counts in the loss.

    Parameters
    ----------
    values : dict
        Arguments of the network by name.
    rows : Tensor, shape (m,) or (2, m), int64
        Nodes of this graph that the items are.
    targets : Tensor, shape (m, ...)
        Of the items.
    weight : float
        Of the mean loss over these items in the loss.
    nodes, edges : Tensor, int64
        Global numbers of nodes and edges, for dropout; empty for an aggregated graph, which has none.
    owned : int
        How many of the nodes, the first ones, count in batch statistics.
    fetching : Fetching, optional
        Fetches rows of other ranks behind propagations; None where the piece has all that its outputs depend on.
    """

    values: Mapping[str, Any]
    rows: Tensor
    targets: Tensor
    weight: float
    nodes: Tensor
    edges: Tensor
    owned: int
    fetching: Fetching | None = None

    @property
    def work(self) -> float:
        """Nodes and edges, in proportion to which a sweep costs."""
        if self.fetching is not None:
            return float(self.fetching.layer.work)
        edges = self.values.get("edge_index")
        return float(self.size + (0 if edges is None else edges.shape[1]))

    @property
    def size(self) -> int:
        """Number of nodes."""
        features = self.values.get("x")
        return len(self.nodes) if features is None else len(features)


@dataclass(frozen=True, eq=False)
class FastPath:
    """Evaluates a model of torch_geometric by the built-in layers, at the rows of the items alone.

    Parameters
    ----------
    network : BuiltIn
        The model as a network of built-in layers.
    x : Tensor, shape (n, F)
        Features of the whole graph.
    """

    network: BuiltIn
    x: Tensor
    _made: WeakKeyDictionary[GraphPiece, tuple[Batch, Tensor]] = field(default_factory=WeakKeyDictionary, repr=False)

    @cached_property
    def _features(self) -> Any:
        return stored(self.x)

    def __call__(self, net: nn.Module, piece: GraphPiece, noise: Noise | None) -> tuple[Tensor, Tensor]:
        """Return the outputs at some nodes, shape (k, C), and where among them those of the items are.

        Parameters
        ----------
        net : nn.Module
            The model, whose parameters count.
        piece : GraphPiece
            The graph.
        noise : Noise, optional
            The sample of dropout.
        """
        if piece not in self._made:
            wanted, rows = self._wanted(piece)
            self._made[piece] = self.network.batch([wanted]), rows
        batch, rows = self._made[piece]
        seed, step = (0, None) if noise is None else (noise.seed, noise.step)
        return self.network(net, batch, seed, step), rows

    def _wanted(self, piece: GraphPiece) -> tuple[Wanted, Tensor]:
        """Return the graph with the nodes that the items are, and where among these every item is."""
        wanted, rows = torch.unique(piece.rows, return_inverse=True)
        features = self._features[piece.nodes.cpu().numpy()] if len(piece.nodes) else stored(piece.values["x"])
        return Wanted(piece.values, features, wanted, piece.nodes), rows

    def together(self, pieces: Sequence[GraphPiece]) -> tuple[Batch, list[Tensor]]:
        """Return pieces as one graph whose networks have parameters each, and where the items of each are.

        Parameters
        ----------
        pieces : sequence of GraphPiece
            The graphs.
        """
        graphs, rows = zip(*map(self._wanted, pieces), strict=True)
        return self.network.batch(graphs, single=False), list(rows)


def fast_path(net: nn.Module, arguments: Arguments) -> FastPath | str:
    """Return what evaluates a network by built-in layers, or in words why nothing does.

    Parameters
    ----------
    net : nn.Module
        The network.
    arguments : Arguments
        What it is called with.
    """
    if arguments.by == "position" and arguments.names != ("x", "edge_index"):
        return "it is called by position"
    found = built_in(net, arguments.whole)
    return found if isinstance(found, str) else FastPath(found, arguments.whole["x"])


@dataclass(frozen=True, eq=False)
class GraphLoss:
    """The loss of a network over pieces of a graph.

    One piece is this rank's share, of parameters of shape (N,); several are local models with parameters (p, N), which
    built-in layers evaluate together, and others one after the other.

    Parameters
    ----------
    model : FlatModule
        The network.
    arguments : Arguments
        How it is called.
    task : Task
        The loss at the items.
    pieces : tuple of GraphPiece
        Where it is evaluated.
    price : Price
        What evaluations cost, in fine gradients.
    batched : bool
        Whether the pieces have parameters each.
    noise : Noise, optional
        The sample of dropout; none without.
    comm : Communicator, optional
        Ranks whose shares are summed.
    fast : FastPath, optional
        What evaluates the network in the place of its own calls.
    """

    model: FlatModule
    arguments: Arguments
    task: Task
    pieces: tuple[GraphPiece, ...]
    price: Price
    batched: bool = False
    noise: Noise | None = None
    comm: Communicator | None = None
    fast: FastPath | None = None

    @property
    def size(self) -> int:
        """Number N of unknowns."""
        return self.model.size

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        like = self.model.flat
        shape = (len(self.pieces), self.size) if self.batched else (self.size,)
        return Bounds.free(*shape, dtype=like.dtype, device=like.device)

    @cached_property
    def _modes(self) -> dict[nn.Module, bool]:
        return modes(self.model.module, self.noise is not None)

    @cached_property
    def _shared(self) -> Communicator | None:
        """Ranks over which batch statistics are taken, None where no rank or no statistics are shared."""
        several = self.comm is not None and self.comm.ranks > 1
        return self.comm if several and any(map(has_statistics, self.model.module.modules())) else None

    def _of(self, piece: GraphPiece) -> Callable[[nn.Module], Tensor]:
        def loss(net: nn.Module) -> Tensor:
            if piece.weight == 0 and self.fast is not None:  # no item, and nothing to take part in
                return 0.0 * sum((p.sum() for p in net.parameters()), self.model.flat.new_zeros(()))
            return self._weighted(piece, *self._states(net, piece))

        return loss

    def _weighted(self, piece: GraphPiece, states: Tensor, rows: Tensor) -> Tensor:
        """Return what a piece adds to the loss, given outputs of the network and the rows that the items are."""
        if piece.weight == 0:  # a rank without items, which still takes part in collectives
            return 0.0 * states.sum()
        return piece.weight * self.task.mean(self.task.outputs(states, rows), piece.targets)

    def _states(self, net: nn.Module, piece: GraphPiece) -> tuple[Tensor, Tensor]:
        """Return outputs of the network, and the rows that the items are."""
        if self.fast is not None:
            return self.fast(net, piece, self.noise)
        plain = self.noise is None and self._shared is None
        numbers = piece.nodes, piece.edges, piece.owned, self.noise, self._shared, piece.values.get("edge_index")
        parts = nullcontext() if plain else PartFunctions(*numbers)
        with parts, nullcontext() if piece.fetching is None else piece.fetching.behind(net):
            return self.arguments.call(net, piece.values), piece.rows

    @cached_property
    def _stacked(self) -> tuple[Batch, list[Tensor]] | None:
        """All pieces as one graph, None where they are evaluated one after the other."""
        if self.fast is None or not self.batched or self.noise is not None:
            return None
        entries = max(piece.size for piece in self.pieces) * self.fast.network.net.widths[1]
        alone = any(not p.requires_grad for p in self.model.module.parameters())
        return None if alone or entries > _TOGETHER else self.fast.together(self.pieces)

    def _together(self, seen: list[Tensor]) -> Callable[[nn.Module], Tensor]:
        """Return the sum of the losses of pieces at parameters with a leading axis; each loss is noted in `seen`."""

        def loss(net: nn.Module) -> Tensor:
            assert self.fast is not None and self._stacked is not None
            batch, rows = self._stacked
            states = self.fast.network(net, batch)
            states = states.view(len(rows), -1, states.shape[1])
            values = torch.stack([self._weighted(*one) for one in zip(self.pieces, states, rows, strict=True)])
            seen.append(values.detach())
            return values.sum()

        return loss

    def _seed(self) -> int:
        return 0 if self.noise is None else hash((self.noise.seed, self.noise.step)) % 2**63

    def _each(self, x: Tensor) -> list[tuple[GraphPiece, Tensor]]:
        rows = x if self.batched else x[None]
        return list(zip(self.pieces, rows, strict=True))

    def _shaped(self, rows: list[Tensor]) -> Tensor:
        return torch.stack(rows) if self.batched else rows[0]

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (p,)."""
        self.price.of_value()
        if self._stacked is not None:
            seen: list[Tensor] = []
            self.model.value(x, self._together(seen), modes=self._modes)
            return seen[0]
        made = [self.model.value(row, self._of(piece), self._seed(), self._modes) for piece, row in self._each(x)]
        value = self._shaped(made)
        return value if self.comm is None else self.comm.sum_values(value)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective."""
        self.price.of_gradient()
        if self._stacked is not None:
            seen: list[Tensor] = []
            _, g = self.model.value_and_gradient(x, self._together(seen), modes=self._modes)
            return seen[0], g
        both = [
            self.model.value_and_gradient(row, self._of(piece), self._seed(), self._modes)
            for piece, row in self._each(x)
        ]
        buffer = self._shaped([torch.cat([g, value[None]]) for value, g in both])
        buffer = buffer if self.comm is None else self.comm.sum(buffer)
        return buffer[..., -1], buffer[..., :-1]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v``, of the shape of x."""
        self.price.of_product()
        if self._stacked is not None:
            return self.model.hessian_product(x, v, self._together([]), modes=self._modes)
        directions = v if self.batched else v[None]
        made = [
            self.model.hessian_product(row, u, self._of(piece), self._seed(), self._modes)
            for (piece, row), u in zip(self._each(x), directions, strict=True)
        ]
        product = self._shaped(made)
        return product if self.comm is None else self.comm.sum(product)


def loss_of_network(net: nn.Module, loss: Any, data: Any, comm: Communicator) -> ModuleObjective:
    """Return a loss of the user's own that is given the network and the graph.

    Parameters
    ----------
    net : nn.Module
        The network.
    loss : callable
        ``loss(net, data)``.
    data : torch_geometric.data.Data, or mapping
        The graph.
    comm : Communicator
        Of one rank.

    Raises
    ------
    ValueError
        Several ranks, to which the loss cannot be shared out.
    """
    if comm.ranks > 1:
        raise ValueError(f"loss(net, data) needs one rank, got {comm.ranks}; give loss(outputs, targets) for several")

    def alone(net: nn.Module) -> Tensor:
        with left_alone("`loss`", data):
            made: Tensor = loss(net, data)
            return made

    return ModuleObjective(net, alone)


def modes(net: nn.Module, noisy: bool) -> dict[nn.Module, bool]:
    """Return the training modes of the modules of a network: with dropout all train, else batch normalisation alone.

    Batch normalisation always takes the statistics of the nodes at hand, so that the loss is a function of the
    parameters; running statistics are set when a trained module is handed out.

    Parameters
    ----------
    net : nn.Module
        The network.
    noisy : bool
        Whether there is dropout.
    """
    return {module: noisy or has_statistics(module) for module in net.modules()}
