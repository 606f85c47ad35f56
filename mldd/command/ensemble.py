"""Runs from several seeds: one row each, and the median and quartiles over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from mldd.loop import Cost, History

# The metric of the table of several solvers: the first of these that a problem has.
_METRICS = ("test_accuracy", "test_auc", "relative_l2", "test_rmse")
_COLUMNS = (
    ("loss", "loss", "{:.4g}"),
    ("measure", "measure", "{:.2e}"),
    ("steps", "steps", "{:.6g}"),
    ("gradient_evaluations", "gradients", "{:.6g}"),
    ("work_units", "work units", "{:.5g}"),
    ("work_total", "of all ranks", "{:.5g}"),
    ("synchronisations", "syncs", "{:.6g}"),
    ("scalar_synchronisations", "of scalars", "{:.6g}"),
    ("seconds", "seconds", "{:.3g}"),
    ("setup_work", "set-up work", "{:.4g}"),
    ("setup_seconds", "seconds", "{:.3g}"),
)


@dataclass(frozen=True)
class TableRow:
    """One solver from one start.

    Attributes
    ----------
    solver : str
        As it was given.
    seed : int
        Of the start.
    content : dict
        What ``result.json`` says, empty where the run failed.
    history : History
        As far as the run came.
    error : str
        Why it failed.
    """

    solver: str
    seed: int
    content: dict[str, Any]
    history: History
    error: str = ""

    @property
    def failed(self) -> bool:
        """Whether the run did not end as asked."""
        return bool(self.error) or self.content["status"] == "diverged"

    def number(self, name: str) -> float | None:
        """Return a number of the result or one of its metrics, None where there is none.

        Parameters
        ----------
        name : str
            A key of ``result.json`` or of its ``metrics``.
        """
        found = self.content.get(name, self.content.get("metrics", {}).get(name))
        return None if found is None else float(found)


def metrics_of(rows: Sequence[TableRow]) -> list[str]:
    """Return the names of all metrics of runs, in their order.

    Parameters
    ----------
    rows : sequence of TableRow
        The runs.
    """
    return list(dict.fromkeys(name for row in rows for name in row.content.get("metrics", {})))


def quartiles(rows: Sequence[TableRow]) -> list[dict[str, Any]]:
    """Return a row for every solver and quantity: number of runs, lower quartile, median and upper quartile.

    Parameters
    ----------
    rows : sequence of TableRow
        The runs; those without a result do not count.
    """
    names = ["loss", "measure", *metrics_of(rows), "steps", *(f.name for f in fields(Cost))]
    made = []
    for solver, mine in _by_solver(rows).items():
        for name in names:
            values = _values(mine, name)
            low, middle, high = _quantiles(values) if values else ("", "", "")
            found = {"lower_quartile": low, "median": middle, "upper_quartile": high}
            made.append({"solver": solver, "quantity": name, "runs": len(values), **found})
    return made


def table(rows: Sequence[TableRow]) -> list[str]:
    """Return the table as lines: of several solvers one line each, of one solver from several seeds one per quantity.

    Parameters
    ----------
    rows : sequence of TableRow
        In the order of the runs.
    """
    of_solver = _by_solver(rows)
    several = max(map(len, of_solver.values()))
    if len(of_solver) == 1 and several > 1:
        return list(_of_one(rows))
    metric = next((m for m in _METRICS if m in metrics_of(rows)), None)
    columns = [*([(metric, metric.replace("_", " "), "{:.4g}")] if metric else []), *_COLUMNS]
    lines = [["solver", *(head for _, head, _ in columns), "status"]]
    for name, mine in of_solver.items():
        lines.append([name, *(_spread(_values(mine, key), form) for key, _, form in columns), statuses(mine)])
    note = [f"median (lower..upper quartile) over {several} seeds"] if several > 1 else []
    return _aligned(lines) + note


def _of_one(rows: Sequence[TableRow]) -> Iterator[str]:
    """Yield the table of one solver: lower quartile, median and upper quartile in columns."""
    yield f"{rows[0].solver}, {len(rows)} seeds: {statuses(rows)}"
    forms = {key: form for key, _, form in _COLUMNS}
    lines = [["", "lower quartile", "median", "upper quartile"]]
    shown = {*forms, *metrics_of(rows)}
    for row in quartiles(rows):
        if row["quantity"] in shown and row["runs"]:
            form = forms.get(row["quantity"], "{:.4g}")
            numbers = (row[key] for key in ("lower_quartile", "median", "upper_quartile"))
            lines.append([row["quantity"].replace("_", " "), *map(form.format, numbers)])
    yield from _aligned(lines)


def statuses(rows: Sequence[TableRow]) -> str:
    """Return how runs ended, with how often.

    Parameters
    ----------
    rows : sequence of TableRow
        The runs.
    """
    names = [f"failed: {row.error}" if row.error else str(row.content["status"]) for row in rows]
    counts = {name: names.count(name) for name in names}
    return ", ".join(name if len(counts) == 1 else f"{count} x {name}" for name, count in counts.items())


def _by_solver(rows: Sequence[TableRow]) -> dict[str, list[TableRow]]:
    return {name: [row for row in rows if row.solver == name] for name in dict.fromkeys(r.solver for r in rows)}


def _values(rows: Sequence[TableRow], name: str) -> list[float]:
    return [value for row in rows if (value := row.number(name)) is not None]


def _quantiles(values: Sequence[float]) -> tuple[float, float, float]:
    with np.errstate(invalid="ignore"):  # of a run that diverged the loss may be infinite
        low, middle, high = np.quantile(values, [0.25, 0.5, 0.75]).tolist()
    return low, middle, high


def _spread(values: Sequence[float], form: str) -> str:
    if not values:
        return "-"
    low, middle, high = map(form.format, _quantiles(values))
    return middle if low == high else f"{middle} ({low}..{high})"


def _aligned(lines: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
