"""How fast is one full-graph value and gradient of each kind of graph layer, beside plain torch and torch_geometric?

    python experiments/benchmarks/layers.py [--data physics mesh] [--models gcn sage gin gat gatv2 transformer]
                                            [--side 300] [--hidden 64 256] [--heads 4] [--repeats 9]
                                            [--most-gib 4] [--out paper/results/layers.json]

Two layers, ReLU, cross-entropy over all nodes, float32 on one thread; the same weights and the same graph: `physics`
(sparse features) or a triangulated grid of side^2 nodes with 64 features (--side 1000: a million nodes). Each row has

- mldd: without dropout, so that A X is computed once where the layer is linear in it; in a process of its own that is
  prepared as mldd's commands and `mldd.train` do (`mldd.ranks.prepare`: malloc keeps what is freed); and once more with
  malloc as it is, beside the peers;
- plain torch (`plain_layers`): CSR with its transpose stored, A X computed once, attention on edges;
- torch_geometric in the fastest of its public forms (adjacency as edge list or as CSR tensor, normalisation cached;
  features dense or sparse where its layers take them), and the same with A X given to its first layer.

- products (dense features): the dense products that all of them have to do, alone, into arrays that are there. Their
  share of the time of plain torch is what no arrangement of the rest can come below.

All are called in turn, and what is printed are medians of process time over the repeats; a ratio is mldd's time over
the peer's; the bar is 0.8 of plain torch. Losses and gradients are compared (relative maximum norm), in float64 on a
small mesh first. A form whose messages would take more than `--most-gib` is left out and says so.

The aggregation A H alone is put beside a copy of H in the same run: bytes that must move (every array once) over time;
block by block into an array that is there, as in a sweep, and as one product into new memory.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.graph import Graph
from mldd.problems.data import from_tensor, grid_mesh, load_graph
from mldd.problems.graphs import NodeLoss
from mldd.problems.nets import GraphNet, Source, add_outer, multiply, stack
from mldd.problems.nets.layers import layer_of
from mldd.ranks import SERIAL, prepare

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.benchmarks.peers.geometric_layers import GeometricNetwork  # noqa: E402 (from the folder above)
from experiments.benchmarks.peers.plain_layers import network, pair  # noqa: E402 (from the folder above)
from experiments.machine import processor  # noqa: E402 (from the folder above)

BAR = 0.8
OURS_PLAIN = "mldd, malloc as it is"
CONTEXT = multiprocessing.get_context("spawn")
CLASSES, FEATURES = 16, 64  # of the mesh
KINDS = ("gcn", "sage", "gin", "gat", "gatv2", "transformer")
Evaluation = Callable[[], tuple[Tensor, list[Tensor]]]
Given = tuple[Graph, Any, Tensor]


def seconds(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Return process times of calls made in turn, after one round to warm up; those that return a time are believed."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name, call in calls.items():
            begin = time.process_time()
            elsewhere = call()
            if turn > 0:
                spent = elsewhere if isinstance(elsewhere, float) else time.process_time() - begin
                found[name].append(spent)
    return found


def data(name: str, side: int) -> Given:
    """Return graph, features (NumPy or SciPy) and labels."""
    if name == "physics":
        found = load_graph("physics")
        return found.graph, from_tensor(found.features), found.labels
    random = np.random.default_rng(0)
    graph = grid_mesh(side, side, 6)[0]
    features = random.standard_normal((graph.nodes, FEATURES), dtype=np.float32)
    return graph, features, torch.from_numpy(random.integers(CLASSES, size=graph.nodes))


def ours(net: GraphNet, given: Given, dtype: torch.dtype) -> NodeLoss:
    """Return the mean cross-entropy over all nodes."""
    graph, features, labels = given
    targets = torch.nn.functional.one_hot(labels).numpy() / len(labels)
    source = Source.of(net.kind, layer_of(net.kind).operator(graph), features, targets)
    piece = source.piece(np.arange(graph.nodes), net.layers, propagated=net.layer.beforehand)
    return NodeLoss(net, stack([piece], single=True, dtype=dtype, device="cpu"))


def worker(pipe: Connection, net: GraphNet, given: Given, x: Tensor) -> None:
    """Evaluate ours whenever asked to, prepared as for a run, and answer with the process time."""
    torch.set_num_threads(1)
    prepare(SERIAL)
    f = ours(net, given, torch.float32)
    while pipe.recv():
        begin = time.process_time()
        f.value_and_gradient(x)
        pipe.send(time.process_time() - begin)


@contextmanager
def prepared(net: GraphNet, given: Given, x: Tensor) -> Iterator[Callable[[], float]]:
    """Give a function that evaluates ours once in a process of its own and returns its time there."""
    here, there = CONTEXT.Pipe()
    process = CONTEXT.Process(target=worker, args=(there, net, given, x))
    process.start()

    def evaluate() -> float:
        here.send(True)
        seconds: float = here.recv()
        return seconds

    try:
        yield evaluate
    finally:
        here.send(False)
        process.join()


def plain(net: GraphNet, given: Given, x: Tensor) -> Evaluation:
    """Return the evaluation in plain torch."""
    graph, features, labels = given
    outputs = network(net.kind, layer_of(net.kind).operator(graph), features, net.heads, x.dtype)

    def evaluate() -> tuple[Tensor, list[Tensor]]:
        leaves = net.layout.leaves(x)
        loss = torch.nn.functional.cross_entropy(outputs(leaves), labels)
        return loss.detach(), list(torch.autograd.grad(loss, leaves))

    return evaluate


def adjacency(graph: Graph, form: str, dtype: torch.dtype) -> Tensor:
    """Return the (symmetric) graph as torch_geometric wants it."""
    if form == "edges":
        return graph.edge_index
    values = torch.ones(graph.edges, dtype=dtype)
    return torch.sparse_csr_tensor(graph.indptr, graph.indices, values, (graph.nodes, graph.nodes))


def geometric(
    net: GraphNet, given: Given, x: Tensor, form: str, kept: str, cached: bool = False
) -> tuple[Evaluation, GeometricNetwork]:
    """Return the evaluation by torch_geometric in one form."""
    graph, features, labels = given
    made = GeometricNetwork(net.kind, net.widths, net.heads, net.layout.views(x))

    def as_kept(matrix: Any) -> Tensor:
        if kept == "sparse":
            return pair(matrix, x.dtype)[0]
        return torch.from_numpy(matrix if isinstance(matrix, np.ndarray) else matrix.toarray()).to(x.dtype)

    propagated = as_kept(layer_of(net.kind).operator(graph) @ features) if cached else None
    return made.evaluation(as_kept(features), adjacency(graph, form, x.dtype), labels, propagated), made


def message_bytes(net: GraphNet, graph: Graph, form: str, kept: str) -> int:
    """Return what the largest messages of torch_geometric take: one row per edge; some kinds send their inputs."""
    before = net.kind in ("sage", "gin")
    widths = [*net.widths[:-1]] if before else [*net.widths[1:-1], net.widths[-1] * net.heads]
    return 4 * max(widths) * (graph.nodes if form == "csr" and net.kind in ("gcn", "sage", "gin") else graph.edges)


def forms(net: GraphNet, given: Given, x: Tensor, most: float) -> tuple[dict[str, Evaluation], list[str]]:
    """Return the forms of torch_geometric that work, checked against ours, and why others do not."""
    found: dict[str, Evaluation] = {}
    notes = []
    expected = ours(net, given, x.dtype).value_and_gradient(x)
    for kept in ("dense",) if isinstance(given[1], np.ndarray) else ("dense", "sparse"):
        for form in ("edges", "csr"):
            for cached in (False, True) if net.kind in ("gcn", "sage") else (False,):
                name = f"{form}, {kept} features" + ", A X kept" * cached
                size = message_bytes(net, given[0], form, kept)
                if size > most * 2**30 and not (kept == "sparse" or cached):
                    notes.append(f"{name}: messages of {size / 2**30:.1f} GiB")
                    continue
                try:
                    evaluate, made = geometric(net, given, x, form, kept, cached)
                    loss, g = evaluate()
                except (RuntimeError, NotImplementedError, TypeError, ValueError) as error:
                    notes.append(f"{name}: {str(error).splitlines()[0][:60]}")
                    continue
                check(net, name, expected, loss, made.in_order(g, net.layout.shapes))
                found[name] = evaluate
    return found, notes


def check(net: GraphNet, name: str, expected: tuple[Tensor, Tensor], loss: Tensor, g: list[Tensor]) -> None:
    """Refuse a peer that computes something else."""
    packed, tolerance = net.layout.pack(g), 1e-10 if loss.dtype == torch.float64 else 1e-3
    apart = float((expected[1] - packed).abs().max() / expected[1].abs().max())
    apart = max(apart, float((expected[0] - loss).abs() / loss.abs()))
    if not apart < tolerance:
        raise RuntimeError(f"{net.kind}, {name}: loss and gradient differ by {apart:.0e} from ours")


def products(net: GraphNet, rows: int) -> Callable[[], None]:
    """Return H W and H^T G of every weight, and G W^T where H is no feature, as one call."""
    calls: list[Callable[[], Any]] = []
    for layer in range(net.layers):
        for name, shape in net.tensors(layer).items():
            if len(shape) != 2:
                continue
            state, g, weight = torch.randn(rows, shape[0]), torch.randn(rows, shape[1]), torch.randn(shape)
            out, below, of_weight = torch.empty_like(g), torch.empty_like(state), torch.zeros_like(weight)
            calls += [partial(torch.mm, state, weight, out=out), partial(add_outer, of_weight, state, g)]
            if layer > 0 or name not in net.layer.inputs:
                calls.append(partial(torch.mm, g, weight.t(), out=below))

    def run() -> None:
        for call in calls:
            call()

    return run


def case(name: str, kind: str, hidden: int, given: Given, options: Any) -> dict[str, Any]:
    """Time ours beside plain torch and the fastest forms of torch_geometric."""
    graph, features, labels = given
    heads = options.heads if layer_of(kind).many_heads else 1
    net = GraphNet(kind, (features.shape[1], hidden, int(labels.max()) + 1), heads=heads)
    x = net.initial(0).float()
    f, torch_alone = ours(net, given, torch.float32), plain(net, given, x)
    check(net, "plain torch", f.value_and_gradient(x), *torch_alone())
    found, notes = forms(net, given, x, options.most_gib) if options.geometric else ({}, [])
    calls: dict[str, Callable[[], Any]] = {OURS_PLAIN: lambda: f.value_and_gradient(x), "plain": torch_alone}
    for way, kept in (("geometric", False), ("geometric, A X kept", True)):
        once = {key: min(seconds({key: call}, 1)[key]) for key, call in found.items() if ("A X" in key) == kept}
        if once:
            best = min(once, key=once.__getitem__)
            calls[way] = found[best]
            notes.append(f"{way}: {best}")
    if isinstance(features, np.ndarray):
        calls["products"] = products(net, graph.nodes)
    with prepared(net, given, x) as evaluate:
        measured = seconds({"mldd": evaluate, **calls}, options.repeats)
    row: dict[str, Any] = {"data": name, "model": kind, "hidden": hidden, "heads": heads}
    row |= {"ms": {key: round(1e3 * statistics.median(times), 3) for key, times in measured.items()}}
    peers = [key for key in calls if key not in (OURS_PLAIN, "products")]
    row |= {"ratio": {key: round(ratio(measured, "mldd", key), 3) for key in peers}, "notes": notes}
    row["malloc_as_it_is"] = round(ratio(measured, OURS_PLAIN, "plain"), 3)
    if "products" in calls:
        row["products_of_plain"] = round(ratio(measured, "products", "plain"), 3)
    report(row)
    return row


def ratio(measured: dict[str, list[float]], one: str, peer: str) -> float:
    """Return the median over rounds of one time over the peer's."""
    return statistics.median(a / b for a, b in zip(measured[one], measured[peer], strict=True))


