"""What solvers of a problem need before they start: subdomains and levels, made once, clocked and priced."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from mldd.algebra import (
    FirstLayer,
    Hierarchy,
    Objective,
    Whitening,
    calibrated,
    calibrated_decomposition,
    calibrated_hierarchy,
    counting,
    factors_of,
    sampled,
    unit_of,
)
from mldd.loop import Cost, Problem
from mldd.ranks import SERIAL, Communicator


@dataclass(frozen=True)
class Made:
    """Subdomains or levels, and what making them has taken on this rank.

    Attributes
    ----------
    thing : Decomposition, SharedDecomposition or Hierarchy
        What was made.
    seconds, cpu : float
        Wall and CPU time.
    synchronisations : int
        Collectives on vectors.
    """

    thing: Any
    seconds: float
    cpu: float
    synchronisations: int


@dataclass(eq=False)
class Preparation:
    """A problem with its start, and what was made for its solvers.

    Solvers that use the same subdomains share them; each is charged what making them has taken.

    Parameters
    ----------
    problem : Problem
        It makes subdomains and levels.
    seed : int
        Of the start.
    comm : Communicator
        The ranks.
    measured : bool
        Whether shares of ranks, coarse levels and local models get prices by measurement.
    """

    problem: Problem
    seed: int = 0
    comm: Communicator = SERIAL
    measured: bool = False
    _made: dict[Hashable, Made] = field(default_factory=dict, repr=False)

    @cached_property
    def objective(self) -> Objective:
        """What is minimised; with measured prices its evaluations, or a rank's share of them, count what they take."""
        f = self.problem.objective()
        if not self.measured:
            return f
        return calibrated(f, factors_of(f, self.start, self.unit, self._mean))

    @cached_property
    def start(self) -> Tensor:
        """The start, shape (n,)."""
        return self.problem.initial(self.seed)

    @cached_property
    def unit(self) -> float:
        """CPU seconds of a fine gradient of a single process, measured at the start; all ranks ask together.

        Where the data are distributed it is estimated: the time of all ranks over the work that they count.
        """
        f = (self.problem.alone() or self.problem).objective() if self.measured else self.objective
        return unit_of(f, self.start, self._total, self._mean)

    def decomposition(self, parts: int, overlap: int) -> Any:
        """Return the decomposition, made at the first call; what its local models make lazily is made with it.

        Parameters
        ----------
        parts, overlap : int
            As `Problem.decomposition` takes them.
        """

        def make() -> Any:
            made = self.problem.decomposition(parts, overlap, self.comm)
            made.models(sampled(self.objective, 0), self.start, None)
            return made

        return self._once(("decomposition", parts, overlap), make)

    def hierarchy(self, levels: int, parts: int | None = None) -> Hierarchy:
        """Return the hierarchy, made at the first call.

        Parameters
        ----------
        levels : int
            Number of levels, the finest one included.
        parts : int, optional
            Number of subdomains on the finest level, where it is decomposed.
        """

        def make() -> Hierarchy:
            if parts is None:
                return self.problem.hierarchy(levels)
            return self.problem.coarse_hierarchy(levels, parts)

        made: Hierarchy = self._once(("hierarchy", levels, parts), make)
        return made

    def first_layer(self) -> FirstLayer:
        """Return the inputs of the problem's first layer, made at the first call."""
        made: FirstLayer = self._once("first layer", self.problem.first_layer)
        return made

    def prepared(self, solver: Any) -> Any:
        """Return what a solver makes of its own before it starts; all ranks ask together.

        Parameters
        ----------
        solver : Solver
            One with a method ``prepare(x)``, to which the start is given.
        """
        return self._once(("solver", len(self._made)), lambda: solver.prepare(self.start))

    def _once(self, key: Hashable, make: Callable[[], Any]) -> Any:
        if key not in self._made:
            _ = self.objective, self.start  # they are no part of a method's set-up
            begin = time.perf_counter(), time.process_time()
            with counting() as cost:
                thing = make()
            spent = time.perf_counter() - begin[0], time.process_time() - begin[1] - cost.waited
            priced = self._priced(thing) if self.measured else thing
            self._made[key] = Made(priced, *spent, cost.synchronisations)
        return self._made[key].thing

    def _priced(self, thing: Any) -> Any:
        """Return subdomains or levels with measured prices; other things as they are."""
        if isinstance(thing, Hierarchy):
            return calibrated_hierarchy(thing, self.start, self.unit, self._mean)
        if isinstance(thing, FirstLayer | Whitening):
            return thing
        return calibrated_decomposition(thing, self.objective, self.start, self.unit, self._mean)

    def cost(self, things: Iterable[Any]) -> Cost:
        """Return the cost of making what a solver uses, on the rank where it was largest; all ranks ask together.

        Parameters
        ----------
        things : iterable
            Decompositions and hierarchies that were made here.
        """
        mine = {id(thing) for thing in things}
        made = [m for m in self._made.values() if id(m.thing) in mine]
        if not made:  # on all ranks alike
            return Cost()
        spent = self.comm.gather_items((sum(m.seconds for m in made), sum(m.cpu for m in made)))
        return Cost(
            synchronisations=sum(m.synchronisations for m in made),
            setup_seconds=max(s for s, _ in spent),
            setup_work=max(cpu for _, cpu in spent) / self.unit,
        )

    def _total(self, number: float) -> float:
        return self.comm.sum_scalars([number])[0]

    def _mean(self, number: float) -> float:
        return self._total(number) / self.comm.ranks
