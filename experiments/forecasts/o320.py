"""What a training on an o320 grid needs on 64 GPUs: rows counted on grid and mesh, times and memory by a model.

    python experiments/forecasts/o320.py [--ranks 64] [--measured FILE] [--out FILE]

The grid has 421,120 cells, the icosahedral mesh 163,842 nodes; METIS cuts it as `Weather` does. For every rank edges,
rows of the halo and neighbours of encoder, a round and decoder are counted; the slowest rank decides. Times of a
gradient of one sample are those of `mldd.graph.CostModel` for the figures of data sheets: H100 SXM (67 TFLOP/s in
single precision, 3.35 TB/s, of which 60 % are reached), 5 us per message, 100 us to start the kernels of a block, and
NVLink (450 GB/s) or one port of 400 Gb/s InfiniBand per GPU. Bytes per entry of a state along the edges and at the
nodes are those that the trainings of o96.py have taken (``--measured``).
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mldd.graph import Graph, Machine, Work, partition
from mldd.loop import write_table
from mldd.problems.data import HiddenMesh, global_mesh
from mldd.problems.nets import EncodeProcessDecode

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.forecasts.o96 import NETWORK, octahedral  # noqa: E402 (from the folder above)

RESULTS = Path(__file__).parents[2] / "paper" / "results" / "forecasts"
NVLINK = Machine(flops=67e12, bandwidth=3.35e12, network=450e9, latency=5e-6, launch=100e-6, efficiency=0.6)
MACHINES = {"nvlink": NVLINK, "infiniband": replace(NVLINK, network=50e9)}
# Name -> variables, history, width, rounds: that of o96.py, and the width and rounds of Anemoi's default.
NETWORKS = {"as o96": (20, 2, NETWORK["hidden"], NETWORK["layers"]), "512 wide, 16 rounds": (100, 2, 512, 16)}
_FIXED = 10  # inputs that are no values: place, constant fields, forcing


@dataclass(frozen=True)
class Share:
    """What a rank holds of the grid: cells, mesh nodes, and edges, halo rows and neighbours of every channel."""

    cells: int
    nodes: int
    edges: tuple[int, int, int]
    halo: tuple[int, int, int]
    neighbours: tuple[int, int, int]


def parts_of(mesh: HiddenMesh, ranks: int) -> tuple[Any, Any]:
    """Return the rank of every cell and of every mesh node, as `Weather` cuts them."""
    near, nodes = mesh.nearest_points(0), len(mesh.points)
    edges = torch.from_numpy(np.stack(mesh.process.matrix.nonzero()).astype(np.int64))
    cells = torch.from_numpy(np.bincount(near, minlength=nodes))
    part = partition(Graph.from_edges(edges, nodes), ranks, node_weights=cells).numpy()[near]
    return part, mesh.owners(part)


def shares_of(mesh: HiddenMesh, ranks: int) -> list[Share]:
    """Count what every rank holds and reads."""
    cells, nodes = parts_of(mesh, ranks)
    links = ((mesh.encode, nodes, cells), (mesh.process, nodes, nodes), (mesh.decode, cells, nodes))
    columns = []
    for link, receivers, senders in links:
        matrix = link.matrix.tocoo()
        to, of = receivers[matrix.row], senders[matrix.col]
        outside = to != of
        read = np.unique(to[outside].astype(np.int64) * len(senders) + matrix.col[outside]) // len(senders)
        pairs = np.unique(to[outside].astype(np.int64) * ranks + of[outside]) // ranks
        columns += [np.bincount(a, minlength=ranks) for a in (to, read, pairs)]
    counts = [np.bincount(of, minlength=ranks) for of in (cells, nodes)]
    rows = np.stack([*counts, *columns], axis=1).tolist()
    return [Share(r[0], r[1], tuple(r[2::3]), tuple(r[3::3]), tuple(r[4::3])) for r in rows]


def states(share: Share, width: int, rounds: int) -> float:
    """Return the entries of states along the edges and at the receivers of all blocks, for a sample."""
    receivers = (share.nodes, share.nodes, share.cells)
    per_block = [width * (e + r) for e, r in zip(share.edges, receivers, strict=True)]
    return per_block[0] + rounds * per_block[1] + per_block[2]


def work_of(share: Share, net: EncodeProcessDecode, ranks: int) -> Work:
    """Return the work of a gradient of one sample on a rank."""
    f, h, c = net.widths
    times = (1, net.rounds, 1)
    senders, receivers = (share.cells, share.nodes, share.nodes), (share.nodes, share.nodes, share.cells)
    edges, halo, neighbours = (
        sum(t * n for t, n in zip(times, of, strict=True)) for of in (share.edges, share.halo, share.neighbours)
    )
    at_nodes = sum(t * (s + 4 * r) for t, s, r in zip(times, senders, receivers, strict=True))
    dense = share.cells * (f * h + h * c + f * c) + h * h * (at_nodes + edges)
    return Work(
        calls=net.layers,
        dense=3 * dense,  # forward, and both derivatives of a product
        sparse=6 * edges * h,  # both ends gathered and messages summed up, forward and backward
        touched=h * (2 * edges + 3 * sum(t * r for t, r in zip(times, receivers, strict=True)) + share.cells),
        messages=2 * neighbours,
        halo_bytes=2 * 4 * h * halo,
        rounds=2 * math.ceil(math.log2(ranks)),
        reduced_bytes=2 * (ranks - 1) / ranks * 4 * net.layout.size,
    )


def bytes_per_state(path: Path) -> float:
    """Return the bytes that a gradient took per entry of a state in the trainings of o96.py, the most of all ranks."""
    mesh = global_mesh(*octahedral(96), 5)
    found = []
    for row in (row for run in json.loads(path.read_text(encoding="utf-8"))["runs"].values() for row in run["rows"]):
        share = shares_of(mesh, row["ranks"])[row["rank"]]
        taken = (row["gradient_mib"] - row["set_up_mib"]) * 2**20
        found.append(taken / states(share, NETWORK["hidden"], NETWORK["layers"]))
    return max(found)


def rows_of(shares: list[Share], per_state: float) -> list[dict[str, Any]]:
    """Return a row for every network and machine."""
    ranks, rows = len(shares), []
    for name, (variables, history, width, rounds) in NETWORKS.items():
        net = EncodeProcessDecode(history * variables + _FIXED, width, variables, rounds)
        works = [work_of(share, net, ranks) for share in shares]
        entries = max(states(share, width, rounds) for share in shares)
        for machine, figures in MACHINES.items():
            step = figures.rates().step(works)
            slowest = int(np.argmax(np.add(step.compute, step.exchange)))
            rows.append(
                {
                    "network": name,
                    "machine": machine,
                    "ranks": ranks,
                    "unknowns": net.layout.size,
                    "largest_cells": max(s.cells for s in shares),
                    "largest_halo": max(s.halo[1] for s in shares),
                    "most_neighbours": max(s.neighbours[1] for s in shares),
                    "states_gib": entries * per_state / 2**30,
                    "values_mib": 4 * (history + 1) * variables * max(s.cells for s in shares) / 2**20,
                    "compute_ms": 1e3 * step.compute[slowest],
                    "halo_ms": 1e3 * step.exchange[slowest],
                    "sum_ms": 1e3 * step.reduce,
                    "step_ms": 1e3 * step.seconds,
                }
            )
    return rows


def shown(value: Any) -> Any:
    """Return a number with four digits, and anything else as it is."""
    return f"{value:.4g}" if isinstance(value, float) else value


def main() -> None:
    """Count, model, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=int, default=64)
    parser.add_argument("--measured", type=Path, default=RESULTS / "o96.json")
    parser.add_argument("--out", type=Path, default=RESULTS / "o320.csv")
    options = parser.parse_args()
    per_state = bytes_per_state(options.measured)
    print(f"{per_state:.1f} bytes per entry of a state")
    rows = rows_of(shares_of(global_mesh(*octahedral(320), 7), options.ranks), per_state)
    for row in rows:
        print(row)
    write_table(options.out, [{k: shown(v) for k, v in row.items()} for row in rows])


if __name__ == "__main__":
    main()
