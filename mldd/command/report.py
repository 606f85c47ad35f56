"""What a run leaves behind: ``result.json``, the summary on the terminal, and pictures."""

from __future__ import annotations

import json
import logging
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mldd.algebra import uncounted
from mldd.command import info
from mldd.command.names import PLACES, described
from mldd.command.run import Run, attempt
from mldd.command.values import aligned, one_line
from mldd.loop import CsvWriter, History, Result, Validation, has, replacing
from mldd.models import MODEL, SOLUTION, save
from mldd.ranks import EmulatedCommunicator

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class Files:
    """The files of a run: each is written on its own, so that one that cannot be costs no other.

    Attributes
    ----------
    written : list of Path
        Those that are there.
    failed : list of str
        Why others are not.
    """

    written: list[Path] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    def add(self, write: Callable[[], Sequence[Path]]) -> None:
        """Write files, or note why they could not be written.

        Parameters
        ----------
        write : callable
            Writes them and returns them.
        """
        try:
            self.written += write()
        except Exception as error:  # nothing after a run may end it
            self.failed.append(one_line(error))


_METRICS = 20  # in the summary


def reported(files: Files, run: Run, result: Result, out: Path | None) -> dict[str, Any]:
    """Return the content of ``result.json``, which is written with the model (rank 0); called by all ranks.

    A run that was ended from outside may have little time left: its files are there before loss and metrics are
    evaluated, and are then written again.

    Parameters
    ----------
    files : Files
        They are added here.
    run : Run
        What was run.
    result : Result
        How it ended.
    out : Path, optional
        The folder; without it nothing is written.
    """
    mine = out if run.comm.rank == 0 else None
    if result.status.is_unfinished:
        brief = report(run, result, brief=True)
        if mine is not None:
            write_result(Files(), run, result, brief, mine)
    content = report(run, result)
    if mine is not None:
        write_result(files, run, result, content, mine)
    return content


def report(run: Run, result: Result, *, brief: bool = False) -> dict[str, Any]:
    """Return the content of ``result.json``; called by all ranks, as metrics may need them.

    A problem may have ``details()``: what else is to be known of the run, how it was distributed say.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    brief : bool
        Without what has to be evaluated first.
    """
    good = next((r for r in reversed(result.history.records) if math.isfinite(r.measure)), result.record)
    loss = math.nan if result.status.failed else result.record.value  # of a run that failed `x` is an earlier point
    with uncounted():
        if math.isnan(loss) and not brief:
            loss = float(run.objective.value(result.x))
        metrics = {} if brief else _metrics(run, result.x)
    return {
        "problem": run.names[0],
        "solver": run.names[1],
        "options": {  # with all their keys
            **run.options,
            "problem": described(run.problem, run.specs[0].name),
            "solver": described(run.solver, run.specs[1].name),
        },
        "identity": _identity(run),
        "seed": run.seed,
        "ranks": run.comm.ranks,
        **run.shape,
        "status": result.status.name,
        "notes": result.state.notes,
        "rollbacks": result.rollbacks,
        "steps": result.record.step,
        "loss": loss,
        "measure": good.measure,
        "metrics": metrics,
        **asdict(result.record.cost),
        "bounds_violation": run.objective.bounds.violation(result.x),
        "versions": info.versions(),
        **({"validation": _of_validation(run, result.validation, brief)} if result.validation is not None else {}),
        **({"network": _network(run.comm)} if isinstance(run.comm, EmulatedCommunicator) else {}),
        **_details(run),
    }


def _details(run: Run) -> dict[str, Any]:
    """Return what else is to be known of the run; a problem that cannot say has no details, which is said."""
    details, error = attempt(run.comm, lambda: dict(run.problem.details()))
    if details is None:
        warnings.warn(f"the details of the problem could not be told: {error}", stacklevel=2)
    return {"details": details} if details else {}


def _network(comm: EmulatedCommunicator) -> dict[str, float]:
    """Return the network that was emulated, and what the messages of rank 0 take on it."""
    return {**asdict(comm.network), **asdict(comm.booked)}


def _identity(run: Run) -> dict[str, str]:
    """Return what was solved, whatever its data are called and however keys were written: all keys, and a checksum."""
    data = run.problem.identity()
    name = type(run.problem).__name__ if data else run.specs[0].name
    untold = ("seed", "dtype", "device", *(PLACES if data else ()))
    return {"problem": described(run.problem, name, dict.fromkeys(untold, "")), "data": data}


