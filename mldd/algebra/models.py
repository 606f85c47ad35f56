"""Models on coarse levels and subdomains, composed of the objective: restricted, corrected, proximal."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra.bounds import Bounds
from mldd.algebra.objective import Around, Objective, value_and_gradient
from mldd.algebra.transfer import Transfer


@dataclass(frozen=True)
class Restricted:
    """The objective ``e -> f(x + P e)`` on a subspace, with the bounds of `f` shifted by `x`.

    Parameters
    ----------
    f : Objective
        The objective on the whole space.
    x : Tensor, shape (n,)
        Where the subspace is attached.
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
        """Return ``f(x + P e)``.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the subspace.
        """
        return self.f.value(self.x + self.transfer.prolong(e))

    def gradient(self, e: Tensor) -> Tensor:
        """Return ``P^T g(x + P e)``.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the subspace.
        """
        return self.transfer.restrict(self.f.gradient(self.x + self.transfer.prolong(e)))

    def value_and_gradient(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep where `f` offers it.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the subspace.
        """
        value, g = value_and_gradient(self.f, self.x + self.transfer.prolong(e))
        return value, self.transfer.restrict(g)

    def hessian_product(self, e: Tensor, v: Tensor) -> Tensor:
        """Return ``P^T H(x + P e) P v``.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the subspace.
        v : Tensor, shape (k,)
            The direction.
        """
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
        The coarse or local objective.
    delta, y0 : Tensor, shape (n,) or (p, m)
        Correction of the gradient, and the point it belongs to.
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
        """Return ``f(y) + mu/2 |y - y0|^2``.

        Parameters
        ----------
        y : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        return self.f.value(y) + 0.5 * self.mu * (y - self.y0).square().sum(-1)

    def gradient(self, y: Tensor) -> Tensor:
        """Return ``grad f(y) + mu (y - y0)``.

        Parameters
        ----------
        y : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        return torch.add(self.f.gradient(y), y - self.y0, alpha=self.mu)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in one sweep.

        Parameters
        ----------
        y : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
        value, g = value_and_gradient(self.f, y)
        step = y - self.y0
        return value + 0.5 * self.mu * step.square().sum(-1), torch.add(g, step, alpha=self.mu)

    def hessian_product(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``H(y) v + mu v``.

        Parameters
        ----------
        y : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        v : Tensor, shape (n,) or (p, m)
            The direction.
        """
        return torch.add(super().hessian_product(y, v), v, alpha=self.mu)

    def hessian_diagonal(self, y: Tensor) -> Tensor:
        """Return the diagonal of the Hessian.

        Parameters
        ----------
        y : Tensor, shape (n,) or (p, m)
            Where to evaluate.
        """
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
