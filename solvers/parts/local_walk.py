"""The local steps of parts that each have all unknowns, on samples of their own losses."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Around, Objective, Remembered, Row, SharedDecomposition, layers_of, sampled
from mldd.loop import Solver, State
from mldd.ranks import PartSum


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
class Parts:
    """The parts of this rank as they are solved: each by itself, or all in one batch.

    Parameters
    ----------
    decomposition : SharedDecomposition
        Parts of the data or graph.
    batched : bool
        Whether the local solver takes batches, of one part or of all.
    together : bool
        Whether all parts are one batch.
    """

    decomposition: SharedDecomposition
    batched: bool
    together: bool

    @property
    def groups(self) -> list[SharedDecomposition]:
        """What is solved at once."""
        d = self.decomposition
        if self.together:
            return [d] if len(d.local) else []
        return [d.alone(k) for k in d.local]

    def split(self, rows: Tensor) -> list[Tensor]:
        """Return rows of all parts, shape (p, n), as those of the groups; no copies.

        Parameters
        ----------
        rows : Tensor, shape (p, n)
            One per part.
        """
        if self.together:
            return [rows] if len(rows) else []
        return list(rows.split(1)) if self.batched else list(rows)

    def joined(self, pieces: list[Tensor], like: Tensor) -> Tensor:
        """Return what groups have as rows of all parts, shape (p, n).

        Parameters
        ----------
        pieces : list of Tensor
            One per group.
        like : Tensor, shape (p, n)
            Returned where there are none.
        """
        if len(pieces) == 1:
            return pieces[0].view_as(like)
        return torch.cat([piece.view(-1, like.shape[1]) for piece in pieces]) if pieces else like


_NOTHING = (None, None, None, None)


class Walk:
    """The local steps of the parts of this rank in a round.

    Parameters
    ----------
    parts : Parts
        The parts, as they are solved.
    objective : Objective
        What is minimised; of a stochastic one, the sample that the loop has made.
    x : Tensor, shape (n,)
        The last average.
    """

    def __init__(self, parts: Parts, objective: Objective, x: Tensor) -> None:
        """Begin with nothing evaluated."""
        self.parts, self.groups, self.x = parts, parts.groups, x
        of_samples = objective.source if isinstance(objective, Remembered) else None
        self.source = objective if of_samples is None else of_samples
        self.shifts: list[Tensor] = []
        self.totals: list[Tensor] = []
        self._sample: tuple[int, Objective] | None = None
        self._last: dict[int, tuple[Any, Any, Any, Any]] = {}

    def control(self, shifts: Tensor) -> Tensor:
        """Shift gradients from now on; return what adds up the gradients as they were, shape (p, n).

        Parameters
        ----------
        shifts : Tensor, shape (p, n)
            Of every part.
        """
        total = torch.zeros_like(shifts)
        self.shifts, self.totals = self.parts.split(shifts), self.parts.split(total)
        return total

    def sample(self, t: int) -> Objective:
        """Return the objective whose parts local step `t` sees.

        Parameters
        ----------
        t : int
            Number of the local step.
        """
        if self._sample is None or self._sample[0] != t:
            self._sample = t, sampled(self.source, t)
        return self._sample[1]

    def model(self, k: int, t: int) -> tuple[Objective, bool]:
        """Return the loss of group `k` for local step `t`, and whether it is another one than a step before.

        Parameters
        ----------
        k : int
            Position of the group.
        t : int
            Number of the local step.
        """
        f, (last_f, last_parts, last_step, last) = self.sample(t), self._last.get(k, _NOTHING)
        of_parts = last_parts if f is last_f else self.groups[k].models(f, self.x, None)
        of_step = resampled(of_parts, t)
        if of_step is last_step:  # nothing is stochastic, or the parts do not depend on the sample
            return last, False
        local: Objective = Remembered(of_step if self.parts.batched else Row(of_step))
        if self.shifts:
            local = Controlled(local, self.shifts[k], self.totals[k])
        self._last[k] = f, of_parts, of_step, local
        return local, True

    def go(self, here: Tensor, numbers: range, states: list[Any], solver: Any, sums: PartSum | None = None) -> Tensor:
        """Return where the parts are after local steps, shape (p, n).

        Parameters
        ----------
        here : Tensor, shape (p, n)
            Where they begin; it may be written to.
        numbers : range
            Of the local steps.
        states : list
            Of the local solver, one per group, changed in place; None for one that begins.
        solver : callable
            ``solver(t)`` returns the local solver of step t.
        sums : PartSum, optional
            Messages that go on meanwhile.
        """
        places = self.parts.split(here)
        for t in numbers:
            local_solver: Solver = solver(t)
            for k in range(len(places)):
                places[k], states[k] = self._one(local_solver, k, t, places[k], states[k], t == numbers.start)
            if sums is not None:
                sums.advance()
        return self.parts.joined(places, here)

    def _one(self, solver: Solver, k: int, t: int, y: Tensor, state: Any, is_first: bool) -> tuple[Tensor, Any]:
        """Do step `t` of group `k`; a solver that could not go on starts anew in the next round."""
        model, is_new = self.model(k, t)
        if state is None or (state.status is not None and is_first):
            state = solver.init(model, y)
        elif is_new and isinstance(state, State):
            state.forget()
        if state.status is None:
            y, state = solver.step(model, y, state)
            state.step += 1
        return y, state


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
