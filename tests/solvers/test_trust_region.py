"""Trust-region methods: matrices and sub-problems against dense algebra, rounding, floors, batches, bounds."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mldd import Stop, minimise
from mldd.algebra import Bounds, Price, Remembered, counting
from mldd.loop import Status
from mldd.solvers import Radius, TrustRegion
from mldd.solvers.parts import Secant
from tests.helpers import Quadratic, Rosenbrock, quadratic

KINDS = ("sr1", "bfgs")
MODELS = ("first-order", "sr1", "bfgs")
NORMS = ("2", "inf")


def dense(kind: str, sigma: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the matrix that the textbook recursion makes of the pairs."""
    B = float(sigma) * torch.eye(len(pairs[0][0]), dtype=torch.float64)
    for s, y in pairs:
        r, Bs = y - B @ s, B @ s
        if kind == "sr1":
            B = B + torch.outer(r, r) / (r @ s)
        else:
            B = B - torch.outer(Bs, Bs) / (s @ Bs) + torch.outer(y, y) / (s @ y)
    return B


def learned(kind: str, n: int = 12, memory: int = 4, pairs: int = 7, seed: int = 0) -> tuple[Secant, Tensor]:
    """Return a matrix of random pairs of a random (definite for BFGS) Hessian, and the same densely."""
    torch.manual_seed(seed)
    A = torch.randn(n, n, dtype=torch.float64)
    A = A + A.T if kind == "sr1" else A @ A.T
    secant, kept = Secant.empty(A[0], memory, kind), []
    for _ in range(pairs):
        s = torch.randn(n, dtype=torch.float64)
        secant.push(s, A @ s)
        kept.append((s, A @ s))
    return secant, dense(kind, secant.sigma, kept[-memory:])


def minimiser(B: Tensor, g: Tensor, radius: float) -> Tensor:
    """Return the minimiser of the model in the ball by bisection for the shift, with all eigenvectors of B."""
    w, V = torch.linalg.eigh(B)
    a = V.T @ g
    if w[0] > 0 and (a / w).norm() <= radius:
        return -V @ (a / w)
    low, high = max(0.0, -float(w[0])), float(a.norm()) / radius + float(w.abs().max())
    for _ in range(200):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if (a / (w + middle)).norm() > radius else (low, middle)
    return -V @ (a / (w + high))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 3, 7, 9])
def test_the_matrix_is_that_of_the_recursion(kind: str, pairs: int) -> None:
    secant, B = learned(kind, pairs=pairs)
    torch.testing.assert_close(torch.stack([secant.product(e) for e in torch.eye(12, dtype=torch.float64)]), B)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("radius", [1e-3, 0.1, 1.0, 30.0])
def test_the_model_is_minimised_in_the_ball(kind: str, radius: float) -> None:
    secant, B = learned(kind)
    g = torch.randn(12, dtype=torch.float64)
    s, decrease = secant.minimise_in_ball(g, np.array([radius]))
    exact = minimiser(B, g, radius)
    assert float(s.norm()) <= radius * (1 + 1e-12)
    torch.testing.assert_close(s, exact, rtol=1e-6, atol=1e-8 * radius)
    torch.testing.assert_close(float(decrease[0]), float(-(g @ s + 0.5 * s @ B @ s)), rtol=1e-8, atol=1e-12)


