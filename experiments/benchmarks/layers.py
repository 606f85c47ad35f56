"""How fast is one full-graph value and gradient of GCN and GraphSAGE, beside the layers of torch_geometric?

    python experiments/benchmarks/layers.py [--data physics mesh] [--models gcn sage] [--forms edges csr]
                                            [--side 300] [--hidden 64 256] [--repeats 5]
                                            [--most-gib 8] [--out DIR]

Two layers, ReLU, cross-entropy over all nodes, float32 on one thread; the same weights and the same graph: `physics`
(sparse features) or a triangulated grid of side^2 nodes with 64 features (--side 1000: a million nodes). Ours runs in
both ways that the problems have: the first propagation done once beforehand (no dropout), or in every gradient
(dropout). The peer gets its adjacency as edge list and as CSR tensor, its normalisation cached; dense features and,
where its layer can take them, sparse ones. Medians of process time; the ratio is the peer's time over ours, the bar is
1.5. Losses and gradients of ours and the peer are compared (relative maximum norm), in float64 on a small mesh first. A
variant of the peer whose messages would take more than `--most-gib` is left out and says so.

The aggregation A H alone is put beside a copy of H in the same run: bytes that must move (every array once) over time;
block by block into an array that is there, as in a sweep, and as one product into new memory.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch_geometric import nn

from mldd.graph import Graph
from mldd.loop import write_table
from mldd.problems.data import from_tensor, grid_mesh, load_graph
from mldd.problems.graphs import NodeLoss
from mldd.problems.nets import GraphNet, Source, multiply, stack
from mldd.problems.nets.layers import layer_of

BAR = 1.5
CLASSES, FEATURES = 16, 64  # of the mesh
Evaluation = Callable[[], tuple[Tensor, list[Tensor]]]


def median(call: Callable[[], Any], repeats: int) -> float:
    """Return the median of the process time of `call`, in seconds, after one call to warm up."""
    call()
    seconds = []
    for _ in range(repeats):
        begin = time.process_time()
        call()
        seconds.append(time.process_time() - begin)
    return statistics.median(seconds)


def data(name: str, side: int) -> tuple[Graph, Any, Tensor]:
    """Return graph, features (NumPy or SciPy) and labels."""
    if name == "physics":
        found = load_graph("physics")
        return found.graph, from_tensor(found.features), found.labels
    random = np.random.default_rng(0)
    graph = grid_mesh(side, side, 6)[0]
    features = random.standard_normal((graph.nodes, FEATURES), dtype=np.float32)
    return graph, features, torch.from_numpy(random.integers(CLASSES, size=graph.nodes))


def ours(net: GraphNet, graph: Graph, features: Any, labels: Tensor, beforehand: bool, dtype: torch.dtype) -> NodeLoss:
    """Return the mean cross-entropy over all nodes."""
    targets = torch.nn.functional.one_hot(labels).numpy() / len(labels)
    source = Source.of(net.kind, layer_of(net.kind).operator(graph), features, targets)
    piece = source.piece(np.arange(graph.nodes), net.layers, propagated=beforehand)
    return NodeLoss(net, stack([piece], single=True, dtype=dtype, device="cpu"))


def adjacency(graph: Graph, form: str, dtype: torch.dtype) -> Tensor:
    """Return the (symmetric) graph as the peer wants it."""
    if form == "edges":
        return graph.edge_index
    values = torch.ones(graph.edges, dtype=dtype)
    return torch.sparse_csr_tensor(graph.indptr, graph.indices, values, (graph.nodes, graph.nodes))


def peer(net: GraphNet, views: list[Tensor], given: Tensor, features: Tensor, labels: Tensor) -> Evaluation:
    """Return the evaluation of the same network by torch_geometric."""
    cached: dict[str, Any] = {"cached": True} if net.kind == "gcn" else {}
    make = nn.GCNConv if net.kind == "gcn" else nn.SAGEConv
    layers = [make(*pair, **cached).to(views[0].dtype) for pair in zip(net.widths, net.widths[1:], strict=False)]
    count = len(views) // 2
    with torch.no_grad():
        for k, layer in enumerate(layers):
            if net.kind == "gcn":
                pairs = zip((layer.lin.weight, layer.bias), views[2 * k : 2 * k + 2], strict=True)
            else:
                tensors = layer.lin_r.weight, layer.lin_l.weight, layer.lin_l.bias
                pairs = zip(tensors, views[count * k : count * k + count], strict=True)
            for own, view in pairs:
                own.copy_(view.t() if view.dim() == 2 else view)

    def evaluate() -> tuple[Tensor, list[Tensor]]:
        parameters = [p for layer in layers for p in layer.parameters()]
        state = torch.relu(layers[0](features, given))
        loss = torch.nn.functional.cross_entropy(layers[1](state, given), labels)
        return loss.detach(), list(torch.autograd.grad(loss, parameters))

    def in_order() -> tuple[Tensor, list[Tensor]]:
        """Return the gradient tensor by tensor in the order of ours."""
        loss, g = evaluate()
        names = [f"{k}.{name}" for k, layer in enumerate(layers) for name, _ in layer.named_parameters()]
        named = dict(zip(names, g, strict=True))
        wanted = ("lin.weight", "bias") if net.kind == "gcn" else ("lin_r.weight", "lin_l.weight", "lin_l.bias")
        return loss, [named[f"{k}.{name}"].t() for k in range(2) for name in wanted]

    evaluate.in_order = in_order  # type: ignore[attr-defined]
    return evaluate


def difference(net: GraphNet, f: NodeLoss, x: Tensor, other: Evaluation) -> float:
    """Return the larger relative difference of loss and gradient."""
    value, g = f.value_and_gradient(x)
    loss, found = other.in_order()  # type: ignore[attr-defined]
    expected = net.layout.pack([t.contiguous() for t in found])
    return max(float((value - loss).abs() / loss.abs()), float((g - expected).abs().max() / expected.abs().max()))


def message_bytes(net: GraphNet, graph: Graph, form: str) -> int:
    """Return what the largest messages of the peer take: one row per edge; GraphSAGE sends its inputs."""
    widths = net.widths[:-1] if net.kind == "sage" else net.widths[1:]
    return 4 * max(widths) * (graph.edges if form == "edges" else graph.nodes)


def case(name: str, kind: Any, hidden: int, given: tuple[Graph, Any, Tensor], options: Any) -> list[dict[str, Any]]:
    """Time ours in both ways and all variants of the peer."""
    graph, features, labels = given
    net = GraphNet(kind, (features.shape[1], hidden, int(labels.max()) + 1))
    x = net.initial(0).float()
    fs = {way: ours(net, graph, features, labels, way == "beforehand", torch.float32) for way in ("beforehand", "anew")}
    seconds = {way: median(lambda f=f: f.value_and_gradient(x), options.repeats) for way, f in fs.items()}
    rows = []
    sparse = not isinstance(features, np.ndarray)
    for form in options.forms:
        for kept in ("dense", "sparse")[: 2 if sparse else 1]:
            row = {"data": name, "model": kind, "hidden": hidden, "peer": f"{form}, {kept} features"}
            row |= {f"ours_{way}": t for way, t in seconds.items()}
            rows.append(row | against(net, given, fs["anew"], x, form, kept, options))
            report(rows[-1])
    return rows


def against(
    net: GraphNet, given: tuple[Graph, Any, Tensor], f: NodeLoss, x: Tensor, form: str, kept: str, options: Any
) -> dict[str, Any]:
    """Time one variant of the peer; `note` says why there is none."""
    graph, features, labels = given
    size = message_bytes(net, graph, form)
    if size > options.most_gib * 2**30 and kept == "dense":
        return {"note": f"messages of {size / 2**30:.1f} GiB"}
    if kept == "sparse":
        inputs = torch.sparse_csr_tensor(
            *(torch.from_numpy(a) for a in (features.indptr, features.indices, features.data.astype(np.float32))),
            features.shape,
        )
    else:
        dense = features if isinstance(features, np.ndarray) else features.astype(np.float32).toarray()
        inputs = torch.from_numpy(dense)
    other = peer(net, net.layout.views(x), adjacency(graph, form, torch.float32), inputs, labels)
    try:
        apart = difference(net, f, x, other)
    except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
        return {"note": f"refused: {str(error).splitlines()[0][:60]}"}
    return {"peer_seconds": median(other, options.repeats), "difference": apart, "note": ""}


def report(row: dict[str, Any]) -> None:
    """Print a row."""
    label = f"{row['data']:<8} {row['model']:<5} {row['hidden']:>4}  {row['peer']:<22}"
    times = f"ours {row['ours_beforehand']:.4f} / {row['ours_anew']:.4f} s"
    if row["note"]:
        print(f"{label} {times}  peer: {row['note']}", flush=True)
        return
    row["ratio_beforehand"] = row["peer_seconds"] / row["ours_beforehand"]
    row["ratio_anew"] = row["peer_seconds"] / row["ours_anew"]
    verdict = "" if min(row["ratio_anew"], row["ratio_beforehand"]) >= BAR else "  MISSED"
    print(
        f"{label} {times}  peer {row['peer_seconds']:.4f} s  ratio {row['ratio_beforehand']:.2f} / "
        f"{row['ratio_anew']:.2f}  difference {row['difference']:.0e}{verdict}",
        flush=True,
    )


def check() -> None:
    """Compare in float64 on a small mesh."""
    given = data("mesh", 20)
    graph, features, labels = given
    for kind in ("gcn", "sage"):
        net = GraphNet(kind, (FEATURES, 32, CLASSES))
        x = net.initial(0)
        for form in ("edges", "csr"):
            inputs = torch.from_numpy(features.astype(np.float64))
            other = peer(net, net.layout.views(x), adjacency(graph, form, torch.float64), inputs, labels)
            for way in (True, False):
                f = ours(net, graph, features.astype(np.float64), labels, way, torch.float64)
                apart = difference(net, f, x, other)
                print(f"float64  {kind:<5} {form:<6} difference {apart:.0e} {'' if apart < 1e-10 else 'MISSED'}")


def bandwidth(name: str, hidden: int, given: tuple[Graph, Any, Tensor], repeats: int) -> dict[str, Any]:
    """Time A H and a copy of H."""
    graph = given[0]
    f = ours(GraphNet("gcn", (1, 1, 2)), graph, np.ones((graph.nodes, 1)), given[2] % 2, False, torch.float32)
    operator = f.batch.operators[0][0]
    assert operator is not None
    state = torch.randn(graph.nodes, hidden)
    target = torch.empty_like(state)
    copied = 2 * 4 * state.numel() / median(lambda: target.copy_(state), repeats)
    fresh = 2 * 4 * state.numel() / median(state.clone, repeats)
    moved = 8 * operator.nnz + 4 * graph.nodes + 2 * 4 * state.numel()
    rows = 2**17 // hidden
    blocks = list(zip(operator.pattern.blocks(rows), target.split(rows), strict=True))

    def aggregate() -> None:
        for block, out in blocks:
            out.copy_(multiply(block, state))

    rate = moved / median(aggregate, repeats)
    whole = moved / median(lambda: operator @ state, repeats)
    print(
        f"{name:<8} width {hidden:>4}: aggregation {rate / 1e9:.1f} GB/s, copy {copied / 1e9:.1f} GB/s "
        f"({rate / copied:.0%}); to new memory: {whole / 1e9:.1f}, {fresh / 1e9:.1f} GB/s ({whole / fresh:.0%})",
        flush=True,
    )
    return {"data": name, "width": hidden, "aggregation": rate, "copy": copied, "new": whole, "copy_to_new": fresh}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["physics", "mesh"], choices=["physics", "mesh"])
    parser.add_argument("--models", nargs="+", default=["gcn", "sage"], choices=["gcn", "sage"])
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--forms", nargs="+", default=["edges", "csr"], choices=["edges", "csr"])
    parser.add_argument("--side", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--most-gib", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/layers"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    check()
    rows, rates = [], []
    for name in options.data:
        given = data(name, options.side)
        print(f"{name}: {given[0].nodes} nodes, {given[0].edges} entries, {given[1].shape[1]} features", flush=True)
        rates += [bandwidth(name, hidden, given, options.repeats) for hidden in options.hidden]
        for kind in options.models:
            for hidden in options.hidden:
                rows += case(name, kind, hidden, given, options)
    keys = list(dict.fromkeys(key for row in rows for key in row))
    write_table(options.out / "table.csv", [{key: row.get(key, "") for key in keys} for row in rows])
    write_table(options.out / "bandwidth.csv", rates)
    print(f"written  {options.out}")


if __name__ == "__main__":
    main()
