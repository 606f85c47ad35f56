"""Where the time of exchanges of halos goes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Timing:
    """Where the time of exchanges went on this rank.

    Attributes
    ----------
    begin : float
        Seconds spent packing rows and posting messages.
    wait : float
        Seconds spent waiting for messages, and unpacking them.
    exchanges : int
        Number of exchanges that were waited for.
    """

    begin: float = 0.0
    wait: float = 0.0
    exchanges: int = 0


_timing: ContextVar[Timing | None] = ContextVar("mldd_halo_timing", default=None)


@contextmanager
def timed() -> Iterator[Timing]:
    """Yield a clock of the exchanges inside the block; what else its time goes to is computation."""
    timing = Timing()
    token = _timing.set(timing)
    try:
        yield timing
    finally:
        _timing.reset(token)


@contextmanager
def clock(name: str) -> Iterator[None]:
    """Yield nothing; the time of the block is added to a field of the clock that is running, if there is one.

    Parameters
    ----------
    name : {"begin", "wait"}
        The field.
    """
    timing = _timing.get()
    if timing is None:
        yield
        return
    start = time.perf_counter()
    yield
    setattr(timing, name, getattr(timing, name) + time.perf_counter() - start)
    timing.exchanges += name == "wait"
