"""Count the rows that Anemoi's ranks read of each other, before and after ``mldd anemoi reorder``, on three meshes.

    .venv-anemoi/bin/python experiments/anemoi/rows.py

Octahedral reduced grids of data nodes, numbered from north to south, over icosahedral hidden meshes, built by Anemoi
itself: encoder edges up to 0.6 of the mesh's distance, multi-scale processor edges, decoder edges from the three
nearest mesh nodes. One numbering for 2 to 64 ranks (nested), and for 4, 8 and 16 ranks also one of their own.
"""

import argparse
import csv
import time
from pathlib import Path

import numpy as np

from mldd.anemoi.numbering import numbering, renumbered, rows_table
from mldd.problems.data import File
from mldd.problems.data.formats import read_typed_graph

MESHES = {"o32": (32, 4), "o48": (48, 5), "o96": (96, 6)}  # name -> lines from pole to equator, and resolution
NESTED = [2, 4, 8, 16, 32, 64]
ALONE = (4, 8, 16)


def octahedral(lines):
    """Latitudes and longitudes of the octahedral reduced Gaussian grid: 20, 24, 28, ... points from the pole."""
    sizes = [20 + 4 * k for k in range(lines)]
    sizes += sizes[::-1]
    gauss = np.degrees(np.arcsin(np.polynomial.legendre.leggauss(2 * lines)[0]))[::-1]
    longitudes = np.concatenate([np.arange(m) * 360.0 / m for m in sizes])
    return np.repeat(gauss, sizes), longitudes


def build(lines, resolution, path):
    """Build a graph by Anemoi, and write it."""
    from anemoi.graphs.create import GraphCreator
    from anemoi.utils.config import DotDict

    latitudes, longitudes = octahedral(lines)
    kinds = "anemoi.graphs.edges.attributes"
    attributes = {
        "edge_length": {"_target_": f"{kinds}.EdgeLength", "norm": "unit-std"},
        "edge_dirs": {"_target_": f"{kinds}.EdgeDirection", "norm": "unit-std"},
    }
    edges = "anemoi.graphs.edges"
    builders = {
        ("data", "hidden"): {"_target_": f"{edges}.CutOffEdges", "cutoff_factor": 0.6},
        ("hidden", "hidden"): {"_target_": f"{edges}.MultiScaleEdges", "x_hops": 1, "scale_resolutions": resolution},
        ("hidden", "data"): {"_target_": f"{edges}.KNNEdges", "num_nearest_neighbours": 3},
    }
    place = {"latitudes": latitudes.tolist(), "longitudes": longitudes.tolist()}
    nodes = {
        "data": {"node_builder": {"_target_": "anemoi.graphs.nodes.LatLonNodes", **place}},
        "hidden": {"node_builder": {"_target_": "anemoi.graphs.nodes.TriNodes", "resolution": resolution}},
    }
    ends = [
        {"source_name": source, "target_name": target, "edge_builders": [builder], "attributes": attributes}
        for (source, target), builder in builders.items()
    ]
    GraphCreator(DotDict({"nodes": nodes, "edges": ends})).create(save_path=path, overwrite=True)


def rows_of(name, folder):
    """Rows of the table for one mesh."""
    path = folder / f"{name}.pt"
    if not path.exists():
        build(*MESHES[name], path)
    graph = read_typed_graph(File(path))
    size = {"mesh": name, "data nodes": graph.size("data"), "hidden nodes": graph.size("hidden")}
    found = rows_table(graph, NESTED, "as numbered")
    began = time.perf_counter()
    found += rows_table(renumbered(graph, numbering(graph, NESTED)), NESTED, "nested for 2 to 64")
    print(f"{name}: numbered for 2 to 64 ranks in {time.perf_counter() - began:.1f} s", flush=True)
    for ranks in ALONE:
        found += rows_table(renumbered(graph, numbering(graph, [ranks])), [ranks], "for these ranks alone")
    return [{**size, **row} for row in found]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("paper/results/anemoi/rows.csv"))
    parser.add_argument("--graphs", type=Path, default=Path("runs/anemoi"), help="where graphs are built")
    parser.add_argument("--meshes", default=",".join(MESHES))
    options = parser.parse_args()
    options.graphs.mkdir(parents=True, exist_ok=True)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = [row for name in options.meshes.split(",") for row in rows_of(name, options.graphs)]
    with options.out.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    for row in rows:
        if row["ranks"] == 16:
            print(*row.values(), sep=", ")


if __name__ == "__main__":
    main()
