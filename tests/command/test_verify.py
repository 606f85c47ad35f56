"""`--verify`: what is right passes, and a gradient that is not that of the objective ends the run."""

import warnings

import pytest

from tests.helpers import result

WRONG = """
from dataclasses import dataclass

import torch

from mldd import Problem
from mldd.algebra import Bounds


class Bowl:
    size = 5
    bounds = Bounds.free(5)

    def value(self, x):
        return (x * x).sum() / 2

    def gradient(self, x):
        return x * torch.tensor([1.0, 1.0, 1.0, 1.0, FACTOR], dtype=torch.float64)


@dataclass(frozen=True)
class Wrong(Problem):
    def objective(self):
        return Bowl()

    def initial(self, seed=0):
        return torch.ones(5, dtype=torch.float64)
"""


@pytest.mark.parametrize(("factor", "code"), [("1.0", 0), ("2.0", 1)])
def test_a_gradient_that_is_not_the_slope_ends_the_run(run, without_figures, tmp_path, factor, code):
    (tmp_path / "wrong.py").write_text(WRONG.replace("FACTOR", factor))
    line = f"train {tmp_path}/wrong.py:Wrong --solver sgd:lr=0.1 --steps 5 --verify 2 --out {tmp_path}/run"
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found, _, err = run(line)
    content = result(tmp_path / "run")
    assert found == code and content["options"]["verify"] == 2 and content["rollbacks"] == 0
    assert content["status"] == ("corrupted" if code else "max_steps")
    assert ("mldd: error: corrupted" in err) == bool(code)
    assert any("the gradient is not the slope of the objective" in str(w.message) for w in said) == bool(code)


def test_an_interval_is_needed(run):
    code, _, err = run("train quadratic:n=7 --solver lbfgs --verify 0")
    assert code == 2 and "must be a whole number >= 1, got '0'" in err
