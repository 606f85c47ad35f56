"""Where a run is: iterate, state and objective of a step, what it has cost before, and why it ends."""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from torch import Tensor

from mldd.algebra import Ledger, Objective, Remembered, sampled
from mldd.loop.clock import Clock
from mldd.loop.monitor import Cost, History, Record
from mldd.loop.packing import recognised
from mldd.loop.rise import Rise
from mldd.loop.solver import Solver, State, checked_state, checked_step
from mldd.loop.status import Status
from mldd.loop.stop import Stop
from mldd.loop.totals import Totals

_AS_ASKED = (
    Status.converged_atol,
    Status.converged_rtol,
    Status.max_steps,
    Status.max_seconds,
    Status.stopped_early,
)


class Course:
    """Where a run is: iterate, state and objective of this step, what it has cost before, and why it ends.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    solver : Solver
        The method.
    x : Tensor, shape (n,)
        The start, within bounds.
    state : State or None
        To resume from.
    history : History
        Records so far; they are added to elsewhere.
    setup : Cost
        What was spent before the run.

    Attributes
    ----------
    is_torn : bool
        A step was given up, and the state is not that of the iterate.
    """

    def __init__(
        self, objective: Objective, solver: Solver, x: Tensor, state: Any, history: History, setup: Cost
    ) -> None:
        self.objective, self.solver, self.x, self.state, self.history = objective, solver, x, state, history
        self.needs_gradient = getattr(solver, "needs_gradient", True)
        self.together = getattr(solver, "needs_value", False)
        self.f, self.clock, self.good = Remembered(objective, self.together), Clock(), x.clone()
        self.status: Status | None = None
        self.risen = self.is_torn = False
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
        """Return the measure of this rank.

        Parameters
        ----------
        norm : float
            Order of the norm, ``inf`` for the largest entry.
        """
        with self.counted() if self.needs_gradient else self.clock.unseen():
            return self.objective.bounds.measure(self.x, self.f.gradient(self.x), norm)

    def begin(self) -> None:
        """Make a state, or give one from a checkpoint the gradient at its iterate."""
        if self.state is None:
            self.state = checked_state(self.solver, self.solver.init(self.f, self.x))
        elif self.again:
            recognised(self.state, self.f.gradient(self.x))

    def record(self, totals: Totals, ledger: Ledger) -> Record:
        """Return the record of this step, which adds to what was spent before.

        Parameters
        ----------
        totals : Totals
            What ranks have summed.
        ledger : Ledger
            Counts of this rank.
        """
        self.again, said, state = False, totals.spoken, self.state
        cost = totals.cost(ledger).after(self.before)
        self.first = said.measure if math.isnan(self.first) else self.first
        return Record(state.step, state.level, said.measure, said.value, state.accepted, state.rejected, cost)

    def reason(self, record: Record, totals: Totals, stop: Stop, is_asked: bool) -> Status | None:
        """Return why the run ends at this step, None where it goes on.

        Parameters
        ----------
        record : Record
            Of this step.
        totals : Totals
            What ranks have summed.
        stop : Stop
            When to end.
        is_asked : bool
            The record should have a value.
        """
        if is_asked and math.isnan(record.value):
            return Status.diverged
        status = stop.status(record, self.first, totals.spoken.wall + self.seconds) or totals.reported
        return status if status is Status.diverged else totals.ended or status

    def judged(self, record: Record, status: Status | None) -> Status | None:
        """Return `diverged` for a run that rises for long, or ends above its start as if all were well.

        Parameters
        ----------
        record : Record
            Of this step.
        status : Status or None
            Why the run would end.
        """
        self.rise.see(record.value)
        self.risen = self.rise.goes_on if status is None else status in _AS_ASKED and self.rise.is_above
        return Status.diverged if self.risen else status

    def take(self, x: Tensor, state: Any, status: Status | None) -> None:
        """Go on from a copy, or end with it; records behind it are gone from the history.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver.
        status : Status or None
            Why the run ends, None where it goes on.
        """
        self.x, self.state, self.status, self.risen, self.again = x, state, status, False, True
        self._read()

    def step(self) -> None:
        """Do one step of the solver."""
        self.good.copy_(self.x)
        self.done = done = self.state.step
        self.x, self.state = checked_step(self.solver, self.solver.step(self.f, self.x, self.state), self.good)
        self.state.step = done + 1  # also where the solver has counted this step, or returns a new state

    def give_up(self, copy: tuple[Tensor, Any] | None) -> None:
        """Go back to before a step that was not done to its end.

        Parameters
        ----------
        copy : tuple of Tensor and State, optional
            Iterate and state of a step that has passed all checks. Without one the run has its iterate before the step,
            and is torn: nobody can go on from its state.
        """
        if copy is None:
            self.is_torn, self.state.step = True, self.done
            copy = self.good.clone(), self.state
        self.take(*copy, None)
        self.state.note("steps given up, as the time of the run was over")
