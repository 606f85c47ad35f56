"""Inputs of a node that do not depend on time: where it lies, how high, static fields, how its variables vary."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import Series, on_sphere

Floats = NDArray[np.float64]


def static_inputs(series: Series, variability: Floats | None) -> tuple[Floats, tuple[str, ...]]:
    """Return the inputs, each with mean 0 and deviation 1 over the nodes, shape (n, k), and their names.

    Parameters
    ----------
    series : Series
        Its coordinates, altitude where there is one, and static fields.
    variability : ndarray, shape (n, V), optional
        Standard deviation of every variable at the nodes.
    """
    columns = [*on_sphere(series.latitude, series.longitude).T]
    names = ["x", "y", "z"]
    if series.altitude is not None:
        columns, names = [*columns, series.altitude], [*names, "altitude"]
    columns, names = [*columns, *series.supplement.static.values()], [*names, *series.supplement.static]
    if variability is not None:
        columns += [*variability.T]
        names += [f"deviation of {name}" for name in series.variables]
    table = np.stack(columns, -1)
    spread = table.std(0)
    scale = np.where(spread > 1e-9 * (1 + np.abs(table).max(0)), spread, np.inf)
    return (table - table.mean(0)) / scale, tuple(names)
