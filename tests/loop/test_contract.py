"""Objectives and solvers of a user's own that do not return what they should: refused in a line, or taken."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch

from mldd.algebra import Bounds, contiguous, index_decomposition
from mldd.loop import State, Status, Stop, minimise
from mldd.solvers import LBFGS, AdaGrad, Adam, NonlinearSchwarz, Optimizer
from tests.helpers import quadratic

N = 6


class Own:
    """A diagonal quadratic as a user writes it, with an answer of a test's own."""

    size, bounds = N, Bounds.free(N)

    def __init__(self, gradient=lambda g, x: g, value=lambda v, x: v):
        self.a, self.changed, self.changed_value = torch.arange(1.0, N + 1, dtype=torch.float64), gradient, value

    def value(self, x):
        return self.changed_value((0.5 * self.a * x * x - x).sum(), x)

    def gradient(self, x):
        return self.changed(self.a * x - 1, x)


def minimised(objective, solver=LBFGS(), x=None, steps=60):  # noqa: B008 (frozen)
    start = torch.zeros(N, dtype=torch.float64) if x is None else x
    return minimise(objective, start, solver, stop=Stop(steps, atol=1e-10))


buffer = torch.zeros(N, dtype=torch.float64)
array = np.zeros(N)


def in_array(g, x):
    array[:] = g
    return torch.from_numpy(array)


@pytest.mark.parametrize("solver", [LBFGS(), AdaGrad(), Adam(0.1)])
@pytest.mark.parametrize(
    ("gradient", "said"),
    [
        (
            lambda g, x: g.numpy(),
            r"must be a tensor like x, torch.float64 \(6,\) on cpu, got ndarray; take torch",
        ),
        (lambda g, x: g.float(), r"got torch.float32 \(6,\) on cpu"),
        (lambda g, x: g[1:], r"got torch.float64 \(5,\) on cpu"),
        (lambda g, x: None, "got NoneType"),
        (lambda g, x: x.copy_(g), r"gradient\(x\) of Own must leave x as it is, got one that writes to it in place"),
        (lambda g, x: buffer.copy_(g), "must be a new tensor every time, got the memory of the gradient before"),
        (in_array, "must be a new tensor every time, got the memory of the gradient before"),
    ],
)
def test_what_is_no_gradient_is_refused_in_a_line(solver, gradient, said):
    with pytest.raises(ValueError, match=said) as refused:
        minimised(Own(gradient), solver)
    assert "\n" not in str(refused.value)


def test_a_value_that_writes_to_the_point_is_refused():
    with pytest.raises(ValueError, match=r"value\(x\) or gradient\(x\) of Own must leave x as it is"):
        minimised(Own(value=lambda v, x: v + 0 * x.mul_(1.1).sum()))


@pytest.mark.parametrize("number", [float, lambda v: np.float64(v), lambda v: v])
def test_numbers_are_values(number):
    found = minimised(Own(value=lambda v, x: number(v)))
    torch.testing.assert_close(found.x, 1 / torch.arange(1.0, N + 1, dtype=torch.float64))


def test_a_constant_gradient_may_be_one_tensor():
    slope = torch.ones(N, dtype=torch.float64)
    assert minimised(Own(lambda g, x: slope), Adam(0.1), steps=5).record.step == 5


class Bare:
    size = N

    def gradient(self, x):
        return x


@pytest.mark.parametrize(
    ("objective", "x", "said"),
    [
        (
            Bare(),
            None,
            r"must have size, bounds, gradient\(x\) and value\(x\), got Bare without bounds; bounds =",
        ),
        (Own, None, "an objective must be an object, got the class Own"),
        (type("Boxed", (Own,), {"bounds": (0.0, 1.0)})(), None, "must be mldd.algebra.Bounds, got tuple"),
        (type("Empty", (Own,), {"size": 0})(), None, "`size` of Empty must be >= 1, got 0"),
        (Own(), [0.0] * N, r"`x` must be a tensor of shape \(6,\), got list; "),
    ],
)
def test_what_is_no_objective_or_start_is_refused(objective, x, said):
    with pytest.raises(ValueError, match=said):
        minimised(objective, x=x)


