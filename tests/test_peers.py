"""Benchmarks beside peers: every one runs in its quick form, and one number of each is right."""

import importlib
import math

import numpy as np
import pytest
import torch

from experiments.peers import overhead
from experiments.peers.discretised import PROBLEMS
from experiments.peers.multigrid import solve
from mldd import Stop, minimise
from mldd.ranks import SERIAL
from mldd.solvers import MultilevelAdaGrad


def rows_of(name):
    """The rows of the quick run, by method and target."""
    benchmark = importlib.import_module(f"experiments.peers.{name}").BENCHMARK.small()
    rows = list(benchmark.rows(SERIAL))[-1]
    return {(row["method"], row["target"]): row for row in rows}


def reached(row):
    return not math.isnan(row["gradients"])


# ------------------------------------------------------------------------------------------------ B1 to B8


def test_b1_lbfgs_and_layers_reach_a_small_loss_and_adam_does_not_so_soon():
    rows = rows_of("digits")
    assert reached(rows["lbfgs", 1e-6]) and reached(rows["aspqn, layers", 1e-6])
    assert not reached(rows["adam", 1e-6])
    assert rows["dd4ml, first order, repaired", 1e-2]["source"] == "recorded"


def test_b2_mspqn_needs_fewer_gradients_than_lbfgs():
    rows = rows_of("poisson")
    assert rows["mspqn", 1e-3]["gradients"] < 400 and not reached(rows["lbfgs", 1e-4])
    assert rows["mspqn", 1e-3]["vectors"] < rows["mspqn", 1e-3]["gradients"]


def test_b3_windows_are_solved():
    rows = rows_of("windows")
    assert reached(rows["lbfgs", 1e-2])
    assert rows["fbpinns adam (JAX)", 3.9e-3]["source"] == "recorded"


def test_b4_a_deep_network_fits():
    rows = rows_of("depth")
    assert reached(rows["mspqn, full", 1e-1]) and rows["mspqn, full", 1e-1]["gradients"] <= 100


def test_b5_torch_geometric_does_the_same_steps_of_adam():
    pytest.importorskip("torch_geometric")
    rows = rows_of("graphs")
    for target in (0.5, 0.1):
        ours_, theirs = rows["adam", target], rows["torch_geometric adam", target]
        assert ours_["gradients"] == theirs["gradients"] > 0
    assert rows["lbfgs", 0.1]["gradients"] < rows["adam", 0.1]["gradients"]


def test_b6_levels_and_snes_with_multigrid_find_the_same_point():
    pytest.importorskip("petsc4py")
    n = 31
    for discretise, make in PROBLEMS.values():
        problem, here = make(n), discretise(n)
        f, x = problem.objective(), problem.initial()
        end = minimise(f, x, MultilevelAdaGrad(problem.hierarchy(3)), stop=Stop(50, rtol=1e-9), values=False).x
        u, _, _ = solve(discretise, n, 1e-9)
        np.testing.assert_allclose(end.numpy().reshape(n, n), u[1:-1, 1:-1], atol=1e-6)
        assert here.measure(u) == pytest.approx(
            f.bounds.measure(
                torch.from_numpy(u[1:-1, 1:-1].ravel()), f.gradient(torch.from_numpy(u[1:-1, 1:-1].ravel()))
            ),
            abs=1e-12,
        )


def test_b6_levels_solve_to_the_last_target():
    pytest.importorskip("petsc4py")
    rows = rows_of("bounds")
    assert reached(rows["ml-adagrad", 1e-8])
    assert rows["snes multigrid", 1e-8]["cpu"] > 0
    assert rows["scipy l-bfgs-b", 1e-2]["gradients"] > 3


def test_b7_burgers_descends():
    rows = rows_of("burgers")
    assert all(row["source"] == "absent" or row["setup"] > 0 for row in rows.values())


def test_b8_a_step_of_adam_is_a_gradient():
    from experiments.gpu.device import Device

    found = {row["method"]: row for row in overhead.rows([3010], ["adam", "localsgd", "torch lbfgs"], 1, Device("cpu"))}
    steps = overhead.SIZES[3010].steps
    assert found["adam"]["gradients_per_step"] == pytest.approx(1 + 1 / steps)
    assert found["localsgd"]["gradients_per_step"] == pytest.approx(10)
    assert {row["source"] for row in overhead.recorded()} == {"recorded"}
