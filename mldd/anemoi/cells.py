"""Copies of Anemoi's data sets with their cells in another order, or with some of them."""

from __future__ import annotations

import json
import shutil
import uuid
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.models import replacing_folder
from mldd.problems.data import DataError, on_sphere

Ints = NDArray[np.int64]
_CELL, _TIME = "cell", "time"


def coordinates(store: Path) -> NDArray[np.float64]:
    """Return latitude and longitude of all cells in radians, shape (C, 2).

    Parameters
    ----------
    store : Path
        Anemoi's data set.

    Raises
    ------
    DataError
        It is none.
    """
    import zarr

    try:
        group: Any = zarr.open_group(str(store), mode="r")
        return np.radians(np.stack([group["latitudes"][:], group["longitudes"][:]], axis=1).astype(np.float64))
    except (KeyError, OSError, ValueError) as error:
        what = " ".join(str(error).split())[:120] or type(error).__name__
        raise DataError(
            f"{store}: expected a data set of Anemoi with latitudes and longitudes, got none ({what}); give the .zarr "
            "of anemoi-datasets"
        ) from None


def check_cells(nodes: NDArray[np.float64], store: Path, name: str) -> None:
    """Refuse a data set whose cells are not the nodes of a graph, one by one.

    Parameters
    ----------
    nodes : ndarray, shape (n, 2)
        Latitude and longitude of the nodes in radians.
    store : Path
        Anemoi's data set.
    name : str
        Type of the nodes.

    Raises
    ------
    DataError
        Other numbers or places.
    """
    cells = coordinates(store)
    if len(cells) != len(nodes):
        raise DataError(f"{store}: expected {len(nodes)} cells, as the graph has nodes {name}, got {len(cells)}")
    here, there = (on_sphere(*np.degrees(place.T)) for place in (cells, nodes))
    apart = np.linalg.norm(here - there, axis=1)
    if apart.max() > 1e-5:
        raise DataError(
            f"{store}: expected cells where the graph has nodes {name}, got {int((apart > 1e-5).sum())} elsewhere, "
            f"up to {6371 * apart.max():.3g} km; give the data set that the graph was built for, in the same order"
        )


def copy_cells(store: Path, target: Path, cells: Ints) -> None:
    """Write a data set with some or all of its cells, in any order; statistics, compression, metadata stay as they are.

    ``field_shape`` becomes the number of cells, for rows and columns are no more, and ``uuid`` a new one.

    Parameters
    ----------
    store : Path
        Anemoi's data set, of Zarr format 2.
    target : Path
        The folder of the copy, which is not there yet.
    cells : ndarray, shape (c,), int64
        The old cell at each new place.

    Raises
    ------
    DataError
        It is of another format, or says no dimensions of its arrays.
    """
    import zarr

    if not (store / ".zgroup").is_file():
        raise DataError(f"{store}: expected Zarr format 2 with .zgroup, got another store; write it by anemoi-datasets")
    axes = {folder.parent.name: _cell_axis(folder) for folder in sorted(store.glob("*/.zarray"))}
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(target) as new:
        new.mkdir()
        _copy_files(store, new, axes, len(cells))
        _change_attributes(new / ".zattrs", cells)
        source, copy = zarr.open_group(str(store), mode="r"), zarr.open_group(str(new), mode="r+")
        for name, axis in axes.items():
            if axis is not None:
                _copy(source[name], copy[name], axis, cells)


def _copy_files(store: Path, new: Path, axes: dict[str, int | None], cells: int) -> None:
    """Copy all but the values of arrays over cells, of which the metadata get another shape."""
    for path in sorted(store.iterdir()):
        axis = axes.get(path.name)
        if path.is_dir() and axis is not None:
            (new / path.name).mkdir()
            shutil.copy(path / ".zattrs", new / path.name)
            _write_shape(path / ".zarray", new / path.name / ".zarray", axis, cells)
        elif path.is_dir():
            shutil.copytree(path, new / path.name)
        elif path.name != ".zmetadata":  # a copy of what is changed here
            shutil.copy(path, new)


def _write_shape(source: Path, target: Path, axis: int, cells: int) -> None:
    """Write the metadata of an array with another number of cells; chunks that held all of them do so again."""
    metadata = json.loads(source.read_text(encoding="utf-8"))
    whole = metadata["chunks"][axis] >= metadata["shape"][axis]
    metadata["chunks"][axis] = cells if whole else min(cells, metadata["chunks"][axis])
    metadata["shape"][axis] = cells
    target.write_text(json.dumps(metadata, indent=4), encoding="utf-8")


def _cell_axis(metadata: Path) -> int | None:
    """Return which dimension of an array is that of the cells, None where none is."""
    attributes = metadata.with_name(".zattrs")
    dimensions = (
        json.loads(attributes.read_text(encoding="utf-8")).get("_ARRAY_DIMENSIONS") if attributes.exists() else None
    )
    if not dimensions:
        raise DataError(f"{metadata.parent}: expected names of dimensions (_ARRAY_DIMENSIONS), got none")
    return dimensions.index(_CELL) if _CELL in dimensions else None


def _copy(source: Any, copy: Any, axis: int, cells: Ints) -> None:
    """Copy an array chunk by chunk of its first dimension, so that one chunk is in memory."""
    if axis == 0:
        copy[:] = source[:][cells]
        return
    rows = source.chunks[0]
    for start in range(0, source.shape[0], rows):
        copy[start : start + rows] = np.take(source[start : start + rows], cells, axis=axis)


def _change_attributes(path: Path, cells: Ints) -> None:
    attributes = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    attributes["field_shape"] = [len(cells)]
    if "uuid" in attributes:
        attributes["uuid"] = str(uuid.uuid5(uuid.NAMESPACE_URL, f"{attributes['uuid']} {cells.tobytes().hex()}"))
    path.write_text(json.dumps(attributes, indent=4), encoding="utf-8")
