"""Objectives: what a solver sees of a problem, and how new ones are composed from old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mldd.algebra.bounds import Bounds
from mldd.algebra.contract import as_value, check_gradient, check_left, version_of


@runtime_checkable
class Objective(Protocol):
    """A smooth function of one flat vector with bounds.

    A *batch* of p independent objectives is an objective of a (p, m) tensor whose value has shape (p,): solvers treat
    the last axis as the vector. Calls have no side effect besides counting (`mldd.algebra.cost`). Optional methods that
    solvers look for: ``value_and_gradient(x)``, ``hessian_product(x, v)``, ``hessian_diagonal(x)``, ``hessian(x)``
    (see `mldd.algebra.hessian`) and ``sample(step)``.
    """

    @property
    def size(self) -> int:
        """Number of unknowns."""
        ...

    @property
    def bounds(self) -> Bounds:
        """The box."""
        ...

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient at x, a new tensor of the shape of x.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        ...

    def value(self, x: Tensor) -> Tensor:
        """Return the value at x, shape () or (p,).

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        ...


def value_and_gradient(f: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and gradient, in one sweep where `f` offers it.

    Parameters
    ----------
    f : Objective
        What is evaluated.
    x : Tensor, shape (n,) or (p, m)
        Where to evaluate.
    """
    together = getattr(f, "value_and_gradient", None)
    return together(x) if together is not None else (f.value(x), f.gradient(x))


def sampled(f: Objective, step: int) -> Objective:
    """Return the objective of outer step `step`: ``f.sample(step)`` for a stochastic `f`, else `f` itself.

    Every level and subdomain of one step asks with the same number and so sees the same sample, on every rank.

    Parameters
    ----------
    f : Objective
        Stochastic or not.
    step : int
        Number of the outer step.
    """
    sample = getattr(f, "sample", None)
    return f if sample is None else sample(step)


@dataclass(frozen=True)
class Around:
    """An objective around another one of the same unknowns; what a subclass does not change is that of `f`.

    Parameters
    ----------
    f : Objective
        The next layer.
    """

    f: Objective

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.f.size

    @property
    def bounds(self) -> Bounds:
        """The box of `f`."""
        return self.f.bounds

    def value(self, x: Tensor) -> Tensor:
        """Return the value of `f`.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        return self.f.value(x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` of `f`.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        v : Tensor, shape (n,) or (p, m)
            The direction.
        """
        return self.f.hessian_product(x, v)  # type: ignore[attr-defined, no-any-return]

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Return the diagonal of the Hessian of `f`.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        return self.f.hessian_diagonal(x)  # type: ignore[attr-defined, no-any-return]


class SampleMemory(Protocol):
    """What the samples of a stochastic objective remember from step to step: part of what a run goes on from."""

    def state(self) -> Any:
        """Return what is remembered now, as plain data; all ranks call it together."""
        ...

    def restore(self, state: Any, device: torch.device) -> None:
        """Remember what `state` has returned.

        Parameters
        ----------
        state : object
            Plain data on the CPU.
        device : torch.device
            Where the samples are evaluated.
        """
        ...


@dataclass(frozen=True, eq=False)
class Stochastic(Around):
    """`f`, of which every outer step sees another sample: a mini-batch, a draw of dropout.

    Its own value and derivatives are those of `f`, the loss over all data and without noise.

    Parameters
    ----------
    f : Objective
        What is asked for values, measures and pictures.
    draw : callable
        ``draw(step)`` returns the objective of outer step `step`; it depends on nothing else but the `memory`.
    memory : SampleMemory, optional
        What the samples remember from step to step; None for nothing.
    """

    draw: Callable[[int], Objective]
    memory: SampleMemory | None = None

    @property
    def batched(self) -> bool:
        """Whether `f` takes a batch of vectors."""
        return bool(getattr(self.f, "batched", False))

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of `f`.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        return self.f.gradient(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient of `f`, in one sweep where it offers it.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        return value_and_gradient(self.f, x)

    def sample(self, step: int) -> Objective:
        """Return the objective of outer step `step`.

        Parameters
        ----------
        step : int
            Number of the outer step.
        """
        return self.draw(step)


def layers_of(f: Any) -> Iterator[Any]:
    """Yield `f` and, from the outside in, the objectives that it is composed of: each is the ``f`` of the one before.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    while f is not None:
        yield f
        f = getattr(f, "f", None)


def memory_of(f: Any) -> SampleMemory | None:
    """Return what the samples of `f`, or of a layer of it, remember from step to step; None for nothing.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    found = (getattr(layer, "memory", None) for layer in layers_of(f) if isinstance(layer, Stochastic))
    return next((memory for memory in found if memory is not None), None)


def innermost(f: Any) -> Any:
    """Return the objective that `f` is composed of in the end.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    *_, core = layers_of(f)
    return core


def without_memory(f: Any) -> Any:
    """Return the first layer of `f` that is not `Remembered`.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    return next(layer for layer in layers_of(f) if not isinstance(layer, Remembered))


def offers(f: Objective, method: str) -> bool:
    """Return whether `f` has the optional `method`, and what it asks for it, down to a layer that `supplies` it.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    method : str
        Its name.
    """
    for layer in layers_of(f):
        if method in getattr(type(layer), "supplies", ()):
            return True
        if not hasattr(type(layer), method):
            return False
    return True


def product_price(f: Objective) -> float:
    """Return what a Hessian product of `f` costs in its own gradients, infinity where `f` offers none.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    if not offers(f, "hessian_product"):
        return torch.inf
    if any("hessian_product" in getattr(type(layer), "supplies", ()) for layer in layers_of(f)):
        return 1.0
    core = innermost(f)
    return float(core.price.product) if hasattr(core, "price") else 2.0


@dataclass(frozen=True)
class Noisy(Around):
    """`f` with relative Gaussian noise on every component of its gradient, ``g_i (1 + level xi_i)``.

    The noise xi is drawn once per outer step: like a mini-batch it is the same for every evaluation of that step.
    Values and curvature have none.

    Parameters
    ----------
    f : Objective
    level : float
        Standard deviation of the relative noise.
    seed : int
        Different for every level of a hierarchy.
    step : int
        Outer step whose noise this is.

    References
    ----------
    The noise of the experiments of arXiv 2203.01647.
    """

    level: float
    seed: int = 0
    step: int = 0

    def sample(self, step: int) -> Noisy:
        """Return the objective with the noise of outer step `step`."""
        return Noisy(self.f, self.level, self.seed, step)

    @cached_property
    def _factor(self) -> Tensor:
        generator = torch.Generator().manual_seed(1_000_003 * self.seed + self.step)
        like = self.f.bounds.lower
        noise = torch.randn(self.size, generator=generator, dtype=like.dtype)
        return noise.mul_(self.level).add_(1.0).to(like.device)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the noisy gradient."""
        return self.f.gradient(x) * self._factor  # out of place: `f` may remember its gradient


@dataclass(frozen=True)
class Remembered(Around):
    """`f`, remembering the gradient at the last point asked for.

    The loop asks for the gradient (stopping test) and the solver's step asks for it again at the same point: one
    evaluation. A point is the same when the tensor is the same object and was not written to since; the tensor is held,
    because the address of one that was freed is soon given to another.

    Parameters
    ----------
    f : Objective
        The objective that is evaluated.
    values : bool
        Whether gradients are evaluated together with values, which are remembered too: one evaluation and one message
        for a solver that asks for both.
    source : Objective, optional
        The stochastic objective that `f` is a sample of: what a solver asks for samples of its own.
    """

    values: bool = False
    source: Objective | None = None
    _last: list[Any] = field(default_factory=lambda: [None, -1, None, None, -1], repr=False, compare=False)

    def _known(self, x: Tensor) -> bool:
        return x is self._last[0] and bool(x._version == self._last[1])

    def told(self, x: Tensor) -> Tensor | None:
        """Return the gradient at `x` where it is remembered, without an evaluation; None where it is not.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            The point.
        """
        return self._last[2] if self._known(x) else None

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient; callers may not write to it."""
        if not self._known(x):
            if self.values:
                return self.value_and_gradient(x)[1]
            version = x._version
            self.keep(x, self._checked(x, version, self.f.gradient(x), "gradient(x)"))
        g: Tensor = self._last[2]
        return g

    def _checked(self, x: Tensor, version: int, g: Tensor, what: str) -> Tensor:
        """Return a gradient, refusing what is none; that of the point before is still held."""
        check_left(self.f, x, version, what)
        check_gradient(self.f, x, g, (self._last[2], self._last[4]))
        return g

    def value(self, x: Tensor) -> Tensor:
        """Return the value, without an evaluation where it has come with the gradient."""
        if self._known(x) and self._last[3] is not None:
            value: Tensor = self._last[3]
            return value.clone()
        version = x._version
        found = as_value(self.f.value(x), x)
        check_left(self.f, x, version, "value(x)")
        return found

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient, and remember both."""
        version = x._version
        value, g = value_and_gradient(self.f, x)
        value = as_value(value, x)
        self._checked(x, version, g, "value(x) or gradient(x)")
        self._last[:] = x, x._version, g, value.clone(), version_of(g)
        return value, g

    def keep(self, x: Tensor, g: Tensor) -> None:
        """Remember that the gradient at `x` is `g`: for a solver that knows it at the end of its step.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Where the solver has arrived.
        g : Tensor, shape (n,)
            The gradient there.
        """
        self._last[:] = x, x._version, g, None, version_of(g)


def remember(f: Objective, x: Tensor, g: Tensor) -> None:
    """Tell `f`, if it remembers, that its gradient at `x` is `g`.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    x : Tensor, shape (n,)
        Where the solver has arrived.
    g : Tensor, shape (n,)
        The gradient there.
    """
    if isinstance(f, Remembered):
        f.keep(x, g)
