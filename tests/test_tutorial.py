"""The tutorial runs as it stands: its files are saved under the names it gives them, and its commands are run."""

import csv
import json
import re
import runpy
import shlex
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "paper" / "tutorial.md").read_text(encoding="utf-8")
FILES = dict(re.findall(r"Save\s+it\s+as `(\w+\.py)`:\n\n```python\n(.*?)```", PAGE, re.DOTALL))
SECTIONS = dict(re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE))
NETWORK, DATA, FORECAST, GRID, LEVELS, SOLVER, BOTH = SECTIONS


def commands(section):
    blocks = re.findall(r"```sh\n(.*?)```", SECTIONS[section], re.DOTALL)
    return [line for text in blocks for line in text.splitlines() if line]


@pytest.fixture
def tried(run, tmp_path, monkeypatch):
    """Run the commands of a section in their order, in a folder with the files of the page; give their output."""

    def call(section):
        monkeypatch.chdir(tmp_path)
        monkeypatch.syspath_prepend(str(tmp_path))
        for name, text in FILES.items():
            (tmp_path / name).write_text(text, encoding="utf-8")
        said = []
        for command in commands(section):
            program, *words = shlex.split(command)
            if program == "python":
                runpy.run_path(words[0], run_name="__main__")
                continue
            code, out, error = run(" ".join(words))
            assert (program, code) == ("mldd", 0), f"{command}: {error}"
            said.append(out)
        return said

    return call


def lines(name):
    return len([line for line in FILES[name].splitlines() if line])


def test_the_page_has_files_and_commands():
    assert list(FILES) == [
        *("net.py", "train.py", "data.py", "stations.py", "plaplace.py", "pendulums.py", "sweeps.py")
    ]
    assert len(re.findall(r"```python", PAGE)) == len(FILES)
    assert [len(commands(section)) for section in SECTIONS] == [2, 6, 3, 1, 1, 0, 2]
    assert max(lines("net.py"), lines("train.py")) <= 15
    assert max(map(lines, FILES)) <= 50


def test_the_table_counts_lines_as_they_are():
    rows = re.findall(r"^\| .*\]\(#.*\| (.*) \| (\d+) \|$", PAGE, re.MULTILINE)
    counts = [[int(number) for number in re.findall(r"\d+", row)] for row, _ in rows]
    files = [("net.py", "train.py"), ("stations.py",), ("plaplace.py", "pendulums.py"), ("sweeps.py",), ()]
    assert [[n for n in row if n] for row in counts] == [list(map(lines, names)) for names in files]


def test_a_network(tried, tmp_path):
    pytest.importorskip("torch_geometric")
    tried(NETWORK)
    for folder in ("trained", "from_python"):
        assert (tmp_path / folder / "model.pt").is_file()
    assert json.loads((tmp_path / "from_python" / "result.json").read_text())["metrics"]["train_accuracy"] > 0.8


def test_data(tried, tmp_path):
    of_graph, predicted, *listed, of_stations = tried(DATA)
    assert "test accuracy" in of_graph and "written" in predicted and "test skill climatology" in of_stations
    with (tmp_path / "classes.csv").open(newline="") as stream:
        assert len(list(csv.DictReader(stream))) == 300
    assert "network.model" in listed[0] and "plan.horizon" in listed[1]


def test_a_forecast_to_keep(tried, tmp_path):
    tried(FORECAST)
    with (tmp_path / "forecaster" / "lead_times.csv").open(newline="") as stream:
        assert [row["lead_hours"] for row in csv.DictReader(stream)] == ["1", "6", "12"]
    with (tmp_path / "forecast.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * 48 and all(270 < float(row["t2m"]) < 290 for row in rows)


def test_a_problem_on_a_grid(tried):
    (out,) = tried(GRID)
    assert "steps    20" in out


def test_a_problem_with_levels_of_its_own(tried):
    (out,) = tried(LEVELS)
    losses = of_solvers(out)
    assert set(losses) == {"ml-adagrad", "dd-adagrad", "lbfgs"}
    assert losses["ml-adagrad"] == pytest.approx(losses["dd-adagrad"], rel=1e-4)


def of_solvers(out):
    """The losses in the table of `compare`, by solver."""
    return {line.split()[0]: float(line.split()[1]) for line in out.splitlines() if re.match(r"\S+ +-?\d\S* ", line)}


def test_a_solver_beside_built_in_ones(tried, tmp_path):
    compared, listed = tried(BOTH)
    losses = of_solvers(compared)
    assert len(losses) == 3
    assert losses["sweeps.py:MomentumSchwarz"] == pytest.approx(losses["ml-adagrad"], rel=1e-3)
    assert (tmp_path / "compared" / "compare.pdf").is_file() and "beta : number, default 0.3" in listed
