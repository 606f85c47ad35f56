"""The command ``mldd partition``: several partitions of a problem's graph side by side, as a table and as a picture."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from mldd.graph import Graph, distance_weights, edge_weights, partition, report
from mldd.loop import Problem, has, replacing, write_table

_COLUMNS = (
    ("halo_rows", "halo rows", "{:d}"),
    ("largest_halo", "largest", "{:d}"),
    ("cut", "cut", "{:d}"),
    ("balance", "balance", "{:.3f}"),
    ("edge_balance", "edges", "{:.3f}"),
    ("replication_factor", "replication", "{:.3f}"),
    ("most_components", "components", "{:d}"),
    ("seconds", "seconds", "{:.2f}"),
)


def run(problem: Problem, name: str, options: argparse.Namespace) -> None:
    """Cut the graph of a problem by all methods asked for, print the table, write files.

    Parameters
    ----------
    problem : object
        With `graph`; its `coordinates` (n, 2) of latitude and longitude and its `features` are used if asked for.
    name : str
        Of the problem.
    options : argparse.Namespace
        ``parts methods seed weights out write quiet`` of the command line.

    Raises
    ------
    ValueError
        The problem has no graph, no features or coordinates for the weights, or cannot write shards.
    """
    graph, place = graph_of(problem, name), getattr(problem, "coordinates", None)
    if options.write is not None and not has(problem, "write_shards"):
        raise ValueError(f"--write needs a problem that can write its parts to files, got {name}; leave it out")
    weighted = _weighted(problem, graph, options.weights, name)
    found: dict[str, Tensor] = {}
    rows: list[dict[str, Any]] = []
    for method in options.methods:
        start = time.perf_counter()
        part = partition(
            weighted, options.parts, method, seed=options.seed, coordinates=place, imbalance=options.imbalance
        )
        seconds = time.perf_counter() - start
        found[method] = part
        rows.append({"method": method} | measured(weighted, part) | {"seconds": seconds})
    if not options.quiet:
        size = f"{graph.nodes} nodes, {graph.edges // 2} edges, {options.parts} parts"
        print(f"{name}: {size}, weights: {options.weights}")
        print("\n".join(table(rows)), flush=True)
    written = [] if options.out is None else _write_files(graph, place, found, rows, name, options)
    if options.write is not None:
        best = min(rows, key=lambda row: row["halo_rows"])["method"]
        problem.write_shards(found[best], options.write)
        written.append(options.write)
    if written and not options.quiet:
        print("written  " + " ".join(map(str, written)))


def graph_of(problem: Problem, name: str) -> Graph:
    """Return the graph of a problem.

    Parameters
    ----------
    problem : Problem
        That has a graph.
    name : str
        As it was given, for the message.

    Raises
    ------
    ValueError
        It has none.
    """
    graph = getattr(problem, "graph", None)
    if not isinstance(graph, Graph):
        raise ValueError(f"mldd partition needs a problem that holds a graph as a whole (cora, say), got {name}")
    return graph


def _weighted(problem: Problem, graph: Graph, kind: str, name: str) -> Graph:
    """Return the graph with weights of the kind asked for."""
    if kind == "none":
        return Graph(graph.indptr, graph.indices)
    source = {"features": "features", "distance": "coordinates"}[kind]
    values = getattr(problem, source, None)
    if values is None and kind == "features":
        values = getattr(getattr(problem, "graph_data", None), "features", None)
    if values is None:
        raise ValueError(f"--weights {kind} needs a problem with {source}, got {name}; try --weights none")
    make = edge_weights if kind == "features" else distance_weights
    return Graph(graph.indptr, graph.indices, make(graph, values))


def measured(graph: Graph, part: Tensor) -> dict[str, Any]:
    """Return what the table says of a partition: `report`, and the largest of its lists.

    Parameters
    ----------
    graph : Graph
        What was cut.
    part : Tensor, shape (n,)
        The part of every node.
    """
    found = report(graph, part)
    return found | {"largest_halo": max(found["halo"]), "most_components": max(found["components"])}


def table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of the table, the fewest halo rows marked.

    Parameters
    ----------
    rows : sequence of dict
        One per method.
    """
    least = min(row["halo_rows"] for row in rows)
    wide = max(14, *(len(row["method"]) + 2 for row in rows))
    columns = [*_COLUMNS, ("weighted_cut", "weighted cut", "{:.6g}")] if "weighted_cut" in rows[0] else _COLUMNS
    widths = [max(len(title), 9) + 2 for _, title, _ in columns]
    lines = ["method".ljust(wide) + "".join(t.rjust(w) for (_, t, _), w in zip(columns, widths, strict=True))]
    for row in rows:
        cells = [form.format(row[key]).rjust(w) for (key, _, form), w in zip(columns, widths, strict=True)]
        mark = " *" if row["halo_rows"] == least else ""
        lines.append(row["method"].ljust(wide) + "".join(cells) + mark)
    return lines


def _write_files(
    graph: Graph, place: Tensor | None, found: dict[str, Tensor], rows: list[dict[str, Any]], name: str, options: Any
) -> list[Path]:
    """Write the description, the table and the picture."""
    from mldd.figures import draw_parts

    files = [options.out / f"partition.{suffix}" for suffix in ("json", "csv", "png")]
    content = {"problem": name, "parts": options.parts, "seed": options.seed, "weights": options.weights, "rows": rows}
    with replacing(files[0]) as new:
        new.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    write_table(files[1], [{k: v for k, v in row.items() if not isinstance(v, list)} for row in rows])
    titles = {f"{row['method']}: {row['halo_rows']} halo rows": found[row["method"]] for row in rows}
    draw_parts(graph, titles, files[2], place, f"{name}, {options.parts} parts")
    return files
