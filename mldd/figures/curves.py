"""Figures: how one run converged, and how several solvers compare."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mldd.figures.style import COLOURS, DOUBLE, SINGLE, add_legend, drawing, wrapped
from mldd.loop import History, Status, grows

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
Runs = Mapping[str, Sequence[History]]

COSTS = {
    "step": "outer steps",
    "seconds": "wall time (s)",
    "work_units": "work units",
    "gradient_evaluations": "gradient evaluations",
    "synchronisations": "synchronisations",
}
QUANTITIES = {"value": "objective $f$", "gap": "$f - f_{best}$", "measure": "measure"}
_NO_LABELS: Mapping[str, str] = {}
_DASHES = ("-", "--", "-.", ":")
_LARGEST = 1e100  # what is larger is drawn like infinity, not at all: matplotlib overflows at it
_PANEL = 1.2  # inches, height of a panel
# How a run ended: a sign and its meaning; a run that was cut short by its budget could have gone on.
_ENDS = {
    "converged_atol": ("o", "converged"),
    "converged_rtol": ("o", "converged"),
    "target_reached": ("*", "target reached"),
    "max_steps": ("|", "steps used up"),
    "max_seconds": ("s", "seconds used up"),
    "stalled": ("X", "stalled"),
    "diverged": ("^", "diverged"),
    "corrupted": ("v", "corrupted"),
    "interrupted": ("D", "interrupted"),
    "terminated": ("D", "terminated"),
    "time_limit": ("s", "time limit near"),
    "stopped_early": ("P", "stopped early"),
}
_CUT_SHORT = (None, Status.max_steps, Status.max_seconds, *(status for status in Status if status.is_unfinished))


class Curve(NamedTuple):
    """One quantity of one run over one cost.

    Attributes
    ----------
    x, y : ndarray, shape (k,)
        Cost, ascending, and quantity; finite.
    status : Status or None
        Why the run ended, as far as it is known.
    """

    x: Floats
    y: Floats
    status: Status | None


def convergence(
    history: History,
    path: str | Path | None = None,
    title: str = "",
    *,
    against: Sequence[str] = ("step", "work_units"),
    show: Sequence[str] | None = None,
) -> Figure:
    """Draw objective, measure and numbers of the validation against steps and work of one run; return the figure.

    Parameters
    ----------
    history : History
        Without values (all NaN) the measure alone is drawn.
    path : str or Path, optional
        Where it is written: PDF and PNG, or the one kind that the suffix says; by default nowhere.
    title : str
        Above the figure; empty: none.
    against : sequence of str
        Costs, a column of panels each: ``step seconds work_units gradient_evaluations synchronisations``.
    show : sequence of str, optional
        Quantities, a row of panels each: ``value``, ``gap``, ``measure``, and numbers of the validation by name; by
        default objective, measure, and all numbers of the validation.
    """
    shown = ("value", "measure", *history.validated) if show is None else show
    return _panels({"": [history]}, path, title, _NO_LABELS, against, shown)


def comparison(
    runs: Runs,
    path: str | Path | None = None,
    title: str = "",
    labels: Mapping[str, str] = _NO_LABELS,
    *,
    against: Sequence[str] = (),
    show: Sequence[str] | None = None,
) -> Figure:
    """Draw what several solvers reached against what it cost, and return the figure.

    Lines are medians over seeds, bands lie between the quartiles. A sign at the end of every run says why it stopped.
    Where some runs had used up their steps or seconds while others went on, the background is grey: what stands there
    compares unequal budgets.

    Parameters
    ----------
    runs : mapping from str to sequence of History
        Runs of each solver, one per seed; those at the same place of the sequences are of the same problem and seed
        (an empty history keeps the place of one that is missing), and ``f_best`` is the lowest objective among them.
    path : str or Path, optional
        Where it is written: PDF and PNG, or the one kind that the suffix says; by default nowhere.
    title : str
        Above the figure; empty: none.
    labels : mapping, optional
        Axis labels by field of `Record`, where a history holds something else under its name.
    against : sequence of str
        Costs, a column of panels each; by default work units and synchronisations, or seconds where a solver has none.
    show : sequence of str, optional
        Quantities, a row of panels each: the objective ``value``, its ``gap`` to the lowest one, the ``measure``, and
        numbers of the validation by name; by default all of them.

    Raises
    ------
    ValueError
        A cost or quantity that there is not, measures in different norms, or nothing to draw.
    """
    if not against:
        exchanged = all(any(_column(h, "synchronisations").any() for h in row) for row in runs.values())
        against = ("work_units", "synchronisations" if exchanged else "seconds")
    shown = ("value", "gap", "measure", *_validated(runs)) if show is None else show
    return _panels(runs, path, title, labels, against, shown)


def _validated(runs: Runs) -> tuple[str, ...]:
    """Return the names of the numbers of the validations."""
    return tuple(dict.fromkeys(name for row in runs.values() for history in row for name in history.validated))


def _panels(
    runs: Runs,
    path: str | Path | None,
    title: str,
    labels: Mapping[str, str],
    against: Sequence[str],
    show: Sequence[str],
) -> Figure:
    """Draw a panel for every quantity and cost, and the legend."""
    _check(runs, against, show)
    table = {y: _quantity(runs, y) for y in show}
    found = {y: rows for y, rows in table.items() if any(np.isfinite(v).any() for row in rows.values() for v in row)}
    found = found or {"measure": _quantity(runs, "measure")}
    wide = SINGLE if len(against) <= 2 else DOUBLE
    with drawing(path, (wide, 0.35 + _PANEL * len(found)), title) as figure:
        axes = figure.subplots(len(found), len(against), squeeze=False, sharey="row", sharex="col")
        unequal = False
        for column, x in zip(axes.T, against, strict=True):
            ends: list[float] = []
            for ax, rows in zip(column, found.values(), strict=True):
                curves = {name: _curves(runs[name], x, rows[name]) for name in runs}
                ends += _draw(ax, curves, x)
                unequal |= _shade(ax, curves)
            _horizontal(column[0], x, ends)
            column[-1].set_xlabel(wrapped(labels.get(x, COSTS[x]), wide / len(against) - 0.4))
        for row, (y, values) in zip(axes, found.items(), strict=True):
            row[0].set_ylabel(wrapped(labels[y], _PANEL) if y in labels else _label(runs, y))
            _vertical(row[0], y, values)
        add_legend(figure, list(_handles(runs, unequal)), _note(runs))
    return figure


def _check(runs: Runs, against: Sequence[str], show: Sequence[str]) -> None:
    """Refuse what cannot be drawn, or would be wrong on one axis."""
    quantities = {**QUANTITIES, **dict.fromkeys(_validated(runs))}
    for kind, given, there in (("cost", against, COSTS), ("quantity", show, quantities)):
        unknown = [name for name in given if name not in there]
        if unknown or not given:
            raise ValueError(f"a {kind} of a figure must be one of {' '.join(there)}, got {(unknown or ['none'])[0]}")
    histories = [history for row in runs.values() for history in row if history.records]
    if not histories:
        raise ValueError("a figure needs a history with records, got none; run a solver for it")
    norms = sorted({history.norm for history in histories if history.norm is not None})
    if "measure" in show and len(norms) > 1:
        raise ValueError(
            f"measures of a figure must be in one norm, got those in the norms {' '.join(f'{p:g}' for p in norms)}; "
            "run all with the same norm, or show value,gap alone"
        )


def _quantity(runs: Runs, y: str) -> dict[str, list[Floats]]:
    """Return one quantity of all runs, by solver and place."""
    if y != "gap":
        return {name: [_column(history, y) for history in row] for name, row in runs.items()}
    values = _quantity(runs, "value")
    best: dict[int, float] = {}
    for row in values.values():
        for place, of_run in enumerate(row):
            finite = of_run[np.isfinite(of_run)]
            best[place] = min(best.get(place, math.inf), float(finite.min()) if len(finite) else math.inf)
    return {name: [of_run - best[place] for place, of_run in enumerate(row)] for name, row in values.items()}


def _curves(histories: Sequence[History], x: str, values: Sequence[Floats]) -> list[Curve]:
    """Return the curves of a solver's runs; one that never communicates has none over communication."""
    found = []
    for history, ys in zip(histories, values, strict=True):
        xs = _column(history, x)
        there = np.isfinite(xs) & np.isfinite(ys)  # between two validations their numbers are not
        xs, ys = xs[there], ys[there]
        last = np.diff(xs, append=np.inf) > 0  # the last one of several records at the same cost
        if len(xs) and not (x == "synchronisations" and not xs.any()):
            found.append(Curve(xs[last], ys[last], history.status))
    return found


