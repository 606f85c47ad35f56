"""Do P ranks that hold a part of a graph each compute what one rank with the whole graph computes?

    mpiexec -n 4 python -m mpi4py experiments/benchmarks/exactness.py [--problem cora] [--models gcn sage gin gat]
        [--methods metis kahypar-km1 contiguous random] [--layers 2] [--hidden 16] [--steps 50] [--out DIR]

Relative differences, in float64, of the loss with dropout, of its gradient, and of the iterates after `--steps` steps
of Adam (with dropout) and of L-BFGS (without), between `ShardedClassification` on 1, 2, 4, ... ranks (as many as were
started) and `NodeClassification` on one. The start is Glorot's, seed 0. Rounding grows with the steps, as the sums of
P ranks are not those of one; L-BFGS, whose line search compares values, lets it grow faster, most of all with
attention. The rows of one rank show how much is due to the order of the nodes alone. "halo rows" and "bytes" are those
of one gradient, of all ranks together.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from mldd.cost import counting
from mldd.monitor import write_table
from mldd.objective import Objective, sampled
from mldd.parallel import SERIAL, Communicator, prepare, world
from mldd.partition import partition
from mldd.problems.datasets import GraphData, load_graph
from mldd.problems.graphs import NodeClassification
from mldd.problems.sharded import ShardedClassification
from mldd.solver import Stop, minimise
from mldd.solvers.baselines import Adam
from mldd.solvers.lbfgs import LBFGS

HEADER = "model  partition     ranks     loss  gradient      adam    lbfgs  halo rows      bytes  exchanges"


def results(problem: Any, steps: int, comm: Communicator) -> list[Tensor]:
    """Return loss and gradient of sample 0, and the iterates at the end of training with Adam and L-BFGS."""
    noisy, plain = problem(dropout=0.5), problem(dropout=0.0)
    x = noisy.initial(0)
    f: Objective = sampled(noisy.objective(), 0)
    found = [f.value(x), f.gradient(x)]
    for each, solver in ((noisy, Adam(**noisy.settings("adam"))), (plain, LBFGS())):
        stop = Stop(max_steps=steps)
        found.append(minimise(each.objective(), x, solver, stop=stop, comm=comm).x)
    return found


def halo_cost(problem: ShardedClassification, comm: Communicator) -> list[float]:
    """Count rows and bytes of all ranks, and the exchanges of a gradient."""
    f = problem.objective()
    with counting() as cost:
        f.gradient(problem.initial(0))
    return [*comm.sum_scalars([float(cost.halo_rows), float(cost.halo_bytes)]), float(cost.exchanges)]


def compared(
    data: GraphData, part: Tensor, expected: list[Tensor], comm: Communicator, steps: int, **options: Any
) -> dict[str, float]:
    """Return one row of the table."""

    def problem(dropout: float) -> ShardedClassification:
        return ShardedClassification.of(data, part, comm, dropout=dropout, **options)

    found = results(problem, steps, comm)
    names = ("loss", "gradient", "adam", "lbfgs")
    row = {name: float((a - b).norm() / b.norm()) for name, a, b in zip(names, found, expected, strict=True)}
    costs = halo_cost(problem(0.0), comm)
    return row | dict(zip(("halo_rows", "bytes", "exchanges"), costs, strict=True))


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="cora")
    parser.add_argument("--models", nargs="+", default=["gcn", "sage", "gin", "gat"])
    parser.add_argument("--methods", nargs="+", default=["metis", "kahypar-km1", "contiguous", "random"])
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=16)
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    prepare(world())
    data, everyone = load_graph(options.problem), world()
    sizes = [k for k in (1, 2, 4, 8) if k <= everyone.ranks]
    groups = {k: Communicator(everyone.mpi.Split(everyone.rank // k)) if k > 1 else SERIAL for k in sizes}
    if everyone.rank == 0:
        print(f"{options.problem}, {options.layers} layers of {options.hidden}, {options.steps} steps, float64")
        print(HEADER)
    rows: list[dict[str, Any]] = []
    for model in options.models:
        shape = {"model": model, "layers": options.layers, "hidden": options.hidden}
        expected = results(lambda dropout: NodeClassification(data, dropout=dropout, **shape), options.steps, SERIAL)  # noqa: B023
        for method in options.methods:
            # where partitioners differ between runs, rank 0's part is that of all
            part = everyone.gather_items(partition(data.graph, max(sizes), method))[0]
            for ranks, comm in groups.items():
                row = compared(data, part, expected, comm, options.steps, **shape)
                rows.append({"model": model, "method": method, "ranks": ranks} | row)
                if everyone.rank == 0:
                    numbers = "{loss:>9.1e} {gradient:>9.1e} {adam:>9.1e} {lbfgs:>8.1e}".format(**row)
                    costs = "{halo_rows:>10.0f} {bytes:>10.0f} {exchanges:>10.0f}".format(**row)
                    print(f"{model:<6} {method:<13} {ranks:>5} {numbers} {costs}", flush=True)
    if options.out is not None and everyone.rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / "exactness.csv", rows)


if __name__ == "__main__":
    main()
