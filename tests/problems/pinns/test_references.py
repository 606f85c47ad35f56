"""Reference solutions: their equations, conditions, and convergence with the resolution."""

import numpy as np
import pytest
import torch

from mldd.problems.pinns import references
from mldd.problems.pinns.references import (
    ADVECTION_DIFFUSION,
    ALLEN_CAHN_DIFFUSION,
    BURGERS_VISCOSITY,
    allen_cahn,
    barycentric,
    burgers,
    chebyshev,
    diffusion_advection,
    reference,
)


def random_points(count=400, lower=(0.0, -1.0), upper=(1.0, 1.0), seed=0):
    lower, upper = np.array(lower), np.array(upper)
    return lower + (upper - lower) * np.random.default_rng(seed).random((count, 2))


def differences(u, points, axis, h, order):
    """Central differences of fourth order of a function of points."""
    step = np.zeros(2)
    step[axis] = h
    values = [u(points + k * step) for k in (-2, -1, 0, 1, 2)]
    weights = {1: (1 / 12, -2 / 3, 0.0, 2 / 3, -1 / 12), 2: (-1 / 12, 4 / 3, -5 / 2, 4 / 3, -1 / 12)}[order]
    return sum(w * v for w, v in zip(weights, values, strict=True)) / h**order


def test_chebyshev_differentiates_and_interpolates_polynomials():
    x, D = chebyshev(12, -1.0, 3.0)
    assert (x[0], x[-1]) == (-1.0, 3.0)
    assert np.allclose(D @ x**5, 5 * x**4, atol=1e-10)
    at = np.array([-1.0, 0.3, x[4], 3.0])
    assert np.allclose(barycentric(x, at) @ x**7, at**7, rtol=1e-12)


def test_burgers_satisfies_its_equation():
    points = random_points(lower=(0.05, -0.95), upper=(0.95, 0.95))
    points = points[np.abs(points[:, 1]) > 0.1]  # where differences resolve the shock
    u_t, u_x = (differences(burgers, points, axis, 1e-3, 1) for axis in (0, 1))
    residual = u_t + burgers(points) * u_x - BURGERS_VISCOSITY * differences(burgers, points, 1, 1e-3, 2)
    assert np.abs(residual).max() < 1e-6


def test_burgers_against_gauss_hermite_and_conditions():
    points = random_points()
    z, w = np.polynomial.hermite.hermgauss(140)
    t, x = points.T[:, :, None]
    y = np.pi * (x - np.sqrt(4 * BURGERS_VISCOSITY * t) * z)
    f = w * np.exp(-np.cos(y) / (2 * np.pi * BURGERS_VISCOSITY) - 1 / (2 * np.pi * BURGERS_VISCOSITY))
    assert np.abs(burgers(points) + (np.sin(y) * f).sum(1) / f.sum(1)).max() < 1e-13
    assert np.abs(burgers(points, nodes=160) - burgers(points, nodes=600)).max() < 1e-13
    points[:, 0] = 0.0
    assert np.abs(burgers(points) + np.sin(np.pi * points[:, 1])).max() < 1e-14
    for wall in (-1.0, 0.0, 1.0):
        assert np.abs(burgers(np.array([[0.3, wall], [1.0, wall]]))).max() < 1e-13
    # The slope of the published solution at its steepest: 152.00516 at t = 1.6037 / pi (Basdevant et al., 1986).
    slope = differences(burgers, np.array([[1.6037 / np.pi, 0.0]]), 1, 1e-4, 1)
    assert slope == pytest.approx(-152.00516, abs=1e-3)


def test_diffusion_advection():
    u = diffusion_advection()
    points = random_points(2000, (0.0, 0.0))
    assert np.abs(u(points) - diffusion_advection(128)(points)).max() < 1e-7
    assert np.abs(diffusion_advection(128)(points) - diffusion_advection(160)(points)).max() < 1e-8
    inner = random_points(200, (0.05, 0.05), (0.9, 0.9))
    first = [differences(u, inner, axis, 1e-3, 1) for axis in (0, 1)]
    second = [differences(u, inner, axis, 1e-3, 2) for axis in (0, 1)]
    assert np.abs(sum(first) - ADVECTION_DIFFUSION * sum(second) - 1).max() < 1e-5
    edge = np.random.default_rng(0).random(20)
    for wall in (0.0, 1.0):
        assert np.abs(u(np.stack([edge, np.full(20, wall)], 1))).max() < 1e-12
        assert np.abs(u(np.stack([np.full(20, wall), edge], 1))).max() < 1e-12


def test_allen_cahn():
    u = allen_cahn()
    points = random_points(2000)
    points[:200] = random_points(200, (0.0, 0.999), (0.01, 1.0))  # next to the corner where conditions do not match
    for other in (allen_cahn(720, 20, 12), allen_cahn(640, 30, 14)):
        assert np.abs(u(points) - other(points)).max() < 1e-8
    inner = random_points(lower=(0.01, -0.99), upper=(0.99, 0.99))
    residual = differences(u, inner, 0, 1e-3, 1) - ALLEN_CAHN_DIFFUSION * differences(u, inner, 1, 1e-3, 2)
    value = u(inner)
    assert np.abs(residual - 5 * (value - value**3)).max() < 1e-4
    x = np.linspace(-1, 1, 31)
    assert np.allclose(u(np.stack([0 * x, x], 1)), x**2 * np.cos(np.pi * x), atol=1e-12)
    for wall in (-1.0, 1.0):
        assert np.allclose(u(np.stack([np.abs(x), 0 * x + wall], 1)), -1.0, atol=1e-12)
    assert np.allclose(u(inner), u(inner * [1, -1]), atol=1e-11)


def test_allen_cahn_against_an_integrator():
    from scipy.integrate import solve_ivp

    x, h = np.linspace(-1, 1, 801, retstep=True)

    def rate(t, v):  # fourth-order differences inside, the boundary fixed
        u = np.concatenate([[-2 - v[1], -1.0], v, [-1.0, -2 - v[-2]]])
        u_xx = (-u[:-4] + 16 * u[1:-3] - 30 * u[2:-2] + 16 * u[3:-1] - u[4:]) / (12 * h**2)
        return ALLEN_CAHN_DIFFUSION * u_xx + 5 * (v - v**3)

    done = solve_ivp(rate, (0, 1), (x**2 * np.cos(np.pi * x))[1:-1], method="RK45", rtol=1e-8, atol=1e-9)
    expected = done.y[:, -1]
    assert np.abs(allen_cahn()(np.stack([np.ones(799), x[1:-1]], 1)) - expected).max() < 1e-3


@pytest.mark.parametrize("name", ["poisson1d", "burgers", "diffusion-advection", "klein-gordon", "allen-cahn"])
def test_at_tensors(name):
    d = 1 if name == "poisson1d" else 2
    points = torch.rand(7, d, dtype=torch.float32, generator=torch.Generator().manual_seed(0))
    u = reference(name, points)
    assert (u.shape, u.dtype) == ((7,), torch.float64)
    assert reference(name, points[:0]).shape == (0,)
    assert torch.allclose(u[3:4], reference(name, points[3:4]), rtol=1e-12)


def test_iteration_that_does_not_converge():
    with pytest.raises(ArithmeticError, match="must converge in 200 steps"):
        references._fixed_point(np.ones(2), lambda v: -v)
