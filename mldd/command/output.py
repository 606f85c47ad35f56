"""Output that cannot be written: the reader of standard output has left, or the disk is full."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mldd.command.values import one_line

if TYPE_CHECKING:
    from mldd.loop import Record

READER_IS_GONE = 128 + 13  # exit status, as a shell says it of a program that SIGPIPE has ended


def reader_is_gone() -> bool:
    """Return whether nobody reads standard output any more, as after ``| head``; other pipes may break, too."""
    with contextlib.suppress(OSError, ValueError):
        poll = select.poll()
        poll.register(sys.stdout.fileno(), select.POLLOUT)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    return False


def tolerate() -> None:
    """Write letters that the encoding of the terminal does not have as escapes, instead of failing at them."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def close() -> None:
    """Write what is left; where that fails, which has been answered, nothing is left for the interpreter to fail at."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@dataclass
class Survivable:
    """A monitor that writes a file: where that fails it costs a warning, and the file lacks what comes later.

    Parameters
    ----------
    monitor : Monitor
        It is called until it fails, and closed.
    lost : bool
        Whether it has failed.
    """

    monitor: Any
    lost: bool = False

    def __call__(self, record: Record) -> None:
        """Write the record, unless one before could not be written."""
        if self.lost:
            return
        try:
            self.monitor(record)
        except OSError as error:
            self.lost = True
            warnings.warn(f"{one_line(error)}; it is written again at the end", stacklevel=2)

    def close(self) -> None:
        """Close the file; what is left in the buffer of a full disk is lost."""
        with contextlib.suppress(OSError):
            self.monitor.close()
