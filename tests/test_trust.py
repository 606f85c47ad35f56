"""Damaged files and command lines that make no sense: short versions of what experiments/trust does by the thousand."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("xarray")
pytest.importorskip("h5netcdf")
pytest.importorskip("zarr")
sys.path.insert(0, str(Path(__file__).parents[1]))

from experiments.trust import files, lines, mutations  # noqa: E402 (they need the packages)
from tests.helpers import MLDD  # noqa: E402


def test_damaged_files_are_refused_in_one_line_or_read_as_they_are(tmp_path):
    found = files.fuzz(120, list(files.READERS), 0, tmp_path)
    made = files.tables(found)
    assert made["faults"] == [] and made["files"] == len(found) > 80
    assert made["outcomes"]["refused"] > 50
    assert made["other numbers read in spite of the checksum beside"] == 0
    unseen = [
        e for e in found if e["outcome"] == "other" and e["format"] in files.VERIFIED and e["change"] in mutations.BYTES
    ]
    assert unseen == []  # archives, files of torch and shards have checksums of their own


def test_the_fuzzer_sees_faults(tmp_path):
    """A reader that fails in every way: each is what it is called."""

    def hanging(path):
        import time

        time.sleep(100)

    def wrong(path):
        raise KeyError("x")

    def crashing(path):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGSEGV)

    def greedy(path):
        return bytes(2**40)

    def executing(path):
        (path.parent / files.PROOF).touch()
        return ""

    readers = {"hang": hanging, "traceback": wrong, "crash": crashing, "memory": greedy, "execution": executing}
    np.savez(tmp_path / "whole.npz", **mutations.graph_arrays())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "SECONDS", 3.0)
        patch.setattr(files, "READERS", readers)
        places = {name: tmp_path / "whole.npz" for name in readers}
        work = tmp_path / "work"
        work.mkdir()
        found = files.run([(name, k) for k, name in enumerate(readers)], places, dict.fromkeys(readers, "x"), work)
    assert [entry["outcome"] for entry in found] == list(readers)


def test_a_bomb_is_refused_before_it_is_expanded(tmp_path, monkeypatch):
    from mldd.problems.data import DataError, load_graph

    np.savez(tmp_path / "whole.npz", **mutations.plain_arrays())
    mutations.bomb(tmp_path / "bomb.npz", (tmp_path / "whole.npz").read_bytes(), 2**28)
    assert (tmp_path / "bomb.npz").stat().st_size < 3 * 10**6
    monkeypatch.setattr("mldd.loop.untrusted.memory", lambda: 2**28)
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("a member was opened"))
    with pytest.raises(DataError, match=r"bomb.npz: expected contents that fit into memory .* got 0.268[0-9] GB"):
        load_graph(tmp_path / "bomb.npz")


@pytest.mark.filterwarnings("ignore")
def test_lines_that_make_no_sense_run_or_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = lines.fuzz(16, 0, tmp_path)
    assert [entry for entry in found if entry["outcome"] in lines.FAULTS] == []
    assert {entry["outcome"] for entry in found} == {"ran", "refused"}


LINES = {
    "train obstacle:n=7,device=-1 --solver adam": "`device` must be one of auto, cpu, cuda, cuda:NUMBER, got '-1'",
    "train quadratic:n=7 --solver adam --seed 18446744073709551616": "a seed must be in 0..4294967295, got 18446744",
    "train digits:seed=4294967296 --solver adam": "`digits:seed` must be in 0..4294967295, got 4294967296",
    "compare quadratic --solvers adam --seeds 0-4294967295": "must be at most 10000 runs, got '0-4294967295'",
    "train quadratic:n=9223372036854775808 --solver adam": "`quadratic:n` must be a whole number of at most 64 bits",
    "train quadratic:n=7,n=9 --solver adam": "quadratic: every key may be given once, got n twice; leave one out",
    f"train quadratic --solver schwarz:local={'schwarz(local=' * 30}adam{')' * 30}": "may be nested 16 deep, got more",
    f"train quadratic --solver adam:{'(' * 5000}": "parentheses may be nested 16 deep",
    f"train {'a' * 50_000} --solver adam": "unknown problem",
    f"train quadratic --solver nowhere:{'a:' * 20_000}": "nowhere must be a module that can be imported, got none",
}


@pytest.mark.parametrize("line", LINES, ids=[line[:60] for line in LINES])
def test_lines_that_did_harm_are_refused(run, line):
    code, out, err = run(line)
    assert (code, out) == (2, "") and err.startswith("mldd: error: ") and err.count("\n") == 1
    assert LINES[line] in err and len(err) < 1500


def test_options_that_petsc_cannot_begin_with_are_one_line():
    pytest.importorskip("petsc4py")  # in a process of its own: PETSc begins once
    words = [sys.executable, "-c", MLDD, *"train quadratic:n=7 --solver adam --steps 2 -malloc_debug almm".split()]
    done = subprocess.run(words, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "") and done.stderr.count("\n") == 1
    assert "PETSc cannot begin with the options '-malloc_debug almm'" in done.stderr
