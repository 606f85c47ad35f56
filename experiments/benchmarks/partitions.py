"""Which method cuts a graph with the fewest halo rows, how well balanced, and how long does it take?

    python experiments/benchmarks/partitions.py [--graphs cora citeseer physics mesh5 grid power] [--parts 16]
    [--methods metis ...] [--seeds 1 2 3] [--size 1000000] [--limit 120] [--out DIR]

Citation graphs; the multiscale mesh of the icosahedron refined five times (10,242 nodes, as Anemoi's hidden mesh); a
square grid of `--size` nodes with one diagonal; a power-law graph of `--size` nodes (mean degree 10, exponent 2.5).
Medians over the seeds; one seed on graphs of more than 100,000 nodes. Seconds are processor time. Every cut runs in a
process of its own, which ends when it has used `--limit` seconds: the row then says so. "ratio" is halo rows over those
of METIS (edge cut) in the same run. The row "vertex cut" (on the power-law graph) counts copies of nodes as halo rows.
METIS takes seed 0 for seed 1.
"""

from __future__ import annotations

import argparse
import math
import multiprocessing
import resource
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from mldd.command import measured
from mldd.graph import Graph, partition, partition_methods, vertex_cut
from mldd.loop import write_table
from mldd.problems.data import grid_mesh, icosphere, load_graph, power_law

LARGE = 100_000
VERTEX_CUT = "vertex cut"
FIGURES = ("halo_rows", "largest_halo", "cut", "balance", "edge_balance", "replication_factor", "most_components")


def build(name: str, size: int) -> tuple[Graph, torch.Tensor | None]:
    """Return a graph and the coordinates of its nodes, if it has any."""
    if name == "mesh5":
        graph, latitude, longitude = icosphere(5, multiscale=True)
        return graph, torch.stack([latitude, longitude], 1)
    if name == "grid":
        graph, place = grid_mesh(math.isqrt(size), math.isqrt(size), 6)
        return graph, torch.cat([place, torch.zeros(len(place), 1, dtype=place.dtype)], 1)
    if name == "power":
        return power_law(size, 10.0, seed=0), None
    return load_graph(name).graph, None


def cut(graph: Graph, place: torch.Tensor | None, method: str, parts: int, seed: int) -> dict[str, Any]:
    """Cut the graph once and say how good that is."""
    torch.set_num_threads(1)
    start = time.process_time()
    if method == VERTEX_CUT:
        found = vertex_cut(graph, parts, seed=seed)
        seconds = time.process_time() - start
        row = measured(graph, found.part) | {"seconds": seconds}
        told = found.report()
        kept = ("balance", "edge_balance", "replication_factor")
        return row | {key: told[key] for key in kept} | {"halo_rows": told["copies"], "largest_halo": math.nan}
    part = partition(graph, parts, method, seed=seed, coordinates=place)
    seconds = time.process_time() - start
    return measured(graph, part) | {"seconds": seconds}


def limited(seconds: int, *arguments: Any) -> dict[str, Any] | str:
    """Run `cut` in a process of its own; return what it found, or why there is nothing."""
    context = multiprocessing.get_context("fork")
    here, there = context.Pipe(duplex=False)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds + 15, seconds + 20))  # 15 s for the report
        try:
            there.send(cut(*arguments))
        except (ValueError, ImportError) as error:
            there.send(str(error))

    child = context.Process(target=work)
    child.start()
    there.close()
    try:
        answer: dict[str, Any] | str = here.recv()
    except EOFError:
        answer = f"skipped: more than {seconds} s, or out of memory"
    child.join()
    return answer


def table(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Cut one graph by all methods, print and return the rows."""
    graph, place = build(name, options.size)
    seeds = options.seeds if graph.nodes <= LARGE else options.seeds[:1]
    size = f"{graph.nodes} nodes, {graph.edges // 2} edges, {options.parts} parts"
    print(f"\n{name}: {size}, seeds {' '.join(map(str, seeds))}")
    print(
        f"{'method':<14}{'halo rows':>10}{'ratio':>8}{'largest':>9}{'cut':>9}{'balance':>9}{'edges':>8}{'seconds':>9}"
    )
    rows: list[dict[str, Any]] = []
    methods = [m for m in options.methods if place is not None or m != "geometric"]
    reference = math.nan
    for method in [*methods, VERTEX_CUT] if name == "power" else methods:
        found = [limited(options.limit, graph, place, method, options.parts, seed) for seed in seeds[:1]]
        if isinstance(found[0], dict) and method not in ("contiguous", "petsc", "geometric"):
            found += [limited(options.limit, graph, place, method, options.parts, seed) for seed in seeds[1:]]
        good = [answer for answer in found if isinstance(answer, dict)]
        if not good:
            print(f"{method:<14}{found[0]}", flush=True)
            rows.append({"graph": name, "nodes": graph.nodes, "method": method, "note": found[0]})
            continue
        row = {key: statistics.median([answer[key] for answer in good]) for key in (*FIGURES, "seconds")}
        reference = row["halo_rows"] if method == "metis" else reference
        row = {"graph": name, "nodes": graph.nodes, "method": method, "note": ""} | row
        row["ratio"] = row["halo_rows"] / reference
        rows.append(row)
        print(
            f"{method:<14}{row['halo_rows']:>10.0f}{row['ratio']:>8.3f}{row['largest_halo']:>9.0f}{row['cut']:>9.0f}"
            f"{row['balance']:>9.3f}{row['edge_balance']:>8.3f}{row['seconds']:>9.2f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--graphs", nargs="+", default=["cora", "citeseer"])
    parser.add_argument("--methods", nargs="+", default=partition_methods())
    parser.add_argument("--parts", type=int, default=16)
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--size", type=int, default=1_000_000)
    parser.add_argument("--limit", type=int, default=120, help="seconds of processor time per cut")
    parser.add_argument("--out", type=Path, default=Path("runs/benchmarks/partitions"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name in options.graphs:
        rows = table(name, options)
        empty = dict.fromkeys(("graph", "nodes", "method", "note", *FIGURES, "seconds", "ratio"), "")
        path = options.out / f"{name}.csv"
        write_table(path, [empty | row for row in rows])
        print(f"written  {path}")


if __name__ == "__main__":
    main()
