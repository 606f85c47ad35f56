"""Rounds of local training: every part does some steps on its own loss, and what the parts have reached is averaged.

The parts have all unknowns each, and their losses are no local models of the whole loss: nothing is corrected to first
order. What is averaged, iterates and vectors of the local solvers' memory, travels in one message, and its sums do not
depend on the number of ranks.
"""

from __future__ import annotations

import sys
from collections import deque
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Around, Objective, Remembered, Row, SharedDecomposition, layers_of, sampled
from mldd.loop import FINITE, PER_SUBDOMAIN, Solver, State
from mldd.ranks import SERIAL, Communicator, PartSum, begin_part_sum
from mldd.solvers.parts.group_rates import rate_of, with_rate
from mldd.solvers.parts.learning_rate import LearningRate

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
    variate: Tensor = field(default_factory=lambda: torch.empty(0), metadata=FINITE)


@dataclass(frozen=True)
class Controlled(Around):
    """`f` with gradients shifted by a control variate, which adds up the gradients as they were.

    Parameters
    ----------
    f : Objective
        Loss of a part, or of a batch of them.
    shift : Tensor, shape (n,) or (p, n)
        Mean gradient of all parts less that of this part.
    total : Tensor, shape (n,) or (p, n)
        Sum of the gradients of `f`, written to.
    """

    shift: Tensor
    total: Tensor

    def gradient(self, y: Tensor) -> Tensor:
        """Return ``grad f(y) + shift``.

        Parameters
        ----------
        y : Tensor, shape (n,) or (p, n)
            Where to evaluate.
        """
        g = self.f.gradient(y)
        self.total.add_(g)
        return g + self.shift


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
    steps : int
        H, local steps between two averages.
    memory : {"reset", "keep", "average"}
        What happens to the state of the local solver at an average: it starts anew, is kept by every part, or its
        vectors are averaged with the iterates.
    rates : LearningRate
        How the step size of the local solver changes; its unit is `steps` local steps.
    grows : bool
        Whether a round has ``steps / factor^2`` local steps once the schedule decays by a factor.
    control : bool
        Whether local gradients are shifted by control variates.
    delay : int
        Local steps of the next round that are done while the average is under way, below `steps`.
    comm : Communicator
        Its ranks divide the parts.

    Raises
    ------
    ValueError
        Parts that are not of the data or graph, or options out of range or that do not go together.
    """

    decomposition: SharedDecomposition
    solver: Solver
    steps: int = 10
    memory: LocalMemory = "reset"
    rates: LearningRate = LearningRate()
    grows: bool = False
    control: bool = False
    delay: int = 0
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse what makes no sense."""
        if not isinstance(self.decomposition, SharedDecomposition) or self.decomposition.mask is not None:
            raise ValueError(
                "`decomposition` must be one into parts of the data or graph, each with all unknowns, got one of the "
                "unknowns; decompose the data (digits:subdomains=data)"
            )
        if not self.steps >= 1:
            raise ValueError(f"`local_steps` must be >= 1, got {self.steps}")
        if self.memory not in ("reset", "keep", "average"):
            raise ValueError(f"`memory` must be one of reset, keep, average, got {self.memory!r}")
        if not 0 <= self.delay < self.steps:
            raise ValueError(f"`delay` must be in 0..{self.steps - 1} (below `local_steps`), got {self.delay}")
        self._check_rates()
        if (self.control or self.delay) and not getattr(self.solver, "entrywise", False):
            raise ValueError(
                "`control` and `delay` need a local solver that moves every unknown by its gradient alone, got "
                f"{type(self.solver).__name__}; use adam, sgd or adagrad"
            )
        if self.delay and (self.control or self.memory == "reset"):
            raise ValueError(
                "`delay` needs a memory that is kept or averaged and no control variates, got "
                f"memory={self.memory} and control={self.control}; set memory=average and control=False"
            )
        held, parts = len(self.decomposition.local), self.decomposition.parts
        if (held < parts) != (self.comm.ranks > 1):
            raise ValueError(
                f"decomposition and solver must be made with the same `comm`, got {self.comm.ranks} ranks of the solver"
                f" and {held} of {parts} parts on this one; give both the same"
            )

    def _check_rates(self) -> None:
        of_local = getattr(self.solver, "rates", None)
        if of_local is not None and of_local != LearningRate():
            raise ValueError(
                f"the local solver must have a constant step size, got schedule={of_local.schedule} and warmup="
                f"{of_local.warmup}; give `schedule` and `warmup` to the solver that averages"
            )
        if self.rates != LearningRate() and self._rate is None:
            raise ValueError(f"a schedule needs a local solver with `lr` or `rate`, got {type(self.solver).__name__}")
        if self.grows and not self.rates.decays:
            raise ValueError("`growth` needs a schedule that decays, got schedule=constant; set schedule=cosine")

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
    def batched(self) -> bool:
        """Whether the local solver takes all parts of a rank at once."""
        return bool(getattr(self.solver, "batched", False))

    @cached_property
    def groups(self) -> list[SharedDecomposition]:
        """The parts of this rank as they are solved: in one batch, or each by itself."""
        d = self.decomposition
        if self.batched:
            return [d] if len(d.local) else []
        return [d.alone(k) for k in d.local]

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
            Memory that cannot be averaged, or a schedule without its length.
        """
        self.rates.factor(0)
        state = RoundState(subdomains=list(self.decomposition.local))
        walk = _Walk(self, objective, x, state, None)
        if self.memory != "reset":
            state.local = [
                self.solver.init(walk.model(k, 0)[0], d.gather(x) if self.batched else x.clone())
                for k, d in enumerate(self.groups)
            ]
        if self.memory == "average":
            state.vectors = max(self.comm.gather_items(self._vectors(state.local)), key=len)
        return state

    def _vectors(self, states: list[Any]) -> tuple[str, ...]:
        """Return the vectors of unknowns in the states of the local solver; nothing else in them may differ."""
        names: dict[str, None] = {}
        for one in states:
            for f in fields(one):
                value = getattr(one, f.name)
                if f.metadata.get("scratch"):
                    continue
                if _is_vector(value, self.decomposition.size):
                    names[f.name] = None
                elif _holds_numbers(value):
                    raise ValueError(
                        f"`memory` average needs a local solver whose memory is vectors of the unknowns, got "
                        f"{type(self.solver).__name__} with `{f.name}`; use memory=keep or reset"
                    )
        return tuple(names)

    # -------------------------------------------------------------------------------- how many steps

    def _left(self, done: int) -> int | None:
        """Return the local steps that the schedule has left, None where it has no end."""
        return self.rates.length * self.steps - done if self.rates.decays else None

    def steps_of(self, done: int) -> int:
        """Return the local steps of the round that begins after `done` local steps.

        Parameters
        ----------
        done : int
            Local steps of every part in the rounds before.

        References
        ----------
        Gu, Lyu, Huang and Arora, arXiv 2310.14423, equation 2 (the quadratic synchronisation rule), with their constant
        chosen such that the first rounds have `steps` local steps.
        """
        left = self._left(done)
        if not self.grows or left is None or left <= 0 or done < self.rates.warmup * self.steps:
            return self.steps
        factor = self.rates.factor(done, self.steps)
        return max(self.steps, int(min(left, self.steps / factor**2))) if left >= self.steps else left

    def solver_at(self, done: int) -> Solver:
        """Return the local solver with the step size of local step number `done`.

        Parameters
        ----------
        done : int
            Local steps of every part before it.
        """
        factor = self.rates.factor(done, self.steps)
        if factor == 1.0:
            return self.solver
        changed: Solver = with_rate(self.solver, str(self._rate), max(self._base * factor, sys.float_info.min))
        return changed

    # -------------------------------------------------------------------------------- a round

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
        d, first = self.decomposition, state.done + state.ahead
        here = d.gather(x) if state.places.numel() == 0 else state.places
        walk = _Walk(self, objective, x, state, torch.zeros_like(here) if self.control else None)
        state.done += self.steps_of(state.done)
        ends = walk.go(here, range(first, state.done))
        good = torch.isfinite(ends).all(1, keepdim=True)
        ends = torch.where(good, ends, x)
        if walk.total is not None:
            state.variates = torch.where(good, walk.total.div_(max(state.done - first, 1)), 0.0)
        shares = d.shares_of(walk.sample(first))[d.local.start : d.local.stop].to(ends)[:, None]
        sums = begin_part_sum(self._message(ends - x, good, shares, state), d.parts, self.comm)
        if self.memory == "keep" and not bool(good.all()):
            self._restart(walk, ends, good, state)
        if not self.delay:
            correction, failed = self._received(sums.result(), state)
        else:
            correction, failed = self._overlapped(sums, walk, x, ends, state)
            if not objective.bounds.is_free and state.places.numel():
                objective.bounds.project(state.places, out=state.places)
        self.rates.end(state, state.done, self.steps)
        return correction, failed

    def _overlapped(self, sums: PartSum, walk: _Walk, x: Tensor, ends: Tensor, state: RoundState) -> tuple[Tensor, int]:
        """Do the first steps of the next round from `ends` while the sums come in, and shift all by the averages."""
        left = self._left(state.done)
        state.ahead = self.delay if left is None else max(0, min(self.delay, left))
        before = [{name: getattr(one, name).clone() for name in state.vectors} for one in state.local]
        places = walk.go(ends.clone(), range(state.done, state.done + state.ahead), sums)
        correction, failed = self._received(sums.result(), state, before)
        state.places = places.add_(x + correction - ends) if state.ahead else x.new_empty(0)
        return correction, failed

    def _message(self, corrections: Tensor, good: Tensor, shares: Tensor, state: RoundState) -> Tensor:
        """Return what is summed over the parts, a row for each: all of it with the weights of the parts."""
        weights = torch.where(good, shares, 0.0)
        columns = [corrections * shares]
        for name in state.vectors:
            moments = torch.cat([getattr(one, name).view(-1, corrections.shape[1]) for one in state.local])
            columns.append(torch.where(good, moments, 0.0) * weights)
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
        correction, *means = total[:-2].split(n)
        if self.control:
            state.variate = means.pop().clone()
        decays = getattr(self.solver, "memory_decay", {})
        for name, mean in zip(state.vectors, means, strict=True):
            mean = mean / total[-2] if failed else mean
            for k, one in enumerate(state.local):
                if before is None:
                    getattr(one, name).copy_(mean.expand_as(getattr(one, name)))
                else:
                    shift = (mean - before[k][name]).mul_(decays.get(name, 1.0) ** state.ahead)
                    getattr(one, name).add_(shift)
        return correction, failed

    def _restart(self, walk: _Walk, ends: Tensor, good: Tensor, state: RoundState) -> None:
        """Make the memory of parts that were not finite anew."""
        for k, one in enumerate(state.local):
            bad = ~good[:, 0] if self.batched else ~good[k]
            if not bool(bad.any()):
                continue
            fresh = self.solver.init(walk.model(k, state.done)[0], ends if self.batched else ends[k])
            if not self.batched:
                state.local[k] = fresh
                continue
            for f in fields(one):
                old, new = getattr(one, f.name), getattr(fresh, f.name)
                if _is_vector(old, ends.shape[1]):
                    old[bad] = new[bad]


class _Walk:
    """The local steps of the parts of this rank in a round."""

    def __init__(
        self, rounds: Rounds, objective: Objective, x: Tensor, state: RoundState, total: Tensor | None
    ) -> None:
        self.rounds, self.x, self.state, self.total = rounds, x, state, total
        of_samples = objective.source if isinstance(objective, Remembered) else None
        self.source = objective if of_samples is None else of_samples
        self._sample: tuple[int, Objective] | None = None
        self._fixed: dict[int, Objective] = {}

    def sample(self, t: int) -> Objective:
        """Return the objective whose parts local step `t` sees."""
        if self._sample is None or self._sample[0] != t:
            self._sample = t, sampled(self.source, t)
        return self._sample[1]

    def model(self, k: int, t: int) -> tuple[Objective, bool]:
        """Return the loss of group `k` for local step `t`, and whether it is another one than a step before."""
        if k in self._fixed:
            return self._fixed[k], False
        f, rounds = self.sample(t), self.rounds
        of_parts = rounds.groups[k].models(f, self.x, None)
        of_step = resampled(of_parts, t)
        local: Objective = Remembered(of_step if rounds.batched else Row(of_step))
        if self.total is not None:
            local = Controlled(local, self._shift(k), self.total if rounds.batched else self.total[k])
        if f is self.source and of_step is of_parts:
            self._fixed[k] = local
        return local, True

    def _shift(self, k: int) -> Tensor:
        state = self.state
        if state.variates.numel() == 0:
            return torch.zeros_like(self.x)
        return state.variate - (state.variates if self.rounds.batched else state.variates[k])

    def go(self, here: Tensor, numbers: range, sums: PartSum | None = None) -> Tensor:
        """Return where the parts are after the local steps of some numbers, shape (p, n); `here` may be written to."""
        rounds, state = self.rounds, self.state
        places = [here] if rounds.batched else list(here)
        states: list[Any] = list(state.local) or [None] * len(rounds.groups)
        for t in numbers:
            solver = rounds.solver_at(t)
            for k in range(len(rounds.groups)):
                model, is_new = self.model(k, t)
                mine = states[k]
                if mine is None or (mine.status is not None and t == numbers.start):
                    mine = solver.init(model, places[k])
                elif is_new and isinstance(mine, State):
                    mine.forget()
                if mine.status is None:
                    places[k], mine = solver.step(model, places[k], mine)
                    mine.step += 1
                states[k] = mine
            if sums is not None:
                sums.advance()
        if rounds.memory != "reset":
            state.local = states
        if not rounds.groups:
            return here
        return places[0] if rounds.batched else torch.stack(places)


def resampled(f: Objective, number: int) -> Objective:
    """Return `f` with sample `number` of what it is composed of; `f` itself where nothing is stochastic.

    Parameters
    ----------
    f : Objective
        What may be composed of a stochastic objective.
    number : int
        Of the sample.
    """
    layers = list(layers_of(f))
    depth = next((k for k, layer in enumerate(layers) if hasattr(layer, "sample")), None)
    if depth is None:
        return f
    outer, changed = layers[:depth], sampled(layers[depth], number)
    for layer in reversed(outer):
        if not isinstance(layer, Remembered):
            changed = replace(layer, f=changed)
    return changed


def _is_vector(value: Any, size: int) -> bool:
    """Say whether a field of a state is a vector of unknowns, or a batch of these."""
    return isinstance(value, Tensor) and value.is_floating_point() and value.dim() in (1, 2) and value.shape[-1] == size


def _holds_numbers(value: Any) -> bool:
    """Say whether a field of a state has floating-point tensors of more than one number."""
    if isinstance(value, Tensor):
        return value.is_floating_point() and value.numel() > 1
    if is_dataclass(value):
        return any(_holds_numbers(getattr(value, f.name)) for f in fields(value))
    return isinstance(value, list | tuple | deque) and any(map(_holds_numbers, value))
