"""Two ranks that share a device: the same loss and gradient as one, staged and direct messages, and what they cost.

    mpiexec -n 2 python experiments/gpu/two_ranks.py DEVICE NODES       (started by experiments/benchmarks/gpu.py)

Messages are direct where MPI reads the memory of the device (``MLDD_CUDA_AWARE``), and go through the host otherwise.
Where there is no MPI the ranks are torchrun's, which goes through the host.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

if __name__ == "__main__":  # started by a launcher, from anywhere
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from experiments.gpu.checkout import importable

    importable()

import torch

from experiments.gpu.device import Device, Row, attempts
from mldd.algebra import value_and_gradient
from mldd.problems.graphs import Network, Strips, SyntheticClassification
from mldd.ranks import SERIAL, Communicator, prepare, world

WAYS = {"staged": "0", "direct": "1"}


def problem(device: str, nodes: int, comm: Communicator) -> SyntheticClassification:
    """Return a grid of which every rank makes its strip."""
    network = Network(hidden=64, dropout=0.0, decay=0.0)
    return SyntheticClassification(
        strips=Strips(nodes, parts=2), network=network, dtype="float64", device=device, comm=comm
    )


def evaluated(device: Device, nodes: int, comm: Communicator) -> Row:
    """Return value, norm of the gradient, and the time of both."""
    made = problem(device.name, nodes, comm)
    f, x = made.objective(), made.initial(0)
    value, g = value_and_gradient(f, x)
    ms = 1e3 * device.seconds(lambda: value_and_gradient(f, x), least=0.0)
    return {"value": float(value), "norm": float(g.norm()), "ms": ms}


def command(device: Device, nodes: int) -> list[str]:
    """Return how two ranks are started."""
    program = [str(Path(__file__)), device.name, str(nodes)]
    here = Path(sys.executable).parent / "mpiexec"
    mpiexec = str(here) if here.exists() else shutil.which("mpiexec")
    if mpiexec and importlib.util.find_spec("mpi4py"):
        return [mpiexec, "-n", "2", sys.executable, "-m", "mpi4py", *program]
    return [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", *program]


def started(way: str, device: Device, nodes: int) -> Row:
    """Start two ranks and compare what they find with one rank."""
    line = command(device, nodes)
    if way == "direct" and not device.is_cuda:
        return {"left out": "direct is for a GPU: a CPU's memory is MPI's own"}
    done = subprocess.run(
        line, env=os.environ | {"MLDD_CUDA_AWARE": WAYS[way]}, capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
        raise RuntimeError(f"ended with {done.returncode}: {last[0]}")
    found: Row = json.loads(done.stdout.strip().splitlines()[-1])
    alone = evaluated(device, nodes, SERIAL)
    difference = max(abs(found[key] - alone[key]) / abs(alone[key]) for key in ("value", "norm"))
    launcher = "mpi" if "mpi4py" in line else "torchrun"
    return {"launcher": launcher, "difference": difference, "ms": found["ms"], "one rank ms": alone["ms"]}


def ranks(device: Device) -> list[Row]:
    """Run both ways."""
    nodes = 2_000 if device.quick else 500_000
    return attempts({way: (lambda way=way: started(way, device, nodes)) for way in WAYS}, device)


def main() -> None:
    """Be one of the ranks."""
    comm = world()
    prepare(comm)
    torch.set_num_threads(1)
    found = evaluated(Device(sys.argv[1], quick=True), int(sys.argv[2]), comm)
    if comm.rank == 0:
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
