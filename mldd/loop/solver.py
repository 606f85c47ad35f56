"""Solvers and the one loop that drives them."""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mldd.algebra import Ledger, Objective, Remembered, counting, sampled
from mldd.loop import summary
from mldd.loop.clock import Clock
from mldd.loop.monitor import Cost, History, Monitor, Record
from mldd.loop.rise import Rise
from mldd.loop.status import Status
from mldd.loop.validation import Validation
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


@dataclass(frozen=True)
class Stop:
    """When to stop: the first that holds.

    Parameters
    ----------
    max_steps : int
        Outer steps.
    atol, rtol : float
        Bounds on the measure, absolute and relative to the first one; 0 switches a test off.
    target : float
        Bound on the objective, which is then computed at every step, outside the clock.
    max_seconds : float
        Seconds on the clock of the run.
    norm : float
        Norm of the measure, infinity by default.
    """

    max_steps: int = 100
    atol: float = 0.0
    rtol: float = 0.0
    target: float = -math.inf
    max_seconds: float = math.inf
    norm: float = math.inf

    def __post_init__(self) -> None:
        """Refuse values that can never be meant."""
        for name in ("max_steps", "atol", "rtol", "max_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")

    def status(self, record: Record, first: float) -> Status | None:
        """Return why to stop after `record`, or None.

        Parameters
        ----------
        record : Record
            The last one.
        first : float
            Measure at the start.
        """
        if not math.isfinite(record.measure) or record.value in (math.inf, -math.inf):
            return Status.diverged
        tests = (
            (record.measure <= self.atol, Status.converged_atol),
            (record.measure <= self.rtol * first and self.rtol > 0, Status.converged_rtol),
            (record.value <= self.target, Status.target_reached),
            (record.cost.seconds >= self.max_seconds, Status.max_seconds),
            (record.step >= self.max_steps, Status.max_steps),
        )
        return next((status for holds, status in tests if holds), None)


@dataclass(frozen=True, repr=False)
class Result:
    """What `minimise` returns.

    Attributes
    ----------
    x : Tensor, shape (n,)
        The iterate; after `Status.diverged`, the last one with a finite gradient.
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
    """

    x: Tensor
    status: Status
    state: Any
    history: History
    projected: bool = False
    validation: Validation | None = None

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


@contextmanager
def _interrupts() -> Iterator[list[bool]]:
    """Turn the first Ctrl-C into a flag that all ranks agree on at the end of a step; one a second later raises.

    A terminal sends the signal to all its processes and mpiexec passes it on once more: such echoes are not meant.
    """
    flag, first = [False], [math.inf]
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handler(number: int, frame: object) -> None:
        if time.monotonic() - first[0] > 1.0:
            raise KeyboardInterrupt
        flag[0], first[0] = True, min(first[0], time.monotonic())

    before = signal.signal(signal.SIGINT, handler)
    try:
        yield flag
    finally:
        signal.signal(signal.SIGINT, before)


