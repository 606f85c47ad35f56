"""What becomes of a command whose standard output cannot be written: a reader that left, a full disk."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import MLDD, user_arrays


def closed_pipe(*words, **options):
    """Run a command line whose standard output is a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        call = [sys.executable, "-c", MLDD, *map(str, words)]
        return subprocess.run(call, stdout=writing, stderr=subprocess.PIPE, text=True, timeout=100, **options)
    finally:
        os.close(writing)


@pytest.mark.parametrize("line", ["list", "list adagrad", "info", "--help", "train --help"])
def test_a_reader_that_left_is_no_error(line):
    done = closed_pipe(*line.split())
    assert done.stderr == ""
    assert done.returncode == (0 if "--help" in line else 141)


def test_head_ends_a_list_silently():
    program = f"import sys; sys.argv[1:] = ['list']\n{MLDD}"
    shell = f'{sys.executable} -c "$PROGRAM" | head -n 1'
    done = subprocess.run(
        ["bash", "-c", shell], env={**os.environ, "PROGRAM": program}, capture_output=True, text=True, timeout=100
    )
    assert (done.stdout, done.stderr) == ("problems:\n", "")


def test_a_run_whose_summary_nobody_reads_is_written_all_the_same(tmp_path):
    done = closed_pipe(*"train quadratic:n=7 --solver adam --steps 3 --out".split(), tmp_path)
    assert (done.returncode, done.stderr) == (141, "")
    assert json.loads((tmp_path / "result.json").read_text())["steps"] == 3


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_line():
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-c", MLDD, "list"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=100
        )
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "No space left on device" in done.stderr


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_letters_that_a_terminal_does_not_have_are_escapes(tmp_path, encoding):
    name = "\u00e9\u4e2d.npz"
    np.savez(tmp_path / name, **user_arrays())
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "10"}
    words = [sys.executable, "-c", MLDD, "train", name, "--solver", "adam", "--steps", "2", "--out", "out"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    first = done.stdout.decode(encoding).splitlines()[0]
    assert first.split(maxsplit=1)[1].startswith(name.encode(encoding, "backslashreplace").decode(encoding))
    assert json.loads((tmp_path / "out" / "result.json").read_text())["problem"] == name
    warned = [line for line in done.stderr.decode().splitlines() if "warning" in line]
    assert len(warned) == 1 and "convergence.png: Glyph 20013" in warned[0]  # no font has the letter: one warning


@pytest.mark.parametrize(
    "broken", [{"MPLBACKEND": "nonsense"}, {"MPLCONFIGDIR": "/proc/nothing", "HOME": "/proc", "TMPDIR": "/proc"}]
)
def test_a_broken_matplotlib_costs_the_figure_at_most(tmp_path, broken):
    words = [sys.executable, "-c", MLDD, *"train quadratic:n=3 --solver adam --steps 2 --quiet --out".split(), tmp_path]
    done = subprocess.run(words, env=os.environ | broken, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and (tmp_path / "result.json").exists()
    assert done.stderr.count("\n") == (0 if (tmp_path / "convergence.png").exists() else 1), done.stderr


def test_another_pipe_that_breaks_is_an_error(run, monkeypatch):
    from mldd.command import info

    def broken():
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(info, "lines", broken)
    code, out, err = run("info")
    assert code == 2 and "Broken pipe" in err and err.count("\n") == 1
