"""How the step size of a first-order method changes with its steps, and how many local steps are a round."""

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


@dataclass(frozen=True)
class Pace:
    """How many local steps the rounds of a local method have, and how the step size changes with them.

    Parameters
    ----------
    steps : int
        H, local steps of a round.
    rates : LearningRate
        How the step size changes; its unit is H local steps.
    grows : bool
        Whether a round has ``H / factor^2`` local steps once the schedule decays by a factor.

    Raises
    ------
    ValueError
        No local step, or rounds that grow without a schedule.

    References
    ----------
    Gu, Lyu, Arora, Zhang and Huang, arXiv 2310.14423, equation 2 (the quadratic synchronisation rule),
    with their constant chosen such that the first rounds have H local steps.
    """

    steps: int = 10
    rates: LearningRate = LearningRate()
    grows: bool = False

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not self.steps >= 1:
            raise ValueError(f"`local_steps` must be >= 1, got {self.steps}")
        if self.grows and not self.rates.decays:
            raise ValueError("`growth` needs a schedule that decays, got schedule=constant; set schedule=cosine")

    def left(self, done: int) -> int | None:
        """Return the local steps that the schedule has left, None where it has no end.

        Parameters
        ----------
        done : int
            Local steps done.
        """
        return self.rates.length * self.steps - done if self.rates.decays else None

    def factor(self, done: int) -> float:
        """Return the factor on the step size of the next local step.

        Parameters
        ----------
        done : int
            Local steps done.

        Raises
        ------
        ValueError
            A schedule without its length.
        """
        return self.rates.factor(done, self.steps)

    def steps_of(self, done: int) -> int:
        """Return the local steps of the round that begins after `done` local steps.

        Parameters
        ----------
        done : int
            Local steps of every part in the rounds before.
        """
        left = self.left(done)
        if not self.grows or left is None or left <= 0 or done < self.rates.warmup * self.steps:
            return self.steps
        return min(left, max(self.steps, int(self.steps / self.factor(done) ** 2)))

    def end(self, state: State, done: int) -> None:
        """Say in the state that the training is over, where it is.

        Parameters
        ----------
        state : State
            Of the solver.
        done : int
            Local steps done.
        """
        self.rates.end(state, done, self.steps)
