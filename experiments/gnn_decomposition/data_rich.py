"""Decomposed training where data are plentiful: a graph network learns the solution operator of an equation.

    python experiments/gnn_decomposition/data_rich.py [--sizes 24 48] [--parts 4 16] [--seeds 0 1 2] [--quick]
    python experiments/gnn_decomposition/data_rich.py --tune [--sizes 24]
    python experiments/gnn_decomposition/data_rich.py --sphere [--sizes 3 4]
    python experiments/gnn_decomposition/data_rich.py --work [--sphere]

Problem `allen-cahn-operator` on n x n nodes, or `barotropic-operator` on icospheres (--sphere, sizes are their
resolutions, parts by METIS): 4 layers, width 24, batches of 8 (16 for shares among 16 parts) new samples, float32.
Every method does equally many gradient steps from the same starts, with Adam inside, 20 steps of warm-up and a cosine
down to zero; P parts live in one process. Methods: synchronous Adam (every step a sum of the gradient, and an exchange
of the exact halo in every layer but the first); LocalSGD with momentum, DiLoCo and local Adam with averaged moments on
shares of the samples; local Adam on parts of the graph with d rings of neighbours and no other halo; and on both.

Columns: synchronisations (sums of vectors over ranks); MB that a rank sends in them (a sum of N numbers sends
2 (P - 1) / P N); MB of halo that the busiest rank sends; work of the busiest rank, in units of a P-th of that of the
synchronous steps without their halo; relative bias of the mean gradient of the parts at the end; validation loss (48
samples, in units of persistence's); skill of ten intervals against persistence; CPU seconds of all parts together,
without validation. Rates were chosen on seed 0 of 24 x 24 nodes and P = 4 (--tune), DiLoCo's outer rate as published.
"""

from __future__ import annotations

import argparse
import csv
import math
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mldd.loop import Stop, minimise, write_table
from mldd.problems.operators import (
    AllenCahnOperator,
    BarotropicOperator,
    CutOptions,
    LocalGraph,
    NetworkOptions,
    OperatorProblem,
    SampleOptions,
)
from mldd.ranks import SERIAL, prepare
from mldd.solvers import Adam, DiLoCo, LocalAdam, LocalSgd, Sgd
from mldd.solvers.parts import LearningRate

WARM = 20
TUNED = (0.01, 0.02, 0.04, 0.08)
RUN = ("problem", "nodes", "parts", "layers", "method", "subdomains", "overlap", "local_steps", "lr", "seed", "steps")
RATES = {"adam": 0.04, "local sgd": 0.04, "diloco": 0.02, "local adam": 0.04}


@dataclass(frozen=True)
class Method:
    """A method with its decomposition.

    Attributes
    ----------
    name : str
        A key of `RATES`.
    subdomains : str
        What is decomposed; empty for synchronous steps.
    overlap, local_steps : int
        Rings around the parts, and steps between two averages.
    shares : int
        Shares of every part.
    control : bool
        Whether local gradients are shifted by control variates.
    delay : int
        Local steps by which an average comes late.
    """

    name: str
    subdomains: str = ""
    overlap: int = 0
    local_steps: int = 1
    shares: int = 1
    control: bool = False
    delay: int = 0

    @property
    def label(self) -> str:
        """Its name in tables."""
        return self.name + ", control variates" * self.control + f", delay {self.delay}" * (self.delay > 0)

    def solver(self, problem: AllenCahnOperator, parts: int, rate: float, steps: int) -> Any:
        """Return the solver; what is averaged lives on."""
        h = self.local_steps
        rates = LearningRate("cosine", math.ceil(WARM / h), math.ceil(steps / h))
        if not self.subdomains:
            return Adam(rate, rates=rates)
        cut = problem.decomposition(parts, self.overlap)
        if self.name == "local sgd":
            return LocalSgd(cut, Sgd(rate, 0.9), h, "average", rates, together=True)
        if self.name == "diloco":
            return DiLoCo(cut, Adam(rate), local_steps=h, rates=rates, together=True)
        return LocalAdam(cut, Adam(rate), h, rates=rates, control=self.control, delay=self.delay, together=True)


