"""Are the subdomains of a rank evaluated in one batch? All parts at once, beside a loop and the whole graph.

    python experiments/benchmarks/batched_subdomains.py [--name sbm] [--parts 16] [--model gcn] [--repeats 40]

Every part has its own parameters and evaluates the loss of its own nodes with an exact halo (`local="own"`); all nodes
but two are in the loss. The halo factor is the number of nodes that all parts read over the number of nodes: those
within as many hops as there are layers, or one hop less where the first propagation is done beforehand, as with dense
features (the smaller, stricter factor). Bar: the batch costs at most 1.3 times the halo factor times one evaluation of
the whole graph. CPU time of this process, one thread, median over interleaved repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import replace

import torch

from mldd.problems.data import load_graph
from mldd.problems.graphs import Network, NodeClassification, Spaces

BAR = 1.3


def medians(calls: list[Callable[[], object]], repeats: int) -> list[float]:
    """Return the median CPU milliseconds of every call; the calls take turns: a busy machine slows all of them."""
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in calls]
    for _ in range(repeats):
        for call, row in zip(calls, times, strict=True):
            begin = time.process_time()
            call()
            row.append(1e3 * (time.process_time() - begin))
    return [statistics.median(row) for row in times]


def measure(name: str, parts: int, model: str, dtype: str, repeats: int) -> dict[str, float]:
    """Measure one case."""
    data = load_graph(name)
    last = torch.arange(data.graph.nodes) >= data.graph.nodes - 2
    test = last & (torch.arange(data.graph.nodes) % 2 == 0)
    data = replace(data, train=~last, validation=last & ~test, test=test)
    problem = NodeClassification(
        data, network=Network(model=model, dropout=0.0), spaces=Spaces(local="own"), dtype=dtype
    )  # type: ignore[arg-type]
    whole, x, part = problem.objective(), problem.initial(0), problem.parts(parts)
    batch = problem.local_batch(part, range(parts))
    single = [problem.local_batch(part, [k]) for k in range(parts)]
    rows = x.expand(parts, -1).clone()
    one, together, loop = medians(
        [
            lambda: whole.value_and_gradient(x),
            lambda: batch.value_and_gradient(rows),
            lambda: [f.value_and_gradient(rows[k : k + 1]) for k, f in enumerate(single)],
        ],
        repeats,
    )
    pieces = [
        problem.source.piece((part == k).nonzero().flatten().numpy(), problem.network.layers) for k in range(parts)
    ]
    halo = sum(piece.rows[1 if piece.propagated else 0] for piece in pieces) / data.graph.nodes
    return {"halo": halo, "whole": one, "batch": together, "loop": loop, "ratio": together / (halo * one)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--name", default="sbm")
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--model", nargs="+", default=["gcn", "sage"])
    parser.add_argument("--dtype", nargs="+", default=["float64", "float32"])
    parser.add_argument("--repeats", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{options.name}, {options.parts} parts, one thread; milliseconds of CPU time, medians of {options.repeats}")
    print("model dtype    halo factor   whole graph   batch   loop of parts   batch / (halo x whole), at most 1.3")
    for model in options.model:
        for dtype in options.dtype:
            m = measure(options.name, options.parts, model, dtype, options.repeats)
            verdict = "holds" if m["ratio"] <= BAR else "MISSED"
            print(
                f"{model:5} {dtype:8} {m['halo']:11.2f} {m['whole']:13.3f} {m['batch']:7.3f} {m['loop']:15.3f}"
                f"   {m['ratio']:.3f} {verdict}"
            )


if __name__ == "__main__":
    main()
