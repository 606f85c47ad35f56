"""B6: bound-constrained problems beside TAO, SNES with multigrid, SciPy, and Adam with a clamp.

    OMP_NUM_THREADS=1 python -m experiments.peers.bounds [--quick] [--seeds 0 1 2] [--methods A B]

Four energies on n x n nodes; the targets are shares of the measure at the start (infinity norm of
``project(x - g) - x``), which is the same number for all. "snes multigrid" is vinewtonrsls with an assembled matrix,
Galerkin multigrid and a sequence of grids (`experiments/benchmarks/snes_multigrid.py`), one run per target; "snes" is
the same SNES without these, as mldd's door to PETSc has it; "tao:TYPE" are TAO's solvers on mldd's objective.
dd-adagrad has 16 subdomains. Seeds repeat the run: the starts are the same. Levels go down to 7 (ml) or 15 (dd) nodes
per side. Times of mldd and of multigrid that take turns are `experiments/benchmarks/peers_pde.py`.

"digits in a box" is a residual network of 8 blocks of width 32 on images of digits, all weights in [-0.5, 0.5]; the
targets are training losses, levels are depths, subdomains runs of tensors.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from experiments.benchmarks.peers_pde import PROBLEMS
from experiments.benchmarks.snes_multigrid import solve
from experiments.gratton2023multilevel.depth import residual_hierarchy
from experiments.machine import Need
from experiments.peers.benchmark import Benchmark
from experiments.peers.plain import scipy_lbfgs, torch_adam
from experiments.peers.race import Budget, Mark, Method, Race, Task, first_order, ours
from mldd.algebra import Hierarchy, contiguous, index_decomposition
from mldd.ranks import SERIAL, Communicator
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion, SchwarzAdaGrad
from mldd.solvers.petsc import Snes, Tao

SIZES = (63, 127, 255, 511)
LARGEST = {"ml-adagrad": 511, "snes multigrid": 511, "adam": 63, "snes": 127, "tao:bnls": 127}  # others: 255
PARTS = 16


def measure(problem: Any) -> Callable[[torch.Tensor], float]:
    """Return the measure of an iterate."""
    f = problem.objective()
    return lambda x: f.bounds.measure(x, f.gradient(x))


def grid_task(name: str, n: int) -> Task:
    """Return a problem; a gradient reads x, writes g and does some 30 operations per node."""
    make = PROBLEMS[name][1]
    need = Need(30.0 * n * n, 16.0 * n * n)
    targets = (1e-2, 1e-4, 1e-6, 1e-8)
    return Task(
        f"{name}, {n}", lambda comm: make(n), measure, targets, need, relative=True, budget=Budget(1.5, pause=0.0)
    )


def recursion(problem: Any, solver: str) -> Recursion:
    """Return what the problem says of coarse levels."""
    said = problem.settings(solver).items()
    return Recursion(**{key.removeprefix("coarse."): value for key, value in said if key.startswith("coarse.")})


def multilevel(problem: Any, rate: float) -> MultilevelAdaGrad:
    """Return ML-ADAGB2 with the settings of the problem."""
    levels = problem.hierarchy(problem.n.bit_length() - 2)
    return MultilevelAdaGrad(levels, AdaGrad(), recursion(problem, "ml-adagrad"))


def schwarz(problem: Any, rate: float) -> SchwarzAdaGrad:
    """Return DD-ADAGB2 with the settings of the problem."""
    levels = problem.coarse_hierarchy(problem.n.bit_length() - 3, PARTS)
    return SchwarzAdaGrad(
        problem.decomposition(PARTS, 2),
        levels,
        coarse=recursion(problem, "dd-adagrad"),
        local_rtol=problem.settings("dd-adagrad")["local_rtol"],
    )


def multigrid(name: str, n: int) -> Method:
    """Return SNES with multigrid: a run per target, set-up inside."""

    def run(race: Race, rate: float) -> None:
        discretise = PROBLEMS[name][0]
        race.begin()
        here = discretise(n)
        x = race.problem.initial(race.seed)
        race.look(x, 0.0)
        start = here.measure(np.clip(here.frame, here.lower, here.upper))
        scale = race.marks[0].number / start
        for goal in race.goals if race.task.budget.gradients > 2.0 else race.goals[:1]:
            begin = time.process_time(), time.perf_counter()
            u, _, _ = solve(discretise, n, goal / scale / start)
            spent = time.process_time() - begin[0], time.perf_counter() - begin[1]
            race.marks.append(Mark(scale * here.measure(u), *spent, math.nan))
        race.setup = 0.0

    return Method(run)


# ------------------------------------------------------------------------------------------------ a network in a box


@dataclass(frozen=True)
class Boxed:
    """The residual network, as a problem."""

    comm: Communicator = SERIAL

    @cached_property
    def levels(self) -> Hierarchy:
        """Networks of 8, 4 and 2 blocks."""
        return residual_hierarchy("digits", (32, 8, 4.0), 3, 0, 0.5)

    def objective(self) -> Any:
        """Return the loss."""
        return self.levels[0].objective

    def initial(self, seed: int = 0) -> torch.Tensor:
        """Return the parameters that torch draws."""
        found: torch.Tensor = residual_hierarchy("digits", (32, 8, 4.0), 1, seed, 0.5)[0].objective.initial()
        return found

    def decomposition(self, parts: int) -> Any:
        """Return runs of tensors."""
        f: Any = self.objective()
        return index_decomposition(f, contiguous([p.numel() for p in f.module.parameters()], parts))


def boxed_loss(problem: Boxed) -> Callable[[torch.Tensor], float]:
    """Return the loss."""
    f = problem.objective()
    return lambda x: float(f.value(x))


FIRST = 6.0 * 1438 * (64 * 32 + 8 * 32 * 32 + 32 * 10)
BOXED = Task("digits in a box", Boxed, boxed_loss, (1.0, 0.3, 0.1, 0.03), Need(FIRST), budget=Budget(3.0, pause=0.02))


RATES = (0.01, 0.03, 0.1)
OF_THE_BOX: dict[str, Method] = {
    "adam, clamp (torch)": torch_adam((3e-3, *RATES)),
    "scipy l-bfgs-b": scipy_lbfgs(),
    "tao:blmvm": ours(lambda p, rate: Tao("blmvm")),
    "tao:bqnktr": ours(lambda p, rate: Tao("bqnktr")),
    "adagrad": ours(lambda p, rate: first_order(rate), RATES),
    "ml-adagrad": ours(lambda p, rate: MultilevelAdaGrad(p.levels, first_order(rate), Recursion(steps=5)), RATES),
    "dd-adagrad": ours(
        lambda p, rate: SchwarzAdaGrad(p.decomposition(4), local=first_order(rate), local_steps=5, global_steps=1),
        RATES,
    ),
}


def methods(task: Task) -> dict[str, Method]:
    """Return the methods of a problem and size."""
    if task.name == BOXED.name:
        return OF_THE_BOX
    name, _, n = task.name.partition(", ")
    found = {
        "ml-adagrad": ours(multilevel),
        "dd-adagrad": ours(schwarz),
        "snes multigrid": multigrid(name, int(n)),
        "snes": ours(lambda p, rate: Snes("vinewtonrsls")),
        "tao:blmvm": ours(lambda p, rate: Tao("blmvm")),
        "tao:bqnktr": ours(lambda p, rate: Tao("bqnktr")),
        "tao:bnls": ours(lambda p, rate: Tao("bnls")),
        "scipy l-bfgs-b": scipy_lbfgs(),
        "adam, clamp (torch)": torch_adam((1e-3, *RATES)),
    }
    return {key: method for key, method in found.items() if int(n) <= LARGEST.get(key.split(",")[0], 255)}


BENCHMARK = Benchmark(
    __file__,
    (*(grid_task(name, n) for name in PROBLEMS for n in SIZES), BOXED),
    methods,
    ("ml-adagrad", "snes multigrid", "scipy l-bfgs-b"),
    300.0,
    axis="measure over that of the start (digits: training loss)",
)


def main() -> None:
    """Run all methods."""
    BENCHMARK.command()


if __name__ == "__main__":
    main()
