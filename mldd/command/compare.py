"""Several solvers on one problem from the same starts: runs, table, CSV and figure."""

from __future__ import annotations

import argparse
import contextlib
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from mldd.command import report as reports
from mldd.command import run as runs
from mldd.command.builder import build_problem
from mldd.command.names import Spec
from mldd.command.preparation import Preparation
from mldd.loop import Cost, History, Result, Stop, minimise, read_csv, write_table
from mldd.ranks import Communicator

# The metric of the table: the first of these that a problem has.
_METRICS = ("test_accuracy", "test_auc", "relative_l2", "test_rmse")
_COLUMNS = (
    ("loss", "loss", "{:.4g}"),
    ("measure", "measure", "{:.2e}"),
    ("gradient_evaluations", "gradients", "{:.6g}"),
    ("work_units", "work units", "{:.5g}"),
    ("work_total", "of all ranks", "{:.5g}"),
    ("synchronisations", "syncs", "{:.6g}"),
    ("scalar_synchronisations", "of scalars", "{:.6g}"),
    ("seconds", "seconds", "{:.3g}"),
    ("setup_work", "set-up work", "{:.4g}"),
    ("setup_seconds", "seconds", "{:.3g}"),
)


class Ranks(Protocol):
    """What a comparison needs of the command line's stage."""

    comm: Communicator | None

    def start(self) -> None:
        """Note that runs begin."""

    def agree(self) -> None:
        """Wait for all ranks to be ready."""


