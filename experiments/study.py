"""What the experiments that follow papers share: cases and rows, a CSV that says how it was made, and the command line.

A script has a frozen `Config` with the values of its paper, a smaller one for ``--quick``, the cases that it runs and
what one of them gives, and hands these to a `Study`. It is run from the root of the repository:

    python -m experiments.KEY.SCRIPT [--quick] [--FIELD VALUE ...] [--out DIR] [--fresh]
    mpiexec -n 4 python -m mpi4py -m experiments.KEY.SCRIPT

The CSV is written anew after every case. A file that is there is continued where it stopped, if it was made by the same
configuration, versions and commit; ``--fresh`` begins anew. There are no times in it: the same commit gives the same
file again (to rounding).
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from mldd import Objective
from mldd.loop import Result, Status, replacing
from mldd.loop import minimise as loop
from mldd.ranks import Communicator, prepare, world

ROOT = Path(__file__).parents[1]
PACKAGES = ("torch", "numpy", "scipy", "petsc4py")
Case = dict[str, Any]


@dataclass(frozen=True)
class Picture:
    """How the rows are drawn, by `experiments.pictures`.

    Parameters
    ----------
    x, y : str
        Columns of the axes.
    curves, panels : tuple of str
        Columns whose values make a curve, and a panel, each.
    log : str
        Axes with a logarithmic scale: "", "x", "y" or "xy".
    labels : tuple of str
        Of both axes, with units.
    """

    x: str
    y: str
    curves: tuple[str, ...]
    panels: tuple[str, ...] = ()
    log: str = "y"
    labels: tuple[str, str] = ("", "")


@dataclass(frozen=True)
class Study:
    """One table of one experiment.

    Parameters
    ----------
    script : str
        Its ``__file__``: the folder is the paper's key.
    source : str
        What the rows may be compared with: "published", "third-party", "reconstruction" or "own reference run", with
        the paper and its table.
    config, quick : dataclass
        Values of the paper, and those of a run of seconds.
    cases : callable
        Returns the cases of a configuration in a fixed order, as columns.
    run : callable
        Runs a case of a configuration on the ranks of a communicator and returns further columns.
    picture : Picture, optional
        How it is drawn.
    """

    script: str
    source: str
    config: Any
    quick: Any
    cases: Callable[[Any], Iterable[Case]]
    run: Callable[[Any, Case, Communicator], Case]
    picture: Picture | None = None

    @property
    def path(self) -> Path:
        """Key and name, as the files of results have them: ``KEY/SCRIPT``."""
        script = Path(self.script)
        return Path(script.parent.name) / script.stem

    def rows(self, config: Any, comm: Communicator, done: list[Case] | None = None) -> Iterable[list[Case]]:
        """Yield all rows so far, after every case that `done` does not have."""
        rows = list(done or [])
        cases = list(self.cases(config))
        for case, row in zip(cases, rows, strict=False):
            if {name: shown(value) for name, value in case.items()} != {name: row[name] for name in case}:
                raise SystemExit(f"{self.path}: rows of other cases, the first is {row}; expected {case}; give --fresh")
        for case in cases[len(rows) :]:
            rows.append(case | self.run(config, case, comm))
            yield rows

    def head(self, config: Any, ranks: int) -> dict[str, str]:
        """Return what the first lines of the file say."""
        versions = {"python": ".".join(map(str, sys.version_info[:2]))} | {name: version_of(name) for name in PACKAGES}
        return {
            "command": f"python -m experiments.{'.'.join(self.path.parts)}",
            "source": self.source,
            "configuration": json.dumps(asdict(config)),
            "versions": json.dumps(versions),
            "commit": commit_of(self.path.parts[0]),
            "ranks": str(ranks),
        }

    def command(self) -> None:
        """Run all cases that the file does not have yet."""
        config, out, fresh = self._options()
        comm = world()
        prepare(comm)
        torch.set_num_threads(1)
        path, head = out / f"{self.path.name}.csv", self.head(config, comm.ranks)
        done = [] if fresh or not path.exists() else comm.gather_items(continued(path, head))[0]
        if done and comm.rank == 0:
            print(f"{path}: {len(done)} rows are there", flush=True)
        for rows in self.rows(config, comm, done):
            if comm.rank == 0:
                path.parent.mkdir(parents=True, exist_ok=True)
                write(path, head, rows)
                print("  ".join(f"{name} {shown(value)}" for name, value in rows[-1].items()), flush=True)
        if comm.rank == 0:
            print(f"written  {path}")

    def _options(self) -> tuple[Any, Path, bool]:
        """Return the configuration, the folder, and whether to begin anew, from the command line."""
        parser = argparse.ArgumentParser(prog=f"python -m experiments.{'.'.join(self.path.parts)}")
        parser.add_argument("--quick", action="store_true", help="a run of seconds")
        parser.add_argument("--fresh", action="store_true", help="do not continue what is there")
        parser.add_argument("--out", type=Path, default=None, help="folder of the CSV")
        for field in fields(self.config):
            value = getattr(self.config, field.name)
            kind = type(value[0]) if isinstance(value, tuple) else type(value)
            many: dict[str, Any] = {"nargs": "+"} if isinstance(value, tuple) else {}
            name = "--" + field.name.replace("_", "-")
            parser.add_argument(name, dest=field.name, type=kind, default=None, help=f"default {value}", **many)
        options = vars(parser.parse_args())
        quick, fresh, out = (options.pop(name) for name in ("quick", "fresh", "out"))
        given = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items() if v is not None}
        folder = Path("runs/quick" if quick else "runs") / self.path.parts[0]
        return replace(self.quick if quick else self.config, **given), out or folder, fresh


def minimise(objective: Objective, x: torch.Tensor, solver: Any, **options: Any) -> Result:
    """Run the loop of mldd; a run that a signal has ended is no result, and ends the study with no row of it."""
    result = loop(objective, x, solver, **options)
    if result.status.is_unfinished:
        raise SystemExit(result.status.exit_code)
    return result


def up_to(work: float) -> Callable[[Any, Any, Any], None]:
    """Return what ends a run after the step in which it has done so much work on all ranks (its ``after_step``)."""

    def look(x: Any, state: Any, history: Any) -> None:
        if history.records[-1].cost.work_total >= work:
            state.status = Status.max_steps

    return look


def version_of(package: str) -> str:
    """Return the version of a package, "none" where it is not installed."""
    try:
        return version(package)
    except ImportError:
        return "none"


def commit_of(key: str) -> str:
    """Return the last commit that changed the code behind a paper's experiments, and "+" if it has changed since."""
    return last_commit(["mldd", "problems", "solvers", "experiments/*.py", f"experiments/{key}/*.py"])


