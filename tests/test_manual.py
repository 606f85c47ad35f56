"""All blocks of code in the manual are run as they stand.

A page is run from top to bottom in a folder of its own. A block of Python that the text tells to save is a file, of all
pages; other blocks of Python and the cells of notebooks are executed, in one namespace per page. Of shells, `mldd ...`
and `python FILE` are run, and `mpiexec -n P mldd ...` as one process. After a comment `<!-- not run: why -->`, and where a line
is for other programs, the shell checks its syntax, and a command of mldd is read with all its options.
"""

import csv
import json
import re
import runpy
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from mldd.command.options import parse

FOLDER = Path(__file__).parents[1] / "paper" / "manual"
ELSEWHERE = {"anemoi.md", "forecasts.md"}  # run by tests of their own: tests/anemoi, test_forecasts_page.py
PATHS = {path.relative_to(FOLDER).as_posix(): path for path in sorted(FOLDER.rglob("*.md"))}
PATHS = {name: path for name, path in PATHS.items() if name not in ELSEWHERE}
FENCE = re.compile(r"^```(\{code-cell\} ipython3|python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
NEEDS = {"module.md": "torch_geometric", "notebooks/cora.md": "torch_geometric"}


class Block(NamedTuple):
    kind: str
    text: str
    name: str  # of the file that it is saved as, or empty
    skipped: bool


def blocks(path):
    """The blocks of a page, in their order."""
    text, end = path.read_text(encoding="utf-8"), 0
    for found in FENCE.finditer(text):
        before, end = text[end : found.start()].rstrip(), found.end()
        saved = re.search(r"Save\s+(?:it|this)\s+as\s+`(\w+\.py)`:$", before)
        skipped = before.rpartition("\n")[2].startswith("<!-- not run: ")
        yield Block(found[1], found[2], saved[1] if saved else "", skipped)


BLOCKS = {name: list(blocks(path)) for name, path in PATHS.items()}
FILES = {block.name: block.text for page in BLOCKS.values() for block in page if block.name}


def commands(text):
    """The lines of a shell, those that go on joined and comments left out."""
    lines = (re.sub(r"(^|\s+)#.*", "", line) for line in text.replace("\\\n", " ").splitlines())
    return [line for line in lines if line.strip()]


def of_mldd(command):
    """The words behind `mldd`, or None; launchers are left out."""
    words = shlex.split(command) if command.count('"') % 2 == 0 else []
    return words[words.index("mldd") + 1 :] if "mldd" in words[:5] else None


def check(text):
    """A shell understands it, and mldd the commands that are for it."""
    subprocess.run(["bash", "-n"], input=text, text=True, check=True)
    for command in commands(text):
        words = of_mldd(command.rstrip("& "))
        if words and words[0] in ("train", "compare"):
            parse(words)


@pytest.fixture
def tried(run, tmp_path, monkeypatch):
    """Run a page in a folder with the files of all pages; give what its commands have said."""

    def call(page):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, text in FILES.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        said, names = [], {"__name__": page.replace("/", "_")}
        for block in BLOCKS[page]:
            if block.kind != "sh":
                exec(
                    compile(block.text, block.name or page, "exec"), names if not block.name else {"__name__": "saved"}
                )
            elif block.skipped or block.text.startswith("#!"):
                check(block.text)
            else:
                said += [out for command in commands(block.text) for out in one(command)]
        return said

    def one(command):
        words = of_mldd(command)
        if words is not None:
            code, out, error = run("", *words)
            assert code == 0, f"{command}: {error}"
            yield out
        elif command.startswith("python ") and command.split()[1] in FILES:
            runpy.run_path(command.split()[1], run_name="__main__")
        else:
            check(command)

    return call
