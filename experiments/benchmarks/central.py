"""The central question: what do decomposed and multilevel methods save when a graph network is trained?

    mpiexec -n 2 python -m mpi4py experiments/benchmarks/central.py cora [--seeds 0 1 2 3 4] [--model gcn] [--out DIR]

Full-batch training loss, float64: cross-entropy on all nodes outside of the test set, no dropout, weight decay 5e-4
on the first layer; for `era5-uk` the mean of squares of 6 h forecasts, every seventh origin. Three targets: the
losses after 50, 80 and 95 per cent of the way from the start to the best loss found by any long run (constants
below). Methods: Adam with five rates, L-BFGS with histories of 10 and 20, LocalSGD (Adam on the parts' own losses)
with three rates and three numbers of local steps; L-BFGS scaled by rows; composite Schwarz; ML-LBFGS; and LocalSGD
after the nested iteration of ML-LBFGS. Every column of a method has the configuration that is best in it, target by
target, on the seeds shown; the setting named is that of the fewest synchronisations. Medians over the seeds, quartiles
in parentheses; a run that misses a target in `--steps` steps counts as infinitely long.

Columns: synchronisations (sums of vectors over ranks) and collectives on a few numbers; fine evaluations, in each of
which a distributed graph exchanges its halos forward and backward, and the bytes these exchanges would take; work of
the busiest rank and of all ranks together, in fine gradients of one process: what every rank does for itself (halos,
coarse levels) counts for every rank; seconds of this run, meant for several ranks on a quiet machine. Making parts and
coarse graphs is in none of these but in the last two columns, wall seconds and fine gradients' CPU time.

The coarse graphs of ML-LBFGS: nodes are grouped by k-means of their propagated features (on the grid: by METIS), coarse
features are thinned to their largest entries. No labels are used for either. Sizes and steps were chosen by hand per
data set on seeds 0 to 2 (see LEVELS).
"""

from __future__ import annotations

import argparse
import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mldd
from mldd.algebra import Hierarchy, innermost
from mldd.command.preparation import Preparation
from mldd.graph import report
from mldd.loop import Cost, Stop, minimise, write_table
from mldd.problems.forecasts import Forecasting
from mldd.ranks import prepare, world
from mldd.solvers import LBFGS, Adam, LocalSgd, MultilevelLBFGS, SchwarzLBFGS

# Losses at 50, 80 and 95 per cent of the way from the start to the best loss found (in brackets).
TARGETS = {
    "cora": (0.98, 0.39, 0.10),  # 1.953 to 0.002
    "citeseer": (0.91, 0.37, 0.10),  # 1.800 to 0.01
    "physics": (0.81, 0.325, 0.082),  # 1.62 to 0.001
    "minesweeper": (0.468, 0.354, 0.296),  # 0.66 to 0.277
    "era5-uk": (0.595, 0.352, 0.23),  # 1 to 0.19
}
# Nodes of the first coarse graph as a share of all, levels, entries kept, steps on each: one per kind of features.
LEVELS = {"minesweeper": (0.08, 3, 1.0, 20), "physics": (0.035, 2, 0.05, 12)}
WORDS = (0.11, 3, 0.3, 25)
RATES = (0.003, 0.01, 0.03, 0.1, 0.3)


@dataclass(frozen=True)
class Method:
    """One configuration of a method, and what making its parts and coarse graphs has taken."""

    name: str
    setting: str
    solver: Any
    setup: Cost = Cost()  # noqa: RUF009 (frozen)


def levels(problem: Any) -> tuple[Hierarchy, int, Cost]:
    """Return the loss and its models on coarse graphs, the steps on each, and the set-up."""
    count, steps = 3, 40  # a smooth field on a grid: neighbours are alike, and nothing can be thinned
    if not isinstance(problem, Forecasting):
        share, count, kept, steps = LEVELS.get(str(problem.name), WORDS)
        clusters = round(share * problem.graph.nodes)
        problem = replace(problem, spaces=replace(problem.spaces, clustering="features", clusters=clusters, kept=kept))
    preparation = Preparation(problem, 0, problem.comm)
    hierarchy = preparation.hierarchy(count)
    return hierarchy, steps, preparation.cost([hierarchy])


# ------------------------------------------------------------------------------------------------ methods and runs


def methods(problem: Any, parts: int, chosen: list[str]) -> Iterator[Method]:
    """Give all configurations of the methods asked for."""
    comm = problem.comm
    if "adam" in chosen:
        yield from (Method("adam", f"lr={rate}", Adam(rate)) for rate in RATES)
    if "lbfgs" in chosen:
        yield from (Method("lbfgs", f"memory={memory}", LBFGS(memory)) for memory in (10, 20))
    if "lbfgs rows" in chosen:
        yield Method("lbfgs rows", "memory=10", LBFGS(10, scaling="rows"))
    if "localsgd" in chosen:
        with_own = replace(problem, spaces=replace(problem.spaces, local="own"))
        preparation = Preparation(with_own, 0, comm)
        own = preparation.decomposition(parts, 0)
        setup = preparation.cost([own])
        for rate in (0.01, 0.03, 0.1):
            for steps in (5, 20, 50):
                solver = LocalSgd(own, local=Adam(rate), local_steps=steps, memory="keep", comm=comm)
                yield Method("localsgd", f"lr={rate} steps={steps}", solver, setup)
    if "composite" in chosen:
        preparation = Preparation(problem, 0, comm)
        composite = preparation.decomposition(parts, 0)
        for subspace_steps in (0, 5):
            solver = SchwarzLBFGS(
                composite,
                combine="wasm",
                search="sum",
                local_steps=10,
                global_steps=0,
                subspace_steps=subspace_steps,
                comm=comm,
            )
            yield Method("composite", f"subspace_steps={subspace_steps}", solver, preparation.cost([composite]))
    if "ml-lbfgs" in chosen:
        hierarchy, steps, setup = levels(problem)
        multilevel = MultilevelLBFGS(hierarchy, steps, comm=comm)
        yield Method("ml-lbfgs", f"levels={len(hierarchy)}", multilevel, setup)
        if "localsgd" in chosen:
            for rate in (0.01, 0.03):
                solver = LocalSgd(own, local=Adam(rate), local_steps=5, memory="keep", comm=comm)
                yield Method("ml-localsgd", f"lr={rate} steps=5", replace(multilevel, then=solver), setup)


