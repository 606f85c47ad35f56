"""One Schwarz sweep: local solves on all subdomains and their combination. Every Schwarz method is made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Around, Combine, Decomposition, Objective, Proximal, Remembered, Row, SharedDecomposition
from mldd.loop import FINITE, PER_SUBDOMAIN, SCRATCH, Solver, State, Status
from mldd.ranks import SERIAL, Communicator

Order = Literal["additive", "multiplicative"]
Memory = Literal["reset", "keep"]
NOT_FINITE = "local solves that were not finite"  # a note


def check_same_ranks(decomposition: Decomposition | SharedDecomposition, comm: Communicator) -> None:
    """Refuse a decomposition that is shared among other ranks than a solver.

    Corrections would be left out, or be counted once per rank.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        The subdomains.
    comm : Communicator
        Of the solver.

    Raises
    ------
    ValueError
        The ranks are others.
    """
    held, parts = len(decomposition.local), decomposition.parts
    if (held < parts) != (comm.ranks > 1):
        raise ValueError(
            f"decomposition and solver must be made with the same `comm`, got {comm.ranks} ranks of the solver"
            f" and {held} of {parts} subdomains on this one; give both the same"
        )


@dataclass(frozen=True)
class Sweep:
    r"""The nonlinear Schwarz map ``G(x) = x + damping sum_i P_i D_i (y_i - R_i x)``.

    ``y_i`` is where `steps` steps of the local solver lead on the local model of subdomain i from ``R_i x``. Additive:
    all subdomains start from x, in one batch per rank and without communication, then one sum over ranks.
    Multiplicative: one subdomain after the other, each from what its predecessors have made of x, one sum each.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        The subdomains.
    solver : Solver
        Local solver. One with the class attribute ``batched = True`` gets the subdomains of a rank as rows of one
        (p, m) tensor; any other is run on one subdomain after the other.
    steps : int
        Of the local solver.
    rtol : float
        A subdomain is left alone once the measure of its local model has fallen by this factor, whatever the others in
        its batch do; 0 does all `steps`.
    combine : {"ras", "wasm", "asm"}, optional
        The weights D_i of an additive sweep; a multiplicative one adds each correction as it is. By default ras, and
        wasm where the subdomains update the same unknowns, which then have no owner.
    damping : float
        0 means 1, or 1 / (largest multiplicity) where corrections of an additive sweep are summed (asm).
    order : {"additive", "multiplicative"}
        All subdomains at once, or one after the other.
    memory : {"reset", "keep"}
        What happens to the state of the local solver between sweeps: made anew, or kept per subdomain.
    comm : Communicator
        Its ranks divide the subdomains.

    References
    ----------
    Cai and Keyes, SIAM J. Sci. Comput. 24 (2002); PETSc's SNESNASM; weights as in arXiv 1605.04419 (ras).
    """

    decomposition: Decomposition | SharedDecomposition
    solver: Solver
    steps: int = 10
    rtol: float = 0.0
    combine: Combine | None = None
    damping: float = 0.0
    order: Order = "additive"
    memory: Memory = "reset"
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        for name in ("steps", "rtol", "damping"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")
        if self.combine not in (None, "asm", "ras", "wasm"):
            raise ValueError(f"`combine` must be one of asm, ras, wasm, got {self.combine!r}")
        if self.order not in ("additive", "multiplicative"):
            raise ValueError(f"`order` must be one of additive, multiplicative, got {self.order!r}")
        if self.memory not in ("reset", "keep"):
            raise ValueError(f"`memory` must be one of reset, keep, got {self.memory!r}")
        check_same_ranks(self.decomposition, self.comm)

    @property
    def kind(self) -> Combine:
        """The weights D_i: what `combine` says, or what is usual for the decomposition."""
        if self.order == "multiplicative":
            return "asm"
        return self.decomposition.usual if self.combine is None else self.combine

    @cached_property
    def factor(self) -> float:
        """Factor on the combined corrections."""
        if self.damping > 0:
            return self.damping
        summed = self.kind == "asm" and self.order == "additive"
        return 1.0 / float(self.decomposition.multiplicity.max()) if summed else 1.0

    @cached_property
    def _adds_up(self) -> bool:
        """Whether several subdomains contribute to one unknown."""
        return self.kind != "ras" and int(self.decomposition.multiplicity.max()) > 1

    @cached_property
    def batched(self) -> bool:
        """Whether the local solver takes all subdomains of a rank at once."""
        return bool(getattr(self.solver, "batched", False))

    def init(self, objective: Objective, x: Tensor) -> SweepState:
        """Return weights, and fresh states of the local solver where they are kept."""
        d = self.decomposition
        state = SweepState(subdomains=list(d.local), weights=d.weights(self.kind, x.dtype))
        if self.memory != "reset":
            g = objective.gradient(x) if self.decomposition.corrected else None
            state.local = [self.solver.init(*self._start(objective, x, g, d, state.proximal)) for d in self._groups]
        return state

    @cached_property
    def _groups(self) -> list[Decomposition | SharedDecomposition]:
        """The subdomains of this rank, as they are solved: in one batch, or each by itself."""
        d = self.decomposition
        if self.batched and self.order == "additive":
            return [d] if len(d.local) else []
        return [d.alone(k) for k in d.local]

    def correction(self, objective: Objective, x: Tensor, state: SweepState) -> Tensor:
        """Return ``G(x) - x``, shape (n,), the same on all ranks; `x` is not written to.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The iterate.
        state : SweepState
            What the sweep keeps.
        """
        if self.order == "additive":
            return self.total(self.corrections(objective, x, state), state)
        d, point = self.decomposition, x.clone()
        for k in range(d.parts):
            # The gradient of a distributed objective is a collective: ranks without the subdomain take part.
            g = objective.gradient(point) if d.corrected else None
            s = torch.zeros_like(x)
            if k in d.local:
                s = d.alone(k).scatter(self._solve(objective, point, g, k - d.local.start, state))
            point.add_(self._summed(s, state), alpha=self.factor)
        return point.sub_(x)

    def corrections(self, objective: Objective, x: Tensor, state: SweepState) -> Tensor:
        """Return ``y_i - R_i x`` of this rank's subdomains, unweighted, shape (p, m).

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The iterate.
        state : SweepState
            What the sweep keeps.
        """
        if self._adds_up:
            quanta = _quanta(x)
            is_shared = isinstance(self.decomposition, SharedDecomposition) or not quanta.numel()
            state.quantum = quanta if is_shared else self.decomposition.gather(quanta)
        g = objective.gradient(x) if self.decomposition.corrected else None
        solved = [self._solve(objective, x, g, k, state) for k in range(len(self._groups))]
        if len(solved) == 1 and solved[0].shape == state.weights.shape:
            return solved[0]
        c = x.new_zeros(state.weights.shape)
        for row, mine in zip(c, solved, strict=True):
            row[: mine.shape[1]] = mine[0]
        return c

    def total(self, corrections: Tensor, state: SweepState) -> Tensor:
        """Return ``damping sum_i P_i D_i c_i`` over all ranks, shape (n,); one synchronisation.

        Parameters
        ----------
        corrections : Tensor, shape (p, m)
            Of this rank's subdomains.
        state : SweepState
            What the sweep keeps.
        """
        weighted = corrections * state.weights
        if self._adds_up:
            weighted = _rounded(weighted, state.quantum)
        return self._summed(self.decomposition.scatter(weighted), state).mul_(self.factor)

    def _summed(self, s: Tensor, state: SweepState) -> Tensor:
        """Return the sum over ranks of `s`, shape (n,); the number of failed local solves travels with it."""
        together = self.comm.sum(torch.cat([s, s.new_tensor([state.failed])]))
        state.failures = int(together[-1])
        return together[:-1]

    def judge(self, state: SweepState, outer: State) -> int:
        """Return how many local solves had failed, on all ranks, before the last total, and note it in `outer`.

        When all of them have since the last call, there is nothing to go on with.

        Parameters
        ----------
        state : SweepState
            What the sweep keeps.
        outer : State
            Its counts, notes and status are set.
        """
        failed, state.failed = state.failures, 0
        outer.rejected += failed
        outer.note(NOT_FINITE, failed)
        if failed == self.decomposition.parts:
            outer.status = Status.diverged
        return failed

    def _start(
        self, objective: Objective, x: Tensor, g: Tensor | None, d: Decomposition | SharedDecomposition, mu: float
    ) -> tuple[Any, Tensor]:
        """Return the local model and its start: of a batch, or of one subdomain for a solver that knows no batches."""
        models, y = d.models(objective, x, g), d.gather(x)
        if mu:
            models = Proximal(models, mu, y.clone())
        f = Remembered(models if self.batched else Row(models))
        y = y if self.batched else y[0]
        if g is not None:  # a corrected model's gradient at its start is R_i g by construction
            f.keep(y, d.gather(g).mul_(d.valid).view_as(y))
        return f, y

    def _solve(self, objective: Objective, x: Tensor, g: Tensor | None, k: int, state: SweepState) -> Tensor:
        """Return the corrections of group `k`, shape (p, m); rows that are not finite become zero."""
        d = self._groups[k]
        f, y = self._start(objective, x, g, d, state.proximal)
        y0 = y.clone()
        c = self._run(f, y, k, state).sub(y0).view(len(d.local), -1)
        good = torch.isfinite(c).all(1, keepdim=True)
        state.failed += int((~good).sum())
        return torch.where(good, c, 0.0)

    def _run(self, f: Any, y: Tensor, k: int, state: SweepState) -> Tensor:
        """Do the local steps of group `k` from `y`; `f` is a batch or one local model."""
        mine = None if self.memory == "reset" else state.local[k]
        if mine is None or mine.status is not None:  # a solver that could not go on starts anew
            mine = self.solver.init(f, y)
        elif isinstance(mine, State):
            mine.forget()  # `f` is another model than that of the last sweep
        first = self._measure(f, y) if self.rtol > 0 else None
        for _ in range(self.steps):
            model = f
            if first is not None:
                moving = self._measure(f, y) > self.rtol * first
                if not bool(moving.any()):
                    break
                model = f if bool(moving.all()) else Paused(f, moving[:, None])
            y, mine = self.solver.step(model, y, mine)
            mine.step += 1
            if mine.status is not None:
                break
        if self.memory != "reset":
            state.local[k] = mine
        return y

    @staticmethod
    def _measure(f: Objective, y: Tensor) -> Tensor:
        """Return the 2-norm of every row's criticality vector."""
        d = f.bounds.criticality(y, f.gradient(y))
        return d.square().sum(-1).sqrt_()


