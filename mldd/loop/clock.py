"""The clock of a run, which stands still while something is done for the user's eyes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from mldd.algebra import uncounted


@dataclass
class Clock:
    """Wall time without what is done for the user's eyes."""

    _started: float = field(default_factory=time.perf_counter)
    _paused: float = 0.0

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Yield nothing; the clock stands still inside the block."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._paused += time.perf_counter() - begin

    @contextmanager
    def unseen(self) -> Iterator[None]:
        """Yield nothing; inside the block, for the user's eyes, the clock stands still and nothing is counted."""
        with self.pause(), uncounted():
            yield

    @property
    def seconds(self) -> float:
        """Seconds on the clock."""
        return time.perf_counter() - self._started - self._paused
