"""How does the time of a distributed step scale, where does it go, and what follows for a large machine?

    python experiments/benchmarks/scaling.py --measure [--base 50000] [--steps 7] [--out DIR]
    mpiexec -n P python -m mpi4py experiments/benchmarks/scaling.py --measure [...]          (P = 2, 4, ...)
    python experiments/benchmarks/scaling.py [--out DIR]

`--measure` times gradients of graph networks (single precision, 3 layers, all nodes but the test set in the loss) on
grids with four or ten neighbours per node that are cut into strips, and writes ``pieces_P.csv``, one row per
configuration and rank. Sizes are `base` nodes per rank (weak scaling) and 4 `base` in all (strong scaling), widths 32,
64 and 128, grids about square or 16 times as wide as high (large halos). Medians over the steps of

    compute   CPU time of a gradient whose halos are not exchanged, as many ranks at a time as there are cores
    exchange  packing and posting, and the shortest wait of all ranks (nobody is late: messages and unpacking)
    wait      the rest of the wait for messages, and for the others before the gradient is summed
    reduce    the sum of the gradient
    step      wall time of the whole gradient; ranks that share a core ("oversubscribed") share it among them

The last form prints both tables, and for each configuration the step predicted by a cost model that was fitted to the
pieces of all others; then what the model says for many accelerators, with the figures of a machine that it states. On
one rank the memory has no second reader: `contention` is the ratio of the time per work on all cores to that on one,
and is fitted too.
"""

from __future__ import annotations

import argparse
import csv
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import counting
from mldd.graph import CostModel, Machine, Work, fit, graph_work
from mldd.loop import write_table
from mldd.problems.graphs import Network, NodeLoss, Strips, SyntheticClassification
from mldd.problems.nets import HaloOperator
from mldd.problems.nets.layers import sparse_first
from mldd.ranks import SERIAL, Communicator, prepare, timed, world

LAYERS, CLASSES, FEATURES = 3, 8, 64
CONFIGURATION = ("ranks", "nodes", "model", "hidden", "degree", "aspect")
CHOICES = (
    *(("gcn", 32, 10, 1), ("gcn", 64, 10, 1), ("gcn", 128, 10, 1), ("sage", 64, 10, 1)),
    *(("gcn", 64, 4, 1), ("gcn", 64, 10, 16), ("gcn", 128, 4, 16), ("sage", 32, 4, 16)),
)
PIECES = ("compute", "exchange", "wait", "reduce", "step")
TOLERANCE = 0.15
# Figures of one accelerator of a large machine, all of data sheets (NVIDIA H100 SXM: 67 TFLOP/s in single precision,
# 3.35 TB/s; NVLink 450 GB/s each way among 8; one 400 Gb/s InfiniBand port each beyond), and assumptions of ours: 60 %
# of them reached, 5 us per message, 100 us to start the kernels of one layer forward and backward.
INSIDE = Machine(flops=67e12, bandwidth=3.35e12, network=450e9, latency=5e-6, launch=100e-6, efficiency=0.6)
BEYOND = replace(INSIDE, network=50e9)
PER_NODE = 8


# ------------------------------------------------------------------------------------------------ measuring


@dataclass(frozen=True)
class Clocked(Communicator):
    """A communicator that measures sums of vectors, the wait for the last rank apart from the sum itself."""

    spent: dict[str, float] = field(default_factory=lambda: {"wait": 0.0, "reduce": 0.0})

    def sum(self, vector: Tensor) -> Tensor:
        """Sum over ranks, all of which are there when it begins."""
        start = time.perf_counter()
        if self.ranks > 1:
            self.mpi.Barrier()
        middle = time.perf_counter()
        total = super().sum(vector)
        self.spent["wait"] += middle - start
        self.spent["reduce"] += time.perf_counter() - middle
        return total


@dataclass(frozen=True)
class Silent:
    """An exchange of nothing: the halo is zero, and no rank waits for another."""

    own: int
    size: int
    comm: Communicator = SERIAL

    def begin(self, rows: Tensor) -> Any:
        return rows

    def end(self, pending: Any) -> Tensor:
        return pending.new_zeros((self.size, *pending.shape[1:]))

    def begin_back(self, rows: Tensor) -> Any:
        return None

    def end_back(self, pending: Any, into: Tensor) -> Tensor:
        return into


