"""Several solvers on one problem from the same starts: runs, table, CSV and figure."""

from __future__ import annotations

import argparse
import contextlib
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Protocol

from mldd.command import report as reports
from mldd.command import run as runs
from mldd.command.builder import build_problem
from mldd.command.ensemble import TableRow, metrics_of, quartiles, table
from mldd.command.names import Spec, described
from mldd.command.preparation import Preparation
from mldd.loop import Cost, History, Result, Stop, minimise, read_csv, write_table
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
    rows: list[TableRow] = []
    alone = options.command == "train"
    folders = dict.fromkeys(texts, "") if alone else _folders(texts)
    stopped = False
    for seed in options.seeds:
        if seed != options.seeds[0]:
            prepared = prepare_all(problem, solvers, options, seed, comm)
        for spec, run in zip(solvers, prepared, strict=True):
            if stopped:
                break
            out = None if options.out is None else options.out / folders[spec.text] / str(seed)
            shown, warm = not options.quiet, seed == options.seeds[0]
            row = one(run, out, options.out, shown=shown, warm=warm, pictures=alone)
            rows.append(row)
            stopped = row.content.get("status") == "interrupted"
    if comm.rank == 0:
        print("\n".join(table(rows)), flush=True)
        if options.out is not None:
            print("written  " + " ".join(map(str, write(rows, options.out, problem.text))), flush=True)
    return 130 if stopped else int(any(row.failed for row in rows))


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
    comm = run.comm
    error, history = "", History()

    def action() -> Result:
        if out is not None and comm.rank == 0:
            out.mkdir(parents=True, exist_ok=True)
        if warm:
            with run.builder.in_use():
                minimise(run.objective, run.x, run.solver, stop=Stop(max_steps=1), comm=comm)
        return runs.execute(run, runs.Past(run.x), out=out, home=home, shown=shown)

    result, error = runs.attempt(comm, action)
    if result is None:
        with contextlib.suppress(OSError, ValueError):
            history = History() if out is None else read_csv(out / "history.csv")
        history.norm = run.stop.norm
        return TableRow(run.names[1], run.seed, {}, history, error)
    content = reports.report(run, result)
    if comm.rank == 0:
        reports.write_all(run, result, content, out, drawing=pictures)
    return TableRow(run.names[1], run.seed, content, result.history)


def write(rows: Sequence[TableRow], out: Path, title: str) -> list[Path]:
    """Write the tables and the figure; return the files.

    They are ``compare.csv`` (one row per solver and seed), ``quartiles.csv`` where there are several seeds (one row per
    solver and quantity), ``compare.pdf`` and ``compare.png``.

    Parameters
    ----------
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
    write_table(out / "compare.csv", numbered)
    written = [out / "compare.csv"]
    if len({row.seed for row in rows}) > 1:
        write_table(out / "quartiles.csv", quartiles(rows))
        written.append(out / "quartiles.csv")
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
