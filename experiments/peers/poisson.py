"""B2: how soon does a network solve the 1-D Poisson equation?

    OMP_NUM_THREADS=1 python -m experiments.peers.poisson [--quick] [--ml-apts DIR] [--seeds 0 1 2] [--methods A B]

``-u'' = sin(pi x)`` on (0, 1), 102 points of which two penalise the boundary conditions, 8 x 20 tanh (3,001
parameters), float64 unless a name says otherwise. Targets are errors ``|u - u*| / |u*|`` in the 2-norm on 501 points.
Subdomains are runs of layers. Of ML_APTS a local gradient costs a whole one, of mldd its share of the layers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from experiments.machine import dense
from experiments.peers.benchmark import Benchmark, Outside
from experiments.peers.ml_apts import METHODS as PUBLIC
from experiments.peers.ml_apts import aspqn
from experiments.peers.plain import torch_lbfgs
from experiments.peers.race import Budget, Method, Task, ours
from mldd.problems.pinns import PhysicsInformed
from mldd.problems.pinns.pinn_options import Poisson
from mldd.solvers import LBFGS, AdaGrad, Adam, SchwarzAdaGrad, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS
from mldd.solvers.schwarz_lbfgs import CoarseStep

RATES = (1e-3, 3e-3, 1e-2)
PUBLISHED: dict[str, Any] = {"local_steps": 10, "local": BatchLBFGS(10), "outer": LBFGS(3, momentum=0.9)}


def error(problem: PhysicsInformed) -> Any:
    """Return the relative error."""
    return lambda x: problem.metrics(x)["relative_l2"]


TASK = Task(
    "poisson1d",
    lambda comm: PhysicsInformed("poisson1d", poisson=Poisson(boundary="soft"), comm=comm),
    error,
    (1e-1, 1e-2, 1e-3, 1e-4),
    dense((1, *[20] * 8, 1), 102, streams=3),
    budget=Budget(10.0, pause=0.02),
)


def spqn(parts: int, overlap: int = 0, changes: dict[str, Any] | None = None, **options: Any) -> Method:
    """Return ASPQN or MSPQN over runs of layers."""

    def make(p: Any, rate: float) -> SchwarzLBFGS:
        return SchwarzLBFGS(p.decomposition(parts, overlap, p.comm), comm=p.comm, **options)

    return ours(make, **(changes or {}))


def methods(task: Task) -> dict[str, Method]:
    """Return the methods."""
    single = {"dtype": "float32"}
    mspqn: dict[str, Any] = {"order": "multiplicative", "outer": LBFGS(3)}
    published = PUBLISHED | {"keep_pairs": False}
    return {
        "adam": ours(lambda p, rate: Adam(rate), RATES),
        "adam, float32": ours(lambda p, rate: Adam(rate), RATES, **single),
        "lbfgs": ours(lambda p, rate: LBFGS()),
        "lbfgs, float32": ours(lambda p, rate: LBFGS(), **single),
        "torch lbfgs": torch_lbfgs(),
        "aspqn": spqn(2),
        "aspqn, float32": spqn(2, 0, single),
        "aspqn, published": spqn(2, **published),
        "aspqn, coarse": spqn(2, coarse=CoarseStep(5)),
        "mspqn": spqn(5, **mspqn),
        "mspqn, float32": spqn(5, 0, single, **mspqn),
        "mspqn, published": spqn(2, order="multiplicative", **published),
        "dd-adagrad": ours(
            lambda p, rate: SchwarzAdaGrad(
                p.decomposition(2, 0, p.comm), local=AdaGrad(1e-3, rate), local_steps=5, global_steps=1, comm=p.comm
            ),
            (0.01, 0.03, 0.1),
        ),
    }


def by_ml_apts(folder: Path, task: Task) -> dict[str, Method]:
    """Return ASPQN of ML_APTS."""
    return {name: aspqn(folder, name) for name in PUBLIC}


# Of our notes on ML_APTS 0d4109c: 2 ranks, wall time of a busy machine, one seed; reached at that time or before.
RECORDED = tuple(
    {"problem": "poisson1d", "method": f"ml_apts aspqn, {name}", "target": target, "cpu": cpu, "gradients": gradients}
    | {"source": "recorded"}
    for name, target, cpu, gradients in (
        ("by subdomain", 1e-1, 2.0, ""),
        ("by subdomain", 1e-2, 4.0, ""),
        ("by subdomain", 1e-4, 16.0, 8056),
        ("coarse", 1e-2, 4.0, ""),
        ("coarse", 1e-3, 8.0, ""),
    )
)
BENCHMARK = Benchmark(
    __file__,
    (TASK,),
    methods,
    ("lbfgs", "mspqn"),
    400.0,
    {"ml_apts": Outside(by_ml_apts, RECORDED)},
    "relative error in the 2-norm",
)


def main() -> None:
    """Run all methods."""
    BENCHMARK.command()


if __name__ == "__main__":
    main()
