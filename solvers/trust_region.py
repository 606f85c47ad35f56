"""Trust-region methods with first-order and limited-memory models, for one vector or a batch of them."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mldd.bounds import Bounds
from mldd.objective import Objective, remember, value_and_gradient
from mldd.parallel import SERIAL, Communicator
from mldd.solver import State, Status
from mldd.solvers.adagrad import AdaGrad, dot, model_step
from mldd.solvers.secant import Secant

Model = Literal["first-order", "sr1", "bfgs"]
Norm = Literal["2", "inf"]

# A value costs a third of a gradient (measured on dense networks: 0.30 to 0.37). Value and gradient of a trial in one
# sweep, 1, are cheaper than the value first and the gradient after acceptance, 1/3 + share, from this share on.
_WORTH_THE_GRADIENT = 2.0 / 3.0
_MEMORY_OF_SHARE = 0.7
_ON_THE_BOUNDARY = 0.8  # a step of this part of the radius makes it grow


@dataclass(frozen=True)
class TrustRegion:
    r"""``x <- x + s``, s a minimiser of ``q(s) = g^T s + s^T B s / 2`` over ``|s| <= radius``, if f falls with q.

    With rho = (f(x) - f(x + s)) / -q(s): the step is taken where ``rho >= accept``; the radius shrinks where ``rho <
    low`` and grows where ``rho > high`` and the step ends near the boundary. Values that differ by less than their
    rounding error count as equal; the decrease is then ``-(g(x) + g(x + s))^T s / 2`` (trapezoidal rule), so that steps
    are taken down to the rounding of the gradient. Where the radius falls to its floor, the larger of `min_radius` and
    the rounding error of x, and the step there is no success either, the status is `stalled`.

    A batch, x of shape (p, m), has a radius, a model and decisions per row; a row that is stalled, or whose value is
    not finite, stays where it is.

    The trial of a single vector is evaluated with its gradient at once while more than two thirds of the latest trials
    were taken, and by its value first otherwise: the cheaper way if a value costs a third of a gradient. Rows are
    always evaluated with their gradients, so that none depends on the others.

    Parameters
    ----------
    model : {"bfgs", "sr1", "first-order"}
        B: limited-memory BFGS or SR1, or zero.
    norm : {"2", "inf"}
        Of the trust region. In the 2-norm the model is minimised to rounding; in the infinity norm, where objectives
        may have bounds, by `model_steps` projected steps (exactly if B = 0).
    radius, min_radius, max_radius : float
        Of the start, and its limits.
    shrink, grow : float
    accept, low, high : float
    window : int
        The decrease is that from the largest of so many latest values; 1 for a monotone method.
    memory : int
        Pairs of the BFGS or SR1 model.
    model_steps : int
    comm : Communicator
        Rank 0 decides for all; only for x of shape (n,).

    Raises
    ------
    ValueError
        Hyper-parameters out of range.

    References
    ----------
    Conn, Gould, Toint, Trust-Region Methods (2000), algorithm 6.1.1 and section 17.4.2 (rounding; the trapezoidal rule
    is the idea of Hager and Zhang, SIAM J. Optim. 16 (2005), equation 4.1); non-monotone: Toint, Math. Program. 77
    (1997), in its simplest form, with the maximum over a window.
    """

    model: Model = "bfgs"
    norm: Norm = "2"
    radius: float = 1.0
    min_radius: float = 0.0
    max_radius: float = 1e3
    shrink: float = 0.5
    grow: float = 2.0
    accept: float = 1e-4
    low: float = 0.25
    high: float = 0.75
    window: int = 1
    memory: int = 10
    model_steps: int = 10
    comm: Communicator = SERIAL

    batched: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        for name, known in (("model", ("first-order", "sr1", "bfgs")), ("norm", ("2", "inf"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if not 0 <= self.min_radius <= self.radius <= self.max_radius or not self.radius > 0:
            raise ValueError(
                "radii must satisfy 0 <= min_radius <= radius <= max_radius and 0 < radius, got "
                f"{self.min_radius}, {self.radius}, {self.max_radius}"
            )
        if not 0 < self.shrink < 1 <= self.grow:
            raise ValueError(f"`shrink` and `grow` must satisfy 0 < shrink < 1 <= grow, got {self.shrink}, {self.grow}")
        if not 0 <= self.accept <= self.low < self.high <= 1:
            raise ValueError(
                f"thresholds must satisfy 0 <= accept <= low < high <= 1, got {self.accept}, {self.low}, {self.high}"
            )
        for name in ("window", "memory", "model_steps"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}")

    @cached_property
    def _projected(self) -> AdaGrad:
        """The projected steps inside a box."""
        return AdaGrad(model_steps=self.model_steps)

    def init(self, objective: Objective, x: Tensor) -> TrustRegionState:
        """Return the first radius and no pairs.

        Raises
        ------
        ValueError
            The objective has bounds and the trust region is a ball.
        """
        if self.norm == "2" and not objective.bounds.is_free:
            raise ValueError(
                'a trust region in the 2-norm needs an objective without bounds, got bounds; use norm="inf"'
            )
        return self.fresh(x)

    def fresh(self, x: Tensor) -> TrustRegionState:
        """Return a state for vectors like `x`."""
        one = x.new_ones((*x.shape[:-1], 1))
        return TrustRegionState(
            radius=one * self.radius,
            values=one * torch.nan,
            descent=torch.zeros_like(one),
            frozen=torch.zeros_like(one, dtype=torch.bool),
            pairs=Secant.empty(x, self.memory, self.model) if self.model != "first-order" else Secant.empty(x, 0),
        )

    def step(self, objective: Objective, x: Tensor, state: TrustRegionState) -> tuple[Tensor, TrustRegionState]:
        """Do one step in place."""
        self.advance(objective, x, state)
        return x, state

    def advance(self, f: Objective, x: Tensor, state: TrustRegionState, *, last: bool = False) -> None:
        """Do one step in place; after the `last` one no gradient is needed, only the value."""
        g = self.locate(f, x, state)
        if state.status is not None:
            return
        s, decrease = self._propose(f, x, g, state)
        self.settle(f, x, s, decrease, state, last=last)

    def locate(self, f: Objective, x: Tensor, state: TrustRegionState) -> Tensor:
        """Return the gradient at `x`; at a point that is new to the state, evaluate the value too."""
        g = f.gradient(x)
        if g is not state.gradient:  # the first step, another sample, or a point that was moved from outside
            value = self._agreed(f.value(x)[..., None])[0]
            state.values, state.gradient = value, g
            state.frozen = state.frozen | ~torch.isfinite(value)
            self._conclude(state)
        return g

    def settle(
        self, f: Objective, x: Tensor, s: Tensor, decrease: Tensor, state: TrustRegionState, *, last: bool = False
    ) -> Tensor:
        """Try the step `s`, for which a model promises `decrease`; go there or not, and update radius and pairs.

        Returns
        -------
        Tensor, shape (..., 1), bool
            Who took the step.
        """
        g = state.gradient
        assert g is not None  # noqa: S101
        point = x + s
        tried = ~state.frozen & (g != 0).any(-1, keepdim=True)
        lost = (point == x).all(-1, keepdim=True)  # in rounding
        decrease, tried, lost = self._agreed(decrease, tried, lost)
        hopeful = tried & (decrease > 0)
        state.frozen = state.frozen | (hopeful & lost)
        hopeful = hopeful & ~lost
        if not bool(hopeful.any()):
            self._resize(x, s, torch.zeros_like(decrease), tried, torch.zeros_like(tried), state)
            return torch.zeros_like(tried)
        trial = self._evaluate(f, point, s, decrease, hopeful, state, last)
        best = torch.where(trial.unclear, trial.gain, trial.gain + (state.highest - state.value))
        taken = hopeful & (best >= self.accept * decrease) & (best > 0) & torch.isfinite(trial.value)
        if self.model != "first-order" and trial.g is not None and not last:
            state.pairs.push(s, trial.g - g)
        state.descent = state.descent + torch.where(taken, trial.gain, 0.0)
        self._move(f, x, trial, taken, state)
        ratio = torch.where(hopeful, trial.gain / decrease.clamp_min(torch.finfo(x.dtype).tiny), 0.0)
        self._resize(x, s, ratio, tried, taken, state)
        return taken

    def _evaluate(
        self,
        f: Objective,
        point: Tensor,
        s: Tensor,
        decrease: Tensor,
        hopeful: Tensor,
        state: TrustRegionState,
        last: bool,
    ) -> Trial:
        """Evaluate f where it is needed: the value always, the gradient where it is cheaper now or the step is good."""
        g: Tensor | None = None
        if last or (point.dim() == 1 and state.share <= _WORTH_THE_GRADIENT):
            value = f.value(point)
        else:
            value, g = value_and_gradient(f, point)
        value = self._agreed(value[..., None])[0]
        gain = state.value - value
        unclear = (gain.abs() <= 10 * torch.finfo(point.dtype).eps * state.value.abs()) & hopeful
        good = torch.isfinite(gain) & (state.highest - value >= self.accept * decrease)
        if g is None and bool((unclear if last else unclear | good).any()):
            g = f.gradient(point)
        if g is not None and bool(unclear.any()):
            assert state.gradient is not None  # noqa: S101
            gain = torch.where(unclear, self._agreed(-0.5 * dot(state.gradient + g, s))[0], gain)
        return Trial(point, value, gain, unclear, g)

    def _move(self, f: Objective, x: Tensor, trial: Trial, taken: Tensor, state: TrustRegionState) -> None:
        """Go to the trial where it was `taken`, and remember what is known there."""
        g = state.gradient
        assert g is not None  # noqa: S101
        latest = torch.where(taken, trial.value, state.value)
        state.values = torch.cat([latest, state.values], -1)[..., : self.window]
        if bool(taken.any()):
            x.copy_(torch.where(taken, trial.point, x))
            if trial.g is None:  # the last step
                state.gradient = None
                return
            state.gradient = trial.g if bool(taken.all()) else torch.where(taken, trial.g, g)
        remember(f, x, state.gradient if state.gradient is not None else g)

    def follow(
        self, f: Objective, x: Tensor, s: Tensor, there: Tensor, coarse: TrustRegionState, state: TrustRegionState
    ) -> None:
        """Take the step `s`, and the radius and values, that a trust-region method in a subspace ended with."""
        g, moved = state.gradient, bool((s != 0).any())
        assert g is not None  # noqa: S101
        if moved:
            if self.model != "first-order":
                state.pairs.push(s, there - g)
            x.add_(s)
            state.gradient, state.values = there, coarse.values
        state.length = self.length(s)
        state.accepted += moved
        state.rejected += not moved
        floor = self.floor(x)
        frozen = state.frozen | ((coarse.radius <= floor) & (not moved))
        state.radius, state.frozen = self._agreed(torch.maximum(coarse.radius, floor), frozen)
        remember(f, x, there if moved else g)
        self._conclude(state)

    def floor(self, x: Tensor) -> Tensor:
        """Return the least radius at x: the rounding of x, at zero a vanishing part of the first radius."""
        eps = torch.finfo(x.dtype).eps
        return (4 * eps * self.length(x)).clamp_min(max(self.min_radius, eps**1.5 * self.radius))

    def _resize(
        self, x: Tensor, s: Tensor, ratio: Tensor, tried: Tensor, taken: Tensor, state: TrustRegionState
    ) -> None:
        """Update radii, counts and statuses."""
        length = self.length(s)
        floor = self.floor(x)
        at_floor = state.radius <= floor
        bad = tried & ~(ratio >= self.low) & ~(taken & (self.window > 1))
        good = taken & (ratio > self.high) & (length >= _ON_THE_BOUNDARY * state.radius)
        smaller = self.shrink * torch.minimum(state.radius, torch.where(length > 0, length, state.radius))
        radius = torch.where(bad, smaller, torch.where(good, self.grow * state.radius, state.radius))
        radius = torch.minimum(torch.maximum(radius, floor), floor.clamp_min(self.max_radius))
        state.radius, state.frozen = self._agreed(radius, state.frozen | (bad & at_floor))
        state.length = torch.where(taken, length, 0.0)
        steps, done = int(tried.sum()), int(taken.sum())
        state.accepted += done
        state.rejected += steps - done
        if steps:
            state.share = _MEMORY_OF_SHARE * state.share + (1 - _MEMORY_OF_SHARE) * done / steps
        self._conclude(state)

    def _conclude(self, state: TrustRegionState) -> None:
        """Set the status once no row can go on."""
        if bool(state.frozen.all()):
            state.status = Status.stalled if bool(torch.isfinite(state.value).any()) else Status.diverged

    def length(self, s: Tensor) -> Tensor:
        """Return the norm of every row, shape (..., 1)."""
        if self.norm == "inf":
            return s.abs().amax(-1, keepdim=True)
        return dot(s, s).sqrt()

    def _agreed(self, *numbers: Tensor) -> list[Tensor]:
        """Return the numbers of rank 0, so that ranks whose last digits differ decide alike."""
        if self.comm.ranks == 1:
            return list(numbers)
        spoken = self.comm.sum_scalars([float(v) if self.comm.rank == 0 else 0.0 for v in numbers])
        return [
            torch.tensor([number], dtype=v.dtype, device=v.device) for v, number in zip(numbers, spoken, strict=True)
        ]

    # ------------------------------------------------------------------------------------------- the sub-problem

    def _propose(self, f: Objective, x: Tensor, g: Tensor, state: TrustRegionState) -> tuple[Tensor, Tensor]:
        """Return a step inside the trust region, and the decrease that the model promises; rows that are frozen: 0."""
        radius = torch.where(state.frozen, 0.0, state.radius)
        if self.norm == "inf":
            s = self._in_box(g, self._box(f, x, radius, state), state)
            decrease = self._decrease(g, s, state)
        else:
            s, decrease = state.pairs.minimise_in_ball(g, radius)
            if state.centre is not None:
                s, decrease = self._confined(g, x - state.centre, s, decrease, radius, state)
        return torch.where(state.frozen, 0.0, s), torch.where(state.frozen, 0.0, decrease)

    def _decrease(self, g: Tensor, s: Tensor, state: TrustRegionState) -> Tensor:
        return -dot(s, torch.add(g, state.pairs.product(s), alpha=0.5))

    def _box(self, f: Objective, x: Tensor, radius: Tensor, state: TrustRegionState) -> Bounds:
        """Return the steps that the radius, the bounds and the ball around the centre allow."""
        lower, upper = (-radius).expand_as(x), radius.expand_as(x)
        if state.centre is not None:
            lower = torch.maximum(lower, state.centre - state.reach - x)
            upper = torch.minimum(upper, state.centre + state.reach - x)
        if not f.bounds.is_free:
            lower, upper = torch.maximum(lower, f.bounds.lower - x), torch.minimum(upper, f.bounds.upper - x)
        return Bounds(lower.clamp_max(0.0), upper.clamp_min(0.0))

    def _in_box(self, g: Tensor, box: Bounds, state: TrustRegionState) -> Tensor:
        """Return the minimiser of the linear model in the box, improved by projected steps where B is not zero."""
        s = torch.where(g > 0, box.lower, torch.where(g < 0, box.upper, 0.0))
        if state.pairs.is_empty:
            return s
        around, _ = state.pairs.minimise_in_ball(g, torch.maximum(box.upper, -box.lower).norm(dim=-1, keepdim=True))
        return model_step(self._projected, state.pairs.product, g, s, box, around)

    def _confined(
        self, g: Tensor, away: Tensor, s: Tensor, decrease: Tensor, radius: Tensor, state: TrustRegionState
    ) -> tuple[Tensor, Tensor]:
        """Replace steps that leave the ball around the centre; `away` is the way from the centre to x.

        First choice: toward the minimiser of the model in that ball, as far as the radius allows (the way there is in
        the ball). Where the model does not fall on it: toward the minimiser of the linear model, exactly (a Frank-Wolfe
        step, on which the slope is not positive).
        """
        leaves = self.length(away + s) > state.reach
        if not bool(leaves.any()):
            return s, decrease
        inside = state.pairs.minimise_in_ball(g - state.pairs.product(away), state.reach)[0] - away
        inside.mul_((radius / self.length(inside).clamp_min(1e-300)).clamp_max(1.0))
        promised = self._decrease(g, inside, state)
        if bool((leaves & ~(promised > 0)).any()):
            size = self.length(g)
            linear = g * torch.where(size > 0, -state.reach / size.clamp_min(1e-300), 0.0) - away
            linear.mul_((radius / self.length(linear).clamp_min(1e-300)).clamp_max(1.0))
            curvature, slope = dot(linear, state.pairs.product(linear)), dot(linear, g)
            t = torch.where(curvature > 0, (-slope / curvature.clamp_min(1e-300)).clamp(0.0, 1.0), 1.0)
            inside = torch.where(promised > 0, inside, t * linear)
            promised = self._decrease(g, inside, state)
        return torch.where(leaves, inside, s), torch.where(leaves, promised, decrease)


@dataclass(frozen=True)
class Trial:
    """What is known of a trial point.

    Attributes
    ----------
    point : Tensor, shape (..., n)
    value : Tensor, shape (..., 1)
    gain : Tensor, shape (..., 1)
        Decrease of f.
    unclear : Tensor, shape (..., 1), bool
        The values differ by rounding alone, so that the gain comes from gradients.
    g : Tensor, shape (..., n), or None
    """

    point: Tensor
    value: Tensor
    gain: Tensor
    unclear: Tensor
    g: Tensor | None


@dataclass
class TrustRegionState(State):
    """State of `TrustRegion`; one row per member of a batch.

    Attributes
    ----------
    radius : Tensor, shape (..., 1)
    values : Tensor, shape (..., at most window)
        Latest values, newest first, valid for the `gradient` that came with the newest.
    gradient : Tensor or None
    pairs : Secant
    length : Tensor, shape (..., 1)
        Of the latest step, 0 where it was refused.
    frozen : Tensor, shape (..., 1), bool
        Rows that cannot go on.
    share : float
        Running share of trials that were taken.
    descent : Tensor, shape (..., 1)
        Sum of the decreases so far, or since `confine`: more accurate than the difference of two values.
    centre : Tensor or None
        All iterates stay within `reach` of it, a Tensor of shape (..., 1), in the norm of the trust region.
    """

    radius: Tensor = field(default_factory=lambda: torch.empty(0))
    values: Tensor = field(default_factory=lambda: torch.empty(0))
    gradient: Tensor | None = field(default=None, repr=False)
    pairs: Secant = field(default_factory=lambda: Secant.empty(torch.empty(0), 0), repr=False)
    length: Tensor = field(default_factory=lambda: torch.empty(0))
    frozen: Tensor = field(default_factory=lambda: torch.empty(0))
    share: float = 1.0
    descent: Tensor = field(default_factory=lambda: torch.tensor(0.0))
    centre: Tensor | None = field(default=None, repr=False)
    reach: Tensor = field(default_factory=lambda: torch.tensor(torch.inf))

    @property
    def value(self) -> Tensor:
        """Value at the iterate, shape (..., 1)."""
        return self.values[..., :1]

    @property
    def highest(self) -> Tensor:
        """Largest value in the window, shape (..., 1)."""
        return self.values.amax(-1, keepdim=True)

    def confine(self, centre: Tensor, reach: Tensor) -> None:
        """Start anew at `centre`, to stay within `reach` of it; pairs are kept."""
        self.centre, self.reach = centre, reach
        self.radius = torch.minimum(self.radius, reach)
        self.frozen = torch.zeros_like(self.frozen)
        self.descent = torch.zeros_like(self.radius)
        self.gradient, self.status = None, None