@dataclass(frozen=True)
class Paused(Around):
    """A batch some of whose members are solved: their gradients are zero, so that a solver leaves them where they are.

    Parameters
    ----------
    moving : Tensor, shape (p, 1), bool
        Members that are not solved.
    """

    moving: Tensor

    def gradient(self, y: Tensor) -> Tensor:
        """Return the gradient of `f`, zero for members that are solved."""
        return self.f.gradient(y) * self.moving


def _quanta(x: Tensor) -> Tensor:
    """Return the power of two next to ``2^-49 |x_i|`` for every unknown: multiples have exact sums up to ``16 |x_i|``.

    Where several subdomains add to one unknown, the ranks that hold them would otherwise decide about the last digit,
    which local iterations can amplify to the first within a few steps. An unknown that is zero gets the geometric mean
    of the others in place of its size. Empty for other types than float64, whose sums are not rounded.
    """
    if x.dtype != torch.float64:
        return x.new_empty(0)
    exponent = torch.frexp(x).exponent.to(x.dtype).clamp_(min=-500)  # quotients by quanta must not overflow
    filled = (x != 0) & torch.isfinite(x)
    mean = (exponent * filled).sum() / filled.sum().clamp(min=1)
    return torch.exp2(torch.where(filled, exponent, mean.round()) - 49)


