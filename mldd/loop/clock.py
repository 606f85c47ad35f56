"""The clock of a run: wall time, and wall time without what is done for the user's eyes."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from mldd.algebra import Uncounted


@dataclass
class Clock:
    """Wall time of a run. Limits count all of it, the history that without what is done for the user's eyes."""

    _started: float = field(default_factory=lambda: time.perf_counter())
    _paused: float = 0.0

    def pause(self) -> StandingClock:
        """Return a context in whose block `seconds` stand still."""
        return StandingClock(self)

    def unseen(self) -> Unseen:
        """Return a context in whose block, for the user's eyes, `seconds` stand still and nothing is counted."""
        return Unseen(self)

    @property
    def seconds(self) -> float:
        """Seconds without what was done for the user's eyes."""
        return self.wall - self._paused

    @property
    def wall(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started


class StandingClock:
    """A block that takes no time on a clock.

    Parameters
    ----------
    clock : Clock
        The clock that stands still.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def __enter__(self) -> None:
        """Note when the block begins."""
        self._begin = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        """Take its time off the clock."""
        self._clock._paused += time.perf_counter() - self._begin


class Unseen(StandingClock, Uncounted):
    """A block that takes no time on a clock and is not counted."""

    def __enter__(self) -> None:
        """Note when the block begins, and put the ledger away."""
        StandingClock.__enter__(self)
        Uncounted.__enter__(self)

    def __exit__(self, *_: object) -> None:
        """Take its time off the clock, and the ledger out again."""
        Uncounted.__exit__(self)
        StandingClock.__exit__(self)
