"""Times of a series: equal steps in seconds, or in calendar months; calendars of models with their own year."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
CALENDARS = {"noleap": 365, "365_day": 365, "all_leap": 366, "366_day": 366, "360_day": 360}  # days of a year
_DAY = 86400  # seconds
# Days before every month; the last one of a month that a calendar does not have counts as the one before.
_BEFORE = {
    365: np.array([0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334]),
    366: np.array([0, 31, 60, 91, 121, 152, 182, 213, 244, 274, 305, 335]),
    360: np.arange(12) * 30,
}


@dataclass(frozen=True)
class Calendar:
    """Say how the times of a series follow each other.

    Parameters
    ----------
    name : str
        As in the CF conventions: standard, or one of `CALENDARS`, whose years have a fixed number of days.
    months : int
        Calendar months between two times; 0 where they are a number of seconds apart.
    """

    name: str = "standard"
    months: int = 0

    def moments(self, first: Any, step: int, index: Ints) -> Any:
        """Return the dates of times, datetime64[s]: in the standard calendar, at the same place in the year.

        Parameters
        ----------
        first : datetime64[s]
            Date of time 0.
        step : int
            Seconds between two times, where these are no months.
        index : array of int, shape (S,)
            Which times; those behind the end of the series, too.
        """
        if self.months:
            return _months_later(first, self.months * np.asarray(index))
        if self.name not in CALENDARS:
            return first + np.asarray(index) * np.timedelta64(step, "s")
        length = CALENDARS[self.name]
        year = first.astype("datetime64[Y]")
        month = int((first.astype("datetime64[M]") - year.astype("datetime64[M]")).astype(int))
        past = int((first - first.astype("datetime64[M]")) / np.timedelta64(1, "s"))
        seconds = int(_BEFORE[length][month]) * _DAY + past + np.asarray(index, dtype=np.int64) * step
        years, within = np.divmod(seconds, length * _DAY)
        days = within // _DAY * 365 // length
        starts = (year + years.astype("timedelta64[Y]")).astype("datetime64[s]")
        return starts + (days * _DAY + within % _DAY).astype("timedelta64[s]")


STANDARD = Calendar()


def _months_later(first: Any, months: Any) -> Any:
    """Return the same day and hour of other months; the last day of a month where there is none of this number."""
    start = first.astype("datetime64[M]")
    later = start + months.astype("timedelta64[M]")
    longest = (later + 1).astype("datetime64[s]") - later.astype("datetime64[s]") - np.timedelta64(1, "s")
    return later.astype("datetime64[s]") + np.minimum(first - start.astype("datetime64[s]"), longest)


def monthly(time: Any) -> int:
    """Return the number of calendar months between times that stand for whole months, 0 where they do not.

    They do if all have the same day and hour, or all are the last day, or all lie in the middle of their months.

    Parameters
    ----------
    time : array of datetime64[s], shape (T,)
        Ascending.
    """
    month = time.astype("datetime64[M]")
    apart = np.diff(month.astype(np.int64))
    if len(time) < 2 or apart.min() < 1:
        return 0
    start, end = month.astype("datetime64[s]"), (month + 1).astype("datetime64[s]")
    since, until = (time - start).astype(np.int64), (end - time).astype(np.int64)
    same = len(np.unique(since)) == 1 or len(np.unique(until)) == 1
    middle = bool((np.abs(since - until) <= 2 * _DAY).all())
    return int(np.gcd.reduce(apart)) if same or middle else 0
