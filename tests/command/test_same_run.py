"""Which run a checkpoint belongs to is decided by the data; figures are less important than runs."""

import numpy as np
import pytest
import torch

from mldd.problems.graphs import NodeClassification
from tests.helpers import user_tensors

TRAIN = "train {}:{} --solver lbfgs --steps {} --quiet"


@pytest.fixture
def here(tmp_path, monkeypatch):
    torch.save(user_tensors(), tmp_path / "own.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_run_is_known_by_its_data_and_not_by_their_path(run, here):
    assert run(TRAIN.format("own.pt", "dropout=0", 3) + " --checkpoint c.pt")[0] == 0
    go_on = " --resume c.pt"
    for name, keys in (
        ("./own.pt", "dropout=0"),
        (str(here / "own.pt"), "dropout=0"),
        ("own.pt", "dropout=0,hidden=16"),
    ):
        assert run(TRAIN.format(name, keys, 5) + go_on) == (0, "", "")
    arrays = {key: value.numpy() for key, value in user_tensors().items()}
    layout = {"edges": arrays["edge_index"].T, "node_features": arrays["x"], "node_labels": arrays["y"]}
    np.savez("same.npz", **layout)
    assert run(TRAIN.format("same.npz", "dropout=0", 5) + go_on) == (0, "", "")
    code, _, err = run(TRAIN.format("own.pt", "dropout=0,hidden=8", 5) + go_on)
    assert code == 2 and "the checkpoint must be one of the same run, with problem" in err
    torch.save({**user_tensors(), "x": user_tensors()["x"] + 1e-6}, "own.pt")
    code, _, err = run(TRAIN.format("own.pt", "dropout=0", 5) + go_on)
    assert code == 2 and "the checkpoint must be one of the same run, with data" in err and err.count("\n") == 1


@pytest.mark.parametrize("field", ["x", "edge_index", "y"])
def test_the_checksum_sees_every_array(here, field):
    before = NodeClassification("own.pt").identity()
    assert NodeClassification(str(here / "own.pt")).identity() == before
    tensors = user_tensors()
    tensors[field] = tensors[field].flip(0) if field != "edge_index" else tensors[field][:, 1:]
    torch.save(tensors, "own.pt")
    assert NodeClassification("own.pt").identity() != before


def test_a_figure_that_cannot_be_drawn_costs_the_figure(run, here, monkeypatch):
    def fail(*arguments):
        raise RuntimeError("no backend")

    monkeypatch.setattr("mldd.figures.curves.convergence", fail)
    monkeypatch.setattr("mldd.figures.curves.comparison", fail)
    with pytest.warns(UserWarning, match="the figure compare was not drawn: RuntimeError: no backend"):
        code, out, _ = run("compare own.pt --solvers adam,sgd,adagrad --steps 2 --out o --quiet")
    assert code == 0 and all(f"\n{name} " in out for name in ("adam", "sgd", "adagrad"))
    assert len(list((here / "o").rglob("history.csv"))) == 3 and (here / "o" / "compare.csv").is_file()
