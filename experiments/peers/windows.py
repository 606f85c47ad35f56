"""B3: how soon do windows of small networks solve a Poisson equation of low and of high frequency?

    OMP_NUM_THREADS=1 python -m experiments.peers.windows [--quick] [--seeds 0 1 2] [--methods A B]

``-u'' = (pi w)^2 sin(pi w x)``, hard boundary conditions, 200 points per unit of w, 4 windows of width 0.5 for w = 1
and 15 of width 0.15 for w = 15, each 1-32-32-1; "coarse" adds a network of the whole domain, a subdomain of its own.
Targets are errors ``|u - u*| / |u*|``. The residual sees low frequencies of the error little, so that the error of
every method goes up and down while the loss falls. FBPINNs (JAX) is recorded: Adam, 4,000 steps, w = 1, wall time, most
of it compilation; a step of Adam beside JAX in one process is `experiments/benchmarks/windows.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.machine import Need, dense
from experiments.peers.benchmark import Benchmark, Outside
from experiments.peers.plain import torch_lbfgs
from experiments.peers.poisson import error
from experiments.peers.race import Budget, Method, Task, ours
from mldd.problems.pinns import PhysicsInformed
from mldd.problems.pinns.pinn_options import Poisson, Windows
from mldd.solvers import LBFGS, AdaGrad, Adam, NonlinearSchwarz, SchwarzAdaGrad, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS

RATES = (1e-3, 3e-3, 1e-2)
PROBLEMS = {
    1: PhysicsInformed("poisson1d", "windows", poisson=Poisson(unit=True), points=200),
    15: PhysicsInformed("poisson1d", "windows", points=3000, poisson=Poisson(15.0, True), windows=Windows(15, 2.1)),
}


def need(points: int) -> Need:
    """Return what a gradient needs: every point lies in two windows."""
    return dense((1, 32, 32, 1), 2 * points, streams=3)


def task(w: int, seconds: float) -> Task:
    """Return the problem of a frequency."""

    def make(comm: Any) -> PhysicsInformed:
        return replace(PROBLEMS[w], comm=comm)

    budget = Budget(seconds, pause=0.02)
    return Task(f"windows, w = {w}", make, error, (1e-1, 1e-2, 3.9e-3, 1e-3), need(PROBLEMS[w].points), budget=budget)


def parts(problem: Any) -> Any:
    """Return the windows as subdomains."""
    return problem.decomposition(len(problem.window_model.blocks), 0, problem.comm)


def aspqn(local_steps: int, global_steps: int = 1, **changes: Any) -> Method:
    """Return ASPQN over windows."""
    options = {"local_steps": local_steps, "global_steps": global_steps}
    return ours(lambda p, rate: SchwarzLBFGS(parts(p), comm=p.comm, **options), **changes)


def methods(of: Task) -> dict[str, Method]:
    """Return the methods."""
    w = int(of.name.rpartition(" ")[2])
    coarse = {"windows": replace(PROBLEMS[w].windows, coarse=True)}
    return {
        "adam": ours(lambda p, rate: Adam(rate), RATES),
        "adam, float32": ours(lambda p, rate: Adam(rate), RATES, dtype="float32"),
        "lbfgs": ours(lambda p, rate: LBFGS()),
        "lbfgs, coarse": ours(lambda p, rate: LBFGS(), **coarse),
        "torch lbfgs": torch_lbfgs(),
        "schwarz": ours(lambda p, rate: NonlinearSchwarz(parts(p), local=BatchLBFGS(), local_steps=10, comm=p.comm)),
        "aspqn": aspqn(10),
        "aspqn, 5 and 5": aspqn(5, 5),
        "aspqn, coarse": aspqn(5, 5, **coarse),
        "dd-adagrad": ours(
            lambda p, rate: SchwarzAdaGrad(
                parts(p), local=AdaGrad(1e-3, rate), local_steps=5, global_steps=1, comm=p.comm
            ),
            (0.003, 0.01, 0.03),
        ),
    }


RECORDED = (
    {"problem": "windows, w = 1", "method": "fbpinns adam (JAX)", "target": 3.9e-3, "cpu": 12.0, "gradients": 4000}
    | {"source": "recorded"},
)
BENCHMARK = Benchmark(
    __file__,
    (task(1, 2.0), task(15, 4.0)),
    methods,
    ("lbfgs", "aspqn, 5 and 5"),
    300.0,
    {"fbpinns": Outside(None, RECORDED)},
    "relative error in the 2-norm",
)


def main() -> None:
    """Run all methods."""
    BENCHMARK.command()


if __name__ == "__main__":
    main()
