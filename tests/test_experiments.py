"""Every experiment can be imported, and says in its first lines how it is run."""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.relative_to(ROOT) for path in (ROOT / "experiments").glob("*/*.py"))
ELSEWHERE = ("peers", "gpu")  # test_peers.py
PLAIN = [  # those of papers: test_papers.py
    path for path in SCRIPTS if not (ROOT / path.parent / "job.slurm").exists() and path.parent.name not in ELSEWHERE
]


@pytest.mark.parametrize("path", PLAIN, ids=str)
def test_imports_and_names_its_command(path, monkeypatch):
    spec = importlib.util.spec_from_file_location(path.stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, path.stem, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    assert callable(module.main)
    assert f"{path.as_posix()}" in module.__doc__


@pytest.mark.parametrize("path", SCRIPTS, ids=str)
def test_names_that_functions_import_are_there(path):
    """Imports inside of functions, that only run with them."""
    for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and str(node.module).partition(".")[0] == "mldd":
            room = importlib.import_module(str(node.module))
            assert [name.name for name in node.names if not hasattr(room, name.name)] == []
