"""What there is: names with a sentence each, and the keys of a name with type, default and meaning."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator
from dataclasses import MISSING, is_dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from mldd.algebra import EXTRAS, from_outside
from mldd.command import names
from mldd.command.keys import SOLVERS, default, default_of, fields_of, holds_solver, is_solver, keys_of, solver_wanted
from mldd.command.names import Spec

_WIDTH = 110
_FILES = {
    "FILE (of a graph)": names.USER_FILE,
    "FOLDER (of shards)": names.SHARDS,
    "FILE (of a series)": names.SERIES_FILE,
}


def listing() -> Iterator[str]:
    """Yield the names of all problems, solvers and formats with a sentence each; nothing is imported for it."""
    formats = {f".{suffix.lstrip('.')}": target for suffix, target in names.FORMATS.items()}
    for title, table in (("problems", names.PROBLEMS | _FILES), ("solvers", SOLVERS), ("formats", formats)):
        yield f"{title}:"
        groups: dict[str, list[str]] = {}
        for name, target in table.items():
            if names.exists(target):
                groups.setdefault(target.partition("?")[0] + str(name in _FILES), []).append(name)
        for members in groups.values():
            yield from _entry(members, table[members[0]])
    yield "`mldd list NAME` has the keys of a name; file.py:Class and package.module:Class are names, too."
    yield "Other files are read by FILE:reader=file.py:function."


def _entry(members: list[str], target: str) -> Iterator[str]:
    lacking = {EXTRAS[module] for module in names.NEEDS.get(members[0], ()) if find_spec(module) is None}
    shown = " ".join(f"{name}:{names.FIRST[name].upper()}" if name in names.FIRST else name for name in members)
    text = sentence(target) + (f" (needs mldd[{','.join(sorted(lacking))}])" if lacking else "")
    if len(shown) > 22:
        yield from textwrap.wrap(shown, _WIDTH, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
        shown = ""
    yield from textwrap.wrap(text, _WIDTH, initial_indent=f"  {shown:<22} ", subsequent_indent=" " * 25)


def sentence(target: str) -> str:
    """Return the first sentence of the docstring of a class or function, read from its file without importing it.

    Parameters
    ----------
    target : str
        ``module:Class``; what follows a question mark is ignored.
    """
    module, _, attribute = target.partition("?")[0].partition(":")
    found = find_spec(module)
    if found is None or found.origin is None:
        return ""
    for node in ast.parse(Path(found.origin).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == attribute:
            return (ast.get_docstring(node) or "").partition("\n\n")[0].replace("\n", " ")
    return ""


def keys(name: str) -> Iterator[str]:
    """Yield the keys of a problem or solver: name, type, default and meaning, and an example.

    Parameters
    ----------
    name : str
        Of the command line: a name, a file, or ``file.py:Class``.

    Raises
    ------
    ValueError
        Neither a problem nor a solver has this name.
    """
    spec, is_problem = _found(name)
    yield f"{name}: {(spec.kind.__doc__ or '').partition(chr(10) * 2)[0]}"
    meanings = parameters(spec.kind)
    shown = {key: hint for key, hint in keys_of(spec.kind).items() if key not in spec.fixed}
    defaults = {key: default_of(spec.kind, key) for key in shown}
    for key, hint in shown.items():
        value = defaults[key]
        default = "needed" if value is MISSING else f"default {_text(value)}"
        yield f"  {key} : {_kind(hint)}, {default}"
        yield from textwrap.wrap(meanings.get(key, ""), _WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 6)
    plain = [key for key in shown if _simple(defaults[key]) and not key.startswith("coarse")]  # those need levels
    needed = [f"{key}=VALUE" for key, value in defaults.items() if value is MISSING]
    example = ",".join(needed) or next((f"{key}={_text(defaults[key])}" for key in plain), "")
    if any("." in key for key in shown):
        yield "  (a key with a dot may be written by its last word where no other key ends in it)"
    if used := [] if is_problem else _options(spec):
        yield f"  options that reach it: {' '.join(used)}"
    text = f"{name}{',' if '=' in name else ':'}{example}" if example else name
    yield f"example: mldd train {f'{text} --solver adam' if is_problem else f'{_solved(spec)} --solver {text}'}"


def _solved(spec: Spec) -> str:
    """Return a problem that a solver can solve: one without bounds, in parts of its data where it needs these."""
    if spec.has("first"):
        return "digits"
    parts = [getattr(f.type, "__name__", f.type) for f in fields_of(spec.kind) if f.name == "decomposition"]
    return "digits:subdomains=data" if parts == ["SharedDecomposition"] else "quadratic"


def _options(spec: Spec) -> list[str]:
    """Return the options of the command line that set fields of a solver."""
    from mldd.command.builder import WANTED_BY

    return [f"--{option.replace('_', '-')}" for option, wanted in WANTED_BY.items() if spec.has(wanted)]


def _found(name: str) -> tuple[Spec, bool]:
    if name in SOLVERS:
        return names.solver_spec(name), False
    if name in names.PROBLEMS or from_outside(name, names.PROBLEMS) != name:
        return names.problem_spec(name), True
    spec = names.solver_spec(name)
    return (spec, False) if hasattr(spec.kind, "step") else (names.problem_spec(name), True)


def _simple(value: Any) -> bool:
    return isinstance(value, bool | int | float) or (isinstance(value, str) and value != "")


def _text(value: Any) -> str:
    if is_solver(value):
        return names.name_of(value)
    return ":".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _kind(hint: Any) -> str:
    """Return an annotation as a user would write it."""
    if hint is type(None):
        return "none"
    if get_origin(hint) is Literal:
        return " | ".join(map(str, get_args(hint)))
    if get_origin(hint) is tuple:
        return f"{_kind(get_args(hint)[0])}:{_kind(get_args(hint)[0])}:..."
    if get_args(hint):
        return " | ".join(map(_kind, get_args(hint)))
    if holds_solver(hint):
        return solver_wanted(hint) or "solver"
    return {bool: "true | false", int: "whole number", float: "number", str: "text"}.get(hint, str(hint))


def parameters(kind: type) -> dict[str, str]:
    """Return the meaning of every field of a class from the Parameters sections of its docstrings, bases last.

    Parameters
    ----------
    kind : type
        A class with a docstring.
    """
    meanings: dict[str, str] = {}
    for base in kind.__mro__:
        section = re.search(r"^ *Parameters\n *-+\n(.*?)(?=\n\n *\w+\n *-+\n|\Z)", base.__doc__ or "", re.M | re.S)
        for head, text in _entries(textwrap.dedent(section[1]) if section else ""):
            for name in head.partition(" : ")[0].split(","):
                meanings.setdefault(name.strip(), text)
    for f in fields_of(kind):  # nested records
        record = default(f)
        if is_dataclass(record) and not isinstance(record, type) and not solver_wanted(type(record)):
            meanings |= {f"{f.name}.{key}": text for key, text in parameters(type(record)).items()}
    return meanings


def _entries(section: str) -> Iterator[tuple[str, str]]:
    head = ""
    lines: list[str] = []
    for line in section.splitlines():
        if line and not line[0].isspace():
            if head:
                yield head, " ".join(lines)
            head, lines = line, []
        elif line.strip():
            lines.append(line.strip())
    if head:
        yield head, " ".join(lines)
