"""ADAGB2: the properties A1 to A7 of a single-level method."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from mldd import Stop, minimise
from mldd.algebra import Bounds, ModuleObjective, Noisy, Price, counting, difference
from mldd.solvers import AdaGrad
from mldd.solvers.adagrad import SCALED, TOO_LONG, model_step
from mldd.solvers.parts import Secant
from tests.helpers import NoValueError, Quadratic, WithoutValue, quadratic


def iterates(f: object, x: Tensor, solver: AdaGrad, steps: int) -> list[Tensor]:
    x, state, out = x.clone(), solver.init(f, x), []
    for _ in range(steps):
        x, state = solver.step(f, x, state)
        out.append(x.clone())
    return out


def boxed(n: int, seed: int, noise: float = 0.0) -> Noisy:
    f = quadratic(n, bounded=True, seed=seed)
    lower, upper = f.bounds.lower.clone(), f.bounds.upper.clone()
    lower[0] = upper[0]  # l = u
    lower[1], upper[2 % n] = -math.inf, math.inf
    return Noisy(Quadratic(f.A, f.b, Bounds(lower, upper)), noise, seed=seed)


@pytest.mark.parametrize(("varsigma", "rate"), [(0.01, 1.0), (1.0, 1.0), (0.1, 0.3)])
def test_without_bounds_and_curvature_it_is_adagrad(varsigma: float, rate: float) -> None:
    f = quadratic()
    x = torch.randn(20, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    ours = iterates(f, x, AdaGrad(varsigma=varsigma, rate=rate, curvature="none"), 30)
    squares, y = torch.full_like(x, varsigma**2), x.clone()
    for got in ours:
        g = f.gradient(y)
        squares += g * g
        y = y - rate * g / squares.sqrt()
        torch.testing.assert_close(got, y, rtol=1e-13, atol=1e-13)


def test_it_is_torchs_adagrad() -> None:
    f = quadratic()
    x = torch.ones(20, dtype=torch.float64)
    parameter = torch.nn.Parameter(x.clone())
    peer = torch.optim.Adagrad([parameter], lr=0.5, initial_accumulator_value=0.01**2, eps=0.0)
    for got in iterates(f, x, AdaGrad(rate=0.5, curvature="none"), 50):
        parameter.grad = f.gradient(parameter.detach())
        peer.step()
        torch.testing.assert_close(got, parameter.detach(), rtol=1e-12, atol=1e-12)


def test_the_bounded_path_with_bounds_far_away_is_adagrad() -> None:
    f = quadratic()
    far = torch.full((20,), 1e6, dtype=torch.float64)
    x = torch.ones(20, dtype=torch.float64)
    solver = AdaGrad(curvature="none")
    for a, b in zip(
        iterates(f, x, solver, 20), iterates(Quadratic(f.A, f.b, Bounds(-far, far)), x, solver, 20), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(3, 12),
    seed=st.integers(0, 10**6),
    noise=st.sampled_from([0.0, 0.5, 3.0]),
    curvature=st.sampled_from(["none", "exact", "lbfgs"]),
)
def test_iterates_stay_in_the_box_and_steps_in_the_radii(n: int, seed: int, noise: float, curvature: str) -> None:
    f, solver = boxed(n, seed, noise), AdaGrad(curvature=curvature, kappa=1.5)
    x = f.bounds.project(torch.zeros(n, dtype=torch.float64))
    state, w = solver.init(f, x), None
    for k in range(12):
        sample, before = f.sample(k), x.clone()
        d = f.bounds.criticality(x, sample.gradient(x))
        x, state = solver.step(sample, x, state)
        assert f.bounds.violation(x) == 0.0
        assert bool((state.accumulator >= solver.varsigma).all())
        if w is not None:
            assert bool((state.accumulator >= w).all())
        w = state.accumulator
        limit = solver.kappa * d.abs() / w
        assert bool(((x - before).abs() <= limit * (1 + 1e-12) + 1e-14).all())


@pytest.mark.parametrize("curvature", ["none", "exact", "lbfgs"])
def test_a_critical_point_is_left_alone(curvature: str) -> None:
    b = torch.tensor([2.0, -4.0, 6.0, 8.0], dtype=torch.float64)
    bounds = Bounds(torch.full_like(b, -1.0), torch.full_like(b, 2.0))
    f = Quadratic(2.0 * torch.eye(4, dtype=torch.float64), b, bounds)
    x = torch.tensor([1.0, -1.0, 2.0, 2.0], dtype=torch.float64)
    assert f.bounds.measure(x, f.gradient(x)) == 0.0
    for moved in iterates(f, x, AdaGrad(curvature=curvature), 5):
        assert torch.equal(moved, x)
    away = minimise(f, torch.zeros_like(b), AdaGrad(curvature=curvature), stop=Stop(500, atol=1e-10))
    torch.testing.assert_close(away.x, x, rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("definite", [True, False])
def test_the_model_decreases_at_least_as_much_as_for_the_scaled_linear_step(definite: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    for _ in range(20):
        M = torch.randn(8, 8, generator=generator, dtype=torch.float64)
        B = M @ M.T if definite else M + M.T
        g = torch.randn(8, generator=generator, dtype=torch.float64)
        radius = torch.rand(8, generator=generator, dtype=torch.float64)
        s_l = -torch.sign(g) * radius
        q = lambda s, B=B, g=g: float(g @ s + 0.5 * s @ (B @ s))  # noqa: E731
        curvature = s_l @ B @ s_l
        gamma = min(1.0, float(-(g @ s_l) / curvature)) if curvature > 0 else 1.0
        s = model_step(AdaGrad(), lambda v, B=B: B @ v, g, s_l.clone(), Bounds(-radius, radius))
        assert q(s) <= q(gamma * s_l) + 1e-14
        assert q(gamma * s_l) <= 0
        only_scaled = model_step(AdaGrad(model_steps=0), lambda v, B=B: B @ v, g, s_l.clone(), Bounds(-radius, radius))
        torch.testing.assert_close(only_scaled, gamma * s_l)


def test_components_of_a_separable_problem_evolve_alone_and_commute_with_permutations_and_signs() -> None:
    generator = torch.Generator().manual_seed(5)
    diagonal, b = torch.rand(6, generator=generator) + 0.5, torch.randn(6, generator=generator)
    lower, upper = -torch.rand(6, generator=generator), torch.rand(6, generator=generator)
    diagonal, b, lower, upper = (v.double() for v in (diagonal, b, lower, upper))
    solver, zero = AdaGrad(curvature="none"), torch.zeros(6, dtype=torch.float64)

    def run(diagonal: Tensor, b: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
        f = Quadratic(torch.diag(diagonal), b, Bounds(lower, upper))
        return iterates(f, zero[: len(b)], solver, 15)[-1]

    x = run(diagonal, b, lower, upper)
    for i in range(6):
        one = slice(i, i + 1)
        torch.testing.assert_close(run(diagonal[one], b[one], lower[one], upper[one]), x[one], rtol=0, atol=0)
    order = torch.randperm(6, generator=generator)
    assert torch.equal(run(diagonal[order], b[order], lower[order], upper[order]), x[order])
    assert torch.equal(run(diagonal, -b, -upper, -lower), -x)


@pytest.mark.parametrize("curvature", ["none", "lbfgs"])
def test_no_function_value_is_ever_used(curvature: str) -> None:
    f = WithoutValue(quadratic(bounded=True))
    with counting() as cost:
        result = minimise(
            f, torch.zeros(20, dtype=torch.float64), AdaGrad(curvature=curvature), stop=Stop(50), values=False
        )
    assert result.record.step == 50
    assert cost.values == 0


def test_the_criticality_of_a_convex_problem_falls_like_one_over_root_k() -> None:
    f = quadratic(condition=1000.0)
    result = minimise(f, torch.zeros(20, dtype=torch.float64), AdaGrad(curvature="none"), stop=Stop(3000, norm=2.0))
    smallest, least = [], math.inf
    for value in result.history.column("measure"):
        least = min(least, value)
        smallest.append(least)
    slope = math.log(smallest[3000] / smallest[30]) / math.log(100)
    assert slope <= -0.5


@pytest.mark.parametrize("curvature", ["exact", "diagonal", "lbfgs"])
def test_curvature_saves_steps(curvature: str) -> None:
    f, x = quadratic(condition=10.0), torch.zeros(20, dtype=torch.float64)
    half = torch.full_like(x, 0.5)
    f = Quadratic(f.A, f.b, Bounds(-half, half))
    curved = minimise(f, x, AdaGrad(curvature=curvature), stop=Stop(100, atol=1e-8))
    assert curved.status.name == "converged_atol"
    plain = minimise(f, x, AdaGrad(curvature="none"), stop=Stop(100, atol=1e-8))
    assert plain.record.measure > 1e-3
    peer = scipy_minimize(
        lambda v: 0.5 * v @ f.A.numpy() @ v - f.b.numpy() @ v,
        x.numpy(),
        jac=lambda v: f.A.numpy() @ v - f.b.numpy(),
        bounds=[(-0.5, 0.5)] * 20,
        method="L-BFGS-B",
        options={"ftol": 1e-15, "gtol": 1e-10},
    )
    torch.testing.assert_close(curved.x, torch.from_numpy(peer.x), rtol=1e-6, atol=1e-6)


def test_a_batch_is_its_members_one_by_one() -> None:
    members = [quadratic(9, bounded=True, seed=k) for k in range(3)]

    class Batch:
        size = 9
        bounds = Bounds(torch.stack([f.bounds.lower for f in members]), torch.stack([f.bounds.upper for f in members]))

        def gradient(self, x: Tensor) -> Tensor:
            return torch.stack([f.gradient(row) for f, row in zip(members, x, strict=True)])

        def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
            return torch.stack([f.hessian_product(row, w) for f, row, w in zip(members, x, v, strict=True)])

        def hessian_diagonal(self, x: Tensor) -> Tensor:
            return torch.stack([f.hessian_diagonal(row) for f, row in zip(members, x, strict=True)])

    zero = torch.zeros(3, 9, dtype=torch.float64)
    for curvature in ("none", "exact", "diagonal", "lbfgs"):
        solver = AdaGrad(curvature=curvature)
        together = iterates(Batch(), Batch.bounds.project(zero), solver, 10)[-1]
        for f, row in zip(members, together, strict=True):
            alone = iterates(f, f.bounds.project(zero[0]), solver, 10)[-1]
            torch.testing.assert_close(row, alone, rtol=1e-8, atol=1e-10)


def test_pairs_are_those_of_dense_bfgs() -> None:
    f = quadratic(7)
    generator = torch.Generator().manual_seed(2)
    pairs, steps = Secant.empty(torch.zeros(7, dtype=torch.float64), 4, "bfgs", sigma=1.0), []
    first = torch.ones(7, dtype=torch.float64)
    assert torch.equal(pairs.product(first), first) and torch.equal(pairs.solve(first), first)
    for _ in range(6):
        s = torch.randn(7, generator=generator, dtype=torch.float64)
        pairs.push(s, f.A @ s)
        steps.append(s)
    y = f.A @ steps[-1]
    B = torch.eye(7, dtype=torch.float64) * (y @ y) / (y @ steps[-1])
    for s in steps[-4:]:
        y, Bs = f.A @ s, B @ s
        B = B - torch.outer(Bs, Bs) / (s @ Bs) + torch.outer(y, y) / (y @ s)
    v = torch.randn(7, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(pairs.product(v), B @ v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(pairs.solve(v), torch.linalg.solve(B, v), rtol=1e-9, atol=1e-9)
    before = pairs.product(v), pairs.solve(v)
    for _ in range(6):
        pairs.push(torch.ones(7, dtype=torch.float64), -torch.ones(7, dtype=torch.float64))
    torch.testing.assert_close(pairs.product(v), before[0], rtol=0, atol=0)  # a refused pair changes nothing
    torch.testing.assert_close(pairs.solve(v), before[1], rtol=0, atol=0)


def test_no_pair_mixes_two_samples() -> None:
    f = Noisy(quadratic(9), 0.5, seed=4)
    result = minimise(f, torch.ones(9, dtype=torch.float64), AdaGrad(curvature="lbfgs"), stop=Stop(5))
    assert result.state.pairs.is_empty  # every step sees another sample, once
    assert sum(result.state.notes.values()) == 5 and "without a second one" in next(iter(result.state.notes))


@pytest.mark.parametrize("curvature", ["exact", "diagonal"])
def test_curvature_that_is_not_finite_is_dropped_for_its_step(curvature: str) -> None:
    class Broken(Quadratic):
        def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
            return super().hessian_product(x, v).index_fill(0, torch.tensor(3), math.nan)

        def hessian_diagonal(self, x: Tensor) -> Tensor:
            return super().hessian_diagonal(x).index_fill(0, torch.tensor(3), math.nan)

    f, x = quadratic(9), torch.ones(9, dtype=torch.float64)
    solver = AdaGrad(curvature=curvature)
    state = solver.init(f, x)
    end, state = solver.step(Broken(f.A, f.b, f.bounds), x.clone(), state)
    (linear,) = iterates(f, x, AdaGrad(curvature="none"), 1)
    torch.testing.assert_close(end, linear)
    assert sum(state.notes.values()) == 1 and "not finite" in next(iter(state.notes))
    end, state = solver.step(f, end, state)
    assert bool(torch.isfinite(end).all()) and sum(state.notes.values()) == 1


def test_rows_with_fewer_pairs_and_refused_ones_solve_too() -> None:
    f, generator = quadratic(7), torch.Generator().manual_seed(3)
    both = Secant.empty(torch.zeros(2, 7, dtype=torch.float64), 4, "bfgs", sigma=1.0)
    alone = Secant.empty(torch.zeros(7, dtype=torch.float64), 4, "bfgs", sigma=1.0)
    v = torch.randn(2, 7, generator=generator, dtype=torch.float64)
    for k in range(7):
        s = torch.randn(2, 7, generator=generator, dtype=torch.float64)
        y = s @ f.A
        y[1] *= 1.0 if k in (2, 4) else -1.0
        both.push(s, y)
        if k in (2, 4):
            alone.push(s[1], y[1])
        torch.testing.assert_close(both.product(both.solve(v)), v, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(both.solve(v)[1], alone.solve(v[1]), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(
    ("settings_", "says"),
    [
        ({"varsigma": 0.0}, "`varsigma` must be in"),
        ({"kappa": 0.5}, "`kappa` must be >= 1"),
        ({"tau": 2.0}, "`tau` must be in"),
        ({"rate": -1.0}, "`rate` must be > 0"),
        ({"curvature": "newton"}, "`curvature` must be"),
    ],
)
def test_bad_parameters_are_refused(settings_: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        AdaGrad(**settings_)


def test_curvature_that_is_not_offered_is_refused() -> None:
    f = WithoutValue(quadratic())
    with pytest.raises(ValueError, match="needs an objective with `hessian_product`"):
        minimise(f, torch.zeros(20, dtype=torch.float64), AdaGrad(curvature="exact"), stop=Stop(1))


class Bowl:
    """A strongly coupled quadratic that offers a gradient and nothing else."""

    def __init__(self, n=30, seed=0):
        random = torch.Generator().manual_seed(seed)
        a = torch.randn(n, n, generator=random, dtype=torch.float64)
        self.matrix, self.load = a @ a.T + torch.eye(n, dtype=torch.float64), torch.ones(n, dtype=torch.float64)
        self.size, self.bounds = n, Bounds.free(n)

    def value(self, x):
        return x @ self.matrix @ x / 2 - self.load @ x

    def gradient(self, x):
        return self.matrix @ x - self.load


class Known(Bowl):
    """The same with its products."""

    price = Price(product=1.0)

    def hessian_product(self, x, v):
        return self.matrix @ v


def test_an_objective_without_products_gets_its_curvature_from_differences_of_gradients():
    f, known, x = Bowl(), Known(), torch.zeros(30, dtype=torch.float64)
    v = torch.linspace(-1, 1, 30, dtype=torch.float64)
    torch.testing.assert_close(difference(f.gradient, x, f.gradient(x), v), known.matrix @ v, rtol=1e-6, atol=1e-6)
    rows = torch.stack([v, 0 * v])
    both = difference(lambda y: y @ f.matrix - f.load, rows, rows @ f.matrix - f.load, rows)
    torch.testing.assert_close(both, rows @ f.matrix, rtol=1e-6, atol=1e-6)
    ends = [minimise(one, x, AdaGrad(), stop=Stop(60)) for one in (f, known)]
    torch.testing.assert_close(ends[0].x, ends[1].x, rtol=0.01, atol=1e-3)
    note = "steps whose curvature is a difference of gradients, as the objective has no `hessian_product`"
    assert ends[0].state.notes[note] == 60 and note not in ends[1].state.notes
    plain = minimise(f, x, AdaGrad(curvature="none"), stop=Stop(60))
    assert f.gradient(ends[0].x).norm() < 0.1 * f.gradient(plain.x).norm()


# ------------------------------------------------------------------------------------------------ a first step too long


class Untold(Quadratic):
    """A quadratic that never tells its value."""

    def value(self, x: Tensor) -> Tensor:
        raise NoValueError


def steep(start: float = 0.1) -> tuple[Untold, Tensor]:
    """``50 x^2`` with products that are dear, as those of a network."""
    one = torch.ones(1, dtype=torch.float64)
    return Untold(100 * one[None], 0 * one, Bounds.free(1), Price(product=2.0)), start * one


def test_a_first_step_that_is_too_long_is_taken_back() -> None:
    f, x = steep()
    solver = AdaGrad(varsigma=0.01, rate=2.0)
    state = solver.init(f, x)
    first, state = solver.step(f, x.clone(), state)
    s = -20 / math.sqrt(1e-4 + 100)  # to -1.9, where the gradient is nineteen times as large
    assert float(first) == pytest.approx(0.1 + s)
    second, state = solver.step(f, first.clone(), state)
    assert float(second) == pytest.approx(0.1 + 0.1 * s)
    assert state.notes == {TOO_LONG: 1}
    assert float(state.squares) == pytest.approx(1e-4 + 100), "the gradient out there is not learned"
    third, state = solver.step(f, second.clone(), state)
    g = 100 * float(second)
    assert float(third) == pytest.approx(float(second) - 0.2 * g / math.sqrt(1e-4 + 100 + g * g))
    assert state.watched == 0 and len(state.before) == 0


@pytest.mark.parametrize(
    ("solver", "start"),
    [(AdaGrad(curvature="none"), 0.1), (AdaGrad(rate=0.01), 0.1), (AdaGrad(rate=0.9), 3.0)],
    ids=["as in the literature", "a good rate", "a short step"],
)
def test_a_first_step_that_is_not_stays(solver: AdaGrad, start: float) -> None:
    f, x = steep(start)
    plain = AdaGrad(rate=solver.rate, curvature="none")
    for a, b in zip(iterates(f, x, solver, 6), iterates(f, x, plain, 6), strict=True):
        assert torch.equal(a, b)


def test_a_rate_of_a_network_that_is_left_at_one_is_a_share_of_its_start() -> None:
    f, x = steep(2.0)
    state = AdaGrad().init(f, x)
    first, state = AdaGrad().step(f, x.clone(), state)
    assert float(first) == pytest.approx(2.0 - 0.25 * 2.0 * 200 / math.sqrt(1e-4 + 200**2)) and SCALED in state.notes
    for solver, start in ((AdaGrad(rate=0.99), 2.0), (AdaGrad(), 0.0), (AdaGrad(curvature="none"), 2.0)):
        state = solver.init(f, torch.full_like(x, start))
        assert state.scale == 1.0 and state.notes == {}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("activation", [torch.nn.Tanh, torch.nn.ReLU])
def test_no_network_is_left_at_chance(seed: int, activation: type[torch.nn.Module]) -> None:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(200, 8, generator=generator)
    labels = (inputs @ torch.randn(8, 5, generator=generator)).argmax(1)
    with torch.random.fork_rng([]):
        torch.manual_seed(seed)
        hidden = [torch.nn.Linear(8, 32), activation(), torch.nn.Linear(32, 32), activation()]
        net = torch.nn.Sequential(*hidden, torch.nn.Linear(32, 5))
    f = ModuleObjective(net, lambda m: torch.nn.functional.cross_entropy(m(inputs), labels))
    result = minimise(f, f.initial(), AdaGrad(), stop=Stop(100))
    outputs = f.load(result.x)(inputs)
    assert float((outputs.argmax(1) == labels).double().mean()) > 0.95
