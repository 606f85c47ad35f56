"""What the benchmarks beside peers share: problems with targets, methods, a clock, the sweep over rates, the table.

A benchmark has problems, each with targets for one number (loss, error or measure), and methods, which run on all of
them. Every method with a rate gets the best one of its grid, by the first seed: the one that reaches the most targets,
then the one that is sooner at the last of these. A run ends at the last target or when its budget is used up.

A row is a method, seed and target. "cpu" is process time summed over all ranks, without looks at the number; "setup" is
what was spent before the first step (subdomains, levels, the state of the solver) and is *not* part of "cpu".
"gradients" are those of the whole problem on all ranks together (a part's gradient is worth its share; a value is a
third of one); "vectors" and "scalars" are collectives on vectors and on a few numbers, counted on one rank as if there
were several, where the problem can be divided among ranks. "share" is the least time of these gradients and messages
(`experiments.machine`) over "cpu". Cells are empty where a target was not reached. "source" is measured, recorded (by
us, with the peer's code, on another day and a busier machine: "cpu" is wall time there) or absent.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from experiments.machine import Limits, Need
from experiments.study import minimise
from mldd import Stop
from mldd.algebra import uncounted
from mldd.ranks import Communicator
from mldd.solvers import AdaGrad

COSTS = ("cpu", "seconds", "gradients", "vectors", "scalars", "accepted")
Row = dict[str, Any]


@dataclass(frozen=True)
class Budget:
    """When a run ends that has not reached its last target, and how often it is looked at.

    Parameters
    ----------
    seconds : float
        CPU seconds, all ranks together.
    gradients : float
        Gradients of the whole problem.
    pause : float
        CPU seconds between two looks; 0 looks after every step.
    warm : bool
        Two gradients of another run come first and fill buffers and caches of the process.
    """

    seconds: float = 5.0
    gradients: float = math.inf
    pause: float = 0.01
    warm: bool = True


@dataclass(frozen=True)
class Task:
    """A problem, and when it counts as solved.

    Parameters
    ----------
    name : str
        As the table has it.
    make : callable
        ``make(comm)`` returns the problem.
    number : callable
        ``number(problem)`` returns the function of an iterate that the targets are of.
    targets : tuple of float
        Descending.
    need : Need
        What a gradient needs of the machine.
    relative : bool
        Targets are shares of the number at the start.
    budget : Budget
        Of a run.
    """

    name: str
    make: Callable[[Communicator], Any]
    number: Callable[[Any], Callable[[torch.Tensor], float]]
    targets: tuple[float, ...]
    need: Need
    relative: bool = False
    budget: Budget = Budget()


@dataclass(frozen=True)
class Mark:
    """The number at one moment of a run, and what it has cost."""

    number: float
    cpu: float
    seconds: float
    gradients: float
    vectors: float = math.nan
    scalars: float = math.nan
    accepted: float = math.nan


class OverError(Exception):
    """The run is over: on all ranks at the same step."""


@dataclass
class Race:
    """A run of one method from one start under the clock.

    Attributes
    ----------
    task : Task
    problem : problem
        Made anew for every run, so that nothing is kept of another.
    comm : Communicator
    seed : int
        Of the start.
    marks : list of Mark
    setup : float
        CPU seconds before the first step.
    status : str
        How it ended, where a solver gave up.
    """

    task: Task
    problem: Any
    comm: Communicator
    seed: int
    marks: list[Mark] = field(default_factory=list)
    setup: float = 0.0
    status: str = ""
    _spent: tuple[float, float] = (0.0, 0.0)
    _since: tuple[float, float] = (0.0, 0.0)
    _number: Callable[[torch.Tensor], float] | None = None

    def begin(self) -> None:
        """Start the clock of the set-up."""
        self._number = self.task.number(self.problem)
        self._since = time.process_time(), time.perf_counter()

    def stop_clock(self) -> tuple[float, float]:
        """Add what has passed, and return CPU seconds of all ranks and wall seconds since the first step."""
        spent = time.process_time() - self._since[0], time.perf_counter() - self._since[1]
        self._spent = self._spent[0] + spent[0], self._spent[1] + spent[1]
        with uncounted():
            cpu = self.comm.sum_scalars([self._spent[0]])[0]
        return cpu, self._spent[1]

    def look(self, x: torch.Tensor, gradients: float, **costs: float) -> bool:
        """Take note of an iterate, and say whether the run is over; the first look ends the set-up."""
        cpu, seconds = self.stop_clock()
        if not self.marks:
            self.setup, self._spent, cpu, seconds = cpu, (0.0, 0.0), 0.0, 0.0
        budget = self.task.budget
        over = cpu >= budget.seconds or gradients >= budget.gradients
        if over or not self.marks or cpu >= self.marks[-1].cpu + budget.pause:
            assert self._number is not None
            with uncounted():
                number = float(self._number(x))
            self.marks.append(Mark(number, cpu, seconds, gradients, **costs))
            over = over or number <= self.goals[-1] or not math.isfinite(number)
        self._since = time.process_time(), time.perf_counter()
        return over

    def after_step(self, x: torch.Tensor, state: Any, history: Any) -> None:
        """Look at an iterate of mldd's loop."""
        record = history.records[-1]
        tried = record.accepted + record.rejected
        over = self.look(
            x,
            record.cost.work_total,
            vectors=record.cost.synchronisations,
            scalars=record.cost.scalar_synchronisations,
            accepted=record.accepted / tried if tried else math.nan,
        )
        if over:
            raise OverError

    @property
    def goals(self) -> list[float]:
        """The targets as numbers."""
        return [t * (self.marks[0].number if self.task.relative else 1.0) for t in self.task.targets]

    def at(self, goal: float) -> Mark | None:
        """Return the first mark at or below a number."""
        return next((mark for mark in self.marks if mark.number <= goal), None)

    def rank(self) -> tuple[float, ...]:
        """Return what tuning compares: targets missed, gradients to the last one that was reached, the least number."""
        reached = [mark.gradients for mark in map(self.at, self.goals) if mark is not None]
        least = min((mark.number for mark in self.marks if math.isfinite(mark.number)), default=math.inf)
        return len(self.goals) - len(reached), reached[-1] if reached else math.inf, least

    def rows(self, limits: Limits) -> Iterator[Row]:
        """Yield a row per target."""
        for target, mark in zip(self.task.targets, map(self.at, self.goals), strict=True):
            row: Row = {"target": target, "setup": self.setup}
            row |= {name: math.nan if mark is None else getattr(mark, name) for name in COSTS}
            messages = 0.0 if self.comm.ranks == 1 or mark is None else mark.vectors + mark.scalars
            least = math.nan if mark is None else limits.least(self.task.need, mark.gradients, messages)
            share = least / mark.cpu if mark is not None and mark.cpu > 0 else math.nan
            yield row | {"share": share, "source": "measured", "status": self.status}


