"""ML-ADAGB2: recursive bound-constrained AdaGrad over a hierarchy of levels, without function values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Corrected,
    Hessian,
    Hierarchy,
    Objective,
    Remembered,
    Rule,
    Truncated,
    difference,
    hessian,
    offers,
    remember,
    sampled,
)
from mldd.loop import State
from mldd.solvers.adagrad import AdaGrad, AdaGradState, curvature_of, dot, taylor_step
from mldd.solvers.parts import Multigrid, conjugate_gradients, linear_stages

UNSOLVED = "levels of the nested iteration that 100 iterations did not solve to `coarse.nested`"
_MOST = 100
_FALL = 0.5  # of the criticality, by a step to the solution of the quadratic model, or of the slope along it
_SECANTS = 4
_NONLINEAR = ("bounds", "cycle", "threshold", "cap", "safeguard")  # fields that the quadratic model has no use for


@dataclass(frozen=True)
class Recursion:
    """How coarse levels are used by `MultilevelAdaGrad` and `SchwarzAdaGrad`.

    Parameters
    ----------
    model : {"nonlinear", "quadratic", "auto"}
        What a recursive iteration minimises: the first-order corrected objectives of the coarse levels, or the
        quadratic model of the finest one, by conjugate gradients that a V-cycle over all levels preconditions, for
        problems on grids. It needs Hessian products and diagonals; "auto" takes it where all levels offer them, a
        product costs no more than a gradient, and none of the fields is set that only the nonlinear model has a use for
        (`bounds`, `cycle`, `threshold`, `cap`, `safeguard`).
    steps : int
        Most iterations per visit of the coarsest level, or of conjugate gradients.
    rtol : float
        A visit of the coarsest level ends once its criticality has fallen by this factor; conjugate gradients once the
        residual has.
    bounds : {"kornhuber", "gelman-mandel", "truncated"}
        Rule for the bounds of coarse levels. "truncated" also takes active unknowns out of P (they cannot move).
    cycle : {"V", "W"}
        One or two recursive iterations per visit of an intermediate level.
    smoothing : int
        ADAGB2 iterations before and after every recursive one; with the quadratic model Jacobi steps on every level
        (there one ADAGB2 iteration follows on a recursive one that did not halve the criticality).
    threshold : float
        kappa_R of the recursion test ``||d_c||_2 >= threshold ||d||_2``.
    cap : float
        Without curvature, recursive steps are scaled back to ``|s_i| <= cap max_j Delta_j``, the current radii; 0 for
        no cap.
    safeguard : bool
        Scale the recursive step by ``theta = min(1, -g^T s / s^T B s)``. B s is a Hessian product for "truncated"
        bounds, and the difference of gradients where no curvature is used (one gradient more). The plain rules with
        curvature need no scaling.
    nested : float
        The first outer step is a nested iteration: every level but the finest, from the coarsest up, is solved until
        its criticality has fallen by this factor (in at most 100 iterations; a note says where that was not enough),
        and starts from the interpolated result of the one below; 0 for none. Not for starts that are good already.

    Raises
    ------
    ValueError
        Values out of range.
    """

    model: Literal["nonlinear", "quadratic", "auto"] = "nonlinear"
    steps: int = 20
    rtol: float = 1e-3
    bounds: Rule = "kornhuber"
    cycle: Literal["V", "W"] = "V"
    smoothing: int = 1
    threshold: float = 0.5
    cap: float = 30.0
    safeguard: bool = True
    nested: float = 0.0

    def __post_init__(self) -> None:
        """Refuse values outside of their ranges."""
        if self.model not in ("nonlinear", "quadratic", "auto"):
            raise ValueError(f"`coarse.model` must be nonlinear, quadratic or auto, got {self.model!r}")
        if self.model == "quadratic" and self.is_nonlinear:
            name = next(name for name in _NONLINEAR if getattr(self, name) != getattr(Recursion, name))
            raise ValueError(
                f"`coarse.{name}` needs `coarse.model` nonlinear or auto, got quadratic; leave one of them out"
            )
        if self.cycle not in ("V", "W"):
            raise ValueError(f"`coarse.cycle` must be V or W, got {self.cycle!r}")
        if self.bounds not in ("kornhuber", "gelman-mandel", "truncated"):
            raise ValueError(f"`coarse.bounds` must be kornhuber, gelman-mandel or truncated, got {self.bounds!r}")
        for name in ("smoothing", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"`coarse.{name}` must be >= 1, got {getattr(self, name)}")
        for name in ("rtol", "threshold", "cap", "nested"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`coarse.{name}` must be >= 0, got {getattr(self, name)}")
        if self.nested >= 1:
            raise ValueError(f"`coarse.nested` must be in [0, 1), a factor of the criticality, got {self.nested}")

    @property
    def is_nonlinear(self) -> bool:
        """Whether a field is set that only the nonlinear model has a use for."""
        return any(getattr(self, name) != getattr(Recursion, name) for name in _NONLINEAR)


@dataclass(frozen=True)
class MultilevelAdaGrad:
    r"""ML-ADAGB2: on every level, ADAGB2 iterations alternate with recursive ones.

    A recursive iteration at level k minimises the first-order corrected coarse model

        h(y) = f_{k+1}(y) + <R g - grad f_{k+1}(y0), y - y0>,    y0 = inject(x),    R = P^T,

    over coarse bounds that keep ``x + P (y - y0)`` feasible, by the iterations of level k + 1, and steps to
    ``x + theta P (y - y0)``. It is tried only if the coarse criticality is not small, ``||d_c||_2 >= threshold
    ||d||_2``. One outer step is one iteration of the finest level; the weights of a level survive from visit to visit;
    no function value is used.

    With the quadratic model a recursive iteration takes the step s with ``F (g + B s) = 0``, ``s = F s``, where F takes
    away the unknowns at a bound that the gradient holds there, and goes to ``y = project(x + s)`` if that halves the
    criticality (2-norm). If not, it goes along ``p = y - x``, by secants of the slope ``g^T p``, to where this is below
    half of what it is at x, with the other sign (a quadratic objective has then fallen); or it is refused. An ADAGB2
    iteration follows in both cases. The coarse levels see the Hessians of their own objectives at the injected iterate,
    and are fixed where the finest one is.

    Parameters
    ----------
    hierarchy : Hierarchy
        The levels, the finest first; with one level it is ADAGB2.
    smoother : AdaGrad
        The ADAGB2 iteration of every level.
    coarse : Recursion
        How coarse levels are used.

    Notes
    -----
    `coarse.cap` and `coarse.safeguard` are what lets deep first-order hierarchies converge: without them the first
    coarse steps are so long that the weights never recover.

    References
    ----------
    arXiv 2507.11513 (the recursion is a reconstruction from its theory), Kornhuber, Numer. Math. 69 (1994), for
    truncation; Hoppe, Numer. Math. 52 (1988), for linear multigrid on the free unknowns.
    """

    hierarchy: Hierarchy
    smoother: AdaGrad = AdaGrad()
    coarse: Recursion = Recursion()

    def init(self, objective: Objective, x: Tensor) -> MultilevelState:
        """Return fresh weights for every level.

        Raises
        ------
        ValueError
            A level does not offer what the quadratic model needs.
        """
        quadratic = self._is_quadratic(objective)
        fine = self.smoother.init(objective, x)
        made = MultilevelState(levels=[fine])
        if quadratic:  # ADAGB2 iterations are those of the finest level
            made.largest = [0.0] * len(self.hierarchy)
        else:
            made.smoothing_left = self.coarse.smoothing
            for level in self.hierarchy.levels[1:]:
                made.levels.append(self.smoother.init(objective, x.new_zeros(level.objective.size)))
                made.levels[-1].scale = fine.scale
        made.notes.update(fine.notes)
        return made

    def _is_quadratic(self, objective: Objective) -> bool:
        """Return whether recursive iterations minimise the quadratic model; refuse it where something is missing."""
        levels = [objective, *(level.objective for level in self.hierarchy.levels[1:])]
        if self.coarse.model == "quadratic":
            for needs in ("hessian_product", "hessian_diagonal"):
                if not all(offers(f, needs) for f in levels):
                    raise ValueError(f"`coarse.model` quadratic needs levels with `{needs}`, got none; use nonlinear")
            return True
        if self.coarse.model == "nonlinear" or self.coarse.is_nonlinear:
            return False
        return all(offers(f, "hessian_diagonal") and curvature_of(self.smoother, f) == "exact" for f in levels)

    def step(self, objective: Objective, x: Tensor, state: MultilevelState) -> tuple[Tensor, MultilevelState]:
        """Do one iteration of the finest level, in place."""
        if self.coarse.nested and state.step == 0 and len(self.hierarchy) > 1:
            self.nest(objective, x, state)
            return x, state
        state.level = 0
        self._iterate(0, objective, x, objective.gradient(x), state)
        return x, state

    def _iterate(self, k: int, f: Objective, x: Tensor, g: Tensor, state: MultilevelState) -> None:
        """Do one iteration of level `k` on `x` in place: a recursive one where it is its turn."""
        if state.smoothing_left or not self.recurse(k, f, x, g, f.bounds, state):
            taylor_step(self.smoother, f, x, g, f.bounds, state.levels[k])
            state.smoothing_left = max(0, state.smoothing_left - 1)

    def nest(self, objective: Objective, x: Tensor, state: MultilevelState) -> None:
        """Replace `x` by the result of a nested iteration, a grid sequence: see `Hierarchy.refined` for the way up.

        Parameters
        ----------
        objective : Objective
            On the finest level.
        x : Tensor, shape (n,)
            The start, written to.
        state : MultilevelState
            Its weights are not touched; it notes levels that were not solved.
        """
        starts = self.hierarchy.injected(x.clone())
        y, coarsest = starts[-1].clone(), len(self.hierarchy) - 1
        for k in range(coarsest, 0, -1):
            solver = replace(self, hierarchy=Hierarchy(self.hierarchy.levels[k:]))
            f = Remembered(sampled(self.hierarchy[k].objective, state.step))
            # Fresh weights: those of a rough start would only shorten all later steps.
            fresh = solver.init(f, f.bounds.project(y, out=y))
            fresh.step = state.step
            if state.largest:
                fresh.largest = state.largest[k:]
            if not solver._solve(f, y, fresh):
                state.note(UNSOLVED)
            if state.largest:
                state.largest[k:] = fresh.largest
            y = self.hierarchy.refined(k, y, starts)
        objective.bounds.project(y, out=x)
        state.level = coarsest

    def _solve(self, f: Objective, y: Tensor, state: MultilevelState) -> bool:
        """Iterate on the finest level until the criticality has fallen by `coarse.nested`; return whether it has.

        Where it ends above that of the start, `y` is the start again.
        """
        g, start = f.gradient(y), y.clone()
        first = last = float(torch.linalg.vector_norm(f.bounds.criticality(y, g)))
        for _ in range(_MOST):
            if last <= self.coarse.nested * first:
                return True
            self._iterate(0, f, y, g, state)
            g = f.gradient(y)
            last = float(torch.linalg.vector_norm(f.bounds.criticality(y, g)))
        if not last <= first:
            y.copy_(start)
        return False

    def recurse(self, k: int, f: Objective, x: Tensor, g: Tensor, bounds: Bounds, state: MultilevelState) -> bool:
        """Do a recursive iteration at level `k` on `x` in place; return whether `x` was moved.

        It is not where the recursion test does not allow it, nor by a step uphill (``g^T s > 0``).

        Parameters
        ----------
        k : int
            Number of the level.
        f : Objective
            The objective or model of the level.
        x : Tensor, shape (n,)
            The iterate, written to.
        g : Tensor, shape (n,)
            The gradient there.
        bounds : Bounds
            Of the iterate.
        state : MultilevelState
            Weights of all levels.
        """
        if state.largest:
            return self._to_model_solution(k, f, x, g, bounds, state)
        if k + 1 == len(self.hierarchy):
            return False
        level, d, room = self.hierarchy[k + 1], bounds.criticality(x, g), bounds.shifted(x)
        transfer = level.transfer
        assert transfer is not None  # noqa: S101 (checked by Hierarchy)
        if self.coarse.bounds == "truncated" and not bounds.is_free:
            transfer = Truncated(transfer, (room.lower >= -1e-14) | (room.upper <= 1e-14))
        y0, g_c = transfer.inject(x), transfer.restrict(g)
        box = transfer.restrict_bounds(room, self.coarse.bounds)
        box = box if box.is_free else Bounds(y0 + box.lower, y0 + box.upper, False)
        d_c = box.criticality(y0, g_c)
        if not torch.linalg.vector_norm(d_c) >= self.coarse.threshold * torch.linalg.vector_norm(d):
            state.rejected += 1
            return False
        coarse = sampled(level.objective, state.step)
        y = y0.clone()
        self.visit(k + 1, Corrected(coarse, g_c - coarse.gradient(y0), y0, box), y, g_c, box, state)
        s = transfer.prolong(y.sub_(y0))
        if not float(dot(g, s)) <= 0:  # uphill, or not finite
            state.rejected += 1
            return False
        if self.coarse.cap > 0 and curvature_of(self.smoother, f) == "none":
            s = s * self._cap(s, d, state.levels[k])
        self._advance(f, x, g, s)
        if not bounds.is_free:
            bounds.project(x, out=x)
        state.accepted += 1
        state.level = max(state.level, k + 1)
        state.smoothing_left = self.coarse.smoothing
        return True

    def _to_model_solution(
        self, k: int, f: Objective, x: Tensor, g: Tensor, bounds: Bounds, state: MultilevelState
    ) -> bool:
        """Do the recursive iteration of the quadratic model, see above; return whether `x` was moved."""
        y = bounds.project(x + self._model_solution(k, x, g, bounds, hessian(f, x), state))
        g_y, p = f.gradient(y), y - x
        before, after = (torch.linalg.vector_norm(bounds.criticality(*at)) for at in ((x, g), (y, g_y)))
        if not bool(after <= _FALL * before):
            state.smoothing_left = 1
            slope = float(dot(g, p))
            for _ in range(_SECANTS):
                there = float(dot(g_y, p))
                if not slope < 0 or there <= -_FALL * slope:
                    break
                y = bounds.project(torch.add(x, p.mul_(slope / (slope - there))), out=y)
                slope, g_y = slope * slope / (slope - there), f.gradient(y)
            if not (slope < 0 and float(dot(g_y, p)) <= -_FALL * slope):  # uphill, or not finite
                state.rejected += 1
                return False
        x.copy_(y)
        remember(f, x, g_y)
        state.accepted += 1
        state.level = len(self.hierarchy) - 1
        return True

    def _model_solution(
        self, k: int, x: Tensor, g: Tensor, bounds: Bounds, here: Hessian, state: MultilevelState
    ) -> Tensor:
        """Return the step ``s = F s`` with ``F (g + B s) = 0``, up to `coarse.rtol`."""
        free = torch.ones_like(x)
        if not bounds.is_free:
            free[((x <= bounds.lower) & (g > 0)) | ((x >= bounds.upper) & (g < 0))] = 0.0
        stages = linear_stages(self.hierarchy, k, here, x, state.step, state.largest)
        inverse = Multigrid(stages, free, self.coarse.smoothing, self.coarse.steps)
        return conjugate_gradients(here.product, inverse, -g, free, self.coarse.rtol, self.coarse.steps)

    def visit(self, k: int, f: Objective, y: Tensor, g: Tensor, bounds: Bounds, state: MultilevelState) -> None:
        """Do the iterations of one visit to level `k` >= 1 on `y` in place; `g` is the gradient of `f` at `y`.

        Parameters
        ----------
        k : int
            Number of the level.
        f : Objective
            The corrected model of the level.
        y : Tensor, shape (m,)
            The iterate, written to.
        g : Tensor, shape (m,)
            The gradient there.
        bounds : Bounds
            Of the iterate.
        state : MultilevelState
            Weights of all levels.
        """
        state.levels[k].forget()
        smooth = "T" * self.coarse.smoothing
        coarsest = k + 1 == len(self.hierarchy)
        plan = "T" * self.coarse.steps if coarsest else smooth + ("R" + smooth) * (2 if self.coarse.cycle == "W" else 1)
        solved = self.coarse.rtol * float(torch.linalg.vector_norm(bounds.criticality(y, g))) if coarsest else 0.0
        for i, kind in enumerate(plan):
            g = g if i == 0 else f.gradient(y)
            if i and coarsest and float(torch.linalg.vector_norm(bounds.criticality(y, g))) <= solved:
                break
            if kind == "T" or not self.recurse(k, f, y, g, bounds, state):
                taylor_step(self.smoother, f, y, g, bounds, state.levels[k])

    def _cap(self, s: Tensor, d: Tensor, state: AdaGradState) -> float:
        """Return the factor that makes no component of `s` longer than `cap` times the largest ADAGB2 radius."""
        squares = torch.addcmul(state.squares, d, d, out=state.scratch)
        radius = (
            self.smoother.rate
            * state.scale
            * state.shrunk
            * float(torch.sqrt(squares.reciprocal_().mul_(d).mul_(d).max()))
        )
        return min(1.0, self.coarse.cap * radius / max(float(s.abs().max()), 1e-300))

    def _advance(self, f: Objective, x: Tensor, g: Tensor, s: Tensor) -> None:
        """Add the recursive step to `x`, scaled back along itself to where its model stops decreasing."""
        curvature = curvature_of(self.smoother, f)
        curved = curvature in ("exact", "differences")
        if not self.coarse.safeguard or (curved and self.coarse.bounds != "truncated"):
            x.add_(s)
            return
        if curved:
            by_differences = curvature == "differences"
            product = difference(f.gradient, x, g, s) if by_differences else f.hessian_product(x, s)  # type: ignore[attr-defined]
            x.add_(s, alpha=_scale(g, s, product))
            return
        # Evaluated at x itself, so that a loop that remembers has the next gradient when the whole step is taken.
        theta = _scale(g, s, f.gradient(x.add_(s)) - g)
        if theta < 1.0:
            x.add_(s, alpha=theta - 1.0)


def _scale(g: Tensor, s: Tensor, Bs: Tensor) -> float:
    """Return ``min(1, -g^T s / s^T B s)`` for a step with ``g^T s <= 0``, 1 without positive curvature."""
    curvature = float(dot(s, Bs))
    return min(1.0, -float(dot(g, s)) / curvature) if curvature > 0 else 1.0


@dataclass
class MultilevelState(State):
    """State of ML-ADAGB2.

    Attributes
    ----------
    levels : list of AdaGradState
        Weights of every level.
    smoothing_left : int
        ADAGB2 iterations to do before the next recursive one.
    largest : list of float
        Estimates of the largest eigenvalue of ``D^-1 H`` on every level, 0 where it is not known yet; empty where the
        quadratic model is not used.
    """

    levels: list[AdaGradState] = field(default_factory=list)
    smoothing_left: int = 0
    largest: list[float] = field(default_factory=list)

    def forget(self) -> None:
        """Make no pair of gradients of two functions, on any level."""
        for level in self.levels:
            level.forget()
