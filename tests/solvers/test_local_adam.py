"""Local Adam, schedules, control variates, growing rounds and delayed averages against loops written by hand."""

import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from mldd.checkpoints import load, save
from mldd.loop import Status, Stop, minimise
from mldd.problems.images import Digits
from mldd.solvers import LBFGS, AdaGrad, Adam, LocalAdam, LocalSgd, Sgd
from mldd.solvers.parts import LearningRate, Pace
from tests.helpers import quadratic


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return Digits(hidden="12", samples=180, subdomains="data", batch=41)


def run(problem, solver, steps):
    return minimise(problem.objective(), problem.initial(0), solver, stop=Stop(steps), values=0)


class Peer:
    """Copies of the network that torch.optim trains, a part of every mini-batch each."""

    def __init__(self, problem, parts, optimizer):
        self.problem, self.parts = problem, parts
        self.copies = [nn.Parameter(problem.initial(0)) for _ in range(parts)]
        self.optimizers = [optimizer([y]) for y in self.copies]

    def loss(self, t, k, y):
        rows = torch.tensor_split(
            self.problem.objective(t).drawn.rows, [41 * i // self.parts for i in range(1, self.parts)]
        )
        images, labels = (of_all[rows[k]] for of_all in self.problem._permuted)
        net = self.problem.net
        return nn.functional.cross_entropy(net.outputs(net.layout.views(y), images), labels), len(rows[k]) / 41

    def step(self, t, lr, shifts=None):
        """Do a local step of all; return their gradients before shifts."""
        gradients = []
        for k, (y, optimizer) in enumerate(zip(self.copies, self.optimizers, strict=True)):
            optimizer.zero_grad()
            self.loss(t, k, y)[0].backward()
            gradients.append(y.grad.clone())
            if shifts is not None:
                y.grad.add_(shifts[k])
            optimizer.param_groups[0]["lr"] = lr
            optimizer.step()
        return gradients

    @property
    def shares(self):
        return [self.loss(0, k, y)[1] for k, y in enumerate(self.copies)]

    def mean(self, tensors):
        return sum(s * t for s, t in zip(self.shares, tensors, strict=True))

    def average(self, *moments):
        """Average the copies and moments of their optimizers; return the iterate."""
        mean = self.mean([y.data for y in self.copies])
        for y in self.copies:
            y.data.copy_(mean)
        for name in moments:
            of_parts = [o.state[y][name] for o, y in zip(self.optimizers, self.copies, strict=True)]
            together = self.mean(of_parts)
            for one in of_parts:
                one.copy_(together)
        return mean


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.02)


def cosine(t, length, warmup=0):
    return min(1.0, (t + 1) / warmup if warmup else 1.0) * 0.5 * (1 + math.cos(math.pi * t / length))


@pytest.mark.parametrize("H", [1, 4])
def test_local_adam_is_a_loop_written_by_hand(digits, H):
    rounds, parts = 3, 3
    peer = Peer(digits, parts, adam)
    for t in range(rounds * H):
        peer.step(t, 0.02 * cosine(t, rounds * H, H))
        if (t + 1) % H == 0:
            expected = peer.average("exp_avg", "exp_avg_sq")
    rates = LearningRate("cosine", warmup=1, length=rounds)
    found = run(digits, LocalAdam(digits.decomposition(parts), Adam(0.02), local_steps=H, rates=rates), 99)
    assert found.status is Status.max_steps and found.record.step == rounds  # the schedule is over
    assert found.record.cost.synchronisations == rounds
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("make", [lambda rates: Adam(0.02, rates=rates), lambda rates: Sgd(0.1, 0.9, rates=rates)])
def test_schedules_are_those_of_torch(digits, make):
    full = replace(digits, batch=0)
    y = nn.Parameter(full.initial(0))
    solver = make(LearningRate("cosine", length=6))
    peer = adam([y]) if isinstance(solver, Adam) else torch.optim.SGD([y], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(peer, 6)
    for _ in range(6):
        y.grad = full.objective().gradient(y.data)
        peer.step()
        schedule.step()
    found = run(full, solver, 50)
    assert (found.record.step, found.status) == (6, Status.max_steps)
    torch.testing.assert_close(found.x, y.data, rtol=0, atol=1e-11)


def test_factors():
    linear = LearningRate("linear", warmup=2, length=8)
    assert [linear.factor(k) for k in (0, 1, 4, 8)] == [0.5, 0.875, 0.5, 0.0]
    assert LearningRate(warmup=4).factor(1) == 0.5 and LearningRate(warmup=4).factor(100) == 1.0
    assert linear.factor(7, times=2) == 1 - 7 / 16


def test_control_variates_add_up_to_zero_and_are_those_of_a_loop(digits):
    parts, H = 3, 4
    peer, shifts = Peer(digits, parts, lambda p: torch.optim.SGD(p, lr=0.1)), None
    for k in range(3):
        sums = [torch.zeros_like(digits.initial(0)) for _ in range(parts)]
        for t in range(k * H, (k + 1) * H):
            for total, g in zip(sums, peer.step(t, 0.1, shifts), strict=True):
                total += g / H
        expected = peer.average()
        shifts = [peer.mean(sums) - one for one in sums]
    found = run(digits, LocalSgd(digits.decomposition(parts), Sgd(0.1), local_steps=H, control=True), 3)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-12)
    state = found.state.rounds
    torch.testing.assert_close(peer.mean(state.variate - state.variates), torch.zeros_like(found.x), rtol=0, atol=1e-14)
    assert float((state.variate - state.variates).abs().max()) > 1e-3
    assert found.record.cost.synchronisations == 3


