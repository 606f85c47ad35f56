"""Folders that are one file to their user, as a Zarr store is: written whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_MARKS = (".zgroup", ".zarray", "zarr.json")


def check_store(path: Path) -> None:
    """Refuse to replace what is there and is no Zarr store.

    Parameters
    ----------
    path : Path
        Of the store to be.

    Raises
    ------
    OSError
        It is a file, or a folder of something else.
    """
    if path.exists() and not any((path / mark).is_file() for mark in _MARKS):
        raise OSError(f"{path} must be a new folder or a Zarr store, got something else; give another name")


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """Yield the name of a new folder beside `path`, which it replaces once the block has written it whole.

    Parameters
    ----------
    path : Path
        Of the store to be.

    Raises
    ------
    OSError
        It cannot be written, or would replace something that is no store.
    """
    check_store(path)
    new = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    old = new.with_name(f"{new.name}.old")
    try:
        yield new
        if path.exists():
            os.replace(path, old)
        os.replace(new, path)
    finally:
        shutil.rmtree(new, ignore_errors=True)
        if path.exists():
            shutil.rmtree(old, ignore_errors=True)
