"""What coarse graphs, coarse networks and fewer data are worth as starts, and own networks against a shared one.

    python experiments/benchmarks/levels.py [--graphs cora] [--seeds 0 1 2] [--out DIR]
    python experiments/benchmarks/levels.py --own [--graphs cora sbm] [--seeds 0 1 2] [--out DIR]

First table: L-BFGS from Glorot's start, against 60 steps on one coarse level first (its cost is included) and L-BFGS
from the lifted result; no dropout, labels of all nodes outside the test set. Work is in fine gradients, medians over
the seeds that reached the target.

Second table (`--own`): 100 steps of Adam (rate 0.01, dropout 0.5) on one network for all of the graph, against four
networks on four parts, blended, without and with a network for the global signal.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mldd
from mldd.algebra import counting, uncounted
from mldd.loop import Stop, minimise, write_table
from mldd.problems.graphs import NodeClassification, SubdomainNetworks
from mldd.solvers import LBFGS, Adam

TARGETS = (1.0, 0.6, 0.4)
COARSE_STEPS, MOST = 60, 400
GCN, SAGE = {"model": "gcn"}, {"model": "sage", "layers": 4}
CASES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    (GCN, {}),
    (GCN, {"coarsen": "graph", "clusters": 300}),
    (GCN, {"coarsen": "graph", "clusters": 300, "clustering": "matching"}),
    (GCN, {"coarsen": "width"}),
    (GCN, {"coarsen": "data"}),
    (SAGE, {}),
    (SAGE, {"coarsen": "graph", "clusters": 300, "clustering": "matching"}),
    (SAGE, {"coarsen": "width"}),
    (SAGE, {"coarsen": "depth"}),
    (SAGE, {"coarsen": "width+depth"}),
]
OWN: list[tuple[str, dict[str, Any]]] = [
    ("shared", {}),
    *((f"own, coarse={coarse}", {"coarse": coarse}) for coarse in ("none", "graph", "whole")),
]


def descend(f: Any, x: Any, spent: float) -> list[float | None]:
    """Return the work at which each target is reached, `spent` included."""
    solver, reached = LBFGS(), dict.fromkeys(TARGETS)
    state = solver.init(f, x)
    with counting() as cost:
        for _ in range(MOST):
            x, state = solver.step(f, x, state)
            state.step += 1
            with uncounted():
                value = float(f.value(x))
            for target in TARGETS:
                if value <= target and reached[target] is None:
                    reached[target] = spent + cost.work
            if value <= TARGETS[-1] or state.status is not None:
                break
    return list(reached.values())


def nested(graph: str, kind: dict[str, Any], level: dict[str, Any], seed: int) -> tuple[float, list[float | None]]:
    """Return the fine loss at the start, and the work to every target."""
    problem = mldd.problem(graph, dropout=0.0, labels="all", seed=seed, **kind, **level)
    f, x, spent = problem.objective(), problem.initial(seed), 0.0
    if level:
        coarse = problem.hierarchy(2)[1]
        start = coarse.objective.net.initial(seed).to(x)
        result = minimise(coarse.objective, start, LBFGS(), stop=Stop(max_steps=COARSE_STEPS))
        x = coarse.transfer.lift(result.x) if hasattr(coarse.transfer, "lift") else result.x
        spent = result.history.records[-1].cost.work_units
    return float(f.value(x)), descend(f, x, spent)


def starts(graphs: list[str], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Print the first table, row by row."""
    print(f"{'':<62}start  " + "  ".join(f"work to {target} (seeds)" for target in TARGETS))
    for graph in graphs:
        for kind, level in CASES:
            runs = [nested(graph, kind, level, seed) for seed in seeds]
            name = " ".join([graph, *map(str, kind.values()), *map(str, level.values())])
            line = f"{name:<60} {statistics.median(value for value, _ in runs):>6.3f}"
            for k in range(len(TARGETS)):
                got = [work for _, works in runs if (work := works[k]) is not None]
                line += f"  {statistics.median(got) if got else float('nan'):>14.1f} ({len(got)})"
            print(line, flush=True)
            for seed, (value, works) in zip(seeds, runs, strict=True):
                costs = {f"work_to_{target}": work for target, work in zip(TARGETS, works, strict=True)}
                yield {"case": name, "seed": seed, "start": value, **costs}


def own(graphs: list[str], seeds: list[int]) -> Iterator[dict[str, Any]]:
    """Print the second table, row by row."""
    for graph in graphs:
        for labels in ("train", "all"):
            for name, options in OWN:
                kind = SubdomainNetworks if options else NodeClassification
                found = []
                for seed in seeds:
                    problem = kind(graph, labels=labels, dtype="float32", seed=seed, **options)
                    f = problem.objective()
                    x = minimise(f, problem.initial(seed), Adam(lr=0.01), stop=Stop(max_steps=100)).x
                    found.append({"loss": float(f.value(x)), "test": problem.metrics(x)["test_accuracy"]})
                    yield {"graph": graph, "labels": labels, "networks": name, "seed": seed, **found[-1]}
                loss, test = (statistics.median(row[key] for row in found) for key in ("loss", "test"))
                print(f"{graph:<10} labels={labels:<6} {name:<20} loss {loss:.3f}  test {test:.3f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=["cora"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--own", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/levels"))
    options = parser.parse_args()
    rows = list((own if options.own else starts)(options.graphs, options.seeds))
    path = options.out / ("own.csv" if options.own else "starts.csv")
    options.out.mkdir(parents=True, exist_ok=True)
    write_table(path, rows)
    print(f"written  {path}")


if __name__ == "__main__":
    main()