def band(curves: Sequence[Curve]) -> tuple[Floats, Floats, Floats, Floats]:
    """Return a grid of x and the quartiles of y there (lower, median, upper).

    Between two records y is interpolated; a run that has ended keeps its last one. The grid is that of all runs,
    thinned to 600 points.

    Parameters
    ----------
    curves : sequence of Curve
        Runs of one solver.
    """
    if not curves:
        empty = np.empty(0)
        return empty, empty, empty, empty
    grid = np.unique(np.concatenate([curve.x for curve in curves]))
    if len(grid) > 600:  # evenly, and more of the beginning, for logarithmic axes
        last = len(grid) - 1
        grid = grid[np.unique(np.concatenate([np.linspace(0, last, 400), np.geomspace(1, last, 200)]).astype(int))]
    table = np.stack([np.interp(grid, curve.x, curve.y) for curve in curves])
    low, middle, high = np.quantile(table, [0.25, 0.5, 0.75], axis=0)
    return grid, low, middle, high


def _draw(ax: Axes, curves: Mapping[str, Sequence[Curve]], x: str) -> list[float]:
    """Draw the lines, bands and ends of one panel; return where the lines end."""
    ends = []
    for (colour, dash), own in zip(_styles(len(curves)), curves.values(), strict=True):
        grid, low, middle, high = band(own)
        if not len(grid):
            continue
        ax.plot(grid, middle, dash, color=colour, marker="." if len(grid) <= 12 else None, markersize=2.5)
        if len(own) > 1:
            ax.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
        for curve in own:
            if curve.status is not None:
                sign = _sign(curve.status)[0]
                ax.plot(curve.x[-1:], curve.y[-1:], sign, color=colour, markersize=3.2, markeredgewidth=0.8, alpha=0.8)
        ends.append(float(grid[-1]))
    if not ends:
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", va="center", color="#777777")
    return ends


