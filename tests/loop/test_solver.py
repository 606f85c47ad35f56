"""The loop: stopping tests, statuses, the start, counting, interruption, and going on from a state."""

import math
import signal
import threading
from dataclasses import dataclass, field

import pytest
import torch

from mldd.algebra import Bounds, Price, count
from mldd.loop import Cost, Detection, History, Record, State, Status, Stop, minimise
from mldd.loop.outer_loop import check_start
from mldd.ranks import Communicator

OFF = Detection(share=0.0)  # ranks that are made up do not agree


@dataclass(frozen=True)
class Bowl:
    """``f(x) = sum of (x - target)^2 / 2``; what `spoil` says happens from the `at`-th gradient on."""

    target: torch.Tensor
    bounds: Bounds = None
    spoil: str = ""
    at: int = 3
    price: Price = Price()
    calls: dict = field(default_factory=lambda: {"gradient": 0, "value": 0})

    def __post_init__(self):
        if self.bounds is None:
            object.__setattr__(self, "bounds", Bounds.free(len(self.target), dtype=self.target.dtype))

    @property
    def size(self):
        return len(self.target)

    def gradient(self, x):
        self.calls["gradient"] += 1
        self.price.of_gradient()
        g = x - self.target
        if self.spoil == "gradient" and self.calls["gradient"] > self.at:
            g[0] = math.nan
        return g

    def value(self, x):
        self.calls["value"] += 1
        self.price.of_value()
        if self.spoil == "value" and self.calls["gradient"] > self.at:
            return torch.tensor(math.nan)
        if self.spoil == "infinite value" and self.calls["gradient"] > self.at:
            return torch.tensor(math.inf)
        return ((x - self.target) ** 2).sum() / 2


@dataclass
class MomentumState(State):
    momentum: torch.Tensor = field(default_factory=lambda: torch.empty(0))


@dataclass(frozen=True)
class Momentum:
    rate: float = 0.5
    beta: float = 0.0
    stalls_at: int = -1

    def init(self, objective, x):
        return MomentumState(momentum=torch.zeros_like(x))

    def step(self, objective, x, state):
        state.momentum.mul_(self.beta).add_(objective.gradient(x))
        x = objective.bounds.project(x - self.rate * state.momentum)
        if state.step + 1 == self.stalls_at:
            state.status = Status.stalled
        return x, state


def bowl(**options):
    return Bowl(torch.tensor([1.0, 2.0, -4.0], dtype=torch.float64), **options)


ZERO = torch.zeros(3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("stop", "status", "steps"),
    [
        (Stop(max_steps=4), Status.max_steps, 4),
        (Stop(max_steps=0), Status.max_steps, 0),
        (Stop(atol=0.6), Status.converged_atol, 3),  # the measure is 4 / 2^k
        (Stop(rtol=0.3), Status.converged_rtol, 2),
        (Stop(atol=10.0), Status.converged_atol, 0),
        (Stop(target=0.2), Status.target_reached, 3),  # the value is 10.5 / 4^k
        (Stop(max_seconds=0.0), Status.max_seconds, 0),
        (Stop(atol=1.2, norm=2.0), Status.converged_atol, 2),  # sqrt(21) / 2^k
    ],
)
def test_stopping_tests(stop, status, steps):
    result = minimise(bowl(), ZERO, Momentum(), stop=stop)
    assert (result.status, result.record.step) == (status, steps)
    assert [record.step for record in result.history.records] == list(range(steps + 1))
    assert not result.status.failed and result.status.advice


def test_measure_of_zero_is_converged_without_any_tolerance():
    assert minimise(bowl(), bowl().target, Momentum()).status is Status.converged_atol


@pytest.mark.parametrize("name", ["max_steps", "atol", "rtol", "max_seconds"])
@pytest.mark.parametrize("value", [-1, math.nan])
def test_stop_refuses_what_cannot_be_meant(name, value):
    with pytest.raises(ValueError, match=f"`{name}` must be >= 0, got"):
        Stop(**{name: value})


def test_a_solver_that_cannot_go_on_says_so():
    result = minimise(bowl(), ZERO, Momentum(stalls_at=2), stop=Stop(max_steps=9))
    assert (result.status, result.record.step) == (Status.stalled, 2)


def test_infeasible_start_is_projected_once():
    lower, upper = -torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.float64)
    start = torch.tensor([5.0, 0.0, -5.0], dtype=torch.float64)
    seen = []

    class Watch(Momentum):
        def step(self, objective, x, state):
            seen.append(x.clone())
            return super().step(objective, x, state)

    result = minimise(bowl(bounds=Bounds(lower, upper)), start, Watch(), stop=Stop(max_steps=5))
    assert result.projected
    assert torch.equal(seen[0], torch.tensor([1.0, 0.0, -1.0], dtype=torch.float64))
    assert start[0] == 5.0, "the caller's tensor is not written to"
    again = minimise(bowl(bounds=Bounds(lower, upper)), result.x, Momentum(), stop=Stop(max_steps=1))
    assert not again.projected


