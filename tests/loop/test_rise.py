"""A run that ends above its start says so, on every kind of call, and none is ended that goes down in the end."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from mldd.algebra import Noisy
from mldd.loop import Status, Stop, minimise
from mldd.loop.rise import PATIENCE, Rise
from mldd.solvers import AdaGrad, Sgd
from tests.helpers import NoValueError, Quadratic, WithoutValue, quadratic


def _start(f: Quadratic) -> Tensor:
    return torch.ones(f.size, dtype=torch.float64)


class Cosine:
    """``cos`` of one unknown."""

    bounds = quadratic(1).bounds
    size = 1

    def value(self, x: Tensor) -> Tensor:
        return torch.cos(x).sum()

    def gradient(self, x: Tensor) -> Tensor:
        return -torch.sin(x)


# With this rate the error of a quadratic with eigenvalues up to 10 grows by the factor 1.2 per step.
CLIMBS = Sgd(0.22)


@pytest.mark.parametrize("values", [None, True])
def test_a_run_that_used_its_steps_above_its_start_has_diverged(values: bool | None) -> None:
    f = quadratic(6, condition=10.0)
    f = replace(f, A=10.0 * f.A / torch.linalg.eigvalsh(f.A).max())
    result = minimise(f, _start(f), CLIMBS, stop=Stop(8), values=values)
    assert float(f.value(result.x)) > float(f.value(_start(f)))
    assert result.status is Status.diverged and result.record.step == 8
    assert [math.isnan(record.value) for record in result.history.records] == [
        False,
        *[values is None] * 7,
        False,
    ]


@pytest.mark.parametrize("values", [None, True])
def test_a_resumed_run_knows_where_the_first_one_started(values: bool | None) -> None:
    f = quadratic(6, condition=10.0)
    f = replace(f, A=10.0 * f.A / torch.linalg.eigvalsh(f.A).max())
    first = minimise(f, _start(f), CLIMBS, stop=Stop(6), values=values)
    rest = minimise(
        f, first.x, Sgd(0.01), stop=Stop(7), values=values, state=replace(first.state, status=None), past=first.history
    )
    assert float(f.value(_start(f))) < float(f.value(rest.x)) < float(f.value(first.x))
    assert rest.status is Status.diverged


@pytest.mark.parametrize("values", [None, True])
def test_a_maximum_is_no_convergence(values: bool | None) -> None:
    x = torch.tensor([math.pi - 0.1], dtype=torch.float64)
    onto_the_top = Sgd((2.0 * math.pi - float(x)) / math.sin(float(x)))
    result = minimise(Cosine(), x, onto_the_top, stop=Stop(5, atol=1e-6), values=values)
    assert result.record.measure < 1e-6 and result.status is Status.diverged


def test_a_run_that_rises_for_long_is_ended() -> None:
    f = quadratic(6, condition=10.0)
    f = replace(f, A=10.0 * f.A / torch.linalg.eigvalsh(f.A).max())
    result = minimise(f, _start(f), CLIMBS, stop=Stop(500), values=True)
    assert result.status is Status.diverged and PATIENCE <= result.record.step < 3 * PATIENCE


def test_a_run_may_rise_on_its_way() -> None:
    f = quadratic(6, condition=3.0)
    start = f.solution() + 0.5 * _start(f)
    result = minimise(f, start, AdaGrad(rate=2.0, curvature="none"), stop=Stop(60), values=True)
    values = result.history.column("value")
    assert max(values) > values[0] > values[-1]  # the first step of length two leads far beyond the minimiser
    assert result.status is Status.max_steps
    rises = Rise.of([1.0, *(1.0 + 0.1 * k for k in range(1, PATIENCE)), 0.5])
    assert not rises.goes_on and not rises.is_above


def test_rounding_is_no_rise_and_nothing_is_known_without_values() -> None:
    assert not Rise.of([1.0] + [1.0 + 1e-8] * 30).is_above
    assert Rise.of([1.0, 1.1]).is_above and not Rise.of([1.0, 1.1]).goes_on
    assert Rise.of([math.nan, 0.0, *range(1, PATIENCE + 1)]).goes_on
    assert not Rise.of([math.nan] * 20).is_above


def test_values_are_asked_for_at_the_ends_or_never() -> None:
    f = WithoutValue(quadratic(6))
    assert minimise(f, _start(f), Sgd(0.01), stop=Stop(3), values=False).record.step == 3
    with pytest.raises(NoValueError):
        minimise(f, _start(f), Sgd(0.01), stop=Stop(3))


def test_samples_are_judged_by_the_whole() -> None:
    f = Noisy(quadratic(6, condition=3.0), 0.3, seed=1)
    result = minimise(f, _start(f), Sgd(0.02), stop=Stop(40))
    assert result.status is Status.max_steps
