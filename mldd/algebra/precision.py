"""Objectives that are evaluated in another precision than the one that solvers work in."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mldd.algebra.bounds import Bounds
from mldd.algebra.objective import Around, Objective, Stochastic, sampled, value_and_gradient


@dataclass(frozen=True)
class Cast(Around):
    """`f`, evaluated in a low precision for vectors of a high one: ``x -> high(f(low(x)))``.

    Solvers keep iterates, sums and curvature pairs in the high precision; only evaluations round. The relative error of
    a gradient is about the unit roundoff of the low precision times the condition of the evaluation, so that measures
    below that level cannot be reached.

    Parameters
    ----------
    f : Objective
        Of vectors of the dtype `low`.
    low, high : dtype
        Of evaluations, and of what comes in and goes out.

    Examples
    --------
    ``Cast(problem.objective(), torch.float32)`` for a problem in float32 and a solver in float64.
    """

    low: torch.dtype = torch.float32
    high: torch.dtype = torch.float64

    @property
    def batched(self) -> bool:
        """Whether `f` takes a batch of vectors."""
        return bool(getattr(self.f, "batched", False))

    @cached_property
    def bounds(self) -> Bounds:
        """The box of `f` in the high precision."""
        box = self.f.bounds
        return Bounds(box.lower.to(self.high), box.upper.to(self.high), box.is_free)

    def value(self, x: Tensor) -> Tensor:
        """Return the value, shape () or (p,)."""
        return self.f.value(x.to(self.low)).to(self.high)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.f.gradient(x.to(self.low)).to(self.high)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, in one sweep where `f` offers it."""
        value, g = value_and_gradient(self.f, x.to(self.low))
        return value.to(self.high), g.to(self.high)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` of `f`."""
        f: Any = self.f
        product: Tensor = f.hessian_product(x.to(self.low), v.to(self.low))
        return product.to(self.high)

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Return the diagonal of the Hessian of `f`."""
        f: Any = self.f
        diagonal: Tensor = f.hessian_diagonal(x.to(self.low))
        return diagonal.to(self.high)


def cast(f: Objective, low: torch.dtype, high: torch.dtype) -> Objective:
    """Return `f` for vectors of the dtype `high`: itself where it is evaluated in `high`.

    Parameters
    ----------
    f : Objective
        In its own precision.
    low : torch.dtype
        In which it is evaluated.
    high : torch.dtype
        Of the vectors of the solver.
    """
    if low == high:
        return f
    if not hasattr(f, "sample"):
        return Cast(f, low, high)
    return Stochastic(Cast(f, low, high), lambda step: Cast(sampled(f, step), low, high))
