"""How soon do Schwarz methods train a network for digits? Benchmark B1: time, gradients, synchronisations.

    OMP_NUM_THREADS=1 [mpiexec -n 2] python [-m mpi4py] experiments/benchmarks/digits.py [--methods A B] [--out DIR]

Network 64-128-64-10 (tanh), cross-entropy, the first 1,400 of a seeded permutation, full batch, 2 parts of the data (or
of the layers), on 2 ranks or as 2 subdomains on one. Every method with a rate gets the best of a grid, by seed 0: the
rate that reaches the most targets, then the one with the fewest gradients to the last of these. A run ends at the last
target or after `--budget` gradients per rank.

"gradients" are per rank, each over the 700 samples of a rank, local and global ones alike; a value without gradient is
a third of one. On one rank, which does the work of both, the number is the same: the work units of the run.
"synchronisations" are collectives on vectors; "accepted" is the share of Schwarz steps that were. "cpu" is process time
of rank 0, without evaluations for the table. Bars for APTS: at least 85 % of its Schwarz steps accepted, and 1e-2 in
fewer than 1,000 gradients per rank.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mldd.algebra import uncounted
from mldd.figures import comparison
from mldd.loop import Result, Stop, minimise, write_table
from mldd.problems.images import Digits
from mldd.ranks import Communicator, prepare, world
from mldd.solvers import LBFGS, AdaGrad, Adam, Apts, DiLoCo, LocalSgd, SchwarzAdaGrad, SchwarzLBFGS, Sgd, TrustRegion

TARGETS = (1e-2, 1e-4, 1e-6)
COLUMNS = ("cpu", "seconds", "gradients", "synchronisations", "accepted")
SHARE, GRADIENTS = 0.85, 1000
FIRST_ORDER: dict[str, Any] = {
    "local": TrustRegion("first-order"),
    "outer": TrustRegion("first-order"),
    "combine": "asm",
}


@dataclass(frozen=True)
class Method:
    """How a method is made, of which decomposition, and from which rates.

    Parameters
    ----------
    make : callable
        ``make(decomposition, comm, rate)``.
    rates : tuple of float
        The grid; one entry where there is no rate to tune.
    problem : dict
        Fields of `Digits`.
    bars : bool
        The bars apply.
    """

    make: Callable[[Any, Communicator, float], Any]
    rates: tuple[float, ...] = (0.0,)
    problem: dict[str, Any] = field(default_factory=lambda: {"subdomains": "data"})
    bars: bool = False


def apts(**options: Any) -> Method:
    """Return APTS over the data."""
    return Method(lambda d, comm, rate: Apts(d, comm=comm, **options), bars=True)


LAYERS: dict[str, Any] = {"subdomains": "parameters"}
BATCHES = {"subdomains": "data", "batch": 128, "sampling": "independent"}
RATES = (1e-3, 3e-3, 1e-2, 3e-2)
METHODS: dict[str, Method] = {
    "apts": apts(),
    "apts, sr1": apts(local=TrustRegion("sr1"), outer=TrustRegion("sr1")),
    "apts, first order": apts(**FIRST_ORDER, local_steps=3),
    "napts (window, subspace)": apts(outer=TrustRegion(window=5), subspace_steps=3, global_steps=0),
    "apts over layers": Method(lambda d, comm, rate: Apts(d, comm=comm), problem=LAYERS),
    "aspqn over data": Method(lambda d, comm, rate: SchwarzLBFGS(d, local_steps=5, comm=comm)),
    "aspqn over layers": Method(lambda d, comm, rate: SchwarzLBFGS(d, local_steps=5, comm=comm), problem=LAYERS),
    "dd-adagrad": Method(
        lambda d, comm, rate: SchwarzAdaGrad(
            d, local=AdaGrad(1e-3, rate), combine="wasm", local_steps=5, global_steps=1, comm=comm
        ),
        (0.03, 0.1, 0.3),
    ),
    "trust region": Method(lambda d, comm, rate: TrustRegion(comm=comm)),
    "lbfgs": Method(lambda d, comm, rate: LBFGS()),
    "adam": Method(lambda d, comm, rate: Adam(rate), (1e-4, *RATES, 1e-1)),
    "localsgd, momentum": Method(lambda d, comm, rate: LocalSgd(d, Sgd(rate, 0.9), comm=comm), (0.03, 0.1, 0.3)),
    "localsgd, adam": Method(lambda d, comm, rate: LocalSgd(d, local=Adam(rate), memory="average", comm=comm), RATES),
    "localsgd, batches of 64": Method(
        lambda d, comm, rate: LocalSgd(d, local=Sgd(rate, 0.9), comm=comm), (0.03, 0.1, 0.3), BATCHES
    ),
    "diloco": Method(lambda d, comm, rate: DiLoCo(d, Adam(rate), comm=comm), (3e-4, *RATES)),
}


@dataclass
class CaseRun:
    """One run, and the process time at each of its records.

    Attributes
    ----------
    result : Result
    cpu : list of float
    """

    result: Result
    cpu: list[float]

    def at(self, target: float) -> dict[str, Any] | None:
        """Return what it took to reach `target`, or None."""
        for record, cpu in zip(self.result.history.records, self.cpu, strict=True):
            if record.value <= target:
                tried = record.accepted + record.rejected
                return {
                    "cpu": cpu,
                    "seconds": record.cost.seconds,
                    "gradients": record.cost.work_units,
                    "synchronisations": record.cost.synchronisations,
                    "accepted": record.accepted / tried if tried else 1.0,
                }
        return None

    def rank(self) -> tuple[int, float]:
        """Return what tuning compares: targets missed, and gradients to the last one that was reached."""
        reached = [found["gradients"] for found in map(self.at, TARGETS) if found is not None]
        return len(TARGETS) - len(reached), reached[-1] if reached else self.result.record.value


def solve(method: Method, seed: int, rate: float, options: argparse.Namespace, comm: Communicator) -> CaseRun:
    """Run one case on all ranks."""
    problem = Digits(dtype=options.dtype, comm=comm, **method.problem)
    f, x, decomposition = problem.objective(), problem.initial(seed), problem.decomposition(2, comm=comm)
    solver = method.make(decomposition, comm, rate)
    per_step = minimise(f, x, solver, stop=Stop(3), comm=comm).record.cost.work_units / 3
    with uncounted():
        begin = time.process_time()
        for _ in range(10):
            f.value(x) if getattr(solver, "needs_gradient", True) else f.value_and_gradient(x)
        unseen = (time.process_time() - begin) / 10
    cpu: list[float] = []
    begin = time.process_time()
    result = minimise(
        f,
        x,
        solver,
        stop=Stop(round(options.budget / per_step), target=TARGETS[-1]),
        monitors=[lambda record: cpu.append(time.process_time() - begin - (len(cpu) + 1) * unseen)],
        comm=comm,
    )
    return CaseRun(result, cpu)


def tuned(name: str, options: argparse.Namespace, comm: Communicator) -> float:
    """Return the best rate of the grid, by the first seed."""
    method = METHODS[name]
    if len(method.rates) == 1:
        return method.rates[0]
    scores = [(solve(method, options.seeds[0], rate, options, comm).rank(), rate) for rate in method.rates]
    return min(scores)[1]


def table(options: argparse.Namespace, comm: Communicator) -> tuple[list[dict[str, Any]], dict[str, list[Any]]]:
    """Run all cases and print medians over seeds on rank 0."""
    rows: list[dict[str, Any]] = []
    histories: dict[str, list[Any]] = {}
    main = comm.rank == 0
    if main:
        print(f"digits, {options.dtype}, 2 parts on {comm.ranks} rank(s); medians over seeds {options.seeds}")
        print(f"{'method':<26} {'rate':>7} {'target':>7} reached {'cpu s':>7} {'wall s':>7} gradients  syncs accepted")
    for name in options.methods:
        method, rate = METHODS[name], tuned(name, options, comm)
        runs = [solve(method, seed, rate, options, comm) for seed in options.seeds]
        histories[name] = [run.result.history for run in runs]
        for target in TARGETS:
            found = [run.at(target) for run in runs]
            got = [one for one in found if one is not None]
            middle = {c: statistics.median(one[c] for one in got) if got else float("nan") for c in COLUMNS}
            if main:
                label = f"{name:<26} {rate:>7g}" if target == TARGETS[0] else f"{'':<34}"
                numbers = "{cpu:>7.2f} {seconds:>7.2f} {gradients:>9.0f} {synchronisations:>6.0f} {accepted:>8.2f}"
                bars = judge(got, len(runs)) if method.bars and target == TARGETS[0] else ""
                print(f"{label} {target:>7g} {len(got)} of {len(runs)}  {numbers.format(**middle)}{bars}", flush=True)
            rows += [
                {"method": name, "rate": rate, "seed": seed, "target": target, "ranks": comm.ranks}
                | (one or dict.fromkeys(COLUMNS, ""))
                for seed, one in zip(options.seeds, found, strict=True)
            ]
    return rows, histories


def judge(got: list[dict[str, Any]], runs: int) -> str:
    """Say whether the bars of APTS hold in all runs."""
    holds = len(got) == runs and all(one["accepted"] >= SHARE and one["gradients"] < GRADIENTS for one in got)
    return "  bars hold" if holds else "  bars MISSED"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--budget", type=float, default=3000, help="gradients per rank")
    parser.add_argument("--dtype", default="float64", choices=["float64", "float32"])
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/digits"))
    options = parser.parse_args()
    comm = world()
    prepare(comm)
    rows, histories = table(options, comm)
    if comm.rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / "table.csv", rows)
        for k, names in enumerate((list(histories)[:6], list(histories)[6:])):
            if names:
                path = options.out / f"loss_{k}"
                comparison({name: histories[name] for name in names}, path, "digits, 2 parts: training loss")
        print(f"written  {options.out}")


if __name__ == "__main__":
    main()
