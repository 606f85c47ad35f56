"""Standard output that cannot be written: its reader has left, or the disk is full."""

from __future__ import annotations

import contextlib
import io
import os
import select
import sys

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
