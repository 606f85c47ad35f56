"""LocalSGD and DiLoCo against plain SGD, and against copies of a network that torch.optim trains part by part."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn

from mldd.algebra import Bounds, SharedDecomposition, contiguous, index_decomposition, sampled
from mldd.checkpoints import load, save
from mldd.loop import Status, Stop, minimise
from mldd.problems.images import Digits
from mldd.solvers import LBFGS, Adam, DiLoCo, LocalSgd, Sgd
from tests.helpers import Quadratic, WithoutValue, quadratic


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return Digits(hidden="12", samples=180, subdomains="data")


def run(problem, solver, steps):
    return minimise(problem.objective(), problem.initial(0), solver, stop=Stop(steps)).x


def reference(problem, parts, steps, local_steps, inner, outer=None, memory="reset", average=()):
    """Train one copy of the network per part with torch.optim, and average them; return the parameters."""
    layout, x = problem.net.layout, problem.initial(0)
    images, labels = (torch.tensor_split(t[: problem.samples], parts) for t in problem._permuted)
    shared = nn.Parameter(x)
    outer = None if outer is None else outer([shared])
    copies = [nn.Parameter(x.clone()) for _ in range(parts)]
    optimizers = [inner([y]) for y in copies]
    for _ in range(steps):
        for k, y in enumerate(copies):
            y.data.copy_(shared.data)
            if memory == "reset":
                optimizers[k] = inner([y])
            for _ in range(local_steps):
                optimizers[k].zero_grad()
                nn.functional.cross_entropy(problem.net.outputs(layout.views(y), images[k]), labels[k]).backward()
                optimizers[k].step()
        mean = torch.stack([y.data for y in copies]).mean(0)
        if memory == "average":
            for name in average:
                of_parts = [o.state[y][name] for o, y in zip(optimizers, copies, strict=True)]
                together = torch.stack(of_parts).mean(0)
                for one in of_parts:
                    one.copy_(together)
        if outer is None:
            shared.data.copy_(mean)
        else:
            shared.grad = shared.data - mean
            outer.step()
    return shared.data


def test_one_step_of_equal_parts_is_a_step_of_sgd(digits):
    expected = run(digits, Sgd(0.3), 4)
    for parts in (1, 2, 5):
        x = run(digits, LocalSgd(digits.decomposition(parts), local=Sgd(0.3), local_steps=1), 4)
        torch.testing.assert_close(x, expected, rtol=0, atol=1e-14)
    # Momentum that is averaged is the momentum of the mean gradient.
    averaged = LocalSgd(digits.decomposition(2), local=Sgd(0.1, 0.9), local_steps=1, memory="average")
    torch.testing.assert_close(run(digits, averaged, 6), run(digits, Sgd(0.1, 0.9), 6), rtol=0, atol=1e-13)


def test_one_part_is_the_plain_method(digits):
    solver = LocalSgd(digits.decomposition(1), local=Sgd(0.1, 0.9), local_steps=3, memory="keep")
    torch.testing.assert_close(run(digits, solver, 4), run(digits, Sgd(0.1, 0.9), 12), rtol=0, atol=1e-14)


@pytest.mark.parametrize("memory", ["reset", "keep", "average"])
@pytest.mark.parametrize("parts", [2, 3])
def test_local_sgd_against_copies(digits, memory, parts):
    solver = LocalSgd(digits.decomposition(parts), local=Sgd(0.2, 0.9), local_steps=4, memory=memory)
    inner = lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9)  # noqa: E731
    expected = reference(digits, parts, 3, 4, inner, memory=memory, average=["momentum_buffer"])
    torch.testing.assert_close(run(digits, solver, 3), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("memory", ["reset", "keep", "average"])
def test_diloco_against_copies(digits, memory):
    solver = DiLoCo(digits.decomposition(2), local=Adam(0.01), local_steps=5, memory=memory)
    inner = lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.0)  # noqa: E731
    outer = lambda p: torch.optim.SGD(p, lr=0.7, momentum=0.9, nesterov=True)  # noqa: E731
    expected = reference(digits, 2, 4, 5, inner, outer, memory, average=["exp_avg", "exp_avg_sq"])
    torch.testing.assert_close(run(digits, solver, 4), expected, rtol=0, atol=1e-10)


def test_diloco_without_outer_momentum_is_local_sgd(digits):
    d = digits.decomposition(3)
    plain = LocalSgd(d, local=Adam(0.01), local_steps=3, memory="keep")
    assert torch.equal(
        run(digits, DiLoCo(d, Adam(0.01), outer_lr=1.0, outer_momentum=0.0, local_steps=3), 4), run(digits, plain, 4)
    )


def test_any_local_solver(digits):
    f, x = digits.objective(), digits.initial(0)
    solver = LocalSgd(digits.decomposition(2), local=LBFGS(), local_steps=3)
    assert float(f.value(run(digits, solver, 3))) < 0.5 * float(f.value(x))


@pytest.mark.parametrize("sampling", ["nested", "independent"])
def test_every_local_step_has_a_mini_batch_of_its_own(digits, sampling):
    problem = replace(digits, batch=41, sampling=sampling)
    d, H = problem.decomposition(2), 3
    x = problem.initial(0)
    expected = x.clone()
    for step in range(2):
        y = d.gather(expected)
        for t in range(step * H, (step + 1) * H):
            local = d.models(sampled(problem.objective(), t), expected, None)
            y = y - 0.2 * (sampled(local, t) if sampling == "independent" else local).gradient(y)
        weights = torch.tensor([20.0, 21.0] if sampling == "nested" else [20.5, 20.5]).double() / 41
        expected = weights @ y
    x = run(problem, LocalSgd(d, local=Sgd(0.2), local_steps=H), 2)
    torch.testing.assert_close(x, expected, rtol=0, atol=1e-13)


def test_one_local_step_is_a_step_of_mini_batch_sgd_also_with_unequal_parts(digits):
    problem = replace(digits, batch=41)
    expected = run(problem, Sgd(0.2), 4)
    for memory in ("reset", "average"):
        solver = LocalSgd(problem.decomposition(3), local=Sgd(0.2), local_steps=1, memory=memory)
        torch.testing.assert_close(run(problem, solver, 4), expected, rtol=0, atol=1e-13)


def test_cost(digits):
    result = minimise(
        WithoutValue(digits.objective()),
        digits.initial(0),
        LocalSgd(digits.decomposition(3), local_steps=4),
        stop=Stop(5),
        values=False,
    )
    record = result.record
    # 4 gradients of every third of the data per step; the loop's gradients of the whole are for the user only
    assert record.cost.work_units == pytest.approx(5 * 4)
    assert record.cost.synchronisations == 5
    assert (record.accepted, record.rejected) == (15, 0)


@dataclass(frozen=True)
class Tilted:
    """Two quadratics ``(x - c_i)^T A_i (x - c_i) / 2`` in a box, one per part."""

    f: object
    scale: Tensor

    size = 6

    @property
    def bounds(self) -> Bounds:
        return Bounds(self.f.bounds.lower.expand(len(self.scale), -1), self.f.bounds.upper.expand(len(self.scale), -1))

    def gradient(self, y: Tensor) -> Tensor:
        return self.scale * torch.stack([self.f.gradient(row) for row in y])

    def value(self, y: Tensor) -> Tensor:
        return self.scale[:, 0] * torch.stack([self.f.value(row) for row in y])


@dataclass(frozen=True)
class Parts:
    """``a_i / 2 (x - c_i)^2``."""

    a: Tensor
    c: Tensor
    size = 1

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(len(self.a), 1)

    def gradient(self, y: Tensor) -> Tensor:
        return self.a * (y - self.c)


def shared(f, scale):
    scale = torch.tensor(scale, dtype=torch.float64)[:, None]
    owner = torch.arange(f.size) % 2
    return SharedDecomposition(
        f.size, 2, lambda d, f, x, g: Tilted(f, scale[d.local.start : d.local.stop]), owner, range(2)
    )


def test_iterates_stay_in_the_box():
    f = quadratic(6, bounded=True)
    for solver in (LocalSgd(shared(f, [0.5, 1.5]), local=Sgd(0.3)), DiLoCo(shared(f, [0.5, 1.5]), local=Adam(0.3))):
        result = minimise(f, f.bounds.project(torch.full((6,), 9.0, dtype=torch.float64)), solver, stop=Stop(15))
        assert f.bounds.violation(result.x) == 0.0


def test_a_part_that_diverges_is_counted_and_all_of_them_end_the_run():
    f = quadratic(6)
    x = torch.ones(6, dtype=torch.float64)
    one = minimise(f, x, LocalSgd(shared(f, [1e-2, torch.inf]), local=Sgd(0.1), local_steps=2), stop=Stop(3))
    assert (one.record.accepted, one.record.rejected) == (3, 3)
    assert one.state.notes == {"local solves that were not finite": 3}
    assert bool(torch.isfinite(one.x).all()) and one.status is Status.max_steps
    averaged = LocalSgd(shared(f, [1e-2, torch.inf]), local=Sgd(0.1, 0.9), local_steps=2, memory="average")
    alone = minimise(
        f, x, LocalSgd(shared(f, [1e-2, 1e-2]), local=Sgd(0.1, 0.9), local_steps=2, memory="average"), stop=Stop(1)
    )
    two = minimise(f, x, averaged, stop=Stop(1))
    torch.testing.assert_close(two.x - x, (alone.x - x) / 2)  # half of the parts have stayed
    for one in two.state.rounds.local:  # memory is that of the other part
        torch.testing.assert_close(one.momentum[0], alone.state.rounds.local[0].momentum[0])
    both = minimise(f, x, DiLoCo(shared(f, [torch.inf, torch.inf])), stop=Stop(9))
    assert both.status is Status.diverged and both.record.step == 1


def test_fixed_points():
    f = quadratic(6)
    solution = f.solution()
    for solver in (LocalSgd(shared(f, [0.5, 1.5]), local=Sgd(0.005)), DiLoCo(shared(f, [0.5, 1.5]), local=Sgd(0.005))):
        result = minimise(f, solution, solver, stop=Stop(5))  # a critical point of every part is one of the method
        torch.testing.assert_close(result.x, solution, rtol=0, atol=1e-13)


def test_parts_that_differ_have_a_fixed_point_of_their_own():
    """With ``y_i - c_i = (1 - lr a_i)^H (x - c_i)`` it is the mean of the c_i with weights ``1 - (1 - lr a_i)^H``."""
    a, c, lr, H = torch.tensor([[1.0], [2.0]]).double(), torch.tensor([[0.0], [1.0]]).double(), 0.1, 5
    d = SharedDecomposition(
        1,
        2,
        lambda d, f, x, g: Parts(a[d.local.start : d.local.stop], c[d.local.start : d.local.stop]),
        torch.tensor([0]),
        range(2),
    )
    f = Quadratic(a.mean(0)[None], (a * c).mean(0), Bounds.free(1))
    for steps, weight in ((1, a), (H, 1 - (1 - lr * a) ** H)):
        x = minimise(f, torch.ones(1).double(), LocalSgd(d, local=Sgd(lr), local_steps=steps), stop=Stop(400)).x
        torch.testing.assert_close(x, (weight * c).sum(0) / weight.sum(0))


@pytest.mark.parametrize("memory", ["reset", "keep"])
def test_resumed_is_uninterrupted(digits, memory, tmp_path):
    f, x, solver = digits.objective(), digits.initial(0), DiLoCo(digits.decomposition(2), memory=memory)
    half, full = (minimise(f, x, solver, stop=Stop(steps)) for steps in (3, 6))
    save(tmp_path / "c.pt", x=half.x, state=half.state, history=half.history, meta={})
    saved = load(tmp_path / "c.pt")
    state = saved.state(solver.init(f, x))
    assert torch.equal(minimise(f, saved.x, solver, stop=Stop(6), state=state, past=saved.history).x, full.x)


def test_refuses(digits):
    d = digits.decomposition(2)
    for make, words in (
        (lambda: LocalSgd(d, local_steps=0), "`local_steps` must be >= 1, got 0"),
        (lambda: LocalSgd(d, local=Sgd(0.0)), "`lr` must be > 0"),
        (lambda: LocalSgd(d, memory="lost"), "`memory` must be one of reset, keep, average"),
        (lambda: DiLoCo(d, outer_lr=0.0), "`outer_lr` must be > 0, got 0.0"),
        (lambda: DiLoCo(d, outer_momentum=1.0), r"`outer_momentum` must be in \[0, 1\), got 1.0"),
        (lambda: LocalSgd(index_decomposition(quadratic(6), contiguous([3, 3], 2))), "subdomains=data"),
    ):
        with pytest.raises(ValueError, match=words):
            make()