def _metrics(run: Run, x: Tensor) -> dict[str, float]:
    """Return the metrics of an iterate; a problem whose metrics fail has none, which is said."""
    metrics, error = attempt(run.comm, lambda: {k: _number(k, v) for k, v in run.problem.metrics(x).items()})
    if metrics is None:
        warnings.warn(f"the metrics could not be computed: {error}", stacklevel=2)
    return metrics or {}


def _number(name: str, value: Any) -> float:
    """Return a metric as a number of Python."""
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must be one number, got {type(value).__name__}: {error}") from None


def _of_validation(run: Run, validation: Validation, brief: bool) -> dict[str, Any]:
    """Return what ``result.json`` says of the validation, with the metrics of its best iterate."""
    with uncounted():
        metrics = {} if validation.best is None or brief else _metrics(run, validation.best)
    return {
        "times": validation.times,
        "seconds": validation.seconds,
        "best_by": validation.chosen,
        "best": validation.value,
        "best_step": validation.step,
        "metrics_of_best": metrics,
    }


def _metric_lines(metrics: dict[str, float]) -> list[tuple[str, str]]:
    """Return the first metrics in words; there may be hundreds, by variable and lead time."""
    lines = [(name.replace("_", " "), f"{value:.4g}") for name, value in metrics.items()]
    more = len(lines) - _METRICS
    return lines if more <= 0 else [*lines[:_METRICS], ("metrics", f"{more} more in result.json")]


def _validation_line(found: dict[str, Any]) -> str:
    """Return the validation of a run in words."""
    return (
        f"{found['times']} times, {found['seconds']:.3g} s outside of the clock; best "
        f"{found['best_by'].replace('_', ' ')} {found['best']:.4g} after step {found['best_step']}"
    )


def _network_line(found: dict[str, float]) -> str:
    """Return the emulated network of a run in words."""
    return (
        f"held back as with {found['latency']:.3g} s and {found['bandwidth']:.3g} B/s: {found['collectives']} "
        f"collectives by {found['collective_seconds']:.3g} s, {found['exchanges']} exchanges by "
        f"{found['exchange_seconds']:.3g} s"
    )


def summary(run: Run, result: Result, content: dict[str, Any]) -> tuple[str, str]:
    """Return the end of a run in a few lines for people, and how the line begins that will name its files.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    content : dict
        Of ``result.json``.
    """
    norm = "infinity norm" if run.stop.norm == math.inf else "2-norm"
    lines = [
        ("run", f"{content['problem']} by {content['solver']}, seed {run.seed}, ranks {run.comm.ranks}"),
        ("status", f"{result.status.name}: {result.status.advice}"),
        ("steps", f"{content['steps']}"),
        ("loss", f"{content['loss']:.10g}"),
        ("measure", f"{content['measure']:.3e} ({norm})"),
        *_metric_lines(content["metrics"]),
        ("cost", cost_line(content)),
    ]
    if content["setup_seconds"] > 0:
        lines.append(("set-up", f"{content['setup_work']:.4g} work units, {content['setup_seconds']:.3g} s before"))
    if "network" in content:
        lines.append(("network", _network_line(content["network"])))
    if "validation" in content:
        lines.append(("validation", _validation_line(content["validation"])))
    lines += [("note", f"{what}: {times} times") for what, times in content["notes"].items()]
    lines += [("data", note) for note in content.get("details", {}).get("notes", [])]
    if result.projected:
        lines.append(("start", "was infeasible and has been projected to the bounds"))
    if content["bounds_violation"] > 0:
        lines.append(("bounds", f"violated by {content['bounds_violation']:.2e}"))
    *said, of_files = aligned([*lines, ("written", "")])
    return "\n".join(said), of_files


def cost_line(content: dict[str, Any]) -> str:
    """Return the cost of a run in words.

    Parameters
    ----------
    content : dict
        Of ``result.json``.
    """
    halo = f" and {content['halo_bytes']} of halos" if content["halo_bytes"] else ""
    several = f" on the busiest rank, {content['work_total']:.6g} on all" if content["ranks"] > 1 else ""
    return (
        f"{content['gradient_evaluations']} gradient evaluations, {content['work_units']:.6g} work units{several}, "
        f"{content['synchronisations']} synchronisations of vectors and {content['scalar_synchronisations']} of "
        f"scalars, {content['bytes_exchanged']} bytes{halo}, {content['seconds']:.3g} s"
    )