@pytest.mark.parametrize("spoil", ["gradient", "value", "infinite value"])
def test_what_is_not_finite_ends_the_run_with_the_last_good_point(spoil):
    f = bowl(spoil=spoil)
    result = minimise(f, ZERO, Momentum(), values=True, stop=Stop(max_steps=9))
    assert (result.status, result.record.step) == (Status.diverged, 3)
    assert result.status.failed
    assert torch.equal(result.x, f.target * (1 - 0.5**2)), "the point of step 2"


def test_gradient_that_is_not_finite_at_the_start_leaves_the_start():
    result = minimise(bowl(spoil="gradient", at=0), ZERO + 7, Momentum())
    assert result.status is Status.diverged
    assert torch.equal(result.x, ZERO + 7)


def test_a_value_that_is_not_finite_does_not_matter_where_none_is_asked_for():
    f = bowl(spoil="value")
    assert minimise(f, ZERO, Momentum(), stop=Stop(max_steps=9), values=False).status is Status.max_steps
    assert f.calls["value"] == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(4, dtype=torch.float64), r"`x` must have shape \(3,\), got \(4,\)"),
        (torch.zeros(3, 1, dtype=torch.float64), r"`x` must have shape \(3,\), got \(3, 1\)"),
        (torch.zeros(3), "`x` must be torch.float64 on cpu as the objective is, got torch.float32"),
        (torch.zeros(3, dtype=torch.float64, device="meta"), "got torch.float64 on meta"),
        (torch.tensor([0.0, math.nan, math.inf], dtype=torch.float64), "`x` must be finite, got 2 components"),
    ],
)
def test_start_that_does_not_fit(x, message):
    with pytest.raises(ValueError, match=message):
        minimise(bowl(), x, Momentum())


def test_lower_bound_above_upper():
    bounds = Bounds(torch.tensor([0.0, 3.0, 0.0]).double(), torch.tensor([1.0, 2.0, 1.0]).double())
    with pytest.raises(ValueError, match=r"lower <= upper in every component, got 3.0 > 2.0 at component 1 "):
        check_start(bowl(bounds=bounds), ZERO)


def test_the_gradient_of_the_stopping_test_is_the_one_of_the_step():
    f = bowl()
    result = minimise(f, ZERO, Momentum(), stop=Stop(max_steps=5), values=True)
    assert f.calls == {"gradient": 6, "value": 6}
    assert [r.cost.gradient_evaluations for r in result.history.records] == [1, 2, 3, 4, 5, 6]
    assert result.record.cost.work_units == 6.0, "values for the user's eyes are not counted"
    assert result.record.cost.synchronisations == 0


def test_a_point_in_recycled_memory_is_another_point():
    class Search(Momentum):
        """Tries points that are freed at once, so that the next one is likely to get the same address."""

        def step(self, objective, x, state):
            for k in range(20):
                point = x + float(k)
                assert torch.equal(objective.gradient(point), point - bowl().target)
                del point
            return x, state

    minimise(bowl(), ZERO, Search(), stop=Stop(max_steps=1))


@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_going_on_from_a_state_is_the_uninterrupted_run(beta):
    solver, f = Momentum(rate=0.1, beta=beta), bowl()
    whole = minimise(f, ZERO, solver, stop=Stop(max_steps=12), values=True)
    half = minimise(f, ZERO, solver, stop=Stop(max_steps=5), values=True)
    rest = minimise(f, half.x, solver, state=half.state, past=half.history, stop=Stop(max_steps=12), values=True)
    assert torch.equal(rest.x, whole.x)
    for name in ("step", "measure", "value"):
        assert rest.history.column(name) == whole.history.column(name)
    assert rest.record.cost.gradient_evaluations == whole.record.cost.gradient_evaluations, "none is counted twice"
    seconds = rest.history.column("seconds")
    assert seconds == sorted(seconds)


def test_relative_tolerance_remembers_the_first_measure():
    half = minimise(bowl(), ZERO, Momentum(), stop=Stop(max_steps=2))
    rest = minimise(bowl(), half.x, Momentum(), state=half.state, past=half.history, stop=Stop(rtol=1 / 16))
    assert (rest.status, rest.record.step) == (Status.converged_rtol, 4)


def test_interruption_ends_the_run_after_the_step():
    calls = []

    def interrupt(x, state, history):
        calls.append(state.step)
        if state.step == 3:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)  # the terminal and mpiexec both pass it on: an echo

    before = signal.getsignal(signal.SIGINT)
    result = minimise(bowl(), ZERO, Momentum(), after_step=interrupt, stop=Stop(max_steps=99))
    assert (result.status, result.record.step) == (Status.interrupted, 4)
    assert calls == [0, 1, 2, 3, 4], "also after the last step: for a checkpoint"
    assert signal.getsignal(signal.SIGINT) is before


