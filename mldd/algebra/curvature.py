"""The Hessian of an objective at one point: what products at this point share is computed once."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import torch
from torch import Tensor

from mldd.algebra.objective import Around, Objective


class Hessian(Protocol):
    """The Hessian at one point.

    An objective may offer it by a method ``hessian(x)``; it then agrees with ``hessian_product`` and
    ``hessian_diagonal``.
    """

    @property
    def diagonal(self) -> Tensor:
        """The diagonal, of the shape of the point."""
        ...

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
        ...


@dataclass(frozen=True)
class ByProducts:
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

    def defect(self, v: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Return ``weight (b - H v)``."""
        return torch.sub(b, self.product(v)).mul_(weight)


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
