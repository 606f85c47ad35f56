"""Batched L-BFGS: every row does what L-BFGS does with it alone, whatever the other rows do."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from mldd.algebra import Bounds, Remembered
from mldd.loop import Status
from mldd.solvers import LBFGS
from mldd.solvers.lbfgs import Trial, cubic_minimiser
from mldd.solvers.parts import BatchLBFGS
from mldd.solvers.parts.batch_lbfgs import RowPairs, WolfeSearches, cubic_minimisers
from tests.helpers import Quadratic, Rosenbrock, quadratic


@dataclass(frozen=True)
class Batch:
    """Objectives side by side, one per row; `lost` turns rows into NaN."""

    members: tuple[Quadratic | Rosenbrock, ...]
    lost: tuple[int, ...] = ()

    @property
    def size(self) -> int:
        return self.members[0].size if self.members else 0

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(len(self.members), self.size)

    def value(self, x: Tensor) -> Tensor:
        return self.value_and_gradient(x)[0]

    def gradient(self, x: Tensor) -> Tensor:
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        pairs = [f.value_and_gradient(row) for f, row in zip(self.members, x, strict=True)]
        values, g = (torch.stack(list(column)) for column in zip(*pairs, strict=True))
        values[list(self.lost)] = math.nan
        g[list(self.lost)] = math.nan
        return values, g


N = 10
MEMBERS = (Rosenbrock(N), quadratic(N), quadratic(N, condition=1e4, seed=2), Rosenbrock(N))


def _starts() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.stack([Rosenbrock(N).start(), *torch.randn(3, N, generator=generator, dtype=torch.float64)])


def _run(f, x, solver, steps):
    """Return rows, state and all iterates."""
    f, x = Remembered(f), x.clone()
    state, iterates = solver.init(f, x), [x.clone()]
    for _ in range(steps):
        x, state = solver.step(f, x, state)
        iterates.append(x.clone())
    return x, state, torch.stack(iterates)


@pytest.mark.parametrize("memory", [1, 3, 10])
def test_rows_take_the_steps_of_lbfgs(memory):
    steps = 14
    _, _, together = _run(Batch(MEMBERS), _starts(), BatchLBFGS(memory), steps)
    for k, (f, start) in enumerate(zip(MEMBERS, _starts(), strict=True)):
        _, _, alone = _run(f, start, LBFGS(memory), steps)
        torch.testing.assert_close(together[:, k], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("start", [1.0, 30.0, 1e4])
def test_line_searches_are_those_of_lbfgs_when_they_are_hard(start):
    members = (Rosenbrock(N), Rosenbrock(N), Rosenbrock(N))
    rows = start * torch.randn(3, N, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    x, state, _ = _run(Batch(members), rows, BatchLBFGS(), 6)
    counts = []
    for row, end in zip(rows, x, strict=True):
        alone, single, _ = _run(Rosenbrock(N), row, LBFGS(), 6)
        torch.testing.assert_close(end, alone, rtol=1e-6, atol=1e-9)
        counts.append(single.evaluations)
    assert max(counts) <= state.evaluations <= sum(counts)


def test_rows_reach_their_minimisers_and_then_rest():
    x, state, _ = _run(Batch(MEMBERS), _starts(), BatchLBFGS(), 150)
    solutions = [f.solution() if isinstance(f, Quadratic) else torch.ones(N, dtype=torch.float64) for f in MEMBERS]
    torch.testing.assert_close(x, torch.stack(solutions), rtol=0, atol=1e-6)
    assert state.status in (None, Status.stalled)


def test_evaluations_are_hardly_more_than_those_of_the_slowest_row():
    _, state, _ = _run(Batch(MEMBERS), _starts(), BatchLBFGS(), 30)
    slowest = max(_run(f, x, LBFGS(), 30)[1].evaluations for f, x in zip(MEMBERS, _starts(), strict=True))
    assert slowest <= state.evaluations <= 1.5 * slowest


def test_a_row_does_not_feel_the_others():
    few, _, _ = _run(Batch(MEMBERS[:2]), _starts()[:2], BatchLBFGS(), 25)
    many, _, _ = _run(Batch(MEMBERS), _starts(), BatchLBFGS(), 25)
    torch.testing.assert_close(few, many[:2], rtol=1e-8, atol=1e-8)  # BLAS rounds by where a vector begins


@pytest.mark.parametrize("lost", [(1,), (0, 3)])
def test_a_lost_row_stays_and_disturbs_no_other(lost):
    whole, _, _ = _run(Batch(MEMBERS), _starts(), BatchLBFGS(), 25)
    x, state, _ = _run(Batch(MEMBERS, lost), _starts(), BatchLBFGS(), 25)
    kept = [k for k in range(len(MEMBERS)) if k not in lost]
    assert torch.equal(x[list(lost)], _starts()[list(lost)])
    torch.testing.assert_close(x[kept], whole[kept], rtol=1e-8, atol=1e-8)
    assert state.status is None and not state.live[list(lost)].any()


def test_a_row_lost_on_the_way_keeps_its_best_point():
    f = Quadratic(torch.eye(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64), Bounds.free(2))

    @dataclass(frozen=True)
    class Cliff(Batch):  # nothing is finite closer than 0.5 to the minimiser of row 0
        def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            values, g = super().value_and_gradient(x)
            over = torch.tensor([True, False]) & ((x - 1).norm(dim=1) < 0.5)
            return torch.where(over, math.inf, values), torch.where(over[:, None], math.nan, g)

    x, _, _ = _run(Cliff((f, f)), torch.zeros(2, 2, dtype=torch.float64), BatchLBFGS(), 20)
    assert 0.5 <= float((x[0] - 1).norm()) < 0.6
    torch.testing.assert_close(x[1], f.solution(), rtol=0, atol=1e-12)


def test_all_rows_lost_or_resting_is_said():
    assert _run(Batch(MEMBERS, (0, 1, 2, 3)), _starts(), BatchLBFGS(), 1)[1].status is Status.diverged

    @dataclass(frozen=True)
    class Uphill(Batch):  # gradients of the wrong sign: no search can succeed
        def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            values, g = super().value_and_gradient(x)
            return values, -g

    x, state, _ = _run(Uphill(MEMBERS[1:3]), _starts()[1:3], BatchLBFGS(), 1)
    assert torch.equal(x, _starts()[1:3])
    assert state.status is Status.stalled


def test_stationary_rows_do_not_move_and_cost_nothing():
    f = quadratic(4)
    still = Quadratic(f.A, torch.zeros_like(f.b), f.bounds)
    x, state, _ = _run(Batch((still, still)), torch.zeros(2, 4, dtype=torch.float64), BatchLBFGS(), 3)
    assert not x.any() and state.evaluations == 0 and state.status is None


def test_a_row_at_the_rounding_error_of_its_value_rests():
    # Done after some 80 steps; the norm of its gradient, a few times 1e-14, may halve by luck once or twice after that.
    x, state, _ = _run(Batch(MEMBERS[1:2]), _starts()[1:2], BatchLBFGS(), 300)
    assert state.status is Status.stalled and not state.live.any()
    torch.testing.assert_close(x[0], MEMBERS[1].solution(), rtol=0, atol=1e-10)


def test_rows_moved_from_outside_wake_up():
    solver, f, x = BatchLBFGS(), Remembered(Batch(MEMBERS[1:3])), _starts()[1:3].clone()
    state = solver.init(f, x)
    for _ in range(300):  # long enough for the well-conditioned row to rest
        x, state = solver.step(f, x, state)
    assert not state.live.all()
    x.add_(1.0)
    before = f.value(x)
    x, state = solver.step(f, x, state)
    assert state.live.all() and bool((f.value(x) < before).all())


@pytest.mark.parametrize("shape", [(0, 5), (0, 0), (3, 0)])
def test_nothing_to_do(shape):
    x = torch.empty(shape, dtype=torch.float64)
    solver, f = BatchLBFGS(), Batch(())
    state = solver.init(f, x)
    moved, state = solver.step(f, x, state)
    assert moved is x and state.status is None


def test_one_vector_is_a_batch_of_one():
    f, start = Rosenbrock(N), Rosenbrock(N).start()
    vector, _, _ = _run(f, start, BatchLBFGS(), 12)
    row, _, _ = _run(Batch((f,)), start[None], BatchLBFGS(), 12)
    torch.testing.assert_close(vector, row[0], rtol=1e-12, atol=1e-12)


def test_padding_does_not_move():
    A = torch.block_diag(quadratic(6).A, torch.zeros(3, 3, dtype=torch.float64))
    f = Quadratic(A, torch.cat([quadratic(6).b, torch.zeros(3, dtype=torch.float64)]), Bounds.free(9))
    x = torch.ones(1, 9, dtype=torch.float64)
    x, _, _ = _run(Batch((f,)), x, BatchLBFGS(), 60)
    assert torch.equal(x[0, 6:], torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(x[0, :6], quadratic(6).solution(), rtol=0, atol=1e-8)


def test_direction_is_that_of_the_dense_bfgs_matrix_of_each_row():
    generator = torch.Generator().manual_seed(1)
    p, n, memory = 3, 7, 4
    g = torch.randn(p, n, generator=generator, dtype=torch.float64)
    pairs, H = RowPairs.empty(g, memory), [[], [], []]
    for turn in range(9):
        s = torch.randn(p, n, generator=generator, dtype=torch.float64)
        y = s * torch.rand(n, generator=generator, dtype=torch.float64).add(0.1) * 10.0**-turn
        if turn % 2:
            y[1] = -y[1]  # no curvature: row 1 refuses every other pair
        pairs.push(s, y)
        for k in range(p):
            if float(s[k] @ y[k]) > 0:
                H[k].append((s[k], y[k]))
    pairs.clear(torch.tensor([False, False, True]))
    assert pairs.count.tolist() == [4, 4, 0]
    identity = torch.eye(n, dtype=torch.float64)
    for k, kept in enumerate((H[0][-memory:], H[1][-memory:], [])):
        dense = float(kept[-1][0] @ kept[-1][1] / (kept[-1][1] @ kept[-1][1])) * identity if kept else identity
        for s, y in kept:  # Nocedal and Wright, equation 7.16
            rho = 1 / (s @ y)
            V = identity - rho * torch.outer(y, s)
            dense = V.T @ dense @ V + rho * torch.outer(s, s)
        torch.testing.assert_close(pairs.direction(g)[k], -dense @ g[k], rtol=1e-9, atol=1e-9)


def test_cubic_minimisers_are_those_of_single_searches():
    generator = torch.Generator().manual_seed(3)
    a, b = torch.randn(2, 3, 40, generator=generator, dtype=torch.float64).numpy()
    empty = torch.empty(0)
    with np.errstate(all="ignore"):
        got = cubic_minimisers(a, b)
    for k in range(40):
        expected = cubic_minimiser(Trial(*a[:, k], empty), Trial(*b[:, k], empty))
        assert got[k] == pytest.approx(expected, rel=1e-9, nan_ok=True)


def test_a_direction_that_does_not_descend_is_not_searched():
    start = np.array([[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [-1.0, 1.0, math.nan]])
    search = WolfeSearches(start, np.ones(3), np.ones(3, dtype=bool), 1e-4, 0.9, 1e-15)
    assert search.searching.tolist() == [True, False, False]
    assert search.t.tolist() == [1.0, 0.0, 0.0]


def test_float32_stays_float32():
    f = Batch(tuple(quadratic(N, seed=k, dtype=torch.float32) for k in range(2)))
    x, _, _ = _run(f, torch.zeros(2, N), BatchLBFGS(), 30)
    assert x.dtype == torch.float32
    for member, row in zip(f.members, x, strict=True):
        torch.testing.assert_close(row, member.solution(), rtol=1e-2, atol=1e-2)


def test_bad_input_is_one_clear_line():
    class Bounded(Batch):
        @property
        def bounds(self) -> Bounds:
            return Bounds(torch.zeros(1, N), torch.ones(1, N))

    with pytest.raises(ValueError, match="without bounds.*adagrad"):
        BatchLBFGS().init(Bounded(MEMBERS[:1]), _starts()[:1])
    for name, settings in (
        ("memory", {"memory": 0}),
        ("max_evaluations", {"max_evaluations": 0}),
        ("c1", {"c1": 0.95}),
    ):
        with pytest.raises(ValueError, match=f"`{name}`.*got"):
            BatchLBFGS(**settings)
