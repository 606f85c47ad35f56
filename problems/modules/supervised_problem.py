"""Supervised learning by any torch module: its loss over any data, in full or in mini-batches, decomposed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mldd.algebra import (
    Decomposition,
    FirstLayer,
    FlatModule,
    Hierarchy,
    Identity,
    Level,
    Objective,
    Price,
    SharedDecomposition,
    Stochastic,
    check_choices,
    sampled,
)
from mldd.loop import Problem
from mldd.problems.data import checksum
from mldd.problems.modules.module_layers import Group, ModuleLayers
from mldd.problems.modules.module_scores import Score, scored, settled
from mldd.problems.modules.sample_checks import check_evaluates
from mldd.problems.modules.sample_loss import SampledModule, SampleLoss, first_of_samples
from mldd.problems.modules.sample_parts import SampleParts
from mldd.problems.modules.sample_sets import divided, hold_graphs, is_divided, reader_of, same_on_all_ranks, weights_in
from mldd.problems.modules.user_modules import is_loss_of_network, restarted
from mldd.problems.nets import Draw, MiniBatches
from mldd.ranks import SERIAL, Communicator, device

# Rates that lead somewhere for networks whose layers are started as torch does.
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 3e-3},
    "local-adam": {"local.lr": 3e-3},
    "sgd": {"lr": 0.1, "momentum": 0.9},
    "torch-adagrad": {"lr": 0.03},
    "adagrad": {"rate": 0.03, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.03, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.03, "local.varsigma": 1e-3, "global_steps": 1},
    "mofftr": {"smoother.rate": 0.03, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "localsgd": {"local.lr": 0.1, "local.momentum": 0.9, "memory": "keep"},
    "diloco": {"local.lr": 3e-3},
}


@dataclass(frozen=True, eq=False)
class SupervisedProblem(Problem):
    """Train any torch module on any data: the mean loss over samples, its parts, and its layers.

    Ranks share the samples of every evaluation where the loss over a batch is the mean of those of its samples (with
    weights of classes, too) or their sum, which is measured; batch normalisation in training mode takes its statistics
    over all ranks, and dropout is drawn sample by sample. Where samples are coupled otherwise, the first rank evaluates
    all of them, and ranks share the subdomains only. Values change nothing of the module; `module` writes into it.
    Every module inside keeps the mode (train or eval) it has when the problem is made. Dropout is drawn anew for every
    outer step, from the seed; the objective itself is the loss without it.

    Samples may be graphs, see `GraphSamples`: their labels say what is learned where no loss is given.

    A class that derives from this one gives `net`, `data` and `loss` by `make`, and its fields are keys on the command
    line (``mldd train file.py:Class:key=value``).

    Parameters
    ----------
    net : nn.Module
        What is trained; it stays the user's.
    data : tuple of Tensor, Dataset, DataLoader, batches or graphs
        Inputs and targets, in the order ``*inputs, targets``; see `Samples.of` for what is done with loaders. Or
        several of them by name: ``{"train": ..., "validation": ..., "test": ...}``.
    loss : callable
        ``loss(outputs, targets)`` as in ``torch.nn.functional``; or ``loss(net, batch)``, where the name of its first
        argument is net, network, model or module. None for graphs with labels.
    split : mapping of str to Tensor
        Numbers of samples of `data`, or masks, for validation and test; the others are for training, or those of train.
    scores : mapping of str to callable
        Metrics besides the losses, ``score(outputs, targets)``, or ``score(net, batch)`` where the loss is of that
        kind. By default the accuracy where targets are classes.
    batch : int, optional
        Samples of a mini-batch, drawn anew for every outer step, the same on all ranks; 0 for all samples. None for the
        loader's, and for all samples where there is none.
    subdomains : {"layers", "data", "both"}
        What is decomposed: the parameters into runs of layers, or the samples, where every part updates all parameters
        and has the loss over its own samples, first-order corrected unless asked otherwise; or a subdomain for every
        layer and part of the data.
    groups : sequence of str
        Names of modules inside that make one layer each, such as encoder, processor, decoder; empty for one layer per
        module with parameters.
    inputs : sequence of str
        For graphs: fields that ``forward`` takes, in its order; by default those that its parameters are named after.
    seed : int
        Of mini-batches, of dropout, and of the order in which samples are divided.
    device : str
        Where the module and all samples are put: cpu, cuda, cuda:NUMBER or auto; "" for where the module is.
    comm : Communicator
        Its ranks share samples and subdomains; all of them make the problem, of the same data.

    Raises
    ------
    ValueError
        Options that make no sense, data that do not fit the module, or ranks with different data.

    Examples
    --------
    >>> problem = SupervisedProblem(nn.Linear(2, 1), (torch.ones(8, 2), torch.ones(8, 1)), nn.functional.mse_loss)
    >>> problem.objective().size, problem.decomposition(2, subdomains="data").parts
    (3, 2)
    """

    net: nn.Module = None  # type: ignore[assignment]
    data: Any = None
    loss: Callable[..., Tensor] | None = None
    split: Mapping[str, Any] = field(default_factory=dict)
    scores: Mapping[str, Score] = field(default_factory=dict)
    batch: int | None = None
    subdomains: Literal["layers", "data", "both"] = "layers"
    groups: Sequence[Group] = ()
    inputs: Sequence[str] = ()
    seed: int = 0
    device: str = ""
    comm: Communicator = field(default=SERIAL)

    def __post_init__(self) -> None:
        """Make what is not given, and refuse what does not fit."""
        if self.net is None:
            for name, thing in zip(("net", "data", "loss"), self._made(self.seed), strict=False):
                object.__setattr__(self, name, thing)
        labelled = self.loss is None and self.data is not None and hold_graphs(self.data)
        if not isinstance(self.net, nn.Module) or not (callable(self.loss) or labelled) or self.data is None:
            got = ", ".join(type(thing).__name__ for thing in (self.net, self.data, self.loss))
            raise ValueError(f"a supervised problem needs a module, data and a loss, got {got}")
        if self.device:
            self.net.to(device(self.device, self.comm))
        check_choices(self, {"subdomains": ("layers", "data", "both")})
        if self.batch is not None and not 0 <= self.batch <= self._total:
            raise ValueError(f"`batch` must be in 0..{self._total} (0: all samples), got {self.batch}")
        same_on_all_ranks(self.comm, (self._total, self.flat.size, self.identity()))
        check_evaluates(self.model, self.comm, None if self._sees_module else self.loss)

    def make(self) -> tuple[Any, ...]:
        """Return net, data and loss; torch's generator has the seed.

        Raises
        ------
        ValueError
            A class that does not say.
        """
        raise ValueError(f"{type(self).__name__} needs `net`, `data` and `loss`; give them, or add `make()`")

    def _made(self, seed: int) -> tuple[Any, ...]:
        with torch.random.fork_rng([]):
            torch.manual_seed(seed)
            return self.make()

    # -------------------------------------------------------------------------------- what everything is made of

    @cached_property
    def flat(self) -> FlatModule:
        """The module as a function of one vector."""
        return FlatModule(self.net)

    @cached_property
    def _start(self) -> Tensor:
        """The parameters that the first rank's module had when the problem was made."""
        mine = self.flat.flat.clone()
        return mine if self.comm.ranks == 1 else self.comm.sum(mine if self.comm.rank == 0 else torch.zeros_like(mine))

    @cached_property
    def parts(self) -> dict[str, Any]:
        """The samples for train, and for validation and test as far as there are any."""
        found = divided(self.data, self.split, reader_of(self.data, self.net, self.inputs, self.seed))
        order = torch.randperm(len(found["train"]), generator=torch.Generator().manual_seed(self.seed))
        like = self.flat.flat
        return {name: (of.permuted(order) if name == "train" else of).to(like) for name, of in found.items()}

    @property
    def samples(self) -> Any:
        """The training samples, in an order in which any run of them is a fair choice."""
        return self.parts["train"]

    @cached_property
    def layers(self) -> ModuleLayers:
        """The layers of the module."""
        return ModuleLayers.of(self.net, self.groups)

    @cached_property
    def _modes(self) -> dict[nn.Module, bool]:
        return {module: module.training for module in self.net.modules()}

    @cached_property
    def _of_batch(self) -> Callable[[nn.Module, Any], Tensor]:
        """The loss as a function of module and batch."""
        if self._sees_module:
            assert self.loss is not None
            return self.loss
        samples, loss = self.samples, self.loss or self.samples.loss
        return lambda net, batch: loss(samples.outputs(net, batch), samples.targets(batch))

    def _weights(self, samples: Any) -> Tensor | None:
        return None if self._sees_module else weights_in(self.loss, samples)

    @cached_property
    def _sees_module(self) -> bool:
        return is_loss_of_network(self.loss)

    @cached_property
    def model(self) -> SampledModule:
        """Module, loss and samples, with dropout where the module has it."""
        model = SampledModule(self.flat, self._of_batch, self.samples, self._modes, self._weights(self.samples))
        return replace(model, at_once=max(model.at_once, self._batch))

    @cached_property
    def _quiet(self) -> SampledModule:
        """The same without dropout."""
        return self.model.quiet()

    @property
    def _total(self) -> int:
        return len(self.samples)

    @property
    def _batch(self) -> int:
        """Samples of a mini-batch, 0 for all."""
        if self.batch is not None:
            return self.batch
        if self.samples.in_batches:
            return 1
        return self.samples.batch if self.samples.batch < self._total else 0

    def _drawn(self, rows: Tensor, step: int, comm: Communicator | None, *, fine: bool, of: int = 0) -> SampleLoss:
        """Return the loss over the samples `rows` of an outer step."""
        price = Price(len(rows) / self._total, fine=fine)
        return SampleLoss(self.model, rows, price, comm, hash((self.seed, step)) % 2**63, Draw(step, rows), of)

    # -------------------------------------------------------------------------------- the problem

    def _level(self, k: int) -> Objective:
        """Return the loss of level `k`: over the first ``samples / 2^k``, with mini-batches where there are any."""
        count = self._total >> k
        price = Price(count / self._total, fine=k == 0)
        full = SampleLoss(self._quiet, torch.arange(count), price, self.comm, of=self._total)
        if self._batch == 0 and not self.model.noisy:
            return full
        batches = MiniBatches(self._total, self._batch or self._total, key=(self.seed % 2**64, 0, 0))

        def draw(step: int) -> SampleLoss:
            rows = batches.rows(step)
            return self._drawn(rows[: max(1, len(rows) >> k)], step, self.comm, fine=k == 0, of=len(rows))

        return Stochastic(full, draw)

    @cached_property
    def _objective(self) -> Objective:
        return self._level(0)

    def objective(self, sample: int | None = None) -> Objective:
        """Return the loss over all samples; with mini-batches or dropout it offers ``sample(step)``.

        Parameters
        ----------
        sample : int, optional
            Asks for the mini-batch of this outer step.
        """
        return self._objective if sample is None else sampled(self._objective, sample)

    def initial(self, seed: int | None = None) -> Tensor:
        """Return the parameters that the module had when the problem was made; with another seed, new ones.

        New ones come from ``make()`` where the class has it, else from ``reset_parameters`` of the modules inside.

        Parameters
        ----------
        seed : int, optional
            That of the problem by default.

        Raises
        ------
        ValueError
            A parameter that no module inside resets.
        """
        if seed is None or seed == self.seed:
            return self._start.clone()
        if type(self).make is not SupervisedProblem.make:
            return FlatModule(self._made(seed)[0]).flat.to(self._start)
        return restarted(self.net, seed).to(self._start)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss over all samples, over half of them, over a quarter, ...; mini-batches likewise.

        Parameters
        ----------
        levels : int
            Number of levels, the finest one included.

        Raises
        ------
        ValueError
            No level, or a coarsest one without two samples.
        """
        smallest = self._batch or self._total
        most = max(1, smallest.bit_length() - 1)
        if not 1 <= levels <= most:
            raise ValueError(
                f"`levels` must be in 1..{most} for {smallest} {self.samples.units} of a step, got {levels}"
            )
        made = [Level(self.objective())]
        for k in range(1, levels):
            made.append(Level(self._level(k), Identity(self.flat.size), (self._total >> k) / self._total))
        return Hierarchy(tuple(made))

    def first_layer(self) -> FirstLayer:
        """Return what the first linear map of the module is applied to for this rank's training samples."""
        return first_of_samples(self._quiet, self._start, self.comm)

    def decomposition(
        self, parts: int, overlap: int = 0, comm: Communicator | None = None, subdomains: str = ""
    ) -> Decomposition | SharedDecomposition:
        """Return the decomposition of the parameters into runs of layers, of the samples, or of both.

        Parameters
        ----------
        parts : int
            Number of runs, or of parts of the samples.
        overlap : int
            Layers, or samples, that are added to every part on both sides.
        comm : Communicator, optional
            The ranks that share the parts, the problem's own by default.
        subdomains : {"layers", "data", "both"}
            Instead of the problem's own choice.

        Raises
        ------
        ValueError
            More parts than layers or samples, fewer subdomains than ranks, or a negative overlap.
        """
        comm = self.comm if comm is None else comm
        chosen = subdomains or self.subdomains
        if chosen == "layers":
            return self.layers.decomposition(parts, overlap, comm, self._parts.restrictions)
        most = self._batch or self._total
        if not 1 <= parts <= most:
            raise ValueError(f"`parts` must be in 1..{most} (the {self.samples.units} of a step), got {parts}")
        if overlap < 0:
            raise ValueError(f"`overlap` must be >= 0, got {overlap}")
        return self._parts.decomposition(parts, overlap, comm, by_layers=chosen == "both")

    @cached_property
    def _parts(self) -> SampleParts:
        return SampleParts(self._quiet, self._drawn, self.layers)

    # -------------------------------------------------------------------------------- what the user sees

    def module(self, x: Tensor) -> nn.Module:
        """Write parameters into the module for good, and return it: the one that the user holds.

        Running statistics of batch normalisation become those of the training samples.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters.
        """
        net = self.flat.load(x)
        settled(net, self._modes, lambda: self._pass(net))
        return net

    def _pass(self, net: nn.Module) -> None:
        """Let the module see all training samples, in batches as in training."""
        size = 1 if self.samples.in_batches else self._batch or self._total
        for rows in torch.tensor_split(torch.arange(self._total), -(-self._total // size)):  # none of one sample
            self._of_batch(net, self.samples.take(rows))

    def _scores(self, x: Tensor, names: Sequence[str]) -> dict[str, float]:
        """Return losses and scores in the mode eval on some parts of the samples."""
        found: dict[str, float] = {}
        with self.flat.at(x):
            settled(self.net, self._modes, lambda: self._pass(self.net))
            self.net.eval()
            for name in names:
                samples, weights = self.parts[name], self._weights(self.parts[name])
                of_outputs = not self._sees_module
                scores = scored(self.net, samples, self._of_batch, self.scores, weights, outputs=of_outputs)
                found |= {f"{name}_{key}": value for key, value in scores.items()}
        return found

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return losses and scores in the mode eval on the samples of train, validation and test."""
        return self._scores(x, tuple(self.parts))

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return loss and scores in the mode eval on the samples for validation.

        Raises
        ------
        ValueError
            There are none.
        """
        if "validation" not in self.parts:
            raise ValueError(
                'a validation needs samples of its own, got none; give split={"validation": numbers of samples}, or '
                'data={"train": ..., "validation": ...}'
            )
        return self._scores(x, ("validation",))

    def predict(self, x: Tensor, data: Any = None) -> Tensor:
        """Return the outputs of the trained module in the mode eval, a row per sample (or per node of graphs).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters.
        data : object, optional
            Samples as in the training, or their inputs alone; by default the data of the training, in their
            order: those for training where there are several.
        """
        given = self.data if data is None else data
        read = reader_of(self.data, self.net, self.inputs, self.seed)
        samples = read(given["train"] if is_divided(given) else given).to(self.flat.flat)
        with self.flat.at(x), torch.no_grad():
            settled(self.net, self._modes, lambda: self._pass(self.net))
            self.net.eval()
            return samples.predicted(self.net, self.samples.inputs)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that lead somewhere for most networks."""
        parts = {"parts": min(4, len(self.layers.names))} if self.subdomains == "layers" else {}
        return _SETTINGS.get(solver, {}) | parts

    def identity(self) -> str:
        """Return the checksum of the samples."""
        return checksum(*self.samples.arrays())

    def details(self) -> dict[str, Any]:
        """Return how many samples there are, how a loss over several follows from theirs, and what is not used."""
        told = {
            self.samples.units: self._total,
            "loss_of_a_batch": {"whole": "coupled"}.get(self.model.kind, self.model.kind),
            "dropout": self.model.noisy,
        }
        if self.loss is None:
            told["task"] = self.samples.task.kind
        models = [model for model in (self.model, self._quiet) if "stacked" in vars(model)]
        notes = [*self.samples.notes, *dict.fromkeys(model.stacked.reason for model in models if model.stacked.reason)]
        return told | ({"notes": notes} if notes else {})
