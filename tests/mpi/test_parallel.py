"""Ranks: sums, agreement, checkpoints of all ranks, and how the command line ends when one of them fails."""

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from mldd import parallel
from mldd.cost import counting
from mldd.monitor import read_csv
from mldd.parallel import SERIAL

MPIEXEC = shutil.which("mpiexec", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")
needs_mpi = pytest.mark.skipif(MPIEXEC is None or find_spec("mpi4py") is None, reason="needs mpiexec and mpi4py")
MLDD = "import sys; from mldd.cli import main; sys.exit(main())"


def command(ranks, program, *arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}
    words = [MPIEXEC, "-n", str(ranks), sys.executable, "-c", textwrap.dedent(program), *map(str, arguments)]
    return words, {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "env": environment}


def launch(ranks, program, *arguments, cwd=None):
    """Run a program on some ranks; a hang is a failure."""
    words, options = command(ranks, program, *arguments)
    return subprocess.run(words, timeout=60, cwd=cwd, **options)


# One process without MPI


def test_serial_calls_return_at_once():
    x = torch.arange(3.0)
    with counting() as cost:
        assert SERIAL.sum(x) is x and SERIAL.gather(x) is x
    assert (cost.synchronisations, cost.bytes) == (2, 0)
    assert SERIAL.sum_scalars([1.0]) == [1.0] and SERIAL.broadcast("a") == "a" and SERIAL.gather_items("a") == ["a"]
    assert SERIAL.share(3) == range(3) and (SERIAL.rank, SERIAL.ranks) == (0, 1)
    assert SERIAL.agree(False) == 1 and SERIAL.agree(True) == 0
    SERIAL.abort()


def test_world_is_serial_without_a_launcher(monkeypatch):
    for name in parallel._LAUNCHED:
        monkeypatch.delenv(name, raising=False)
    assert parallel.world() is SERIAL


def test_launcher_without_mpi4py_says_what_to_install(monkeypatch):
    monkeypatch.setenv("PMI_SIZE", "2")
    monkeypatch.setattr(parallel, "_world", [])
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ImportError, match=r"mpi4py cannot be imported .*; install it with `pip install mldd\[mpi\]`"):
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
from mldd import parallel
from mldd.cost import counting
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
assert comm.sum_scalars([float(r), 1.0]) == [6.0, 4.0]
assert comm.broadcast({"rank": r}) == {"rank": 0}
assert comm.gather_items({"rank": r}) == [{"rank": k} for k in range(4)]
assert comm.share(10) == (range(0, 2), range(2, 5), range(5, 7), range(7, 10))[r]
assert comm.agree(False) == 4 and comm.agree(r in (1, 3)) == 1
print(f"rank {r} is done", flush=True)
"""


@needs_mpi
@pytest.mark.mpi
def test_collectives():
    done = launch(4, COLLECTIVES)
    assert done.returncode == 0, done.stderr
    assert sorted(done.stdout.splitlines()) == [f"rank {k} is done" for k in range(4)]


BROKEN = """
from dataclasses import dataclass
from mldd import parallel
from mldd.solvers.adagrad import AdaGrad

@dataclass(frozen=True)
class Broken(AdaGrad):
    ranks: str = "1"

    def step(self, objective, x, state):
        x, state = super().step(objective, x, state)
        if state.step == 5 and str(parallel.world().rank) in self.ranks:
            raise RuntimeError("out of luck")
        return x, state
"""
WITH_BROKEN = """
import sys
sys.path.insert(0, "")
from mldd import names
names.SOLVERS["broken"] = "broken:Broken"
from mldd.cli import main
sys.exit(main())
"""


def run_broken(folder, line):
    (folder / "broken.py").write_text(BROKEN)
    return launch(2, WITH_BROKEN, *line.split(), cwd=folder)


@needs_mpi
@pytest.mark.mpi
def test_a_rank_that_raises_ends_all(tmp_path):
    begin = time.monotonic()
    done = run_broken(tmp_path, "train obstacle:n=7 --solver broken:ranks=1 --steps 1000000 --out out")
    assert done.returncode == 1 and time.monotonic() - begin < 40
    lines = [line for line in done.stderr.splitlines() if line.startswith("mldd:")]
    assert lines == ["mldd: error on rank 1: RuntimeError: out of luck (--debug shows where)"]
    assert read_csv(tmp_path / "out" / "history.csv").column("step") == [0, 1, 2, 3, 4, 5]
    assert not (tmp_path / "out" / "result.json").exists()


@needs_mpi
@pytest.mark.mpi
def test_all_ranks_that_raise_speak_once(tmp_path):
    done = run_broken(tmp_path, "train obstacle:n=7 --solver broken:ranks=01 --out out")
    assert done.returncode == 1
    assert done.stderr == "mldd: error: RuntimeError: out of luck (--debug shows where)\n"


@needs_mpi
@pytest.mark.mpi
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("train obstacle --solver foo", "unknown solver 'foo'"),
        ("train obstacle --solver adagrad --out /proc/nowhere", "must be writable"),  # found by rank 0 alone
    ],
)
def test_errors_of_arguments_are_said_once(line, message, tmp_path):
    done = launch(2, MLDD, *line.split(), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("mldd: error: ") and done.stderr.count("\n") == 1 and message in done.stderr


@needs_mpi
@pytest.mark.mpi
def test_ctrl_c_on_two_ranks(tmp_path):
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
    line = f"train obstacle:n=31 --solver adam:lr=1e-9 --steps {steps} --quiet --out more --resume {tmp_path / 'c.pt'}"
    assert launch(2, MLDD, *line.split(), cwd=tmp_path).returncode == 0
    assert read_csv(tmp_path / "more" / "history.csv").column("step") == list(range(steps + 1))
