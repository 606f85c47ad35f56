"""The one loop that drives solvers."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Objective, attended, check_objective, counting
from mldd.loop import summary
from mldd.loop.course import Course
from mldd.loop.guards import Detection, Detector, Ending
from mldd.loop.monitor import Cost, History, Monitor, Record
from mldd.loop.schedule import Evaluations, Overdue, Schedule
from mldd.loop.signals import deferred
from mldd.loop.solver import Solver, check_solver
from mldd.loop.status import Status
from mldd.loop.stop import Stop
from mldd.loop.totals import Spoken, summed
from mldd.loop.validation import Validation
from mldd.loop.watchdog import watched
from mldd.ranks import SERIAL, Communicator


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
        No objective, no tensor; shape, dtype or device do not fit, a NaN, or bounds that are no box.
    """
    check_objective(objective)
    if not isinstance(x, Tensor):
        raise ValueError(
            f"`x` must be a tensor of shape ({objective.size},), got {type(x).__name__}; use torch.as_tensor"
        )
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
    and USR1 of any rank end the run after its step; a second one of the same kind raises at once. On one rank a step
    that goes on for long after a signal or the end of the time is given up: several ranks would wait for one another.

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
        A start that does not fit the objective, or what is no objective or solver.
    """
    check_start(objective, x)
    check_solver(solver)
    start, projected = _project_start(objective, x)
    history = History(list(past.records) if past else [], stop.norm)
    eyes = Evaluations(1 if stop.target > -math.inf and values in (None, 0, "auto") else values)
    schedule = Schedule() if schedule is None else schedule
    guard = Detector(detection, comm, objective, stop.max_steps, eyes.at_the_ends)
    run = Course(objective, solver, start, state, history, setup)
    with counting() as ledger, deferred() as signals, watched(schedule.watchdog, comm) as beat:
        while run.status is None:
            run.sample()
            guard.seal(run.x, run.state)
            spoken, is_asked = _spoken(run, stop.norm, eyes, schedule)
            with run.counted():
                totals = summed(comm, ledger, spoken, signals, run.state.status)
            record = run.record(totals, ledger)
            beat(record.step)
            eyes.hear(totals.spoken.evaluates)
            status = run.reason(record, totals, stop, is_asked)
            with run.clock.unseen():
                record, status = _validated(validation, run, record, status, comm)
                record, status = _valued(eyes, run, record, status, comm)
            status = run.judged(record, status)
            is_kept = _keeps(totals.spoken, status) and run.state.step >= run.told and not run.is_torn
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
                left = stop.max_seconds - totals.spoken.wall - run.seconds
                look = schedule.patience(stop.max_seconds, left, signals) if comm.ranks == 1 else None
                try:
                    with attended(look):
                        run.step()
                except Overdue:
                    run.give_up(guard.last(history, validation))
    history.status = run.status
    return Result(run.end, run.status, run.state, history, projected, validation, guard.rollbacks)


def _ending(status: Status | None, is_written: bool) -> Ending:
    """Return what is about to be done with an iterate."""
    is_claim = status in (Status.converged_atol, Status.converged_rtol, Status.diverged)
    return Ending(status is not None, is_claim, is_written, status is Status.diverged)


def _validated(
    validation: Validation | None, run: Course, record: Record, status: Status | None, comm: Communicator
) -> tuple[Record, Status | None]:
    """Return the record with the numbers of the validation, if it is time for one, and why to stop after it."""
    if validation is None or not run.is_new or status is Status.diverged:
        return record, status
    if not validation.is_due(record.step, status is not None):
        return record, status
    record = replace(record, validation=validation.see(run.x, record.step, comm))
    return record, Status.stopped_early if status is None and validation.is_exhausted else status


def _valued(
    eyes: Evaluations, run: Course, record: Record, status: Status | None, comm: Communicator
) -> tuple[Record, Status | None]:
    """Return the record with a value where the run has come to its end, and why to stop after it."""
    is_end = status is not None and not status.is_unfinished and status is not Status.diverged
    if not is_end or not eyes.at_the_ends or not math.isnan(record.value):
        return record, status
    value = eyes.value(run.objective, run.x)
    value = comm.sum_scalars([value if comm.rank == 0 else 0.0])[0]
    return replace(record, value=value), status if math.isfinite(value) else Status.diverged


def _keeps(spoken: Spoken, status: Status | None) -> bool:
    """Say whether a checkpoint is written: when it is due, and at the end of a run that has not failed."""
    return bool(spoken.keeps) if status is None else not status.failed


def _project_start(objective: Objective, x: Tensor) -> tuple[Tensor, bool]:
    infeasible = objective.bounds.violation(x) > 0
    return objective.bounds.project(x.detach()), infeasible


def _tell(record: Record, *monitors: Monitor) -> None:
    for monitor in monitors:
        monitor(record)


def _spoken(run: Course, norm: float, eyes: Evaluations, schedule: Schedule) -> tuple[Spoken, bool]:
    """Return what this rank would say of the step for all, and whether it should say a value."""
    measure = run.measure(norm)
    schedule.step_ends()
    run.begin()
    done, clock = run.state.step, run.clock
    is_asked = run.is_new and (eyes.is_due(done) or (eyes.at_the_ends and run.rise.is_blank))
    value = math.nan
    if is_asked:
        with clock.unseen():
            value = eyes.value(run.objective, run.x)
    wall = clock.wall
    decided = (eyes.may_go_on(wall), schedule.is_due(wall, done), schedule.is_late(eyes.longest))
    return Spoken(clock.seconds, measure, value, wall, *map(float, decided)), is_asked
