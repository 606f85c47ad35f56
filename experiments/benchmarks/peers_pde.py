"""Bound-constrained PDEs beside what a user of PETSc would take: SNES vinewtonrsls with multigrid and grid sequencing.

    OMP_NUM_THREADS=1 python experiments/benchmarks/peers_pde.py [--sizes 63 127 255 ...] [--problems NAME ...]
                                                                 [--repeats R] [--out FILE]

Every solver goes on until the measure (infinity norm of ``project(x - g) - x``) has fallen to --rtol of what it is at
zero projected into the bounds, the same number for all. The peer (snes_multigrid.py) has an assembled matrix, Galerkin
coarse matrices, SOR and FGMRES; both sides may start on coarse grids, and making grids, matrices and transfers is part
of the time. CPU seconds of one thread, medians of --repeats runs that take turns with the peer's. "share" is the part
of the time that the work units explain, each at the price of a gradient measured in the same run.

Every solution is checked by the peer's own residual, in numpy, and by its distance to the peer's solution. dd-adagrad
has 16 subdomains on one process and runs up to --most-dd nodes per side, TAO's and SNES's solvers as mldd's doors up to
--most-doors. Both mldd solvers have the settings of the problem, and levels down to 7 (ml) or 15 (dd) nodes per side.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from math import pi
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.benchmarks.snes_multigrid import Array, Discrete, solve
from mldd.loop import Result, Stop, minimise
from mldd.problems.grids import Bratu, GridProblem, Ignition, MinimalSurface, Obstacle
from mldd.ranks import SERIAL, prepare
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion, SchwarzAdaGrad
from mldd.solvers.petsc import Snes, Tao

Row = dict[str, Any]
PARTS = 16


def padded(n: int, values: Array | float, edge: float) -> Array:
    """Return an array of all nodes from values at inner ones."""
    out = np.full((n + 2, n + 2), edge)
    out[1:-1, 1:-1] = values
    return out


def obstacle(n: int) -> Discrete:
    """Return the obstacle problem, as `Obstacle`."""
    return Discrete(
        n, padded(n, -0.25, -np.inf), np.full((n + 2, n + 2), np.inf), np.zeros((n + 2, n + 2)), load=10 / (n + 1) ** 2
    )


def bratu(n: int) -> Discrete:
    """Return Bratu's problem, as `Bratu`."""

    def reaction(u: Array) -> tuple[Array, Array]:
        e = -3.0 / (n + 1) ** 2 * np.exp(u)
        return e, e

    zero = np.zeros((n + 2, n + 2))
    return Discrete(n, np.full_like(zero, -np.inf), padded(n, 0.45, np.inf), zero, reaction=reaction)


def ignition(n: int) -> Discrete:
    """Return the ignition problem, as `Ignition`."""
    h2, t = 1.0 / (n + 1) ** 2, np.arange(1, n + 1) / (n + 1)
    x, y = t[None, :], t[:, None]
    bump = x**2 - x**3
    f = (9 * pi**2 + np.exp(bump * np.sin(3 * pi * y)) * bump + 6 * x - 2) * np.sin(3 * pi * x)
    lower = 0.2 - 8 * (x - 7 / 16) ** 2 - 8 * (y - 7 / 16) ** 2

    def reaction(u: Array) -> tuple[Array, Array]:
        e = h2 * np.exp(u)
        return -u * e, -(1 + u) * e

    zero = np.zeros((n + 2, n + 2))
    return Discrete(n, padded(n, lower, -np.inf), padded(n, 0.5, np.inf), zero, load=-h2 * f, reaction=reaction)


def enneper(x: Array, y: Array) -> Array:
    """Return the heights of Enneper's surface over points (x, y), by Newton's method."""
    u, v = x.copy(), -y
    for _ in range(6):
        f, g = u + u * v**2 - u**3 / 3 - x, -v - u**2 * v + v**3 / 3 - y
        a, b, c = 1 + v**2 - u**2, 2 * u * v, v**2 - u**2 - 1
        determinant = a * c + b * b
        u, v = u - (f * c - g * b) / determinant, v - (g * a + f * b) / determinant
    heights: Array = u**2 - v**2
    return heights


def surface(n: int) -> Discrete:
    """Return the minimal surface over a plate, as `MinimalSurface`."""
    t = np.arange(n + 2) / (n + 1) - 0.5
    half = np.full_like(t, 0.5)
    frame = np.zeros((n + 2, n + 2))
    frame[0], frame[-1] = enneper(t, -half), enneper(t, half)
    frame[:, 0], frame[:, -1] = enneper(-half, t), enneper(half, t)
    plate = (np.abs(t)[None, :] <= 0.25) & (np.abs(t)[:, None] <= 0.25)
    return Discrete(n, np.where(plate, 0.1, -np.inf), np.full_like(frame, np.inf), frame, kind="surface")


PROBLEMS: dict[str, tuple[Callable[[int], Discrete], type[GridProblem]]] = {
    "obstacle": (obstacle, Obstacle),
    "ignition": (ignition, Ignition),
    "bratu": (bratu, Bratu),
    "minimal-surface": (surface, MinimalSurface),
}


