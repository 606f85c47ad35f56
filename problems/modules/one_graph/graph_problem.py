"""Training of any network on a graph, a torch or torch_geometric module, decomposed by graph parts or by layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mldd.algebra import (
    FirstLayer,
    FlatModule,
    Hierarchy,
    Objective,
    Price,
    Stochastic,
    check_choices,
    check_least,
    sampled,
)
from mldd.loop import Problem
from mldd.problems.modules import (
    ModuleLayers,
    Noise,
    check_uncached,
    first_linear,
    first_parameter,
    has_statistics,
    is_loss_of_network,
    restarted,
    settled,
)
from mldd.problems.modules.one_graph.graph_arguments import Arguments, arguments_of
from mldd.problems.modules.one_graph.graph_checksum import checksum_of
from mldd.problems.modules.one_graph.graph_loss import (
    FastPath,
    GraphLoss,
    GraphPiece,
    fast_path,
    loss_of_network,
    modes,
)
from mldd.problems.modules.one_graph.graph_notes import notes_of
from mldd.problems.modules.one_graph.graph_options import Division, settings_of
from mldd.problems.modules.one_graph.graph_pieces import GraphPieces
from mldd.problems.modules.one_graph.graph_spaces import GraphSpaces
from mldd.problems.modules.one_graph.graph_task import Task, check_loss, measured, task_of
from mldd.problems.modules.one_graph.halo_choice import Shares
from mldd.problems.modules.one_graph.locality import hops_of
from mldd.problems.modules.one_graph.training_mode import check_shared_noise, is_noisy
from mldd.problems.nets import MiniBatches, is_model
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device


@dataclass(frozen=True, eq=False)
class GraphProblem(Problem):
    """Train a network of one's own on a graph.

    The network is called on the whole graph, on the part of a rank with the nodes around it that its outputs depend on,
    on parts of subdomains and on aggregated graphs; how many hops its outputs reach is measured. The loss is the mean
    over the labelled training nodes. Dropout is drawn anew for every outer step, the same on any number of ranks, and
    so are other random numbers of the training mode, which several ranks refuse; batch normalisation takes the
    statistics of all nodes, or edges, at hand, of all ranks together.

    Parameters
    ----------
    net : nn.Module
        The network, with a row of outputs per node; its parameters are the start. It is trained in place by
        ``module(x)`` and left alone otherwise.
    data : torch_geometric.data.Data, or dict
        ``x``, ``edge_index``, ``y``, ``train_mask``, ``val_mask``, ``test_mask`` and what else the network takes.
    loss : callable, optional
        ``loss(outputs, targets)``, a mean over rows, or ``loss(net, data)``, which can be decomposed by layers alone.
        By default cross-entropy for classes, with logits for several labels per node and for links (inner products of
        the states of two nodes, `edge_label_index`), mean square for numbers.
    inputs : tuple of str
        Fields that ``forward`` takes, in its order; by default those that its parameters are named after.
    groups : tuple of str
        Names of modules that are one layer together, see `ModuleLayers`; empty for a layer per module.
    division : Division
        Subdomains, coarse graphs and the shares of ranks.
    labels : {"train", "all"}
        Fit to the training nodes, or to all that are not for testing.
    batch : int
        Labelled nodes (or pairs) per gradient of the whole loss, drawn anew for every step; 0: all.
    seed : int
        Of dropout, mini-batches and partitions.
    device : str
        Where it is evaluated: cpu, cuda, cuda:NUMBER or auto, the network and the data are moved there; "" for where
        the network is.
    comm : Communicator
        Ranks that share the nodes.

    Raises
    ------
    ValueError
        Data that the network or the loss cannot be evaluated on, or an option that makes no sense.
    """

    net: nn.Module
    data: Any
    loss: Callable[..., Tensor] | None = None
    inputs: tuple[str, ...] = ()
    groups: tuple[str, ...] = ()
    division: Division = Division()
    labels: Literal["train", "all"] = "train"
    batch: int = 0
    seed: int = 0
    device: str = ""
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse options that make no sense, and data that do not fit."""
        check_choices(self, {"labels": ("train", "all")})
        check_choices(self.division, {"subdomains": ("graph", "layers")})
        check_least(self, {"batch": 0, "seed": 0})
        if self._whole_loss and self.batch:
            raise ValueError(f"`batch` must be 0 for loss(net, data), got {self.batch}; draw the batch in the loss")
        _ = self.arguments, self.model

    # -------------------------------------------------------------------------------- what everything is made of

    @cached_property
    def _whole_loss(self) -> bool:
        return is_loss_of_network(self.loss)

    @cached_property
    def _device(self) -> torch.device:
        return pick_device(self.device, self.comm) if self.device else first_parameter(self.net).device

    @cached_property
    def arguments(self) -> Arguments:
        """What the network is called with.

        Raises
        ------
        ValueError
            The data lack a field, or have features that are not finite.
        """
        return arguments_of(self.net, self.data, self.inputs, self._device)

    @cached_property
    def model(self) -> FlatModule:
        """The network as a function of one vector."""
        return FlatModule(self.net.to(self._device))

    @cached_property
    def _start(self) -> Tensor:
        return self.model.flat.clone()

    @cached_property
    def _tried(self) -> Tensor:
        """Parameters near the start at which the network is looked at: layers may start from zeros, and hide others."""
        random = torch.Generator().manual_seed(self.seed)
        return self._start + 0.1 * torch.randn(self.model.size, generator=random).to(self._start)

    @cached_property
    def task(self) -> Task:
        """The labelled nodes or pairs.

        Raises
        ------
        ValueError
            There are none.
        """
        return task_of(self.arguments.fields, self.arguments.nodes, self.loss, self.labels)

    @cached_property
    def hops(self) -> int:
        """How many edges away a node may be that an output depends on, measured.

        Raises
        ------
        NotLocalError
            The network looks at all nodes.
        ValueError
            A layer keeps the edges of the whole graph.
        """
        check_uncached(self.net, "a part of it")
        with self.model.at(self._tried, modes=dict.fromkeys(self.net.modules(), False)):
            return hops_of(self.net, self.arguments, self.seed)

    @cached_property
    def _noisy(self) -> bool:
        """Whether the network draws random numbers in training."""
        noisy = is_noisy(self.model, self.arguments, self._start)
        if noisy and self.comm.ranks > 1:
            check_shared_noise(self.model, self.arguments, self._start)
        return noisy

    @cached_property
    def pieces(self) -> GraphPieces:
        """Graphs that the network is evaluated on.

        Raises
        ------
        NotLocalError
            On several ranks, a network that looks at all nodes.
        """
        return GraphPieces(self.arguments, self.task, lambda: self.hops, self._statistics, self.seed, self.comm)

    @cached_property
    def shares(self) -> Shares:
        """What every rank evaluates.

        Raises
        ------
        NotLocalError
            On several ranks, a network that looks at all nodes.
        """
        if self.comm.ranks > 1 and self.fast is None:
            check_uncached(self.net, "the share of a rank")
        halo, reason = self.division.halo, "as asked for"
        if halo == "auto" and self.fast is not None:
            halo, reason = "deep", "as the built-in layers have them"
        elif halo == "auto" and self.batch > 0:
            halo, reason = "deep", "as a batch depends on few nodes"
        return Shares(self.model, self._tried, self.pieces, halo if self.comm.ranks > 1 else "deep", reason)

    @cached_property
    def _built_in(self) -> FastPath | str:
        """What evaluates the network by built-in layers, or why nothing does."""
        if self.division.halo == "exchange" and self.comm.ranks > 1:
            return "built-in layers have deep halos, got halo=exchange"
        return fast_path(self.net, self.arguments)

    @property
    def fast(self) -> FastPath | None:
        """What evaluates a model of torch_geometric in the place of its own calls; None for other networks."""
        return None if isinstance(self._built_in, str) else self._built_in

    @cached_property
    def _statistics(self) -> bool:
        return any(map(has_statistics, self.net.modules()))

    # -------------------------------------------------------------------------------- the problem

    @cached_property
    def _plain(self) -> Objective:
        if self._whole_loss:
            return loss_of_network(self.net, self.loss, self.data, self.comm)
        fitted = self.task.outputs(self.outputs(self._tried), self.task.items[..., self.task.fitted])
        check_loss(self.task, fitted, shared=self.comm.ranks > 1 or self.batch > 0)
        return self._loss_of(self.shares.piece(self.task.fitted))

    def _loss_of(self, piece: GraphPiece) -> GraphLoss:
        price = Price(self.pieces.work(piece))
        return GraphLoss(self.model, self.arguments, self.task, (piece,), price, comm=self.comm, fast=self.fast)

    @cached_property
    def _objective(self) -> Objective:
        f = self._plain
        if not isinstance(f, GraphLoss) or not (self._noisy or self.batch):
            return f
        return Stochastic(f, self._drawn)

    def _drawn(self, step: int) -> Objective:
        """Return the loss of an outer step: with dropout, over a mini-batch."""
        f, items = self._plain, self.task.fitted
        assert isinstance(f, GraphLoss)
        noise = Noise(self.seed, step) if self._noisy else None
        if not self.batch or self.batch >= len(items):
            return replace(f, noise=noise)
        chosen = items[MiniBatches(len(items), self.batch, key=(self.seed,)).rows(step).to(items.device)]
        piece = self.shares.piece(chosen)
        return replace(f, pieces=(piece,), price=Price(self.pieces.work(piece)), noise=noise)

    def objective(self, sample: int | None = None) -> Any:
        """Return the loss; with dropout or mini-batches it offers ``sample(step)``.

        Parameters
        ----------
        sample : int, optional
            Step whose loss is asked for.
        """
        return self._objective if sample is None else sampled(self._objective, sample)

    def initial(self, seed: int = 0) -> Tensor:
        """Return the network's own parameters for seed 0, and newly drawn ones for others, shape (N,).

        Parameters
        ----------
        seed : int
            Of the draw.

        Raises
        ------
        ValueError
            A module inside has parameters and no ``reset_parameters``.
        """
        if seed == 0:
            return self._start.clone()
        return restarted(self.net, seed).to(self._start)

    @cached_property
    def spaces(self) -> GraphSpaces:
        """Losses on parts of the graph and on coarser graphs."""
        if self.fast is None:
            check_uncached(self.net, "parts of the graph and coarser graphs")
        blocks = self._layers.layout.slices
        return GraphSpaces(self.model, self.pieces, self.fast, self.division, blocks, self.seed)

    @cached_property
    def _layers(self) -> ModuleLayers:
        return ModuleLayers.of(self.net, self.groups)

    def _refuse_whole(self, what: str) -> None:
        if self._whole_loss:
            raise ValueError(f"{what} need loss(outputs, targets), got loss(net, data); use subdomains=layers")

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss and those of the same network on coarser graphs, which every rank evaluates, without dropout.

        The first has 3.7 % of the nodes (or `clusters`), the others a quarter each.

        Raises
        ------
        ValueError
            No level, more than the graph has nodes for, or a loss of the network.
        """
        if levels > 1:
            self._refuse_whole("coarse graphs")
        return self.spaces.hierarchy(self.objective(), levels)

    def first_layer(self) -> FirstLayer:
        """Return what the network's first linear map is applied to on the whole graph, in evaluation mode."""
        with self.model.at(self._start, modes=modes(self.net, False)), torch.no_grad():
            return first_linear(self.model, lambda: self.arguments.call(self.net, self.arguments.whole))

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Any:
        """Return the decomposition into parts of the graph or runs of layers (`subdomains`).

        Local models of graph parts are first-order corrected: their gradient at the current iterate is the global one.

        Raises
        ------
        ValueError
            More parts than nodes or layers, fewer than ranks, a negative overlap, or a network that cannot be cut.
        """
        comm = self.comm if comm is None else comm
        if self.division.subdomains == "layers":
            if self.comm.ranks > 1:
                raise ValueError(
                    f"subdomains=layers needs one rank, got {self.comm.ranks}; use subdomains=graph on several"
                )
            return self._layers.decomposition(parts, overlap, comm)
        self._refuse_whole("graph parts")
        if self.fast is None:
            _ = self.hops  # a network that looks at all nodes is refused on one rank as on several
        return self.spaces.decomposition(parts, overlap, comm)

    # -------------------------------------------------------------------------------- what the user sees

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit small networks on graphs."""
        return settings_of(solver, len(self._layers.names) if self.division.subdomains == "layers" else 0)

    def module(self, x: Tensor) -> nn.Module:
        """Return the network with parameters `x`, and with the running statistics of the graph they were fitted on.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        net = self.model.load(x)
        settled(net, modes(net, False), lambda: self.arguments.call(net, self.arguments.whole))
        return net

    def predict(self, x: Tensor, data: Any = None) -> Tensor:
        """Return what the trained network returns on a graph, in evaluation mode, shape (n, k).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        data : torch_geometric.data.Data, or dict, optional
            Another graph with the fields that the network is called with; by default that of the training.

        Raises
        ------
        ValueError
            It lacks a field, or a layer keeps the edges of the graph of the training.
        """
        if data is not None:
            check_uncached(self.net, "another one")
        arguments = self.arguments if data is None else self.arguments.alike(replace(self, data=data).arguments)
        net = self.module(x)
        with self.model.at(x, modes=dict.fromkeys(net.modules(), False)), torch.no_grad():
            return arguments.call(net, arguments.whole)

    def outputs(self, x: Tensor) -> Tensor:
        """Return what the network returns at all nodes without dropout, shape (n, k).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        with self.model.at(x, modes=modes(self.net, False)), torch.no_grad():
            return self.arguments.outputs(self.net)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return loss and accuracy, or the root mean square of errors, on the validation items.

        Raises
        ------
        ValueError
            There are none, or they are trained on.
        """
        if self.labels == "all":
            raise ValueError("validation needs nodes that are not trained on, got labels=all; leave one of them out")
        found = {} if self._whole_loss else measured(self.task, self.outputs(x), ("validation",))
        if not found:
            raise ValueError("`data` must have val_mask with a labelled node for a validation, got none; add it")
        return found

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return loss and accuracy, or the root mean square of errors, on training, validation and test items."""
        return {} if self._whole_loss else measured(self.task, self.outputs(x))

    def identity(self) -> str:
        """Return the checksum of all tensors of the data."""
        return checksum_of(self.data)

    def details(self) -> dict[str, Any]:
        """Return what the network is called with, how far it reaches, and what of the data is not used."""
        task = None if self._whole_loss else self.task
        noisy = task is not None and self._noisy
        notes = notes_of(self.model, self.arguments, self._start + 0.01, task, noisy=noisy)
        if self.comm.ranks > 1 and "shares" in vars(self):
            notes.append(f"halos of ranks are {self.shares.told}")
        if "spaces" in vars(self) and self.batch:
            notes.append(f"batch={self.batch} is of the whole loss: local losses are over all nodes of a part")
        if "spaces" in vars(self) and self.spaces.one_by_one > 1:
            notes.append("subdomains are evaluated one after the other: parts of a graph have different sizes")
        told: dict[str, Any] = {"arguments": list(self.arguments.names), "nodes": self.arguments.nodes}
        if "hops" in vars(self):
            told["hops"] = self.hops
        if not self._whole_loss:
            told["task"] = self.task.kind
            if is_model(self.net):
                by = f"torch_geometric, as {self._built_in}" if self.fast is None else "built-in layers"
                notes.append(f"{type(self.net).__name__} is evaluated by {by}")
        return told | ({"notes": notes} if notes else {})
