"""What do a metric of the first layer, coarse graphs and local training save when a graph network is fitted in full?

    python experiments/gnn_decomposition/full_batch.py cora [--seeds 0 1 2] [--methods rows,white] [--quick] [--out DIR]
    mpiexec -n 2 python -m mpi4py experiments/gnn_decomposition/full_batch.py cora

Full-batch training loss, float64: cross-entropy on all nodes outside of the test set, hidden width 16, no dropout,
weight decay 5e-4 on the first layer; for `era5-uk` the mean of squares of 6 h forecasts, every seventh origin. Three
targets, in `TARGETS`: the losses after 50, 80 and 95 per cent of the way from the start to the best loss found by any
long run (for `era5-uk` the last lies deep in overfitting). Methods:

    rows          L-BFGS, initial matrix scaled by rows
    bias          the same, the bias of the first layer scaled before it starts
    white         the same in white coordinates of the first layer's inputs (rank 16; all directions below 64 inputs)
    ml-lbfgs      nested iteration over coarse graphs, then L-BFGS scaled by rows
    white-nested  the same in white coordinates
    adam          four rates;  white-adam: Adam in white coordinates, five rates
    localsgd      Adam on the own losses of the parts, two rates, two numbers of local steps
    white-local   the same in white coordinates

Every column has the configuration of a method that is best in it, target by target, over the seeds shown; the setting
named is that of the fewest synchronisations. Medians over the seeds, quartiles in parentheses; a run that misses a
target in its steps counts as infinitely long, and leaves the last cells empty.

Columns: sums of vectors over ranks, those of the set-up included, and collectives on a few numbers; work of the busiest
rank in fine gradients of one process, set-up included; CPU seconds of this process, set-up included, taken in a run of
its own that computes no losses for the eye; test accuracy (area under the curve for `minesweeper`) at the target.

The coarse graphs: nodes are grouped by k-means of their propagated features (on the grid: by METIS), coarse features
are thinned to their largest entries; no labels are used. Sizes and steps were chosen by hand on seeds 0 to 2.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import sklearn.cluster  # noqa: F401  # imported here, its import is no part of a set-up
import torch

import mldd
from mldd.command.preparation import Preparation
from mldd.loop import Cost, Stop, minimise, replacing
from mldd.problems.forecasts import Forecasting
from mldd.ranks import prepare, world
from mldd.solvers import LBFGS, Adam, LocalSgd, MultilevelLBFGS, Whitened

# Losses at 50, 80 and 95 per cent of the way from the start to the best loss found (in brackets).
TARGETS = {
    "cora": (0.98, 0.39, 0.10),  # 1.953 to 0.002
    "citeseer": (0.91, 0.37, 0.10),  # 1.800 to 0.01
    "photo": (1.06, 0.42, 0.106),  # 2.127 to 0.0001
    "physics": (0.81, 0.325, 0.082),  # 1.62 to 0.001
    "minesweeper": (0.468, 0.354, 0.296),  # 0.66 to 0.277
    "era5-uk": (0.595, 0.352, 0.23),  # 1 to 0.19
    "sbm": (1.2, 0.9, 0.8),  # for --quick
}
# Nodes of the first coarse graph as a share of all, levels, entries kept, steps on each: one per kind of features.
LEVELS = {"minesweeper": (0.08, 3, 1.0, 20), "physics": (0.035, 2, 0.05, 12)}
WORDS = (0.11, 3, 0.3, 25)
METHODS = ("rows", "bias", "white", "ml-lbfgs", "white-nested", "adam", "white-adam", "localsgd", "white-local")
COLUMNS = ("synchronisations", "scalar_synchronisations", "work", "cpu_seconds", "test_score")


@dataclass(frozen=True)
class Method:
    """One configuration of a method.

    Parameters
    ----------
    name, setting : str
        Of the table.
    make : callable
        Returns the solver, and by `Preparation` what it needs before it starts.
    steps : int
        Most outer steps.
    """

    name: str
    setting: str
    make: Callable[[Preparation], Any]
    steps: int = 400


@dataclass(frozen=True)
class Size:
    """How much is run.

    Parameters
    ----------
    parts : int
        Subdomains of local methods.
    quick : bool
        Few steps of a small graph, to see that it runs.
    """

    parts: int
    quick: bool


# ------------------------------------------------------------------------------------------------ methods


def nested(preparation: Preparation) -> MultilevelLBFGS:
    """Return ML-LBFGS on the coarse graphs of a problem."""
    problem, count, steps = preparation.problem, 3, 40
    if not isinstance(problem, Forecasting):  # on a grid neighbours are alike, and nothing can be thinned
        _, count, _, steps = LEVELS.get(str(problem.name), WORDS)  # type: ignore[attr-defined]
    return MultilevelLBFGS(preparation.hierarchy(count), steps, comm=problem.comm)  # type: ignore[attr-defined]


def local(preparation: Preparation, parts: int, rate: float, steps: int) -> LocalSgd:
    """Return LocalSGD with Adam on the own losses of the parts."""
    own = preparation.decomposition(parts, 0)
    comm = preparation.comm
    return LocalSgd(own, local=Adam(rate), local_steps=steps, memory="keep", comm=comm)


def white(solver: Callable[[Preparation], Any], metric: Any = "inputs") -> Callable[[Preparation], Whitened]:
    """Return what makes a solver in white coordinates."""

    def make(preparation: Preparation) -> Whitened:
        inner = solver(preparation)
        made = Whitened(preparation.first_layer(), inner, metric)
        preparation.prepared(made)
        return made

    return make


def methods(chosen: Sequence[str], size: Size) -> Iterator[Method]:
    """Give all configurations of the methods asked for."""

    def rows(_: Preparation) -> LBFGS:
        return LBFGS(scaling="rows")

    plain: dict[str, Callable[[Preparation], Any]] = {
        "rows": rows,
        "bias": white(rows, "bias"),
        "white": white(rows),
        "ml-lbfgs": nested,
        "white-nested": white(nested),
    }
    yield from (Method(name, "", make, 20 if size.quick else 400) for name, make in plain.items() if name in chosen)
    for name, rates in (("adam", (0.01, 0.03, 0.1, 0.3)), ("white-adam", (0.03, 0.1, 0.2, 0.3, 0.6))):
        for rate in rates[-1:] if size.quick else rates if name in chosen else ():
            solver = Adam(rate)
            make = white(lambda _, solver=solver: solver) if "white" in name else (lambda _, solver=solver: solver)
            yield Method(name, f"lr={rate}", make, 20 if size.quick else 600)
    for name in ("localsgd", "white-local"):
        for rate, steps in ((0.03, 5), (0.03, 20), (0.1, 5), (0.1, 20)) if name in chosen else ():
            make = lambda p, rate=rate, steps=steps: local(p, size.parts, rate, steps)  # noqa: E731
            yield Method(
                name, f"lr={rate} steps={steps}", white(make) if "white" in name else make, 3 if size.quick else 60
            )


# ------------------------------------------------------------------------------------------------ runs


def prepared(problem: Any, name: str) -> Preparation:
    """Return the problem with what suits a method: parts with their own losses, coarse graphs by features."""
    if not isinstance(problem, Forecasting):
        share, _, kept, _ = LEVELS.get(str(problem.name), WORDS)
        clusters = round(share * problem.graph.nodes)
        spaces = replace(problem.spaces, clustering="features", clusters=clusters, kept=kept, local="own")
        problem = replace(problem, spaces=spaces)
    elif "local" in name:
        problem = replace(problem, local="own")
    preparation = Preparation(problem, 0, problem.comm)
    _ = preparation.objective, preparation.start
    return preparation


def run(preparation: Preparation, solver: Any, method: Method, seed: int, setup: Cost) -> list[dict[str, float]]:
    """Train once; return the columns at the three targets, infinite ones for those that were missed."""
    problem: Any = preparation.problem
    goals, scores = TARGETS[str(problem.name)], {}

    def look(x: torch.Tensor, state: Any, history: Any) -> None:
        for goal in goals:
            if goal not in scores and history.records[-1].value <= goal:
                scores[goal] = problem.metrics(x)

    stop = Stop(max_steps=method.steps, target=goals[-1])
    made = {"stop": stop, "comm": problem.comm, "values": True, "setup": setup, "after_step": look}
    result = minimise(preparation.objective, problem.initial(seed), solver, **made)  # type: ignore[arg-type]
    rows = []
    for goal in goals:
        found = next((r for r in result.history.records if r.value <= goal), None)
        if found is None:
            rows.append(dict.fromkeys(COLUMNS, math.inf) | {"step": math.inf, "test_score": math.nan})
            continue
        cost, score = found.cost, scores[goal]
        key = next((k for k in ("test_auc", "test_accuracy", "test_rmse") if k in score), "")
        rows.append(
            {
                "step": found.step,
                "synchronisations": cost.synchronisations,
                "scalar_synchronisations": cost.scalar_synchronisations,
                "work": cost.work_units + cost.setup_work,
                "cpu_seconds": math.inf,
                "test_score": score.get(key, math.nan),
            }
        )
    return rows


def timed(preparation: Preparation, solver: Any, seed: int, steps: float) -> float:
    """Return CPU seconds of a run of so many steps in which no losses are computed for the eye."""
    problem: Any = preparation.problem
    x, begin = problem.initial(seed), time.process_time()
    minimise(preparation.objective, x, solver, stop=Stop(int(steps)), comm=problem.comm, values=False)
    return time.process_time() - begin


def measured(problem: Any, method: Method, seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Return a row per seed and target of one configuration; set-up is made, and clocked, once."""
    preparation = prepared(problem, method.name)
    solver = method.make(preparation)
    things = [made.thing for made in preparation._made.values()]
    setup = preparation.cost(things)
    spent = sum(made.cpu for made in preparation._made.values())
    rows: list[dict[str, Any]] = []
    for seed in seeds:
        found = run(preparation, solver, method, seed, setup)
        for goal, row in zip(TARGETS[str(problem.name)], found, strict=True):
            if math.isfinite(row["step"]):
                row["cpu_seconds"] = timed(preparation, solver, seed, row["step"]) + spent
            named = {"method": method.name, "setting": method.setting, "seed": seed, "target": goal}
            rows.append(named | row | {"setup_seconds": setup.setup_seconds, "setup_work": setup.setup_work})
    return rows


