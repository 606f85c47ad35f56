"""Objectives in other coordinates ``x = B v``, for solvers that know nothing of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, equal

from mldd.algebra.first_layer import Whitening
from mldd.algebra.objective import Around, Objective, Remembered, Stochastic, layers_of, memory_of, sampled
from mldd.algebra.objective import value_and_gradient as both


@dataclass(frozen=True)
class InCoordinates(Around):
    """The objective ``v -> f(B v)``, whose gradient is ``B g(B v)``; only for `f` without bounds.

    The last point is kept, so that value and gradient there, and the point itself at the end of a step, take one
    product with B together.

    Parameters
    ----------
    f : Objective
        The objective in x; it may be a batch.
    change : Whitening
        B and its inverse.
    """

    change: Whitening
    _point: list[Any] = field(default_factory=lambda: [None, -1, None], repr=False, compare=False)
    _pair: list[Any] = field(default_factory=lambda: [None, None], repr=False, compare=False)

    @property
    def batched(self) -> bool:
        """Whether `f` takes a batch of vectors."""
        return bool(getattr(self.f, "batched", False))

    def know(self, v: Tensor, x: Tensor) -> None:
        """Keep in mind that `v` stands for `x`, a tensor at which `f` may remember its gradient.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, n)
            Coordinates.
        x : Tensor, shape (n,) or (p, n)
            The point.
        """
        self._point[:] = v, v._version, x

    def at(self, v: Tensor) -> Tensor:
        """Return the point ``B v``.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, n)
            Coordinates.
        """
        last, version, x = self._point
        is_last = last is not None and last._version == version and (v is last or equal(v, last))
        if not is_last:
            x = self.change.apply(v)
            self.know(v, x)
        found: Tensor = x
        return found

    def image(self, g: Tensor) -> Tensor:
        """Return ``B g``, the gradient in v for the gradient `g` in x.

        Parameters
        ----------
        g : Tensor, shape (n,) or (p, n)
            Gradient of `f`.
        """
        if g is not self._pair[0]:
            self._pair[:] = g, self.change.apply(g)
        found: Tensor = self._pair[1]
        return found

    def origin(self, image: Tensor) -> Tensor:
        """Return the gradient in x whose image is given.

        Parameters
        ----------
        image : Tensor, shape (n,) or (p, n)
            Gradient in v.
        """
        g: Tensor = self._pair[0]
        return g if image is self._pair[1] else self.change.solve(image)

    def value(self, x: Tensor) -> Tensor:
        """Return ``f(B v)``."""
        return self.f.value(self.at(x))

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``B g(B v)``."""
        return self.image(self.f.gradient(self.at(x)))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, in one sweep where `f` offers it, in none where it remembers them."""
        at = self.at(x)
        if isinstance(self.f, Remembered) and self.f.told(at) is not None:
            g = self.f.gradient(at)
            return self.f.value(at), self.image(g)
        value, g = both(self.f, at)
        return value, self.image(g)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``B H(B v) B d`` for the direction d."""
        return self.change.apply(super().hessian_product(self.at(x), self.change.apply(v)))

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Refuse: the diagonal of ``B H B`` is not known from that of H.

        Raises
        ------
        ValueError
            Always.
        """
        raise ValueError(
            "a metric of the inputs needs a solver without the diagonal of the Hessian, got one with; use "
            "curvature=exact, or leave out the metric"
        )


def in_coordinates(f: Objective, change: Whitening) -> Objective:
    """Return `f` in other coordinates; a stochastic `f` gives one with samples in the same coordinates.

    Parameters
    ----------
    f : Objective
        In x.
    change : Whitening
        B and its inverse.
    """
    made = InCoordinates(f, change)
    if not hasattr(f, "sample"):
        return made
    return Stochastic(made, lambda step: InCoordinates(sampled(f, step), change), memory_of(f))


def coordinates_of(f: Objective) -> InCoordinates:
    """Return the layer of `f` in which the coordinates are changed.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    return next(layer for layer in layers_of(f) if isinstance(layer, InCoordinates))
