"""What a checkpoint costs: seconds and bytes by the number of unknowns and of records of the history.

    python experiments/trust/checkpoint_cost.py [--sizes 1e6 1e8] [--records 1e6] [--out paper/results/trust]

The state is that of Adam in single precision, which holds two vectors beside the iterate. Written is the first
checkpoint, with all records, and a second one with the records of 30 s more at 1,000 steps per second. `share` is the
time of the second one over 30 s, the default interval; the time on the CPU tells what is the machine's own load.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from mldd import checkpoints
from mldd.loop import Cost, History, Record, replacing
from mldd.solvers import Adam

INTERVAL = 30.0  # seconds between two checkpoints
NEW = 30_000  # records of that time


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=float, nargs="*", default=[1e6, 1e8], help="numbers of unknowns")
    parser.add_argument("--records", type=float, default=1e6, help="records of the history")
    parser.add_argument("--out", type=Path, default=Path("paper/results/trust"), help="folder of the table")
    options = parser.parse_args()
    torch.set_num_threads(1)
    records = [record(k) for k in range(int(options.records) + NEW)]
    rows = [measured(int(size), records) for size in options.sizes]
    options.out.mkdir(parents=True, exist_ok=True)
    with replacing(options.out / "checkpoint_cost.json") as new:
        new.write_text(json.dumps(rows, indent=1) + "\n")
    for row in rows:
        print(row)


def record(k: int) -> Record:
    """Return some record of step `k`.

    Parameters
    ----------
    k : int
        Its number.
    """
    return Record(k, 0, 1 / (k + 1), 1 / (k + 2), 0, 0, Cost(k, k / 3, k / 3, seconds=k * 1e-3))


def measured(size: int, records: list[Record]) -> dict[str, Any]:
    """Return seconds and bytes of two checkpoints in a row, and of reading.

    Parameters
    ----------
    size : int
        Number of unknowns.
    records : list of Record
        Of the run at the second one.
    """
    x = torch.rand(size)
    state = Adam().init(None, x)  # type: ignore[arg-type]
    state.mean, state.square = torch.rand(size), torch.rand(size)
    row: dict[str, Any] = {"unknowns": size, "records": len(records) - NEW}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "checkpoint"
        for name, many in (("first", len(records) - NEW), ("second", len(records))):
            state.step, history = many - 1, History(records[:many])
            begin, busy = time.perf_counter(), time.process_time()
            checkpoints.save(file, x=x, state=state, history=history, meta={})
            row[f"seconds_{name}"] = round(time.perf_counter() - begin, 3)
            row[f"cpu_seconds_{name}"] = round(time.process_time() - busy, 3)
        row["share"] = round(row["seconds_second"] / INTERVAL, 5)
        row["bytes"] = file.stat().st_size
        row["bytes_of_history"] = sum(path.stat().st_size for path in Path(folder).glob("*.history-*"))
        begin = time.perf_counter()
        checkpoints.load(file)
        row["seconds_to_read"] = round(time.perf_counter() - begin, 3)
    return row


if __name__ == "__main__":
    main()
