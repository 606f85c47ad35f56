"""Figures: how one run converged, and how several solvers compare."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from mldd.loop import History, replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]

# Okabe and Ito's colours, which all kinds of colour vision tell apart, without yellow (too pale on white).
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#000000")
_DASHES = ("-", "--", "-.", ":")
_LABELS = {
    "step": "outer steps",
    "seconds": "wall time (s)",
    "work_units": "work units of the busiest rank",
    "gradient_evaluations": "gradient evaluations",
    "synchronisations": "synchronisations",
    "measure": "measure",
    "value": "objective",
}
_NO_LABELS: Mapping[str, str] = {}
_STYLE: dict[str, Any] = {
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#555555",
    "axes.labelsize": 9,
    "axes.titlesize": 10,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "figure.titlesize": 11,
    "legend.fontsize": 9,
    "legend.title_fontsize": 9,
    "legend.frameon": False,
    "lines.linewidth": 1.6,
    "lines.markersize": 3.5,
    "savefig.dpi": 150,
}


def convergence(history: History, path: Path, title: str = "") -> None:
    """Draw measure and objective of one run against steps, time, work units and synchronisations.

    Parameters
    ----------
    history : History
        Without values (all NaN) the measure alone is drawn.
    path : Path
        PNG (or what else its suffix says); it is replaced when the new figure is whole.
    title : str
        Above the figure; empty: none.
    """
    shown = [y for y in ("measure", "value") if np.isfinite(_column(history, y)).any()] or ["measure"]
    with drawing(path, (11.0, 0.6 + 2.7 * len(shown)), title) as figure:
        axes = figure.subplots(len(shown), 4, squeeze=False, sharey="row")
        for row, y in zip(axes, shown, strict=True):
            values = _column(history, y)
            for ax, x in zip(row, ("step", "seconds", "work_units", "synchronisations"), strict=True):
                _curve(ax, _column(history, x), values, COLOURS[0 if y == "measure" else 1])
                _finish(ax, x, [_column(history, x)])
            row[0].set_ylabel(_LABELS[y])
            _scale(row[0], y, [values])


def comparison(
    runs: Mapping[str, Sequence[History]], path: Path, title: str = "", labels: Mapping[str, str] = _NO_LABELS
) -> None:
    """Draw the objective of several solvers against what it cost: median over seeds, band between the quartiles.

    Parameters
    ----------
    runs : mapping from str to sequence of History
        Runs of each solver, one per seed. Where no run has values, the measure is drawn.
    path : Path
        PNG (or what else its suffix says).
    title : str
        Above the figure; empty: none.
    labels : mapping, optional
        Axis labels by field of `Record`, where a history holds something else under its name.
    """
    everything = [history for histories in runs.values() for history in histories]
    y = "value" if any(np.isfinite(_column(history, "value")).any() for history in everything) else "measure"
    styles = [(COLOURS[k % len(COLOURS)], _DASHES[k // len(COLOURS) % len(_DASHES)]) for k in range(len(runs))]
    with drawing(path, (8.4, 6.6), title) as figure:
        axes = figure.subplots(2, 2, sharey=True)
        drawn: list[Floats] = []
        for ax, x in zip(axes.flat, ("seconds", "gradient_evaluations", "work_units", "synchronisations"), strict=True):
            grids = []
            for (colour, dash), histories in zip(styles, runs.values(), strict=True):
                grid, low, middle, high = band(histories, x, y)
                if x == "synchronisations" and not grid.any():
                    continue  # a method that never communicates has no curve over communication
                _curve(ax, grid, middle, colour, dash)
                if len(histories) > 1:
                    ax.fill_between(grid, low, high, color=colour, alpha=0.2, linewidth=0)
                grids.append(grid)
                drawn += [low, high]
            _finish(ax, x, grids)
            ax.set_xlabel(labels.get(x, _LABELS[x]))
        for ax in axes[:, 0]:
            ax.set_ylabel(labels.get(y, _LABELS[y]))
        _scale(axes[0, 0], y, drawn)
        _legend(figure, runs, styles)


def band(histories: Sequence[History], x: str, y: str) -> tuple[Floats, Floats, Floats, Floats]:
    """Return a grid of x and the quartiles of y there (lower, median, upper).

    Between two records y is interpolated; a run that has ended keeps its last one. The grid is that of all runs,
    thinned to 600 points.

    Parameters
    ----------
    histories : sequence of History
        Runs of one solver.
    x : str
        Field of `Record` on the horizontal axis.
    y : str
        Field of `Record` on the vertical axis.
    """
    curves = []
    for history in histories:
        xs, ys = _column(history, x), _column(history, y)
        keep = np.isfinite(xs) & np.isfinite(ys)
        keep[:-1] &= np.diff(xs) > 0  # the last one of several records at the same cost
        if keep.any():
            curves.append((xs[keep], ys[keep]))
    if not curves:
        empty = np.empty(0)
        return empty, empty, empty, empty
    grid = np.unique(np.concatenate([xs for xs, _ in curves]))
    if len(grid) > 600:  # evenly, and more of the beginning, for logarithmic axes
        last = len(grid) - 1
        grid = grid[np.unique(np.concatenate([np.linspace(0, last, 400), np.geomspace(1, last, 200)]).astype(int))]
    table = np.stack([np.interp(grid, xs, ys) for xs, ys in curves])
    low, middle, high = np.quantile(table, [0.25, 0.5, 0.75], axis=0)
    return grid, low, middle, high


@contextmanager
def drawing(path: Path, size: tuple[float, float], title: str) -> Iterator[Figure]:
    """Yield an empty figure and save it in the end; nothing global (pyplot, settings) is touched.

    Parameters
    ----------
    path : Path
        PNG (or what else its suffix says).
    size : tuple[float, float]
        Inches, width and height.
    title : str
        Above the figure; empty: none.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.rc_context(cast(Any, _STYLE)):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if title:
            figure.suptitle(title)
        with replacing(path) as new:
            figure.savefig(new)


