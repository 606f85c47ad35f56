"""`mldd plot`: which files it writes and never replaces, and which runs it takes for comparable."""

import math
import shutil
import warnings

import numpy as np
import pytest

from mldd import Status
from mldd.loop import CsvWriter
from tests.helpers import user_arrays


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Runs of two solvers from two seeds, and the same solver with other options elsewhere."""
    from mldd.command.cli import main

    home = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mldd.figures.curves.convergence", lambda history, path, title: path.touch())
        line = "compare obstacle:n=7 --solvers adagrad,adam --steps 5 --seeds 0,1 --quiet --out"
        assert main([*line.split(), str(home / "a")]) == 0
        line = "train obstacle:n=7 --solver adam --steps 9 --target -0.001 --norm 2 --quiet --out"
        assert main([*line.split(), str(home / "b")]) == 0
    return home


@pytest.fixture
def seen(monkeypatch):
    """What is drawn, noted before it is."""
    from mldd.command import plot

    calls = []
    for name in ("comparison", "convergence"):
        draw = getattr(plot, name)
        monkeypatch.setattr(
            plot, name, lambda *given, draw=draw, **more: calls.append((given, more)) or draw(*given, **more)
        )
    return calls


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_one_folder_is_drawn_beside_its_results(run, folders):
    figures = [folders / "a" / f"compare.{kind}" for kind in ("pdf", "png")]
    for figure in figures:
        figure.write_text("old")
    code, out, err = run("plot", folders / "a")
    assert (code, out.split(), err) == (0, list(map(str, figures)), "")
    assert all(figure.stat().st_size > 10_000 for figure in figures)


def test_several_folders_never_write_silently_to_the_current_one(run, folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (folders / "a" / "adam" / "0" / "compare.png").unlink(missing_ok=True)
    pair = folders / "a" / "adam" / "0", folders / "a" / "adagrad" / "0"
    code, out, err = run("plot", *pair)
    assert (code, err) == (0, "") and names(tmp_path) == []
    assert out.split() == [str(pair[0] / f"compare.{kind}") for kind in ("pdf", "png")]
    code, out, err = run("plot", *pair)
    assert code == 2 and out == "" and err.count("\n") == 1
    assert f"{pair[0] / 'compare.pdf'} must be a new file" in err and "--out another name, or --overwrite" in err
    assert run("plot", *pair, "--overwrite")[0] == 0
    assert run("plot", *pair, "--out", "mine.svg")[:2] == (0, "mine.svg\n") and names(tmp_path) == ["mine.svg"]
    content = (tmp_path / "mine.svg").read_bytes()
    assert run("plot", *pair, "--out", "mine.svg")[0] == 2 and (tmp_path / "mine.svg").read_bytes() == content


def test_costs_and_quantities_are_chosen(run, folders, tmp_path, seen):
    line = f"--out {tmp_path / 'c'} --against seconds,step --show value,gap"
    assert run("plot", folders / "a", *line.split())[0] == 0
    assert seen[0][1] == {"against": ["seconds", "step"], "show": ["value", "gap"]}
    code, _, err = run("plot", folders / "a", "--against", "money", "--out", tmp_path / "d")
    assert code == 2 and "must be one of step seconds" in err and names(tmp_path) == ["c.pdf", "c.png"]


def test_one_run_alone(run, folders, seen):
    assert run("plot", folders / "b")[0] == 0
    history = seen[0][0][0]
    assert history.norm == 2.0 and history.status is Status.target_reached
    assert (folders / "b" / "convergence.pdf").exists()


def test_measures_of_two_norms_do_not_share_an_axis(run, folders, tmp_path):
    code, _, err = run("plot", folders / "a", folders / "b", "--out", tmp_path / "c")
    assert code == 2 and "must be in one norm, got those in the norms 2 inf" in err and err.count("\n") == 1
    assert run("plot", folders / "a", folders / "b", "--out", tmp_path / "c", "--show", "value,gap")[0] == 0


def test_runs_are_aligned_by_seed_and_the_same_solver_twice_is_told_apart(folders, tmp_path, seen, run):
    run("plot", folders / "a", folders / "b", "--out", tmp_path / "c", "--show", "value")
    curves = seen[0][0][0]
    a, b = folders / "a", folders / "b"
    assert list(curves) == [f"adagrad in {a}", f"adam in {a}", f"adam in {b}"]
    assert [[len(history.records) > 0 for history in row] for row in curves.values()] == [[1, 1], [1, 1], [1, 0]]
    assert all(h.norm == math.inf and h.status is Status.max_steps for h in curves[f"adam in {a}"])


def test_a_run_that_was_killed_is_named_by_its_folder_and_has_no_end(folders, tmp_path, run, seen):
    for seed in (0, 1):
        place = tmp_path / "adam_lr=1" / str(seed)
        place.mkdir(parents=True)
        (place / "history.csv").write_bytes((folders / "a" / "adam" / str(seed) / "history.csv").read_bytes())
    (tmp_path / "empty").mkdir()
    CsvWriter(tmp_path / "empty" / "history.csv").close()
    assert run("plot", tmp_path)[0] == 0
    (((curves, _), _),) = seen
    assert {name: [h.status for h in row] for name, row in curves.items()} == {"adam_lr=1": [None, None]}
    code, _, err = run("plot", tmp_path / "empty")
    assert code == 2 and "got histories without records" in err


def test_the_same_run_given_twice_counts_once(folders, tmp_path, run, seen):
    both = folders / "a", folders / "a" / "adam"
    assert run("plot", *both, "--out", tmp_path / "c.png")[0] == 0
    assert {name: len(row) for name, row in seen[0][0][0].items()} == {"adagrad": 2, "adam": 2}


def test_runs_are_of_the_same_problem_whose_data_and_keys_are_the_same(
    run, seen, tmp_path, monkeypatch, without_figures
):
    monkeypatch.chdir(tmp_path)
    np.savez("own.npz", **user_arrays())
    np.savez("other.npz", **user_arrays(seed=1))
    for k, (name, solver) in enumerate((("own.npz:hidden=4,layers=2", "adam"), ("./own.npz:layers=2,hidden=4", "sgd"))):
        assert run(f"train {name} --solver {solver} --steps 2 --quiet --out r{k}")[0] == 0
    assert run("plot r0 r1")[0] == 0
    assert {name: len(runs) for name, runs in seen[-1][0][0].items()} == {"adam": 1, "sgd": 1}
    shutil.copy("other.npz", "own.npz")  # the same name is another problem now
    assert run("train own.npz:hidden=4,layers=2 --solver adam --steps 2 --quiet --out r2")[0] == 0
    assert run("plot r0 r2 --overwrite")[0] == 0
    drawn = seen[-1][0][0]
    assert len(drawn) == 2 and all(len(runs) == 2 for runs in drawn.values()), drawn.keys()


DAMAGED = ["", "{", "[]", "3", '{"options": 3, "seed": "x", "problem": [], "status": {}}', "[" * 100_000, "\x00"]


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_result_costs_its_names_and_no_more(folders, tmp_path, content):
    from mldd.command.plot import _search

    shutil.copytree(folders / "a" / "adam" / "1", tmp_path / "adam" / "1")
    whole = next(_search([tmp_path]))
    (tmp_path / "adam" / "1" / "result.json").write_text(content)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = next(_search([tmp_path]))
    assert (found.solver, found.seed, found.history.records) == ("adam", 1, whole.history.records)
    assert len(said) == (content[:1] not in ("[", "3") and content[:3] != '{"o' or len(content) > 1000)
