"""Noisy and low-precision gradients on bound-constrained energies: one level and several.

    python -m experiments.gratton2025recursive.noise [--quick] [--problems obstacle] [--kinds gauss-0.25 bfloat16]

"gauss-S" multiplies every component of every gradient by ``1 + S xi``, xi normal and drawn anew for every outer step
and level; "float32" and "bfloat16" round every component to that precision, a relative error of at most 2^-24 and 2^-8
(what is left of a gradient that is stored or sent in low precision). A run succeeds when the exact criticality
(infinity norm, not counted) has fallen by `rtol`. The recipe of noise is that of arXiv 2203.01647; the tables of arXiv
2507.11513 are not at hand: this is our reference run of its method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch

import mldd
from experiments.gratton2025recursive.levels import smoother_of
from experiments.study import Case, Picture, Study, counts, minimise
from mldd import Stop
from mldd.algebra import Around, Hierarchy, Noisy, uncounted
from mldd.loop import Status
from mldd.ranks import Communicator
from mldd.solvers import MultilevelAdaGrad, Recursion


@dataclass(frozen=True)
class Config:
    """Noise, depths and the test of convergence."""

    problems: tuple[str, ...] = ("obstacle", "membrane", "minimal-surface", "bratu", "ignition")
    n: int = 63
    levels: tuple[int, ...] = (1, 3)
    kinds: tuple[str, ...] = ("exact", "float32", "bfloat16", "gauss-0.05", "gauss-0.25", "gauss-0.5")
    seeds: tuple[int, ...] = (0, 1, 2)
    coarse_steps: int = 5
    rtol: float = 1e-3
    max_steps: int = 700


def cases(config: Config) -> Iterator[Case]:
    """Return problem, kind of noise, levels and seed; rounding has no seeds."""
    for problem in config.problems:
        for kind in config.kinds:
            for levels in config.levels:
                for seed in config.seeds if kind.startswith("gauss") else config.seeds[:1]:
                    yield {"problem": problem, "noise": kind, "levels": levels, "seed": seed}


@dataclass(frozen=True)
class Rounded(Around):
    """`f` whose gradient is rounded to a low precision."""

    low: torch.dtype

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        """Return the rounded gradient."""
        g = self.f.gradient(x)
        return g.to(self.low).to(g.dtype)


def inexact(f: Any, kind: str, seed: int) -> Any:
    """Return an objective with the errors of a kind in its gradients."""
    if kind == "exact":
        return f
    if kind.startswith("gauss"):
        return Noisy(f, float(kind.removeprefix("gauss-")), seed)
    return Rounded(f, getattr(torch, kind))


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one solver on one problem."""
    problem = mldd.problem(case["problem"], n=config.n)
    clean, seed, kind = problem.hierarchy(case["levels"]), 10 * case["seed"], case["noise"]
    hierarchy = Hierarchy(
        tuple(
            replace(level, objective=inexact(level.objective, kind, seed + k)) for k, level in enumerate(clean.levels)
        )
    )
    smoother = smoother_of(problem, case["problem"], "products")
    method = (
        MultilevelAdaGrad(hierarchy, smoother, Recursion(steps=config.coarse_steps)) if len(clean) > 1 else smoother
    )
    exact, x = clean[0].objective, problem.initial()
    falls = [1.0]

    def judge(x: torch.Tensor, state: Any, history: Any) -> None:
        with uncounted():
            falls.append(exact.bounds.measure(x, exact.gradient(x)) / first)
        if falls[-1] <= config.rtol:
            state.status = Status.target_reached

    with uncounted():
        first = exact.bounds.measure(x, exact.gradient(x))
    result = minimise(hierarchy[0].objective, x, method, stop=Stop(config.max_steps), values=0, after_step=judge)
    return counts(result) | {"fall": min(falls), "violation": float(exact.bounds.violation(result.x))}


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 2507.11513 (reconstructed)",
    Config(),
    Config(problems=("obstacle",), n=31, kinds=("exact", "bfloat16", "gauss-0.25"), seeds=(0,)),
    cases,
    run,
    Picture("levels", "steps", ("noise",), ("problem",), "y", ("levels", "outer steps")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
