"""Rates by groups of unknowns: neighbouring groups with one rate make a span, and a solver steps span by span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Bounds, Objective, Price, Remembered
from mldd.loop import Solver


@dataclass(frozen=True)
class Span:
    """Unknowns that one solver moves.

    Parameters
    ----------
    where : slice
        The unknowns.
    solver : Solver
        With their rate.
    moves : bool
        Whether they move at all; with a rate of zero only the solver's memory does.
    """

    where: slice
    solver: Solver
    moves: bool


def runs(sizes: Sequence[int], numbers: Sequence[float]) -> list[tuple[slice, float]]:
    """Return the numbers of groups for slices of the flat vector, neighbours with the same one together.

    Parameters
    ----------
    sizes : Sequence of int
        Unknowns of each group, in order.
    numbers : Sequence of float
        One per group.
    """
    found, start = [], 0
    for number, pairs in groupby(zip(numbers, sizes, strict=True), lambda pair: pair[0]):
        stop = start + sum(size for _, size in pairs)
        found.append((slice(start, stop), number))
        start = stop
    return found


def rate_of(solver: Any) -> str | None:
    """Return the field with the rate, with a dot where it is that of a local solver; None where there is no rate.

    Parameters
    ----------
    solver : Solver
        Any solver.
    """
    names = [f.name for f in fields(solver)]
    for name in ("smoother", "local"):
        inner = rate_of(getattr(solver, name)) if name in names and is_dataclass(getattr(solver, name)) else None
        if inner is not None:
            return f"{name}.{inner}"
    return next((name for name in names if name in ("lr", "rate")), None)


def with_rate(solver: Any, path: str, rate: float) -> Any:
    """Return the solver with another rate.

    Parameters
    ----------
    solver : Solver
        Any solver with a rate.
    path : str
        Where it is, as `rate_of` has found.
    rate : float
        The rate.
    """
    name, _, inner = path.partition(".")
    return replace(solver, **{name: with_rate(getattr(solver, name), inner, rate) if inner else rate})


def step_by_spans(spans: Sequence[Span], f: Objective, x: Tensor, g: Tensor, state: Any) -> None:
    """Do one step of an entrywise solver in place, with the rate of each span; its memory stays one of all unknowns.

    Parameters
    ----------
    spans : list of Span
        All unknowns, in order.
    f : Objective
        What is minimised.
    x : Tensor, shape (n,)
        The iterate, written to.
    g : Tensor, shape (n,)
        The gradient there.
    state : State
        Of the solver for all unknowns, written to.
    """
    vectors = [f.name for f in fields(state) if _is_like(getattr(state, f.name), x)]
    memory = state
    for span in spans:
        where, y = span.where, x[span.where]
        before = None if span.moves else y.clone()
        objective = Remembered(_Part(f, x, where))
        objective.keep(y, g[where])
        memory = replace(state, **{name: getattr(state, name)[where] for name in vectors})
        z, memory = span.solver.step(objective, y, memory)
        if before is not None:
            y.copy_(before)
        elif z is not y:
            y.copy_(z)
    for item in fields(state):
        if item.name not in vectors:  # vectors were written to in place; counts are the same in all spans
            setattr(state, item.name, getattr(memory, item.name))


def _is_like(thing: Any, x: Tensor) -> bool:
    return isinstance(thing, Tensor) and thing.shape == x.shape


@dataclass(frozen=True)
class _Part:
    """The objective as a function of some unknowns, the others staying as they are."""

    whole: Objective
    x: Tensor
    where: slice

    @property
    def size(self) -> int:
        return int(self.where.stop - self.where.start)

    @cached_property
    def bounds(self) -> Bounds:
        bounds = self.whole.bounds
        return Bounds(bounds.lower[self.where], bounds.upper[self.where], bounds.is_free)

    def _filled(self, y: Tensor) -> Tensor:
        z = self.x.clone()
        z[self.where] = y
        return z

    def value(self, y: Tensor) -> Tensor:
        return self.whole.value(self._filled(y))

    def gradient(self, y: Tensor) -> Tensor:
        return self.whole.gradient(self._filled(y))[self.where]

    @property
    def price(self) -> Price:
        return self.whole.price  # type: ignore[attr-defined, no-any-return]

    def hessian_product(self, y: Tensor, v: Tensor) -> Tensor:
        direction = torch.zeros_like(self.x)
        direction[self.where] = v
        product: Tensor = self.whole.hessian_product(self._filled(y), direction)  # type: ignore[attr-defined]
        return product[self.where]
