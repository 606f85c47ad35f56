"""Sections of results.md on benchmarks beside peers, on profiles over all of them, and on graphics cards."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tables import RESULTS, Row, median_of, read, table

Section = tuple[str, str, str, str, Callable[[], str]]

SAYS = (
    "Medians of CPU seconds to each target, set-up included; a run that misses it counts as infinitely long, "
    "and \u2013 is a median that is not finite. Gradients of the whole problem, collectives on vectors and on numbers, "
    "and the share of what the machine can do at most are those at the last target that most runs reached. The sweep "
    "over rates is not in the time. Recorded rows are bounds from runs on another day."
)
BENCHMARKS = {
    "digits": ("B1: a network for digits", "training losses"),
    "poisson": ("B2: a network solves the 1-D Poisson equation", "relative errors"),
    "windows": ("B3: windows of networks, low and high frequency", "relative errors"),
    "depth": ("B4: a deep network fits a sine", "mean squares"),
    "graphs": ("B5: graph networks on a planted partition", "training losses"),
    "bounds": ("B6: bound constraints", "shares of the first measure, and training losses for digits"),
    "burgers": ("B7: a network solves Burgers' equation", "relative errors"),
}


def seconds(row: Row) -> Row:
    """Return a row with its CPU seconds, set-up included."""
    return row | {"total": str(float(row["cpu"]) + float(row["setup"] or 0)) if row["cpu"] else ""}


def method_row(rows: list[Row], targets: list[str]) -> list[Any]:
    """Return the cells of one method on one problem."""
    by_target = {target: [row for row in rows if row["target"] == target] for target in targets}
    times = {target: median_of(of, "total") if of else math.inf for target, of in by_target.items()}
    reached = [target for target in targets if math.isfinite(times[target])]
    last = by_target[reached[-1]] if reached else []
    costs = [median_of(last, name) if last else math.inf for name in ("gradients", "vectors", "scalars", "share")]
    rate = rows[0]["rate"] if rows[0]["rate"] not in ("", "0") else ""
    cells = [time if math.isfinite(time) else "\u2013" for time in times.values()]
    return [rate, *cells, *(cost if math.isfinite(cost) else "\u2013" for cost in costs), rows[0]["source"]]


def benchmark(name: str) -> str:
    """Return a table per problem, and the figure."""
    rows, parts = [seconds(row) for row in read(f"peers/{name}.csv")], []
    for problem in dict.fromkeys(row["problem"] for row in rows):
        of_problem = [row for row in rows if row["problem"] == problem]
        targets = sorted({row["target"] for row in of_problem if row["target"]}, key=float, reverse=True)
        head = ["method", "rate", *(f"to {float(t):g}" for t in targets)]
        head += ["gradients", "vectors", "scalars", "share", "source"]
        methods = dict.fromkeys(row["method"] for row in of_problem)
        made = [[m, *method_row([row for row in of_problem if row["method"] == m], targets)] for m in methods]
        parts.append(f"**{problem}**\n\n{table(head, made)}")
    return f"![{BENCHMARKS[name][0]}](results/peers/{name}.png)\n\n" + "\n".join(parts)


def overhead() -> str:
    """Return what steps cost beside their gradients."""
    rows = read("peers/overhead.csv")
    sizes = sorted({int(row["parameters"]) for row in rows})
    found = {(row["method"], int(row["parameters"])): float(row["ratio"]) for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    return table(["method", *map(str, sizes)], [[m, *(found.get((m, size), "") for size in sizes)] for m in methods])


def profiles() -> str:
    """Return how often each method is best, nearly best, and successful."""
    rows = read("peers/profiles.csv")
    names = [name for name in rows[0] if name not in ("problems",)]
    made = [[*(row[name] for name in names[:3]), *(float(row[name]) for name in names[3:])] for row in rows]
    picture = "![Performance profiles](results/peers/profiles.png)\n\n"
    return picture + table([name.replace("_", " ") for name in names], made)


def card(path: Path) -> str:
    """Return what was measured on a card, section by section."""
    found, parts = json.loads(path.read_text(encoding="utf-8")), []
    for name, section in found["sections"].items():
        rows = section.get("rows", [])
        parts.append(f"**{name}** {section.get('error') or section.get('left out') or ''}\n")
        if name in ("layers", "solvers"):
            agree = [row for row in rows if row.get("agrees")]
            others = ", ".join(row["case"] for row in rows if not row.get("agrees"))
            parts.append(f"{len(agree)} of {len(rows)} agree with the CPU{'; not: ' + others if others else ''}.\n")
        elif rows:
            names = list(dict.fromkeys(key for row in rows for key in row))
            parts.append(table(names, [[row.get(key, "") for key in names] for row in rows]))
    return "\n".join(parts)


def sections() -> list[Section]:
    """Return title, file, command, what is said, and what makes it, of all that is there."""
    made: list[Section] = []
    for name, (title, targets) in BENCHMARKS.items():
        says = f"Targets are {targets}. {SAYS}"
        command = f"python -m experiments.peers.{name}"
        made.append((title, f"peers/{name}.csv", command, says, lambda name=name: benchmark(name)))  # type: ignore[misc]
    made.append(
        (
            "B8: what a step costs beside its gradients",
            "peers/overhead.csv",
            "python -m experiments.peers.overhead",
            "Time of a step over that of its gradients, by number of parameters; 1 is nothing beside gradients.",
            overhead,
        )
    )
    made.append(
        (
            "Profiles over all benchmarks",
            "peers/profiles.csv",
            "python -m experiments.peers.profiles",
            "Dolan and More: shares of problems (a target from a start) on which a method is best, within 2 and 10 "
            "times of the best, and successful. Variants of a solver count as the solver at its best.",
            profiles,
        )
    )
    for path in sorted((RESULTS / "gpu").glob("*.json")):
        name = json.loads(path.read_text(encoding="utf-8"))["card"]
        says = "Everything that needs a graphics card; goals and sizes stand in the script."
        command = "experiments/benchmarks/gpu.py"
        made.append((f"On {name}", f"gpu/{path.name}", command, says, lambda path=path: card(path)))  # type: ignore[misc]
    return made
