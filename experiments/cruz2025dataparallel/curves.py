"""APTS over data on images of digits, full batch: test accuracy against outer steps and subdomains.

    python -m experiments.cruz2025dataparallel.curves [--quick] [--data digits] [--parts 2 4 6]
    mpiexec -n 2 python -m mpi4py -m experiments.cruz2025dataparallel.curves

Every subdomain has a share of the images and a first-order corrected loss; local trust-region steps in the 2-norm with
the settings of the authors' code (radius 1, at most 4, at least 1e-3, local steps 5), first order ("o1") or LSR1 with
memory 5 ("o2"). "asm" is the sum with local radii 1/N as published; "wasm" takes means with the whole radius.
"published_100" are the raw values after 100 iterations in the authors' repository (arXiv 2502.05133; which figure they
belong to is not verified): 60,000 images of MNIST and means of 10 trials there, the 10,000 test images here where there
are no more. Neither accuracies nor losses of the two can be compared digit by digit; that accuracy falls with N can.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from experiments.images import classifier, trained
from experiments.study import Case, Picture, Study
from mldd.ranks import Communicator
from mldd.solvers import Adam, Apts, Radius, TrustRegion

PUBLISHED = {("o1", 2): 97.05, ("o1", 4): 94.98, ("o1", 6): 94.08, ("o2", 2): 97.67, ("o2", 4): 96.35, ("o2", 6): 94.23}
ADAM = 96.76
MODELS = {"o1": "first-order", "o2": "sr1"}


@dataclass(frozen=True)
class Config:
    """Data, subdomains and steps."""

    data: str = "mnist"
    parts: tuple[int, ...] = (2, 4, 6)
    methods: tuple[str, ...] = ("adam", "asm o1", "asm o2", "wasm o2")
    seeds: tuple[int, ...] = (0, 1, 2)
    local_steps: int = 5
    rate: float = 2.5e-3
    steps: int = 100


def cases(config: Config) -> Iterator[Case]:
    """Return method, subdomains and seed; Adam is the row of no subdomain."""
    for seed in config.seeds:
        for method in config.methods:
            for parts in (0,) if method == "adam" else config.parts:
                yield {"method": method, "parts": parts, "seed": seed}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Train one network and take its test accuracy on the way."""
    problem = classifier(config.data, "data", case["seed"], comm)
    if case["method"] == "adam":
        solver: object = Adam(config.rate)
        published = ADAM if config.data == "mnist" else float("nan")
    else:
        combine, order = case["method"].split()
        step = TrustRegion(MODELS[order], "2", Radius(1.0, 1e-3, 4.0), memory=5)
        subdomains = problem.decomposition(case["parts"], 0, comm)
        solver = Apts(subdomains, step, step, combine=combine, local_steps=config.local_steps, comm=comm)
        published = (
            PUBLISHED.get((order, case["parts"]), float("nan"))
            if combine == "asm" and config.data == "mnist"
            else float("nan")
        )
    return trained(problem, solver, config.steps, comm) | {"published_100": published}


STUDY = Study(
    __file__,
    "third-party: raw curves of the authors of arXiv 2502.05133, full MNIST; ours is a reference run on other data",
    Config(),
    Config(data="digits", parts=(2, 4), methods=("asm o1",), seeds=(0,), steps=10),
    cases,
    run,
    Picture("parts", "accuracy_100", ("method",), (), "", ("subdomains (0: Adam)", "test accuracy, %")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
