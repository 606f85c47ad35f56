"""Nonlinear Schwarz as a fixed-point iteration with any solver on subdomains and coarse levels."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Combine,
    Corrected,
    Decomposition,
    Hierarchy,
    Objective,
    Proximal,
    Remembered,
    Rule,
    SharedDecomposition,
    sampled,
)
from mldd.loop import FINITE, REPLICATED, Solver, State, Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.adagrad import AdaGrad
from mldd.solvers.parts import BatchLBFGS, Memory, Order, Sweep, SweepState

# Solvers of subdomains and coarse levels where the user names none: without and with bounds.
_FREE = BatchLBFGS()
_BOUNDED = AdaGrad(model_steps=6)
# Change of the weight of the proximal term, and how many steps in a row may be refused while it grows.
_FACTOR = 4.0
_RETRIES = 4
# Sufficient decrease as a share of what the slope promises. Corrections by models with a linear term may be too long by
# far: one that keeps a hundredth of its promise can leave a network without an active unit, where all gradients vanish.
_ARMIJO, _PROXIMAL_ARMIJO = 1e-4, 0.1

Globalisation = Literal["auto", "line-search", "proximal", "both", "none"]


@dataclass(frozen=True)
class CoarseSolve:
    """How coarse levels are solved by `NonlinearSchwarz`.

    Parameters
    ----------
    solver : Solver, optional
        By default L-BFGS, or ADAGB2 where the objective has bounds.
    steps : int
        Steps of it per visit of a level; 0: no coarse correction.
    bounds : {"kornhuber", "gelman-mandel"}
        How bounds are restricted to coarse levels.

    Raises
    ------
    ValueError
        Values out of range.
    """

    solver: Solver | None = None
    steps: int = 20
    bounds: Rule = "kornhuber"

    def __post_init__(self) -> None:
        """Refuse values outside of their ranges."""
        if not self.steps >= 0:
            raise ValueError(f"`coarse.steps` must be >= 0, got {self.steps}")
        if self.bounds not in ("kornhuber", "gelman-mandel"):
            raise ValueError(f"`coarse.bounds` must be kornhuber or gelman-mandel, got {self.bounds!r}")


@dataclass(frozen=True)
class NonlinearSchwarz:
    r"""Nonlinear Schwarz as a fixed-point iteration: NASM, NRAS or WASM, additive or multiplicative, on any levels.

    One outer step does, in this order,

    1. with a `hierarchy`, the coarse correction of the full approximation scheme (FAS): on the next coarser level, y
       from `coarse.steps` steps of the coarse solver on ``f_c(y) + <R g(x) - g_c(y_0), y - y_0>`` from ``y_0 =
       inject(x)``, where a level that is not the coarsest is corrected by its own coarser level first; ``x <- x + P
       (y - y_0)``;
    2. a `Sweep` over the subdomains: ``x <- x + damping sum_i P_i D_i (y_i - R_i x)``;
    3. a projection to the bounds (of rounding only: ras, wasm and the damped asm are feasible, and so is P (y - y_0)).

    With exact local and coarse solves its fixed points are the critical points of f.

    Local models of subdomains that update the same unknowns (parts of a graph or of the data) are corrected to first
    order, as those of coarse levels are, and a linear term added to a cross-entropy has no lower bound. On such
    subdomains both get a proximal term ``mu_k/2 |y - y_0|^2`` by default, with y_0 where their steps begin. Its weight
    starts at ``|g| / |x|`` and is divided by four after a step that decreased f, multiplied by four after one that did
    not or that the line search shortened. A stochastic f judges a step by the sample of the next one, as steps that fit
    their own sample too well are to be told from good ones.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        Subdomains of the unknowns, or of data or graph parts.
    hierarchy : Hierarchy, optional
        Coarse levels; None or one level for a one-level method.
    local : Solver, optional
        Of subdomains; by default L-BFGS, or ADAGB2 where the objective has bounds.
    coarse : CoarseSolve
        Solver of coarse levels, its steps, and the rule for bounds.
    combine : {"ras", "wasm", "asm"}, optional
        Weights of the corrections, see `Sweep`.
    order : {"additive", "multiplicative"}
        All subdomains start from x, or each from what its predecessors have made of x.
    local_steps : int
        Steps of the local solver; 0: no sweep.
    local_rtol : float
        End the local steps once every local measure has fallen by this factor.
    damping : float
        Factor on the corrections, 0 for a safe one, see `Sweep`.
    memory : {"reset", "keep"}
        What local solvers keep from one outer step to the next, see `Sweep`.
    globalisation : {"auto", "line-search", "proximal", "both", "none"}
        "line-search": halve each correction until f decreases (Armijo), with a proximal term by a tenth of what the
        slope promises; steps in which nothing decreases it end the run as stalled. "proximal": add the proximal term to
        local and coarse models. Without a line search no function value is used to shorten a step, and convergence is
        that of the fixed-point iteration. "auto" is both where the subdomains update the same unknowns, a line search
        where they are layers of a network, and none otherwise.
    comm : Communicator
        Its ranks divide the subdomains.

    Raises
    ------
    ValueError
        Parameters out of range.

    References
    ----------
    Cai and Keyes, SIAM J. Sci. Comput. 24 (2002); Dolean, Gander, Kheriji, Kwok and Masson, arXiv 1605.04419 (nonlinear
    RAS and its FAS coarse correction); Brune, Knepley, Smith and Tu, SIAM Rev. 57 (2015); arXiv 2211.14780 (bounds).
    """

    decomposition: Decomposition | SharedDecomposition
    hierarchy: Hierarchy | None = None
    local: Solver | None = None
    coarse: CoarseSolve = CoarseSolve()
    combine: Combine | None = None
    order: Order = "additive"
    local_steps: int = 10
    local_rtol: float = 0.0
    damping: float = 0.0
    memory: Memory = "reset"
    globalisation: Globalisation = "auto"
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        known = get_args(Globalisation)
        if self.globalisation not in known:
            raise ValueError(f"`globalisation` must be one of {', '.join(known)}, got {self.globalisation!r}")
        _ = self._bounded_sweep

    @cached_property
    def _free_sweep(self) -> Sweep:
        return self._sweep_with(_FREE)

    @cached_property
    def _bounded_sweep(self) -> Sweep:
        return self._sweep_with(_BOUNDED)

    def _sweep(self, f: Objective) -> Sweep:
        return self._free_sweep if f.bounds.is_free else self._bounded_sweep

    def _sweep_with(self, default: Solver) -> Sweep:
        return Sweep(
            self.decomposition,
            default if self.local is None else self.local,
            self.local_steps,
            rtol=self.local_rtol,
            combine=self.combine,
            damping=self.damping,
            order=self.order,
            memory=self.memory,
            comm=self.comm,
        )

    @property
    def needs_value(self) -> bool:
        """Whether steps are searched along."""
        return self._has("line-search")

    @property
    def _is_proximal(self) -> bool:
        return self._has("proximal")

    def _has(self, means: str) -> bool:
        """Say whether the globalisation includes `means`."""
        if self.globalisation == "auto":
            is_shared = isinstance(self.decomposition, SharedDecomposition)
            return is_shared or (means == "line-search" and len(self.decomposition.blocks) > 1)
        return self.globalisation in (means, "both")

    def init(self, objective: Objective, x: Tensor) -> NonlinearSchwarzState:
        """Return the states of the local solvers, where they are kept."""
        return NonlinearSchwarzState(sweep=self._sweep(objective).init(objective, x))

    def step(
        self, objective: Objective, x: Tensor, state: NonlinearSchwarzState
    ) -> tuple[Tensor, NonlinearSchwarzState]:
        """Do one outer step, in place."""
        accepted, moving = state.accepted, False
        if self._is_proximal:
            self._weigh(objective, x, state)
        if self.hierarchy is not None and len(self.hierarchy) > 1 and self.coarse.steps:
            s = self.coarse_correction(objective, x, state, 0)
            state.level = len(self.hierarchy) - 1
            moving |= self._move(objective, x, s, state)
        if self.local_steps:
            moving |= self._sweep_once(objective, x, state)
        # Without any correction nothing changes either, unless the next sample of the objective differs.
        state.refused = 0 if state.accepted > accepted else state.refused + 1
        if state.refused > (_RETRIES if self._is_proximal or not moving else 0) and state.status is None:
            state.status = Status.stalled
        return x, state

    def _sweep_once(self, objective: Objective, x: Tensor, state: NonlinearSchwarzState) -> bool:
        """Do the sweep and move by its correction, with proximal terms of the weight that fits; return as `_move`."""
        sweep, accepted = self._sweep(objective), state.accepted
        moving = self._move(objective, x, sweep.correction(objective, x, state.sweep), state)
        if self._is_proximal and (state.shortened or state.accepted == accepted):
            state.sweep.proximal *= _FACTOR
        sweep.judge(state.sweep, state)
        return moving

    def _weigh(self, f: Objective, x: Tensor, state: NonlinearSchwarzState) -> None:
        """Choose the weight of the proximal term by what the last step did to `f` as it is now."""
        sweep = state.sweep
        if sweep.proximal == 0.0:
            g, size = f.gradient(x), float(torch.linalg.vector_norm(x))
            sweep.proximal = float(torch.linalg.vector_norm(g)) / (size or 1.0)
        elif not torch.equal(x, state.before):
            worse = float(f.value(x)) > float(f.value(state.before))
            sweep.proximal *= _FACTOR if worse else 1.0 / _FACTOR
        state.before = x.clone()

    def coarse_correction(self, f: Objective, x: Tensor, state: NonlinearSchwarzState, k: int) -> Tensor:
        """Return the FAS correction ``P (y - y_0)`` of level `k` from the coarser ones, shape of x.

        Parameters
        ----------
        f : Objective
            The objective or model of level `k`.
        x : Tensor, shape (n,)
            The iterate.
        state : NonlinearSchwarzState
            It has the number of the step, and the weight of the proximal term.
        k : int
            Number of the level.
        """
        assert self.hierarchy is not None  # noqa: S101
        level = self.hierarchy[k + 1]
        transfer = level.transfer
        assert transfer is not None  # noqa: S101 (checked by Hierarchy)
        y0, g = transfer.inject(x), transfer.restrict(f.gradient(x))
        room = transfer.restrict_bounds(f.bounds.shifted(x), self.coarse.bounds)
        box = room if room.is_free else Bounds(y0 + room.lower, y0 + room.upper, False)
        plain = sampled(level.objective, state.step)
        tilted, mu = Corrected(plain, g - plain.gradient(y0), y0, box), state.sweep.proximal
        model = Remembered(Proximal(tilted, mu, y0) if mu else tilted)
        y = y0.clone()
        model.keep(y, g)
        if k + 2 < len(self.hierarchy):
            y.add_(self.coarse_correction(model, y, state, k + 1))
            box.project(y, out=y)
        solver = self._coarse_solver(model, k + 1)
        mine = solver.init(model, y)
        for _ in range(self.coarse.steps):
            y, mine = solver.step(model, y, mine)
            mine.step += 1
            if mine.status is not None:
                break
        s = transfer.prolong(y.sub_(y0))
        return s if bool(torch.isfinite(s).all()) else torch.zeros_like(s)

    def _coarse_solver(self, f: Objective, k: int) -> Solver:
        """Return the solver of level `k`; one of PETSc on a level in between has the options prefix ``level_k_``."""
        solver = self.coarse.solver or (_FREE if f.bounds.is_free else _BOUNDED)
        between = self.hierarchy is not None and k + 1 < len(self.hierarchy)
        if between and getattr(solver, "prefix", None) == "coarse_":
            return replace(solver, prefix=f"level_{k}_")  # type: ignore[type-var]
        return solver

    def _move(self, f: Objective, x: Tensor, s: Tensor, state: NonlinearSchwarzState) -> bool:
        """Add the correction `s` to `x`, as far as the line search lets it; return whether there was any."""
        if not bool(s.any()):
            return False
        share = _PROXIMAL_ARMIJO if self._is_proximal else _ARMIJO
        t = _decreasing(f, x, s, share) if self.needs_value else 1.0
        state.shortened = t < 1.0
        if t > 0:
            x.add_(s, alpha=t)
            state.accepted += 1
        else:
            state.rejected += 1
        if not f.bounds.is_free:
            f.bounds.project(x, out=x)
        return True


def _decreasing(f: Objective, x: Tensor, s: Tensor, share: float) -> float:
    """Return the largest of 1, 1/2, 1/4, ... for which ``f(x + t s)`` decreases by ``share t |g^T s|``, or 0."""
    slope, before = float(torch.dot(f.gradient(x), s)), float(f.value(x))
    noise = 10 * torch.finfo(x.dtype).eps * abs(before)
    t = 1.0
    for _ in range(20):
        value = float(f.value(f.bounds.project(torch.add(x, s, alpha=t))))
        if value <= before - share * t * abs(slope) + noise:
            return t
        t *= 0.5
    return 0.0


@dataclass
class NonlinearSchwarzState(State):
    """State of `NonlinearSchwarz`.

    Attributes
    ----------
    sweep : SweepState
        What the sweep keeps, and the weight of the proximal term.
    before : Tensor, shape (n,)
        Where the last step began, by which the weight of the proximal term is judged; empty before the first.
    shortened : bool
        The line search has shortened the last correction.
    refused : int
        Steps in a row that moved nothing although there were corrections.
    """

    sweep: SweepState = field(default_factory=SweepState)
    before: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED)
    shortened: bool = False
    refused: int = 0
