"""A Lightning callback that writes the records of a training as mldd writes those of its own runs."""

from __future__ import annotations

import json
import math
import os
from contextlib import ExitStack
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from mldd.algebra import Ledger, counting
from mldd.anemoi.lightning import Callback, around_optimizers, check_lightning, check_trainer, mldd_optimizer
from mldd.loop import Cost, CsvWriter, History, Record, Status, read_csv, replacing

_PACKAGES = ("mldd", "torch", "pytorch-lightning", "anemoi-training", "anemoi-models", "anemoi-graphs")


class Recorder(Callback):
    """Records of a training with any optimizer, in the files that ``mldd plot`` reads.

    A record is of the point where a step begins: the loss there, over the batch of this step and the mean of all ranks,
    the largest entry of its gradient, and what the run has cost until then. (What Lightning logs is the mean over all
    evaluations of a step, those at rejected points too.) Numbers of a validation, ``val...``, are in the record that
    follows it. The last record is of the end, where no loss is evaluated. A run that goes on from a checkpoint of
    Lightning goes on in its files.

    Parameters
    ----------
    out : str or path
        Folder for ``history.csv`` and ``result.json``.
    problem : str
        What is trained: runs are compared with each other where this is the same. By default the class of the module.
    overwrite : bool
        Whether the records of another run that lie in the folder may be lost.

    Raises
    ------
    ValueError
        At the start of a training with an optimizer of mldd, what `Subdomains` refuses.
    OSError
        There are records of another run in the folder.

    Notes
    -----
    Work is in gradients over the batches of all ranks. Synchronisations are the sums of gradients over ranks, and what
    the solver adds; what a model that is cut over ranks exchanges inside of an evaluation is not counted.
    """

    def __init__(self, out: str | os.PathLike[str], problem: str = "", overwrite: bool = False) -> None:
        check_lightning("Recorder")
        self._out, self._problem, self._overwrite = Path(out), problem, overwrite
        self._step = 0
        self._cost = Cost()
        self._corrections = 0, 0, 0  # level, accepted, rejected
        self._validation: dict[str, float] = {}
        self._writer: CsvWriter | None = None
        self._known: tuple[str, ...] = ()  # numbers of the validation that have a column
        self._last = math.nan  # loss
        self._open = ExitStack()
        self._new_step()

    def _new_step(self) -> None:
        self._ledger, self._evaluations, self._loss = Ledger(), 0, 0.0
        self._start: tuple[float, Cost] | None = None  # of this step: measure and cost

    # -------------------------------------------------------------------------------- begin and end

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        """Look at the settings of the optimizers that are made next."""
        if stage == "fit":
            around_optimizers(pl_module, None)

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        """Refuse settings that the solver does not bear, and to lose the records of another run."""
        made = mldd_optimizer(trainer)
        if made is not None:
            check_trainer(trainer, made)
        if trainer.is_global_zero:  # who writes; it may be about to, where another rank looks
            self._check_free()

    def _check_free(self) -> None:
        if self._step == 0 and self._file.exists() and not self._overwrite:
            raise OSError(f"{self._file} must be a new file, got one that is there; give another `out`, or overwrite")

    @property
    def _file(self) -> Path:
        return self._out / "history.csv"

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """Open the file; a run that goes on keeps its records until here."""
        self._ranks, self._bytes = trainer.world_size, _bytes_of(trainer)
        self._began, self._paused, self._before = perf_counter(), 0.0, self._cost.seconds
        if trainer.is_global_zero:
            self._out.mkdir(parents=True, exist_ok=True)
            past = read_csv(self._file) if self._step and self._file.exists() else History()
            self._write_past(History([record for record in past.records if record.step < self._step]))

    def _write_past(self, past: History) -> None:
        if self._writer is not None:
            self._writer.close()
        self._writer, self._known = CsvWriter(self._file, past), past.validated

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """Write the last record, and what the run was."""
        self._cost = replace(self._cost, seconds=self._seconds())
        if self._writer is None:
            return
        validation = self._validation
        self._record(math.nan, math.nan, self._cost)
        self._validation = validation  # of the next record, should the training go on from here
        self._writer.close()
        self._writer = None
        self._write_result(trainer, pl_module)

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """Close what is open: the records until here are in the file."""
        self._open.close()
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    # -------------------------------------------------------------------------------- a step

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """Begin to count."""
        self._open.enter_context(counting(self._ledger))

    def on_before_backward(self, trainer: Any, pl_module: Any, loss: Any) -> None:
        """Count an evaluation; the loss is that of the first one, or of all batches that are accumulated for a step."""
        self._evaluations += 1
        if self._start is None:
            self._loss += float(loss.detach())

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        """Note gradient and cost of the point where the step begins: this is called after every evaluation of it."""
        if self._start is not None:
            return
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._start = float(torch.nn.utils.get_total_norm(gradients, math.inf)), self._spent()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Write the record of the step that has been done, if this batch was the last one of a step."""
        self._open.close()
        if self._start is None:
            return
        measure, cost = self._start
        loss = torch.tensor(self._loss, dtype=torch.float64, device=pl_module.device)
        self._last = float(trainer.strategy.reduce(loss, reduce_op="mean"))
        self._record(self._last, measure, cost)
        self._cost, self._step = self._spent(), self._step + 1
        self._new_step()
        state = getattr(mldd_optimizer(trainer), "solver_state", None)
        if state is not None:
            self._corrections = state.level, state.accepted, state.rejected

    def _seconds(self) -> float:
        return self._before + perf_counter() - self._began - self._paused

    def _spent(self) -> Cost:
        """Return what the run has cost until now."""
        n, ledger, ranks = self._evaluations, self._ledger, self._ranks
        new = Cost(
            gradient_evaluations=n,
            work_units=n / ranks,
            work_total=float(n),
            synchronisations=n,
            scalar_synchronisations=ledger.scalar_synchronisations,
            bytes_exchanged=n * self._bytes * ranks if ranks > 1 else 0,
        )
        return replace(self._cost.after(new), seconds=self._seconds())

    def _record(self, value: float, measure: float, cost: Cost) -> None:
        """Write a record; a new number of the validation gets a column."""
        validation, self._validation = self._validation, {}
        if self._writer is None:
            return
        level, accepted, rejected = self._corrections
        record = Record(self._step, level, measure, value, accepted, rejected, cost, validation)
        if set(validation) - set(self._known):
            self._writer.close()
            past = read_csv(self._file)
            past(record)
            self._write_past(past)
        else:
            self._writer(record)

    # -------------------------------------------------------------------------------- validation, checkpoints, result

    def on_validation_start(self, trainer: Any, pl_module: Any) -> None:
        """Stop the clock."""
        self._stopped = perf_counter()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """Keep the numbers of the validation, and let the clock go on."""
        if trainer.sanity_checking:
            return
        self._paused += perf_counter() - self._stopped
        found = {name: value for name, value in trainer.callback_metrics.items() if name.startswith("val")}
        self._validation = {name: float(value) for name, value in found.items() if torch.as_tensor(value).numel() == 1}

    def state_dict(self) -> dict[str, Any]:
        """Return how far the run has come, for the checkpoint."""
        return {
            "step": self._step,
            "cost": asdict(self._cost),
            "corrections": list(self._corrections),
            "validation": dict(self._validation),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint.

        Parameters
        ----------
        state_dict : dict
            What `state_dict` has returned.
        """
        self._step, self._cost = state_dict["step"], Cost(**state_dict["cost"])
        self._corrections = tuple(state_dict["corrections"])
        self._validation = dict(state_dict["validation"])

    def _write_result(self, trainer: Any, pl_module: Any) -> None:
        optimizer = trainer.optimizers[0]
        solver = getattr(mldd_optimizer(trainer), "solver", optimizer)
        status = getattr(mldd_optimizer(trainer), "status", None)
        unknowns = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
        problem = self._problem or type(pl_module).__name__
        content = {
            "problem": problem,
            "solver": type(solver).__name__,
            "options": {"solver": repr(solver)[:2000], "norm": "inf", "precision": str(trainer.precision)},
            "identity": {"problem": problem, "unknowns": unknowns},
            "seed": int(os.environ.get("PL_GLOBAL_SEED", 0)),
            "ranks": trainer.world_size,
            "parts": len(optimizer.param_groups),
            "status": (status or Status.max_steps).name,
            "steps": self._step,
            "loss": self._last,
            "metrics": {name: float(v) for name, v in trainer.callback_metrics.items() if v.numel() == 1},
            **asdict(self._cost),
            "versions": _versions(),
            "details": {
                "groups": {
                    str(group.get("name", k)): sum(p.numel() for p in group["params"])
                    for k, group in enumerate(optimizer.param_groups)
                },
                "notes": ["loss is that at the start of the last step, over its batch"],
            },
        }
        with replacing(self._out / "result.json") as new:
            new.write_text(json.dumps(content, indent=1), encoding="utf-8")


def _bytes_of(trainer: Any) -> int:
    """Return the bytes of a gradient."""
    return sum(p.numel() * p.element_size() for g in trainer.optimizers[0].param_groups for p in g["params"])


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
