"""What a run does by the wall clock of rank 0: checkpoints, values for the user's eyes, the end of its time.

The decisions of rank 0 reach the other ranks with the numbers that are summed once per step: none costs a message.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mldd.algebra import Objective
from mldd.loop.monitor import History
from mldd.loop.signals import Signals
from mldd.loop.times import Interval, TimeLimit

_EYES = 0.1  # of the time, at most, for values at the interval "auto", ...
_FREE = 2.0  # ... which may take so many seconds in any case: short runs have all values
_RECENT = 20  # steps and checkpoints whose longest one is expected to come again

# A step that goes on at the end of the run's time is waited for: so many seconds, or this share of the time if longer.
_GRACE, _GRACE_SHARE = 1.0, 0.1
_HEED = 5.0  # seconds after a signal until a step is given up: batch systems kill after 30


class Overdue(RuntimeError):  # noqa: N818 (it is how a run ends)
    """Raised inside of a step that goes on after the run should have ended."""


@dataclass
class Evaluations:
    """When the objective is evaluated for the user's eyes.

    Parameters
    ----------
    values : int, "auto" or None
        Every so many steps, 0 for never; None for the start and the end alone, which all but 0 have; auto for as often
        as it takes a tenth of the wall time, and two seconds in any case.
    taken, longest, latest : float
        Seconds that all evaluations have taken, the longest and the latest of them.
    """

    values: int | str | None
    taken: float = 0.0
    longest: float = 0.0
    latest: float = 0.0
    _next: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        """Refuse what is no interval."""
        known = self.values is None or self.values == "auto" or (isinstance(self.values, int) and self.values >= 0)
        if not known:
            raise ValueError(f"`values` must be a whole number >= 0, auto or None, got {self.values!r}")

    @property
    def at_the_ends(self) -> bool:
        """Whether the start and the end of a run have values."""
        return self.values is None or self.values == "auto" or int(self.values) > 0

    def is_due(self, step: int) -> bool:
        """Return whether the record of a step has a value; the same on all ranks.

        Parameters
        ----------
        step : int
            Outer steps done.
        """
        if self.values == "auto":
            return self._next
        return bool(self.values) and step % int(self.values or 1) == 0

    def hear(self, evaluates: float) -> None:
        """Note what rank 0 has said of the next record.

        Parameters
        ----------
        evaluates : float
            1 where it gets a value.
        """
        self._next = bool(evaluates)

    def may_go_on(self, wall: float) -> bool:
        """Return whether one more evaluation is within the share of the time.

        Parameters
        ----------
        wall : float
            Seconds that the run has taken.
        """
        return self.taken <= _FREE or self.taken + self.latest <= _EYES * wall

    def value(self, objective: Objective, x: Tensor) -> float:
        """Return the value of the objective, and clock it.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The iterate.
        """
        begin = time.perf_counter()
        value = float(objective.value(x))
        self.latest = time.perf_counter() - begin
        self.taken, self.longest = self.taken + self.latest, max(self.longest, self.latest)
        return value


@dataclass
class Schedule:
    """Checkpoints and the end of the time.

    With a time limit the last checkpoint is written as late as it can be: after every step the run goes on if the
    longest of the recent steps and then the longest of the recent checkpoints fit into the time that is left. This is
    the decision after each task of a chain, with the measured durations in place of their distribution; where many
    steps would be lost it pays to risk none of them.

    Parameters
    ----------
    keep : callable, optional
        ``keep(x, state, history)`` writes a checkpoint; all ranks call it together.
    every : Interval
        Between two checkpoints; the first one is written at the start, which tells early of a disk that is full.
    limit : TimeLimit, optional
        When the process will be ended.
    watchdog : float
        Seconds after which a step that does not end is the end of the run.

    References
    ----------
    Q. Barbut, A. Benoit, T. Herault, Y. Robert, F. Vivien, When to checkpoint at the end of a fixed-length
    reservation?, FTXS 2023, hal-04215554: the second scenario, with its dynamic strategy.
    """

    keep: Callable[[Tensor, Any, History], None] | None = None
    every: Interval = Interval()
    limit: TimeLimit | None = None
    watchdog: float = math.inf
    _steps: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=_RECENT))
    _writes: deque[float] = field(init=False, default_factory=lambda: deque(maxlen=_RECENT))
    _last: tuple[float, int] = field(init=False, default=(-math.inf, -1))
    _began: float = field(init=False, default=math.nan)

    def __post_init__(self) -> None:
        """Refuse a watchdog that would bark at once."""
        if not self.watchdog > 0:
            raise ValueError(f"`watchdog` must be > 0 seconds, got {self.watchdog}")

    def is_due(self, wall: float, step: int) -> bool:
        """Return whether a checkpoint is due: asked on rank 0, whose answer holds.

        Parameters
        ----------
        wall : float
            Seconds that the run has taken.
        step : int
            Outer steps done.
        """
        if self.keep is None:
            return False
        since, steps = wall - self._last[0], step - self._last[1]
        if self._last[1] < 0 or (0 < self.every.steps <= steps):
            return True
        longest = max(self._writes, default=0.0)
        return steps > 0 and since >= max(self.every.seconds, longest / self.every.share)

    def is_late(self, evaluation: float = 0.0) -> bool:
        """Return whether one more step, a checkpoint and an evaluation do not fit into the time that is left.

        Parameters
        ----------
        evaluation : float
            Seconds of the longest evaluation of the objective.
        """
        if self.limit is None:
            return False
        ahead = max(self._steps, default=0.0) + max(self._writes, default=0.0) + evaluation
        return self.limit.left() <= ahead

    def step_begins(self) -> None:
        """Note that a step begins."""
        self._began = time.perf_counter()

    def patience(self, seconds: float, left: float, signals: Signals) -> Callable[[], None]:
        """Return what raises `Overdue` when it is called in a step that should be given up.

        Parameters
        ----------
        seconds, left : float
            Wall time that the run may take, and what is left of it.
        signals : Signals
            Those that end the run.

        Raises
        ------
        Overdue
            By what is returned: the time of the run is over.
        """
        end = time.monotonic() + left + max(_GRACE, _GRACE_SHARE * seconds)
        reserve = max(self._writes, default=0.0)

        def look() -> None:
            now = time.monotonic()
            heeds = signals.first and now > min(signals.first.values()) + _HEED
            if now > end or heeds or (self.limit is not None and self.limit.left() <= reserve):
                raise Overdue("a step was given up, as the time of the run was over")

        return look

    def step_ends(self) -> None:
        """Note that the step and the gradient behind it have ended."""
        if not math.isnan(self._began):
            self._steps.append(time.perf_counter() - self._began)

    def write(self, x: Tensor, state: Any, history: History, wall: float) -> None:
        """Write a checkpoint, if there is one to be kept, and clock it.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver.
        history : History
            All records so far.
        wall : float
            Seconds that the run has taken.
        """
        if self.keep is None:
            return
        begin = time.perf_counter()
        self.keep(x, state, history)
        self._writes.append(time.perf_counter() - begin)
        self._last = wall, state.step
