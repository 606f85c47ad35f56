"""Zarr stores by xarray."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from mldd.problems.data import DataError, File, SeriesArrays
from mldd.problems.data.formats.netcdf import by_xarray


def read(file: File) -> SeriesArrays:
    """Return the series in a store.

    Parameters
    ----------
    file : File
        The folder.

    Raises
    ------
    DataError
        It is no store, holds pickled objects, or no series.
    """
    _refuse_pickles(file.path)
    return by_xarray(file, engine="zarr", chunks=None, consolidated=None)


def _refuse_pickles(path: Path) -> None:
    """Refuse a store with an array of pickled objects before anything of it is read."""
    for file in (*path.rglob(".zarray"), *path.rglob("zarr.json"), *path.rglob(".zmetadata")):
        text = File(file).content()
        with contextlib.suppress(ValueError):
            text = json.dumps(json.loads(text)).encode()  # a name may be written in escapes
        if b"pickle" in text:
            raise DataError(f"{path}: expected plain arrays, got pickled objects in {file.name}; write it without them")
