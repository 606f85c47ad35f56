"""Equations on grids that are no gradient: their matrices are right, and gradients go as in mldd's own solvers."""

from dataclasses import dataclass

import pytest
import torch

import mldd
from experiments.cai2002aspin.cavity import Cavity
from experiments.dolean2016raspen.plane import Diffusion, Forchheimer
from experiments.equations import Coarse, Point, Schwarz, solve
from experiments.grid_equations import Window, framed
from experiments.study import minimise
from mldd import Stop
from mldd.solvers import Aspin, NewtonCG, Raspen

KINDS = [lambda n: Cavity(n, 200.0), Forchheimer, Diffusion]


@dataclass(frozen=True)
class Bratu:
    """``-lap u = 6 e^u`` as equations."""

    n: int
    fields = 1

    @property
    def frame(self):
        return torch.zeros(1, self.n + 2, self.n + 2, dtype=torch.float64)

    def walls(self, u, sides):
        return u

    def residual(self, u, corner):
        v = u[0]
        neighbours = v[:-2, 1:-1] + v[2:, 1:-1] + v[1:-1, :-2] + v[1:-1, 2:]
        return (4.0 * v[1:-1, 1:-1] - neighbours - 6.0 / (self.n + 1) ** 2 * torch.exp(v[1:-1, 1:-1]))[None]


def somewhere(equations):
    shape = equations.fields, equations.n, equations.n
    return 0.3 * torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind", KINDS, ids=["cavity", "forchheimer", "diffusion"])
def test_the_sparse_jacobian_of_a_window_is_the_dense_one(kind):
    equations = kind(7)
    u = somewhere(equations)
    around = framed(equations, u)
    for box in ((0, 7, 0, 7), (0, 4, 2, 7), (3, 7, 0, 2)):
        window = Window(equations, box)
        y = window.take(u)
        dense = torch.autograd.functional.jacobian(lambda v, w=window: w.residual(around, v), y)
        found = torch.from_numpy(window.jacobian(around, y).toarray())
        torch.testing.assert_close(found, dense.view(y.numel(), y.numel()), rtol=1e-10, atol=1e-12)
    whole = Window(equations, (0, 7, 0, 7)).residual(around, u)
    torch.testing.assert_close(window.residual(around, y), window.take(whole), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("kind", KINDS, ids=["cavity", "forchheimer", "diffusion"])
def test_the_jacobian_of_raspen_is_exact(kind, levels):
    equations = kind(7)
    u, v = 0.1 * somewhere(equations), somewhere(kind(7)).flip(1)
    schwarz = Schwarz(equations, "raspen", 4, 1, Coarse(kind(3), 7) if levels == 2 else None)
    h = 1e-5
    plus, minus = (Point(schwarz, u + sign * h * v).correction for sign in (1, -1))
    found = -Point(schwarz, u).product(v.reshape(-1)).view(u.shape)
    torch.testing.assert_close(found, (plus - minus) / (2 * h), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("method", ["raspen", "aspin"])
def test_the_gradient_of_an_energy_goes_as_in_the_solvers_of_mldd(method, levels):
    problem = mldd.problem("bratu", n=15, lam=6.0, upper=float("inf"))
    hierarchy = problem.coarse_hierarchy(2, 4) if levels == 2 else None
    kind = Raspen if method == "raspen" else Aspin
    solver = kind(problem.decomposition(4, 1), hierarchy, local=NewtonCG(rtol=1e-10), globalisation="line-search")
    stop = Stop(40, rtol=1e-8, norm=2.0)
    theirs = minimise(problem.objective(), problem.initial(), solver, stop=stop)
    coarse = Coarse(Bratu(3), 15) if levels == 2 else None
    ours = solve(Schwarz(Bratu(15), method, 4, 1, coarse), torch.zeros(1, 15, 15, dtype=torch.float64), 1e-8, 40)
    torch.testing.assert_close(ours.u.reshape(-1), theirs.x, rtol=1e-7, atol=1e-9)
    assert ours.steps == theirs.record.step
    assert abs(ours.krylov - theirs.state.krylov) <= ours.steps
