"""``mldd anemoi reorder``: one numbering for graph and data sets, written, with what it saves."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mldd.anemoi.cells import check_cells, copy_cells
from mldd.anemoi.numbering import Rows, numbering, renumbered, rows_table
from mldd.loop import write_table
from mldd.problems.data import DataError, File
from mldd.problems.data.formats import TypedGraph, read_typed_graph, write_typed_graph

_NOTES = (
    "a checkpoint of Anemoi fits only the numbering that it was trained with: it keeps numbers of nodes and edges",
    "a TransformerProcessor with windows over the nodes is another function after a renumbering",
)


def reorder(options: argparse.Namespace) -> Iterator[str]:
    """Yield what came of renumbering a graph and its data sets in lines; files are written on the way.

    Parameters
    ----------
    options : argparse.Namespace
        ``graph data ranks seed out`` of the command line.

    Raises
    ------
    ValueError
        A graph or a data set that does not fit.
    OSError
        The folder holds something.
    """
    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise OSError(f"{options.out} must be a new or empty folder, got one that holds something; give another --out")
    graph = read_typed_graph(File(options.graph))
    stores = _stores(graph, options.data)
    orders = numbering(graph, options.ranks, options.seed)
    made = renumbered(graph, orders)
    table = rows_table(graph, options.ranks, "as numbered") + rows_table(made, options.ranks, "renumbered")
    options.out.mkdir(parents=True, exist_ok=True)
    written = [options.out / options.graph.name]
    write_typed_graph(made, written[0])
    for name, store in stores.items():
        written.append(options.out / store.name)
        copy_cells(store, written[-1], orders[name])
    written.append(options.out / "rows.csv")
    write_table(written[-1], table)
    yield from lines_of(table)
    bare = [name for name in graph.nodes if name not in stores and not _is_inner(graph, name)]
    if bare:
        yield f"note: the data of nodes {', '.join(bare)} must be permuted too: give the .zarr behind the graph"
    yield from (f"note: {note}" for note in _NOTES)
    yield "written: " + " ".join(map(str, written))


def lines_of(table: Rows) -> Iterator[str]:
    """Yield a table of rows in words: what ranks read of each other, in all and the most that one reads.

    Parameters
    ----------
    table : list of dict
        Of `rows_table`, for two numberings.
    """
    yield "rows that ranks read of each other in one evaluation of these edges, total (largest of a rank)"
    half = len(table) // 2
    wide = max(len(row["edges"]) for row in table)
    yield f"ranks  {'edges':<{wide}}  {'':<14} {'as numbered':>18} {'renumbered':>18}"
    for before, after in zip(table[:half], table[half:], strict=True):
        shown = (f"{row['rows']} ({row['largest']})" for row in (before, after))
        yield f"{before['ranks']:>5}  {before['edges']:<{wide}}  {before['role']:<14} " + " ".join(
            f"{text:>18}" for text in shown
        )


def _is_inner(graph: TypedGraph, name: str) -> bool:
    return any(kind[0] == kind[2] == name for kind in graph.edges)


def _stores(graph: TypedGraph, given: list[Path]) -> dict[str, Path]:
    """Return the data set of every type of nodes that has one, checked cell by cell."""
    outer = [name for name in graph.nodes if not _is_inner(graph, name)]
    if len({path.name for path in given}) < len(given):
        raise DataError(f"data sets must have different names, got {', '.join(map(str, given))}")
    found: dict[str, Path] = {}
    for store in given:
        failed = []
        for name in outer:
            try:
                check_cells(np.asarray(graph.nodes[name]["x"], dtype=np.float64), store, name)
            except DataError as error:
                failed.append(error)
            else:
                found[name] = store
                break
        else:
            raise failed[0]
    return found
