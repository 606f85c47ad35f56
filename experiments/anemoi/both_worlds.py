"""2 m temperature over the British Isles 6 h ahead: a network of Anemoi by AdamW and solvers of mldd, and mldd's own.

    export PYTHONPATH=.:experiments/anemoi/stubs OMP_NUM_THREADS=1
    .venv-anemoi/bin/python experiments/anemoi/both_worlds.py --data DATA.zarr --out runs/anemoi/both

The samples are those of experiments/forecasts/era5_uk.py, which trains the network of mldd, of about as many
parameters, here in the same run and for the same process time: the same forecasts in training, validation and test
part, and the same way to judge. Every seed trains on the first 60 % of March 2019 for ``--seconds`` of process time;
the average of the iterates is validated on the next 20 %. The number of steps is the one at which the mean of the
validation errors over the seeds is least. The same starts are then trained so many steps on the first 80 %, and their
averages are tested once on the last 20 %. Rate and batch of every method on Anemoi's network are those of the least
validation error of one seed among all that are tried, each for as long; those of mldd's own network stand in
era5_uk.py. Reading and normalising samples is not in the times.
"""

import argparse
import contextlib
import json
import math
import os
import shutil
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

import mldd
from experiments.anemoi.runs import HERE, OURS
from experiments.forecasts.era5_uk import EVERY, PROBLEM, trained
from mldd.anemoi.lightning import Callback
from mldd.loop import write_table
from mldd.problems.data import load_series

ROOT = HERE.parents[1]
KEEP = 0.98  # how much of the average a step keeps
LEAD, PAST = 6, 18  # hours ahead, and back: the network sees t, t - 6, t - 12 and t - 18, the hour of the forecast
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
    "AdamW": ("", "", 10),
    "L-BFGS": ("{_target_: mldd.solvers.LBFGS}", "", 4),
    "ASPQN": (SCHWARZ["ASPQN"], "parts", 2),
    "DD-ADAGB2": (SCHWARZ["DD-ADAGB2"], "parts", 1),
}
# Rates and samples per gradient that are tried; L-BFGS and ASPQN have no rate.
TRIED = {
    "AdamW": [(1e-3, 24), (3e-3, 24), (1e-2, 24), (3e-2, 24)],
    "L-BFGS": [(1.0, 24), (1.0, 48), (1.0, 96), (1.0, 192)],
    "ASPQN": [(1.0, 48), (1.0, 96)],
    "DD-ADAGB2": [(1e-2, 24), (3e-2, 24), (1e-1, 24), (3e-2, 96)],
}
OWN = {"mldd: adam": "adam", "mldd: DD-ADAGB2": "dd-adagrad"}  # mldd's own network


