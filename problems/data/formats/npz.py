"""NumPy archives: graphs in two published layouts, and time series; only the arrays that are needed are loaded."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from mldd.loop import UntrustedError, check_archive
from mldd.problems.data import DataError, File, GraphArrays, SeriesArrays, one_line
from mldd.problems.data.formats.checks import (
    checked_edges,
    checked_features,
    checked_labels,
    checked_masks,
    csr,
    of_edges,
)
from mldd.problems.data.formats.conventions import (
    ALTITUDES,
    LATITUDES,
    LONGITUDES,
    TIMES,
    dates,
    degrees,
    measured,
    no_variable,
)

Array = NDArray[Any]
_CSR = ("data", "indices", "indptr", "shape")
_MASKS = tuple(f"{part}_{mask}" for part in ("train", "val", "test") for mask in ("mask", "masks"))
_OF_EDGES = ("edge_weight", "edge_attr")
_TENSORS = ("x", "edge_index")  # as torch_geometric calls them, with y
_PLAIN = ("edges", "node_features")  # the layout of the heterophilous sets, with node_labels


def holds(path: Path) -> Literal["graph", "series"]:
    """Return what an archive holds: with an array of times a series, else a graph.

    Parameters
    ----------
    path : Path
        Of the file.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
            return "graph" if names.isdisjoint(TIMES) else "series"
    except (OSError, zipfile.BadZipFile):
        return "graph"


def read(file: File) -> GraphArrays | SeriesArrays:
    """Return the graph or the time series in a `.npz`; nothing in it is ever unpickled.

    A graph has `adj_data/indices/indptr/shape`, `attr_data/indices/indptr/shape` or `attr_matrix`, and `labels` (the
    gnn-benchmark layout), or `edges` (E, 2), `node_features`, `node_labels` and optional `edge_weight`, `edge_attr`.
    Both may have `train/val/test_masks` (splits, n) or `_mask`. A series has `time` (dates), `latitude`, `longitude`
    and variables over them.

    Parameters
    ----------
    file : File
        The archive.

    Raises
    ------
    DataError
        For a file that is no such thing.
    """
    return _series(file) if holds(file.path) == "series" else read_graph(file.content(), file.name)


class Archive(Mapping[str, Array]):
    """Arrays of a `.npz` by name, each loaded when it is asked for, without pickles, and verified to its last byte.

    Parameters
    ----------
    source : bytes or Path
        The archive, or where it is.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        It is no archive of arrays, or does not fit into memory.
    """

    def __init__(self, source: bytes | Path, where: str) -> None:
        self._where, self._size = where, len(source) if isinstance(source, bytes) else source.stat().st_size
        try:
            check_archive(source, where)
            self._archive = zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source)
        except Exception as error:  # zip, zlib, header parser: each has its own exceptions
            raise self._refusal(error) from None
        self._names = dict.fromkeys(name.removesuffix(".npy") for name in self._archive.namelist())

    def __getitem__(self, name: str) -> Array:
        if name not in self._names:
            raise KeyError(name)
        try:
            with self._archive.open(f"{name}.npy") as stream:
                array = np.lib.format.read_array(stream, allow_pickle=False)
                behind = stream.read()  # at the end the checksum is compared
        except Exception as error:
            raise self._refusal(error, name) from None
        if behind:
            raise self._refusal(ValueError(f"{name} has {len(behind)} bytes more than its header says"))
        return np.asarray(array)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def _refusal(self, error: Exception, name: str = "") -> DataError:
        if isinstance(error, UntrustedError):
            return DataError(str(error))
        reason = f"{name} holds objects" if "allow_pickle" in str(error) else one_line(error)
        return DataError(
            f"{self._where}: expected a .npz of plain arrays, got {self._size} bytes ({reason}); write it anew"
        )


# ---------------------------------------------------------------------------------------------------- graphs


def read_graph(content: bytes, where: str) -> GraphArrays:
    """Return the graph in an archive of one of the three layouts.

    Parameters
    ----------
    content : bytes
        The file.
    where : str
        Names the source in errors.

    Raises
    ------
    DataError
        For a file that is no such thing.
    """
    arrays = Archive(content, where)
    plain = set(_PLAIN) <= set(arrays) or set(_TENSORS) <= set(arrays)
    if not plain and "adj_indptr" not in arrays:
        wanted = (
            "edges (E, 2), node_features, node_labels (or x, edge_index (2, E), y; or adj_data/indices/indptr/shape, "
            "attr_..., labels)"
        )
        raise DataError(
            f"{where}: expected the arrays {wanted}, got {', '.join(sorted(arrays)[:12]) or 'none'}; rename them"
        )
    try:
        edges, features, labels, used, of_edge = _plain(arrays, where) if plain else _compressed(arrays, where)
    except KeyError as error:
        raise DataError(f"{where}: expected an array {error}, got none; write it into the file") from None
    nodes = int(features.shape[0])
    masks = checked_masks({name: arrays[name] for name in _MASKS if name in arrays}, nodes, where)
    ends = checked_edges(edges, nodes, where)
    unused = tuple(name for name in arrays if name not in {*used, *_MASKS})
    weights, attributes = of_edges(of_edge, ends.shape[1], where)
    classes = checked_labels(labels, nodes, where)
    return GraphArrays(ends, features, classes, masks, unused, edge_weights=weights, edge_attributes=attributes)


