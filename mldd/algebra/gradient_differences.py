"""Hessian products as differences of gradients, for objectives that offer none."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mldd.algebra.objective import Around, Objective, offers, value_and_gradient, without_memory

DIFFERENCES = "steps whose curvature is a difference of gradients, as the objective has no `hessian_product`"


def difference(gradient: Callable[[Tensor], Tensor], x: Tensor, g: Tensor, v: Tensor) -> Tensor:
    """Return ``(g(x + t v) - g(x)) / t`` with ``t = sqrt(eps) (1 + |x|) / |v|``, an approximation of ``H(x) v``.

    Parameters
    ----------
    gradient : callable
        ``gradient(x)``, evaluated once.
    x : Tensor, shape (n,) or (p, m)
        The point.
    g : Tensor, shape (n,) or (p, m)
        The gradient there.
    v : Tensor, shape (n,) or (p, m)
        The direction; the product is zero where it is.

    References
    ----------
    The step is that of Nocedal and Wright, Numerical Optimization (2006), section 8.1, scaled by the vectors.
    """
    norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
    size = torch.linalg.vector_norm(x, dim=-1, keepdim=True)
    t = torch.finfo(x.dtype).eps ** 0.5 * (1 + size) / torch.where(norm > 0, norm, 1.0)
    return torch.where(norm > 0, (gradient(x + t * v) - g) / t, 0.0)


@dataclass(frozen=True, eq=False)
class Differences(Around):
    """`f` with Hessian products that are differences of its gradients, one gradient each.

    Parameters
    ----------
    f : Objective
        One without products, or composed of one; what it remembers stays as it is.
    """

    supplies = ("hessian_product",)  # without help of `f`

    _last: list[Any] = field(default_factory=list, repr=False)

    @property
    def batched(self) -> bool:
        """Whether `f` takes a batch of vectors."""
        return bool(getattr(without_memory(self.f), "batched", False))

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of `f`."""
        return self.f.gradient(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient of `f`, in one sweep where it offers it."""
        return value_and_gradient(self.f, x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return an approximation of ``H(x) v``; the gradient at `x` is evaluated once for all products there."""
        f = without_memory(self.f)
        if not (self._last and torch.equal(self._last[0], x)):
            self._last[:] = x.clone(), f.gradient(x)
        return difference(f.gradient, x, self._last[1], v)


def with_products(f: Objective, x: Tensor | None = None, g: Tensor | None = None) -> Objective:
    """Return `f`, or `Differences` of it where it offers no ``hessian_product``.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    x : Tensor, shape (n,) or (p, m), optional
        A point where products will be asked for.
    g : Tensor, shape (n,) or (p, m), optional
        The gradient there, which saves an evaluation.
    """
    if offers(f, "hessian_product"):
        return f
    return Differences(f, [] if x is None or g is None else [x.clone(), g])
