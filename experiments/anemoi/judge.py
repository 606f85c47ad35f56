"""A callback that judges a training of Anemoi as experiments/forecasts/era5_uk.py judges those of mldd."""

import json
import math
import time
from pathlib import Path

import torch

from mldd.anemoi.lightning import Callback

MEMORY = 0.98  # how much of the average a step keeps


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
        keep = min(MEMORY, self.step / (self.step + 10.0))
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