def test_the_hard_case_ends_on_the_boundary() -> None:
    secant, B = learned("sr1")
    w, V = torch.linalg.eigh(B)
    assert w[0] < 0
    g = 1e-3 * V[:, 5]  # orthogonal to the direction of negative curvature
    s, decrease = secant.minimise_in_ball(g, np.array([1.0]))
    assert float(s.norm()) == pytest.approx(1.0, rel=1e-9)
    assert abs(float(s @ V[:, 0])) > 0.99
    assert float(decrease[0]) == pytest.approx(-float(g @ s + 0.5 * s @ B @ s), rel=1e-6)
    assert float(decrease[0]) >= -0.5 * float(w[0]) * (1 - 1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("pairs", [1, 7])
def test_a_confined_step_obeys_both_radii_and_lowers_the_model(kind: str, pairs: int) -> None:
    secant, B = learned(kind, pairs=pairs)
    g, away = torch.randn(12, dtype=torch.float64), torch.randn(12, dtype=torch.float64)
    for distance, radius in ((0.999, 0.1), (1.0, 1.5), (0.3, 0.8), (0.0, 1.0)):
        near = distance * away / away.norm()
        for gradient in (g, -near + 0.1 * g):  # the latter leads out of the ball
            s, decrease = secant.minimise_in_ball(gradient, np.array([radius]), near, np.array([1.0]))
            assert float(s.norm()) <= radius * (1 + 1e-12)
            assert float((near + s).norm()) <= 1 + 1e-12
            promised = -float(gradient @ s + 0.5 * s @ B @ s)
            assert float(decrease[0]) == pytest.approx(promised, rel=1e-6, abs=1e-9)
            assert promised > 0


def test_without_pairs_the_step_is_along_the_gradient() -> None:
    g = torch.randn(5, dtype=torch.float64)
    s, decrease = Secant.empty(g, 3).minimise_in_ball(g, np.array([0.5]))
    torch.testing.assert_close(s, -0.5 * g / g.norm())
    assert float(decrease[0]) == pytest.approx(0.5 * float(g.norm()))


@pytest.mark.parametrize("kind", KINDS)
def test_members_of_a_batch_do_not_see_each_other(kind: str) -> None:
    torch.manual_seed(1)
    n, h = 6, 3
    A = torch.randn(2, n, n, dtype=torch.float64)
    A = A @ A.mT
    batch, alone = Secant.empty(A[:, 0], h, kind), [Secant.empty(A[0, 0], h, kind) for _ in range(2)]
    for k in range(5):
        s = torch.randn(2, n, dtype=torch.float64)
        y = (A @ s[..., None])[..., 0]
        if k == 3:  # refused by the second member
            y[1] = -s[1] if kind == "bfgs" else batch.product(s)[1]
        batch.push(s, y)
        alone[0].push(s[0], y[0])
    g, radius = torch.randn(2, n, dtype=torch.float64), np.array([0.3, 2.0])
    s, decrease = batch.minimise_in_ball(g, radius)
    first, promise = alone[0].minimise_in_ball(g[0], radius[:1])
    torch.testing.assert_close(s[0], first)
    assert float(decrease[0]) == pytest.approx(float(promise[0]))
    B = torch.stack([batch.product(e.expand(2, n))[1] for e in torch.eye(n, dtype=torch.float64)])
    torch.testing.assert_close(s[1], minimiser(B, g[1], 2.0), rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("norm", NORMS)
def test_values_never_rise_and_steps_stay_in_the_region(model: str, norm: str) -> None:
    f = Rosenbrock(6)
    solver = TrustRegion(model, norm, Radius(0.5, 1e-6, 2.0))
    x = f.start()
    state, g = solver.init(f, x), Remembered(f)
    for _ in range(60):
        before, radius, value = x.clone(), float(state.radius), float(f._value(x))
        solver.step(g, x, state)
        s = x - before
        assert float(s.norm() if norm == "2" else s.abs().max()) <= radius * (1 + 1e-9)
        assert float(f._value(x)) <= value + 1e-14 * (1 + abs(value))
        assert 1e-6 <= float(state.radius) <= 2.0
    assert float(f._value(x)) < 0.5 * float(f._value(f.start()))


@pytest.mark.parametrize(("model", "norm", "most"), [("bfgs", "2", 130), ("bfgs", "inf", 300), ("sr1", "2", 300)])
def test_rosenbrock_is_solved(model: str, norm: str, most: int) -> None:
    f = Rosenbrock(6)
    memory = 10 if model == "bfgs" else 20
    result = minimise(f, f.start(), TrustRegion(model, norm, memory=memory), stop=Stop(most, atol=1e-8))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, torch.ones(6, dtype=torch.float64), rtol=1e-6, atol=1e-6)


def test_sr1_with_room_for_all_pairs_ends_on_a_quadratic_after_as_many_steps_as_unknowns() -> None:
    f = quadratic(20)
    result = minimise(f, torch.zeros(20, dtype=torch.float64), TrustRegion("sr1", memory=25), stop=Stop(30, atol=1e-8))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, f.solution())


