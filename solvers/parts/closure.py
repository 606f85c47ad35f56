"""The loss that a closure of torch computes, as an objective of the flat vector of its parameters."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from mldd.algebra import Bounds, Price, difference
from mldd.ranks import Replicas, replicas_of, torch_ranks
from mldd.solvers.parts.buffers import Buffers, holders, modules_alive
from mldd.solvers.parts.flat_parameters import FlatParameters


@dataclass
class Surroundings:
    """What lies around the closures of an optimizer, and stays from step to step: ranks, buffers, words already said.

    Parameters
    ----------
    solver : str
        Its name in messages.
    group : torch.distributed.ProcessGroup, "auto" or None
        Ranks with averaged gradients; "auto" takes those of DistributedDataParallel around the parameters.

    Attributes
    ----------
    replicas : Replicas or None
        The ranks, once known.
    """

    solver: str
    group: Any = "auto"
    replicas: Replicas | None = field(default=None, init=False)
    _known: bool = field(default=False, init=False, repr=False)
    _buffers: Buffers = field(default_factory=Buffers, init=False, repr=False)
    _told: set[str] = field(default_factory=set, init=False, repr=False)

    def tell(self, what: str, words: str) -> None:
        """Warn once.

        Parameters
        ----------
        what : str
            What the warning is of.
        words : str
            The warning.
        """
        if what not in self._told:
            self._told.add(what)
            warnings.warn(words, stacklevel=5)

    @contextmanager
    def first(self, parameters: list[nn.Parameter]) -> Iterator[None]:
        """Yield while watching which buffers the first evaluation of a step changes; find out first who holds them.

        Parameters
        ----------
        parameters : list of Parameter
            Those of the optimizer.

        Yields
        ------
        None
            To evaluate in between.
        """
        if not self._known:
            if torch_ranks() > 1:
                gc.collect()  # a wrapper that was dropped may still be there
            modules = modules_alive()
            model = holders(parameters, modules)
            self._buffers = Buffers(modules, model)
            if self.group == "auto":
                self.replicas = replicas_of(model)
            elif self.group is not None and torch_ranks() > 1:
                self.replicas = Replicas(self.group)
            self._known = True
        self._buffers.begin()
        try:
            yield
        except BaseException:
            self._known = False  # what the closure does was not seen to its end
            raise
        self._buffers.end()

    @contextmanager
    def further(self) -> Iterator[None]:
        """Put buffers back after a further evaluation in the same step.

        Yields
        ------
        None
            To evaluate in between.
        """
        self._buffers.save()
        try:
            yield
        finally:
            number = self._buffers.put_back()
        if number:
            self.tell(
                "buffers",
                f"{self.solver} evaluates the loss several times a step, and {number} buffers of the module change "
                "with every evaluation (running statistics of BatchNorm?); they are kept as after the first one of "
                "each step",
            )

    def refuse_unaveraged(self) -> None:
        """Refuse values of one rank alone where it is not said that ranks are alone.

        Raises
        ------
        ValueError
            Several ranks, none of which is known to hold a copy.
        """
        if self.group == "auto" and self.replicas is None and torch_ranks() > 1:
            self._known = False  # it may be wrapped before the next step
            raise ValueError(
                f"{self.solver} needs the loss over all {torch_ranks()} ranks of torch.distributed, got a module "
                "without a synchronised DistributedDataParallel around it; wrap it, or give `group`: the process group "
                "over which you average gradients yourself, or None where each rank trains alone"
            )


@dataclass
class ClosureObjective:
    """The loss that a closure computes, as a function of the flat vector of its parameters.

    Without a closure, or with one that returns nothing, there is one gradient only: what ``backward`` left behind.

    Parameters
    ----------
    closure : callable or None
        Computes loss and gradients.
    unknowns : FlatParameters
        The parameters; a point is written to them to be evaluated.
    bounds : Bounds
        Of the parameters.
    around : Surroundings
        What stays from step to step.
    decays : list of (slice, float)
        Weights of a term ``weight/2 |x|^2`` for parts of the vector, which is added to what the closure returns.
    price : Price
        Every evaluation costs a gradient.
    evaluations : int
        How often the closure was called.
    compared : bool
        Whether a value was asked for.
    loss : Tensor, shape (), or None
        What the last evaluation returned without the term of `decays`.
    """

    closure: Callable[[], Any] | None
    unknowns: FlatParameters
    bounds: Bounds
    around: Surroundings
    decays: Sequence[tuple[slice, float]] = ()
    price: Price = Price()  # noqa: RUF009 (frozen)
    evaluations: int = 0
    compared: bool = False
    loss: Tensor | None = field(default=None, init=False)
    _last: tuple[Tensor, int, Tensor | None, Tensor] | None = field(default=None, repr=False)

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return len(self.unknowns.vector)

    def evaluate(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        """Call the closure at a point.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.

        Returns
        -------
        value : Tensor, shape (), or None
            Mean over the ranks that hold copies, with decay; None where the closure returns nothing.
        g : Tensor, shape (n,)
            Gradient.

        Raises
        ------
        ValueError
            The loss cannot be evaluated again, a closure that adds up gradients, or none that is dense.
        """
        if self.evaluations > 0:
            self._refuse_more()
        self.price.of_gradient()
        self.evaluations += 1
        self.unknowns.write(x)
        if self.evaluations == 1:
            with self.around.first(self.unknowns.parameters) if self.closure is not None else nullcontext():
                loss, g = self._called()
        else:
            with self.around.further():
                loss, g = self._probed() if self.evaluations == 2 else self._called()
        value = None
        if loss is not None:
            value = torch.as_tensor(loss, dtype=x.dtype, device=x.device).detach()
            if value.numel() != 1:
                raise ValueError(f"the closure must return one number, got shape {tuple(value.shape)}; use .mean()")
            value = value.reshape(())
            if self.around.replicas is not None:
                value = self.around.replicas.mean(value, g)
        self.loss = value
        if self.decays:
            value = self._decayed(x, value, g)
        self._last = (x, x._version, value, g)
        return value, g

    def _decayed(self, x: Tensor, value: Tensor | None, g: Tensor) -> Tensor | None:
        """Return the value with decay, and add the gradient of that to `g`; parameters without a gradient have none."""
        if self.unknowns.without_gradient(x):
            x = x.clone()
            for part in self.unknowns.without_gradient(x):
                part.zero_()
        for where, weight in self.decays:
            part = x[where]
            g[where].add_(part, alpha=weight)
            value = None if value is None else value + 0.5 * weight * torch.dot(part, part)
        return value

    def _called(self) -> tuple[Any, Tensor]:
        """Return what the closure returns, and the gradient it leaves."""
        with torch.enable_grad():
            loss = None if self.closure is None else self.closure()
        return loss, self.unknowns.gradient()

    def _probed(self) -> tuple[Any, Tensor]:
        """Call the closure with gradients of NaN: where they shine through, it adds to those of other calls.

        Done once in every step, for a schedule may begin to accumulate gradients at any of them.
        """
        self.unknowns.spoil_gradients()
        loss, g = self._called()
        # Gradients decide, not the loss: they are the same on all ranks, which have to call it as often.
        if not bool(g.isnan().any()):
            return loss, g
        self.unknowns.drop_gradients()
        loss, g = self._called()
        if not bool(g.isnan().any()):
            raise ValueError(
                "the closure must clear all gradients before it computes new ones, got one that adds to those of "
                f"earlier calls, which {self.around.solver} cannot match with a loss; call optimizer.zero_grad() in "
                "the closure, and do not accumulate gradients over batches (accumulate_grad_batches=1)"
            )
        return loss, g

    def _refuse_more(self) -> None:
        """Refuse evaluations at other points where there can be none."""
        if self.closure is None:
            raise ValueError(
                f"{self.around.solver} needs a closure that computes the loss anew, got none; write "
                "optimizer.step(closure) with zero_grad, loss, backward and return loss in the closure (GradScaler "
                "allows none: leave it out, autocast to bfloat16 needs no scale)"
            )
        if self._last is not None and self._last[2] is None:
            raise ValueError("the closure must return the loss, got None; end it with `return loss`")
        self.around.refuse_unaveraged()

    def _known(self, x: Tensor) -> tuple[Tensor | None, Tensor]:
        last = self._last
        return last[2:] if last is not None and last[0] is x and last[1] == x._version else self.evaluate(x)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape ()."""
        return self.value_and_gradient(x)[0]

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, shape (n,)."""
        return self._known(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return loss and gradient.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.
        """
        self.compared = True
        value, g = self._known(x)
        self._refuse_more()
        assert value is not None
        return value, g

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return a difference of gradients, see `mldd.algebra.difference`: a closure offers no more."""
        g, here = self.gradient(x), self._last
        product = difference(lambda y: self.evaluate(y)[1], x, g, v)
        self._last = here  # the next product at x needs it again
        return product
