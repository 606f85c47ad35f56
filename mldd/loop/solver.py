"""Solvers and the one loop that drives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mldd.algebra import Ledger, Objective, Remembered, counting, sampled
from mldd.loop import summary
from mldd.loop.clock import Clock
from mldd.loop.guards import Detection, Detector, Ending
from mldd.loop.monitor import Cost, History, Monitor, Record
from mldd.loop.packing import recognised
from mldd.loop.rise import Rise
from mldd.loop.schedule import Evaluations, Schedule
from mldd.loop.signals import deferred
from mldd.loop.status import Status
from mldd.loop.stop import Stop
from mldd.loop.totals import Spoken, Totals, summed
from mldd.loop.validation import Validation
from mldd.loop.watchdog import watched
from mldd.ranks import SERIAL, Communicator


@dataclass
class State:
    """What every solver's state has; all memory of a solver lives in its state.

    Attributes
    ----------
    step : int
        Outer steps done; the loop counts them.
    level : int
        Coarsest level visited by the last step.
    accepted, rejected : int
        Corrections accepted and rejected so far.
    status : Status or None
        Set by a solver that cannot go on; where ranks differ, all stop for the first of their reasons.
    notes : dict
        How often something happened that a user should know of, as in ``{"negative curvature": 3}``.
    """

    step: int = 0
    level: int = 0
    accepted: int = 0
    rejected: int = 0
    status: Status | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what is no field: a checkpoint would not have it, and a resumed run would go on without it."""
        if name not in self.__dataclass_fields__:
            raise AttributeError(
                f"a state must have its memory in fields, got {type(self).__name__}.{name}; declare it in a dataclass "
                f"of its own, `class MyState(State)` with `{name}: ...`"
            )
        object.__setattr__(self, name, value)

    def forget(self) -> None:
        """Make no pair of gradients of two functions: called where the next one is of another sample or local model."""

    def note(self, what: str, times: int = 1) -> None:
        """Add to the `notes`.

        Parameters
        ----------
        what : str
            What happened.
        times : int
            How often.
        """
        if times:
            self.notes[what] = self.notes.get(what, 0) + times


