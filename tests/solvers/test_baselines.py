"""Baselines: torch.optim step for step; L-BFGS against closed forms, scipy and the conditions of its line search."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import pytest
import torch
from scipy.optimize import minimize as scipy_minimize
from torch import Tensor

from mldd.algebra import Bounds, Remembered, counting
from mldd.loop import Status, Stop, minimise
from mldd.solvers import LBFGS, Adam, Sgd, TorchAdaGrad
from mldd.solvers.lbfgs import Trial, cubic_minimiser
from tests.helpers import Failing, Quadratic, Rosenbrock, WithoutValue, quadratic

PAIRS = [
    (Adam(lr=0.03), lambda p: torch.optim.Adam(p, lr=0.03)),
    (Adam(0.1, 0.8, 0.95, 1e-4), lambda p: torch.optim.Adam(p, lr=0.1, betas=(0.8, 0.95), eps=1e-4)),
    (Sgd(0.01), lambda p: torch.optim.SGD(p, lr=0.01)),
    (Sgd(0.01, 0.9), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9)),
    (Sgd(0.01, 0.9, True), lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, nesterov=True)),
    (TorchAdaGrad(0.1), lambda p: torch.optim.Adagrad(p, lr=0.1)),
    (TorchAdaGrad(0.1, 0.5, 1e-6), lambda p: torch.optim.Adagrad(p, lr=0.1, initial_accumulator_value=0.5, eps=1e-6)),
]


def _start(f: Quadratic, seed: int = 3) -> Tensor:
    return torch.randn(f.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(f.b.dtype)


@pytest.mark.parametrize("solver, optimizer", PAIRS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_first_order_methods_are_those_of_torch(solver, optimizer, dtype):
    f = quadratic(33, dtype=dtype)
    x = _start(f)
    theirs = torch.nn.Parameter(x.clone())
    optimizer = optimizer([theirs])
    state = solver.init(f, x)
    for _ in range(50):
        theirs.grad = f.gradient(theirs.detach())
        optimizer.step()
        x, state = solver.step(f, x, state)
        assert torch.equal(x, theirs.detach())


@pytest.mark.parametrize("solver", [Adam(0.05), Sgd(0.005, 0.9), TorchAdaGrad(0.5)])
def test_first_order_methods_need_no_value_and_honour_bounds(solver):
    f = quadratic(20, condition=30.0, bounded=True)
    result = minimise(WithoutValue(f), _start(f), solver, stop=Stop(3000, atol=1e-4), values=False)
    assert f.bounds.violation(result.x) == 0.0
    assert result.record.measure < 1e-2 * result.history.records[0].measure
    assert result.record.cost.gradient_evaluations == result.record.step + 1


@pytest.mark.parametrize("solver", [Adam(0.05), Sgd(0.005, 0.9, True), TorchAdaGrad(0.5)])
def test_first_order_methods_act_on_batches_row_by_row(solver):
    f = quadratic(12)

    @dataclass(frozen=True)
    class Batch:
        bounds: Bounds = Bounds.free(12)
        size: int = 12

        def gradient(self, x: Tensor) -> Tensor:
            return torch.stack([f.gradient(row) for row in x])

        def value(self, x: Tensor) -> Tensor:
            return torch.stack([f.value(row) for row in x])

    rows = torch.stack([_start(f, seed) for seed in range(3)])
    singles = [rows[k].clone() for k in range(3)]
    state = solver.init(Batch(), rows)
    states = [solver.init(f, x) for x in singles]
    for _ in range(5):
        rows, state = solver.step(Batch(), rows, state)
        for k in range(3):
            singles[k], states[k] = solver.step(f, singles[k], states[k])
    torch.testing.assert_close(rows, torch.stack(singles), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    "make, name",
    [
        (lambda: Adam(lr=0.0), "lr"),
        (lambda: Adam(beta2=1.0), "beta2"),
        (lambda: Sgd(momentum=-0.1), "momentum"),
        (lambda: Sgd(nesterov=True), "nesterov"),
        (lambda: TorchAdaGrad(initial=-1.0), "initial"),
        (lambda: TorchAdaGrad(lr=math.nan), "lr"),
        (lambda: LBFGS(memory=0), "memory"),
        (lambda: LBFGS(c1=0.5, c2=0.1), "c1"),
    ],
)
def test_hyper_parameters_out_of_range(make, name):
    with pytest.raises(ValueError, match=f"`{name}`.*got"):
        make()


def test_cubic_minimiser_of_a_cubic():
    def trial(t):  # t^3 - 3 t has its minimum at 1
        return Trial(t, t**3 - 3 * t, 3 * t**2 - 3, torch.empty(0))

    assert cubic_minimiser(trial(0.0), trial(2.5)) == pytest.approx(1.0, abs=1e-14)
    assert cubic_minimiser(trial(2.5), trial(0.0)) == pytest.approx(1.0, abs=1e-14)
    assert math.isnan(cubic_minimiser(trial(0.5), trial(0.5)))


@pytest.mark.parametrize("n, memory", [(5, 10), (40, 10), (40, 3), (60, 30)])
def test_lbfgs_reaches_the_solution_of_a_quadratic(n, memory):
    f = quadratic(n)
    result = minimise(f, _start(f), LBFGS(memory), stop=Stop(400, atol=1e-9))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=1e-8)


def test_lbfgs_direction_is_that_of_the_dense_bfgs_matrix():
    f = Rosenbrock(6)
    solver, x = LBFGS(memory=4), f.start()
    state = solver.init(f, x)
    for _ in range(9):
        x, state = solver.step(f, x, state)
    pairs = state.pairs
    rows = [(pairs.newest - k) % 4 for k in reversed(range(pairs.count))]
    H, identity = pairs.scale * torch.eye(6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)
    for row in rows:  # Nocedal and Wright, equation 7.16
        s, y, rho = pairs.steps[row], pairs.differences[row], 1 / pairs.curvatures[row]
        V = identity - rho * torch.outer(y, s)
        H = V.T @ H @ V + rho * torch.outer(s, s)
    g = f.gradient(x)
    solver.step(f, x, state)
    torch.testing.assert_close(state.direction, -H @ g, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("f", [Rosenbrock(2), Rosenbrock(20), quadratic(50, condition=1e4)])
def test_lbfgs_every_step_satisfies_the_strong_wolfe_conditions(f):
    solver = LBFGS()
    x = f.start() if isinstance(f, Rosenbrock) else _start(f)
    state, steps = solver.init(f, x), 0
    for _ in range(200):
        before, g = x.clone(), f.gradient(x)
        x, state = solver.step(f, x, state)
        d, t = state.direction, state.length
        if state.status is not None or float(g.abs().max()) < 1e-8:
            break
        torch.testing.assert_close(x, before + t * d, rtol=1e-14, atol=1e-15)
        slope, start = float(g @ d), float(f.value(before))
        assert t > 0 and slope < 0
        assert float(f.value(x)) <= start + solver.c1 * t * slope + 1e-14 * abs(start)
        assert abs(float(f.gradient(x) @ d)) <= solver.c2 * abs(slope) * (1 + 1e-12)
        steps += 1
    assert state.status is None and steps > 10


@pytest.mark.parametrize("n", [2, 10, 100])
def test_lbfgs_evaluations_compare_with_scipy(n):
    f = Rosenbrock(n)
    theirs = scipy_minimize(
        lambda x: tuple(v.numpy() for v in f.value_and_gradient(torch.from_numpy(x))),
        f.start().numpy(),
        jac=True,
        method="L-BFGS-B",
        options={"gtol": 1e-6, "ftol": 0.0, "maxiter": 10**4, "maxfun": 10**5},
    )
    result = minimise(f, f.start(), LBFGS(), stop=Stop(1000, atol=1e-6))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, torch.ones(n, dtype=torch.float64), rtol=0, atol=1e-4)
    assert result.record.cost.gradient_evaluations <= 1.5 * theirs.nfev + 10


def test_lbfgs_counts_one_gradient_per_trial_point_and_one_at_the_start():
    f = Rosenbrock(10)
    result = minimise(f, f.start(), LBFGS(), stop=Stop(30))
    assert result.record.cost.gradient_evaluations == 1 + result.state.evaluations
    assert result.record.cost.work_units == 1 + result.state.evaluations  # with its value


def test_lbfgs_as_a_local_solver_without_the_loop():
    f = quadratic(30)
    solver, x = LBFGS(), _start(f)
    local = Remembered(f)
    with counting() as cost:
        state = solver.init(local, x)
        for _ in range(100):
            x, state = solver.step(local, x, state)
    assert float(f.gradient(x).abs().max()) < 1e-6
    assert cost.gradients == 1 + state.evaluations and cost.values == 1


def test_lbfgs_pairs_come_from_the_sample_of_the_step():
    base = quadratic(10)

    @dataclass(frozen=True)
    class Stochastic(Quadratic):
        def sample(self, step: int) -> Quadratic:
            noise = torch.randn(10, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
            return replace(base, b=base.b + 0.1 * noise)

    result = minimise(Stochastic(base.A, base.b, base.bounds), _start(base), LBFGS(), stop=Stop(25))
    state = result.state
    assert state.pairs.count == 10
    # With the linear terms of two different samples, y would not be A s.
    torch.testing.assert_close(state.pairs.differences, state.pairs.steps @ base.A, rtol=1e-9, atol=1e-9)
    assert result.record.cost.work_units == 26 + state.evaluations


def test_lbfgs_refuses_bounds_and_batches():
    f = quadratic(8, bounded=True)
    with pytest.raises(ValueError, match="without bounds, got .*tao:blmvm"):
        LBFGS().init(f, torch.zeros(8, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"shape \(n,\), got \(2, 8\)"):
        LBFGS().init(quadratic(8), torch.zeros(2, 8, dtype=torch.float64))


def test_lbfgs_stalls_with_a_reason_when_the_gradient_lies():
    f = quadratic(8)

    @dataclass(frozen=True)
    class Lying(Quadratic):
        def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return f.value(x), -f.gradient(x)

        def gradient(self, x: Tensor) -> Tensor:
            return -f.gradient(x)

    x = _start(f)
    result = minimise(Lying(f.A, f.b, f.bounds), x, LBFGS(), stop=Stop(50))
    assert result.status is Status.stalled
    assert torch.equal(result.x, x)


def test_lbfgs_at_a_stationary_point_stays_there():
    f = Quadratic(torch.eye(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64), Bounds.free(4))
    x = torch.zeros(4, dtype=torch.float64)
    solver = LBFGS()
    x, state = solver.step(f, x, solver.init(f, x))
    assert state.status is None and float(x.abs().max()) == 0.0


def test_lbfgs_walks_back_from_values_that_are_not_finite():
    @dataclass(frozen=True)
    class Logarithm:
        """``sum x - log x``, infinite beyond the wall x = 0; minimiser 1."""

        size: int = 3
        bounds: Bounds = Bounds.free(3)

        def value(self, x: Tensor) -> Tensor:
            return (x - torch.log(x)).sum()

        def gradient(self, x: Tensor) -> Tensor:
            return 1 - 1 / x

    x = torch.tensor([1e-3, 5.0, 30.0], dtype=torch.float64)
    result = minimise(Logarithm(), x, LBFGS(), stop=Stop(200, atol=1e-10))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-8)


def test_lbfgs_diverged_is_said():
    f = Failing(quadratic(6), 0, lambda: torch.tensor(math.nan, dtype=torch.float64))
    result = minimise(f, torch.ones(6, dtype=torch.float64), LBFGS(), stop=Stop(5))
    assert result.status is Status.diverged


def test_lbfgs_float32_reaches_its_rounding():
    f = quadratic(20, dtype=torch.float32)
    result = minimise(f, _start(f), LBFGS(), stop=Stop(300, atol=2e-4))
    assert result.status is Status.converged_atol
    assert result.x.dtype == torch.float32
