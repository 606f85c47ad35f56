"""Draw the figures of the pages from the files of the experiments.

python paper/figures.py
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot

sys.path.insert(0, str(Path(__file__).parent))

import build

OUT = Path(__file__).parent / "figures"
# Okabe and Ito's colours: a method has the same one everywhere.
COLOURS = {
    "rows": "#000000",
    "bias": "#56B4E9",
    "white": "#0072B2",
    "ml-lbfgs": "#E69F00",
    "white-nested": "#D55E00",
    "adam": "#999999",
    "local adam": "#009E73",
    "diloco": "#CC79A7",
    "local sgd": "#E69F00",
}


def full_batch() -> None:
    """Draw sums over ranks until the last loss, by graph and method."""
    rows = build.full_batch_rows()
    graphs = list(dict.fromkeys(row["graph"] for row in rows))
    methods = [name for name in ("rows", "bias", "ml-lbfgs", "white", "white-nested") if name in COLOURS]
    figure, axes = pyplot.subplots(figsize=(6.2, 2.6), layout="constrained")
    for j, method in enumerate(methods):
        found = {row["graph"]: row["synchronisations"] for row in rows if row["method"] == method}
        places = [(k, found[graph]) for k, graph in enumerate(graphs) if graph in found]
        bars = axes.bar(
            [k + 0.16 * (j - 2) for k, _ in places], [y for _, y in places], 0.15, color=COLOURS[method], label=method
        )
        axes.bar_label(bars, fmt="%g", fontsize=6, padding=1)
    targets = {row["graph"]: row["target"] for row in rows}
    axes.set_xticks(range(len(graphs)), [f"{graph}\nloss {targets[graph]:g}" for graph in graphs])
    axes.set_yscale("log")
    axes.set_ylim(6, 700)
    axes.set_ylabel("synchronisations of vectors")
    axes.legend(ncols=5, frameon=False, fontsize=7, loc="upper right")
    written(figure, "full_batch")


def labelled(row: dict[str, Any]) -> str:
    """Return how a method is called in the figure."""
    if row["method"] == "adam":
        return "synchronous Adam, exact halo"
    if row["subdomains"] == "parts":
        return f"parts, {row['overlap']} of {row['layers']} rings"
    return "shares of samples" if row["subdomains"] == "samples" else "parts and shares"


def data_rich() -> None:
    """Draw validation loss against synchronisations for the case that has all methods."""
    rows = [row for row in build.data_rich_rows() if (row["nodes"], row["parts"], row["layers"]) == ("576", "4", "4")]
    figure, axes = pyplot.subplots(figsize=(6.2, 2.9), layout="constrained")
    markers: dict[str, str] = dict(zip(dict.fromkeys(labelled(row) for row in rows), "oDv^<>sP*", strict=False))
    for row in rows:
        label, colour = labelled(row), COLOURS[row["method"]]
        axes.plot(row["synchronisations"], row["validation_loss"], markers[label], color=colour, markersize=6)
    named(figure, markers, {row["method"] for row in rows})
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([10, 20, 40, 100, 400], ["10", "20", "40", "100", "400"])
    axes.set_yticks([0.002, 0.005, 0.01], ["0.002", "0.005", "0.01"])
    axes.minorticks_off()
    axes.set_xlabel("synchronisations in 400 gradient steps")
    axes.set_ylabel("validation loss, persistence = 1")
    written(figure, "data_rich")


def named(figure: Any, marks: dict[str, str], methods: Collection[str]) -> None:
    """Add legends beside the axes: what is decomposed by mark, the method by colour."""
    decomposed = [line(mark, "#555555", name) for name, mark in marks.items()]
    coloured = [line("s", colour, name) for name, colour in COLOURS.items() if name in methods]
    figure.legend(handles=decomposed, fontsize=6.5, frameon=False, loc="outside right upper")
    figure.legend(handles=coloured, fontsize=6.5, frameon=False, loc="outside right lower")


def line(marker: str, colour: str, label: str) -> Any:
    """Return an entry of a legend."""
    return pyplot.Line2D([], [], ls="", marker=marker, color=colour, label=label)


def written(figure: Any, name: str) -> None:
    """Write a figure without the date, so that equal figures are equal files."""
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=7)
        axes.xaxis.label.set_size(8)
        axes.yaxis.label.set_size(8)
    OUT.mkdir(exist_ok=True)
    figure.savefig(OUT / f"{name}.png", dpi=200, metadata={"Software": None})
    pyplot.close(figure)


if __name__ == "__main__":
    full_batch()
    data_rich()
