"""Do a Schwarz or a multilevel method and Adam, in equal time, forecast better than the linear model of the data?

    python experiments/benchmarks/forecasting.py [--cases era5-uk ...] [--seeds 0 1 2 3 4] [--seconds S] [--refit]

Every run has the same seconds of process time; validation does not count, nor does making parts and coarse graphs
beforehand (0.3 of 15 s on era5-uk). A network is trained on the first 60 % of a series; the iterate that is best on the
next 20 % is kept, and tested once on the last 20 %. Model, inputs and hyper-parameters were chosen on the validation
part too. The linear model is that of the data's README, fitted on 80 %. `--refit` trains once more on the first 80 %
from the same start, to the step that was best on the validation part.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mldd
from mldd.loop import History, Stop, minimise, write_table
from mldd.problems.forecasts import Forecasting, ForecastLoss
from mldd.ranks import prepare, world
from mldd.solvers import AdaGrad, Adam, Recursion, SchwarzAdaGrad

PARTS, OVERLAP = 4, 1
CHECKS = 20  # validations per run, evenly spread over its time
Make = Callable[[Forecasting], Any]


@dataclass(frozen=True)
class Case:
    """A forecast, the solvers that are compared on it, and their time."""

    problem: Forecasting
    solvers: dict[str, Make]
    seconds: float


def _dd(problem: Forecasting, rate: float = 0.05) -> SchwarzAdaGrad:
    return SchwarzAdaGrad(
        problem.decomposition(PARTS, OVERLAP),
        problem.hierarchy(2),
        AdaGrad(1e-3, rate, model_steps=6),
        Recursion(steps=5),
        combine="wasm",
        local_steps=5,
        global_steps=0,
    )


CASES = {
    "era5-uk": Case(
        mldd.problem(
            "era5-uk:model=epd", base="linear", hidden=16, layers=2, mesh_nodes=100, batch=24, dtype="float32"
        ),
        {
            "adam": lambda p: Adam(lr=1e-3),
            "dd-adagrad": _dd,
        },
        15.0,
    ),
    "metr-la": Case(
        mldd.problem(
            "metr-la:model=sage,horizon=3:12", history=12, base="linear", hidden=32, layers=2, batch=64, dtype="float32"
        ),
        {"adam": lambda p: Adam(lr=2e-3), "dd-adagrad": _dd},
        10.0,
    ),
    "molene": Case(
        mldd.problem("molene:model=epd", hidden=16, layers=1, climatology=False, batch=48, dtype="float32"),
        {"adam": lambda p: Adam(lr=1e-3), "dd-adagrad": lambda p: _dd(p, 0.02)},
        4.0,
    ),
}


# ------------------------------------------------------------------------------------------------ one run


class EnoughError(Exception):
    """The time is over."""


@dataclass
class Watch:
    """Validate from time to time, outside of the clock, and keep the best iterate.

    Attributes
    ----------
    best, best_step, best_x
        Least root mean square error on the validation part in units of the base's error, and where.
    """

    problem: Forecasting
    seconds: float
    last: int | None = None
    best: float = math.inf
    best_step: int = 0
    best_x: Tensor | None = None
    spent: float = 0.0
    unseen: float = 0.0
    due: float = 0.0
    rows: list[tuple[float, int, float]] = field(default_factory=list)

    def start(self) -> None:
        """Start the clock; what is built once is built before."""
        self.loss = validation(self.problem)
        self.begun = time.process_time()

    def __call__(self, x: Tensor, state: Any, history: History) -> None:
        """Validate where it is due; end the run when the time, or the number of steps, is used up."""
        now = time.process_time()
        self.spent = now - self.begun - self.unseen
        ended = self.spent >= self.seconds if self.last is None else state.step >= self.last
        if self.last is None and (self.spent >= self.due or ended):
            error = math.sqrt(float(self.loss.value(x)))
            self.rows.append((self.spent, state.step, error))
            if error < self.best:
                self.best, self.best_step, self.best_x = error, state.step, x.clone()
            self.due = self.spent + self.seconds / CHECKS
        elif ended:
            self.best_x, self.best_step = x.clone(), state.step
        self.unseen += time.process_time() - now
        if ended:
            raise EnoughError


def validation(problem: Forecasting) -> ForecastLoss:
    """Return the mean square error on the validation part as an objective, every node with the same weight."""
    data, graphs = problem.forecast_data, problem.local_graphs
    origins = data.origins["validation"]
    values, mask = data.targets(origins, data.cuts[1])
    weights = mask / np.maximum(mask.sum((0, 1)), 1) / mask.shape[2]
    n, samples = values.shape[:2]
    both = np.concatenate([values * weights, weights], axis=2).reshape(n, -1)
    mine = replace(graphs, features=data.features(origins).reshape(n, -1), targets=both, samples=samples)
    like = problem.objective().batch.targets
    batch = mine.stack([mine.piece(np.arange(n))], single=True, dtype=like.dtype, device=like.device)
    return ForecastLoss(problem.net, batch, chunk=problem.batches.chunk)


def train(problem: Forecasting, make: Make, seed: int, seconds: float, last: int | None = None) -> Watch:
    """Train from the start of `seed` for so many seconds (or steps); return the watch with the best iterate."""
    solver, f, x = make(problem), problem.objective(), problem.initial(seed)
    watch = Watch(problem, seconds, last)
    watch.start()
    try:
        minimise(f, x, solver, stop=Stop(max_steps=10**9), after_step=watch)
    except EnoughError:
        pass
    assert watch.best_x is not None
    return watch


# ------------------------------------------------------------------------------------------------ tables


def leads(problem: Forecasting) -> list[str]:
    """Return the endings of the names of errors, one per lead time."""
    return [""] if len(problem.plan.leads) == 1 else [f"_{lead}" for lead in problem.plan.leads]


def table(name: str, case: Case, seeds: list[int], refit: bool) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Train with all solvers from all seeds; print the errors on the test part, return these and all validations."""
    rows: list[dict[str, Any]] = []
    checks: list[dict[str, Any]] = []
    for solver, make in case.solvers.items():
        for seed in seeds:
            problem = replace(case.problem, seed=seed)
            watch = train(problem, make, seed, case.seconds)
            assert watch.best_x is not None
            scores = problem.metrics(watch.best_x)
            checks += [
                {"solver": solver, "seed": seed, "cpu": cpu, "step": step, "validation": error}
                for cpu, step, error in watch.rows
            ]
            row = {"case": name, "solver": solver, "seed": seed, "seconds": round(watch.spent, 1)}
            row |= {"step": watch.best_step, "steps": watch.rows[-1][1], "validation": scores["validation_rmse"]}
            if refit:
                again = replace(problem, plan=replace(problem.plan, labels="all"))
                other = train(again, make, seed, math.inf, watch.best_step)
                assert other.best_x is not None
                scores |= {f"refit_{key}": value for key, value in again.metrics(other.best_x).items()}
            for of in leads(problem):
                row |= {f"{key}{of}": scores[f"{key}{of}"] for key in _SHOWN}
                row |= {f"refit{of}": scores[f"refit_test_rmse{of}"]} if refit else {}
            rows.append(row)
        _print(name, solver, rows[-len(seeds) :], leads(case.problem), refit)
    return rows, checks