@dataclass(frozen=True)
class TableRow:
    """One solver from one start.

    Attributes
    ----------
    solver : str
        As it was given.
    seed : int
        Of the start.
    content : dict
        What ``result.json`` says, empty where the run failed.
    history : History
        As far as the run came.
    error : str
        Why it failed.
    """

    solver: str
    seed: int
    content: dict[str, Any]
    history: History
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run did not end as asked."""
        return bool(self.error) or self.content["status"] == "diverged"


def compare(problem: Spec, solvers: Sequence[Spec], options: argparse.Namespace, stage: Ranks) -> int:
    """Run all solvers from all seeds, one after another; return the exit status.

    Parameters
    ----------
    problem : Spec
        Of the problem.
    solvers : sequence of Spec
        Of the solvers, no two the same.
    options : argparse.Namespace
        Of the command line.
    stage : Ranks
        The ranks, which are told how far the run is.

    Raises
    ------
    ValueError
        A solver was given twice.
    """
    comm = stage.comm
    assert comm is not None
    texts = [spec.text for spec in solvers]
    if len(set(texts)) < len(texts):
        raise ValueError(f"--solvers must differ from each other, got {','.join(texts)}")
    prepared = prepare_all(problem, solvers, options, options.seeds[0], comm)
    stage.agree()
    stage.start()
    rows: list[TableRow] = []
    folders = _folders(texts)
    stopped = False
    for seed in options.seeds:
        if seed != options.seeds[0]:
            prepared = prepare_all(problem, solvers, options, seed, comm)
        for spec, run in zip(solvers, prepared, strict=True):
            if stopped:
                break
            out = None if options.out is None else options.out / folders[spec.text] / str(seed)
            row = one(run, out, shown=not options.quiet, warm=seed == options.seeds[0])
            rows.append(row)
            stopped = row.content.get("status") == "interrupted"
    if comm.rank == 0:
        print("\n".join(table(rows)), flush=True)
        if options.out is not None:
            print("written  " + " ".join(map(str, write(rows, options.out, problem.text))), flush=True)
    return 130 if stopped else int(any(row.failed for row in rows))


def prepare_all(
    problem: Spec, solvers: Sequence[Spec], options: argparse.Namespace, seed: int, comm: Communicator
) -> list[runs.Run]:
    """Return runs of all solvers on the problem of a seed: all get the same start.

    Parameters
    ----------
    problem : Spec
        Of the problem.
    solvers : sequence of Spec
        Of the solvers.
    options : argparse.Namespace
        Of the command line.
    seed : int
        Of the start.
    comm : Communicator
        The ranks.
    """
    built = build_problem(problem, options, seed, comm)
    preparation = Preparation(built, seed, comm, options.prices == "measured")
    return [runs.prepare((problem, spec), options, preparation) for spec in solvers]


def one(run: runs.Run, out: Path | None, *, shown: bool, warm: bool) -> TableRow:
    """Run one solver from one start and return its row.

    Parameters
    ----------
    run : Run
        What is run.
    out : Path or None
        Where its files go.
    shown : bool
        Whether a progress bar is shown.
    warm : bool
        Whether a step comes before that is not counted: libraries load, memory is touched.
    """
    comm = run.comm
    error, history = "", History()

    def action() -> Result:
        if out is not None and comm.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        if warm:
            with run.builder.in_use():
                minimise(run.objective, run.x, run.solver, stop=Stop(max_steps=1), comm=comm)
        return runs.execute(run, runs.Past(run.x), out=out, shown=shown)

    result, error = runs.attempt(comm, action)
    if result is None:
        with contextlib.suppress(OSError, ValueError):
            history = History() if out is None else read_csv(out / "history.csv")
        history.norm = run.stop.norm
        return TableRow(run.names[1], run.seed, {}, history, error)
    content = reports.report(run, result)
    if out is not None and comm.rank == 0:
        reports.write_result(out, content, result.history)
        reports.keep(run, result, content, out)
    return TableRow(run.names[1], run.seed, content, result.history)


def table(rows: Sequence[TableRow]) -> list[str]:
    """Return the table as lines: one per solver, medians over seeds with (smallest..largest).

    Parameters
    ----------
    rows : sequence of TableRow
        In the order of the runs.
    """
    metric = next((m for m in _METRICS if any(m in row.content.get("metrics", {}) for row in rows)), None)
    heads = ["solver", *([metric.replace("_", " ")] if metric else []), *(head for _, head, _ in _COLUMNS), "status"]
    lines = [heads]
    for name in dict.fromkeys(row.solver for row in rows):
        mine = [row for row in rows if row.solver == name]
        done = [row.content for row in mine if row.content]
        cells = [name]
        if metric:
            cells.append(_spread([c["metrics"][metric] for c in done if metric in c["metrics"]], "{:.4g}"))
        cells += [_spread([content[key] for content in done], form) for key, _, form in _COLUMNS]
        cells.append(_statuses(mine))
        lines.append(cells)
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    middle = form.format(statistics.median(values))
    low, high = form.format(min(values)), form.format(max(values))
    return middle if low == high else f"{middle} ({low}..{high})"


def _statuses(rows: Sequence[TableRow]) -> str:
    names = [f"failed: {row.error}" if row.error else str(row.content["status"]) for row in rows]
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if len(counts) == 1 else f"{count} x {name}" for name, count in counts.items())


def write(rows: Sequence[TableRow], out: Path, title: str) -> list[Path]:
    """Write ``compare.csv`` (one row per solver and seed), ``compare.pdf`` and ``.png``; return the files.

    Parameters
    ----------
    rows : sequence of TableRow
        In the order of the runs.
    out : Path
        The folder.
    title : str
        Of the figure.
    """
    metrics = list(dict.fromkeys(name for row in rows for name in row.content.get("metrics", {})))
    keys = ["status", "steps", "loss", "measure", *(f.name for f in fields(Cost)), "bounds_violation"]
    table = []
    for row in rows:
        numbers = {key: row.content.get(key, "") for key in keys}
        found = {name: row.content.get("metrics", {}).get(name, "") for name in metrics}
        table.append({"solver": row.solver, "seed": row.seed, **numbers, **found, "error": row.error})
    write_table(out / "compare.csv", table)
    written = [out / "compare.csv"]
    if any(row.history.records for row in rows):

        def draw() -> list[Path]:
            from mldd.figures import curves, figure_files

            curves.comparison(_histories(rows), out / "compare", title)
            return figure_files(out / "compare")

        written += reports.drawn("the figure compare", draw)
    return written


def _histories(rows: Sequence[TableRow]) -> dict[str, list[History]]:
    """Return the histories by solver, one per seed; an empty one keeps the place of a run that never began."""
    found = {(row.solver, row.seed): row.history for row in rows}
    seeds = dict.fromkeys(row.seed for row in rows)
    return {name: [found.get((name, s), History()) for s in seeds] for name in dict.fromkeys(r.solver for r in rows)}


def _folders(solvers: Sequence[str]) -> dict[str, str]:
    """Return a folder name for each solver, without characters that shells and file systems dislike."""
    names: dict[str, str] = {}
    for text in dict.fromkeys(solvers):
        name = re.sub(r"[^A-Za-z0-9.=-]+", "_", text)
        while name in names.values():
            name += "_"
        names[text] = name
    return names
