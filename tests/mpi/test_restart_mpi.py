"""Runs cut in two by a checkpoint, on one and two ranks: the short version of the restart matrix."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import needs_mpi

SCRIPT = Path(__file__).parents[2] / "experiments" / "trust" / "restart.py"
SHORT = (
    "dd-adagrad, graph",
    "schwarz that keeps memory",
    "aspin",
    "local-adam, delayed",
    "tao",
    "shards, smoothed stale halos",
)


@pytest.fixture
def restart(monkeypatch):
    spec = importlib.util.spec_from_file_location("restart", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "restart", module)
    spec.loader.exec_module(module)
    return module


@needs_mpi
@pytest.mark.mpi
def test_runs_go_on_as_if_they_had_not_been_cut(restart):
    rows = restart.matrix(SHORT)
    assert len(rows) == 5 * 4 + 1
    assert all(row["as_it_should_be"] for row in rows), restart.table(rows)


def test_the_matrix_sees_what_is_wrong(restart, tmp_path):
    whole = {name: np.arange(3.0) for name in ("x", *restart.EXACT, *restart.COUNTED)} | {"error": ""}
    for changes, before, after, good in (
        ({}, 1, 1, True),
        ({"x": np.array([0.0, 1.0, 2.0 + 1e-15])}, 1, 1, False),
        ({"x": np.array([0.0, 1.0, 2.0 + 1e-15])}, 1, 2, True),
        ({"x": np.array([0.0, 1.0, 2.1])}, 1, 2, False),
        ({"value": np.array([0.0, 1.0, np.nan])}, 1, 1, False),
        ({"gradient_evaluations": np.array([0.0, 1.0, 3.0])}, 1, 2, False),
        ({"scalar_synchronisations": np.array([0.0, 1.0, 3.0])}, 1, 1, False),
        ({"error": "no file"}, 1, 1, False),
    ):
        for kind, content in (("whole", whole), ("half", whole), (f"to{after}", whole | changes)):
            np.savez(tmp_path / restart._file("adam", before, kind), **content)
        row = restart.compared(tmp_path, "adam", before, after)
        assert row["as_it_should_be"] is good, (changes, row)
