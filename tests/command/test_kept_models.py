"""Train, keep, predict, read back: what a run leaves, and what is refused on the way."""

import csv
import hashlib
import json

import numpy as np
import pytest
import torch

import mldd
from mldd.loop import read_csv
from mldd.problems.graphs import NodeClassification
from mldd.problems.grids import Obstacle
from tests.helpers import result, user_arrays

pytestmark = pytest.mark.usefixtures("without_figures")


@pytest.fixture
def graph(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    return tmp_path / "own.npz"


def refused(run, words, *line):
    code, out, err = run(*line)
    assert (code, out) == (2, "") and err.startswith("mldd: error: ") and err.count("\n") == 1
    assert words in err


def test_a_model_is_kept_and_predicts_what_the_run_says(run, tmp_path, graph):
    out = tmp_path / "out"
    assert run(f"train {graph}:hidden=6 --solver adam --steps 20 --seed 4 --quiet --out", out) == (0, "", "")
    content = torch.load(out / "model.pt", weights_only=True)
    about = content["about"]
    assert (about["seed"], about["status"], about["step"], about["kept"]) == (4, "max_steps", 20, "last")
    assert about["versions"]["mldd"] == mldd.__version__ and about["metrics"] == result(out)["metrics"]
    code, said, err = run(f"predict {out} {graph} --out", tmp_path / "p.csv")
    assert (code, err) == (0, "") and "predicted_class (node 60); probability (node 60, class 3)" in said
    with open(tmp_path / "p.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    problem = NodeClassification(str(graph))
    labels, test = problem.graph_data.labels.numpy(), problem.graph_data.test.numpy()
    classes = np.array([int(row["predicted_class"]) for row in rows])
    assert np.mean(classes[test] == labels[test]) == pytest.approx(result(out)["metrics"]["test_accuracy"])
    assert sum(float(rows[3][f"probability_{k}"]) for k in range(3)) == pytest.approx(1.0)
    assert run(f"predict {out / 'model.pt'} {graph} --quiet --out", tmp_path / "p.npz") == (0, "", "")
    assert (np.load(tmp_path / "p.npz")["predicted_class"] == classes).all()


def test_the_best_is_kept_by_the_number_that_is_named(run, tmp_path, graph):
    line = f"train {graph}:hidden=6,dropout=0 --solver adam:lr=0.3 --steps 30 --validate-every 2 --keep"
    for by, wanted in (("best", np.nanmin), ("best:validation_accuracy", np.nanmax)):
        out = tmp_path / by.replace(":", "_")
        code, said, err = run(f"{line} {by} --out", out)
        assert code == 0 and "outside of the clock; best validation" in said
        history, name = read_csv(out / "history.csv"), by.partition(":")[2] or "validation_loss"
        column = np.array(history.column(name))
        assert np.isfinite(column).sum() == 16 and np.isfinite(column[::2]).all()
        about = torch.load(out / "model.pt", weights_only=True)["about"]
        assert about["kept"] == f"best {name}" and column[about["step"]] == wanted(column)
        problem = mldd.problem(NodeClassification, name=str(graph), hidden=6, dropout=0.0)
        model = mldd.load(out)
        x = torch.cat([p.detach().flatten() for p in model.tensors])
        assert problem.validation(x)[name] == pytest.approx(wanted(column), rel=1e-9)
        assert result(out)["validation"]["metrics_of_best"] == about["metrics"] == problem.metrics(x)


def test_patience_ends_a_run(run, tmp_path, graph):
    line = f"train {graph}:hidden=6,dropout=0 --solver adam:lr=0.05 --steps 500 --validate-every 1 --patience 3"
    code, said, err = run(f"{line} --out", tmp_path / "out")
    assert (code, err) == (0, "") and "stopped_early: the validation loss has not come down" in said
    losses = read_csv(tmp_path / "out" / "history.csv").column("validation_loss")
    assert len(losses) < 500 and min(losses[-3:]) >= min(losses[:-3]) and losses[-4] == min(losses)


def test_a_run_with_validation_goes_on_in_its_own_folder(run, tmp_path, graph):
    line = f"train {graph}:hidden=6 --solver adam --validate-every 2 --keep best --quiet"
    assert run(f"{line} --steps 14 --out", tmp_path / "whole")[0] == 0
    assert run(f"{line} --steps 5 --checkpoint {tmp_path / 'c.pt'} --out", tmp_path / "half")[0] == 0
    refused(run, "must be free", f"{line} --steps 14 --out {tmp_path / 'half'}")
    assert run(f"{line} --steps 14 --resume {tmp_path / 'c.pt'} --out", tmp_path / "half")[0] == 0
    whole, half = (read_csv(tmp_path / name / "history.csv") for name in ("whole", "half"))
    pairs = [(a.validation, b.validation) for a, b in zip(whole.records, half.records, strict=True)]
    assert all(a == b for a, b in pairs[6:]) and half.records[5].validation, "the end of the first run was validated"
    states = [torch.load(tmp_path / name / "model.pt", weights_only=True)["state_dict"] for name in ("whole", "half")]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    other = f"train {graph}:hidden=6 --solver adam --seed 1 --quiet --steps 3 --checkpoint {tmp_path / 'other.pt'}"
    assert run(other)[0] == 0
    again = f"train {graph}:hidden=6 --solver adam --seed 1 --quiet --steps 5 --resume {tmp_path / 'other.pt'}"
    refused(run, "must be free, got one with the results of another run", f"{again} --out {tmp_path / 'half'}")


def test_results_of_another_run_are_not_overwritten(run, tmp_path):
    line = "train obstacle:n=7 --solver adagrad --steps 2 --quiet --out"
    assert run(line, tmp_path / "a")[0] == 0
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}
    refused(run, "(history.csv); give another one, or --overwrite", f"{line} {tmp_path / 'a'}")
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()} == before
    assert run(f"{line} {tmp_path / 'a'} --overwrite")[0] == 0
    many = f"compare obstacle:n=7 --solvers adagrad,adam --steps 2 --quiet --out {tmp_path / 'many'}"
    assert run(many)[0] == 0
    refused(run, "(compare.csv)", many)
    (tmp_path / "many" / "compare.csv").unlink()
    refused(run, "history.csv)", many)
    refused(run, "history.csv)", f"{line} {tmp_path / 'many'}")
    assert run(f"{many} --overwrite")[0] == 0


