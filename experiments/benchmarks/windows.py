"""Window models of -u'' = (pi w)^2 sin(pi w x), one CPU thread: the time of a step of Adam.

    python experiments/benchmarks/windows.py [--jax PYTHON] [--out paper/results/windows.json]

A step of Adam inside `minimise` with 4 windows, and with one network 1-64-64-1, beside the same in plain torch
(derivatives propagated by hand, fused Adam) and, with --jax and a Python that has JAX, in JAX (one compiled step, and
scans of 100). All are called in turn; what is printed are medians of CPU milliseconds per step and of the ratios of
mldd's time to the peer's. From the same start all have the same loss after the same steps, which is checked. The bar is
0.30 ms in float32 and 0.60 in float64, and a ratio of at most 1. Times to errors are `experiments.peers.windows`.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from mldd import Stop, minimise
from mldd.problems.pinns import PhysicsInformed
from mldd.problems.pinns.pinn_options import Architecture, Poisson
from mldd.problems.pinns.window_loss import WindowLoss
from mldd.ranks import SERIAL, prepare
from mldd.solvers import Adam

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.benchmarks.peers.windows_peers import RATE, Jax, torch_steps  # noqa: E402 (from the folder above)
from experiments.machine import processor  # noqa: E402 (from the folder above)

BARS = {"float32": 0.30, "float64": 0.60}  # ms per step of Adam
STEPS = {
    "4 windows": PhysicsInformed("poisson1d", "windows", poisson=Poisson(unit=True), points=200),
    "network 1-64-64-1": PhysicsInformed(
        "poisson1d", network=Architecture("dense", 3, 64), poisson=Poisson(unit=True), points=200
    ),
}


def arrays(problem: PhysicsInformed) -> dict[str, Any]:
    """Return what peers need: tensors of the networks at the start, points, and how residuals depend on them."""
    f, x = problem.objective(), problem.initial(0)
    if isinstance(f, WindowLoss):
        (patch,) = f.patches
        net, rows = patch.streams.net, patch.of(x)
        fields = patch.streams.points, patch.coefficients[:, 0], patch.places, f.frozen.flatten()
    else:
        (piece,) = f.pieces(x)
        offset, slopes = piece._affine
        net, rows = f.net, x[None]
        fields = piece.points[None], slopes[None, ..., 0], torch.arange(len(piece.points)), offset[:, 0]
    given = dict(zip(("points", "coefficients", "places", "frozen"), fields, strict=True))
    given |= {f"tensor{k}": view for k, view in enumerate(net.layout.views(rows))}
    dtype = getattr(torch, problem.dtype)
    return {k: (t.to(dtype) if t.is_floating_point() else t).contiguous().numpy() for k, t in given.items()}


def cpu_ms(call: Callable[[], Any], steps: int) -> tuple[float, Any]:
    """Return CPU milliseconds per step, and the result."""
    begin = time.process_time()
    found = call()
    return 1e3 * (time.process_time() - begin) / steps, found


def step_times(name: str, problem: PhysicsInformed, options: Any) -> dict[str, Any]:
    """Time steps of Adam in blocks, ours and peers in turn."""
    f, given, steps = problem.objective(), arrays(problem), options.block
    run = minimise(f, problem.initial(0), Adam(lr=RATE), stop=Stop(0))

    def ours() -> float:
        nonlocal run
        at = run.x
        run = minimise(f, at, Adam(lr=RATE), stop=Stop(run.state.step + steps), state=run.state)
        return float(f.value(run.x))

    in_torch, jax = torch_steps(given), None if options.jax is None else Jax(options.jax, given)
    rows: dict[str, list[float]] = {}
    for turn in range(options.repeats + 2):  # two turns to warm up and to compile
        found = {"mldd": cpu_ms(ours, steps), "torch": cpu_ms(lambda: in_torch(steps), steps)}
        if jax is not None:
            found |= {f"jax {way}": jax.ms(way, steps) for way in ("loop", "scan")}
        losses = [loss for _, loss in found.values()]
        if turn == 0 and max(losses) > 1.1 * min(losses):
            raise RuntimeError(f"losses after {steps} steps are not the same: {losses}")
        for key, (ms, _) in found.items() if turn > 1 else ():
            rows.setdefault(key, []).append(ms)
    if jax is not None:
        jax.end()
    ratio = {k: median(a / b for a, b in zip(rows["mldd"], row, strict=True)) for k, row in rows.items() if k != "mldd"}
    ms = {key: median(row) for key, row in rows.items()}
    print(f"{name:<20} {problem.dtype}", *(f" {key} {value:.3f} ms" for key, value in ms.items()), sep="")
    bar = "met" if ms["mldd"] <= BARS[problem.dtype] else "missed"
    print(
        f"{'':>28}", *(f" {value:.2f} of {key}" for key, value in ratio.items()), f"  (bar {bar})", sep="", flush=True
    )
    shown = {part: {k: round(v, 3) for k, v in row.items()} for part, row in (("ms", ms), ("ratio", ratio))}
    return {"model": name, "dtype": problem.dtype} | shown


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--jax", metavar="PYTHON", help="a Python that has JAX")
    parser.add_argument("--block", type=int, default=100, help="steps per call")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    rows = []
    for name, problem in STEPS.items():
        rows += [step_times(name, replace(problem, dtype=dtype), options) for dtype in BARS]
    if options.out is not None:
        made = {"processor": processor(), "torch": torch.__version__, "steps": rows}
        options.out.write_text(json.dumps(made, indent=1) + "\n")


if __name__ == "__main__":
    main()
