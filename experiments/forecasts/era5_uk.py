"""2 m temperature over the United Kingdom 6 h ahead (ERA5, March 2019): a multilevel method beside Adam and a ridge.

    python experiments/forecasts/era5_uk.py [--seeds 0 1 2 3 4] [--seconds S] [--out FILE]

A run trains on the first 60 % of the month, averages its iterates, and notes the step at which the average is best on
the next 20 %. The same start is then trained to that step on the first 80 %, which is what the ridge is fitted to, and
the average is tested once on the last 20 %. Both methods get the same process time for the first training. Network:
encode-process-decode with a hidden mesh of 100 nodes; it corrects persistence. Errors are root mean squares over all
nodes in K; those of the references are persistence 2.718, climatology 1.876 and the ridge 1.608.
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
CHECKS, MEMORY = 12, 0.98  # validations of a run; how much of the average a step keeps
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
    """The mean of the iterates, which forgets old ones, validated from time to time outside of the clock."""

    def __init__(self, problem: Forecasting, x: Tensor, seconds: float) -> None:
        self.problem, self.mean, self.step, self.seconds = problem, x.clone(), 0, seconds
        self.best, self.best_step, self.unseen, self.due = math.inf, 0, 0.0, seconds / CHECKS
        self.begun = time.process_time()

    @property
    def spent(self) -> float:
        """Process time without that of validations."""
        return time.process_time() - self.begun - self.unseen

    def __call__(self, x: Tensor, state: Any, history: History) -> None:
        """Take an iterate in; validate where it is due."""
        self.step += 1
        keep = min(MEMORY, self.step / (self.step + 10.0))
        self.mean = keep * self.mean + (1.0 - keep) * x
        if not math.isfinite(self.seconds) or self.spent < self.due:
            return
        spent, now = self.spent, time.process_time()
        error = self.problem.validation(self.mean)["validation_rmse"]
        if error < self.best:
            self.best, self.best_step = error, self.step
        self.due = spent + self.seconds / CHECKS
        self.unseen += time.process_time() - now
        if spent >= self.seconds:
            raise EnoughError


def trained(problem: Forecasting, method: str, seed: int, seconds: float, steps: int) -> Averaging:
    """Train for so many seconds or steps; return the average."""
    objective, x = problem.objective(), problem.initial(seed)
    solver = METHODS[method](problem)
    if math.isfinite(seconds):
        problem.validation(x)  # what it needs is made before the clock starts
    average = Averaging(problem, x, seconds)
    try:
        minimise(objective, x, solver, stop=Stop(max_steps=steps), after_step=average)
    except EnoughError:
        pass
    return average


def run(method: str, seed: int, seconds: float) -> dict[str, Any]:
    """Return the row of one method and seed."""
    problem = mldd.problem(PROBLEM, seed=seed, dtype="float32")
    first = trained(problem, method, seed, seconds, 10**9)
    whole = replace(problem, plan=replace(problem.plan, labels="all"))
    again = trained(whole, method, seed, math.inf, first.best_step)
    scores, early = whole.metrics(again.mean), problem.metrics(first.mean)
    row: dict[str, Any] = {"method": method, "seed": seed, "steps": first.step, "best_step": first.best_step}
    row |= {"validation": first.best, "test_60": early["test_rmse"]}
    names = ("", "_area", "_persistence", "_climatology", "_linear")
    return row | {f"test{name}": scores[f"test_rmse{name}"] for name in names}


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
        for seed in options.seeds:
            rows.append(run(method, seed, options.seconds))
            print(rows[-1], flush=True)
            write_table(options.out, rows)
        errors = [row["test"] for row in rows if row["method"] == method]
        mean, ridge = statistics.mean(errors), rows[0]["test_linear"]
        print(f"{method}: test {mean:.3f} K, worst {max(errors):.3f}, ridge {ridge:.3f}")


if __name__ == "__main__":
    main()