@pytest.mark.parametrize("delay", [1, 3])
def test_a_delayed_average_is_that_of_a_loop(digits, delay):
    """With momentum 0.9: a shift of what was sent has become 0.9^delay of it after so many steps."""
    parts, H, rounds = 2, 4, 3
    peer = Peer(digits, parts, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9))
    for t in range(rounds * H + delay):
        peer.step(t, 0.1)
        if (t + 1) % H == 0:
            sent = [y.data.clone() for y in peer.copies]
            moments = [o.state[y]["momentum_buffer"] for o, y in zip(peer.optimizers, peer.copies, strict=True)]
            before = [m.clone() for m in moments]
            expected = peer.mean(sent)
        if t >= H and (t + 1) % H == delay:
            for y, was, m, m_was in zip(peer.copies, sent, moments, before, strict=True):
                y.data += expected - was
                m += 0.9**delay * (peer.mean(before) - m_was)
    solver = LocalSgd(digits.decomposition(parts), Sgd(0.1, 0.9), local_steps=H, memory="average", delay=delay)
    found = run(digits, solver, rounds)
    torch.testing.assert_close(found.x, expected, rtol=0, atol=1e-12)
    places = torch.stack([y.data for y in peer.copies])
    torch.testing.assert_close(found.state.rounds.places, places, rtol=0, atol=1e-12)


def test_rounds_grow_as_the_square_of_the_inverse_step_size(digits):
    rates = LearningRate("cosine", warmup=2, length=40)
    rounds = Pace(5, rates, grows=True)
    done, sizes = 0, []
    while done < 200:
        sizes.append(rounds.steps_of(done))
        assert done < 10 or sizes[-1] in (200 - done, int(5 / rates.factor(done, 5) ** 2))
        done += sizes[-1]
    assert sizes[:2] == [5, 5] and sum(sizes) == 200 and sizes == sorted(sizes) and len(sizes) < 30
    plain = LocalAdam(digits.decomposition(2), Adam(0.01), local_steps=2, rates=LearningRate("cosine", length=8))
    grown = run(digits, replace(plain, growth=True), 8)
    assert grown.record.step < 8 and grown.state.rounds.done == 16
    assert grown.record.cost.work_units == pytest.approx(run(digits, plain, 8).record.cost.work_units)


@pytest.mark.parametrize("options", [{}, {"delay": 2}, {"control": True, "memory": "keep"}])
def test_resumed_is_uninterrupted(digits, options, tmp_path):
    rates = LearningRate("cosine", length=6)
    solver = LocalAdam(digits.decomposition(2), Adam(0.01), local_steps=3, rates=rates, **options)
    f, x = digits.objective(), digits.initial(0)
    half, full = (minimise(f, x, solver, stop=Stop(steps)) for steps in (3, 6))
    save(tmp_path / "c.pt", x=half.x, state=half.state, history=half.history, meta={})
    saved = load(tmp_path / "c.pt")
    state = saved.state(solver.init(f, x))
    assert torch.equal(minimise(f, saved.x, solver, stop=Stop(6), state=state, past=saved.history).x, full.x)


@pytest.mark.parametrize("local", [AdaGrad(rate=0.1), Adam(0.01), Sgd(0.05, 0.9)])
def test_any_first_order_method_trains(digits, local):
    f = replace(digits, batch=0).objective()
    found = run(digits, LocalAdam(digits.decomposition(4), local, local_steps=5), 12)
    assert float(f.value(found.x)) < 0.7 * float(f.value(digits.initial(0)))


def test_refuses(digits):
    d = digits.decomposition(2)
    f, x = digits.objective(0), digits.initial(0)
    cosine = LearningRate("cosine", length=9)
    for make, words in (
        (lambda: LocalAdam(d, LBFGS()), "memory=average needs a local solver that moves .* got LBFGS"),
        (lambda: LocalAdam(d, Adam(rates=cosine)), "local solver must have a constant step size, got schedule=cosine"),
        (
            lambda: Adam(rates=LearningRate("cosine")).init(f, x),
            "needs the `length` of the training in steps, got none",
        ),
        (lambda: LocalAdam(d, rates=LearningRate("linear")).init(f, x), "needs the `length`"),
        (lambda: LocalAdam(d, LBFGS(), memory="keep", rates=cosine), "needs a local solver with `lr` or `rate`"),
        (lambda: LocalAdam(d, LBFGS(), memory="keep", control=True), "control needs a local solver"),
        (lambda: LocalAdam(d, growth=True), "`growth` needs a schedule that decays"),
        (lambda: LocalAdam(d, local_steps=4, delay=4), r"`delay` must be in 0..3"),
        (lambda: LocalAdam(d, delay=1, control=True), "`delay` needs a memory"),
        (lambda: LearningRate("exponential"), "`schedule` must be"),
        (lambda: LearningRate("cosine", warmup=9, length=9), "`warmup` must be below the `length` 9"),
    ):
        with pytest.raises(ValueError, match=words):
            make()


def test_bounds_hold_with_a_delay():
    from tests.solvers.test_local_sgd import shared

    f = quadratic(6, bounded=True)
    solver = LocalAdam(shared(f, [0.5, 1.5]), Adam(0.3), local_steps=4, delay=2)
    found = minimise(f, f.bounds.project(torch.full((6,), 9.0, dtype=torch.float64)), solver, stop=Stop(15))
    assert f.bounds.violation(found.x) == 0.0
    assert float(f.bounds.project(found.state.rounds.places).sub_(found.state.rounds.places).abs().max()) == 0.0
