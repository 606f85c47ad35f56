"""ML-ADAGB2 on bound-constrained energies: outer steps and work against the number of levels.

    python -m experiments.gratton2025recursive.levels [--quick] [--problems obstacle] [--n 63] [--levels 1 2 3]

Every problem is solved from the same start until its projected gradient (infinity norm) has fallen by `rtol`, with
curvature (Hessian products) and to first order. Hierarchies are rediscretised energies; bounds of coarse levels are
Kornhuber's. What a level-independent method must show: as many steps with two levels as with five, and less work the
more there are. The tables of arXiv 2507.11513 are not at hand: this is our reference run of its method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mldd
from experiments.study import Case, Picture, Study, counts, minimise
from mldd import Stop
from mldd.ranks import Communicator
from mldd.solvers import AdaGrad, MultilevelAdaGrad

# First-order rates: the best of 1, 0.3, 0.1, 0.03, 0.01 on grids of 31 x 31 nodes, one level and three together.
RATES = {"membrane": 0.3, "minimal-surface": 0.01, "bratu": 0.1, "ignition": 0.03}


@dataclass(frozen=True)
class Config:
    """Grids, depths and the test of convergence."""

    problems: tuple[str, ...] = ("obstacle", "membrane", "minimal-surface", "bratu", "ignition", "morebv")
    n: int = 63
    levels: tuple[int, ...] = (1, 2, 3, 4, 5)
    curvatures: tuple[str, ...] = ("products", "none")
    rtol: float = 1e-5
    max_steps: int = 3000


def cases(config: Config) -> Iterator[Case]:
    """Return problem, curvature and depth."""
    for problem in config.problems:
        for curvature in config.curvatures:
            if curvature == "none" and problem == "morebv":
                continue  # of fourth order: no rate leads anywhere in so many steps
            for levels in config.levels:
                yield {"problem": problem, "curvature": curvature, "levels": levels}


def smoother_of(problem: Any, name: str, curvature: str) -> AdaGrad:
    """Return the ADAGB2 iteration that the problem suggests."""
    keys = problem.settings("ml-adagrad")
    given = {key.removeprefix("smoother."): value for key, value in keys.items() if key.startswith("smoother.")}
    if curvature == "none":
        given |= {"curvature": "none", "rate": RATES.get(name, 1.0)}
    return AdaGrad(**given)


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one solver on one problem."""
    problem = mldd.problem(case["problem"], n=config.n)
    smoother = smoother_of(problem, case["problem"], case["curvature"])
    several = case["levels"] > 1
    solver = MultilevelAdaGrad(problem.hierarchy(case["levels"]), smoother) if several else smoother
    f = problem.objective()
    result = minimise(f, problem.initial(), solver, stop=Stop(config.max_steps, rtol=config.rtol))
    found = problem.metrics(result.x)
    return counts(result) | {"violation": float(f.bounds.violation(result.x)), "energy": found["energy"]}


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 2507.11513 (reconstructed)",
    Config(),
    Config(problems=("obstacle",), n=31, levels=(1, 2, 3, 4), curvatures=("products",)),
    cases,
    run,
    Picture("levels", "work", ("curvature",), ("problem",), "y", ("levels", "work, fine gradients")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
