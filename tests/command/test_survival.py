"""Runs that are ended from outside go on by themselves, and files that cannot be written do not end them."""

import subprocess
import sys

import numpy as np
import pytest

from mldd.loop import read_csv
from tests.helpers import MLDD, launch, needs_mpi, result

# A method with memory that can be told, by files, to meet a signal or the end of a folder after some steps.
METHOD = """
import os, shutil, signal
from dataclasses import dataclass
from pathlib import Path
import torch
from mldd.loop import State

@dataclass
class Memory(State):
    momentum: torch.Tensor = None

@dataclass(frozen=True)
class Told:
    rate: float = 0.01

    def init(self, objective, x):
        return Memory(momentum=torch.zeros_like(x))

    def step(self, objective, x, state):
        state.momentum.mul_(0.9).add_(objective.gradient(x))
        for told in Path(".").glob(f"at-{state.step}-*"):
            word = told.name.split("-")[2]
            told.unlink()
            if word == "gone":
                shutil.rmtree("out")
            elif word == "fails":
                raise RuntimeError("no luck")
            else:
                os.kill(os.getpid(), getattr(signal, word))
        return objective.bounds.project(x - self.rate * state.momentum), state
"""
TRAIN = "train obstacle:n=7 --solver told.py:Told --steps 30 --quiet"
KEPT = "--checkpoint c.ckpt --resume auto --out out"


@pytest.fixture
def folder(tmp_path, monkeypatch, without_figures):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "told.py").write_text(METHOD)
    return tmp_path


def solution(name):
    with np.load(name) as content:
        return content["x"]


def test_ten_signals_and_resume_auto_give_the_uninterrupted_run(run, folder):
    assert run(f"{TRAIN} --out whole --evaluate-every 1")[0] == 0
    numbers = ["SIGTERM", "SIGUSR1", "SIGINT", "SIGTERM", "SIGTERM"] * 2
    for k, name in enumerate(numbers):
        (folder / f"at-{2 * k}-{name}").touch()
    codes = [run(f"{TRAIN} {KEPT} --evaluate-every 1")[0] for _ in range(11)]
    assert codes == [{"SIGINT": 130}.get(name, 143) for name in numbers] + [0]
    assert np.array_equal(solution("out/solution.npz"), solution("whole/solution.npz"))
    whole, rest = (read_csv(folder / name / "history.csv") for name in ("whole", "out"))
    for column in ("step", "measure", "value"):
        assert rest.column(column) == whole.column(column)
    assert run(f"{TRAIN} {KEPT}")[0] == 0, "a run that has ended may be started again, too"


def test_a_run_that_was_ended_before_its_first_checkpoint_begins_anew(run, folder):
    (folder / "out").mkdir()
    (folder / "out" / "history.csv").write_text("")
    assert run(f"{TRAIN} {KEPT}")[0] == 0
    for kept in folder.glob("c.ckpt*"):
        kept.unlink()
    code, _, err = run(f"{TRAIN} {KEPT}")
    assert code == 2 and "must be free" in err, "a whole history without its checkpoint is another run"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--resume auto", "--resume auto goes on from --checkpoint FILE, got none"),
        ("--checkpoint-every 5m", "--checkpoint-every 5m needs --checkpoint FILE, got none"),
        ("--checkpoint c --checkpoint-every 5", "must be like 30s, 5m, 2h, 100steps, or auto, got '5'"),
        ("--time-limit 1h", "must be D-HH:MM:SS, HH:MM:SS, MM:SS, or minutes, got '1h'"),
        ("--evaluate-every 0", "must be a whole number >= 1, auto or never, got '0'"),
        ("--evaluate-every never --target 1", "--target needs the loss on the way, got --evaluate-every never"),
        ("--watchdog 0", "must be > 0, got '0'"),
        ("--seeds 0-1 --checkpoint-every 5m", "--checkpoint-every is of one run, got --seeds"),
    ],
)
def test_what_is_refused(run, folder, line, message):
    code, out, err = run(f"{TRAIN} {line}")
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_options_from_python_are_read_alike(folder):
    import mldd

    with pytest.raises(ValueError, match="must be like 30s"):
        mldd.train("obstacle", solver="adagrad", n=7, options={"checkpoint": "c", "checkpoint_every": "5"})
    with pytest.raises(ValueError, match="`watchdog` must be > 0 seconds, got -1"):
        mldd.train("obstacle", solver="adagrad", n=7, options={"watchdog": -1})
    made = mldd.train("obstacle", solver="adagrad", n=7, steps=4, options={"evaluate_every": 2, "time_limit": 60})
    assert [value == value for value in made.history.column("value")] == [True, False, True, False, True]


