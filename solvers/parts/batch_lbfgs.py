"""L-BFGS on every row of a batch at once, each row with a memory and a strong Wolfe line search of its own."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import Objective, remember, value_and_gradient
from mldd.loop import State, Status
from mldd.solvers.parts.ball import Floats
from mldd.solvers.parts.lbfgs_pairs import RowPairs

Flags = NDArray[np.bool_]

_NOISE = 10  # the relative rounding error of a value, in units of the last place
_PATIENCE = 50  # steps without progress before a row rests; gradients of L-BFGS may grow for tens of steps


def cubic_minimisers(a: Floats, b: Floats) -> Floats:
    """Return the minimisers of cubics with given values and slopes at two points, NaN where there is none.

    Parameters
    ----------
    a, b : array, shape (3, p)
        Step length, value and slope.

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), equation 3.59.
    """
    width = b[0] - a[0]
    d1 = a[2] + b[2] - 3 * (a[1] - b[1]) / -width
    d2 = np.copysign(np.sqrt(d1 * d1 - a[2] * b[2]), width)
    minimisers: Floats = b[0] - width * (b[2] + d2 - d1) / (b[2] - a[2] + 2 * d2)
    return minimisers


@dataclass
class WolfeSearches:
    """p line searches side by side: row by row what `mldd.solvers.lbfgs.WolfeSearch` does.

    Parameters
    ----------
    start : array, shape (3, p)
        Step length 0, value and slope at the start.
    t : array, shape (p,)
        Step lengths to try next.
    searching : array, shape (p,), bool
        Rows that take part; they leave when they are done.
    c1, c2, noise : float
        Constants of the strong Wolfe conditions, and the relative rounding error of a value.
    """

    start: Floats
    t: Floats
    searching: Flags
    c1: float
    c2: float
    noise: float

    def __post_init__(self) -> None:
        """Begin every interval at the start; a row whose direction does not descend is done at once."""
        self.searching = self.searching & (self.start[2] < 0)
        self.low, self.high = self.start.copy(), self.start.copy()
        self.zooming, self.accepted = np.zeros_like(self.searching), np.zeros_like(self.searching)
        self.t = np.where(self.searching, self.t, 0.0)

    def take(self, values: Floats, slopes: Floats) -> Flags:
        """Take note of the trials at `t` and set the next ones; return the rows whose lowest point is now the trial.

        Parameters
        ----------
        values : Floats, shape (p,)
            Values at the trials.
        slopes : Floats, shape (p,)
            Slopes there.
        """
        trial, low, width = np.stack([self.t, values, slopes]), self.low, self.high[0] - self.low[0]
        with np.errstate(all="ignore"):
            higher = (values >= low[1] + self._error(values, low[1])) & (self.zooming | (low[0] > 0))
            good = self._decrease(trial) & ~higher
            flat = np.abs(slopes) <= -self.c2 * self.start[2]
            better: Flags = self.searching & good
            worse: Flags = self.searching & ~good
            if (better & flat >= self.searching).all():  # the usual case
                self.low = np.where(better, trial, low)
                self.accepted, self.searching = self.accepted | better, np.zeros_like(better)
                self.t = self.low[0]
                return better
            turns = better & (np.where(self.zooming, slopes * width, slopes) >= 0)
            guess = cubic_minimisers(low, trial)
            further = np.where(np.isfinite(guess), np.clip(guess, 2 * self.t, 10 * self.t), 4 * self.t)
            self.high = np.where(turns, low, np.where(worse, trial, self.high))
            self.low = np.where(better, trial, low)
            self.accepted = self.accepted | (better & flat)
            self.zooming |= worse | turns
            narrow = np.abs(self.high[0] - self.low[0]) <= 1e-14 * np.maximum(self.high[0], self.low[0])
            self.searching = self.searching & ~self.accepted & ~(self.zooming & narrow)
            following = np.where(self.zooming, self._between(), further)
        self.t = np.where(self.searching, following, self.low[0])
        return better

    @property
    def found(self) -> Flags:
        """Rows whose lowest point has both conditions, or at least lowers the value."""
        found: Flags = self.accepted | (self.low[1] < self.start[1])
        return found

    def _decrease(self, trial: Floats) -> Flags:
        """Say where `trial` has sufficient decrease, up to rounding where the slope says so too."""
        t, value, slope = trial
        _, value0, slope0 = self.start
        armijo = value <= value0 + self.c1 * t * slope0
        equal = np.abs(value - value0) <= self._error(value, value0)
        nearly = equal & (slope <= (2 * self.c1 - 1) * slope0)
        finite = np.isfinite(value) & np.isfinite(slope)
        decrease: Flags = finite & (armijo | nearly)
        return decrease

    def _error(self, a: Floats, b: Floats) -> Floats:
        """Return by how much two values may differ in rounding."""
        error: Floats = self.noise * np.maximum(np.abs(a), np.abs(b))
        return error

    def _between(self) -> Floats:
        """Return the cubic minimisers, kept off the ends; a tenth of the way where `high` is not finite."""
        low, high = self.low, self.high
        t, margin = cubic_minimisers(low, high), 0.1 * np.abs(high[0] - low[0])
        first, last = np.minimum(low[0], high[0]) + margin, np.maximum(low[0], high[0]) - margin
        inside = np.where(np.isfinite(t), np.clip(t, first, last), 0.5 * (low[0] + high[0]))
        finite = np.isfinite(high[1]) & np.isfinite(high[2])
        between: Floats = np.where(finite, inside, low[0] + 0.1 * (high[0] - low[0]))
        return between


@dataclass
class BatchLbfgsState(State):
    """State of `BatchLBFGS`.

    Attributes
    ----------
    pairs : RowPairs
        The limited memories.
    values : Tensor, shape (p,), float64, on the CPU
        Objective at the rows, valid for the `gradient` that came with them.
    gradient : Tensor or None
        The gradients at the rows, where they are known.
    live : Tensor, shape (p,), bool, on the CPU
        Rows that can still be improved from this point.
    lowest, smallest : Tensor, shape (p,), float64, on the CPU
        Value and norm of the gradient that a row must get below to make progress.
    idle : Tensor, shape (p,), int64, on the CPU
        Steps since a row made progress.
    evaluations : int
        Evaluations (of all rows at once) in line searches so far.
    """

    pairs: RowPairs = field(default_factory=lambda: RowPairs.empty(torch.empty(0, 0), 1))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: Tensor | None = field(default=None, repr=False)
    live: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.bool))
    lowest: Tensor = field(default_factory=lambda: torch.empty(0))
    smallest: Tensor = field(default_factory=lambda: torch.empty(0))
    idle: Tensor = field(default_factory=lambda: torch.empty(0, dtype=torch.int64))
    evaluations: int = 0


@dataclass(frozen=True)
class BatchLBFGS:
    """``x_i <- x_i - t_i H_i g_i`` for the rows of a batch, with the formulas of `mldd.solvers.lbfgs.LBFGS`.

    A step does one line search per row, all of them side by side: each trial round is one evaluation of the batch. Rows
    that are done wait at the lowest point they found; a row that is not finite stays where it is and disturbs no other.
    A row whose search fails tries once more from the direction of steepest descent with its memory cleared; if that
    fails too, it rests until the batch is moved from outside. So does a row that made no progress in 50 steps: its
    value fell by no more than rounding and the norm of its gradient did not halve. Next to a minimiser searches succeed
    or fail by the last digit, so that a failed search alone may be long in coming. When all rows rest, the state says
    `Status.stalled` (nothing if all are stationary, `Status.diverged` if none is finite). Padding must have a zero
    gradient.

    Parameters
    ----------
    memory : int
        Number of pairs of each row.
    max_evaluations : int
        Trial rounds per line search.
    c1, c2 : float
        Constants of sufficient decrease and of curvature, ``0 < c1 < c2 < 1``.

    Raises
    ------
    ValueError
        Hyper-parameters out of range.

    References
    ----------
    As for `mldd.solvers.lbfgs.LBFGS`.
    """

    batched: ClassVar[bool] = True

    memory: int = 10
    max_evaluations: int = 25
    c1: float = 1e-4
    c2: float = 0.9

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        for name in ("memory", "max_evaluations"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be > 0, got {getattr(self, name)}")
        if not 0 < self.c1 < self.c2 < 1:
            raise ValueError(f"`c1` and `c2` must satisfy 0 < c1 < c2 < 1, got {self.c1} and {self.c2}")

    def init(self, objective: Objective, x: Tensor) -> BatchLbfgsState:
        """Return empty memories for the rows of `x`, shape (p, m) or (m,).

        Raises
        ------
        ValueError
            The objective has bounds.
        """
        if not objective.bounds.is_free:
            raise ValueError("batched lbfgs needs objectives without bounds, got some; use tao:blmvm or adagrad")
        rows = _rows(x)
        p = len(rows)
        values, live = torch.full((p,), math.nan, dtype=torch.float64), torch.zeros(p, dtype=torch.bool)
        return BatchLbfgsState(
            pairs=RowPairs.empty(rows, self.memory),
            values=values,
            live=live,
            lowest=values.clone(),
            smallest=torch.full_like(values, math.inf),
            idle=torch.zeros(p, dtype=torch.int64),
        )

    def step(self, objective: Objective, x: Tensor, state: BatchLbfgsState) -> tuple[Tensor, BatchLbfgsState]:
        """Do one step of every row, in place."""
        if x.numel() == 0:
            return x, state
        g = objective.gradient(x)
        if g is not state.gradient:  # the first step, another sample, or rows that were moved from outside
            state.values.copy_(objective.value(x).reshape(-1))
            state.live.copy_(torch.isfinite(state.values))
            state.lowest.copy_(state.values)
            state.smallest.fill_(math.inf)
            state.idle.zero_()
        live = state.live.numpy().copy()
        g, found = self._advance(objective, x, g, state, live)
        again = live & ~found & (state.pairs.count > 0).cpu().numpy()
        if again.any():
            state.pairs.clear(torch.from_numpy(again).to(x.device))
            g, more = self._advance(objective, x, g, state, again)
            found |= more
        state.live.copy_(torch.from_numpy(live & found) & _progresses(state, g))
        state.status = None if bool(state.live.any()) else _failure(g)
        state.gradient = g
        remember(objective, x, g)
        return x, state

    def _advance(
        self, objective: Objective, x: Tensor, g: Tensor, state: BatchLbfgsState, live: Flags
    ) -> tuple[Tensor, Flags]:
        """Search along the directions of the `live` rows and move those that found a lower point.

        Returns
        -------
        Tensor of the shape of x
            Gradients at the new points.
        array, shape (p,), bool
            Rows that moved.
        """
        if not live.any():
            return g, np.zeros_like(live)
        d = state.pairs.direction(_rows(g)).view_as(x)
        slopes = torch.linalg.vecdot(_rows(g), _rows(d)).double().cpu().numpy()
        start = np.stack([np.zeros_like(slopes), state.values.numpy(), slopes])
        with np.errstate(all="ignore"):  # without pairs d = -g: a step of length one at most
            t = np.where((state.pairs.count > 0).cpu().numpy(), 1.0, np.minimum(1.0, 1.0 / np.sqrt(-slopes)))
        search = WolfeSearches(start, t, live, self.c1, self.c2, _NOISE * torch.finfo(x.dtype).eps)
        lowest = self._search(objective, x, d, g, search, state)
        found = search.found & live
        step = d * _column(search.low[0], x)
        if not found.all():  # not by a factor of zero: a row may hold a NaN
            moved = _column(found, x)
            step, lowest = torch.where(moved, step, 0.0), torch.where(moved, lowest, g)
        x.add_(step)
        state.values.copy_(torch.from_numpy(np.where(found, search.low[1], start[1])))
        state.pairs.push(_rows(step), _rows(lowest - g))
        return lowest, found

    def _search(
        self, objective: Objective, x: Tensor, d: Tensor, g: Tensor, search: WolfeSearches, state: BatchLbfgsState
    ) -> Tensor:
        """Evaluate trials until all searches are done; return the gradients at the lowest points."""
        lowest, left = g, self.max_evaluations
        while left > 0 and search.searching.any():
            values, trial = value_and_gradient(objective, torch.addcmul(x, d, _column(search.t, x)))
            slopes = torch.linalg.vecdot(_rows(trial), _rows(d))
            both = torch.stack([values.reshape(-1), slopes]).double().cpu().numpy()
            better = search.take(both[0], both[1])
            lowest = trial if better.all() else torch.where(_column(better, x), trial, lowest)
            state.evaluations += 1
            left -= 1
        return lowest


def _progresses(state: BatchLbfgsState, g: Tensor) -> Tensor:
    """Take note of the step that led to the gradients `g`; return the rows whose last progress is not long ago.

    A value falls by more than rounding, and between two such falls a gradient halves, only so many times: every row
    rests in the end.
    """
    norms = torch.linalg.vector_norm(_rows(g), dim=1).double().cpu()
    fell = state.values < state.lowest - _NOISE * torch.finfo(g.dtype).eps * state.lowest.abs()
    progress = fell | (norms < 0.5 * state.smallest)
    state.lowest = torch.where(fell, state.values, state.lowest)
    state.smallest = torch.where(progress, norms, state.smallest)
    state.idle = torch.where(progress, 0, state.idle + 1)
    return state.idle < _PATIENCE


def _rows(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x[None]


def _column(array: Floats | Flags, like: Tensor) -> Tensor:
    """Return one number per row on the device of `like`, floats with its dtype, to multiply or mask its rows by."""
    numbers = torch.from_numpy(array).to(like.device, like.dtype if array.dtype != np.bool_ else torch.bool)
    return numbers[:, None] if like.dim() == 2 else numbers


def _failure(g: Tensor) -> Status | None:
    """Return what it means that no row can be improved: nothing where all are stationary."""
    largest = torch.linalg.vector_norm(_rows(g), math.inf, dim=1)
    if bool((torch.isfinite(largest) & (largest > 0)).any()):
        return Status.stalled
    return None if bool((largest == 0).all()) else Status.diverged
