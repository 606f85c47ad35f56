"""How many steps does DD-ADAGB2 take on the obstacle problem? Subdomains, overlap, weights, one and two levels.

    [mpiexec -n P] python [-m mpi4py] experiments/benchmarks/schwarz.py [--global-steps 2] [--out DIR]
    [mpiexec -n P] python [-m mpi4py] experiments/benchmarks/schwarz.py --check-ranks [--out DIR]
    python experiments/benchmarks/schwarz.py --compare [--out DIR]

n = 63, 10 local steps, 2 global steps (the solver's default), measure (infinity norm) to 1e-6. Two levels: coarse grids
of 3 x 3, 7 x 7 and 15 x 15 nodes for 4, 16 and 64 subdomains. "asm" is damped by the multiplicity; "clipped" is asm
with damping 1 and a projection, which need not converge. "reference" are the counts to reach: those of a reconstruction
with 1 global step, Galerkin coarse operators, 40 coarse steps and clipped asm; "-" where it did not converge or was not
run. "violation" is the largest one over all iterates. `--check-ranks` saves the iterates of all runs with overlap 2, a
file per number of ranks; `--compare` says by how much they differ.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mldd.loop import Stop, minimise, replacing, write_table
from mldd.problems.grids import Obstacle
from mldd.ranks import prepare, world
from mldd.solvers import Recursion, SchwarzAdaGrad

OVERLAPS = (1, 2, 4)
COMBINE: dict[str, dict[str, Any]] = {
    "ras": {"combine": "ras"},
    "wasm": {"combine": "wasm"},
    "asm": {"combine": "asm"},
    "clipped": {"combine": "asm", "damping": 1.0},
}
COARSEN = {4: 16, 16: 8, 64: 4}
REFERENCE: dict[tuple[int, int, str], tuple[int, ...]] = {  # parts, levels, combine: overlap 1, 2, 4
    (4, 1, "ras"): (26, 24, 22),
    (4, 1, "wasm"): (30, 31, 30),
    (4, 1, "clipped"): (30, 28, 27),
    (4, 2, "ras"): (19, 16, 15),
    (4, 2, "wasm"): (22, 22, 22),
    (4, 2, "clipped"): (22, 21, 20),
    (16, 1, "ras"): (38, 31, 28),
    (16, 1, "wasm"): (43, 38, 38),
    (16, 1, "clipped"): (39,),
    (16, 2, "ras"): (19, 16, 14),
    (16, 2, "wasm"): (21, 19, 19),
    (16, 2, "clipped"): (21,),
    (64, 1, "ras"): (52, 42),
    (64, 1, "wasm"): (57, 54),
    (64, 1, "clipped"): (50,),
    (64, 2, "ras"): (8, 8),
    (64, 2, "wasm"): (8, 8),
    (64, 2, "clipped"): (9,),
}


def solve(parts: int, levels: int, combine: str, overlap: int, options: argparse.Namespace) -> dict[str, Any]:
    """Run one case on all ranks; the result has all iterates, shape (steps + 1, n)."""
    comm, problem = world(), Obstacle(63)
    f = problem.objective()
    solver = SchwarzAdaGrad(
        problem.decomposition(parts, overlap, comm),
        problem.hierarchy(2, COARSEN[parts]) if levels == 2 else None,
        local_steps=10,
        global_steps=options.global_steps,
        coarse=Recursion(steps=options.coarse_steps),
        comm=comm,
        **COMBINE[combine],
    )
    iterates: list[torch.Tensor] = []
    result = minimise(
        f,
        problem.initial(),
        solver,
        stop=Stop(max_steps=500, atol=1e-6),
        comm=comm,
        after_step=lambda x, state, history: iterates.append(x.clone()),
    )
    end = result.record
    return {
        "steps": end.step,
        "reached": result.status.name == "converged_atol",
        "violation": max(f.bounds.violation(x) for x in iterates),
        "work_units": end.cost.work_units,
        "synchronisations": end.cost.synchronisations,
        "seconds": end.cost.seconds,
        "iterates": torch.stack(iterates),
    }


def table(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Run all cases and print them on rank 0."""
    rows, main = [], world().rank == 0
    if main:
        print(
            f"obstacle:n=63 on {world().ranks} ranks; global steps {options.global_steps}, "
            f"coarse steps {options.coarse_steps}"
        )
        print("parts  levels  combine  overlap  steps  reference  violation  work units  syncs  seconds")
    for parts in options.parts:
        for levels in (1, 2):
            for combine in COMBINE:
                for overlap, known in zip(
                    OVERLAPS, (*REFERENCE.get((parts, levels, combine), ()), None, None, None), strict=False
                ):
                    row = solve(parts, levels, combine, overlap, options)
                    row = {"parts": parts, "levels": levels, "combine": combine, "overlap": overlap} | row
                    del row["iterates"]
                    holds = row["violation"] == 0 and row["reached"] and (known is None or row["steps"] <= known)
                    if main:
                        print(
                            f"{parts:>5} {levels:>7}  {combine:<7} {overlap:>8} {row['steps']:>6} {known or '-':>10} "
                            f"{row['violation']:>10.1g} {row['work_units']:>11.0f} {row['synchronisations']:>6} "
                            f"{row['seconds']:>8.2f}"
                            + ("" if holds else "  MISSED" if row["reached"] else "  not reached"),
                            flush=True,
                        )
                    rows.append(row)
    return rows


def compare(folder: Path) -> None:
    """Print the largest differences between the iterates that were saved on different numbers of ranks."""
    files = sorted(folder.glob("x_*.npz"))
    runs = {path.stem[2:]: dict(np.load(path)) for path in files}
    for ranks, run in list(runs.items())[1:]:
        for name, iterates in run.items():
            first = next(iter(runs.values()))[name]
            same = "same number" if len(first) == len(iterates) else f"{len(first)} and {len(iterates)}"
            common = min(len(first), len(iterates))
            difference = np.abs(first[:common] - iterates[:common]).max()
            print(f"{next(iter(runs))} and {ranks} ranks, {name:<16} {same} of steps, max difference {difference:.1e}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", type=int, default=[4, 16, 64], choices=list(COARSEN))
    parser.add_argument("--global-steps", type=int, default=2)
    parser.add_argument("--coarse-steps", type=int, default=20)
    parser.add_argument("--check-ranks", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/schwarz"))
    options = parser.parse_args()
    comm = world()
    prepare(comm)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.compare:
        compare(options.out)
    elif options.check_ranks:
        cases = [(parts, levels, combine) for parts in options.parts for levels in (1, 2) for combine in COMBINE]
        found = {f"{p} {c} {k}-level": solve(p, k, c, 2, options)["iterates"] for p, k, c in cases}
        if comm.rank == 0:
            path = options.out / f"x_{comm.ranks}.npz"
            with replacing(path) as new:
                np.savez(new, **{name: iterates.numpy() for name, iterates in found.items()})
            print(f"written  {path}: iterates of {len(found)} runs with overlap 2")
    else:
        rows = table(options)
        if comm.rank == 0:
            path = options.out / "table.csv"
            write_table(path, rows)
            print(f"written  {path}")


if __name__ == "__main__":
    main()
