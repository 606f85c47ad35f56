"""Maps of fields on nodes with coordinates, and errors of forecasts against lead time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from mldd.figures.style import COLOURS, DOUBLE, SINGLE, add_legend, add_titles, drawing, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Floats = NDArray[np.float64]
_FIELD, _ERROR = "viridis", "RdBu_r"  # one for amounts, one for differences, whose middle is white
GEOGRAPHIC = "latitude", "longitude"
_COLUMNS = 3  # of variables in a figure of errors
_ALL_AROUND = 30.0  # degrees without a node, from which nodes are not all around the globe


def around(longitude: Floats) -> Floats:
    """Return longitudes without a jump, cut at the widest gap; at the date line if there is none.

    Parameters
    ----------
    longitude : ndarray, shape (n,)
        Degrees.

    Examples
    --------
    >>> around(np.array([179.0, -179.0, 177.0]))
    array([179., 181., 177.])
    """
    turned = np.sort(np.mod(longitude, 360.0))
    gaps = np.diff(turned, append=turned[0] + 360.0)
    if gaps.max() < _ALL_AROUND:
        return np.asarray(np.mod(longitude + 180.0, 360.0) - 180.0)
    start = turned[(int(np.argmax(gaps)) + 1) % len(turned)]  # the first point east of the widest gap
    out = start + np.mod(longitude - start, 360.0)
    return np.asarray(out - 360.0 * np.round((out.min() + out.max()) / 720.0))


def stretch(latitude: Floats) -> float:
    """Return degrees of longitude per degree of latitude that are equally long in the middle of the map.

    Parameters
    ----------
    latitude : ndarray, shape (n,)
        Degrees.
    """
    middle = np.radians(0.5 * (latitude.min() + latitude.max()))
    return float(1.0 / max(np.cos(middle), 0.2))


def fields(
    places: Floats,
    panels: Mapping[str, Floats],
    path: str | Path | None = None,
    *,
    errors: Sequence[str] = (),
    grid: tuple[int, int] | None = None,
    label: str = "",
    title: str = "",
    axes: tuple[str, str] = GEOGRAPHIC,
) -> Figure:
    """Draw fields side by side and return the figure.

    Those in `errors` are drawn around zero on a scale of their own, the others on a common one.

    Parameters
    ----------
    places : ndarray, shape (n, 2)
        Latitude and longitude in degrees, longitudes without a jump; or two lengths, where `axes` names others.
    panels : mapping from str to ndarray, shape (n,)
        Values by title; NaN stays empty.
    path : str or Path, optional
        Where it is written: PDF and PNG, or the one kind that the suffix says; by default nowhere.
    errors : sequence of str
        Panels of differences.
    grid : tuple of int, optional
        Rows and columns, if the nodes are a grid, row by row: cells are drawn instead of dots.
    label : str
        What the values are, with the unit.
    title : str
        Above the figure; empty: none.
    axes : tuple of str
        What the places are, with the unit.
    """
    amounts = np.concatenate([v[np.isfinite(v)] for name, v in panels.items() if name not in errors] or [np.zeros(1)])
    faults = np.concatenate([np.abs(v[np.isfinite(v)]) for name, v in panels.items() if name in errors] or [np.ones(1)])
    low, high = (float(amounts.min()), float(amounts.max())) if len(amounts) else (0.0, 1.0)
    worst = max(float(faults.max()) if len(faults) else 1.0, 1e-12)
    wide = SINGLE if len(panels) == 1 else DOUBLE
    panel = wide / len(panels)
    with drawing(path, (wide, 0.5 + 0.72 * panel * _aspect(places)), title) as figure:
        drawn_on = figure.subplots(1, len(panels), squeeze=False, sharex=True, sharey=True)[0]
        shown: dict[bool, list[tuple[Any, Axes]]] = {False: [], True: []}
        for ax, (name, values) in zip(drawn_on, panels.items(), strict=True):
            wrong = name in errors
            span = {"cmap": _ERROR, "vmin": -worst, "vmax": worst} if wrong else {"vmin": low, "vmax": high}
            size = float(np.clip(900 * panel**2 / len(places), 0.5, 7.0 * panel**2))
            shown[wrong].append((_painted(ax, places, values, grid, size, **{"cmap": _FIELD, **span}), ax))
            ax.set_aspect(stretch(places[:, 0]) if axes == GEOGRAPHIC else 1.0)
            ax.grid(False)
            ax.set_xlabel(axes[1])
        drawn_on[0].set_ylabel(axes[0])
        for wrong, drawn in shown.items():
            if drawn:
                text = wrapped(
                    f"error of {label}" if wrong and label else label or "error", figure.get_figheight() - 0.4
                )
                figure.colorbar(drawn[0][0], ax=[ax for _, ax in drawn], label=text, shrink=0.85, aspect=30)
        add_titles(figure, drawn_on, list(panels), DOUBLE / 9)
    return figure


def skill(
    leads: Sequence[float],
    errors: Mapping[str, Mapping[str, Floats]],
    path: str | Path | None = None,
    *,
    unit: str,
    title: str = "",
) -> Figure:
    """Draw errors of every variable against lead time and the skill against the first forecast, and return the figure.

    For a single lead time the errors are bars.

    Parameters
    ----------
    leads : sequence of float
        Lead times.
    errors : mapping from str to mapping from str to ndarray, shape (L,)
        Root mean square errors by variable (with its unit) and forecast; the first forecast is the reference.
    path : str or Path, optional
        Where it is written: PDF and PNG, or the one kind that the suffix says; by default nowhere.
    unit : str
        Of lead times.
    title : str
        Above the figure; empty: none.
    """
    columns = min(len(errors), _COLUMNS)
    rows = -(-len(errors) // columns)
    tall = 2.6 if len(leads) > 1 else 0.6 + 0.25 * len(next(iter(errors.values())))
    with drawing(path, (SINGLE if columns == 1 else DOUBLE, tall * rows), title) as figure:
        if len(leads) == 1:
            axes = figure.subplots(rows, columns, squeeze=False)
            for ax, (label, curves) in zip(axes.flat, errors.items(), strict=False):
                _bars(ax, curves, f"RMSE of {label}, {leads[0]:g} {unit} ahead", columns)
        else:
            axes = figure.subplots(2 * rows, columns, squeeze=False, sharex=True)
            for k, (label, curves) in enumerate(errors.items()):
                pair = axes[2 * (k // columns) : 2 * (k // columns) + 2, k % columns]
                _against_lead(pair, leads, curves, label, f"lead time ({unit})")
            add_legend(figure, axes[0, 0].get_legend_handles_labels()[0])
        for ax in axes.flat:
            ax.set_visible(ax.has_data())
    return figure


def _against_lead(
    pair: NDArray[Any], leads: Sequence[float], curves: Mapping[str, Floats], label: str, below: str
) -> None:
    """Draw errors of one variable, and the skill below them."""
    upper, lower = pair
    first, reference = next(iter(curves.items()))
    for k, (name, errors) in enumerate(curves.items()):
        style: dict[str, Any] = {"color": COLOURS[k % len(COLOURS)], "marker": "o", "markersize": 3, "label": name}
        upper.plot(leads, errors, **style)
        with np.errstate(divide="ignore", invalid="ignore"):
            lower.plot(leads, 1.0 - (errors / reference) ** 2, **style)
    upper.set_ylabel(wrapped(f"RMSE of {label}", 1.0))
    upper.set_ylim(bottom=0)
    lower.set_ylabel(wrapped(f"skill against {first}", 1.0))
    lower.set_xlabel(below)
    lower.tick_params(labelbottom=True)
    if len(leads) < 10:
        lower.set_xticks(list(leads))


def _bars(ax: Axes, curves: Mapping[str, Floats], label: str, columns: int) -> None:
    """Draw the errors of one lead time."""
    errors = [float(of[0]) for of in curves.values()]
    colours = [COLOURS[k % len(COLOURS)] for k in range(len(errors))]
    drawn = ax.barh(range(len(errors)), errors, color=colours, height=0.6)
    ax.set_yticks(range(len(errors)), [wrapped(name, 1.1 if columns == 1 else 0.8) for name in curves])
    ax.bar_label(drawn, fmt=" %.3g")
    ax.set_xlim(0, 1.3 * max((e for e in errors if e > 0), default=1.0))
    ax.invert_yaxis()
    ax.set_xlabel(wrapped(label, 2.2 if columns == 1 else 1.2))


def _aspect(places: Floats) -> float:
    """Return height over width of the map: a degree of longitude is as long as in the middle."""
    (south, west), (north, east) = places.min(0), places.max(0)
    width = max((east - west) * np.cos(np.radians(0.5 * (south + north))), 1e-3)
    return float(np.clip((north - south) / width, 0.4, 2.0))


def _painted(
    ax: Axes, places: Floats, values: Floats, grid: tuple[int, int] | None, size: float, **options: Any
) -> Any:
    """Paint the cells of a grid, or dots of a size in square points."""
    if grid is not None:
        latitude, longitude = places[:: grid[1], 0], places[: grid[1], 1]
        east = np.argsort(longitude)  # a globe may begin anywhere
        if min(grid) > 1:
            shown = values.reshape(grid)[:, east]
            return ax.pcolormesh(longitude[east], latitude, shown, shading="nearest", **options)
    ax.set_facecolor("#f2f2f2")
    known = np.isfinite(values)
    return ax.scatter(
        places[known, 1], places[known, 0], s=size, c=values[known], edgecolors="#555555", linewidths=0.2, **options
    )