def _shade(ax: Axes, curves: Mapping[str, Sequence[Curve]]) -> bool:
    """Make grey what lies beyond the budget of a run that could have gone on; return whether there is such a thing."""
    everything = [curve for own in curves.values() for curve in own]
    budget = min((float(c.x[-1]) for c in everything if c.status in _CUT_SHORT), default=math.inf)
    last = max((float(c.x[-1]) for c in everything), default=0.0)
    if last <= budget * (1 + 1e-6):
        return False
    ax.axvspan(budget, last, color="#f0f0f0", zorder=0, linewidth=0)
    return True


def _horizontal(ax: Axes, x: str, ends: Sequence[float]) -> None:
    """Scale the horizontal axis; it is logarithmic where some curves would otherwise be squeezed to nothing."""
    from matplotlib.ticker import MaxNLocator

    if not ends:
        ax.set_xticks([])
    elif max(ends) > 30 * min(ends) > 0:
        ax.set_xscale("log", nonpositive="mask")
    else:
        ax.xaxis.set_major_locator(MaxNLocator(4, integer=x not in ("seconds", "work_units")))
        ax.xaxis.set_major_formatter(_short)


def _vertical(ax: Axes, y: str, values: Mapping[str, Sequence[Floats]]) -> None:
    """Scale the vertical axis: gap and measure by logarithm, the objective where it is positive and spreads widely.

    What lies far above all starts (a run that diverged) is cut off, so that the others can be seen; of an accuracy it
    is what was wanted.
    """
    from matplotlib.ticker import MaxNLocator

    finite = np.concatenate([v[np.isfinite(v)] for row in values.values() for v in row] or [np.empty(0)])
    starts = [float(v[np.isfinite(v)][0]) for row in values.values() for v in row if np.isfinite(v).any()]
    positive = finite[finite > 0]  # a measure of exactly 0 (converged to the last bit) is left out
    logarithmic = len(positive) > 0 and (
        y in ("gap", "measure") or (finite.min() > 0 and positive.max() > 10 * positive.min())
    )
    shown = positive if logarithmic else finite
    if logarithmic:
        ax.set_yscale("log", nonpositive="mask")
    else:
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)
        ax.yaxis.set_major_locator(MaxNLocator(4))
    if not len(shown):
        return
    low, high, top = float(shown.min()), float(shown.max()), max(starts)
    if high - low <= 1e-9 * abs(high):  # nothing but rounding
        ax.set_ylim(low - 0.5 * abs(low), high + 0.5 * abs(high) if high else 1.0)
    elif grows(y):
        return
    elif logarithmic and high > 1e3 * top > 0:
        ax.set_ylim(top=30 * top)
    elif not logarithmic and top > low and high > top + 2 * (top - low):
        ax.set_ylim(low - 0.05 * (top - low), top + 0.5 * (top - low))


