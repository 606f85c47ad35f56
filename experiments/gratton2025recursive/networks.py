"""ML-ADAGB2 and DD-ADAGB2 on networks: work to a loss with bounded weights, levels in depth and in the graph.

    python -m experiments.gratton2025recursive.networks [--quick] [--networks residual deeponet gcn] [--box 0.5]
    mpiexec -n 2 python -m mpi4py -m experiments.gratton2025recursive.networks

"residual" is a residual network on images: the 10,000 test images of MNIST where the file is, or more, scikit-learn's
digits where it is not (the column "data" says which). "deeponet" is an operator network on the operator `operator` of
`experiments.operators`; its branch and trunk are residual networks, its error is that of functions it was not trained
on. Their levels have half as many residual steps each (as in `experiments.gratton2023multilevel.depth`), their
subdomains are runs of tensors, and all parameters lie in [-box, box]. "gcn" is a graph network on Cora without bounds,
its levels coarser graphs and its subdomains parts of the graph. First order, without function values. The tables of
arXiv 2507.11513 are not at hand: this is our reference run of its methods.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

import mldd
from experiments.gratton2023multilevel.depth import costs_to, depth_hierarchy, residual_hierarchy
from experiments.images import images_of, known
from experiments.operators import DeepONet, OperatorMisfit, samples
from experiments.study import Case, Picture, Study, minimise
from mldd import Stop
from mldd.algebra import Hierarchy, contiguous, index_decomposition
from mldd.ranks import Communicator
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion, SchwarzAdaGrad

TARGETS = (1.0, 0.5, 0.2, 0.1)
FUNCTIONS = 200  # for training; as many more are for testing


@dataclass(frozen=True)
class Config:
    """Networks, methods and steps."""

    networks: tuple[str, ...] = ("residual", "deeponet", "gcn")
    methods: tuple[str, ...] = ("adagrad", "ml-adagrad", "dd-adagrad")
    data: str = "mnist"
    operator: str = "antiderivative"
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


def operator_hierarchy(config: Config, levels: int, seed: int) -> Hierarchy:
    """Return the losses of operator networks of L, L / 2, L / 4, ... residual steps in branch and trunk."""
    data = samples(config.operator, range(FUNCTIONS))
    sizes = data.functions.shape[1], data.points.shape[1], config.width
    torch.manual_seed(seed)
    nets: list[torch.nn.Module] = [DeepONet(*sizes, config.blocks >> k, 4.0).double() for k in range(levels)]
    shares = [(2 + (config.blocks >> k)) / (2 + config.blocks) for k in range(levels)]
    return depth_hierarchy(nets, OperatorMisfit(data), shares, config.box)


def pieces_of(config: Config, case: Case, comm: Communicator) -> tuple[Hierarchy, Any, torch.Tensor]:
    """Return the levels, the subdomains and the start."""
    levels = config.levels if case["method"] == "ml-adagrad" else 1
    if case["network"] == "gcn":
        problem = mldd.problem(config.graph, dropout=0.0, labels="all", seed=case["seed"], comm=comm)
        return problem.hierarchy(levels), problem.decomposition(config.parts, 0, comm), problem.initial(case["seed"])
    if case["network"] == "deeponet":
        hierarchy = operator_hierarchy(config, levels, case["seed"])
    else:
        sizes = config.width, config.blocks, 4.0
        hierarchy = residual_hierarchy(known(config.data), sizes, levels, case["seed"], config.box)
    f: Any = hierarchy[0].objective
    runs = contiguous([p.numel() for p in f.module.parameters()], config.parts)
    return hierarchy, index_decomposition(f, runs, comm.share(config.parts)), f.initial()


def tested(config: Config, case: Case, f: Any, x: torch.Tensor) -> Case:
    """Return what was learned, and how well on what was not trained on: an error, or an accuracy in per cent."""
    found = {"data": config.graph, "error": math.nan, "accuracy": math.nan}
    if case["network"] == "deeponet":
        new = samples(config.operator, range(FUNCTIONS, 2 * FUNCTIONS))
        with torch.no_grad():
            found |= {"data": config.operator, "error": new.error(f.load(x)(new.functions, new.points))}
    elif case["network"] == "residual":
        images, labels, test = images_of(known(config.data))
        with torch.no_grad():
            right = f.load(x)(images[test]).argmax(1) == labels[test]
        found |= {"data": known(config.data), "accuracy": 100.0 * float(right.double().mean())}
    return found


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
    return (
        tested(config, case, f, result.x)
        | {
            "steps": end.step,
            "work": end.cost.work_total,
            "synchronisations": end.cost.synchronisations,
            "loss_first": result.history.records[0].value,
            "loss": end.value,
            "violation": float(f.bounds.violation(result.x)),
        }
        | costs_to(result, TARGETS)
    )


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 2507.11513 (reconstructed)",
    Config(),
    Config(
        networks=("residual", "deeponet"),
        methods=("ml-adagrad", "dd-adagrad"),
        data="digits",
        blocks=4,
        width=16,
        levels=2,
        seeds=(0,),
        steps=12,
    ),
    cases,
    run,
    Picture("seed", "work_to_0.2", ("method",), ("network",), "y", ("seed", "work to loss 0.2, fine gradients")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
