"""When a run is at its end."""

from __future__ import annotations

import math
from dataclasses import dataclass

from mldd.loop.monitor import Record
from mldd.loop.status import Status


@dataclass(frozen=True)
class Stop:
    """When to stop: the first that holds.

    Parameters
    ----------
    max_steps : int
        Outer steps.
    atol, rtol : float
        Bounds on the measure, absolute and relative to the first one; 0 switches a test off.
    target : float
        Bound on the objective, which is compared where the objective is evaluated: at every step, unless an interval
        is given.
    max_seconds : float
        Seconds of wall time, with all that is done for the user's eyes.
    norm : float
        Norm of the measure, infinity by default.
    """

    max_steps: int = 100
    atol: float = 0.0
    rtol: float = 0.0
    target: float = -math.inf
    max_seconds: float = math.inf
    norm: float = math.inf

    def __post_init__(self) -> None:
        """Refuse values that can never be meant."""
        for name in ("max_steps", "atol", "rtol", "max_seconds"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")

    def status(self, record: Record, first: float, wall: float) -> Status | None:
        """Return why to stop after `record`, or None.

        Parameters
        ----------
        record : Record
            The last one.
        first : float
            Measure at the start.
        wall : float
            Seconds of wall time that the run has taken.
        """
        if not math.isfinite(record.measure) or record.value in (math.inf, -math.inf):
            return Status.diverged
        tests = (
            (record.measure <= self.atol, Status.converged_atol),
            (record.measure <= self.rtol * first and self.rtol > 0, Status.converged_rtol),
            (record.value <= self.target, Status.target_reached),
            (wall >= self.max_seconds, Status.max_seconds),
            (record.step >= self.max_steps, Status.max_steps),
        )
        return next((status for holds, status in tests if holds), None)
