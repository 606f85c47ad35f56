"""Nonlinear restricted additive Schwarz with bounds, one and two levels, on ignition and the minimal surface.

    python -m experiments.kothari2022bounds.counts [--quick] [--problems ignition] [--parts 4 16 64]
    mpiexec -n 2 python -m mpi4py -m experiments.kothari2022bounds.counts

Outer steps until the projected gradient (infinity norm) has fallen by `rtol`. "nras-b" and "tl-nras-b" are the sweeps
as fixed-point iterations, with local problems that keep the bounds and, on two levels, a first-order consistent coarse
problem solved before the sweep. "+ newton" follows each by a step of a bound-constrained Newton method (TAO's bntr), so
that the sweep is its right preconditioner as in the paper; "newton" is that method alone. Feasibility is exact in all
of them.

Of arXiv 2211.14780 the two problems and the scheme are known (third-party notes), its tables are not: this is our
reference run.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

import mldd
from experiments.study import Case, Picture, Study, counts, minimise
from mldd import Objective, Stop
from mldd.loop import State
from mldd.ranks import Communicator
from mldd.solvers import CoarseSolve, NonlinearSchwarz
from mldd.solvers.petsc import Tao

METHODS = ("newton", "nras-b", "tl-nras-b", "nras-b + newton", "tl-nras-b + newton")


@dataclass(frozen=True)
class Config:
    """Problems, subdomains and the test of convergence."""

    problems: tuple[str, ...] = ("ignition", "minimal-surface")
    n: int = 63
    overlap: int = 2
    parts: tuple[int, ...] = (4, 16, 64)
    methods: tuple[str, ...] = METHODS
    local_steps: int = 10
    coarse_steps: int = 40
    rtol: float = 1e-6
    max_steps: int = 200


@dataclass
class PairState(State):
    """States of both solvers."""

    first: Any = field(default_factory=State)
    second: Any = field(default_factory=State)


@dataclass(frozen=True)
class Preconditioned:
    """A step of `first`, then one of `second` from where it led."""

    first: Any
    second: Any

    def init(self, objective: Objective, x: torch.Tensor) -> PairState:
        """Return the states of both."""
        return PairState(first=self.first.init(objective, x), second=self.second.init(objective, x))

    def step(self, objective: Objective, x: torch.Tensor, state: PairState) -> tuple[torch.Tensor, PairState]:
        """Do both steps; the first one's end is not that of both."""
        x, state.first = self.first.step(objective, x, state.first)
        x, state.second = self.second.step(objective, x, state.second)
        state.first.status = state.second.status = None
        state.first.step += 1
        state.second.step += 1
        return x, state


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method and subdomains; Newton's method is the row of one."""
    for problem in config.problems:
        for method in config.methods:
            for parts in (1,) if method == "newton" else config.parts:
                yield {"problem": problem, "method": method, "parts": parts}


def solver_of(problem: Any, config: Config, case: Case, comm: Communicator) -> Any:
    """Return the method of a case."""
    newton = Tao("bntr")
    if case["method"] == "newton":
        return newton
    two = case["method"].startswith("tl")
    sweep = NonlinearSchwarz(
        problem.decomposition(case["parts"], config.overlap, comm),
        problem.coarse_hierarchy(2, case["parts"]) if two else None,
        coarse=CoarseSolve(steps=config.coarse_steps),
        combine="ras",
        local_steps=config.local_steps,
        globalisation="none",
        comm=comm,
    )
    return Preconditioned(sweep, newton) if "newton" in case["method"] else sweep


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method."""
    problem = mldd.problem(case["problem"], n=config.n)
    f = problem.objective()
    stop = Stop(config.max_steps, rtol=config.rtol)
    result = minimise(f, problem.initial(), solver_of(problem, config, case, comm), stop=stop)
    found = problem.metrics(result.x)
    violation = float(f.bounds.violation(result.x))
    return counts(result) | {"violation": violation, "energy": found["energy"], "active": found["active"]}


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 2211.14780 (reconstructed from third-party notes)",
    Config(),
    Config(problems=("minimal-surface",), n=23, parts=(4, 16), methods=("newton", "nras-b", "tl-nras-b + newton")),
    cases,
    run,
    Picture("parts", "steps", ("method",), ("problem",), "xy", ("subdomains", "outer steps")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