# ------------------------------------------------------------------------------------------------ the table


def middle(values: Sequence[float]) -> tuple[float, float, float]:
    """Return median and quartiles."""
    ordered = sorted(values)
    low, high = ordered[(len(ordered) - 1) // 4], ordered[-1 - (len(ordered) - 1) // 4]
    return statistics.median(ordered), low, high


def table(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Yield, target by target, the best configuration of every method and its ratio to `rows`."""
    for goal in dict.fromkeys(row["target"] for row in rows):
        yield f"\nloss {goal}: method, {', '.join(COLUMNS)}, setting"
        for name in dict.fromkeys(row["method"] for row in rows):
            mine = [row for row in rows if row["method"] == name and row["target"] == goal]
            settings = dict.fromkeys(row["setting"] for row in mine)
            of = {s: [middle([r[c] for r in mine if r["setting"] == s]) for c in COLUMNS] for s in settings}
            best = min(settings, key=lambda s: of[s][0])
            cells = [min(cells[k] for cells in of.values()) for k in range(len(COLUMNS) - 1)] + [of[best][-1]]
            texts = ["{:.4g} ({:.4g}-{:.4g})".format(*cell) for cell in cells]
            yield f"  {name:<13}" + "".join(f"{text:>24}" for text in texts) + f"  {best}"


def problem_of(options: argparse.Namespace) -> Any:
    """Make the problem."""
    shared = {"data": options.data, "comm": world()}
    if options.quick:
        return mldd.problem("sbm", hidden=8, dropout=0.0, labels="all", comm=world())
    model = options.model or ("sage" if options.name in ("minesweeper", "era5-uk") else "gcn")
    if options.name == "era5-uk":
        return mldd.problem("era5-uk", model=model, horizon=6, stride=7, clusters=400, **shared)
    return mldd.problem(options.name, model=model, hidden=options.hidden, dropout=0.0, labels="all", **shared)


def written(path: Path, rows: list[dict[str, Any]], options: argparse.Namespace, problem: Any) -> None:
    """Write the rows, with what they were made with in comments in front."""
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    head = {
        "problem": problem.name,
        "network": problem.network,
        "seeds": options.seeds,
        "ranks": problem.comm.ranks,
        "parts": options.parts,
        "targets": TARGETS[str(problem.name)],
        "levels": LEVELS.get(str(problem.name), WORDS),
        "processor": processor,
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [f"# {key}: {value}" for key, value in head.items()]
    lines += [",".join(rows[0]), *(",".join(_cell(value) for value in row.values()) for row in rows)]
    with replacing(path) as new:
        Path(new).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _cell(value: Any) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _lines(path: str) -> list[str]:
    return Path(path).read_text(encoding="utf-8").splitlines() if Path(path).exists() else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=[name for name in TARGETS if name != "sbm"], nargs="?", default="cora")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--model", default="")
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--parts", type=int, default=4)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--data", default=None)
    parser.add_argument("--out", type=Path, default=Path("runs/gnn_decomposition"))
    options = parser.parse_args()
    comm = world()
    prepare(comm)
    options.parts = max(options.parts, comm.ranks)
    options.seeds = options.seeds[:1] if options.quick else options.seeds
    problem, rows = problem_of(options), []
    for method in methods(options.methods.split(","), Size(options.parts, options.quick)):
        rows += measured(problem, method, options.seeds)
        if comm.rank == 0:
            done = [row for row in rows if row["method"] == method.name and row["setting"] == method.setting]
            print(f"{method.name} {method.setting}: {[row['synchronisations'] for row in done]}", flush=True)
    if comm.rank == 0:
        print(f"\n{problem.name}, {problem.network}, {options.parts} parts, {comm.ranks} ranks, seeds {options.seeds}")
        print("\n".join(table(rows)))
        path = options.out / f"full_batch_{problem.name}_{comm.ranks}.csv"
        written(path, rows, options, problem)
        print(f"written  {path}")


if __name__ == "__main__":
    main()
