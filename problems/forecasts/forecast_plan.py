"""What is forecast from what: lead times, history, and which inputs there are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Plan:
    """What is forecast from what, all times in steps of the series.

    Parameters
    ----------
    leads : tuple of int
        Lead times h of the outputs; with a rollout the only one.
    history : int
        Values of every variable before and at the origin.
    rollout : int
        How often a forecast is fed back: leads h, 2 h, ..., the history at the origin, one h before, ...
    forcing, climatology : bool
        Whether hour and sun, and the mean daily cycle of the node, are inputs.
    base : {"persistence", "linear"}
        Forecast that a network starts from: the value at the origin, or that of a linear model.
    stride : int
        Every how many origins of the training part is a sample.
    labels : {"train", "all"}
        Fit on the first 60 % of the series, or on all before the test part.
    """

    leads: tuple[int, ...]
    history: int = 6
    rollout: int = 1
    forcing: bool = True
    climatology: bool = True
    base: Literal["persistence", "linear"] = "persistence"
    stride: int = 1
    labels: Literal["train", "all"] = "train"

    @property
    def reached(self) -> tuple[int, ...]:
        """All lead times that are evaluated."""
        return tuple(self.leads[0] * (k + 1) for k in range(self.rollout)) if self.rollout > 1 else self.leads

    @property
    def spacing(self) -> int:
        """Steps between two values of the history."""
        return self.leads[0] if self.rollout > 1 else 1