def test_a_problem_without_a_network_keeps_its_solution(run, tmp_path):
    out = tmp_path / "out"
    code, said, err = run("train obstacle:n=7 --solver adagrad --steps 9 --out", out)
    assert code == 0 and "solution.npz" in said and not (out / "model.pt").exists()
    with np.load(out / "solution.npz") as kept:
        assert kept["shape"].tolist() == [7, 7] and kept["x"].shape == (49,)
        value = Obstacle(n=7).objective().value(torch.from_numpy(kept["x"]))
    assert float(value) == pytest.approx(result(out)["loss"], rel=1e-12)
    refused(run, "holds the solution of a problem without a network", f"predict {out} cora --out {tmp_path / 'p.csv'}")
    with pytest.raises(ValueError, match="predicts nothing"):
        mldd.load(out)


def test_a_run_that_failed_keeps_no_model(run, tmp_path, graph):
    out = tmp_path / "out"
    assert run(f"train {graph} --solver sgd:lr=1e200 --quiet --out", out)[0] == 1
    assert not (out / "model.pt").exists() and json.loads((out / "result.json").read_text())["status"] == "diverged"


MODULE = """
from dataclasses import dataclass
import torch
from mldd import Problem
from mldd.algebra import ModuleObjective

@dataclass(frozen=True)
class Line(Problem):
    n: int = 3

    def objective(self):
        net = torch.nn.Linear(self.n, 1).double()
        return ModuleObjective(net, lambda m: (m(torch.ones(1, self.n).double()) - 2).square().sum())

    def initial(self, seed=0):
        return torch.zeros(self.n + 1).double()

    def module(self, x):
        f = self.objective()
        return f.load(x)
"""


