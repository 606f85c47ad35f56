"""The dependency rule: mldd knows no algorithm and no data set, and torch alone is enough to import everything."""

import ast
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT) for folder in ("mldd", "solvers", "problems") for path in (ROOT / folder).glob("*.py")
)
SPEAK_MPI_OR_PETSC = {"mldd/messages.py", "mldd/parallel.py", "mldd/partitioners.py", "mldd/petsc.py", "solvers/tao.py"}


class Import(NamedTuple):
    module: str
    lazy: bool  # inside a function
    line: int


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node, lazy=False):
    """All that is imported below a node; what only a type checker reads counts as lazy, for it does not run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, lazy, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield from (Import(f"{module}.{alias.name}", lazy, child.lineno) for alias in child.names)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
            if child.args and isinstance(child.args[0], ast.Constant):
                yield Import(child.args[0].value, lazy, child.lineno)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, lazy or function or is_type_checking(child))


def within(module, *packages):
    return any(module == package or module.startswith(package + ".") for package in packages)


@pytest.mark.parametrize("path", FILES, ids=str)
def test_dependency_rule(path):
    folder, name = path.parts[0], path.as_posix()
    forbidden = {
        "mldd": ("mldd.solvers", "mldd.problems"),
        "solvers": ("mldd.problems",),
        "problems": ("mldd.solvers",),
    }
    for found in imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        where = f"{path}:{found.line} imports {found.module}"
        assert not found.module.startswith("."), f"{where}: imports are absolute"
        assert not within(found.module, "solvers", "problems"), f"{where}: the name is mldd.{found.module}"
        if within(found.module, *forbidden[folder]):
            assert name == "mldd/cli.py" and found.lazy, f"{where}: only the functions of mldd/cli.py may"
        if within(found.module, "mpi4py", "petsc4py"):
            assert name in SPEAK_MPI_OR_PETSC and found.lazy, f"{where}: only functions of {SPEAK_MPI_OR_PETSC} may"


def test_rule_sees_what_it_should_see():
    source = "import a.b\nif TYPE_CHECKING:\n    from c import d\ndef f():\n    from . import e\n    import_module('g')"
    assert list(imports(ast.parse(source))) == [("a.b", False, 1), ("c.d", True, 3), ("..e", True, 5), ("g", True, 6)]


def test_everything_is_imported_without_mpi_and_petsc():
    prefix = {"mldd": "mldd", "solvers": "mldd.solvers", "problems": "mldd.problems"}
    modules = [f"{prefix[path.parts[0]]}.{path.stem}" for path in FILES if not path.stem.startswith("__")]
    program = f"""
import sys
import {", ".join(modules)}
assert not {{"mpi4py", "petsc4py"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
