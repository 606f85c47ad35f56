"""How the step size of a first-order method changes with its steps."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from mldd.algebra import check_choices
from mldd.loop import State, Status


@dataclass(frozen=True)
class LearningRate:
    """Schedule of a step size: a linear warm-up, and a decay to zero at the end of the training.

    The factor of step k, counted from 0, is ``min(1, (k + 1) / warmup)`` times 1 (constant), ``1 - k / length``
    (linear) or ``(1 + cos(pi k / length)) / 2`` (cosine). After `length` steps the training is over, and the run ends.

    Parameters
    ----------
    schedule : {"constant", "cosine", "linear"}
        The decay.
    warmup : int
        Steps of the warm-up; 0 for none.
    length : int
        Steps of the training, for a decay; on the command line those of ``--steps``, where it is not given.

    Raises
    ------
    ValueError
        An unknown schedule, a negative number of steps, or a warm-up that is longer than the training.

    References
    ----------
    Loshchilov and Hutter, arXiv 1608.03983, equation 5, without restarts.
    """

    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup: int = 0
    length: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no schedule."""
        check_choices(self, {"schedule": ("constant", "cosine", "linear")})
        for name in ("warmup", "length"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        if self.decays and self.warmup >= self.length > 0:
            raise ValueError(f"`warmup` must be below the `length` {self.length} of the schedule, got {self.warmup}")

    @property
    def decays(self) -> bool:
        """Whether there is a decay, which needs a length."""
        return self.schedule != "constant"

    def factor(self, step: int, times: int = 1) -> float:
        """Return the factor on the step size.

        Parameters
        ----------
        step : int
            Steps done.
        times : int
            Steps in a unit of `warmup` and `length`: the local steps of a round.

        Raises
        ------
        ValueError
            A decay whose length was not given.
        """
        rise = min(1.0, (step + 1) / (self.warmup * times)) if self.warmup else 1.0
        if not self.decays:
            return rise
        if self.length == 0:
            raise ValueError(
                f"schedule={self.schedule} needs the `length` of the training in steps, got none; set length=400"
            )
        done = min(1.0, step / (self.length * times))
        return rise * (1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done)))

    def end(self, state: State, step: int, times: int = 1) -> None:
        """Say in the state that all steps of the schedule are done, where they are.

        Parameters
        ----------
        state : State
            Of the solver.
        step : int
            Steps done.
        times : int
            As for `factor`.
        """
        if self.decays and step >= self.length * times:
            state.status = Status.max_steps
