"""The cost model of the figure that says where local training pays: against counted work and times by hand."""

import importlib.util
import sys
from pathlib import Path

import pytest

from mldd.ranks import Interconnect

ROOT = Path(__file__).parents[1]


@pytest.fixture
def regions(monkeypatch):
    spec = importlib.util.spec_from_file_location("regions", ROOT / "experiments" / "gnn_decomposition" / "regions.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "regions", module)
    spec.loader.exec_module(module)
    return module


def test_the_work_of_parts_is_what_was_counted(regions):
    assert regions.difference(ROOT / "paper" / "results" / "gnn_decomposition" / "work.csv") < 0.02
    assert regions.work_of_parts(100, 4, 1) == 1.0, "one layer reads its neighbours and computes no ring"
    assert regions.work_of_parts(400, 4, 2) == pytest.approx((1 + 1.2**2) / 2)


def test_steps_take_what_they_take_by_hand(regions):
    step = regions.Step(2.0, 4, Interconnect(0.01, 1e6), size=8000.0, row=100.0)
    summed = 2 * 2 * 0.01 + 2 * 3 / 4 * 8000 / 1e6  # recursive halving and doubling
    assert step.synchronous_shares == pytest.approx(0.5 + summed)
    halo = 8 * 0.01 + 2 * 4 * 158 * 100 / 1e6  # a part has 158 x 158 nodes
    assert step.synchronous_parts == pytest.approx(0.5 + summed + 6 * halo)
    average = (2 * 2 * 0.01 + 2 * 3 / 4 * 24000 / 1e6) / 20
    assert step.local_shares == pytest.approx(0.5 + average)
    assert step.local_parts == pytest.approx(0.5 * regions.work_of_parts(316**2, 4, 4) + average)
