"""Import of libraries that not every installation has."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from mldd.algebra import way_to_install


def wheel(name: str) -> Any:
    """Return the imported library of a partitioner.

    Parameters
    ----------
    name : str
        Of the module and of its package.

    Raises
    ------
    ImportError
        It is missing; the line to install it.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ImportError(
            f"partitioning a graph by this method needs {name}, which is not installed: {way_to_install(name)}"
        ) from error
