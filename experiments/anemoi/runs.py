"""Run a tiny training of Anemoi with solvers of mldd: one process, data parallel, model cut in two, resumed.

    .venv-anemoi/bin/python experiments/anemoi/runs.py --data runs/anemoi/era5uk.zarr --out runs/anemoi/table

Every step has another sample: the losses show that it runs and what agrees with what, not which method is better. A
row for every run, with the loss where each step begins, is written to ``--table``.
"""

import argparse
import csv
import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from mldd.loop import read_csv

HERE = Path(__file__).parent
BIN = Path(sys.executable).parent
STEPS = 6
TARGET = "training.optimization.optimizer._target_=mldd.anemoi.optimizer"
OURS = ["~training.optimization.optimizer.betas", TARGET]
SOLVERS = {  # name -> solver as Hydra makes it, and groups as subdomains
    "Adam": ("{_target_: mldd.solvers.Adam}", ""),
    "AdaGrad": ("{_target_: mldd.solvers.AdaGrad, curvature: none}", ""),
    "L-BFGS": ("{_target_: mldd.solvers.LBFGS}", ""),
    "trust region": ("{_target_: mldd.solvers.TrustRegion}", ""),
    "ASPQN": ("{_target_: mldd.solvers.SchwarzLBFGS, _partial_: true, local_steps: 2}", "parts"),
    "ASPQN, blocks": ("{_target_: mldd.solvers.SchwarzLBFGS, _partial_: true, local_steps: 2}", "blocks"),
    "APTS": ("{_target_: mldd.solvers.Apts, _partial_: true, local_steps: 2}", "parts"),
    "DD-ADAGB2": (
        "{_target_: mldd.solvers.SchwarzAdaGrad, _partial_: true, local_steps: 2, "
        "local: {_target_: mldd.solvers.AdaGrad, curvature: none}}",
        "parts",
    ),
}
TWO = ["system.hardware.num_gpus_per_node=2"]
CUT = [*TWO, "system.hardware.num_gpus_per_model=2"]
LAUNCHES = {  # how it is started, and what is added to the configuration
    "one process": ([], []),
    "data parallel, 2": ([], TWO),
    "model cut, 2": ([], CUT),
    "model cut, mpiexec": ([str(BIN / "mpiexec"), "-n", "2"], CUT),
    "model cut, torchrun": ([str(BIN / "torchrun"), "--no-python", "--nproc-per-node", "2"], CUT),
}


def environment(data, out):
    """What a run needs around it: the stand-in of timm, the data, one thread per process."""
    given = {"MLDD_ANEMOI_DATA": str(data.absolute()), "MLDD_ANEMOI_OUT": str(out.absolute())}
    libraries = {"LD_LIBRARY_PATH": str(BIN.parent / "lib")}  # that of the mpich wheel
    return {**os.environ, **given, **libraries, "PYTHONPATH": str(HERE / "stubs"), "OMP_NUM_THREADS": "1"}


def options_of(name, out, callbacks=()):
    """The words of a command line for a solver; those of torch's AdamW are the configuration's own."""
    recorder = f"{{_target_: mldd.anemoi.Recorder, out: {out.absolute()}, problem: tiny}}"
    recorder = ",".join([recorder, *callbacks])
    if name == "AdamW":
        return [f"diagnostics.callbacks=[{recorder}]"]
    solver, groups = SOLVERS[name]
    grouping = f"{{_target_: mldd.anemoi.Subdomains, groups: {groups}}}," * bool(groups)
    return [
        *OURS,
        f"+training.optimization.optimizer.solver={solver}",
        f"diagnostics.callbacks=[{grouping}{recorder}]",
    ]


def train(name, out, data, launch="one process", more=(), limit=600, callbacks=()):
    """Train, and return the wall time; what it says is in ``log`` beside the records."""
    before, added = LAUNCHES[launch]
    out.mkdir(parents=True, exist_ok=True)
    command = [*before, str(BIN / "anemoi-training"), "train", f"--config-path={HERE.absolute()}"]
    command += ["--config-name=tiny", *options_of(name, out / "records", callbacks), *added, *more]
    began = time.perf_counter()
    with (out / "log").open("w") as log:
        done = subprocess.run(
            command, env=environment(data, out), stdout=log, stderr=log, cwd=out, timeout=limit, check=False
        )
    if done.returncode:
        said = (out / "log").read_text(errors="replace").splitlines()
        raise RuntimeError(
            f"{name}, {launch} ended with {done.returncode}, see {out / 'log'}: " + " | ".join(said[-4:])
        )
    return time.perf_counter() - began


def row_of(name, launch, out, seconds):
    """What the records of a run say."""
    history = read_csv(out / "records" / "history.csv")
    result = json.loads((out / "records" / "result.json").read_text())
    losses = [record.value for record in history.records if not math.isnan(record.value)]
    assert len(losses) == STEPS and result["steps"] == STEPS
    validation = history.records[-1].validation.get("val_multi_dataset_loss_epoch", math.nan)
    numbers = {f"loss {k + 1}": f"{loss:.7g}" for k, loss in enumerate(losses)}
    return {
        "solver": name,
        "launch": launch,
        "ranks": result["ranks"],
        "subdomains": result["parts"],
        "evaluations": result["gradient_evaluations"],
        **numbers,
        "validation loss": f"{validation:.7g}",
        "seconds": f"{seconds:.0f}",
    }


def resumed(name, data, out):
    """Train half of the steps, go on from Lightning's checkpoint, and return the row."""
    keep = "diagnostics.enable_checkpointing=True"
    seconds = train(name, out, data, more=[keep, f"training.max_steps={STEPS // 2}"])
    last = sorted(out.glob("**/last.ckpt"))[-1]
    seconds += train(name, out, data, more=[keep, f"system.input.warm_start={last.absolute()}"])
    return row_of(name, "resumed after 3 steps", out, seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="what era5_uk.py writes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs")
    parser.add_argument("--table", type=Path, default=Path("paper/results/anemoi/runs.csv"))
    parser.add_argument("--only", default="", help="solvers, by commas; default all")
    options = parser.parse_args()
    names = options.only.split(",") if options.only else ["AdamW", *SOLVERS]
    jobs = [(name, "one process") for name in names]
    jobs += [(name, launch) for name in ("L-BFGS", "ASPQN") if name in names for launch in list(LAUNCHES)[1:]]
    rows = []
    for k, (name, launch) in enumerate(jobs):
        out = options.out / str(k)
        shutil.rmtree(out, ignore_errors=True)
        rows.append(row_of(name, launch, out, train(name, out, options.data, launch)))
        print(*rows[-1].values(), sep=", ", flush=True)
    if "ASPQN" in names:
        shutil.rmtree(options.out / "resumed", ignore_errors=True)
        rows.append(resumed("ASPQN", options.data, options.out / "resumed"))
        print(*rows[-1].values(), sep=", ", flush=True)
    options.table.parent.mkdir(parents=True, exist_ok=True)
    with options.table.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, rows[0], lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    main()
