"""Every solver with its defaults on every problem, from the command line and from Python: none may end above its start.

    python experiments/benchmarks/defaults.py [--steps 20] [--seconds 60] [--problems A,B] [--solvers C,D] [--out DIR]

A row is a problem and a solver: values at the start and at the end, and the status, first with what the command line
would use (``problem.settings``), then with what ``Solver(...)`` alone has. Exit status 1 if a run ends above its start
and its status does not say so. A run ends after some seconds, also in the middle of a step: those of aspin and raspen
on networks take minutes.
"""

from __future__ import annotations

import argparse
import json
import sys
import warnings
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mldd import Problem, Stop, minimise
from mldd.algebra import uncounted
from mldd.command.builder import build_problem
from mldd.command.names import SOLVERS, Spec, problem_spec, solver_spec
from mldd.command.options import parse
from mldd.command.preparation import Preparation
from mldd.command.run import prepare
from mldd.ranks import SERIAL

PROBLEMS = ("cora", "sbm", "era5-uk:stride=24", "digits", "poisson1d", "obstacle")
PARTS, LEVELS = 3, 2


def run(problem: Problem, solver: Any, stop: Stop) -> dict[str, Any]:
    """Run a solver and return the values at both ends and the status."""
    f, x = problem.objective(), problem.initial(0)
    with uncounted():
        first = float(f.value(f.bounds.project(x)))
    result = minimise(f, x, solver, stop=stop)
    with uncounted():
        last = float(f.value(result.x))
    return {"first": first, "last": last, "status": result.status.name, "steps": result.record.step}


def from_command_line(problem: Spec, name: str, stop: Stop) -> dict[str, Any]:
    """Run what ``mldd train PROBLEM --solver NAME`` runs."""
    options = parse(["train", problem.text, "--solver", name, "--parts", str(PARTS), "--levels", str(LEVELS)])
    spec = solver_spec(name)
    if not any(s.has("decomposition") for s in spec.tree):
        options.parts = None
    if not any(s.has("hierarchy") for s in spec.tree):
        options.levels = None
    made = build_problem(problem, options, 0, SERIAL)
    return run(made, prepare((problem, spec), options, Preparation(made, 0, SERIAL)).solver, stop)


def from_python(problem: Spec, name: str, stop: Stop) -> dict[str, Any]:
    """Run the class with the fields that it cannot do without."""
    options = parse(["train", problem.text, "--solver", name])
    made, spec = build_problem(problem, options, 0, SERIAL), solver_spec(name)
    needed = {f.name for f in fields(spec.kind) if f.default is MISSING and f.default_factory is MISSING}
    given: dict[str, Any] = dict(spec.keys)
    if "decomposition" in needed:
        given["decomposition"] = made.decomposition(PARTS)
    if "hierarchy" in needed:
        given["hierarchy"] = made.hierarchy(LEVELS)
    if "first" in needed:
        given["first"] = made.first_layer()
    return run(made, spec.kind(**given), stop)


def row(problem: str, name: str, stop: Stop) -> dict[str, Any]:
    """Return both runs of a pair; a refusal in words is a result, too."""
    out: dict[str, Any] = {"problem": problem, "solver": name}
    for way in (from_command_line, from_python):
        try:
            out[way.__name__] = way(problem_spec(problem), name, stop)
        except (ValueError, ImportError, AttributeError) as error:
            out[way.__name__] = {"refused": str(error).splitlines()[0]}
    return out


def text(found: dict[str, Any]) -> str:
    """Return one run as text."""
    if "refused" in found:
        return "refused: " + found["refused"][:38]
    return f"{found['first']:9.3g} -> {found['last']:9.3g} {found['status']:15s}"


def is_silent(found: dict[str, Any]) -> bool:
    """Say whether a run ended above its start and its status does not say so."""
    if "refused" in found or found["status"] in ("diverged", "stalled"):
        return False
    return not found["last"] <= found["first"] + 1e-6 * abs(found["first"])


def main() -> int:
    """Read the arguments, run all pairs and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=60.0, help="of every run, at most")
    parser.add_argument("--problems", default=",".join(PROBLEMS))
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    rows, silent = [], 0
    for problem in options.problems.split(","):
        for name in options.solvers.split(","):
            found = row(problem, name, Stop(options.steps, max_seconds=options.seconds))
            bad = [is_silent(found[way]) for way in ("from_command_line", "from_python")]
            silent += sum(bad)
            print(
                f"{problem:18s} {name:14s} {text(found['from_command_line']):48s} {text(found['from_python'])}",
                " SILENT" if any(bad) else "",
                flush=True,
            )
            rows.append(found)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        (options.out / "defaults.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    print(f"{len(rows)} pairs, {silent} runs above their start without a status that says so")
    return int(silent > 0)


if __name__ == "__main__":
    sys.exit(main())
