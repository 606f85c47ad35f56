"""When does local training of parts pay? The cost of a step by counts and the cost model, over devices and networks.

    python experiments/gnn_decomposition/regions.py [--out paper/results/gnn_decomposition]

A step of a residual SAGE network with 4 layers on the torus is a gradient over a batch, which takes T seconds on one
device. On P devices it takes, with g(b) the seconds of a sum of b bytes and e(m, b) those of m messages of b bytes:

- synchronous, by shares of the samples: T / P + g(N), N the bytes of the parameters;
- synchronous, by parts of the graph: T / P + g(N) + 2 (L - 1) e(8, b), the halo before each layer but the first and its
  adjoint, to and from four neighbours;
- local Adam, by shares: T / P + g(3 N) / H: one sum of the parameters and both moments in H steps;
- local Adam, by exact parts: w T / P + g(3 N) / H, w the counted work of the overlap.

All four do as many steps to about the same loss (``data_rich.csv``, 4 parts), as long as parts are not small. The work
of parts of s x s nodes is the mean over layers of ((s + 2 r) / s)^2, r = L - l rings in layer l; ``work.csv`` has it
counted, and the largest difference is in every row. Written is ``regions.csv``: for every network, T and P the seconds
of a step.
"""

from __future__ import annotations

import argparse
import csv
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mldd.loop import replacing
from mldd.problems.operators import AllenCahnOperator
from mldd.ranks import NETWORKS, Interconnect

NODES, LAYERS, BATCH, H = 316**2, 4, 64, 20
SECONDS = [10.0 ** (k / 8) for k in range(-32, 17)]  # of a gradient over the batch on one device: 0.1 ms to 100 s
RANKS = [2**k for k in range(1, 11)]
HERE = Path(__file__).resolve().parents[2] / "paper" / "results" / "gnn_decomposition"


def work_of_parts(nodes: int, parts: int, layers: int) -> float:
    """Return the work of an exact part beside that of its own nodes, on a torus."""
    side = math.sqrt(nodes / parts)
    return sum(((side + 2 * rings) / side) ** 2 for rings in range(layers)) / layers


def difference(counted: Path) -> float:
    """Return the largest relative difference of `work_of_parts` to what was counted, for parts of 24 x 24 or more."""
    with counted.open(newline="") as file:
        rows = [
            {key: row[key] for key in ("nodes", "parts", "layers", "overlap", "work")} for row in csv.DictReader(file)
        ]
    numbers = [tuple(float(value) for value in row.values()) for row in rows]
    exact = [row for row in numbers if row[2] == row[3] == LAYERS and row[0] / row[1] >= 24**2]
    return max(abs(work_of_parts(int(n), int(p), LAYERS) / work - 1) for n, p, _, _, work in exact)


@dataclass(frozen=True)
class Step:
    """The cost of a step on several devices.

    Attributes
    ----------
    seconds : float
        T, on one device.
    ranks : int
        P.
    network : Interconnect
        Between them.
    size : float
        Bytes of the parameters.
    row : float
        Bytes of a row of a halo, over the batch.
    """

    seconds: float
    ranks: int
    network: Interconnect
    size: float
    row: float

    @property
    def share(self) -> float:
        """Seconds of a rank's share of the gradient."""
        return self.seconds / self.ranks

    @property
    def synchronous_shares(self) -> float:
        """Seconds with one sum of gradients."""
        return self.share + self.network.sum_seconds(self.size, self.ranks)

    @property
    def synchronous_parts(self) -> float:
        """Seconds with one sum of gradients, and halos of all layers."""
        rows = 4 * math.sqrt(NODES / self.ranks)
        halo = self.network.exchange_seconds(8, 2 * rows * self.row)
        return self.synchronous_shares + 2 * (LAYERS - 1) * halo

    @property
    def _average(self) -> float:
        return self.network.sum_seconds(3 * self.size, self.ranks) / H

    @property
    def local_shares(self) -> float:
        """Seconds with a sum of parameters and moments in `H` steps."""
        return self.share + self._average

    @property
    def local_parts(self) -> float:
        """Seconds of the same with the work of the overlap."""
        return work_of_parts(NODES, self.ranks, LAYERS) * self.share + self._average


def rows(apart: float) -> Iterator[dict[str, Any]]:
    """Yield the seconds of a step of every kind, for every network, time and number of devices."""
    problem = AllenCahnOperator(n=24)
    size, row = 4.0 * problem.net.layout.size, 4.0 * problem.net.hidden * BATCH
    for name, network in NETWORKS.items():
        for seconds in SECONDS:
            for ranks in RANKS:
                step = Step(seconds, ranks, network, size, row)
                yield {
                    "network": name,
                    "gradient_seconds": f"{seconds:.4g}",
                    "ranks": ranks,
                    "synchronous_shares": f"{step.synchronous_shares:.4g}",
                    "local_shares": f"{step.local_shares:.4g}",
                    "synchronous_parts": f"{step.synchronous_parts:.4g}",
                    "local_parts": f"{step.local_parts:.4g}",
                    "work_of_parts": f"{work_of_parts(NODES, ranks, LAYERS):.4g}",
                    "largest_difference_of_work": f"{apart:.3f}",
                }


def main() -> None:
    """Write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=HERE)
    options = parser.parse_args()
    apart = difference(HERE / "work.csv")
    found = list(rows(apart))
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / "regions.csv") as new, new.open("w", newline="") as file:
        writer = csv.DictWriter(file, found[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(found)
    print(f"{len(found)} rows; the work of parts is within {apart:.1%} of what was counted")


if __name__ == "__main__":
    main()
