"""Docstrings of numpydoc: every argument with its meaning, what comes back, what is raised, and the source of a method.

A method that implements a contract (a `Protocol` or a base class of the core, whose own methods are described in full)
is described there: `gradient(x)` of the thirtieth objective needs no second section.
"""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(path.relative_to(ROOT) for top in ("mldd", "solvers", "problems") for path in (ROOT / top).rglob("*.py"))
TREES = {path: ast.parse((ROOT / path).read_text(encoding="utf-8")) for path in FILES}
# Classes that are contracts without being a Protocol: others derive from them, or have the same methods.
BASES = {"Problem", "GridProblem", "Layer", "Around", "State", "Communicator"}
BASES |= {"Stochastic", "Proximal", "Restricted", "Decomposition"}


def classes():
    return ((path, node) for path in FILES for node in TREES[path].body if isinstance(node, ast.ClassDef))


def arguments(function):
    """Names of the arguments that a caller gives; those with a leading underscore are not for callers."""
    spec = function.args
    named = [a.arg for a in spec.posonlyargs + spec.args + spec.kwonlyargs]
    named += [a.arg for a in (spec.vararg, spec.kwarg) if a is not None]
    return [name for name in named if name not in ("self", "cls") and not name.startswith("_")]


def is_function(node):
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def decorators(node):
    return {ast.unparse(d).split("(")[0].rpartition(".")[2] for d in node.decorator_list}


def section(doc, title):
    """The lines of a section, or None where there is none."""
    found = re.search(rf"^{title}\n-+\n(.*?)(?=^\S[^\n]*\n---|\Z)", doc, re.MULTILINE | re.DOTALL)
    return None if found is None else found[1].splitlines()


def entries(doc, *titles):
    """Names that the sections describe, each with whether a sentence follows."""
    found = {}
    for title in titles:
        lines = section(doc, title) or []
        for i, line in enumerate(lines):
            if line and not line[0].isspace():
                said = i + 1 < len(lines) and lines[i + 1].startswith("    ")
                for name in re.split(r",\s*", line.split(" : ")[0].rstrip(":")):
                    found[name.strip().lstrip("*")] = said
    return found


def lacking(node, names, *titles):
    """Which of the names have no entry with a sentence in the docstring of a function or class."""
    described = entries(ast.get_docstring(node) or "", *titles)
    return [name for name in names if not described.get(name)]


def contracts():
    """Arguments of the methods of protocols and bases, by the name of the method."""
    found = {}
    for _, node in classes():
        if node.name in BASES or any(ast.unparse(base).startswith("Protocol") for base in node.bases):
            for method in filter(is_function, node.body):
                if not method.name.startswith("_") and arguments(method):
                    found.setdefault(method.name, []).append((node.name, method))
    return found


CONTRACTS = contracts()


def implements(function):
    """Whether a method has the name and the arguments of one that a contract describes."""
    return any(arguments(function) == arguments(method) for _, method in CONTRACTS.get(function.name, []))


def is_contract(node):
    return any(name == node.name for methods in CONTRACTS.values() for name, _ in methods)


def public():
    """Public functions and methods outside of contracts, as (file, qualified name, node)."""
    for path in FILES:
        for node in TREES[path].body:
            if is_function(node) and not node.name.startswith("_"):
                yield path, node.name, node
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                for method in filter(is_function, node.body):
                    if method.name.startswith("_") or decorators(method) & {"setter", "overload"}:
                        continue
                    if is_contract(node) or not implements(method):
                        yield path, f"{node.name}.{method.name}", method


def fields(node):
    """What a caller gives to make an instance: fields of a record, or arguments of __init__."""
    for method in filter(is_function, node.body):
        if method.name == "__init__":
            return arguments(method)
    record = "dataclass" in decorators(node) or any(ast.unparse(b).endswith("NamedTuple") for b in node.bases)
    if not record:
        return []
    return [
        item.target.id
        for item in node.body
        if isinstance(item, ast.AnnAssign)
        and not item.target.id.startswith("_")
        and "ClassVar" not in ast.unparse(item.annotation)
        and "init=False" not in ast.unparse(item)
    ]


def faults_of(path, name, node):
    """Sentences on what the docstring of a function does not say."""
    doc = ast.get_docstring(node) or ""
    where = f"{path}:{node.lineno} {name}"
    missing = lacking(node, arguments(node), "Parameters")
    if missing:
        yield f"{where}: no entry with a sentence under Parameters for {', '.join(missing)}"
    returned = node.returns is not None and ast.unparse(node.returns) not in ("None", "Never", "NoReturn")
    told = re.match(r"(Return|Yield|Whether|The |Make|True )", doc) or re.search(r"\breturns?\b", doc.split("\n\n")[0])
    if returned and not told and section(doc, "Returns") is None and section(doc, "Yields") is None:
        if not decorators(node) & {"property", "cached_property"}:
            yield f"{where}: says nothing of what it returns"
    raised = {
        ast.unparse(item.exc.func)
        for item in ast.walk(node)
        if isinstance(item, ast.Raise) and isinstance(item.exc, ast.Call) and isinstance(item.exc.func, ast.Name)
    }
    raised = {name for name in raised if name[0].isupper()}  # not functions that make an error
    raised -= {"NotImplementedError", "StopIteration", "AssertionError", "SystemExit"}
    unsaid = sorted(raised - set(entries(doc, "Raises")))
    if unsaid:
        yield f"{where}: no entry with a sentence under Raises for {', '.join(unsaid)}"


@pytest.mark.parametrize("room", sorted({str(path.parent) for path in FILES}))
def test_every_argument_is_described(room):
    faults = [
        fault for path, name, node in public() if str(path.parent) == room for fault in faults_of(path, name, node)
    ]
    for path, node in classes():
        if str(path.parent) == room and not node.name.startswith("_"):
            missing = lacking(node, fields(node), "Parameters", "Attributes")
            if missing:
                faults.append(f"{path}:{node.lineno} {node.name}: no entry with a sentence for {', '.join(missing)}")
    assert not faults, "\n" + "\n".join(faults)


OFFERED = re.findall(r" as (\w+)", (ROOT / "solvers/__init__.pyi").read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", sorted({p for p, n in classes() if p.parent == Path("solvers")}), ids=str)
def test_solvers_name_their_source(path):
    solvers = [
        node
        for node in TREES[path].body
        if isinstance(node, ast.ClassDef)
        and node.name in OFFERED
        and {"init", "step"} <= {item.name for item in node.body if is_function(item)}
    ]
    unsourced = [node.name for node in solvers if section(ast.get_docstring(node) or "", "References") is None]
    assert not unsourced, f"{path}: no References in {', '.join(unsourced)}"
