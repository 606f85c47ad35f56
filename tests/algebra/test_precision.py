"""Evaluation in a lower precision than the solver's."""

import torch

from mldd.algebra import Bounds, Noisy, Objective, cast, counting, offers, product_price, sampled
from mldd.algebra.precision import Cast
from mldd.loop import Stop, minimise
from mldd.solvers import LBFGS
from tests.helpers import quadratic


def test_a_cast_is_the_rounded_objective():
    f = quadratic(dtype=torch.float32, bounded=True)
    g, x = Cast(f), torch.linspace(-1, 1, 20, dtype=torch.float64)
    assert isinstance(g, Objective) and offers(g, "hessian_product") and product_price(g) == f.price.product
    assert g.bounds.lower.dtype == torch.float64
    low = x.float()
    for made, expected in (
        (g.value(x), f.value(low)),
        (g.gradient(x), f.gradient(low)),
        (g.value_and_gradient(x)[1], f.gradient(low)),
        (g.hessian_product(x, x), f.hessian_product(low, low)),
    ):
        assert made.dtype == torch.float64
        assert torch.allclose(made.float(), expected, rtol=1e-6)
    exact = quadratic(bounded=True)
    assert not torch.allclose(g.gradient(x), exact.gradient(x), rtol=1e-9, atol=1e-9)
    assert torch.allclose(g.gradient(x), exact.gradient(x), rtol=1e-4, atol=1e-4)


def test_nothing_is_wrapped_without_need():
    f = quadratic()
    assert cast(f, torch.float64, torch.float64) is f
    assert not hasattr(cast(f, torch.float32, torch.float64), "sample")
    assert not cast(f, torch.float32, torch.float64).batched


def test_samples_are_cast():
    f = Noisy(quadratic(dtype=torch.float32), 0.1)
    g, x = cast(f, torch.float32, torch.float64), torch.ones(20, dtype=torch.float64)
    assert torch.allclose(sampled(g, 3).gradient(x).float(), f.sample(3).gradient(x.float()))
    assert sampled(g, 3).gradient(x).dtype == torch.float64


def test_counting_and_a_run():
    f = quadratic(dtype=torch.float32)
    with counting() as cost:
        Cast(f).value_and_gradient(torch.zeros(20, dtype=torch.float64))
    assert cost.gradients == 1
    x = minimise(Cast(f), torch.zeros(20, dtype=torch.float64), LBFGS(), stop=Stop(max_steps=60)).x
    assert x.dtype == torch.float64
    assert torch.allclose(x, quadratic().solution(), atol=1e-2)
    assert isinstance(Cast(f).bounds, Bounds)