LIMITED = """
import resource, sys
from mldd.command.cli import main

# No file may be larger than 9 kB: a disk that is full says the same in another word.
resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))
sys.exit(main(sys.argv[1:]))
"""


def run_limited(folder, line):
    """Run a line in a process whose files are small; give exit status, output and the lines on standard error."""
    words = [sys.executable, "-c", LIMITED, *line.split()]
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr.splitlines()


def test_a_checkpoint_that_cannot_be_written_costs_a_warning_and_the_result_is_there(folder):
    line = "train obstacle:n=63 --solver told.py:Told --steps 20 --out out --checkpoint c.ckpt"
    code, out, said = run_limited(folder, line + " --checkpoint-every 5steps")
    lost = "checkpoint after step {}: c.ckpt could not be written (File too large)"
    told = [text.partition(";")[0] for text in said if "warning: checkpoint after" in text]
    assert told == [f"mldd: warning: {lost.format(k)}" for k in range(0, 21, 5)]
    failed = [text for text in said if text.startswith("mldd: error: ")]
    assert code == 1 and failed[0].startswith(f"mldd: error: {lost.format(20)}")
    assert any("out/solution.npz could not be written (File too large)" in text for text in failed)
    assert result(folder / "out")["steps"] == 20 and "status" in out
    assert len(read_csv(folder / "out" / "history.csv").records) == 21
    assert not (folder / "c.ckpt").exists()


def test_a_history_that_meets_a_full_disk_does_not_end_the_run(folder):
    code, _, said = run_limited(folder, f"{TRAIN} --steps 200 --out out")
    lost = "history.csv could not be written (File too large)"
    assert any("warning" in text and lost in text and "again at the end" in text for text in said)
    assert code == 1 and any(text.startswith("mldd: error") and lost in text for text in said)
    assert result(folder / "out")["steps"] == 200 and (folder / "out" / "solution.npz").exists()


def test_a_folder_that_vanishes_is_made_again(run, folder):
    (folder / "at-7-gone").touch()
    code, _, err = run(f"{TRAIN} --out out")
    assert (code, err) == (0, "") and result(folder / "out")["steps"] == 30
    assert read_csv(folder / "out" / "history.csv").column("step") == list(range(31))


def test_metrics_that_fail_cost_the_metrics(run, folder, monkeypatch):
    from mldd.problems.grids import Obstacle

    monkeypatch.setattr(Obstacle, "metrics", lambda self, x: {"energy": float("x")})
    with pytest.warns(UserWarning, match="the metrics could not be computed: could not convert"):
        assert run(f"{TRAIN} --out out")[0] == 0
    assert result(folder / "out")["metrics"] == {}


def test_a_run_that_was_ended_has_its_result_before_its_metrics(run, folder, monkeypatch):
    from mldd.problems.grids import Obstacle

    found = []

    def metrics(self, x):
        found.append(result(folder / "out"))
        assert np.array_equal(solution("out/solution.npz"), x.numpy())
        return {"energy": 1.0}

    monkeypatch.setattr(Obstacle, "metrics", metrics)
    (folder / "at-5-SIGTERM").touch()
    assert run(f"{TRAIN} --out out --evaluate-every never")[0] == 143
    (brief,), full = found, result(folder / "out")
    assert (brief["status"], brief["steps"], brief["loss"], brief["metrics"]) == ("terminated", 6, None, {})
    assert full["loss"] is not None and full["metrics"] == {"energy": 1.0}


def test_a_seed_that_fails_or_cannot_be_prepared_is_a_row(run, folder, monkeypatch):
    from mldd.problems.grids import Obstacle

    initial = Obstacle.initial

    def broken(self, seed=0):
        if seed == 2:
            raise RuntimeError("no start")
        return initial(self, seed)

    monkeypatch.setattr(Obstacle, "initial", broken)
    (folder / "at-5-fails").touch()  # the first run that comes there, which is that of seed 0
    code, out, err = run(f"{TRAIN} --seeds 0-3 --out out")
    assert (code, err) == (1, "")
    assert "failed: RuntimeError: no luck, 2 x max_steps" in out.replace("1 x ", "")
    rows = (folder / "out" / "compare.csv").read_text().splitlines()
    assert len(rows) == 5 and rows[1].endswith("no luck") and rows[3].endswith("no start")


