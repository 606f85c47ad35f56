"""Do a Schwarz or a multilevel method and Adam, in equal time, forecast better than the linear model of the data?

    python experiments/benchmarks/forecasting.py [--cases era5-uk ...] [--seeds 0 1 2 3 4] [--seconds S] [--refit]
    python experiments/benchmarks/forecasting.py --central [--seeds 0 1 2] [--seconds S]

Every run has the same seconds of process time (validation does not count). A network is trained on the first 60 % of a
series; the iterate that is best on the next 20 % is kept, and tested once on the last 20 %. Model, inputs and
hyper-parameters were chosen on the validation part too. The linear model is that of the data's README, fitted on 80 %.
`--refit` trains once more on the first 80 % from the same start, to the step that was best on the validation part.

`--central` trains on all samples at once and says what it took to get the training loss (1 for the base forecast) down
to targets: steps, gradient work, synchronisations (as if there were several ranks), seconds.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.cost import uncounted
from mldd.monitor import History, write_table
from mldd.parallel import prepare, world
from mldd.problems.forecast_loss import ForecastLoss
from mldd.problems.forecasting import Forecasting
from mldd.solver import Stop, minimise
from mldd.solvers.baselines import Adam
from mldd.solvers.lbfgs import LBFGS
from mldd.solvers.local_sgd import LocalSgd
from mldd.solvers.multilevel_lbfgs import MultilevelLBFGS
from mldd.solvers.schwarz import SchwarzAdaGrad
from mldd.solvers.spqn import SchwarzLBFGS

PARTS, OVERLAP = 4, 1
CHECKS = 20  # validations per run, evenly spread over its time
TARGETS = (0.4, 0.36, 0.34)  # training losses of `--central`
COSTS = ("step", "gradient_evaluations", "work_units", "synchronisations", "seconds")
Make = Callable[[Forecasting], Any]


@dataclass(frozen=True)
class Case:
    """A forecast, the solvers that are compared on it, and their time."""

    problem: Forecasting
    solvers: dict[str, Make]
    seconds: float


def _dd(problem: Forecasting, **settings: Any) -> SchwarzAdaGrad:
    return SchwarzAdaGrad(problem.decomposition(PARTS, OVERLAP), problem.hierarchy(2), **settings)


def _local_sgd(problem: Forecasting, steps: int, lr: float) -> LocalSgd:
    own = replace(problem, local="own")
    return LocalSgd(own.decomposition(PARTS), local_steps=steps, local=Adam(lr=lr), memory="average")


_DD = {"rate": 0.05, "varsigma": 1e-3, "local_steps": 5, "global_steps": 0, "coarse_steps": 5, "combine": "wasm"}
CASES = {
    "era5-uk": Case(
        Forecasting("era5-uk", "epd", base="linear", hidden=16, layers=2, mesh_nodes=100, batch=24, dtype="float32"),
        {
            "adam": lambda p: Adam(lr=1e-3),
            "dd-adagrad": lambda p: _dd(p, **_DD),
        },
        15.0,
    ),
    "metr-la": Case(
        Forecasting(
            "metr-la", "sage", (3, 12), history=12, base="linear", hidden=32, layers=2, batch=64, dtype="float32"
        ),
        {"adam": lambda p: Adam(lr=2e-3), "dd-adagrad": lambda p: _dd(p, **_DD)},
        10.0,
    ),
    "molene": Case(
        Forecasting("molene", "epd", hidden=16, layers=1, climatology=False, batch=48, dtype="float32"),
        {"adam": lambda p: Adam(lr=1e-3), "dd-adagrad": lambda p: _dd(p, **_DD | {"rate": 0.02})},
        4.0,
    ),
}
CENTRAL = Forecasting("era5-uk", "sage", hidden=16, layers=2, stride=6)
CENTRAL_SOLVERS: dict[str, Make] = {
    "adam, lr 0.01": lambda p: Adam(lr=0.01),
    "adam, lr 0.03": lambda p: Adam(lr=0.03),
    "lbfgs": lambda p: LBFGS(memory=20),
    "localsgd": lambda p: _local_sgd(p, 10, 0.01),
    "lbfgs, row scaling": lambda p: LBFGS(scaling="rows"),
    "ml-lbfgs, 3.7 %": lambda p: MultilevelLBFGS(p.hierarchy(2)),
    "ml-lbfgs, 25 6 1.5 %": lambda p: MultilevelLBFGS(replace(p, clusters=p.graph.nodes // 4).hierarchy(4)),
    "dd-adagrad": lambda p: _dd(p, **_DD),
    "aspqn": lambda p: SchwarzLBFGS(p.decomposition(PARTS, OVERLAP), combine="sum", local_steps=10),
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
    return ForecastLoss(problem.net, batch, chunk=problem.chunk)


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
    return [""] if len(problem.leads) == 1 else [f"_{lead}" for lead in problem.leads]


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
                again = replace(problem, labels="all")
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


# ------------------------------------------------------------------------------------------------ the central question


@dataclass
class Costs:
    """Evaluate the loss after every step, outside of the clock and uncounted, until the last target.

    Attributes
    ----------
    rows : list
        Costs, loss and process seconds after every step.
    """

    loss: Any
    seconds: float
    target: float
    rows: list[dict[str, float]] = field(default_factory=list)
    unseen: float = 0.0
    begun: float = field(default_factory=time.process_time)

    def __call__(self, x: Tensor, state: Any, history: History) -> None:
        """Add a row; end the run at the last target or when the time is over."""
        now = time.process_time()
        spent = now - self.begun - self.unseen
        record = history.records[-1]
        costs = {cost: float(getattr(record, cost)) for cost in COSTS}
        with uncounted():
            loss = float(self.loss.value(x))
        self.rows.append(costs | {"cpu": spent, "loss": loss})
        self.unseen += time.process_time() - now
        if loss <= self.target or spent > self.seconds or not math.isfinite(loss):
            raise EnoughError


def central(problem: Forecasting, solvers: dict[str, Make], seeds: list[int], seconds: float) -> list[dict[str, Any]]:
    """Print what every solver needs to reach the targets of the training loss; medians over the seeds that did."""
    table: list[dict[str, Any]] = []
    print("solver                 target  reached   " + "  ".join(f"{cost[:9]:>9}" for cost in (*COSTS, "cpu")))
    for name, make in solvers.items():
        runs = []
        for seed in seeds:
            mine = replace(problem, seed=seed)
            solver, f, x = make(mine), mine.objective(), mine.initial(seed)
            costs = Costs(f, seconds, min(TARGETS))
            try:
                minimise(f, x, solver, stop=Stop(max_steps=10**9), after_step=costs)
            except EnoughError:
                pass
            runs.append(costs.rows)
        for target in TARGETS:
            hits = [next((row for row in rows if row["loss"] <= target), None) for rows in runs]
            got = [row for row in hits if row is not None]
            medians = [statistics.median(row[c] for row in got) if got else math.nan for c in (*COSTS, "cpu")]
            print(
                f"{name:<22} {target:>6} {len(got):>3} of {len(seeds)}   " + "  ".join(f"{m:>9.1f}" for m in medians),
                flush=True,
            )
            table += [
                {"solver": name, "seed": seed, "target": target} | (row or {"loss": rows[-1]["loss"]})
                for seed, row, rows in zip(seeds, hits, runs, strict=True)
            ]
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--seconds", type=float, help="per run, instead of the case's own")
    parser.add_argument("--solvers", nargs="+", help="some of the case's solvers")
    parser.add_argument("--refit", action="store_true")
    parser.add_argument("--central", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/forecasting"))
    options = parser.parse_args()
    prepare(world())
    warnings.filterwarnings("ignore", message="spqn: line searches")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.central:
        chosen = options.solvers or CENTRAL_SOLVERS
        rows = central(CENTRAL, {key: CENTRAL_SOLVERS[key] for key in chosen}, options.seeds, options.seconds or 8.0)
        write_table(options.out / "central.csv", rows)
        return
    for name in options.cases:
        case = CASES[name]
        solvers = {key: make for key, make in case.solvers.items() if key in (options.solvers or case.solvers)}
        case = replace(case, solvers=solvers, seconds=options.seconds or case.seconds)
        rows, checks = table(name, case, options.seeds, options.refit)
        write_table(options.out / f"{name}.csv", rows)
        write_table(options.out / f"{name}_validation.csv", checks)


if __name__ == "__main__":
    main()
