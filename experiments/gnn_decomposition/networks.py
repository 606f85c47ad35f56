"""Wall times of two real ranks on emulated networks, beside what the cost model predicts before the run.

    mpiexec -n 2 python -m mpi4py experiments/gnn_decomposition/networks.py [--n 48] [--steps 40] [--quick]

Problem `allen-cahn-operator` in parts of the nodes. Methods: synchronous Adam with the exact halo of every layer but
the first, synchronous Adam on shares of the samples, and local Adam with averaged moments, averaged every 10 steps, on
parts with 2 and 4 rings (4: exact local losses) and on shares of the samples. Each runs equally many gradient steps.

Columns: wall seconds without a network, then per network those measured, those predicted (the seconds without a
network, and the counted sums and halos by latency and bandwidth), and the speed-up over synchronous steps with halo.
The least of three runs, without what is evaluated for the user's eyes; the ranks share the machine with others.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

from mldd.loop import Stop, minimise, write_table
from mldd.problems.operators import AllenCahnOperator, CutOptions
from mldd.ranks import NETWORKS, Communicator, prepare, with_network, world
from mldd.solvers import Adam, LocalAdam

EVERY = 10
METHODS = {
    "synchronous, exact halo": (CutOptions(sharing="nodes"), None),
    "synchronous, samples": (CutOptions(sharing="samples"), None),
    "local Adam, 2 rings": (CutOptions(subdomains="parts", sharing="nodes"), 2),
    "local Adam, 4 rings": (CutOptions(subdomains="parts", sharing="nodes"), 4),
    "local Adam, samples": (CutOptions(subdomains="samples"), 0),
}


def measured(problem: AllenCahnOperator, rings: int | None, steps: int) -> tuple[float, Any]:
    """Return wall seconds of a run on the slower rank, and its cost; samples were made before."""
    comm = problem.comm
    if rings is None:
        solver, rounds = Adam(0.02), steps
    else:
        solver = LocalAdam(problem.decomposition(comm.ranks, rings), Adam(0.02), EVERY, comm=comm)
        rounds = steps // EVERY
    best, cost = float("inf"), None
    for _ in range(3):
        result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(rounds), values=None, comm=comm)
        cost = result.history.records[-1].cost
        best = min(best, max(comm.gather_items(cost.seconds)))
    return best, cost


def predicted(bare: float, cost: Any, network: str, comm: Communicator, neighbours: int = 1) -> float:
    """Return the seconds of a run on a network: sums of vectors and numbers, and exchanges with a neighbour."""
    link = NETWORKS[network]
    per_sum = cost.bytes_exchanged / max(cost.synchronisations, 1)
    sums = cost.synchronisations * link.sum_seconds(per_sum, comm.ranks)
    scalars = cost.scalar_synchronisations * link.sum_seconds(100, comm.ranks)
    halos = cost.exchanges * neighbours * link.latency + cost.halo_bytes / link.bandwidth
    return float(bare + sums + scalars + halos)


def main() -> None:
    """Run what the command line says; rank 0 prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=48)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--quick", action="store_true", help="16 x 16 nodes, 10 steps")
    parser.add_argument("--out", type=Path, default=Path("paper/results/gnn_decomposition"))
    options = parser.parse_args()
    n, steps = (16, EVERY) if options.quick else (options.n, options.steps)
    comm = world()
    prepare(comm)
    rows: list[dict[str, Any]] = []
    for name, (pieces, rings) in METHODS.items():
        problem = AllenCahnOperator(n=n, pieces=pieces, comm=comm)
        bare, cost = measured(problem, rings, steps)
        row: dict[str, Any] = {"nodes": n * n, "ranks": comm.ranks, "method": name, "steps": steps}
        row |= {"synchronisations": cost.synchronisations, "halo_MB": round(cost.halo_bytes / 1e6, 3)}
        row |= {"work": round(cost.work_units * 8 / steps, 3), "seconds": round(bare, 3)}
        for network in NETWORKS:
            slowed = replace(problem, comm=with_network(comm, network))
            slowed.__dict__["stream"] = problem.stream  # its samples are there
            row[network] = round(measured(slowed, rings, steps)[0], 3)
            row[f"{network}_predicted"] = round(predicted(bare, cost, network, comm), 3)
            row[f"{network}_speedup"] = round((rows[0] if rows else row)[network] / row[network], 2)
        rows.append(row)
        if comm.rank == 0:
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    if comm.rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / f"networks{'_quick' if options.quick else ''}.csv", rows)


if __name__ == "__main__":
    main()