class Judge(Callback):
    """The mean of the iterates, which forgets old ones, and its error on the validation data, outside of the clock.

    The clock is the process time of the steps, without reading of samples; the training ends when it has used up its
    seconds or steps. ``out`` gets the errors, root mean squares over all samples and cells in the unit of the variable.
    """

    def __init__(self, out, variable="2t", every=0, seconds=math.inf, steps=0):
        self.out, self.variable, self.every = Path(out), variable, every
        self.seconds, self.steps = seconds, steps
        self.spent, self.step, self.errors = 0.0, 0, []

    def on_train_start(self, trainer, pl_module):
        """Read and normalise all samples of the validation once, before the clock starts."""
        data = trainer.datamodule
        self.batches = [pl_module.on_after_batch_transfer(batch, 0) for batch in data.val_dataloader()]
        self.column = data.ds_train.name_to_index["data"][self.variable]
        self.deviation = float(data.statistics["data"]["stdev"][self.column])
        self.mean = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        """Start the clock."""
        self.begun = time.process_time()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Take the iterate in, stop the clock, and judge where it is due."""
        self.step += 1
        keep = min(KEEP, self.step / (self.step + 10.0))
        for name, p in pl_module.named_parameters():
            self.mean[name].lerp_(p.detach(), 1.0 - keep)
        self.spent += time.process_time() - self.begun
        ends = self.spent >= self.seconds or self.step == self.steps
        if ends or (self.every and self.step % self.every == 0):
            self.errors.append(self.error(pl_module))
        if ends:
            trainer.should_stop = True
            self.write(pl_module)

    def error(self, module):
        """The root mean square error of the average."""
        squares, count = 0.0, 0
        for batch in self.batches:
            x = module.task.get_inputs(batch, data_indices=module.data_indices)
            with torch.no_grad():
                made = torch.func.functional_call(module, self.mean, (x,))["data"][..., 0]
            wanted = module.task.get_targets(batch)["data"][..., self.column]
            difference = (made - wanted).double()
            squares, count = squares + float(difference.square().sum()), count + difference.numel()
        return self.deviation * math.sqrt(squares / count)

    def write(self, module):
        """Write what was found."""
        found = {"errors": self.errors, "steps": self.step, "seconds": self.spent}
        found["samples"] = sum(len(next(iter(batch.values()))) for batch in self.batches)
        found["parameters"] = sum(p.numel() for p in module.parameters() if p.requires_grad)
        self.out.parent.mkdir(parents=True, exist_ok=True)
        self.out.write_text(json.dumps(found))


def dates(first, last):
    """First and last time that samples with forecasts from ``first`` to ``last - LEAD`` read, of the whole series."""
    time = load_series("era5-uk").time
    return str(time[max(first - PAST, 0)]), str(time[last - 1])


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


def run(options, method, seed, settings, part, seconds="inf", steps=0):
    """Train once in this process, and return what Judge has found; what has been run before is read."""
    from anemoi.training.train.train import AnemoiTrainer
    from hydra import compose, initialize_config_dir

    (solver, groups, every), (rate, batch) = METHODS[method], settings
    out = options.out.absolute() / (f"{part}-{method}-{seed}-{rate:g}-{batch}" + f"-{steps}" * bool(steps))
    if not (out / "judged.json").exists():
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        judge = f"_target_: experiments.anemoi.both_worlds.Judge, out: {out / 'judged.json'}"
        judge = f"{{{judge}, every: {every if not steps else 0}, seconds: {seconds}, steps: {steps}}}"
        grouping = f"{{_target_: mldd.anemoi.Subdomains, groups: {groups}}}," * bool(groups)
        solving = [*OURS, f"+training.optimization.optimizer.solver={solver}"] if solver else []
        words = [*NETWORK, *solving, *periods(part), f"diagnostics.callbacks=[{grouping}{judge}]"]
        words += [f"dataloader.batch_size.training={batch}", f"training.optimization.lr={rate}"]
        os.environ |= {"MLDD_ANEMOI_DATA": str(options.data.absolute()), "MLDD_ANEMOI_OUT": str(out)}
        os.environ["ANEMOI_BASE_SEED"] = str(1000 + seed)
        with initialize_config_dir(str(HERE.absolute()), version_base=None), contextlib.chdir(out):
            AnemoiTrainer(compose("tiny", overrides=words)).train()
    return json.loads((out / "judged.json").read_text())


def tuned(options):
    """Rows of all settings that are tried, by the least validation error in a training of one seed."""
    rows = []
    for method in METHODS:
        for rate, batch in TRIED[method]:
            found = run(options, method, 0, (rate, batch), "validation", options.seconds)
            rows.append({"method": method, "rate": rate, "batch": batch, "steps": found["steps"]})
            rows[-1]["validation"] = round(min(found["errors"]), 4)
            print(rows[-1], flush=True)
    return rows


def best_of(rows):
    """Rate and batch of the least validation error, by method."""
    ordered = sorted(rows, key=lambda row: -row["validation"])
    return {row["method"]: (row["rate"], row["batch"]) for row in ordered}


def own_run(options, method, seed, part, seconds=math.inf, steps=0):
    """Train mldd's own network as `run` trains that of Anemoi, and return the same, that of an earlier call again."""
    out = options.out / f"{part}-own-{OWN[method]}-{seed}-{steps}.json"
    if not out.exists():
        problem = mldd.problem(PROBLEM, seed=seed, dtype="float32")
        if part == "test":
            problem = replace(problem, plan=replace(problem.plan, labels="all"))
        average = trained(problem, OWN[method], 0 if steps else EVERY[OWN[method]], seconds, steps or 10**9)
        errors = [own_error(problem, average.mean)] if steps else average.errors
        spent = time.process_time() - average.begun - average.unseen
        found = {"errors": errors, "steps": average.step, "seconds": spent, "parameters": problem.net.layout.size}
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found))
    return json.loads(out.read_text())


def own_error(problem, x):
    """The root mean square error over all samples and cells of the test part, in K."""
    data = problem.forecast_data
    origins = data.origins["test"]
    wanted = problem.series.values[origins + data.plan.leads[0], :, 0]
    return float(math.sqrt(((problem.forecasts(x, origins)[:, :, 0, 0] - wanted) ** 2).mean()))


def compared(options, chosen):
    """Rows of all methods and seeds: steps by the mean validation error, tests of as many steps on more times."""
    rows = []
    for method in [*options.methods, *OWN]:
        is_own = method in OWN
        rate, batch = ("", 24) if is_own else chosen[method]
        every = EVERY[OWN[method]] if is_own else METHODS[method][2]

        def trained_by(seed, part, method=method, is_own=is_own, **limits):
            if is_own:
                return own_run(options, method, seed, part, **limits)
            return run(options, method, seed, chosen[method], part, **limits)

        found = [trained_by(seed, "validation", seconds=options.seconds) for seed in options.seeds]
        curves = [f["errors"][: f["steps"] // every] for f in found]  # the last error may be off the raster
        checks = min(map(len, curves))
        mean = [statistics.mean(curve[k] for curve in curves) for k in range(checks)]
        best = mean.index(min(mean))
        for seed, curve, first in zip(options.seeds, curves, found, strict=True):
            test = trained_by(seed, "test", steps=(best + 1) * every)
            row = {"method": method, "rate": rate, "batch": batch, "seed": seed, "steps": test["steps"]}
            row |= {"parameters": test["parameters"], "seconds": round(first["seconds"], 1)}
            rows.append(row | {"validation": round(curve[best], 4), "test": round(test["errors"][-1], 4)})
            print(rows[-1], flush=True)
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="what era5_uk.py --hours 744 writes")
    parser.add_argument("--out", type=Path, required=True, help="a folder for runs; what is there is not run again")
    parser.add_argument("--table", type=Path, default=ROOT / "paper" / "results" / "anemoi")
    parser.add_argument("--seconds", type=float, default=20.0, help="process time of a training, default 20")
    of_seeds = "compared from all seeds; all are tuned"
    parser.add_argument("--methods", nargs="+", choices=list(METHODS), default=list(METHODS), help=of_seeds)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    tried = tuned(options)
    write_table(options.table / "era5_uk_tuning.csv", tried)
    write_table(options.table / "era5_uk.csv", compared(options, best_of(tried)))


if __name__ == "__main__":
    main()
