"""Newton's method with a line search for one objective or a batch of them: dense factors, or truncated CG."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from mldd.algebra import DIFFERENCES, Bounds, Objective, hessian, offers, remember, value_and_gradient, with_products
from mldd.loop import State, Status
from mldd.solvers.parts import Factors, colours, half_bandwidth, hessians, truncated_cg

_LARGEST = 512  # unknowns of a row whose dense H is worth its memory and n^3 operations


@dataclass(frozen=True)
class NewtonCG:
    r"""Newton's method ``x <- x + t d``, ``H(x) d = -g(x)``, on every row of a (p, m) batch at once, or on one vector.

    Short rows: H is put together by products with unit vectors (three are enough where the objective says with ``band =
    1`` that H is tridiagonal) and factorised by Cholesky; where it is not positive definite, ``|H| = V |Lambda| V^T``
    takes its place, small eigenvalues raised to ``sqrt(eps) |lambda|_max``. Long rows: conjugate gradients until ``||H
    d + g|| <= eta ||g||``, ``eta = min(forcing, (||g|| / ||g_0||)^(1/2))``, which gives superlinear convergence; at a
    direction p of negative curvature the last step is ``p ||r||^2 / |p^T H p|``, and CG ends. Both make d a descent
    direction that follows negative curvature away from saddle points; how often that happened is noted in the state.

    The step length is found by halving or better (safeguarded quadratic interpolation) until ``f(x + t d) <= f(x) + c1
    t <g, d>``, row by row; where rounding hides the decrease of f, the norm of the gradient has to fall by the factor
    ``(1 + forcing) / 2``. Rows that have converged, or can be improved no more, stay put.

    Where the objective offers no Hessian products, differences of its gradients take their place, with a note.

    Parameters
    ----------
    rtol : float
        A row has converged when the 2-norm of its gradient has fallen by this factor since `init`.
    forcing : float
        Upper bound of eta, in (0, 1).
    dense : int
        Most Hessian products that putting a dense H together may take.
    cg_steps : int
        Most iterations of CG per step.
    c1 : float
        Constant of sufficient decrease, in (0, 1/2).
    backtracks : int
        Most trial points of a line search.

    Raises
    ------
    ValueError
        Hyper-parameters out of range.

    References
    ----------
    Nocedal and Wright, Numerical Optimization (2006), algorithm 7.1 and section 3.4 (``|H|``); Dembo, Eisenstat and
    Steihaug, SIAM J. Numer. Anal. 19 (1982): forcing terms. The length of the step along negative curvature is
    that of ``|H|``; algorithm 7.1 stops before it.
    """

    batched: ClassVar[bool] = True

    rtol: float = 0.0
    forcing: float = 0.5
    dense: int = 64
    cg_steps: int = 200
    c1: float = 1e-4
    backtracks: int = 40

    def __post_init__(self) -> None:
        """Check the hyper-parameters."""
        if not 0 <= self.rtol < 1:
            raise ValueError(f"`rtol` must be in [0, 1), got {self.rtol}")
        if not 0 < self.forcing < 1:
            raise ValueError(f"`forcing` must be in (0, 1), got {self.forcing}")
        if not self.dense >= 0:
            raise ValueError(f"`dense` must be >= 0, got {self.dense}")
        for name in ("cg_steps", "backtracks"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` must be > 0, got {getattr(self, name)}")
        if not 0 < self.c1 < 0.5:
            raise ValueError(f"`c1` must be in (0, 0.5), got {self.c1}")

    def init(self, objective: Objective, x: Tensor) -> NewtonState:
        """Note the norms of the gradients at the start.

        Raises
        ------
        ValueError
            The objective has bounds (other than unknowns that are fixed, as padding is).
        """
        state = NewtonState(fixed=_fixed(objective.bounds))
        state.first = torch.linalg.vector_norm(state.free(objective.gradient(x)), dim=-1)
        state.stuck = torch.full_like(state.first, -1.0)
        return state

    def step(self, objective: Objective, x: Tensor, state: NewtonState) -> tuple[Tensor, NewtonState]:
        """Do one step of every row that has not converged, in place."""
        g = objective.gradient(x)
        if g is not state.gradient:  # the first step, another sample, or a point that was moved from outside
            state.values = objective.value(x)
        r, norms, active = self._active(g, state)
        if bool(active.any()):
            if not offers(objective, "hessian_product"):
                state.note(DIFFERENCES)
            d = self._direction(with_products(objective, x, g), x, r, norms, active, state)
            fall = 0.5 * (1.0 + self.forcing)
            search = Armijo(self.c1, self.backtracks, fall)
            found = search.run(objective, x, d, Here(state.values, g, state.fixed), active)
            failed = active & ~found.moved
            state.stuck = torch.where(failed, norms, state.stuck)
            state.accepted += int(found.moved.sum())
            state.rejected += int(failed.sum())
            state.values, g = found.values, found.g
            x.add_(found.step)
            _, norms, active = self._active(g, state)
        if not bool(active.any()):
            state.status = _verdict(norms, state)
        state.gradient = g
        remember(objective, x, g)
        return x, state

    def _active(self, g: Tensor, state: NewtonState) -> tuple[Tensor, Tensor, Tensor]:
        """Return the gradient without fixed unknowns, its norms, and which rows are worth another step."""
        r = state.free(g)
        norms = torch.linalg.vector_norm(r, dim=-1)
        return r, norms, torch.isfinite(norms) & (norms > self.rtol * state.first) & (norms != state.stuck)

    def _direction(
        self, f: Objective, x: Tensor, r: Tensor, norms: Tensor, active: Tensor, state: NewtonState
    ) -> Tensor:
        """Return a descent direction of every active row, zero for the others."""
        here = hessian(f, x)

        def product(v: Tensor) -> Tensor:
            return state.free(here.product(state.free(v)))

        band = half_bandwidth(f)
        if colours(r.shape[-1], band) <= self.dense and r.shape[-1] <= _LARGEST:
            factors = Factors.of(hessians(product, r, band), active)
            d, negative = factors.solve(r).neg_(), factors.negative
        else:
            eta = torch.sqrt(norms / state.first).clamp_(max=self.forcing)
            found = truncated_cg(product, -r, eta * norms, active, self.cg_steps)
            d, negative = found.x, found.negative
        state.note("negative curvature", int((negative & active).sum()))
        # Not so only where rounding, or a Hessian that is not finite, has spoilt the solve.
        descends = (r * d).sum(-1) < 0
        d = torch.where(descends[..., None], d, -r)
        return torch.where(active[..., None], d, 0.0)


@dataclass
class NewtonState(State):
    """State of `NewtonCG`.

    Attributes
    ----------
    first : Tensor, shape () or (p,)
        Norm of the gradients at the start.
    stuck : Tensor, shape () or (p,)
        Norm of the gradient where the last line search of the row failed, -1 if none did: not tried twice.
    values : Tensor, shape () or (p,)
        Objectives at the iterate, valid for the `gradient` that came with them.
    gradient : Tensor or None
        The gradients at the iterate, where they are known.
    fixed : Tensor or None
        Unknowns whose bounds coincide.
    """

    first: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    stuck: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    values: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    gradient: Tensor | None = field(default=None, repr=False)
    fixed: Tensor | None = field(default=None, repr=False)

    def free(self, v: Tensor) -> Tensor:
        """Return `v`, zero at fixed unknowns.

        Parameters
        ----------
        v : Tensor, shape (m,) or (p, m)
            Any vectors.
        """
        return _free(v, self.fixed)


def _free(v: Tensor, fixed: Tensor | None) -> Tensor:
    return v if fixed is None else v.masked_fill(fixed, 0.0)


def _fixed(bounds: Bounds) -> Tensor | None:
    """Return which unknowns are fixed, None if none is; refuse other bounds."""
    if bounds.is_free:
        return None
    fixed = bounds.lower == bounds.upper
    if not bool((fixed | (torch.isinf(bounds.lower) & torch.isinf(bounds.upper))).all()):
        raise ValueError("newton needs an objective without bounds, got one with bounds; use tao:bntr or adagrad")
    return fixed


def _verdict(norms: Tensor, state: NewtonState) -> Status | None:
    """Return why no row can be improved."""
    if not bool(torch.isfinite(norms).all()):
        return Status.diverged
    if bool(((norms == state.stuck) & (norms > 0)).any()):
        return Status.stalled
    return Status.converged_rtol if bool((norms > 0).any()) else Status.converged_atol


@dataclass(frozen=True)
class Here:
    """What is known where a line search starts.

    Parameters
    ----------
    values : Tensor, shape () or (p,)
        Objectives.
    g : Tensor, shape (m,) or (p, m)
        Gradients.
    fixed : Tensor, optional
        Unknowns that do not move.
    """

    values: Tensor
    g: Tensor
    fixed: Tensor | None = None


@dataclass(frozen=True)
class Found:
    """Where a line search ends; what did not move has step zero, and values and gradients as before.

    Parameters
    ----------
    step, g : Tensor, shape (m,) or (p, m)
        The steps, and the gradients at their ends.
    values : Tensor, shape () or (p,)
        Objectives at the ends.
    moved : Tensor, shape () or (p,), bool
        Rows whose search has succeeded.
    """

    step: Tensor
    g: Tensor
    values: Tensor
    moved: Tensor


@dataclass(frozen=True)
class Armijo:
    """Backtracking from step length one, row by row.

    A trial is taken where ``f(x + t d) <= f(x) + c1 t <g, d>``, or, where the decrease ``-t <g, d>`` drowns in the
    rounding of f, if the norm of the gradient falls by the factor `fall`, as it does where Newton's method converges.

    Parameters
    ----------
    c1 : float
        Constant of sufficient decrease, in (0, 1/2).
    backtracks : int
        Most trials.
    fall : float
        Factor on the norm of the gradient, in (0, 1).
    """

    c1: float
    backtracks: int
    fall: float

    def run(self, f: Objective, x: Tensor, d: Tensor, here: Here, active: Tensor) -> Found:
        """Return where searches along `d` in the active rows end; `x` is not written to.

        Parameters
        ----------
        f : Objective
            The objective.
        x : Tensor, shape (m,) or (p, m)
            Where the searches begin.
        d : Tensor, shape (m,) or (p, m)
            Directions.
        here : Here
            What is known at x.
        active : Tensor, shape () or (p,), bool
            Rows that take part.
        """
        r = _free(here.g, here.fixed)
        slope, norms, t = (r * d).sum(-1), torch.linalg.vector_norm(r, dim=-1), torch.ones_like(here.values)
        noise = 10.0 * torch.finfo(x.dtype).eps * here.values.abs()
        todo, moved = active, torch.zeros_like(active)
        step, g, values = torch.zeros_like(d), here.g, here.values
        for _ in range(self.backtracks):
            trial = torch.where(todo[..., None], d * t[..., None], step)
            value, gradient = value_and_gradient(f, x + trial)
            blind = -t * slope <= noise
            falls = torch.linalg.vector_norm(_free(gradient, here.fixed), dim=-1) <= self.fall * norms
            clear = value <= here.values + self.c1 * t * slope
            done = todo & torch.where(blind, falls & (value <= here.values + noise), clear) & torch.isfinite(value)
            step = torch.where(done[..., None], trial, step)
            g = torch.where(done[..., None], gradient, g)
            values, moved = torch.where(done, value, values), moved | done
            todo = todo & ~done & ~blind  # a shorter step can only be more blind
            if not bool(todo.any()):
                break
            t = torch.where(todo, _shorter(t, slope, value - here.values), t)
        return Found(step, g, values, moved)


def _shorter(t: Tensor, slope: Tensor, rise: Tensor) -> Tensor:
    """Return the minimiser of the parabola through the last trial, between t/10 and t/2 (t/2 where it is infinite)."""
    parabola = -slope * t * t / (2.0 * (rise - slope * t))
    return torch.where(torch.isfinite(parabola), torch.clamp(parabola, 0.1 * t, 0.5 * t), 0.5 * t)
