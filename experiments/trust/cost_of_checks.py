"""What the checks for silent errors cost a run: their share of the time, and runs with and without them.

    python experiments/trust/cost_of_checks.py [--sizes 316,1000,3162] [--steps 100] [--repeats 3] [--out DIR]

`share` is the time inside of checks and copies over that of the run, `ratio` the median, over runs in turns, of the
processor time with checks over that without: the noise of the machine is in it. Steps of AdaGrad on the obstacle
problem with n x n unknowns are the cheapest there are, those of Adam on Cora are the evaluation of a network.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import mldd
from mldd.loop import Detection, Stop, minimise
from mldd.loop.guards import Detector
from mldd.solvers import AdaGrad, Adam

_paid = Detector._paid


def timed(problem: Any, solver: Any, steps: int, detection: Detection) -> tuple[float, float, int]:
    """Return processor seconds of a run, the share of its time inside of checks, and the number of checks."""
    inside, checks = [0.0], [0]

    @contextmanager
    def paid(self: Detector) -> Iterator[None]:
        begin = time.perf_counter()
        with _paid(self):
            yield
        inside[0] += time.perf_counter() - begin

    look = Detector._told
    try:
        Detector._paid = paid  # type: ignore[method-assign]
        Detector._told = lambda *a: (checks.__setitem__(0, checks[0] + 1), look(*a))[1]  # type: ignore[method-assign]
        begin, clock = time.process_time(), time.perf_counter()
        minimise(problem.objective(), problem.initial(0), solver, stop=Stop(steps), values=False, detection=detection)
        return time.process_time() - begin, inside[0] / (time.perf_counter() - clock), checks[0]
    finally:
        Detector._paid, Detector._told = _paid, look  # type: ignore[method-assign]


def row(name: str, problem: Any, solver: Any, steps: int, repeats: int) -> dict[str, Any]:
    """Return a row of the table."""
    size = problem.objective().size
    timed(problem, solver, 2, Detection())
    ratios, shares, checks = [], [], []
    for _ in range(repeats):
        without = timed(problem, solver, steps, Detection(share=0.0))[0]
        total, share, times = timed(problem, solver, steps, Detection())
        ratios.append(total / without)
        shares.append(share)
        checks.append(times)
    found = {"share": statistics.median(shares), "ratio": statistics.median(ratios)}
    line = {"problem": name, "unknowns": size, "steps": steps, "repeats": repeats, "checks": max(checks), **found}
    print("  ".join(f"{v:.4f}" if isinstance(v, float) else f"{v!s:>8}" for v in line.values()), flush=True)
    return line


def main() -> None:
    """Measure and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", default="316,1000,3162")
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("paper/results/trust"))
    options = parser.parse_args()
    rows = [row("cora, adam", mldd.problem("cora"), Adam(0.01), options.steps, options.repeats)]
    for n in map(int, options.sizes.split(",")):
        few = max(1, options.repeats * 1000 // max(n, 1000))
        rows.append(row("obstacle, adagrad", mldd.problem("obstacle", n=n), AdaGrad(), options.steps, few))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "cost_of_checks.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