def silent(f: NodeLoss) -> NodeLoss:
    """Return the loss of this rank alone, with zeros for the halo."""
    operators = [[_silenced(b) if isinstance(b, HaloOperator) else b for b in layer] for layer in f.batch.operators]
    return replace(f, batch=replace(f.batch, operators=tuple(tuple(layer) for layer in operators)), comm=None)


def _silenced(operator: HaloOperator) -> HaloOperator:
    return operator.through(Silent(operator.exchange.own, operator.exchange.size))


def work_of(problem: SyntheticClassification, f: NodeLoss) -> Work:
    """Count what a gradient does on this rank, from the matrices that it is made of and from the ledger."""
    batch, widths, comm = f.batch, problem.net.widths, problem.comm
    dense = sparse = touched = 0.0
    for layer, (i, o) in enumerate(zip(widths, widths[1:], strict=False)):
        above, below, products = batch.rows[layer + 1], batch.rows[layer], 2 if layer == 0 else 3
        for operator in batch.operators[layer]:
            first = operator is None or sparse_first(operator, i, o)
            dense += products * (above if first else below) * i * o
            sparse += 0 if operator is None else 2 * operator.nnz * (i if first else o)
        touched += above * o * len(batch.operators[layer])
    with counting() as cost:
        f.gradient(problem.initial(0))
    counted = graph_work(0, 0, widths, ranks=comm.ranks, terms=len(batch.operators[0]))
    neighbours = len(set(problem.shard.halo.owner.tolist()))
    return replace(
        counted,
        dense=dense,
        sparse=sparse,
        touched=touched,
        messages=cost.exchanges * neighbours,
        halo_bytes=cost.halo_bytes,
    )


def in_turn(comm: Communicator, cores: int, action: Callable[[], float]) -> float:
    """Run `action` on as many ranks at a time as there are cores; the others sleep."""
    result = 0.0
    for turn in range(0, comm.ranks, cores):
        if turn <= comm.rank < turn + cores:
            result = action()
        comm.agree(False)
    return result


def cpu_time(f: NodeLoss, x: Tensor, steps: int) -> float:
    """Return the median CPU time of a gradient, after one to warm up."""
    f.value_and_gradient(x)
    times = []
    for _ in range(steps):
        start = time.process_time()
        f.value_and_gradient(x)
        times.append(time.process_time() - start)
    return statistics.median(times)


def measure(comm: Clocked, problem: SyntheticClassification, steps: int, cores: int) -> dict[str, float]:
    """Return the pieces of a step on this rank, and its work."""
    f, x = problem.objective(), problem.initial(0)
    alone = silent(f)
    compute = in_turn(comm, cores, lambda: cpu_time(alone, x, steps))
    work, rows = work_of(problem, f), []
    for _ in range(steps):
        comm.spent.update(wait=0.0, reduce=0.0)
        comm.sum_scalars([0.0])
        start = time.perf_counter()
        with timed() as timing:
            f.value_and_gradient(x)
        rows.append((time.perf_counter() - start, timing.begin, timing.wait, comm.spent["wait"], comm.spent["reduce"]))
    step, begin, halo, late, reduce = (statistics.median(column) for column in zip(*rows, strict=True))
    least = min(comm.gather_items(halo))
    pieces = {
        "compute": compute,
        "exchange": begin + least,
        "wait": halo - least + late,
        "reduce": reduce,
        "step": step,
    }
    return pieces | asdict(work)


def configurations(ranks: int, base: int) -> list[dict[str, Any]]:
    """List what is measured on this number of ranks."""
    sizes = dict.fromkeys((base * ranks, 4 * base))
    chosen = [(ranks, nodes, *choice) for nodes in sizes for choice in CHOICES]
    return [dict(zip(CONFIGURATION, choice, strict=True)) for choice in chosen]


def measured(comm: Clocked, base: int, steps: int) -> list[dict[str, Any]]:
    """Measure all configurations on these ranks; the rows of all ranks."""
    rows: list[dict[str, Any]] = []
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for choice in configurations(comm.ranks, base):
        problem = SyntheticClassification(
            strips=Strips(
                nodes=choice["nodes"],
                columns=round((choice["nodes"] * choice["aspect"]) ** 0.5),
                degree=choice["degree"],
                features=FEATURES,
                classes=CLASSES,
            ),
            network=Network(choice["model"], choice["hidden"], LAYERS, dropout=0.0, decay=0.0),
            labels="all",
            comm=comm,
        )
        pieces = comm.gather_items(measure(comm, problem, steps, cores))
        shared = {"oversubscribed": int(comm.ranks > cores), "crowd": min(comm.ranks, cores)}
        rows += [choice | {"rank": rank} | shared | piece for rank, piece in enumerate(pieces)]
        if comm.rank == 0:
            print(line(choice, pieces), flush=True)
    return rows


