"""How fast is ML-ADAGB2 on the obstacle problem? Depths and variants on one grid, then grids up to 1023 x 1023 nodes.

    OMP_NUM_THREADS=1 python experiments/benchmarks/obstacle.py [--part A B] [--sizes 63 127 ...] [--max-seconds S]
                                                                [--out DIR]

Part A: n = 63, measure (infinity norm) to 1e-6: one level, and 2 to 5 levels with several variants of the recursion.
Bars: with curvature at most 27/23/23/23 steps for 2/3/4/5 levels; without, less work than one level at every depth; the
bounds hold exactly. "gain" is the work of one level of the same kind over the work.

Part B: all sizes, levels down to 7 x 7 nodes, beside TAO's blmvm and bqnktr. Every run goes on to the tighter of two
tests, and what the looser one costs is read off its history: "absolute" (measure <= 1e-6) and "mesh" (measure <= 1e-6
(64 / (n + 1))^2: gradients here are sums over cells of size h^2). "slower" is the CPU time over that of ml-adagrad with
the same test; ">" where the run was given up. One thread; medians of --repeats runs, one run for TAO.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mldd.loop import Stop, minimise, write_table
from mldd.problems.grids import Obstacle
from mldd.ranks import SERIAL, prepare
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion
from mldd.solvers.petsc import Tao

ATOL = 1e-6
STEPS = {2: 27, 3: 23, 4: 23, 5: 23}  # bars on the steps of 2 to 5 levels
BAR, BAR_AT = 20, 511  # bar on the time of blmvm, and n
VARIANTS: dict[str, dict[str, Any]] = {
    "kornhuber": {},
    "truncated": {"coarse": Recursion(bounds="truncated")},
    "gelman-mandel": {"coarse": Recursion(bounds="gelman-mandel")},
    "W-cycle": {"coarse": Recursion(cycle="W")},
    "W, truncated": {"coarse": Recursion(cycle="W", bounds="truncated")},
    "nested=0.01": {"coarse": Recursion(nested=0.01)},
    "first order": {"smoother": AdaGrad(curvature="none")},
    "first order, W": {"smoother": AdaGrad(curvature="none"), "coarse": Recursion(cycle="W")},
}
Row = dict[str, Any]


def depths(n: int) -> list[Row]:
    """Run all variants at all depths and print them."""
    problem, rows, single = Obstacle(n), [], {}
    f, x = problem.objective(), problem.initial()
    print(f"A. obstacle:n={n} to measure {ATOL:g}")
    print("variant         levels  steps  gradients  work units    gain   measure  violation  seconds")
    for levels in range(1, 6):
        for name, settings in VARIANTS.items():
            smoother = settings.get("smoother", AdaGrad())
            curvature = smoother.curvature
            if levels == 1 and name not in ("kornhuber", "first order"):
                continue
            solver = smoother if levels == 1 else MultilevelAdaGrad(problem.hierarchy(levels), **settings)
            result = minimise(f, x, solver, stop=Stop(max_steps=5000, atol=ATOL))
            end, violation = result.record, f.bounds.violation(result.x)
            single.setdefault(curvature, end.cost.work_units)
            gain = single[curvature] / end.cost.work_units
            ok = result.status.name == "converged_atol" and violation == 0
            bar = ""
            if levels > 1 and name in ("kornhuber", "first order"):
                ok = ok and (end.step <= STEPS[levels] if name == "kornhuber" else gain > 1)
                bar = "holds" if ok else "MISSED"
            print(
                f"{name if levels > 1 else 'one level, ' + curvature:<15} {levels:>6} {end.step:>6} "
                f"{end.cost.gradient_evaluations:>10} {end.cost.work_units:>11.1f} {gain:>7.1f} {end.measure:>9.1e} "
                f"{violation:>10.1g} {end.cost.seconds:>8.2f}  {bar}".rstrip(),
                flush=True,
            )
            rows.append(
                {"n": n, "levels": levels, "variant": name, "status": result.status.name, "steps": end.step}
                | {
                    "gradients": end.cost.gradient_evaluations,
                    "work_units": end.cost.work_units,
                    "measure": end.measure,
                }
                | {"violation": violation, "seconds": end.cost.seconds}
            )
    return rows


def run(problem: Obstacle, solver: Any, atol: float, max_seconds: float) -> list[Row]:
    """Return what it took after every step: the record, and CPU seconds since the start."""
    trace: list[Row] = []
    begin = time.process_time()
    minimise(
        problem.objective(),
        problem.initial(),
        solver,
        stop=Stop(max_steps=10**6, atol=atol, max_seconds=max_seconds),
        monitors=[lambda record: trace.append({"record": record, "cpu": time.process_time() - begin})],
    )
    return trace


def sizes(numbers: list[int], max_seconds: float, repeats: int) -> list[Row]:
    """Run the solvers on all grids and print what they cost."""
    rows: list[Row] = []
    print("\nB. obstacle, levels down to 7 x 7 nodes; one thread, seconds of CPU and of the clock")
    print(
        "    n test      solver                steps  gradients  work units  per step     CPU   clock  us/node  slower"
    )
    for n in numbers:
        problem = Obstacle(n)
        levels = problem.hierarchy(round(math.log2((n + 1) / 8)) + 1)
        tests = {"absolute": ATOL, "mesh": ATOL * (64 / (n + 1)) ** 2}
        solvers: list[tuple[str, Any, int, float]] = [
            ("ml-adagrad", MultilevelAdaGrad(levels), repeats, tests["mesh"]),
            (
                "ml-adagrad nested=0.01",
                MultilevelAdaGrad(levels, coarse=Recursion(nested=0.01)),
                repeats,
                tests["mesh"],
            ),
            (
                "ml-adagrad W nested=0.01",
                MultilevelAdaGrad(levels, coarse=Recursion(cycle="W", nested=0.01)),
                1,
                tests["mesh"],
            ),
            ("tao:blmvm", Tao("blmvm"), 1, tests["mesh"]),
            ("tao:bqnktr", Tao("bqnktr"), 1, tests["absolute"]),
        ]
        for _, solver, _, _ in solvers:
            minimise(problem.objective(), problem.initial(), solver, stop=Stop(max_steps=2))  # memory is touched
        traces = {
            name: [run(problem, solver, atol, max_seconds) for _ in range(times)]
            for name, solver, times, atol in solvers
        }
        for test, atol in tests.items() if n > 63 else [("absolute", ATOL)]:
            reference = 0.0
            for name, _, _, tightest in solvers:
                if tightest > atol:
                    continue
                found = [next((e for e in trace if e["record"].measure <= atol), None) for trace in traces[name]]
                ends = [trace[-1] if e is None else e for e, trace in zip(found, traces[name], strict=True)]
                record, cpu = ends[0]["record"], statistics.median(e["cpu"] for e in ends)
                clock = statistics.median(e["record"].cost.seconds for e in ends)
                reference = reference or cpu
                print(
                    f"{n:>5} {test:<9} {name:<21} {record.step:>5} {record.cost.gradient_evaluations:>10} "
                    f"{record.cost.work_units:>11.1f} {record.cost.work_units / record.step:>9.2f} {cpu:>7.2f} "
                    f"{clock:>7.2f} "
                    f"{1e6 * cpu / n**2:>8.2f} {'>' if found[0] is None else ' '}{cpu / reference:>6.1f}"
                    + (f"  not reached in {clock:.0f} s: {record.measure:.1e}" if found[0] is None else ""),
                    flush=True,
                )
                rows.append(
                    {"n": n, "test": test, "solver": name, "reached": found[0] is not None, "steps": record.step}
                    | {"gradients": record.cost.gradient_evaluations, "work_units": record.cost.work_units, "cpu": cpu}
                    | {"seconds": clock, "measure": record.measure, "slower": cpu / reference}
                )
    return rows


def summary(rows: list[Row]) -> None:
    """Print by how much steps of ml-adagrad differ over the grids, from n = 127 on, and how much slower blmvm is."""
    cases = dict.fromkeys((r["solver"], r["test"]) for r in rows if r["solver"].startswith("ml") and r["n"] > 63)
    for solver, test in cases:
        steps = [r["steps"] for r in rows if (r["solver"], r["test"]) == (solver, test) and r["n"] > 63]
        print(f"{solver:<21} {test:<9} steps {steps}, largest / smallest {max(steps) / min(steps):.2f}")
    for mine in (r for r in rows if r["n"] == BAR_AT and r["solver"].startswith("ml")):
        other = next(r for r in rows if (r["n"], r["test"], r["solver"]) == (BAR_AT, mine["test"], "tao:blmvm"))
        ratio = other["cpu"] / mine["cpu"]
        verdict = "holds" if ratio >= BAR else "MISSED"
        print(
            f"n={BAR_AT}, {mine['test']}: blmvm takes {ratio:.1f} times as long as {mine['solver']} ({BAR}: {verdict})"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", nargs="+", default=["A", "B"], choices=["A", "B"])
    parser.add_argument("--sizes", nargs="+", type=int, default=[63, 127, 255, 511, 1023])
    parser.add_argument("--max-seconds", type=float, default=300.0, help="of every run")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/obstacle"))
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    for part in options.part:
        rows = depths(63) if part == "A" else sizes(options.sizes, options.max_seconds, options.repeats)
        if part == "B":
            summary(rows)
        path = options.out / f"{part}.csv"
        write_table(path, rows)
        print(f"written  {path}")


if __name__ == "__main__":
    main()
