"""B7: how soon does a network solve Burgers' equation, with layers as subdomains?

    OMP_NUM_THREADS=1 python -m experiments.peers.burgers [--quick] [--seeds 0 1 2] [--methods A B]

The residual network of table 1 of arXiv 2306.17648 (8 layers, width 20, trainable slopes), 1,000 points for its 10,000,
float64. Targets are errors ``|u - u*| / |u*|`` on 200 x 400 points. "published" are the settings of that paper with 50
local steps, the others keep curvature pairs from step to step; numbers are those of subdomains. The paper's ratios in
its own units are followed by `experiments.kopanicakova2024enhancing.pinns`; the code of its authors (ML_APTS) runs
there with another network, and is absent here.
"""

from __future__ import annotations

from typing import Any

from experiments.machine import dense
from experiments.peers.benchmark import Benchmark, Outside
from experiments.peers.plain import torch_lbfgs
from experiments.peers.poisson import error
from experiments.peers.race import Budget, Method, Task, ours
from mldd.problems.pinns import PhysicsInformed
from mldd.solvers import LBFGS, Adam, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS

POINTS = 1000
TASK = Task(
    "burgers",
    lambda comm: PhysicsInformed("burgers", points=POINTS, comm=comm),
    error,
    (3e-1, 1e-1, 3e-2, 1e-2),
    dense((2, *[20] * 7, 1), POINTS, streams=4),
    budget=Budget(3.0, pause=0.3),
)
PUBLISHED: dict[str, Any] = {"outer": LBFGS(3, momentum=0.9), "local": BatchLBFGS(10), "keep_pairs": False}


def spqn(order: Any, parts: int, **options: Any) -> Method:
    """Return ASPQN or MSPQN over runs of layers."""
    return ours(lambda p, rate: SchwarzLBFGS(p.decomposition(parts, 0, p.comm), order, comm=p.comm, **options))


def methods(task: Task) -> dict[str, Method]:
    """Return the methods."""
    return {
        "adam": ours(lambda p, rate: Adam(rate), (5e-4, 2e-3, 5e-3)),
        "lbfgs": ours(lambda p, rate: LBFGS()),
        "torch lbfgs": torch_lbfgs(),
        "aspqn, 2": spqn("additive", 2),
        "aspqn, 8": spqn("additive", 8),
        "aspqn, 8, published": spqn("additive", 8, local_steps=50, **PUBLISHED),
        "mspqn, 2": spqn("multiplicative", 2),
        "mspqn, 8": spqn("multiplicative", 8),
        "mspqn, 8, published": spqn("multiplicative", 8, local_steps=50, **PUBLISHED),
    }


BENCHMARK = Benchmark(
    __file__,
    (TASK,),
    methods,
    ("lbfgs",),
    3.0,
    {"ml_apts": Outside(None)},
    "relative error in the 2-norm",
)


def main() -> None:
    """Run all methods."""
    BENCHMARK.command()


if __name__ == "__main__":
    main()
