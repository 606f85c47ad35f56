"""APTS and NAPTS: additively preconditioned trust-region methods, over data or graph parts and over parameters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import (
    Combine,
    Decomposition,
    MatrixTransfer,
    Objective,
    Remembered,
    SharedDecomposition,
    split,
)
from mldd.loop import FINITE, PER_SUBDOMAIN, State, Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.parts import Floats, Probed, column, inner, numbers
from mldd.solvers.trust_region import TrustRegion
from mldd.solvers.trust_region_state import TrustRegionState


@dataclass(frozen=True)
class Apts:
    r"""Trust-region method whose steps come from trust-region methods on subdomains (additive Schwarz), in parallel.

    One outer step, at x with f and g known and the radius delta:

    1. On every subdomain d, `local_steps` trust-region steps on its first-order corrected model f_d (its gradient at
       ``R_d x`` is ``R_d g``), from ``R_d x``, never farther from it than delta_d. Without communication.
    2. ``s = sum_d P_d D_d s_d`` and the promised decrease ``pred = sum_d`` (decreases of f_d), in one sum over ranks.
       Then ``|s| <= delta``.
    3. ``rho = (f(x) - f(x + s)) / pred`` decides about s and delta, as in `TrustRegion`.
    4. `global_steps` trust-region steps on all unknowns, with a radius of their own; their model learns from the
       Schwarz step too.

    Weights and local radii: ``asm``, the plain sum, is the method as published for data, with ``delta_d = delta / N``
    in the 2-norm; ``wasm`` takes means where subdomains overlap (all of them, for data) with ``delta_d = delta``. In
    general ``delta_d = delta / sqrt(sum_d max D_d)`` for ras and wasm and ``delta / sqrt(N m)`` for asm, m the largest
    multiplicity (2-norm); ``delta`` and ``delta / m`` (infinity norm).

    Collectives on vectors per outer step: the sum of step 2, the trial's value and gradient (distributed objectives),
    and one more of these per global step.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        Over parameters (APTS_W, APTS_P) or over data or graph parts (APTS_D); local models must be first-order
        consistent.
    local : TrustRegion
        The trust-region method on subdomains.
    outer : TrustRegion
        The trust-region method on all unknowns. Its first radius is that of Schwarz and of global steps, and its rule
        of the radius judges both; its `window` > 1 is non-monotone acceptance of both (NAPTS). Its norm must be that of
        `local`; objectives with bounds need "inf" and the weights ras or wasm.
    combine : {"wasm", "asm", "ras"}
        Weights of the local steps.
    local_steps, global_steps : int
        Trust-region steps on every subdomain, and on all unknowns, in an outer step.
    subspace_steps : int
        The local steps and the last outer step, split by layer, span a small space in which f is minimised from s on by
        a trust-region method within the same radius; so many evaluations of value and gradient, of which the first is
        the trial of step 3. 0: none, the step is the weighted sum s.
    keep_pairs : bool
        Local models keep their curvature pairs from one outer step to the next.
    comm : Communicator
        Its ranks divide the subdomains.

    Raises
    ------
    ValueError
        Parameters out of range.

    References
    ----------
    arXiv 2312.13677 (parameters) and 2502.05133 (data), as in the code of their authors, except that the gradient of
    local models carries the correction, that the local radii are the largest that ensure ``|s| <= delta``, and that
    Schwarz and global steps have radii of their own (with one for both, the poorer kind of step shortens the better
    one). BFGS models, means (wasm) and kept pairs are additions. Non-monotone acceptance and coarse directions are the
    idea of arXiv 2605.14860, reconstructed; the small space is that of arXiv 2601.08709.
    """

    decomposition: Decomposition | SharedDecomposition
    local: TrustRegion = TrustRegion()
    outer: TrustRegion = TrustRegion()
    combine: Combine = "wasm"
    local_steps: int = 5
    global_steps: int = 1
    subspace_steps: int = 0
    keep_pairs: bool = True
    comm: Communicator = SERIAL

    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not self.local_steps >= 1:
            raise ValueError(f"`local_steps` must be >= 1, got {self.local_steps}")
        for name in ("global_steps", "subspace_steps"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        if self.combine not in ("asm", "ras", "wasm"):
            raise ValueError(f"`combine` must be one of asm, ras, wasm, got {self.combine!r}")
        if self.local.norm != self.outer.norm:
            raise ValueError(
                f"`local` and `outer` must have the same norm, got {self.local.norm} and {self.outer.norm}; set both"
            )
        if self.local.comm.ranks > 1:
            raise ValueError(f"`local` runs on one rank, got a communicator of {self.local.comm.ranks}; leave it out")

    @cached_property
    def whole(self) -> TrustRegion:
        """The trust-region method on all unknowns, in which rank 0 decides; it also judges Schwarz steps."""
        return replace(self.outer, comm=self.comm)

    @cached_property
    def coarse(self) -> TrustRegion:
        """The trust-region method in the small space."""
        return replace(self.whole, model="bfgs", norm="2")

    def init(self, objective: Objective, x: Tensor) -> AptsState:
        """Return the first radius, and no pairs.

        Raises
        ------
        ValueError
            The objective has bounds, and trust region or weights do not respect them.
        """
        if self.subspace_steps and not objective.bounds.is_free:
            raise ValueError("`subspace_steps` needs an objective without bounds, got one with bounds; leave it out")
        if self.combine == "asm" and not objective.bounds.is_free:
            raise ValueError("sums of corrections (asm) leave the bounds of the objective; use combine wasm or ras")
        d = self.decomposition
        weights, y = d.weights(self.combine, x.dtype), d.gather(x)
        largest = weights.amax(1) if weights.numel() else weights.new_zeros(0)
        least = torch.where(d.valid, weights, torch.inf).amin(1) if weights.numel() else largest
        total, uneven = self.comm.sum_scalars([float(largest.sum()), float((largest != least).sum())])
        m = float(d.multiplicity.max()) if self.combine == "asm" else 1.0
        share = 1.0 / m if self.outer.norm == "inf" else 1.0 / math.sqrt(total * m)
        return AptsState(
            whole=self.whole.init(objective, x),
            subdomains=list(d.local),
            local=self.local.fresh(y),
            weights=weights,
            uniform=uneven == 0,
            share=share,
            radii=[torch.tensor([self.outer.radius.initial], dtype=torch.float64) for _ in range(2)],
            previous=torch.zeros_like(x) if self.subspace_steps else torch.empty(0),
        )

    def step(self, objective: Objective, x: Tensor, state: AptsState) -> tuple[Tensor, AptsState]:
        """Do one outer step, in place."""
        whole = state.whole
        self.whole.locate(objective, x, whole)
        if whole.status is None:
            self._in_turn(0, lambda: self._schwarz_step(objective, x, state), state)
        for _ in range(self.global_steps):
            self._in_turn(1, lambda: self.whole.advance(objective, x, whole), state)
        if whole.status is Status.diverged:
            state.status = Status.diverged
        elif all(state.stuck[: 2 if self.global_steps else 1]):
            state.status = Status.stalled
        return x, state

    def _in_turn(self, kind: int, step: Callable[[], None], state: AptsState) -> None:
        """Do a `step` of one kind (0: Schwarz, 1: global) with its own radius, unless it cannot go on from here."""
        whole = state.whole
        if state.stuck[kind] or whole.status is Status.diverged:
            return
        whole.radius, whole.frozen, whole.status = state.radii[kind], torch.zeros_like(whole.frozen), None
        step()
        state.radii[kind], state.stuck[kind] = whole.radius, bool(whole.frozen.all())
        if state.stuck[1 - kind] and bool(whole.length > 0):  # another point: the other kind gets another chance
            state.stuck[1 - kind], state.radii[1 - kind] = False, whole.length

    def _schwarz_step(self, objective: Objective, x: Tensor, state: AptsState) -> None:
        """Try the sum of the local steps."""
        whole = state.whole
        steps, totals = self._solve_all(objective, x, state)
        promised, dropped = numbers(totals)[:, None]
        state.dropped += int(dropped[0])
        before = whole.accepted, whole.rejected
        if self.subspace_steps:
            self._search_subspace(objective, x, steps, promised, state)
        else:
            self.whole.settle(objective, x, steps, promised, whole)
        state.accepted += whole.accepted - before[0]
        state.rejected += whole.rejected - before[1]

    def _solve_all(self, objective: Objective, x: Tensor, state: AptsState) -> tuple[Tensor, Tensor]:
        """Return the weighted local steps: their sum, shape (n,), or with `subspace_steps` each, shape (N, n).

        And the sums of the decreases they promise and of those dropped, shape (2,). One collective.
        """
        c, decrease = self._solve_locally(objective, x, state)
        good = np.isfinite(numbers(c.sum(1))) & np.isfinite(decrease)
        if not good.all():
            c, decrease = torch.where(column(good, c), c, 0.0), np.where(good, decrease, 0.0)
        both = torch.from_numpy(np.stack([decrease, ~good], 1)).to(c)
        if self.subspace_steps:
            rows = self.comm.gather(torch.cat([self.decomposition.spread(c), both], 1), self.decomposition.parts)
            return rows[:, :-2], rows[:, -2:].sum(0)
        total = self.comm.sum(torch.cat([self.decomposition.scatter(c), both.sum(0)]))
        return total[:-2], total[-2:]

    def _search_subspace(
        self, objective: Objective, x: Tensor, rows: Tensor, decrease: Floats, state: AptsState
    ) -> None:
        """Minimise in the space of `rows` and the last step, split by layer, from the sum of the rows on; go there."""
        whole, s = state.whole, rows.sum(0)
        assert whole.gradient is not None  # noqa: S101
        rows = torch.cat([rows, state.previous[None]])
        pieces = split(rows, self.decomposition.blocks)
        small = Probed(objective, x.clone(), MatrixTransfer(orthonormal(pieces).t()))
        z, f = x.new_zeros(small.size), Remembered(small)
        mine = self.coarse.fresh(z)
        mine.radius = whole.radius
        mine.confine(torch.zeros_like(z), whole.radius)
        mine.values, mine.gradient = whole.values, small.transfer.restrict(whole.gradient)
        f.keep(z, mine.gradient)
        self.coarse.settle(f, z, small.transfer.restrict(s), decrease, mine)
        judged = mine.radius
        for _ in range(self.subspace_steps - 1):
            if mine.status is None:
                self.coarse.advance(f, z, mine)
        mine.radius = torch.maximum(judged, torch.from_numpy(self.coarse.length(z)))
        moved, step = bool((z != 0).any()), small.transfer.prolong(z)
        self.whole.follow(objective, x, step, small.whole_gradient(z) if moved else whole.gradient, mine, whole)
        if moved:
            state.previous.copy_(step)

    def _solve_locally(self, objective: Objective, x: Tensor, state: AptsState) -> tuple[Tensor, Floats]:
        """Return the weighted steps of this rank's subdomains, shape (p, m), and the decreases they promise, (p,)."""
        d, g = self.decomposition, state.whole.gradient
        assert g is not None  # noqa: S101
        f, y0 = Remembered(d.models(objective, x, g)), d.gather(x)
        if not len(y0):
            return y0, np.zeros(0)
        y, g0 = y0.clone(), d.gather(g).mul_(d.valid)
        f.keep(y, g0)  # R_d g: that is what first-order consistent means
        local = state.local if self.keep_pairs else self.local.fresh(y)
        local.confine(y0, state.whole.radius * state.share)
        self.local.locate(f, y, local)
        start = local.value
        for k in range(self.local_steps):
            if local.status is None:
                self.local.advance(f, y, local, last=k + 1 == self.local_steps)
        c = y.sub_(y0).mul_(state.weights)
        if state.uniform:
            promised = local.descent.numpy() * numbers(state.weights.amax(1))
        else:
            promised = start - numbers(f.value(y0 + c))
            rounding = 10 * torch.finfo(x.dtype).eps * np.abs(start)
            promised = np.where(np.abs(promised) <= rounding, -inner(g0, c), promised)
        return c, np.where(np.isfinite(start), promised, np.nan)