COSTS = (
    "synchronisations",
    "scalar_synchronisations",
    "gradient_evaluations",
    "work_units",
    "work_total",
    "seconds",
    "setup_seconds",
    "setup_work",
)


def run(problem: Any, method: Method, seed: int, steps: int) -> list[dict[str, float]]:
    """Train once; return the costs at the three targets, infinite ones for those that were missed."""
    goals = goals_of(problem)
    stop = Stop(max_steps=steps, target=goals[-1])
    result = minimise(
        problem.objective(),
        problem.initial(seed),
        method.solver,
        stop=stop,
        comm=problem.comm,
        values=True,
        setup=method.setup,
    )
    found = [next((r for r in result.history.records if r.value <= goal), None) for goal in goals]
    never = dict.fromkeys(COSTS, math.inf)
    return [never if record is None else {name: record.row()[name] for name in COSTS} for record in found]


def goals_of(problem: Any) -> tuple[float, ...]:
    """Return the targets."""
    return TARGETS[str(problem.name)]


def halo_bytes(problem: Any, parts: int) -> float:
    """Return the bytes of halos that one exact distributed gradient sends, forward and backward, all ranks together."""
    rows = report(problem.graph, problem.parts(parts))["halo_rows"]
    widths, batch = problem.net.widths, innermost(problem.objective()).batch
    # Every layer exchanges what is narrower, its input or its product with the weights; inputs may be propagated once.
    columns = sum([min(a, b) for a, b in zip(widths, widths[1:], strict=False)][batch.propagated :])
    return 2.0 * 8.0 * float(rows) * columns * batch.samples


def middle(values: list[float]) -> tuple[float, float, float]:
    """Return median and quartiles."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 4], ordered[-1 - (len(ordered) - 1) // 4]
    return statistics.median(values), low, high


def table(problem: Any, rows: list[dict[str, Any]], parts: int) -> None:
    """Print, target by target, the best configuration of every method."""
    volume = halo_bytes(problem, parts) / 1e6
    for goal in goals_of(problem):
        print(f"\nloss {goal}: method, {', '.join(COSTS)}, halo MB, setting")
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == name and row["target"] == goal]
            settings = dict.fromkeys(row["setting"] for row in mine)
            # every column has the configuration that is best in it
            of = {s: [middle([r[c] for r in mine if r["setting"] == s]) for c in COSTS] for s in settings}
            cells = [min(cells[k] for cells in of.values()) for k in range(len(COSTS))]
            best = min(settings, key=lambda s: of[s][0])
            texts = ["{:.4g} ({:.4g}-{:.4g})".format(*cell) for cell in cells]
            halo = f"{cells[COSTS.index('gradient_evaluations')][0] * volume:.3g}"
            print(f"  {name:<11}", *(f"{text:>20}" for text in texts), f"{halo:>8}  {best}", flush=True)


def problem_of(options: argparse.Namespace, model: str) -> Any:
    """Make the problem."""
    shared = {"model": model, "layers": options.layers, "data": options.data, "comm": world()}
    if options.name == "era5-uk":
        return mldd.problem("era5-uk", horizon=6, stride=7, clusters=400, **shared)
    return mldd.problem(options.name, hidden=options.hidden, dropout=0.0, labels="all", **shared)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=list(TARGETS), nargs="?", default="cora")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--model", default="")
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--methods", default="adam,lbfgs,localsgd,lbfgs rows,composite,ml-lbfgs")
    parser.add_argument("--data", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/central"))
    options = parser.parse_args()
    comm = world()
    prepare(comm)
    parts = comm.ranks
    model = options.model or ("sage" if options.name in ("minesweeper", "era5-uk") else "gcn")
    problem = problem_of(options, model)
    rows: list[dict[str, Any]] = []
    for method in methods(problem, parts, options.methods.split(",")):
        for seed in options.seeds:
            for goal, costs in zip(goals_of(problem), run(problem, method, seed, options.steps), strict=True):
                rows.append({"method": method.name, "setting": method.setting, "seed": seed, "target": goal} | costs)
        if comm.rank == 0:
            done = [row for row in rows if row["method"] == method.name and row["setting"] == method.setting]
            print(f"{method.name} {method.setting}: {[row['synchronisations'] for row in done]}", flush=True)
    if comm.rank == 0:
        print(f"\n{options.name} {model}, {options.layers} layers, {parts} parts, {comm.ranks} ranks")
        table(problem, rows, parts)
        path = options.out / f"{options.name}_{model}{options.layers}_{comm.ranks}.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_table(path, rows)
        print(f"written  {path}")


if __name__ == "__main__":
    main()
