"""Line searches on the six functions of Moré and Thuente, and what becomes of pairs that are refused."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from mldd.solvers import LBFGS
from mldd.solvers.lbfgs import Trial, WolfeSearch
from mldd.solvers.parts.batch_lbfgs import WolfeSearches
from tests.helpers import quadratic

Phi = Callable[[Tensor], Tensor]


def _convex(b1: float, b2: float) -> Phi:
    def gamma(b: float) -> float:
        return math.sqrt(1 + b * b) - b

    return lambda a: gamma(b1) * ((1 - a) ** 2 + b2**2).sqrt() + gamma(b2) * (a**2 + b1**2).sqrt()


def _wiggly(a: Tensor, beta: float = 0.01, waves: int = 39) -> Tensor:
    middle = (a - 1) ** 2 / (2 * beta) + beta / 2
    base = torch.where(a <= 1 - beta, 1 - a, torch.where(a >= 1 + beta, a - 1, middle))
    return base + 2 * (1 - beta) / (waves * math.pi) * torch.sin(waves * math.pi / 2 * a)


# More and Thuente, ACM Trans. Math. Softw. 20 (1994), equations 5.1 to 5.4.
FUNCTIONS: list[Phi] = [
    lambda a: -a / (a**2 + 2),
    lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
    _wiggly,
    _convex(0.001, 0.001),
    _convex(0.01, 0.001),
    _convex(0.001, 0.01),
]
CONSTANTS = [(1e-4, 0.9), (1e-3, 0.1), (0.05, 0.1)]
STARTS = [1e-3, 1e-1, 1e1, 1e3]


def evaluate(phi: Phi, t: float) -> tuple[float, float]:
    """Return value and slope, by automatic differentiation."""
    a = torch.tensor(t, dtype=torch.float64, requires_grad=True)
    value = phi(a)
    (slope,) = torch.autograd.grad(value, a)
    return float(value.detach()), float(slope)


def assert_wolfe(phi: Phi, t: float, c1: float, c2: float) -> None:
    """Both strong Wolfe conditions, in so many words; values that differ by rounding alone count as equal."""
    (value0, slope0), (value, slope) = evaluate(phi, 0.0), evaluate(phi, t)
    rounding = 10 * np.finfo(float).eps * max(abs(value0), abs(value))
    assert t > 0
    assert value <= value0 + c1 * t * slope0 or abs(value - value0) <= rounding
    assert abs(slope) <= c2 * abs(slope0)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("c1", "c2"), CONSTANTS)
@pytest.mark.parametrize("phi", FUNCTIONS)
def test_both_wolfe_conditions_hold_where_a_search_ends(phi: Phi, c1: float, c2: float, start: float) -> None:
    g = torch.zeros(1, dtype=torch.float64)  # for its dtype
    search = WolfeSearch(lambda t: Trial(t, *evaluate(phi, t), g), Trial(0.0, *evaluate(phi, 0.0), g), c1, c2, 40)
    found = search.run(start)
    assert found is not None
    assert_wolfe(phi, found.t, c1, c2)


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize(("c1", "c2"), CONSTANTS)
def test_searches_side_by_side_end_with_both_conditions_too(c1: float, c2: float, start: float) -> None:
    at_zero = np.array([[0.0, *evaluate(phi, 0.0)] for phi in FUNCTIONS]).T
    everyone = np.full(len(FUNCTIONS), True)
    searches = WolfeSearches(at_zero, np.full(len(FUNCTIONS), start), everyone, c1, c2, 10 * np.finfo(float).eps)
    for _ in range(40):
        if searches.searching.any():
            searches.take(*np.array([evaluate(phi, t) for phi, t in zip(FUNCTIONS, searches.t, strict=True)]).T)
    assert searches.accepted.all()
    for phi, t in zip(FUNCTIONS, searches.low[0], strict=True):
        assert_wolfe(phi, float(t), c1, c2)


def test_a_refused_pair_leaves_a_full_memory_alone() -> None:
    f, solver = quadratic(8, condition=10.0), LBFGS(memory=3)
    state = solver.init(f, torch.zeros(8, dtype=torch.float64))
    for k in range(5):
        s = torch.linspace(-1.0, 1.0 + k, 8, dtype=torch.float64)
        state.pairs.push(s, f.A @ s)
    g = torch.ones(8, dtype=torch.float64)
    before = state.pairs.direction(g, torch.empty_like(g)).clone()
    state.pairs.push(g, -g)
    assert state.pairs.count == 3
    torch.testing.assert_close(state.pairs.direction(g, torch.empty_like(g)), before, rtol=0, atol=0)