class Solver(Protocol):
    """Frozen hyper-parameters with two methods. `step` may write to `x`, and returns the iterate it reached.

    Four class attributes say more. ``batched = True``: it takes (p, m) tensors of p independent vectors.
    ``entrywise = True``: it moves each unknown by the gradient there alone, whatever the others do.
    ``needs_gradient = False``: it never asks for the gradient of the whole, which `minimise` then evaluates for the
    user's eyes only. ``needs_value = True``: it asks for the value where it asks for a gradient, so that both are
    evaluated together.
    """

    def init(self, objective: Objective, x: Tensor) -> Any:
        """Return the state to start from.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The start.
        """
        ...

    def step(self, objective: Objective, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Do one outer step; return the iterate and the state.

        Parameters
        ----------
        objective : Objective
            What is minimised; asking for the gradient at `x` again costs nothing.
        x : Tensor, shape (n,)
            The iterate, which may be written to.
        state : State
            What the step before has left.
        """
        ...


@dataclass(frozen=True, repr=False)
class Result:
    """What `minimise` returns.

    Attributes
    ----------
    x : Tensor, shape (n,)
        The iterate; after `Status.diverged`, the last one with a finite gradient, and after `Status.corrupted`, the
        last one that had passed all checks, if it was kept.
    status : Status
        Why the run ended.
    state : State
        The solver's state, from which a run can be resumed.
    history : History
        One record per outer step, and one of the start.
    projected : bool
        The start was infeasible and was projected.
    validation : Validation, optional
        That of the run, with the best iterate.
    rollbacks : int
        Times that the run went back because a silent error was found.
    """

    x: Tensor
    status: Status
    state: Any
    history: History
    projected: bool = False
    validation: Validation | None = None
    rollbacks: int = 0

    @property
    def record(self) -> Record:
        """The last record."""
        return self.history.records[-1]

    def __repr__(self) -> str:
        """Return a screen at most: status with advice, steps, loss, measure and cost."""
        return summary.as_text("Result", summary.of_result(self))

    def _repr_html_(self) -> str:
        return summary.as_html("Result", summary.of_result(self))


def check_start(objective: Objective, x: Tensor) -> None:
    """Refuse a start that does not fit the objective, in one line.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    x : Tensor, shape (n,)
        The start.

    Raises
    ------
    ValueError
        Shape, dtype or device do not fit, a NaN, or bounds that are no box.
    """
    if x.shape != (objective.size,):
        raise ValueError(f"`x` must have shape ({objective.size},), got {tuple(x.shape)}")
    like = objective.bounds.lower
    if x.dtype != like.dtype or x.device != like.device:
        raise ValueError(f"`x` must be {like.dtype} on {like.device} as the objective is, got {x.dtype} on {x.device}")
    objective.bounds.check(x)  # first: a start is made to lie between bounds, and not finite where these are not
    if not bool(torch.isfinite(x).all()):
        raise ValueError(f"`x` must be finite, got {int((~torch.isfinite(x)).sum())} components that are not")


def minimise(
    objective: Objective,
    x: Tensor,
    solver: Solver,
    *,
    stop: Stop = Stop(),  # noqa: B008 (frozen)
    monitors: Sequence[Monitor] = (),
    state: Any = None,
    comm: Communicator = SERIAL,
    values: int | str | None = None,
    setup: Cost = Cost(),  # noqa: B008 (frozen)
    after_step: Callable[[Tensor, Any, History], None] | None = None,
    past: History | None = None,
    validation: Validation | None = None,
    detection: Detection = Detection(),  # noqa: B008 (frozen)
    schedule: Schedule | None = None,
) -> Result:
    """Minimise `objective` over its bounds from `x` with `solver`: the only loop.

    Per step: gradient -> measure -> stop test (the same decision on all ranks) -> step of the solver. A stochastic
    objective (one with ``sample(step)``) is sampled anew for every step, seeded by its number. The signals INT, TERM
    and USR1 of any rank end the run after its step; a second one of the same kind raises at once.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    x : Tensor, shape (n,)
        Start; it is copied, and projected once if infeasible.
    solver : Solver
        The method.
    stop : Stop
        When to end.
    monitors : sequence of callables
        Each gets one `Record` per outer step, outside the clock.
    state : State, optional
        To resume from; its `step` is the number of steps already done.
    comm : Communicator
        The ranks that run this together.
    values : int, "auto" or None
        Whether the objective is computed for a record, outside the clock and uncounted: after every so many steps (True
        is 1) and at both ends; by default at the start and at the end alone, with 0 or False never, with "auto" as
        often as it takes a tenth of the wall time. `Stop.target` implies every step where no interval is given.
        A run that ends above its start, converged or with its steps or seconds used up, has the status `diverged`, as
        has one that was above it and rose ten times in a row.
    setup : Cost
        What was spent before, on subdomains and levels; nothing by default.
    after_step : callable, optional
        Called with (x, state, history) after every step, outside the clock: to look at iterates.
    past : History, optional
        Records of the run that is resumed.
    validation : Validation, optional
        It sees the iterates at its interval, outside the clock and uncounted, and may end the run.
    detection : Detection
        How silent errors are looked for. Where one is found, the run goes back to the last iterate and state that have
        passed all checks, and monitors get the records of the steps behind it anew.
    schedule : Schedule, optional
        Checkpoints by the wall clock, a time limit, and the watchdog; nothing by default.

    Returns
    -------
    Result
        The last iterate, why the run ended, and its history.

    Raises
    ------
    ValueError
        A start that does not fit the objective.
    """
    check_start(objective, x)
    start, projected = _project_start(objective, x)
    history = History(list(past.records) if past else [], stop.norm)
    eyes = Evaluations(1 if stop.target > -math.inf and values in (None, 0, "auto") else values)
    schedule = Schedule() if schedule is None else schedule
    guard = Detector(detection, comm, objective, stop.max_steps, eyes.at_the_ends)
    run = _Course(objective, solver, start, state, history, setup)
    with counting() as ledger, deferred() as signals, watched(schedule.watchdog, comm) as beat:
        while run.status is None:
            run.sample()
            guard.seal(run.x, run.state)
            measure = run.measure(stop.norm)
            schedule.step_ends()
            run.begin()
            is_asked = run.is_new and (eyes.is_due(run.state.step) or (eyes.at_the_ends and run.rise.is_blank))
            with run.clock.unseen():
                value = eyes.value(objective, run.x) if is_asked else math.nan
            spoken = _spoken(run.clock, measure, value, eyes, schedule, run.state)
            with run.counted():
                totals = summed(comm, ledger, spoken, signals, run.state.status)
            record = run.record(totals, ledger)
            beat(record.step)
            eyes.hear(totals.spoken.evaluates)
            status = run.reason(record, totals, stop, is_asked)
            with run.clock.unseen():
                if run.is_new:
                    record, status = _validated(validation, run.x, record, status, comm)
                record, status = _valued(eyes, objective, run.x, record, status, comm)
            status = run.judged(record, status)
            is_kept = _keeps(totals.spoken, status) and run.state.step >= run.told
            found = guard.look(run.f, run.x, run.state, record, _ending(status, is_kept))
            if found:
                run.take(*guard.go_back(found, run.x, run.state, history, validation))
                if run.status is not None and not history.records:
                    _tell(record, history, *monitors)
                continue
            with run.clock.unseen():
                if run.is_new:
                    _tell(record, history, *monitors)
                if after_step is not None and (status is not Status.diverged or run.risen):
                    after_step(run.x, run.state, history)
                if is_kept:
                    schedule.write(run.x, run.state, history, totals.spoken.wall)
            run.status = status
            if status is None:
                guard.keep(run.x, run.state, history, validation)
                schedule.step_begins()
                run.step()
    history.status = run.status
    return Result(run.end, run.status, run.state, history, projected, validation, guard.rollbacks)


class _Course:
    """Where a run is: iterate, state and objective of this step, what it has cost before, and why it ends."""

    def __init__(
        self, objective: Objective, solver: Solver, x: Tensor, state: Any, history: History, setup: Cost
    ) -> None:
        self.objective, self.solver, self.x, self.state, self.history = objective, solver, x, state, history
        self.needs_gradient = getattr(solver, "needs_gradient", True)
        self.together = getattr(solver, "needs_value", False)
        self.f, self.clock, self.good = Remembered(objective, self.together), Clock(), x.clone()
        self.status: Status | None = None
        self.risen = False
        records = history.records
        self.first = records[0].measure if records else math.nan
        self.seconds = records[-1].cost.seconds if records else 0.0
        self.before = setup.after(records[-1].cost) if records else setup
        # What is computed at the iterate of a checkpoint, or of a copy, has been counted in its record.
        self.again = bool(records)
        self._read()

    def _read(self) -> None:
        """Take from the records what depends on them."""
        self.rise = Rise.of(record.value for record in self.history.records)
        self.told = self.history.records[-1].step if self.history.records else -1

    @property
    def is_new(self) -> bool:
        """Whether monitors have not had the record of this step."""
        return bool(self.state.step > self.told)

    @property
    def end(self) -> Tensor:
        """The iterate that is returned: the last one whose gradient was finite."""
        return self.good if self.status is Status.diverged and not self.risen else self.x

    def counted(self) -> AbstractContextManager[None]:
        """Return a context in which nothing is counted if all has been before."""
        return self.clock.unseen() if self.again else nullcontext()

    def sample(self) -> None:
        """Draw the objective of this step, where it is one of many."""
        if hasattr(self.objective, "sample"):
            number = 0 if self.state is None else self.state.step
            self.f = Remembered(sampled(self.objective, number), self.together, self.objective)
            if isinstance(self.state, State):
                self.state.forget()

    def measure(self, norm: float) -> float:
        """Return the measure of this rank."""
        with self.counted() if self.needs_gradient else self.clock.unseen():
            return self.objective.bounds.measure(self.x, self.f.gradient(self.x), norm)

    def begin(self) -> None:
        """Make a state, or give one from a checkpoint the gradient at its iterate."""
        if self.state is None:
            self.state = self.solver.init(self.f, self.x)
        elif self.again:
            recognised(self.state, self.f.gradient(self.x))

    def record(self, totals: Totals, ledger: Ledger) -> Record:
        """Return the record of this step, which adds to what was spent before."""
        self.again, said, state = False, totals.spoken, self.state
        cost = totals.cost(ledger).after(self.before)
        self.first = said.measure if math.isnan(self.first) else self.first
        return Record(state.step, state.level, said.measure, said.value, state.accepted, state.rejected, cost)

    def reason(self, record: Record, totals: Totals, stop: Stop, is_asked: bool) -> Status | None:
        """Return why the run ends at this step; `is_asked` says that the record should have a value."""
        if is_asked and math.isnan(record.value):
            return Status.diverged
        status = stop.status(record, self.first, totals.spoken.wall + self.seconds) or totals.reported
        return status if status is Status.diverged else totals.ended or status

    def judged(self, record: Record, status: Status | None) -> Status | None:
        """Return `diverged` for a run that rises for long, or ends above its start as if all were well."""
        self.rise.see(record.value)
        self.risen = self.rise.goes_on if status is None else status in _AS_ASKED and self.rise.is_above
        return Status.diverged if self.risen else status

    def take(self, x: Tensor, state: Any, status: Status | None) -> None:
        """Go on from a copy, or end with it; records behind it are gone from the history."""
        self.x, self.state, self.status, self.risen, self.again = x, state, status, False, True
        self._read()

    def step(self) -> None:
        """Do one step of the solver."""
        self.good.copy_(self.x)
        done = self.state.step
        self.x, self.state = self.solver.step(self.f, self.x, self.state)
        self.state.step = done + 1  # also where the solver has counted this step, or returns a new state


_AS_ASKED = (
    Status.converged_atol,
    Status.converged_rtol,
    Status.max_steps,
    Status.max_seconds,
    Status.stopped_early,
)


def _ending(status: Status | None, is_written: bool) -> Ending:
    """Return what is about to be done with an iterate."""
    is_claim = status in (Status.converged_atol, Status.converged_rtol, Status.diverged)
    return Ending(status is not None, is_claim, is_written, status is Status.diverged)


def _validated(
    validation: Validation | None, x: Tensor, record: Record, status: Status | None, comm: Communicator
) -> tuple[Record, Status | None]:
    """Return the record with the numbers of the validation, if it is time for one, and why to stop after it."""
    if validation is None or status is Status.diverged or not validation.is_due(record.step, status is not None):
        return record, status
    record = replace(record, validation=validation.see(x, record.step, comm))
    return record, Status.stopped_early if status is None and validation.is_exhausted else status


def _valued(
    eyes: Evaluations, objective: Objective, x: Tensor, record: Record, status: Status | None, comm: Communicator
) -> tuple[Record, Status | None]:
    """Return the record with a value where the run has come to its end, and why to stop after it."""
    is_end = status is not None and not status.is_unfinished and status is not Status.diverged
    if not is_end or not eyes.at_the_ends or not math.isnan(record.value):
        return record, status
    value = eyes.value(objective, x)
    value = comm.sum_scalars([value if comm.rank == 0 else 0.0])[0]
    return replace(record, value=value), status if math.isfinite(value) else Status.diverged


def _keeps(spoken: Spoken, status: Status | None) -> bool:
    """Say whether a checkpoint is written: when it is due, and at the end of a run that has not failed."""
    return bool(spoken.keeps) if status is None else not status.failed


def _project_start(objective: Objective, x: Tensor) -> tuple[Tensor, bool]:
    infeasible = objective.bounds.violation(x) > 0
    return objective.bounds.project(x), infeasible


def _tell(record: Record, *monitors: Monitor) -> None:
    for monitor in monitors:
        monitor(record)


def _spoken(clock: Clock, measure: float, value: float, eyes: Evaluations, schedule: Schedule, state: State) -> Spoken:
    """Return what this rank would say for all."""
    wall = clock.wall
    decided = (eyes.may_go_on(wall), schedule.is_due(wall, state.step), schedule.is_late(eyes.longest))
    return Spoken(clock.seconds, measure, value, wall, *map(float, decided))
