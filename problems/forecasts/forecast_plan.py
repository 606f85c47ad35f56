"""What is forecast from what: lead times, history, and which inputs there are."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from mldd.algebra import check_choices, check_least


@dataclass(frozen=True)
class Plan:
    """What is forecast from what, all times in steps of the series.

    Parameters
    ----------
    horizon : int or tuple of int
        Lead time in steps of the series, or several: one output each.
    history : int
        Values up to the origin that are inputs.
    rollout : int
        How often a forecast of the lead time `horizon` is fed back, in training and in evaluation; history then has
        this spacing too.
    forcing, climatology : bool
        Whether inputs have hour and height of the sun, and the mean daily cycle of every node in the training part.
    base : {"persistence", "linear"}
        What the network corrects: x(t), or the linear model of `mldd.problems.forecasts.linear_forecast` fitted
        likewise.
    stride : int
        Every how many origins of the training part is a sample.
    labels : {"train", "all"}
        Fit on the first 60 % of the series, or on all before the test part.

    Raises
    ------
    ValueError
        Values out of range, or a rollout of several lead times or from a linear model.
    """

    horizon: int | tuple[int, ...] = 6
    history: int = 6
    rollout: int = 1
    forcing: bool = True
    climatology: bool = True
    base: Literal["persistence", "linear"] = "persistence"
    stride: int = 1
    labels: Literal["train", "all"] = "train"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, {"base": ("persistence", "linear"), "labels": ("train", "all")})
        check_least(self, {"history": 1, "rollout": 1, "stride": 1})
        if not self.leads or min(self.leads) < 1 or list(self.leads) != sorted(set(self.leads)):
            raise ValueError(f"`horizon` must be >= 1, several of them ascending, got {self.horizon}")
        if self.rollout > 1 and (len(self.leads) > 1 or self.base != "persistence"):
            raise ValueError(
                f"`rollout` needs one horizon and base=persistence, got horizon={self.horizon}, base={self.base}"
            )

    @property
    def leads(self) -> tuple[int, ...]:
        """Lead times in steps."""
        return (self.horizon,) if isinstance(self.horizon, int) else tuple(self.horizon)

    @property
    def reached(self) -> tuple[int, ...]:
        """All lead times that are evaluated."""
        return tuple(self.leads[0] * (k + 1) for k in range(self.rollout)) if self.rollout > 1 else self.leads

    @property
    def spacing(self) -> int:
        """Steps between two values of the history."""
        return self.leads[0] if self.rollout > 1 else 1

    def reaching(self, steps: int) -> Plan:
        """Return the plan with at least so many lead times, more than it has by feeding forecasts back.

        Parameters
        ----------
        steps : int
            Number of lead times.

        Raises
        ------
        ValueError
            None at all, or more of them than a network with this plan can reach.
        """
        if steps < 1:
            raise ValueError(f"`steps` must be >= 1 lead time, got {steps}")
        if steps <= len(self.reached):
            return self
        # of a lead time of one step the history has the same spacing with and without a rollout
        if self.rollout > 1 or (self.leads == (1,) and self.base == "persistence"):
            return replace(self, rollout=steps)
        raise ValueError(
            f"`steps` must be in 1..{len(self.reached)} for a network of the lead times "
            f"{' '.join(map(str, self.reached))} that is not fed back, got {steps}; train one by plan.rollout=2, "
            "or by plan.horizon=H1:H2:... for the lead times that are wanted"
        )
