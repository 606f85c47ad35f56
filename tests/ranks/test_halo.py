"""Halos on a single rank; what ranks exchange is in tests/mpi/test_halo_mpi.py."""

import sys

import pytest
import torch

from mldd.algebra import counting
from mldd.ranks import SERIAL, Halo, timed


def ints(*values):
    return torch.tensor(values, dtype=torch.int64)


def test_one_rank_has_no_halo_and_counts_nothing():
    halo = Halo.none(3)
    x = torch.rand(3, 2, dtype=torch.float64, requires_grad=True)
    with counting() as cost:
        z = halo.exchange(x)
        z.sum().backward()
    assert z.shape == (0, 2) and torch.equal(x.grad, torch.zeros(3, 2, dtype=torch.float64))
    assert (cost.halo_rows, cost.halo_bytes, cost.exchanges) == (0, 0, 0)
    assert (halo.own, halo.size, len(halo.index), len(halo.readers)) == (3, 0, 0, 0)


def test_rows_may_have_any_trailing_axes():
    halo = Halo.none(3)
    for shape in ((3,), (3, 2), (3, 2, 4), (3, 0)):
        rows = torch.ones(shape)
        assert halo.exchange(rows).shape == (0, *shape[1:])
        into = torch.full(shape, 2.0)
        assert halo.end_back(halo.begin_back(rows[:0]), into) is into and bool((into == 2).all())


def test_one_rank_asks_nobody_about_devices(monkeypatch):
    """Rows on another device than the CPU, where MPI need not be installed."""
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    halo = Halo.none(3)
    rows = torch.empty(3, 2, device="meta")
    assert halo.exchange(rows).shape == (0, 2) and halo.end_back(halo.begin_back(rows[:0]), rows).device.type == "meta"


def test_one_rank_refuses_what_several_would():
    with pytest.raises(ValueError, match="`messages` must be one of auto, mpi, petsc, got 'pigeons'"):
        Halo(SERIAL, 3, ints(), ints(), messages="pigeons")


def test_what_mpi_can_read_is_asked_or_told(monkeypatch):
    from mldd.ranks.messages import reads_devices

    for told, expected in (("1", True), ("0", False), ("no", False)):
        monkeypatch.setenv("MLDD_CUDA_AWARE", told)
        assert reads_devices() is expected


def test_an_exchange_must_end_before_the_next_begins():
    halo = Halo.none(2)
    pending = halo.begin(torch.ones(2, 3))
    other = halo.begin(torch.ones(2, 4))
    with pytest.raises(RuntimeError, match="an exchange must end before the next one of such rows begins"):
        halo.begin(torch.ones(2, 3))
    halo.end(pending), halo.end(other)
    halo.end(halo.begin(torch.ones(2, 3)))


@pytest.mark.parametrize(
    ("ranks", "indices", "message"),
    [
        (ints(0), ints(0), "owners of a halo must be the other of 1 ranks, got 0..0 on rank 0"),
        (ints(1, 1), ints(0), r"must be int64 of equal shape \(h,\), got \(2,\), \(1,\)"),
        (torch.zeros(1), ints(0), "must be int64"),
    ],
)
def test_owners_that_make_no_sense_are_refused(ranks, indices, message):
    with pytest.raises(ValueError, match=message):
        Halo(SERIAL, 3, ranks, indices)


def test_time_is_measured_inside_the_block_only():
    halo = Halo.none(2)
    with timed() as timing:
        halo.exchange(torch.ones(2, 1))
        halo.exchange(torch.ones(2, 1))
    before = (timing.begin, timing.wait)
    halo.exchange(torch.ones(2, 1))
    assert timing.exchanges == 2 and min(before) > 0 and (timing.begin, timing.wait) == before