@pytest.mark.parametrize("model", MODELS)
def test_bounds_hold_and_the_constrained_minimiser_is_found(model: str) -> None:
    f = quadratic(20, bounded=True)
    x, seen = f.bounds.project(torch.zeros(20, dtype=torch.float64)), []
    result = minimise(
        f,
        x,
        TrustRegion(model, "inf"),
        stop=Stop(400, atol=1e-8),
        after_step=lambda x, state, history: seen.append(f.bounds.violation(x)),
    )
    assert result.status is Status.converged_atol
    assert max(seen) <= 1e-15


@dataclass(frozen=True)
class Shifted:
    """`f` plus a constant in whose rounding its decreases drown."""

    f: Quadratic
    constant: float

    size = property(lambda self: self.f.size)
    bounds = property(lambda self: self.f.bounds)

    def value(self, x: Tensor) -> Tensor:
        return self.f.value(x) + self.constant

    def gradient(self, x: Tensor) -> Tensor:
        return self.f.gradient(x)


@pytest.mark.parametrize("norm", NORMS)
def test_rounding_of_values_does_not_end_the_run(norm: str) -> None:
    f = Shifted(quadratic(10), 1e9)  # values are multiples of 1e-7
    result = minimise(f, torch.zeros(10, dtype=torch.float64), TrustRegion(norm=norm), stop=Stop(300, atol=1e-9))
    assert result.status is Status.converged_atol


@dataclass(frozen=True)
class Wrong:
    """An objective whose gradient points the wrong way."""

    f: Quadratic

    size = property(lambda self: self.f.size)
    bounds = property(lambda self: self.f.bounds)

    def value(self, x: Tensor) -> Tensor:
        return self.f.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        return -self.f.gradient(x)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS)
def test_a_radius_at_its_floor_is_a_status(model: str, norm: str) -> None:
    x = torch.ones(8, dtype=torch.float64)
    result = minimise(Wrong(quadratic(8)), x, TrustRegion(model, norm), stop=Stop(500))
    assert result.status is Status.stalled
    assert torch.equal(result.x, x)
    assert result.record.step <= 60
    with_floor = minimise(Wrong(quadratic(8)), x, TrustRegion(model, norm, Radius(smallest=1e-3)), stop=Stop(500))
    assert with_floor.status is Status.stalled
    assert with_floor.record.step <= 12
    assert float(with_floor.state.radius) == pytest.approx(1e-3)


