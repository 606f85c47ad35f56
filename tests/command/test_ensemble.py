"""Runs from several seeds: each as it would be alone, and one table of quartiles."""

import csv

import numpy as np
import pytest

from mldd.command import cli
from mldd.command.ensemble import TableRow, quartiles, table
from mldd.loop import History, read_csv
from tests.helpers import result

pytestmark = pytest.mark.usefixtures("without_figures")
LINE = "train --evaluate-every 1 sbm --solver adam:lr=0.01 --steps 4 --quiet"


def rows_of(path):
    with open(path, newline="") as stream:
        return list(csv.DictReader(stream))


def test_each_seed_is_the_run_that_it_is_alone(run, tmp_path):
    code, out, err = run(f"{LINE} --seeds 0-2,5 --out", tmp_path / "all")
    assert (code, err) == (0, "")
    assert sorted(path.name for path in (tmp_path / "all").iterdir() if path.is_dir()) == ["0", "1", "2", "5"]
    for seed in (2, 5):
        assert run(f"{LINE} --seed {seed} --out", tmp_path / f"{seed}")[0] == 0
        alone, one = tmp_path / f"{seed}", tmp_path / "all" / f"{seed}"
        assert sorted(path.name for path in one.iterdir()) == sorted(path.name for path in alone.iterdir())
        for column in ("step", "measure", "value", "work_units"):
            assert read_csv(one / "history.csv").column(column) == read_csv(alone / "history.csv").column(column)
        for key in ("loss", "metrics", "seed", "status", "solver", "options"):
            assert result(one)[key] == result(alone)[key]


def test_the_table_has_the_quartiles_of_what_the_runs_say(run, tmp_path):
    code, out, _ = run(f"{LINE} --seeds 0-4 --out", tmp_path)
    assert code == 0
    contents = [result(tmp_path / f"{seed}") for seed in range(5)]
    found = {row["quantity"]: row for row in rows_of(tmp_path / "quartiles.csv")}
    for name in ("loss", "measure", "steps", "work_units", "seconds", "test_accuracy", "train_accuracy"):
        numbers = sorted(c[name] if name in c else c["metrics"][name] for c in contents)
        row = found[name]
        # of five numbers the quartiles are the second, the third and the fourth
        expected = dict(zip(("lower_quartile", "median", "upper_quartile"), numbers[1:4], strict=True))
        assert {key: float(row[key]) for key in expected} == pytest.approx(expected)
        assert row["runs"] == "5" and row["solver"] == "adam:lr=0.01"
        assert any(line.startswith(name.replace("_", " ")) for line in out.splitlines())
    assert out.splitlines()[0] == "adam:lr=0.01, 5 seeds: max_steps"
    assert [row["seed"] for row in rows_of(tmp_path / "compare.csv")] == ["0", "1", "2", "3", "4"]


def test_compare_has_quartiles_of_every_solver(run, tmp_path):
    code, out, _ = run("compare sbm --solvers adam,sgd --seeds 3-5 --steps 3 --quiet --out", tmp_path)
    assert code == 0 and "median (lower..upper quartile) over 3 seeds" in out
    found = [row for row in rows_of(tmp_path / "quartiles.csv") if row["quantity"] == "loss"]
    assert [row["solver"] for row in found] == ["adam", "sgd"]
    for row in found:
        losses = [result(tmp_path / row["solver"] / f"{seed}")["loss"] for seed in (3, 4, 5)]
        assert float(row["median"]) == pytest.approx(float(np.median(losses)))


def row(seed, loss, status="max_steps", error=""):
    content = {} if error else {"status": status, "loss": loss, "metrics": {}}
    return TableRow("adam", seed, content, History(), error)


def test_a_seed_that_failed_is_said_and_does_not_count():
    rows = [row(0, 1.0), row(1, 2.0), row(2, 3.0), row(3, 0.0, error="no luck")]
    assert "3 x max_steps, 1 x failed: no luck" in table(rows)[0]
    (loss,) = [found for found in quartiles(rows) if found["quantity"] == "loss"]
    assert (loss["runs"], loss["lower_quartile"], loss["median"], loss["upper_quartile"]) == (3, 1.5, 2.0, 2.5)


def test_a_loss_without_bound_does_not_hide_behind_the_others(recwarn):
    rows = [row(0, 1.0), row(1, float("inf"), "diverged")]
    assert "1 x diverged" in table(rows)[0] and not recwarn.list
    (loss,) = [found for found in quartiles(rows) if found["quantity"] == "loss"]
    assert not np.isfinite(loss["median"])


@pytest.mark.parametrize(("text", "seeds"), [("0-3", [0, 1, 2, 3]), ("7", [7]), ("4-4,0,9-10", [4, 0, 9, 10])])
def test_ranges(text, seeds):
    assert cli.parse(f"train sbm --solver adam --seeds {text}".split()).seeds == seeds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--seeds 3-1", "must be numbers and ranges as in 0,1,4-9, got '3-1'"),
        ("--seeds 3-", "must be numbers and ranges as in 0,1,4-9, got '3-'"),
        ("--seeds 0-2,1", "must differ from each other, got '0-2,1'"),
        ("--seeds a-b", "must be a whole number >= 0, got 'a'"),
        ("--seeds 0-2 --seed 1", "not allowed with argument"),
        ("--seeds 0-2 --checkpoint c.pt", "--checkpoint is of one run, got --seeds; give --seed S"),
        ("--seeds 0-2 --resume c.pt", "--resume is of one run, got --seeds; give --seed S"),
    ],
)
def test_what_is_refused(run, options, message):
    code, out, err = run(f"{LINE} {options}")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_an_ensemble_that_was_killed_is_not_overwritten(run, tmp_path):
    assert run(f"{LINE} --seeds 0-1 --out", tmp_path)[0] == 0
    for name in ("compare.csv", "quartiles.csv", "compare.pdf", "compare.png"):
        (tmp_path / name).unlink()
    code, _, err = run(f"{LINE} --seeds 0-1 --out", tmp_path)
    assert code == 2 and "with the results of another run (0/history.csv)" in err
    assert run(f"{LINE} --seeds 0-1 --overwrite --out", tmp_path)[0] == 0
