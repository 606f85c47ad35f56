"""ASPQN and MSPQN against L-BFGS and Adam on physics-informed networks: table 3 of arXiv 2306.17648, in a fixed budget.

    OMP_NUM_THREADS=1 python experiments/kopanicakova2024/pinns.py [--problems burgers klein-gordon allen-cahn]
        [--methods lbfgs aspqn mspqn ...] [--seconds 600] [--seed 0] [--points 10000] [--out DIR]

Networks, points, subdomains (one layer each), local steps and rates of Adam are those of table 1 of the paper; "kept"
are ASPQN and MSPQN with 20 local steps whose curvature pairs are kept from one outer step to the next. float64; error
``|u - u*| / |u|`` as in the paper, on a regular grid. Every method gets the same CPU seconds of one thread, which does
the work of all subdomains; the evaluation of the error is not in them.

"update cost" is the paper's, in gradients of the whole network per device: those that were evaluated on the whole, plus
``k_s / N_sd`` per outer step for ASPQN (a device per subdomain) and ``k_s`` for MSPQN (one device for all), a local
gradient being worth the share ``1 / N_sd`` of the parameters. The ratios are those of the update costs of L-BFGS and of
a method to the same error, next to the paper's ratios of minutes (558.5 / 14.4 and 558.5 / 40.7 for Burgers, ...).
Third-party notes are the source of both tables; this is our reference run, not a reproduction.
"""

from __future__ import annotations

import argparse
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from mldd import Stop, minimise
from mldd.algebra import uncounted
from mldd.loop import Status, write_table
from mldd.problems.pinns import PhysicsInformed
from mldd.ranks import SERIAL, prepare
from mldd.solvers import LBFGS, Adam, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS

# Ratios of the minutes that L-BFGS took and ASPQN (a GPU per subdomain), MSPQN (one GPU) took, and the target error.
PAPER = {
    "burgers": {"aspqn": 38.8, "mspqn": 13.7, "target": 4.6e-4},
    "klein-gordon": {"aspqn": 34.8, "mspqn": 8.8, "target": 6.1e-4},
    "allen-cahn": {"aspqn": 12.6, "mspqn": 8.5, "target": 6.0e-4},
}
PUBLISHED: dict[str, Any] = {"outer": LBFGS(3, momentum=0.9), "local": BatchLBFGS(10), "keep_pairs": False}
KEPT: dict[str, Any] = {"outer": LBFGS(10), "local": BatchLBFGS(50), "keep_pairs": True, "local_steps": 20}
METHODS = ("lbfgs", "aspqn", "mspqn", "aspqn kept", "mspqn kept", "adam")
PAUSE = 1.0  # CPU seconds between evaluations of the error, where steps are shorter


@dataclass(frozen=True)
class Case:
    """A problem of table 1."""

    problem: PhysicsInformed

    @property
    def layers(self) -> int:
        """Number of subdomains."""
        return self.problem.net.layers

    def options(self, method: str) -> dict[str, Any]:
        """Return what is set of `SchwarzLBFGS`: the published values, or with pairs that are kept."""
        return {"local_steps": self.problem.preset.local_steps} | (KEPT if "kept" in method else PUBLISHED)

    def solver(self, method: str) -> Any:
        """Return the method with the configuration of table 1."""
        if method == "adam":
            return Adam(self.problem.preset.rate)
        if method == "lbfgs":
            return LBFGS()
        order = "additive" if "aspqn" in method else "multiplicative"
        return SchwarzLBFGS(self.problem.decomposition(self.layers, 0), order, **self.options(method))

    def update_cost(self, method: str, gradients: int, steps: int) -> float:
        """Return the paper's update cost of a device, in gradients of the whole network."""
        if "spqn" not in method:
            return gradients
        return gradients + steps * self.options(method)["local_steps"] / (self.layers if "aspqn" in method else 1)