def test_a_minimum_to_rounding_ends_in_stalled_not_in_endless_steps_of_zero() -> None:
    f = quadratic(6)
    result = minimise(f, f.solution(), TrustRegion(), stop=Stop(300))
    assert result.status is Status.stalled
    torch.testing.assert_close(result.x, f.solution(), rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Wall:
    """``sum x^2 / 2``, NaN outside of the unit ball around (1, ..., 1)."""

    size: int = 4
    bounds: Bounds = field(default_factory=lambda: Bounds.free(4))

    def value(self, x: Tensor) -> Tensor:
        return 0.5 * x @ x + (torch.nan if float((x - 1).norm()) > 1 else 0.0)

    def gradient(self, x: Tensor) -> Tensor:
        return x + (torch.nan if float((x - 1).norm()) > 1 else 0.0)


@pytest.mark.parametrize("model", MODELS)
def test_values_that_are_not_finite_are_refused(model: str) -> None:
    x = torch.ones(4, dtype=torch.float64)
    result = minimise(Wall(), x, TrustRegion(model, radius=Radius(64.0)), stop=Stop(40), values=True)
    assert result.record.value < 0.8
    assert bool(torch.isfinite(result.x).all())


def test_a_start_without_a_finite_value_is_a_status() -> None:
    f = replace(quadratic(4), b=torch.full((4,), 1e308, dtype=torch.float64))
    big = torch.full((4,), 1e10, dtype=torch.float64)
    assert minimise(f, big, TrustRegion(), stop=Stop(3)).status is Status.diverged


def test_a_refused_trial_costs_a_value_once_trials_are_being_refused() -> None:
    f, x = Remembered(Wrong(quadratic(8))), torch.ones(8, dtype=torch.float64)
    solver = TrustRegion()
    state = solver.init(f, x)
    f.gradient(x)
    solver.step(f, x, state)
    state.share = 0.0
    with counting() as cost:
        solver.step(f, x, state)
    assert (cost.gradients, cost.values) == (0, 1)
    state.share = 1.0
    with counting() as cost:
        solver.step(f, x, state)
    assert cost.gradients == 1


def test_a_taken_step_costs_one_evaluation() -> None:
    f, x = Remembered(quadratic(8)), torch.ones(8, dtype=torch.float64)
    solver = TrustRegion()
    state = solver.init(f, x)
    solver.step(f, x, state)
    with counting() as cost:
        for _ in range(4):
            solver.step(f, x, state)
            f.gradient(x)
    assert state.accepted >= 4
    assert (cost.gradients, cost.values) == (4, 0)


@pytest.mark.parametrize("window", [1, 3])
@pytest.mark.parametrize("model", MODELS)
def test_an_iterate_is_below_the_largest_of_the_iterates_before_it(model: str, window: int) -> None:
    f = Rosenbrock(6)
    result = minimise(f, f.start(), TrustRegion(model, window=window), stop=Stop(100), values=True)
    values = result.history.column("value")
    iterates = [values[0]] + [b for a, b in zip(values, values[1:], strict=False) if a != b]
    assert all(b <= max(iterates[max(0, k - window + 1) : k + 1]) for k, b in enumerate(iterates[1:]))
    if window > 1 and model == "bfgs":
        assert any(b > a for a, b in zip(values, values[1:], strict=False))


def test_a_refused_step_leaves_the_window_as_it_was() -> None:
    f, x = Rosenbrock(6), Rosenbrock(6).start()
    solver = TrustRegion(window=3)
    state, g = solver.init(f, x), Remembered(f)
    solver.locate(g, x, state)
    history, refused = [float(f.value(x))], 0
    for k in range(60):
        s = -1e-3 * g.gradient(x) * (1.0 if k % 3 == 0 else -1.0)  # two of three go uphill
        before = state.rejected
        solver.settle(g, x, s, np.array([1e-3 * float(s.norm())]), state)
        refused += state.rejected - before
        if state.rejected == before:
            history.append(float(f.value(x)))
        latest = (history[::-1] + [-torch.inf] * 3)[:3]
        assert state.values[0].tolist() == pytest.approx(latest)
    assert refused > 10
    assert len(history) > 10


@pytest.mark.parametrize("model", MODELS)
def test_confined_iterates_end_at_the_minimiser_in_the_ball(model: str) -> None:
    f = quadratic(8, condition=10.0)
    x, reach = torch.zeros(8, dtype=torch.float64), 0.5 * float(f.solution().norm())
    solver = TrustRegion(model)
    state, g = solver.init(f, x), Remembered(f)
    state.confine(x.clone(), torch.tensor([reach], dtype=torch.float64))
    for _ in range(150):
        solver.step(g, x, state)
        assert float(x.norm()) <= reach * (1 + 1e-12)
    best = minimiser(f.A, -f.b, reach)
    torch.testing.assert_close(x, best, rtol=1e-3 if model == "first-order" else 1e-5, atol=1e-2)


@dataclass(frozen=True)
class Several:
    """Independent quadratics, one per row; the value of rows in `broken` is NaN."""

    A: Tensor
    b: Tensor
    broken: tuple[int, ...] = ()
    price: Price = field(default_factory=Price)

    @property
    def size(self) -> int:
        return self.b.shape[1]

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(*self.b.shape)

    def gradient(self, x: Tensor) -> Tensor:
        return (self.A @ x[..., None])[..., 0] - self.b

    def value(self, x: Tensor) -> Tensor:
        value = (x * (0.5 * self.gradient(x) - 0.5 * self.b)).sum(-1)
        value[list(self.broken)] = torch.nan
        return value


def several(**options: Any) -> Several:
    members = [quadratic(6, seed=k, condition=10.0 ** (k + 1)) for k in range(3)]
    return Several(torch.stack([f.A for f in members]), torch.stack([f.b for f in members]), **options)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS)
