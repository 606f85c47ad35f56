"""How much memory does a rank need that holds its part alone, and how large a graph trains in 20 GiB?

    [mpiexec -n P] python [-m mpi4py] experiments/benchmarks/memory.py [--nodes 400000] [--steps 5] [--out DIR]
    mpiexec -n 2 python -m mpi4py experiments/benchmarks/memory.py --nodes 5017600 --budget 20 [--model sage]
    mpiexec -n P python -m mpi4py experiments/benchmarks/memory.py --parts 4 [--clusters 500]
    python experiments/benchmarks/memory.py --compare [--out DIR]

Adam on a graph network with two layers of width 64 in single precision; the graph is a grid with ten neighbours per
node and 64 features, of which every rank makes a strip for itself. Peaks are those of the process (the interpreter and
its libraries included, which are listed apart), from start to end, setting up included. Written is ``memory_P.csv``,
one row per rank; `--compare` prints how the peak without the libraries falls with the number of ranks. Memory that is
freed goes back to the system; `--keep` lets malloc keep it, as runs of the command line do: faster, and the peak grows.
With `--parts` the solver is dd-adagrad with as many subdomains and two levels: composite and coarse graphs are held
besides, of clusters that every rank holds all of.
"""

from __future__ import annotations

import argparse
import csv
import gc
import resource
import statistics
from pathlib import Path
from typing import Any

import torch

from mldd.command.names import solver_spec
from mldd.loop import Solver, Stop, minimise, write_table
from mldd.problems.graphs import Network, Strips, SyntheticClassification
from mldd.ranks import Communicator, prepare, world
from mldd.solvers import Adam

GIB, MIB = 2**30, 2**20
COLUMNS = ("libraries", "graph", "objective", "models", "peak")


def peak() -> int:
    """Return the largest memory that this process has had so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def train(comm: Communicator, options: argparse.Namespace, nodes: int) -> dict[str, Any]:
    """Train a few steps; return what this rank held, the peaks after each stage, and the nodes per second of all."""
    problem = SyntheticClassification(
        strips=Strips(nodes=nodes, degree=options.degree, parts=options.parts),
        network=Network(model=options.model, hidden=options.hidden, dropout=0.0, decay=0.0),
        clusters=options.clusters,
        comm=comm,
    )
    row: dict[str, Any] = {"ranks": comm.ranks, "rank": comm.rank, "model": options.model, "libraries": peak()}
    shard = problem.shard
    row |= {"nodes": shard.whole.nodes, "own": shard.own, "halo": shard.halo.size, "graph": peak()}
    f, x = problem.objective(), problem.initial(0)
    gc.collect()
    row["objective"] = peak()
    solver = solver_of(problem, options.parts)
    row["models"] = peak()
    result = minimise(f, x, solver, stop=Stop(max_steps=options.steps), comm=comm, values=False)
    ends = [record.cost.seconds for record in result.history.records]
    seconds = statistics.median(b - a for a, b in zip(ends, ends[1:], strict=False))
    row |= {"peak": peak(), "edges": int(comm.sum_scalars([float(len(shard.edges.indices))])[0])}
    values = [float(v) for v in (f.value(x), f.value(result.x))]
    return row | {"nodes_per_second": shard.whole.nodes / seconds, "loss_before": values[0], "loss_after": values[1]}


def solver_of(problem: SyntheticClassification, parts: int) -> Solver:
    """Return Adam, or with parts the method of the command line with subdomains and two levels."""
    if not parts:
        return Adam(lr=0.01)
    given = {"decomposition": problem.decomposition(parts), "hierarchy": problem.hierarchy(2), "comm": problem.comm}
    made: Solver = solver_spec("dd-adagrad").make(**problem.settings("dd-adagrad"), **given)
    return made


def show(rows: list[dict[str, Any]], budget: float) -> None:
    """Print one line per rank, and the sum."""
    first = rows[0]
    print(f"{first['model']}, {first['nodes']} nodes, {first['edges']} directed edges, {first['ranks']} ranks")
    print("rank       own     halo" + "".join(f"{name:>11}" for name in COLUMNS) + "  (MiB, peaks so far)")
    for row in rows:
        print(f"{row['rank']:>4} {row['own']:>9} {row['halo']:>8}" + "".join(f"{row[n] / MIB:>11.0f}" for n in COLUMNS))
    total = sum(row["peak"] for row in rows) / GIB
    verdict = f", at most {budget:g} GiB: {'holds' if total <= budget else 'MISSED'}" if budget else ""
    print(f"sum of peaks {total:.2f} GiB{verdict}; {first['nodes_per_second']:.3g} nodes/s;", end=" ")
    print(f"loss {first['loss_before']:.4f} -> {first['loss_after']:.4f}")


def compare(folder: Path) -> None:
    """Print by which part of the memory of one rank each of P ranks gets by, and what 1/P plus its halo would be."""
    runs: dict[int, list[dict[str, float]]] = {}
    for path in sorted(folder.glob("memory_*.csv")):
        with open(path, newline="", encoding="utf-8") as stream:
            rows = [{k: float(v) for k, v in row.items() if k != "model"} for row in csv.DictReader(stream)]
        runs[len(rows)] = rows
    whole = runs[1][0]
    print("ranks   own share   halo rows   peak without libraries (MiB)   of one rank   own and halo, of one rank")
    for ranks, rows in sorted(runs.items()):
        most = max(rows, key=lambda row: row["peak"] - row["libraries"])
        used = most["peak"] - most["libraries"]
        share, expected = used / (whole["peak"] - whole["libraries"]), (most["own"] + most["halo"]) / whole["own"]
        numbers = f"{most['own'] / whole['own']:>11.1%} {most['halo']:>11.0f} {used / MIB:>30.0f}"
        print(f"{ranks:>5} {numbers} {share:>13.1%} {expected:>27.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nodes", type=int, default=400_000)
    parser.add_argument("--degree", type=int, default=10)
    parser.add_argument("--model", default="gcn")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--parts", type=int, default=0)
    parser.add_argument("--clusters", type=int, default=0, help="0: 3.7 %% of the nodes")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--budget", type=float, default=0.0, help="GiB for all ranks together")
    parser.add_argument("--keep", action="store_true")
    parser.add_argument("--compare", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/memory"))
    options = parser.parse_args()
    if options.compare:
        compare(options.out)
        return
    comm = world()
    torch.set_num_threads(1)
    if options.keep:
        prepare(comm)
    train(comm, options, 1000)  # loads what is loaded when it is needed
    rows = comm.gather_items(train(comm, options, options.nodes))
    if comm.rank == 0:
        show(rows, options.budget)
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / f"memory_{comm.ranks}.csv", rows)
        print(f"written  {options.out / f'memory_{comm.ranks}.csv'}")


if __name__ == "__main__":
    main()
