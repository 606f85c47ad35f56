"""Rounds of local training: every part does some steps on its own loss, and what the parts have reached is averaged.

The parts have all unknowns each, and their losses are no local models of the whole loss: nothing is corrected to first
order. What is averaged, iterates and vectors of the local solvers' memory, travels in one message, and its sums do not
depend on the number of ranks.
"""

from __future__ import annotations

import sys
from dataclasses import Field, dataclass, field, fields
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Objective, SharedDecomposition, uncounted
from mldd.loop import FINITE, PER_SUBDOMAIN, REPLICATED, Solver, State
from mldd.ranks import SERIAL, Communicator, PartSum, begin_part_sum
from mldd.solvers.parts.group_rates import rate_of, with_rate
from mldd.solvers.parts.learning_rate import LearningRate, Pace
from mldd.solvers.parts.local_walk import Parts, Walk
from mldd.solvers.parts.sweep import check_same_ranks

LocalMemory = Literal["reset", "keep", "average"]


@dataclass
class RoundState(State):
    """What is kept between rounds.

    Attributes
    ----------
    subdomains : list of int
        Numbers of the parts of this rank.
    local : list
        States of the local solver, where they are kept: one of the batch, or one per part of this rank.
    vectors : tuple of str
        Vectors of these states that are averaged.
    done : int
        Local steps of every part before this round.
    ahead : int
        Local steps of this round that have been done already, while the last average was under way.
    places : Tensor, shape (p, n)
        Where the parts are after these steps; empty where all are at the average.
    variates : Tensor, shape (p, n)
        Mean gradients of the parts in the last round; empty without control variates, or before the first average.
    variate : Tensor, shape (n,)
        Their mean over all parts.
    """

    subdomains: list[int] = field(default_factory=list)
    local: list[Any] = field(default_factory=list, metadata=PER_SUBDOMAIN)
    vectors: tuple[str, ...] = ()
    done: int = 0
    ahead: int = 0
    places: Tensor = field(default_factory=lambda: torch.empty(0), metadata=PER_SUBDOMAIN | FINITE)
    variates: Tensor = field(default_factory=lambda: torch.empty(0), metadata=PER_SUBDOMAIN | FINITE)
    variate: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE | REPLICATED)