def _curve(ax: Axes, x: Floats, y: Floats, colour: str, dash: str = "-") -> None:
    """Draw one line, with dots where there are few points."""
    keep = np.isfinite(x) & np.isfinite(y)
    ax.plot(x[keep], y[keep], dash, color=colour, marker="o" if keep.sum() <= 12 else None)


def _scale(ax: Axes, y: str, drawn: Sequence[Floats]) -> None:
    """Take a logarithmic axis where all values are positive and spread over more than a factor 10."""
    finite = np.concatenate([values[np.isfinite(values)] for values in drawn]) if drawn else np.empty(0)
    positive = finite[finite > 0]
    # A measure of exactly 0 (converged to the last bit) does not keep the others from a logarithmic axis.
    allowed = len(positive) > 0 and (y == "measure" or finite.min() > 0)
    if allowed and positive.max() > 10 * positive.min():
        ax.set_yscale("log", nonpositive="mask")
    else:
        ax.ticklabel_format(axis="y", style="plain", useOffset=False)


def _finish(ax: Axes, x: str, drawn: Sequence[Floats]) -> None:
    """Label the horizontal axis; it is logarithmic where some curves would otherwise be squeezed to nothing."""
    ax.set_xlabel(_LABELS[x])
    ends = [float(values.max()) for values in drawn if len(values)]
    if x == "synchronisations" and not any(ends):
        ax.set_xticks([])
        ax.text(0.5, 0.5, "none", transform=ax.transAxes, ha="center", va="center", color="#777777")
        for line in list(ax.lines):
            line.remove()
    elif len(ends) > 1 and max(ends) > 30 * min(ends) > 0:
        ax.set_xscale("log", nonpositive="mask")
    else:
        ax.xaxis.set_major_formatter(_short)


def _short(number: float, position: float | None = None) -> str:
    """Return 20000 as 20k and 3000000 as 3M."""
    if abs(number) >= 1e6:
        return f"{number / 1e6:g}M"
    return f"{number / 1e3:g}k" if abs(number) >= 1e4 else f"{number:g}"


def _legend(figure: Figure, runs: Mapping[str, Sequence[History]], styles: Sequence[tuple[str, str]]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linestyle=cast(Any, dash), label=name)
        for name, (colour, dash) in zip(runs, styles, strict=True)
    ]
    several = max(map(len, runs.values())) > 1
    width = max(map(len, runs)) if sum(len(name) + 8 for name in runs) > 110 else 0
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=max(1, min(len(runs), 110 // (width + 8))),
        title="median over seeds, band between the quartiles" if several else None,
    )


def _column(history: History, name: str) -> Floats:
    return np.asarray(history.column(name), dtype=np.float64)
