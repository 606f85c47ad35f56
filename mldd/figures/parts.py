"""Pictures of parts: on the map, as a layout of a small graph, or as blocks of the adjacency matrix."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from torch import Tensor

from mldd.figures.maps import around, stretch
from mldd.figures.style import DOUBLE, SINGLE, add_titles, drawing
from mldd.graph import Graph

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_SMALL = 1000  # nodes up to which a graph without coordinates is laid out
_EDGES = 20_000  # undirected edges up to which these are drawn
_PIXELS = 360  # of a picture of a matrix
# Twelve colours that tell neighbouring parts apart: Okabe and Ito's, and paler or darker ones of other hues.
_COLOURS = (
    ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00")
    + ("#8C8C00", "#7F5FA8", "#A0522D", "#66C2A5", "#B3B3B3", "#1F4E5F")
)  # fmt: skip


def draw_parts(
    graph: Graph,
    parts: Mapping[str, Tensor],
    path: str | Path | None = None,
    coordinates: Tensor | None = None,
    title: str = "",
) -> Figure:
    """Draw partitions side by side and return the figure: a colour for each part, a dark rim for what others read.

    Neighbouring parts have different colours. With coordinates it is a map. Without, a graph of at most 1,000 nodes is
    laid out by forces along its edges; of a larger one the adjacency matrix is shown, ordered by parts: entries within
    a part in its colour, halos in black.

    Parameters
    ----------
    graph : Graph
        The graph that is cut.
    parts : mapping from str to LongTensor of shape (n,)
        Partitions by title.
    path : str or Path, optional
        Where it is written: PDF and PNG, or the one kind that the suffix says; by default nowhere.
    coordinates : Tensor, shape (n, 2), optional
        Latitude and longitude.
    title : str
        Above the figure; empty: none.
    """
    place = _map(coordinates) if coordinates is not None else _layout(graph) if graph.nodes <= _SMALL else None
    columns = min(len(parts), 3)
    rows = -(-len(parts) // columns)
    shape = _shape(place) if place is not None else 1.0
    wide = SINGLE if columns == 1 else DOUBLE
    panel = wide / columns - 0.3
    with drawing(path, (wide, (0.4 + panel * shape) * rows), title) as figure:
        axes = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for ax in axes.flat[len(parts) :]:
            ax.set_axis_off()
        for ax, part in zip(axes.flat, parts.values(), strict=False):
            label = part.numpy()
            ax.grid(visible=False)
            if place is None:
                _blocks(ax, graph, label)
            else:
                _nodes(ax, graph, label, place, panel, on_map=coordinates is not None)
        add_titles(figure, axes, list(parts))
    return figure


def colours_of_parts(graph: Graph, label: Ints) -> Ints:
    """Return a colour 0, 1, ... for every part, others for parts that share an edge as far as twelve colours allow.

    Greedy, the part with the most neighbours first.

    Parameters
    ----------
    graph : Graph
        The graph that is cut.
    label : ndarray, shape (n,), int64
        The part of every node.
    """
    parts = int(label.max()) + 1
    row, col = graph.edge_index.numpy()
    ones = np.ones(len(row), dtype=np.int64)
    touching = sp.coo_matrix((ones, (label[row], label[col])), shape=(parts, parts)).tocsr()
    colour = np.full(parts, -1)
    for p in np.argsort(-np.diff(touching.indptr), kind="stable"):
        taken = colour[touching.indices[touching.indptr[p] : touching.indptr[p + 1]]]
        used = np.bincount(taken[taken >= 0], minlength=len(_COLOURS))
        everywhere = np.bincount(colour[colour >= 0], minlength=len(_COLOURS))
        colour[p] = np.lexsort((everywhere, used))[0]
    return colour


def _nodes(ax: Axes, graph: Graph, label: Ints, place: Floats, panel: float, *, on_map: bool) -> None:
    """Draw edges and nodes; those that other parts read have a dark rim, cut edges are dark; `panel` is in inches."""
    from matplotlib.collections import LineCollection

    row, col = graph.edge_index.numpy()
    cut = label[row] != label[col]
    read = np.zeros(graph.nodes, dtype=bool)
    read[col[cut]] = True
    if graph.edges <= 2 * _EDGES:
        upper = row < col
        if on_map:  # an edge across the border of the map would be a line through all of it
            upper &= np.abs(place[row, 0] - place[col, 0]) < 180
        for chosen, colour, width in ((upper & ~cut, "#cccccc", 0.3), (upper & cut, "#555555", 0.4)):
            ends = np.stack([place[row[chosen]], place[col[chosen]]], axis=1)
            ax.add_collection(LineCollection(list(ends), colors=colour, linewidths=width, zorder=1))
    size = float(np.clip(900 * panel**2 / graph.nodes, 0.5, 2.5 * panel**2))
    fill = np.array(_COLOURS)[colours_of_parts(graph, label)[label]]
    order = np.argsort(read, kind="stable")  # what is read lies on top
    rims = np.where(read, "#000000", fill)[order]
    ax.scatter(
        place[order, 0],
        place[order, 1],
        s=size,
        c=fill[order].tolist(),
        edgecolors=rims.tolist(),
        linewidths=0.25 * min(size, 9.0) ** 0.5,
        zorder=2,
    )
    ax.set_aspect("equal" if not on_map else stretch(place[:, 1]))
    if on_map:
        _outer_labels(ax, "longitude (degrees)", "latitude (degrees)")
    else:
        ax.set_axis_off()


def _outer_labels(ax: Axes, x: str, y: str) -> None:
    """Label the axes of a panel that stands at the left or the lower border of the figure."""
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    ax.label_outer()


def _map(coordinates: Tensor) -> Floats:
    """Return longitude and latitude, the longitudes turned such that the widest gap between them is at the border."""
    latitude, longitude = coordinates.double().numpy().T
    return np.stack([around(longitude), latitude], axis=1)


def _shape(place: Floats) -> float:
    """Return height over width of the panel that suits the points."""
    width, height = np.ptp(place, axis=0)
    return float(
        np.clip(height * (stretch(place[:, 1]) if np.abs(place).max() > 2 else 1) / max(width, 1e-12), 0.5, 1.3)
    )


def _layout(graph: Graph) -> Floats:
    """Return places in the unit square by networkx's forces from a spectral start, the same in every run."""
    import networkx

    drawn = networkx.from_scipy_sparse_array(graph.scipy(weighted=False))
    start = networkx.spectral_layout(drawn) if graph.nodes > 2 else None
    found = networkx.spring_layout(drawn, pos=start, seed=0)
    place = np.array([found[node] for node in range(graph.nodes)])
    low, high = place.min(axis=0), place.max(axis=0)
    return np.asarray((place - low) / np.maximum(high - low, 1e-12), dtype=np.float64)


