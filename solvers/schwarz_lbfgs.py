"""L-BFGS preconditioned by nonlinear Schwarz: ASPQN, MSPQN and their two-level, overlapping variants."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from mldd.algebra import (
    Decomposition,
    IndexTransfer,
    MatrixTransfer,
    Objective,
    Remembered,
    SharedDecomposition,
    Transfer,
    remember,
    split,
    value_and_gradient,
)
from mldd.loop import State, Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.lbfgs import LBFGS, LbfgsState, Trial, WolfeSearch, along, lbfgs_direction
from mldd.solvers.parts import BatchLBFGS, Order, Probed, Sweep, SweepState


@dataclass(frozen=True)
class SchwarzLBFGS:
    r"""Right-preconditioned L-BFGS: a Schwarz sweep of local L-BFGS solves, then an L-BFGS step from where it led.

    One outer step does, each only if asked for,

    1. a coarse step: `coarse_steps` L-BFGS iterations on a few unknowns of all subdomains, the others frozen;
    2. `local_steps` L-BFGS iterations on every subdomain, additive (ASPQN) or multiplicative (MSPQN), and a combination
       of their corrections, ``x <- G(x)``;
    3. `global_steps` L-BFGS steps on all unknowns from G(x), ``v <- (1 - momentum) v - momentum H grad f(G(x))``,
       whose secant pair is taken between G(x) and the new iterate.

    Every phase ends in a point that is not higher than its start. A combination that finds no lower point is rejected
    (counted); an L-BFGS step that finds none is repeated from steepest descent with its memory cleared; when no phase
    moves, the status is `Status.stalled`.

    Combinations of additive corrections c_i, all over the multiplicity of their unknowns (a mean where subdomains
    overlap, the direct sum where they do not):

    - ``sum``: one strong Wolfe search along their sum, from step length 1;
    - ``search``: one such search after the other along each c_i as it is, not over the multiplicity;
    - ``span``: minimise ``f(x + D z)`` over the span of the c_i, split by layer where the decomposition knows layers,
      of the L-BFGS direction and of the previous step, by `span_steps` L-BFGS iterations. Columns are scaled by
      ``1 / sqrt(|<g, c>|)``: were each c_i the minimiser along itself, the Hessian of z would have a unit diagonal.

    A multiplicative sweep adds each correction as it is, and is searched along only where the value did not fall.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        Overlap is its matter.
    order : {"additive", "multiplicative"}
    combine : {"sum", "search", "span"}
        Of an additive sweep.
    local_steps, global_steps, span_steps, coarse_steps : int
    memory, local_memory : int
        Pairs of the global, and of the local, coarse and span iterations.
    momentum : float
        Weight of the new direction in (0, 1]; 1 for none.
    keep_pairs : bool
        Local pairs are kept from one outer step to the next instead of gathered anew.
    coarse : Transfer, optional
        Unknowns of the coarse step; by default the first layer of every subdomain (`first_layers`).
    max_evaluations : int
        Per line search.
    comm : Communicator

    Raises
    ------
    ValueError
        Parameters out of range or that exclude each other.

    Notes
    -----
    Published settings are memory 3, local_memory 10, momentum 0.9, pairs that are not kept, one subdomain per layer and
    10 to 100 local steps. Kept pairs save the many local steps that it takes to gather them anew: on a physics-informed
    network with 3,001 parameters they halve the gradients to a given error, and 20 steps do.

    References
    ----------
    arXiv 2306.17648, algorithms for ASPQN and MSPQN; ``search``, overlap and the coarse step as in public code of the
    authors of arXiv 2406.10997; ``span`` after arXiv 2601.08709, of which coefficients and solver are unpublished.
    """

    decomposition: Decomposition | SharedDecomposition
    order: Order = "additive"
    combine: Literal["sum", "search", "span"] = "search"
    local_steps: int = 20
    global_steps: int = 1
    span_steps: int = 5
    coarse_steps: int = 0
    memory: int = 10
    local_memory: int = 20
    momentum: float = 1.0
    keep_pairs: bool = True
    coarse: Transfer | None = None
    max_evaluations: int = 25
    comm: Communicator = SERIAL

    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        for name in ("local_steps", "global_steps", "coarse_steps", "span_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        if not (self.local_steps or self.global_steps or self.coarse_steps):
            raise ValueError("one of `local_steps`, `global_steps`, `coarse_steps` must be >= 1, got 0 for all")
        if self.combine not in ("sum", "search", "span"):
            raise ValueError(f"`combine` must be one of sum, search, span, got {self.combine!r}")
        if self.combine == "span" and self.span_steps == 0:
            raise ValueError("`span_steps` must be >= 1 where `combine` is span, got 0; or use combine=sum")
        _ = self.sweep, self.outer, self._inner, self._coarse if self.coarse_steps else None

    @cached_property
    def sweep(self) -> Sweep:
        """The local phase; where subdomains come one after the other, single searches have the least overhead."""
        solver = BatchLBFGS if self.order == "additive" else LBFGS
        return Sweep(
            self.decomposition,
            solver(self.local_memory, self.max_evaluations),
            self.local_steps,
            combine="wasm",
            order=self.order,
            memory="keep" if self.keep_pairs else "reset",
            comm=self.comm,
        )

    @cached_property
    def outer(self) -> LBFGS:
        """The global step."""
        return LBFGS(self.memory, self.max_evaluations, momentum=self.momentum)

    @cached_property
    def _inner(self) -> LBFGS:
        return LBFGS(self.local_memory, self.max_evaluations)

    @cached_property
    def _coarse(self) -> Transfer:
        return first_layers(self.decomposition) if self.coarse is None else self.coarse

    def init(self, objective: Objective, x: Tensor) -> SpqnState:
        """Return empty memories.

        Raises
        ------
        ValueError
            The objective has bounds.
        """
        if not objective.bounds.is_free:
            raise ValueError("spqn needs an objective without bounds, got one with bounds; use dd-adagrad or tao:blmvm")
        if x.dtype != torch.float64:
            warnings.warn(
                f"spqn: line searches end where values differ by less than their rounding error, got {x.dtype}; "
                "use float64 to go further",
                stacklevel=2,
            )
        return SpqnState(
            outer=self.outer.init(objective, x),
            sweep=self.sweep.init(objective, x) if self.local_steps else SweepState(),
            previous=torch.zeros_like(x) if self.combine == "span" else x.new_empty(0),
        )

    def step(self, objective: Objective, x: Tensor, state: SpqnState) -> tuple[Tensor, SpqnState]:
        """Do one outer step, in place."""
        outer, g = state.outer, objective.gradient(x)
        if g is not outer.gradient:  # the first step, another sample, or a point that was moved from outside
            outer.value, outer.gradient = float(objective.value(x)), g
        if not math.isfinite(outer.value):
            state.status = Status.diverged
            return x, state
        before = state.accepted
        if self.coarse_steps:
            self._minimise_in(self._coarse, objective, x, state, self.coarse_steps)
        if self.local_steps:
            self._sweep(objective, x, state)
        moved = state.accepted > before
        for _ in range(self.global_steps):
            outer.status = None
            self.outer.step(objective, x, outer)
            moved |= outer.length > 0
        if not moved:
            state.status = outer.status or self._stuck(outer.gradient)
        return x, state

    @staticmethod
    def _stuck(g: Tensor | None) -> Status | None:
        """Return what it means that nothing moved: nothing at a stationary point."""
        return None if g is None or not bool(g.any()) else Status.stalled

    def _sweep(self, objective: Objective, x: Tensor, state: SpqnState) -> None:
        """Do the local phase."""
        sweep, d = self.sweep, self.decomposition
        if self.order == "multiplicative":
            self._add(objective, x, sweep.correction(objective, x, state.sweep), state)
            return
        corrections = sweep.corrections(objective, x, state.sweep)
        if self.combine == "sum":
            self._search(objective, x, sweep.total(corrections, state.sweep), state)
        elif self.combine == "search":
            for row in self.comm.gather(d.spread(corrections * d.valid), d.parts):
                self._search(objective, x, row, state)
        else:
            self._span(objective, x, self.comm.gather(d.spread(corrections * state.sweep.weights), d.parts), state)

    def _add(self, objective: Objective, x: Tensor, s: Tensor, state: SpqnState) -> None:
        """Add a correction that should lower the value; search along it where it does not."""
        value, g = value_and_gradient(objective, x + s)
        if float(value) < state.outer.value:
            _move(objective, x, s, float(value), g, state)
        else:
            self._search(objective, x, s, state)

    def _search(self, objective: Objective, x: Tensor, d: Tensor, state: SpqnState) -> None:
        """Do a strong Wolfe search along `d`, from step length 1."""
        outer, found = state.outer, None
        g = objective.gradient(x)
        slope = float(torch.dot(g, d))
        if slope < 0:
            start = Trial(0.0, outer.value, slope, g)
            ray = along(objective, x, d, outer.trial)
            found = WolfeSearch(ray, start, self.outer.c1, self.outer.c2, self.max_evaluations).run(1.0)
        if found is None:
            state.rejected += bool(d.any())
            return
        _move(objective, x, d * found.t, found.value, found.g, state)

    def _span(self, objective: Objective, x: Tensor, rows: Tensor, state: SpqnState) -> None:
        """Minimise over the span of the rows, split by layer, the L-BFGS direction and the previous step."""
        outer, g = state.outer, objective.gradient(x)
        pieces = split(rows, self.decomposition.blocks)
        extra = [state.previous[None]] + ([lbfgs_direction(outer, g)[None]] if outer.pairs else [])
        columns = torch.cat([pieces, *extra])
        norms = torch.linalg.vector_norm(columns, dim=1)
        start = torch.zeros_like(norms)
        start[: len(pieces)] = 1.0
        keep = (norms > 0) & torch.isfinite(norms)
        columns, norms, start = columns[keep], norms[keep], start[keep]
        curvature = (columns @ g).abs()
        # A floor on the cosine, below which a slope says nothing about the curvature.
        curvature.clamp_(min=1e-4 * torch.linalg.vector_norm(g) * norms)
        factor = curvature.rsqrt()
        before = x.clone()
        space = MatrixTransfer((columns * factor[:, None]).t())
        self._minimise_in(space, objective, x, state, self.span_steps, start / factor)
        torch.sub(x, before, out=state.previous)

    def _minimise_in(
        self,
        space: Transfer,
        objective: Objective,
        x: Tensor,
        state: SpqnState,
        steps: int,
        start: Tensor | None = None,
    ) -> None:
        """Do L-BFGS steps on ``e -> f(x + P e)`` from zero, or from `start` if lower; move to the lowest point."""
        outer, g = state.outer, objective.gradient(x)
        f = Probed(objective, x, space, outer.value)
        e = g.new_zeros(f.size)
        value, slope = outer.value, space.restrict(g)
        if start is not None and len(e):
            there, there_slope = f.value_and_gradient(start)
            if float(there) < value:
                e, value, slope = start, float(there), there_slope
        remembered = Remembered(f)
        remembered.keep(e, slope)
        inner = self._inner.init(remembered, e)
        inner.value, inner.gradient = value, slope
        for _ in range(steps if len(e) else 0):
            self._inner.step(remembered, e, inner)
            if inner.status is not None or inner.length == 0:
                break
        if f.lowest is None:
            state.rejected += bool(slope.any())
        else:
            e, value, g = f.lowest
            _move(objective, x, space.prolong(e), value, g, state)


def _move(objective: Objective, x: Tensor, s: Tensor, value: float, g: Tensor, state: SpqnState) -> None:
    """Move to ``x + s``, where value and gradient are known."""
    x.add_(s)
    state.outer.value, state.outer.gradient = value, g
    remember(objective, x, g)
    state.accepted += 1


def first_layers(decomposition: Decomposition | SharedDecomposition) -> IndexTransfer:
    """Return the first layer that every subdomain owns, as a coarse set of unknowns.

    Raises
    ------
    ValueError
        A decomposition without layers.
    """
    if len(decomposition.blocks) < 2 or not isinstance(decomposition, Decomposition):
        raise ValueError("`coarse_steps` needs a decomposition that knows layers (`blocks`), got none; give `coarse`")
    spans = [range(*block.indices(decomposition.size)) for block in decomposition.blocks]
    starts = [int(s.indices[s.owned].min()) for s in decomposition.subdomains]
    chosen = {next(k for k, span in enumerate(spans) if start in span) for start in starts}
    indices = torch.cat([torch.arange(spans[k].start, spans[k].stop) for k in sorted(chosen)])
    return IndexTransfer(indices.to(decomposition.subdomains[0].indices.device), decomposition.size)


@dataclass
class SpqnState(State):
    """State of `SchwarzLBFGS`.

    Attributes
    ----------
    outer : LbfgsState
        Of the global steps; its value and gradient are those at the iterate.
    sweep : SweepState
    previous : Tensor, shape (n,)
        The step of the last combination in a span.
    """

    outer: LbfgsState = field(default_factory=LbfgsState)
    sweep: SweepState = field(default_factory=SweepState)
    previous: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
