"""Signals that end a run: they are noted, and the loop ends at its next safe point, on all ranks."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

# SLURM warns with USR1 before a time limit (sbatch --signal=USR1@120), and ends a job with TERM.
_TERMINATING = (signal.SIGTERM, signal.SIGUSR1)
# A terminal sends a signal to all its processes and mpiexec passes it on once more: echoes are not meant.
_ECHO = 1.0  # seconds


class Terminated(KeyboardInterrupt):  # noqa: N818 (as KeyboardInterrupt is called)
    """Raised by the second signal TERM or USR1: the run is to end at once."""


@dataclass
class Signals:
    """Signals that have come since `deferred` began, each with the time of its first.

    Attributes
    ----------
    first : dict of int to float
        Seconds by number of the signal.
    """

    first: dict[int, float] = field(default_factory=dict)

    @property
    def interrupted(self) -> bool:
        """Whether the user has pressed Ctrl-C."""
        return signal.SIGINT in self.first

    @property
    def terminated(self) -> bool:
        """Whether TERM or USR1 has come."""
        return any(number in self.first for number in _TERMINATING)

    def take(self, number: int, frame: object) -> None:
        """Note a signal; raise where it is the second of its kind, one second later or more.

        Parameters
        ----------
        number : int
            Of the signal.
        frame : object
            Where it came; not used.

        Raises
        ------
        KeyboardInterrupt
            The second Ctrl-C.
        Terminated
            The second TERM or USR1.
        """
        now = time.monotonic()
        if now - self.first.setdefault(number, now) > _ECHO:
            raise Terminated if number in _TERMINATING else KeyboardInterrupt


_open: list[Signals] = []


@contextmanager
def deferred() -> Iterator[Signals]:
    """Yield the signals INT, TERM and USR1, which are noted inside the block instead of ending the process.

    A block inside another one has the signals of the outer one, so that none is lost between the runs of a comparison.
    Python takes signals in its main thread: a loop in another thread is ended by none.
    """
    if _open or threading.current_thread() is not threading.main_thread():
        yield _open[0] if _open else Signals()
        return
    signals = Signals()
    before = {number: signal.signal(number, signals.take) for number in (signal.SIGINT, *_TERMINATING)}
    _open.append(signals)
    try:
        yield signals
    finally:
        _open.clear()
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)  # None: of a library, in C


@contextmanager
def terminable() -> Iterator[None]:
    """Yield nothing; USR1 ends the process as TERM does, where there is no run yet that could end at a safe point."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGUSR1, lambda number, frame: signal.raise_signal(signal.SIGTERM))
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, signal.SIG_DFL if before is None else before)
