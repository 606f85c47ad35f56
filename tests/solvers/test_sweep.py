"""Sweeps: exact local solves against dense Schwarz matrices, every kind of local solver, order, memory, failures."""

from __future__ import annotations

from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Corrected,
    Hierarchy,
    Level,
    MatrixTransfer,
    Objective,
    Proximal,
    SharedDecomposition,
    Subdomain,
    contiguous,
    counting,
    index_decomposition,
)
from mldd.loop import State, Status, Stop, minimise
from mldd.problems.grids import MinimalSurface, Obstacle
from mldd.solvers import LBFGS, AdaGrad, Adam, CoarseSolve, NonlinearSchwarz, Sgd
from mldd.solvers.parts import BatchLBFGS, Secant, Sweep
from mldd.solvers.parts.sweep import _quanta
from tests.helpers import OneOfFour, Quadratic, Rosenbrock, quadratic

N = 24
LBFGS_EXACT = LBFGS(memory=20)


def layers(overlap: int = 0, parts: int = 3) -> list[Subdomain]:
    return contiguous([2] * (N // 2), parts, overlap)


def start(n: int = N, seed: int = 1) -> Tensor:
    return torch.randn(n, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def dense_map(f: Quadratic, subdomains: list[Subdomain], kind: str, damping: float = 1.0) -> Any:
    """Return ``x -> x + damping sum_i P_i D_i A_i^{-1} R_i (b - A x)``, by dense matrices."""
    count = torch.zeros(f.size, dtype=torch.float64)
    for s in subdomains:
        count[s.indices] += 1

    def apply(x: Tensor) -> Tensor:
        out, r = x.clone(), f.b - f.A @ x
        for s in subdomains:
            i = s.indices
            weight = {"asm": torch.ones(len(i)), "ras": s.owned, "wasm": 1 / count[i]}[kind]
            out[i] += damping * weight * torch.linalg.solve(f.A[i][:, i], r[i])
        return out

    return apply


@pytest.mark.parametrize("overlap", [0, 1])
@pytest.mark.parametrize("kind", ["asm", "ras", "wasm"])
def test_exact_sweeps_are_linear_schwarz_methods(kind: Any, overlap: int) -> None:
    f, x = quadratic(N, condition=20.0), start()
    d = index_decomposition(f, layers(overlap))
    sweep = Sweep(d, LBFGS_EXACT, 60, combine=kind)
    damping = 1 / float(d.multiplicity.max()) if kind == "asm" else 1.0
    expected = dense_map(f, layers(overlap), kind, damping)(x)
    torch.testing.assert_close(x + sweep.correction(f, x, sweep.init(f, x)), expected, rtol=0, atol=1e-7)


def test_multiplicative_sweeps_are_block_gauss_seidel() -> None:
    f, x = quadratic(N, condition=20.0), start()
    d = index_decomposition(f, layers(1))
    sweep = Sweep(d, LBFGS_EXACT, 60, order="multiplicative")
    expected = x.clone()
    for s in layers(1):
        i = s.indices
        expected[i] += torch.linalg.solve(f.A[i][:, i], (f.b - f.A @ expected)[i])
    moved = x + sweep.correction(f, x, sweep.init(f, x))
    torch.testing.assert_close(moved, expected, rtol=0, atol=1e-7)
    assert f.value(moved) < f.value(x)


def test_rows_are_solved_as_batches_are() -> None:
    """A solver that knows no batches sees the rows one by one: the same result."""

    @dataclass(frozen=True)
    class OneByOne(Sgd):
        batched: ClassVar[bool] = False

    f, x = Obstacle(n=11).objective(), Obstacle(n=11).initial() + 0.1
    for d in (Obstacle(n=11).decomposition(6, 1), index_decomposition(f, contiguous([11] * 11, 4, 1))):
        corrections = [
            Sweep(d, solver, 5, combine="wasm").correction(f, x, Sweep(d, solver, 5, combine="wasm").init(f, x))
            for solver in (Sgd(lr=0.1), OneByOne(lr=0.1))
        ]
        torch.testing.assert_close(corrections[0], corrections[1], rtol=1e-13, atol=1e-13)


def test_local_states_are_made_anew_or_kept() -> None:
    f, x = quadratic(N, condition=20.0), start()
    d = index_decomposition(f, layers())
    kept, fresh = Sweep(d, Adam(lr=0.1), 3, memory="keep"), Sweep(d, Adam(lr=0.1), 3)
    states = kept.init(f, x), fresh.init(f, x)
    first = kept.correction(f, x, states[0]), fresh.correction(f, x, states[1])
    torch.testing.assert_close(first[0], first[1])
    second = kept.correction(f, x, states[0]), fresh.correction(f, x, states[1])
    torch.testing.assert_close(first[1], second[1])
    assert float((second[0] - second[1]).abs().max()) > 1e-3 and states[0].local[0].count == 6
    # Disjoint subdomains of a whole step each: six steps at once are twice three with kept states.
    twice = x.clone()
    state = kept.init(f, twice)
    diagonal = Quadratic(torch.diag(torch.diagonal(f.A)), f.b, f.bounds)
    for _ in range(2):
        twice += kept.correction(diagonal, twice, state)
    torch.testing.assert_close(twice, minimise(diagonal, x, Adam(lr=0.1), stop=Stop(6)).x)


@dataclass(frozen=True)
class Losses:
    """One quadratic per row."""

    A: Tensor
    b: Tensor

    @property
    def size(self) -> int:
        return self.A.shape[1]

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(*self.b.shape)

    def value(self, y: Tensor) -> Tensor:
        return (0.5 * (self.A @ y[..., None])[..., 0] * y - self.b * y).sum(-1)

    def gradient(self, y: Tensor) -> Tensor:
        return (self.A @ y[..., None])[..., 0] - self.b


def shared(corrected: bool, parts: int = 3) -> tuple[Quadratic, SharedDecomposition]:
    """Return a mean of quadratics, and its terms as subdomains that all update all unknowns."""
    terms = [quadratic(6, condition=5.0, seed=k) for k in range(parts)]
    A, b = torch.stack([t.A for t in terms]), torch.stack([t.b for t in terms])
    f = Quadratic(A.mean(0), b.mean(0), terms[0].bounds)

    def build(d: SharedDecomposition, objective: Objective, x: Tensor, g: Tensor | None) -> Objective:
        rows = slice(d.local.start, d.local.stop)
        models, y0 = Losses(A[rows], b[rows]), d.gather(x)
        return models if g is None else Corrected(models, g - models.gradient(y0), y0)

    return f, SharedDecomposition(6, parts, build, None, range(parts), corrected=corrected)


def test_one_corrected_local_step_is_a_step_on_the_whole() -> None:
    f, d = shared(corrected=True)
    x = start(6)
    sweep = Sweep(d, Sgd(lr=0.05), 1, combine="wasm")
    torch.testing.assert_close(sweep.correction(f, x, sweep.init(f, x)), -0.05 * f.gradient(x))


def test_exact_local_solves_with_a_proximal_term_are_known_in_closed_form() -> None:
    f, d = shared(corrected=True)
    x, mu = start(6), 0.7
    sweep = Sweep(d, BatchLBFGS(), 200)
    assert sweep.kind == "wasm"
    state = sweep.init(f, x)
    state.proximal = mu
    # y_i minimises a quadratic of matrix A_i + mu I whose gradient at x is that of the whole
    matrices = [quadratic(6, condition=5.0, seed=k).A + mu * torch.eye(6, dtype=x.dtype) for k in range(3)]
    expected = -torch.stack([torch.linalg.solve(a, f.gradient(x)) for a in matrices]).mean(0)
    torch.testing.assert_close(sweep.correction(f, x, state), expected, rtol=0, atol=1e-9)


def test_the_weight_of_the_proximal_term_follows_the_objective() -> None:
    f, d = shared(corrected=True)
    x = start(6)
    first = float(f.gradient(x).norm() / x.norm())
    result = minimise(f, x, NonlinearSchwarz(d, local_steps=50), stop=Stop(6))
    # every step of convex models with curvature above that of the term decreases f: a quarter each, judged one later
    assert result.state.sweep.proximal == pytest.approx(first / 4**5)
    assert NonlinearSchwarz(d).init(f, x).sweep.proximal == 0.0
    plain = minimise(f, x, NonlinearSchwarz(d, local_steps=50, globalisation="line-search"), stop=Stop(6))
    assert plain.state.sweep.proximal == 0.0


def test_sums_are_exact_per_unknown_whatever_the_order_and_however_large_another_one_is() -> None:
    f, d = shared(corrected=False)
    x = torch.tensor([1e9, 1.0, -0.3, 1e-5, 2e-12, 0.7], dtype=torch.float64)
    c = torch.randn(3, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2)) * x.abs()
    sweep = Sweep(d, Sgd())
    state = sweep.init(f, x)
    state.quantum = _quanta(x)
    total = sweep.total(c, state)
    exact = torch.tensor([float(sum(map(Fraction, column)) / 3) for column in c.t().tolist()], dtype=torch.float64)
    assert bool(((total - exact).abs() <= 2.0**-47 * x.abs()).all())
    for order in ([2, 1, 0], [1, 0, 2], [2, 0, 1]):
        assert torch.equal(sweep.total(c[order], state), total)


def test_no_pair_mixes_two_models(monkeypatch: pytest.MonkeyPatch) -> None:
    f, d = shared(corrected=True)
    pairs: list[tuple[Tensor, Tensor]] = []
    monkeypatch.setattr(Secant, "push", lambda self, s, y: pairs.append((s, y)))
    sweep, x = Sweep(d, AdaGrad(curvature="lbfgs"), 4, memory="keep"), start(6)
    state = sweep.init(f, x)
    for _ in range(3):
        x = x + sweep.correction(f, x, state)
    assert len(pairs) == 9
    A = torch.stack([quadratic(6, condition=5.0, seed=k).A for k in range(3)])
    for s, y in pairs:  # Hessians are constant; a linear correction that changed would be in y
        torch.testing.assert_close(y, (A @ s[..., None])[..., 0], rtol=0, atol=1e-12)


def test_a_proximal_term_in_a_layer_of_its_own() -> None:
    base, y0 = quadratic(5, condition=7.0), start(5)
    f, y, v = Proximal(base, 0.3, y0), start(5) + 0.4, torch.linspace(-1.0, 1.0, 5, dtype=torch.float64)
    torch.testing.assert_close(f.value(y), base.value(y) + 0.15 * (y - y0).square().sum())
    torch.testing.assert_close(f.gradient(y), base.gradient(y) + 0.3 * (y - y0))
    value, g = f.value_and_gradient(y)
    torch.testing.assert_close((value, g), (f.value(y), f.gradient(y)))
    torch.testing.assert_close(f.hessian_product(y, v), base.A @ v + 0.3 * v)


def test_what_is_not_finite_is_dropped_and_counted() -> None:
    f, d = shared(corrected=False)
    x = start(6)

    @dataclass(frozen=True)
    class Diverging(Sgd):
        batched: ClassVar[bool] = True

        def step(self, objective: Objective, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            x, state = super().step(objective, x, state)
            x[1:] *= torch.inf
            return x, state

    sweep = Sweep(d, Diverging(lr=0.05), 2, combine="wasm")
    state = sweep.init(f, x)
    c = sweep.corrections(f, x, state)
    assert state.failed == 2 and bool((c[1:] == 0).all()) and bool((c[0] != 0).any())
    result = minimise(f, x, NonlinearSchwarz(d, local=Diverging(lr=0.05), globalisation="proximal"), stop=Stop(3))
    assert result.record.rejected == 6 and result.state.notes == {"local solves that were not finite": 6}

    @dataclass(frozen=True)
    class AllDiverging(Sgd):
        def step(self, objective: Objective, x: Tensor, state: Any) -> tuple[Tensor, Any]:
            return x * torch.nan, state

    result = minimise(f, x, NonlinearSchwarz(d, local=AllDiverging()), stop=Stop(3))
    assert result.status is Status.diverged and torch.equal(result.x, x)


def test_local_steps_end_once_all_models_are_solved() -> None:
    f, x = quadratic(N, condition=20.0), start()
    d = index_decomposition(f, layers())
    with counting() as cost:
        sweep = Sweep(d, Sgd(lr=0.05), 10_000, rtol=1e-2)
        y = d.gather(x) + sweep.corrections(f, x, sweep.init(f, x))
    models = d.models(f, x, None)
    norms = [torch.linalg.vector_norm(models.gradient(point), dim=1) for point in (d.gather(x), y)]
    assert bool((norms[1] <= 1e-2 * norms[0]).all()) and cost.work < 3 * 1000


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": -1}, "`steps` must be >= 0, got -1"),
        ({"combine": "mean"}, "`combine` must be one of asm, ras, wasm, got 'mean'"),
        ({"order": "random"}, "`order` must be one of additive, multiplicative"),
        ({"memory": "lose"}, "`memory` must be one of reset, keep"),
    ],
)
def test_bad_parameters_are_refused(given: dict[str, Any], message: str) -> None:
    f = quadratic(N)
    with pytest.raises(ValueError, match=message):
        Sweep(index_decomposition(f, layers()), Sgd(), **given)


# ---------------------------------------------------------------------------------------- the fixed-point iteration


OPTIONS: list[dict[str, Any]] = [
    *({"combine": kind} for kind in ("asm", "ras", "wasm")),
    {"order": "multiplicative"},
    {"globalisation": "line-search"},
    {"memory": "keep"},
    {"local": Sgd(lr=1e-2)},
    {"local": LBFGS(), "local_rtol": 1e-3},
    {"local": AdaGrad(), "coarse": CoarseSolve(LBFGS()), "levels": 2},
    {"levels": 3},
]


@pytest.fixture(scope="module")
def surface() -> tuple[MinimalSurface, Tensor]:
    """Return a problem without bounds and its minimiser."""
    problem = MinimalSurface(n=15, height=-torch.inf)
    return problem, minimise(problem.objective(), problem.initial(), LBFGS(memory=50), stop=Stop(3000, atol=1e-13)).x


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_minimiser_is_a_fixed_point(options: dict[str, Any], surface: tuple[MinimalSurface, Tensor]) -> None:
    (problem, solution), given = surface, dict(options)
    f, hierarchy = problem.objective(), problem.hierarchy(given.pop("levels", 1))
    solver = NonlinearSchwarz(problem.decomposition(4, 1), hierarchy, **given)
    x, _ = solver.step(f, solution.clone(), solver.init(f, solution))
    assert float((x - solution).abs().max()) <= 1e-10


def test_one_subdomain_is_the_plain_solver() -> None:
    f = Rosenbrock(12)
    d = index_decomposition(f, contiguous([4] * 3, 1))
    for local in (LBFGS(), Sgd(lr=1e-4), AdaGrad(rate=0.01)):
        mine = minimise(f, f.start(), NonlinearSchwarz(d, local=local, local_steps=7), stop=Stop(1)).x
        torch.testing.assert_close(mine, minimise(f, f.start(), local, stop=Stop(7)).x)


@pytest.mark.parametrize("combine", ["asm", "ras", "wasm"])
def test_iterates_stay_in_their_bounds_on_any_levels(combine: Any) -> None:
    problem = Obstacle(n=31)
    f = problem.objective()
    for levels in (1, 2, 3):
        solver = NonlinearSchwarz(problem.decomposition(16, 2), problem.hierarchy(levels), combine=combine)
        x, state = problem.initial(), None
        for _ in range(5):
            result = minimise(f, x, solver, stop=Stop(1), state=state and replace(state, step=0))
            x, state = result.x, result.state
            assert f.bounds.violation(x) == 0.0


def test_levels_make_the_number_of_steps_bounded() -> None:
    """L4: without a coarse level the steps grow with the number of subdomains."""
    problem, steps = Obstacle(n=47), {}
    for parts in (4, 36):
        for levels in (1, 2):
            hierarchy = problem.coarse_hierarchy(levels, parts) if levels > 1 else None
            solver = NonlinearSchwarz(
                problem.decomposition(parts, 2), hierarchy, coarse=CoarseSolve(steps=30), local_steps=20
            )
            steps[parts, levels] = minimise(
                problem.objective(), problem.initial(), solver, stop=Stop(200, atol=1e-6)
            ).record.step
    assert steps[36, 1] > 1.5 * steps[4, 1] and steps[36, 2] <= steps[4, 2] + 4 and steps[36, 2] < steps[36, 1] / 2, (
        steps
    )


def test_a_quadratic_with_an_exact_coarse_level_loses_what_that_level_sees() -> None:
    f, x = quadratic(N, condition=20.0), start()
    P = torch.randn(N, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).abs()
    coarse = Quadratic(P.T @ f.A @ P, torch.zeros(4, dtype=torch.float64), Bounds.free(4))
    hierarchy = Hierarchy((Level(f), Level(coarse, MatrixTransfer(P))))
    d = index_decomposition(f, layers())
    solver = NonlinearSchwarz(d, hierarchy, coarse=CoarseSolve(LBFGS(), 50), local_steps=0)
    moved, state = solver.step(f, x.clone(), solver.init(f, x))
    assert float((P.T @ f.gradient(moved)).abs().max()) < 1e-7 * float((P.T @ f.gradient(x)).abs().max())
    assert state.level == 1


@dataclass(frozen=True)
class Uphill:
    """Walks up."""

    batched: ClassVar[bool] = True

    def init(self, objective: Objective, x: Tensor) -> State:
        return State()

    def step(self, objective: Objective, x: Tensor, state: State) -> tuple[Tensor, State]:
        return x.add_(objective.gradient(x)), state


def test_corrections_that_never_decrease_end_the_run_with_a_reason() -> None:
    f = quadratic(N)
    d = index_decomposition(f, layers())
    result = minimise(f, start(), NonlinearSchwarz(d, local=Uphill(), globalisation="line-search"), stop=Stop(9))
    assert result.status is Status.stalled and result.record.rejected == 1
    assert torch.equal(result.x, start())


def test_search_makes_too_long_steps_short() -> None:
    f, x = quadratic(N, condition=100.0), start()
    d = index_decomposition(f, layers(1))
    values: list[float] = []
    solver = NonlinearSchwarz(d, local=LBFGS(), local_steps=50, combine="asm", damping=5.0, globalisation="line-search")
    minimise(f, x, solver, stop=Stop(8), after_step=lambda x, s, h: values.append(float(f.value(x))))
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 1


@pytest.mark.parametrize("combine", ["asm", "ras", "wasm"])
def test_subdomains_that_overlap_everywhere_are_the_plain_solver(combine: Any) -> None:
    """Full overlap: all subdomains do the same, and their mean is what one of them does."""
    f, x = quadratic(N, condition=20.0), start()
    d = index_decomposition(f, layers(overlap=N))
    assert bool((d.multiplicity == 3).all())
    sweep = Sweep(d, Sgd(lr=0.01), 5, combine=combine)
    moved = x + sweep.correction(f, x, sweep.init(f, x))
    torch.testing.assert_close(moved, minimise(f, x, Sgd(lr=0.01), stop=Stop(5)).x)


def test_a_decomposition_of_other_ranks_is_refused():
    problem = Obstacle(n=15)
    with pytest.raises(ValueError, match="must be made with the same `comm`, got 1 ranks of the solver and 1 of 4"):
        Sweep(problem.decomposition(4, 1, OneOfFour()), AdaGrad())
    with pytest.raises(ValueError, match="got 4 ranks of the solver and 4 of 4 subdomains on this one"):
        Sweep(problem.decomposition(4, 1), AdaGrad(), comm=OneOfFour())


@dataclass(frozen=True)
class OneByOne(AdaGrad):
    """AdaGrad that gets one subdomain after the other."""

    batched: ClassVar[bool] = False


def test_a_subdomain_that_is_solved_does_not_wait_for_others() -> None:
    """Else the result would depend on which subdomains share a rank."""
    problem = Obstacle(n=15)
    f = problem.objective()
    x = minimise(f, problem.initial(), AdaGrad(), stop=Stop(2)).x
    x[: len(x) // 2] *= 0.1
    d = problem.decomposition(4, 1)
    found = []
    for solver in (AdaGrad(), OneByOne()):
        sweep = Sweep(d, solver, 9, rtol=0.3)
        found.append(sweep.corrections(f, x, sweep.init(f, x)))
    torch.testing.assert_close(found[0], found[1], rtol=1e-10, atol=1e-13)
    whole = Sweep(d, AdaGrad(), 9)
    assert not torch.allclose(found[0], whole.corrections(f, x, whole.init(f, x)), rtol=1e-3)
