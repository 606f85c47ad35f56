"""Train Anemoi before and after ``mldd anemoi reorder``: the same losses, but for the order in which sums are formed.

    PYTHONPATH=. .venv-anemoi/bin/python experiments/anemoi/renumbering.py --data DATA --out runs/anemoi/renumbering

Six steps of AdamW in float32 on the tiny configuration, whose model has no trainable numbers per node. Writes the loss
where each step begins, and that of the validation.
"""

import argparse
import csv
import shutil
import subprocess
from pathlib import Path

from experiments.anemoi.runs import BIN, environment, train
from mldd.loop import read_csv

LOSS = "val_multi_dataset_loss_epoch"


def rows_of(out):
    """Losses of both runs."""
    before, after = (read_csv(out / name / "records" / "history.csv").records for name in ("before", "after"))
    pairs = [(f"loss {a.step + 1}", a.value, b.value) for a, b in zip(before[:-1], after[:-1], strict=True)]
    pairs.append(("validation loss", before[-1].validation[LOSS], after[-1].validation[LOSS]))
    return [
        {"number": name, "before": f"{a:.9g}", "after": f"{b:.9g}", "relative difference": f"{abs(a - b) / a:.1e}"}
        for name, a, b in pairs
    ]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what era5_uk.py writes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs")
    parser.add_argument("--table", type=Path, default=Path("paper/results/anemoi/renumbering.csv"))
    options = parser.parse_args()
    out = options.out.absolute()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    train("AdamW", out / "before", options.data, more=[f"system.input.graph={out / 'graph.pt'}"])
    words = [out / "graph.pt", options.data, "--ranks", "2,4,8", "--out", out / "new"]
    subprocess.run([BIN / "mldd", "anemoi", "reorder", *words], env=environment(options.data, out), check=True)
    graph = ["graph=existing", f"system.input.graph={out / 'new' / 'graph.pt'}"]
    train("AdamW", out / "after", out / "new" / options.data.name, more=graph)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    rows = rows_of(out)
    with options.table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