def test_a_module_of_a_users_problem_is_kept(run, tmp_path):
    (tmp_path / "line_of_mine.py").write_text(MODULE)
    out = tmp_path / "out"
    assert run(f"train {tmp_path}/line_of_mine.py:Line --solver lbfgs --steps 5 --quiet --out", out)[0] == 0
    net = torch.nn.Linear(3, 1).double()
    assert mldd.load(out, net) is net
    assert net(torch.ones(1, 3).double()).item() == pytest.approx(2.0)
    refused(run, "a module of yours; make the module and give it", f"predict {out} cora --out {tmp_path / 'p.csv'}")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "train {graph} --solver adam --patience 3",
            "--patience 3 needs a validation, got none; add --validate",
        ),
        ("train {graph} --solver adam --keep best", "--keep best needs a validation, got none; add --validate-every K"),
        ("train {graph} --solver adam --keep best --validate-every 2", "--keep best needs a folder to keep it in"),
        ("train {graph} --solver adam --keep first", "must be last, best or best:NAME, got 'first'"),
        ("train {graph} --solver adam --validate-every 0", "must be a whole number >= 1, got '0'"),
        ("train obstacle --solver adagrad --validate-every 2", "--validate-every needs `validation(x)`, which problem"),
        ("train {graph}:labels=all --solver adam --validate-every 2", "leave out labels=all or the validation"),
        (
            "train {graph} --solver adam --validate-every 2 --keep best:loss --out {tmp}/o",
            "must be by one of validation_loss",
        ),
        ("predict {tmp} {graph} --out {tmp}/p.csv", "must have a model.pt, got none"),
        ("predict {tmp}/none {graph} --out {tmp}/p.csv", "must be a file or the folder of a run, got none"),
        ("predict {graph} {graph} --out {tmp}/p.csv", "must be a whole model of mldd, but it cannot be read"),
        ("predict {tmp} {graph} --out {tmp}/p.txt", "predictions must be written as .nc .zarr .npz .csv, got 'p.txt'"),
        ("predict {tmp} {graph} --out {graph}", "must be a new file, got one that is there"),
    ],
)
def test_bad_arguments(run, tmp_path, graph, line, message):
    refused(run, message, line.format(graph=graph, tmp=tmp_path))


def test_keys_of_a_prediction(run, tmp_path, graph):
    assert run(f"train {graph} --solver adam --steps 2 --quiet --out", tmp_path / "out")[0] == 0
    (tmp_path / "mine.py").write_text(
        "from mldd.problems.data import File, GraphArrays\n"
        "from mldd.problems.data.formats import read_graph\n"
        "def read(file: File) -> GraphArrays:\n    return read_graph(str(file.path).removesuffix('.txt') + '.npz')\n"
    )
    (tmp_path / "own.txt").write_text("")
    data = f"{tmp_path / 'own.txt'}:reader={tmp_path / 'mine.py'}:read"
    assert run(f"predict {tmp_path / 'out'} {data} --quiet --out", tmp_path / "p.npz") == (0, "", "")
    wrong = f"predict {tmp_path / 'out'} {graph}:raeder=x --out {tmp_path / 'q.npz'}"
    refused(run, "has no key 'raeder' (did you mean reader?) here; its keys are reader", wrong)


def test_samples_from_the_command_line(run, tmp_path):
    assert run("train digits:hidden=8,samples=50 --solver adam --steps 3 --quiet --out", tmp_path / "out")[0] == 0
    line = f"predict {tmp_path / 'out'} digits --out {tmp_path / 'p.npz'}"
    refused(run, "--data is of no use to the model in", f"{line} --data {tmp_path}")
    refused(run, "--steps is of forecasts, got the model in", f"{line} --steps 2")
    code, said, err = run(line)
    assert (code, err) == (0, "") and "probability (sample 1797, class 10)" in said


def test_forecasts_from_the_command_line(run, tmp_path):
    xarray = pytest.importorskip("xarray")
    from tests.problems.forecasts.test_forecast_model import last, waves, written

    series = waves(times=300)
    written(tmp_path / "whole.nc", series)
    written(tmp_path / "last.nc", last(series))
    out = tmp_path / "out"
    line = (
        f"train {tmp_path / 'whole.nc'}:hidden=8,horizon=3:6 --solver adam --steps 5 --validate-every 5 --quiet --out"
    )
    assert run(line, out)[0] == 0
    assert {"validation_loss", "validation_rmse"} == set(read_csv(out / "history.csv").validated)
    for name in ("whole", "last"):
        data = f"{tmp_path / name}.nc --start 2019-03-12T12..2019-03-13T11"
        code, said, err = run(f"predict {out} {data} --out", tmp_path / f"f_{name}.nc")
        assert (code, err) == (0, "") and "a (time 24, lead_time 2, latitude 5, longitude 6)" in said
    with xarray.open_dataset(tmp_path / "f_whole.nc") as a, xarray.open_dataset(tmp_path / "f_last.nc") as b:
        np.testing.assert_allclose(a.a.values, b.a.values, atol=1e-5)
        assert "by adam, seed 0" in a.attrs["source"]
    line = f"predict {out} {tmp_path / 'last.nc'} --out {tmp_path / 'n.nc'}"
    refused(run, "`start` must lie in", f"{line} --start 2019-03-01")
    refused(run, "`steps` must be in 1..2 for a network of the lead times 3 6", f"{line} --steps 3")
    refused(run, "an ensemble must have members >= 2 and perturb > 0", f"{line} --members 3")


