"""The rule of the radius of a trust-region method, and what the method remembers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from mldd.loop import State
from mldd.solvers.parts import Flags, Floats, Secant


@dataclass(frozen=True)
class Radius:
    """The rule of the radius: where it starts, its limits, and how the ratio rho of actual to promised decrease acts.

    Parameters
    ----------
    initial : float
        The first radius.
    smallest, largest : float
        Limits of the radius.
    shrink, grow : float
        Factors on the radius after a poor and after a good step.
    accept : float
        Least rho of a step that is taken.
    low, high : float
        The radius shrinks where rho is below `low`, and may grow where it is above `high`.

    Raises
    ------
    ValueError
        Values out of range.
    """

    initial: float = 1.0
    smallest: float = 0.0
    largest: float = 1e3
    shrink: float = 0.5
    grow: float = 2.0
    accept: float = 1e-4
    low: float = 0.25
    high: float = 0.75

    def __post_init__(self) -> None:
        """Refuse values outside of their ranges."""
        if not 0 <= self.smallest <= self.initial <= self.largest or not self.initial > 0:
            raise ValueError(
                "radii must satisfy 0 <= smallest <= initial <= largest and 0 < initial, got "
                f"{self.smallest}, {self.initial}, {self.largest}"
            )
        if not 0 < self.shrink < 1 <= self.grow:
            raise ValueError(f"`shrink` and `grow` must satisfy 0 < shrink < 1 <= grow, got {self.shrink}, {self.grow}")
        if not 0 <= self.accept <= self.low < self.high <= 1:
            raise ValueError(
                f"thresholds must satisfy 0 <= accept <= low < high <= 1, got {self.accept}, {self.low}, {self.high}"
            )


@dataclass(frozen=True)
class TrialPoint:
    """What is known of a trial point.

    Attributes
    ----------
    point : Tensor, shape (..., n)
        Where it is.
    value : array, shape (p,)
        Value there.
    gain : array, shape (p,)
        Decrease of f.
    unclear : array, shape (p,), bool
        The values differ by rounding alone, so that the gain comes from gradients.
    g : Tensor, shape (..., n), or None
        Gradient there, if it was needed.
    """

    point: Tensor
    value: Floats
    gain: Floats
    unclear: Flags
    g: Tensor | None


@dataclass
class TrustRegionState(State):
    """State of `TrustRegion`; one number per member of a batch, p = 1 for a vector, float64 and on the CPU.

    Attributes
    ----------
    radius : Tensor, shape (p,)
        Radii of the next steps.
    values : Tensor, shape (p, window)
        Latest values, newest first, valid for the `gradient` that came with the newest; minus infinity where there are
        fewer.
    gradient : Tensor or None
        Gradient at the iterate, None where it was not needed.
    pairs : Secant
        Pairs of the BFGS or SR1 model.
    length : Tensor, shape (p,)
        Of the latest step, 0 where it was refused.
    frozen : Tensor, shape (p,), bool
        Members that cannot go on.
    share : float
        Running share of trials that were taken.
    descent : Tensor, shape (p,)
        Sum of the decreases so far, or since `confine`: more accurate than the difference of two values.
    centre : Tensor or None
        All iterates stay within `reach` of it, a Tensor of shape (p,), in the norm of the trust region.
    reach : Tensor, shape (p,)
        Largest distance from `centre`.
    """

    radius: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: Tensor | None = field(default=None, repr=False)
    pairs: Secant = field(default_factory=lambda: Secant.empty(torch.empty(0), 0), repr=False)
    length: Tensor = field(default_factory=lambda: torch.empty(0))
    frozen: Tensor = field(default_factory=lambda: torch.empty(0))
    share: float = 1.0
    descent: Tensor = field(default_factory=lambda: torch.empty(0))
    centre: Tensor | None = field(default=None, repr=False)
    reach: Tensor = field(default_factory=lambda: torch.empty(0))

    @property
    def value(self) -> Floats:
        """Value at the iterate, shape (p,)."""
        latest: Floats = self.values.numpy()[:, 0]
        return latest

    @property
    def highest(self) -> Floats:
        """Largest value in the window, shape (p,)."""
        highest: Floats = self.values.numpy().max(1)
        return highest

    def confine(self, centre: Tensor, reach: Tensor) -> None:
        """Start anew at `centre`, to stay within `reach` of it, shape (p,) or (1,); pairs are kept.

        Parameters
        ----------
        centre : Tensor, shape (n,) or (p, n)
            Middle of the ball.
        reach : Tensor, shape (p,) or (1,)
            Radius of the ball.
        """
        self.centre, self.reach = centre, reach.expand_as(self.radius)
        self.radius = torch.minimum(self.radius, reach)
        self.frozen = torch.zeros_like(self.frozen)
        self.descent = torch.zeros_like(self.radius)
        self.gradient, self.status = None, None
