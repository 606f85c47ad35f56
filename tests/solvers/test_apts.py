"""APTS: the properties P1 to P3, every weight, norm and option, parameters and data, failures, and the digits."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from mldd import Stop, minimise
from mldd.algebra import (
    Bounds,
    Corrected,
    Decomposition,
    Objective,
    Price,
    Remembered,
    SharedDecomposition,
    contiguous,
    counting,
    index_decomposition,
)
from mldd.loop import Status
from mldd.problems.images import Digits
from mldd.solvers import Apts, Radius, TrustRegion
from mldd.solvers.apts import orthonormal
from tests.helpers import Rosenbrock, quadratic

N = 6


@dataclass(frozen=True)
class Fit:
    """``mean of log cosh(a_i . x - b_i)`` over samples plus a little ridge, one row of x per set of samples.

    Parameters
    ----------
    A : Tensor, shape (p, m, n)
    b : Tensor, shape (p, m)
    broken : tuple of int
        Rows whose value is NaN away from the first point they are asked for.
    """

    A: Tensor
    b: Tensor
    broken: tuple[int, ...] = ()
    price: Price = field(default_factory=lambda: Price(0.5, fine=False))

    @property
    def size(self) -> int:
        return self.A.shape[2]

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(len(self.A), self.size)

    def value(self, x: Tensor) -> Tensor:
        self.price.of_value(len(x))
        r = (self.A @ x[..., None])[..., 0] - self.b
        value = torch.log(torch.cosh(r)).mean(-1) + 0.05 * (x * x).sum(-1)
        value[list(self.broken)] = torch.nan
        return value

    def gradient(self, x: Tensor) -> Tensor:
        self.price.of_gradient(len(x))
        r = (self.A @ x[..., None])[..., 0] - self.b
        return (torch.tanh(r)[..., None] * self.A).mean(-2) + 0.1 * x

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        value = Fit(self.A, self.b, self.broken, Price(0.0, fine=False)).value(x)
        return value, self.gradient(x)


@dataclass(frozen=True)
class Mean:
    """The same over all samples, of one vector."""

    fits: Fit

    size = property(lambda self: self.fits.size)
    bounds = property(lambda self: Bounds.free(self.fits.size))

    def value(self, x: Tensor) -> Tensor:
        Price().of_value()
        return Fit.value(self.fits, x.expand(len(self.fits.A), -1)).mean()

    def gradient(self, x: Tensor) -> Tensor:
        Price().of_gradient()
        return Fit.gradient(self.fits, x.expand(len(self.fits.A), -1)).mean(0)


def data(parts: int, broken: tuple[int, ...] = (), seed: int = 0) -> tuple[Mean, SharedDecomposition]:
    """Return a fit, and its decomposition into sets of samples with first-order corrected models."""
    generator = torch.Generator().manual_seed(seed)
    A = torch.randn(parts, 9, N, generator=generator, dtype=torch.float64)
    b = 3 * torch.randn(parts, 9, generator=generator, dtype=torch.float64)
    local = Fit(A, b, broken)

    def build(d: SharedDecomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        y0 = d.gather(x)
        assert g is not None
        return Corrected(local, g - local.gradient(y0), y0)

    owner = torch.arange(N) % parts
    return Mean(Fit(A, b, price=Price(0.0, fine=False))), SharedDecomposition(N, parts, build, owner, range(parts))


def layers(parts: int = 3, overlap: int = 0, bounded: bool = False) -> tuple[Any, Decomposition]:
    """Return a quadratic and subdomains of its unknowns."""
    f = quadratic(12, bounded=bounded)
    return f, index_decomposition(f, contiguous([2] * 6, parts, overlap))


def regions(model: Any = "bfgs", norm: Any = "2", window: int = 1, **radius: float) -> dict[str, TrustRegion]:
    """Return the local and the outer trust-region method with the same model, norm and rule of the radius."""
    rule = Radius(**radius)
    return {"local": TrustRegion(model, norm, rule), "outer": TrustRegion(model, norm, rule, window)}


OPTIONS: list[dict[str, Any]] = [
    {},
    regions("sr1"),
    regions("first-order"),
    regions(norm="inf"),
    {"combine": "asm"},
    {"combine": "ras"},
    {**regions(norm="inf"), "combine": "asm"},
    {"global_steps": 0},
    {"global_steps": 3, "local_steps": 1},
    regions(window=4),
    {"subspace_steps": 3},
    {"subspace_steps": 2, **regions(window=3), "global_steps": 0},
    {"keep_pairs": False},
]
PROBLEMS = {
    "data": lambda: data(3),
    "layers": layers,
    "overlapping layers": lambda: layers(3, 1),
}


@pytest.fixture(scope="module")
def minimisers() -> dict[str, Tensor]:
    found = {}
    for name, problem in PROBLEMS.items():
        f, _ = problem()
        found[name] = minimise(f, torch.zeros(f.size, dtype=torch.float64), TrustRegion(), stop=Stop(300)).x
    return found


def test_the_gradient_of_a_local_model_carries_the_correction() -> None:
    f, d = data(3)
    x = torch.randn(N, dtype=torch.float64)
    g = f.gradient(x)
    models, y = d.models(f, x, g), d.gather(x)
    torch.testing.assert_close(models.gradient(y), g.expand(3, -1))
    y = y + torch.randn(3, N, dtype=torch.float64)  # away from the expansion point
    exact, h = models.gradient(y), 1e-6
    for i in range(N):
        e = h * (torch.arange(N) == i)
        torch.testing.assert_close((models.value(y + e) - models.value(y - e)) / (2 * h), exact[:, i])


@pytest.mark.parametrize("subdomains", ["parameters", "data"])
def test_local_models_of_digits_are_consistent(subdomains: str) -> None:
    problem = Digits(hidden="6", samples=60, subdomains=subdomains)
    f, x = problem.objective(), problem.initial(0)
    d, g = problem.decomposition(2), f.gradient(x)
    models, y = d.models(f, x, g), d.gather(x)
    torch.testing.assert_close(models.gradient(y) * d.valid, d.gather(g) * d.valid)
    torch.manual_seed(0)
    y, e = y + 0.1 * d.valid * torch.randn(y.shape), 1e-5 * d.valid * torch.randn(y.shape)
    change = models.value(y + e) - models.value(y - e)
    torch.testing.assert_close(change, 2 * (models.gradient(y) * e).sum(1), rtol=1e-6, atol=1e-14)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("problem", ["data", "overlapping layers"])
def test_values_fall_and_steps_obey_the_radius(problem: str, options: dict[str, Any]) -> None:
    f, d = PROBLEMS[problem]()
    rule, plain = Radius(0.25, 1e-8, 2.0), Apts(d, **options)
    solver = replace(plain, local=replace(plain.local, radius=rule), outer=replace(plain.outer, radius=rule))
    x, norm = torch.zeros(f.size, dtype=torch.float64), solver.outer.norm
    state, g, values = solver.init(f, x), Remembered(f), [float(f.value(x))]
    for _ in range(4):
        before, radius = x.clone(), float(state.radii[0])
        solver.whole.locate(g, x, state.whole)
        solver._in_turn(0, lambda: solver._schwarz_step(g, x, state), state)  # noqa: B023
        s = x - before
        assert float(s.norm() if norm == "2" else s.abs().max()) <= radius * (1 + 1e-9)
        assert all(1e-8 <= float(r) <= 2.0 for r in state.radii)
        values.append(float(f.value(x)))
        for _ in range(solver.global_steps):
            solver._in_turn(1, lambda: solver.whole.advance(g, x, state.whole), state)
        allowed = max(values[-2 - (solver.outer.window - 1) * (1 + solver.global_steps) : -1] or values[:1])
        assert values[-1] <= allowed + 1e-12
    assert values[-1] < values[0]
    assert state.accepted + state.rejected == 4


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("problem", ["data", "overlapping layers"])
def test_the_minimiser_is_found(problem: str, options: dict[str, Any]) -> None:
    f, d = PROBLEMS[problem]()
    local = options.get("local", TrustRegion())
    slow = local.model == "first-order" or local.norm == "inf" or options.get("global_steps") == 0
    x = torch.zeros(f.size, dtype=torch.float64)
    result = minimise(f, x, Apts(d, **options), stop=Stop(150, atol=1e-2 if slow else 1e-6))
    assert result.status is Status.converged_atol, result.record


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("problem", ["data", "overlapping layers"])
def test_a_stationary_point_is_left_alone(problem: str, options: dict[str, Any], minimisers: dict[str, Tensor]) -> None:
    f, d = PROBLEMS[problem]()
    start = minimisers[problem]
    result = minimise(f, start, Apts(d, **options), stop=Stop(3))
    torch.testing.assert_close(result.x, start, rtol=0, atol=1e-7)
    assert result.status in (Status.stalled, Status.max_steps)


@pytest.mark.parametrize("norm", ["2", "inf"])
@pytest.mark.parametrize("model", ["first-order", "sr1", "bfgs"])
def test_one_subdomain_is_a_trust_region_method_with_inner_steps(model: str, norm: str) -> None:
    f = Rosenbrock(6)
    d = index_decomposition(f, contiguous([6], 1))
    solver = Apts(d, **regions(model, norm, initial=0.2), local_steps=4, global_steps=0)
    x = minimise(f, f.start(), solver, stop=Stop(1)).x
    local = TrustRegion(model, norm, Radius(0.2))
    y, g = f.start(), Remembered(f)
    state = local.init(f, y)
    state.confine(y.clone(), torch.tensor([0.2], dtype=torch.float64))
    for _ in range(4):
        local.step(g, y, state)
    torch.testing.assert_close(x, y)
    assert not torch.equal(x, f.start())


def test_one_subdomain_and_one_local_step_is_the_trust_region_method() -> None:
    f = Rosenbrock(6)
    d = index_decomposition(f, contiguous([6], 1))
    solver = Apts(d, TrustRegion("first-order"), local_steps=1, global_steps=0)
    result = minimise(f, f.start(), solver, stop=Stop(60), values=True)
    same = minimise(f, f.start(), TrustRegion("first-order"), stop=Stop(60), values=True)
    # The promise is the local decrease, so the outer ratio is 1, but an inner refusal is a refusal of the whole step.
    taken = [v for v in dict.fromkeys(result.history.column("value"))]
    other = [v for v in dict.fromkeys(same.history.column("value"))]
    assert taken[:3] == pytest.approx(other[:3])


@pytest.mark.parametrize("combine", ["wasm", "asm", "ras"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_the_promise_is_exact_to_first_order(problem: str, combine: str) -> None:
    f, d = PROBLEMS[problem]()
    x = torch.ones(f.size, dtype=torch.float64)
    solver = Apts(d, **regions("first-order", initial=1e-5), combine=combine)
    state, g = solver.init(f, x), Remembered(f)
    gradient = solver.whole.locate(g, x, state.whole)
    state.whole.radius = state.radii[0]
    s, totals = solver._solve_all(g, x, state)
    assert float(s.norm()) <= 1e-5 * (1 + 1e-9)
    assert float(totals[0]) == pytest.approx(-float(gradient @ s), rel=1e-3)


@pytest.mark.parametrize(
    ("model", "overlap", "combine"), [("bfgs", 1, "ras"), ("bfgs", 1, "wasm"), ("first-order", 0, "ras")]
)
def test_bounds_are_kept(model: str, overlap: int, combine: str) -> None:
    f, d = layers(3, overlap, bounded=True)
    violations: list[float] = []
    result = minimise(
        f,
        f.bounds.project(torch.zeros(12, dtype=torch.float64)),
        Apts(d, **regions(model, "inf"), combine=combine),
        stop=Stop(200, atol=1e-3),
        after_step=lambda x, state, history: violations.append(f.bounds.violation(x)),
    )
    assert result.status is Status.converged_atol
    assert max(violations) <= 1e-15


@pytest.mark.parametrize("options", [{}, {"subspace_steps": 2}, {"global_steps": 0}], ids=str)
def test_a_local_model_that_is_not_finite_is_dropped_and_counted(options: dict[str, Any]) -> None:
    f, d = data(3, broken=(1,))
    result = minimise(f, torch.zeros(N, dtype=torch.float64), Apts(d, **options), stop=Stop(10), values=True)
    assert result.state.dropped == 10
    assert result.state.accepted >= 8
    assert result.record.value < result.history.records[0].value - 0.3


def test_without_any_finite_local_model_a_status_says_so() -> None:
    f, d = data(2, broken=(0, 1))
    x = torch.zeros(N, dtype=torch.float64)
    result = minimise(f, x, Apts(d, global_steps=0), stop=Stop(200))
    assert result.status is Status.stalled
    assert torch.equal(result.x, x)
    with_global_steps = minimise(f, x, Apts(d), stop=Stop(200, atol=1e-6))
    assert with_global_steps.status is Status.converged_atol


def test_an_outer_step_needs_three_collectives() -> None:
    problem = Digits(hidden="8", samples=100, subdomains="data")
    f, x = problem.objective(), problem.initial(0)
    for global_steps, most in ((0, 2), (1, 3), (2, 4)):
        solver = Apts(problem.decomposition(2), global_steps=global_steps)
        history = minimise(f, x, solver, stop=Stop(4)).history.column("synchronisations")
        assert all(b - a <= most for a, b in zip(history, history[1:], strict=False))


def test_a_local_step_costs_no_more_than_it_must() -> None:
    f, d = data(2)
    g, x = Remembered(f), torch.zeros(N, dtype=torch.float64)
    solver = Apts(d, local_steps=3, global_steps=0)
    state = solver.init(g, x)
    solver.step(g, x, state)
    state.local.share, before = 1.0, state.local.rejected
    with counting() as cost:
        solver.step(g, x, state)
    assert state.local.rejected == before
    # Per subdomain, at half a fine gradient each: the correction, two trials with gradient, and the values at the start
    # and of the last trial; then value and gradient of the sum of the steps.
    assert cost.work == pytest.approx(2 * 0.5 * (1 + 2 + 2 / 3) + 1 / 3 + 1)
    assert cost.gradients == 1


def test_the_bars_on_digits_hold() -> None:
    """At most 1,000 gradients per rank to a loss of 1e-2, and 85 % of the Schwarz steps accepted."""
    problem = Digits(subdomains="data")
    solver = Apts(problem.decomposition(2))
    result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(10, target=1e-2))
    assert result.status is Status.target_reached
    assert (
        result.record.cost.work_units < 80
    )  # with two halves of the samples, this is the number of gradients per rank
    assert result.state.rejected == 0


def test_orthonormal_rows_span_what_they_are_made_of() -> None:
    torch.manual_seed(0)
    rows = torch.randn(4, 9, dtype=torch.float64)
    Q = orthonormal(torch.cat([rows, rows[:1] + rows[1:2], torch.zeros(1, 9, dtype=torch.float64)]))
    assert Q.shape == (4, 9)
    torch.testing.assert_close(Q @ Q.T, torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(rows @ Q.T @ Q, rows)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"local_steps": 0}, "`local_steps` must be >= 1"),
        ({"global_steps": -1}, "`global_steps` must be >= 0"),
        ({"subspace_steps": -1}, "`subspace_steps` must be >= 0"),
        ({"combine": "sum"}, "`combine` must be one of"),
        ({"outer": TrustRegion(norm="inf")}, "must have the same norm"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Apts(layers()[1], **options)


@pytest.mark.parametrize("options", [{}, {"combine": "asm"}, {"subspace_steps": 2}], ids=str)
def test_what_does_not_fit_bounds_is_refused(options: dict[str, Any]) -> None:
    f, d = layers(bounded=True)
    with pytest.raises(ValueError, match="bounds"):
        Apts(d, **(regions(norm="inf") if options else {}), **options).init(
            f, f.bounds.project(torch.zeros(12, dtype=torch.float64))
        )
