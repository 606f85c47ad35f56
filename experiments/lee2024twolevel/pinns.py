"""Overlap and a coarse step for ASPQN on physics-informed networks.

    python -m experiments.lee2024twolevel.pinns [--quick] [--problems burgers] [--overlaps 0 1] [--coarse 0 5]
    mpiexec -n 2 python -m mpi4py -m experiments.lee2024twolevel.pinns

Subdomains are runs of layers, widened by `overlap` layers on both sides; the coarse step is L-BFGS on the first layer
of every subdomain, before the sweep. Local corrections are searched along one after the other ("subdomain-wise
synchronisation" as in the authors' code). Every run may do the same work, of all subdomains together. The tables of
arXiv 2406.10997 are not at hand: this is our reference run; its operator networks
are in `experiments.lee2024twolevel.deeponet`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.kopanicakova2024enhancing.pinns import Curve, Setting, baseline, compared
from experiments.study import Case, Picture, Study, minimise
from mldd import Stop
from mldd.problems import PhysicsInformed
from mldd.ranks import Communicator
from mldd.solvers import CoarseStep, SchwarzLBFGS


@dataclass(frozen=True)
class Config:
    """Problems, overlap, coarse steps and the work that each run may do."""

    problems: tuple[str, ...] = ("burgers", "klein-gordon", "allen-cahn")
    parts: int = 3
    overlaps: tuple[int, ...] = (0, 1)
    coarse: tuple[int, ...] = (0, 5)
    local_steps: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    points: int = 10000
    work: float = 10000.0
    looks: int = 200


def cases(config: Config) -> Iterator[Case]:
    """Return problem, overlap, coarse steps and seed."""
    for problem in config.problems:
        for overlap in config.overlaps:
            for coarse in config.coarse:
                for seed in config.seeds:
                    yield {"problem": problem, "overlap": overlap, "coarse_steps": coarse, "seed": seed}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one variant beside L-BFGS."""
    problem = PhysicsInformed(case["problem"], points=config.points, comm=comm)
    solver = SchwarzLBFGS(
        problem.decomposition(config.parts, case["overlap"]),
        combine="wasm",
        local_steps=config.local_steps,
        coarse=CoarseStep(case["coarse_steps"]),
        comm=comm,
    )
    curve = Curve(problem, Setting("aspqn", config.local_steps, config.parts), config.work, config.looks)
    f, x = problem.objective(), problem.initial(case["seed"])
    first = float(f.value(x))
    minimise(f, x, solver, stop=Stop(10**9), after_step=curve, comm=comm)
    found = compared(baseline(config, case["problem"], case["seed"], comm), curve)
    del found["ratio"], found["update_cost"]  # the paper's update cost knows no coarse step
    return {"work": curve.rows[-1]["work"], "loss_first": first} | found


STUDY = Study(
    __file__,
    "own reference run of the method of arXiv 2406.10997 (from public code of its authors)",
    Config(),
    Config(
        problems=("klein-gordon",), overlaps=(1,), coarse=(5,), local_steps=5, seeds=(0,), points=50, work=60.0, looks=2
    ),
    cases,
    run,
    Picture("overlap", "error", ("coarse_steps",), ("problem",), "y", ("overlap, layers", "least error")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
