"""Monitors that write records for the programs with which people watch their runs; each loads its package when used."""

from __future__ import annotations

import math
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from mldd.algebra import did_you_mean, way_to_install
from mldd.loop.monitor import History, Record
from mldd.loop.status import Status

# Each is named by the package that it needs.
LOGGERS = ("tensorboard", "mlflow", "wandb")
_NOTHING: Mapping[str, Any] = {}


def check_loggers(names: Sequence[str]) -> None:
    """Refuse names of loggers that there are not, or whose package is missing.

    Parameters
    ----------
    names : sequence of str
        Keys of `LOGGERS`, or ``csv``, which needs none.

    Raises
    ------
    ValueError
        There is no such logger.
    ImportError
        Its package is missing.
    """
    known = ["csv", *LOGGERS]
    for name in names:
        if name not in known:
            raise ValueError(f"a logger must be one of {' '.join(known)}, got {name!r}{did_you_mean(name, known)}")
        if name != "csv" and find_spec(name) is None:
            raise ImportError(f"the logger {name} needs a package that is missing; {way_to_install(name)}", name=name)


def numbers(record: Record) -> dict[str, float]:
    """Return what a logger writes after a step: the columns of ``history.csv`` but the step, without what is NaN.

    Parameters
    ----------
    record : Record
        The step.
    """
    return {name: float(v) for name, v in record.row().items() if name != "step" and not math.isnan(v)}


class TensorBoard:
    """A monitor that writes event files of TensorBoard; ``tensorboard --logdir FOLDER`` shows them.

    Parameters
    ----------
    folder : str or Path
        Event files of an older run there count no more.
    about : dict
        Problem, solver, seed and what else should be known of the run.
    past : History, optional
        Records of the run that is resumed; they are written first.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any] = _NOTHING, past: History | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter

        make: Any = SummaryWriter
        self._writer = make(str(folder), purge_step=0)
        self._writer.add_text("run", "  \n".join(f"{key}: {value}" for key, value in about.items()), 0)
        for record in past.records if past else ():
            self(record)

    def __call__(self, record: Record) -> None:
        """Write the numbers of a step."""
        for name, value in numbers(record).items():
            self._writer.add_scalar(name, value, record.step)

    def end(self, status: Status) -> None:
        """Note why the run has ended.

        Parameters
        ----------
        status : Status
            The reason.
        """
        self._writer.add_text("status", f"{status.name}: {status.advice}", 0)

    def close(self) -> None:
        """Write what is left."""
        self._writer.close()


class MLflow:
    """A monitor that writes a run of MLflow's experiment ``mldd``.

    It goes to where ``MLFLOW_TRACKING_URI`` says (a server, ``sqlite:///mlflow.db``), by default to files in a folder.

    Parameters
    ----------
    folder : str or Path
        Of the files.
    about : dict
        Problem, solver, seed and what else should be known of the run: its parameters.
    past : History, optional
        Records of the run that is resumed; they are written first.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any] = _NOTHING, past: History | None = None) -> None:
        from mlflow.entities import Metric, Param
        from mlflow.tracking import MlflowClient

        where = os.environ.get("MLFLOW_TRACKING_URI")
        if not where:  # MLflow prefers data bases, which its small package does not bring along
            os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
            where = Path(folder).absolute().as_uri()
        self._client, self._metric, self._status = MlflowClient(tracking_uri=where), Metric, "FAILED"
        found = self._client.get_experiment_by_name("mldd")
        experiment = self._client.create_experiment("mldd") if found is None else found.experiment_id
        name = " ".join(str(about[key]) for key in ("problem", "solver", "seed") if key in about)
        self._run: str = self._client.create_run(experiment, run_name=name or None).info.run_id
        self._client.log_batch(self._run, params=[Param(key, str(value)[:5000]) for key, value in about.items()])
        for record in past.records if past else ():
            self(record)

    def __call__(self, record: Record) -> None:
        """Write the numbers of a step."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, record.step) for name, value in numbers(record).items()]
        self._client.log_batch(self._run, metrics=metrics)

    def end(self, status: Status) -> None:
        """Note why the run has ended.

        Parameters
        ----------
        status : Status
            The reason.
        """
        self._client.set_tag(self._run, "status", status.name)
        self._status = "FAILED" if status.failed else "KILLED" if status.is_unfinished else "FINISHED"

    def close(self) -> None:
        """Close the run, which has failed if no reason was given for its end."""
        self._client.set_terminated(self._run, self._status)


class WandB:
    """A monitor that writes a run of Weights & Biases, project ``mldd``.

    Nothing is sent, and ``wandb sync`` does it later, unless ``WANDB_MODE=online`` says so.

    Parameters
    ----------
    folder : str or Path
        Of the files.
    about : dict
        Problem, solver, seed and what else should be known of the run: its configuration.
    past : History, optional
        Records of the run that is resumed; they are written first.
    """

    def __init__(self, folder: str | Path, about: Mapping[str, Any] = _NOTHING, past: History | None = None) -> None:
        import wandb

        Path(folder).mkdir(parents=True, exist_ok=True)
        mode: Any = os.environ.get("WANDB_MODE", "offline")
        self._failed = True
        self._run: Any = wandb.init(
            project="mldd",
            dir=str(folder),
            config=dict(about),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(console="off", silent=True),
        )
        for record in past.records if past else ():
            self(record)

    def __call__(self, record: Record) -> None:
        """Write the numbers of a step."""
        self._run.log(numbers(record), step=record.step)

    def end(self, status: Status) -> None:
        """Note why the run has ended.

        Parameters
        ----------
        status : Status
            The reason.
        """
        self._run.summary["status"] = status.name
        self._failed = status.failed

    def close(self) -> None:
        """Close the run, which has failed if no reason was given for its end."""
        self._run.finish(exit_code=int(self._failed))


_KINDS: dict[str, Callable[..., Any]] = {"tensorboard": TensorBoard, "mlflow": MLflow, "wandb": WandB}


class Logger:
    """A monitor that passes records on to a logger; where that fails, it says so once, and the run goes on.

    Parameters
    ----------
    name : str
        A key of `LOGGERS`.
    folder : Path
        That of the run: the logger's files go to a folder of its name in it.
    about : dict
        Problem, solver, seed and what else should be known of the run.
    past : History, optional
        Records of the run that is resumed.
    home : Path, optional
        Folder of several runs, which MLflow and Weights & Biases keep in one place.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        about: Mapping[str, Any],
        past: History | None = None,
        home: Path | None = None,
    ) -> None:
        self._name = name
        place = folder if name == "tensorboard" or home is None else home
        self._kind: Any = _KINDS[name](place / name, about, past)

    def _try(self, action: Callable[[], None]) -> None:
        try:
            if self._kind is not None:
                action()
        except Exception as error:  # a server that is gone, a full disk: packages raise anything
            self._kind = None
            reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            warnings.warn(f"the logger {self._name} has failed, what follows is not in it: {reason}", stacklevel=3)

    def __call__(self, record: Record) -> None:
        """Pass a record on."""
        self._try(lambda: self._kind(record))

    def end(self, status: Status) -> None:
        """Pass on why the run has ended.

        Parameters
        ----------
        status : Status
            The reason.
        """
        self._try(lambda: self._kind.end(status))

    def close(self) -> None:
        """Close the logger."""
        self._try(lambda: self._kind.close())
