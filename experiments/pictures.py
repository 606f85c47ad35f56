"""Draw the tables of an experiment that follows a paper: one PNG beside every CSV.

python -m experiments.pictures KEY [--results DIR]
"""

from __future__ import annotations

import argparse
import importlib
import re
import textwrap
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from experiments.study import ROOT, Case, Picture, Study, read
from mldd.loop import replacing

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv<>"
# A solver has the same colour in all figures, found by how its name begins; variants differ by marker and dashes.
SOLVERS = {
    "adam": "#0072B2",
    "localsgd": "#56B4E9",
    "diloco": "#56B4E9",
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
    "nras": "#56B4E9",
}
PEERS = ("torch", "scipy", "tao", "snes", "dd4ml", "ml_apts", "fbpinns")
_OTHERS = "#8C510A"  # peers from their own code
REACHED = re.compile("converged|target")


def style_of(name: str) -> dict[str, str]:
    """Return the colour of a solver, the marker of its variant, and dashes where it is not mldd's own.

    Parameters
    ----------
    name : str
        Such as "aspqn, coarse": the solver first.
    """
    solver = next((known for known in SOLVERS if name.startswith(known)), name)
    is_plain = name == solver and name not in ("mspqn", "diloco", "napts")  # these share a colour
    marker = MARKERS[0 if is_plain else 1 + zlib.crc32(name.encode()) % 6]
    line = "--" if name.startswith(PEERS) or solver not in SOLVERS else "-"
    return {"color": SOLVERS.get(solver, _OTHERS), "marker": marker, "linestyle": line}


def curve_style(name: str, names: list[str]) -> dict[str, str]:
    """Return the style of one of several curves: solvers have their colours, and their variants markers and dashes.

    Parameters
    ----------
    name : str
        Such as "raspen, levels 2": the solver first, if there is one.
    names : list of str
        All of them.
    """
    solver = name.split(",")[0].split(" ")[0]
    if solver not in SOLVERS:
        k = names.index(name)
        return {"color": COLOURS[k % 7], "marker": MARKERS[k % 7], "linestyle": ("-", "--", ":")[k // 7 % 3]}
    k = [other for other in names if other.split(",")[0].split(" ")[0] == solver].index(name)
    return {"color": SOLVERS[solver], "marker": MARKERS[k % 7], "linestyle": ("-", "--", ":", "-.")[k % 4]}


def groups(rows: list[Case], names: tuple[str, ...]) -> dict[str, list[Case]]:
    """Return the rows by their values of some columns; numbers get the name of their column."""
    found: dict[str, list[Case]] = {}
    for row in rows:
        key = ", ".join(f"{name} {row[name]}" if row[name][:1].isdigit() else row[name] for name in names)
        found.setdefault(key, []).append(row)
    return found


def points(rows: list[Case], picture: Picture) -> tuple[np.ndarray, np.ndarray]:
    """Return the medians of y over all rows of the same x; cells without a number leave a gap."""
    by_x: dict[float, list[float]] = {}
    for row in rows:
        by_x.setdefault(float(row[picture.x]), []).append(float(row[picture.y] or "nan"))
    x = np.array(sorted(by_x))
    return x, np.array([np.median(by_x[value]) for value in x])


def scale(ax: Any, log: str, ticks: list[float]) -> None:
    """Set the scales of both axes, with plain numbers beside them and, where there are few, one for each x."""
    if "x" in log:
        ax.set_xscale("log", base=2)
    if "y" in log:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
    if len(ticks) <= 8:
        ax.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        ax.xaxis.set_minor_locator(NullLocator())


def draw(picture: Picture, rows: list[Case], path: Path, title: str) -> None:
    """Draw a panel per value of `panels` and a curve per value of `curves`."""
    rows = [row for row in rows if row[picture.y] != "nan"]
    panels = groups(rows, picture.panels)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    figure = Figure(figsize=(1.0 + 3.2 * columns, 1.2 + 2.5 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(lines, columns, squeeze=False, sharex=True).ravel()
    names = list(groups(rows, picture.curves))
    ticks = sorted({float(row[picture.x]) for row in rows})
    for ax, (panel, of_panel) in zip(axes, panels.items(), strict=False):
        for name, of_curve in groups(of_panel, picture.curves).items():
            style = curve_style(name, names)
            ax.plot(*points(of_curve, picture), **style, markersize=4, label=name)
            missed = [row for row in of_curve if not REACHED.match(row.get("status", "converged"))]
            ax.plot(*points(missed, picture), "o", color=style["color"], markersize=9, markerfacecolor="none")
        scale(ax, picture.log, ticks)
        ax.set(title=panel, xlabel=picture.labels[0] or picture.x, ylabel=picture.labels[1] or picture.y)
        ax.grid(color="#dddddd", linewidth=0.6)
        ax.tick_params(labelbottom=True)  # also where the panel below is empty
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    handles = {text: line for ax in axes for line, text in zip(*ax.get_legend_handles_labels(), strict=True)}
    says = title + ("; circled: not reached" if "status" in rows[0] else "")
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
