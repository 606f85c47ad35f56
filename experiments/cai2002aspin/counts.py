"""ASPIN beside Newton's method on nonlinear problems on grids: outer and Krylov iterations against subdomains, overlap.

    python -m experiments.cai2002aspin.counts [--quick] [--problems bratu-6] [--parts 4 16] [--overlaps 1 2 4]
    mpiexec -n 2 python -m mpi4py -m experiments.cai2002aspin.counts

"newton" is PETSc's SNES newtonls with GMRES and no preconditioner, with the same test: the gradient (2-norm) has fallen
by `rtol`. "bratu-L" is Bratu's equation with lambda L without a bound (a turning point is at 6.808), "surface" the
minimal surface without an obstacle.

The paper (SIAM J. Sci. Comput. 24, 2002) shows lid-driven cavities, whose equations are not the gradient of anything,
and which mldd therefore has not. What can be compared is its message: few outer iterations whatever the subdomains and
the nonlinearity, Krylov iterations that grow with subdomains and fall with overlap.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mldd
from experiments.study import Case, Picture, Study, counts, minimise
from mldd import Stop
from mldd.ranks import Communicator
from mldd.solvers import Aspin
from mldd.solvers.petsc import Snes


@dataclass(frozen=True)
class Config:
    """Problems, subdomains and the test of convergence."""

    problems: tuple[str, ...] = ("bratu-3", "bratu-6.5", "surface")
    n: int = 47
    overlaps: tuple[int, ...] = (1, 2, 4)
    parts: tuple[int, ...] = (1, 4, 9, 16, 36)
    rtol: float = 1e-8
    max_steps: int = 100


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method, overlap and subdomains; Newton's method is the row of no subdomain."""
    for problem in config.problems:
        yield {"problem": problem, "method": "newton", "overlap": 0, "parts": 0}
        for overlap in config.overlaps:
            for parts in config.parts:
                if parts > 1:
                    yield {"problem": problem, "method": "aspin", "overlap": overlap, "parts": parts}


def problem_of(name: str, n: int) -> Any:
    """Return Bratu's problem without bounds, or the minimal surface without an obstacle."""
    if name == "surface":
        return mldd.problem("minimal-surface", n=n, height=float("-inf"))
    return mldd.problem("bratu", n=n, lam=float(name.removeprefix("bratu-")), upper=float("inf"))


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method."""
    problem = problem_of(case["problem"], config.n)
    if case["method"] == "newton":
        solver: Any = Snes("newtonls")
    else:
        subdomains = problem.decomposition(case["parts"], case["overlap"], comm)
        solver = Aspin(subdomains, globalisation="line-search", comm=comm)
    stop = Stop(config.max_steps, rtol=config.rtol, norm=2.0)
    result = minimise(problem.objective(), problem.initial(), solver, stop=stop)
    krylov = getattr(result.state, "krylov", float("nan"))
    return counts(result) | {"krylov": krylov, "largest": float(result.x.max())}


STUDY = Study(
    __file__,
    "own reference run of the method of Cai and Keyes (2002), on other problems",
    Config(),
    Config(problems=("bratu-6.5",), n=15, overlaps=(2,), parts=(4, 9)),
    cases,
    run,
    Picture("parts", "krylov", ("method", "overlap"), ("problem",), "y", ("subdomains", "GMRES iterations, sum")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