def test_the_loop_runs_in_another_thread():
    found = []
    thread = threading.Thread(target=lambda: found.append(minimise(bowl(), ZERO, Momentum(), stop=Stop(max_steps=3))))
    thread.start()
    thread.join()
    assert found[0].status is Status.max_steps


def test_a_stochastic_objective_is_sampled_by_the_number_of_the_step():
    asked = []

    class Noisy(Bowl):
        def sample(self, step):
            asked.append(step)
            return Bowl(self.target + step)

    f = Noisy(bowl().target)
    half = minimise(f, ZERO, Momentum(), stop=Stop(max_steps=2))
    minimise(f, half.x, Momentum(), state=half.state, past=half.history, stop=Stop(max_steps=4))
    assert asked == [0, 1, 2, 2, 3, 4]


def test_rank_zero_speaks_for_all():
    """Two ranks whose clocks and last digits differ see the same record."""

    class Fake(Communicator):
        def __init__(self, rank, said):
            object.__setattr__(self, "mpi", None)
            object.__setattr__(self, "reports", None)
            object.__setattr__(self, "number", rank)
            object.__setattr__(self, "said", said)

        @property
        def rank(self):
            return self.number

        def sum_scalars(self, values):
            self.said.append(values)
            return values

    first, second = [], []
    minimise(bowl(), ZERO, Momentum(), comm=Fake(0, first), stop=Stop(max_steps=0), detection=OFF)
    minimise(bowl(), ZERO, Momentum(), comm=Fake(1, second), stop=Stop(max_steps=0), detection=OFF)
    assert first[0][4] == 4.0
    assert second[0][3:6] == [0.0, 0.0, 0.0]


def test_a_solver_that_cannot_go_on_on_one_rank_stops_all():
    """What the other rank adds to the sums here, a rank whose local solver has stalled adds in a real run."""

    class Other(Communicator):
        def sum_scalars(self, values):
            stalled = list(Status).index(Status.stalled)
            return [v + (k - len(values) + 1 + len(Status) == stalled) for k, v in enumerate(values)]

    result = minimise(bowl(), ZERO, Momentum(), comm=Other(), stop=Stop(max_steps=4), detection=OFF)
    assert result.status is Status.stalled


def test_the_record_has_all_columns_of_the_ledger():
    class Local(Momentum):
        def step(self, objective, x, state):
            count(
                work=0.25,
                synchronisations=1,
                scalar_synchronisations=3,
                sent=24,
                halo_rows=5,
                halo_bytes=40,
                exchanges=2,
            )
            state.accepted, state.level = state.accepted + 1, 2
            return super().step(objective, x, state)

    setup = Cost(setup_seconds=7.0, setup_work=8.0)
    record = minimise(bowl(), ZERO, Local(), stop=Stop(max_steps=2), setup=setup).record
    scalars = 2 * 3 + 3  # those of the steps, and one per record
    cost = Cost(3, 3.5, 3.5, 2, scalars, 48, 10, 80, 4, record.cost.seconds, 7.0, 8.0)
    assert record == Record(2, 2, 1.0, 10.5 / 4**2, 2, 0, cost)


def test_work_of_the_busiest_rank_and_of_all():
    """Three ranks, of which this one has done 3 gradients and the others 5 and 2."""

    class Three(Communicator):
        ranks = 3

        def sum_scalars(self, values):
            return [*values[:-2], 5.0, 2.0]

    cost = minimise(bowl(), ZERO, Momentum(), comm=Three(), stop=Stop(max_steps=2), detection=OFF).record.cost
    assert (cost.work_units, cost.work_total) == (5.0, 10.0)


def test_monitors_see_every_record_once():
    seen, kept = [], History()
    minimise(bowl(), ZERO, Momentum(), monitors=[seen.append, kept], stop=Stop(max_steps=3))
    assert seen == kept.records and len(seen) == 4


def test_a_solver_that_counts_its_steps_loses_none():
    @dataclass(frozen=True)
    class Counting:
        def init(self, objective, x):
            return State()

        def step(self, objective, x, state):
            state.step += 1
            return x - 0.1 * objective.gradient(x), state

    class Bowl:
        size, bounds = 2, Bounds.free(2)

        def value(self, x):
            return x @ x / 2

        def gradient(self, x):
            return x.clone()

    result = minimise(Bowl(), torch.ones(2, dtype=torch.float64), Counting(), stop=Stop(5))
    assert [record.step for record in result.history.records] == [0, 1, 2, 3, 4, 5]


def test_memory_of_a_solver_is_in_fields():
    state = State()
    with pytest.raises(
        AttributeError, match="a state must have its memory in fields, got State.v; declare it in a data"
    ):
        state.v = 1.0
    state.level = 2
    assert state == State(level=2)
