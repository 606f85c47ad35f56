"""The watch on the steps of a run: one that does not end says where it is, and ends the process."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

from mldd.ranks import Communicator

# Between the message and the end, which a launcher makes the end of all ranks: others have something to say, too.
_LAST_WORDS = 1.0  # seconds


@contextmanager
def watched(seconds: float, comm: Communicator) -> Iterator[Callable[[int], None]]:
    """Yield what is called with the steps done as one begins; where no call comes for long, the process ends with 1.

    Every rank has a watch of its own, so that the ranks that wait name the collective and the one that they wait for
    names its operation, unless it has died or stands still.

    Parameters
    ----------
    seconds : float
        Between two calls; infinity for no watch.
    comm : Communicator
        The ranks.
    """
    if seconds == math.inf:
        yield lambda step: None
        return
    last, over, thread = [time.monotonic(), -1.0], threading.Event(), threading.get_ident()

    def beat(step: int) -> None:
        last[:] = time.monotonic(), step

    def watch() -> None:
        while not over.wait(min(1.0, seconds / 10)):
            if time.monotonic() - last[0] > seconds:
                _end(f"step {int(last[1]) + 1} has not ended after {seconds:g} s", thread, comm)

    threading.Thread(target=watch, daemon=True).start()
    try:
        yield beat
    finally:
        over.set()


def _end(what: str, thread: int, comm: Communicator) -> None:
    where = operation(sys._current_frames()[thread])
    rank = f" on rank {comm.rank}" if comm.ranks > 1 else ""
    print(f"mldd: error{rank}: {what}: {where} (--watchdog)", file=sys.stderr, flush=True)
    time.sleep(_LAST_WORDS)
    os._exit(1)  # a rank that has hung cannot be asked to raise anything


def operation(frame: FrameType | None) -> str:
    """Return in words what a thread does: the collective in which it waits, or the function that it computes.

    Parameters
    ----------
    frame : FrameType
        Its innermost frame.
    """
    frames = []
    while frame is not None:
        frames.append(frame)
        frame = frame.f_back
    ours = next((k for k, found in enumerate(frames) if _is_of("mldd", found)), 0)
    if _is_of("mldd.ranks", frames[ours]):
        outer = next((k for k in range(ours, len(frames)) if not _is_of("mldd.ranks", frames[k])), len(frames) - 1)
        return f"it waits for other ranks in `{frames[outer - 1].f_code.co_name}`, called by {_place(frames[outer])}"
    return f"it computes in {_place(frames[ours])}" + (f", in {_place(frames[0])}" if ours else "")


def _is_of(room: str, frame: FrameType) -> bool:
    return f"{frame.f_globals.get('__name__', '')}.".startswith(f"{room}.")


def _place(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"`{frame.f_code.co_name}` ({path.parent.name}/{path.name}:{frame.f_lineno})"
