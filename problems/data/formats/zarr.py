"""Zarr stores: data sets of Anemoi, and others by xarray."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mldd.loop import check_regular
from mldd.problems.data import DataError, File, SeriesArrays
from mldd.problems.data.formats.anemoi import is_anemoi, read_anemoi
from mldd.problems.data.formats.netcdf import by_xarray

_METADATA = (".zarray", "zarr.json", ".zmetadata")


def read(file: File) -> SeriesArrays:
    """Return the series in a store; it is said where chunks are missing.

    Parameters
    ----------
    file : File
        The folder.

    Raises
    ------
    DataError
        It is no store, holds pickled objects or devices, lacks chunks of a coordinate or all of a variable, or holds no
        series.
    """
    _check_files(file.path)
    if is_anemoi(file.path):
        return read_anemoi(file)
    found = by_xarray(file, engine="zarr", chunks=None, consolidated=None)
    return replace(found, notes=(*found.notes, *_absent(file.path, found)))


def _check_files(path: Path) -> None:
    """Refuse what is no file in a store, and arrays of pickled objects, before anything of it is read."""
    for folder, _, names in os.walk(path):
        for name in names:
            check_regular(Path(folder, name))
            if name in _METADATA:
                _refuse_pickles(path, Path(folder, name))


def _refuse_pickles(path: Path, metadata: Path) -> None:
    text = File(metadata).content()
    with contextlib.suppress(ValueError, RecursionError):
        text = json.dumps(json.loads(text)).encode()  # a name may be written in escapes
    if b"pickle" in text:
        raise DataError(f"{path}: expected plain arrays, got pickled objects in {metadata.name}; write it without them")


def _absent(path: Path, found: SeriesArrays) -> Iterator[str]:
    """Yield a sentence on every variable of which chunks are not in the store: what stands there nobody has written."""
    import zarr

    group: Any = zarr.open_group(path, mode="r")
    for name in (str(key) for key in group.array_keys()):
        array = group[name]
        absent = array.nchunks - array.nchunks_initialized
        if name in found.unused or absent == 0 or array.ndim == 0:
            continue
        if name not in found.variables:
            raise DataError(
                f"{path}: expected all chunks of the coordinate {name}, got {absent} of {array.nchunks} that are not "
                "there; get the store anew from its source"
            )
        if array.nchunks_initialized == 0:
            raise DataError(f"{path}: expected values of {name}, got a store without any; get it anew from its source")
        yield (
            f"{absent} of {array.nchunks} chunks of {name} are not in the store: every value there is the fill value "
            f"{array.fill_value}"
        )
