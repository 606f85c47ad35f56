"""RASPEN, ASPIN and NRAS on Forchheimer flow and on 2-D nonlinear diffusion: counts against subdomains and overlap.

    python -m experiments.dolean2016raspen.counts [--quick] [--problems forchheimer] [--parts 2 5 10]
    mpiexec -n 2 python -m mpi4py -m experiments.dolean2016raspen.counts

Outer iterations from zero (in two dimensions from zero inside the boundary values) until the gradient (2-norm) has
fallen by `rtol`, and GMRES iterations of all of them; "raspen-2" has a coarse level: hats at the interfaces (1-D) or a
coarse grid of about two cells per side of a subdomain (2-D). Local problems are solved to 1e-10. Newton steps are
globalised by a line search (the paper takes plain ones). "nras" is the fixed-point iteration of the same sweep; what it
misses in `max_sweeps` says max_steps.

Forchheimer's data are from memory, not verified against the paper, and its two-dimensional flow is replaced by
diffusion with the coefficient ``1 / sqrt(1 + |grad u|^2)`` (the minimal surface without an obstacle).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mldd
from experiments.study import Case, Picture, Study, counts, minimise
from mldd import Stop
from mldd.ranks import Communicator
from mldd.solvers import Aspin, NewtonCG, NonlinearSchwarz, Raspen

METHODS = ("raspen", "raspen-2", "aspin", "nras")


@dataclass(frozen=True)
class Config:
    """Problems, subdomains and the test of convergence."""

    problems: tuple[str, ...] = ("forchheimer", "diffusion")
    n_forchheimer: int = 149
    n_diffusion: int = 47
    overlaps: tuple[int, ...] = (1, 3)
    parts_forchheimer: tuple[int, ...] = (2, 5, 10, 15, 30)
    parts_diffusion: tuple[int, ...] = (4, 9, 16, 36)
    methods: tuple[str, ...] = METHODS
    rtol: float = 1e-8
    max_sweeps: int = 400


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method, overlap and subdomains."""
    for problem in config.problems:
        for method in config.methods:
            for overlap in config.overlaps:
                for parts in getattr(config, f"parts_{problem}"):
                    yield {"problem": problem, "method": method, "overlap": overlap, "parts": parts}


def problem_of(config: Config, name: str) -> Any:
    """Return Forchheimer flow, or the minimal surface without an obstacle."""
    if name == "forchheimer":
        return mldd.problem("forchheimer", n=config.n_forchheimer)
    return mldd.problem("minimal-surface", n=config.n_diffusion, height=float("-inf"))


def solver_of(problem: Any, case: Case, comm: Communicator) -> Any:
    """Return the method of a case."""
    subdomains = problem.decomposition(case["parts"], case["overlap"], comm)
    local = NewtonCG(rtol=1e-10)
    if case["method"] == "nras":
        return NonlinearSchwarz(subdomains, local=local, local_steps=50, combine="ras", globalisation="none", comm=comm)
    if case["method"] == "aspin":
        return Aspin(subdomains, local=local, globalisation="line-search", comm=comm)
    hierarchy = problem.coarse_hierarchy(2, case["parts"]) if case["method"] == "raspen-2" else None
    return Raspen(subdomains, hierarchy, local=local, globalisation="line-search", comm=comm)


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method."""
    problem = problem_of(config, case["problem"])
    steps = config.max_sweeps if case["method"] == "nras" else 40
    stop = Stop(steps, rtol=config.rtol, norm=2.0)
    result = minimise(problem.objective(), problem.initial(), solver_of(problem, case, comm), stop=stop)
    krylov = getattr(result.state, "krylov", float("nan"))  # a fixed-point iteration has none
    found = counts(result)
    per_step = krylov / max(1, found["steps"])
    return found | {"krylov": krylov, "krylov_per_step": per_step, "energy": problem.metrics(result.x)["energy"]}


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 1605.04419 (data from memory; two levels reconstructed)",
    Config(),
    Config(problems=("forchheimer",), overlaps=(3,), parts_forchheimer=(2, 5, 10), methods=("raspen", "raspen-2")),
    cases,
    run,
    Picture("parts", "krylov_per_step", ("method", "overlap"), ("problem",), "xy", ("subdomains", "GMRES per step")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
