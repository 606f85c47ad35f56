"""How soon does a network solve the 1-D Poisson equation? Benchmark B2: CPU time and gradients to targets.

    [mpiexec -n 2] python [-m mpi4py] experiments/benchmarks/poisson.py [--methods A B] [--seeds 0 1 2 3 4]
        [--seconds 16] [--out DIR]

``-u'' = sin(pi x)`` on (0, 1), 102 points of which two penalise the boundary conditions (``--boundary hard``:
built into the network), 8 x 20 tanh (3,001 parameters), float64, one thread. Targets are errors ``|u - u*| / |u*|`` in
the 2-norm on 501 points. Adam gets the best of three rates by the first seed.

A target's row has the median over the seeds that reached it and the quartiles of the CPU time. "cpu" is the process
time of rank 0 without evaluations for the table; methods with subdomains do the work of all of them on the ranks there
are. "total" counts all gradients in those of the whole network (a gradient with respect to some layers costs less);
"per rank" those of one rank if every subdomain of an additive method had its own. Bars: 1e-3 and 1e-4 sooner than
L-BFGS, and sooner than public ASPQN code on 2 ranks (4.3e-3 at 4 s, 2.4e-5 at 16 s and 4,028 gradients per rank).
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mldd.algebra import uncounted
from mldd.figures import comparison
from mldd.loop import History, Record, Status, Stop, minimise, write_table
from mldd.problems.pinns import PhysicsInformed
from mldd.problems.pinns.pinn_options import Poisson
from mldd.ranks import Communicator, prepare, world
from mldd.solvers import LBFGS, Adam, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS
from mldd.solvers.schwarz_lbfgs import CoarseStep

TARGETS = (1e-2, 1e-3, 1e-4)
BARS = (1e-3, 1e-4)
PUBLIC = {4.3e-3: 4.0, 2.4e-5: 16.0}  # error and CPU seconds on 2 ranks of the public ASPQN code
COSTS = ("cpu", "total", "per_rank", "synchronisations")
PAUSE = 0.02  # CPU seconds between evaluations of the error


@dataclass(frozen=True)
class Method:
    """How a method is made.

    Parameters
    ----------
    make : callable
        ``make(decomposition, comm, rate)``.
    parts, overlap : int
        Runs of layers, and by how many layers each is widened.
    rates : tuple of float
        The grid; one entry where there is no rate to tune.
    """

    make: Callable[[Any, Communicator, float], Any]
    parts: int = 1
    overlap: int = 0
    rates: tuple[float, ...] = (0.0,)


def spqn(parts: int, overlap: int = 0, **options: Any) -> Method:
    """Return ASPQN or MSPQN over runs of layers."""
    return Method(lambda d, comm, rate: SchwarzLBFGS(d, comm=comm, **options), parts, overlap)


PUBLISHED: dict[str, Any] = {
    "local_steps": 10,
    "local": BatchLBFGS(10),
    "outer": LBFGS(3, momentum=0.9),
    "keep_pairs": False,
}
METHODS: dict[str, Method] = {
    "mspqn": spqn(5, order="multiplicative", outer=LBFGS(3)),
    "mspqn, published": spqn(2, order="multiplicative", **PUBLISHED),
    "aspqn": spqn(2),
    "aspqn, published": spqn(2, **PUBLISHED),
    "aspqn, sum": spqn(2, combine="wasm", search="sum"),
    "aspqn, subspace": spqn(2, combine="wasm", subspace_steps=5),
    "aspqn, overlap": spqn(2, 1),
    "aspqn, coarse": spqn(2, coarse=CoarseStep(5)),
    "lbfgs": Method(lambda d, comm, rate: LBFGS(10)),
    "adam": Method(lambda d, comm, rate: Adam(rate), rates=(1e-3, 3e-3, 1e-2)),
}


@dataclass
class Race:
    """Process time and error of a run, step by step; it ends the run when the time is used up or all targets are met.

    Attributes
    ----------
    problem : PhysicsInformed
    seconds : float
        Budget of CPU seconds.
    last : float
        The smallest target.
    records : list of Record
        The error in place of the value, CPU seconds in place of wall seconds.
    """

    problem: PhysicsInformed
    seconds: float
    last: float
    records: list[Record] = field(default_factory=list)
    cpu: float = 0.0
    _begin: float = field(default_factory=time.process_time)

    def __call__(self, x: Any, state: Any, history: History) -> None:
        """Take note of a step."""
        self.cpu += time.process_time() - self._begin
        over = self.cpu >= self.seconds
        if over or not self.records or self.cpu >= self.records[-1].cost.seconds + PAUSE:
            with uncounted():
                error = self.problem.metrics(x)["relative_l2"]
            last = history.records[-1]
            self.records.append(replace(last, cost=replace(last.cost, seconds=self.cpu), value=error))
            if over or error <= self.last:
                state.status = Status.max_seconds if over else Status.target_reached
        self._begin = time.process_time()

    def at(self, target: float) -> Record | None:
        """Return the first record at or below `target`."""
        return next((record for record in self.records if record.value <= target), None)


def solve(method: Method, seed: int, rate: float, options: argparse.Namespace, comm: Communicator) -> Race:
    """Run one case on all ranks."""
    problem = PhysicsInformed("poisson1d", poisson=Poisson(boundary=options.boundary), comm=comm)
    f, x = problem.objective(), problem.initial(seed)
    decomposition = problem.decomposition(max(method.parts, comm.ranks), method.overlap, comm)
    solver = method.make(decomposition, comm, rate)
    minimise(f, x, solver, stop=Stop(2), comm=comm)  # buffers, caches
    race = Race(problem, options.seconds, options.targets[-1])
    minimise(f, x, solver, stop=Stop(10**9), comm=comm, after_step=race)
    return race


def tuned(method: Method, options: argparse.Namespace, comm: Communicator) -> float:
    """Return the rate that leads to the smallest error, by the first seed."""
    if len(method.rates) == 1:
        return method.rates[0]
    runs = [(solve(method, options.seeds[0], rate, options, comm), rate) for rate in method.rates]
    return min((min(record.value for record in race.records), rate) for race, rate in runs)[1]


def costs(record: Record | None, parts: int) -> dict[str, float]:
    """Return what it took to get to a record."""
    if record is None:
        return dict.fromkeys(COSTS, math.nan)
    local = record.cost.work_units - record.cost.gradient_evaluations
    return {
        "cpu": record.cost.seconds,
        "total": record.cost.work_units,
        "per_rank": record.cost.gradient_evaluations + local / parts,
        "synchronisations": float(record.cost.synchronisations),
    }


def table(options: argparse.Namespace, comm: Communicator) -> tuple[list[dict[str, Any]], dict[str, list[History]]]:
    """Run all cases and print medians over seeds on rank 0."""
    rows: list[dict[str, Any]] = []
    histories: dict[str, list[History]] = {}
    medians: dict[tuple[str, float], float] = {}
    say = print if comm.rank == 0 else lambda *words, **options: None
    say(f"poisson1d, {options.boundary} boundary, {comm.ranks} rank(s), {options.seconds:g} s, seeds {options.seeds}")
    say(f"{'method':<18} {'rate':>6} {'target':>7} reached {'cpu s':>7} {'quartiles':>14} {'total':>7} per rank  syncs")
    for name in options.methods:
        method = METHODS[name]
        rate = tuned(method, options, comm)
        races = [solve(method, seed, rate, options, comm) for seed in options.seeds]
        histories[name] = [History(race.records) for race in races]
        for target in options.targets:
            found = [race.at(target) for race in races]
            shared = 1 if method.parts == 1 or "mspqn" in name else method.parts
            numbers = [costs(record, shared) for record in found]
            got = [one for one in numbers if not math.isnan(one["cpu"])]
            middle = {key: float(np.median([one[key] for one in got])) if got else math.nan for key in numbers[0]}
            low, high = np.quantile([one["cpu"] for one in got], [0.25, 0.75]) if got else (math.nan, math.nan)
            medians[name, target] = middle["cpu"] if 2 * len(got) > len(found) else math.inf
            label = f"{name:<18} {rate or '':>6}" if target == options.targets[0] else " " * 25
            say(
                f"{label} {target:>7g} {len(got)} of {len(found)}  {middle['cpu']:>7.2f} {low:>6.2f}..{high:<6.2f} "
                f"{middle['total']:>7.0f} {middle['per_rank']:>8.0f} {middle['synchronisations']:>6.0f}",
                flush=True,
            )
            rows += [
                {"method": name, "rate": rate, "seed": seed, "target": target, "ranks": comm.ranks} | one
                for seed, one in zip(options.seeds, numbers, strict=True)
            ]
        ends = np.quantile([min(record.value for record in race.records) for race in races], [0.25, 0.5, 0.75])
        say(f"{'':<25} smallest error {ends[1]:.1e}, quartiles {ends[0]:.1e}..{ends[2]:.1e}", flush=True)
    for line in judge(medians, options):
        say(line)
    return rows, histories


def judge(medians: dict[tuple[str, float], float], options: argparse.Namespace) -> list[str]:
    """Say which bars hold for the best method with subdomains."""
    lines, ours = [], [name for name in options.methods if "spqn" in name]
    for target in BARS:
        if "lbfgs" not in options.methods or target not in options.targets or not ours:
            continue
        best = min(ours, key=lambda name: medians[name, target])
        mine, other = medians[best, target], medians["lbfgs", target]
        holds = "holds" if mine < other else "MISSED"
        lines.append(f"{target:g} sooner than L-BFGS: {holds} ({best} {mine:.2f} s, L-BFGS {other:.2f} s)")
    for error, seconds in PUBLIC.items():
        target = next((t for t in options.targets if t <= error), None)
        if target is not None and ours:
            mine = min(medians[name, target] for name in ours)
            holds = "holds" if mine < seconds else "MISSED"
            lines.append(
                f"{target:g} sooner than {error:g} by public ASPQN code: {holds} ({mine:.2f} s, {seconds:g} s)"
            )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--targets", nargs="+", type=float, default=[*TARGETS, 2e-5])
    parser.add_argument("--seconds", type=float, default=16.0, help="CPU seconds of a run")
    parser.add_argument("--boundary", default="soft", choices=["soft", "hard"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/poisson"))
    options = parser.parse_args()
    options.targets.sort(reverse=True)
    comm = world()
    prepare(comm)
    torch.set_num_threads(1)  # threads that wait use up process time, too
    rows, histories = table(options, comm)
    if comm.rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / "table.csv", rows)
        labels = {"value": "relative L2 error", "seconds": "CPU time (s)"}
        comparison(histories, options.out / "error", "poisson1d", labels, against=("seconds",), show=("value",))
        print(f"written  {options.out}")


if __name__ == "__main__":
    main()
