"""Make a checkout importable as it lies there, also where the one package that mldd needs at once is not installed."""

from __future__ import annotations

import importlib.util
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).parents[2]


def attach_stub(name: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Do what lazy_loader's function of this name does: names of a package come from where its stub says."""
    text = Path(file).with_suffix(".pyi").read_text(encoding="utf-8")
    found = re.findall(r"^from (\.\S*) import (\w+) as \w+", text, re.MULTILINE)
    where = {what: module for module, what in found}

    def getattr_(attribute: str) -> Any:
        if attribute not in where:
            raise AttributeError(f"module {name!r} has no attribute {attribute!r}")
        if where[attribute] == ".":
            return importlib.import_module(f"{name}.{attribute}")
        return getattr(importlib.import_module(where[attribute], name), attribute)

    return getattr_, lambda: sorted(where), sorted(where)


def importable() -> None:
    """Put the checkout first, with solvers and problems below mldd, as an installation has them."""
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    try:
        import lazy_loader  # noqa: F401
    except ImportError:
        stand_in = ModuleType("lazy_loader")
        stand_in.attach_stub = attach_stub  # type: ignore[attr-defined]
        sys.modules["lazy_loader"] = stand_in
    if importlib.util.find_spec("pooch") is None:  # it says where compiled functions are kept
        os.environ["CC"] = ""
    import mldd

    if str(ROOT) not in mldd.__path__:
        mldd.__path__.append(str(ROOT))