@dataclass(frozen=True)
class Method:
    """How a method runs.

    Parameters
    ----------
    run : callable
        ``run(race, rate)`` begins the clock of a race and looks after every step.
    rates : tuple of float
        The grid; one entry where there is no rate to tune.
    """

    run: Callable[[Race, float], None]
    rates: tuple[float, ...] = (0.0,)


def ours(make: Callable[[Any, float], Any], rates: tuple[float, ...] = (0.0,), **changes: Any) -> Method:
    """Return a solver of mldd: ``make(problem, rate)``, set-up inside; `changes` are to fields of the problem."""

    def run(race: Race, rate: float) -> None:
        race.problem = replace(race.problem, **changes)
        if "dtype" in changes:
            race.task = replace(race.task, need=replace(race.task.need, dtype=changes["dtype"]))
        f, x = race.problem.objective(), race.problem.initial(race.seed)
        race.begin()
        solver = make(race.problem, rate)
        try:
            result = minimise(f, x, solver, stop=Stop(10**9), comm=race.comm, values=False, after_step=race.after_step)
            race.status = result.status.name
        except OverError:
            pass

    return Method(run, rates)


def first_order(rate: float) -> AdaGrad:
    """Return AdaGrad without curvature."""
    return AdaGrad(1e-3, rate, curvature="none")


def raced(task: Task, method: Method, seed: int, rate: float, comm: Communicator) -> Race:
    """Run a method once."""
    if task.budget.warm:
        short = replace(task, budget=Budget(math.inf, 2.0, 0.0))
        method.run(Race(short, task.make(comm), comm, seed), rate)
    race = Race(task, task.make(comm), comm, seed)
    method.run(race, rate)
    return race


def tuned(task: Task, method: Method, seed: int, comm: Communicator) -> float:
    """Return the best rate of the grid."""
    if len(method.rates) == 1:
        return method.rates[0]
    return min((raced(task, method, seed, rate, comm).rank(), rate) for rate in method.rates)[1]
