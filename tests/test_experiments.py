"""Every experiment can be imported, and says in its first lines how it is run."""

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments").glob("*/*.py"))


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_imports_and_names_its_command(path, monkeypatch):
    spec = importlib.util.spec_from_file_location(path.stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert callable(module.main)
    assert f"{path.as_posix()}" in module.__doc__
