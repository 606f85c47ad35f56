"""The bridge to PETSc: shared memory, casts, matrices of transfers, options, small problems by TAO."""

from __future__ import annotations

import builtins
import gc
import os
import subprocess
import sys
import textwrap
import weakref
from pathlib import Path

import pytest
import torch

pytest.importorskip("petsc4py", reason="petsc4py is not installed")

from scipy.optimize import minimize as scipy_minimize  # noqa: E402

from mldd.algebra import (  # noqa: E402
    Compose,
    Identity,
    IndexTransfer,
    MatrixTransfer,
    Transfer,
    counting,  # noqa: E402
)
from mldd.ranks import as_tensor, as_vec, insert_options, load_petsc
from mldd.ranks import petsc as bridge  # noqa: E402
from mldd.ranks.petsc import matrix, shares  # noqa: E402
from mldd.solvers.petsc import tao_minimise  # noqa: E402
from tests.helpers import Failing, Rosenbrock, quadratic  # noqa: E402


def _bounded_solution(f):
    theirs = scipy_minimize(
        lambda x: tuple(v.numpy() for v in f.value_and_gradient(torch.from_numpy(x))),
        f.bounds.project(torch.zeros(f.size, dtype=torch.float64)).numpy(),
        jac=True,
        bounds=list(zip(f.bounds.lower.tolist(), f.bounds.upper.tolist(), strict=True)),
        method="L-BFGS-B",
        options={"gtol": 1e-10, "ftol": 0.0, "maxiter": 10**4, "maxfun": 10**5},
    )
    return torch.from_numpy(theirs.x)


def test_float64_on_the_cpu_shares_memory_both_ways():
    x = torch.arange(5.0, dtype=torch.float64)
    before = bridge.copies.vectors
    vec = as_vec(x)
    assert shares(x) and bridge.copies.vectors == before
    x[0] = 7.0
    assert vec[0] == 7.0
    vec.set(3.0)
    assert torch.equal(x, torch.full((5,), 3.0, dtype=torch.float64))
    view = as_tensor(vec)
    view[2] = -1.0
    assert x[2] == -1.0 and vec[2] == -1.0
    assert view.data_ptr() == x.data_ptr()


def test_the_vec_keeps_the_memory_alive():
    vec = as_vec(torch.full((1000,), 2.0, dtype=torch.float64))
    torch.zeros(1000, dtype=torch.float64)  # would take the freed memory
    assert vec.sum() == 2000.0


@pytest.mark.parametrize(
    "x", [torch.arange(6.0, dtype=torch.float32), torch.arange(12.0, dtype=torch.float64)[::2]], ids=["cast", "strided"]
)
def test_other_tensors_are_copied_and_counted(x):
    before = bridge.copies.bytes
    vec = as_vec(x)
    assert not shares(x)
    assert bridge.copies.bytes - before == 6 * x.element_size()
    assert vec.array.tolist() == x.tolist()
    vec.set(0.0)
    assert x[1] != 0.0


def test_a_gradient_that_is_tracked_is_no_hindrance():
    x = torch.ones(3, dtype=torch.float64, requires_grad=True)
    assert as_vec(x).norm() == pytest.approx(3**0.5)


def _transfers() -> list[Transfer]:
    generator = torch.Generator().manual_seed(1)
    dense = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    sparse = dense.masked_fill(dense.abs() < 0.8, 0.0).to_sparse()
    index = IndexTransfer(torch.tensor([7, 2, 3, 8]), 9)
    return [
        Identity(5),
        index,
        MatrixTransfer(dense),
        MatrixTransfer(sparse),
        Compose(index, MatrixTransfer(dense[:4])),
    ]


@pytest.mark.parametrize("transfer", _transfers(), ids=lambda t: type(t).__name__)
def test_mat_of_a_transfer(transfer):
    n, m = transfer.shape
    mat = matrix(transfer)
    assembled = isinstance(transfer, IndexTransfer | MatrixTransfer)
    assert mat.getType() == ("seqaij" if assembled else "python")
    assert mat.getSize() == (n, m)
    columns = torch.stack([transfer.prolong(e) for e in torch.eye(m, dtype=torch.float64)], 1)
    if assembled:
        assert torch.equal(torch.from_numpy(mat[:, :]), columns)
    e = torch.linspace(-1, 2, m, dtype=torch.float64)
    g = torch.linspace(3, -1, n, dtype=torch.float64)
    fine, coarse = mat.createVecLeft(), mat.createVecRight()
    mat.mult(as_vec(e), fine)
    mat.multTranspose(as_vec(g), coarse)
    torch.testing.assert_close(as_tensor(fine), columns @ e, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(as_tensor(coarse), columns.T @ g, rtol=1e-13, atol=1e-13)
    # The dot test: <P e, g> = <e, P^T g>.
    assert fine.dot(as_vec(g)) == pytest.approx(coarse.dot(as_vec(e)), rel=1e-13)


def test_mat_of_a_float32_transfer():
    transfer = Compose(IndexTransfer(torch.tensor([1, 0]), 3), MatrixTransfer(torch.tensor([[1.0], [0.5]])))
    fine = load_petsc().Vec().createSeq(3)
    matrix(transfer, torch.empty(0)).mult(as_vec(torch.tensor([2.0])), fine)
    assert fine.array.tolist() == [1.0, 2.0, 0.0]


def test_options_reach_the_database():
    insert_options(["-probe_flag", "-probe_number", "-1.5", "-probe_word", "a b"])
    options = load_petsc().Options("probe_")
    assert options.hasName("flag")
    assert options.getReal("number") == -1.5
    assert options.getString("word") == "a b"
    for name in ("flag", "number", "word"):
        options.delValue(name)


def test_a_value_without_an_option_is_refused():
    with pytest.raises(ValueError, match="must be .*got the value '10'"):
        insert_options(["-probe", "1", "10"])
    load_petsc().Options().delValue("probe")


def test_missing_petsc4py_is_one_line(monkeypatch):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.startswith("petsc4py"):
            raise ImportError("No module named 'petsc4py'")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match="petsc4py cannot be imported.*pip install") as caught:
        load_petsc.__wrapped__()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("type", ["blmvm", "bqnls", "bncg", "bnls", "bntr", "tron"])
