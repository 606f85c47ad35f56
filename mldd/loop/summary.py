"""A run on one screen: what Python shows of a result or a history, as text and in notebooks."""

from __future__ import annotations

import html
import math
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mldd.loop.monitor import Cost, History
    from mldd.loop.outer_loop import Result

Line = tuple[str, str]
_WIDTH = 100


def of_history(history: History) -> list[Line]:
    """Return what a history says in lines: a name and a text each.

    Parameters
    ----------
    history : History
        It may be empty.
    """
    if not history.records:
        return [("records", "none")]
    first, last = history.records[0], history.records[-1]
    status = history.status
    lines = [
        ("status", "unknown, or it goes on" if status is None else f"{status.name}: {status.advice}"),
        ("steps", f"{last.step}" + (f" (from step {first.step})" if first.step else "")),
        ("loss", _course(history.column("value"))),
        ("measure", _course(history.column("measure")) + _in_norm(history.norm)),
    ]
    lines += [(name.replace("_", " "), _course(history.column(name))) for name in history.validated[:5]]
    return [*lines, *_of_cost(last.cost)]


def of_result(result: Result) -> list[Line]:
    """Return what a result says in lines: those of its history, and what is known besides.

    Parameters
    ----------
    result : Result
        Of `minimise`.
    """
    x = result.x
    lines = [*of_history(result.history), ("x", f"{x.numel()} unknowns, {str(x.dtype)[6:]} on {x.device}")]
    if result.validation is not None and result.validation.best is not None:
        best = result.validation
        lines.append(("best", f"{best.chosen.replace('_', ' ')} {best.value:.6g} after step {best.step}"))
    if result.projected:
        lines.append(("start", "was infeasible and has been projected to the bounds"))
    notes = list(result.state.notes.items())
    lines += [("note", f"{what}: {times} times") for what, times in notes[:5]]
    return lines + ([("note", f"and {len(notes) - 5} more in state.notes")] if len(notes) > 5 else [])


def as_text(title: str, lines: Sequence[Line]) -> str:
    """Return lines below a title, long ones broken, for a terminal.

    Parameters
    ----------
    title : str
        The class.
    lines : sequence of pairs of str
        Name and text.
    """
    wide = max(len(name) for name, _ in lines) + 4
    broken = (
        textwrap.fill(text, _WIDTH, initial_indent=f"  {name}".ljust(wide), subsequent_indent=" " * wide)
        for name, text in lines
    )
    return "\n".join((title, *broken))


def as_html(title: str, lines: Sequence[Line]) -> str:
    """Return lines as a table, for notebooks.

    Parameters
    ----------
    title : str
        The class.
    lines : sequence of pairs of str
        Name and text.
    """
    left = ' style="text-align: left"'
    rows = (f"<tr><th{left}>{html.escape(name)}</th><td{left}>{html.escape(text)}</td></tr>" for name, text in lines)
    return f"<table><caption{left}>{html.escape(title)}</caption>{''.join(rows)}</table>"


def _course(values: Sequence[float]) -> str:
    """Return the last number, the first one, and the lowest one where it is another; what is not known is said."""
    known = [value for value in values if not math.isnan(value)]
    if not known:
        return "not computed"
    lowest = f", lowest {min(known):.6g}" if min(known) < min(known[0], known[-1]) else ""
    if math.isnan(values[-1]):
        before = f", last known {known[-1]:.6g}" if len(known) > 1 else ""
        return f"not known at the end (first {known[0]:.6g}{before}{lowest})"
    return f"{known[-1]:.6g}" + (f" (first {known[0]:.6g}{lowest})" if len(values) > 1 else "")


def _in_norm(norm: float | None) -> str:
    return "" if norm is None else ", infinity norm" if norm == math.inf else f", {norm:g}-norm"


def _of_cost(cost: Cost) -> Iterator[Line]:
    total = f", {cost.work_total:.6g} on all ranks" if cost.work_total != cost.work_units else ""
    work = f"{cost.work_units:.6g} work units{total}"
    yield "cost", f"{cost.gradient_evaluations} gradient evaluations, {work}, {cost.seconds:.3g} s"
    if cost.synchronisations or cost.exchanges:
        sent = cost.bytes_exchanged + cost.halo_bytes
        yield "exchange", f"{cost.synchronisations} synchronisations, {cost.exchanges} halo exchanges, {sent} bytes"
    if cost.setup_seconds or cost.setup_work:
        yield "set-up", f"{cost.setup_work:.4g} work units, {cost.setup_seconds:.3g} s"