def line(choice: dict[str, Any], pieces: list[dict[str, float]]) -> str:
    """Format one configuration: the means over ranks, in milliseconds."""
    named = "{ranks:>5} {nodes:>9} {model:>5} {hidden:>6} {degree:>6} {aspect:>6}".format(**choice)
    means = (1e3 * statistics.mean(piece[name] for piece in pieces) for name in PIECES)
    return named + "".join(f"{value:>10.2f}" for value in means)


HEAD = "ranks     nodes model hidden degree aspect   compute  exchange      wait    reduce      step  (ms)"


# ------------------------------------------------------------------------------------------------ fitting


def read(folder: Path) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Read the pieces of all runs: the rows of the ranks of every configuration."""
    found: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    for path in sorted(folder.glob("pieces_*.csv")):
        with open(path, newline="", encoding="utf-8") as stream:
            for row in csv.DictReader(stream):
                numbers = {k: v if k == "model" else float(v) for k, v in row.items()}
                found.setdefault(tuple(row[name] for name in CONFIGURATION), []).append(numbers)
    return found


def works(rows: list[dict[str, Any]]) -> list[Work]:
    """Return the work of every rank."""
    return [Work(**{name: row[name] for name in asdict(Work())}) for row in rows]


def fitted(runs: list[list[dict[str, Any]]]) -> tuple[CostModel, float]:
    """Fit the rates, on as many cores as were busy, and the contention of these."""
    rows = [row for run in runs for row in run]
    crowd = max(row["crowd"] for row in rows)
    full, alone = ([row for row in rows if (row["crowd"] == crowd) == busy] for busy in (True, False))
    exchanging = [row for row in full if not row["oversubscribed"]] or full
    model = fit(works(full), {"compute": [row["compute"] for row in full]})
    if crowd > 1:
        pieces = {name: [row[name] for row in exchanging] for name in ("exchange", "reduce")}
        rates = asdict(fit(works(exchanging), pieces))
        model = CostModel(**{name: rates[name] or rate for name, rate in asdict(model).items()})
    ratios = [row["compute"] / model.step(works([row])).compute[0] for row in alone]
    return model, 1 / statistics.median(ratios) if ratios else 1.0


def predicted(model: CostModel, contention: float, rows: list[dict[str, Any]], crowd: float) -> float:
    """Return the step that the model predicts for these ranks; those that share a core take turns."""
    step = model.step(works(rows))
    if rows[0]["crowd"] < crowd:
        return step.seconds / contention
    return step.seconds + (len(rows) / rows[0]["crowd"] - 1) * max(step.compute)


def report(runs: dict[tuple[str, ...], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Print every configuration with the prediction of a model that has not seen it."""
    crowd, table = max(rows[0]["crowd"] for rows in runs.values()), []
    print(HEAD.replace("  (ms)", " predicted  error  (ms)"))
    for key, rows in runs.items():
        choice = dict(zip(CONFIGURATION, key, strict=True))
        model, contention = fitted([other for name, other in runs.items() if name != key])
        step = statistics.mean(row["step"] for row in rows)
        guess = predicted(model, contention, rows, crowd)
        shared = " (oversubscribed)" if rows[0]["oversubscribed"] else ""
        print(f"{line(choice, rows)}{1e3 * guess:>10.2f} {guess / step - 1:>+6.0%}{shared}")
        means = {name: statistics.mean(row[name] for row in rows) for name in PIECES}
        table.append(choice | means | {"predicted": guess, "error": guess / step - 1, "shared": bool(shared)})
    errors = [abs(row["error"]) for row in table if not row["shared"]]
    held = sum(error <= TOLERANCE for error in errors)
    print(
        f"held back one by one: {held} of {len(errors)} within {TOLERANCE:.0%}, median {statistics.median(errors):.1%}"
    )
    return table


