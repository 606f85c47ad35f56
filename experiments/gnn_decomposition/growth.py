"""Does local training of overlapping parts get worse with their number? The same run cut into 2 to 64 parts.

    python experiments/gnn_decomposition/growth.py [--sizes 48 100] [--parts 2 4 8 16 32 64] [--seeds 0 1] [--quick]

Problem, network, rates and columns are those of `data_rich.py`; here every step has eight samples whatever the number
of parts, so that synchronous Adam is the same run for all of them and is made once per seed. Local Adam has parts whose
overlap makes local losses exact, and averages after 20 steps; then with control variates, with an average that comes
five steps late, and with an average after 40 steps. P parts live in one process.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from mldd.ranks import SERIAL, prepare

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.gnn_decomposition.data_rich import RATES, Case, Method, add, run  # noqa: E402 (from the folder above)

LAYERS = 4
PARTS = (2, 4, 8, 16, 32, 64)


def methods(parts: int) -> Iterator[Method]:
    """Yield the methods for so many parts; what does not depend on them comes with the smallest number."""
    if parts == PARTS[0]:
        yield Method("adam")
    yield Method("local adam", "parts", LAYERS, 20)
    yield Method("local adam", "parts", LAYERS, 40)
    if parts in (4, 16, 64):
        yield Method("local adam", "parts", LAYERS, 20, control=True)
        yield Method("local adam", "parts", LAYERS, 20, delay=5)


def main() -> None:
    """Run what the command line says, and write a row as soon as it is there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[48, 100])
    parser.add_argument("--parts", type=int, nargs="+", default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--quick", action="store_true", help="40 steps on 24 x 24 nodes, 2 and 4 parts")
    parser.add_argument("--out", type=Path, default=Path("paper/results/gnn_decomposition"))
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.parts, options.seeds, options.steps = [24], [2, 4], [0], 40
    prepare(SERIAL)
    options.out.mkdir(parents=True, exist_ok=True)
    for n in options.sizes:
        for seed in options.seeds:
            for parts in options.parts:
                case = Case(n, parts, LAYERS, False, samples=8)
                for method in methods(parts):
                    row = run(case, seed, method, RATES[method.name], options.steps)
                    print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
                    add(options.out / "growth.csv", row)


if __name__ == "__main__":
    main()
