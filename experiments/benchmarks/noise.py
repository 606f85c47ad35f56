"""What does noise do to one level and to three? Relative Gaussian noise on every component of every gradient.

    OMP_NUM_THREADS=1 python experiments/benchmarks/noise.py [--seeds 10] [--out DIR]

Every level of the hierarchy has its own noise, drawn anew for every outer step. A run succeeds when the *exact* measure
(infinity norm, gradient without noise, uncounted) falls to 1e-3 of its first value within the budget: 700 steps with
curvature, 3000 without. Work in fine gradients; a failed run counts as infinite in medians and quartiles. First-order
rates are the best of 1, 0.1, 0.01 for one level without noise, and are used on three levels too. Visits of the coarsest
level have 5 steps: the noise of a step is frozen (as that of a mini-batch is), and 50 % turn the sign of 2.3 % of the
components, so that 20 steps on the minimal surface run away along them.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from mldd.algebra import Hierarchy, Level, Noisy
from mldd.loop import Status, Stop, minimise, replacing, write_table
from mldd.problems.grids import MinimalSurface, Obstacle
from mldd.ranks import SERIAL, prepare
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion

NOISE = (0, 5, 15, 25, 50)  # per cent
FALL = 1e-3
PROBLEMS = {"obstacle": (Obstacle(63), 0.1), "minimal-surface": (MinimalSurface(63), 0.01)}
KINDS = {"curvature": ("auto", 700), "first order": ("none", 3000)}
COARSE_STEPS = 5
COLOURS = {1: "#D55E00", 3: "#0072B2"}


@dataclass(frozen=True)
class Judged(Noisy):
    """A noisy objective whose *value*, which AdaGrad never asks for and the loop does not count, is the exact measure.

    So the loop stops when the exact measure reaches its target.
    """

    def value(self, x: torch.Tensor) -> torch.Tensor:
        """Return the measure with the gradient without noise."""
        return x.new_tensor(self.bounds.measure(x, self.f.gradient(x)))


def solve(problem: Any, levels: int, solver: dict[str, Any], noise: float, seed: int, steps: int) -> dict[str, Any]:
    """Run one case."""
    clean = problem.hierarchy(levels)
    noisy = Hierarchy(
        tuple(
            Level(Noisy(level.objective, noise, 10 * seed + k), level.transfer, level.work)
            for k, level in enumerate(clean.levels)
        )
    )
    f, x = Judged(clean[0].objective, noise, 10 * seed), problem.initial()
    single = AdaGrad(**solver)
    method = single if levels == 1 else MultilevelAdaGrad(noisy, single, Recursion(steps=COARSE_STEPS))
    result = minimise(f, x, method, stop=Stop(max_steps=steps, target=FALL * float(f.value(x))))
    end, success = result.record, result.status is Status.target_reached
    return {
        "success": int(success),
        "steps": end.step if success else np.inf,
        "work_units": end.cost.work_units if success else np.inf,
        "lowest": min(result.history.column("value")) / result.history.records[0].value,
        "violation": f.bounds.violation(result.x),
    }


def quartiles(runs: list[dict[str, Any]], name: str) -> np.ndarray:
    """Return the quartiles over seeds; infinity is a value like the others."""
    return np.quantile([run[name] for run in runs], [0.25, 0.5, 0.75], method="inverted_cdf")


def draw(cases: dict[tuple[str, str, int], list[list[dict[str, Any]]]], path: Path) -> None:
    """Draw steps against noise, median and quartiles, a panel per problem and kind; success rates below."""
    figure = Figure(figsize=(9.0, 6.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(KINDS), len(PROBLEMS), sharex=True, squeeze=False)
    places = np.arange(len(NOISE))
    for (problem, kind, levels), per_noise in cases.items():
        ax, budget = axes[list(KINDS).index(kind), list(PROBLEMS).index(problem)], KINDS[kind][1]
        low, middle, high = np.array([quartiles(runs, "steps") for runs in per_noise]).T
        shift, colour = (levels - 2) * 0.06, COLOURS[levels]
        drawn = [np.where(np.isfinite(v), v, np.nan) for v in (low, middle, high)]
        top = np.where(np.isfinite(high), high, budget)
        ax.vlines(places + shift, drawn[0], top, color=colour, linewidth=6, alpha=0.3)
        failed = places[~np.isfinite(middle)] + shift
        ax.plot(failed, np.full(len(failed), budget), "x", color=colour)
        name = "one level" if levels == 1 else f"{levels} levels"
        ax.plot(places + shift, drawn[1], "o-", color=colour, markersize=4.5, label=name)
        for k, runs in enumerate(per_noise):
            rate = sum(run["success"] for run in runs) / len(runs)
            y = 0.06 if levels == 1 else 0.01
            ax.annotate(
                f"{rate:.0%}",
                (places[k], y),
                xycoords=("data", "axes fraction"),
                ha="center",
                color=colour,
                fontsize=8,
                fontweight="bold" if rate < 1 else "normal",
            )
        ax.axhline(budget, color="#999999", linewidth=0.8, linestyle=":")
        ax.set_yscale("log")
        ax.set_ylim(min(5.0, ax.get_ylim()[0]), budget * 1.4)
        ax.set_title(f"{problem}, {kind}", fontsize=10)
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in axes[-1]:
        ax.set_xlim(-0.45, len(NOISE) - 0.55)
        ax.set_xticks(places, [f"{noise} %" for noise in NOISE])
        ax.set_xlabel("relative noise on every gradient")
    for ax in axes[:, 0]:
        ax.set_ylabel("outer steps to 1e-3 of the first measure")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=2,
        frameon=False,
        title="median and quartiles over seeds; percentages: runs that succeed; dotted: budget; cross: most runs fail",
        title_fontsize=9,
    )
    with replacing(path) as new:
        figure.savefig(new, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/noise"))
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    cases: dict[tuple[str, str, int], list[list[dict[str, Any]]]] = {}
    rows = []
    print("problem         kind         levels  noise  success  steps: median (quartiles)        work  lowest measure")
    for problem, (made, rate) in PROBLEMS.items():
        for kind, (curvature, budget) in KINDS.items():
            solver = {"curvature": curvature, "rate": rate if curvature == "none" else 1.0}
            for levels in (1, 3):
                for noise in NOISE:
                    seeds = range(options.seeds if noise else 1)
                    runs = [solve(made, levels, solver, noise / 100, seed, budget) for seed in seeds]
                    cases.setdefault((problem, kind, levels), []).append(runs)
                    case = {"problem": problem, "kind": kind, "levels": levels, "noise": noise}
                    rows += [case | {"seed": seed} | run for seed, run in zip(seeds, runs, strict=True)]
                    low, middle, high = quartiles(runs, "steps")
                    share = sum(run["success"] for run in runs) / len(runs)
                    print(
                        f"{problem:<15} {kind:<12} {levels:>6} {noise:>4} % {share:>8.0%} {middle:>8.0f} "
                        f"({low:.0f} to {high:.0f})".ljust(76)
                        + f"{quartiles(runs, 'work_units')[1]:>9.0f} {quartiles(runs, 'lowest')[1]:>15.1e}",
                        flush=True,
                    )
    if any(row["violation"] for row in rows):
        print("MISSED   some iterate left the bounds")
    draw(cases, options.out / "noise.png")
    write_table(options.out / "runs.csv", rows)
    print(f"written  {options.out / 'runs.csv'} {options.out / 'noise.png'}")


if __name__ == "__main__":
    main()
