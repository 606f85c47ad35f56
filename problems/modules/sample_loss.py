"""The loss of a module over some of its samples, shared out to ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from mldd.algebra import Bounds, FirstLayer, FlatModule, Modes, Price, StackedModules, uncounted
from mldd.problems.modules.part_functions import Noise, SampleFunctions, Statistics
from mldd.problems.modules.user_modules import first_linear, has_statistics, left_alone
from mldd.problems.nets import Draw
from mldd.ranks import Communicator

if TYPE_CHECKING:
    from mldd.problems.modules.part_losses import PartLosses

Kind = Literal["mean", "sum", "whole"]
_PROBED = 1024  # samples on which it is measured how a loss depends on them
_AT_ONCE = 1024  # samples that are evaluated together where they may be evaluated one after the other


@dataclass(frozen=True, eq=False)
class Unit:
    """Samples that are evaluated together.

    Parameters
    ----------
    batch : object
        Inputs and targets.
    weight : float
        Of the loss over the batch.
    seed : int
        Of dropout.
    numbers : dict of int to Tensor
        Global numbers of what tensors have rows for, by how many there are.
    comm : Communicator or None
        Ranks over which batch statistics are taken.
    """

    batch: Any
    weight: float
    seed: int
    numbers: Mapping[int, Tensor]
    comm: Communicator | None


@dataclass(frozen=True, eq=False)
class SampledModule:
    """A module with its loss and samples, and how the loss over some samples follows from that over fewer.

    Parameters
    ----------
    flat : FlatModule
        The module.
    loss : callable
        ``loss(module, batch)`` returns one number.
    samples : Samples or GraphSamples
        All of them.
    modes : dict of nn.Module to bool
        Training modes in evaluations.
    weights : Tensor, shape (n,), optional
        Of the samples in a loss that is a mean; by default they count alike.
    at_once : int
        Samples that are evaluated together at most where they need not be.
    without_noise : bool
        No module draws random numbers in these modes.
    """

    flat: FlatModule
    loss: Callable[[nn.Module, Any], Tensor]
    samples: Any
    modes: Modes
    weights: Tensor | None = None
    at_once: int = _AT_ONCE
    without_noise: bool = False

    def quiet(self) -> SampledModule:
        """Return the same without dropout: what is in training mode, but batch normalisation, is in the mode eval."""
        if not self.noisy:
            return self
        modes = {m: on and has_statistics(m) for m, on in self.modes.items()}
        return replace(self, modes=modes, without_noise=True)

    def evaluate(self, rows: Tensor, noise: int = 0, fixed: list[Statistics] | None = None) -> tuple[Tensor, Tensor]:
        """Return loss, shape (), and gradient, shape (n,), over some samples at the module's own parameters, uncounted.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            Numbers of the samples.
        noise : int
            Seed of dropout.
        fixed : list, optional
            Batch statistics that are taken as constants; an empty list is filled.
        """
        batch, numbers = self.samples.take(rows), self.samples.numbers(rows)

        def loss(module: nn.Module) -> Tensor:
            with SampleFunctions(numbers, Noise(noise, 0), None, fixed), left_alone("`loss`", batch):
                return self.loss(module, batch)

        with uncounted():
            return self.flat.value_and_gradient(self.flat.flat, loss, noise, self.modes)

    @cached_property
    def stacked(self) -> StackedModules:
        """The module with several sets of parameters."""
        return StackedModules(self.flat, self.loss, self.modes)

    def loss_of(self, unit: Unit) -> Callable[[nn.Module], Tensor]:
        """Return the loss over a unit times its weight as a function of the module.

        The weight stands inside, for batch statistics of several ranks join the derivatives of their losses.

        Parameters
        ----------
        unit : Unit
            Which samples.
        """
        plain = unit.comm is None and not self.noisy

        def loss(module: nn.Module) -> Tensor:
            with nullcontext() if plain else SampleFunctions(unit.numbers, Noise(unit.seed, 0), unit.comm):
                return unit.weight * self.loss(module, unit.batch)

        return loss

    @cached_property
    def _probe(self) -> Tensor:
        n = len(self.samples)
        return torch.arange(n) if n <= _PROBED else torch.arange(0, n, -(-n // _PROBED))

    @cached_property
    def noisy(self) -> bool:
        """Whether the loss draws random numbers: it is another one for another seed."""
        if self.without_noise:
            return False
        rows = self._probe[:1] if self.samples.in_batches else self._probe
        first, second = (self.evaluate(rows, noise) for noise in (0, 1))
        return not _close(first, second)

    @cached_property
    def statistics(self) -> bool:
        """Whether a module inside normalises by the statistics of the batch."""
        return any(has_statistics(m) and (on or m.running_mean is None) for m, on in self.modes.items())

    @cached_property
    def kind(self) -> Kind:
        """How the loss over several samples follows from those over some of them: as mean, as sum, or not at all.

        It is measured at the module's own parameters. What batch normalisation does is left aside: ranks that share a
        batch take its statistics together.
        """
        if self.samples.in_batches:
            return "mean"
        rows, third = self._probe, max(1, len(self._probe) // 3)
        fixed: list[Statistics] = []
        whole = self.evaluate(rows, 0, fixed)
        if len(rows) == 1:
            return "whole"
        pieces = [piece for piece in (rows[:third], rows[third:]) if self.weight_of(piece) > 0]
        parts = [self.evaluate(piece, 0, fixed) for piece in pieces]
        if _close(whole, _combined(parts, [self.weight_of(piece) / self.weight_of(rows) for piece in pieces])):
            return "mean"
        return "sum" if _close(whole, _combined(parts, [1.0 for _ in parts])) else "whole"

    def weight_of(self, rows: Tensor) -> float:
        """Return the weight of some samples together in the mean over all.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            Numbers of the samples.
        """
        return float(len(rows) if self.weights is None else self.weights[rows].sum())

    def units(self, rows: Tensor, noise: int, comm: Communicator | None, of: int) -> Iterator[Unit]:
        """Yield what this rank evaluates of the loss over some samples.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            Numbers of the samples.
        noise : int
            Seed of dropout.
        comm : Communicator or None
            Its ranks share the samples; of a loss that cannot be divided, the first one has all. None for all of them.
        of : int
            Number of samples that these ones stand for, by which a loss that is a sum is scaled.
        """
        statistics = self.statistics and not self.samples.in_batches
        shared = comm if statistics and comm is not None and self.is_shared(rows, comm) else None
        for unit in self._divided(rows, comm):
            if len(unit) and self.weight_of(unit) > 0:  # a mean over nothing is not a number
                weight = 1.0 if self.kind == "whole" else self.weight_of(unit) / self.weight_of(rows)
                seed = hash((noise, int(unit[0]))) if self.samples.in_batches else noise
                yield Unit(
                    self.samples.take(unit),
                    of / len(rows) if self.kind == "sum" else weight,
                    seed % 2**63,
                    self.samples.numbers(unit),
                    shared,
                )

    def is_shared(self, rows: Tensor, comm: Communicator) -> bool:
        """Return whether ranks share the samples of a batch: not where these are coupled, or too few for statistics.

        Parameters
        ----------
        rows : Tensor, shape (m,), int64
            Numbers of the samples.
        comm : Communicator
            The ranks.
        """
        if self.samples.in_batches or not self.statistics:
            return self.kind != "whole"
        weighty = self.weights is None or bool((self.weights[rows] > 0).all())
        return self.kind != "whole" and weighty and len(rows) >= comm.ranks > 1

    def _divided(self, rows: Tensor, comm: Communicator | None) -> Sequence[Tensor]:
        """Return the samples of this rank, in pieces that are evaluated one after the other."""
        if self.samples.in_batches:
            units = torch.split(rows, 1)
            mine = range(len(units)) if comm is None else comm.share(len(units))
            return units[mine.start : mine.stop]
        if comm is not None and not self.is_shared(rows, comm):
            return [rows] if comm.rank == 0 else []
        mine = range(len(rows)) if comm is None else comm.share(len(rows))
        whole = self.kind == "whole" or self.statistics
        return torch.split(rows[mine.start : mine.stop], len(rows) if whole else self.at_once)


@dataclass(frozen=True, eq=False)
class SampleLoss:
    """The loss of a module over some samples, shared out to the ranks of a communicator.

    Parameters
    ----------
    model : SampledModule
        Module, loss and samples.
    rows : Tensor, shape (m,), int64
        Numbers of the samples.
    price : Price
        What an evaluation of all these samples costs.
    comm : Communicator or None
        Value and gradient are summed over its ranks in one collective; None where this rank evaluates all.
    noise : int
        Seed of dropout.
    drawn : Draw, optional
        The mini-batch, where it is one.
    of : int
        Number of samples that these ones stand for, 0 for their own.
    """

    model: SampledModule
    rows: Tensor
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = None
    noise: int = 0
    drawn: Draw | None = None
    of: int = 0
    units: list[Unit] = field(init=False, repr=False)
    price_here: Price = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Take the samples of this rank."""
        made = list(self.model.units(self.rows, self.noise, self.comm, self.of or len(self.rows)))
        share = 1.0 if self.comm is None else self._share(self.comm)
        object.__setattr__(self, "units", made)
        object.__setattr__(self, "price_here", self.price.scaled(share))

    def _share(self, comm: Communicator) -> float:
        """Return the share of the work that this rank has."""
        units = len(self.rows) if self.model.is_shared(self.rows, comm) else 1
        return len(comm.share(units)) / units

    batched: ClassVar[bool] = True

    def _rows(self, x: Tensor) -> PartLosses:
        """Return this loss once for every row of a batch of parameters."""
        from mldd.problems.modules.part_losses import PartLosses

        return PartLosses([self] * len(x), x, self.size)

    @property
    def size(self) -> int:
        """Number of parameters."""
        return self.model.flat.size

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        like = self.model.flat.flat
        return Bounds.free(self.size, dtype=like.dtype, device=like.device)

    def _evaluations(self) -> Iterator[dict[str, Any]]:
        for unit in self.units:
            yield {"loss": self.model.loss_of(unit), "noise": unit.seed, "modes": self.model.modes}

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape (), or the losses for a batch of parameters, shape (p,)."""
        if x.dim() == 2:
            return self._rows(x).value(x)
        self.price_here.of_value()
        total = x.new_zeros(())
        for options in self._evaluations():
            total += self.model.flat.value(x, **options)
        return total if self.comm is None else self.comm.sum_values(total)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Parameters.
        """
        if x.dim() == 2:
            return self._rows(x).value_and_gradient(x)
        self.price_here.of_gradient()
        total = x.new_zeros(self.size + 1)
        for options in self._evaluations():
            value, g = self.model.flat.value_and_gradient(x, **options)
            total[:-1].add_(g)
            total[-1] += value
        if self.comm is not None:
            total = self.comm.sum(total)
        return total[-1].clone(), total[:-1]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``, of the shape of x."""
        if x.dim() == 2:
            return self._rows(x).hessian_product(x, v)
        self.price_here.of_product()
        total = x.new_zeros(self.size)
        for options in self._evaluations():
            total.add_(self.model.flat.hessian_product(x, v, **options))
        return total if self.comm is None else self.comm.sum(total)


def _combined(parts: Sequence[tuple[Tensor, Tensor]], weights: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return the weighted sums of losses and of gradients."""
    values, gradients = zip(*parts, strict=True)
    pairs = list(zip(weights, values, gradients, strict=True))
    return sum((w * v for w, v, _ in pairs), torch.zeros(())), sum((w * g for w, _, g in pairs), torch.zeros(()))