_SHOWN = ("test_rmse", "test_rmse_linear", "test_rmse_persistence")


def _print(name: str, solver: str, rows: list[dict[str, Any]], endings: list[str], refit: bool) -> None:
    for of in endings:
        errors = [row[f"test_rmse{of}"] for row in rows]
        sd = statistics.stdev(errors) if len(errors) > 1 else 0.0
        linear, persistence = rows[0][f"test_rmse_linear{of}"], rows[0][f"test_rmse_persistence{of}"]
        verdict = f"{sum(e < linear for e in errors)} of {len(errors)} below linear"
        print(
            f"{name + of:<12} {solver:<22} test {statistics.mean(errors):.3f} (sd {sd:.3f}, worst {max(errors):.3f})  "
            f"linear {linear:.3f}  persistence {persistence:.3f}  {verdict}"
            + (f"  refit on 80 %: {statistics.mean(row[f'refit{of}'] for row in rows):.3f}" if refit else ""),
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, help="per run, instead of the case's own")
    parser.add_argument("--solvers", nargs="+", help="some of the case's solvers")
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/forecasting"))
    options = parser.parse_args()
    prepare(world())
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.cases:
        case = CASES[name]
        solvers = {key: make for key, make in case.solvers.items() if key in (options.solvers or case.solvers)}
        case = replace(case, solvers=solvers, seconds=options.seconds or case.seconds)
        rows, checks = table(name, case, options.seeds, options.refit)
        write_table(options.out / f"{name}.csv", rows)
        write_table(options.out / f"{name}_validation.csv", checks)


if __name__ == "__main__":
    main()
