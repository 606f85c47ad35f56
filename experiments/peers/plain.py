"""L-BFGS of torch and of SciPy, and torch's Adam with a clamp, on an objective of mldd: same values and gradients."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import scipy.optimize
import torch
from torch import Tensor

from experiments.peers.race import Method, OverError, Race
from mldd.algebra import value_and_gradient


class Watched:
    """An objective that is looked at after every evaluation of value and gradient."""

    def __init__(self, race: Race) -> None:
        self.race, self.f = race, race.problem.objective()
        self.x = race.problem.initial(race.seed)
        self.evaluations = 0
        race.begin()

    def __call__(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient."""
        counted = {"vectors": float(self.evaluations), "scalars": float(self.evaluations), "accepted": math.nan}
        if self.race.look(x, float(self.evaluations), **counted):
            raise OverError
        self.evaluations += 1
        return value_and_gradient(self.f, x)

    def watch(self, run: Callable[[], object]) -> None:
        """Run until it is over."""
        try:
            run()
            self.race.status = "ended"
        except OverError:
            pass


def torch_lbfgs(**changes: Any) -> Method:
    """Return torch's L-BFGS: 10 pairs, strong Wolfe conditions, no tolerances; `changes` are to the problem."""

    def run(race: Race, rate: float) -> None:
        race.problem = replace(race.problem, **changes)
        f = Watched(race)
        y = f.x.clone().requires_grad_()
        options: dict[str, Any] = {"history_size": 10, "line_search_fn": "strong_wolfe", "max_iter": 10**6}
        options |= {"max_eval": 10**6, "tolerance_grad": 0.0, "tolerance_change": 0.0}
        optimizer = torch.optim.LBFGS([y], **options)

        def closure() -> Tensor:
            value, y.grad = f(y.detach().clone())
            return value

        f.watch(lambda: optimizer.step(closure))  # type: ignore[no-untyped-call]

    return Method(run)


def scipy_lbfgs() -> Method:
    """Return SciPy's L-BFGS-B: 10 pairs, the bounds of the problem, no tolerances."""

    def run(race: Race, rate: float) -> None:
        f = Watched(race)

        def evaluate(y: Any) -> tuple[float, Any]:
            value, g = f(torch.from_numpy(np.array(y)).to(f.x.dtype))
            return float(value), g.double().numpy()

        bounds = f.f.bounds
        box = None if bounds.is_free else scipy.optimize.Bounds(bounds.lower.numpy(), bounds.upper.numpy())
        options = {"maxcor": 10, "maxiter": 10**6, "maxfun": 10**6, "ftol": 0.0, "gtol": 0.0}
        start = f.f.bounds.project(f.x).double().numpy()
        f.watch(
            lambda: scipy.optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=box, options=options)
        )

    return Method(run)


def torch_adam(rates: tuple[float, ...]) -> Method:
    """Return torch's Adam, whose iterates are clamped into the bounds after every step."""

    def run(race: Race, rate: float) -> None:
        f = Watched(race)
        y = f.f.bounds.project(f.x).clone().requires_grad_()
        optimizer = torch.optim.Adam([y], rate)

        def steps() -> None:
            while True:
                _, y.grad = f(y.detach())
                optimizer.step()
                with torch.no_grad():
                    y.copy_(f.f.bounds.project(y))

        f.watch(steps)

    return Method(run, rates)