def last_commit(code: list[str]) -> str:
    """Return the last commit that changed some files, and "+" if they have changed since."""
    try:
        commit = subprocess.check_output(["git", "log", "-1", "--format=%h", "--", *code], cwd=ROOT, text=True)
        changes = subprocess.check_output(["git", "status", "--porcelain", "--", *code], cwd=ROOT, text=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return commit.strip() + ("+" if changes.strip() else "")


def shown(value: Any) -> str:
    """Return a value as the file has it."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def write(path: Path, head: dict[str, str], rows: list[Case]) -> None:
    """Write the file as a whole."""
    with replacing(path) as new, new.open("w", encoding="utf-8", newline="") as file:
        file.writelines(f"# {name}: {text}\n" for name, text in head.items())
        table = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows({name: shown(value) for name, value in row.items()} for row in rows)


def read(path: Path) -> tuple[dict[str, str], list[Case]]:
    """Return the first lines and the rows of a file; cells are text."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = dict(line[2:].split(": ", 1) for line in lines if line.startswith("# "))
    return head, list(csv.DictReader(line for line in lines if not line.startswith("# ")))


def continued(path: Path, head: dict[str, str]) -> list[Case]:
    """Return the rows of a file that the same configuration, versions and commit have made."""
    old, rows = read(path)
    for name, text in head.items():
        if old.get(name) != text:
            raise SystemExit(f"{path}: {name} was {old.get(name)}, is {text}; give --fresh, or another --out")
    return rows


def counts(result: Result) -> Case:
    """Return how a run ended and what it took: outer steps, gradients, and work in fine gradients."""
    end = result.record
    return {
        "status": result.status.name,
        "steps": end.step,
        "gradients": end.cost.gradient_evaluations,
        "work": end.cost.work_total,
        "measure": end.measure,
    }
