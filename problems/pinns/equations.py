"""The differential equations that physics-informed networks solve: residuals, built-in conditions, points.

The approximation is ``u(x) = g(x) + l(x) / max l  N(x)``: g satisfies the boundary and initial conditions, the length
factor l vanishes where they hold, and the network N is free (Lagaris, Likas, Fotiadis, arXiv physics/9705023; used in
arXiv 2306.17648). Coordinates of problems in time are (t, x).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.problems.pinns.references import ADVECTION_DIFFUSION, ALLEN_CAHN_DIFFUSION, BURGERS_VISCOSITY, reference
from mldd.problems.pinns.taylor import Jets

Function = Callable[[Tensor], Tensor]
Known = Any  # Jets of which the derivatives that are read are not None


@dataclass(frozen=True)
class Equation:
    """A differential equation ``r(u) = 0`` on a box with conditions on its boundary.

    Parameters
    ----------
    name : str
        Of the equation on the command line.
    lower, upper : tuple of float
        Corners of the box.
    orders : tuple of int
        Highest derivative along each coordinate in the residual.
    residual : callable
        ``residual(u, points)`` for the `Jets` u of values and derivatives at points of shape (m, d); shape of u.value.
    lift, factor : callable
        g and ``l / max l`` at points of shape (m, d), shape (m, 1).
    solution : callable
        Reference solution at points of shape (m, d), shape (m,), float64.
    linear : bool
        The residual is an affine function of u.
    """

    name: str
    lower: tuple[float, ...]
    upper: tuple[float, ...]
    orders: tuple[int, ...]
    residual: Callable[[Known, Tensor], Tensor]
    lift: Function
    factor: Function
    solution: Function
    linear: bool = False

    @property
    def dim(self) -> int:
        """Number of coordinates."""
        return len(self.lower)

    def scaled(self, unit: Tensor) -> Tensor:
        """Return the points of the box that belong to points of the unit cube.

        Parameters
        ----------
        unit : Tensor, shape (m, d)
            Points of the unit cube.
        """
        lower, upper = (unit.new_tensor(corner) for corner in (self.lower, self.upper))
        return lower + (upper - lower) * unit


def jets_of(function: Function, points: Tensor, orders: tuple[int, ...]) -> Jets:
    """Return values and derivatives of any differentiable function at points, by nested automatic differentiation.

    Parameters
    ----------
    function : callable
        Of points, shape (m, d), row by row; returns shape (m, 1).
    points : Tensor, shape (m, d)
        Points of the box, one in a row.
    orders : tuple of int
        Highest derivative along each coordinate.
    """
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        value = function(points)
        slopes = _slopes(value, points)
        first = [slopes[:, k : k + 1] if order else None for k, order in enumerate(orders)]
        second = [
            _slopes(slope, points)[:, k : k + 1] if order == 2 and slope is not None else None
            for k, (order, slope) in enumerate(zip(orders, first, strict=True))
        ]
    return Jets(
        value.detach(),
        tuple(None if slope is None else slope.detach() for slope in first),
        tuple(None if slope is None else slope.detach() for slope in second),
    )


def _slopes(value: Tensor, points: Tensor) -> Tensor:
    """Differentiate every row with respect to its point; zero where `value` is constant."""
    if not value.requires_grad:
        return torch.zeros_like(points)
    (slopes,) = torch.autograd.grad(value.sum(), points, create_graph=True, materialize_grads=True)
    return slopes


def composed(g: Known, factor: Known, net: Jets) -> Jets:
    """Return ``u = g + l N`` with its derivatives, by the product rule.

    ``u_k = g_k + l_k N + l N_k`` and ``u_kk = g_kk + l_kk N + 2 l_k N_k + l N_kk`` along each coordinate k.

    Parameters
    ----------
    g : Jets
        Of the function that satisfies the conditions.
    factor : Jets
        Of the length factor.
    net : Jets
        Of the network.
    """
    first: list[Tensor | None] = []
    second: list[Tensor | None] = []
    for k, slope in enumerate(net.first):
        first.append(None if slope is None else g.first[k] + factor.first[k] * net.value + factor.value * slope)
        bend = net.second[k]
        if bend is None or slope is None:
            second.append(None)
        else:
            of_factor = factor.second[k] * net.value + 2.0 * factor.first[k] * slope
            second.append(g.second[k] + of_factor + factor.value * bend)
    return Jets(g.value + factor.value * net.value, tuple(first), tuple(second))


def hammersley(count: int, dim: int = 2) -> Tensor:
    """Return Hammersley's points ``(i / N, phi_2(i), phi_3(i), ...)``, i = 0..N-1, in the unit cube, float64.

    ``phi_b`` mirrors the digits of i in base b at the point (van der Corput); in one dimension, equidistant points with
    both ends.

    Parameters
    ----------
    count : int
        Number of points.
    dim : int
        Number of coordinates, at most 5.

    References
    ----------
    Hammersley, Annals of the New York Academy of Sciences 86 (1960) 844-874.

    Examples
    --------
    >>> hammersley(4)
    tensor([[0.0000, 0.0000],
            [0.2500, 0.5000],
            [0.5000, 0.2500],
            [0.7500, 0.7500]], dtype=torch.float64)
    """
    if dim == 1:
        return torch.linspace(0.0, 1.0, count, dtype=torch.float64)[:, None]
    index = torch.arange(count)
    columns = [index.double() / count]
    for base in (2, 3, 5, 7)[: dim - 1]:
        rest, mirrored, scale = index.clone(), torch.zeros(count, dtype=torch.float64), 1.0
        while bool(rest.any()):
            scale /= base
            mirrored += scale * (rest % base)
            rest //= base
        columns.append(mirrored)
    return torch.stack(columns, 1)


# ---------------------------------------------------------------------------------------------------- the equations


def _burgers(u: Known, points: Tensor) -> Tensor:
    r: Tensor = u.first[0] + u.value * u.first[1] - BURGERS_VISCOSITY * u.second[1]
    return r


def _diffusion_advection(u: Known, points: Tensor) -> Tensor:
    r: Tensor = u.first[0] + u.first[1] - ADVECTION_DIFFUSION * (u.second[0] + u.second[1]) - 1.0
    return r


def _klein_gordon(u: Known, points: Tensor) -> Tensor:
    exact = points[:, 1:] * torch.cos(points[:, :1])
    r: Tensor = u.second[0] - u.second[1] + u.value**2 + exact - exact**2
    return r


def _allen_cahn(u: Known, points: Tensor) -> Tensor:
    r: Tensor = u.first[0] - ALLEN_CAHN_DIFFUSION * u.second[1] - 5.0 * (u.value - u.value**3)
    return r


def _wall(points: Tensor) -> Tensor:
    """Return ``1 - x^2`` at points (t, x)."""
    return 1.0 - points[:, 1:] ** 2


def _ramp(points: Tensor) -> Tensor:
    """Return ``t^2 / (1 + t^2)``, which vanishes with its derivative at t = 0 and does not grow."""
    return points[:, :1] ** 2 / (1.0 + points[:, :1] ** 2)


def _zero(points: Tensor) -> Tensor:
    return torch.zeros_like(points[:, :1])


def equation(name: str, frequency: float = 1.0, unit: bool = False) -> Equation:
    """Return an equation by its name.

    ============================ ======================================================= ===============================
    name                         equation                                                conditions, built into g and l
    ============================ ======================================================= ===============================
    poisson1d                    ``-u'' = sin(pi w x)`` on (0, 1)                        u = exact at 0 and 1
    burgers                      ``u_t + u u_x - nu u_xx = 0``, nu = 0.01 / pi,          u(0, x) = -sin(pi x),
                                 0 < t <= 1, abs(x) < 1                                  u(t, +-1) = 0
    diffusion-advection          ``-mu Laplace u + u_x + u_y = 1``, mu = 0.01,           u = 0
                                 on the unit square
    klein-gordon                 ``u_tt - u_xx + u^2 = -x cos t + x^2 cos^2 t``,         u(0, x) = x, u_t(0, x) = 0,
                                 0 < t <= 12, abs(x) < 1                                 u(t, +-1) = +-cos t
    allen-cahn                   ``u_t - D u_xx - 5 (u - u^3) = 0``, D = 0.001,          u(0, x) = x^2 cos(pi x),
                                 0 < t <= 1, abs(x) < 1                                  u(t, +-1) = -1
    ============================ ======================================================= ===============================

    For klein-gordon, ``g = x + x^3 (cos t - 1)`` and ``l = (1 - x^2) t^2 / (1 + t^2)``: the conditions at x = +-1 make
    the problem well-posed and x^3 (not x, which would give the solution itself) carries them inside. The factor of the
    publication is not known; the code that is public has the exact solution for g.

    Parameters
    ----------
    name : str
        Of the equation on the command line.
    frequency : float
        The w of poisson1d.
    unit : bool
        Of poisson1d: the right-hand side is ``(pi w)^2 sin(pi w x)``, so that the solution has amplitude 1.

    References
    ----------
    arXiv 2306.17648, section 5 (all but poisson1d).
    """
    if name == "poisson1d":
        return _poisson(frequency, unit)
    residual, corners, orders, g, factor = {
        "burgers": (
            _burgers,
            ((0.0, -1.0), (1.0, 1.0)),
            (1, 2),
            lambda p: -torch.sin(math.pi * p[:, 1:]),
            lambda p: p[:, :1] * _wall(p),
        ),
        "diffusion-advection": (
            _diffusion_advection,
            ((0.0, 0.0), (1.0, 1.0)),
            (2, 2),
            _zero,
            lambda p: 16.0 * (p * (1.0 - p)).prod(1, keepdim=True),
        ),
        "klein-gordon": (
            _klein_gordon,
            ((0.0, -1.0), (12.0, 1.0)),
            (2, 2),
            lambda p: p[:, 1:] + p[:, 1:] ** 3 * (torch.cos(p[:, :1]) - 1.0),
            lambda p: 145.0 / 144.0 * _ramp(p) * _wall(p),
        ),
        "allen-cahn": (
            _allen_cahn,
            ((0.0, -1.0), (1.0, 1.0)),
            (1, 2),
            lambda p: p[:, 1:] ** 2 * torch.cos(math.pi * p[:, 1:]),
            lambda p: p[:, :1] * _wall(p),
        ),
    }[name]
    linear = name == "diffusion-advection"
    return Equation(name, *corners, orders, residual, g, factor, lambda p: reference(name, p), linear)


def _poisson(frequency: float, unit: bool) -> Equation:
    wave = math.pi * frequency
    scale = wave**2 if unit else 1.0

    def residual(u: Known, points: Tensor) -> Tensor:
        r: Tensor = -u.second[0] - scale * torch.sin(wave * points)
        return r

    end = scale * math.sin(wave) / wave**2  # zero for whole frequencies
    return Equation(
        "poisson1d",
        (0.0,),
        (1.0,),
        (2,),
        residual,
        lambda p: end * p,
        lambda p: 4.0 * p * (1.0 - p),
        lambda p: scale * reference("poisson1d", p, frequency=frequency),
        linear=True,
    )
