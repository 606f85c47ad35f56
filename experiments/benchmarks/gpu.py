"""Everything that needs a GPU, in less than nine minutes, from a checkout as it lies there.

    python experiments/benchmarks/gpu.py [--device cuda|cpu] [--quick] [--minutes 8.5] [--sections A B] [--out FILE]

Needs torch, NumPy and SciPy; torch_geometric, mpi4py with mpiexec where they are, and nothing from a network. Sections:
`layers` and `solvers` (the device computes what the CPU computes, to rounding), `limits` (bandwidth, matrix products),
`launches` (CUDA graphs), `subdomains` (1, 4, 16, 64 in one batch), `graphs` (shares of the bandwidth, beside
torch.sparse and torch_geometric), `ranks` (two that share the device, staged and direct messages), `overheads` (steps
of solvers beside bare gradients, 1e4 to 1e8 parameters). What fails is a row that says so, what there was no time for
another; the file is written after every section. It goes to paper/results/gpu/CARD.json, which the page of results
includes, or to runs/gpu/cpu.json. With ``--device cpu`` everything runs on the CPU, as the device.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from experiments.gpu.checkout import importable  # noqa: E402 (from the folder above)
from experiments.gpu.device import Device, Row  # noqa: E402 (from the folder above)

SECTIONS = ("layers", "solvers", "limits", "launches", "subdomains", "graphs", "ranks", "overheads")


def section(name: str) -> Callable[[Device], list[Row]]:
    """Return what a section runs; its imports are its own, and may fail."""
    if name in ("layers", "solvers"):
        from experiments.gpu import agreement

        return agreement.layers if name == "layers" else agreement.solvers
    if name in ("limits", "graphs"):
        from experiments.gpu import bandwidth

        return bandwidth.limits if name == "limits" else bandwidth.graphs
    if name in ("launches", "subdomains"):
        from experiments.gpu import batches

        return batches.launches if name == "launches" else batches.subdomains
    if name == "ranks":
        from experiments.gpu import two_ranks

        return two_ranks.ranks
    return overheads


def overheads(device: Device) -> list[Row]:
    """Time steps of solvers beside bare gradients."""
    from experiments.peers.overhead import ON_A_CPU, SIZES, rows

    sizes = ON_A_CPU[:1] if device.quick else ON_A_CPU if not device.is_cuda else list(SIZES)
    wanted = ["adam", "lbfgs", "torch adam"] if device.quick else None
    found: list[Row] = []
    try:
        found.extend(rows(sizes, wanted, 1 if device.quick else 3, device))
    except RuntimeError as error:  # memory may not be enough for the largest: what was found stays
        found.append({"error": str(error).splitlines()[0]})
    return found


def run(name: str, device: Device) -> dict[str, Any]:
    """Run a section; a failure is what it says, and not the end."""
    begin = time.perf_counter()
    if device.is_late:
        return {"left out": "the time was up"}
    try:
        found: dict[str, Any] = {"rows": section(name)(device)}
    except Exception as error:  # noqa: BLE001 (all that can fail on a machine nobody has seen)
        traceback.print_exc()
        found = {"error": f"{type(error).__name__}: {error}"}
    return {"seconds": round(time.perf_counter() - begin, 1)} | found


def told(name: str, found: dict[str, Any]) -> str:
    """Return a line about a section."""
    rows = found.get("rows", [])
    failed = [row for row in rows if "error" in row or row.get("agrees") is False]
    says = found.get("error") or found.get("left out") or f"{len(rows)} rows, {len(failed)} failed"
    return "\n".join([f"{name:<10} {found.get('seconds', 0):>6} s  {says}", *(f"{'':>12}{row}" for row in failed)])


def main() -> None:
    """Run all sections."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="small sizes, to see that everything runs")
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    importable()
    begin = time.perf_counter()
    device = Device(options.device, options.quick, begin + 60 * options.minutes)
    if not device.is_cuda:
        torch.set_num_threads(1)
    from experiments.machine import processor

    folder = ROOT / ("paper/results/gpu" if device.is_cuda and not device.quick else "runs/gpu")
    out = options.out or folder / f"{re.sub(r'[^A-Za-z0-9]+', '_', device.card).strip('_')}.json"
    made: dict[str, Any] = {"card": device.card, "processor": processor(), "torch": torch.__version__}
    made |= {"cuda": torch.version.cuda, "quick": device.quick, "sections": {}}
    out.parent.mkdir(parents=True, exist_ok=True)
    for name in options.sections:
        made["sections"][name] = run(name, device)
        made["seconds"] = round(time.perf_counter() - begin, 1)
        out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        print(told(name, made["sections"][name]), flush=True)
    print(f"written  {out}")


if __name__ == "__main__":
    main()
