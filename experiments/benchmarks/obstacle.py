"""How much do levels and variants of the recursion of ML-ADAGB2 save on the obstacle problem?

    OMP_NUM_THREADS=1 python experiments/benchmarks/obstacle.py [--out DIR]

n = 63, measure (infinity norm) to 1e-6: one level, and 2 to 5 levels with several variants of the recursion. Bars: with
curvature at most 27/23/23/23 steps for 2/3/4/5 levels; without, less work than one level at every depth; the bounds
hold exactly. "gain" is the work of one level of the same kind over the work. Other sizes, TAO and SNES with multigrid
are in `experiments.peers.bounds`.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch

from mldd.loop import Stop, minimise, write_table
from mldd.problems.grids import Obstacle
from mldd.ranks import SERIAL, prepare
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion

ATOL = 1e-6
STEPS = {2: 27, 3: 23, 4: 23, 5: 23}  # bars on the steps of 2 to 5 levels
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
    print(f"obstacle:n={n} to measure {ATOL:g}")
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/obstacle"))
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    rows = depths(63)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "table.csv"
    write_table(path, rows)
    print(f"written  {path}")


if __name__ == "__main__":
    main()
