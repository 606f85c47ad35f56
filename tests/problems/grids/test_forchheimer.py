"""Forchheimer's problem: derivatives, energy, solution, local models, and its coarse level."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from mldd.algebra import LocalRestrictions, Restricted, counting
from mldd.loop import Stop, minimise
from mldd.problems.grids import Forchheimer
from mldd.problems.grids.forchheimer import FluxEnergy
from mldd.ranks import Communicator
from mldd.solvers import NewtonCG


def point(n: int, seed: int = 0, scale: float = 1.0) -> Tensor:
    return scale * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense_hessian(f: FluxEnergy, x: Tensor) -> Tensor:
    return torch.stack([f.hessian_product(x, e) for e in torch.eye(len(x), dtype=torch.float64)])


@pytest.mark.parametrize("gamma", [0.0, 1e-6, 1.0, 30.0])
def test_derivatives_are_those_of_the_energy(gamma):
    f, x = Forchheimer(n=13, gamma=gamma).objective(), point(13).requires_grad_()
    (g,) = torch.autograd.grad(f.value(x), x)
    x = x.detach()
    torch.testing.assert_close(f.gradient(x), g, rtol=1e-12, atol=1e-12)
    value, together = f.value_and_gradient(x)
    assert torch.equal(together, f.gradient(x)) and float(value) == float(f.value(x))
    H = dense_hessian(f, x)
    torch.testing.assert_close(H, torch.autograd.functional.jacobian(f.gradient, x), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(H, H.T, rtol=0, atol=1e-12)
    assert float(torch.linalg.eigvalsh(H)[0]) > 0  # convex


@pytest.mark.parametrize("gamma", [0.0, 0.3, 1.0])
def test_the_energy_is_the_integral_of_the_flux_law(gamma):
    """One unknown between the ends: each of the two cells contributes h/k Q(k s) with Q' = q of the paper."""

    def q(g: float) -> float:
        return g if gamma == 0 else (-1 + math.sqrt(1 + 4 * gamma * g)) / (2 * gamma)

    f, u = Forchheimer(n=1, gamma=gamma).objective(), 0.4
    h = 0.75
    k = [2 + math.cos(5 * math.pi * x) for x in (0.375, 1.125)]
    load = h * 50 * math.sin(5 * math.pi * 0.75) * math.exp(0.75)
    cells = [h / k[0] * quad(q, 0, k[0] * u / h)[0], h / k[1] * quad(q, 0, k[1] * (1 - u) / h)[0]]
    x = torch.tensor([u], dtype=torch.float64)
    assert float(f.value(x)) == pytest.approx(sum(cells) - load * u, rel=1e-12)
    assert float(f.gradient(x)) == pytest.approx(q(k[0] * u / h) - q(k[1] * (1 - u) / h) - load, rel=1e-12)


def test_solution_satisfies_the_equation_and_is_the_minimiser():
    problem = Forchheimer()
    f, u = problem.objective(), problem.solution()
    assert float(f.gradient(u).abs().max()) < 1e-12
    step = torch.linalg.solve(dense_hessian(f, u), f.gradient(u))
    assert float(step.abs().max()) < 1e-13
    assert problem.metrics(u) == {"energy": pytest.approx(-83.70633261), "relative_l2": 0.0, "max_error": 0.0}
    elsewhere = problem.metrics(u + 1e-3)
    assert elsewhere["max_error"] == pytest.approx(1e-3) and elsewhere["energy"] > float(f.value(u))


def test_solution_of_the_linear_problem():
    problem = Forchheimer(n=40, gamma=0.0)
    f, zero = problem.objective(), torch.zeros(40, dtype=torch.float64)
    torch.testing.assert_close(
        problem.solution(), torch.linalg.solve(dense_hessian(f, zero), -f.gradient(zero)), rtol=1e-11, atol=1e-11
    )


def test_the_discretisation_is_of_second_order():
    solutions = [Forchheimer(n=150 * 2**k - 1).solution() for k in range(3)]
    coarse = float((solutions[1][1::2] - solutions[0]).abs().max())
    fine = float((solutions[2][1::2] - solutions[1]).abs().max())
    assert 3.5 < coarse / fine < 4.5


def test_plain_newton_takes_twelve_steps_from_zero_and_six_from_the_interpolant():
    problem = Forchheimer()
    f, exact = problem.objective(), problem.solution()
    for start, expected in ((problem.initial(), 11), (problem.interpolant(), 6)):
        u, steps = start, 0
        while float((u - exact).abs().max()) > 1e-8:
            u, steps = u - torch.linalg.solve(dense_hessian(f, u), f.gradient(u)), steps + 1
        # 12 and 6 were measured with a local tolerance of their own: one step more or less
        assert abs(steps - expected) <= 1
        searched = minimise(f, start, NewtonCG(), stop=Stop(30, atol=1e-10))
        assert searched.record.step <= expected + 2
        torch.testing.assert_close(searched.x, exact, rtol=0, atol=1e-9)


def test_the_start_is_zero_and_the_interpolant_linear():
    problem = Forchheimer(n=5)
    assert problem.initial(3).tolist() == [0.0] * 5
    torch.testing.assert_close(problem.interpolant(), torch.arange(1, 6).double() / 6)


def test_a_batch_is_its_rows():
    f = Forchheimer(n=9).objective()
    x, v = torch.stack([point(9, k) for k in range(3)]), torch.stack([point(9, k + 5) for k in range(3)])
    with counting() as cost:
        f.value_and_gradient(x)
    assert cost.gradients == cost.work == 3
    for k in range(3):
        torch.testing.assert_close(f.value(x)[k], f.value(x[k]))
        assert torch.equal(f.gradient(x)[k], f.gradient(x[k]))
        assert torch.equal(f.hessian_product(x, v)[k], f.hessian_product(x[k], v[k]))


