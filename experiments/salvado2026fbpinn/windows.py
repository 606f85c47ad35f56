"""Window networks (FBPINNs): local L-BFGS in windows, combined in the small space of the corrections.

    python -m experiments.salvado2026fbpinn.windows [--quick] [--problems klein-gordon] [--windows 2 4 8]
    mpiexec -n 2 python -m mpi4py -m experiments.salvado2026fbpinn.windows

``u = C + l sum_j w_j N_j`` with a partition of unity w_j; one subdomain per window. "subspace" minimises over the
coefficients of the local corrections (split by layer) by a few L-BFGS iterations, "each" searches along one correction
after the other, "lbfgs" is L-BFGS on all windows at once. Every run may do the same work, of all windows together; a
vector synchronisation is one sum of the corrections over ranks. Numbers and iteration counts of arXiv 2601.08709 are
not at hand: this is our reference run of its idea.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mldd
from experiments.study import Case, Picture, Study, minimise, up_to
from mldd import Stop
from mldd.ranks import Communicator
from mldd.solvers import LBFGS, SchwarzLBFGS


@dataclass(frozen=True)
class Config:
    """Problems, windows and the work that each run may do."""

    problems: tuple[str, ...] = ("klein-gordon", "burgers")
    windows: tuple[int, ...] = (2, 4, 8)
    methods: tuple[str, ...] = ("lbfgs", "each", "subspace")
    local_steps: int = 10
    subspace_steps: int = 5
    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 2000
    work: float = 3000.0


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method, windows and seed."""
    for problem in config.problems:
        for method in config.methods:
            for windows in config.windows:
                for seed in config.seeds:
                    yield {"problem": problem, "method": method, "windows": windows, "seed": seed}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method."""
    keys: dict[str, Any] = {"model": "windows", "windows.count": case["windows"], "points": config.points, "comm": comm}
    problem = mldd.problem(case["problem"], **keys)
    subspace = config.subspace_steps if case["method"] == "subspace" else 0
    solver: Any = LBFGS()
    if case["method"] != "lbfgs":
        subdomains = problem.decomposition(case["windows"], 0)
        solver = SchwarzLBFGS(subdomains, local_steps=config.local_steps, subspace_steps=subspace, comm=comm)

    f, x = problem.objective(), problem.initial(case["seed"])
    result = minimise(f, x, solver, stop=Stop(10**9), after_step=up_to(config.work), comm=comm)
    end = result.record
    return {
        "steps": end.step,
        "work": end.cost.work_total,
        "synchronisations": end.cost.synchronisations,
        "loss_first": result.history.records[0].value,
        "loss": end.value,
        "error": problem.metrics(result.x)["relative_l2_paper"],
    }


STUDY = Study(
    __file__,
    "own reference run of the idea of arXiv 2601.08709 (subspace reconstructed)",
    Config(),
    Config(problems=("klein-gordon",), windows=(2,), methods=("subspace",), seeds=(0,), points=50, work=60.0),
    cases,
    run,
    Picture("windows", "error", ("method",), ("problem",), "xy", ("windows", "relative error")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