@dataclass
class AptsState(State):
    """State of `Apts`; `accepted` and `rejected` count Schwarz steps.

    Attributes
    ----------
    whole : TrustRegionState
        Latest values and global model; its own counts are those of Schwarz and global steps together.
    radii : list of Tensor, shape (1,), float64, on the CPU
        Of Schwarz steps (delta) and of global steps; each in use is that of `whole` while the step is done.
    stuck : list of bool
        Which kind of step is at its floor.
    subdomains : list of int
        Numbers of the subdomains of this rank.
    local : TrustRegionState
        One row per subdomain of this rank; as at the start where no pairs are kept.
    weights : Tensor, shape (p, m)
        Weights of the local steps.
    uniform : bool
        On every subdomain, the weights of all unknowns are the same.
    share : float
        Local radius over delta.
    previous : Tensor, shape (n,)
        The last step taken in a subspace.
    dropped : int
        Local steps, on all ranks, that were dropped because a local model was not finite.
    """

    whole: TrustRegionState = field(default_factory=TrustRegionState)
    subdomains: list[int] = field(default_factory=list)
    local: TrustRegionState = field(default_factory=TrustRegionState, metadata=PER_SUBDOMAIN)
    weights: Tensor = field(default_factory=lambda: torch.empty(0), repr=False, metadata=PER_SUBDOMAIN | FINITE)
    uniform: bool = False
    share: float = 1.0
    radii: list[Tensor] = field(default_factory=list)
    stuck: list[bool] = field(default_factory=lambda: [False, False])
    previous: Tensor = field(default_factory=lambda: torch.empty(0), repr=False)
    dropped: int = 0


def orthonormal(rows: Tensor) -> Tensor:
    """Return orthonormal rows that span all `rows`, shape (k, n), up to rounding.

    Parameters
    ----------
    rows : Tensor, shape (p, n)
        Vectors, which may depend on each other.
    """
    norms = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    U, sizes, _ = torch.linalg.svd(rows @ rows.mT / (norms * norms.mT).clamp_min(1e-300))
    keep = sizes > torch.finfo(rows.dtype).eps ** 0.5 * sizes.clamp_min(1e-300).max()
    scaled = torch.where(norms > 0, rows / norms.clamp_min(1e-300), 0.0)
    Q: Tensor = torch.linalg.qr((U[:, keep].mT @ scaled).mT)[0]
    return Q.mT
