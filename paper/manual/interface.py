"""Write a page for every room of mldd: what its door offers, each name on the page of the room where it lives."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from configparser import ConfigParser
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[2]


def rooms() -> list[str]:
    """Return the packages that setup.cfg installs."""
    configuration = ConfigParser()
    configuration.read(ROOT / "setup.cfg", encoding="utf-8")
    return configuration["options"]["packages"].split()


def home(value: object, room: str) -> str:
    """Return the room that a value is defined in; constants do not say, and live where they are offered."""
    module = getattr(value, "__module__", None) if inspect.isclass(value) or inspect.isroutine(value) else None
    return module.rpartition(".")[0] if module and module.startswith("mldd.") else room


def shown(value: object) -> str:
    """Return a constant or an alias of types as text, or its kind where that is long or has addresses."""
    text = repr(value).replace("typing.", "").replace("`", "'")
    return text if len(text) < 200 and " at 0x" not in text and "\n" not in text else type(value).__name__


def entries(door: ModuleType) -> Iterator[str]:
    """Yield the directives for the names that live in this room, in the order of its door."""
    elsewhere = []
    for name in door.__all__:
        value = getattr(door, name)
        if (lives := home(value, door.__name__)) != door.__name__:
            elsewhere.append(f"- :py:obj:`{lives}.{name}`")
        elif inspect.isclass(value):
            yield f".. autoclass:: {door.__name__}.{name}\n   :members:\n"
        elif inspect.isroutine(value):
            yield f".. autofunction:: {door.__name__}.{name}\n"
        elif not inspect.ismodule(value):
            yield f".. py:data:: {door.__name__}.{name}\n\n   ``{shown(value)}``\n"
    if elsewhere:
        yield "Also offered here\n-----------------\n\n" + "\n".join(elsewhere) + "\n"


def page(room: str) -> str:
    """Return the page of a room."""
    door = importlib.import_module(room)
    head = f"{room}\n{'=' * len(room)}\n\n.. automodule:: {room}\n   :no-members:\n"
    return "\n".join([head, *entries(door)])


def write(folder: Path) -> None:
    """Write the pages, those that have changed alone, and take away those of rooms that are gone."""
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{room}.rst": page(room) for room in rooms()}
    for path in set(folder.glob("*.rst")) - set(pages):
        path.unlink()
    for path, text in pages.items():
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")
