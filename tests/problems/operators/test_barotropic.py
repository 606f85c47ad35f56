"""The vorticity equation on the sphere: exact waves, invariants, orders of convergence."""

import numpy as np
import pytest

from mldd.problems.operators.barotropic import BarotropicVorticity
from mldd.problems.operators.sphere import Sphere


def harmonic(sphere, angle=0.0):
    """A spherical harmonic of degree 4 and order 3, turned by an angle: its Laplacian is -20 of it."""
    x, y, z = sphere.points.T
    x, y = np.cos(angle) * x + np.sin(angle) * y, np.cos(angle) * y - np.sin(angle) * x
    return (x**3 - 3 * x * y**2) * z


def norm(sphere, u):
    return float(np.sqrt(sphere.mass @ (u * u) / sphere.mass.sum()))


def test_the_area_is_that_of_the_sphere():
    gaps = [abs(Sphere(r).mass.sum() - 4 * np.pi) for r in (2, 3)]
    assert 3.7 < gaps[0] / gaps[1] < 4.3


def test_laplacian_of_a_harmonic_and_its_inverse():
    gaps = []
    for r in (3, 4):
        sphere = Sphere(r)
        u = harmonic(sphere)[None]
        gaps.append(norm(sphere, (sphere.inverse_laplacian(-20 * u) - u)[0]) / norm(sphere, u[0]))
        back = sphere.laplacian(sphere.inverse_laplacian(u))
        np.testing.assert_allclose(back, u - u @ sphere.mass / sphere.mass.sum(), atol=1e-10)
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_derivatives_of_a_coordinate():
    """z = sin(latitude): nothing to the east, cos(latitude) to the north, in units of the mean distance."""
    for r, bound in ((3, 0.02), (4, 0.01)):
        sphere = Sphere(r)
        z = sphere.points[:, 2]
        inner = np.abs(z) < 0.99
        for weights, exact in zip(sphere.derivatives, (0 * z, np.cos(np.arcsin(z))), strict=True):
            found = weights @ z - np.asarray(weights.sum(1)).ravel() * z
            assert abs(found / sphere.spacing - exact)[inner].max() < bound


def test_a_rossby_haurwitz_wave_turns_as_it_should():
    """psi = -w z + Y_l turns by ``w - 2 (Omega + w) / (l (l + 1))`` in a unit of time, an exact solution."""
    w, rotation, time = 0.8, 2.0, 1.0
    speed = w - 2 * (rotation + w) / 20
    gaps = []
    for r, steps in ((3, 20), (4, 40)):
        sphere = Sphere(r)
        z = sphere.points[:, 2]
        state = lambda angle, s=sphere, z=z: 2 * w * z - 20 * harmonic(s, angle)  # noqa: E731
        end = BarotropicVorticity(rotation, 0.0, time).advance(state(0.0)[None], sphere, steps)[0]
        gaps.append(norm(sphere, end - state(speed * time)) / norm(sphere, state(0.0)))
    assert gaps[1] < 0.05
    assert 1.6 < np.log2(gaps[0] / gaps[1]) < 2.4


def test_fourth_order_in_time():
    sphere = Sphere(2)
    equation = BarotropicVorticity(2.0, 1e-3, 1.0)
    zeta = (2 * sphere.points[:, 2] - 20 * harmonic(sphere) + 3 * sphere.points[:, 0] * sphere.points[:, 1])[None]
    exact = equation.advance(zeta, sphere, 160)
    gaps = [abs(equation.advance(zeta, sphere, steps) - exact).max() for steps in (10, 20)]
    assert 3.6 < np.log2(gaps[0] / gaps[1]) < 4.4


def test_energy_and_enstrophy_are_conserved():
    sphere = Sphere(2)
    equation = BarotropicVorticity(2.0, 0.0)
    zeta = np.random.default_rng(0).standard_normal((2, len(sphere.points)))
    zeta -= (zeta @ sphere.mass / sphere.mass.sum())[:, None]
    change, psi = equation.rate(zeta, sphere), sphere.inverse_laplacian(zeta)
    absolute = zeta + 4 * sphere.points[:, 2]
    for what in (psi, absolute, np.ones_like(zeta)):
        drift = np.sum(sphere.mass * what * change, 1)
        assert (abs(drift) < 1e-10 * np.sum(sphere.mass * abs(what * change), 1)).all()


def test_bad_numbers():
    with pytest.raises(ValueError, match="`resolution` must be in 1..7"):
        Sphere(9)
    with pytest.raises(ValueError, match="`time` must be"):
        BarotropicVorticity(time=0.0)
