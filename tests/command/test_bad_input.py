"""Bad input from the command line: one line that says what was expected, what was given and the way out."""

import json
import math
import os
import pickle
import subprocess
import sys

import numpy as np
import pytest
import torch

from mldd.loop import checkpoint, minimise, read_csv
from tests.helpers import WITHOUT, Evil, result, user_arrays, user_tensors

pytestmark = pytest.mark.usefixtures("without_figures")
SHORT = "--steps 3 --quiet"


def refused(run, line, *more, code=2):
    """Return the one line with which a command line is refused."""
    status, out, err = run(line, *more)
    assert (status, out) == (code, ""), (status, out, err)
    assert err.startswith("mldd: error: ") and err.count("\n") == 1 and len(err) < 500, err
    assert "trust" not in err and "weights_only" not in err and "allow_pickle" not in err, err
    return err


# files


def npz(path, **changes):
    np.savez(path, **{key: value for key, value in {**user_arrays(), **changes}.items() if value is not None})


def cut(path, write):
    write(path)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def boxed(item):
    box = np.empty((), dtype=object)
    box[()] = item
    return box


def with_(**tensors):
    return lambda path: torch.save({**user_tensors(), **tensors}, path)


nan = torch.full((60, 5), math.nan)
FILES = {
    "truncated.npz": (lambda path: cut(path, npz), "expected a .npz of plain arrays"),
    "text.npz": (lambda path: path.write_text("hello\n"), "expected a .npz of plain arrays"),
    "foreign.npz": (lambda path: np.savez(path, a=np.ones(3)), "expected the arrays edges"),
    "evil.npz": (lambda path: npz(path, labels=boxed(Evil(path.with_name("proof")))), "expected a .npz of plain"),
    "nan.npz": (lambda path: npz(path, attr_matrix=nan.numpy()), "features must be finite, got 300 entries"),
    "infinity.npz": (lambda path: npz(path, attr_data=np.full(300, np.inf)), "must be finite, got 300 entries"),
    "float.npz": (lambda path: npz(path, labels=np.ones(60)), "labels (class numbers) must be integers, got"),
    "few.npz": (lambda path: npz(path, **user_arrays(6)), "expected masks, or a class of >= 3 nodes to draw a split"),
    "truncated.pt": (lambda path: cut(path, with_()), "it is truncated, or not a file of torch.save"),
    "text.pt": (lambda path: path.write_text("hello\n"), "expected a .pt of plain tensors"),
    "foreign.pt": (lambda path: torch.save({"x": nan}, path), "got no edge_index; add them"),
    "module.pt": (lambda path: torch.save(torch.nn.Linear(2, 2), path), "it asks for torch.nn.modules.linear.Linear"),
    "evil.pt": (lambda path: torch.save(Evil(path.with_name("proof")), path), "it asks for posix.system, which no"),
    "bare.pt": (
        lambda path: path.write_bytes(pickle.dumps(Evil(path.with_name("proof")))),
        "expected a .pt of plain tensors",
    ),
    "nan.pt": (with_(x=nan), "features must be finite"),
    "complex.pt": (with_(x=nan.to(torch.complex64)), "features must be real numbers, got dtype complex64"),
    "edges.pt": (with_(edge_index=torch.tensor([[0], [60]])), "edges must join nodes 0..59, got 0..60"),
}


@pytest.mark.parametrize("name", FILES)
def test_bad_files(run, tmp_path, name):
    write, message = FILES[name]
    write(tmp_path / name)
    err = refused(run, f"train {tmp_path / name} --solver adam {SHORT}")
    assert message in err and name in err
    if name[0] != "f":
        assert not (tmp_path / "proof").exists()
    err = refused(run, f"train quadratic:n=3 --solver adam {SHORT} --resume {tmp_path / name}")
    assert f"{name} must be a " in err and not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["own.npz", "own.pt"])
def test_a_users_graph_from_end_to_end(run, tmp_path, name):
    np.savez(tmp_path / name, **user_arrays()) if name == "own.npz" else torch.save(user_tensors(), tmp_path / name)
    line = f"train {tmp_path / name}:hidden=8 --solver dd-adagrad --levels 2 --steps 5 --quiet --out"
    assert run(line, tmp_path / "out") == (0, "", "")
    content = result(tmp_path / "out")
    assert content["problem"] == f"{tmp_path / name}:hidden=8" and (content["parts"], content["levels"]) == (4, 2)
    assert set(content["metrics"]) == {"train_accuracy", "validation_accuracy", "test_accuracy"}
    losses = read_csv(tmp_path / "out" / "history.csv").column("value")
    assert losses[-1] < losses[0]


RING = np.array([[k, (k + 1) % 60] for k in range(60)])
GRAPHS = {
    "ring": RING,
    "self loops and duplicates": np.concatenate([RING, RING, RING[:, ::-1], RING[:, [0, 0]]]),
    "isolated": RING[:20],
    "components": np.concatenate([RING[k : k + 2] for k in range(0, 60, 3)]),
    "none": RING[:0],
}


