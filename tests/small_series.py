"""Small time series for tests: waves that move over a grid, with gaps if asked for."""

from __future__ import annotations

import numpy as np
import torch

from mldd.graph import Graph
from mldd.problems.data import Series, Supplement


def waves(
    times=200,
    rows=5,
    columns=6,
    *,
    variables=1,
    gaps=0.0,
    seconds=3600,
    seed=0,
    grid=True,
    roads=False,
    noise=0.3,
    start="2019-03-01",
):
    """Return a daily cycle plus a wave that moves east plus noise on a small latitude-longitude grid."""
    random = np.random.default_rng(seed)
    latitude = np.repeat(np.linspace(52.0, 48.0, rows), columns)
    longitude = np.tile(np.linspace(-2.0, 3.0, columns), rows)
    hours = np.arange(times)[:, None, None] * seconds / 3600
    k = np.arange(variables)
    values = 10.0 + 3 * np.sin(2 * np.pi * hours / 24 + k) + 2 * np.sin(longitude[:, None] - 0.3 * hours + 2 * k)
    values = values + noise * random.standard_normal((times, rows * columns, variables))
    if gaps:
        values[random.random(values.shape) < gaps] = np.nan
    time = np.datetime64(start, "s") + np.arange(times) * np.timedelta64(seconds, "s")
    n = rows * columns
    ring = torch.stack([torch.arange(n), (torch.arange(n) + 1) % n])
    return Series(
        "waves",
        values,
        time,
        latitude,
        longitude,
        tuple("abcdef"[:variables]),
        altitude=np.arange(float(n)),
        grid=(rows, columns) if grid else None,
        supplement=Supplement(graph=Graph.from_edges(ring, n, torch.linspace(1.0, 2.0, n)) if roads else None),
    )
