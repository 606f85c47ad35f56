"""Measure nested iteration in Anemoi: the same network first on a coarser mesh with fewer cells, its weights handed on.

    PYTHONPATH=. .venv-anemoi/bin/python experiments/anemoi/coarse_start.py --data DATA --out runs/anemoi/coarse

All ways train with AdamW at the same rate and batches; the validation loss is that on all cells. The mesh of all 1,617
cells has resolution 8; coarse levels have the mesh of a lower one and the cells nearest to its nodes. Seconds are those
of the steps without validations, coarse trainings' with those of the fine one; synchronisations are the sums of
gradients. Writes a row for every validation to ``--table``, and says when each way has first reached the losses; what
has been run before is read.
"""

import argparse
import os
import shutil
import subprocess
from pathlib import Path

from experiments.anemoi.runs import BIN, environment, train
from mldd.loop import read_csv, write_table

WAYS = {  # resolutions and steps of the coarse levels
    "all cells": (),
    "from 7": ((7, 60),),
}
LOSS = "val_multi_dataset_loss_epoch"
DATES = "dataloader.{part}.datasets.data.{end}={date}"
TASK = [  # six hours ahead, three weeks to train on
    "model.num_channels=32",
    "model.processor.num_layers=4",
    "task.timestep=6H",
    *(f"dataloader.batch_size.{part}=8" for part in ("training", "validation")),
    DATES.format(part="training", end="end", date="2019-03-21"),
    DATES.format(part="validation", end="start", date="2019-03-23"),
    DATES.format(part="validation", end="end", date="2019-03-30"),
    DATES.format(part="test", end="start", date="2019-03-30"),
    DATES.format(part="test", end="end", date="2019-03-31"),
]


def settings(steps, every, resolution=8):
    """Words for a training of so many steps, validated after every so many."""
    words = [f"training.max_steps={steps}", f"dataloader.limit_batches.training={every}", "training.max_epochs=1000"]
    words += ["dataloader.limit_batches.validation=6", "training.optimization.lr=3.0e-3"]
    return [*words, *TASK, f"graph.nodes.hidden.node_builder.resolution={resolution}"]


def keep(path):
    """A callback that keeps the weights."""
    return f"{{_target_: mldd.anemoi.KeepWeights, out: {path.absolute()}}}"


def start(path):
    """A callback that starts from them."""
    return f"{{_target_: mldd.anemoi.CoarseStart, weights: {path.absolute()}}}"


def curve(way, seed, out, before=(0.0, 0)):
    """Rows of the validations of a run; costs of the run before are added."""
    seconds, steps = before
    return [
        {
            "way": way,
            "seed": seed,
            "steps on all cells": record.step,
            "synchronisations": steps + record.cost.synchronisations,
            "seconds": round(seconds + record.cost.seconds, 2),
            "validation loss": record.validation[LOSS],
        }
        for record in read_csv(out / "records" / "history.csv").records
        if LOSS in record.validation
    ]


def cost_of(out):
    """Seconds and steps of a run."""
    last = read_csv(out / "records" / "history.csv").records[-1]
    return last.cost.seconds, last.cost.synchronisations


def trained(out, data, words, callbacks):
    """Train in a folder unless this has been done, and return seconds and steps."""
    if not (out / "complete").exists():
        shutil.rmtree(out, ignore_errors=True)
        train("AdamW", out, data, more=words, limit=900, callbacks=callbacks)
        (out / "complete").touch()
    return cost_of(out)


def thinned(resolution, options):
    """The data set with the cells of a coarse level."""
    path = options.out / f"{resolution}.zarr"
    if not path.exists():
        words = ["anemoi", "thin", options.data, "--resolution", str(resolution), "--out", path]
        subprocess.run([BIN / "mldd", *words], env=environment(options.data, options.out), check=True)
    return path


def rows_of(way, seed, options):
    """Rows of one way from one seed."""
    os.environ["ANEMOI_BASE_SEED"] = str(1000 + seed)
    name, seconds, steps, callbacks = way.replace(" ", "-"), 0.0, 0, []
    for resolution, count in WAYS[way]:
        out = options.out / f"{seed}-{name}-{resolution}"
        words, kept = settings(count, count, resolution), out.with_suffix(".pt")
        spent = trained(out, thinned(resolution, options), words, [*callbacks, keep(kept)])
        seconds, steps, callbacks = seconds + spent[0], steps + spent[1], [start(kept)]
    out = options.out / f"{seed}-{name}"
    trained(out, options.data, settings(options.steps, options.every), callbacks)
    return curve(way, seed, out, (seconds, steps))


def reached(rows, way, seed, target):
    """The first row of a way whose loss is at or below a target, None where there is none."""
    of = [row for row in rows if (row["way"], row["seed"]) == (way, seed)]
    return next((row for row in of if row["validation loss"] <= target), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what era5_uk.py --hours 744 writes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs")
    parser.add_argument("--table", type=Path, default=Path("paper/results/anemoi/coarse_start.csv"))
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=1)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):  # what is done is written, should a later one be cut off
        for way in options.ways:
            rows += rows_of(way, seed, options)
            write_table(options.table, rows)
    for seed in range(options.seeds):
        ends = [row["validation loss"] for row in rows if (row["way"], row["seed"]) == (options.ways[0], seed)]
        target = 1.02 * min(ends)
        for way in options.ways:
            print(f"seed {seed}, loss {target:.5g}, {way}: {reached(rows, way, seed, target)}")


if __name__ == "__main__":
    main()