def _close(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> bool:
    """Say whether two losses with their gradients are equal up to rounding."""
    (f, g), (f2, g2) = first, second
    tolerance = torch.finfo(g.dtype).eps ** 0.6
    size = float(torch.linalg.vector_norm(g))
    return bool((f - f2).abs() <= tolerance * f.abs().clamp(min=1e-30)) and (
        float(torch.linalg.vector_norm(g - g2)) <= tolerance * max(size, 1e-30) * 10
    )


def first_of_samples(model: SampledModule, x: Tensor, comm: Communicator) -> FirstLayer:
    """Return what the first linear map of the module is applied to for this rank's share of the samples.

    Parameters
    ----------
    model : SampledModule
        Module, loss and samples; in modes in which nothing is random.
    x : Tensor, shape (n,)
        Parameters of the module: those behind the first linear map do not matter.
    comm : Communicator
        The ranks that share the samples.
    """
    samples, mine = model.samples, comm.share(len(model.samples))
    size = 1 if samples.in_batches else model.at_once

    def called() -> None:
        for start in range(mine.start, mine.stop, size):
            model.loss(model.flat.module, samples.take(torch.arange(start, min(start + size, mine.stop))))

    with model.flat.at(x, modes=model.modes):
        return first_linear(model.flat, called, comm)
