"""A residual of one's own: its loss is that of the built-in equation, of a plain loop, and it is solved."""

import math

import pytest
import torch
from torch import nn

from mldd.algebra import sampled
from mldd.loop import Stop, minimise
from mldd.problems.modules import PhysicsProblem
from mldd.solvers import LBFGS, MultilevelAdaGrad, SchwarzLBFGS
from tests.helpers import pinn


def net(width=8):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, width), nn.Tanh(), nn.Linear(width, 1)).double()


def second(u, points):
    (slope,) = torch.autograd.grad(u.sum(), points, create_graph=True)
    return torch.autograd.grad(slope.sum(), points, create_graph=True)[0]


def poisson(module, points):
    points.requires_grad_()
    u = 4 * points * (1 - points) * module(points)
    return -second(u, points) - torch.sin(math.pi * points)


def problem(**options):
    points = torch.linspace(0.01, 0.99, 40, dtype=torch.float64)[:, None]
    return PhysicsProblem(net(), residual=poisson, points=points, **options)


def test_the_loss_is_that_of_the_built_in_equation():
    built_in = pinn("poisson1d", points=30, depth=2, width=8, frequency=1.0)
    x = built_in.initial(0)

    class Same(nn.Module):
        def __init__(self):
            super().__init__()
            self.p = nn.ParameterList([nn.Parameter(v.clone()) for v in built_in.net.layout.views(x)])

        def forward(self, points):
            w, b, v, c = self.p
            return torch.tanh(points @ w.T + b) @ v.T + c

    points = built_in.objective().pieces(x)[0].points.detach()
    mine = PhysicsProblem(Same(), residual=poisson, points=points)
    for a, b in zip(mine.objective().value_and_gradient(x), built_in.objective().value_and_gradient(x), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)


def test_terms_are_added_whole_and_mini_batches_are_means():
    edge = (lambda module, points: module(points) - 1, torch.zeros(1, 1, dtype=torch.float64), 3.0)
    p = problem(terms={"edge": edge}, batch=10)
    f, x = p.objective(), p.initial(0)
    r = p.residuals(x, p.points)
    with torch.no_grad():
        expected = r.square().mean() + 3.0 * (p.net(torch.zeros(1, 1, dtype=torch.float64)) - 1).square().mean()
    torch.testing.assert_close(f.value(x), expected)
    epoch = sum(sampled(f, step).value(x) for step in range(4)) / 4
    torch.testing.assert_close(epoch, expected)
    v, h = torch.linspace(-1, 1, len(x), dtype=x.dtype), 1e-6
    torch.testing.assert_close(
        f.gradient(x) @ v, (f.value(x + h * v) - f.value(x - h * v)) / (2 * h), rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("method", ["lbfgs", "layers", "levels"])
def test_it_is_solved_by_layers_and_on_fewer_points(method):
    p = problem()
    solver = {
        "lbfgs": lambda: LBFGS(),
        "layers": lambda: SchwarzLBFGS(p.decomposition(2, 0)),
        "levels": lambda: MultilevelAdaGrad(p.hierarchy(2)),
    }[method]()
    f, x = p.objective(), p.initial(0)
    end = minimise(f, x, solver, stop=Stop(60)).x
    assert float(f.value(end)) < 0.05 * float(f.value(x))
    if method == "lbfgs":
        t = torch.linspace(0, 1, 21, dtype=torch.float64)[:, None]
        with torch.no_grad():
            u = 4 * t * (1 - t) * p.module(end)(t)
        assert float((u - torch.sin(math.pi * t) / math.pi**2).abs().max()) < 0.01


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"needs `residual` and `points` of shape \(n, d\)"):
        PhysicsProblem(net(), residual=poisson, points=torch.zeros(3))