# Edges, features, labels if there are any, names used, arrays of edges.
Parts = tuple[Array, Any, Array | None, set[str], dict[str, Array]]


def _plain(arrays: Mapping[str, Array], where: str) -> Parts:
    """Return what the heterophilous sets or torch_geometric call them, weights and attributes of edges beside it."""
    of_edge = {name: arrays[name] for name in _OF_EDGES if name in arrays}
    if not set(_PLAIN) <= set(arrays):
        features = checked_features(arrays["x"], where)
        return arrays["edge_index"], features, arrays.get("y"), {*_TENSORS, "y", *of_edge}, of_edge
    features = checked_features(arrays["node_features"], where)
    return arrays["edges"].T, features, arrays.get("node_labels"), {*_PLAIN, "node_labels", *of_edge}, of_edge


def _compressed(arrays: Mapping[str, Array], where: str) -> Parts:
    """Return what the gnn-benchmark layout says; entries of the adjacency that are not all one are weights."""
    adjacency = _matrix(arrays, "adj", where)
    if adjacency.shape[0] != adjacency.shape[1]:
        raise DataError(f"{where}: expected a square adjacency, got {adjacency.shape}; one row per node")
    dense = "attr_matrix" in arrays
    features = checked_features(arrays["attr_matrix"], where) if dense else _matrix(arrays, "attr", where)
    if features.shape[0] != adjacency.shape[0]:
        raise DataError(
            f"{where}: expected features of {adjacency.shape[0]} nodes, got {features.shape[0]} rows; one row per node"
        )
    used = {"labels", *(f"adj_{piece}" for piece in _CSR)}
    used |= {"attr_matrix"} if dense else {f"attr_{piece}" for piece in _CSR}
    weights = adjacency.data[adjacency.data != 0]
    of_edge = {"edge_weight": weights} if (weights != 1).any() else {}
    return np.stack(adjacency.nonzero()), features, arrays.get("labels"), used, of_edge


def _matrix(arrays: Mapping[str, Array], prefix: str, where: str) -> sp.csr_matrix:
    data, indices, indptr, shape = (arrays[f"{prefix}_{piece}"] for piece in _CSR)
    return csr(data, indices, indptr, shape, f"{where} ({prefix}_*)")


# ---------------------------------------------------------------------------------------------------- series


def _series(file: File) -> SeriesArrays:
    """Return the series in an archive; of the variables only those that are asked for are loaded."""
    arrays = Archive(file.path, file.name)
    time, latitude, longitude = (_named(arrays, names, file.name) for names in (TIMES, LATITUDES, LONGITUDES))
    altitude = next((name for name in ALTITUDES if name in arrays), "")
    coordinates = {time, latitude, longitude, altitude}
    moments, calendar = dates(arrays[time], {}, file.name)
    rest = [name for name in arrays if name not in coordinates]
    if file.variables and not set(file.variables) <= set(arrays):
        missing = next(name for name in file.variables if name not in arrays)
        no_variable(file.name, missing, [name for name in rest if _is_variable(arrays[name], moments)])
    chosen = {name: arrays[name] for name in file.variables or rest}
    found = {name: measured(array, {}, file.name) for name, array in chosen.items() if _is_variable(array, moments)}
    return SeriesArrays(
        moments,
        degrees(arrays[latitude], {}, "latitude", file.name),
        degrees(arrays[longitude], {}, "longitude", file.name),
        found,
        altitude=arrays[altitude] if altitude else None,
        calendar=calendar,
        unused=tuple(name for name in rest if name not in found),
    )


def _is_variable(array: Array, time: Array) -> bool:
    return array.ndim >= 2 and len(array) == time.size and array.dtype.kind in "fiu"


def _named(arrays: Mapping[str, Array], names: tuple[str, ...], where: str) -> str:
    for name in names:
        if name in arrays:
            return name
    raise DataError(f"{where}: expected an array {' or '.join(names)}, got {', '.join(arrays) or 'none'}; add it")
