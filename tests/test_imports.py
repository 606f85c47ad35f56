"""The floor plan: rooms with one door each, the order of arrows between them, and what may be imported at all."""

import ast
import importlib
import inspect
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path.relative_to(ROOT) for folder in ("mldd", "solvers", "problems") for path in (ROOT / folder).rglob("*.py")
)
ROOMS = sorted({path.parent for path in FILES})
SPEAK_MPI_OR_PETSC = ("mldd/ranks", "solvers/petsc")
# Every room, and those of the same top folder that it may import from.
ARROWS = {
    "mldd": {"mldd/command"},  # python -m mldd
    "mldd/algebra": {"mldd/algebra/decompositions"},
    "mldd/algebra/decompositions": {"mldd/algebra"},
    "mldd/compiled": set(),
    "mldd/ranks": {"mldd/algebra"},
    # a room below another one is part of it: the watch reads records and states of the loop
    "mldd/loop": {"mldd/algebra", "mldd/ranks", "mldd/loop/guards"},
    "mldd/loop/guards": {"mldd/algebra", "mldd/ranks", "mldd/loop"},
    "mldd/checkpoints": {"mldd/algebra", "mldd/ranks", "mldd/loop"},
    "mldd/models": {"mldd/algebra", "mldd/loop", "mldd/checkpoints"},
    "mldd/graph": {"mldd/algebra", "mldd/ranks", "mldd/loop"},
    # a partitioner knows what it cuts; who cuts looks it up by name in a table, as the command line does a solver
    "mldd/graph/partitioners": {"mldd/algebra", "mldd/ranks", "mldd/graph"},
    "mldd/advice": {"mldd/algebra", "mldd/ranks", "mldd/loop"},
    "mldd/figures": {"mldd/algebra", "mldd/ranks", "mldd/loop", "mldd/graph"},
    "mldd/command": {
        "mldd",
        "mldd/algebra",
        "mldd/ranks",
        "mldd/loop",
        "mldd/checkpoints",
        "mldd/models",
        "mldd/graph",
        "mldd/advice",
        "mldd/figures",
    },
    "mldd/anemoi": {"mldd/algebra", "mldd/graph", "mldd/graph/partitioners", "mldd/loop", "mldd/models", "mldd/ranks"},
    "solvers": {"solvers/parts", "solvers/petsc"},
    "solvers/parts": set(),
    "solvers/petsc": {"solvers/parts"},
    # a reader of files knows what it returns; who loads looks it up by suffix in a table
    "problems/data": {"problems/data/formats"},
    "problems/data/formats": {"problems/data"},
    "problems/grids": set(),
    # a room below another one is part of it: its kinds are made of what stands there
    "problems/nets": {"problems/data", "problems/nets/layers"},
    "problems/nets/layers": {"problems/nets"},
    "problems/pinns": {"problems/data", "problems/nets"},
    "problems/images": {"problems/data", "problems/nets"},
    "problems/modules": {"problems/data", "problems/nets", "problems/modules/one_graph"},
    "problems/modules/one_graph": {"problems/data", "problems/nets", "problems/modules"},
    "problems/operators": {"problems/data", "problems/nets"},
    "problems/graphs": {"problems/data", "problems/nets", "problems/nets/layers"},
    "problems/forecasts": {"problems/data", "problems/nets", "problems/nets/layers", "problems/graphs"},
    "problems/verification": {"problems/data", "problems/forecasts"},
    "problems/weather": {"problems/data", "problems/data/formats", "problems/forecasts", "problems/nets"},
}
# The core knows neither solvers nor problems; these do not know each other.
TOPS = {"mldd": {"mldd"}, "solvers": {"mldd", "solvers"}, "problems": {"mldd", "problems"}}
# An outermost room, which nothing imports, may know all of them.
OUTERMOST = {"mldd/anemoi": {"mldd", "solvers", "problems"}}


class Import(NamedTuple):
    module: str
    name: str
    lazy: bool  # inside a function
    line: int


def is_type_checking(node):
    return isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING")