def scaling(table: list[dict[str, Any]]) -> None:
    """Print the efficiencies of weak scaling (equal nodes per rank) and strong scaling (equal nodes in all)."""
    kinds = {"weak": lambda row: int(row["nodes"]) / int(row["ranks"]), "strong": lambda row: int(row["nodes"])}
    for name, size in kinds.items():
        groups: dict[Any, list[dict[str, Any]]] = {}
        for row in table:
            groups.setdefault((size(row), *(row[name] for name in CONFIGURATION[2:])), []).append(row)
        for (nodes, *what), rows in groups.items():
            one = next((row for row in rows if row["ranks"] == "1"), None)
            if one is None or len(rows) < 2:
                continue
            for row in sorted(rows, key=lambda row: int(row["ranks"])):
                share = one["step"] / row["step"] / (int(row["ranks"]) if name == "strong" else 1)
                shared = " (oversubscribed)" if row["shared"] else ""
                print(f"{name:>6} {nodes:>9.0f} {' '.join(what):>15} {row['ranks']:>3} ranks {share:>6.0%}{shared}")


# ------------------------------------------------------------------------------------------------ predicting


def block(nodes: float, ranks: int, irregular: bool, hidden: int = 64) -> Work:
    """Count the work of a rank that has a part of a graph with ten neighbours per node.

    A square block of a grid has eight blocks around; above and below one row is read, left and right two columns: 6
    sqrt(n) rows of a halo in all, corners left out. The part of an irregular graph reads half as many nodes as it has,
    from all other ranks.
    """
    widths = (FEATURES, *[hidden] * (LAYERS - 1), CLASSES)
    halo, around = (nodes / 2, ranks - 1) if irregular else (6 * nodes**0.5, min(8, ranks - 1))
    return graph_work(nodes, 11 * nodes, widths, halo=halo * (ranks > 1), neighbours=around, ranks=ranks)


def accelerators() -> list[dict[str, Any]]:
    """Print and return the steps on 1 to 1,024 accelerators: 4 million nodes each, and 64 million in all."""
    table: list[dict[str, Any]] = []
    first: dict[tuple[str, str], float] = {}
    figures = ", ".join(f"{name} {value:.3g}" for name, value in asdict(INSIDE).items())
    print(f"\npredicted for accelerators of {figures}; network of more than {PER_NODE}: {BEYOND.network:.3g}")
    print("graph     scaling  ranks  nodes per rank   compute  exchange    reduce      step (ms)  efficiency")
    for graph, kind, ranks in product(
        ("grid", "irregular"), ("weak", "strong"), (1, 8, 16, 32, 64, 128, 256, 512, 1024)
    ):
        nodes = 4e6 if kind == "weak" else 64e6 / ranks
        rates = (INSIDE if ranks <= PER_NODE else BEYOND).rates()
        step = rates.step([block(nodes, ranks, graph == "irregular")])
        share = first.setdefault((graph, kind), step.seconds) / step.seconds / (ranks if kind == "strong" else 1)
        times = [1e3 * t for t in (step.compute[0], step.exchange[0], step.reduce, step.seconds)]
        columns = "".join(f"{t:>10.3f}" for t in times)
        print(f"{graph:<9} {kind:<7} {ranks:>6} {nodes:>15.0f}{columns} {share:>15.0%}")
        names = ("compute_ms", "exchange_ms", "reduce_ms", "step_ms")
        table.append(
            {"graph": graph, "scaling": kind, "ranks": ranks, "nodes": nodes} | dict(zip(names, times, strict=True))
        )
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--base", type=int, default=50_000)
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/scaling"))
    options = parser.parse_args()
    here = world()
    prepare(here)
    if options.measure:
        torch.set_num_threads(1)
        comm = Clocked(here.mpi, here.reports)
        if comm.rank == 0:
            print(HEAD)
        rows = measured(comm, options.base, options.steps)
        if comm.rank == 0:
            options.out.mkdir(parents=True, exist_ok=True)
            write_table(options.out / f"pieces_{comm.ranks}.csv", rows)
            print(f"written  {options.out / f'pieces_{comm.ranks}.csv'}")
        return
    table = report(read(options.out))
    scaling(table)
    write_table(options.out / "predicted.csv", table)
    write_table(options.out / "accelerators.csv", accelerators())
    print(f"written  {options.out / 'predicted.csv'} {options.out / 'accelerators.csv'}")


if __name__ == "__main__":
    main()
