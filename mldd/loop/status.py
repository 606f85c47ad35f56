"""Why a run ended."""

from __future__ import annotations

import enum


class Status(enum.Enum):
    """Why a run ended; `advice` says what to do about it."""

    converged_atol = "the measure is below atol"
    converged_rtol = "the measure fell by the factor rtol"
    target_reached = "the objective is at or below the target"
    max_steps = "all steps used; allow more steps or loosen the tolerance"
    max_seconds = "all seconds used; allow more time or loosen the tolerance"
    stalled = "the solver cannot improve the point; loosen the tolerance, use float64, or another solver"
    diverged = "gradient or objective is not finite, or the objective is above its start: use a smaller step (rate)"
    corrupted = "checks of the run's memory or gradients failed again and again: resume from a checkpoint elsewhere"
    interrupted = "stopped by the user; resume from the checkpoint"
    terminated = "stopped by the signal TERM or USR1; resume from the checkpoint"
    time_limit = "the time limit is near; resume from the checkpoint"
    stopped_early = "the validation loss has not come down for as long as --patience says; the best model has passed"

    @property
    def advice(self) -> str:
        """One sentence for the user."""
        return self.value

    @property
    def failed(self) -> bool:
        """Whether the run did not end as asked."""
        return self in (Status.diverged, Status.corrupted)

    @property
    def is_unfinished(self) -> bool:
        """Whether the run was ended from outside and would have gone on."""
        return self in (Status.interrupted, Status.terminated, Status.time_limit)

    @property
    def exit_code(self) -> int:
        """What the shell gets: 130 and 143 are what it says of a process that Ctrl-C or TERM has ended."""
        if self.is_unfinished:
            return 130 if self is Status.interrupted else 143
        return int(self.failed)
