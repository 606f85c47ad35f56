"""Compiled stencils: against dense matrices, against operations in torch, and without a compiler."""

import shutil
from functools import partial

import pytest
import torch

from mldd.algebra import counting, hessian
from mldd.problems.grids import Bratu, Membrane, MinimalSurface, MoreBV, Obstacle, Quadratic
from mldd.problems.grids import compiled_stencils as compiled
from mldd.problems.grids.grid import Grid, GridTransfer

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")
PROBLEMS = [Obstacle, Bratu, Membrane, MinimalSurface, MoreBV, lambda n, dtype: Quadratic(n, dtype, dim=1)]


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty cache, and no library that was loaded before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.library.cache_clear()
    yield monkeypatch
    compiled.library.cache_clear()


def draw(*shape, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).mul_(0.3).to(dtype)


def evaluations(problem):
    """Everything that a compiled function takes part in: at a point, at a batch, on windows, and between grids."""
    f = problem.objective()
    dtype = f.bounds.lower.dtype
    x, batch = draw(f.size, dtype=dtype), draw(3, f.size, dtype=dtype)
    found = [f.gradient(x), f.hessian_product(x, batch[0]), f.hessian_diagonal(x), f.value(x), f.gradient(batch)]
    found += [*f.value_and_gradient(batch), hessian(f, batch).product(batch.sin()), hessian(f, x).product(batch)]
    if hasattr(f, "local") and problem.n > 7:
        d = problem.decomposition(4, 2)
        local, y = f.local(d, x), d.gather(x)
        found += [*local.value_and_gradient(y), hessian(local, y).product(y.sin())]
    if problem.n > 1:
        transfer = problem.hierarchy(2)[1].transfer
        found.append(transfer.restrict(x))
        found.append(transfer.prolong(found[-1]))
    return found


@needs_compiler
@pytest.mark.parametrize("n", [1, 3, 23])
@pytest.mark.parametrize("make", PROBLEMS)
def test_the_numbers_are_those_of_torch(make, n):
    for dtype, tolerance in ((torch.float64, 1e-13), (torch.float32, 1e-4)):
        problem = make(n=n, dtype=str(dtype).removeprefix("torch."))
        assert compiled.suited(problem.initial()) is not None
        found = evaluations(problem)
        token = compiled._in_torch.set(True)
        expected = evaluations(problem)
        compiled._in_torch.reset(token)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape
            assert float((a - b).abs().max()) <= tolerance * float(b.abs().max())