@pytest.mark.parametrize("parts, overlap", [(1, 0), (2, 3), (7, 3), (29, 1), (149, 2), (4, 200)])
def test_windows_are_restrictions(parts, overlap):
    problem = Forchheimer()
    f, x = problem.objective(), point(149)
    d = problem.decomposition(parts, overlap)
    local, plain = d.models(f, x, None), LocalRestrictions(f, d, x.clone())
    y0, y = d.gather(x), d.gather(x) + point(d.indices.numel(), 3).view(d.indices.shape) * d.valid
    v = point(d.indices.numel(), 4).view(d.indices.shape)
    torch.testing.assert_close(
        local.value(y) - local.value(y0), plain.value(y) - plain.value(y0), rtol=1e-10, atol=1e-10
    )
    torch.testing.assert_close(local.gradient(y), plain.gradient(y), rtol=0, atol=1e-12)
    torch.testing.assert_close(local.hessian_product(y, v), plain.hessian_product(y, v), rtol=1e-12, atol=1e-10)
    assert bool((local.gradient(y)[~d.valid] == 0).all())


def test_subdomains_are_equal_contiguous_pieces():
    d = Forchheimer().decomposition(5, 3)
    owned = [s.indices[s.owned] for s in d.subdomains]
    assert [int(i[0]) for i in owned] == [int(k * 149 / 5) for k in range(5)]
    assert [len(s.indices) for s in d.subdomains] == [32, 36, 36, 36, 33]
    shared = Forchheimer().decomposition(5, 3, Communicator())
    assert list(shared.local) == list(range(5))


def test_local_evaluations_are_counted_by_their_unknowns():
    problem = Forchheimer()
    d, x = problem.decomposition(5, 3), problem.initial()
    models = d.models(problem.objective(), x, None)
    with counting() as cost:
        models.value_and_gradient(d.gather(x))
        models.hessian_product(d.gather(x), d.gather(x))
    assert cost.work == pytest.approx(2 * sum(len(s.indices) for s in d.subdomains) / 149)
    assert cost.gradients == 0


def test_the_coarse_level_has_hats_at_the_interfaces():
    problem = Forchheimer()
    hierarchy = problem.coarse_hierarchy(2, 5)
    level = hierarchy[1]
    P, nodes = level.transfer.matrix, [k * 149 // 5 for k in range(1, 5)]
    assert hierarchy[1].objective.size == 4
    for j, node in enumerate(nodes):
        assert P[node].tolist() == [float(k == j) for k in range(4)]
    # linear between the nodes and to zero at the ends
    bends = torch.nn.functional.pad(P, (0, 0, 1, 1)).diff(dim=0).diff(dim=0)
    bent = (bends.abs() > 1e-12).any(1).nonzero()[:, 0].tolist()
    assert bent == nodes
    e = point(4)
    torch.testing.assert_close(level.transfer.inject(level.transfer.prolong(e)), e, rtol=1e-14, atol=1e-14)
    # with the boundary values, the space contains their interpolant
    f = level.objective
    assert isinstance(f, Restricted)
    line = f.x + level.transfer.prolong(level.transfer.inject(problem.interpolant()))
    torch.testing.assert_close(line, problem.interpolant(), rtol=0, atol=1e-14)


def test_the_coarse_model_is_the_energy_on_the_coarse_space():
    problem = Forchheimer()
    level = problem.coarse_hierarchy(2, 4)[1]
    f, coarse, y, v = problem.objective(), level.objective, point(3), point(3, 2)
    u = coarse.x + level.transfer.prolong(y)
    assert float(coarse.value(y)) == pytest.approx(float(f.value(u)), rel=1e-14)
    for k in range(3):
        e = torch.zeros(3).double()
        e[k] = 1e-6
        slope = float(coarse.value(y + e) - coarse.value(y - e)) / 2e-6
        assert float(coarse.gradient(y)[k]) == pytest.approx(slope, rel=1e-5, abs=1e-5)
    difference = (coarse.gradient(y + 1e-6 * v) - coarse.gradient(y - 1e-6 * v)) / 2e-6
    torch.testing.assert_close(coarse.hessian_product(y, v), difference, rtol=1e-6, atol=1e-6)
    assert len(problem.coarse_hierarchy(1, 4)) == 1


def test_rediscretised_levels_are_consistent():
    problem = Forchheimer(n=31)
    hierarchy = problem.hierarchy(3)
    assert [level.objective.size for level in hierarchy.levels] == [31, 15, 7]
    assert hierarchy[1].objective.h == pytest.approx(2 * problem.objective().h)


def test_single_precision():
    problem = Forchheimer(n=49, dtype="float32")
    u = problem.solution()
    assert u.dtype == problem.initial().dtype == torch.float32
    assert float(problem.objective().gradient(u).abs().max()) < 1e-3


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Forchheimer(gamma=-1.0), "`gamma` must be >= 0, got -1"),
        (lambda: Forchheimer(n=0), "`n` must be >= 1"),
        (lambda: Forchheimer().coarse_hierarchy(3, 4), "`levels` must be 1 or 2.*got 3"),
        (lambda: Forchheimer().coarse_hierarchy(2, 1), "`parts` must be in 2..149.*got 1"),
        (lambda: Forchheimer().decomposition(150), "`parts` must be <= 149"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()
