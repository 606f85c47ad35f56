"""The six runs of PETSC.md, as they stand there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

pytest.importorskip("petsc4py", reason="petsc4py is not installed")
pytest.importorskip("greenlet", reason="greenlet is not installed")

from mldd.command.cli import main  # noqa: E402
from mldd.ranks import load_petsc  # noqa: E402
from tests.helpers import result  # noqa: E402

PAGE = (Path(__file__).parents[1] / "PETSC.md").read_text()
COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL) for line in block.splitlines()]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What the six runs have written to `result.json`."""
    folder = tmp_path_factory.mktemp("runs")
    contents = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mldd.figures.curves.convergence", lambda *given: None)
        for k, command in enumerate(COMMANDS):
            words = [*shlex.split(command)[1:], "--quiet", "--out", str(folder / str(k))]
            assert main(words) == 0, command
            contents.append(result(folder / str(k)))
            for word in words:  # options stay in the database until it is told otherwise
                if re.match("-[a-z]", word):
                    load_petsc().Options().delValue(word[1:])
    return contents


def test_there_are_six():
    assert len(COMMANDS) == 6 and all(command.startswith("mldd train ") for command in COMMANDS)
    assert all(len(line) <= 120 for line in PAGE.splitlines() if line not in COMMANDS)


def test_all_converge(runs):
    assert [content["status"] for content in runs] == ["converged_atol"] * 6
    assert all(content["bounds_violation"] == 0.0 for content in runs[:4])


def test_they_find_the_same(runs):
    obstacle, quadratic = ([content["loss"] for content in part] for part in (runs[:4], runs[4:]))
    assert obstacle == pytest.approx([obstacle[0]] * 4, abs=1e-7)
    assert quadratic == pytest.approx([quadratic[0]] * 2, abs=1e-7)


def test_a_solver_is_the_same_by_key_and_by_option(runs):
    by_key, by_option = runs[1:3]
    for name in ("steps", "levels", "gradient_evaluations", "work_units"):
        assert by_key[name] == by_option[name], name


def test_the_tree_is_written_down(runs):
    assert "solver=ml-adagrad(smoother=adagrad(varsigma=0.01" in runs[1]["options"]["solver"]
    assert "local=tao(type=bntr,prefix=local_,solver=None)" in runs[3]["options"]["solver"]
    assert (runs[3]["levels"], runs[4]["parts"], runs[5]["parts"], runs[5]["overlap"]) == (3, 4, 4, 2)


def test_multilevel_and_acceleration_pay(runs):
    assert runs[1]["steps"] < runs[0]["steps"] / 3
    assert max(runs[4]["steps"], runs[5]["steps"]) <= 20  # nonlinear RAS alone: 30


def test_monitors_and_views_speak(tmp_path, capfd):
    words = shlex.split(COMMANDS[1])[1:]
    assert main([*words, "--quiet", "--steps", "3"]) == 0
    out = capfd.readouterr().out
    for name in ("tao_monitor", "tao_view"):
        load_petsc().Options().delValue(name)
    assert "3 TAO,  Function value:" in out and "mldd solver ml-adagrad(" in out and "grid complexity" in out
