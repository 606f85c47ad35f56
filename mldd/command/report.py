"""What a run leaves behind: ``result.json``, the summary on the terminal, and pictures."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mldd.algebra import uncounted
from mldd.command import info
from mldd.command.names import described
from mldd.command.values import aligned, one_line
from mldd.loop import History, Result, Validation, has, replacing
from mldd.models import MODEL, SOLUTION, save

if TYPE_CHECKING:
    from torch import Tensor

    from mldd.command.run import Run


def report(run: Run, result: Result) -> dict[str, Any]:
    """Return the content of ``result.json``; called by all ranks, as metrics may need them.

    A problem may have ``details()``: what else is to be known of the run, how it was distributed say.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    """
    good = next((r for r in reversed(result.history.records) if math.isfinite(r.measure)), result.record)
    with uncounted():
        loss = float(run.objective.value(result.x))
        metrics = {name: float(value) for name, value in run.problem.metrics(result.x).items()}
    return {
        "problem": run.names[0],
        "solver": run.names[1],
        "options": {  # with all their keys
            **run.options,
            "problem": described(run.problem, run.specs[0].name),
            "solver": described(run.solver, run.specs[1].name),
        },
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
        **({"validation": _of_validation(run, result.validation)} if result.validation is not None else {}),
        **({"details": details} if (details := run.problem.details()) else {}),
    }


def _of_validation(run: Run, validation: Validation) -> dict[str, Any]:
    """Return what ``result.json`` says of the validation, with the metrics of its best iterate."""
    with uncounted():
        metrics = {} if validation.best is None else run.problem.metrics(validation.best)
    return {
        "times": validation.times,
        "seconds": validation.seconds,
        "best_by": validation.chosen,
        "best": validation.value,
        "best_step": validation.step,
        "metrics_of_best": {name: float(value) for name, value in metrics.items()},
    }


def _validation_line(found: dict[str, Any]) -> str:
    """Return the validation of a run in words."""
    return (
        f"{found['times']} times, {found['seconds']:.3g} s outside of the clock; best "
        f"{found['best_by'].replace('_', ' ')} {found['best']:.4g} after step {found['best_step']}"
    )


def summary(run: Run, result: Result, content: dict[str, Any], written: Sequence[Path]) -> str:
    """Return the end of a run in a few lines for people.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    content : dict
        Of ``result.json``.
    written : sequence of Path
        Files of the run.
    """
    norm = "infinity norm" if run.stop.norm == math.inf else "2-norm"
    lines = [
        ("run", f"{content['problem']} by {content['solver']}, seed {run.seed}, ranks {run.comm.ranks}"),
        ("status", f"{result.status.name}: {result.status.advice}"),
        ("steps", f"{content['steps']}"),
        ("loss", f"{content['loss']:.10g}"),
        ("measure", f"{content['measure']:.3e} ({norm})"),
        *((name.replace("_", " "), f"{value:.4g}") for name, value in content["metrics"].items()),
        ("cost", cost_line(content)),
    ]
    if content["setup_seconds"] > 0:
        lines.append(("set-up", f"{content['setup_work']:.4g} work units, {content['setup_seconds']:.3g} s before"))
    if "validation" in content:
        lines.append(("validation", _validation_line(content["validation"])))
    lines += [("note", f"{what}: {times} times") for what, times in content["notes"].items()]
    lines += [("data", note) for note in content.get("details", {}).get("notes", [])]
    if result.projected:
        lines.append(("start", "was infeasible and has been projected to the bounds"))
    if content["bounds_violation"] > 0:
        lines.append(("bounds", f"violated by {content['bounds_violation']:.2e}"))
    if written:
        lines.append(("written", " ".join(map(str, written))))
    return "\n".join(aligned(lines))


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


def write_result(out: Path, content: dict[str, Any], history: History) -> list[Path]:
    """Write ``result.json`` and ``convergence.png`` (rank 0); return the files of the run.

    Parameters
    ----------
    out : Path
        The folder.
    content : dict
        Of ``result.json``.
    history : History
        What the figure shows.
    """
    title = f"{content['problem']} by {content['solver']}, seed {content['seed']}"
    with replacing(out / "result.json") as new:
        new.write_text(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def draw() -> list[Path]:
        from mldd.figures import curves as plot

        plot.convergence(history, out / "convergence.png", title)
        return [out / "convergence.png"]

    return [out / "result.json", out / "history.csv", *drawn("convergence.png", draw)]


def drawn(name: str, draw: Callable[[], Sequence[Path]]) -> list[Path]:
    """Return the files of a figure; one that cannot be drawn costs the figure, and not the run.

    Parameters
    ----------
    name : str
        Of the figure, for the warning.
    draw : callable
        Draws it and returns its files.
    """
    try:
        return list(draw())
    except Exception as error:  # no backend, no font, no disk: matplotlib raises anything
        warnings.warn(f"{name} was not drawn: {one_line(error)}", stacklevel=2)
        return []


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
    of_run = {key: content[key] for key in ("problem", "solver", "options", "seed", "status", "ranks", "versions")}
    of_x = {"step": content["steps"], "kept": "last", "metrics": content["metrics"]}
    if x is not result.x and best is not None:
        metrics = content["validation"]["metrics_of_best"]
        of_x = {"step": best.step, "kept": f"best {best.chosen}", "metrics": metrics}
    with uncounted():
        save(out / MODEL, run.problem.module(x), _plain(of_run | of_x))
    return [out / MODEL]


def write_all(
    run: Run, result: Result, content: dict[str, Any], out: Path | None, *, drawing: bool = True
) -> list[Path]:
    """Write all files of a run (rank 0); return them.

    Parameters
    ----------
    run : Run
        What was run.
    result : Result
        How it ended.
    content : dict
        Of ``result.json``.
    out : Path, optional
        The folder; without it nothing is written.
    drawing : bool
        Whether the problem draws pictures of its own, too.
    """
    if out is None:
        return []
    written = [*write_result(out, content, result.history), *keep(run, result, content, out)]
    return [*written, *pictures(run, result, out)] if drawing else written


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
