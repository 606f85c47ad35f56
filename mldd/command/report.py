"""What a run leaves behind: ``result.json``, the summary on the terminal, and pictures."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mldd.algebra import uncounted
from mldd.command import info
from mldd.command.names import described
from mldd.command.values import one_line
from mldd.loop import History, Result, replacing

if TYPE_CHECKING:
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
        "steps": result.record.step,
        "loss": loss,
        "measure": good.measure,
        "metrics": metrics,
        **asdict(result.record.cost),
        "bounds_violation": run.objective.bounds.violation(result.x),
        "versions": info.versions(),
        **({"details": details} if (details := run.problem.details()) else {}),
    }


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
    lines += [("note", f"{what}: {times} times") for what, times in content["notes"].items()]
    lines += [("data", note) for note in content.get("details", {}).get("notes", [])]
    if result.projected:
        lines.append(("start", "was infeasible and has been projected to the bounds"))
    if content["bounds_violation"] > 0:
        lines.append(("bounds", f"violated by {content['bounds_violation']:.2e}"))
    if written:
        lines.append(("written", " ".join(map(str, written))))
    width = max(len(name) for name, _ in lines) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines)


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