def test_a_signal_ends_a_comparison_with_its_table(run, folder):
    (folder / "at-5-SIGTERM").touch()
    code, out, _ = run("compare obstacle:n=7 --solvers told.py:Told,adagrad --steps 9 --seeds 0,1 --quiet --out out")
    assert code == 143 and "terminated" in out and "adagrad" not in out
    assert len((folder / "out" / "compare.csv").read_text().splitlines()) == 2


TEN = f"""
import os, signal, sys
from pathlib import Path
import mldd.figures.curves
from mldd.command.cli import main
from mldd.ranks import world

mldd.figures.curves.convergence = lambda history, path, title: path.touch()
line = "{TRAIN} --solver dd-adagrad --parts 2"
assert main((line + " --out whole").split()) == 0
from mldd.solvers import SchwarzAdaGrad
step, comm = SchwarzAdaGrad.step, world()
seen = set()

def told(self, objective, x, state):
    if comm.rank == 1 and state.step % 3 == 2 and state.step not in seen:
        seen.add(state.step)
        os.kill(os.getpid(), signal.SIGTERM)
    return step(self, objective, x, state)

SchwarzAdaGrad.step = told
codes = [main((line + " {KEPT}").split()) for _ in range(11)]
assert codes == [143] * 10 + [0], codes
"""


@needs_mpi
@pytest.mark.mpi
def test_ten_signals_at_rank_one_of_two(folder):
    done = launch(2, TEN, cwd=folder, safe=True)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(solution("out/solution.npz"), solution("whole/solution.npz"))


# mldd supervise


def test_a_run_that_is_killed_is_started_again_until_it_has_ended(run, folder, monkeypatch):
    monkeypatch.setattr("mldd.command.supervise._PAUSE", 0.0)
    (folder / "at-12-SIGKILL").touch()
    (folder / "run.py").write_text(MLDD)
    line = f"supervise --restarts 0 -- {sys.executable} run.py {TRAIN} {KEPT} --checkpoint-every 5steps"
    code, _, err = run(line)
    assert code == 0, err
    assert err == "mldd: supervise: exit status 137; the checkpoint is of step 10; started again\n"
    assert result(folder / "out")["steps"] == 30
    assert run(f"{TRAIN} --out whole")[0] == 0
    assert np.array_equal(solution("out/solution.npz"), solution("whole/solution.npz"))


@pytest.mark.parametrize(("code", "runs"), [(0, 1), (2, 1), (143, 1), (7, 3)])
def test_what_ends_alike_is_not_started_again_for_ever(run, folder, monkeypatch, code, runs):
    monkeypatch.setattr("mldd.command.supervise._PAUSE", 0.0)
    (folder / "run.sh").write_text(f"echo x >> ran; exit {code}")
    found, _, err = run("supervise --restarts 2 -- sh run.sh --checkpoint none.ckpt --resume=auto")
    assert found == code and (folder / "ran").read_text().count("x") == runs
    assert ("given up after 3 runs without a step forward, exit status 7" in err) is (code == 7)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("supervise", "supervise needs a command, got none"),
        ("supervise -- mldd train cora --checkpoint c", "needs a command with --checkpoint FILE --resume auto"),
        ("supervise -- ./nothing --checkpoint c --resume auto", "No such file or directory: './nothing'"),
        ("train obstacle --solver adagrad -- x", "train takes nothing behind --, got 'x'"),
    ],
)
def test_what_supervise_refuses(run, folder, line, message):
    code, out, err = run(line)
    assert (code, out) == (2, "") and message in err and err.count("\n") == 1


def test_a_signal_goes_to_the_command_and_ends_the_restarts(run, folder):
    script = "trap 'echo got >> ran; exit 9' TERM; kill -TERM $PPID; while :; do sleep 0.05; done"
    (folder / "run.sh").write_text(script)
    assert run("supervise -- sh run.sh --checkpoint none.ckpt --resume auto")[0] == 9
    assert (folder / "ran").read_text() == "got\n"