@needs_compiler
def test_stencils_and_transfers_are_dense_matrices():
    f, n = Bratu(n=7).objective(), 7
    line = (
        torch.diag(torch.full((n,), 2.0)).double()
        - torch.diag(torch.ones(n - 1), 1)
        - torch.diag(torch.ones(n - 1), -1)
    )
    eye = torch.eye(n, dtype=torch.float64)
    x, v = draw(2, n * n)
    A = torch.kron(eye, line) + torch.kron(line, eye) - torch.diag(3.0 / (n + 1) ** 2 * x.exp())
    torch.testing.assert_close(f.hessian_product(x, v), A @ v, rtol=1e-13, atol=1e-13)
    P = torch.zeros(7, 3, dtype=torch.float64)
    for j in range(3):
        P[2 * j : 2 * j + 3, j] = torch.tensor([0.5, 1.0, 0.5])
    transfer = Obstacle(n=7).hierarchy(2)[1].transfer
    torch.testing.assert_close(transfer.restrict(v), torch.kron(P, P).T @ v, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(transfer.prolong(v[:9].clone()), torch.kron(P, P) @ v[:9], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("compiler", [pytest.param("cc", marks=needs_compiler), ""])
@pytest.mark.parametrize("count", [0, 1, 2, 3])
@pytest.mark.parametrize("make", [Obstacle, Bratu, Membrane, MinimalSurface])
def test_smoothing_steps_are_products_with_the_dense_hessian(elsewhere, make, count, compiler):
    elsewhere.setenv("CC", compiler)
    f = make(n=7).objective()
    x, v, b, *steps = draw(3 + count, f.size)
    matrix = torch.stack([f.hessian_product(x, e) for e in torch.eye(f.size, dtype=x.dtype)])  # symmetric
    given, expected = [t.clone() for t in (x, b, *steps)], v.clone()
    for w in steps:
        expected = expected + w * (b - matrix @ expected)
    with counting() as cost:
        found = hessian(f, x).relaxed(v.clone(), b, steps)
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close((x, b, *steps), tuple(given), rtol=0, atol=0)
    with counting() as products:
        for _ in steps:
            hessian(f, x).product(v)
    assert cost.work == pytest.approx(products.work)


@needs_compiler
def test_what_is_differentiated_or_strided_is_left_to_torch():
    f = MinimalSurface(n=7).objective()
    x = draw(49)
    g = torch.func.grad(f.value)(x)
    torch.testing.assert_close(f.gradient(x), g, rtol=1e-12, atol=1e-13)
    assert compiled.suited(draw(7, 7).t()) is None and compiled.suited(x.clone().requires_grad_()) is None


def test_a_field_of_another_size_is_refused():
    with pytest.raises(ValueError, match="expected 9 or 18 numbers, got 4"):
        compiled._field(torch.ones(4), 9, 18)


@pytest.mark.parametrize("compiler", ["", "false"])
def test_without_a_compiler_the_numbers_are_the_same(elsewhere, compiler):
    problem = Obstacle(n=15)
    expected = evaluations(problem)
    elsewhere.setenv("CC", compiler)
    compiled.library.cache_clear()
    if compiler:
        with pytest.warns(UserWarning, match="operations of torch are used"):
            found = evaluations(problem)
    else:
        found = evaluations(problem)
    assert compiled.library(torch.float64) is None
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


@needs_compiler
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        ("a * (c[j - 1] + c[j + 1])", "a * c[j - 1]"),
        ("a * ax * ay + b * bx * by", "a * ax * ay"),
        ("(real)0.5 * sum", "sum"),
    ],
)
def test_a_library_with_wrong_numbers_is_not_used(elsewhere, tmp_path, right, wrong):
    text = compiled._SOURCE.read_text()
    assert right in text
    source = tmp_path / "stencils.c"
    source.write_text(text.replace(right, wrong))
    elsewhere.setattr(compiled, "_SOURCE", source)
    with pytest.warns(UserWarning, match="wrong numbers"):
        assert compiled.library(torch.float64) is None


def test_vectors_of_another_length_are_refused():
    zeros = partial(torch.zeros, dtype=torch.float64)
    f, surface, transfer = Obstacle(n=15).objective(), MinimalSurface(n=15).objective(), GridTransfer(Grid(15))
    n, bend = 225, zeros(2, 225)
    for call in (
        lambda: f.gradient(zeros(n - 1)),
        lambda: f.gradient(zeros(2 * n)),
        lambda: f.value_and_gradient(zeros(2, n + 1)),
        lambda: f.hessian_product(zeros(n), zeros(n - 1)),
        lambda: hessian(f, zeros(n)).defect(zeros(n), zeros(n - 1), zeros(n)),
        lambda: hessian(f, zeros(n)).relaxed(zeros(n), zeros(n), [zeros(n), zeros(n - 1)]),
        lambda: hessian(f, zeros(n)).relaxed(zeros(n), zeros(n + 1), [zeros(n)]),
        lambda: f._apply(zeros(3, n), None, bend),
        lambda: surface.gradient(zeros(n - 1)),
        lambda: surface.hessian_product(zeros(n), zeros(n + 1)),
        lambda: hessian(surface, zeros(n)).defect(zeros(n), zeros(n), zeros(n - 1)),
        lambda: hessian(surface, zeros(n)).relaxed(zeros(n), zeros(n), [zeros(n + 1)]),
        lambda: hessian(surface, zeros(n)).relaxed(zeros(n - 1), zeros(n), [zeros(n)]),
        lambda: transfer.prolong(zeros(48)),
        lambda: transfer.restrict(zeros(n - 1)),
    ):
        with pytest.raises((ValueError, RuntimeError)):
            call()
