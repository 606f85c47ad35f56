"""Trust-region methods with first-order and limited-memory models, for one vector or a batch of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import Bounds, Objective, remember, value_and_gradient
from mldd.loop import Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.adagrad import AdaGrad, model_step
from mldd.solvers.parts import Flags, Floats, Secant, column, inner, numbers
from mldd.solvers.trust_region_state import Radius, TrialPoint, TrustRegionState

Model = Literal["first-order", "sr1", "bfgs"]
Norm = Literal["2", "inf"]

# A value costs about a third of a gradient. Value and gradient of a trial in one sweep, 1, are cheaper than the value
# first and the gradient after acceptance, 1/3 + share, from this share on.
_WORTH_THE_GRADIENT = 2.0 / 3.0
_MEMORY_OF_SHARE = 0.7
_TINY = 1e-300
_ON_THE_BOUNDARY = 0.8  # a step of this part of the radius makes it grow


@dataclass(frozen=True)
class TrustRegion:
    r"""``x <- x + s``, s a minimiser of ``q(s) = g^T s + s^T B s / 2`` over ``|s| <= radius``, if f falls with q.

    With rho = (f(x) - f(x + s)) / -q(s): the step is taken where ``rho >= accept``; the radius shrinks where ``rho <
    low`` and grows where ``rho > high`` and the step ends near the boundary. Values that differ by less than their
    rounding error count as equal; the decrease is then ``-(g(x) + g(x + s))^T s / 2`` (trapezoidal rule), so that steps
    are taken down to the rounding of the gradient. Where the radius falls to its floor, the larger of `smallest` and
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
    radius : Radius
        The first radius, its limits, and when it shrinks and grows.
    window : int
        The decrease is that from the largest value at so many latest iterates; 1 for a monotone method.
    memory : int
        Pairs of the BFGS or SR1 model.
    model_steps : int
        Projected steps in the infinity norm.
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
    radius: Radius = Radius()
    window: int = 1
    memory: int = 10
    model_steps: int = 10
    comm: Communicator = SERIAL

    batched: ClassVar[bool] = True
    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        for name, known in (("model", ("first-order", "sr1", "bfgs")), ("norm", ("2", "inf"))):
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` must be one of {', '.join(known)}, got {getattr(self, name)!r}")
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
        """Return a state for vectors like `x`.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Vectors of the shape of the iterate.
        """
        p = x.shape[:-1].numel()
        radius, zero = torch.full((p,), self.radius.initial, dtype=torch.float64), torch.zeros(p, dtype=torch.float64)
        return TrustRegionState(
            radius=radius,
            values=torch.full((p, self.window), -torch.inf, dtype=torch.float64),
            length=zero,
            frozen=torch.zeros(p, dtype=torch.bool),
            descent=zero.clone(),
            pairs=Secant.empty(x, self.memory, self.model) if self.model != "first-order" else Secant.empty(x, 0),
            reach=torch.full((p,), torch.inf, dtype=torch.float64),
        )

    def step(self, objective: Objective, x: Tensor, state: TrustRegionState) -> tuple[Tensor, TrustRegionState]:
        """Do one step in place."""
        self.advance(objective, x, state)
        return x, state

    def advance(self, f: Objective, x: Tensor, state: TrustRegionState, *, last: bool = False) -> None:
        """Do one step in place; after the `last` one no gradient is needed, only the value.

        Parameters
        ----------
        f : Objective
            One that remembers its latest gradient.
        x : Tensor, shape (n,) or (p, n)
            The iterate, written to where a step is taken.
        state : TrustRegionState
            Radius, values and pairs, written to.
        last : bool
            No step follows: only the value is needed at the new point.
        """
        g = self.locate(f, x, state)
        if state.status is not None:
            return
        s, decrease = self._propose(f, x, g, state)
        self.settle(f, x, s, decrease, state, last=last)

    def locate(self, f: Objective, x: Tensor, state: TrustRegionState) -> Tensor:
        """Return the gradient at `x`; at a point that is new to the state, evaluate the value too.

        Parameters
        ----------
        f : Objective
            One that remembers its latest gradient.
        x : Tensor, shape (n,) or (p, n)
            The iterate, written to where a step is taken.
        state : TrustRegionState
            Radius, values and pairs, written to.
        """
        g = f.gradient(x)
        if g is not state.gradient:  # the first step, another sample, or a point that was moved from outside
            value = self._agreed(numbers(f.value(x)))[0]
            values = np.full((len(value), self.window), -np.inf)
            values[:, 0] = value
            state.values, state.gradient = torch.from_numpy(values), g
            state.frozen = torch.from_numpy(state.frozen.numpy() | ~np.isfinite(value))
            self._conclude(state)
        return g

    def settle(
        self, f: Objective, x: Tensor, s: Tensor, decrease: Floats, state: TrustRegionState, *, last: bool = False
    ) -> None:
        """Try the step `s`, for which a model promises `decrease`; go there or not, and update radius and pairs.

        Parameters
        ----------
        f : Objective
            One that remembers its latest gradient.
        x : Tensor, shape (n,) or (p, n)
            The iterate, written to where a step is taken.
        s : Tensor, shape (n,) or (p, n)
            A step.
        decrease : array, shape (p,)
            What the model promises.
        state : TrustRegionState
            Radius, values and pairs, written to.
        last : bool
            No step follows: only the value is needed at the new point.
        """
        g = state.gradient
        assert g is not None  # noqa: S101
        length, size, point = self.length(s), self.length(x), x + s
        tried = ~state.frozen.numpy() & (inner(g, g) > 0)
        lost = length <= torch.finfo(x.dtype).eps * size  # in rounding, if x + s is x
        if lost.any():
            lost &= (point == x).all(-1).reshape(-1).cpu().numpy()
        decrease, tried, lost, length, floor = self._agreed(decrease, tried, lost, length, self._floor(size, x))
        hopeful = tried & (decrease > 0)
        frozen, hopeful = state.frozen.numpy() | (hopeful & lost), hopeful & ~lost
        ratio, taken = np.zeros_like(decrease), np.zeros_like(tried)
        if hopeful.any():
            trial = self._evaluate(f, point, s, decrease, hopeful, state, last)
            with np.errstate(all="ignore"):
                best = np.where(trial.unclear, trial.gain, trial.gain + (state.highest - state.value))
                ratio = np.where(hopeful, trial.gain / np.maximum(decrease, _TINY), 0.0)
            taken = hopeful & (best >= self.radius.accept * decrease) & (best > 0) & np.isfinite(trial.value)
            if self.model != "first-order" and trial.g is not None and not last:
                state.pairs.push(s, trial.g - g)
            state.descent = torch.from_numpy(state.descent.numpy() + np.where(taken, trial.gain, 0.0))
            self._move(f, x, trial, taken, state)
        self._resize(length, floor, ratio, tried, taken, frozen, state)

    def _evaluate(
        self,
        f: Objective,
        point: Tensor,
        s: Tensor,
        decrease: Floats,
        hopeful: Flags,
        state: TrustRegionState,
        last: bool,
    ) -> TrialPoint:
        """Evaluate f where it is needed: the value always, the gradient where it is cheaper now or the step is good."""
        g: Tensor | None = None
        if last or (point.dim() == 1 and state.share <= _WORTH_THE_GRADIENT):
            values = f.value(point)
        else:
            values, g = value_and_gradient(f, point)
        value = self._agreed(numbers(values))[0]
        with np.errstate(invalid="ignore"):
            gain, fall = state.value - value, state.highest - value
        unclear = (np.abs(gain) <= 10 * torch.finfo(point.dtype).eps * np.abs(state.value)) & hopeful
        if g is None:
            good = np.isfinite(gain) & (fall >= self.radius.accept * decrease)
            if (unclear if last else unclear | good).any():
                g = f.gradient(point)
        if g is not None and unclear.any():
            assert state.gradient is not None  # noqa: S101
            gain = np.where(unclear, self._agreed(-0.5 * inner(state.gradient + g, s))[0], gain)
        return TrialPoint(point, value, gain, unclear, g)

    def _move(self, f: Objective, x: Tensor, trial: TrialPoint, taken: Flags, state: TrustRegionState) -> None:
        """Go to the trial where it was `taken`, and remember what is known there."""
        g = state.gradient
        assert g is not None  # noqa: S101
        values = state.values.numpy()
        shifted = np.concatenate([trial.value[:, None], values[:, :-1]], 1)
        state.values = torch.from_numpy(np.where(taken[:, None], shifted, values))  # a refusal is no new iterate
        if taken.any():
            everywhere, where = bool(taken.all()), column(taken, x)
            x.copy_(trial.point if everywhere else torch.where(where, trial.point, x))
            if trial.g is None:  # the last step
                state.gradient = None
                return
            state.gradient = trial.g if everywhere else torch.where(where, trial.g, g)
        remember(f, x, state.gradient if state.gradient is not None else g)

    def follow(
        self, f: Objective, x: Tensor, s: Tensor, there: Tensor, coarse: TrustRegionState, state: TrustRegionState
    ) -> None:
        """Take the step `s`, and the radius and values, that a trust-region method in a subspace ended with.

        Parameters
        ----------
        f : Objective
            One that remembers its latest gradient.
        x : Tensor, shape (n,) or (p, n)
            The iterate, written to where a step is taken.
        s : Tensor, shape (n,) or (p, n)
            A step.
        there : Tensor, shape (n,)
            Gradient at ``x + s``.
        coarse : TrustRegionState
            State of the method in the subspace after its steps.
        state : TrustRegionState
            Radius, values and pairs, written to.
        """
        g, length = state.gradient, self.length(s)
        moved = bool(length > 0)
        assert g is not None  # noqa: S101
        if moved:
            if self.model != "first-order":
                state.pairs.push(s, there - g)
            x.add_(s)
            state.gradient, state.values = there, coarse.values
        state.length = torch.from_numpy(length)
        state.accepted += moved
        state.rejected += not moved
        floor = self._floor(self.length(x), x)
        frozen = state.frozen.numpy() | ((coarse.radius.numpy() <= floor) & (not moved))
        radius, frozen = self._agreed(np.maximum(coarse.radius.numpy(), floor), frozen)
        state.radius, state.frozen = torch.from_numpy(radius), torch.from_numpy(frozen)
        remember(f, x, there if moved else g)
        self._conclude(state)

    def _floor(self, size: Floats, x: Tensor) -> Floats:
        """Return the least radius at x of length `size`: the rounding of x, at zero a part of the first radius."""
        eps = torch.finfo(x.dtype).eps
        return np.maximum(4 * eps * size, max(self.radius.smallest, eps**1.5 * self.radius.initial))

    def _resize(
        self,
        length: Floats,
        floor: Floats,
        ratio: Floats,
        tried: Flags,
        taken: Flags,
        frozen: Flags,
        state: TrustRegionState,
    ) -> None:
        """Update radii, counts and statuses after steps of this `length`."""
        radius = state.radius.numpy()
        bad = tried & ~(ratio >= self.radius.low) & ~(taken & (self.window > 1))
        good = taken & (ratio > self.radius.high) & (length >= _ON_THE_BOUNDARY * radius)
        smaller = self.radius.shrink * np.minimum(radius, np.where(length > 0, length, radius))
        state.frozen = torch.from_numpy(frozen | (bad & (radius <= floor)))
        radius = np.where(bad, smaller, np.where(good, self.radius.grow * radius, radius))
        state.radius = torch.from_numpy(np.clip(radius, floor, np.maximum(floor, self.radius.largest)))
        state.length = torch.from_numpy(np.where(taken, length, 0.0))
        steps, done = int(tried.sum()), int(taken.sum())
        state.accepted += done
        state.rejected += steps - done
        if steps:
            state.share = _MEMORY_OF_SHARE * state.share + (1 - _MEMORY_OF_SHARE) * done / steps
        self._conclude(state)

    def _conclude(self, state: TrustRegionState) -> None:
        """Set the status once no row can go on."""
        if state.frozen.numpy().all():
            state.status = Status.stalled if np.isfinite(state.value).any() else Status.diverged

    def length(self, s: Tensor) -> Floats:
        """Return the norm of s, or of its rows, shape (p,).

        Parameters
        ----------
        s : Tensor, shape (n,) or (p, n)
            A step.
        """
        return numbers(torch.linalg.vector_norm(s, torch.inf if self.norm == "inf" else 2, dim=-1))

    def _agreed(self, *arrays: Any) -> list[Any]:
        """Return the numbers of rank 0, so that ranks whose last digits differ decide alike."""
        if self.comm.ranks == 1:
            return list(arrays)
        spoken = self.comm.sum_scalars([float(v[0]) if self.comm.rank == 0 else 0.0 for v in arrays])
        return [np.array([number], dtype=v.dtype) for v, number in zip(arrays, spoken, strict=True)]

    # ------------------------------------------------------------------------------------------- the sub-problem

    @np.errstate(all="ignore")
    def _propose(self, f: Objective, x: Tensor, g: Tensor, state: TrustRegionState) -> tuple[Tensor, Floats]:
        """Return a step inside the trust region, and the decrease that the model promises; rows that are frozen: 0."""
        frozen = state.frozen.numpy()
        radius = np.where(frozen, 0.0, state.radius.numpy())
        if self.norm == "inf":
            s = self._in_box(g, self._box(f, x, radius, state), state)
            decrease = self._decrease(g, s, state)
        else:
            away = None if state.centre is None else x - state.centre
            s, decrease = state.pairs.minimise_in_ball(g, radius, away, state.reach.numpy())
        if frozen.any():
            s, decrease = torch.where(column(frozen, s), 0.0, s), np.where(frozen, 0.0, decrease)
        return s, decrease

    def _decrease(self, g: Tensor, s: Tensor, state: TrustRegionState) -> Floats:
        return -inner(s, torch.add(g, state.pairs.product(s), alpha=0.5))

    def _box(self, f: Objective, x: Tensor, radius: Floats, state: TrustRegionState) -> Bounds:
        """Return the steps that the radius, the bounds and the ball around the centre allow."""
        lower, upper = column(-radius, x).expand_as(x), column(radius, x).expand_as(x)
        if state.centre is not None:
            reach = column(state.reach.numpy(), x)
            lower = torch.maximum(lower, state.centre - reach - x)
            upper = torch.minimum(upper, state.centre + reach - x)
        if not f.bounds.is_free:
            lower, upper = torch.maximum(lower, f.bounds.lower - x), torch.minimum(upper, f.bounds.upper - x)
        return Bounds(lower.clamp_max(0.0), upper.clamp_min(0.0), False)

    def _in_box(self, g: Tensor, box: Bounds, state: TrustRegionState) -> Tensor:
        """Return the minimiser of the linear model in the box, improved by projected steps where B is not zero."""
        s = torch.where(g > 0, box.lower, torch.where(g < 0, box.upper, 0.0))
        if state.pairs.is_empty:
            return s
        around, _ = state.pairs.minimise_in_ball(g, _lengths(torch.maximum(box.upper, -box.lower)))
        return model_step(self._projected, state.pairs.product, g, s, box, around)


def _lengths(v: Tensor) -> Floats:
    """Return the 2-norm of v, or of its rows, shape (p,)."""
    return numbers(torch.linalg.vector_norm(v, dim=-1))
