"""L-BFGS preconditioned by Schwarz sweeps: what it is without them, with one subdomain, and at a fixed point."""

from __future__ import annotations

import itertools
import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Decomposition,
    IndexTransfer,
    LocalRestrictions,
    Remembered,
    Restricted,
    SharedDecomposition,
    contiguous,
    index_decomposition,
)
from mldd.loop import Status, Stop, minimise
from mldd.solvers import LBFGS, SchwarzLBFGS
from mldd.solvers.schwarz_lbfgs import CoarseStep, first_layers
from tests.helpers import Quadratic, Rosenbrock, quadratic

N = 24
SIZES = (6, 4, 5, 4, 5)  # layers
VARIANTS = [
    {"order": "multiplicative"},
    {"combine": "wasm", "search": "sum"},
    {},
    {"combine": "wasm", "subspace_steps": 5},
    {"combine": "ras"},
]


def _layers(f, parts, overlap=0):
    edges = [sum(SIZES[:k]) for k in range(len(SIZES) + 1)]
    blocks = [slice(a, b) for a, b in itertools.pairwise(edges)]
    made = index_decomposition(f, contiguous(SIZES, parts, overlap))
    return Decomposition(f.size, made.subdomains, made.build, made.local, blocks=blocks)


def _start(f, seed=3):
    return torch.randn(f.size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _run(f, x, solver, steps):
    f, x = Remembered(f), x.clone()
    state, iterates = solver.init(f, x), [x.clone()]
    for _ in range(steps):
        x, state = solver.step(f, x, state)
        state.step += 1
        iterates.append(x.clone())
    return torch.stack(iterates), state


@pytest.mark.parametrize("momentum", [1.0, 0.9, 0.4])
@pytest.mark.parametrize("f", [Rosenbrock(N), quadratic(N)])
def test_without_local_steps_it_is_lbfgs(f, momentum):
    solver = SchwarzLBFGS(_layers(f, 2), local_steps=0, outer=LBFGS(3, momentum=momentum))
    ours, _ = _run(f, _start(f), solver, 30)
    plain, _ = _run(f, _start(f), LBFGS(3, momentum=momentum), 30)
    torch.testing.assert_close(ours[:12], plain[:12], rtol=1e-9, atol=1e-9)  # BLAS rounds by where a vector begins
    assert float(f.value(ours[-1])) < float(f.value(ours[0]))


def test_momentum_is_a_mean_of_directions():
    f, solver = Remembered(quadratic(N)), LBFGS(5, momentum=0.7)
    x = _start(f)
    state, begun_anew = solver.init(f, x), 0
    for _ in range(20):
        g = f.gradient(x)
        p = state.pairs.direction(g, state.direction).clone()
        mean = 0.3 * state.velocity + 0.7 * p
        descends = float(g @ mean) < 0
        begun_anew += not descends
        old = x.clone()
        x, state = solver.step(f, x, state)
        torch.testing.assert_close(state.velocity, mean if descends else p, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(x - old, state.length * state.velocity, rtol=1e-9, atol=1e-12)
    assert begun_anew < 10


@pytest.mark.parametrize("steps", [1, 7])
def test_with_one_subdomain_the_local_phase_is_lbfgs_on_everything(steps):
    f = Rosenbrock(N)
    plain, _ = _run(f, _start(f), LBFGS(10), steps)
    solver = SchwarzLBFGS(_layers(f, 1), order="multiplicative", local_steps=steps, global_steps=0)
    ours, _ = _run(f, _start(f), solver, 1)
    torch.testing.assert_close(ours[-1], plain[-1], rtol=1e-10, atol=1e-10)
    solver = SchwarzLBFGS(_layers(f, 1), combine="wasm", search="sum", local_steps=steps, global_steps=0)
    sweep, x = solver.sweep, _start(f)
    torch.testing.assert_close(sweep.correction(f, x, sweep.init(f, x)), plain[-1] - x, rtol=1e-10, atol=1e-10)


def _local_solutions(f, x, d, steps):
    """Return where plain L-BFGS leads on every subdomain, by the definition."""
    corrections = []
    for k, subdomain in enumerate(d.subdomains):
        local = Restricted(f, x, d.transfer(k))
        y, _ = _run(local, torch.zeros(len(subdomain.indices), dtype=torch.float64), LBFGS(10), steps)
        corrections.append(y[-1])
    return corrections


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_the_correction_is_the_mean_over_the_subdomains_that_cover_an_unknown(overlap):
    f, x = Rosenbrock(N), Rosenbrock(N).start()
    d = _layers(f, 3, overlap)
    total, covering = torch.zeros(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    for c, subdomain in zip(_local_solutions(f, x, d, 6), d.subdomains, strict=True):
        for value, i in zip(c.tolist(), subdomain.indices.tolist(), strict=True):
            total[i] += value
            covering[i] += 1
    assert (covering.max() > 1) == (overlap > 0)
    solver = SchwarzLBFGS(d, combine="wasm", search="sum", local_steps=6, global_steps=0)
    sweep = solver.sweep
    torch.testing.assert_close(sweep.correction(f, x, sweep.init(f, x)), total / covering, rtol=1e-8, atol=1e-8)
    moved, state = _run(f, x, solver, 1)  # a line search along it
    step = moved[1] - moved[0]
    t = float(step @ total.div(covering)) / float((total / covering).square().sum())
    torch.testing.assert_close(step, t * total / covering, rtol=1e-7, atol=1e-8)
    assert state.accepted == 1


def test_searches_one_after_the_other_go_along_each_local_correction():
    f, x = Rosenbrock(N), Rosenbrock(N).start()
    d = _layers(f, 3, 1)
    corrections = _local_solutions(f, x, d, 6)
    moved, state = _run(f, x, SchwarzLBFGS(d, local_steps=6, global_steps=0), 1)
    columns = torch.stack([d.transfer(k).prolong(c) for k, c in enumerate(corrections)], 1)
    step = moved[1] - moved[0]
    t = torch.linalg.lstsq(columns, step[:, None]).solution
    torch.testing.assert_close((columns @ t)[:, 0], step, rtol=1e-6, atol=1e-7)
    assert int((t > 1e-3).sum()) == state.accepted >= 1
    assert state.accepted + state.rejected == 3


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("overlap", [0, 1])
def test_no_phase_ends_higher_than_it_began(variant, overlap):
    f = Rosenbrock(N)
    for phases in ({"global_steps": 0}, {"global_steps": 1, "coarse": CoarseStep(2)}):
        solver = SchwarzLBFGS(_layers(f, 3, overlap), local_steps=4, **phases, **variant)
        iterates, _ = _run(f, f.start(), solver, 25)
        values = torch.stack([f.value(x) for x in iterates])
        assert bool((values.diff() <= 1e-14 * values[:-1]).all())
        assert values[-1] < 0.2 * values[0]


def test_a_multiplicative_sweep_sees_what_came_before():
    f, x = quadratic(N), _start(quadratic(N))
    d = _layers(f, 3)
    point = x.clone()
    for subdomain in d.subdomains:  # exact block Gauss-Seidel
        i = subdomain.indices
        point[i] += torch.linalg.solve(f.A[i][:, i], -f.gradient(point)[i])
    solver = SchwarzLBFGS(d, order="multiplicative", local_steps=200, global_steps=0)
    moved, _ = _run(f, x, solver, 1)
    torch.testing.assert_close(moved[1], point, rtol=0, atol=1e-6)


def test_a_span_is_minimised_over():
    f, x = quadratic(N), _start(quadratic(N))
    d = _layers(f, 2, 1)
    moved, state = _run(f, x, SchwarzLBFGS(d, combine="wasm", local_steps=3, global_steps=0, subspace_steps=60), 1)
    pieces = []
    for k, c in enumerate(_local_solutions(f, x, d, 3)):
        full = d.transfer(k).prolong(c)
        for block in d.blocks:
            piece = torch.zeros_like(full)
            piece[block] = full[block]
            pieces.append(piece)
    D = torch.stack(pieces, 1)
    D = D[:, D.norm(dim=0) > 0]
    best = x + D @ torch.linalg.lstsq(D.T @ f.A @ D, -D.T @ f.gradient(x), driver="gelsd").solution
    assert float(f.value(moved[1])) == pytest.approx(float(f.value(best)), rel=1e-8, abs=1e-8)
    assert torch.equal(state.previous, moved[1] - moved[0])


def test_the_secant_pair_begins_where_the_sweep_ended():
    f = Rosenbrock(N)
    d = _layers(f, 2)
    halfway, _ = _run(f, f.start(), SchwarzLBFGS(d, combine="wasm", search="sum", local_steps=3, global_steps=0), 1)
    whole, state = _run(f, f.start(), SchwarzLBFGS(d, combine="wasm", search="sum", local_steps=3), 1)
    outer = state.outer.pairs
    assert outer.count == 1
    torch.testing.assert_close(outer.last[0], whole[1] - halfway[1], rtol=1e-9, atol=1e-12)
    y = f.gradient(whole[1]) - f.gradient(halfway[1])
    torch.testing.assert_close(outer.last[1], y, rtol=1e-9, atol=1e-9)


def test_a_coarse_step_moves_the_first_layers_alone():
    f = Rosenbrock(N)
    d = _layers(f, 2, 1)
    space = first_layers(d)
    solver = SchwarzLBFGS(d, local_steps=0, global_steps=0, coarse=CoarseStep(4))
    moved, _ = _run(f, f.start(), solver, 1)
    plain, _ = _run(Restricted(f, f.start(), space), torch.zeros(space.shape[1], dtype=torch.float64), LBFGS(10), 4)
    torch.testing.assert_close(moved[1] - moved[0], space.prolong(plain[-1]), rtol=1e-10, atol=1e-10)
    first_owned = [int(s.indices[s.owned].min()) for s in d.subdomains]
    edges = [0, 6, 10, 15, 19, 24]
    layers = [edges.index(i) for i in first_owned]
    assert space.indices.tolist() == [i for k in layers for i in range(edges[k], edges[k + 1])]


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(
    "extra", [{}, {"coarse": CoarseStep(2)}, {"keep_pairs": False, "outer": LBFGS(momentum=0.9)}, {"global_steps": 0}]
)
@pytest.mark.parametrize("overlap", [0, 1])
def test_a_stationary_point_is_a_fixed_point(variant, extra, overlap):
    f = Quadratic(quadratic(N).A, torch.zeros(N, dtype=torch.float64), Bounds.free(N))
    solver = SchwarzLBFGS(_layers(f, 3, overlap), local_steps=3, **variant, **extra)
    iterates, state = _run(f, torch.zeros(N, dtype=torch.float64), solver, 2)
    assert not iterates.any()
    assert state.status is None and state.rejected == 0


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("extra", [{}, {"coarse": CoarseStep(2), "keep_pairs": False, "outer": LBFGS(momentum=0.9)}])
def test_every_variant_reaches_the_solution(variant, extra):
    f = quadratic(N)
    solver = SchwarzLBFGS(_layers(f, 3, 1), local_steps=4, **variant, **extra)
    result = minimise(f, _start(f), solver, stop=Stop(100, atol=1e-8))
    assert result.status is Status.converged_atol
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=1e-7)


def test_kept_pairs_are_those_of_the_last_outer_steps():
    f = Rosenbrock(N)
    _, state = _run(f, f.start(), SchwarzLBFGS(_layers(f, 2), local_steps=3), 2)
    assert state.sweep.local[0].pairs.count.tolist() == [6, 6]
    _, state = _run(f, f.start(), SchwarzLBFGS(_layers(f, 2), local_steps=3, order="multiplicative"), 2)
    assert [mine.pairs.count for mine in state.sweep.local] == [6, 6]
    _, state = _run(f, f.start(), SchwarzLBFGS(_layers(f, 2), local_steps=3, keep_pairs=False), 2)
    assert state.sweep.local == []


def test_parts_of_the_data_are_subdomains_too():
    f, g = quadratic(N, seed=1), quadratic(N, seed=2)
    whole = Quadratic(f.A + g.A, f.b + g.b, f.bounds)

    @dataclass(frozen=True)
    class Halves:
        delta: Tensor
        x: Tensor
        size: int = N
        bounds: Bounds = Bounds.free(2, N)

        def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
            values = torch.stack([f.value(y[0]), g.value(y[1])]) + (self.delta * (y - self.x)).sum(1)
            return values, torch.stack([f.gradient(y[0]), g.gradient(y[1])]) + self.delta

        def value(self, y: Tensor) -> Tensor:
            return self.value_and_gradient(y)[0]

        def gradient(self, y: Tensor) -> Tensor:
            return self.value_and_gradient(y)[1]

    def build(d, objective, x, gradient):
        return Halves(gradient - torch.stack([f.gradient(x), g.gradient(x)]), x.clone())

    d = SharedDecomposition(N, 2, build, torch.arange(N) % 2, range(2))
    for variant in VARIANTS[1:]:
        solver = SchwarzLBFGS(d, local_steps=3, **variant)
        result = minimise(whole, _start(whole), solver, stop=Stop(100, atol=1e-8))
        torch.testing.assert_close(result.x, whole.solution(), rtol=0, atol=1e-7)


def _misled(f, sign=-1.0):
    """A decomposition whose local models are `sign` times those of `f`."""

    @dataclass(frozen=True)
    class Misled(LocalRestrictions):
        def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
            value, g = super().value_and_gradient(y)
            return sign * value, sign * g

        def value(self, y: Tensor) -> Tensor:
            return sign * super().value(y)

        def gradient(self, y: Tensor) -> Tensor:
            return sign * super().gradient(y)

    d = _layers(f, 2)
    return Decomposition(N, d.subdomains, lambda d, f, x, g: Misled(f, d, x.clone()), d.local, blocks=d.blocks)


@pytest.mark.parametrize("variant", VARIANTS[:3])
def test_corrections_that_do_not_descend_are_rejected_and_counted(variant):
    f = quadratic(N)
    solver = SchwarzLBFGS(_misled(f), local_steps=2, **variant)
    ours, state = _run(f, _start(f), solver, 5)
    plain, _ = _run(f, _start(f), LBFGS(10), 5)
    assert state.rejected >= 5 and state.accepted == 0
    torch.testing.assert_close(ours, plain[: len(ours)], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_local_solves_that_are_lost_change_nothing(variant):
    f = quadratic(N)
    solver = SchwarzLBFGS(_misled(f, float("nan")), local_steps=2, **variant)
    ours, state = _run(f, _start(f), solver, 5)
    plain, _ = _run(f, _start(f), LBFGS(10), 5)
    if "subspace_steps" not in variant:  # which still has the direction of L-BFGS
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-9)
    assert bool(torch.isfinite(ours).all()) and state.status is None


@dataclass(frozen=True)
class Uphill:
    """A gradient of the wrong sign: no search can succeed."""

    f: Quadratic
    size: int = N

    @property
    def bounds(self) -> Bounds:
        return self.f.bounds

    def value(self, x: Tensor) -> Tensor:
        return self.f.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        return -self.f.gradient(x)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("phases", [{}, {"global_steps": 0}, {"local_steps": 0, "coarse": CoarseStep(2)}])
def test_a_run_that_cannot_go_on_says_so(variant, phases):
    f = Uphill(quadratic(N))
    solver = SchwarzLBFGS(_layers(f, 2), **({"local_steps": 2} | phases | variant))
    result = minimise(f, _start(f), solver, stop=Stop(10))
    assert result.status is Status.stalled and result.record.step == 1
    assert torch.equal(result.x, _start(f))


def test_a_start_without_a_finite_value_has_diverged():
    @dataclass(frozen=True)
    class Lost(Uphill):
        def value(self, x: Tensor) -> Tensor:
            return self.f.value(x) * float("nan")

    f = Lost(quadratic(N))
    assert minimise(f, _start(f), SchwarzLBFGS(_layers(f, 2))).status is Status.diverged


def test_float32_works_and_is_warned_about():
    f = quadratic(N, dtype=torch.float32)
    solver = SchwarzLBFGS(_layers(f, 2), local_steps=3)
    with pytest.warns(UserWarning, match="float64"):
        result = minimise(f, _start(f).float(), solver, stop=Stop(20))
    assert result.x.dtype == torch.float32
    torch.testing.assert_close(result.x, f.solution(), rtol=1e-2, atol=1e-2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        minimise(quadratic(N), _start(f), SchwarzLBFGS(_layers(quadratic(N), 2)), stop=Stop(1))


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"local_steps": -1}, "local_steps"),
        ({"subspace_steps": -1}, "subspace_steps"),
        ({"combine": "product"}, "combine"),
        ({"search": "none"}, "search"),
        ({"order": "random"}, "order"),
        ({"order": "multiplicative", "combine": "ras"}, "combine"),
        ({"order": "multiplicative", "search": "sum"}, "search"),
        ({"order": "multiplicative", "subspace_steps": 3}, "subspace_steps"),
        ({"local_steps": 0, "global_steps": 0}, "local_steps"),
    ],
)
def test_bad_input_is_one_clear_line(settings, name):
    with pytest.raises(ValueError, match=f"`{name}`.*got"):
        SchwarzLBFGS(_layers(quadratic(N), 2), **settings)


def test_a_coarse_step_of_negative_length_is_refused():
    with pytest.raises(ValueError, match="`steps`.*got -1"):
        CoarseStep(-1)


def test_bounds_and_missing_layers_are_refused():
    bounded = quadratic(N, bounded=True)
    with pytest.raises(ValueError, match="without bounds"):
        SchwarzLBFGS(_layers(bounded, 2)).init(bounded, torch.zeros(N, dtype=torch.float64))
    plain = index_decomposition(quadratic(N), contiguous(SIZES, 2))
    with pytest.raises(ValueError, match="layers.*coarse"):
        SchwarzLBFGS(plain, coarse=CoarseStep(1))
    f, space = quadratic(N), IndexTransfer(torch.arange(0, N, 3), N)
    moved, _ = _run(f, _start(f), SchwarzLBFGS(plain, coarse=CoarseStep(3, space), local_steps=0, global_steps=0), 1)
    assert (moved[1] != moved[0]).nonzero()[:, 0].tolist() == space.indices.tolist()
