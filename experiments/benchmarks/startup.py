"""What a command costs before it does anything: CPU seconds of whole processes, beside those of peers in the same run.

    python experiments/benchmarks/startup.py [--repeats 5] [--out paper/results/startup.json]

Commands are run in turn with peers, and user plus system time of the process is taken; what is printed are medians, and
medians of the ratio to the peer. `train cora` (graph convolutions, 50 steps of Adam) is split: imports are those of a
process that imports what the run has imported, set-up is what a run of no steps takes beyond these, steps what 50 take
beyond that. The peer does the same with torch_geometric's GCNConv, the public split and torch's Adam, and says how its
time is divided. Data are looked for as by `mldd` (``MLDD_DATA``).
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.machine import processor  # noqa: E402 (from the folder above)

MLDD = [sys.executable, "-m", "mldd"]
CORA = ["train", "cora", "--solver", "adam", "--quiet", "--steps"]
IMPORTED = """
import sys, mldd.command.cli
code = mldd.command.cli.main(["train", "cora", "--solver", "adam", "--quiet", "--steps", "0"])
print(*[name for name in sys.modules if name != "__main__"])
"""
PEER = """
import time
import torch
from torch_geometric.io import read_planetoid_data
from torch_geometric.nn import GCNConv
begin = time.process_time()
torch.manual_seed(0)
data = read_planetoid_data({folder!r}, "cora")
data.x = data.x / data.x.sum(1, keepdim=True).clamp_min(1)
layers = GCNConv(data.x.shape[1], 16, cached=True), GCNConv(16, 7, cached=True)
adam = torch.optim.Adam([p for layer in layers for p in layer.parameters()], lr=0.01)
start = time.process_time()
for _ in range(50):
    drop = torch.nn.functional.dropout
    state = torch.relu(layers[0](drop(data.x, 0.5), data.edge_index))
    out = layers[1](drop(state, 0.5), data.edge_index)
    loss = torch.nn.functional.cross_entropy(out[data.train_mask], data.y[data.train_mask])
    adam.zero_grad()
    loss.backward()
    adam.step()
end = time.process_time()
print(begin, start - begin, end - start)
"""


def run(command: Sequence[str]) -> tuple[float, str]:
    """Return CPU seconds of a process, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode not in (0, 2):
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()[-300:]}")
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def commands() -> dict[str, list[str]]:
    """Return what is run, by the name of the row."""
    python = [sys.executable, "-c"]
    modules = run([*python, IMPORTED])[1].split()
    imports = "import importlib, contextlib\nfor name in " + repr(modules)
    imports += ":\n    with contextlib.suppress(ImportError):\n        importlib.import_module(name)"
    made = {
        "python": [*python, "pass"],
        "import torch": [*python, "import torch"],
        "--help": [*MLDD, "--help"],
        "list": [*MLDD, "list"],
        "a wrong solver": [*MLDD, "train", "digits", "--solver", "nosuch"],
        "a wrong problem": [*MLDD, "train", "nosuch", "--solver", "adam"],
        "list adam": [*MLDD, "list", "adam"],
        "cora, imports": [*python, imports],
        "cora, 0 steps": [*MLDD, *CORA, "0"],
        "cora, 50 steps": [*MLDD, *CORA, "50"],
    }
    folders = [Path(part) / "planetoid/Cora/raw" for part in os.environ.get("MLDD_DATA", "").split(os.pathsep)]
    found = [folder for folder in folders if (folder / "ind.cora.x").exists()]
    if found:
        made["torch_geometric, cora, 50 steps"] = [*python, PEER.format(folder=str(found[0]))]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="a JSON file to write")
    options = parser.parse_args()
    made = commands()
    times: dict[str, list[float]] = {name: [] for name in made}
    parts = []
    for _ in range(options.repeats):
        for name, command in made.items():
            seconds, said = run(command)
            times[name].append(seconds)
            if name.startswith("torch_geometric"):
                parts.append([float(number) for number in said.split()])
    medians = {name: round(statistics.median(seconds), 3) for name, seconds in times.items()}
    for name, seconds in medians.items():
        print(f"{name:<34} {seconds:6.2f} s")
    none, fifty = medians["cora, 0 steps"], medians["cora, 50 steps"]
    split = {"imports": medians["cora, imports"], "set-up": none - medians["cora, imports"], "steps": fifty - none}
    print("cora:", *(f"{name} {seconds:.2f} s ({seconds / fifty:.0%})" for name, seconds in split.items()))
    ratios = {}
    if parts:
        peer = times["torch_geometric, cora, 50 steps"]
        ratios["cora"] = statistics.median(a / b for a, b in zip(times["cora, 50 steps"], peer, strict=True))
        shown = zip(("imports", "set-up", "steps"), map(statistics.median, zip(*parts, strict=True)), strict=True)
        print("torch_geometric:", *(f"{name} {seconds:.2f} s" for name, seconds in shown))
        print(f"cora, 50 steps: {ratios['cora']:.2f} of torch_geometric")
    if options.out is not None:
        found = {"processor": processor(), "seconds": medians, "cora": split, "ratio": ratios}
        options.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
