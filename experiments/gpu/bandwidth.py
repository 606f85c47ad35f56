"""How near graph networks come to what the memory of a device can do, beside torch.sparse and torch_geometric.

The bandwidth is measured by an update ``c = a + b`` of vectors that fit no cache. "bytes" are those that must move at
least: for an aggregation A H the graph once, H once and the result once; for a gradient of a full graph, per layer, its
input and its output forward, both and their adjoints back, and the graph once in each direction. Goal: 60 % of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from experiments.gpu.device import Device, Row, apart, attempts
from mldd.algebra import value_and_gradient
from mldd.graph import Graph
from mldd.problems.graphs import NodeLoss
from mldd.problems.nets import GraphNet, Source, multiply, stack
from mldd.problems.nets.layers import layer_kinds, layer_of

GOAL = 0.6
FEATURES, WIDTH, CLASSES, DEGREE = 64, 64, 16, 12
Call = Callable[[], object]


def limits(device: Device) -> list[Row]:
    """Measure memory bandwidth and the rate of matrix products."""
    size, side = (2**20, 256) if device.quick else (2**27, 8192)
    a, b, c = (torch.rand(size, device=device.name) for _ in range(3))
    rows = [{"case": "bandwidth", "GB/s": 12e-9 * size / device.seconds(lambda: torch.add(a, b, out=c))}]
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x = torch.rand(side, side, device=device.name).to(dtype)
        seconds = device.seconds(lambda x=x: x @ x)  # type: ignore[misc]
        rows.append({"case": f"product, {str(dtype).removeprefix('torch.')}", "GFlop/s": 2e-9 * side**3 / seconds})
    return rows


def mesh(nodes: int) -> Graph:
    """Return a graph whose nodes have 12 neighbours, most of them near in the numbering."""
    random = torch.Generator().manual_seed(0)
    rows = torch.arange(nodes).repeat_interleave(DEGREE // 2)
    steps = torch.randint(1, 200, (len(rows),), generator=random)
    return Graph.from_edges(torch.stack([rows, (rows + steps) % nodes]), nodes)


def csr(graph: Graph, device: Device, index: torch.dtype = torch.int32) -> torch.Tensor:
    """Return the graph as a matrix of ones; torch_geometric wants 64-bit indices."""
    ones = torch.ones(graph.edges, device=device.name)
    shape = (graph.nodes, graph.nodes)
    indptr, indices = (t.to(device.name, index) for t in (graph.indptr, graph.indices))
    return torch.sparse_csr_tensor(indptr, indices, ones, shape, check_invariants=False)


def aggregation(graph: Graph, bandwidth: float, device: Device) -> list[Row]:
    """Time A H by mldd's product, torch.sparse and torch_geometric."""
    matrix, state = csr(graph, device), torch.randn(graph.nodes, WIDTH, device=device.name)
    moved = 8.0 * state.numel() + 8.0 * graph.edges + 4.0 * graph.nodes
    expected = matrix @ state

    def row(call: Callable[[], torch.Tensor]) -> Row:
        difference = apart(expected, call())
        seconds = device.seconds(call)
        share = moved / seconds / bandwidth
        return {"ms": 1e3 * seconds, "GB/s": 1e-9 * moved / seconds, "share": share, "difference": difference}

    def by_geometric() -> Row:
        from torch_geometric.nn import SimpleConv

        conv, edges = SimpleConv(aggr="sum"), graph.edge_index.flip(0).to(device.name)
        return row(lambda: conv(state, edges))

    return attempts(
        {
            "A H, mldd": lambda: row(lambda: multiply(matrix, state)),
            "A H, torch.sparse": lambda: row(lambda: matrix @ state),
            "A H, torch_geometric, edges": by_geometric,
        },
        device,
    )


def loss_of(graph: Graph, kind: str, device: Device) -> tuple[Any, torch.Tensor]:
    """Return the mean cross-entropy of two layers over all nodes, and a start."""
    random = np.random.default_rng(0)
    features = random.standard_normal((graph.nodes, FEATURES), dtype=np.float32)
    labels = random.integers(CLASSES, size=graph.nodes)
    net = GraphNet(kind, (FEATURES, WIDTH, CLASSES), heads=2 if layer_of(kind).many_heads else 1)
    targets = np.eye(CLASSES, dtype=np.float32)[labels] / graph.nodes
    source = Source.of(kind, layer_of(kind).operator(graph), features, targets)
    piece = source.piece(np.arange(graph.nodes), net.layers, propagated=net.layer.beforehand)
    batch = stack([piece], single=True, dtype=torch.float32, device=device.name)
    return NodeLoss(net, batch), net.initial(0).float().to(device.name)


def gradient(graph: Graph, kind: str, bandwidth: float, device: Device) -> Row:
    """Time value and gradient, and what share of the bandwidth they use."""
    f, x = loss_of(graph, kind, device)
    seconds = device.seconds(lambda: value_and_gradient(f, x))
    states = 4.0 * graph.nodes * (FEATURES + 2 * WIDTH + CLASSES)
    moved = 3 * states + 2 * 2 * (8.0 * graph.edges + 4.0 * graph.nodes)
    return {"ms": 1e3 * seconds, "share": moved / seconds / bandwidth, "goal": GOAL}


def geometric_gradient(graph: Graph, kind: str, form: str, device: Device) -> Row:
    """Time torch_geometric on the same shapes."""
    from experiments.benchmarks.peers.geometric_layers import GeometricNetwork

    net = GraphNet(kind, (FEATURES, WIDTH, CLASSES), heads=2 if layer_of(kind).many_heads else 1)
    made = GeometricNetwork(kind, net.widths, net.heads, net.layout.views(net.initial(0).float()))
    for layer in made.layers:
        layer.to(device.name)
    made.parameters = [p for layer in made.layers for p in layer.parameters()]
    random = torch.Generator().manual_seed(0)
    features = torch.randn(graph.nodes, FEATURES, generator=random).to(device.name)
    labels = torch.randint(CLASSES, (graph.nodes,), generator=random).to(device.name)
    adjacency = csr(graph, device, torch.int64) if form == "csr" else graph.edge_index.to(device.name)
    return {"ms": 1e3 * device.seconds(made.evaluation(features, adjacency, labels))}


def graphs(device: Device) -> list[Row]:
    """Time aggregations and gradients."""
    bandwidth = 1e9 * limits(device)[0]["GB/s"]
    graph = mesh(2_000 if device.quick else 1_000_000)
    head: Row = {"case": "graph", "nodes": graph.nodes, "entries": graph.edges, "bandwidth GB/s": 1e-9 * bandwidth}
    cases: dict[str, Callable[[], Row]] = {}
    for kind in ("gcn", "gat") if device.quick else layer_kinds():
        cases[f"gradient, {kind}, mldd"] = lambda kind=kind: gradient(graph, kind, bandwidth, device)  # type: ignore[misc]
        for form in ("csr", "edges"):
            name = f"gradient, {kind}, torch_geometric, {form}"
            cases[name] = lambda kind=kind, form=form: geometric_gradient(graph, kind, form, device)  # type: ignore[misc]
    return [head, *aggregation(graph, bandwidth, device), *attempts(cases, device)]
