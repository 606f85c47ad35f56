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
import torch
from matplotlib import pyplot

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import build
from tables import read

from experiments.pictures import colour_of

OUT = Path(__file__).parent / "figures"
LBFGS, LEVELS, PLAIN = colour_of("lbfgs"), colour_of("ml-lbfgs"), "#FFFFFF"
# Bars of the methods on a full batch: face, edge and hatches; those with a metric of the inputs are hatched.
BARS = {
    "rows": (LBFGS, LBFGS, ""),
    "bias": ("#999999", "#999999", ""),
    "white": (PLAIN, LBFGS, "/////"),
    "ml-lbfgs": (LEVELS, LEVELS, ""),
    "white-nested": (PLAIN, LEVELS, "/////"),
}


def full_batch() -> None:
    """Draw sums over ranks until the last loss, by graph and method."""
    rows = build.full_batch_rows()
    graphs = list(dict.fromkeys(row["graph"] for row in rows))
    figure, axes = pyplot.subplots(figsize=(6.2, 2.6), layout="constrained")
    for j, (method, (face, edge, hatch)) in enumerate(BARS.items()):
        found = {row["graph"]: row["synchronisations"] for row in rows if row["method"] == method}
        places = [(k, found[graph]) for k, graph in enumerate(graphs) if graph in found]
        x, heights = [k + 0.17 * (j - 2) for k, _ in places], [y for _, y in places]
        bars = axes.bar(x, heights, 0.13, color=face, edgecolor=edge, hatch=hatch, label=method)
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
        mark = markers[labelled(row)]
        axes.plot(row["synchronisations"], row["validation_loss"], mark, **look(row["method"]), markersize=6)
    named(figure, markers, list(dict.fromkeys(row["method"] for row in rows)))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks([10, 20, 40, 100, 400], ["10", "20", "40", "100", "400"])
    axes.set_yticks([0.002, 0.005, 0.01], ["0.002", "0.005", "0.01"])
    axes.minorticks_off()
    axes.set_xlabel("synchronisations in 400 gradient steps")
    axes.set_ylabel("validation loss, persistence = 1")
    written(figure, "data_rich")


def regions() -> None:
    """Draw where local Adam is faster than synchronous Adam by the cost model, by network, time and devices."""
    rows = read("gnn_decomposition/regions.csv")
    names = list(dict.fromkeys(row["network"] for row in rows))
    figure, axes = pyplot.subplots(2, 4, figsize=(6.6, 3.4), sharex=True, sharey=True, layout="constrained")
    levels = [0.0, 0.98, 1.1, 1.5, 2.0, 4.0, 8.0, 16.0, 1e9]
    blues = ["#F6C6A8", "#FFFFFF", *(pyplot.colormaps["Blues"](k / 6) for k in range(1, 7))]  # slower, alike, faster
    for name, column in zip(names, axes.T, strict=True):
        own = [row for row in rows if row["network"] == name]
        x, y = ([float(v) for v in dict.fromkeys(row[k] for row in own)] for k in ("gradient_seconds", "ranks"))
        for kind, axis in zip(("shares", "parts"), column, strict=True):
            both = [[float(row[f"{how}_{kind}"]) for row in own] for how in ("synchronous", "local")]
            synchronous, local = (torch.tensor(of).reshape(len(x), len(y)).T for of in both)
            filled = axis.contourf(x, y, synchronous / local, levels, colors=blues)
            one = torch.tensor(x).expand_as(local)
            axis.contourf(
                x, y, (torch.minimum(local, synchronous) > one).double(), [0.5, 1.5], colors="none", hatches=["////"]
            )
            axis.contour(x, y, synchronous / local, [1.5], colors="#D55E00", linewidths=1)
            axis.set_xscale("log")
            axis.set_yscale("log", base=2)
            axis.set_yticks([4, 32, 256], ["4", "32", "256"])
            axis.set_xticks([1e-3, 1e-1, 1e1], ["1 ms", "0.1 s", "10 s"])
            axis.minorticks_off()
        column[0].set_title(name, fontsize=8)
    for axis, kind in zip(axes[:, 0], ("shares of samples", "parts of the graph"), strict=True):
        axis.set_ylabel(f"{kind}\ndevices P")
    figure.supxlabel("time T of a gradient over the batch on one device", fontsize=8)
    bar = figure.colorbar(filled, ax=axes, ticks=levels[1:-1], shrink=0.9, spacing="uniform")
    bar.ax.set_yticklabels([f"{level:g}" for level in levels[1:-1]], fontsize=7)
    bar.set_label("synchronous / local step", fontsize=8)
    written(figure, "regions")


def look(method: str) -> dict[str, str]:
    """Return the colour of a method of local training; marks of local SGD are open."""
    return {"color": colour_of(method), "markerfacecolor": "none" if method == "local sgd" else colour_of(method)}


def named(figure: Any, marks: dict[str, str], methods: Collection[str]) -> None:
    """Add legends beside the axes: what is decomposed by mark, the method by colour."""
    decomposed = [line(mark, name, color="#555555") for name, mark in marks.items()]
    coloured = [line("s", name, **look(name)) for name in methods]
    figure.legend(handles=decomposed, fontsize=6.5, frameon=False, loc="outside right upper")
    figure.legend(handles=coloured, fontsize=6.5, frameon=False, loc="outside right lower")


def line(marker: str, label: str, **style: str) -> Any:
    """Return an entry of a legend."""
    return pyplot.Line2D([], [], ls="", marker=marker, label=label, **style)


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
    regions()
