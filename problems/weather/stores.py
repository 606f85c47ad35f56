"""How this room opens a data set of Anemoi: one that is there, one member of it, times that are one step apart."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from mldd.problems.data import DataError, File
from mldd.problems.data.formats import AnemoiStore, damage_said


def opened(path: str | os.PathLike[str], member: int | str, names: tuple[str, ...] = ()) -> AnemoiStore:
    """Return a data set, of which nothing but its coordinates has been read.

    Parameters
    ----------
    path : str or path
        The folder.
    member : int or str
        Number of the member of an ensemble, from 0.
    names : tuple of str
        Of the variables that are wanted.

    Raises
    ------
    DataError
        There is no data set of Anemoi, it does not have this member, or its times have several steps.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise DataError(f"{path}: expected a data set of Anemoi that zarr can read, got no folder; check the path")
    with damage_said(os.fspath(path)):
        store = AnemoiStore(File(folder, names, (f"ensemble={member}",)), "member")
    steps = np.unique(np.diff(store.time))
    if len(steps) != 1 or steps[0] <= np.timedelta64(0, "s"):
        raise DataError(
            f"{store.where}: expected times one step apart, got {len(store.time)} times with {len(steps)} different "
            "steps; write it anew by anemoi-datasets"
        )
    return store
