"""2 m temperature over the British Isles 6 h ahead by a network of Anemoi: AdamW beside solvers of mldd.

    PYTHONPATH=. .venv-anemoi/bin/python experiments/anemoi/both_worlds.py --out runs/anemoi/both [--seeds 0 1 2]

The samples are those of experiments/forecasts/era5_uk.py, which trains a network of mldd of about as many parameters:
the same forecasts in training, validation and test part, and the same way to judge. Every seed trains on the first 60 %
of March 2019 for ``--seconds`` of process time; the average of the iterates is validated on the next 20 %. The number
of steps is the one at which the mean of the validation errors over the seeds is least. The same starts are then trained
so many steps on the first 80 %, and their averages are tested once on the last 20 %. Rates, batches and memory of every
method are chosen by ``--tune``: one seed, validation alone. Reading and normalising samples is not in the times.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from experiments.anemoi.runs import HERE, OURS, environment
from mldd.problems.data import load_series

ROOT = HERE.parents[1]
LEAD, MEMORY = 6, 18  # hours ahead, and back: the network sees t, t - 6, t - 12 and t - 18, the hour of the forecast
NETWORK = [
    "model.num_channels=11",
    "task.timestep=6H",
    "task.multistep_input=4",
    "graph.nodes.hidden.node_builder.resolution=7",
    "dataloader.persistent_workers=True",
    "dataloader.batch_size.validation=143",
    "dataloader.limit_batches.training=null",
    "dataloader.limit_batches.validation=0",  # Judge validates
    "training.max_epochs=100000",
    "training.max_steps=1000000",
]
ADAGRAD = "{_target_: mldd.solvers.AdaGrad, curvature: none}"
SCHWARZ = {
    "ASPQN": "{_target_: mldd.solvers.SchwarzLBFGS, _partial_: true, local_steps: 2}",
    "DD-ADAGB2": f"{{_target_: mldd.solvers.SchwarzAdaGrad, _partial_: true, local_steps: 2, local: {ADAGRAD}}}",
}
# Method -> solver, groups of parameters that are subdomains, steps between two validations.
METHODS = {
    "AdamW": ("", "", 20),
    "Adam": ("{_target_: mldd.solvers.Adam}", "", 20),
    "L-BFGS": ("{_target_: mldd.solvers.LBFGS}", "", 5),
    "ASPQN": (SCHWARZ["ASPQN"], "parts", 2),
    "DD-ADAGB2": (SCHWARZ["DD-ADAGB2"], "parts", 5),
}


def chosen(rate=3e-3, batch=24, **more):
    """What a method is run with."""
    return {"rate": rate, "batch": batch, **more}


def dates(first, last):
    """First and last time that samples with forecasts from ``first`` to ``last - LEAD`` read, of the whole series."""
    time = load_series("era5-uk").time
    return str(time[max(first - MEMORY, 0)]), str(time[last - 1])


def periods(part):
    """Words for the times of a training and of what it is judged by."""
    cuts = [int(share * load_series("era5-uk").times) for share in (0.6, 0.8, 1.0)]
    train, judged = (cuts[0], cuts[1]) if part == "validation" else (cuts[1], cuts[2])
    spans = {"training": dates(0, train), "validation": dates(train, judged), "test": dates(train, judged)}
    return [
        f"dataloader.{name}.datasets.data.{end}='{date}'"
        for name, span in spans.items()
        for end, date in zip(("start", "end"), span, strict=True)
    ]


def run(method, seed, settings, options, part, seconds="inf", steps=0):
    """Train once, and return what Judge has found."""
    solver, groups, every = METHODS[method]
    out = options.out / f"{part}-{method}-{seed}-{'-'.join(f'{v:g}' for v in settings.values())}"
    if (out / "judged.json").exists():
        return json.loads((out / "judged.json").read_text())
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    judge = f"_target_: experiments.anemoi.judge.Judge, out: {(out / 'judged.json').absolute()}"
    judge = f"{{{judge}, every: {every if not steps else 0}, seconds: {seconds}, steps: {steps}}}"
    grouping = f"{{_target_: mldd.anemoi.Subdomains, groups: {groups}}}," * bool(groups)
    solving = [*OURS, f"+training.optimization.optimizer.solver={solver}"] if solver else []
    command = [Path(sys.executable).with_name("anemoi-training"), "train", f"--config-path={HERE.absolute()}"]
    command += ["--config-name=tiny", *NETWORK, *solving, *periods(part), f"diagnostics.callbacks=[{grouping}{judge}]"]
    command += [f"dataloader.batch_size.training={settings['batch']}", f"training.optimization.lr={settings['rate']}"]
    around = environment(options.data, out) | {"ANEMOI_BASE_SEED": str(1000 + seed)}
    around["PYTHONPATH"] += os.pathsep + str(ROOT)
    with (out / "log").open("w") as log:
        subprocess.run(command, env=around, stdout=log, stderr=log, cwd=out, timeout=900, check=True)
    return json.loads((out / "judged.json").read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what era5_uk.py --hours 744 writes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs; what is there is not run again")
    parser.add_argument("--seconds", type=float, default=20.0, help="process time of a training, default 20")
    parser.add_argument("--method", default="AdamW")
    parser.add_argument("--rate", type=float, default=3e-3)
    parser.add_argument("--batch", type=int, default=24)
    options = parser.parse_args()
    print(run(options.method, 0, chosen(options.rate, options.batch), options, "validation", options.seconds))


if __name__ == "__main__":
    main()
