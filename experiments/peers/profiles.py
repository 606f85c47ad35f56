"""Performance profiles of Dolan and More over all benchmarks: time, gradients, synchronisations of vectors and scalars.

    python -m experiments.peers.profiles [--results paper/results/peers]

A problem is a benchmark's problem, target and seed; a solver's ratio there is its cost over the least of all solvers.
The profile of a solver is the share of problems on which its ratio is at most tau; where it did not get to the target
its ratio is infinite. Counts are compared as count + 1, as a method may do without. There are two sets, training
(losses and errors) and bound-constrained energies. Variants of a solver count as the solver at its best ("aspqn" is
ASPQN and MSPQN); problems are those on which all solvers of the set ran. A solver that counts nothing of a kind has no
profile of it. A profile says which solver is best where, and not in which order the others are: that changes with who
takes part.

References: Dolan and More, Math. Program. 91 (2002), 201-213.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from experiments.pictures import style_of
from experiments.study import ROOT, Case, read, write
from mldd.loop import replacing

COSTS = {
    "total": "CPU time, set-up included",
    "cpu": "CPU time, set-up excluded",
    "gradients": "gradients",
    "vectors": "synchronisations of vectors",
    "scalars": "of scalars",
}
COUNTS = ("vectors", "scalars")
# Tables of problems that are not divided among ranks: mldd counts no synchronisations where SciPy's would be counted.
UNDIVIDED = ("bounds", "depth")
# Tables and solvers of a set.
SETS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "training": (
        ("digits", "poisson", "windows", "depth", "graphs", "burgers"),
        ("adam", "lbfgs", "torch lbfgs", "aspqn"),
    ),
    "bounds": (("bounds",), ("ml-adagrad", "snes multigrid", "tao:blmvm", "scipy l-bfgs-b")),
}
Costs = Mapping[str, Mapping[str, float]]


def ratios(costs: Costs, shift: float = 0.0) -> dict[str, NDArray[np.float64]]:
    """Return every solver's ratios to the least cost, problem by problem.

    Parameters
    ----------
    costs : mapping from str to mapping from str to float
        Cost by solver and problem; infinite or absent where the solver failed.
    shift : float
        Is added to all costs: 1 for counts that may be zero.

    Returns
    -------
    dict of str to ndarray, shape (problems,)
        Infinite where a solver failed. A problem that no solver solved is left out.
    """
    problems = dict.fromkeys(problem for of in costs.values() for problem in of)
    table = {solver: np.array([of.get(problem, math.inf) for problem in problems]) for solver, of in costs.items()}
    least = np.min(list(table.values()), axis=0)
    solved = np.isfinite(least)
    return {solver: (row[solved] + shift) / (least[solved] + shift) for solver, row in table.items()}


def profile(row: NDArray[np.float64], tau: Iterable[float]) -> NDArray[np.float64]:
    """Return the share of problems whose ratio is at most each tau.

    Parameters
    ----------
    row : ndarray, shape (problems,)
        Ratios of a solver.
    tau : iterable of float
        Where.
    """
    return np.array([float(np.mean(row <= t)) for t in tau])


def solver_of(method: str) -> str:
    """Return the solver that a method is a variant of: "mspqn, layers" is one of aspqn."""
    return method.partition(", ")[0].replace("mspqn", "aspqn")


def costs_of(rows: Iterable[Case], solvers: Collection[str], column: str) -> dict[str, dict[str, float]]:
    """Return the costs by solver and problem, on the problems on which all solvers ran.

    Parameters
    ----------
    rows : iterable of dict
        Rows of tables, with the name of the table in "benchmark".
    solvers : collection of str
        Who takes part.
    column : str
        The cost; "total" is that of "setup" and "cpu".
    """
    found: dict[str, dict[str, float]] = {solver: {} for solver in solvers}
    for row in rows:
        solver = solver_of(row["method"])
        if column in COUNTS and row["benchmark"] in UNDIVIDED:
            continue
        if row["source"] == "measured" and solver in found:
            problem = " ".join(row[name] for name in ("benchmark", "problem", "target", "seed"))
            cost = float(row["cpu" if column == "total" else column] or "inf")
            cost += float(row["setup"]) if column == "total" else 0.0
            found[solver][problem] = min(cost, found[solver].get(problem, math.inf))
    shared = set.intersection(*(set(of) for of in found.values()))
    kept = {solver: {problem: of[problem] for problem in sorted(shared)} for solver, of in found.items()}
    return {solver: of for solver, of in kept.items() if any(map(math.isfinite, of.values()))}


def rows_of(folder: Path, names: Iterable[str]) -> list[Case]:
    """Return the rows of the tables that are there."""
    paths = [folder / f"{name}.csv" for name in names]
    return [row | {"benchmark": path.stem} for path in paths if path.exists() for row in read(path)[1]]


def costs_in(name: str) -> list[str]:
    """Return the costs that can be compared in a set."""
    divided = set(SETS[name][0]) - set(UNDIVIDED)
    return [column for column in COSTS if divided or column not in COUNTS]


def table(name: str, rows: list[Case]) -> list[Case]:
    """Return, by cost and solver, the share of problems on which it is best, within 2 and 10 times, and solved."""
    found: list[Case] = []
    for column in costs_in(name):
        costs = costs_of(rows, SETS[name][1], column)
        for method, row in ratios(costs, float(column in COUNTS)).items() if costs else ():
            best, twice, tenfold = profile(row, (1.0, 2.0, 10.0))
            shares = {"best": best, "within_2": twice, "within_10": tenfold, "solved": float(np.isfinite(row).mean())}
            found.append({"cost": column, "method": method, "problems": len(row)} | shares)
    return found


def draw(sets: Mapping[str, list[Case]], path: Path) -> None:
    """Draw a row of panels per set and a panel per cost."""
    figure = Figure(figsize=(2.6 * len(COSTS), 0.9 + 2.6 * len(sets)), layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(len(sets), len(COSTS), squeeze=False, sharey=True)
    for line, (name, rows) in zip(panels, sets.items(), strict=True):
        for ax, (column, label) in zip(line, COSTS.items(), strict=True):
            if column not in costs_in(name):
                ax.set_visible(False)
                continue
            found = ratios(costs_of(rows, SETS[name][1], column), float(column in COUNTS))
            finite = np.concatenate([row[np.isfinite(row)] for row in found.values()])
            tau = np.geomspace(1.0, max(2.0, float(finite.max())), 200)
            for method, row in found.items():
                style = style_of(method, list(found)) | {"marker": ""}
                ax.step(tau, profile(row, tau), where="post", linewidth=1.3, label=method, **style)
            ax.set(xscale="log", xlabel=f"{label}\nover the least", ylim=(0, 1.02))
            ax.grid(color="#dddddd", linewidth=0.6)
        line[0].set_ylabel(f"{name}: share of problems")
    handles = {text: h for ax in panels.ravel() for h, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles, loc="outside lower center", ncols=6, frameon=False, fontsize=8)
    with replacing(path) as new:
        figure.savefig(new, dpi=130)


def main() -> None:
    """Write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=ROOT / "paper" / "results" / "peers")
    options = parser.parse_args()
    sets = {name: rows_of(options.results, names) for name, (names, _) in SETS.items()}
    sets = {name: rows for name, rows in sets.items() if rows}
    path = options.results / "profiles.csv"
    head = {"command": "python -m experiments.peers.profiles"}
    write(path, head, [{"set": name} | row for name, rows in sets.items() for row in table(name, rows)])
    draw(sets, path.with_suffix(".png"))
    print(f"written  {path} {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
