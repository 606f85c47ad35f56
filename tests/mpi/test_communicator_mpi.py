"""Ranks: sums, agreement, checkpoints of all ranks, and how the command line ends when one of them fails."""

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

from mldd.algebra import counting
from mldd.loop import read_csv
from mldd.ranks import SERIAL, launchers
from mldd.ranks import communicator as parallel
from tests.helpers import MLDD, command, launch, needs_mpi, together, user_arrays

# One process without MPI


def test_serial_calls_return_at_once():
    x = torch.arange(3.0)
    with counting() as cost:
        assert SERIAL.sum(x) is x and SERIAL.gather(x) is x
    assert (cost.synchronisations, cost.scalar_synchronisations, cost.bytes) == (2, 0, 0)
    with counting() as cost:
        assert SERIAL.sum_scalars([1.0]) == [1.0] and SERIAL.gather_items("a") == ["a"]
        assert SERIAL.sum_values(x) is not None
    assert (cost.synchronisations, cost.scalar_synchronisations) == (0, 3)
    assert SERIAL.share(3) == range(3) and (SERIAL.rank, SERIAL.ranks) == (0, 1)
    assert SERIAL.agree(False) == 1 and SERIAL.agree(True) == 0
    SERIAL.abort()


def test_world_is_serial_without_a_launcher(monkeypatch):
    for name in launchers._MPI:
        monkeypatch.delenv(name, raising=False)
    assert parallel.world() is SERIAL


def test_launcher_without_mpi4py_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(parallel, "_world", [])
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r'mpi4py cannot be imported .*; pip install "mldd\[mpi\]"'):
        parallel.world()


