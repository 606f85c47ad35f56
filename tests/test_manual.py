"""All blocks of code in the manual are run as they stand.

A page is run from top to bottom in a folder of its own. A block of Python that the text tells to save is a file, of all
pages; other blocks of Python are executed, in one namespace per page. Of shells, `mldd ...` and `python FILE` are run,
and `mpiexec -n P mldd ...` as one process. After a comment `<!-- not run: why -->`, in batch scripts and where a line
is for other programs the shell checks the syntax, and mldd reads the options of its commands. Notebooks are executed by
`make manual` alone.
"""

import ast
import contextlib
import csv
import io
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
PATHS = {path.name: path for path in sorted(FOLDER.glob("*.md")) if path.name not in ELSEWHERE}
FENCE = re.compile(r"^```(python|sh)\n(.*?)^```", re.DOTALL | re.MULTILINE)
# Pages whose results are looked at below.
CHECKED = ("first_run.md", "module.md", "data.md", "problem.md", "solver.md")


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
    found = re.match(r"((mpiexec|srun|torchrun) .*?)?\bmldd (.*)", command)
    return shlex.split(found[3]) if found else None


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
            if block.kind != "sh" and not block.name:
                exec(compile(block.text, page, "exec"), names)
            elif block.kind == "sh" and (block.skipped or block.text.startswith("#!")):
                check(block.text)
            elif block.kind == "sh":
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


def of_solvers(out):
    """The losses in the table of `compare`, by solver."""
    return {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if re.match(r"\S+ +-?\d\S* ", line)}


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def test_the_pages_have_code():
    expected = ["net.py", "train.py", "data.py", "stations.py", "plaplace.py", "pendulums.py", "sweeps.py"]
    assert sorted(FILES) == sorted(expected)
    assert sum(bool(block.name) for page in BLOCKS.values() for block in page) == len(FILES)
    assert max(text.count("\n") for text in FILES.values()) <= 60
    fences = sum(path.read_text(encoding="utf-8").count("```") for path in PATHS.values())
    others = sum(len(re.findall(r"^```\{", p.read_text(encoding="utf-8"), re.M)) for p in PATHS.values())
    assert fences == 2 * (others + sum(map(len, BLOCKS.values()))), "every block is of a kind that is run"


def test_every_picture_is_drawn_by_a_function_and_shown_on_a_page():
    drawn = [path.stem for path in (FOLDER / "pictures").glob("*.png")]
    shown = [
        name for path in PATHS.values() for name in re.findall(r"\(pictures/(\w+)\.png\)", path.read_text("utf-8"))
    ]
    tree = ast.parse((FOLDER / "pictures.py").read_text(encoding="utf-8"))
    (names,) = [node.value.elts for node in tree.body if isinstance(node, ast.AnnAssign)]
    assert sorted(drawn) == sorted(shown) == sorted(name.id for name in names)


def test_fractions_have_braces():
    """What makes MathML of formulas takes the digits of a fraction without braces for one number, in silence."""
    pages = [*FOLDER.glob("*.md"), FOLDER.parent / "methods.md"]
    assert not [path.name for path in pages if re.search(r"\\[td]?frac\d", path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", sorted(set(PATHS) - set(CHECKED)))
def test_a_page_runs(tried, page):
    tried(page)


def test_a_first_run(tried):
    alone, compared, shared = tried("first_run.md")
    assert (
        "converged_atol" in alone
        and set(of_solvers(compared)) == {"dd-adagrad", "adam"}
        and re.search(r"steps +5\n", shared)
    )


def test_a_first_run_in_python_takes_the_steps_that_the_page_says():
    (block,) = (block.text for block in BLOCKS["first_run.md"] if block.kind == "python")
    with contextlib.redirect_stdout(io.StringIO()) as said:
        exec(compile(block, "first_run.md", "exec"), {})
    steps = [line.split()[1] for line in said.getvalue().splitlines() if line.startswith("converged_atol ")]
    stated = re.search(r"takes (\d+) steps instead of (\d+)", PATHS["first_run.md"].read_text(encoding="utf-8"))
    assert steps == [stated[2], stated[1]]


def test_a_network(tried, tmp_path):
    pytest.importorskip("torch_geometric")
    tried("module.md")
    for folder in ("trained", "from_python"):
        assert (tmp_path / folder / "model.pt").is_file()
    assert json.loads((tmp_path / "from_python" / "result.json").read_text())["metrics"]["train_accuracy"] > 0.8


def test_data(tried, tmp_path):
    of_graph, predicted, *listed, of_stations, _, _ = tried("data.md")
    assert "test accuracy" in of_graph and "written" in predicted and "test skill climatology" in of_stations
    assert len(rows(tmp_path / "classes.csv")) == 300
    assert "network.model" in listed[0] and "plan.horizon" in listed[1]
    assert [row["lead_hours"] for row in rows(tmp_path / "forecaster" / "lead_times.csv")] == ["1", "6", "12"]
    forecast = rows(tmp_path / "forecast.csv")
    assert len(forecast) == 3 * 48 and all(270 < float(row["t2m"]) < 290 for row in forecast)


def test_problems(tried):
    of_grid, of_levels = tried("problem.md")
    assert "steps    20" in of_grid
    losses = of_solvers(of_levels)
    assert set(losses) == {"ml-adagrad", "dd-adagrad", "lbfgs"}
    assert losses["ml-adagrad"] == pytest.approx(losses["dd-adagrad"], rel=1e-4)


def test_a_solver_beside_built_in_ones(tried, tmp_path):
    compared, listed = tried("solver.md")
    losses = of_solvers(compared)
    assert len(losses) == 3
    assert losses["sweeps.py:MomentumSchwarz"] == pytest.approx(losses["ml-adagrad"], rel=1e-3)
    assert (tmp_path / "compared" / "compare.pdf").is_file() and "beta : number, default 0.3" in listed
