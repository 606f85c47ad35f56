"""An objective in the span of a few directions: as it is, or its quadratic model, minimised in a ball."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mldd.algebra import Objective, Restricted, value_and_gradient

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
        products = [f.hessian_product(x, q) for q in columns]  # type: ignore[attr-defined]
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

        References
        ----------
        Nocedal and Wright, Numerical Optimization (2006), section 4.3: s solves ``(B + mu) s = -g`` with the mu >= 0
        for which it has length `radius`, found by bisection; the "hard case" included.
        """
        a, values = self.a, self.values
        if not len(values) or radius <= 0:
            return self.Q.new_zeros(len(self.Q)), 0.0
        y = self._shifted(0.0) if self.lowest > 0 else torch.full_like(a, torch.inf)
        if not float(y.norm()) <= radius:
            low, high = max(0.0, -self.lowest), max(0.0, -self.lowest) + float(a.norm()) / radius
            for _ in range(100):
                middle = 0.5 * (low + high)
                low, high = (middle, high) if float(self._shifted(middle).norm()) > radius else (low, middle)
            y = self._shifted(high)
            rest = radius**2 - float(y.norm()) ** 2
            if self.lowest < 0 and rest > 1e-8 * radius**2:  # g has no part along the direction of lowest curvature
                y[0] = torch.copysign((y[0] ** 2 + rest).sqrt(), -a[0])
        return self.Q @ y, -float(torch.dot(y, a + 0.5 * values * y))

    def _shifted(self, mu: float) -> Tensor:
        shifted = self.values + mu
        return torch.where(self.a == 0, torch.zeros_like(self.a), -self.a / shifted)