def imports(node, lazy=False):
    """All that is imported below a node; what only a type checker reads counts as lazy, for it does not run."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import):
            yield from (Import(alias.name, "", lazy, child.lineno) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            module = "." * child.level + (child.module or "")
            yield from (Import(module, alias.name, lazy, child.lineno) for alias in child.names)
        elif isinstance(child, ast.Call) and ast.unparse(child.func).endswith(("import_module", "__import__")):
            if child.args and isinstance(child.args[0], ast.Constant):
                yield Import(child.args[0].value, "", lazy, child.lineno)
        function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        yield from imports(child, lazy or function or is_type_checking(child))


def folder_of(module):
    """The folder or file that a module is, below the root; None for the modules of others."""
    if module.partition(".")[0] != "mldd":
        return None
    words = module.split(".")
    below = words[1:] if words[1:2] in (["solvers"], ["problems"]) else words
    return Path(*below)


def all_imports(path):
    for found in imports(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
        yield found, f"{path}:{found.line} imports {found.name} from {found.module}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_rooms_are_entered_by_their_doors_and_in_order(path):
    room = path.parent
    for found, where in all_imports(path):
        assert not found.module.startswith("."), f"{where}: imports are absolute"
        below = found.module.partition(".")[0]
        assert below not in ("solvers", "problems"), f"{where}: the name is mldd.{found.module}"
        target = folder_of(found.module)
        if target is None:
            continue
        known = OUTERMOST.get(room.as_posix(), TOPS[room.parts[0]])
        assert target.parts[0] in known, f"{where}: {room} knows nothing of {target.parts[0]}"
        home = target if target in ROOMS else target.parent
        if home == room:
            continue
        assert target == home, f"{where}: outside of {home} its door is taken, from {'.'.join(home.parts)} import ..."
        if found.name and home.as_posix() != "mldd":
            door = importlib.import_module(module_name(home))
            assert found.name in door.__all__, f"{where}: the door does not offer {found.name}"
        if home.parts[0] == room.parts[0]:
            assert home.as_posix() in ARROWS[room.as_posix()], f"{where}: {room} stands below {home}"


@pytest.mark.parametrize("path", FILES, ids=str)
def test_only_two_rooms_speak_mpi_and_petsc(path):
    for found, where in all_imports(path):
        if found.module.partition(".")[0] in ("mpi4py", "petsc4py"):
            assert path.parent.as_posix() in SPEAK_MPI_OR_PETSC, f"{where}: only {SPEAK_MPI_OR_PETSC} may"
            assert found.lazy, f"{where}: only inside of functions"


def test_rules_see_what_they_should_see():
    source = "import a.b\nif TYPE_CHECKING:\n    from c import d\ndef f():\n    from . import e\n    import_module('g')"
    found = [("a.b", "", False, 1), ("c", "d", True, 3), (".", "e", True, 5), ("g", "", True, 6)]
    assert list(imports(ast.parse(source))) == found
    assert folder_of("mldd.solvers.parts.sweep") == Path("solvers/parts/sweep")
    assert folder_of("mldd.graph") == Path("mldd/graph")
    assert folder_of("torch.nn") is None


@pytest.mark.parametrize("room", ROOMS, ids=str)
def test_every_door_says_what_lives_here_and_opens(room):
    name = module_name(room)
    door = importlib.import_module(name)
    assert door.__doc__ and door.__doc__.count(".") >= 2, f"{name}: a door says what lives here and what may not"
    assert sorted(door.__all__) == sorted(dir(door))
    for exported in door.__all__:
        value = getattr(door, exported)
        is_file = (ROOT / room / f"{exported}.py").exists()
        assert is_file == inspect.ismodule(value), f"{name}.{exported}: a file would hide the name"


def test_a_room_holds_about_twenty_files():
    for room in ROOMS:
        files = [path for path in FILES if path.parent == room and path.stem != "__init__"]
        assert len(files) <= 20, f"{room} has {len(files)} files: a room of its own is due"


def test_no_two_classes_share_a_name():
    places = {}
    for path in FILES:
        for node in ast.parse((ROOT / path).read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef):
                places.setdefault(node.name, []).append(str(path))
    assert not {name: paths for name, paths in places.items() if len(paths) > 1}


def test_files_and_records_are_short():
    for path in FILES:
        text = (ROOT / path).read_text(encoding="utf-8")
        assert text.count("\n") <= 450, f"{path} has {text.count(chr(10))} lines: a file of its own is due"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and any("dataclass" in ast.unparse(d) for d in node.decorator_list):
                fields = [item for item in node.body if isinstance(item, ast.AnnAssign)]
                count = sum("ClassVar" not in ast.unparse(item) for item in fields)
                assert count <= 12, f"{path}: {node.name} has {count} fields, some of them make a record together"


def module_name(path):
    below = path.with_suffix("") if path.suffix else path
    words = [word for word in below.parts if word != "__init__"]
    return ".".join(words if words[0] == "mldd" else ["mldd", *words])


def test_everything_is_imported_without_mpi_and_petsc():
    program = f"""
import sys
import {", ".join(module_name(path) for path in FILES if path.stem != "__main__")}
assert not {{"mpi4py", "petsc4py"}} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_doors_do_not_load_torch():
    doors = ", ".join(map(module_name, ROOMS))
    program = f"import sys\nimport {doors}, mldd.command.cli\nassert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
