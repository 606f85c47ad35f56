"""Compiled sweeps: against operations that autograd differentiates, and without a compiler."""

import shutil

import pytest
import torch

from mldd.problems.pinns import PhysicsInformed, TaylorNetwork
from mldd.problems.pinns import compiled_sweeps as compiled

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """An empty cache, and no library that was loaded before."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    compiled.library.cache_clear()
    yield monkeypatch
    compiled.library.cache_clear()


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@needs_compiler
@pytest.mark.parametrize("points", [(1,), (37,), (300,), (3, 130)])
@pytest.mark.parametrize("widths", [(2, 9, 1), (2, 5, 7, 6, 3)])
@pytest.mark.parametrize("orders", [(0, 0), (2, 0), (1, 2), (2, 2)])
def test_sweeps_are_autograd(orders, widths, points):
    net, lead = TaylorNetwork(widths), (3,) if len(points) == 2 else ()
    x = net.initial(1).expand(*lead, -1) + 0.3 * draw(*lead, net.layout.size)
    source, leaves = net.at(draw(*points, 2, seed=1), orders), net.layout.leaves(x)
    expected = source.graph(leaves)
    reference = torch.autograd.grad(expected.sin().sum(), leaves)
    evaluation = source.forward(net.layout.views(x))
    assert isinstance(evaluation, compiled.CompiledEvaluation)
    torch.testing.assert_close(evaluation.streams, expected.detach(), rtol=1e-10, atol=1e-12)
    g = torch.full_like(x, torch.nan)
    evaluation.backward(evaluation.streams.cos(), net.layout.views(g))
    torch.testing.assert_close(g, net.layout.pack(reference), rtol=1e-9, atol=1e-11)


@needs_compiler
def test_single_precision_and_what_is_not_contiguous():
    net = TaylorNetwork((1, 33, 31, 1))
    x, points = net.initial(0), draw(200, 1)
    exact = net.at(points, (2,)).graph(net.layout.views(x))
    turned = [t.t().contiguous().t() if t.dim() == 2 else t for t in net.layout.views(x.float())]
    source = net.at(points.float(), (2,))
    evaluation = source.forward(turned)
    assert float((evaluation.streams - exact).abs().max()) < 1e-5 * float(exact.abs().max())
    out = [torch.full_like(t, torch.nan) for t in turned]
    evaluation.backward(torch.ones_like(evaluation.streams), out)
    other = source.layered(turned)
    expected = [torch.empty_like(t) for t in turned]
    other.backward(torch.ones_like(other.streams), expected)
    scale = max(float(t.abs().max()) for t in expected)
    assert all(float((a - b).abs().max()) < 1e-5 * scale for a, b in zip(out, expected, strict=True))


@needs_compiler
def test_large_and_undefined_arguments():
    net = TaylorNetwork((1, 4, 1))
    x = net.initial(0) * 1e4
    found = net.jets(net.layout.views(x), draw(20, 1), (2,))
    assert all(bool(t.isfinite().all()) for t in (found.value, found.first[0], found.second[0]))
    x[0] = torch.nan
    assert bool(net.jets(net.layout.views(x), draw(20, 1), (2,)).value.isnan().all())


def loss_and_gradient(problem):
    x = problem.initial(0)
    return problem.objective().value_and_gradient(x)


@pytest.mark.parametrize("compiler", ["", "no-such-compiler", "false"])
@pytest.mark.parametrize("equation", ["poisson1d", "burgers"])
def test_without_a_compiler_the_numbers_are_the_same(elsewhere, equation, compiler):
    """One field of a linear equation, several of a nonlinear one."""
    problem = PhysicsInformed(equation, "windows", points=200)
    elsewhere.setenv("CC", "cc")
    value, g = loss_and_gradient(problem)
    elsewhere.setenv("CC", compiler)
    compiled.library.cache_clear()
    if compiler == "false":
        with pytest.warns(UserWarning, match="operations of torch are used"):
            found = loss_and_gradient(problem)
    else:
        found = loss_and_gradient(problem)
    assert compiled.library(torch.float64) is None
    torch.testing.assert_close(found[0], value, rtol=1e-10, atol=0)
    assert float((found[1] - g).abs().max()) <= 1e-9 * float(g.abs().max())


@needs_compiler
def test_a_library_with_wrong_numbers_is_not_used(elsewhere, tmp_path):
    source = compiled._SOURCE.read_text().replace(
        "const vector t = AT(row + k), d = 1 - t * t;", "const vector t = AT(row + k), d = 1 - t;"
    )
    wrong = tmp_path / "taylor.c"
    wrong.write_text(source)
    elsewhere.setattr(compiled, "_SOURCE", wrong)
    with pytest.warns(UserWarning, match="wrong numbers"):
        assert compiled.library(torch.float64) is None
