"""The quadratic model of ML-ADAGB2: the preconditioner against dense algebra, minimisers against PETSc."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from mldd import Stop, minimise
from mldd.algebra import Corrected, Proximal, Remembered, counting, hessian, largest_eigenvalue
from mldd.problems.grids import Bratu, Ignition, Membrane, MinimalSurface, MoreBV, Obstacle
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion
from mldd.solvers.parts import Multigrid, conjugate_gradients, linear_stages
from mldd.solvers.petsc import Snes

QUADRATIC = Recursion(model="quadratic", rtol=1e-2, nested=0.1)


def point(problem: Any) -> tuple[Any, Tensor, Tensor]:
    """Return the hierarchy of a problem, a point, and what is free there."""
    f = problem.objective()
    generator = torch.Generator().manual_seed(3)
    x = f.bounds.project(0.05 * torch.rand(f.size, generator=generator, dtype=torch.float64))
    free = torch.ones(problem.n, problem.n, dtype=x.dtype)
    free[4:10, 3:] = 0.0
    return problem.hierarchy(3), x, free.view(-1)


@pytest.mark.parametrize("problem", [Obstacle(n=15), Ignition(n=15), MinimalSurface(n=15)])
@pytest.mark.parametrize("degree", [1, 2])
def test_the_v_cycle_is_a_symmetric_inverse_on_the_free_unknowns(problem: Any, degree: int) -> None:
    hierarchy, x, free = point(problem)
    here = hessian(problem.objective(), x)
    inverse = Multigrid(linear_stages(hierarchy, 0, here, x, 0, [0.0] * 3), free, degree, 20)
    identity = torch.eye(len(x), dtype=x.dtype)
    M = torch.stack([inverse(row * free) for row in identity])
    torch.testing.assert_close(M, M.T, rtol=0, atol=1e-12)
    assert not M[:, free == 0].any()
    kept = free > 0
    values = torch.linalg.eigvals(M[kept][:, kept] @ here.product(identity)[kept][:, kept]).real
    assert 0.2 < float(values.min()) and float(values.max()) < 2.0


@pytest.mark.parametrize("make", [Obstacle, Ignition, Membrane, MinimalSurface, MoreBV])
def test_the_largest_eigenvalue_is_estimated_from_above(make: Any) -> None:
    """On the membrane, whose rows have an even number of nodes, a vector of alternating signs has hardly any part."""
    for n in (7, 15):
        f = make(n=n).objective()
        here = hessian(f, make(n=n).initial())
        H = here.product(torch.eye(f.size, dtype=torch.float64))
        exact = float(torch.linalg.eigvals(H / here.diagonal[:, None]).real.max())
        assert exact <= here.largest * (1 + 1e-12) <= 1.2 * exact
        assert exact <= largest_eigenvalue(here) <= 1.1 * exact


def test_conjugate_gradients_solve_on_the_free_unknowns() -> None:
    hierarchy, x, free = point(MinimalSurface(n=15))
    here = hessian(MinimalSurface(n=15).objective(), x)
    inverse = Multigrid(linear_stages(hierarchy, 0, here, x, 0, [0.0] * 3), free, 1, 20)
    b = torch.linspace(-1.0, 1.0, len(x), dtype=x.dtype)
    s = conjugate_gradients(here.product, inverse, b, free, 1e-12, 60)
    kept = free > 0
    H = here.product(torch.eye(len(x), dtype=x.dtype))[kept][:, kept]
    torch.testing.assert_close(s[kept], torch.linalg.solve(H, b[kept]), rtol=1e-9, atol=1e-9)
    assert not s[~kept].any()


@pytest.mark.parametrize("n", [15, 63])
def test_v_cycles_of_a_fourth_order_energy_do_not_grow_with_the_mesh(n: int) -> None:
    """With splines 11 to 13 of them, on 255 nodes per side too; with hats 18 on 63 and 23 on 255."""
    problem, calls = MoreBV(n=n), []
    f, x = problem.objective(), problem.initial()
    here, hierarchy = hessian(f, x), problem.hierarchy(n.bit_length() - 2)
    free = torch.ones_like(x)
    inverse = Multigrid(linear_stages(hierarchy, 0, here, x, 0, [0.0] * len(hierarchy)), free, 2, 20)

    def counted(r: Tensor) -> Tensor:
        calls.append(r)
        return inverse(r)

    b = torch.rand(len(x), generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    s = conjugate_gradients(here.product, counted, b, free, 1e-6, 50)
    assert float(torch.linalg.vector_norm(b - here.product(s))) <= 1.01e-6 * float(torch.linalg.vector_norm(b))
    assert len(calls) <= 15


@pytest.mark.parametrize("problem", [Obstacle(n=15), Ignition(n=15), Bratu(n=15), MinimalSurface(n=15)])
def test_minimisers_are_those_of_petsc(problem: Any) -> None:
    f, x = problem.objective(), problem.initial()
    with counting() as cost:
        solver = MultilevelAdaGrad(problem.hierarchy(3), coarse=QUADRATIC)
        found = minimise(f, x, solver, stop=Stop(40, rtol=1e-10))
    assert found.status.name == "converged_rtol" and cost.values == 0
    assert f.bounds.violation(found.x) == 0.0
    peer = minimise(f, x, Snes("vinewtonrsls"), stop=Stop(100, rtol=1e-7))
    assert peer.status.name == "converged_rtol"
    torch.testing.assert_close(found.x, peer.x, rtol=0, atol=3e-7)


@pytest.mark.parametrize("problem", [Obstacle, Ignition, Bratu, MinimalSurface, Membrane])
def test_steps_do_not_grow_with_the_mesh(problem: Any) -> None:
    for n in (15, 63):
        made = problem(n=n)
        solver = MultilevelAdaGrad(made.hierarchy(n.bit_length() - 2), coarse=QUADRATIC)
        result = minimise(made.objective(), made.initial(), solver, stop=Stop(40, rtol=1e-8))
        assert result.status.name == "converged_rtol"
        assert result.record.step <= 10


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("nested", [0.0, 0.1])
def test_whole_newton_steps_that_lead_away_are_shortened(levels: int, nested: float) -> None:
    """From zero the area is so flat that whole steps never come back."""
    problem = MinimalSurface(n=31)
    solver = MultilevelAdaGrad(problem.hierarchy(levels), coarse=Recursion(model="quadratic", nested=nested))
    result = minimise(problem.objective(), problem.initial(), solver, stop=Stop(60, rtol=1e-8))
    assert result.status.name == "converged_rtol"


def test_a_fourth_order_energy_without_a_hessian_of_its_own_is_solved_too() -> None:
    problem = MoreBV(n=15)
    smoother = AdaGrad(kappa=10.0, model_steps=20)
    solver = MultilevelAdaGrad(problem.hierarchy(3), smoother, Recursion(model="auto", nested=0.1))
    result = minimise(problem.objective(), problem.initial(), solver, stop=Stop(60, rtol=1e-8))
    assert result.status.name == "converged_rtol"


def test_unknowns_that_the_gradient_holds_at_a_bound_do_not_move() -> None:
    problem = Obstacle(n=31)
    f, solver = problem.objective(), MultilevelAdaGrad(problem.hierarchy(3), coarse=Recursion(model="quadratic"))
    x = minimise(f, problem.initial(), AdaGrad(), stop=Stop(30)).x
    held = (x == f.bounds.lower) & (f.gradient(x) > 0)
    assert int(held.sum()) > 20
    moved, state = solver.step(f, x.clone(), solver.init(f, x))
    assert state.accepted == 1
    assert torch.equal(moved[held], x[held])


def test_the_hessian_of_a_layer_that_changes_products_is_not_that_of_its_core() -> None:
    f = Obstacle(n=7).objective()
    x = torch.linspace(0.0, 1.0, f.size, dtype=torch.float64)
    plain, v = hessian(f, x).product(x), x.flip(0)
    torch.testing.assert_close(hessian(Remembered(Corrected(f, x, x)), x).product(x), plain)
    near = hessian(Proximal(f, 0.5, x), x)
    torch.testing.assert_close(near.product(torch.stack([x, v]))[0], plain + 0.5 * x)
    torch.testing.assert_close(near.diagonal, f.hessian_diagonal(x) + 0.5)


def test_auto_takes_the_quadratic_model_where_it_can() -> None:
    problem = Obstacle(n=15)
    f, x, levels = problem.objective(), problem.initial(), problem.hierarchy(2)
    for coarse, smoother, expected in (
        (Recursion(model="auto"), AdaGrad(), True),
        (Recursion(model="auto", cap=9.0), AdaGrad(), False),
        (Recursion(model="auto"), AdaGrad(curvature="none"), False),
        (Recursion(), AdaGrad(), False),
    ):
        assert bool(MultilevelAdaGrad(levels, smoother, coarse).init(f, x).largest) == expected


def test_what_the_quadratic_model_cannot_use_is_refused() -> None:
    with pytest.raises(ValueError, match=r"`coarse.cycle` needs `coarse.model` nonlinear or auto, got quadratic"):
        Recursion(model="quadratic", cycle="W")
    with pytest.raises(ValueError, match=r"`coarse.model` must be nonlinear, quadratic or auto, got 'cubic'"):
        Recursion(model="cubic")  # type: ignore[arg-type]
