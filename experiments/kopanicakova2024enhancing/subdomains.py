"""ASPQN and MSPQN against the number of local steps and of subdomains: figures 3 to 6 of arXiv 2306.17648.

    python -m experiments.kopanicakova2024enhancing.subdomains [--quick] [--problems burgers] [--work 5000]
    mpiexec -n 2 python -m mpi4py -m experiments.kopanicakova2024enhancing.subdomains

Two subdomains, pairs of layers, and one layer each; 10, 50 and 100 local steps; otherwise as in `pinns`. The curves of
the paper are known in words alone (third-party notes): the finest decomposition is best, and 50 to 100 local steps are,
except for diffusion-advection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.kopanicakova2024enhancing.pinns import Setting, baseline, compared, curve_of
from experiments.study import Case, Picture, Study
from mldd.problems import PhysicsInformed
from mldd.ranks import Communicator


@dataclass(frozen=True)
class Config:
    """Problems, local steps and the work that each run may do."""

    problems: tuple[str, ...] = ("burgers", "diffusion-advection", "klein-gordon", "allen-cahn")
    methods: tuple[str, ...] = ("aspqn", "mspqn")
    cuts: tuple[str, ...] = ("two", "pairs", "layers")
    local_steps: tuple[int, ...] = (10, 50, 100)
    seeds: tuple[int, ...] = (0,)
    points: int = 10000
    work: float = 5000.0
    looks: int = 100


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method, subdomains, local steps and seed."""
    for problem in config.problems:
        for method in config.methods:
            for cut in config.cuts:
                for steps in config.local_steps:
                    for seed in config.seeds:
                        names = {"problem": problem, "method": method, "subdomains": cut}
                        yield names | {"local_steps": steps, "seed": seed}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method beside L-BFGS."""
    layers = PhysicsInformed(case["problem"], points=config.points).net.layers
    parts = {"two": 2, "pairs": -(-layers // 2), "layers": layers}[case["subdomains"]]
    setting = Setting(case["method"], case["local_steps"], parts)
    curve = curve_of(config, case["problem"], setting, case["seed"], comm)
    return {"parts": parts} | compared(baseline(config, case["problem"], case["seed"], comm), curve)


STUDY = Study(
    __file__,
    "third-party notes on figures 3 to 6 of arXiv 2306.17648 (in words); ours is a reference run in a fixed budget",
    Config(),
    Config(
        problems=("klein-gordon",),
        methods=("mspqn",),
        cuts=("layers",),
        local_steps=(10,),
        points=50,
        work=30.0,
        looks=2,
    ),
    cases,
    run,
    Picture("local_steps", "error", ("method", "subdomains"), ("problem",), "xy", ("local steps", "least error")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
