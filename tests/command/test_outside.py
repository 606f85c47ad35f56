"""Problems, solvers and partitioners of a user's own, in files and packages, named on the command line."""

import json
import textwrap

import numpy as np
import pytest
import torch

from mldd.algebra import registered
from mldd.command import names
from mldd.graph import Graph, partition, report
from mldd.loop import Problem
from mldd.problems.graphs import NodeClassification
from tests.helpers import user_arrays

PROBLEM = """
    from dataclasses import dataclass
    import torch
    from mldd import Bounds
    from mldd.algebra import Level, Hierarchy, index_decomposition, contiguous

    class Bowl:
        def __init__(self, n, centre):
            self.size, self.centre, self.bounds = n, centre, Bounds.free(n, dtype=torch.float64)

        def value(self, x):
            return 0.5 * (x - self.centre).square().sum(-1)

        def gradient(self, x):
            return x - self.centre

    class Plain:
        def objective(self):
            return Bowl(6, 1.0)

        def initial(self, seed=0):
            return torch.zeros(6, dtype=torch.float64)

    @dataclass(frozen=True)
    class Mine(Plain):
        n: int = 8
        centre: float = 2.0

        def objective(self):
            return Bowl(self.n, self.centre)

        def initial(self, seed=0):
            return torch.full((self.n,), float(seed), dtype=torch.float64)

        def decomposition(self, parts, overlap, comm):
            subdomains = contiguous([1] * self.n, parts, overlap)
            return index_decomposition(self.objective(), subdomains, comm.share(parts))

    class Half:
        def objective(self):
            return Bowl(3, 0.0)
"""
SOLVER = """
    from dataclasses import dataclass
    from mldd import State

    @dataclass(frozen=True)
    class Descent:
        \"\"\"Steepest descent with a fixed rate.

        Parameters
        ----------
        rate : float
            Length of a step over that of the gradient.
        \"\"\"

        rate: float = 0.5

        def init(self, objective, x):
            return State()

        def step(self, objective, x, state):
            return x - self.rate * objective.gradient(x), state
"""
CUT = """
    import numpy as np
    import torch

    def stripes(cut):
        return np.arange(cut.graph.nodes) % cut.parts

    def of_torch(cut):
        return torch.zeros(cut.graph.nodes, dtype=torch.int32)

    def short(cut):
        return np.arange(cut.graph.nodes - 1) % cut.parts

    def high(cut):
        return np.arange(cut.graph.nodes)

    def fractions(cut):
        return np.arange(cut.graph.nodes) / cut.graph.nodes

    class Stripes:
        pass
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_problem.py").write_text(textwrap.dedent(PROBLEM))
    (tmp_path / "my_solver.py").write_text(textwrap.dedent(SOLVER))
    (tmp_path / "my_cut.py").write_text(textwrap.dedent(CUT))
    np.savez(tmp_path / "graph.npz", **user_arrays())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_a_file_is_a_problem_and_a_solver_from_any_folder(run, here, monkeypatch, without_figures):
    below = here / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    line = "train ../my_problem.py:Mine:n=5,centre=3 --solver ../my_solver.py:Descent:rate=1 --steps 3 --atol 1e-12"
    assert run(line + " --quiet --out o") == (0, "", "")
    content = json.loads((below / "o" / "result.json").read_text())
    assert (content["status"], content["steps"], content["loss"]) == ("converged_atol", 1, 0.0)
    assert content["options"]["problem"] == "../my_problem.py:Mine:n=5,centre=3.0"
    assert content["options"]["solver"] == "../my_solver.py:Descent:rate=1.0"


def test_a_package_of_ones_own_is_one_too(here):
    spec = names.problem_spec("my_problem:Mine:n=7")
    assert spec.keys == {"n": 7} and issubclass(spec.kind, Problem)
    assert names.solver_spec("my_solver:Descent(rate=0.25)").make().rate == 0.25


def test_solvers_from_outside_stand_in_trees_and_comparisons(run, here):
    spec = names.solver_spec("schwarz:local=my_solver.py:Descent(rate=0.25)")
    assert spec.keys["local"].make().rate == 0.25
    line = "compare my_problem.py:Mine --solvers my_solver.py:Descent:rate=0.9,lbfgs,schwarz:local=my_solver.py:Descent"
    code, out, err = run(line + " --parts 2 --overlap 1 --steps 4 --quiet")
    assert (code, err) == (0, "") and "my_solver.py:Descent:rate=0.9" in out


def test_a_class_with_objective_and_start_is_enough(run, here):
    code, out, err = run("train my_problem.py:Plain --solver lbfgs --steps 20 --atol 1e-8")
    assert (code, err) == (0, "") and "converged_atol" in out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("my_problem.py:Plain --solver ml-adagrad", "solver ml-adagrad needs `hierarchy(levels)`, which problem Plain"),
        ("my_problem.py:Plain --solver dd-adagrad", "needs `decomposition(parts, overlap, comm)`, which problem Plain"),
        ("my_problem.py:Half --solver lbfgs", "a problem must have `initial(seed)`, which Half does not have"),
        ("my_problem.py:Min --solver lbfgs", "must have a class Min (did you mean Mine?), got Bowl Plain Mine Half"),
        ("my_problem.py:Plain:n=3 --solver lbfgs", "has no key 'n'; its keys are none"),
        ("none.py:Mine --solver lbfgs", "none.py must be a Python file, got none"),
        ("none.such:Mine --solver lbfgs", "none.such must be a module that can be imported, got none"),
        ("my_problem.py:Mine --solver my_solver.py:Descent:rate=x", "rate` must be a number, got 'x'"),
    ],
)
def test_what_is_missing_is_named_in_one_line(run, here, line, message):
    code, out, err = run("train " + line)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_keys_of_a_class_from_outside_are_listed(run, here):
    code, out, err = run("list my_solver.py:Descent")
    assert (code, err) == (0, "") and "Steepest descent with a fixed rate." in out
    assert "  rate : number, default 0.5\n      Length of a step over that of the gradient." in out
    assert "  centre : number, default 2.0" in run("list my_problem.py:Mine")[1]


def test_entry_points_of_other_packages_are_names(here, monkeypatch):
    folder = here / "theirs-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text(
        "[mldd.solvers]\ndescent = my_solver:Descent\n[mldd.problems]\nmine = my_problem:Mine\n"
        "[mldd.partitioners]\nstripes = my_cut:stripes\n"
    )
    assert registered("mldd.solvers")["descent"] == "my_solver:Descent"
    assert registered("mldd.problems")["mine"] == "my_problem:Mine"
    assert registered("mldd.graph.partitioners")["stripes"] == "my_cut:stripes"
    monkeypatch.setattr("mldd.graph.partitioning._METHODS", registered("mldd.graph.partitioners"))
    path = Graph.from_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
    assert partition(path, 2, "stripes").tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("method", ["my_cut.py:stripes", "my_cut:stripes"])
def test_a_function_in_a_file_or_package_is_a_partitioner(run, here, method):
    code, out, err = run(f"partition graph.npz --parts 3 --methods contiguous,{method} --out o")
    assert (code, err) == (0, "") and [line.split()[0] for line in out.splitlines()[2:4]] == ["contiguous", method]
    rows = json.loads((here / "o" / "partition.json").read_text())["rows"]
    expected = report(NodeClassification("graph.npz").graph, torch.arange(60) % 3)
    assert rows[1]["method"] == method and {key: rows[1][key] for key in expected} == expected


def test_empty_parts_of_a_partitioner_from_outside_are_filled(here):
    path = Graph.from_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
    part = partition(path, 3, "my_cut.py:of_torch")
    assert part.dtype == torch.int64 and part.unique().tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ("my_cut.py:stripe", "my_cut.py must have a function stripe (did you mean stripes?), got stripes of_torch"),
        ("my_cut.py:Stripes", "my_cut.py must have a function Stripes"),
        ("none.py:stripes", "none.py must be a Python file, got none"),
        ("none.such:stripes", "none.such must be a module that can be imported, got none"),
        ("my_cut.py:short", "my_cut.py:short must return integers 0..2 of shape (60,), got int64 of shape (59,)"),
        ("my_cut.py:high", "must return integers 0..2 of shape (60,), got int64 of shape (60,) in 0..59"),
        ("my_cut.py:fractions", "must return integers 0..2 of shape (60,), got float64 of shape (60,)"),
        ("my_cut.py:stripes:n=3", "`method` must be one of metis"),
        ("metis:stripes", "`method` must be one of metis"),
    ],
)
def test_what_is_wrong_with_a_partitioner_is_said_in_one_line(run, here, method, message):
    code, out, err = run(f"partition graph.npz --parts 3 --methods {method}")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1