def write_result(files: Files, run: Run, result: Result, content: dict[str, Any], out: Path) -> None:
    """Write ``result.json``, the model, and what the history lacks (rank 0).

    Parameters
    ----------
    files : Files
        They are added here.
    run : Run
        What was run.
    result : Result
        How it ended.
    content : dict
        Of ``result.json``.
    out : Path
        The folder, which is made again where it has vanished.
    """

    def write() -> list[Path]:
        out.mkdir(parents=True, exist_ok=True)
        with replacing(out / "result.json") as new:
            new.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")
        return [out / "result.json"]

    files.add(write)
    files.add(lambda: keep(run, result, content, out))
    files.add(lambda: _completed(result.history, out / "history.csv"))


def _completed(history: History, path: Path) -> list[Path]:
    """Write a history again that has vanished or lacks records: its disk was full for a while."""
    if not path.is_file() or path.read_bytes().count(b"\n") != 1 + len(history.records):
        with replacing(path) as new:
            CsvWriter(new, history).close()
    return [path]


def draw(
    files: Files, run: Run, result: Result, content: dict[str, Any], out: Path, *, of_problem: bool = True
) -> None:
    """Draw ``convergence.png``, and the pictures that a problem has of its own (rank 0).

    Parameters
    ----------
    files : Files
        They are added here.
    run : Run
        What was run.
    result : Result
        How it ended.
    content : dict
        Of ``result.json``.
    out : Path
        The folder.
    of_problem : bool
        Whether the problem draws its own, too.
    """
    title = f"{content['problem']} by {content['solver']}, seed {content['seed']}"

    def convergence() -> list[Path]:
        from mldd.figures import curves as plot

        plot.convergence(result.history, out / "convergence.png", title)
        return [out / "convergence.png"]

    files.written += drawn("convergence.png", convergence)
    if of_problem:
        files.written += pictures(run, result, out)


def drawn(name: str, draw: Callable[[], Sequence[Path]]) -> list[Path]:
    """Return the files of a figure; one that cannot be drawn costs the figure and one warning, and not the run.

    Parameters
    ----------
    name : str
        Of the figure, for the warning.
    draw : callable
        Draws it and returns its files.
    """
    logger = logging.getLogger("matplotlib")
    level = logger.level
    logger.setLevel(logging.ERROR)  # of a cache that cannot be written, of fonts that another one stands in for
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            files = list(draw())
    except Exception as error:  # no backend, no font, no disk: matplotlib raises anything
        warnings.warn(f"{name} was not drawn: {one_line(error)}", stacklevel=2)
        return []
    finally:
        logger.setLevel(level)
    texts = list(dict.fromkeys(" ".join(str(of.message).split()) for of in said))
    if texts:
        more = f" (and {len(texts) - 1} more)" if len(texts) > 1 else ""
        warnings.warn(f"{name}: {texts[0]}{more}", stacklevel=2)
    return files


def kept(result: Result, keep: str) -> Tensor:
    """Return the iterate that is kept, shape (n,): the last one, or the best of the validation where there is one.

    Parameters
    ----------
    result : Result
        Of a run.
    keep : str
        The option: last, best or best:NAME.
    """
    best = None if keep == "last" or result.validation is None else result.validation.best
    return result.x if best is None else best


def keep(run: Run, result: Result, content: dict[str, Any], out: Path) -> list[Path]:
    """Write the trained network, or the unknowns where the problem has none (rank 0); return the files.

    Of a run that failed only the best iterate of a validation is kept.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    content : dict
        Of ``result.json``.
    out : Path
        The folder.
    """
    x, best = kept(result, run.options["keep"]), result.validation
    if result.status.failed and x is result.x:
        return []
    if not has(run.problem, "module"):
        with replacing(out / SOLUTION) as new:
            np.savez(new, x=x.cpu().numpy(), shape=np.array(run.problem.array_shape() or x.shape))
        return [out / SOLUTION]
    told = ("problem", "solver", "options", "seed", "status", "ranks", "versions", "details")
    of_run = {key: content[key] for key in told if key in content}
    of_x = {"step": content["steps"], "kept": "last", "metrics": content["metrics"]}
    if x is not result.x and best is not None:
        metrics = content["validation"]["metrics_of_best"]
        of_x = {"step": best.step, "kept": f"best {best.chosen}", "metrics": metrics}
    with uncounted():
        save(out / MODEL, run.problem.module(x), _plain(of_run | of_x))
    return [out / MODEL]


def pictures(run: Run, result: Result, out: Path) -> list[Path]:
    """Write the pictures that a problem has of its own, ``pictures(folder, x, parts)`` (rank 0); return the files.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    out : Path
        The folder.
    """
    if result.status.failed:
        return []
    with uncounted():
        return drawn("pictures of the problem", lambda: run.problem.pictures(out, result.x, run.shape["parts"]))


def _plain(value: Any) -> Any:
    """Return `value` for JSON: numbers that are not finite become null."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
