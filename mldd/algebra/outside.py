"""Objects that text names: tables of rooms, entry points of other packages, modules and files of a user's own."""

from __future__ import annotations

import difflib
import pkgutil
import re
import sys
import types
import zlib
from collections.abc import Collection
from importlib import import_module
from importlib.metadata import entry_points
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

_OUTSIDE = re.compile(r"(?P<home>[^:(]*\.py|[A-Za-z_][\w.]*):[A-Za-z_]\w*(?=[:(]|$)")


def registered(home: str, table: str = "REGISTERED") -> dict[str, str]:
    """Return names and where their objects are, ``module:Attribute``, without importing any of them.

    The door of `home` and those of the rooms in it have a `table` each; packages of others have entry points of the
    group ``mldd.WORD``, where WORD is the last one of `home`, or another table in small letters.

    Parameters
    ----------
    home : str
        A package: ``mldd.problems``, ``mldd.solvers``, ``mldd.graph.partitioners``.
    table : str
        Name of the tables.
    """
    door = import_module(home)
    rooms = [door, *(import_module(f"{home}.{m.name}") for m in pkgutil.iter_modules(door.__path__) if m.ispkg)]
    tables = [vars(room).get(table, {}) for room in rooms]
    word = home.rpartition(".")[2] if table == "REGISTERED" else table.lower()
    return {entry.name: entry.value for entry in entry_points(group=f"mldd.{word}")} | {
        name: target for of_room in tables for name, target in of_room.items()
    }


def from_outside(text: str, known: Collection[str]) -> str | None:
    """Return the ``package.module:Attribute`` or ``file.py:Attribute`` that a text begins with, None if it has none.

    Parameters
    ----------
    text : str
        What may follow begins with a colon or a parenthesis.
    known : collection of str
        Names that are no modules, whatever follows them.

    Examples
    --------
    >>> from_outside("my_solver.py:Momentum:beta=0.3", ["tao"])
    'my_solver.py:Momentum'
    >>> from_outside("tao:blmvm", ["tao"])
    """
    found = _OUTSIDE.match(text)
    return None if found is None or found["home"] in known else found[0]


def loaded(target: str, what: Literal["class", "function"]) -> Any:
    """Return the object behind ``module:Attribute``, imported; the module may be a file.

    Parameters
    ----------
    target : str
        From a command line or a table of names.
    what : {"class", "function"}
        What it has to be; anything else that can be called is a function, too.

    Raises
    ------
    FileNotFoundError
        No such file.
    ValueError
        No such module, or it has no such object.
    """
    home, _, attribute = target.rpartition(":")
    module = _of_file(Path(home)) if home.endswith(".py") else _of_package(home)
    thing = getattr(module, attribute, None)
    if not _fits(thing, what):
        there = [
            key
            for key, value in vars(module).items()
            if _fits(value, what) and getattr(value, "__module__", None) == module.__name__
        ]
        raise ValueError(
            f"{home} must have a {what} {attribute}{did_you_mean(attribute, there)}, got {' '.join(there) or 'none'}"
        )
    return thing


def _fits(thing: Any, what: Literal["class", "function"]) -> bool:
    return isinstance(thing, type) if what == "class" else callable(thing) and not isinstance(thing, type)


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
    sys.modules[name] = module  # dataclasses and pickles look their module up
    sys.path.append(str(path.resolve().parent))
    try:
        found.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a question in parentheses where a known name is close to `name`, nothing where none is.

    Parameters
    ----------
    name : str
        What was written.
    known : collection of str
        What could have been meant.
    """
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean {close[0]}?)" if close else ""
