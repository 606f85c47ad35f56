"""torchrun starts ranks as mpiexec does: same histories, same halos, and an error on one ends all."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch

from mldd.loop import read_csv
from mldd.problems.data import write
from mldd.problems.data.datasets import sbm
from mldd.ranks import communicator, launchers
from tests.helpers import MLDD, MPIEXEC, needs_mpi, result, torchrun

TRAIN = [sys.executable, "-c", MLDD, "train", "--evaluate-every", "1"]


def history(folder):
    """The columns of a run that do not depend on time."""
    rows = read_csv(folder / "history.csv")
    return [(r.step, r.value, r.measure, r.cost.work_units, r.cost.synchronisations) for r in rows.records]


def assert_same(a, b):
    assert len(a) == len(b) > 1
    for mine, theirs in zip(a, b, strict=True):
        assert mine == pytest.approx(theirs, rel=1e-9)


@needs_mpi
@pytest.mark.parametrize(
    "words",
    [
        "sbm --solver dd-adagrad --parts 4 --levels 2 --steps 4 --dtype float64",
        "digits --solver apts --parts 2 --steps 4",
        "digits --solver lbfgs --steps 6",
    ],
)
def test_histories_are_those_of_mpiexec(words, tmp_path):

    done = torchrun(2, *TRAIN, *words.split(), "--quiet", "--out", "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    line = [str(MPIEXEC), "-n", "2", *TRAIN, *words.split(), "--quiet", "--out", "b"]
    assert subprocess.run(line, cwd=tmp_path, timeout=100).returncode == 0
    assert result(tmp_path / "a")["ranks"] == result(tmp_path / "b")["ranks"] == 2
    assert_same(history(tmp_path / "a"), history(tmp_path / "b"))


def test_sharded_graphs_exchange_halos(tmp_path):
    data = sbm(nodes=90, classes=3, features=4, seed=1)
    write(data, torch.arange(90) * 2 // 90, tmp_path / "two")
    words = ["two", "--solver", "lbfgs", "--steps", "5", "--dtype", "float64", "--quiet", "--out"]
    done = torchrun(2, *TRAIN, *words, "a", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    write(data, torch.zeros(90, dtype=torch.int64), tmp_path / "two")

    assert subprocess.run([*TRAIN, *words, "b"], cwd=tmp_path, timeout=100).returncode == 0
    a, b = history(tmp_path / "a"), history(tmp_path / "b")
    for mine, theirs in zip(a, b, strict=True):
        assert mine[1] == pytest.approx(theirs[1], rel=1e-9)
    assert result(tmp_path / "a")["halo_rows"] > 0


def test_every_call_of_the_communicator():
    program = """
        import torch
        from mldd.algebra import counting
        from mldd.ranks import SERIAL, Halo, part_sum, world
        from mldd.ranks.messages import sent_to_owners

        comm = world()
        r, one = comm.rank, torch.ones(3, dtype=torch.float64)
        assert comm.ranks == 3 and world() is comm
        with counting() as cost:
            assert torch.equal(comm.sum(one * (r + 1)), 6 * one)
            parts = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
            held = comm.share(5)
            assert torch.equal(part_sum(parts[held.start : held.stop], 5, comm), part_sum(parts, 5, SERIAL))
            rows = comm.gather(torch.full((r + 1, 2), float(r)))
            assert rows.tolist() == [[k, k] for k in (0.0, 1.0, 1.0, 2.0, 2.0, 2.0)]
            mine = torch.arange(4)[comm.share(4).start : comm.share(4).stop]
            assert torch.equal(comm.gather(mine, 4), torch.arange(4))
            assert comm.sum_scalars([1.0, float(r)]) == [3.0, 3.0]
            assert comm.gather_items({"rank": r}) == [{"rank": k} for k in range(3)]
        assert (cost.synchronisations, cost.scalar_synchronisations) == (5, 3)
        assert comm.agree(False) == 3 and comm.agree(r > 0) == 1
        assert comm.agree(False, patience=5.0) == 3
        counts, got = sent_to_owners(comm, torch.tensor([1, 0, 2]), torch.tensor([r, 10 * r, 10 * r + 1]))
        assert counts.tolist() == ([1, 1, 1] if r == 0 else [0, 0, 0] if r == 1 else [2, 2, 2])
        others = torch.tensor([k for k in range(3) if k != r])
        halo = Halo(comm, 2, others, torch.ones(2, dtype=torch.int64))
        own = torch.tensor([[0.0], [float(r)]], dtype=torch.float64)
        assert halo.exchange(own).flatten().tolist() == others.tolist()
        back = halo.end_back(halo.begin_back(torch.ones(2, 1, dtype=torch.float64)), torch.zeros(2, 1).double())
        assert back.flatten().tolist() == [0.0, 2.0]
        try:
            Halo(comm, 2, others, torch.ones(2, dtype=torch.int64), messages="petsc")
        except ValueError as error:
            assert "needs ranks of MPI, got those of torchrun" in str(error)
        else:
            raise AssertionError
        print("all the same")
    """
    done = torchrun(3, sys.executable, "-c", textwrap.dedent(program))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("all the same") == 3


def test_an_error_on_one_rank_ends_all():
    program = """
        import os, sys, time
        from mldd.command.cli import main
        from mldd.problems.images import Digits
        if os.environ["RANK"] == "1":
            def broken(self, *a, **k):
                raise RuntimeError("broken here")
            Digits.metrics = Digits.initial = broken
        sys.exit(main("train digits --solver lbfgs --steps 3 --quiet".split()))
    """
    done = torchrun(2, sys.executable, "-c", textwrap.dedent(program))
    assert done.returncode != 0 and done.stderr.count("broken here") >= 1
    bad = torchrun(2, *TRAIN, "digits", "--solver", "lbfgz")
    assert bad.returncode != 0 and bad.stderr.count("mldd: error: ") == 1


def test_tasks_that_do_not_know_of_each_other_are_refused(monkeypatch):
    for name in (*launchers._MPI, *launchers._RANK, *launchers._TORCH, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ValueError, match="srun started 4 tasks that do not know of each other.*--mpi=pmix.*torchrun"):
        communicator.world()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "1")
    assert communicator.world() is communicator.SERIAL


def test_the_launcher_is_read_from_the_environment(monkeypatch):
    for name in (*launchers._MPI, *launchers._RANK, *launchers._TORCH, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    assert not launchers.launched() and launchers.launched_rank() == 0
    monkeypatch.setenv("PMI_RANK", "2")  # srun has started torchrun on this machine
    monkeypatch.setenv("RANK", "5")
    assert launchers.launched() and launchers.launched_rank() == 2
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "7")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert (launchers.launched_rank(), launchers.local_rank(9), launchers.local_ranks(9)) == (5, 1, 9)


def test_a_rank_that_has_left_did_not_agree():
    program = """
        import os, time
        from mldd.ranks import world

        comm = world()
        if comm.rank == 1:
            os._exit(0)
        time.sleep(2)
        assert comm.agree(False, patience=20.0) is None
        print("it has left")
    """
    done = torchrun(2, sys.executable, "-c", textwrap.dedent(program))
    assert "it has left" in done.stdout, done.stderr


@needs_mpi
def test_a_launcher_of_another_library_is_refused(tmp_path):
    """The library of mpi4py is not told of the second rank: both would do the same run."""
    kept = {k: v for k, v in os.environ.items() if k not in (*launchers._MPI, *launchers._RANK)}
    foreign = "OMPI_COMM_WORLD_SIZE" if "Open MPI" not in communicator.library() else "PMI_SIZE"
    words = [*TRAIN, "digits", "--solver", "lbfgs", "--steps", "2", "--quiet", "--out", "a"]
    done = subprocess.run(words, cwd=tmp_path, timeout=100, env={**kept, foreign: "2"}, capture_output=True, text=True)
    assert done.returncode == 2 and "announces 2 ranks, but the MPI library of mpi4py has 1" in done.stderr
    assert not (tmp_path / "a").exists()


def test_variables_of_torch_set_by_hand_make_ranks(monkeypatch):
    for name in (*launchers._MPI, *launchers._RANK, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in zip(launchers._TORCH, ("1", "2", "localhost", "29500"), strict=True):
        monkeypatch.setenv(name, value)
    assert launchers.by_torchrun() and (launchers.launched_rank(), launchers.announced()) == (1, 2)
    monkeypatch.setenv("PMI_SIZE", "3")  # MPI has started the process, and somebody uses torch.distributed beside it
    assert not launchers.by_torchrun() and launchers.announced() == 3
