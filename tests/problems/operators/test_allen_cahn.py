"""The equation on the torus: closed forms, orders of convergence, and samples that depend on their number alone."""

import numpy as np
import pytest

from mldd.problems.operators import AllenCahn, AllenCahnFields, SampleStream, Torus

SIDE = 1.0


def stream(n, seed=0):
    return SampleStream(AllenCahnFields(AllenCahn(), Torus(n)), seed)


def grid(n):
    return np.meshgrid(*[np.arange(n) * SIDE / n] * 2, indexing="ij")


def smooth(n):
    x, y = grid(n)
    a, b = 2 * np.pi * x / SIDE, 2 * np.pi * y / SIDE
    return 0.7 * np.sin(a) * np.cos(b) + 0.2 * np.cos(2 * a), 1.0 + 0.6 * np.sin(a + b)


@pytest.mark.parametrize("modes", [(1, 0), (2, 3)])
def test_a_fourier_mode_decays_as_it_should(modes):
    """Diffusion with constant kappa: the semi-discrete decay is exact, the continuous one up to the spacing squared."""
    gaps = []
    for n in (16, 32):
        equation = AllenCahn(diffusion=0.02, reaction=0.0, time=0.1, spacing=SIDE / n)
        x, y = grid(n)
        u = np.cos(2 * np.pi * (modes[0] * x + modes[1] * y) / SIDE)
        end = equation.advance(u, np.full_like(u, 1.5), steps=40)
        symbol = sum((2 - 2 * np.cos(2 * np.pi * k / n)) * (n / SIDE) ** 2 for k in modes)
        np.testing.assert_allclose(end, np.exp(-0.03 * symbol * 0.1) * u, atol=1e-9)
        gaps.append(abs(end - np.exp(-0.03 * 4 * np.pi**2 * sum(k * k for k in modes) / SIDE**2 * 0.1) * u).max())
    assert 3.5 < gaps[0] / gaps[1] < 4.5


def test_reaction_alone_has_a_closed_form():
    """``u' = r (u - u^3)``: ``u(t) = u0 / sqrt(u0^2 + (1 - u0^2) exp(-2 r t))``."""
    u = np.linspace(-1.5, 1.5, 16).reshape(4, 4)
    end = AllenCahn(diffusion=0.0, reaction=2.0, time=0.5).advance(u, np.ones_like(u), steps=200)
    np.testing.assert_allclose(end, u / np.sqrt(u * u + (1 - u * u) * np.exp(-2.0)), atol=1e-9)


def test_fourth_order_in_time():
    u, kappa = smooth(16)
    equation = AllenCahn(diffusion=0.02, reaction=3.0, time=0.4, spacing=SIDE / 16)
    exact = equation.advance(u, kappa, steps=640)
    gaps = [abs(equation.advance(u, kappa, steps) - exact).max() for steps in (20, 40)]
    assert 3.7 < np.log2(gaps[0] / gaps[1]) < 4.3


def test_second_order_in_space():
    def end(n):
        u, kappa = smooth(n)
        equation = AllenCahn(diffusion=0.02, reaction=3.0, time=0.4, spacing=SIDE / n)
        return equation.advance(u, kappa)[:: n // 16, :: n // 16]

    exact = end(128)  # whose own error raises the ratio of 4 to 4.2
    gaps = [abs(end(n) - exact).max() for n in (16, 32)]
    assert 1.8 < np.log2(gaps[0] / gaps[1]) < 2.3


def test_mass_is_conserved_without_reaction():
    u, kappa = smooth(16)
    end = AllenCahn(reaction=0.0).advance(u, kappa)
    assert abs(end.sum() - u.sum()) < 1e-11
    assert end.std() < u.std()


def test_default_steps_are_accurate_for_random_fields():
    u, kappa = (fields.reshape(4, 16, 16) for fields in stream(16).states("training", range(4)))
    exact = AllenCahn().advance(u, kappa, steps=200)
    assert abs(AllenCahn().advance(u, kappa) - exact).max() < 2e-3 * abs(exact - u).max()


def test_a_sample_depends_on_its_number_alone():
    one, other = stream(12), stream(12)
    together = one.fields("training", [7, 2**60, 0, 7])
    assert (together[0] == together[3]).all()
    for row, number in zip(together, (7, 2**60, 0), strict=False):
        assert (other.fields("training", [number])[0] == row).all()
    assert not (other.fields("validation", [7])[0, 2] == together[0, 2]).any()
    assert not (stream(12, seed=1).fields("training", [7])[0, 2] == together[0, 2]).any()
    u, kappa = (fields[0].reshape(12, 12) for fields in one.states("training", [7]))
    assert (together[0, 0].numpy() == u.ravel()).all()
    np.testing.assert_allclose(together[0, 2].numpy(), (AllenCahn().advance(u, kappa) - u).ravel(), atol=1e-14)


def test_random_fields_are_smoother_than_the_grid():
    u, kappa = (fields[0].reshape(24, 24) for fields in stream(24).states("training", [0]))
    assert abs(u).max() <= 1.6
    assert 0 < kappa.min() < kappa.max() <= 2.2
    rough = np.random.default_rng(0).standard_normal((24, 24))
    for field in (u, kappa):
        assert (np.diff(field, axis=0).std() / field.std()) < 0.6 * np.diff(rough, axis=0).std() / rough.std()


@pytest.mark.parametrize(("key", "value"), [("time", 0.0), ("spacing", -1.0), ("diffusion", float("nan"))])
def test_numbers_that_make_no_sense(key, value):
    with pytest.raises(ValueError, match=key):
        AllenCahn(**{key: value})
