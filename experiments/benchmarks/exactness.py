"""Do P ranks that hold a part of a graph each compute what one rank with the whole graph computes?

    mpiexec -n 4 python -m mpi4py experiments/benchmarks/exactness.py [--problem cora] [--models gcn sage gin gat epd]
        [--methods metis kahypar-km1 contiguous random] [--layers 2] [--hidden 16] [--steps 50] [--out DIR]

Relative differences, in float64, of the loss with dropout, of its gradient, and of the iterates after `--steps` steps
of Adam (with dropout) and of L-BFGS (without), between `ShardedClassification` on 1, 2, 4, ... ranks (as many as were
started) and `NodeClassification` on one. The start is Glorot's, seed 0. Rounding grows with the steps, as the sums of
P ranks are not those of one; L-BFGS, whose line search compares values, lets it grow faster, most of all with
attention. `epd` is an encode-process-decode network with a hidden mesh on a grid of 20 x 30 points, 3 samples, squares
of differences from random targets, against the whole grid on one rank, without dropout. The rows of one rank show how
much is due to the order of the nodes alone. "halo rows" and "bytes" are those of one gradient, of all ranks together.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mldd
from mldd.algebra import Objective, counting, sampled
from mldd.graph import partition
from mldd.loop import Stop, minimise, write_table
from mldd.problems.data import GraphData, grid_mesh, load_graph, regional_mesh
from mldd.problems.graphs import NodeClassification, NodeLoss, ShardedClassification
from mldd.problems.nets import EncodeProcessDecode, MeshSource, mesh_shard, stack_meshes
from mldd.ranks import SERIAL, Communicator, prepare, world
from mldd.solvers import LBFGS, Adam

HEADER = "model  partition     ranks     loss  gradient      adam    lbfgs  halo rows      bytes  exchanges"


def results(problem: Any, steps: int, comm: Communicator) -> list[Tensor]:
    """Return loss and gradient of sample 0, and the iterates at the end of training with Adam and L-BFGS."""
    noisy, plain = problem(dropout=0.5), problem(dropout=0.0)
    x = noisy.initial(0)
    f: Objective = sampled(noisy.objective(), 0)
    found = [f.value(x), f.gradient(x)]
    for each, solver in ((noisy, Adam(noisy.settings("adam")["lr"])), (plain, LBFGS())):
        stop = Stop(max_steps=steps)
        found.append(minimise(each.objective(), x, solver, stop=stop, comm=comm).x)
    return found


def halo_cost(f: Objective, x: Tensor, comm: Communicator) -> list[float]:
    """Count rows and bytes of all ranks, and the exchanges of a gradient."""
    with counting() as cost:
        f.gradient(x)
    return [*comm.sum_scalars([float(cost.halo_rows), float(cost.halo_bytes)]), float(cost.exchanges)]


def compared(
    data: GraphData, part: Tensor, expected: list[Tensor], comm: Communicator, steps: int, **options: Any
) -> dict[str, float]:
    """Return one row of the table."""

    shard = ShardedClassification.of(data, part, comm).shard

    def problem(dropout: float) -> Any:
        return mldd.problem(ShardedClassification, folder=shard, comm=comm, dropout=dropout, **options)

    plain = problem(0.0)
    return row_of(results(problem, steps, comm), expected, halo_cost(plain.objective(), plain.initial(0), comm))


def whole(data: GraphData, shape: dict[str, Any], dropout: float) -> Any:
    """Return the problem on the whole graph."""
    return mldd.problem(NodeClassification, name=data, dropout=dropout, **shape)


def row_of(found: list[Tensor], expected: list[Tensor], costs: list[float]) -> dict[str, float]:
    """Return relative differences and costs by name."""
    names = ("loss", "gradient", "adam", "lbfgs")
    row = {name: float((a - b).norm() / b.norm()) for name, a, b in zip(names, found, expected, strict=True)}
    return row | dict(zip(("halo_rows", "bytes", "exchanges"), costs, strict=True))


# ------------------------------------------------------------------------------------------------ encode-process-decode

ROWS, COLUMNS, SAMPLES, INPUTS = 20, 30, 3, 2


@dataclass(frozen=True)
class Squares(NodeLoss):
    """The sum of squared differences of outputs and targets."""

    def _loss(self, parameters: list[Tensor]) -> Tensor:
        return (self.net.outputs(parameters, self.batch) - self.batch.targets).square().sum()  # type: ignore[arg-type]


def mesh_results(f: Objective, x: Tensor, steps: int, comm: Communicator) -> list[Tensor]:
    """Return loss and gradient, and the iterates at the end of training with Adam and L-BFGS."""
    found = [f.value(x), f.gradient(x)]
    stop = Stop(max_steps=steps)
    return found + [minimise(f, x, solver, stop=stop, comm=comm).x for solver in (Adam(0.003), LBFGS())]


def mesh_rows(methods: list[str], groups: dict[int, Communicator], steps: int) -> Iterator[dict[str, Any]]:
    """Give the rows of the encode-process-decode network."""
    random = np.random.default_rng(0)
    latitude, longitude = np.meshgrid(50 + 0.5 * np.arange(ROWS), 0.5 * np.arange(COLUMNS), indexing="ij")
    place = latitude.ravel(), longitude.ravel()
    n, kind = len(place[0]), {"dtype": torch.float64, "device": "cpu"}
    mesh = regional_mesh(*place, n // 4, levels=2)
    source = MeshSource(mesh, random.standard_normal((n, SAMPLES * INPUTS)), random.standard_normal((n, SAMPLES)) / n)
    net = EncodeProcessDecode(INPUTS, 16, 1, rounds=2)
    x = 0.3 * torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = stack_meshes([source.piece(np.arange(n), net.layers)], single=True, samples=SAMPLES, **kind)
    expected = mesh_results(Squares(net, whole), x, steps, SERIAL)  # type: ignore[arg-type]
    graph = grid_mesh(ROWS, COLUMNS)[0]
    for method in methods:
        part = world().gather_items(partition(graph, max(groups), method))[0].numpy()
        for ranks, comm in groups.items():
            mine = part * ranks // max(groups)
            own = np.flatnonzero(mine == comm.rank)
            batch = mesh_shard(mesh, mine, source.features[own], source.targets[own], net.rounds, comm, SAMPLES, **kind)
            f = Squares(net, batch, comm=comm)  # type: ignore[arg-type]
            row = row_of(mesh_results(f, x, steps, comm), expected, halo_cost(f, x, comm))
            yield {"model": "epd", "method": method, "ranks": ranks} | row


def show(row: dict[str, Any]) -> None:
    """Print a row of the table on rank 0."""
    if world().rank == 0:
        numbers = "{loss:>9.1e} {gradient:>9.1e} {adam:>9.1e} {lbfgs:>8.1e}".format(**row)
        costs = "{halo_rows:>10.0f} {bytes:>10.0f} {exchanges:>10.0f}".format(**row)
        print(f"{row['model']:<6} {row['method']:<13} {row['ranks']:>5} {numbers} {costs}", flush=True)


def main() -> None:
    """Print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", default="cora")
    parser.add_argument("--models", nargs="+", default=["gcn", "sage", "gin", "gat", "epd"])
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
    for model in (name for name in options.models if name != "epd"):
        shape = {"model": model, "layers": options.layers, "hidden": options.hidden}
        make = partial(whole, data, shape)
        expected = results(make, options.steps, SERIAL)
        for method in options.methods:
            # where partitioners differ between runs, rank 0's part is that of all
            part = everyone.gather_items(partition(data.graph, max(sizes), method))[0]
            for ranks, comm in groups.items():
                row = compared(data, part, expected, comm, options.steps, **shape)
                rows.append({"model": model, "method": method, "ranks": ranks} | row)
                show(rows[-1])
    if "epd" in options.models:
        for row in mesh_rows(options.methods, groups, options.steps):
            rows.append(row)
            show(row)
    if options.out is not None and everyone.rank == 0:
        options.out.mkdir(parents=True, exist_ok=True)
        write_table(options.out / "exactness.csv", rows)


if __name__ == "__main__":
    main()
