"""Overlap and a coarse step for ASPQN on operator networks (DeepONets).

    python -m experiments.lee2024twolevel.deeponet [--quick] [--operators advection] [--overlaps 0 1]
    mpiexec -n 2 python -m mpi4py -m experiments.lee2024twolevel.deeponet

The layers of the branch and then of the trunk are cut into `parts` runs, widened by `overlap` layers on both sides; the
coarse step is L-BFGS on the first layer of every subdomain, before the sweep, as in `pinns`. "lbfgs" is L-BFGS on all
layers. Samples are our own (`experiments.operators`; advection as in the authors' code has 40 sensors and a grid of 40
x 40): this is our reference run. Every run may do the same work, in gradients of the whole network, of all subdomains
together; "error" is the relative error over as many functions that were not trained on.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

from experiments.operators import DeepONet, OperatorMisfit, samples
from experiments.study import Case, Picture, Study, minimise, up_to
from mldd import Stop
from mldd.algebra import Decomposition, ModuleObjective, contiguous, index_decomposition
from mldd.ranks import Communicator
from mldd.solvers import LBFGS, CoarseStep, SchwarzLBFGS


@dataclass(frozen=True)
class Config:
    """Operators, network, overlap, coarse steps and the work that each run may do."""

    operators: tuple[str, ...] = ("antiderivative", "advection")
    functions: int = 200
    width: int = 40
    blocks: int = 4
    parts: int = 4
    overlaps: tuple[int, ...] = (0, 1)
    coarse: tuple[int, ...] = (0, 5)
    local_steps: int = 10
    seeds: tuple[int, ...] = (0, 1, 2)
    work: float = 3000.0


def cases(config: Config) -> Iterator[Case]:
    """Return operator, method, overlap, coarse steps and seed."""
    for operator in config.operators:
        for seed in config.seeds:
            yield {"operator": operator, "method": "lbfgs", "overlap": 0, "coarse_steps": 0, "seed": seed}
            for overlap in config.overlaps:
                for coarse in config.coarse:
                    names = {"operator": operator, "method": f"aspqn, coarse {coarse}"}
                    yield names | {"overlap": overlap, "coarse_steps": coarse, "seed": seed}


def layers(f: ModuleObjective, parts: int, overlap: int, comm: Communicator) -> Decomposition:
    """Return runs of layers, each with its weights and biases."""
    tensors = [p.numel() for p in f.module.parameters()]
    sizes = [a + b for a, b in zip(tensors[::2], tensors[1::2], strict=True)]
    ends = [sum(sizes[: k + 1]) for k in range(len(sizes))]
    blocks = tuple(slice(end - size, end) for size, end in zip(sizes, ends, strict=True))
    return replace(index_decomposition(f, contiguous(sizes, parts, overlap), comm.share(parts)), blocks=blocks)


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Train one network."""
    data = samples(case["operator"], range(config.functions))
    torch.manual_seed(case["seed"])
    net = DeepONet(data.functions.shape[1], data.points.shape[1], config.width, config.blocks, 2.0).double()
    f = ModuleObjective(net, OperatorMisfit(data))
    solver: Any = LBFGS()
    if case["method"] != "lbfgs":
        solver = SchwarzLBFGS(
            layers(f, config.parts, case["overlap"], comm),
            combine="wasm",
            local_steps=config.local_steps,
            coarse=CoarseStep(case["coarse_steps"]),
            comm=comm,
        )

    result = minimise(f, f.initial(), solver, stop=Stop(10**9), after_step=up_to(config.work), comm=comm)
    new, end = samples(case["operator"], range(config.functions, 2 * config.functions)), result.record
    with torch.no_grad():
        error = new.error(f.load(result.x)(new.functions, new.points))
    return {
        "steps": end.step,
        "work": end.cost.work_total,
        "synchronisations": end.cost.synchronisations,
        "loss_first": result.history.records[0].value,
        "loss": end.value,
        "error": error,
    }


STUDY = Study(
    __file__,
    "own reference run of the method of arXiv 2406.10997 (from public code of its authors), own samples",
    Config(),
    Config(
        operators=("antiderivative",),
        functions=20,
        width=10,
        blocks=2,
        parts=2,
        overlaps=(1,),
        coarse=(3,),
        seeds=(0,),
        work=60.0,
    ),
    cases,
    run,
    Picture("overlap", "error", ("method",), ("operator",), "y", ("overlap, layers", "relative error, new functions")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
