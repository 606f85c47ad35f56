"""Run the examples in the docstrings. pytest's own --doctest-modules would import solvers/x.py as `solvers.x`."""

import doctest
import importlib
import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {"mldd": "mldd", "solvers": "mldd.solvers", "problems": "mldd.problems"}
MODULES = sorted(
    ".".join([package, *path.relative_to(ROOT / folder).with_suffix("").parts])
    for folder, package in PACKAGES.items()
    for path in (ROOT / folder).rglob("*.py")
    if not path.stem.startswith("__")
)
NEED_PETSC = {"mldd.ranks.petsc", "mldd.solvers.petsc.tao"}


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    if name in NEED_PETSC and importlib.util.find_spec("petsc4py") is None:
        pytest.skip("petsc4py is not installed")
    module = importlib.import_module(name)
    assert Path(module.__file__).resolve().is_relative_to(ROOT.resolve()), f"{name} comes from another checkout"
    flags = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
    assert doctest.testmod(module, optionflags=flags).failed == 0