@dataclass(frozen=True)
class Rounds:
    r"""Local steps of all parts and the average of what they reach, ``x <- x + sum_i s_i (y_i - x)``.

    The weights s_i are the shares of the parts' losses in the whole loss (`SharedDecomposition.shares_of`), so that one
    step of gradient descent by every part is one on the whole loss. Local step t sees sample t of a stochastic
    objective, the part of it that belongs to the part. A part whose iterate is no longer finite stays where it was, and
    its solver starts anew.

    Parameters
    ----------
    decomposition : SharedDecomposition
        Parts of the data or graph.
    solver : Solver
        What every part does its steps with.
    pace : Pace
        How many local steps a round has, and how their size changes.
    memory : {"reset", "keep", "average"}
        What happens to the state of the local solver at an average: it starts anew, is kept by every part, or its
        vectors are averaged with the iterates.
    control : bool
        Whether local gradients are shifted by control variates.
    delay : int
        Local steps of the next round that are done while the average is under way.
    together : bool
        Whether the parts of a rank are evaluated in one batch.
    comm : Communicator
        Its ranks divide the parts.

    Raises
    ------
    ValueError
        Parts that are not of the data or graph, or options out of range or that do not go together.
    """

    decomposition: SharedDecomposition
    solver: Solver
    pace: Pace = Pace()
    memory: LocalMemory = "reset"
    control: bool = False
    delay: int = 0
    together: bool = False
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not isinstance(self.decomposition, SharedDecomposition) or self.decomposition.mask is not None:
            raise ValueError(
                "`decomposition` must be one into parts of the data or graph, each with all unknowns, got one of the "
                "unknowns; decompose the data (digits:subdomains=data)"
            )
        if self.memory not in ("reset", "keep", "average"):
            raise ValueError(f"`memory` must be one of reset, keep, average, got {self.memory!r}")
        if not 0 <= self.delay < self.pace.steps:
            raise ValueError(f"`delay` must be in 0..{self.pace.steps - 1} (below `local_steps`), got {self.delay}")
        self._check_rates()
        self._check_solver()
        if self.delay and (self.control or self.memory == "reset"):
            raise ValueError(
                "`delay` needs a memory that is kept or averaged and no control variates, got "
                f"memory={self.memory} and control={self.control}; set memory=average and control=False"
            )
        check_same_ranks(self.decomposition, self.comm)

    def _check_rates(self) -> None:
        of_local = getattr(self.solver, "rates", LearningRate())
        if of_local != LearningRate():
            raise ValueError(
                f"the local solver must have a constant step size, got schedule={of_local.schedule} and warmup="
                f"{of_local.warmup}; give `schedule` and `warmup` to the solver that averages"
            )
        if self.pace.rates != LearningRate() and self._rate is None:
            raise ValueError(
                f"a schedule needs a local solver with `lr` or `rate`, got {type(self.solver).__name__}; use adam"
            )

    def _check_solver(self) -> None:
        wants = [
            name
            for name, is_on in (
                ("memory=average", self.memory == "average"),
                ("control", self.control),
                ("delay", self.delay > 0),
            )
            if is_on
        ]
        if wants and not getattr(self.solver, "entrywise", False):
            raise ValueError(
                f"{wants[0]} needs a local solver that moves every unknown by its gradient alone, got "
                f"{type(self.solver).__name__}; use adam, sgd or adagrad, or leave it out"
            )

    @cached_property
    def _rate(self) -> str | None:
        return rate_of(self.solver)

    @cached_property
    def _base(self) -> float:
        value: Any = self.solver
        for name in str(self._rate).split("."):
            value = getattr(value, name)
        return float(value)

    @cached_property
    def parts(self) -> Parts:
        """The parts of this rank as they are solved."""
        batched = bool(getattr(self.solver, "batched", False))
        return Parts(self.decomposition, batched, batched and self.together)

    @cached_property
    def held(self) -> list[range]:
        """The parts of every rank; all ranks ask together, when the solver is set up."""
        with uncounted():
            return self.comm.gather_items(self.decomposition.local)

    def solver_at(self, t: int) -> Solver:
        """Return the local solver with the step size of a local step.

        Parameters
        ----------
        t : int
            Local steps of every part before it.
        """
        factor = self.pace.factor(t)
        if factor == 1.0:
            return self.solver
        changed: Solver = with_rate(self.solver, str(self._rate), max(self._base * factor, sys.float_info.min))
        return changed

    def init(self, objective: Objective, x: Tensor) -> RoundState:
        """Return fresh states of the local solver, where they are kept.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The start.

        Raises
        ------
        ValueError
            A schedule without its length.
        """
        self.pace.factor(0)
        d, _ = self.decomposition, self.held
        state = RoundState(subdomains=list(d.local))
        if self.memory != "reset":
            walk = Walk(self.parts, objective, x)
            starts = enumerate(self.parts.split(d.gather(x)))
            state.local = [self.solver.init(walk.model(k, 0)[0], y) for k, y in starts]
        if self.memory == "average":
            mine = {f.name for s in state.local for f in fields(s) if _is_memory(f, getattr(s, f.name), d.size)}
            state.vectors = max(self.comm.gather_items(sorted(mine)), key=len)
        return state

    def run(self, objective: Objective, x: Tensor, state: RoundState) -> tuple[Tensor, int]:
        """Do a round; return the mean correction, shape (n,), and how many parts were not finite, on all ranks.

        Parameters
        ----------
        objective : Objective
            What is minimised; of a stochastic one, the sample that the loop has made.
        x : Tensor, shape (n,)
            The last average.
        state : RoundState
            What the rounds keep.
        """
        d, walk, first = self.decomposition, Walk(self.parts, objective, x), state.done + state.ahead
        here = d.gather(x) if state.places.numel() == 0 else state.places
        total = walk.control(self._shifts(here, state)) if self.control else None
        state.done += self.pace.steps_of(state.done)
        states = list(state.local) or [None] * len(walk.groups)
        ends = walk.go(here, range(first, state.done), states, self.solver_at)
        good = torch.isfinite(ends).all(1, keepdim=True)
        ends = torch.where(good, ends, x)
        if total is not None:
            state.variates = torch.where(good, total.div_(max(state.done - first, 1)), 0.0)
        shares = d.shares_of(walk.sample(first))[d.local.start : d.local.stop].to(ends)[:, None]
        if self.memory != "reset":
            state.local = states
            if not bool(good.all()):
                self._restart(walk, ends, good, state)
        sums = begin_part_sum(self._message(ends - x, good, shares, state), self.held, self.comm)
        found = self._overlapped(sums, walk, x, ends, state) if self.delay else self._received(sums.result(), state)
        if state.places.numel() and not objective.bounds.is_free:
            objective.bounds.project(state.places, out=state.places)
        self.pace.end(state, state.done)
        return found

    def _shifts(self, like: Tensor, state: RoundState) -> Tensor:
        return torch.zeros_like(like) if state.variates.numel() == 0 else state.variate - state.variates

    def _overlapped(self, sums: PartSum, walk: Walk, x: Tensor, ends: Tensor, state: RoundState) -> tuple[Tensor, int]:
        """Do the first steps of the next round from `ends` while the sums come in, and shift all by the averages."""
        left = self.pace.left(state.done)
        state.ahead = self.delay if left is None else max(0, min(self.delay, left))
        before = [{name: getattr(one, name).clone() for name in state.vectors} for one in state.local]
        ahead = range(state.done, state.done + state.ahead)
        places = walk.go(ends.clone(), ahead, state.local, self.solver_at, sums)
        correction, failed = self._received(sums.result(), state, before)
        state.places = places.add_(x + correction - ends) if state.ahead else x.new_empty(0)
        return correction, failed

    def _message(self, corrections: Tensor, good: Tensor, shares: Tensor, state: RoundState) -> Tensor:
        """Return what is summed over the parts, a row each: all that is averaged, with weights, and counts."""
        weights = torch.where(good, shares, 0.0)
        columns = [corrections * shares]
        for name in state.vectors:
            columns.append(self.parts.joined([getattr(one, name) for one in state.local], corrections) * weights)
        if self.control:
            columns.append(state.variates * shares)
        return torch.cat([*columns, weights, (~good).to(weights)], 1)

    def _received(
        self, total: Tensor, state: RoundState, before: list[dict[str, Tensor]] | None = None
    ) -> tuple[Tensor, int]:
        """Take the averages from the sum over all parts; return that of the corrections, and how many parts failed.

        With steps done since, vectors of memory get what they would be had they begun at the average: each step
        multiplies what was there `before` by a known factor.
        """
        n, failed = self.decomposition.size, round(float(total[-1]))
        correction, *means = torch.split(total[:-2], n)
        if self.control:
            state.variate = means.pop().clone()
        decays = getattr(self.solver, "memory_decay", {})
        for name, mean in zip(state.vectors, means, strict=True):
            mean = mean / total[-2] if failed else mean
            for k, one in enumerate(state.local):
                vector = getattr(one, name)
                if before is None:
                    vector.copy_(mean.expand_as(vector))
                else:
                    vector.add_((mean - before[k][name]).mul_(decays.get(name, 1.0) ** state.ahead))
        return correction, failed

    def _restart(self, walk: Walk, ends: Tensor, good: Tensor, state: RoundState) -> None:
        """Make the memory of parts that were not finite anew; what is averaged gets the mean of the others."""
        pieces = zip(self.parts.split(ends), self.parts.split(good), strict=True)
        for k, (y, fine) in enumerate(pieces):
            if bool(fine.all()):
                continue
            one = state.local[k]
            if self.memory == "average":
                for name in state.vectors:
                    getattr(one, name).copy_(torch.where(fine, getattr(one, name), 0.0))
                continue
            fresh = self.solver.init(walk.model(k, state.done)[0], y)
            if not self.parts.together:
                state.local[k] = fresh
                continue
            for f in fields(one):
                if _is_memory(f, getattr(one, f.name), ends.shape[1]):
                    old, new = getattr(one, f.name), getattr(fresh, f.name)
                    old.copy_(torch.where(fine, old, new))


def _is_memory(f: Field[Any], value: Any, size: int) -> bool:
    """Say whether a field of a state is a vector of unknowns that is remembered, or a batch of these."""
    if not isinstance(value, Tensor) or f.metadata.get("scratch"):
        return False
    return value.is_floating_point() and value.dim() in (1, 2) and value.shape[-1] == size