def _short(number: float, position: float | None = None) -> str:
    """Return 20000 as 20k and 3000000 as 3M."""
    if abs(number) >= 1e6:
        return f"{number / 1e6:g}M"
    return f"{number / 1e3:g}k" if abs(number) >= 1e4 else f"{number:g}"


def _label(runs: Runs, y: str) -> str:
    """Return the label of a vertical axis, for the measure with its norm; P projects onto the bounds."""
    norm = next((h.norm for row in runs.values() for h in row if h.norm is not None), None)
    if y != "measure" or norm is None:
        return QUANTITIES.get(y, wrapped(y.replace("_", " "), _PANEL))
    index = r"\infty" if norm == math.inf else f"{norm:g}"
    return rf"$\Vert P(x - g) - x\,\Vert_{{{index}}}$"


def _styles(number: int) -> list[tuple[str, str]]:
    return [(COLOURS[k % len(COLOURS)], _DASHES[k // len(COLOURS) % len(_DASHES)]) for k in range(number)]


def _sign(status: Status) -> tuple[str, str]:
    return _ENDS[status.name]


def _handles(runs: Runs, unequal: bool) -> Iterator[Artist]:
    """Yield the entries of the legend: solvers, how runs ended, and the grey background."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    for (colour, dash), name in zip(_styles(len(runs)), runs, strict=True):
        if name:
            line: Any = dash
            yield Line2D([], [], color=colour, linestyle=line, label=name)
    statuses = [history.status for row in runs.values() for history in row if history.status is not None]
    for sign, meaning in dict.fromkeys(map(_sign, statuses)):
        yield Line2D([], [], color="#555555", marker=sign, linestyle="none", markersize=3.2, label=meaning)
    if unequal:
        yield Patch(color="#f0f0f0", label="unequal budgets")


def _note(runs: Runs) -> str:
    several = max(sum(1 for history in row if history.records) for row in runs.values()) > 1
    return "median over seeds, band between the quartiles" if several else ""


def _column(history: History, name: str) -> Floats:
    found = np.asarray(history.column(name), dtype=np.float64)
    return np.where(np.abs(found) < _LARGEST, found, np.nan)