def methods(parts: int, layers: int, quick: bool) -> Iterator[Method]:
    """Yield all methods for so many parts."""
    yield Method("adam")
    yield Method("local adam", "samples", 0, 10)
    for overlap in (0, layers // 2) if quick else sorted({0, 1, layers // 4, layers // 2, 3 * layers // 4, layers}):
        yield Method("local adam", "parts", overlap, 10)
    if quick:
        return
    yield Method("local sgd", "samples", 0, 10)
    yield Method("diloco", "samples", 0, 10)
    yield Method("local adam", "samples", 0, 20)
    yield Method("local adam", "parts", layers // 2, 20)
    yield Method("local adam", "parts", layers, 20)
    yield Method("local adam", "parts", layers, 40)
    yield Method("local adam", "both", layers, 10, 2 if parts == 4 else 4)


@dataclass(frozen=True)
class Case:
    """A problem without samples and decomposition.

    Attributes
    ----------
    size : int
        Nodes of a side of the torus, or resolution of the sphere.
    parts, layers : int
        Subdomains, and layers of the network.
    sphere : bool
        Whether it is the vorticity equation.
    samples : int
        Of a step; 0 for eight, and for one in every share.
    """

    size: int
    parts: int
    layers: int
    sphere: bool
    samples: int = 0

    @property
    def batch(self) -> int:
        """Samples of a step."""
        return self.samples or max(8, self.parts)

    def posed(self, seed: int, method: Method) -> OperatorProblem:
        """Return the problem as a method decomposes it."""
        options: dict[str, Any] = {
            "sampling": SampleOptions(batch=self.batch),
            "pieces": CutOptions(subdomains=method.subdomains or "samples", shares=method.shares),
            "network": NetworkOptions(layers=self.layers),
            "seed": seed,
        }
        if self.sphere:
            return BarotropicOperator(resolution=self.size, **options)
        return AllenCahnOperator(n=self.size, **options)


def halo(problem: OperatorProblem, parts: int) -> tuple[int, float]:
    """Return the rows that the busiest rank sends in one exchange, and its work as a share of that of all."""
    part, matrix = problem.domain.parts(parts, "auto"), problem.domain.matrix.tocoo()
    crossing = part[matrix.row] != part[matrix.col]
    pairs = np.unique(np.stack([part[matrix.row][crossing], matrix.col[crossing]], 1), axis=0)
    sent, read = np.bincount(part[pairs[:, 1]], minlength=parts), np.bincount(pairs[:, 0], minlength=parts)
    own, whole, layers = np.bincount(part, minlength=parts), problem.whole, problem.net.layers
    entries = [mean.nnz / problem.domain.nodes for mean in whole.means]
    works = [problem.net.work([o + r, *[o] * layers], [o * e for e in entries]) for o, r in zip(own, read, strict=True)]
    return int(sent.max()), max(works) / problem.net.work(whole.rows, [mean.nnz for mean in whole.means])


def run(case: Case, seed: int, method: Method, rate: float, steps: int) -> dict[str, Any]:
    """Train once and return a row of the table."""
    problem, parts, layers, batch = case.posed(seed, method), case.parts, case.layers, case.batch
    hidden, size = problem.net.hidden, problem.net.layout.size
    rounds = math.ceil(steps / method.local_steps)
    begin = time.process_time()
    solver = method.solver(problem, parts, rate, steps)
    result = minimise(problem.objective(), problem.initial(seed), solver, stop=Stop(rounds), values=None)
    seconds = time.process_time() - begin
    cost = result.history.records[-1].cost
    unit = steps * batch / problem.sampling.shown / parts  # work of a rank that has a P-th of every step
    halo_mb, work = 0.0, cost.work_units / parts / unit
    if not method.subdomains:
        sent, share = halo(problem, parts)
        work, halo_mb = share * parts, 2 * (layers - 1) * sent * batch * hidden * 4 * steps / 1e6
    vectors = {"adam": 1, "diloco": 1, "local sgd": 2}.get(method.name, 3) * rounds
    found = problem.metrics(result.x)
    return {
        "problem": "barotropic" if case.sphere else "allen-cahn",
        "nodes": problem.domain.nodes,
        "parts": parts,
        "layers": layers,
        "method": method.label,
        "subdomains": f"{method.subdomains or 'exact halo'}{f' x {method.shares}' if method.shares > 1 else ''}",
        "overlap": method.overlap if method.subdomains in ("parts", "both") else "",
        "local_steps": method.local_steps,
        "lr": rate,
        "seed": seed,
        "steps": rounds * method.local_steps,
        "synchronisations": cost.synchronisations if method.subdomains else steps,
        "sum_MB": round(vectors * size * 4 * 2 * (parts - 1) / parts / 1e6, 3),
        "halo_MB": round(halo_mb, 3),
        "work": round(work, 3),
        "gradient_bias": bias(problem, parts, method, result.x),
        "validation_loss": round(found["validation_loss"], 6),
        "rollout_skill": round(found["rollout_skill"], 4),
        "cpu_seconds": round(seconds, 1),
    }


def bias(problem: OperatorProblem, parts: int, method: Method, x: Any) -> float | str:
    """Return how far the mean gradient of the parts is from that of the whole, relatively, at the end of a run."""
    if method.subdomains not in ("parts", "both"):
        return ""
    f, cut = problem.objective().sample(10**6), problem.decomposition(parts, method.overlap)
    g = f.gradient(x)
    mean = cut.shares_of(f).to(x) @ cut.models(f, x, None).gradient(cut.gather(x))
    return round(float((mean - g).norm() / g.norm()), 6)


def works(case: Case) -> Iterator[dict[str, Any]]:
    """Yield the work of the busiest rank for some overlaps, in units of its share of a synchronous step."""
    problem = case.posed(0, Method("local adam", "parts"))
    domain, layers = problem.domain, case.layers
    part = domain.parts(case.parts, "auto")
    all_entries = [mean.nnz for mean in problem.whole.means]
    for overlap in sorted({0, layers // 2, layers}):
        shares = []
        for k in range(case.parts):
            graph = LocalGraph.around(domain, part == k, overlap)
            rows = [graph.sizes[min(overlap, layers - depth)] for depth in range(layers + 1)]
            entries = [kept * e / domain.nodes for kept, e in zip(rows[1:], all_entries, strict=True)]
            shares.append(problem.net.work(rows, entries) / problem.net.work(problem.whole.rows, all_entries))
        side = math.sqrt(max(int((part == k).sum()) for k in range(case.parts)))
        yield {
            "problem": "barotropic" if case.sphere else "allen-cahn",
            "nodes": domain.nodes,
            "parts": case.parts,
            "layers": layers,
            "overlap": overlap,
            "work": round(max(shares) * case.parts, 3),
            "all_rings_in_all_layers": round((1 + 2 * overlap / side) ** 2, 3),
        }


def add(path: Path, row: dict[str, Any]) -> None:
    """Add a row to a table, in the place of an older one of the same run."""
    rows: list[dict[str, Any]] = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as stream:
            rows = list(csv.DictReader(stream))
    same = [k for k, old in enumerate(rows) if all(old[key] == str(row[key]) for key in RUN)]
    write_table(path, [*(old for k, old in enumerate(rows) if k not in same), row])


def main() -> None:
    """Run what the command line says, and write a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--parts", type=int, nargs="+", default=[4, 16])
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--sphere", action="store_true", help="the vorticity equation")
    parser.add_argument("--quick", action="store_true", help="fewer methods, 100 steps")
    parser.add_argument("--tune", action="store_true", help="all rates of every method on the first seed")
    parser.add_argument("--only", default="", help="an expression: `local adam parts [024] 10`")
    parser.add_argument("--out", type=Path, default=Path("paper/results/gnn_decomposition"))
    parser.add_argument("--work", action="store_true", help="no training: the work of overlaps on several sizes")
    options = parser.parse_args()
    prepare(SERIAL)
    if options.work:
        sizes = options.sizes or ((3, 4, 5) if options.sphere else (24, 48, 100, 316))
        cases = [Case(n, p, k, options.sphere) for k in (4, 8, 16) for n in sizes for p in options.parts]
        rows = [row for case in cases for row in works(case)]
        write_table(options.out / f"work{'_sphere' if options.sphere else ''}.csv", rows)
        return
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{'tuning' if options.tune else 'quick' if options.quick else 'data_rich'}.csv"
    steps = 100 if options.quick else options.steps
    for n in options.sizes or ((3, 4) if options.sphere else (24, 48)):
        for parts in options.parts:
            case = Case(n, parts, options.layers, options.sphere)
            for method in methods(parts, options.layers, options.quick):
                name = f"{method.name} {method.subdomains or 'exact'} {method.overlap} {method.local_steps}"
                if not re.search(options.only, name):
                    continue
                for seed in options.seeds[: 1 if options.tune else None]:
                    for rate in TUNED if options.tune else (RATES[method.name],):
                        row = run(case, seed, method, rate, steps)
                        print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                        add(path, row)


if __name__ == "__main__":
    main()
