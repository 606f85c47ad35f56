"""Things by their names: what rooms and other packages have registered, and classes and functions from files."""

from __future__ import annotations

import difflib
import pkgutil
import sys
import types
import zlib
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any


def registered(room: str, group: str | None = None) -> dict[str, str]:
    """Return names and what they stand for, ``module:Name``, without importing any of it.

    A room has a table ``REGISTERED`` in its door, and so have the rooms below it; packages of others have entry points.

    Parameters
    ----------
    room : str
        Module of the room, as in ``mldd.solvers``.
    group : str, optional
        Group of the entry points, by default called as the room is.
    """
    home = import_module(room)
    below = [found.name for found in pkgutil.iter_modules(home.__path__) if found.ispkg]
    rooms = [home, *(import_module(f"{room}.{name}") for name in below)]
    names = {entry.name: entry.value for entry in entry_points(group=group or room)}
    for one in rooms:
        names |= vars(one).get("REGISTERED", {})
    return names


def loaded(target: str) -> Any:
    """Import the class or function behind a target.

    Parameters
    ----------
    target : str
        ``package.module:Name`` or ``file.py:Name``.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        No such module, or it has no such class or function.
    """
    home, _, name = target.rpartition(":")
    module = _of_file(Path(home)) if home.endswith(".py") else _of_package(home)
    thing = getattr(module, name, None)
    if not callable(thing):
        there = [key for key, value in vars(module).items() if getattr(value, "__module__", "") == module.__name__]
        found = " ".join(there) or "none"
        raise ValueError(f"{home} must have a class or function {name}{hint(name, there)}, got {found}")
    return thing


def _of_package(name: str) -> types.ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not (name == error.name or name.startswith(error.name + ".")):
            raise
        raise ValueError(
            f"{name} must be a module that can be imported, got none; a file is named as path/to/file.py:Name"
        ) from None


def _of_file(path: Path) -> types.ModuleType:
    """Import a file as a module; the files beside it can be imported from it, as when Python runs it."""
    if not path.is_file():
        raise FileNotFoundError(f"{path} must be a Python file, got none; check the path")
    place = str(path.resolve())
    known = next((m for m in list(sys.modules.values()) if getattr(m, "__file__", None) == place), None)
    if known is not None:
        return known
    name = path.stem if find_spec(path.stem) is None else f"{path.stem}_{zlib.crc32(place.encode()):08x}"
    found = spec_from_file_location(name, place)
    assert found is not None and found.loader is not None
    module = module_from_spec(found)
    sys.modules[name] = module  # dataclasses look their module up
    sys.path.append(str(path.resolve().parent))
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def hint(name: str, known: list[str]) -> str:
    """Return `` (did you mean ...?)`` where a known name is close, else nothing.

    Parameters
    ----------
    name : str
        What was written.
    known : list of str
        What there is.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
