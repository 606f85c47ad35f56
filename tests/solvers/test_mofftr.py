"""MOFFTR: the weights of ASTR1 in closed form, hierarchies, and never a function value."""

import math
from dataclasses import replace

import pytest
import torch

from mldd.algebra import Corrected, Hierarchy, Level
from mldd.loop import Status, Stop, minimise
from mldd.problems.grids import Obstacle, Quadratic
from mldd.problems.images import Digits
from mldd.solvers import AdaGrad, Mofftr, MultilevelAdaGrad, Recursion
from tests.helpers import Rosenbrock, WithoutValue, quadratic


def single(f):
    return Hierarchy((Level(f),))


def without_values(hierarchy):
    return Hierarchy(tuple(replace(level, objective=WithoutValue(level.objective)) for level in hierarchy.levels))


@pytest.mark.parametrize("f", [quadratic(20), Rosenbrock(6)])
@pytest.mark.parametrize(("varsigma", "theta"), [(0.01, 1.0), (0.5, 25.0)])
def test_a_single_level_is_astr1(f, varsigma, theta):
    x = torch.randn(f.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    solver = Mofftr(single(f), AdaGrad(math.sqrt(varsigma), 1 / math.sqrt(theta), curvature="none"))
    result = minimise(WithoutValue(f), x, solver, stop=Stop(25), values=False)
    squares = torch.zeros_like(x)
    for _ in range(25):
        g = f.gradient(x)
        squares += g**2
        x = x - g / (torch.sqrt(varsigma + squares) * math.sqrt(theta))
    torch.testing.assert_close(result.x, x, rtol=1e-12, atol=1e-13)


def test_by_default_it_has_the_published_varsigma_and_no_curvature():
    f, x = quadratic(5), torch.ones(5, dtype=torch.float64)
    g = f.gradient(x)
    ours = minimise(f, x, Mofftr(single(f)), stop=Stop(1)).x
    torch.testing.assert_close(ours, x - g / (0.01 + g**2).sqrt())


def test_it_is_the_multilevel_method_without_bounds():
    problem = Quadratic(dim=2, n=15)
    f, x, smoother = problem.objective(), problem.initial(0), AdaGrad(0.3, 0.5, curvature="none")
    ends = [
        minimise(f, x, kind(problem.hierarchy(3), smoother), stop=Stop(9)).x for kind in (Mofftr, MultilevelAdaGrad)
    ]
    assert torch.equal(*ends)


def test_with_curvature_the_step_stays_in_the_radii_and_decreases_the_model():
    f, x = quadratic(12), torch.ones(12, dtype=torch.float64)
    solver = Mofftr(single(f), AdaGrad(0.1, curvature="exact"))
    state, squares = solver.init(f, x), torch.full_like(x, 0.01)
    for _ in range(10):
        before, g = x.clone(), f.gradient(x)
        squares += g**2
        x, state = solver.step(f, x, state)
        s, radius = x - before, g.abs() / squares.sqrt()
        assert bool((s.abs() <= radius + 1e-14).all())
        linear = -g.sign() * radius
        gamma = min(1.0, float(-(g @ linear) / (linear @ f.A @ linear)))
        model = lambda s, g=g: float(g @ s + 0.5 * s @ f.A @ s)  # noqa: E731
        assert model(s) <= model(gamma * linear) + 1e-12


EXACT = {"smoother": AdaGrad(0.1, curvature="exact")}
HALF = {"smoother": AdaGrad(0.1, 0.5, curvature="none"), "coarse": Recursion(cycle="W")}


@pytest.mark.parametrize("settings", [EXACT, {}, HALF])
def test_hierarchies_need_no_value_and_beat_a_single_level(settings):
    problem = Quadratic(dim=2, n=15)
    f, x = WithoutValue(problem.objective()), problem.initial(0)
    if settings is EXACT:
        f = problem.objective()
    steps = []
    for levels in (1, 3):
        hierarchy = problem.hierarchy(levels)
        hierarchy = hierarchy if settings is EXACT else without_values(hierarchy)
        result = minimise(f, x, Mofftr(hierarchy, **settings), stop=Stop(3000, atol=1e-5), values=False)
        assert result.status is Status.converged_atol
        steps.append(result.record.cost.work_units)
    assert steps[1] < 0.8 * steps[0]


@pytest.mark.parametrize("settings", [{}, EXACT, HALF, {"coarse": Recursion(safeguard=False, cap=0.0)}])
def test_a_critical_point_is_a_fixed_point(settings):
    problem = Quadratic(dim=1, n=15)

    def stationary_at_zero(level):
        x = torch.zeros(level.objective.size, dtype=torch.float64)
        return replace(level, objective=Corrected(level.objective, -level.objective.gradient(x), x))

    for levels in (1, 2, 3):
        hierarchy = Hierarchy(tuple(map(stationary_at_zero, problem.hierarchy(levels).levels)))
        x = torch.zeros(15, dtype=torch.float64)
        coarse = replace(settings.get("coarse", Recursion()), threshold=0.0)
        solver, f = Mofftr(hierarchy, **settings | {"coarse": coarse}), hierarchy[0].objective
        state = solver.init(f, x)
        for _ in range(4):
            x, state = solver.step(f, x, state)
        assert (state.accepted > 0) == (levels > 1)
        assert torch.equal(x, torch.zeros_like(x))


def test_nested_mini_batches():
    pytest.importorskip("sklearn")
    problem = Digits(hidden="16", samples=200, batch=80, growth=1.5)
    f, x = problem.objective(), problem.initial(0)
    solver = Mofftr(problem.hierarchy(3), AdaGrad(1e-3, 0.1, curvature="none"), Recursion(steps=5))
    result = minimise(f, x, solver, stop=Stop(20))
    assert result.record.accepted > 0
    assert float(f.value(result.x)) < 0.3 * float(f.value(x))


def test_refuses():
    problem = Obstacle(n=7)
    with pytest.raises(
        ValueError, match="mofftr needs an objective without bounds, got one with bounds; use ml-adagrad"
    ):
        minimise(problem.objective(), problem.initial(0), Mofftr(problem.hierarchy(2)))
    with pytest.raises(
        ValueError, match="`coarse.bounds` is for objectives with bounds.*got 'truncated'; leave it out"
    ):
        Mofftr(problem.hierarchy(2), coarse=Recursion(bounds="truncated"))
