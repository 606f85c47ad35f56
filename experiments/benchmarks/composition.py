"""What is nonlinear RAS worth as a preconditioner? NGMRES, Anderson and QN of PETSc with it, without it, and it alone.

    OMP_NUM_THREADS=1 python experiments/benchmarks/composition.py [--problems minimal-surface digits] [--out DIR]

`minimal-surface` has n = 63 and no plate (no bounds): 16 subdomains of the square with 2 layers of overlap, to a
measure (infinity norm) of 1e-6 and, without coarse levels, at most 400 steps. `digits` is the whole training set: the 3
layers of the network are the subdomains, to a training loss of 1e-2 and of 1e-4, at most 100 steps; the sum of what the
layers want on their own is too long, "damped" takes a third of it. A local solve is 10 steps of L-BFGS (memory 10) on
the restricted objective, made anew each time. The nonlinear preconditioner is applied from the right; PETSc's defaults
hold for all else. "L-BFGS" and "NRAS" are mldd's own. A step of NRAS costs its local gradients and one of the whole
problem; work is counted in gradients of the whole problem, all subdomains together. "-": the target was not reached.

References: Brune, Knepley, Smith and Tu, SIAM Rev. 57 (2015), for the composition.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mldd.loop import History, Solver, Stop, minimise, replacing, write_table
from mldd.problems.grids import MinimalSurface
from mldd.problems.images import Digits
from mldd.ranks import SERIAL, prepare
from mldd.solvers import LBFGS, NonlinearSchwarz
from mldd.solvers.petsc import Snes

COLOURS = {"L-BFGS": "#000000", "NRAS": "#999999", "NGMRES": "#0072B2", "Anderson": "#D55E00", "QN": "#009E73"}
TYPES = {"NGMRES": "ngmres", "Anderson": "anderson", "QN": "qn"}


@dataclass(frozen=True)
class Case:
    """A problem, its subdomains, and what counts as solved: the `column` of the history at or below each target."""

    problem: Any
    parts: int
    overlap: int
    column: str
    targets: tuple[float, ...]
    steps: int = 400
    dampings: tuple[float, ...] = (1.0,)
    seconds: float = 600.0

    @property
    def stop(self) -> Stop:
        """Until the last target."""
        kind = "atol" if self.column == "measure" else "target"
        return Stop(self.steps, max_seconds=self.seconds, **{kind: self.targets[-1]})


CASES = {
    "minimal-surface": Case(MinimalSurface(63, height=-math.inf), 16, 2, "measure", (1e-3, 1e-6)),
    "digits": Case(Digits(), 3, 0, "value", (1e-2, 1e-4), 100, (1.0, 1 / 3)),
}


def methods(case: Case) -> dict[str, Solver]:
    """Return the solvers by their names."""
    decomposition = case.problem.decomposition(case.parts, case.overlap, SERIAL)
    found: dict[str, Solver] = {"L-BFGS": LBFGS()}
    found |= {name: Snes(kind) for name, kind in TYPES.items()}
    for damping in case.dampings:
        kind = "NRAS" if damping == 1.0 else "NRAS damped"
        schwarz = NonlinearSchwarz(decomposition, local=LBFGS(), local_steps=10, damping=damping)
        found[kind] = schwarz
        found |= {f"{name} + {kind}": Snes(type_, npc=schwarz) for name, type_ in TYPES.items()}
    return found


def solve(name: str, case: Case, solver: Solver) -> tuple[History, str]:
    """Run one case; return its history and how it ended."""
    objective, x = case.problem.objective(), case.problem.initial(0)
    result = minimise(objective, x, solver, stop=case.stop, values=True)
    return result.history, result.status.name


def rows_of(problem: str, name: str, case: Case, history: History, status: str) -> list[dict[str, Any]]:
    """Return a row per target: the first record that reaches it."""
    rows = []
    for target in case.targets:
        reached = next((r for r in history.records if r.row()[case.column] <= target), None)
        row = {"problem": problem, "method": name, "target": target, "status": status}
        found = reached.row() if reached else {}
        rows.append(
            row | {key: found.get(key, math.nan) for key in ("step", "work_units", "seconds", "synchronisations")}
        )
    return rows


def show(row: dict[str, Any]) -> str:
    """Return a line of the table."""
    if math.isnan(row["step"]):
        return (
            f"{row['problem']:<16} {row['method']:<22} {row['target']:>7.0e} {'-':>6} {'-':>11}  ended: {row['status']}"
        )
    return (
        f"{row['problem']:<16} {row['method']:<22} {row['target']:>7.0e} {row['step']:>6} {row['work_units']:>11.0f} "
        f"{row['synchronisations']:>6} {row['seconds']:>8.1f}"
    )


def figure(found: dict[str, dict[str, History]], path: Path) -> None:
    """Draw the column that is judged against outer steps and against work, a row of panels per problem."""
    page = Figure(figsize=(10, 4 * len(found)), layout="constrained")
    FigureCanvasAgg(page)
    panels = page.subplots(len(found), 2, squeeze=False, sharey="row")
    for row, (problem, histories) in zip(panels, found.items(), strict=True):
        column = CASES[problem].column
        for axes, against in zip(row, ("step", "work_units"), strict=True):
            for name, history in histories.items():
                colour = COLOURS[name.split(" ")[0]]
                dash = ":" if "damped" in name else "-" if "NRAS" in name else "--"
                axes.plot(history.column(against), history.column(column), dash, color=colour, label=name, lw=1.5)
            axes.set_yscale("log")
            axes.set_xscale("log" if against == "work_units" else "linear")
            axes.set_xlabel("outer steps" if against == "step" else "work (gradients of the whole problem)")
            axes.set_xlim(left=None if against == "work_units" else 0)
            for target in CASES[problem].targets:
                axes.axhline(target, color="#dddddd", lw=0.8, zorder=0)
        row[0].set_ylabel("measure (infinity norm)" if column == "measure" else "training loss")
        row[0].set_title(problem, loc="left")
        row[1].legend(fontsize=8, frameon=False, loc="lower left")
    with replacing(path) as new:
        page.savefig(new, format="png", dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(CASES), choices=list(CASES))
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/composition"))
    options = parser.parse_args()
    prepare(SERIAL)
    options.out.mkdir(parents=True, exist_ok=True)
    print("problem          method                  target   step        work  syncs  seconds")
    rows, found = [], {}
    for problem in options.problems:
        case, found[problem] = CASES[problem], {}
        for name, solver in methods(case).items():
            history, status = solve(name, case, solver)
            found[problem][name] = history
            new = rows_of(problem, name, case, history, status)
            print("\n".join(map(show, new)), flush=True)
            rows += new
    write_table(options.out / "table.csv", rows)
    figure(found, options.out / "composition.png")
    print(f"written  {options.out / 'table.csv'} {options.out / 'composition.png'}")


if __name__ == "__main__":
    main()
