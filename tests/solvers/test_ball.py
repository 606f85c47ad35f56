"""Minimisers of quadratics in a ball: necessary and sufficient conditions, and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mldd.solvers.parts import Subspace, in_ball
from tests.helpers import quadratic

N, RADIUS = 7, 1.5


def dense(kind: str, seed: int) -> tuple[Tensor, Tensor]:
    """Return a symmetric matrix and a slope for which the sub-problem is of this kind."""
    generator = torch.Generator().manual_seed(seed)
    V = torch.linalg.qr(torch.randn(N, N, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(-2.0, 4.0, N, dtype=torch.float64)
    a = torch.randn(N, generator=generator, dtype=torch.float64)
    if kind == "interior":
        values = values + 3.0
        a = 0.5 * RADIUS * a / a.norm()
    elif kind == "boundary":
        values, a = values + 3.0, 40.0 * a / a.norm()
    elif kind == "hard":  # no slope along the lowest eigenvector, and a short step without it
        a[0], a[1:] = 0.0, 0.1 * a[1:]
    elif kind == "singular":
        values = (values + 2.0) / 6.0
        a[0], a[1:] = 0.0, 0.02 * a[1:]
    return V @ torch.diag(values) @ V.T, V @ a


def by_eigenvalues(B: Tensor, g: Tensor) -> tuple[Tensor, float]:
    values, V = torch.linalg.eigh(B)
    z = in_ball((V.T @ g).numpy()[None], values.numpy()[None], np.array([[RADIUS]]))[0]
    return V @ torch.from_numpy(z), -float(z @ ((V.T @ g).numpy() + 0.5 * values.numpy() * z))


def by_subspace(B: Tensor, g: Tensor) -> tuple[Tensor, float]:
    class Model:
        def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
            return B @ v

    return Subspace.of(Model(), torch.zeros_like(g), g, list(torch.eye(N, dtype=g.dtype))).minimise(RADIUS)


@pytest.mark.parametrize("minimise", [by_eigenvalues, by_subspace])
@pytest.mark.parametrize("kind", ["interior", "boundary", "easy", "hard", "singular"])
@pytest.mark.parametrize("seed", range(3))
def test_the_conditions_of_a_minimiser_hold(minimise: Any, kind: str, seed: int) -> None:
    B, g = dense(kind, seed)
    s, decrease = minimise(B, g)
    length, lowest = float(s.norm()), float(torch.linalg.eigvalsh(B)[0])
    t = -float(s @ (B @ s + g)) / length**2
    assert length <= RADIUS * (1 + 1e-9)
    torch.testing.assert_close(B @ s + t * s, -g, rtol=0, atol=1e-7)  # stationary
    assert t >= -1e-8 and lowest + t >= -1e-8  # convex
    assert abs(t * (RADIUS - length)) < 1e-7  # complementary
    assert (length < 0.9 * RADIUS) == (kind in ("interior", "singular"))
    assert decrease == pytest.approx(-float(g @ s + 0.5 * s @ B @ s), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("minimise", [by_eigenvalues, by_subspace])
def test_closed_forms(minimise: Any) -> None:
    B, g = dense("interior", 0)
    torch.testing.assert_close(minimise(B, g)[0], torch.linalg.solve(B, -g), rtol=1e-9, atol=1e-10)
    B, g = dense("hard", 0)
    values, V = torch.linalg.eigh(B)
    shifted = -(V[:, 1:] @ ((V[:, 1:].T @ g) / (values[1:] - values[0])))
    rest = (RADIUS**2 - shifted.norm() ** 2).sqrt()
    s = minimise(B, g)[0]
    torch.testing.assert_close(V[:, 1:].T @ s, V[:, 1:].T @ shifted, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close((V[:, 0] @ s).abs(), rest, rtol=1e-6, atol=1e-8)
    B, g = dense("singular", 0)
    # the rounding of the slope along the singular direction, over 1e-12
    torch.testing.assert_close(minimise(B, g)[0], -torch.linalg.pinv(B, rtol=1e-9) @ g, rtol=0, atol=1e-4)


def test_rows_are_independent() -> None:
    problems = [dense(kind, seed) for kind in ("interior", "easy", "hard", "singular") for seed in range(2)]
    values, slopes = [], []
    for B, g in problems:
        eigenvalues, V = torch.linalg.eigh(B)
        values.append(eigenvalues.numpy())
        slopes.append((V.T @ g).numpy())
    radii = np.linspace(0.5, 3.0, len(problems))[:, None]
    together = in_ball(np.stack(slopes), np.stack(values), radii)
    for row, a, eigenvalues, radius in zip(together, slopes, values, radii, strict=True):
        alone = in_ball(a[None], eigenvalues[None], radius[None])[0]
        np.testing.assert_allclose(row, alone, rtol=1e-9, atol=1e-9)


def test_nothing_to_minimise_in() -> None:
    f = quadratic(4)
    x = torch.ones(4, dtype=torch.float64)
    s, decrease = Subspace.of(f, x, f.gradient(x), []).minimise(1.0)
    assert torch.equal(s, torch.zeros_like(x)) and decrease == 0.0
