"""Times: what texts mean, when rank 0's wall clock says what, and what a run does then."""

import math
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from mldd.algebra import Bounds
from mldd.loop import Detection, Interval, Schedule, State, Status, Stop, TimeLimit, minimise, schedule, seconds_of
from mldd.loop.schedule import Evaluations
from mldd.solvers import Sgd
from tests.helpers import quadratic


@pytest.fixture
def clock(monkeypatch):
    """A clock that only moves when told: ``clock.now += 1``."""
    told = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(time, "perf_counter", lambda: told.now)
    monkeypatch.setattr(time, "time", lambda: told.now)
    return told


class Slow:
    """A quadratic whose gradients and values take time."""

    def __init__(self, clock, gradient=1.0, value=1.0):
        self.f, self.clock, self.gradient_takes, self.value_takes = quadratic(6), clock, gradient, value
        self.size, self.bounds, self.values = 6, Bounds.free(6), 0

    def gradient(self, x):
        self.clock.now += self.gradient_takes
        return self.f.gradient(x)

    def value(self, x):
        self.clock.now += self.value_takes
        self.values += 1
        return self.f.value(x)


X = torch.ones(6, dtype=torch.float64)
SGD = Sgd(0.001)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 5400),
        ("1:30", 90),
        ("2:00:05", 7205),
        ("1-0", 86400),
        ("1-12:30", 131400),
        ("0-0:0:7", 7),
    ],
)
def test_time_limits_are_read_as_sbatch_reads_them(text, seconds):
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0:00", "1h", "-5", "1:2:3:4", "1-", "auto", "5.5"])
def test_what_is_no_time_limit(text):
    with pytest.raises(ValueError, match="must be D-HH:MM:SS"):
        seconds_of(text)


def test_intervals():
    assert Interval.of("30s") == Interval(30.0, 0, 1.0) and Interval.of("1.5h").seconds == 5400
    assert Interval.of("100steps") == Interval(math.inf, 100, 1.0) and Interval.of("auto") == Interval(300.0, 0, 0.02)
    for text in ("5", "0s", "0steps", "1.5steps", "m", "5 m", "-5m"):
        with pytest.raises(ValueError, match="must be like 30s"):
            Interval.of(text)


def test_the_earlier_limit_holds_and_one_that_is_over_says_nothing(clock, monkeypatch):
    monkeypatch.delenv("SLURM_JOB_END_TIME", raising=False)
    assert TimeLimit.of(None, 990.0) is None
    assert TimeLimit.of("10", 990.0) == TimeLimit(1590.0, 30.0) and TimeLimit.of("0:40", 990.0).reserve == 10.0
    with pytest.raises(ValueError, match="--time-limit auto needs the end of a job of SLURM"):
        TimeLimit.of("auto", 990.0)
    monkeypatch.setenv("SLURM_JOB_END_TIME", "1500")
    assert TimeLimit.of("auto", 990.0) == TimeLimit.of(None, 990.0) == TimeLimit.of("10", 990.0) == TimeLimit(1500.0)
    assert TimeLimit.of("5", 990.0).end == 1290.0
    monkeypatch.setenv("SLURM_JOB_END_TIME", "900")
    assert TimeLimit.of(None, 990.0) is None


def test_values_take_a_tenth_of_the_time(clock):
    f = Slow(clock, gradient=1.0, value=5.0)
    result = minimise(f, X, SGD, stop=Stop(500), values="auto")
    history = result.history
    known = [k for k, value in enumerate(history.column("value")) if not math.isnan(value)]
    assert known[0] == 0 and known[-1] == 500 and 0.08 < 5.0 * len(known) / (clock.now - 1000.0) < 0.12
    assert history.column("seconds") == [1.0 * (k + 1) for k in range(501)], "the clock of the history stands still"
    assert result.status is Status.max_steps


def test_short_runs_have_all_values_and_intervals_hold(clock):
    def known(values, steps=10, takes=0.01):
        column = minimise(Slow(clock, 0.01, takes), X, SGD, stop=Stop(steps), values=values).history.column("value")
        return [k for k, value in enumerate(column) if not math.isnan(value)]

    assert known("auto") == known(True) == known(1) == list(range(11))
    assert known(4) == [0, 4, 8, 10] and known(None) == [0, 10] and known(0) == known(False) == []
    for wrong in (-1, "often", 2.5):
        with pytest.raises(ValueError, match="`values` must be a whole number"):
            Evaluations(wrong)


def test_seconds_of_a_limit_are_those_of_the_wall(clock):
    f = Slow(clock, gradient=1.0, value=9.0)
    result = minimise(f, X, SGD, stop=Stop(max_seconds=45.0), values=True)
    assert (result.status, result.record.step, result.record.cost.seconds) == (Status.max_seconds, 4, 5.0)
    more = minimise(f, result.x, SGD, stop=Stop(max_seconds=25.0), values=True, state=result.state, past=result.history)
    assert more.record.step == 6, "the seconds before count: 5, then 1 for the gradient, and 10 for each step"


def test_a_target_is_seen_where_there_is_a_value(clock):
    f = Slow(clock, 1.0, 100.0)
    values = minimise(f, X, SGD, stop=Stop(20), values=True).history.column("value")
    target = values[7]
    assert minimise(f, X, SGD, stop=Stop(20, target=target), values="auto").record.step == 7
    assert minimise(f, X, SGD, stop=Stop(20, target=target), values=4).record.step == 8


def test_a_run_that_ends_above_its_start_has_diverged_with_few_values(clock):
    f = Slow(clock, 1.0, 100.0)
    result = minimise(f, X, Sgd(0.05), stop=Stop(9), values="auto")
    assert result.status is Status.diverged and f.values == 2 and not math.isnan(result.record.value)