def test_tao_minimises_a_small_problem_with_bounds(type):
    f = quadratic(12, condition=20.0, bounded=True)
    start = f.bounds.project(torch.zeros(12, dtype=torch.float64))
    kept = start.clone()
    x, reason = tao_minimise(f, start, type=type, max_steps=300, atol=1e-9)
    assert reason > 0
    assert torch.equal(start, kept)
    assert f.bounds.violation(x) == 0.0
    torch.testing.assert_close(x, _bounded_solution(f), rtol=0, atol=1e-7)


@pytest.mark.parametrize("type", ["nls", "ntr", "bnls", "bntl"])
def test_newton_types_on_a_problem_that_is_not_convex(type):
    f = Rosenbrock(8)
    x, reason = tao_minimise(f, f.start(), type=type, max_steps=200, atol=1e-8)
    assert reason > 0
    assert float(f.gradient(x).abs().max()) < 1e-8  # there are two minimisers


def test_the_default_type_lowers_the_objective_and_counts():
    f = quadratic(10, condition=10.0, bounded=True)
    start = f.bounds.project(torch.zeros(10, dtype=torch.float64))
    with counting() as cost:
        x, reason = tao_minimise(f, start, max_steps=5, atol=0.0)
    assert reason == -2
    assert cost.gradients > 0
    assert f.value(x) < f.value(start)


def test_tao_minimises_in_float32():
    f = quadratic(12, condition=20.0, bounded=True, dtype=torch.float32)
    x, _ = tao_minimise(f, f.bounds.project(torch.zeros(12)), type="blmvm", max_steps=100, atol=1e-5)
    assert x.dtype == torch.float32
    assert f.bounds.violation(x) == 0.0
    assert f.bounds.measure(x, f.gradient(x)) < 1e-2  # what the rounding of the value lets a line search see


def test_options_win_over_arguments():
    f = quadratic(12, bounded=True)
    insert_options(["-coarse_tao_type", "blmvm", "-coarse_tao_max_it", "3"])
    try:
        with counting() as cost:
            _, reason = tao_minimise(f, torch.zeros(12, dtype=torch.float64), max_steps=300, atol=0.0)
    finally:
        for name in ("coarse_tao_type", "coarse_tao_max_it"):
            load_petsc().Options().delValue(name)
    assert reason == -2
    assert cost.gradients < 12 and cost.values == 0


@pytest.mark.parametrize(
    "f, type, message",
    [
        (quadratic(4), "simplex", "must be a TAO type of this PETSc, one of .*got 'simplex'"),
        (quadratic(4, bounded=True), "lmvm", "'lmvm' ignores bounds, got .*use blmvm"),
    ],
)
def test_types_that_do_not_fit_are_refused(f, type, message):
    with pytest.raises(ValueError, match=message) as caught:
        tao_minimise(f, torch.zeros(4, dtype=torch.float64), type=type)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [KeyError, ZeroDivisionError, KeyboardInterrupt])
@pytest.mark.parametrize("type", ["blmvm", "bqnktr", "bncg"])
def test_the_exception_of_a_callback_comes_out_as_it_was(kind, type, capfd):
    def fail():
        raise kind("mine")

    f = Failing(quadratic(6), 3, fail)
    with pytest.raises(kind, match="mine"):
        tao_minimise(f, torch.zeros(6, dtype=torch.float64), type=type)
    assert "PETSC ERROR" not in "".join(capfd.readouterr())


UNMAPPING = """
    import mmap
    from mldd.ranks import load_petsc

    def mapped():
        lines = open("/proc/self/status").read().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmData"))  # KiB

    load_petsc()
    found = []
    for _ in range(2):
        for _ in range(20000):
            mmap.mmap(-1, 16384).close()
        found.append(mapped())
    assert found[1] - found[0] < 512, found
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is told by /proc, of Linux")
def test_a_process_alone_does_not_grow_by_what_is_unmapped():
    """Python maps and unmaps pieces of its stack all the time."""
    alone = {name: value for name, value in os.environ.items() if not name.startswith(("UCX_", "PMI", "MPI"))}
    words = [sys.executable, "-c", textwrap.dedent(UNMAPPING)]
    done = subprocess.run(words, env=alone, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_petsc_objects_do_not_pile_up():
    f = quadratic(6)
    seen = []

    for _ in range(3):
        g = Failing(f, 10**9, lambda: torch.zeros(()))
        seen.append(weakref.ref(g))
        tao_minimise(g, torch.zeros(6, dtype=torch.float64), max_steps=3)
    del g
    gc.collect()
    assert [r() for r in seen] == [None] * 3