def minimise(
    objective: Objective,
    x: Tensor,
    solver: Solver,
    *,
    stop: Stop = Stop(),  # noqa: B008 (frozen)
    monitors: Sequence[Monitor] = (),
    state: Any = None,
    comm: Communicator = SERIAL,
    values: bool | None = None,
    setup: Cost = Cost(),  # noqa: B008 (frozen)
    after_step: Callable[[Tensor, Any, History], None] | None = None,
    past: History | None = None,
    validation: Validation | None = None,
) -> Result:
    """Minimise `objective` over its bounds from `x` with `solver`: the only loop.

    Per step: gradient -> measure -> stop test (the same decision on all ranks) -> step of the solver. A stochastic
    objective (one with ``sample(step)``) is sampled anew for every step, seeded by its number.

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
    values : bool, optional
        Whether the objective is computed for every record, outside the clock and uncounted; `Stop.target` implies it.
        By default it is computed at the start and at the end alone, and with False never. A run that ends above its
        start, converged or with its steps or seconds used up, has the status `diverged`, as has one that was above it
        and rose ten times in a row.
    setup : Cost
        What was spent before, on subdomains and levels; nothing by default.
    after_step : callable, optional
        Called with (x, state, history) after every step, outside the clock: checkpoints.
    past : History, optional
        Records of the run that is resumed.
    validation : Validation, optional
        It sees the iterates at its interval, outside the clock and uncounted, and may end the run.

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
    seen = bool(values) or stop.target > -math.inf
    rise = Rise.of(record.value for record in history.records)
    good, clock, status = x.clone(), Clock(), None
    needed = getattr(solver, "needs_gradient", True)
    together = getattr(solver, "needs_value", False)
    f = Remembered(objective, together)
    with counting() as cost, _interrupts() as interrupt:
        while status is None:
            if hasattr(objective, "sample"):
                f = Remembered(sampled(objective, 0 if state is None else state.step), together)
                if isinstance(state, State):
                    state.forget()
            with nullcontext() if needed else clock.unseen():
                measure = objective.bounds.measure(x, f.gradient(x), stop.norm)
            if state is None:
                state = solver.init(f, x)
            asked = seen or (values is None and math.isnan(rise.start))
            with clock.unseen():
                value = float(objective.value(x)) if asked else math.nan
            totals = _totals(comm, cost, (clock.seconds, measure, value), interrupt[0], state.status)
            record = _record(state, cost, totals, setup if before is None else setup.after(before.cost))
            first = record.measure if math.isnan(first) else first
            rise.see(totals[_VALUE])
            lost = asked and math.isnan(totals[_VALUE])
            status = Status.diverged if lost else stop.status(record, first) or _reported(totals)
            if totals[_INTERRUPTED] and status is not Status.diverged:
                status = Status.interrupted
            with clock.unseen():
                if before is None or record.step > before.step:
                    record, status = _validated(validation, x, record, status, comm)
                risen = _has_risen(rise, status, objective, None if seen or values is False else x, comm)
                if before is None or record.step > before.step:
                    _tell(record, history, *monitors)
                if after_step is not None and status is not Status.diverged:
                    after_step(x, state, history)
            status = Status.diverged if risen else status
            if status is None:
                good.copy_(x)
                done = state.step
                x, state = solver.step(f, x, state)
                state.step = done + 1  # also where the solver has counted this step, or returns a new state
    history.status = status
    end = good if status is Status.diverged and not risen else x
    return Result(end, status, state, history, projected, validation)


_AS_ASKED = (
    Status.converged_atol,
    Status.converged_rtol,
    Status.max_steps,
    Status.max_seconds,
    Status.stopped_early,
)


def _validated(
    validation: Validation | None, x: Tensor, record: Record, status: Status | None, comm: Communicator
) -> tuple[Record, Status | None]:
    """Return the record with the numbers of the validation, if it is time for one, and why to stop after it."""
    if validation is None or status is Status.diverged or not validation.is_due(record.step, status is not None):
        return record, status
    record = replace(record, validation=validation.see(x, record.step, comm))
    return record, Status.stopped_early if status is None and validation.is_exhausted else status


def _has_risen(rise: Rise, status: Status | None, objective: Objective, x: Tensor | None, comm: Communicator) -> bool:
    """Say whether a run rises for long, or ends above its start as if all were well; the same on all ranks.

    Where values were not computed on the way, the last one is at `x`.
    """
    if status not in (None, *_AS_ASKED):
        return False
    if status is None:
        return rise.goes_on
    if x is not None:
        last = float(objective.value(x))
        last = comm.sum_scalars([last if comm.rank == 0 else 0.0])[0]
        if not math.isfinite(last):
            return True
        rise.see(last)
    return rise.is_above


def _project_start(objective: Objective, x: Tensor) -> tuple[Tensor, bool]:
    infeasible = objective.bounds.violation(x) > 0
    return objective.bounds.project(x), infeasible


def _tell(record: Record, *monitors: Monitor) -> None:
    for monitor in monitors:
        monitor(record)


_REASONS = tuple(Status)
_VALUE = 5
_INTERRUPTED = 6  # place in the totals: behind bytes, halo rows and bytes, seconds, measure and value


def _totals(
    comm: Communicator, cost: Ledger, decisive: tuple[float, float, float], interrupted: bool, status: Status | None
) -> list[float]:
    """Sum over ranks; in what decides rank 0 speaks for all, so that ranks whose last digits differ stop together.

    The work of every rank has a place of its own at the end.
    """
    spoken = decisive if comm.rank == 0 else (0.0, 0.0, 0.0)
    reasons = [float(status is reason) for reason in _REASONS]
    spent = [float(cost.bytes), float(cost.halo_rows), float(cost.halo_bytes)]
    works = [cost.work if k == comm.rank else 0.0 for k in range(comm.ranks)]
    return comm.sum_scalars([*spent, *spoken, float(interrupted), *reasons, *works])


def _reported(totals: list[float]) -> Status | None:
    """Return the first reason for which the solver of any rank cannot go on."""
    counts = totals[_INTERRUPTED + 1 : _INTERRUPTED + 1 + len(_REASONS)]
    return next((reason for reason, times in zip(_REASONS, counts, strict=True) if times), None)


def _record(state: State, cost: Ledger, totals: list[float], before: Cost) -> Record:
    """Make the record of this step; the run adds to what was spent `before`."""
    sent, rows, row_bytes, seconds, measure, value = totals[:_INTERRUPTED]
    works = totals[_INTERRUPTED + 1 + len(_REASONS) :]
    spent = Cost(
        seconds=seconds,
        gradient_evaluations=cost.gradients,
        work_units=max(works),
        work_total=sum(works),
        synchronisations=cost.synchronisations,
        scalar_synchronisations=cost.scalar_synchronisations,
        bytes_exchanged=int(sent),
        halo_rows=int(rows),
        halo_bytes=int(row_bytes),
        exchanges=cost.exchanges,
    )
    return Record(state.step, state.level, measure, value, state.accepted, state.rejected, spent.after(before))