def kept(clock, schedule, takes=1.0, steps=40):
    """Steps after which a run of slow gradients wrote a checkpoint, each of which takes `takes` seconds."""
    found = []

    def keep(x, state, history):
        assert history.records[-1].step == state.step
        clock.now += takes
        found.append(state.step)

    schedule.keep = keep
    result = minimise(Slow(clock), X, SGD, stop=Stop(steps), values=False, schedule=schedule)
    return found, result


@pytest.mark.parametrize(
    ("interval", "takes", "steps"),
    [
        (Interval(10.0, 0, 1.0), 1.0, [0, 9, 18, 27, 36, 40]),  # nine steps and a checkpoint are ten seconds
        (Interval(math.inf, 15, 1.0), 1.0, [0, 15, 30, 40]),
        (Interval(10.0, 0, 0.05), 1.0, [0, 19, 38, 40]),  # a second of writing in twenty
        (Interval(math.inf, 0, 1.0), 1.0, [0, 40]),
    ],
)
def test_checkpoints_by_wall_time_and_by_steps(clock, interval, takes, steps):
    assert kept(clock, Schedule(every=interval), takes)[0] == steps


def test_the_last_checkpoint_is_as_late_as_it_can_be(clock):
    """A step takes 1 s and a checkpoint 5: with the end at 100 s and 10 s in reserve it begins at 85 s."""
    limit = TimeLimit(clock.now + 100.0, reserve=10.0)
    found, result = kept(clock, Schedule(every=Interval(math.inf), limit=limit), takes=5.0, steps=1000)
    assert result.status is Status.time_limit and found == [0, result.record.step]
    assert clock.now - 1000.0 <= 90.0 and clock.now - 1000.0 + 1.0 + 5.0 > 90.0


def test_a_failed_run_writes_no_checkpoint_at_its_end(clock):
    found = []
    schedule = Schedule(keep=lambda x, state, history: found.append(state.step), every=Interval(math.inf))
    result = minimise(quadratic(6), X, Sgd(1e200), stop=Stop(9), values=True, schedule=schedule)
    assert result.status is Status.diverged and found == [0]


@dataclass(frozen=True)
class Endless:
    """Gradient descent with momentum, one of whose steps would evaluate gradients without an end."""

    endless: int
    before: Callable[[], None] = lambda: None

    def init(self, objective, x):
        return Pace(momentum=torch.zeros_like(x))

    def step(self, objective, x, state):
        state.momentum.mul_(0.9).add_(objective.gradient(x))
        x.sub_(0.01 * state.momentum)
        if state.step == self.endless:
            self.before()
            while True:
                objective.gradient(x.add_(1.0))
        return x, state


@dataclass
class Pace(State):
    """Its velocity."""

    momentum: torch.Tensor = None


@pytest.mark.parametrize("share", [0.01, 0.0], ids=["with a copy", "without a copy"])
def test_a_step_that_goes_on_at_the_end_of_the_time_is_given_up(share, monkeypatch):
    monkeypatch.setattr(schedule, "_GRACE", 0.05)
    f, written = quadratic(6), []
    kept = Schedule(lambda x, state, history: written.append(state.step), every=Interval(steps=1))
    stop = Stop(100, max_seconds=0.2)
    late = minimise(f, X, Endless(5), stop=stop, detection=Detection(share=share), schedule=kept)
    assert late.status is Status.max_seconds
    done = late.state.step
    same = minimise(f, X, Endless(-1), stop=Stop(done))
    torch.testing.assert_close(late.x, same.x, rtol=0, atol=0)
    assert [record.step for record in late.history.records] == list(range(done + 1))
    assert any("given up" in note for note in late.state.notes)
    if share:  # the state is that of the iterate: the run goes on from it as if nothing had been
        assert written[-1] == done
        torch.testing.assert_close(late.state.momentum, same.state.momentum, rtol=0, atol=0)
    else:
        assert done == 5 and written.count(5) == 1, "no checkpoint of a state in the middle of a step"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["TERM", "INT"])
def test_a_step_is_given_up_when_it_goes_on_after_a_signal(number, monkeypatch):
    monkeypatch.setattr(schedule, "_HEED", 0.05)
    ended = minimise(quadratic(6), X, Endless(3, lambda: signal.raise_signal(number)), stop=Stop(100))
    assert ended.status is (Status.terminated if number == signal.SIGTERM else Status.interrupted)
    assert ended.state.step <= 3
    torch.testing.assert_close(ended.x, minimise(quadratic(6), X, Endless(-1), stop=Stop(ended.state.step)).x)


class Late:
    """A quadratic whose evaluations take long from the third one on."""

    def __init__(self):
        self.f, self.made = quadratic(6), 0
        self.size, self.bounds = 6, Bounds.free(6)

    def _wait(self):
        self.made += 1
        time.sleep(0.2 * (self.made > 2))

    def gradient(self, x):
        self._wait()
        return self.f.gradient(x)

    def value(self, x):
        self._wait()
        return self.f.value(x)


def test_a_step_inside_of_petsc_is_given_up(monkeypatch):
    pytest.importorskip("petsc4py")
    from mldd.solvers.petsc import Tao

    monkeypatch.setattr(schedule, "_GRACE", 0.05)
    ended = minimise(Late(), X, Tao(type="lmvm"), stop=Stop(50, max_seconds=0.1), values=False)
    assert ended.status is Status.max_seconds and ended.state.step == 0
    torch.testing.assert_close(ended.x, X, rtol=0, atol=0)