def solvers(problem: GridProblem, options: argparse.Namespace) -> dict[str, Callable[[], Any]]:
    """Return what makes each of mldd's solvers, with its levels and subdomains: part of the time."""

    depth = problem.n.bit_length()

    def coarse(solver: str) -> Recursion:
        said = problem.settings(solver).items()
        return Recursion(**{key.removeprefix("coarse."): value for key, value in said if key.startswith("coarse.")})

    def multilevel() -> MultilevelAdaGrad:
        return MultilevelAdaGrad(problem.hierarchy(depth - 2), AdaGrad(), coarse("ml-adagrad"))

    def schwarz() -> SchwarzAdaGrad:
        levels, local_rtol = problem.coarse_hierarchy(depth - 3, PARTS), problem.settings("dd-adagrad")["local_rtol"]
        return SchwarzAdaGrad(
            problem.decomposition(PARTS, 2), levels, coarse=coarse("dd-adagrad"), local_rtol=local_rtol
        )

    made: dict[str, Callable[[], Any]] = {"ml-adagrad": multilevel}
    if problem.n <= options.most_dd:
        made["dd-adagrad"] = schwarz
    if problem.n <= options.most_doors:
        made["snes:vinewtonrsls"] = lambda: Snes("vinewtonrsls")
        made["tao:bnls"] = lambda: Tao("bnls")
    return made


def run(problem: GridProblem, make: Callable[[], Any], stop: Stop) -> tuple[float, Result]:
    """Return CPU seconds with set-up, and the result."""
    begin = time.process_time()
    result = minimise(problem.objective(), problem.initial(), make(), stop=stop)
    return time.process_time() - begin, result


def gradient_seconds(problem: GridProblem, x: torch.Tensor) -> float:
    """Return the CPU time of one gradient."""
    f, times = problem.objective(), []
    for _ in range(5):
        begin = time.process_time()
        for _ in range(20):
            f.gradient(x)
        times.append((time.process_time() - begin) / 20)
    return statistics.median(times)


def compare(name: str, n: int, options: argparse.Namespace) -> list[Row]:
    """Run the peer and mldd's solvers by turns on one problem, and print a row for each."""
    discretise, make_problem = PROBLEMS[name]
    problem, here = make_problem(n), discretise(n)
    f, x = problem.objective(), problem.initial()
    goal = options.rtol * f.bounds.measure(x, f.gradient(x))
    start = np.clip(here.frame, here.lower, here.upper)
    rtol = goal / here.measure(start)
    rows = []
    solve(discretise, n, rtol)
    for solver, make in solvers(problem, options).items():
        stop = Stop(max_steps=2000, atol=goal, max_seconds=options.max_seconds)
        run(problem, make, Stop(max_steps=2))
        mine, theirs = [], []
        for _ in range(options.repeats):
            begin = time.process_time()
            u, newton, linear = solve(discretise, n, rtol)
            theirs.append(time.process_time() - begin)
            seconds, result = run(problem, make, stop)
            mine.append(seconds)
            if seconds > 5.0:
                break
        end, found = result.record, here.frame.copy()
        found[1:-1, 1:-1] = result.x.numpy().reshape(n, n)
        row: Row = {"problem": name, "n": n, "solver": solver, "status": result.status.name, "steps": end.step}
        row |= {"cpu": statistics.median(mine), "peer_cpu": statistics.median(theirs)}
        row |= {"ratio": row["cpu"] / row["peer_cpu"], "work_units": end.cost.work_units}
        row["share"] = end.cost.work_units * gradient_seconds(problem, result.x) / row["cpu"]
        row |= {
            "measure": here.measure(found) / goal * options.rtol,
            "peer_measure": here.measure(u) / goal * options.rtol,
        }
        row |= {"distance": float(np.abs(found - u).max()), "violation": f.bounds.violation(result.x)}
        row |= {"newton": newton, "linear": linear, "notes": dict(getattr(result.state, "notes", {}))}
        print(
            f"{name:<16} {n:>4} {solver:<18} {row['steps']:>5} {row['work_units']:>9.0f} {row['cpu']:>8.4f} "
            f"{row['peer_cpu']:>8.4f} {row['ratio']:>7.2f} {row['share']:>6.2f} {row['measure']:>8.1e} "
            f"{row['peer_measure']:>8.1e} {row['distance']:>8.1e}  {row['status']}",
            flush=True,
        )
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", type=int, default=[63, 127, 255])
    parser.add_argument("--problems", nargs="+", default=list(PROBLEMS), choices=list(PROBLEMS))
    parser.add_argument("--rtol", type=float, default=1e-8)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-dd", type=int, default=255)
    parser.add_argument("--most-doors", type=int, default=63)
    parser.add_argument("--max-seconds", type=float, default=60.0, help="of every run")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/peers_pde.json"))
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    print(
        "problem             n solver             steps      work      cpu     peer   ratio  share  measure     peer"
        " distance"
    )
    rows = [row for name in options.problems for n in options.sizes for row in compare(name, n, options)]
    best: dict[tuple[str, int], float] = {}
    for row in rows:
        key = row["problem"], row["n"]
        best[key] = min(best.get(key, np.inf), row["ratio"] if row["measure"] <= 2 * options.rtol else np.inf)
    print("best mldd / peer: " + ", ".join(f"{name} {n}: {ratio:.2f}" for (name, n), ratio in best.items()))
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print(f"written  {options.out}")


if __name__ == "__main__":
    main()
