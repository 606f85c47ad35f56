"""The hidden mesh of a forecasting network as a graph file of Anemoi has it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data.contents import DataError, File
from mldd.problems.data.formats import TypedGraph, read_typed_graph
from mldd.problems.data.mesh_levels import HiddenMesh, Link, on_sphere

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
_APART = 1e-5  # on the unit sphere: 64 m


def graph_digest(path: str | os.PathLike[str]) -> str:
    """Return the SHA-256 of a graph file.

    Parameters
    ----------
    path : str or path
        Of the file.
    """
    return hashlib.sha256(File(Path(path)).content()).hexdigest()


def mesh_of_graph(path: str | os.PathLike[str], latitude: Floats, longitude: Floats) -> HiddenMesh:
    """Return hidden mesh, encoder, processor and decoder edges of a graph file; features of edges are made here.

    Parameters
    ----------
    path : str or path
        A HeteroData with one type of data nodes and one of hidden nodes, as Anemoi writes it.
    latitude, longitude : ndarray, shape (n,)
        Of the nodes of the series, degrees; they must be the data nodes, in their order.

    Raises
    ------
    DataError
        Other types of nodes, or data nodes elsewhere.
    """
    where = os.fspath(path)
    graph = read_typed_graph(File(Path(path)))
    kinds = _kinds(graph, where)
    data, hidden = kinds["encoder"][0], kinds["processor"][0]
    grid = on_sphere(np.asarray(latitude, dtype=np.float64), np.asarray(longitude, dtype=np.float64))
    place = _points(graph, data)
    if len(place) != len(grid):
        raise DataError(f"{where}: expected {len(grid)} nodes {data}, as the series has, got {len(place)}")
    apart = np.linalg.norm(place - grid, axis=1)
    if apart.max() > _APART:
        raise DataError(
            f"{where}: expected nodes {data} where the series has its own, got {int((apart > _APART).sum())} "
            f"elsewhere, up to {6371 * apart.max():.3g} km; give the series in the order of the graph"
        )
    points = _points(graph, hidden)
    inner = _edges(graph, kinds["processor"])
    return HiddenMesh(
        grid=grid,
        points=points,
        sizes=(len(points),),
        encode=Link.of(_edges(graph, kinds["encoder"]), points, grid),
        process=Link.of(inner[:, inner[0] != inner[1]], points, points),
        decode=Link.of(_edges(graph, kinds["decoder"]), grid, points),
    )


def _kinds(graph: TypedGraph, where: str) -> dict[str, tuple[str, str, str]]:
    """Return the types of edges by what they are for, each there once."""
    kinds = {graph.role(kind): kind for kind in graph.edges}
    if len(graph.nodes) != 2 or len(graph.edges) != 3 or set(kinds) != {"encoder", "processor", "decoder"}:
        raise DataError(
            f"{where}: expected one type of data nodes and one of hidden nodes with encoder, processor and decoder "
            f"edges, got {', '.join(' '.join(kind) for kind in graph.edges)}"
        )
    return kinds


def _points(graph: TypedGraph, name: str) -> Floats:
    """Return nodes on the unit sphere: the file has latitude and longitude in radians."""
    x = np.degrees(graph.nodes[name]["x"].double().numpy())
    return on_sphere(np.clip(x[:, 0], -90.0, 90.0), x[:, 1])  # a pole in float32 may lie beyond


def _edges(graph: TypedGraph, kind: tuple[str, str, str]) -> Ints:
    """Return receiver and sender of every edge, each pair once, shape (2, E)."""
    return np.unique(graph.index(kind).numpy()[::-1], axis=1)
