"""A command that is run again from its last checkpoint until it has ended."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_FINAL = (0, 2, 130, 143)  # ended as asked, a bad argument, ended from outside: the same command would end alike
_PASSED_ON = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
_PAUSE = 1.0  # seconds before a restart, for what is left of the ranks to end


def supervise(command: Sequence[str], restarts: int) -> int:
    """Run a command until it has ended by itself; return the exit status of its last run.

    It is started again where a run has crashed, was killed or has failed, unless several runs in a row have not come
    further than the checkpoint from which they began. The signals INT, TERM and USR1 go to the command, which is not
    started again after one.

    Parameters
    ----------
    command : sequence of str
        A launcher and its words, or ``mldd train`` alone, with ``--checkpoint FILE --resume auto``.
    restarts : int
        In a row without a step forward, after which it is given up.

    Raises
    ------
    ValueError
        No command, or one that would begin anew each time.
    """
    checkpoint = _checkpoint_of(command)
    signalled: list[int] = []
    process: list[subprocess.Popen[bytes]] = []

    def pass_on(number: int, frame: FrameType | None) -> None:
        signalled.append(number)
        for running in process:
            running.send_signal(number)

    before = {number: signal.signal(number, pass_on) for number in _PASSED_ON}
    try:
        reached, vain = _step_of(checkpoint), 0
        while True:
            # Ctrl-C reaches it through this process alone: mpiexec takes a second one for an order to kill its ranks.
            process[:] = [subprocess.Popen(list(command), start_new_session=True)]
            code = _waited(process[0], signalled)
            if code in _FINAL or signalled:
                return code
            now = _step_of(checkpoint)
            vain = vain + 1 if now <= reached else 0
            reached = max(now, reached)
            where = f"the checkpoint is of step {now}" if now >= 0 else "there is no checkpoint"
            if vain > restarts:
                _say(f"error: given up after {vain} runs without a step forward, exit status {code}; {where}")
                return code
            _say(f"exit status {code}; {where}; started again")
            time.sleep(_PAUSE)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _say(text: str) -> None:
    print(f"mldd: supervise: {text}", file=sys.stderr, flush=True)


def _waited(process: subprocess.Popen[bytes], signalled: list[int]) -> int:
    """Return the exit status as a shell says it; a signal may have come before the process was there to have it."""
    for number in signalled:
        process.send_signal(number)
    code = process.wait()
    return code if code >= 0 else 128 - code


def _checkpoint_of(command: Sequence[str]) -> Path:
    """Return the checkpoint that a command goes on from."""
    if not command:
        raise ValueError("supervise needs a command, got none; write `mldd supervise -- mpiexec -n 4 mldd train ...`")
    found = {option: _value(command, option) for option in ("--checkpoint", "--resume")}
    if found["--checkpoint"] is None or found["--resume"] != "auto":
        raise ValueError(
            "supervise needs a command with --checkpoint FILE --resume auto, without which each restart begins anew, "
            f"got `{' '.join(command)}`; add them"
        )
    return Path(found["--checkpoint"])


def _value(command: Sequence[str], option: str) -> str | None:
    """Return what follows an option, in its own word or behind ``=``."""
    for word, following in zip(command, [*command[1:], None], strict=True):
        if word == option:
            return following
        if word.startswith(option + "="):
            return word[len(option) + 1 :]
    return None


def _step_of(path: Path) -> int:
    """Return the step of a checkpoint, -1 where there is none that can be read."""
    from mldd import checkpoints

    try:
        return checkpoints.load(path).history.records[-1].step
    except (OSError, ValueError, IndexError):
        return -1
