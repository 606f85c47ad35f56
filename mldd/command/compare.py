"""Several solvers on one problem from the same starts: runs, table, CSV and figure."""

from __future__ import annotations

import argparse
import contextlib
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol

from mldd.command import report as reports
from mldd.command import run as runs
from mldd.command.builder import build_problem
from mldd.command.ensemble import TableRow, metrics_of, quartiles, table
from mldd.command.names import Spec, described
from mldd.command.preparation import Preparation
from mldd.loop import Cost, History, Result, Status, Stop, deferred, minimise, read_csv, write_table
from mldd.ranks import Communicator


class Ranks(Protocol):
    """What a comparison needs of the command line's stage."""

    comm: Communicator | None

    def start(self) -> None:
        """Note that runs begin."""

    def agree(self) -> None:
        """Wait for all ranks to be ready."""


def compare(problem: Spec, solvers: Sequence[Spec], options: argparse.Namespace, stage: Ranks) -> int:
    """Run all solvers from all seeds, one after another; return the exit status.

    The files of a run go to ``DIR/SOLVER/SEED``, of an ensemble of one solver (`mldd train --seeds`) to ``DIR/SEED``.

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
        A solver was given twice, in the same words or in others.
    """
    comm = stage.comm
    assert comm is not None
    texts = [spec.text for spec in solvers]
    if len(set(texts)) < len(texts):
        raise ValueError(f"--solvers must differ from each other, got {','.join(texts)}")
    prepared = prepare_all(problem, solvers, options, options.seeds[0], comm)
    check_differ(prepared)
    stage.agree()
    stage.start()
    with deferred():  # a signal between two runs is one for the next
        rows = list(_rows(problem, solvers, prepared, options, comm))
        files = reports.Files()
        if comm.rank == 0:
            print("\n".join(table(rows)), flush=True)
        if comm.rank == 0 and options.out is not None:
            write(files, rows, options.out, problem.text)
            print("written  " + " ".join(map(str, files.written)), flush=True)
    for line in files.failed:
        print(f"mldd: error: {line}", file=sys.stderr, flush=True)
    failed = comm.gather_items(bool(files.failed) or any(row.failed for row in rows))[0]
    return (_ended(rows[-1]) or int(failed)) if rows else 1


def _ended(row: TableRow) -> int:
    """Return the exit status of a run that was ended from outside, 0 for others."""
    status = Status.__members__.get(str(row.content.get("status")))
    return status.exit_code if status is not None and status.is_unfinished else 0


def _rows(
    problem: Spec, solvers: Sequence[Spec], prepared: list[runs.Run], options: argparse.Namespace, comm: Communicator
) -> Iterator[TableRow]:
    """Yield the row of every run, up to one that was ended from outside."""
    alone = options.command == "train"
    texts = [spec.text for spec in solvers]
    folders = dict.fromkeys(texts, "") if alone else _folders(texts)
    for seed in options.seeds:
        first = seed == options.seeds[0]
        if not first:
            again, error = runs.attempt(comm, lambda: prepare_all(problem, solvers, options, seed, comm))  # noqa: B023
            if again is None:
                yield from (TableRow(text, seed, {}, History(), error) for text in texts)
                continue
            prepared = again
        for spec, run in zip(solvers, prepared, strict=True):
            out = None if options.out is None else options.out / folders[spec.text] / str(seed)
            row = one(run, out, options.out, shown=not options.quiet, warm=first, pictures=alone)
            yield row
            if _ended(row):
                return


def check_differ(prepared: Sequence[runs.Run]) -> None:
    """Refuse solvers that are the same once all their keys are known, however they were written.

    Parameters
    ----------
    prepared : sequence of Run
        One per solver.

    Raises
    ------
    ValueError
        Two are the same.
    """
    seen: dict[str, str] = {}
    for run in prepared:
        text, solver = run.names[1], described(run.solver)
        if solver in seen:
            raise ValueError(f"--solvers must differ from each other, got {seen[solver]} and {text}; leave one out")
        seen[solver] = text


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


def one(
    run: runs.Run, out: Path | None, home: Path | None, *, shown: bool, warm: bool, pictures: bool = False
) -> TableRow:
    """Run one solver from one start and return its row.

    Parameters
    ----------
    run : Run
        What is run.
    out : Path or None
        Where its files go.
    home : Path or None
        Where those of all runs go.
    shown : bool
        Whether a progress bar is shown.
    warm : bool
        Whether a step comes before that is not counted: libraries load, memory is touched.
    pictures : bool
        Whether the problem draws its own, too.
    """
    comm, files = run.comm, reports.Files()

    def action() -> tuple[Result, dict[str, Any]]:
        if out is not None and comm.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        if warm:
            with run.builder.in_use():
                minimise(run.objective, run.x, run.solver, stop=Stop(max_steps=1), values=False, comm=comm)
        result = runs.execute(run, runs.Past(run.x), out=out, home=home, shown=shown)
        content = reports.reported(files, run, result, out)
        if comm.rank == 0 and out is not None:
            reports.draw(files, run, result, content, out, of_problem=pictures)
        return result, content

    made, error = runs.attempt(comm, action)
    if made is None:
        history = History()
        with contextlib.suppress(OSError, ValueError):
            history = History() if out is None else read_csv(out / "history.csv")
        history.norm = run.stop.norm
        return TableRow(run.names[1], run.seed, {}, history, error)
    result, content = made
    return TableRow(run.names[1], run.seed, content, result.history, "; ".join(files.failed))


def write(files: reports.Files, rows: Sequence[TableRow], out: Path, title: str) -> None:
    """Write the tables and the figure.

    They are ``compare.csv`` (one row per solver and seed), ``quartiles.csv`` where there are several seeds (one row per
    solver and quantity), ``compare.pdf`` and ``compare.png``.

    Parameters
    ----------
    files : Files
        They are added here.
    rows : sequence of TableRow
        In the order of the runs.
    out : Path
        The folder.
    title : str
        Of the figure.
    """
    metrics = metrics_of(rows)
    keys = ["status", "steps", "loss", "measure", *(f.name for f in fields(Cost)), "bounds_violation"]
    numbered = []
    for row in rows:
        numbers = {key: row.content.get(key, "") for key in keys}
        found = {name: row.content.get("metrics", {}).get(name, "") for name in metrics}
        numbered.append({"solver": row.solver, "seed": row.seed, **numbers, **found, "error": row.error})
    tables = {"compare.csv": numbered}
    if len({row.seed for row in rows}) > 1:
        tables["quartiles.csv"] = quartiles(rows)
    for name, entries in tables.items():
        files.add(lambda: _table(out / name, entries))  # noqa: B023 (at once)
    if any(row.history.records for row in rows):

        def draw() -> list[Path]:
            from mldd.figures import curves, figure_files

            curves.comparison(_histories(rows), out / "compare", title)
            return figure_files(out / "compare")

        files.written += reports.drawn("the figure compare", draw)


def _table(path: Path, rows: Sequence[dict[str, Any]]) -> list[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_table(path, rows)
    return [path]


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