@pytest.mark.parametrize("solver", ["dd-adagrad --parts 7 --levels 2", "ml-adagrad --levels 2"])
def test_odd_graphs_train(run, tmp_path, solver):
    losses = {}
    for name, edges in GRAPHS.items():
        features = np.random.default_rng(0).random((60, 3)) + np.eye(3)[np.arange(60) % 3]
        np.savez(tmp_path / "own.npz", edges=edges, node_features=features, node_labels=np.arange(60) % 3)
        line = f"train {tmp_path / 'own.npz'}:dropout=0 --solver {solver} --steps 8 --quiet --overwrite --out"
        assert run(line, tmp_path)[::2] == (0, ""), name
        losses[name] = read_csv(tmp_path / "history.csv").column("value")
        assert losses[name][-1] < losses[name][0], name
    assert losses["ring"] == losses["self loops and duplicates"] and len({tuple(v) for v in losses.values()}) == 4


# numbers and choices


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train GRAPH --solver dd-adagrad --parts 61", "`parts` must be >= 1 and <= nodes of the graph (60), got 61"),
        ("train GRAPH --solver dd-adagrad --levels 9", "`levels` must be in 1..2 for coarsen=graph and a graph of 60"),
        ("train GRAPH:split=-1 --solver adam", "`split` must be >= 0, got -1"),
        ("train GRAPH:dropout=1 --solver adam", "`dropout` must be in [0, 1), got 1.0"),
        (
            "train GRAPH --solver adagrad:curvature=diagonal",
            "needs an objective with `hessian_diagonal`, got none; use",
        ),
        ("train obstacle:n=3 --solver dd-adagrad --parts 10", "`parts` must be <= 9 (the number of unknowns), got 10"),
        (
            "train obstacle:n=7 --solver dd-adagrad:subspace_steps=3",
            "`subspace_steps` needs an objective without bounds, got one with",
        ),
        ("train obstacle:n=7 --solver dd-adagrad:damping=nan", "`damping` must be >= 0, got nan"),
        (
            "train obstacle:n=7,lower=nan --solver adagrad",
            "bounds need lower <= upper in every component, got nan > inf",
        ),
        ("train obstacle:n=7,lower=inf --solver adagrad", "bounds need a finite number between them, got a lower one"),
        ("train obstacle --solver adagrad --dtype float16", "argument --dtype: invalid choice: 'float16'"),
        ("train obstacle --solver adagrad --device tpu", "argument --device: invalid choice: 'tpu'"),
        ("train cora --solver adam --data nowhere", "`data` must be a folder that exists, got 'nowhere'; correct"),
        ("train obstacle:n=7 --solver adagrad --checkpoint .", "must be a file, got a folder; give another name"),
        ("train obstacle:n=7 --solver adagrad --checkpoint PIPE", "must be a file, got a device or pipe; give another"),
        ("train obstacle:n=7 --solver adagrad --out /dev/null", "must be writable, but it is not"),
        ("train obstacle:n=7 --solver adagrad --resume .", "must be a file, got none"),
    ],
)
def test_refused(run, tmp_path, line, message):
    torch.save(user_tensors(), tmp_path / "own.pt")
    os.mkfifo(tmp_path / "pipe")
    line = line.replace("GRAPH", str(tmp_path / "own.pt")).replace("PIPE", str(tmp_path / "pipe"))
    assert message in refused(run, f"{line} {SHORT}")


@pytest.mark.parametrize("type", ["lmvm", "nonsense"])
def test_tao_types_are_checked_before_the_run(run, type):
    pytest.importorskip("petsc4py")
    assert "TAO type" in refused(run, f"train obstacle:n=7 --solver tao:{type} {SHORT}")


def test_what_does_not_fit_into_memory(run):
    err = refused(run, "train obstacle:n=100000000 --solver adagrad --quiet", code=1)
    assert "does not fit into memory" in err and "make it smaller" in err


def test_divergence_keeps_history_and_the_last_good_checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.setattr("mldd.command.run._CHECKPOINT_SECONDS", 0.0)
    line = f"train quadratic:n=7 --solver sgd:lr=1e200 --quiet --out {tmp_path} --checkpoint {tmp_path / 'c.pt'}"
    code, _, err = run(line)
    assert code == 1 and err.startswith("mldd: error: diverged: ") and err.count("\n") == 1
    history, saved = read_csv(tmp_path / "history.csv").records, checkpoint.load(tmp_path / "c.pt")
    assert not math.isfinite(history[-1].value) and math.isfinite(history[-2].value)
    assert saved.history.records[-1].step == history[-2].step and bool(torch.isfinite(saved.x).all())
    assert result(tmp_path)["loss"] == history[-2].value


# single precision


