"""DD-ADAGB2 on bound-constrained energies: outer steps against subdomains, overlap and combination, one and two levels.

    python -m experiments.gratton2025recursive.subdomains [--quick] [--parts 1 4 16 64] [--overlaps 1 2 4]
    mpiexec -n 4 python -m mpi4py -m experiments.gratton2025recursive.subdomains

Subdomains are rectangles of the grid with `overlap` layers of nodes around them. "asm" is damped by the largest
multiplicity, and so stays within the bounds as "ras" and "wasm" do. With two levels the coarse grid has about two cells
per side of a subdomain. What a scalable method must show: steps that grow with the subdomains for one level, and do not
for two. The tables of arXiv 2507.11513 are not at hand: this is our reference run of its method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import mldd
from experiments.study import Case, Picture, Study, counts, minimise
from mldd import Stop
from mldd.ranks import Communicator
from mldd.solvers import SchwarzAdaGrad


@dataclass(frozen=True)
class Config:
    """Grid, subdomains and the test of convergence."""

    problems: tuple[str, ...] = ("obstacle", "membrane", "minimal-surface", "bratu", "ignition")
    n: int = 63
    levels: tuple[int, ...] = (1, 2)
    combines: tuple[str, ...] = ("ras", "wasm", "asm")
    overlaps: tuple[int, ...] = (1, 2, 4)
    parts: tuple[int, ...] = (1, 4, 16, 64)
    local_steps: int = 10
    rtol: float = 1e-5
    max_steps: int = 300


def cases(config: Config) -> Iterator[Case]:
    """Return problem, levels, combination, overlap and subdomains; one subdomain has nothing to overlap or combine."""
    for problem in config.problems:
        for levels in config.levels:
            for combine in config.combines:
                for overlap in config.overlaps:
                    for parts in config.parts:
                        if overlap <= config.n // round(parts**0.5) // 2:
                            names = {"problem": problem, "levels": levels, "combine": combine}
                            yield names | {"overlap": overlap, "parts": parts}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one solver on one problem."""
    problem = mldd.problem(case["problem"], n=config.n)
    hierarchy = problem.coarse_hierarchy(2, case["parts"]) if case["levels"] == 2 else None
    solver = SchwarzAdaGrad(
        problem.decomposition(case["parts"], case["overlap"], comm),
        hierarchy,
        combine=case["combine"],
        local_steps=config.local_steps,
        comm=comm,
    )
    f = problem.objective()
    result = minimise(f, problem.initial(), solver, stop=Stop(config.max_steps, rtol=config.rtol))
    found = problem.metrics(result.x)
    return counts(result) | {"violation": float(f.bounds.violation(result.x)), "energy": found["energy"]}


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 2507.11513 (reconstructed)",
    Config(),
    Config(problems=("obstacle",), n=31, combines=("ras",), overlaps=(2,), parts=(4, 16)),
    cases,
    run,
    Picture("parts", "steps", ("combine", "levels"), ("problem",), "xy", ("subdomains", "outer steps")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
