"""Objectives: what a solver sees of a problem, and how new ones are composed from old ones."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mldd.algebra.bounds import Bounds
from mldd.algebra.transfer import Transfer


@runtime_checkable
class Objective(Protocol):
    """A smooth function of one flat vector with bounds.

    A *batch* of p independent objectives is an objective of a (p, m) tensor whose value has shape (p,): solvers treat
    the last axis as the vector. Calls have no side effect besides counting (`mldd.algebra.cost`). Optional methods that
    solvers look for: ``value_and_gradient(x)``, ``hessian_product(x, v)``, ``hessian_diagonal(x)`` and
    ``sample(step)``.
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
        """Return the gradient at x, a new tensor of the shape of x."""
        ...

    def value(self, x: Tensor) -> Tensor:
        """Return the value at x, shape () or (p,)."""
        ...


def value_and_gradient(f: Objective, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return value and gradient, in one sweep where `f` offers it."""
    together = getattr(f, "value_and_gradient", None)
    return together(x) if together is not None else (f.value(x), f.gradient(x))


def sampled(f: Objective, step: int) -> Objective:
    """Return the objective of outer step `step`: ``f.sample(step)`` for a stochastic `f`, else `f` itself.

    Every level and subdomain of one step asks with the same number and so sees the same sample, on every rank.
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
        """Return the value of `f`."""
        return self.f.value(x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` of `f`."""
        return self.f.hessian_product(x, v)  # type: ignore[attr-defined, no-any-return]

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Return the diagonal of the Hessian of `f`."""
        return self.f.hessian_diagonal(x)  # type: ignore[attr-defined, no-any-return]


@dataclass(frozen=True, eq=False)
class Stochastic(Around):
    """`f`, of which every outer step sees another sample: a mini-batch, a draw of dropout.

    Its own value and derivatives are those of `f`, the loss over all data and without noise.

    Parameters
    ----------
    f : Objective
        What is asked for values, measures and pictures.
    draw : callable
        ``draw(step)`` returns the objective of outer step `step`; it depends on nothing else.
    """

    draw: Callable[[int], Objective]

    @property
    def batched(self) -> bool:
        """Whether `f` takes a batch of vectors."""
        return bool(getattr(self.f, "batched", False))

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of `f`."""
        return self.f.gradient(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient of `f`, in one sweep where it offers it."""
        return value_and_gradient(self.f, x)

    def sample(self, step: int) -> Objective:
        """Return the objective of outer step `step`."""
        return self.draw(step)


def layers_of(f: Any) -> Iterator[Any]:
    """Yield `f` and, from the outside in, the objectives that it is composed of: each is the ``f`` of the one before.

    Parameters
    ----------
    f : Objective
    """
    while f is not None:
        yield f
        f = getattr(f, "f", None)


def innermost(f: Any) -> Any:
    """Return the objective that `f` is composed of in the end.

    Parameters
    ----------
    f : Objective
    """
    *_, core = layers_of(f)
    return core


def without_memory(f: Any) -> Any:
    """Return the first layer of `f` that is not `Remembered`.

    Parameters
    ----------
    f : Objective
    """
    return next(layer for layer in layers_of(f) if not isinstance(layer, Remembered))


def offers(f: Objective, method: str) -> bool:
    """Say whether `f`, and all that it is composed of, have the optional `method`."""
    return all(hasattr(type(layer), method) for layer in layers_of(f))


def product_price(f: Objective) -> float:
    """Return what a Hessian product of `f` costs in its own gradients, infinity where `f` offers none."""
    if not offers(f, "hessian_product"):
        return torch.inf
    core = innermost(f)
    return float(core.price.product) if hasattr(core, "price") else 2.0


@dataclass(frozen=True)
class Restricted:
    """The objective ``e -> f(x + P e)`` on a subspace, with the bounds of `f` shifted by `x`.

    Parameters
    ----------
    f : Objective
    x : Tensor, shape (n,)
    transfer : Transfer
        Its ``shape`` is (n, size of the subspace).
    """

    f: Objective
    x: Tensor
    transfer: Transfer

    @property
    def size(self) -> int:
        """Dimension of the subspace."""
        return self.transfer.shape[1]

    @property
    def bounds(self) -> Bounds:
        """Bounds on e that keep ``x + P e`` feasible."""
        return self.transfer.restrict_bounds(self.f.bounds.shifted(self.x))

    def value(self, e: Tensor) -> Tensor:
        """Return ``f(x + P e)``."""
        return self.f.value(self.x + self.transfer.prolong(e))

    def gradient(self, e: Tensor) -> Tensor:
        """Return ``P^T g(x + P e)``."""
        return self.transfer.restrict(self.f.gradient(self.x + self.transfer.prolong(e)))

    def value_and_gradient(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep where `f` offers it."""
        value, g = value_and_gradient(self.f, self.x + self.transfer.prolong(e))
        return value, self.transfer.restrict(g)

    def hessian_product(self, e: Tensor, v: Tensor) -> Tensor:
        """Return ``P^T H(x + P e) P v``."""
        at = self.x + self.transfer.prolong(e)
        return self.transfer.restrict(self.f.hessian_product(at, self.transfer.prolong(v)))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Corrected(Around):
    """The first-order corrected model ``y -> f(y) + <delta, y - y0>``, with ``delta = R g(x) - grad f(y0)``.

    Its gradient at `y0` is the restricted fine gradient ``R g(x)`` (algorithm: coarse model of recursive multilevel
    optimisation, arXiv 2507.11513; FAS "tau"). A batch has one row of `delta` and `y0` per member.

    Parameters
    ----------
    f : Objective
    delta, y0 : Tensor, shape (n,) or (p, m)
    box : Bounds, optional
        Instead of those of `f`.
    """

    delta: Tensor
    y0: Tensor
    box: Bounds | None = None

    @cached_property
    def bounds(self) -> Bounds:
        """The box that was given, or that of `f`."""
        return self.f.bounds if self.box is None else self.box

    def value(self, y: Tensor) -> Tensor:
        """Return ``f(y) + <delta, y - y0>``."""
        return self.f.value(y) + (self.delta * (y - self.y0)).sum(-1)

    def gradient(self, y: Tensor) -> Tensor:
        """Return ``grad f(y) + delta``."""
        return self.f.gradient(y) + self.delta  # out of place: `f` may remember its gradient

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in one sweep."""
        value, g = value_and_gradient(self.f, y)
        return value + (self.delta * (y - self.y0)).sum(-1), g + self.delta


@dataclass(frozen=True)
class Proximal(Around):
    """The model with a proximal term ``y -> f(y) + mu/2 |y - y0|^2``: it bounds steps from `y0` where f does not.

    Parameters
    ----------
    f : Objective
        The model; of a batch, every member gets the term.
    mu : float
        Weight of the term, > 0.
    y0 : Tensor, shape (n,) or (p, m)
        Where steps begin.
    """

    mu: float
    y0: Tensor

    def value(self, y: Tensor) -> Tensor:
        """Return ``f(y) + mu/2 |y - y0|^2``."""
        return self.f.value(y) + 0.5 * self.mu * (y - self.y0).square().sum(-1)

    def gradient(self, y: Tensor) -> Tensor:
        """Return ``grad f(y) + mu (y - y0)``."""
        return torch.add(self.f.gradient(y), y - self.y0, alpha=self.mu)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in one sweep."""
        value, g = value_and_gradient(self.f, y)
        step = y - self.y0
        return value + 0.5 * self.mu * step.square().sum(-1), torch.add(g, step, alpha=self.mu)

    def hessian_product(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``H(y) v + mu v``."""
        return torch.add(super().hessian_product(y, v), v, alpha=self.mu)

    def hessian_diagonal(self, y: Tensor) -> Tensor:
        """Return the diagonal of the Hessian."""
        return super().hessian_diagonal(y) + self.mu


@dataclass(frozen=True)
class Row(Around):
    """The only member of a batch as an objective of one vector: for solvers that know no batches.

    Parameters
    ----------
    f : Objective
        Of (1, m) tensors.
    """

    @cached_property
    def bounds(self) -> Bounds:
        """Bounds of the only member."""
        bounds = self.f.bounds
        return Bounds(bounds.lower[0], bounds.upper[0], bounds.is_free)

    def value(self, y: Tensor) -> Tensor:
        """Return the value, shape ()."""
        return self.f.value(y[None])[0]

    def gradient(self, y: Tensor) -> Tensor:
        """Return the gradient, shape (m,)."""
        return self.f.gradient(y[None])[0]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient."""
        value, g = value_and_gradient(self.f, y[None])
        return value[0], g[0]

    def hessian_product(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``H(y) v``, shape (m,)."""
        return self.f.hessian_product(y[None], v[None])[0]  # type: ignore[attr-defined, no-any-return]

    def hessian_diagonal(self, y: Tensor) -> Tensor:
        """Return the diagonal of the Hessian, shape (m,)."""
        return self.f.hessian_diagonal(y[None])[0]  # type: ignore[attr-defined, no-any-return]


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
    """

    values: bool = False
    _last: list[Any] = field(default_factory=lambda: [None, -1, None, None], repr=False, compare=False)

    def _known(self, x: Tensor) -> bool:
        return x is self._last[0] and bool(x._version == self._last[1])

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient; callers may not write to it."""
        if not self._known(x):
            if self.values:
                return self.value_and_gradient(x)[1]
            self.keep(x, self.f.gradient(x))
        g: Tensor = self._last[2]
        return g

    def value(self, x: Tensor) -> Tensor:
        """Return the value, without an evaluation where it has come with the gradient."""
        if self._known(x) and self._last[3] is not None:
            value: Tensor = self._last[3]
            return value.clone()
        return self.f.value(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient, and remember both."""
        value, g = value_and_gradient(self.f, x)
        self._last[:] = x, x._version, g, value.clone()
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
        self._last[:] = x, x._version, g, None


def remember(f: Objective, x: Tensor, g: Tensor) -> None:
    """Tell `f`, if it remembers, that its gradient at `x` is `g`."""
    if isinstance(f, Remembered):
        f.keep(x, g)
