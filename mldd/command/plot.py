"""Figures of results that lie in folders: one run, or several solvers compared."""

from __future__ import annotations

import argparse
import json
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldd.command.values import one_line
from mldd.figures import comparison, convergence, figure_files
from mldd.loop import History, Status, read_csv

_KINDS = {"problem": str, "solver": str, "seed": int, "status": str, "options": dict, "identity": dict}


@dataclass(frozen=True)
class FoundRun:
    """A run in a folder.

    Attributes
    ----------
    given : Path
        The folder that was asked for.
    folder : Path
        The one below it that holds the run.
    problem, solver : str
        As ``result.json`` says; of a run that was killed and has none, the solver is named as its folder.
    identity : str
        What the run has solved, resolved: its data by their checksum and all keys, however they were written.
    seed : int
        Of the start.
    history : History
        With norm and status, where these are known.
    """

    given: Path
    folder: Path
    problem: str
    solver: str
    identity: str
    seed: int
    history: History


def plot(options: argparse.Namespace) -> list[Path]:
    """Draw what lies in the folders and return the files.

    Parameters
    ----------
    options : argparse.Namespace
        ``folders out overwrite against show`` of the command line.

    Raises
    ------
    OSError
        The figure would take the place of another file.
    ValueError
        No run in the folders has a record.
    """
    found = list(_search(options.folders))
    if not found:
        raise ValueError(f"{options.folders[0]} must hold results of mldd, got histories without records; train first")
    name = "convergence" if len(found) == 1 else "compare"
    target = options.folders[0] / name if options.out is None else options.out
    files = figure_files(target)
    own = options.out is None and len(options.folders) == 1  # it is drawn anew from what lies beside it
    for file in files:
        if file.exists() and not (own or options.overwrite):
            raise OSError(f"{file} must be a new file, got one that is there; give --out another name, or --overwrite")
    given = {key: value for key in ("against", "show") if (value := getattr(options, key))}
    if len(found) == 1:
        convergence(found[0].history, target, f"{found[0].problem} {found[0].solver}".strip(), **given)
    else:
        comparison(aligned(found), target, **given)
    return files


def _search(folders: Sequence[Path]) -> Iterator[FoundRun]:
    """Yield the runs with records below folders, each one once."""
    seen: set[Path] = set()
    for given in folders:
        paths = sorted(given.rglob("history.csv"))
        if not paths:
            raise FileNotFoundError(f"{given} must hold results of mldd, got no history.csv; give the DIR of --out")
        for path in paths:
            history = read_csv(path)
            if history.records and path.resolve() not in seen:
                yield _described(given, path.parent, history)
            seen.add(path.resolve())


def _described(given: Path, folder: Path, history: History) -> FoundRun:
    """Return a run with what its ``result.json`` says; one that was killed has none."""
    content, place = _result(folder / "result.json"), folder.absolute()
    of_seed = place.name.isdecimal()  # compare has folders SOLVER/SEED
    norm, status = str(content.get("options", {}).get("norm")), str(content.get("status"))
    history.norm = {"inf": math.inf, "2": 2.0}.get(norm)
    history.status = Status.__members__.get(status)
    return FoundRun(
        given,
        folder,
        content.get("problem", ""),
        content.get("solver", place.parent.name if of_seed else place.name),
        json.dumps(content.get("identity", content.get("problem", "")), sort_keys=True),
        content.get("seed", int(place.name) if of_seed else 0),
        history,
    )


def _result(path: Path) -> dict[str, Any]:
    """Return what can be read of a ``result.json``; one that is damaged is said."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{path} cannot be read ({one_line(error)[:120]}): the run is named as its folder", stacklevel=2)
        return {}
    entries = content.items() if isinstance(content, dict) else ()
    return {key: value for key, value in entries if key not in _KINDS or type(value) is _KINDS[key]}


def aligned(found: Sequence[FoundRun]) -> dict[str, list[History]]:
    """Return the histories by solver, such that the same place in the lists is the same problem and seed.

    Problems are the same whose data and keys are, however they were written. Solvers are named with the problem where
    there are several problems, and with the folder where one solver has run twice on a problem from a seed (with other
    options, say), or where problems that are written alike are not the same.

    Parameters
    ----------
    found : sequence of FoundRun
        Runs.
    """
    problems = {run.identity for run in found}
    several, alike = len(problems) > 1, len({run.problem for run in found}) < len(problems)
    namings: list[Callable[[FoundRun], str]] = [
        lambda run: run.solver,
        lambda run: f"{run.solver} in {run.given}",
        lambda run: f"{run.solver} in {run.folder}",
    ]
    fits = (of for of in namings[2 * alike :] if len({(of(r), r.identity, r.seed) for r in found}) == len(found))
    naming = next(fits, namings[-1])
    places = list(dict.fromkeys((run.identity, run.seed) for run in found))
    curves: dict[str, list[History]] = {}
    for run in found:
        name = f"{run.problem} {naming(run)}" if several else naming(run)
        curves.setdefault(name, [History() for _ in places])[places.index((run.identity, run.seed))] = run.history
    return curves
