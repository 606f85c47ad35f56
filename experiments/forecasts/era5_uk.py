"""2 m temperature over the United Kingdom 6 h ahead (ERA5, March 2019): a multilevel method beside Adam and a ridge.

    python experiments/forecasts/era5_uk.py [--seeds 0 1 2 3 4] [--seconds S] [--out FILE]

Every seed trains on the first 60 % of the month, averages its iterates, and validates the average on the next 20 %. The
number of steps is the one at which the mean of the validation errors over the seeds is least. The same starts are then
trained so many steps on the first 80 %, which is what the ridge is fitted to, and the averages are tested once on the
last 20 %. Both methods get the same process time for the first training. Network: encode-process-decode with a hidden
mesh of 100 nodes; it corrects persistence. Errors are root mean squares over all nodes in K; those of the references
are persistence 2.718, climatology 1.876 and the ridge 1.607.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mldd
from mldd.loop import History, Stop, minimise, write_table
from mldd.problems.forecasts import Forecasting
from mldd.ranks import prepare, world
from mldd.solvers import AdaGrad, Adam, Recursion, SchwarzAdaGrad

PROBLEM = "era5-uk:model=epd,hidden=16,layers=2,mesh_nodes=100,batch=24"
MEMORY = 0.98  # how much of the average a step keeps
EVERY = {"dd-adagrad": 5, "adam": 60}  # steps between two validations, which take about the same time
OUT = Path(__file__).parents[2] / "paper" / "results" / "forecasts" / "era5_uk.csv"


def dd_adagrad(problem: Forecasting) -> Any:
    """Return recursive AdaGrad with 4 overlapping subdomains and a coarse level."""
    local = AdaGrad(1e-3, 0.05, model_steps=6)
    spaces = problem.decomposition(4, 1), problem.hierarchy(2)
    return SchwarzAdaGrad(*spaces, local, Recursion(steps=5), combine="wasm", local_steps=5, global_steps=0)


METHODS: dict[str, Callable[[Forecasting], Any]] = {"dd-adagrad": dd_adagrad, "adam": lambda problem: Adam(lr=1e-3)}


class EnoughError(Exception):
    """The time is over."""


class Averaging:
    """The mean of the iterates, which forgets old ones, validated every some steps outside of the clock."""

    def __init__(self, problem: Forecasting, x: Tensor, every: int, seconds: float) -> None:
        self.problem, self.mean, self.step, self.every, self.seconds = problem, x.clone(), 0, every, seconds
        self.errors: list[float] = []
        self.begun, self.unseen = time.process_time(), 0.0

    def __call__(self, x: Tensor, state: Any, history: History) -> None:
        """Take an iterate in; validate where it is due, and end the run when the time is used up."""
        self.step += 1
        keep = min(MEMORY, self.step / (self.step + 10.0))
        self.mean = keep * self.mean + (1.0 - keep) * x
        if self.every and self.step % self.every == 0:
            now = time.process_time()
            self.errors.append(self.problem.validation(self.mean)["validation_rmse"])
            self.unseen += time.process_time() - now
        if time.process_time() - self.begun - self.unseen >= self.seconds:
            raise EnoughError


def trained(problem: Forecasting, method: str, every: int, seconds: float, steps: int) -> Averaging:
    """Train for so many seconds or steps; return the average."""
    objective, x = problem.objective(), problem.initial(problem.seed)
    solver = METHODS[method](problem)
    if every:
        problem.validation(x)  # what it needs is made before the clock starts
    average = Averaging(problem, x, every, seconds)
    try:
        minimise(objective, x, solver, stop=Stop(max_steps=steps), after_step=average)
    except EnoughError:
        pass
    return average


def rows_of(method: str, seeds: list[int], seconds: float) -> list[dict[str, Any]]:
    """Return the rows of one method."""
    every, curves = EVERY[method], []
    for seed in seeds:
        problem = mldd.problem(PROBLEM, seed=seed, dtype="float32")
        curves.append(trained(problem, method, every, seconds, 10**9).errors)
        print(method, seed, "validation", " ".join(f"{error:.3f}" for error in curves[-1]), flush=True)
    checks = min(map(len, curves))
    mean = [statistics.mean(curve[k] for curve in curves) for k in range(checks)]
    best = mean.index(min(mean))
    rows: list[dict[str, Any]] = []
    for seed, curve in zip(seeds, curves, strict=True):
        problem = mldd.problem(PROBLEM, seed=seed, dtype="float32")
        whole = replace(problem, plan=replace(problem.plan, labels="all"))
        average = trained(whole, method, 0, math.inf, (best + 1) * every)
        scores = whole.metrics(average.mean)
        row: dict[str, Any] = {"method": method, "seed": seed, "steps": average.step, "validation": curve[best]}
        names = ("", "_area", "_persistence", "_climatology", "_linear")
        rows.append(row | {f"test{name}": scores[f"test_rmse{name}"] for name in names})
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Run all methods from all seeds, print their errors and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--seconds", type=float, default=20.0, help="process time of a training, default 20")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    prepare(world())
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        rows += rows_of(method, options.seeds, options.seconds)
        write_table(options.out, rows)
        errors = [row["test"] for row in rows if row["method"] == method]
        mean, ridge = statistics.mean(errors), rows[0]["test_linear"]
        print(f"{method}: test {mean:.3f} K, worst {max(errors):.3f}, ridge {ridge:.3f}", flush=True)


if __name__ == "__main__":
    main()