def test_rows_of_a_batch_go_their_own_way(model: str, norm: str) -> None:
    f, solver = several(), TrustRegion(model, norm, radius=Radius(0.3))
    x = torch.zeros(3, 6, dtype=torch.float64)
    state, g = solver.fresh(x), Remembered(f)
    for _ in range(8):
        solver.step(g, x, state)
    for k in range(3):
        one = quadratic(6, seed=k, condition=10.0 ** (k + 1))
        alone = minimise(one, torch.zeros(6, dtype=torch.float64), solver, stop=Stop(8)).x
        torch.testing.assert_close(x[k], alone, rtol=1e-6, atol=1e-8)


def test_a_broken_row_stays_and_the_others_go_on() -> None:
    f, solver = several(broken=(1,)), TrustRegion()
    x = torch.zeros(3, 6, dtype=torch.float64)
    state, g = solver.fresh(x), Remembered(f)
    for _ in range(100):
        solver.step(g, x, state)
    assert bool((x[1] == 0).all())
    for k in (0, 2):
        torch.testing.assert_close(x[k], torch.linalg.solve(f.A[k], f.b[k]), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("model", MODELS)
def test_a_stationary_point_is_left_alone(model: str, norm: str) -> None:
    f = Rosenbrock(5)
    x = torch.ones(5, dtype=torch.float64)
    state, g = TrustRegion(model, norm).init(f, x), Remembered(f)
    for _ in range(3):
        TrustRegion(model, norm).step(g, x, state)
    assert torch.equal(x, torch.ones(5, dtype=torch.float64))
    assert state.status is None


def test_single_precision_stays_single() -> None:
    f = quadratic(10, dtype=torch.float32)
    result = minimise(f, torch.zeros(10), TrustRegion(), stop=Stop(60, atol=1e-3))
    assert result.x.dtype == torch.float32
    assert result.state.pairs.W.dtype == torch.float32
    assert result.status is Status.converged_atol


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"model": "newton"}, "`model` must be one of"),
        ({"norm": "1"}, "`norm` must be one of"),
        ({"window": 0}, "`window` must be >= 1"),
        ({"memory": 0}, "`memory` must be >= 1"),
    ],
)
def test_bad_parameters_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrustRegion(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"initial": 0.0}, "radii must satisfy"),
        ({"initial": 2.0, "largest": 1.0}, "radii must satisfy"),
        ({"shrink": 1.0}, "`shrink` and `grow`"),
        ({"accept": 0.5}, "thresholds must satisfy"),
    ],
)
def test_bad_rules_of_the_radius_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Radius(**options)


def test_a_ball_does_not_fit_bounds() -> None:
    f = quadratic(4, bounded=True)
    with pytest.raises(ValueError, match="without bounds"):
        TrustRegion().init(f, torch.zeros(4, dtype=torch.float64))
