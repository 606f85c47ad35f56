"""Intervals and time limits as users and batch systems write them; nothing here needs torch."""

from __future__ import annotations

import math
import os
import re
import time
from dataclasses import dataclass

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}
_RESERVE = 30.0  # seconds, at most; of short limits a quarter


@dataclass(frozen=True)
class Interval:
    """Between two checkpoints: the first of seconds and steps that has passed.

    Parameters
    ----------
    seconds : float
        Of wall time; infinity for none.
    steps : int
        Outer steps; 0 for none.
    share : float
        Bound on the share of the time that writing takes; the interval in seconds grows where it would take more.
    """

    seconds: float = 300.0
    steps: int = 0
    share: float = 0.02

    @staticmethod
    def of(text: str) -> Interval:
        """Return the interval that a text says: ``30s``, ``5m``, ``2h``, ``100steps`` or ``auto``.

        Parameters
        ----------
        text : str
            A number with its unit; auto is five minutes, or more where writing would take over 2 % of the time.

        Raises
        ------
        ValueError
            No such text.

        Examples
        --------
        >>> Interval.of("5m").seconds, Interval.of("100steps").steps
        (300.0, 100)
        """
        found = re.fullmatch(r"(\d+)(steps)|(\d+(?:\.\d+)?)(s|m|h)", text)
        if text == "auto":
            return Interval()
        if found is None or float(found[1] or found[3]) <= 0:
            raise ValueError(f"must be like 30s, 5m, 2h, 100steps, or auto, got {text!r}")
        if found[2]:
            return Interval(math.inf, int(found[1]), 1.0)
        return Interval(float(found[3]) * _UNITS[found[4]], 0, 1.0)


@dataclass(frozen=True)
class TimeLimit:
    """When the process will be ended, by a batch system say.

    Parameters
    ----------
    end : float
        Seconds since the epoch, as `time.time` counts them.
    reserve : float
        Seconds that are left for results and pictures, besides what is measured.
    """

    end: float
    reserve: float = _RESERVE

    @staticmethod
    def of(text: str | None, began: float) -> TimeLimit | None:
        """Return the limit that a text or SLURM says: the earlier one where both do, None where neither does.

        Parameters
        ----------
        text : str, optional
            As `seconds_of` reads it, or auto: that of SLURM has to be there.
        began : float
            Seconds since the epoch, from which the text counts.

        Raises
        ------
        ValueError
            No such text, or auto without SLURM.
        """
        ends = [end for end in (_end_of_job(),) if end is not None]
        if text == "auto" and not ends:
            raise ValueError(
                "--time-limit auto needs the end of a job of SLURM in SLURM_JOB_END_TIME, got none that is ahead; give "
                "a limit such as 2:00:00"
            )
        if text is not None and text != "auto":
            ends.append(began + seconds_of(text))
        if not ends:
            return None
        return TimeLimit(min(ends), min(_RESERVE, 0.25 * max(min(ends) - began, 0.0)))

    def left(self) -> float:
        """Return the seconds that may still be used."""
        return self.end - self.reserve - time.time()


def _end_of_job() -> float | None:
    """Return when SLURM ends this job; a shell that has outlived its job has a time that is over: it says nothing."""
    text = os.environ.get("SLURM_JOB_END_TIME", "")
    return float(text) if text.isdigit() and float(text) > time.time() else None


def seconds_of(text: str) -> float:
    """Return the seconds of a time limit as `sbatch --time` reads it.

    Parameters
    ----------
    text : str
        ``MIN``, ``MIN:SEC``, ``H:MIN:SEC``, ``D-H``, ``D-H:MIN`` or ``D-H:MIN:SEC``.

    Raises
    ------
    ValueError
        No such text, or no time.

    Examples
    --------
    >>> seconds_of("90"), seconds_of("1:30:00"), seconds_of("0-1:30")
    (5400.0, 5400.0, 5400.0)
    """
    if not re.fullmatch(r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}", text) or not re.search(r"[1-9]", text):
        raise ValueError(f"must be D-HH:MM:SS, HH:MM:SS, MM:SS, or minutes, got {text!r}")
    days, dash, clock = text.rpartition("-")
    numbers = [int(number) for number in clock.split(":")]
    if not dash and len(numbers) < 3:
        numbers = [0, *numbers]  # of minutes, or minutes and seconds
    hours, minutes, seconds = [*numbers, 0, 0][:3]
    return float((int(days or 0) * 24 + hours) * 3600 + minutes * 60 + seconds)
