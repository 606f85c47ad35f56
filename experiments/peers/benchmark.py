"""One benchmark beside the peers: its command, its table, which goes on where it stopped, and its figure.

    OMP_NUM_THREADS=1 python -m experiments.peers.NAME [--quick] [--seeds 0 1 2] [--methods adam lbfgs] [--out DIR]
    OMP_NUM_THREADS=1 mpiexec -n 2 python -m mpi4py -m experiments.peers.NAME --out DIR

The CSV is written anew after every run; a file of the same problems, versions and machine is continued, so that a
benchmark can be made in pieces (``--methods``); every row has the commit of its code. ``--quick`` makes small runs that
end after so many gradients.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.machine import measured, processor
from experiments.peers.race import COSTS, Budget, Method, Row, Task, raced, tuned
from experiments.pictures import plain, style_of
from experiments.study import PACKAGES, continued, last_commit, read, shown, version_of, write
from mldd.loop import replacing
from mldd.ranks import Communicator, prepare, world

CODE = ["mldd", "problems", "solvers", "experiments/peers/race.py", "experiments/machine.py"]
LABELS = {"total": "CPU time with set-up (s)", "gradients": "gradients of the whole problem"}
KEYS = ("problem", "method", "rate", "seed")


@dataclass(frozen=True)
class Outside:
    """A peer whose code a user has to bring.

    Parameters
    ----------
    methods : callable or None
        ``methods(folder, task)`` returns its methods on a problem; None where it is recorded alone.
    recorded : tuple of dict
        Rows that stand in for it where it is absent: problem, method, target, and costs.
    """

    methods: Callable[[Path, Task], dict[str, Method]] | None
    recorded: tuple[Row, ...] = ()


@dataclass(frozen=True)
class Benchmark:
    """Problems and methods.

    Parameters
    ----------
    script : str
        Its ``__file__``.
    tasks : tuple of Task
        The problems.
    methods : callable
        ``methods(task)`` returns the methods by name.
    quick : tuple of str
        Methods of the quick run.
    quick_gradients : float
        Budget of a quick run.
    outside : dict of str to Outside
        Peers by the name of their option.
    axis : str
        What the targets are of.
    """

    script: str
    tasks: tuple[Task, ...]
    methods: Callable[[Task], dict[str, Method]]
    quick: tuple[str, ...]
    quick_gradients: float = 100.0
    outside: dict[str, Outside] = field(default_factory=dict)
    axis: str = "training loss"

    @property
    def name(self) -> str:
        """Name of the script and of the table."""
        return Path(self.script).stem

    def small(self) -> Benchmark:
        """Return the benchmark of a quick run: the first problem of each kind, few methods and gradients, one rate."""
        budget = Budget(math.inf, self.quick_gradients, 0.0, warm=False)
        tasks = tuple(replace(task, budget=budget) for task in self.tasks[:1])

        def methods(task: Task) -> dict[str, Method]:
            found = {name: method for name, method in self.methods(task).items() if name in self.quick}
            return {name: replace(m, rates=m.rates[len(m.rates) // 2 :][:1]) for name, m in found.items()}

        return replace(self, tasks=tasks, methods=methods)

    def rows(
        self,
        comm: Communicator,
        seeds: tuple[int, ...] = (0,),
        done: list[Row] | None = None,
        wanted: Callable[[str], bool] = lambda name: True,
        checkouts: dict[str, Path] | None = None,
    ) -> Iterator[list[Row]]:
        """Yield all rows so far, after every run that `done` does not have."""
        is_quick = not self.tasks[0].budget.warm
        rows, limits = list(done or []), measured(comm, 2**18, 64) if is_quick else measured(comm)
        commit = last_commit([*CODE, f"experiments/peers/{self.name}.py"])
        there = {(row["problem"], row["method"], str(row["seed"])) for row in rows}
        rates = {(row["problem"], row["method"]): float(row["rate"]) for row in rows if row["rate"]}
        for task in self.tasks:
            methods = self.methods(task) | self._brought(task, checkouts or {})
            for name, method in methods.items():
                left = [seed for seed in seeds if (task.name, name, str(seed)) not in there]
                if not wanted(name) or not left:
                    continue
                rate = rates.get((task.name, name))
                rate = tuned(task, method, seeds[0], comm) if rate is None else rate
                for seed in left:
                    head = {"problem": task.name, "method": name, "rate": rate, "seed": seed}
                    race = raced(task, method, seed, rate, comm)
                    rows += [head | row | {"commit": commit} for row in race.rows(limits)]
                    yield rows
        ran = {(row["problem"], row["method"]) for row in rows}
        recorded = [row for row in self._recorded(checkouts or {}) if (row["problem"], row["method"]) not in ran]
        if recorded:
            yield rows + recorded

    def _brought(self, task: Task, checkouts: dict[str, Path]) -> dict[str, Method]:
        """Return the methods of peers that a user has brought."""
        found: dict[str, Method] = {}
        for name, folder in checkouts.items():
            brought = self.outside[name].methods
            found |= {} if brought is None else brought(folder, task)
        return found

    def _recorded(self, checkouts: dict[str, Path]) -> Iterator[Row]:
        """Yield the recorded rows of absent peers; a method without any is a row that says so."""
        empty = dict.fromkeys(("rate", "seed", "setup", *COSTS, "share", "status", "commit"), "")
        for name, outside in self.outside.items():
            for row in () if name in checkouts else outside.recorded:
                yield {"problem": "", "method": "", "rate": "", "seed": "", "target": ""} | empty | row
            if name not in checkouts and not outside.recorded:
                head = {"problem": self.tasks[0].name, "method": name, "rate": "", "seed": "", "target": ""}
                yield head | empty | {"source": "absent"}

    def head(self, comm: Communicator) -> dict[str, str]:
        """Return what the first lines of the file say; a file is continued where they are the same."""
        tasks = [{"name": t.name, "targets": t.targets, "relative": t.relative} | asdict(t.budget) for t in self.tasks]
        return {
            "command": f"python -m experiments.peers.{self.name}",
            "problems": json.dumps(tasks),
            "versions": json.dumps({name: version_of(name) for name in PACKAGES}),
            "processor": processor().rpartition(", load")[0],
            "ranks": str(comm.ranks),
        }

    def command(self) -> None:
        """Run what the file does not have yet, and draw the figure."""
        options = self._options()
        comm = world()
        prepare(comm)
        torch.set_num_threads(1)
        given = {name: getattr(options, name, None) for name in self.outside}
        checkouts = {name: folder for name, folder in given.items() if folder is not None}
        of = self.small() if options.quick else self
        path, head = options.out / f"{self.name}.csv", of.head(comm)
        done = [] if options.fresh or not path.exists() else comm.gather_items(continued(path, head))[0]
        done = [row for row in done if row["source"] == "measured"]
        seeds = tuple(options.seeds[:1] if options.quick else options.seeds)
        wanted = (lambda name: True) if options.methods is None else options.methods.__contains__
        rows: list[Row] = done
        for rows in of.rows(comm, seeds, done, wanted, checkouts):
            if comm.rank == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, head, [{k: blank(v) for k, v in row.items()} for row in rows])
                print("  ".join(shown(rows[-1][k]) for k in (*KEYS, "target", *COSTS, "source")), flush=True)
        if comm.rank == 0 and rows:
            draw(read(path)[1], path.with_suffix(".png"), self.axis)
            print(f"written  {path} {path.with_suffix('.png')}")

    def _options(self) -> argparse.Namespace:
        """Return the command line."""
        parser = argparse.ArgumentParser(prog=f"python -m experiments.peers.{self.name}")
        parser.add_argument("--quick", action="store_true", help="small runs, to see that it works")
        parser.add_argument("--fresh", action="store_true", help="do not continue what is there")
        parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
        parser.add_argument("--methods", nargs="+", help="only these")
        parser.add_argument("--out", type=Path, default=Path("runs/peers"))
        for name in (name for name, outside in self.outside.items() if outside.methods is not None):
            parser.add_argument(f"--{name.replace('_', '-')}", dest=name, type=Path, help="a checkout of this peer")
        return parser.parse_args()


def blank(value: Any) -> Any:
    """Return a number as it is, and "" for none."""
    return "" if isinstance(value, float) and math.isnan(value) else value


def total(row: Row) -> Any:
    """Return the CPU seconds of a row with its set-up, "" where it did not reach its target."""
    return "" if row["cpu"] == "" else float(row["cpu"]) + float(row["setup"] or 0.0)


def quartiles(rows: list[Row], column: str, runs: int) -> tuple[float, float, float]:
    """Return the quartiles over all runs; one that did not get there counts as infinitely long."""
    found = [float(row[column]) for row in rows if row[column] not in ("", None)]
    found += [math.inf] * (runs - len(found))
    low, middle, high = (float(np.quantile(found, q, method="higher")) for q in (0.25, 0.5, 0.75))
    return low, middle, high


def draw(rows: list[Row], path: Path, axis: str) -> None:
    """Draw time and gradients to every target, two panels per problem, with quartiles; of many problems time."""
    rows = [row | {"total": total(row)} for row in rows if row["target"] and row["source"] != "absent"]
    tasks = list(dict.fromkeys(row["problem"] for row in rows))
    names = list(dict.fromkeys(row["method"] for row in rows if row["cpu"] != ""))
    costs = ("total", "gradients") if len(tasks) <= 4 else ("total",)
    across = 2 if len(tasks) <= 4 else 4
    panels = [(task, column) for task in tasks for column in costs]
    height = 1.0 + 2.7 * -(-len(panels) // across) + 0.16 * len({row["method"] for row in rows}) / 3
    figure = Figure(figsize=(7.5 if across == 2 else 11.0, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(panels) // across), across, squeeze=False)
    for ax, (task, column) in zip(axes.ravel(), panels, strict=False):
        of_task = [row for row in rows if row["problem"] == task]
        for name in (name for name in names if any(row["method"] == name for row in of_task)):
            style = style_of(name, names) | {"label": name}
            _curve(ax, style, [row for row in of_task if row["method"] == name], column)
        ax.set(xscale="log", yscale="log", xlabel=LABELS[column])
        if ax.lines:
            plain(ax.xaxis)
        else:
            ax.tick_params(which="both", length=0, labelbottom=False, labelleft=False)
            ax.text(0.5, 0.5, "no method has reached\nthe first target", ha="center", transform=ax.transAxes)
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_title(task, loc="left", fontsize=9)
    for ax in axes.ravel()[len(panels) :]:
        ax.set_visible(False)
    figure.supylabel(f"target: {axis}", fontsize=10)
    handles = {text: h for ax in axes.ravel() for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=3, frameon=False, fontsize=8)
    with replacing(path) as new:
        figure.savefig(new, dpi=130)


def _curve(ax: Any, style: dict[str, str], rows: list[Row], column: str) -> None:
    """Draw the medians of a method that are finite, and their quartiles."""
    runs = len({row["seed"] for row in rows})
    by_target: dict[float, list[Row]] = {}
    for row in rows:
        by_target.setdefault(float(row["target"]), []).append(row)
    found = [(target, *quartiles(of, column, runs)) for target, of in by_target.items()]
    found = [point for point in found if math.isfinite(point[2])]
    if not found:
        return
    y, low, middle, high = map(np.array, zip(*found, strict=True))
    high = np.where(np.isfinite(high), high, middle)
    ax.errorbar(
        middle,
        y,
        xerr=(middle - low, high - middle),
        markersize=4,
        linewidth=1.2,
        elinewidth=0.7,
        **style,
    )
