"""A step that does not end: the watchdog says where every rank is, and ends them all."""

import sys

import pytest

from mldd.loop.watchdog import operation
from tests.helpers import launch, needs_mpi

HANGS = """
import math, os, signal, sys, time
from dataclasses import dataclass
import torch
from mldd.loop import Schedule, State, Stop, minimise
from mldd.ranks import world
from mldd.solvers import Sgd
from tests.helpers import quadratic

class Hanging:
    def init(self, objective, x):
        return State()

    def step(self, objective, x, state):
        if state.step == 2 and world().rank == 0:
            time.sleep(1000)
        return x - 0.01 * objective.gradient(x), state

minimise(quadratic(6), torch.ones(6, dtype=torch.float64), Hanging(), stop=Stop(9), comm=world(),
         schedule=Schedule(watchdog=2.0))
"""


@needs_mpi
@pytest.mark.mpi
def test_ranks_say_where_they_are(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    done = launch(2, HANGS)
    assert done.returncode == 1
    said = "mldd: error on rank {}: step 3 has not ended after 2 s: it {} in `{}"
    assert said.format(0, "computes", "step` (loop/course.py:") in done.stderr and "`step` (" in done.stderr
    assert said.format(1, "waits for other ranks", "sum_scalars`, called by `summed` (") in done.stderr


def test_an_operation_is_named_by_the_function_of_mldd_that_computes():
    def inner():
        return operation(sys._getframe())

    assert inner().startswith("it computes in `inner` (loop/test_watchdog.py:")
