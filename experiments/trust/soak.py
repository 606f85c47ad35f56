"""Do runs that last grow? Memory, open files, threads, processes and files on disk over hours.

    python experiments/trust/soak.py [--minutes 120] [--every 20] [--out paper/results/trust]

- long: two ranks of mpiexec train a graph network by Schwarz AdaGrad without an end and write a checkpoint every 10 s.
- again: one process trains, saves, draws and reads back one kind of problem after the other, again and again.
Both run at the same time; every process below them is looked at from outside, every 20 s. The table ``soak.json`` has
the median of each eighth of the time, and the growth from the second eighth, behind start-up and the first round of all
kinds, to the last. The history of the long run is kept in memory: `records` counts it, and `bytes_per_record` is what a
record would cost if it were all of the growth. It is a fault if a load has ended, if open files, threads, processes or
files on disk have grown, or if what is mapped (data segment, heap and anonymous mappings: what malloc and Python have
asked for) has grown by more than 5 % and 1,000 bytes per record and rank. How much of it is resident is shown but no
fault: Python's arenas are mapped long before all of their pages are used, and the system takes idle pages away.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

MLDD = "import sys; from mldd.command.cli import main; sys.exit(main())"
LONG = "train sbm --solver dd-adagrad --parts 4 --steps 1000000000 --quiet --checkpoint c.ckpt --checkpoint-every 10s"
AGAIN = """
import contextlib, io, itertools, pathlib, sys
from mldd.command.cli import main
LINES = (
    "train cora --solver lbfgs --steps 10", "train cora --solver ml-lbfgs --levels 2 --steps 5",
    "train sbm --solver schwarz --parts 4 --steps 3", "train digits --solver adam --steps 20",
    "train obstacle:n=31 --solver ml-adagrad --steps 10", "train poisson1d --solver mspqn --steps 5",
    "train bratu:n=31 --solver tao:blmvm --steps 20", "train allen-cahn-operator:n=8 --solver local-adam --steps 2",
)
for k in itertools.count():
    line = LINES[k % len(LINES)]
    folder = f"again/{k % len(LINES)}"
    for words in (f"{line} --quiet --overwrite --out {folder}", f"plot {folder} --overwrite --out p.png"):
        with contextlib.redirect_stdout(io.StringIO()):
            status = main(words.split())
        if status:
            sys.exit(f"{words}: {status}")
    pathlib.Path("rounds").write_text(str(k + 1))
"""
COUNTED = ("mapped", "resident", "descriptors", "threads", "processes", "files")
WINDOWS = 8


def below(pid: int) -> list[int]:
    """Return a process and all that it has started."""
    found = [pid]
    for parent in found:
        for task in Path(f"/proc/{parent}/task").glob("*/children"):
            found += [int(child) for child in task.read_text().split()]
    return found


def sample(pid: int, folder: Path) -> dict[str, int]:
    """Return what the processes below one hold: bytes, descriptors, threads, and files in its folder."""
    row = dict.fromkeys(COUNTED, 0)
    for process in below(pid):
        try:
            status = dict(line.split(":", 1) for line in Path(f"/proc/{process}/status").read_text().splitlines())
            row["descriptors"] += len(os.listdir(f"/proc/{process}/fd"))
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has just ended
        row["mapped"] += int(status.get("VmData", "0 kB").split()[0]) * 1024
        row["resident"] += int(status.get("VmRSS", "0 kB").split()[0]) * 1024
        row["threads"] += int(status["Threads"])
        row["processes"] += 1
    row["files"] = sum(1 for _ in folder.rglob("*"))
    return row


def started(words: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """Start a load in a folder of its own, with its temporary files below it."""
    (folder / "tmp").mkdir(parents=True)
    given = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(folder / "tmp"), "MPLBACKEND": "agg"}
    with (folder / "said").open("wb") as said:
        return subprocess.Popen(words, cwd=folder, env=given, stdout=said, stderr=said, start_new_session=True)


def row(name: str, samples: list[dict[str, int]], done: int, ended: bool) -> dict[str, Any]:
    """Return the medians of a load over the windows, its growth, and what is a fault in it."""
    size = len(samples) // WINDOWS
    windows = [samples[k * size : (k + 1) * size] for k in range(WINDOWS)]
    found: dict[str, Any] = {"load": name, "done": done, "samples": len(samples), "ended": ended}
    faults = ["ended"] if ended else []
    for key in COUNTED:
        medians = [statistics.median(s[key] for s in window) for window in windows]
        grown = medians[-1] - medians[1]
        found |= {key: medians, f"{key}_growth": grown}
        if key not in ("mapped", "resident"):
            faults += [key] * (grown > 0)
    if name == "long":
        found["bytes_per_record"] = round(found["mapped_growth"] / (0.75 * done))  # the time between the two windows
    allowed = 0.05 * found["mapped"][1] + (2000 * done if name == "long" else 0)
    faults += ["mapped"] * (found["mapped_growth"] > allowed)
    return found | {"faults": faults}


def main() -> int:
    """Run both loads, look at them, write the table; the status is 1 where something has grown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120.0)
    parser.add_argument("--every", type=float, default=20.0, help="seconds between two looks")
    parser.add_argument("--out", type=Path, default=Path("paper/results/trust"), help="folder of the table")
    options = parser.parse_args()
    place = Path(tempfile.mkdtemp())
    ranks = [str(Path(sys.executable).with_name("mpiexec")), "-n", "2", sys.executable, "-m", "mpi4py", "-m", "mldd"]
    loads = {
        "long": started([*ranks, *LONG.split()], place / "long"),
        "again": started([sys.executable, "-c", AGAIN], place / "again"),
    }
    samples: dict[str, list[dict[str, int]]] = {name: [] for name in loads}
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        time.sleep(options.every)
        for name, load in loads.items():
            samples[name].append(sample(load.pid, place / name))
    ended = {name: load.poll() is not None for name, load in loads.items()}
    for load in loads.values():
        if load.poll() is None:
            os.killpg(load.pid, signal.SIGKILL)
            load.wait()
    rows = [row(name, samples[name], done(name, place / name), ended[name]) for name in loads]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "soak.json").write_text(json.dumps({"minutes": options.minutes, "rows": rows}, indent=1) + "\n")
    for each in rows:
        print(each)
    shutil.rmtree(place)
    return int(any(each["faults"] for each in rows))


def done(name: str, folder: Path) -> int:
    """Return how many records or rounds a load has made."""
    if name == "again":
        return int((folder / "rounds").read_text())
    from mldd import checkpoints

    return len(checkpoints.load(folder / "c.ckpt").history.records)


if __name__ == "__main__":
    sys.exit(main())
