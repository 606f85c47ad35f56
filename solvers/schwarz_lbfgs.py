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
    Combine,
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
from mldd.loop import FINITE, REPLICATED, State, Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.lbfgs import LBFGS, LbfgsState, Trial, WolfeSearch, along
from mldd.solvers.parts import BatchLBFGS, Order, Probed, Sweep, SweepState


@dataclass(frozen=True)
class CoarseStep:
    """A coarse step of `SchwarzLBFGS`: L-BFGS on a few unknowns of all subdomains.

    Parameters
    ----------
    steps : int
        L-BFGS iterations; 0: no coarse step.
    space : Transfer, optional
        The unknowns; by default the first layer of every subdomain (`first_layers`).

    Raises
    ------
    ValueError
        A negative number of steps.
    """

    steps: int = 0
    space: Transfer | None = None

    def __post_init__(self) -> None:
        """Refuse a negative number of steps."""
        if not self.steps >= 0:
            raise ValueError(f"`steps` of a coarse step must be >= 0, got {self.steps}")


@dataclass(frozen=True)
class SchwarzLBFGS:
    r"""Right-preconditioned L-BFGS: a Schwarz sweep of local L-BFGS solves, then an L-BFGS step from where it led.

    One outer step does, each only if asked for,

    1. a coarse step: L-BFGS iterations on a few unknowns of all subdomains, the others frozen;
    2. `local_steps` L-BFGS iterations on every subdomain, additive (ASPQN) or multiplicative (MSPQN), and a combination
       of their corrections, ``x <- G(x)``;
    3. `global_steps` L-BFGS steps on all unknowns from G(x), ``v <- (1 - momentum) v - momentum H grad f(G(x))``,
       whose secant pair is taken between G(x) and the new iterate.

    Every phase ends in a point that is not higher than its start. A combination that finds no lower point is rejected
    (counted); an L-BFGS step that finds none is repeated from steepest descent with its memory cleared; when no phase
    moves, the status is `Status.stalled`.

    Combinations of additive corrections c_i, weighted by D_i (see `combine`):

    - `search` each: one strong Wolfe search after the other along each D_i c_i, from step length 1;
    - `search` sum: one such search along ``sum_i D_i c_i``;
    - `subspace_steps` > 0: minimise ``f(x + D z)`` over the space of the D_i c_i, split by layer where the
      decomposition knows layers, of the L-BFGS direction and of the previous step, by so many L-BFGS iterations.
      Columns are scaled by ``1 / sqrt(|<g, c>|)``: were each c_i the minimiser along itself, the Hessian of z would
      have a unit diagonal.

    A multiplicative sweep adds each correction as it is, and is searched along only where the value did not fall.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        Subdomains of parameters, which may overlap, or of data or graph parts.
    order : {"additive", "multiplicative"}
        All subdomains start from x, or each from what its predecessors have made of x.
    combine : {"asm", "ras", "wasm"}
        Weights of an additive sweep: each correction as it is, restricted to the unknowns it owns, or over the
        multiplicity of its unknowns.
    search : {"each", "sum"}
        Whether an additive sweep without subspace steps searches along each correction or along their sum.
    local_steps, global_steps : int
        L-BFGS iterations on every subdomain, and L-BFGS steps on all unknowns.
    subspace_steps : int
        L-BFGS iterations in the space of the corrections; 0: none, see `search`.
    local : BatchLBFGS
        L-BFGS of the local, coarse and subspace iterations.
    outer : LBFGS
        L-BFGS of the global steps, whose `momentum` is that of step 3; the searches along corrections have its
        constants.
    keep_pairs : bool
        Local pairs are kept from one outer step to the next instead of gathered anew.
    coarse : CoarseStep
        Length and unknowns of the coarse step.
    comm : Communicator
        Its ranks divide the subdomains.

    Raises
    ------
    ValueError
        Parameters out of range or that exclude each other.

    Notes
    -----
    Published settings are memories of 3 (outer) and 10 (local), momentum 0.9, pairs that are not kept, one subdomain
    per layer and 10 to 100 local steps. Kept pairs save the many local steps that it takes to gather them anew: on a
    physics-informed network with 3,001 parameters they halve the gradients to a given error, and 20 steps do.

    References
    ----------
    arXiv 2306.17648, algorithms for ASPQN and MSPQN; searches along each correction, overlap and the coarse step as in
    public code of the authors of arXiv 2406.10997; the subspace after arXiv 2601.08709, of which coefficients and
    solver are unpublished.
    """

    decomposition: Decomposition | SharedDecomposition
    order: Order = "additive"
    combine: Combine = "asm"
    search: Literal["each", "sum"] = "each"
    local_steps: int = 20
    global_steps: int = 1
    subspace_steps: int = 0
    local: BatchLBFGS = BatchLBFGS(memory=20)
    outer: LBFGS = LBFGS()
    keep_pairs: bool = True
    coarse: CoarseStep = CoarseStep()
    comm: Communicator = SERIAL

    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        for name in ("local_steps", "global_steps", "subspace_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        if not (self.local_steps or self.global_steps or self.coarse.steps):
            raise ValueError("one of `local_steps`, `global_steps`, `coarse.steps` must be >= 1, got 0 for all")
        if self.search not in ("each", "sum"):
            raise ValueError(f"`search` must be one of each, sum, got {self.search!r}")
        if self.order == "multiplicative":
            for name, only in (("combine", "asm"), ("search", "each"), ("subspace_steps", 0)):
                if getattr(self, name) != only:
                    raise ValueError(
                        f"`{name}` is for additive sweeps, a multiplicative one adds each correction as it is, got "
                        f"{getattr(self, name)!r}; leave it out or use `order` additive (aspqn)"
                    )
        _ = self.sweep, self._space if self.coarse.steps else None

    @cached_property
    def sweep(self) -> Sweep:
        """The local phase; where subdomains come one after the other, single searches have the least overhead."""
        return Sweep(
            self.decomposition,
            self.local if self.order == "additive" else self._inner,
            self.local_steps,
            combine=self.combine,
            damping=1.0,  # steps are searched along
            order=self.order,
            memory="keep" if self.keep_pairs else "reset",
            comm=self.comm,
        )

    @cached_property
    def _inner(self) -> LBFGS:
        """The same as `local` for a single vector."""
        return LBFGS(self.local.memory, self.local.max_evaluations, self.local.c1, self.local.c2)

    @cached_property
    def _space(self) -> Transfer:
        """The unknowns of the coarse step."""
        return first_layers(self.decomposition) if self.coarse.space is None else self.coarse.space

    def init(self, objective: Objective, x: Tensor) -> SpqnState:
        """Return empty memories.

        Raises
        ------
        ValueError
            The objective has bounds.
        """
        if not objective.bounds.is_free:
            raise ValueError(
                "aspqn and mspqn need an objective without bounds, got one with bounds; use dd-adagrad or tao:blmvm"
            )
        if x.dtype != torch.float64:
            warnings.warn(
                f"aspqn, mspqn: searches end where values differ by less than their rounding error, got {x.dtype}; "
                "use float64 to go further",
                stacklevel=2,
            )
        return SpqnState(
            outer=self.outer.init(objective, x),
            sweep=self.sweep.init(objective, x) if self.local_steps else SweepState(),
            previous=torch.zeros_like(x) if self.subspace_steps else x.new_empty(0),
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
        if self.coarse.steps:
            self._minimise_in(self._space, objective, x, state, self.coarse.steps)
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
        if self.subspace_steps:
            self._search_subspace(
                objective, x, self.comm.gather(d.spread(corrections * state.sweep.weights), d.parts), state
            )
        elif self.search == "sum":
            self._search(objective, x, sweep.total(corrections, state.sweep), state)
        else:
            for row in self.comm.gather(d.spread(corrections * state.sweep.weights), d.parts):
                self._search(objective, x, row, state)

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
            found = WolfeSearch(ray, start, self.outer.c1, self.outer.c2, self.outer.max_evaluations).run(1.0)
        if found is None:
            state.rejected += bool(d.any())
            return
        _move(objective, x, d * found.t, found.value, found.g, state)

    def _search_subspace(self, objective: Objective, x: Tensor, rows: Tensor, state: SpqnState) -> None:
        """Minimise in the space of the rows, split by layer, the L-BFGS direction and the previous step."""
        outer, g = state.outer, objective.gradient(x)
        pieces = split(rows, self.decomposition.blocks)
        extra = [state.previous[None]]
        if outer.pairs.count:
            extra.append(outer.pairs.direction(g, outer.direction)[None])
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
        self._minimise_in(space, objective, x, state, self.subspace_steps, start / factor)
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

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        Runs of layers.

    Raises
    ------
    ValueError
        A decomposition without layers.
    """
    if len(decomposition.blocks) < 2 or not isinstance(decomposition, Decomposition):
        raise ValueError(
            "`coarse.steps` needs a decomposition that knows layers (`blocks`), got none; give `coarse.space`"
        )
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
        Of the local phase.
    previous : Tensor, shape (n,)
        The step of the last search in a subspace.
    """

    outer: LbfgsState = field(default_factory=LbfgsState)
    sweep: SweepState = field(default_factory=SweepState)
    previous: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=FINITE | REPLICATED)
