"""L-BFGS with a strong Wolfe line search, for objectives without bounds."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mldd.algebra import Objective, remember, value_and_gradient
from mldd.loop import FINITE, REPLICATED, SCRATCH, State, Status
from mldd.solvers.parts import LbfgsPairs, rows_for

Scaling = Literal["scalar", "rows", "auto"]


@dataclass(frozen=True)
class Trial:
    """A point on the ray ``x + t d`` of a line search.

    Parameters
    ----------
    t : float
        Step length.
    value, slope : float
        ``phi(t) = f(x + t d)`` and ``phi'(t) = <g(x + t d), d>``.
    g : Tensor, shape (n,)
        Gradient there.
    """

    t: float
    value: float
    slope: float
    g: Tensor


def cubic_minimiser(a: Trial, b: Trial) -> float:
    """Return the minimiser of the cubic that has the values and slopes of `a` and `b`, NaN where there is none.

    Parameters
    ----------
    a : Trial
        One point.
    b : Trial
        Another point.

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), equation 3.59.
    """
    if a.t == b.t:
        return math.nan
    d1 = a.slope + b.slope - 3 * (a.value - b.value) / (a.t - b.t)
    square = d1 * d1 - a.slope * b.slope
    if not square >= 0:
        return math.nan
    d2 = math.copysign(math.sqrt(square), b.t - a.t)
    below = b.slope - a.slope + 2 * d2
    return b.t - (b.t - a.t) * (b.slope + d2 - d1) / below if below else math.nan


@dataclass
class WolfeSearch:
    """Line search for the strong Wolfe conditions.

    ``phi(t) <= phi(0) + c1 t phi'(0)`` and ``|phi'(t)| <= c2 |phi'(0)|``. Two values that differ by less than their
    rounding error, ten units in the last place of the larger one, count as equal; only then the slope decides instead
    of them (the approximate condition of Hager and Zhang), so that the search does not fail next to a minimiser.

    Parameters
    ----------
    ray : callable
        ``ray(t)`` evaluates value and gradient at ``x + t d``.
    start : Trial
        At t = 0, with a negative slope.
    c1, c2 : float
        Constants of sufficient decrease and of curvature, ``0 < c1 < c2 < 1``.
    evaluations : int
        How many calls of `ray` are allowed.

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), algorithms 3.5 and 3.6; Hager and Zhang, SIAM J. Optim. 16
    (2005), equation 4.1.
    """

    ray: Callable[[float], Trial]
    start: Trial
    c1: float
    c2: float
    evaluations: int

    def __post_init__(self) -> None:
        """Set the relative rounding error of a value."""
        self.noise = 10 * torch.finfo(self.start.g.dtype).eps

    def run(self, t: float) -> Trial | None:
        """Search from the step length `t` (algorithm 3.5).

        Parameters
        ----------
        t : float
            First step length.

        Returns
        -------
        Trial or None
            A point with both conditions; where the evaluations run out, the best one with sufficient decrease, if any.
        """
        low = self.start
        while self.evaluations > 0:
            trial = self._evaluate(t)
            if not self._decreases(trial) or (low.t > 0 and self._is_higher(trial, low)):
                return self._zoom(low, trial)
            if self._is_flat(trial):
                return trial
            if trial.slope >= 0:
                return self._zoom(trial, low)
            guess = cubic_minimiser(low, trial)
            low, t = trial, min(max(guess, 2 * t), 10 * t) if math.isfinite(guess) else 4 * t
        return self._settle(low)

    def _zoom(self, low: Trial, high: Trial) -> Trial | None:
        """Shrink the interval between `low` (lowest so far, sufficient decrease) and `high` (algorithm 3.6)."""
        while self.evaluations > 0 and abs(high.t - low.t) > 1e-14 * max(high.t, low.t):
            trial = self._evaluate(self._between(low, high))
            if not self._decreases(trial) or self._is_higher(trial, low):
                high = trial
                continue
            if self._is_flat(trial):
                return trial
            if trial.slope * (high.t - low.t) >= 0:
                high = low
            low = trial
        return self._settle(low)

    def _settle(self, low: Trial) -> Trial | None:
        """Return `low` where it lowers the value: not the start, nor a point that only rounding calls as good."""
        return low if low.value < self.start.value else None

    def _evaluate(self, t: float) -> Trial:
        self.evaluations -= 1
        return self.ray(t)

    def _decreases(self, trial: Trial) -> bool:
        """Say whether `trial` has sufficient decrease; not if its value or slope is not finite."""
        if not (math.isfinite(trial.value) and math.isfinite(trial.slope)):
            return False
        if trial.value <= self.start.value + self.c1 * trial.t * self.start.slope:
            return True
        equal = abs(trial.value - self.start.value) <= self._error(trial, self.start)
        return equal and trial.slope <= (2 * self.c1 - 1) * self.start.slope

    def _error(self, a: Trial, b: Trial) -> float:
        """Return by how much the values of two points may differ in rounding."""
        return self.noise * max(abs(a.value), abs(b.value))

    def _is_higher(self, trial: Trial, low: Trial) -> bool:
        return trial.value >= low.value + self._error(trial, low)

    def _is_flat(self, trial: Trial) -> bool:
        return abs(trial.slope) <= -self.c2 * self.start.slope

    @staticmethod
    def _between(low: Trial, high: Trial) -> float:
        """Return the cubic minimiser, kept off the ends; a tenth of the way where `high` is not finite."""
        if not (math.isfinite(high.value) and math.isfinite(high.slope)):
            return low.t + 0.1 * (high.t - low.t)
        t, margin = cubic_minimiser(low, high), 0.1 * abs(high.t - low.t)
        first, last = min(low.t, high.t) + margin, max(low.t, high.t) - margin
        return min(max(t, first), last) if math.isfinite(t) else 0.5 * (low.t + high.t)


def along(objective: Objective, x: Tensor, d: Tensor, point: Tensor) -> Callable[[float], Trial]:
    """Return the function that evaluates `objective` at ``x + t d``, in the work space `point`.

    Parameters
    ----------
    objective : Objective
        What is evaluated.
    x : Tensor, shape (n,)
        Where the ray begins.
    d : Tensor, shape (n,)
        Its direction.
    point : Tensor, shape (n,)
        Work space.
    """

    def ray(t: float) -> Trial:
        value, g = value_and_gradient(objective, torch.add(x, d, alpha=t, out=point))
        return Trial(t, float(value), float(torch.dot(g, d)), g)

    return ray


@dataclass
class LbfgsState(State):
    """State of `LBFGS`.

    Attributes
    ----------
    pairs : LbfgsPairs
        The limited memory.
    direction, trial : Tensor, shape (n,)
        Work space.
    velocity : Tensor, shape (n,)
        Mean of past directions; empty without momentum.
    value : float
        Objective at the iterate, valid for the `gradient` that came with it.
    gradient : Tensor or None
        The gradient at the iterate, where it is known.
    evaluations : int
        Evaluations in line searches so far.
    length : float
        Step length of the last step, as a multiple of `direction`.
    """

    pairs: LbfgsPairs = field(default_factory=LbfgsPairs)
    direction: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=SCRATCH)
    trial: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=SCRATCH)
    velocity: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=FINITE | REPLICATED)
    value: float = math.nan
    gradient: Tensor | None = field(default=None, repr=False)
    evaluations: int = 0
    length: float = 0.0


@dataclass(frozen=True)
class LBFGS:
    """``x <- x - t H g`` with the limited-memory BFGS matrix H and t by a strong Wolfe line search.

    With momentum, ``v <- (1 - momentum) v - momentum H g`` and ``x <- x + t v``; where v does not descend it is begun
    anew.

    A step costs one evaluation of value and gradient per trial point of the line search; the gradient at the start is
    asked for once and is free inside `minimise` (elsewhere, wrap the objective in `mldd.algebra.objective.Remembered`).
    The first step, and each one on another sample, needs the value at the start as well. Both ends of a pair are
    evaluated with the sample of the step. A line search that fails is repeated once from the direction of steepest
    descent with the memory cleared; if that fails too, the state says `Status.stalled` (`Status.diverged` where the
    objective itself is not finite).

    Parameters
    ----------
    memory : int
        Number of pairs.
    max_evaluations : int
        Per line search.
    c1, c2 : float
        Constants of sufficient decrease and of curvature, ``0 < c1 < c2 < 1``.
    momentum : float
        Weight of the new direction in the mean, in (0, 1]; 1 for none.
    scaling : {"scalar", "rows", "auto"}
        The initial matrix: ``<s, y> / <y, y> I``, or a diagonal one with a number per row of every weight matrix of a
        network (see `mldd.solvers.parts.row_scaling.Rows`); ``auto`` takes rows where the objective is that of a
        network whose inputs are features, and not coordinates as in physics-informed training. On graph networks with
        sparse features rows need 2 to 5 times fewer evaluations.

    Raises
    ------
    ValueError
        Hyper-parameters out of range.

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5, equation 7.20; Liu and Nocedal, Math.
    Program. 45 (1989). Momentum as in arXiv 2306.17648.
    """

    memory: int = 10
    max_evaluations: int = 25
    c1: float = 1e-4
    c2: float = 0.9
    momentum: float = 1.0
    scaling: Scaling = "auto"

    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        for name in ("memory", "max_evaluations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be > 0, got {getattr(self, name)}")
        if not 0 < self.c1 < self.c2 < 1:
            raise ValueError(f"`c1` and `c2` must satisfy 0 < c1 < c2 < 1, got {self.c1} and {self.c2}")
        if not 0 < self.momentum <= 1:
            raise ValueError(f"`momentum` must be in (0, 1], got {self.momentum}")
        if self.scaling not in ("scalar", "rows", "auto"):
            raise ValueError(f"`scaling` must be one of scalar, rows, auto, got {self.scaling!r}")

    def init(self, objective: Objective, x: Tensor) -> LbfgsState:
        """Return an empty memory.

        Raises
        ------
        ValueError
            The objective has bounds, or `x` is a batch, or rows are asked for where there is no network.
        """
        if not objective.bounds.is_free:
            raise ValueError("lbfgs needs an objective without bounds, got one with bounds; use tao:blmvm or adagrad")
        if x.dim() != 1:
            raise ValueError(f"lbfgs needs `x` of shape (n,), got {tuple(x.shape)}; call it once per row")
        return LbfgsState(
            pairs=LbfgsPairs.empty(x, self.memory, rows_for(self.scaling, objective, x)),
            direction=torch.empty_like(x),
            trial=torch.empty_like(x),
            velocity=torch.zeros_like(x) if self.momentum < 1 else x.new_empty(0),
        )

    def step(self, objective: Objective, x: Tensor, state: LbfgsState) -> tuple[Tensor, LbfgsState]:
        """Do one step in place."""
        g = objective.gradient(x)
        if g is not state.gradient:  # the first step, another sample, or a point that was moved from outside
            state.value = float(objective.value(x))
        if not math.isfinite(state.value):
            state.status = Status.diverged
            return x, state
        found = self._search(objective, x, g, state)
        if found is None and state.pairs.count:
            state.pairs.count = 0
            state.velocity.zero_()
            found = self._search(objective, x, g, state)
        if found is None:
            state.length, state.gradient = 0.0, g
            state.status = _failure(g)
        else:
            s, y = state.pairs.spare
            torch.mul(state.direction, found.t, out=s)
            torch.sub(found.g, g, out=y)
            state.pairs.take()
            x.add_(state.direction, alpha=found.t)
            state.value, state.gradient, state.length = found.value, found.g, found.t
        remember(objective, x, state.gradient)
        return x, state

    def _search(self, objective: Objective, x: Tensor, g: Tensor, state: LbfgsState) -> Trial | None:
        """Return the end of a line search along the L-BFGS direction, or None if it failed."""
        d = state.pairs.direction(g, state.direction)
        slope = float(torch.dot(g, d))
        if self.momentum < 1:
            mean = torch.lerp(state.velocity, d, self.momentum)
            if float(torch.dot(g, mean)) < 0:
                slope = float(torch.dot(g, d.copy_(mean)))
            state.velocity.copy_(d)
        if not slope < 0:
            return None
        first = 1.0 if state.pairs.count else min(1.0, 1.0 / math.sqrt(-slope))  # d = -g: a step of length one at most
        ray, start = along(objective, x, d, state.trial), Trial(0.0, state.value, slope, g)
        search = WolfeSearch(ray, start, self.c1, self.c2, self.max_evaluations)
        found = search.run(first)
        state.evaluations += self.max_evaluations - search.evaluations
        return found


def _failure(g: Tensor) -> Status | None:
    """Return what a failed line search means: nothing at a stationary point."""
    largest = float(torch.linalg.vector_norm(g, math.inf))
    return None if largest == 0 else Status.stalled if math.isfinite(largest) else Status.diverged
