"""When a run is looked at for silent errors, and when it is copied: both within a share of its time."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mldd.loop import Record
from mldd.loop.guards.detection import Detection

ELSEWHERE = "steps have led elsewhere when they were done again"
AGAIN = "a jump, and the steps to it are done again"  # no fault yet
_JUMP = 10.0  # growth of the measure in a step after which the gradient is evaluated again
_BACK = 3.0  # factor by which the measure behind a jump is lower when a flipped bit was its reason
_DOUBTS = 3  # jumps of a run whose steps are done again


@dataclass
class Times:
    """Seconds that checks and copies take.

    Attributes
    ----------
    spent, mark : float
        In checks and copies on this rank, and those before the last check.
    check, copy, paid : float
        That a check and a copy take, and those of all so far: the numbers of rank 0, on all ranks.
    began : float
        Of the first record; NaN before it.
    """

    spent: float = 0.0
    mark: float = 0.0
    check: float = 0.0
    copy: float = 0.0
    paid: float = 0.0
    began: float = math.nan

    @property
    def told(self) -> tuple[float, float, float]:
        """What rank 0 tells the others: of the last check, of the last copy, and of all."""
        return self.spent - self.mark, self.copy, self.spent


@dataclass
class Jumps:
    """Measures of the run, and jumps of them whose steps are done again.

    Attributes
    ----------
    first, last : float
        Measure at the start and at the step before, NaN where there was none.
    doubts : int
        Jumps so far whose steps were done again.
    doubted : (int, float) or None
        Step and measure of the one to which they are done now.
    """

    first: float = math.nan
    last: float = math.nan
    doubts: int = 0
    doubted: tuple[int, float] | None = None

    def is_one(self, measure: float) -> bool:
        """Return whether the measure is much larger than at the step before, and take note of it.

        Parameters
        ----------
        measure : float
            Of this step.
        """
        self.first = measure if math.isnan(self.first) else self.first
        is_odd = not (measure <= _JUMP * self.last or math.isnan(self.last))
        self.last = measure
        return is_odd

    def doubt(self, record: Record, may_go_back: bool) -> str:
        """Return that steps are to be done again, or that they have led elsewhere than before.

        Parameters
        ----------
        record : Record
            Of this step.
        may_go_back : bool
            The step is a jump of a verified run that has a copy.
        """
        doubted = self.doubted
        if doubted is not None and record.step >= doubted[0]:
            self.doubted = None
            return ELSEWHERE if record.measure * _BACK < doubted[1] else ""
        if may_go_back and doubted is None and self.doubts < _DOUBTS and math.isfinite(record.measure):
            self.doubts, self.doubted = self.doubts + 1, (record.step, record.measure)
            return AGAIN
        return ""


@dataclass
class Watch:
    """Where a watch is: what was measured, sealed and found.

    Attributes
    ----------
    times : Times
        What checks and copies cost.
    jumps : Jumps
        Measures that grew.
    is_due : bool
        A check is made after the next step.
    seal : int or None
        Checksum of iterate and state after the step; None: not taken.
    is_copied, has_copy : bool
        A copy is made in this step, if it passes, or has been made before.
    strikes, until : int
        Alarms in a row, and the step that has to be passed to forget them.
    is_rounded : bool
        Ranks are known to differ in last digits.
    """

    times: Times = field(default_factory=Times)
    jumps: Jumps = field(default_factory=Jumps)
    is_due: bool = True
    seal: int | None = None
    is_copied: bool = True
    has_copy: bool = False
    strikes: int = 0
    until: int = -1
    is_rounded: bool = False

    def plan(self, how: Detection, record: Record, last: int, is_whole: bool) -> None:
        """Decide whether a copy is made in this step, and a check after the next one, the same on all ranks.

        All that is spent stays within its share of the time, by the numbers that rank 0 has told at the last check;
        the last step of a run is checked in any case, and every one while something is wrong.

        Parameters
        ----------
        how : Detection
            What is done.
        record : Record
            Of this step.
        last : int
            The most steps of the run.
        is_whole : bool
            All checks were made in this step.
        """
        times = self.times
        times.began = record.cost.seconds if math.isnan(times.began) else times.began
        left = how.share * (record.cost.seconds - times.began) - times.paid
        always = how.verify_every > 0 or self.strikes > 0
        self.is_copied = is_whole and (always or not self.has_copy or times.copy <= left)
        self.has_copy |= self.is_copied
        due = times.check + (times.copy if self.is_copied else 0.0) <= left
        self.is_due = always or due or record.step + 1 >= last
