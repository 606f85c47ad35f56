"""Measured prices: work is that of the CPU time of this rank, whatever was estimated."""

import time
from dataclasses import dataclass, field, replace

import pytest
import torch

from mldd.algebra import (
    Bounds,
    Hierarchy,
    Identity,
    Level,
    Price,
    Stochastic,
    calibrated,
    calibrated_decomposition,
    calibrated_hierarchy,
    contiguous,
    counting,
    factors_of,
    hessian,
    index_decomposition,
    unit_of,
)


@dataclass(frozen=True)
class Slow:
    """Half a square whose evaluations take `turns` of a loop, and count what they like."""

    turns: int = 1
    size: int = 4
    price: Price = field(default_factory=Price)
    clock: list[float] = field(default_factory=lambda: [0.0])

    @property
    def bounds(self):
        return Bounds.free(self.size, dtype=torch.float64)

    def value(self, x):
        self.price.of_value()
        self.clock[0] += self.turns
        return 0.5 * x.square().sum()

    def gradient(self, x):
        self.price.of_gradient()
        self.clock[0] += 2 * self.turns
        return x.clone()

    def hessian_product(self, x, v):
        self.price.of_product()
        self.clock[0] += 6 * self.turns
        return v.clone()


@pytest.fixture
def clock(monkeypatch):
    """CPU time goes on by what evaluations take."""
    now = [0.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])
    return now


def same(number):
    return number


def test_the_unit_is_the_time_of_a_fine_gradient_of_one_process(clock):
    x = torch.ones(4, dtype=torch.float64)
    assert unit_of(Slow(5, clock=clock), x, same, same) == 10.0
    # a rank that does a quarter of it takes a quarter of the time
    assert unit_of(Slow(5, price=Price().scaled(0.25), clock=clock), x, same, same) == 40.0


def test_a_level_counts_what_it_was_measured_to_cost(clock):
    fine, coarse = Slow(4, clock=clock), Slow(3, price=Price(0.01, fine=False), clock=clock)
    x = torch.ones(4, dtype=torch.float64)
    level = calibrated_hierarchy(Hierarchy((Level(fine), Level(coarse, Identity(4), 0.01))), x, 8.0, same)[1]
    assert level.work == pytest.approx(6 / 8)
    for name, arguments, work in (("gradient", (x,), 6), ("value", (x,), 3), ("hessian_product", (x, x), 18)):
        with counting() as cost:
            found = getattr(level.objective, name)(*arguments)
        assert torch.equal(found, getattr(coarse, name)(*arguments))
        assert cost.work == pytest.approx(work / 8), name
        assert cost.gradients == cost.values == 0


def test_local_models_count_what_they_were_measured_to_cost(clock):
    fine = Slow(2, clock=clock)
    x = torch.arange(4.0, dtype=torch.float64)
    plain = index_decomposition(fine, contiguous((2, 2), 2))
    priced = calibrated_decomposition(plain, fine, x, 100.0, same)
    y = plain.gather(x) + 1.0
    models = priced.models(fine, x, None)
    with counting() as cost:
        g = models.gradient(y)
    assert torch.equal(g, plain.models(fine, x, None).gradient(y))
    assert cost.work == pytest.approx(2 * 4 / 100)  # two members, one after the other
    assert cost.gradients == 0
    assert replace(priced, local=range(1)).models(fine, x, None).gradient(y[:1]).shape == (1, 2)


def test_a_sample_counts_what_it_was_measured_to_cost(clock):
    def draw(step):
        clock[0] += 10.0
        return Slow(1, clock=clock)

    fine = Stochastic(Slow(1, clock=clock), draw)
    x = torch.ones(4, dtype=torch.float64)
    unit = unit_of(fine, x, same, same)
    assert unit == pytest.approx(2.0)  # what is drawn is no part of it
    priced = calibrated(fine, factors_of(fine, x, unit, same))
    with counting() as cost:
        sample = priced.sample(3)
        sample.gradient(x)
        sample.gradient(x)
    assert cost.work == pytest.approx(10 / 2 + 2)
    with counting() as cost:
        assert torch.equal(hessian(sample, x).product(x), x)
        assert torch.equal(hessian(sample, x).defect(x, 3.0 * x, x), 2.0 * x)
    assert cost.work == pytest.approx(2 * 6 / 2)
