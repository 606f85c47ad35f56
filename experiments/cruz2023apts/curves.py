"""APTS over parameters on images of digits, full batch: test accuracy against outer steps and subdomains.

    python -m experiments.cruz2023apts.curves [--quick] [--data digits] [--parts 2 4 6]
    mpiexec -n 2 python -m mpi4py -m experiments.cruz2023apts.curves

Tensors of the parameters are dealt at random to N subdomains; local trust-region steps in the infinity norm, first
order, with the radii of the authors' code (0.01 in [1e-4, 0.1]). "published_100" are the raw values after 100
iterations in the authors' repository (arXiv 2312.13677; which figure they belong to is not verified): 60,000 images of
MNIST and means of 10 trials there, the 10,000 test images here where there are no more. Neither accuracies nor losses
of the two can be compared digit by digit; their order in N can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from experiments.images import classifier, trained
from experiments.study import Case, Picture, Study
from mldd.algebra import Decomposition, Subdomain, index_decomposition
from mldd.problems import SupervisedProblem
from mldd.ranks import SERIAL, Communicator
from mldd.solvers import Adam, Apts, Radius, TrustRegion

PUBLISHED = {2: 94.01, 4: 95.35, 6: 95.91}  # test accuracy in per cent after 100 iterations


@dataclass(frozen=True)
class Config:
    """Data, subdomains and steps."""

    data: str = "mnist"
    parts: tuple[int, ...] = (1, 2, 4, 6)
    models: tuple[str, ...] = ("first-order", "bfgs")
    seeds: tuple[int, ...] = (0, 1, 2)
    local_steps: int = 5
    rate: float = 2.5e-3
    steps: int = 100


def cases(config: Config) -> Iterator[Case]:
    """Return method, subdomains and seed; Adam is the row of no subdomain."""
    for seed in config.seeds:
        yield {"method": "adam", "parts": 0, "seed": seed}
        for model in config.models:
            for parts in config.parts:
                yield {"method": f"apts {model}", "parts": parts, "seed": seed}


def dealt(problem: SupervisedProblem, parts: int, seed: int, comm: Communicator) -> Decomposition:
    """Return subdomains of whole tensors, dealt at random."""
    f = problem.objective()
    numbers = list(torch.arange(f.size).split([p.numel() for p in problem.net.parameters()]))
    order = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed)).tolist()
    own = [torch.cat([numbers[k] for k in sorted(order[part::parts])]) for part in range(parts)]
    subdomains = [Subdomain(indices, torch.ones_like(indices, dtype=torch.bool)) for indices in own]
    return index_decomposition(f, subdomains, comm.share(parts))


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Train one network and take its test accuracy on the way."""
    problem = classifier(config.data, "layers", case["seed"], SERIAL)  # ranks share subdomains, all see all images
    if case["method"] == "adam":
        solver: object = Adam(config.rate)
    else:
        radius = Radius(0.01, 1e-4, 0.1)
        step = TrustRegion(case["method"].removeprefix("apts "), "inf", radius, memory=5)
        subdomains = dealt(problem, case["parts"], case["seed"], comm)
        solver = Apts(subdomains, step, step, combine="ras", local_steps=config.local_steps, comm=comm)
    published = PUBLISHED if config.data == "mnist" else {}
    found = trained(problem, solver, config.steps, comm)
    return found | {"published_100": published.get(case["parts"], float("nan"))}


STUDY = Study(
    __file__,
    "third-party: raw curves of the authors of arXiv 2312.13677, full MNIST; ours is a reference run on other data",
    Config(),
    Config(data="digits", parts=(2, 4), models=("first-order",), seeds=(0,), steps=10),
    cases,
    run,
    Picture("parts", "accuracy_100", ("method",), (), "", ("subdomains (0: Adam)", "test accuracy, %")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
