"""Learning where an equation takes a state: as many samples as are asked for, on any domain of nodes."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Objective, Price, SharedDecomposition, Stochastic, check_choices, sampled
from mldd.loop import Problem
from mldd.problems.nets import Draw, MiniBatches
from mldd.problems.operators.local_graphs import GraphBatch, NodeDomain
from mldd.problems.operators.operator_loss import AT_ONCE, AT_ONCE_EXCHANGED, OperatorLoss
from mldd.problems.operators.operator_options import CutOptions, NetworkOptions, SampleOptions
from mldd.problems.operators.operator_parts import decomposition
from mldd.problems.operators.operator_pictures import draw
from mldd.problems.operators.rank_graph import rank_graph
from mldd.problems.operators.residual_sage import ResidualSage
from mldd.problems.operators.rollouts import Rollouts
from mldd.problems.operators.sample_stream import Evolution, SampleStream
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

_SCALED = 16  # samples by which the unit of the outputs is chosen
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.02},
    "local-adam": {"local.lr": 0.04, "local_steps": 20},
    "localsgd": {"local.lr": 0.04, "local.momentum": 0.9, "memory": "average"},
    "diloco": {"local.lr": 0.01},
}


@dataclass(frozen=True)
class OperatorProblem(Problem):
    """Learn the change of a state over an interval by a residual GraphSAGE: the base of problems with an `evolution`.

    Samples are made while training goes on, each from its number alone, so that there are as many as a run asks for,
    and the same on any ranks. The loss is the mean squared error in units of the root mean square of the change.

    Parameters
    ----------
    network : NetworkOptions
        The network.
    sampling : SampleOptions
        Which samples are trained on.
    pieces : CutOptions
        What is decomposed, and what ranks share.
    seed : int
        Of the samples.
    dtype : {"float32", "float64"}
        Of parameters and samples.
    device : str
        Where they are.
    comm : Communicator
        Ranks that share evaluations.

    Raises
    ------
    ValueError
        An unknown dtype, or fields of a record that make no sense.
    """

    network: NetworkOptions = NetworkOptions()  # noqa: RUF009 (frozen)
    sampling: SampleOptions = SampleOptions()  # noqa: RUF009 (frozen)
    pieces: CutOptions = CutOptions()  # noqa: RUF009 (frozen)
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    comm: Communicator = field(default=SERIAL)

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        check_choices(self, {"dtype": ("float32", "float64")})
        _ = self.net  # refuses its own fields

    @property
    def evolution(self) -> Evolution:
        """What is learned.

        Raises
        ------
        ValueError
            The problem does not have it.
        """
        raise ValueError(f"problem {type(self).__name__} does not have `evolution`")

    @property
    def domain(self) -> NodeDomain:
        """The nodes."""
        return self.evolution.domain

    @cached_property
    def net(self) -> ResidualSage:
        """The network."""
        options, evolution = self.network, self.evolution
        kinds = 1 + len(evolution.domain.derivatives)
        return ResidualSage(options.hidden, options.layers, evolution.inputs, kinds)

    @cached_property
    def kind(self) -> dict[str, Any]:
        """Dtype and device of all tensors."""
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def stream(self) -> SampleStream:
        """Samples for training and validation."""
        return SampleStream(self.evolution, self.seed % 2**64, **self.kind)

    @cached_property
    def scale(self) -> float:
        """Root mean square of the change over the first samples: one unit of the outputs."""
        changes = self.stream.fields("training", range(_SCALED))[:, -1].double()
        return float(changes.square().mean().sqrt())

    @cached_property
    def whole(self) -> GraphBatch:
        """The whole graph."""
        return GraphBatch.whole(self.domain, self.net.layers, **self.kind)

    @cached_property
    def _shared(self) -> GraphBatch:
        """The nodes that this rank evaluates of the whole objective."""
        if self.pieces.sharing == "samples" or self.comm.ranks == 1:
            return self.whole
        part = self.domain.parts(self.comm.ranks, self.pieces.cut, self.seed)
        return rank_graph(self.domain, part, self.net.layers, self.comm, **self.kind)

    def share_of_work(self, graph: GraphBatch) -> float:
        """Return the cost of a sample on one of the graphs of a batch, over that of a sample on the whole graph.

        Parameters
        ----------
        graph : GraphBatch
            With padding, which is computed, too.
        """
        entries = [mean.nnz / len(graph.nodes) for mean in graph.means]
        all_entries = [mean.nnz for mean in self.whole.means]
        return self.net.work(graph.rows, entries) / self.net.work(self.whole.rows, all_entries)

    def loss(
        self, graph: GraphBatch, numbers: Tensor, total: int, comm: Communicator | None, drawn: Draw | None = None
    ) -> OperatorLoss:
        """Return the squared errors over samples and own nodes of a batch of graphs, divided by `total`.

        Parameters
        ----------
        graph : GraphBatch
            Of p graphs.
        numbers : Tensor, shape (p, b), int64
            Training samples of every graph.
        total : int
            Samples of all ranks.
        comm : Communicator or None
            Ranks over which it is summed.
        drawn : Draw, optional
            The mini-batch, where it is one.
        """
        share = self.share_of_work(graph) * numbers.shape[1] / self.sampling.shown
        price = Price(share, fine=comm is not None)
        at_once = max(1, AT_ONCE // graph.nodes.numel())
        if comm is not None and self.pieces.sharing == "nodes":  # the same on all ranks
            at_once = max(1, AT_ONCE_EXCHANGED * comm.ranks // self.domain.nodes)
        return OperatorLoss(self.net, self.stream, graph, numbers, self.scale, total, price, comm, at_once, drawn)

    def _over(self, numbers: Tensor, drawn: Draw | None = None) -> OperatorLoss:
        """Return the mean loss over samples, shape (b,), of which ranks share the samples or the nodes."""
        mine = range(len(numbers)) if self.pieces.sharing == "nodes" else self.comm.share(len(numbers))
        return self.loss(self._shared, numbers[None, mine.start : mine.stop], len(numbers), self.comm, drawn)

    @cached_property
    def _objective(self) -> Objective:
        drawn_from, batch = self.sampling.samples, self.sampling.batch
        f = self._over(torch.arange(self.sampling.shown))
        if drawn_from == batch:
            return f
        batches = MiniBatches(drawn_from, batch, key=(self.seed % 2**64,)) if drawn_from else None

        def draw(step: int) -> Objective:
            rows = step * batch + torch.arange(batch) if batches is None else batches.rows(step)
            return self._over(rows, Draw(step, rows))

        return Stochastic(f, draw)

    def objective(self, sample: int | None = None) -> Objective:
        """Return the loss over the training set; it offers ``sample(step)`` unless every batch is the whole set.

        Parameters
        ----------
        sample : int, optional
            Asks for the mini-batch of this outer step.
        """
        return self._objective if sample is None else sampled(self._objective, sample)

    def initial(self, seed: int = 0) -> Tensor:
        """Return a start whose outputs are zero: the forecast of persistence, whose loss is about 1."""
        return self.net.initial(seed).to(**self.kind)

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> SharedDecomposition:
        """Return the decomposition of samples, of the graph, or of both; every subdomain updates all parameters.

        Parameters
        ----------
        parts : int
            Number of subdomains; for subdomains=both, parts of the graph times shares.
        overlap : int
            Rings of neighbours around every part; from the number of layers on, the losses of parts are exact. Shares
            of the samples have the whole graph anyway.
        comm : Communicator, optional
            The ranks that share the subdomains, the problem's own by default.

        Raises
        ------
        ValueError
            A number that does not fit.
        """
        return decomposition(self, parts, overlap, self.comm if comm is None else comm)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        exact = {"overlap": self.network.layers} if "local." in " ".join(_SETTINGS.get(solver, {})) else {}
        return {**_SETTINGS.get(solver, {}), **exact}

    @cached_property
    def rollouts(self) -> Rollouts:
        """The validation samples of this rank."""
        mine = self.comm.share(self.sampling.validated)
        return Rollouts(self.net, self.stream, self.whole, self.scale, mine, self.sampling.leads)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return the loss over the validation samples."""
        total, values = self.comm.sum_scalars(list(map(float, self.rollouts.squares(x))))
        return {"validation_loss": total / values}

    def pictures(self, folder: Path, x: Tensor, parts: int) -> list[Path]:
        """Draw a rollout beside the equation, and errors after every interval; return the files."""
        return draw(self, folder, x) if self.rollouts.numbers else []

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the validation loss, and the skill of a rollout against persistence, ``1 - MSE / MSE_persistence``."""
        made, still = self.rollouts.rollout_squares(x)
        both = self.comm.sum_scalars([made[-1], still[-1]])
        return self.validation(x) | {"rollout_skill": 1.0 - both[0] / both[1]}
