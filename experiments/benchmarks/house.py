"""The floor plan in figures: files and lines per room, wide dataclasses, docstrings, and the way of one run.

    python experiments/benchmarks/house.py                       # all that is read off the files
    python experiments/benchmarks/house.py --run "train cora --solver dd-adagrad --parts 4 --levels 2 --steps 1"

Without a run it takes two seconds. With one it counts the files and functions that are entered, and how often the file
changes, before the loop begins and in all.
"""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.test_docstrings import arguments, implements  # noqa: E402 (the rule stands beside the test that holds it)

TOPS = ("mldd", "solvers", "problems")


def sources() -> dict[Path, str]:
    """Return the text of every shipped file by its path below the root."""
    found = sorted(path for top in TOPS for path in (ROOT / top).rglob("*.py"))
    return {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in found}


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield the public functions with arguments, and those of public classes."""
    public = [node for node in tree.body if not getattr(node, "name", "_").startswith("_")]
    inner = [item for node in public if isinstance(node, ast.ClassDef) for item in node.body]
    for node in public + inner:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and arguments(node):
            yield node


def methods(trees: dict[Path, ast.Module]) -> Iterator[ast.FunctionDef]:
    """Yield the public methods with arguments."""
    for tree in trees.values():
        outer = {node for node in tree.body if isinstance(node, ast.FunctionDef)}
        yield from (node for node in functions(tree) if node not in outer)


def fields(tree: ast.AST) -> Iterator[tuple[str, int]]:
    """Yield the name and the number of fields of every dataclass."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef) and any("dataclass" in ast.dump(d) for d in node.decorator_list):
            yield (
                node.name,
                sum(isinstance(item, ast.AnnAssign) and "ClassVar" not in ast.dump(item) for item in node.body),
            )


def survey() -> None:
    """Print what can be read off the files."""
    texts = sources()
    trees = {path: ast.parse(text) for path, text in texts.items()}
    rooms = Counter(path.parent.as_posix() for path in texts if path.stem != "__init__")
    lines = {path: text.count("\n") for path, text in texts.items()}
    for room, count in sorted(rooms.items()):
        total = sum(n for path, n in lines.items() if path.parent.as_posix() == room)
        print(f"{room:<24} {count:3d} files {total:6d} lines")
    print(f"lines shipped            {sum(lines.values())}, longest file {max(lines.values())}")
    wide = sorted(((n, name) for tree in trees.values() for name, n in fields(tree) if n > 12), reverse=True)
    print(f"dataclasses beyond 12    {len(wide)}: {', '.join(f'{name} {n}' for n, name in wide)}")
    names = Counter(node.name for tree in trees.values() for node in tree.body if isinstance(node, ast.ClassDef))
    twins = sorted(name for name, count in names.items() if count > 1)
    print(f"classes of one name      {len(twins)}: {', '.join(twins)}")
    public = [ast.get_docstring(node) or "" for tree in trees.values() for node in functions(tree)]
    sections = sum("Parameters\n" in doc for doc in public)
    inherited = sum(
        implements(node) and "Parameters\n" not in (ast.get_docstring(node) or "") for node in methods(trees)
    )
    described = (sections + inherited) / len(public)
    print(f"Parameters sections      {sections} of {len(public)} public functions with arguments,")
    print(f"                         {inherited} more implement a documented contract ({described:.0%} described)")
    classes = [ast.get_docstring(n) or "" for t in trees.values() for n in ast.walk(t) if isinstance(n, ast.ClassDef)]
    sourced = sum("References\n" in doc for doc in public + classes)
    print(f"References sections      {sourced} functions and classes")
    asked = sum(len(re.findall(r"\b(?:getattr|hasattr)\(", text)) for text in texts.values())
    print(f"getattr and hasattr      {asked}")


def trace(line: str) -> None:
    """Run a command line and print the files and functions on its way."""
    from mldd.command.cli import main

    ours = tuple(f"{ROOT / top}/" for top in TOPS)
    way: list[tuple[str, str]] = []
    begun: list[int] = []

    def note(frame: Any, event: str, argument: Any) -> None:
        name = frame.f_code.co_filename
        if event == "call" and name.startswith(ours):
            way.append(
                (name, frame.f_code.co_qualname if hasattr(frame.f_code, "co_qualname") else frame.f_code.co_name)
            )
            if frame.f_code.co_name == "minimise" and not begun:
                begun.append(len(way))

    sys.setprofile(note)
    try:
        main(shlex.split(line))
    finally:
        sys.setprofile(None)
    for title, part in (("before the loop", way[: begun[0]] if begun else way), ("in all", way)):
        files = [name for name, _ in part]
        changes = sum(a != b for a, b in zip(files, files[1:], strict=False))
        print(f"{title:<24} {len(set(files))} files, {len(set(part))} functions, {changes} changes of file")


def main() -> None:
    """Read the arguments and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", metavar="LINE", help="a command line of mldd to follow")
    options = parser.parse_args()
    survey() if options.run is None else trace(options.run)


if __name__ == "__main__":
    main()
