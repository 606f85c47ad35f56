"""``mldd anemoi thin``: a data set with fewer cells, for a training on a coarser mesh."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from mldd.anemoi.cells import coordinates, copy_cells
from mldd.problems.data import icosphere, on_sphere

Ints = NDArray[np.int64]


def cells_near_mesh(latitude: NDArray[np.float64], longitude: NDArray[np.float64], resolution: int) -> Ints:
    """Return the cells nearest to the nodes of an icosahedral mesh, ascending, shape (c,).

    A node counts that has a cell within half of the distance to its neighbours: a region has those of its nodes. The
    nodes of a coarser mesh are nodes of the finer one, so cells of a coarser level are cells of a finer one, but for
    those at the border of a region.

    Parameters
    ----------
    latitude, longitude : ndarray, shape (C,)
        Of all cells, degrees.
    resolution : int
        How often the triangles of the icosahedron are cut into four.

    Raises
    ------
    ValueError
        No mesh has this resolution.
    """
    mesh, lat, lon = icosphere(resolution, multiscale=False)
    nodes = on_sphere(lat.numpy(), lon.numpy())
    ends = np.repeat(np.arange(mesh.nodes), np.diff(mesh.indptr.numpy()))
    spacing = np.linalg.norm(nodes[ends] - nodes[mesh.indices.numpy()], axis=1).max()
    distance, nearest = cKDTree(on_sphere(latitude, longitude)).query(nodes, distance_upper_bound=spacing / 2)
    found: Ints = np.unique(nearest[np.isfinite(distance)]).astype(np.int64)
    return found


def thin(options: argparse.Namespace) -> Iterator[str]:
    """Yield what came of thinning a data set in a line; it is written on the way.

    Parameters
    ----------
    options : argparse.Namespace
        ``data resolution out`` of the command line.

    Raises
    ------
    ValueError
        Nothing would be left out, or fewer than two cells would stay.
    OSError
        There is something where it is to be written.
    """
    target: Path = options.out
    if target.exists():
        raise OSError(f"{target} must be a new folder, got one that is there; give another --out")
    place = np.degrees(coordinates(options.data))
    cells = cells_near_mesh(place[:, 0], place[:, 1], options.resolution)
    if not 2 <= len(cells) < len(place):
        raise ValueError(
            f"`resolution` must leave fewer than all {len(place)} cells, and two at least, got {len(cells)} for "
            f"{options.resolution}; give a {'lower' if len(cells) > 1 else 'higher'} one"
        )
    copy_cells(options.data, target, cells)
    yield f"{len(cells)} of {len(place)} cells, nearest to an icosahedral mesh of resolution {options.resolution}"
    yield f"written: {target}"
