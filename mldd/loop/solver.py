"""Solvers and the one loop that drives them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
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
    x, projected = _project_start(objective, x)
    history = History(list(past.records) if past else [], stop.norm)
    before, first = (history.records[-1], history.records[0].measure) if history.records else (None, math.nan)
    rise = Rise.of(record.value for record in history.records)
    good, clock, status, risen = x.clone(), Clock(), None, False
    needed, together = getattr(solver, "needs_gradient", True), getattr(solver, "needs_value", False)
    f, again = Remembered(objective, together), before is not None
    eyes = Evaluations(1 if stop.target > -math.inf and values in (None, 0, "auto") else values)
    schedule = Schedule() if schedule is None else schedule
    guard = Detector(detection, comm, objective, stop.max_steps, eyes.at_the_ends)
    told = -1 if before is None else before.step
    with counting() as cost, deferred() as signals, watched(schedule.watchdog, comm) as beat:
        while status is None:
            if hasattr(objective, "sample"):
                f = Remembered(sampled(objective, 0 if state is None else state.step), together)
                if isinstance(state, State):
                    state.forget()
            guard.seal(x, state)
            # What a resumed run computes at its start has been counted in its last record.
            with nullcontext() if needed and not again else clock.unseen():
                measure = objective.bounds.measure(x, f.gradient(x), stop.norm)
            schedule.step_ends()
            if state is None:
                state = solver.init(f, x)
            elif again:
                recognised(state, f.gradient(x))
            is_new = state.step > told
            asked = is_new and (eyes.is_due(state.step) or (eyes.at_the_ends and math.isnan(rise.start)))
            with clock.unseen():
                value = eyes.value(objective, x) if asked else math.nan
            spoken = _spoken(clock, measure, value, eyes, schedule, state)
            with clock.unseen() if again else nullcontext():
                totals = summed(comm, cost, spoken, signals, state.status)
            again = False
            record = _record(state, totals, cost, setup if before is None else setup.after(before.cost))
            first = record.measure if math.isnan(first) else first
            beat(record.step)
            eyes.hear(totals.spoken.evaluates)
            lost = asked and math.isnan(record.value)
            wall = totals.spoken.wall + (0.0 if before is None else before.cost.seconds)
            status = Status.diverged if lost else stop.status(record, first, wall) or totals.reported
            status = status if status is Status.diverged else totals.ended or status
            with clock.unseen():
                if is_new:
                    record, status = _validated(validation, x, record, status, comm)
                record, status = _valued(eyes, objective, x, record, status, comm)
                rise.see(record.value)
                risen = _has_risen(rise, status)
            is_kept = _keeps(totals.spoken, Status.diverged if risen else status) and state.step >= told
            found = guard.look(f, x, state, record, _ending(Status.diverged if risen else status, is_kept))
            if found:
                x, state, status = guard.go_back(found, x, state, history, validation)
                rise, risen = Rise.of(record.value for record in history.records), False
                told, again = history.records[-1].step if history.records else -1, True
                if status is not None and not history.records:
                    _tell(record, history, *monitors)
                continue
            with clock.unseen():
                if is_new:
                    _tell(record, history, *monitors)
                if after_step is not None and status is not Status.diverged:
                    after_step(x, state, history)
                if is_kept:
                    schedule.write(x, state, history, totals.spoken.wall)
            status = Status.diverged if risen else status
            if status is None:
                good.copy_(x)
                guard.keep(x, state, history, validation)
                done = state.step
                schedule.step_begins()
                x, state = solver.step(f, x, state)
                state.step = done + 1  # also where the solver has counted this step, or returns a new state
    history.status = status
    end = good if status is Status.diverged and not risen else x
    return Result(end, status, state, history, projected, validation, guard.rollbacks)


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


def _has_risen(rise: Rise, status: Status | None) -> bool:
    """Say whether a run rises for long, or ends above its start as if all were well."""
    return rise.goes_on if status is None else status in _AS_ASKED and rise.is_above


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


def _record(state: State, totals: Totals, ledger: Ledger, before: Cost) -> Record:
    """Make the record of this step; the run adds to what was spent `before`."""
    said = totals.spoken
    cost = totals.cost(ledger).after(before)
    return Record(state.step, state.level, said.measure, said.value, state.accepted, state.rejected, cost)
