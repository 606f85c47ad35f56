"""ASPIN and RASPEN on linear problems, against finite differences, and against reference runs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    DIFFERENCES,
    Bounds,
    Hierarchy,
    Level,
    MatrixTransfer,
    Objective,
    Remembered,
    Restricted,
    contiguous,
    index_decomposition,
)
from mldd.loop import Status, Stop, minimise
from mldd.problems.grids import Forchheimer, Quadratic
from mldd.problems.images.supervised import Classification
from mldd.solvers import Aspin, Krylov, NewtonCG, Raspen
from mldd.solvers.parts import Sweep
from mldd.solvers.schwarz_jacobian import CoarseCorrection, Linear
from tests.helpers import WithoutProducts, quadratic

pytest.importorskip("petsc4py")

LAPLACE = Quadratic(n=255, dim=1)
PARTS = (2, 4, 8, 16)
EXACT = NewtonCG(rtol=1e-12)


def vector(n: int, seed: int = 1) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def hats(n: int, parts: int) -> Tensor:
    """Return the linear hats at the first nodes of all subdomains but the first, by numpy's interpolation."""
    nodes = [-1, *(k * n // parts for k in range(1, parts)), n]
    columns = [np.interp(np.arange(n), nodes, np.eye(parts + 1)[j]) for j in range(1, parts)]
    return torch.from_numpy(np.stack(columns, 1))


def laplace_hierarchy(parts: int) -> Hierarchy:
    f = LAPLACE.objective()
    P = hats(255, parts)
    nodal = torch.zeros(parts - 1, 255, dtype=torch.float64)
    nodal[torch.arange(parts - 1), torch.tensor([k * 255 // parts for k in range(1, parts)])] = 1.0
    transfer = MatrixTransfer(P, nodal)
    return Hierarchy((Level(f), Level(Restricted(f, torch.zeros(255, dtype=torch.float64), transfer), transfer)))


def radius(E: Tensor) -> float:
    return float(torch.linalg.eigvals(E).abs().max())


def propagator(sweep: Sweep) -> Tensor:
    """Return the matrix of the error propagation ``e -> G(x* + e) - x*`` by running the sweep on every unit vector."""
    f, exact = LAPLACE.objective(), LAPLACE.solution()
    state = sweep.init(f, exact)
    columns = [e + sweep.correction(f, exact + e, state) for e in torch.eye(255, dtype=torch.float64)]
    return torch.stack(columns, 1)


def jacobian(solver: Raspen, f: Objective, x: Tensor) -> Tensor:
    F = solver.linearise(f, x, solver.init(f, x))
    return torch.stack([F.product(e) for e in torch.eye(len(x), dtype=torch.float64)], 1)


# linear theory


def same_as_the_iteration(solver: Raspen, J: Tensor) -> None:
    """Check that J is the matrix of the iteration: on a linear problem F(x* + e) = J e."""
    f, exact, e = LAPLACE.objective(), LAPLACE.solution(), vector(255)
    residual = solver.linearise(f, exact + e, solver.init(f, exact)).residual
    torch.testing.assert_close(residual, J @ e, rtol=0, atol=1e-9)


@pytest.mark.parametrize("method", [Raspen, Aspin])
@pytest.mark.parametrize("globalisation", ["line-search", "trust-region", "none"])
@pytest.mark.parametrize("two_level", [False, True])
def test_one_newton_step_on_linear_problems(method, globalisation, two_level):
    for parts in (2, 16):
        hierarchy = laplace_hierarchy(parts) if two_level else None
        solver = method(LAPLACE.decomposition(parts, 2), hierarchy, krylov=Krylov(1e-13), globalisation=globalisation)
        result = minimise(LAPLACE.objective(), vector(255), solver, stop=Stop(1))
        assert float((result.x - LAPLACE.solution()).abs().max()) < 1e-8
        assert result.state.notes == {}


@pytest.mark.parametrize("method", [Raspen, Aspin])
def test_one_newton_step_in_two_dimensions_and_by_cg(method):
    problem = Quadratic(n=15)
    for dense in (512, 0):
        solver = method(problem.decomposition(6, 1), krylov=Krylov(1e-12), dense=dense)
        result = minimise(problem.objective(), vector(225), solver, stop=Stop(1))
        torch.testing.assert_close(result.x, problem.solution(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", [Raspen, Aspin])
def test_objectives_that_know_no_batches(method):
    f = quadratic(14)
    solver = method(index_decomposition(f, contiguous([1] * 14, 3, 1)), krylov=Krylov(1e-12))
    result = minimise(f, vector(14), solver, stop=Stop(1))
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=1e-8)


@pytest.mark.parametrize("method", [Raspen, Aspin])
@pytest.mark.parametrize("two_level", [False, True])
def test_differences_of_gradients_where_there_are_no_products(method, two_level):
    f, coarse = WithoutProducts(LAPLACE.objective()), laplace_hierarchy(4)
    levels = (Level(f), Level(WithoutProducts(coarse[1].objective), coarse[1].transfer))
    solver = method(index_decomposition(f, contiguous([1] * 255, 4, 2)), Hierarchy(levels) if two_level else None)
    # the inverse amplifies the error of differences by (n + 1)^2 / 8, so that the measure has to be far below the error
    result = minimise(f, vector(255), solver, stop=Stop(10, atol=2.5e-8))
    assert result.status is Status.converged_atol
    assert float((result.x - LAPLACE.solution()).abs().max()) < 1e-5
    assert result.state.notes[DIFFERENCES] == result.record.step


# the Jacobian


def difference(solver: Raspen, f: Objective, x: Tensor, w: Tensor, step: float = 1e-5) -> Tensor:
    def residual(at: Tensor) -> Tensor:
        return solver.linearise(f, at, solver.init(f, at)).residual

    return (residual(x + step * w) - residual(x - step * w)) / (2 * step)


def classification(hidden: int = 3) -> Classification:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(60, 4, generator=generator, dtype=torch.float64)
    scores = inputs @ torch.randn(4, 3, generator=generator, dtype=torch.float64)
    noise = 1.5 * torch.randn(60, 3, generator=generator, dtype=torch.float64)
    return Classification.of(inputs, (scores + noise).argmax(1), hidden=(hidden,))


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("combine", ["ras", "wasm", "asm"])
@pytest.mark.parametrize("two_level", [False, True])
def test_the_jacobian_of_raspen_is_exact(combine, two_level):
    problem = Forchheimer(n=59)
    f, x, w = problem.objective(), problem.interpolant() + 0.02 * vector(59), vector(59, 2)
    hierarchy = problem.coarse_hierarchy(2, 4) if two_level else None
    solver = Raspen(problem.decomposition(4, 2), hierarchy, EXACT, combine=combine)
    product = solver.linearise(f, x, solver.init(f, x)).product(w)
    assert relative(product, difference(solver, f, x, w)) < 1e-5


@pytest.mark.parametrize("dense", [512, 0])
def test_the_jacobian_is_exact_on_networks_with_a_proximal_term(dense):
    f = classification()
    x, w = f.initial(1), vector(f.size, 2)
    decomposition = index_decomposition(f, contiguous(f.sizes, 2))
    solver = Raspen(decomposition, local=EXACT, mu=0.05, dense=dense, krylov=Krylov(1e-10))
    product = solver.linearise(f, x, solver.init(f, x)).product(w)
    assert relative(product, difference(solver, f, x, w)) < 1e-5


def test_the_jacobian_of_aspin_is_exact_at_a_solution_only():
    problem = Forchheimer(n=59)
    f, w = problem.objective(), vector(59, 2)
    solver = Aspin(problem.decomposition(4, 2), local=EXACT)

    def error(x: Tensor) -> float:
        return relative(solver.linearise(f, x, solver.init(f, x)).product(w), difference(solver, f, x, w))

    assert error(problem.interpolant() + 0.02 * vector(59)) > 1e-2
    assert error(problem.solution()) < 1e-5


def test_zeros_of_the_function_are_solutions():
    problem = Forchheimer()
    f, exact = problem.objective(), problem.solution()
    for method in (Raspen, Aspin):
        for hierarchy in (None, problem.coarse_hierarchy(2, 5)):
            solver = method(problem.decomposition(5, 3), hierarchy)
            assert float(solver.linearise(f, exact, solver.init(f, exact)).residual.abs().max()) < 1e-11
            away = exact + 1e-3 * vector(149)
            assert float(solver.linearise(f, away, solver.init(f, away)).residual.abs().max()) > 1e-4


def test_the_coarse_correction_satisfies_its_equation_and_vanishes_at_a_solution():
    problem = Forchheimer()
    f, exact = problem.objective(), problem.solution()
    level = problem.coarse_hierarchy(2, 5)[1]
    assert float(CoarseCorrection(level, Linear(), f, exact).correction.abs().max()) < 1e-11
    x = problem.interpolant()
    y0 = level.transfer.inject(x)
    y = y0 + level.transfer.inject(CoarseCorrection(level, Linear(), f, x).correction)
    assert float((y - y0).abs().max()) > 0.1
    left = level.objective.gradient(y)
    right = level.objective.gradient(y0) - level.transfer.restrict(f.gradient(x))
    torch.testing.assert_close(left, right, rtol=0, atol=1e-9)


# Forchheimer: reference runs

NEWTON_STEPS = {2: (3, 4), 5: (4, 4), 10: (6, 6), 15: (5, 6), 30: (5, 6)}
GMRES = {2: (3, 3, 4, 4), 5: (9, 9, 10, 10), 10: (19, 19, 20, 20), 15: (25, 28, 24, 29), 30: (44, 45, 37, 39)}


@pytest.mark.parametrize("parts", NEWTON_STEPS)
@pytest.mark.parametrize("method", [Raspen, Aspin])
@pytest.mark.parametrize("globalisation", ["none", "line-search", "trust-region"])
def test_newton_steps_and_gmres_iterations_on_forchheimer(parts, method, globalisation):
    problem = Forchheimer()
    exact, approximate = NEWTON_STEPS[parts]
    low, high = GMRES[parts][:2] if method is Raspen else GMRES[parts][2:]
    solver = method(problem.decomposition(parts, 3), krylov=Krylov(1e-10), globalisation=globalisation)
    f, x, steps = Remembered(problem.objective()), problem.initial(), 0
    state = solver.init(f, x)
    while float((x - problem.solution()).abs().max()) > 1e-8:
        x, state = solver.step(f, x, state)
        steps += 1
        assert low - 1 <= state.iterations <= high + 1 and steps < 10
    assert abs(steps - (exact if method is Raspen else approximate)) <= 1
    assert state.notes == {} and state.accepted == (steps if globalisation != "none" else 0)


def test_two_levels_keep_the_krylov_iterations_down():
    problem = Forchheimer()
    counts = {}
    for parts in (5, 10, 30):
        solver = Raspen(problem.decomposition(parts, 3), problem.coarse_hierarchy(2, parts), krylov=Krylov(1e-10))
        result = minimise(problem.objective(), problem.initial(), solver, stop=Stop(12, atol=1e-9))
        assert result.status is Status.converged_atol
        torch.testing.assert_close(result.x, problem.solution(), rtol=0, atol=1e-8)
        counts[parts] = result.state.iterations
    assert counts[5] <= 9 and counts[10] <= 16 and counts[30] <= 21  # one level: 9, 19, 45


@pytest.mark.parametrize("parts, sweeps", [(2, 191), (5, 572)])
def test_sweeps_of_nonlinear_restricted_schwarz_on_forchheimer(parts, sweeps):
    problem = Forchheimer()
    f, x, exact = problem.objective(), problem.initial(), problem.solution()
    sweep = Sweep(problem.decomposition(parts, 3), NewtonCG(rtol=1e-10), 30)
    state, done = sweep.init(f, x), 0
    while float((x - exact).abs().max()) > 1e-8 and done < 700:
        x, done = x + sweep.correction(f, x, state), done + 1
    assert abs(done - sweeps) <= 1


def test_convergence_is_quadratic():
    problem = Forchheimer()
    f, x, errors = Remembered(problem.objective()), problem.initial(), []
    solver = Raspen(problem.decomposition(5, 3), local=EXACT, krylov=Krylov(1e-13))
    state = solver.init(f, x)
    for _ in range(4):
        x, state = solver.step(f, x, state)
        errors.append(float((x - problem.solution()).norm()))
    # errors near 1e-12 are rounding
    orders = [math.log(c / b) / math.log(b / a) for a, b, c in zip(errors, errors[1:], errors[2:], strict=False)]
    assert errors[2] < 1e-4 and max(orders) > 1.6, errors


# relations to other solvers


@pytest.mark.parametrize("method", [Raspen, Aspin])
def test_one_subdomain_with_one_newton_step_is_plain_newton(method):
    problem = Forchheimer()
    f = problem.objective()
    solver = method(problem.decomposition(1, 0), local_steps=1, krylov=Krylov(1e-13), globalisation="line-search")
    ours, theirs = problem.interpolant(), problem.interpolant()
    state, plain = solver.init(f, ours), NewtonCG().init(f, theirs)
    for _ in range(6):
        ours, state = solver.step(f, ours, state)
        theirs, plain = NewtonCG().step(f, theirs, plain)
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    assert state.iterations == 1


@pytest.mark.parametrize("method", [Raspen, Aspin])
@pytest.mark.parametrize("globalisation", ["line-search", "trust-region", "none"])
@pytest.mark.parametrize("two_level", [False, True])
def test_a_solution_is_a_fixed_point(method, globalisation, two_level):
    problem = Forchheimer()
    x = problem.solution()
    hierarchy = problem.coarse_hierarchy(2, 5) if two_level else None
    solver = method(problem.decomposition(5, 3), hierarchy, globalisation=globalisation)
    f = Remembered(problem.objective())
    state = solver.init(f, x)
    for _ in range(2):
        x, state = solver.step(f, x, state)
    torch.testing.assert_close(x, problem.solution(), rtol=0, atol=1e-12)


@dataclass(frozen=True)
class Decayed:
    """`f` plus ``weight/2 ||x||^2``: without it minimisers of the cross-entropy lie at infinity."""

    f: Classification
    weight: float = 1e-2
    batched: ClassVar[bool] = True

    @property
    def size(self) -> int:
        return self.f.size

    @property
    def bounds(self) -> Bounds:
        return self.f.bounds

    def value(self, x: Tensor) -> Tensor:
        return self.f.value(x) + 0.5 * self.weight * (x**2).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return self.f.gradient(x) + self.weight * x

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        return self.f.hessian_product(x, v) + self.weight * v


@pytest.mark.parametrize("method", [Raspen, Aspin])
def test_layers_of_a_network_as_subdomains(method):
    f, mu = Decayed(classification()), 1e-2
    decomposition = index_decomposition(f, contiguous(f.f.sizes, 2))
    start = f.f.initial(0)
    result = minimise(f, start, method(decomposition, mu=mu), stop=Stop(40, atol=1e-9), values=True)
    values = result.history.column("value")
    assert result.status is Status.converged_atol
    assert all(b <= a + 1e-14 for a, b in zip(values, values[1:], strict=False))
    searched = minimise(
        f, start, method(decomposition, mu=mu, globalisation="line-search"), stop=Stop(3), values=True
    ).history.column("value")
    assert all(b < a for a, b in zip(searched, searched[1:], strict=False))
