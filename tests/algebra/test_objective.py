"""Compositions of objectives: consistent with finite differences everywhere, and one evaluation where one is enough."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    Bounds,
    Corrected,
    IndexTransfer,
    MatrixTransfer,
    Noisy,
    Objective,
    Remembered,
    Restricted,
    Stochastic,
    counting,
    innermost,
    layers_of,
    offers,
    remember,
    sampled,
    value_and_gradient,
    without_memory,
)
from mldd.problems.grids import MinimalSurface, Obstacle
from tests.helpers import Quadratic


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def difference_gradient(f: Objective, x: Tensor, step: float = 1e-6) -> Tensor:
    directions = step * torch.eye(len(x), dtype=x.dtype)
    return torch.stack([(f.value(x + d) - f.value(x - d)) / (2 * step) for d in directions])


def check_derivatives(f: Objective, x: Tensor) -> None:
    g, v = f.gradient(x), randn(len(x), seed=9)
    torch.testing.assert_close(difference_gradient(f, x), g, rtol=1e-6, atol=1e-8)
    along = (f.gradient(x + 1e-6 * v) - f.gradient(x - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(along, f.hessian_product(x, v), rtol=1e-6, atol=1e-7)  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Plain:
    """A quartic without any optional method."""

    size: int = 3

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(self.size)

    def value(self, x: Tensor) -> Tensor:
        return (x**4).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        return 4 * x**3


SURFACE = MinimalSurface(n=5).objective()
SUBSPACE = MatrixTransfer(randn(25, 4, seed=3))


def test_restricted_is_consistent_away_from_the_expansion_point() -> None:
    f = Restricted(SURFACE, 0.2 * randn(25), SUBSPACE)
    assert f.size == 4
    check_derivatives(f, 0.3 * randn(4, seed=1))
    torch.testing.assert_close(f.gradient(torch.zeros(4).double()), SUBSPACE.restrict(SURFACE.gradient(f.x)))


def test_restricted_bounds_keep_the_point_feasible() -> None:
    obstacle = Obstacle(n=5).objective()
    x, subset = obstacle.bounds.project(randn(25)), IndexTransfer(torch.tensor([3, 7, 12]), 25)
    bounds = Restricted(obstacle, x, subset).bounds
    torch.testing.assert_close(bounds.lower, -0.25 - x[[3, 7, 12]])
    assert obstacle.bounds.violation(x + subset.prolong(bounds.lower)) <= 1e-15


def test_corrected_matches_the_fine_gradient_at_its_start_and_is_consistent_away_from_it() -> None:
    g, y0 = randn(25, seed=4), 0.2 * randn(25, seed=5)
    f = Corrected(SURFACE, g - SURFACE.gradient(y0), y0)
    torch.testing.assert_close(f.gradient(y0), g)
    torch.testing.assert_close(f.value(y0), SURFACE.value(y0))
    y = y0 + 0.3 * randn(25, seed=6)
    check_derivatives(f, y)
    value, gradient = f.value_and_gradient(y)
    torch.testing.assert_close(value, f.value(y))
    torch.testing.assert_close(gradient, f.gradient(y))
    torch.testing.assert_close(f.hessian_diagonal(y), SURFACE.hessian_diagonal(y))
    assert f.bounds is SURFACE.bounds and f.size == 25


def test_corrected_takes_other_bounds_and_rows_of_a_batch() -> None:
    free = Bounds.free(25)
    delta, y0, y = randn(2, 25, seed=1), 0.1 * randn(2, 25, seed=2), 0.1 * randn(2, 25, seed=3)
    f = Corrected(SURFACE, delta, y0, free)
    assert f.bounds is free
    for row in range(2):
        single = Corrected(SURFACE, delta[row], y0[row])
        torch.testing.assert_close(f.value(y)[row], single.value(y[row]))
        torch.testing.assert_close(f.gradient(y)[row], single.gradient(y[row]))


def test_a_remembered_gradient_costs_one_evaluation() -> None:
    f, x = Remembered(Obstacle(n=5).objective()), randn(25)
    with counting() as cost:
        g = f.gradient(x)
        assert f.gradient(x) is g
    assert cost.gradients == 1


def test_a_point_that_was_written_to_is_another_point() -> None:
    plain = Obstacle(n=5).objective()
    f, x = Remembered(plain), randn(25)
    f.gradient(x)
    x.add_(1.0)
    torch.testing.assert_close(f.gradient(x), plain.gradient(x))
    f.gradient(x)
    x[3] = 7.0
    torch.testing.assert_close(f.gradient(x), plain.gradient(x))


def test_remembering_from_outside() -> None:
    f, x, g = Remembered(Obstacle(n=5).objective()), randn(25), randn(25, seed=1)
    remember(f, x, g)
    assert f.gradient(x) is g
    value, known = f.value_and_gradient(x)
    assert known is f.gradient(x)
    torch.testing.assert_close(value, f.value(x))
    remember(Plain(), x, g)  # an objective that remembers nothing is left alone


def test_value_and_gradient_falls_back_to_two_calls() -> None:
    x = randn(3)
    value, g = value_and_gradient(Plain(), x)
    torch.testing.assert_close(value, Plain().value(x))
    torch.testing.assert_close(g, Plain().gradient(x))


def test_offers_looks_through_compositions() -> None:
    obstacle, x = Obstacle(n=5).objective(), torch.zeros(25, dtype=torch.float64)
    assert offers(obstacle, "hessian_product") and not offers(Plain(), "hessian_product")
    assert offers(Remembered(obstacle), "hessian_product") and not offers(Remembered(Plain()), "hessian_product")
    assert offers(Corrected(obstacle, x, x), "hessian_diagonal")
    assert not offers(Corrected(Remembered(Plain()), x, x), "hessian_diagonal")
    assert offers(Restricted(obstacle, x, SUBSPACE), "hessian_product")
    assert not offers(obstacle, "no_such_method")


def test_only_stochastic_objectives_are_sampled() -> None:
    class Stochastic(Plain):
        def sample(self, step: int) -> Plain:
            return Plain(step)

    assert sampled(Stochastic(), 5).size == 5
    plain = Plain()
    assert sampled(plain, 5) is plain


def test_a_stochastic_objective_is_the_loss_of_all_and_draws_samples_by_the_step() -> None:
    a = torch.arange(12.0, dtype=torch.float64).view(4, 3)

    class Rows:
        size, batched = 3, True
        bounds = Bounds.free(3)

        def __init__(self, rows):
            self.rows = rows

        def value(self, x):
            return 0.5 * (self.rows @ x).square().sum()

        def gradient(self, x):
            return self.rows.T @ (self.rows @ x)

    f, x = Stochastic(Rows(a), lambda step: Rows(a[step : step + 1])), torch.tensor([1.0, -2.0, 0.5]).double()
    value, g = f.value_and_gradient(x)
    assert f.batched and torch.equal(value, Rows(a).value(x)) and torch.equal(g, f.gradient(x))
    total = sum(sampled(f, step).gradient(x) for step in range(4))
    assert torch.allclose(total, g)
    assert not offers(f, "hessian_product")


def test_objectives_are_recognised() -> None:
    x = torch.zeros(25, dtype=torch.float64)
    subset = IndexTransfer(torch.tensor([3, 7]), 25)
    for f in (SURFACE, Restricted(SURFACE, x, subset), Corrected(SURFACE, x, x), Remembered(SURFACE)):
        assert isinstance(f, Objective)
    assert not isinstance(object(), Objective)
    with pytest.raises(AttributeError):
        Corrected(Plain(), x, x).hessian_product(x, x)


def test_noise_leaves_a_remembered_gradient_alone_and_is_one_per_step() -> None:
    f, x = Obstacle(n=7).objective(), randn(49)
    clean, remembered = f.gradient(x), Remembered(f)
    noisy = Noisy(remembered, 0.5, seed=3).sample(2)
    first = noisy.gradient(x)
    assert torch.equal(noisy.gradient(x), first)
    assert torch.equal(remembered.gradient(x), clean)
    assert not torch.equal(noisy.sample(4).gradient(x), first)
    assert float(((first / clean) - 1.0).std()) == pytest.approx(0.5, rel=0.5)


def test_layers_are_those_from_the_outside_in() -> None:
    x, core = randn(3), Plain()
    noisy = Noisy(Remembered(core), 0.1)
    f = Remembered(Corrected(noisy, x, x))
    assert [type(layer) for layer in layers_of(f)] == [Remembered, Corrected, Noisy, Remembered, Plain]
    assert innermost(f) is core
    assert innermost(core) is core
    assert without_memory(f) is f.f
    assert without_memory(noisy) is noisy
    assert [layer.size for layer in layers_of(f)] == [3] * 5
    with pytest.raises(AttributeError):
        f.f = core  # type: ignore[misc]


def test_a_value_that_came_with_the_gradient_is_remembered() -> None:
    f = Quadratic(torch.eye(3, dtype=torch.float64), randn(3), Bounds.free(3, dtype=torch.float64))
    x = torch.arange(3.0, dtype=torch.float64)
    for values, expected in ((True, (1, 0)), (False, (1, 1))):
        with counting() as cost:
            g = Remembered(f, values)
            slope, value = g.gradient(x), g.value(x)
        assert (cost.gradients, cost.values) == expected
        assert torch.equal(slope, f.gradient(x)) and torch.equal(value, f.value(x))
        x.add_(1.0)  # another point in the same memory
        assert torch.equal(g.value(x), f.value(x))
        g.keep(x, f.gradient(x))  # a solver that knows the gradient alone
        assert torch.equal(g.value(x), f.value(x))
