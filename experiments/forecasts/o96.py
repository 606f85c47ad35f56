"""Weather on an o96-size grid: memory per rank, seconds per sample, and what an o320 training needs on 64 GPUs.

    python experiments/forecasts/o96.py --data DATA.zarr [--ranks 1 2] [--steps N] [--out FILE] [--quick]

Writes a synthetic data set where there is none: 40,320 cells of the octahedral reduced Gaussian grid o96, 20 variables
of which two are constant, 500 times 6 h apart, 1.6 GB before compression, in Zarr as `anemoi-datasets` writes it
(format 2, a chunk holds all of one time). Fields are sums of waves that travel round the globe at their own speeds.

Every number of ranks then trains an encode-process-decode network over the icosahedral mesh of 10,242 nodes, whose
coarser levels are the coarse spaces of recursive AdaGrad (three levels). Of some samples the least times of

    read      reading, decompressing and handing out the values of a sample, and making inputs and targets of them
    values    the values alone; `values_alone` is where every rank reads all chunks for its own cells instead
    halo      packing, sending and waiting for rows of other ranks in a gradient
    compute   the rest of a gradient

Memory is the largest resident set of a rank: as imported, after set-up, after gradients, and of the training. The
training has two samples a step; after every step its loss over a few samples of the validation part is evaluated,
outside of the clock, in units of persistence over the training part. Numbers of ranks must agree in these losses;
those that are in the file from another call stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import mldd
from mldd.algebra import uncounted
from mldd.loop import History, Stop, minimise, replacing
from mldd.models import replacing_folder
from mldd.problems.weather import Weather
from mldd.ranks import SERIAL, Communicator, prepare, timed, world
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion

sys.path.insert(0, str(Path(__file__).parents[2]))

from experiments.machine import processor  # noqa: E402 (from the folder above)

OUT = Path(__file__).parents[2] / "paper" / "results" / "forecasts" / "o96.json"
NETWORK = {"hidden": 64, "layers": 4, "mesh_nodes": 10242, "batch": 2, "chunk": 1}
QUICK = {"hidden": 8, "layers": 2, "mesh_nodes": 162, "batch": 2, "chunk": 1}
LEVELS, RATE = 3, 0.003
WAVES = 12


# ------------------------------------------------------------------------------------------------ data


def octahedral(lines: int) -> tuple[Any, Any]:
    """Return latitudes and longitudes of the grid oN with N = `lines` from pole to equator, 4 i + 16 points each."""
    nodes = np.polynomial.legendre.leggauss(2 * lines)[0]
    latitudes = np.degrees(np.arcsin(nodes[::-1]))
    counts = 4 * np.arange(1, lines + 1) + 16
    counts = np.concatenate([counts, counts[::-1]])
    longitudes = np.concatenate([np.arange(n) * 360.0 / n for n in counts])
    return np.repeat(latitudes, counts), longitudes


def fields(latitude: Any, longitude: Any, variables: int, times: int) -> Any:
    """Yield the values of one time after the other, shape (V, n): constant height and land, the rest waves."""
    random = np.random.default_rng(0)
    phi, theta = np.radians(latitude), np.radians(longitude)
    number, order = random.integers(1, 9, WAVES), random.integers(0, 4, WAVES)
    speed, phase = random.uniform(0.05, 0.4, WAVES), random.uniform(0, 2 * np.pi, WAVES)
    mixing = random.standard_normal((variables, WAVES)) / np.sqrt(WAVES)
    shape = np.cos(phi) ** 2 * np.cos(order[:, None] * 2 * phi)
    height = 9.80665 * 500 * np.maximum(shape[0] * np.cos(number[0] * theta), 0)
    for t in range(times):
        waves = shape * np.cos(number[:, None] * theta - (speed * t + phase)[:, None])
        noise = 0.02 * random.standard_normal((variables, len(phi)))
        values = 280 + 10 * (mixing @ waves + noise)
        values[0], values[1] = height, height > 0
        yield values.astype(np.float32)


def write(path: Path, lines: int, variables: int, times: int) -> None:
    """Write the data set, time by time."""
    import zarr

    latitude, longitude = octahedral(lines)
    cells, names = len(latitude), ["z", "lsm", *(f"v{k}" for k in range(2, variables))]
    versioned = {"zarr_format": 2} if int(zarr.__version__.split(".")[0]) >= 3 else {}
    group = zarr.open_group(str(path), mode="w", **versioned)
    make = group.create_array if versioned else group.create_dataset
    shape = (times, variables, 1, cells)
    data = make("data", shape=shape, chunks=(1, *shape[1:]), dtype="float32", fill_value=float("nan"))
    sums = np.zeros((2, variables))
    for t, values in enumerate(fields(latitude, longitude, variables, times)):
        data[t] = values[:, None]
        if t < int(0.8 * times):
            sums += np.stack([values.mean(1, dtype=np.float64), (values.astype(np.float64) ** 2).mean(1)])
    mean, square = sums / int(0.8 * times)
    dates = np.datetime64("2020-01-01T00", "s") + np.arange(times) * np.timedelta64(6 * 3600, "s")
    stdev = np.sqrt(np.maximum(square - mean**2, 0))
    small = {"dates": dates, "latitudes": latitude, "longitudes": longitude, "mean": mean, "stdev": stdev}
    for name, of in small.items():
        make(name, shape=of.shape, chunks=of.shape, dtype=of.dtype)[...] = of
    constant = {name: {"units": "K", "constant_in_time": name in names[:2]} for name in names}
    attributes = {"variables": names, "frequency": "6h", "field_shape": [cells], "variables_metadata": constant}
    group.attrs.update(attributes | {"constant_fields": names[:2], "missing_dates": [], "version": "0.22"})


# ------------------------------------------------------------------------------------------------ a rank


def resident() -> float:
    """Return the largest resident set so far, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def times_of(problem: Weather, samples: int) -> dict[str, float]:
    """Return the least seconds that reading, halos and computing take: what else runs only makes them longer."""
    f, x, rows = problem.objective(), problem.initial(0), []
    alone = replace(problem.fine, reader=replace(problem.fine.reader, comm=SERIAL))
    for origin in problem.origins["train"][: samples + 1]:
        one, other = f.over(np.array([origin])), np.array([origin + len(problem.origins["train"]) // 2])
        reads = []
        for samples_of in (problem.fine, alone):  # of the same times: whoever comes second finds them in memory
            for _ in range(2):
                begun = time.perf_counter()
                samples_of.values(other)
            reads.append(time.perf_counter() - begun)
        start = time.perf_counter()
        list(one.chunks())
        middle = time.perf_counter()
        with timed() as halo:
            one.value_and_gradient(x)
        end = time.perf_counter()
        exchanged = halo.begin + halo.wait
        rows.append((middle - start, exchanged, end - middle - exchanged, *reads))
    names = ("read_seconds", "halo_seconds", "compute_seconds", "values_seconds", "values_alone_seconds")
    return {n: min(c) for n, c in zip(names, zip(*rows[1:], strict=True), strict=True)}


def halo_rows(problem: Weather) -> dict[str, int]:
    """Return rows that this rank reads of others in encoder, a round and decoder."""
    channels = problem.objective().batch.channels
    sizes = [channel.operator.exchange.size for channel in (channels[0], channels[1], channels[-1])]
    return dict(zip(("encoder_halo", "processor_halo", "decoder_halo"), sizes, strict=True))


def worker(options: argparse.Namespace) -> None:
    """Set up, time and train on these ranks; rank 0 prints a row for every rank as JSON, the last line is whole."""
    comm = world()
    prepare(comm)
    torch.set_num_threads(1)
    imported = resident()
    shape = QUICK if options.quick else NETWORK
    problem = mldd.problem(Weather, path=str(options.data), comm=comm, **shape)
    start = time.perf_counter()
    f, x = problem.objective(), problem.initial(0)
    row: dict[str, Any] = {"ranks": comm.ranks, "rank": comm.rank, "cells": len(problem.own)}
    row |= {"mesh_nodes": len(f.batch.static), **halo_rows(problem), "unknowns": len(x)}
    row |= {"imported_mib": imported, "set_up_mib": resident(), "set_up_seconds": time.perf_counter() - start}
    row |= times_of(problem, 2 if options.quick else options.samples)
    row["gradient_mib"] = resident()
    say(comm, row)  # what is known, should the training be cut off
    levels, smoother = problem.hierarchy(2 if options.quick else LEVELS), AdaGrad(1e-3, RATE)
    solver = MultilevelAdaGrad(levels, smoother, Recursion(steps=5))
    judge = Judge(problem)
    # the loss over all training samples would take longer than the training
    result = minimise(f, x, solver, stop=Stop(max_steps=options.steps), comm=comm, values=0, after_step=judge)
    row |= {"status": result.status.name, "trained_mib": resident(), "training": judge.rows}
    say(comm, row)


class Judge:
    """The loss over a few samples of the validation part after every step."""

    def __init__(self, problem: Weather) -> None:
        origins = problem.origins["validation"]
        few = origins[:: max(len(origins) // 4, 1)][:4]
        self.loss, self.share = problem.objective().over(few), len(problem.origins["train"]) / len(few)
        self.rows: list[dict[str, float]] = []

    def __call__(self, x: Tensor, state: Any, history: History) -> None:
        """Take the start or an iterate."""
        record = history.records[-1]
        with uncounted():
            loss = self.share * float(self.loss.value(x))
        self.rows.append({"step": record.step, "validation_loss": loss, "seconds": record.cost.seconds})


def say(comm: Communicator, row: dict[str, Any]) -> None:
    """Print the rows of all ranks."""
    rows = comm.gather_items(row)
    if comm.rank == 0:
        print(json.dumps(rows), flush=True)


# ------------------------------------------------------------------------------------------------ all


def measured(options: argparse.Namespace, ranks: int) -> list[dict[str, Any]]:
    """Return the rows of so many ranks, which are processes of their own."""
    command = [sys.executable, "-m", "mpi4py", __file__, "--worker", "--data", str(options.data)]
    command += ["--steps", str(options.steps), "--samples", str(options.samples), *["--quick"] * options.quick]
    if ranks > 1:
        command = [str(Path(sys.executable).with_name("mpiexec")), "-n", str(ranks), *command]
    done = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, check=True, text=True
    )
    found: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Write the data where they are not there, measure, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the .zarr, written where there is none")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--steps", type=int, default=8, help="of training, default 8")
    parser.add_argument("--samples", type=int, default=5, help="that are timed, default 5")
    parser.add_argument("--quick", action="store_true", help="a grid o16 with 4 variables and 20 times")
    parser.add_argument("--out", type=Path, default=OUT)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        worker(options)
        return
    if not options.data.exists():
        with replacing_folder(options.data) as new:
            write(new, *((16, 4, 20) if options.quick else (96, 20, 500)))
    network = QUICK if options.quick else NETWORK
    found = json.loads(options.out.read_text(encoding="utf-8")) if options.out.exists() else {}
    runs = found["runs"] if found.get("network") == network else {}
    for ranks in options.ranks:
        about = {"command": shlex.join(["python", *sys.argv]), "machine": processor()}
        runs[str(ranks)] = about | {"rows": measured(options, ranks)}
        for row in runs[str(ranks)]["rows"]:
            print(row, flush=True)
        with replacing(options.out) as new:
            new.write_text(json.dumps({"network": network, "runs": runs}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
