"""The clock of a run: wall time, and wall time without what is done for the user's eyes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mldd.algebra import uncounted


@dataclass
class Clock:
    """Wall time of a run. Limits count all of it, the history that without what is done for the user's eyes."""

    _started: float = field(default_factory=lambda: time.perf_counter())
    _paused: float = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Yield nothing; `seconds` stand still inside the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Yield nothing; inside the block, for the user's eyes, `seconds` stand still and nothing is counted."""
        with self.pause(), uncounted():
            yield

    @property
    def seconds(self) -> float:
        """Seconds without what was done for the user's eyes."""
        return self.wall - self._paused

    @property
    def wall(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self._started
