"""Draw the tables of an experiment that follows a paper: one PNG beside every CSV.

python -m experiments.pictures KEY [--results DIR]
"""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments.study import ROOT, Case, Picture, Study, read
from mldd.loop import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "osD^v<>P*Xhd"
# A solver has the same colour in all figures, found by the first word of a name; its variants have markers and dashes.
SOLVERS = {
    "adam": "#0072B2",
    "torch_geometric": "#0072B2",  # its loop of Adam
    "local": "#56B4E9",  # local Adam, local SGD
    "localsgd": "#56B4E9",
    "diloco": "#882255",
    "lbfgs": "#000000",
    "scipy": "#000000",
    "torch": "#000000",
    "trust": "#999999",
    "tao": "#999999",
    "snes": "#7F3C8D",
    "apts": "#009E73",
    "napts": "#009E73",
    "aspqn": "#D55E00",
    "mspqn": "#D55E00",
    "schwarz": "#D55E00",
    "dd-adagrad": "#CC79A7",
    "ml-adagrad": "#E69F00",
    "adagrad": "#E69F00",
    "ml-lbfgs": "#E69F00",
    "mofftr": "#E69F00",
    "newton": "#999999",
    "aspin": "#009E73",
    "raspen": "#0072B2",
    "raspen-2": "#0072B2",
    "nras": "#56B4E9",
    "nras-b": "#56B4E9",
    "tl-nras-b": "#CC79A7",
}
OUTSIDE = ("torch", "torch_geometric", "torchbraid", "scipy", "tao", "snes", "dd4ml", "ml_apts", "fbpinns")
_OTHERS = "#8C510A"  # methods of peers alone
REACHED = re.compile("converged|target")


def colour_of(name: str) -> str:
    """Return the colour of a solver, "" where a name begins with none.

    Parameters
    ----------
    name : str
        Such as "aspqn, coarse": the solver first.
    """
    first = re.split("[ ,:]", name)[0]
    return SOLVERS.get(first, _OTHERS if first in OUTSIDE else "")


def style_of(name: str, names: list[str]) -> dict[str, str]:
    """Return colour, marker and dashes of one of several curves.

    Solvers have their own colours; those with the same one differ by markers and dashes. What is not mldd's is dashed.
    Curves of other names take the colours in turn.

    Parameters
    ----------
    name : str
        Such as "raspen, levels 2": the solver first, if there is one.
    names : list of str
        All of them.
    """
    colour = colour_of(name)
    k = [other for other in names if colour_of(other) == colour].index(name)
    is_outside = re.split("[ ,:]", name)[0] in OUTSIDE or "(torch)" in name
    line = "--" if is_outside else ("-", "-.", ":")[k % 3 if colour else k // 7 % 3]
    return {"color": colour or COLOURS[k % 7], "marker": MARKERS[k % len(MARKERS)], "linestyle": line}


def groups(rows: list[Case], names: tuple[str, ...]) -> dict[str, list[Case]]:
    """Return the rows by their values of some columns; numbers get the name of their column."""
    found: dict[str, list[Case]] = {}
    for row in rows:
        key = ", ".join(f"{name} {row[name]}" if row[name][:1].isdigit() else row[name] for name in names)
        found.setdefault(key, []).append(row)
    return found


def points(rows: list[Case], picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Return the medians of y over all rows of the same x; a cell without a number counts as infinite.

    Where the median is infinite there is no point.
    """
    by_x: dict[float, list[float]] = {}
    for row in rows:
        y = float(row[picture.y] or "nan")
        by_x.setdefault(float(row[picture.x]), []).append(np.inf if np.isnan(y) else y)
    x = np.array(sorted(by_x))
    y = np.array([np.median(by_x[value]) for value in x])
    return x[np.isfinite(y)], y[np.isfinite(y)]


def plain(axis: Any) -> None:
    """Write plain numbers beside a logarithmic axis that has its data, the more the shorter it is."""
    low, high = axis.get_view_interval()
    parts = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0) if high > 8 * low else (1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.0)
    axis.set_major_locator(LogLocator(subs=parts))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def curve(ax: Any, rows: list[Case], picture: Picture, style: dict[str, str], name: str) -> bool:
    """Draw a curve through what was reached, circle what was not, and return whether there is such a point."""
    x, y = points(rows, picture)
    ends = [float(row[picture.x]) for row in rows if not REACHED.match(row.get("status", "converged"))]
    missed = np.isin(x, ends)
    ax.plot(x, np.where(missed, np.nan, y), **style, markersize=4, label=name)
    ax.plot(x[missed], y[missed], **style | {"linestyle": ""}, markersize=4)
    ax.plot(x[missed], y[missed], "o", color=style["color"], markersize=9, markerfacecolor="none")
    return bool(missed.any())


def scale(ax: Any, picture: Picture, rows: list[Case]) -> None:
    """Set the scales of both axes, with plain numbers beside them and, where there are few, one for each x."""
    if "x" in picture.log:
        ax.set_xscale("log")
    if "y" in picture.log:
        ax.set_yscale("log")
        plain(ax.yaxis)
    ticks, _ = points(rows, picture)
    if len(ticks) <= 8:
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())
    elif "x" in picture.log:
        plain(ax.xaxis)


def draw(picture: Picture, rows: list[Case], path: Path, title: str) -> None:
    """Draw a panel per value of `panels` and a curve per value of `curves`."""
    panels = {name: of for name, of in groups(rows, picture.panels).items() if len(points(of, picture)[0])}
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1.0 + 3.2 * columns, 1.2 + 2.5 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False).ravel()
    curves = groups(rows, picture.curves)
    names = [name for name, of in curves.items() if len(points(of, picture)[0])]
    missed = False
    for ax, (panel, of_panel) in zip(axes, panels.items(), strict=False):
        for name, of_curve in groups(of_panel, picture.curves).items():
            if name in names:
                missed |= curve(ax, of_curve, picture, style_of(name, names), name)
        scale(ax, picture, of_panel)
        ax.set(title=panel, xlabel=picture.labels[0] or picture.x, ylabel=picture.labels[1] or picture.y)
        ax.grid(color="#dddddd", linewidth=0.6)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    handles = {text: line for ax in axes for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    says = title + ("; circled: not all runs have reached the target" if missed else "")
    figure.legend(
        handles.values(),
        handles,
        loc="outside lower center",
        ncols=min(1 + columns, len(handles)),
        frameon=False,
        title="\n".join(textwrap.wrap(says, 45 * columns)),
        title_fontsize=9,
    )
    with replacing(path) as new:
        figure.savefig(new, dpi=130)


def main() -> None:
    """Draw all tables of a paper that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("key")
    parser.add_argument("--results", type=Path, default=ROOT / "paper" / "results")
    options = parser.parse_args()
    for script in sorted((ROOT / "experiments" / options.key).glob("*.py")):
        study: Study = importlib.import_module(f"experiments.{options.key}.{script.stem}").STUDY
        table = options.results / options.key / f"{script.stem}.csv"
        if study.picture is not None and table.exists():
            _, rows = read(table)
            draw(study.picture, rows, table.with_suffix(".png"), study.source)
            print(f"written  {table.with_suffix('.png')}")


if __name__ == "__main__":
    main()
