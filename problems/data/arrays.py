"""A single array of a user's: points or samples, in memory or in an archive."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mldd.problems.data.checksums import verify
from mldd.problems.data.contents import DataError
from mldd.problems.data.formats import Archive


def load_array(data: Any, what: str) -> tuple[str, Any]:
    """Return name and values of an array.

    Parameters
    ----------
    data : str, path, array or Tensor
        An archive ``.npz`` with one array, or one called ``x``; or the array itself.
    what : str
        What it may be besides a file, for the message.

    Raises
    ------
    DataError
        There is no such file, or no such array in it.
    """
    if not isinstance(data, str | os.PathLike):
        return "data", data.detach().cpu().numpy() if isinstance(data, Tensor) else np.asarray(data)
    name = os.fspath(data)
    path = Path(name).expanduser()
    if path.suffix.lower() != ".npz" or not path.is_file():
        raise DataError(f"data must be {what} or a file .npz with one array, got {name!r}; correct the name")
    verify(path)
    archive = Archive(path, name)
    names = list(archive)
    if "x" in names or len(names) == 1:
        return name, archive["x" if "x" in names else names[0]]
    raise DataError(f"{name}: expected one array, or one called x, got {', '.join(names) or 'none'}; rename it")
