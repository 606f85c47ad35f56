"""ML-ADAGB2 and DD-ADAGB2 on networks: work to a loss with bounded weights, levels in depth and in the graph.

    python -m experiments.gratton2025recursive.networks [--quick] [--networks residual gcn] [--box 0.5]
    mpiexec -n 2 python -m mpi4py -m experiments.gratton2025recursive.networks

"residual" is a residual network on images of digits, its levels half as many residual steps each (as in
`experiments.gratton2023multilevel.depth`) and its subdomains runs of tensors, with all parameters in [-box, box]; "gcn"
is a graph network on Cora without bounds, its levels coarser graphs and its subdomains parts of the graph. First order,
without function values. The tables of arXiv 2507.11513 are not at hand: this is our reference run of its methods;
operator networks (DeepONet) are not in mldd.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import mldd
from experiments.gratton2023multilevel.depth import costs_to, residual_hierarchy
from experiments.study import Case, Study, minimise
from mldd import Stop
from mldd.algebra import Hierarchy, contiguous, index_decomposition
from mldd.ranks import Communicator
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion, SchwarzAdaGrad

TARGETS = (1.0, 0.5, 0.2)


@dataclass(frozen=True)
class Config:
    """Networks, methods and steps."""

    networks: tuple[str, ...] = ("residual", "gcn")
    methods: tuple[str, ...] = ("adagrad", "ml-adagrad", "dd-adagrad")
    graph: str = "cora"
    levels: int = 3
    parts: int = 4
    blocks: int = 8
    width: int = 32
    box: float = 0.5
    rate: float = 0.03
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 400


def cases(config: Config) -> Iterator[Case]:
    """Return network, method and seed."""
    for network in config.networks:
        for method in config.methods:
            for seed in config.seeds:
                yield {"network": network, "method": method, "seed": seed}


def pieces_of(config: Config, case: Case, comm: Communicator) -> tuple[Hierarchy, Any, Any]:
    """Return the levels, the subdomains and the start."""
    levels = config.levels if case["method"] == "ml-adagrad" else 1
    if case["network"] == "residual":
        hierarchy = residual_hierarchy("digits", (config.width, config.blocks, 4.0), levels, case["seed"], config.box)
        f: Any = hierarchy[0].objective
        runs = contiguous([p.numel() for p in f.module.parameters()], config.parts)
        return hierarchy, index_decomposition(f, runs, comm.share(config.parts)), f.initial()
    problem = mldd.problem(config.graph, dropout=0.0, labels="all", seed=case["seed"], comm=comm)
    return problem.hierarchy(levels), problem.decomposition(config.parts, 0, comm), problem.initial(case["seed"])


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Train one network."""
    hierarchy, subdomains, x = pieces_of(config, case, comm)
    smoother = AdaGrad(varsigma=1e-3, curvature="none", rate=config.rate)
    solver: Any = smoother
    if case["method"] == "ml-adagrad":
        solver = MultilevelAdaGrad(hierarchy, smoother, Recursion(steps=5))
    elif case["method"] == "dd-adagrad":
        solver = SchwarzAdaGrad(subdomains, local=smoother, local_steps=5, global_steps=1, comm=comm)
    f = hierarchy[0].objective
    result = minimise(f, x, solver, stop=Stop(config.steps, target=min(TARGETS)), values=1, comm=comm)
    end = result.record
    return {
        "steps": end.step,
        "work": end.cost.work_total,
        "synchronisations": end.cost.synchronisations,
        "loss_first": result.history.records[0].value,
        "loss": end.value,
        "violation": float(f.bounds.violation(result.x)),
    } | costs_to(result, TARGETS)


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 2507.11513 (reconstructed)",
    Config(),
    Config(
        networks=("residual",), methods=("ml-adagrad", "dd-adagrad"), blocks=4, width=16, levels=2, seeds=(0,), steps=8
    ),
    cases,
    run,
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