def floating(item):
    """Give the types of all floating-point tensors in a tree of dicts and lists.

    Of quasi-Newton pairs that is their vectors: the small matrices of scalar products are double in every precision.
    """
    if isinstance(item, dict) and {"W", "G", "mu"} <= set(item):
        item = item["W"]
    if isinstance(item, torch.Tensor) and item.is_floating_point() and item.numel():
        yield item.dtype
    for below in item.values() if isinstance(item, dict) else item if isinstance(item, list) else ():
        yield from floating(below)


CONSTRAINED = ["adagrad", "adagrad:curvature=lbfgs", "ml-adagrad --levels 2", "dd-adagrad --levels 2", "adam", "sgd"]
FREE = ["lbfgs", "torch-adagrad", "dd-adagrad:subspace_steps=2 --levels 2", "dd-adagrad:coarse.nested=0.5 --levels 2"]


@pytest.mark.parametrize(
    ("problem", "solver"),
    [("obstacle:n=15", s) for s in (*CONSTRAINED, "tao:blmvm", "tao:bnls")]
    + [("GRAPH", s) for s in (*CONSTRAINED, *FREE, "tao:lmvm")]
    + [("digits:hidden=8", s) for s in ("adagrad", "ml-adagrad --levels 2", "dd-adagrad --parts 2", "lbfgs")],
)
def test_single_precision_throughout(run, tmp_path, monkeypatch, problem, solver):
    if solver[:3] == "tao" or "subspace_steps" in solver:
        pytest.importorskip("petsc4py")
    arrays = user_arrays(80)
    np.savez(tmp_path / "own.npz", **arrays)
    line = f"train {problem.replace('GRAPH', str(tmp_path / 'own.npz:clusters=8'))} --dtype float32 {SHORT} --solver"
    given = set()

    def spy(objective, x, *more, **options):
        given.update((x.dtype, objective.gradient(x).dtype, objective.value(x).dtype, objective.bounds.lower.dtype))
        ended = minimise(objective, x, *more, **options)
        given.add(ended.x.dtype)
        return ended

    monkeypatch.setattr("mldd.command.run.minimise", spy)
    file = tmp_path / "c.pt"
    saving = [] if solver[:3] == "tao" else ["--checkpoint", file]
    assert run(f"{line} {solver}", *saving) == (0, "", "")
    if saving:
        given.update(floating(checkpoint.load(file).states))
    assert given == {torch.float32}


# what is not installed

SEVERAL = """
import contextlib, io, json, sys
from mldd.command.cli import main

for line in sys.argv[1:]:
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(line.split())
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def several(*lines, hidden):
    """Run command lines in one process without some packages; give exit status, output and errors of each."""
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT + SEVERAL, *lines],
        capture_output=True,
        text=True,
        env={**os.environ, "HIDDEN": hidden},
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(row) for row in done.stdout.splitlines()]


def test_without_mpi_petsc_and_other_packages(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    runs = ["obstacle:n=7 --solver adagrad", "obstacle:n=15 --solver ml-adagrad"]
    runs += ["obstacle:n=7 --solver dd-adagrad --levels 2", f"{tmp_path / 'own.npz'} --solver adam"]
    fail = {
        "train obstacle --solver tao:blmvm": "petsc4py cannot be imported (No module named 'petsc4py'); install it",
        "train obstacle --solver adagrad -tao_view": "petsc4py cannot be imported",
        f"train {tmp_path / 'own.npz'} --solver dd-adagrad": "needs pymetis, which is not installed: pip install pym",
        "train digits --solver adam": "need scikit-learn, which is not installed: pip install scikit-learn",
        "train digits-graph --solver adam": "need scikit-learn, which is not installed: pip install scikit-learn",
    }
    compared = "compare obstacle:n=7 --solvers adagrad,tao:blmvm"
    lines = [*(f"train {line}" for line in runs), *fail, compared]
    hidden = "petsc4py mpi4py greenlet pymetis sklearn"
    ends = several(*(f"{line} {SHORT}" for line in lines), "list", "info", hidden=hidden)
    assert [end for end in ends[: len(runs)] if end != [0, "", ""]] == []
    for (code, out, err), message in zip(ends[len(runs) :], fail.values(), strict=False):
        assert (code, out) == (2, "") and message in err and err.count("\n") == 1
    code, out, err = ends[-3]
    assert (code, err) == (1, "") and "max_steps" in out and "failed: PETSc is needed here" in out
    assert ends[-2][0] == 0 and "(needs petsc4py greenlet)" in ends[-2][1]
    assert ends[-1][0] == 0 and "single-process methods run without" in ends[-1][1]


def test_modules_that_every_run_needs():
    [[code, _, err]] = several(f"train obstacle:n=3 --solver adagrad {SHORT}", hidden="torch")
    assert (code, err) == (2, "mldd: error: No module named 'torch'; install it with `pip install torch`\n")