def _blocks(ax: Axes, graph: Graph, label: Ints) -> None:
    """Show the adjacency matrix ordered by parts, as a picture of counts."""
    from matplotlib.colors import to_rgb

    order = np.argsort(label, kind="stable")
    place = np.empty(graph.nodes, dtype=np.int64)
    place[order] = np.arange(graph.nodes)
    row, col = graph.edge_index.numpy()
    pixel = place * _PIXELS // graph.nodes
    inside = label[row] == label[col]
    own, halo = (
        np.bincount(pixel[row[of]] * _PIXELS + pixel[col[of]], minlength=_PIXELS**2).reshape(_PIXELS, _PIXELS)
        for of in (inside, ~inside)
    )
    palette = np.array([to_rgb(colour) for colour in _COLOURS])
    part_of_pixel = label[order[np.arange(_PIXELS) * graph.nodes // _PIXELS]]
    colour = palette[colours_of_parts(graph, label)[part_of_pixel]]
    picture = np.ones((_PIXELS, _PIXELS, 3))
    picture += _shade(own)[:, :, None] * (colour[:, None] - picture)
    picture += _shade(halo)[:, :, None] * (0.0 - picture)
    extent = (0.0, float(graph.nodes), float(graph.nodes), 0.0)
    ax.imshow(picture, extent=extent, interpolation="nearest")
    for bound in np.cumsum(np.bincount(label))[:-1]:
        ax.axhline(bound, color="#999999", linewidth=0.3)
        ax.axvline(bound, color="#999999", linewidth=0.3)
    _outer_labels(ax, "nodes that are read, by part", "nodes that read, by part")


def _shade(count: Any) -> Floats:
    """Return how dark pixels are, 0..1; a single entry is visible."""
    return np.where(count > 0, 0.45 + 0.55 * np.log1p(count) / max(np.log1p(count.max()), 1e-12), 0.0)