def test_devices(monkeypatch):
    assert parallel.device("cpu") == torch.device("cpu")
    with pytest.raises(ValueError, match="`device` must be one of auto, cpu, cuda"):
        parallel.device("tpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert parallel.device("auto") == torch.device("cpu")
    with pytest.raises(ValueError, match="needs a GPU that torch can see, got none; use --device cpu"):
        parallel.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("MPI_LOCALRANKID", "3")
    assert parallel.device("auto") == torch.device("cuda", 1)
    assert parallel.device("cuda:0") == torch.device("cuda", 0)
    with pytest.raises(ValueError, match="one of the 2 GPUs"):
        parallel.device("cuda:2")


@pytest.mark.parametrize(("parts", "ranks"), [(8, 4), (5, 3), (2, 4), (1, 1)])
def test_shares_cover_all_parts_evenly(parts, ranks):
    class Fake(parallel.Communicator):
        rank, ranks = property(lambda self: self.mpi[0]), property(lambda self: self.mpi[1])

    shares = [Fake((rank, ranks)).share(parts) for rank in range(ranks)]
    assert [k for share in shares for k in share] == list(range(parts))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1


# Several ranks

COLLECTIVES = """
import torch
from mldd.ranks import communicator as parallel
from mldd.ranks import launchers
from mldd.algebra import counting
comm = parallel.world()
r, P = comm.rank, comm.ranks
assert P == 4
with counting() as cost:
    for dtype in (torch.float64, torch.float32, torch.int64):
        x = torch.arange(5).to(dtype) + r
        assert comm.sum(x) is x and torch.equal(x, torch.arange(5).to(dtype) * P + 6)
        rows = torch.full((r, 2), r).to(dtype)
        together = comm.gather(rows)
        assert together.dtype == dtype and together[:, 0].tolist() == [1, 2, 2, 3, 3, 3]
    strided = torch.zeros(4, 2, dtype=torch.float64)
    comm.sum(strided[:, 0].add_(r + 1))
    assert strided[:, 0].tolist() == [10.0] * 4 and not strided[:, 1].any()
assert cost.synchronisations == 7 and cost.bytes == 5 * 20 + 2 * r * 20 + 32, cost
assert cost.scalar_synchronisations == 3, "ranks were asked for the number of their rows"
with counting() as cost:
    rows = torch.arange(10.0)[comm.share(10).start : comm.share(10).stop, None]
    assert torch.equal(comm.gather(rows, 10), torch.arange(10.0)[:, None])
assert (cost.synchronisations, cost.scalar_synchronisations) == (1, 0), cost
with counting() as cost:
    assert comm.sum_scalars([float(r), 1.0]) == [6.0, 4.0]
    assert comm.gather_items({"rank": r}) == [{"rank": k} for k in range(4)]
    assert comm.sum_values(torch.tensor([1.0, r])).tolist() == [4.0, 6.0]
assert (cost.synchronisations, cost.scalar_synchronisations) == (0, 3), cost
assert comm.share(10) == (range(0, 2), range(2, 5), range(5, 7), range(7, 10))[r]
assert comm.agree(False) == 4 and comm.agree(r in (1, 3)) == 1
print(f"rank {r} is done\\n", end="", flush=True)
"""


@needs_mpi
@pytest.mark.mpi
def test_collectives():
    assert together(4, COLLECTIVES).splitlines() == [f"rank {k} is done" for k in range(4)]


BROKEN = """
from dataclasses import dataclass
from mldd.ranks import communicator as parallel
from mldd.ranks import launchers
from mldd.solvers import AdaGrad

@dataclass(frozen=True)
class Broken(AdaGrad):
    ranks: str = "1"

    def step(self, objective, x, state):
        x, state = super().step(objective, x, state)
        if state.step == 5 and str(parallel.world().rank) in self.ranks:
            raise RuntimeError("out of luck")
        return x, state
"""
ONE_BY_ONE = """
import sys
sys.path.insert(0, "")
from mldd.command import names
names.SOLVERS["broken"] = "broken:Broken"
from mldd.command.cli import main
from mldd.ranks import world

for line in sys.argv[1:]:
    code = main(line.split())
    if world().rank == 0:
        print(f"{code}\\n", end="", file=sys.stderr, flush=True)
    world().agree(False)
sys.exit(code)
"""


@needs_mpi
@pytest.mark.mpi
def test_a_rank_that_raises_ends_all(tmp_path):
    begin = time.monotonic()
    (tmp_path / "broken.py").write_text(BROKEN)
    done = launch(2, ONE_BY_ONE, "train obstacle:n=7 --solver broken:ranks=1 --steps 1000000 --out out", cwd=tmp_path)
    assert done.returncode == 1 and time.monotonic() - begin < 40
    lines = [line for line in done.stderr.splitlines() if line.startswith("mldd:")]
    assert lines == ["mldd: error on rank 1: RuntimeError: out of luck (--debug shows where)"]
    assert read_csv(tmp_path / "out" / "history.csv").column("step") == [0, 1, 2, 3, 4, 5]
    assert not (tmp_path / "out" / "result.json").exists()


REFUSED = {
    "train obstacle --solver adagrad --out /proc/nowhere": (2, "must be writable"),  # found by rank 0 alone
    "train obstacle --solver adagrad --resume broken.py": (2, "must be a whole checkpoint of mldd"),
    "train own.npz --solver dd-adagrad --parts 1": (2, "`parts` must be >= 2 for 2 ranks, got 1"),
    "train own.npz --solver dd-adagrad --parts 61": (2, "<= nodes of the graph (60), got 61"),
    "train broken.npz --solver adam": (2, "expected a .npz of plain arrays"),
    "train obstacle:n=7 --solver lbfgs": (2, "lbfgs needs an objective without bounds"),
    "train quadratic:n=7 --solver sgd:lr=1e200 --quiet": (1, "diverged: gradient or objective is not finite"),
    "train obstacle:n=7 --solver broken:ranks=01": (1, "RuntimeError: out of luck (--debug shows where)"),
    "train obstacle --solver foo": (2, "unknown solver 'foo'"),
}


@needs_mpi
@pytest.mark.mpi
def test_errors_of_all_ranks_are_said_once(tmp_path):
    (tmp_path / "broken.py").write_text(BROKEN)
    (tmp_path / "broken.npz").write_bytes(b"PK")
    np.savez(tmp_path / "own.npz", **user_arrays())
    done = launch(2, ONE_BY_ONE, *REFUSED, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), "the status of the last one"
    said = done.stderr.splitlines()
    assert said[1::2] == [str(code) for code, _ in REFUSED.values()], done.stderr
    for line, (_, message) in zip(said[::2], REFUSED.values(), strict=True):
        assert line.startswith("mldd: error: ") and message in line


RESUMED = """
import mldd.figures.curves
from mldd.command.cli import main
from mldd.ranks import world

mldd.figures.curves.convergence = lambda history, path, title: path.touch()  # which takes longer than a run
solvers = ("obstacle:n=15 --solver dd-adagrad --levels 2", "own.npz --solver dd-adagrad --levels 2")
for k, solver in enumerate(solvers):
    for more in ("--steps 6 --out whole", "--steps 3 --checkpoint c.pt", "--steps 6 --resume c.pt --out rest"):
        more = more.replace("whole", f"whole{k}").replace("rest", f"rest{k}").replace("c.pt", f"c{k}.pt")
        assert main(f"train {solver} --quiet --evaluate-every 1 {more}".split()) == 0
        world().agree(False)
"""


@needs_mpi
@pytest.mark.mpi
def test_resumed_runs_on_two_ranks_are_the_uninterrupted_ones(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    done = launch(2, RESUMED, cwd=tmp_path, safe=True)
    assert done.returncode == 0, done.stderr
    for k in range(2):
        whole, rest = (read_csv(tmp_path / f"{name}{k}" / "history.csv") for name in ("whole", "rest"))
        for column in ("step", "level", "measure", "value", "accepted", "rejected"):
            assert rest.column(column) == whole.column(column), (k, column)


@needs_mpi
@pytest.mark.mpi
def test_ctrl_c_on_two_ranks(tmp_path, run, without_figures):
    line = (
        f"train obstacle:n=31 --solver adam:lr=1e-9 --steps 10000000 --out {tmp_path} --checkpoint {tmp_path / 'c.pt'}"
    )
    words, options = command(2, MLDD, *line.split())
    process = subprocess.Popen(words, cwd=tmp_path, **options)
    end = time.monotonic() + 60
    history = tmp_path / "history.csv"
    while not (history.exists() and history.read_text().count("\n") > 5) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=40)
    assert process.returncode == 130, err
    content = json.loads((tmp_path / "result.json").read_text())
    assert (content["status"], content["ranks"]) == ("interrupted", 2)
    assert content["steps"] == read_csv(history).records[-1].step
    assert out.count("interrupted: stopped by the user") == 1 and "Traceback" not in err
    steps = content["steps"] + 2
    line = f"train obstacle:n=31 --solver adam:lr=1e-9 --steps {steps} --quiet --out {tmp_path / 'more'} --resume"
    assert run(line, tmp_path / "c.pt")[0] == 0, "any number of ranks can go on"
    assert read_csv(tmp_path / "more" / "history.csv").column("step") == list(range(steps + 1))
