"""B5: how soon are graph networks trained on a planted-partition graph that is cut into parts?

    OMP_NUM_THREADS=1 python -m experiments.peers.graphs [--quick] [--seeds 0 1 2] [--methods A B]

4,000 nodes of 8 classes, 32 noisy features, GCN of 2 layers, and of 8 that add to the state, width 16; loss on all
nodes outside of the test set, no dropout, no decay, float64. 4 parts by METIS: "no halo" trains on the edges inside of
the parts alone (as Cluster-GCN does), its number is nevertheless the loss of the whole graph; local methods without
this word have exact losses of their own nodes. torch_geometric runs GCNConv with a cached CSR matrix and torch's Adam
from the same start; there is no peer with a decomposition of the graph that does more than average.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from experiments.machine import Need
from experiments.peers.benchmark import Benchmark
from experiments.peers.plain import Watched, torch_lbfgs
from experiments.peers.race import Budget, Method, OverError, Race, Task, first_order, ours
from mldd.problems.data import load_graph
from mldd.problems.graphs import Network, NodeClassification, Spaces
from mldd.solvers import LBFGS, Adam, LocalSgd, MultilevelLBFGS, SchwarzAdaGrad, SchwarzLBFGS, Whitened

PARTS = 4
RATES = (1e-2, 3e-2, 1e-1)
NODES, EDGES, FEATURES, WIDTH, CLASSES = 4000, 64000 + 4000, 32, 16, 8


def need(layers: int) -> Need:
    """Return what a gradient needs: products with weights three times, products with the graph twice."""
    widths = [FEATURES, *[WIDTH] * (layers - 1), CLASSES]
    dense = sum(6.0 * NODES * a * b for a, b in zip(widths, widths[1:], strict=False))
    return Need(dense + sum(4.0 * EDGES * b for b in widths[1:]))


def task(layers: int, targets: tuple[float, ...], seconds: float) -> Task:
    """Return the problem with so many layers."""
    network = Network(layers=layers, hidden=WIDTH, dropout=0.0, decay=0.0, residual=layers > 2)
    data = load_graph("sbm")

    def make(comm: Any) -> NodeClassification:
        return NodeClassification(data, network=network, labels="all", comm=comm)

    def loss(problem: NodeClassification) -> Any:
        f = make(problem.comm).objective()
        return lambda x: float(f.value(x))

    return Task(f"gcn, {layers} layers", make, loss, targets, need(layers), budget=Budget(seconds, pause=0.02))


TARGETS = (0.5, 0.1, 1e-2, 1e-3)
TASKS = (task(2, TARGETS, 2.0), task(8, TARGETS, 4.0))


def geometric_adam() -> Method:
    """Return torch_geometric's GCN with torch's Adam."""

    def run(race: Race, rate: float) -> None:
        from torch_geometric.nn import GCNConv

        f, problem = Watched(race), race.problem
        layers = [GCNConv(p.shape[0], p.shape[1], cached=True).double() for p in problem.net.layout.views(f.x)[::2]]
        parameters = [p for layer in layers for p in (layer.lin.weight, layer.bias)]
        with torch.no_grad():
            for p, view in zip(parameters, problem.net.layout.views(f.x), strict=True):
                p.copy_(view.t() if view.dim() == 2 else view)
        graph, data = problem.graph, problem.graph_data
        rows, columns = graph.edge_index
        adjacency = torch.sparse_coo_tensor(
            torch.stack([rows, columns]), torch.ones(len(rows), dtype=torch.float64), (NODES, NODES)
        ).to_sparse_csr()
        chosen = ~data.test
        optimizer = torch.optim.Adam(parameters, rate)

        def steps() -> None:
            for step in range(10**9):
                views = [p.detach().t() if p.dim() == 2 else p.detach() for p in parameters]
                counted = {"vectors": float(step), "scalars": 0.0, "accepted": math.nan}
                if race.look(torch.cat([view.reshape(-1) for view in views]), float(step), **counted):
                    raise OverError
                optimizer.zero_grad()
                state = torch.relu(layers[0](data.features, adjacency))
                out = layers[1](state, adjacency)
                torch.nn.functional.cross_entropy(out[chosen], data.labels[chosen]).backward()
                optimizer.step()

        f.watch(steps)

    return Method(run, RATES)


def parts(problem: Any) -> Any:
    """Return the parts of the graph."""
    return problem.decomposition(PARTS, 0, problem.comm)


def local(local_steps: int, kind: str) -> Method:
    """Return local Adam on the parts, whose moments are averaged with the iterates."""
    return ours(
        lambda p, rate: LocalSgd(parts(p), Adam(rate), local_steps, memory="average", comm=p.comm),
        RATES,
        spaces=Spaces(local=kind),  # type: ignore[arg-type]
    )


def methods(task: Task) -> dict[str, Method]:
    """Return the methods."""
    layers = {"spaces": Spaces(subdomains="parameters")}
    found = {
        "adam": ours(lambda p, rate: Adam(rate), RATES),
        "adam, no halo": local(1, "restricted"),
        "localsgd, adam": local(10, "own"),
        "localsgd, adam, no halo": local(10, "restricted"),
        "lbfgs": ours(lambda p, rate: LBFGS()),
        "lbfgs, white": ours(lambda p, rate: Whitened(p.first_layer())),
        "torch lbfgs": torch_lbfgs(),
        "aspqn": ours(lambda p, rate: SchwarzLBFGS(parts(p), local_steps=5, comm=p.comm)),
        "mspqn, layers": ours(
            lambda p, rate: SchwarzLBFGS(p.decomposition(2, 0, p.comm), order="multiplicative", comm=p.comm), **layers
        ),
        "dd-adagrad": ours(
            lambda p, rate: SchwarzAdaGrad(
                parts(p), local=first_order(rate), local_steps=5, global_steps=1, comm=p.comm
            ),
            (0.03, 0.1, 0.3),
        ),
        "ml-lbfgs": ours(lambda p, rate: MultilevelLBFGS(p.hierarchy(2))),
    }
    return found | ({"torch_geometric adam": geometric_adam()} if task.name == "gcn, 2 layers" else {})


BENCHMARK = Benchmark(__file__, TASKS, methods, ("adam", "lbfgs", "torch_geometric adam"), 60.0)


def main() -> None:
    """Run all methods."""
    BENCHMARK.command()


if __name__ == "__main__":
    main()
