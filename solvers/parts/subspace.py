"""An objective in the span of a few directions: as it is, or its quadratic model, minimised in a ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import Objective, Restricted, hessian, value_and_gradient
from mldd.solvers.parts.ball import in_ball
from mldd.solvers.parts.quasi_newton import numbers

Point = tuple[Tensor, float, Tensor]  # e, the value there, and the whole gradient


@dataclass(frozen=True)
class Probed(Restricted):
    """The objective ``e -> f(x + P e)`` that notes, with whole gradients, its lowest point and the last two.

    Parameters
    ----------
    f : Objective
    x : Tensor, shape (n,)
    transfer : Transfer
    start : float
        The value at e = 0: only what is below it is noted as the lowest point.
    """

    start: float = torch.inf
    _lowest: list[Point] = field(default_factory=list, repr=False)
    _last: list[Point] = field(default_factory=list, repr=False)

    @property
    def lowest(self) -> Point | None:
        """The lowest point, None where nothing was below the start."""
        return self._lowest[0] if self._lowest else None

    def gradient(self, e: Tensor) -> Tensor:
        """Return ``P^T g(x + P e)``.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the small space.
        """
        return self.value_and_gradient(e)[1]

    def value_and_gradient(self, e: Tensor) -> tuple[Tensor, Tensor]:
        """Return both.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the small space.
        """
        value, g = value_and_gradient(self.f, self.x + self.transfer.prolong(e))
        point = e.clone(), float(value), g
        self._last[:] = [*self._last[-1:], point]
        if point[1] < (self._lowest[0][1] if self._lowest else self.start):
            self._lowest[:] = [point]
        return value, self.transfer.restrict(g)

    def whole_gradient(self, e: Tensor) -> Tensor:
        """Return the gradient of `f` at ``x + P e``, remembered at the last two points.

        Parameters
        ----------
        e : Tensor, shape (k,)
            Coordinates in the small space.
        """
        known = [g for point, _, g in self._last if torch.equal(point, e)]
        return known[0] if known else self.f.gradient(self.x + self.transfer.prolong(e))


@dataclass(frozen=True)
class Subspace:
    """``q(y) = a^T y + y^T diag(values) y / 2`` for steps ``s = Q y``, Q with orthonormal columns.

    Parameters
    ----------
    Q : Tensor, shape (n, k)
        Orthonormal columns, eigenvectors of the Hessian in the space.
    a, values : Tensor, shape (k,)
        Slopes and curvatures along the columns of Q.
    """

    Q: Tensor
    a: Tensor
    values: Tensor

    @staticmethod
    def of(f: Objective, x: Tensor, g: Tensor, directions: Sequence[Tensor]) -> Subspace:
        """Return the model of `f` at `x` in the span of the directions: one Hessian product for each.

        Directions that are zero, not finite, or in the span of those before them are left out.

        Parameters
        ----------
        f : Objective
            Offers ``hessian_product``.
        x : Tensor, shape (n,)
            The point.
        g : Tensor, shape (n,)
            Gradient there.
        directions : sequence of Tensor, shape (n,)
            They span the space.
        """
        columns: list[Tensor] = []
        for d in directions:
            v = d / torch.linalg.vector_norm(d)
            for _ in range(2):  # twice is enough
                for q in columns:
                    v = v - torch.dot(q, v) * q
            length = torch.linalg.vector_norm(v)
            if bool(length > 100.0 * torch.finfo(x.dtype).eps):  # not so for NaN
                columns.append(v / length)
        Q = torch.stack(columns, 1) if columns else x.new_zeros(len(x), 0)
        here = hessian(f, x)
        products = [here.product(q) for q in columns]
        B = Q.t() @ torch.stack(products, 1) if columns else x.new_zeros(0, 0)
        values, V = torch.linalg.eigh(0.5 * (B + B.t()))
        Q = Q @ V
        return Subspace(Q, Q.t() @ g, values)

    @property
    def lowest(self) -> float:
        """Smallest curvature, 0 in an empty space."""
        return float(self.values[0]) if len(self.values) else 0.0

    def minimise(self, radius: float) -> tuple[Tensor, float]:
        """Return the minimiser s of the model with ``||s|| <= radius``, and the decrease ``-q`` it promises.

        Parameters
        ----------
        radius : float
            Of the ball.
        """
        if not len(self.values) or radius <= 0:
            return self.Q.new_zeros(len(self.Q)), 0.0
        z = in_ball(numbers(self.a)[None], numbers(self.values)[None], np.array([[radius]]))
        y = torch.from_numpy(z[0]).to(self.Q)
        return self.Q @ y, -float(torch.dot(y, self.a + 0.5 * self.values * y))
