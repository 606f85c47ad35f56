"""Reference solutions of the equations that physics-informed networks are tested on, at any points.

Closed forms where there are some; otherwise Chebyshev collocation, whose convergence the tests check with two
resolutions. Everything is computed in float64 with NumPy, once per process, in at most a few seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

Array = Any  # numpy.ndarray of float64

BURGERS_VISCOSITY = 0.01 / np.pi
ALLEN_CAHN_DIFFUSION = 1e-3
ADVECTION_DIFFUSION = 1e-2
_CHUNK = 4096  # points that are evaluated at once: bounds the memory


def poisson(points: Array, frequency: float = 1.0) -> Array:
    """Return ``u = sin(pi w x) / (pi w)^2``, which solves ``-u'' = sin(pi w x)``, shape (m,).

    Parameters
    ----------
    points : array, shape (m, d)
        Points of the box, one in a row.
    frequency : float
        The w of the right-hand side.
    """
    return np.sin(np.pi * frequency * points[:, 0]) / (np.pi * frequency) ** 2


def klein_gordon(points: Array) -> Array:
    """Return ``u = x cos t`` at points (t, x), shape (m,).

    Parameters
    ----------
    points : array, shape (m, d)
        Points of the box, one in a row.
    """
    return points[:, 1] * np.cos(points[:, 0])


def burgers(points: Array, nodes: int = 240) -> Array:
    r"""Return the solution of Burgers' equation with ``u(0, x) = -sin(pi x)`` at points (t, x), shape (m,).

    The Cole-Hopf transformation gives, with ``s = sqrt(4 nu t)`` and ``log f(y) = -cos(pi y) / (2 pi nu)``,

    .. math:: u(t, x) = - \frac{\int \sin(\pi (x - s z)) f(x - s z) e^{-z^2} dz}{\int f(x - s z) e^{-z^2} dz}.

    Integrands are entire and decay like a Gaussian, so the trapezoidal rule converges faster than geometrically.

    Parameters
    ----------
    points : ndarray, shape (m, 2)
        Points of the box, one in a row.
    nodes : int
        Of the rule on [-12, 12]; beyond, integrands are smaller than 1e-35 of their maximum.

    References
    ----------
    Basdevant et al., Computers & Fluids 14 (1986) 23-41 (DOI 10.1016/0045-7930(86)90036-8).
    """
    z = np.linspace(-12.0, 12.0, nodes)
    parts = []
    for k in range(0, len(points), _CHUNK):
        t, x = points[k : k + _CHUNK].T[:, :, None]
        y = np.pi * (x - np.sqrt(4.0 * BURGERS_VISCOSITY * t) * z)
        log = -np.cos(y) / (2.0 * np.pi * BURGERS_VISCOSITY) - z**2
        weight = np.exp(log - log.max(1, keepdims=True))
        parts.append(-(np.sin(y) * weight).sum(1) / weight.sum(1))
    return np.concatenate(parts) if parts else np.zeros(0)


# ---------------------------------------------------------------------------------------------- Chebyshev collocation


def chebyshev(n: int, lower: float, upper: float) -> tuple[Array, Array]:
    """Return the n + 1 Chebyshev-Lobatto points of [lower, upper], ascending, and the differentiation matrix.

    Parameters
    ----------
    n : int
        Degree of the polynomials.
    lower : float
        Left end of the interval.
    upper : float
        Right end of the interval.

    References
    ----------
    Trefethen, Spectral Methods in MATLAB (2000), program cheb; diagonal by negative row sums.
    """
    s = -np.cos(np.pi * np.arange(n + 1) / n)
    c = np.where(np.isin(np.arange(n + 1), (0, n)), 2.0, 1.0) * (-1.0) ** np.arange(n + 1)
    # Differences of cosines by a product of sines: no cancellation between neighbours.
    angle = np.pi * np.arange(n + 1) / (2 * n)
    difference = 2.0 * np.sin(angle[:, None] + angle) * np.sin(angle[:, None] - angle) + np.eye(n + 1)
    D = np.outer(c, 1.0 / c) / difference * (1.0 - np.eye(n + 1))
    D -= np.diag(D.sum(1))
    return lower + (upper - lower) * (s + 1.0) / 2.0, D * 2.0 / (upper - lower)


def barycentric(nodes: Array, at: Array) -> Array:
    """Return the matrix that interpolates from Chebyshev-Lobatto `nodes` to the points `at`, shape (len(at), n + 1).

    Parameters
    ----------
    nodes : array, shape (n + 1,)
        Chebyshev-Lobatto points.
    at : array, shape (k,)
        Points of the interval.

    References
    ----------
    Berrut, Trefethen: SIAM Review 46 (2004) 501-517 (DOI 10.1137/S0036144502417715), equation (4.2).
    """
    n = len(nodes) - 1
    w = np.where(np.isin(np.arange(n + 1), (0, n)), 0.5, 1.0) * (-1.0) ** np.arange(n + 1)
    distance = at[:, None] - nodes
    hit = distance == 0.0
    rows = w / np.where(hit, 1.0, distance)
    rows = np.where(hit.any(1, keepdims=True), hit, rows)
    return rows / rows.sum(1, keepdims=True)


@dataclass(frozen=True)
class Polynomial:
    """A polynomial in two variables given at a grid of Chebyshev-Lobatto points.

    Parameters
    ----------
    axes : tuple of ndarray
        Grid points of the two variables, of n and m entries.
    values : ndarray, shape (n, m)
        Of the polynomial at the grid points.
    """

    axes: tuple[Array, Array]
    values: Array

    def __call__(self, points: Array) -> Array:
        """Return the values at points, shape (m,)."""
        pieces = [points[k : k + _CHUNK] for k in range(0, len(points), _CHUNK)]
        found = [
            ((barycentric(self.axes[0], p[:, 0]) @ self.values) * barycentric(self.axes[1], p[:, 1])).sum(1)
            for p in pieces
        ]
        return np.concatenate(found) if found else np.zeros(0)


@cache
def diffusion_advection(n: int = 96) -> Polynomial:
    """Return the solution of ``-mu Laplace u + u_x + u_y = 1`` on the unit square, u = 0 on its boundary.

    On a tensor grid the discrete equation is ``L U + U L^T = 1`` with ``L = D - mu D^2``: a Sylvester equation. The
    boundary layers of width mu at x = 1 and y = 1 are resolved by the clustering of the points.

    Parameters
    ----------
    n : int
        Degree in each variable.
    """
    from scipy.linalg import solve_sylvester

    x, D = chebyshev(n, 0.0, 1.0)
    L = (D - ADVECTION_DIFFUSION * D @ D)[1:-1, 1:-1]
    U = np.zeros((n + 1, n + 1))
    U[1:-1, 1:-1] = solve_sylvester(L, L.T, np.ones((n - 1, n - 1)))
    return Polynomial((x, x), U)


@dataclass(frozen=True)
class Slabs:
    """Polynomials on consecutive slabs of time.

    Parameters
    ----------
    ends : ndarray, shape (k + 1,)
        Where the slabs begin, and the end of the last.
    pieces : tuple of Polynomial
        In (t, x), one per slab.
    """

    ends: Array
    pieces: tuple[Polynomial, ...]

    def __call__(self, points: Array) -> Array:
        """Return the values at points (t, x), shape (m,)."""
        out = np.empty(len(points))
        slab = np.searchsorted(self.ends[1:-1], points[:, 0])
        for k in np.unique(slab):
            out[slab == k] = self.pieces[k](points[slab == k])
        return out


@cache
def allen_cahn(n: int = 640, slabs: int = 20, degree: int = 12) -> Slabs:
    """Return the solution of the Allen-Cahn equation ``u_t = D u_xx + 5 (u - u^3)`` with ``u(0, x) = x^2 cos(pi x)``.

    Collocation in space and time: on every slab a polynomial of degree n in x (even, u(+-1) = -1) and of `degree` in t
    satisfies the equation at all Chebyshev-Lobatto points. The fixed-point iteration that solves for it takes diffusion
    and a mean reaction rate c implicitly, ``v_t - (D v_xx + c v) = r(v - 1) - c v`` for ``v = u + 1``, in the
    eigenvectors of the second derivative. The initial values have u_xx(+-1) != 0, which the boundary values do not
    allow: slabs get shorter towards t = 0.

    Parameters
    ----------
    n : int
        Even degree in x; fronts are about 0.02 wide.
    slabs, degree : int
        Slabs of equal length, of which the first is cut further, and degree in t on each.
    """
    nodes, D = chebyshev(n, -1.0, 1.0)
    half = n // 2  # an even function is known by its values at 0 <= x
    A = ALLEN_CAHN_DIFFUSION * (D @ D)[half:-1, 1:-1]
    A = A[:, half - 1 :] + np.hstack([np.zeros((half, 1)), A[:, : half - 1][:, ::-1]])  # columns of -x are those of x
    mean = -2.5  # r(u) = 5 (u - u^3) has derivatives from -10 to 5
    operator = _Diagonal.of(A + mean * np.eye(half))
    ends = np.concatenate([[0.0], 0.25 ** np.arange(5.0, 0.0, -1.0), np.arange(1.0, slabs + 1.0)]) / slabs
    v, pieces = nodes[half:-1] ** 2 * np.cos(np.pi * nodes[half:-1]) + 1.0, []
    for begin, end in zip(ends, ends[1:], strict=False):
        t, Dt = chebyshev(degree, begin, end)
        solve = operator.implicit(Dt, v)

        def step(V: Array, solve: Callable[[Array], Array] = solve) -> Array:
            return solve(5.0 * ((V - 1.0) - (V - 1.0) ** 3) - mean * V)

        V = _fixed_point(np.tile(v, (degree, 1)), step)
        U = np.hstack([np.vstack([v, V]) - 1.0, np.full((degree + 1, 1), -1.0)])
        pieces.append(Polynomial((t, nodes), np.hstack([U[:, :0:-1], U])))
        v = V[-1]
    return Slabs(ends, tuple(pieces))


@dataclass(frozen=True)
class _Diagonal:
    """A matrix by its eigenvalues, its eigenvectors and their inverse; those of second derivatives are real."""

    rates: Array
    vectors: Array
    inverse: Array

    @staticmethod
    def of(A: Array) -> _Diagonal:
        rates, vectors = np.linalg.eig(A)
        return _Diagonal(rates.real, vectors.real, np.linalg.inv(vectors.real))

    def implicit(self, Dt: Array, start: Array) -> Callable[[Array], Array]:
        """Return the map N -> V with ``V_t - A V = N`` at the times after the first; both of shape (times - 1, m)."""
        inverses = np.linalg.inv(Dt[1:, 1:] - self.rates[:, None, None] * np.eye(len(Dt) - 1))
        known = np.outer(Dt[1:, 0], start)

        def solve(N: Array) -> Array:
            return np.einsum("mij,jm->im", inverses, (N - known) @ self.inverse.T) @ self.vectors.T

        return solve


def _fixed_point(V: Array, step: Callable[[Array], Array]) -> Array:
    for _ in range(200):
        new = step(V)
        change, V = np.abs(new - V).max(), new
        if change < 1e-12:
            return V
    raise ArithmeticError(f"the iteration on a slab of time must converge in 200 steps, got a change of {change:.1e}")


_SOLUTIONS: dict[str, Callable[[Array], Array]] = {
    "poisson1d": poisson,
    "burgers": burgers,
    "diffusion-advection": lambda points: diffusion_advection()(points),
    "klein-gordon": klein_gordon,
    "allen-cahn": lambda points: allen_cahn()(points),
}


def reference(name: str, points: Tensor, **parameters: float) -> Tensor:
    """Return the solution of the equation `name` at points, shape (m,), float64 on the CPU.

    Parameters
    ----------
    name : str
        poisson1d, burgers, diffusion-advection, klein-gordon or allen-cahn.
    points : Tensor, shape (m, d)
        (x) or (t, x) or (x, y).
    **parameters : float
        ``frequency`` of poisson1d.

    Examples
    --------
    >>> reference("klein-gordon", torch.tensor([[0.0, 0.5]]))
    tensor([0.5000], dtype=torch.float64)
    """
    return torch.from_numpy(_SOLUTIONS[name](points.detach().double().cpu().numpy(), **parameters))
