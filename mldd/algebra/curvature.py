"""The Hessian of an objective at one point: what products at this point share is computed once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mldd.algebra.objective import Around, Objective

_LANCZOS = 6  # steps for the largest eigenvalue


class Hessian(Protocol):
    """The Hessian at one point.

    An objective may offer it by a method ``hessian(x)``; it then agrees with ``hessian_product`` and
    ``hessian_diagonal``. What derives from this class has an estimate and a defect from its products.
    """

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, of the shape of the point."""
        ...

    @property
    def largest(self) -> float:
        """An upper estimate of the largest eigenvalue of ``D^-1 H``, D the diagonal: a smoother damps up to it."""
        return largest_eigenvalue(self)

    def product(self, v: Tensor) -> Tensor:
        """Return ``H v``, a new tensor.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, m)
            The direction, of the shape of the point, or several ones of a point of shape (n,).
        """
        ...

    def defect(self, v: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Return ``weight (b - H v)``, a new tensor: what a smoother or a residual on free unknowns takes.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, m)
            The direction, of the shape of the point.
        b : Tensor, shape (n,) or (p, m)
            The right-hand side.
        weight : Tensor, shape (n,) or (p, m)
            Factors of the components.
        """
        return torch.sub(b, self.product(v)).mul_(weight)

    def relaxed(self, v: Tensor, b: Tensor, steps: Sequence[Tensor]) -> Tensor:
        """Return what the steps ``v <- v + w (b - H v)`` of a smoother make of v, which may be written to.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, m)
            Where they begin, of the shape of the point.
        b : Tensor, shape (n,) or (p, m)
            The right-hand side.
        steps : sequence of Tensor, shape (n,) or (p, m)
            Their factors w, one after the other.
        """
        for weight in steps:
            v.add_(self.defect(v, b, weight))
        return v


@dataclass(frozen=True)
class ByProducts(Hessian):
    """The Hessian of an objective that shares nothing between products.

    Parameters
    ----------
    f : Objective
        It offers ``hessian_product``.
    x : Tensor, shape (n,) or (p, m)
        The point; it is not copied.
    """

    f: Any
    x: Tensor

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal, if `f` offers it."""
        found: Tensor = self.f.hessian_diagonal(self.x)
        return found

    def product(self, v: Tensor) -> Tensor:
        """Return ``H v``."""
        if v.dim() > self.x.dim():
            return torch.stack([self.product(row) for row in v])
        found: Tensor = self.f.hessian_product(self.x, v)
        return found


@dataclass(frozen=True)
class AroundHessian(Hessian):
    """A Hessian whose evaluations are watched, by one that counts or clocks them, say.

    Parameters
    ----------
    plain : Hessian
        What is watched; a better estimate or defect of its own is used.
    watch : callable
        ``watch(evaluate)`` returns what ``evaluate()`` does.
    """

    plain: Hessian
    watch: Callable[[Callable[[], Any]], Any]

    @property
    def diagonal(self) -> Tensor:
        """The diagonal."""
        return self.plain.diagonal

    @property
    def largest(self) -> float:
        """The estimate of the largest eigenvalue of ``D^-1 H``."""
        found: float = self.watch(lambda: self.plain.largest)
        return found

    def product(self, v: Tensor) -> Tensor:
        """Return ``H v``."""
        found: Tensor = self.watch(lambda: self.plain.product(v))
        return found

    def defect(self, v: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Return ``weight (b - H v)``."""
        found: Tensor = self.watch(lambda: self.plain.defect(v, b, weight))
        return found

    def relaxed(self, v: Tensor, b: Tensor, steps: Sequence[Tensor]) -> Tensor:
        """Return what smoothing steps make of v."""
        found: Tensor = self.watch(lambda: self.plain.relaxed(v, b, steps))
        return found


def largest_eigenvalue(matrix: Hessian) -> float:
    """Return an upper estimate of the largest eigenvalue of ``D^-1 H``: Lanczos' method with its own error.

    A value that is too small would make the smoother amplify what it should damp.

    Parameters
    ----------
    matrix : Hessian
        H, and its diagonal D.

    References
    ----------
    Zhou and Li, Numer. Linear Algebra Appl. 18 (2011), for the estimate from above.
    """
    scale = matrix.diagonal.clamp_min(0.0).rsqrt()
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(scale.shape, generator=generator, dtype=scale.dtype).to(scale.device)
    v.div_(torch.linalg.vector_norm(v))
    before, beta, diagonal, beside = torch.zeros_like(v), 0.0, [], []
    for _ in range(min(_LANCZOS, v.numel())):
        w = matrix.product(v * scale).mul_(scale).sub_(before, alpha=beta)
        diagonal.append(float(torch.dot(v, w)))
        w.sub_(v, alpha=diagonal[-1])
        beta = float(torch.linalg.vector_norm(w))
        beside.append(beta)
        if not beta > 0:  # the space is exhausted, or not finite
            break
        before, v = v, w.div_(beta)
    T = torch.diag(torch.tensor(diagonal)) + torch.diag(torch.tensor(beside[:-1]), -1)
    if not bool(torch.isfinite(T).all()):
        return 2.0
    values, vectors = torch.linalg.eigh(T)
    value = float(values[-1]) + beta * abs(float(vectors[-1, -1]))
    return value if math.isfinite(value) and value > 0 else 2.0


def hessian(f: Objective, x: Tensor) -> Hessian:
    """Return the Hessian of `f` at `x`, which must not be written to while it is used.

    Parameters
    ----------
    f : Objective
        It offers ``hessian_product``. Layers around the objective that do not change its products are passed by.
    x : Tensor, shape (n,) or (p, m)
        The point.
    """
    core: Any = f
    while isinstance(core, Around) and type(core).hessian_product is Around.hessian_product:
        core = core.f
    found: Hessian = core.hessian(x) if hasattr(core, "hessian") else ByProducts(core, x)
    return found