@dataclass
class Curve:
    """Error and cost of a run; ends it when its CPU seconds are used up."""

    case: Case
    method: str
    seconds: float
    rows: list[dict[str, float]] = field(default_factory=list)
    cpu: float = 0.0
    begin: float = field(default_factory=time.process_time)

    def __call__(self, x: torch.Tensor, state: Any, history: Any) -> None:
        """Take note of a step."""
        self.cpu += time.process_time() - self.begin
        over = self.cpu >= self.seconds
        if over or not self.rows or self.cpu >= self.rows[-1]["cpu"] + PAUSE:
            record = history.records[-1]
            with uncounted():
                error = self.case.problem.metrics(x)["relative_l2_paper"]
                loss = float(self.case.problem.objective().value(x))
            cost = self.case.update_cost(self.method, record.cost.gradient_evaluations, record.step)
            self.rows.append(
                {
                    "step": record.step,
                    "cpu": self.cpu,
                    "update_cost": cost,
                    "work": record.cost.work_units,
                    "loss": loss,
                }
                | {"error": error, "synchronisations": record.cost.synchronisations}
            )
            if over:
                state.status = Status.max_seconds
        self.begin = time.process_time()

    def at(self, target: float, key: str) -> float:
        """Return the cost `key` at which the error was below `target` for the first time, NaN if never."""
        return next((row[key] for row in self.rows if row["error"] <= target), math.nan)


def run(case: Case, method: str, seconds: float, seed: int) -> Curve:
    """Run one method on one problem."""
    curve = Curve(case, method, seconds)
    f, x = case.problem.objective(), case.problem.initial(seed)
    minimise(f, x, case.solver(method), stop=Stop(10**9), after_step=curve)
    return curve


def report(name: str, curves: dict[str, Curve]) -> None:
    """Print what every method reached, and ratios of costs to the smallest error that L-BFGS and a method share."""
    print(
        f"{'method':<10} {'steps':>6} {'cpu s':>6} {'update cost':>11} {'work':>8} {'loss':>9} {'last error':>10} least"
    )
    for method, curve in curves.items():
        last, least = curve.rows[-1], min(row["error"] for row in curve.rows)
        print(
            f"{method:<10} {last['step']:>6.0f} {last['cpu']:>6.0f} {last['update_cost']:>11.0f} {last['work']:>8.0f} "
            f"{last['loss']:>9.2e} {last['error']:>10.2e} {least:.2e}",
            flush=True,
        )
    base = curves.get("lbfgs")
    if base is None:
        return
    for method in (method for method in curves if "spqn" in method):
        target = max(min(row["error"] for row in curve.rows) for curve in (base, curves[method]))
        ratios = [base.at(target, key) / curves[method].at(target, key) for key in ("update_cost", "cpu")]
        paper = PAPER[name]
        print(
            f"to error {target:.2e}: L-BFGS over {method}: update cost {ratios[0]:.2f}, CPU {ratios[1]:.2f}"
            f" (paper, to {paper['target']:g}: minutes {paper[method[:5]]})",
            flush=True,
        )


def draw(results: dict[str, dict[str, Curve]], out: Path) -> None:
    """Draw the error against CPU seconds and update cost."""
    figure, axes = plt.subplots(2, len(results), figsize=(5 * len(results), 7), squeeze=False)
    for column, (name, curves) in enumerate(results.items()):
        for row, (key, label) in enumerate((("cpu", "CPU seconds, one thread"), ("update_cost", "update cost"))):
            axis = axes[row][column]
            for method, curve in curves.items():
                axis.loglog([r[key] for r in curve.rows], [r["error"] for r in curve.rows], label=method)
            axis.set_xlabel(label)
            axis.set_title(name if row == 0 else "")
            axis.grid(alpha=0.3)
        axes[0][column].set_ylabel("relative error")
    axes[0][0].legend()
    figure.tight_layout()
    figure.savefig(out / "error.png", dpi=120)
    plt.close(figure)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", default=list(PAPER), choices=list(PAPER))
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--points", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/kopanicakova2024/pinns"))
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    results: dict[str, dict[str, Curve]] = {}
    for name in options.problems:
        case = Case(PhysicsInformed(name, points=options.points))
        print(
            f"{name}: {case.layers} subdomains, {case.problem.preset.local_steps} local steps, "
            f"{options.seconds:g} s, seed {options.seed}",
            flush=True,
        )
        results[name] = {method: run(case, method, options.seconds, options.seed) for method in options.methods}
        report(name, results[name])
        rows = [{"problem": name, "method": m} | row for m, c in results[name].items() for row in c.rows]
        write_table(options.out / f"{name}.csv", rows)
    draw(results, options.out)
    print(f"written  {options.out}")


if __name__ == "__main__":
    main()
