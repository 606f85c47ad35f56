"""Linear theory of Schwarz: contraction of sweeps with and without a coarse level, and counts of GMRES."""

from __future__ import annotations

import math

import pytest
import torch

from mldd.solvers import Krylov, Raspen
from mldd.solvers.parts import Sweep

pytest.importorskip("petsc4py")
from tests.solvers.test_aspin import (
    EXACT,
    LAPLACE,
    PARTS,
    jacobian,
    laplace_hierarchy,
    propagator,
    radius,
    same_as_the_iteration,
    vector,
)


@pytest.mark.parametrize("parts, expected", [(2, 0.9617), (4, 0.9774), (8, 0.9882), (16, 0.9940)])
def test_contraction_of_restricted_schwarz(parts, expected):
    solver = Raspen(LAPLACE.decomposition(parts, 2))
    J = jacobian(solver, LAPLACE.objective(), LAPLACE.solution())
    assert radius(torch.eye(255, dtype=torch.float64) + J) == pytest.approx(expected, abs=5e-5)
    same_as_the_iteration(solver, J)


def test_contraction_of_sweeps_on_two_subdomains_in_closed_form():
    alpha, beta = 125 / 256, 130 / 256
    E = propagator(Sweep(LAPLACE.decomposition(2, 2), EXACT))
    assert radius(E) == pytest.approx(math.sqrt(alpha * (1 - beta) / (beta * (1 - alpha))), rel=1e-9)


def test_contraction_measured_from_the_iteration():
    f, exact = LAPLACE.objective(), LAPLACE.solution()
    sweep, x = Sweep(LAPLACE.decomposition(2, 2), EXACT), vector(255)
    state, errors = sweep.init(f, x), []
    for _ in range(40):
        x = x + sweep.correction(f, x, state)
        errors.append(float((x - exact).norm()))
    assert (errors[-1] / errors[-21]) ** (1 / 20) == pytest.approx(0.9617, abs=2e-3)


@pytest.mark.parametrize("parts, half", [(2, 0.9808), (4, 0.9887), (8, 0.9941), (16, 0.9970)])
def test_additive_schwarz_converges_only_if_damped(parts, half):
    solver = Raspen(LAPLACE.decomposition(parts, 2), combine="asm")
    J, identity = jacobian(solver, LAPLACE.objective(), LAPLACE.solution()), torch.eye(255, dtype=torch.float64)
    assert radius(identity + J) == pytest.approx(1.0, abs=1e-6)
    assert radius(identity + 0.5 * J) == pytest.approx(half, abs=5e-5)
    same_as_the_iteration(solver, J)
    sweep, e = Sweep(LAPLACE.decomposition(parts, 2), EXACT, combine="asm"), vector(255)
    damped = sweep.correction(LAPLACE.objective(), LAPLACE.solution() + e, sweep.init(LAPLACE.objective(), e))
    torch.testing.assert_close(damped, 0.5 * J @ e, rtol=0, atol=1e-9)  # by the multiplicity, 2


@pytest.mark.parametrize("parts, expected", [(2, 0.9542), (4, 0.9526), (8, 0.9350), (16, 0.8901)])
def test_contraction_with_a_coarse_level(parts, expected):
    solver = Raspen(LAPLACE.decomposition(parts, 2), laplace_hierarchy(parts))
    J = jacobian(solver, LAPLACE.objective(), LAPLACE.solution())
    assert radius(torch.eye(255, dtype=torch.float64) + J) == pytest.approx(expected, abs=5e-5)
    same_as_the_iteration(solver, J)


def test_gmres_counts():
    f, b = LAPLACE.objective(), vector(255, 3)
    for two_level, counts in ((False, (3, 7, 15, 31)), (True, (3, 5, 7, 9))):
        for parts, expected in zip(PARTS, counts, strict=True):
            hierarchy = laplace_hierarchy(parts) if two_level else None
            solver = Raspen(LAPLACE.decomposition(parts, 2), hierarchy, krylov=Krylov(1e-10))
            F = solver.linearise(f, torch.zeros_like(b), solver.init(f, b))
            d, iterations, reason = solver.krylov.solve(F.negative_product, b)
            # One level: identity plus rank 2 (parts - 1). Two levels, 8 parts: 7 or 8, as the right-hand side has it.
            assert expected <= iterations <= expected + (1 if two_level else 0) and reason > 0
            assert float((F.negative_product(d) - b).norm() / b.norm()) < 1e-9