def test_an_ensemble_of_runs_says_where_it_is_from(run, tmp_path):
    xarray = pytest.importorskip("xarray")
    from tests.problems.forecasts.test_forecast_model import waves, written

    written(tmp_path / "w.nc", waves(times=200))
    line = f"train {tmp_path / 'w.nc'}:hidden=4,horizon=2,rollout=2 --solver adam --steps 2 --seeds 0-1 --quiet --out"
    assert run(line, tmp_path / "out")[0] == 0
    runs = f"{tmp_path / 'out' / '0'} {tmp_path / 'out' / '1'}"
    ways = f"--steps 3 --start 2019-03-08T00..2019-03-08T05 --out {tmp_path / 'f.zarr'}"
    code, said, err = run(f"predict {runs} {tmp_path / 'w.nc'} {ways}")
    assert (code, err) == (0, "") and "a (member 2, time 6, lead_time 3, latitude 5, longitude 6)" in said
    with xarray.open_zarr(tmp_path / "f.zarr") as read:
        for k in (0, 1):
            alone = mldd.load(tmp_path / "out" / str(k)).predict(
                tmp_path / "w.nc", start="2019-03-08T00..2019-03-08T05", steps=3
            )
            np.testing.assert_allclose(read.a.isel(member=k).values, alone["a"], atol=1e-12)
            digest = hashlib.sha256((tmp_path / "out" / str(k) / "model.pt").read_bytes()).hexdigest()
            assert read.attrs["model_checksum"].split()[k] == f"sha256:{digest}"
        assert read.a.attrs["units"] == "K"
        assert read.member.attrs["standard_name"] == "realization" and "mldd" in read.attrs["history"]
        assert read.attrs["data_checksum"] == f"sha256:{mldd.problem(f'{tmp_path}/w.nc').series.digest}"


def test_forecasts_of_a_hidden_mesh_are_fed_back_and_verified(run, tmp_path):
    """A member of an ensemble of Anemoi, three times as far as trained, and its error by hand."""
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    from tests.small_anemoi import grid, write_zarr

    places, dates = grid(5, 6), np.datetime64("2020-01-01", "s") + np.arange(120) * np.timedelta64(6 * 3600, "s")
    random = np.random.default_rng(0)
    waves = 280 + np.sin(0.3 * np.arange(120)[:, None] - np.radians(places[1])) * np.cos(np.radians(places[0]))
    both = np.stack([waves, waves + random.standard_normal(waves.shape)], axis=1)[:, None]
    data = write_zarr(tmp_path / "both.zarr", both, ["2t"], dates, *places, field_shape=[5, 6])
    keys = "select=ensemble=0,model=epd,hidden=4,mesh_nodes=12,horizon=1,rollout=2,history=2"
    out, made = tmp_path / "out", tmp_path / "f.nc"
    assert run(f"train {data}:{keys} --solver lbfgs --steps 5 --quiet --out", out)[0] == 0
    code, said, err = run(f"predict {out} {data} --start 2020-01-26..2020-01-28 --steps 6 --out", made)
    assert (code, err) == (0, "") and "2t (time 9, lead_time 6, latitude 5, longitude 6)" in said
    code, said, err = run(f"verify {made} {data}:select=ensemble=0 --out", tmp_path / "verified")
    assert (code, err) == (0, "")
    with xarray.open_dataset(made, decode_timedelta=False) as read:
        first = int(np.flatnonzero(dates == np.datetime64("2020-01-26"))[0])
        error = read["2t"].values.reshape(9, 6, 30) - np.stack([waves[first + s + np.arange(1, 7)] for s in range(9)])
    area = np.cos(np.radians(places[0]))
    wanted = np.sqrt((error**2 * area).sum((0, 2)) / (9 * area.sum()))
    with (tmp_path / "verified" / "verification.csv").open(newline="") as stream:
        found = [float(row["rmse"]) for row in csv.DictReader(stream)]
    np.testing.assert_allclose(found, wanted, atol=2e-5)  # values are float32
    assert found[-1] < 0.7  # fed back five times it is still better than the mean, whose error is 0.7