def test_a_start_that_is_differentiated_elsewhere_is_taken():
    assert not minimised(Own(), x=torch.zeros(N, dtype=torch.float64, requires_grad=True)).x.requires_grad


def test_bounds_are_tensors():
    with pytest.raises(ValueError, match="`lower` must be a tensor with a bound for every unknown, got float"):
        Bounds(0.0, 1.0)


@dataclass(frozen=True)
class Step:
    """A solver of a user's own that returns what a test says."""

    initial: object = State
    made: object = staticmethod(lambda x, state: (x, state))

    def init(self, objective, x):
        return self.initial()

    def step(self, objective, x, state):
        return self.made(x - 0.1 * objective.gradient(x), state)


@pytest.mark.parametrize(
    ("solver", "said"),
    [
        (LBFGS, r"got the class LBFGS; write LBFGS\(...\)"),
        ("lbfgs", "`solver` must have init.* got 'lbfgs'"),
        (torch.optim.Adam([torch.ones(1)]), "`solver` must have init.* got Adam; take"),
        (Step(initial=dict), "init of Step must return a mldd.State, got dict; return State"),
        (Step(made=lambda x, state: x), "must return iterate and state, got Tensor; return x, state"),
        (Step(made=lambda x, state: (x[1:], state)), r"an iterate of torch.float64 \(6,\), got torch.float64 \(5,\)"),
        (Step(made=lambda x, state: (x.float(), state)), r"got torch.float32 \(6,\)"),
        (Step(made=lambda x, state: (x, None)), "must return a mldd.State, got NoneType"),
    ],
)
def test_what_is_no_solver_is_refused_in_a_line(solver, said):
    with pytest.raises(ValueError, match=said) as refused:
        minimised(quadratic(N), solver)
    assert "\n" not in str(refused.value)


def test_what_is_no_solver_of_an_optimizer_is_refused():
    parameters = [torch.nn.Parameter(torch.ones(3))]
    with pytest.raises(ValueError, match=r"got the class Adam; write Adam\(...\)"):
        Optimizer(parameters, Adam)
    for options, said in (
        ({"lower": torch.zeros(3)}, r"`lower` of a group must be a number, got shape \(3,\)"),
        ({"upper": "1"}, "`upper` of a group must be a number, got '1'"),
        ({"weight_decay": None}, "`weight_decay` of a group must be a number, got None"),
        ({"lr": "0.1"}, "`lr` of a group must be a number, got '0.1'"),
    ):
        with pytest.raises(ValueError, match=said):
            Optimizer([{"params": parameters, **options}], AdaGrad())


class Batched(Own):
    """What takes several points at once, or says so."""

    batched = True

    def value(self, x):
        return self.changed_value((0.5 * self.a * x * x - x).sum(-1), x)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"value": lambda v, x: v.sum()}, r"value\(x\) of Batched, which says batched = True, must have shape \(\d,\)"),
        (
            {"gradient": lambda g, x: g.reshape(-1, N)[:1].squeeze(0)},
            r"gradient\(x\) of Batched must be .* \(6,\)",
        ),
    ],
)
def test_what_says_that_it_takes_several_points_returns_a_result_for_each(changed, said):
    subdomains = contiguous([1] * N, 2, 1)
    solver = NonlinearSchwarz(index_decomposition(Batched(), subdomains), local=LBFGS())
    torch.testing.assert_close(minimised(Batched(), solver).x, 1 / torch.arange(1.0, N + 1, dtype=torch.float64))
    spoilt = Batched(**changed)
    with pytest.raises(ValueError, match=said):
        minimised(spoilt, NonlinearSchwarz(index_decomposition(spoilt, subdomains), local=LBFGS()))


def test_schwarz_that_cannot_move_has_stalled():
    """A gradient that is not that of the value lets no local search find a step."""
    wrong = Own(lambda g, x: -g)
    solver = NonlinearSchwarz(index_decomposition(wrong, contiguous([1] * N, 2, 1)), local=LBFGS())
    found = minimised(wrong, solver)
    assert found.status is Status.stalled and found.record.step < 10 and not found.x.any()
