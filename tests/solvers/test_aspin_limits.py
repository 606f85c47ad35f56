"""ASPIN and RASPEN where the objective is not convex, in a ball, and where local problems or gradients fail."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Decomposition,
    Objective,
    Price,
    SharedDecomposition,
    contiguous,
    index_decomposition,
)
from mldd.loop import State, Status, Stop, minimise
from mldd.problems.grids import Bratu, Forchheimer, Quadratic
from mldd.ranks import load_petsc
from mldd.solvers import Aspin, Krylov, Raspen
from mldd.solvers.parts import BatchLBFGS, Subspace
from tests.helpers import Quadratic as DenseQuadratic
from tests.helpers import quadratic

pytest.importorskip("petsc4py")
from tests.solvers.test_aspin import EXACT, difference, relative, vector

# not convex


@dataclass(frozen=True)
class Wells:
    """``sum_i (x_i^2 - 1)^2 / 4 + coupling (x_{i+1} - x_i)^2 / 2``: minimisers 1 and -1, a maximum at 0."""

    size: int = 12
    coupling: float = 0.2
    price: Price = field(default_factory=Price)
    batched: ClassVar[bool] = True

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(self.size)

    def value(self, x: Tensor) -> Tensor:
        self.price.of_value()
        return (0.25 * (x**2 - 1) ** 2).sum(-1) + 0.5 * self.coupling * (x.diff(dim=-1) ** 2).sum(-1)

    def _couple(self, x: Tensor) -> Tensor:
        out = torch.zeros_like(x)
        out[..., 1:] += x.diff(dim=-1)
        out[..., :-1] -= x.diff(dim=-1)
        return self.coupling * out

    def gradient(self, x: Tensor) -> Tensor:
        self.price.of_gradient()
        return x**3 - x + self._couple(x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        self.price.of_product()
        return (3 * x**2 - 1) * v + self._couple(v)


@pytest.mark.parametrize("method", [Raspen, Aspin])
@pytest.mark.parametrize("globalisation", ["line-search", "trust-region"])
def test_minimisers_are_found_where_the_objective_is_not_convex(method, globalisation):
    f, x = Wells(), 0.05 * vector(12)
    solver = method(index_decomposition(f, contiguous([1] * 12, 3, 1)), globalisation=globalisation)
    result = minimise(f, x, solver, stop=Stop(60, atol=1e-10), values=True)
    assert result.status is Status.converged_atol
    values = result.history.column("value")
    assert all(b <= a + 1e-14 for a, b in zip(values, values[1:], strict=False))
    H = torch.stack([f.hessian_product(result.x, e) for e in torch.eye(12, dtype=torch.float64)])
    assert float(torch.linalg.eigvalsh(H)[0]) > 0


def test_negative_curvature_is_said():
    """With local solvers that do nothing the Hessians are those at the start, a maximum."""

    @dataclass(frozen=True)
    class Idle:
        batched: ClassVar[bool] = True

        def init(self, objective: Objective, x: Tensor) -> State:
            return State()

        def step(self, objective: Objective, x: Tensor, state: State) -> tuple[Tensor, State]:
            return x.add_(1e-3), state

    f, x = Wells(), 0.05 * vector(12)
    decomposition = index_decomposition(f, contiguous([1] * 12, 3, 1))
    for dense in (512, 0):
        solver = Raspen(decomposition, local=Idle(), local_steps=1, dense=dense, globalisation="trust-region")
        result = minimise(f, x, solver, stop=Stop(1), values=True)
        assert result.state.notes["local Hessians with negative curvature"] == 3
        assert result.state.notes["local problems not solved, a damped Schwarz step in place of a Newton step"] == 3
        values = result.history.column("value")
        assert values[1] < values[0]


# the model in a subspace


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("radius", [1e-2, 1.0, 100.0])
def test_the_minimiser_in_a_ball_is_global(seed, radius):
    A = torch.randn(5, 5, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    f = DenseQuadratic(A + A.T + (seed % 2) * 8 * torch.eye(5).double(), vector(5, seed), Bounds.free(5))
    g = f.gradient(torch.zeros(5).double())
    space = Subspace.of(f, torch.zeros(5).double(), g, [g, vector(5, 8), vector(5, 9), 2 * g])
    s, decrease = space.minimise(radius)
    assert space.Q.shape == (5, 3) and float(s.norm()) <= radius * (1 + 1e-9)
    assert float(-f.value(s)) == pytest.approx(decrease, rel=1e-9, abs=1e-12)
    tries = torch.randn(3000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    tries *= (
        radius
        * torch.rand(3000, 1, generator=torch.Generator().manual_seed(2)).double()
        / tries.norm(dim=1, keepdim=True)
    )
    assert all(float(f.value(space.Q @ y)) >= -decrease - 1e-10 for y in tries[::10])


def test_the_hard_case_goes_along_the_direction_of_lowest_curvature():
    f = DenseQuadratic(
        torch.diag(torch.tensor([-1.0, 2.0])).double(), torch.tensor([0.0, 1.0]).double(), Bounds.free(2)
    )
    g = f.gradient(torch.zeros(2).double())
    s, decrease = Subspace.of(f, torch.zeros(2).double(), g, [g, torch.ones(2).double()]).minimise(1.0)
    assert float(s.norm()) == pytest.approx(1.0, abs=1e-6) and abs(float(s[0])) > 0.9
    assert float(s[1]) == pytest.approx(1 / 3, abs=1e-6)


# what can go wrong


def test_local_problems_that_are_not_solved_are_said_and_cost_the_newton_step():
    problem = Forchheimer()
    f, x = problem.objective(), problem.initial()
    rough = Raspen(problem.decomposition(5, 3), local=BatchLBFGS(), local_steps=2)
    linear, w = rough.linearise(f, x, rough.init(f, x)), vector(149)
    assert linear.unsolved == 5
    assert relative(linear.product(w), difference(rough, f, x, w)) > 0.1  # not the Jacobian of what was computed
    result = minimise(f, x, rough, stop=Stop(4), values=True)
    assert result.state.krylov == 0 and result.state.accepted == 4
    said = {"local problems not solved, a damped Schwarz step in place of a Newton step": 20}
    assert {what: times for what, times in result.state.notes.items() if "solved" in what} == said
    values = result.history.column("value")
    assert all(b < a for a, b in zip(values, values[1:], strict=False))
    solved = Raspen(problem.decomposition(5, 3))
    assert solved.linearise(f, x, solved.init(f, x)).unsolved == 0


def test_local_solves_that_diverge_are_left_out_and_said():
    @dataclass(frozen=True)
    class Broken:
        batched: ClassVar[bool] = True

        def init(self, objective: Objective, x: Tensor) -> Any:
            return EXACT.init(objective, x)

        def step(self, objective: Objective, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            x, state = EXACT.step(objective, x, state)
            x[1] = math.nan
            return x, state

    problem = Forchheimer()
    f = problem.objective()
    solver = Raspen(problem.decomposition(4, 3), local=Broken(), local_steps=1)
    result = minimise(f, problem.initial(), solver, stop=Stop(3), values=True)
    values = result.history.column("value")
    assert result.state.notes["local solves that diverged, left out"] == 3
    assert values[3] < values[1] < values[0]


def test_options_of_the_krylov_solver_and_its_failure():
    problem = Forchheimer()
    options = load_petsc().Options()
    options["raspen_ksp_max_it"] = 2
    try:
        solver = Raspen(problem.decomposition(10, 3))
        result = minimise(problem.objective(), problem.initial(), solver, stop=Stop(2), values=True)
    finally:
        options.delValue("raspen_ksp_max_it")
    assert result.state.iterations == 2 and result.state.krylov == 4
    assert result.state.notes["the Krylov solver has missed its tolerance"] == 2
    values = result.history.column("value")
    assert values[2] < values[1] < values[0]


def test_what_an_objective_raises_inside_petsc_arrives():
    class BrokenError(Exception):
        pass

    @dataclass(frozen=True)
    class Raising(DenseQuadratic):
        def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
            raise BrokenError

    f = quadratic(12)
    decomposition = index_decomposition(f, contiguous([1] * 12, 2))

    def build(d: Decomposition, objective: Objective, x: Tensor, g: Tensor | None) -> Any:
        return decomposition.build(d, f, x, g)

    solver = Aspin(replace(decomposition, build=build))
    with pytest.raises(BrokenError):
        minimise(Raising(f.A, f.b, f.bounds), vector(12), solver, stop=Stop(1))


def test_a_gradient_that_lies_ends_as_stalled():
    f = quadratic(12)

    @dataclass(frozen=True)
    class Lying(DenseQuadratic):
        def gradient(self, x: Tensor) -> Tensor:
            return -f.gradient(x)

        def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return f.value(x), -f.gradient(x)

    decomposition = index_decomposition(f, contiguous([1] * 12, 2))

    def build(d: Decomposition, objective: Objective, x: Tensor, g: Tensor | None) -> Any:
        return decomposition.build(d, f, x, g)

    x = f.solution() + vector(12)
    solver = Raspen(replace(decomposition, build=build), globalisation="line-search")
    result = minimise(Lying(f.A, f.b, f.bounds), x, solver, stop=Stop(5))
    assert result.status is Status.stalled and torch.equal(result.x, x)


@pytest.mark.parametrize("method", [Raspen, Aspin])
def test_objectives_that_do_not_fit_are_refused(method):
    bratu = Bratu(n=7)
    with pytest.raises(ValueError, match="without bounds, got one with bounds; use schwarz"):
        method(bratu.decomposition(2)).init(bratu.objective(), bratu.initial())
    f = quadratic(6)
    shared = SharedDecomposition(6, 1, lambda d, f, x, g: f, torch.zeros(6, dtype=torch.int64), range(1))
    with pytest.raises(ValueError, match="subdomains of the unknowns.*got parts of the data"):
        method(shared)
    decomposition = index_decomposition(f, contiguous([1] * 6, 2))
    single = quadratic(6, dtype=torch.float32)
    with pytest.warns(UserWarning, match="made for float64, got torch.float32"):
        method(decomposition).init(single, torch.zeros(6))


@pytest.mark.parametrize(
    "field, value",
    [
        ("local_steps", 0),
        ("dense", -1),
        ("mu", -1.0),
        ("combine", "sum"),
        ("globalisation", "dogleg"),
        ("hierarchy", Quadratic(n=31, dim=1).hierarchy(3)),
    ],
)
def test_hyper_parameters_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"`{field}`.*got"):
        Raspen(**{"decomposition": Quadratic(n=31, dim=1).decomposition(2), field: value})


@pytest.mark.parametrize(("name", "value"), [("rtol", 0.0), ("restart", 0), ("steps", -1)])
def test_parameters_of_the_krylov_solver_out_of_range(name, value):
    with pytest.raises(ValueError, match=f"`krylov.{name}` must be .*got"):
        Krylov(**{name: value})
