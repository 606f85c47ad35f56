"""The machine that figures were measured on, and what it can do at most: bandwidth, matrix products, messages.

    [mpiexec -n 2] python [-m mpi4py] -m experiments.machine

A gradient of a problem needs some operations and moves some bytes, each at least once. The least time of a run is that
of its gradients at the faster of both limits, and of its messages; its share is this time over the time that it took.
"""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from mldd.algebra import uncounted
from mldd.ranks import Communicator, prepare, world


@dataclass(frozen=True)
class Limits:
    """Rates of a machine.

    Parameters
    ----------
    bandwidth : float
        Bytes per second of a vector update that does not fit the caches, two reads and a write.
    flops : dict of str to float
        Operations per second of a matrix product, by dtype.
    latency : float
        Seconds of summing one number over the ranks; 0 on one.
    """

    bandwidth: float
    flops: dict[str, float]
    latency: float = 0.0

    def least(self, need: Need, gradients: float, messages: float) -> float:
        """Return the least seconds of so many gradients and messages."""
        of_one = max(need.flops / self.flops[need.dtype], need.bytes / self.bandwidth)
        return gradients * of_one + messages * self.latency


@dataclass(frozen=True)
class Need:
    """What a gradient of a problem needs: operations, and bytes that do not fit the caches."""

    flops: float
    bytes: float = 0.0
    dtype: str = "float64"


def least_seconds(task: Callable[[], object], clock: Callable[[], float], repeats: int = 9, calls: int = 1) -> float:
    """Return the least seconds of a call: a limit is what nothing disturbs."""
    task()
    found = []
    for _ in range(repeats):
        begin = clock()
        for _ in range(calls):
            task()
        found.append((clock() - begin) / calls)
    return min(found)


def measured(comm: Communicator, size: int = 2**24, side: int = 768) -> Limits:
    """Return the limits of this machine, measured in about a second."""
    a, b, c = (torch.rand(size) for _ in range(3))
    bandwidth = 3 * a.element_size() * size / least_seconds(lambda: torch.add(a, b, out=c), time.process_time)
    flops = {}
    for name in ("float64", "float32"):
        x, y = (torch.rand(side, side, dtype=getattr(torch, name)) for _ in range(2))
        z = torch.empty_like(x)
        seconds = least_seconds(lambda x=x, y=y, z=z: torch.mm(x, y, out=z), time.process_time)  # type: ignore[misc]
        flops[name] = 2 * side**3 / seconds
    if comm.ranks == 1:
        return Limits(bandwidth, flops)
    with uncounted():
        return Limits(bandwidth, flops, least_seconds(lambda: comm.sum_scalars([1.0]), time.perf_counter, calls=50))


def dense(widths: tuple[int, ...], samples: int, streams: int = 1, dtype: str = "float64") -> Need:
    """Return what a gradient of a dense network needs: a product forward and two back, for each stream of derivatives.

    Parameters
    ----------
    widths : tuple of int
        Of all layers, inputs and outputs included.
    samples : int
        Rows.
    streams : int
        Values and derivatives that go through the network: 1 + first + second ones.
    dtype : {"float64", "float32"}
        Of the products.
    """
    weights = sum(a * b for a, b in zip(widths, widths[1:], strict=False))
    return Need(6.0 * samples * weights * streams, dtype=dtype)


def processor() -> str:
    """Return the name of the processor, with what tells apart processors of one name, and how busy it is."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    found = {key.strip(): text.strip() for key, _, text in (line.partition(":") for line in lines)}
    name = found.get("model name", platform.processor() or platform.machine())
    family = "/".join(found[key] for key in ("cpu family", "model") if key in found)
    load = f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "?"
    return f"{name} (family/model {family}), {os.cpu_count()} processors, load {load}"


def main() -> None:
    """Print the limits."""
    comm = world()
    prepare(comm)
    torch.set_num_threads(1)
    found = measured(comm)
    if comm.rank == 0:
        print(processor(), asdict(found), sep="\n")


if __name__ == "__main__":
    main()
