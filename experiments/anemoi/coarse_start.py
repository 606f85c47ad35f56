"""Measure nested iteration in Anemoi: the same network first on a coarser mesh with fewer cells, its weights handed on.

    PYTHONPATH=. .venv-anemoi/bin/python experiments/anemoi/coarse_start.py --data DATA --out runs/anemoi/coarse

Both ways train with AdamW at the same rate and batches; the validation loss is that on all cells. Seconds are those of
the steps without validations, the coarse training's with those of the fine one; synchronisations are the sums of
gradients. Writes a row for every validation to ``--table``, and says when each way has first reached the losses.
"""

import argparse
import csv
import os
import shutil
import subprocess
from pathlib import Path

from experiments.anemoi.runs import BIN, environment, train
from mldd.loop import read_csv

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


def settings(steps, every, coarse=False):
    """Words for a training of so many steps, validated after every so many."""
    words = [f"training.max_steps={steps}", f"dataloader.limit_batches.training={every}", "training.max_epochs=1000"]
    words += ["dataloader.limit_batches.validation=6", "training.optimization.lr=3.0e-3"]
    return [*words, *TASK, *["graph.nodes.hidden.node_builder.resolution=7"] * coarse]


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


def both(seed, options):
    """Rows of both ways from one seed."""
    os.environ["ANEMOI_BASE_SEED"] = str(1000 + seed)
    thinned, weights = options.out / "coarse.zarr", options.out / f"{seed}.pt"
    fine, coarse, nested = (options.out / f"{seed}-{name}" for name in ("fine", "coarse", "nested"))
    words = settings(options.steps, options.every)
    train("AdamW", fine, options.data, more=words, limit=900)
    coarse_words = settings(options.coarse_steps, options.every, coarse=True)
    train("AdamW", coarse, thinned, more=coarse_words, limit=900, callbacks=[keep(weights)])
    train("AdamW", nested, options.data, more=words, limit=900, callbacks=[start(weights)])
    return curve("all cells", seed, fine) + curve("coarse start", seed, nested, cost_of(coarse))


def reached(rows, way, seed, target):
    """The first row of a way whose loss is at or below a target, None where there is none."""
    of = [row for row in rows if (row["way"], row["seed"]) == (way, seed)]
    return next((row for row in of if row["validation loss"] <= target), None)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what era5_uk.py --hours 744 writes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs")
    parser.add_argument("--table", type=Path, default=Path("paper/results/anemoi/coarse_start.csv"))
    parser.add_argument("--steps", type=int, default=160)
    parser.add_argument("--coarse-steps", type=int, default=240)
    parser.add_argument("--every", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args()
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    thin = ["anemoi", "thin", options.data, "--resolution", "7", "--out", options.out / "coarse.zarr"]
    subprocess.run([BIN / "mldd", *thin], env=environment(options.data, options.out), check=True)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for seed in range(options.seeds):  # what is done is written, should a later one be cut off
        rows += both(seed, options)
        with options.table.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
    for seed in range(options.seeds):
        ends = [row["validation loss"] for row in rows if (row["way"], row["seed"]) == ("all cells", seed)]
        target = 1.02 * min(ends)
        for way in ("all cells", "coarse start"):
            print(f"seed {seed}, loss {target:.5g}, {way}: {reached(rows, way, seed, target)}")


if __name__ == "__main__":
    main()