def report(row: dict[str, Any]) -> None:
    """Print a row."""
    times = "  ".join(f"{key} {ms:.1f} ms" for key, ms in row["ms"].items())
    ratios = "  ".join(f"{value:.2f} of {key}" for key, value in row["ratio"].items())
    missed = "" if row["ratio"]["plain"] <= BAR else "  MISSED"
    missed += f"  ({row['malloc_as_it_is']:.2f} of plain with malloc as it is)"
    if "products_of_plain" in row:
        missed += f"  (products alone {row['products_of_plain']:.2f} of plain)"
    print(f"{row['data']:<8} {row['model']:<11} {row['hidden']:>4}  {times}\n{'':>26}{ratios}{missed}", flush=True)


def exact() -> None:
    """Compare in float64 on a small mesh."""
    given = data("mesh", 20)
    for kind in KINDS:
        net = GraphNet(kind, (FEATURES, 32, CLASSES), heads=2 if layer_of(kind).many_heads else 1)
        x = net.initial(0)
        check(net, "plain torch", ours(net, given, torch.float64).value_and_gradient(x), *plain(net, given, x)())
        print(f"float64  {kind}: as plain torch" + "".join(f"; {name}" for name in forms(net, given, x, 4.0)[0]))


def bandwidth(name: str, hidden: int, given: Given, repeats: int) -> dict[str, Any]:
    """Time A H and a copy of H."""
    graph = given[0]
    f = ours(GraphNet("gat", (1, 1, 2)), (graph, np.ones((graph.nodes, 1)), given[2] % 2), torch.float32)
    operator = f.batch.operators[0][0]
    assert operator is not None
    state = torch.randn(graph.nodes, hidden)
    target = torch.empty_like(state)
    rows = 2**17 // hidden
    blocks = list(zip(operator.pattern.blocks(rows), target.split(rows), strict=True))

    def aggregate() -> None:
        for block, out in blocks:
            out.copy_(multiply(block, state))

    calls = {"aggregation": aggregate, "copy": lambda: target.copy_(state)}
    calls |= {"new": lambda: operator @ state, "copy_to_new": state.clone}
    moved = {key: 2 * 4 * state.numel() + (0 if "copy" in key else 8 * operator.nnz + 4 * graph.nodes) for key in calls}
    rates = {key: moved[key] / 1e9 / statistics.median(times) for key, times in seconds(calls, repeats).items()}
    shown = ", ".join(f"{key} {rate:.1f} GB/s" for key, rate in rates.items())
    print(f"{name:<8} width {hidden:>4}: {shown}", flush=True)
    return {"data": name, "width": hidden} | {key: round(rate, 2) for key, rate in rates.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", default=["physics", "mesh"], choices=["physics", "mesh"])
    parser.add_argument("--models", nargs="+", default=list(KINDS), choices=KINDS)
    parser.add_argument("--hidden", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--heads", type=int, default=4)
    parser.add_argument("--side", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--most-gib", type=float, default=4.0)
    parser.add_argument("--no-geometric", dest="geometric", action="store_false", help="plain torch alone")
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    exact()
    rows, rates = [], []
    for name in options.data:
        given = data(name, options.side)
        print(f"{name}: {given[0].nodes} nodes, {given[0].edges} entries, {given[1].shape[1]} features", flush=True)
        rates += [bandwidth(name, hidden, given, options.repeats) for hidden in options.hidden]
        for kind in options.models:
            for hidden in options.hidden:
                rows.append(case(name, kind, hidden, given, options))
                if options.out is not None:  # after every row: the run is long
                    write(options.out, options, rows, rates)


def write(out: Path, options: Any, rows: list[dict[str, Any]], rates: list[dict[str, Any]]) -> None:
    """Write what was found so far."""
    made = {"processor": processor(), "torch": torch.__version__, "side": options.side, "rows": rows}
    out.write_text(json.dumps(made | {"bandwidth": rates}, indent=1) + "\n")


if __name__ == "__main__":
    main()