def _rounded(values: Tensor, quanta: Tensor) -> Tensor:
    """Return values, shape (p, n) or (p, m) with their quanta, rounded to multiples of these."""
    return values if quanta.numel() == 0 else values.div_(quanta).round_().mul_(quanta)


@dataclass
class SweepState(State):
    """State of `Sweep`.

    Attributes
    ----------
    subdomains : list of int
        Numbers of the subdomains of this rank.
    weights : Tensor, shape (p, m)
        Weights of the local corrections.
    local : list
        States of the local solver that are kept: one for the batch, or one per subdomain of this rank.
    failed : int
        Local solves on this rank, since `Sweep.judge`, that ended in something that is not finite; their corrections
        were dropped.
    failures : int
        Those of all ranks, when corrections were summed last.
    quantum : Tensor, shape (p, m) or (n,)
        Corrections are rounded to multiples of it before they are summed; empty: not rounded.
    proximal : float
        Weight mu of the term ``mu/2 |y - R_i x|^2`` of local models, set by the outer method; 0: no such term.
    """

    subdomains: list[int] = field(default_factory=list)
    weights: Tensor = field(default_factory=lambda: torch.empty(0), metadata=PER_SUBDOMAIN | FINITE)
    local: list[Any] = field(default_factory=list, metadata=PER_SUBDOMAIN)
    failed: int = 0
    failures: int = 0
    quantum: Tensor = field(default_factory=lambda: torch.empty(0), metadata=SCRATCH)
    proximal: float = 0.0
