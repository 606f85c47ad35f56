"""How many evaluations and how much CPU time does L-BFGS take, beside SciPy and torch, to the same loss?

    python experiments/benchmarks/lbfgs.py [--problems cora digits burgers] [--seeds 0 1 2] [--quick] [--out FILE]

The same objective, of value and gradient together in float64, from the same start, with a history of ten pairs: mldd as
it is by default and in white coordinates of the first layer, `scipy.optimize` (L-BFGS-B without bounds) and
`torch.optim.LBFGS` with its strong Wolfe search. A run ends at the first evaluation that is as low as the target, which
is counted, and its CPU time is taken there; set-up of the metric is inside. One thread, runs in turns. Ratios are mldd
over the peer, medians over seeds: below one, mldd takes less, and 0 says that the peer has missed the target.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

import mldd
from mldd.algebra import Around, value_and_gradient
from mldd.loop import Detection, Stop, minimise
from mldd.solvers import LBFGS, Whitened

TARGETS = {"cora": 0.1, "digits": 1e-3, "burgers": 0.25}
KEYS: dict[str, dict[str, Any]] = {"cora": {"hidden": 16, "dropout": 0.0, "labels": "all"}}
MOST = 2500  # evaluations
Run = Callable[["Watched", Tensor], None]


class EndedError(Exception):
    """The target is reached, or the evaluations are used up."""


@dataclass(frozen=True)
class Watched(Around):
    """The objective, counted until its value is as low as a target.

    Parameters
    ----------
    f : Objective
        What is minimised.
    target : float
        Loss at which the run ends.
    most : int
        Evaluations after which it ends.
    """

    target: float
    most: int
    seen: list[float] = field(default_factory=list)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, and end the run where it has got there."""
        value, g = value_and_gradient(self.f, x)
        self.seen.append(float(value))
        if self.seen[-1] <= self.target or len(self.seen) >= self.most:
            raise EndedError
        return value, g

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient."""
        return self.value_and_gradient(x)[1]


def by_mldd(f: Watched, x: Tensor, solver: Any) -> None:
    """Run mldd's own L-BFGS."""
    minimise(f, x, solver, stop=Stop(max_steps=MOST), values=False, detection=Detection(share=0.0))


def by_scipy(f: Watched, x: Tensor) -> None:
    """Run SciPy's."""

    def evaluate(y: Any) -> tuple[float, Any]:
        value, g = f.value_and_gradient(torch.from_numpy(np.array(y)))
        return float(value), g.numpy()

    options = {"maxcor": 10, "maxiter": MOST, "maxfun": MOST, "ftol": 0.0, "gtol": 0.0}
    scipy.optimize.minimize(evaluate, x.numpy(), jac=True, method="L-BFGS-B", options=options)


def by_torch(f: Watched, x: Tensor) -> None:
    """Run torch's."""
    y = x.clone().requires_grad_()
    own = {"history_size": 10, "line_search_fn": "strong_wolfe", "tolerance_grad": 0.0, "tolerance_change": 0.0}
    optimizer = torch.optim.LBFGS([y], max_iter=MOST, max_eval=MOST, **own)  # type: ignore[arg-type]

    def closure() -> Tensor:
        value, y.grad = f.value_and_gradient(y.detach().clone())
        return value

    optimizer.step(closure)  # type: ignore[no-untyped-call]


def measured(f: Any, x: Tensor, target: float, most: int, run: Run) -> tuple[float, float]:
    """Return evaluations and CPU seconds to the target, infinite where it was missed."""
    watched, begin = Watched(f, target, most), time.process_time()
    try:
        run(watched, x.clone())
    except EndedError:
        pass
    spent = time.process_time() - begin
    reached = bool(watched.seen) and watched.seen[-1] <= target
    return (float(len(watched.seen)), spent) if reached else (math.inf, math.inf)


def runs_of(problem: Any) -> dict[str, Run]:
    """Return the runs to compare, by name."""
    made: dict[str, Run] = {
        "mldd": lambda f, x: by_mldd(f, x, LBFGS()),
        "scipy": by_scipy,
        "torch": by_torch,
    }
    try:
        problem.first_layer()
    except ValueError:
        return made
    return {"mldd white": lambda f, x: by_mldd(f, x, Whitened(problem.first_layer()))} | made


def compared(name: str, seeds: list[int], most: int) -> dict[str, Any]:
    """Return medians of evaluations and seconds by name of the program, and ratios of mldd's to its peers'."""
    problem = mldd.problem(name, **KEYS.get(name, {}))
    f, runs = problem.objective(), runs_of(problem)
    for run in runs.values():
        measured(f, problem.initial(0), -math.inf, 5, run)  # to warm up
    found: dict[str, list[tuple[float, float]]] = {key: [] for key in runs}
    for seed in seeds:
        for key, run in runs.items():
            found[key].append(measured(f, problem.initial(seed), TARGETS[name], most, run))
    middle = {key: [statistics.median(column) for column in zip(*pairs, strict=True)] for key, pairs in found.items()}
    for key, (evaluations, seconds) in middle.items():
        print(f"{name:<8} {key:<11} {evaluations:>7.0f} evaluations {seconds:>8.3f} s", flush=True)
    ratios = {
        f"{ours} / {peer}": [
            a / b if math.isfinite(a) else math.inf for a, b in zip(middle[ours], middle[peer], strict=True)
        ]
        for ours in middle
        if ours.startswith("mldd")
        for peer in ("scipy", "torch")
    }
    for key, (evaluations, seconds) in ratios.items():
        print(f"{name:<8} {key:<22} {evaluations:.2f} of the evaluations, {seconds:.2f} of the time", flush=True)
    return {"target": TARGETS[name], "runs": found, "ratios": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--quick", action="store_true", help="thirty evaluations of each, to see that it runs")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/lbfgs.json"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    most, seeds = (30, options.seeds[:1]) if options.quick else (MOST, options.seeds)
    made = {name: compared(name, seeds, most) for name in options.problems}
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps({"torch": torch.__version__, "scipy": scipy.__version__} | made, indent=1) + "\n")
    print(f"written  {options.out}")


if __name__ == "__main__":
    main()
