"""Energies on grids: derivatives, assembled matrices, known minima, dtype and device."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import scipy.optimize
import scipy.sparse as sparse
import torch
from torch import Tensor

from mldd.algebra import calibrated, counting, factors_of
from mldd.problems.grids import Bratu, Ignition, Membrane, MinimalSurface, MoreBV, Obstacle, Quadratic
from mldd.problems.grids.pde import GridProblem
from mldd.problems.grids.surface import transfinite

PROBLEMS = [
    Quadratic(n=9, dim=1),
    Quadratic(n=5),
    Obstacle(n=5),
    Membrane(n=5),
    MinimalSurface(n=5),
    Bratu(n=5),
    Ignition(n=5),
    MoreBV(n=5),
]


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def name(problem: object) -> str:
    return type(problem).__name__


def independent_minimum(problem: GridProblem, gtol: float = 1e-9) -> tuple[float, Tensor]:
    """Minimise with scipy's L-BFGS-B."""
    f = problem.objective()

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        value, g = f.value_and_gradient(torch.from_numpy(x))  # type: ignore[attr-defined]
        return float(value), g.numpy()

    result = scipy.optimize.minimize(
        both,
        problem.initial().numpy(),
        jac=True,
        method="L-BFGS-B",
        bounds=scipy.optimize.Bounds(f.bounds.lower.numpy(), f.bounds.upper.numpy()),
        options={"maxiter": 20000, "maxfun": 50000, "ftol": 0.0, "gtol": gtol, "maxcor": 30},
    )
    return float(result.fun), torch.from_numpy(result.x)


@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
class TestDerivatives:
    def test_gradient_is_that_of_the_value(self, problem: GridProblem) -> None:
        f = problem.objective()
        x, h = 0.3 * randn(f.size), 1e-6
        directions = h * torch.eye(f.size, dtype=torch.float64)
        differences = (f.value(x + directions) - f.value(x - directions)) / (2 * h)
        g = f.gradient(x)
        torch.testing.assert_close(differences, g, rtol=1e-6, atol=1e-8 * float(1 + g.abs().max()))
        value, together = f.value_and_gradient(x)  # type: ignore[attr-defined]
        torch.testing.assert_close(value, f.value(x))
        torch.testing.assert_close(together, g)

    def test_hessian_is_that_of_the_gradient(self, problem: GridProblem) -> None:
        f = problem.objective()
        x, v, h = 0.3 * randn(f.size), randn(f.size, seed=1), 1e-6
        product = f.hessian_product(x, v)  # type: ignore[attr-defined]
        differences = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
        torch.testing.assert_close(differences, product, rtol=1e-6, atol=1e-8 * float(1 + product.abs().max()))
        identity = torch.eye(f.size, dtype=torch.float64)
        H = f.hessian_product(x.expand(f.size, -1), identity)  # type: ignore[attr-defined]
        torch.testing.assert_close(H, H.T)
        torch.testing.assert_close(H.diagonal(), f.hessian_diagonal(x))  # type: ignore[attr-defined]

    def test_batches_are_rows(self, problem: GridProblem) -> None:
        f = problem.objective()
        x, v = 0.3 * randn(3, f.size), randn(3, f.size, seed=1)
        products = f.hessian_product(x, v)  # type: ignore[attr-defined]
        for k in range(3):
            torch.testing.assert_close(f.value(x)[k], f.value(x[k]))
            torch.testing.assert_close(f.gradient(x)[k], f.gradient(x[k]))
            torch.testing.assert_close(products[k], f.hessian_product(x[k], v[k]))  # type: ignore[attr-defined]
            torch.testing.assert_close(f.hessian_diagonal(x)[k], f.hessian_diagonal(x[k]))  # type: ignore[attr-defined]

    def test_large_grids_are_cut_into_pieces_without_a_trace(self, problem: GridProblem) -> None:
        large = replace(problem, n=201)
        f = large.objective()
        x, v = 0.01 * randn(f.size), randn(f.size, seed=1)
        h = 1e-5
        slope = (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)
        g = f.gradient(x)
        torch.testing.assert_close(slope, torch.dot(g, v), rtol=1e-5, atol=1e-7 * float(g.norm() * v.norm()))
        h = 1e-8
        along = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
        product = f.hessian_product(x, v)  # type: ignore[attr-defined]
        torch.testing.assert_close(along, product, rtol=1e-5, atol=2e-6 * float(product.abs().max()))
        two = torch.stack([x, v * 0.01])
        torch.testing.assert_close(f.gradient(two)[0], g)
        torch.testing.assert_close(f.value(two)[0], f.value(x))

    def test_calls_have_no_side_effects(self, problem: GridProblem) -> None:
        f = problem.objective()
        x, v = 0.3 * randn(f.size), randn(f.size, seed=1)
        kept = x.clone(), v.clone()
        calls = (lambda: f.gradient(x), lambda: f.hessian_product(x, v), lambda: f.hessian_diagonal(x))  # type: ignore[attr-defined]
        for call in calls:
            first = call()
            before = first.clone()
            call().zero_()
            assert torch.equal(first, before)
        assert torch.equal(x, kept[0]) and torch.equal(v, kept[1])

    def test_single_precision_is_kept(self, problem: GridProblem) -> None:
        single, f = replace(problem, dtype="float32"), problem.objective()
        x = 0.3 * randn(f.size)
        g = single.objective().gradient(x.float())
        assert g.dtype == torch.float32 and single.initial().dtype == torch.float32
        assert single.objective().value(x.float()).dtype == torch.float32
        scale = float(f.gradient(x).abs().max())
        torch.testing.assert_close(g.double(), f.gradient(x), rtol=1e-4, atol=1e-5 * scale)

    def test_everything_is_on_the_device(self, problem: GridProblem, monkeypatch: pytest.MonkeyPatch) -> None:
        """On the device "meta", which nobody may ask for, an operand from the CPU would raise."""
        monkeypatch.setattr("mldd.problems.grids.pde.pick_device", lambda name: torch.device("meta"))
        there = replace(problem)
        f = there.objective()
        x = torch.empty(f.size, dtype=torch.float64, device="meta")
        outputs = [f.gradient(x), f.hessian_product(x, x), f.hessian_diagonal(x), f.value(x), f.bounds.lower]  # type: ignore[attr-defined]
        outputs += [there.initial(), *f.value_and_gradient(x)]  # type: ignore[attr-defined]
        coarse = there.hierarchy(2)[1]
        assert coarse.transfer is not None
        outputs += [coarse.objective.gradient(coarse.transfer.inject(x))]
        assert {out.device.type for out in outputs} == {"meta"}

    def test_evaluations_are_counted(self, problem: GridProblem) -> None:
        f, x = problem.objective(), problem.initial()
        with counting() as cost:
            f.gradient(x)
            f.value_and_gradient(x)  # type: ignore[attr-defined]
            f.value(x)
            f.hessian_product(x, x)  # type: ignore[attr-defined]
        assert (cost.gradients, cost.values, cost.work) == (2, 1, 4.0)
        level = problem.hierarchy(2)[1]
        with counting() as cost:
            level.objective.gradient(level.objective.bounds.lower.new_zeros(level.objective.size))
        assert cost.gradients == 0 and cost.work == pytest.approx(level.objective.size / f.size)


def second_difference(n: int) -> sparse.spmatrix:
    return sparse.diags([-1.0, 2.0, -1.0], [-1, 0, 1], shape=(n, n))


@pytest.mark.parametrize("n", [1, 2, 6, 31, 40])
def test_the_stencil_is_the_assembled_matrix(n: int) -> None:
    T, identity = second_difference(n), sparse.identity(n)
    x = randn(n * n)
    line, square = Quadratic(n=n, dim=1).objective(), Obstacle(n=n, load=0.0).objective()
    np.testing.assert_allclose(
        square.gradient(x).numpy(), (sparse.kron(T, identity) + sparse.kron(identity, T)) @ x.numpy()
    )
    v = x[:n]
    product = line.hessian_product(v, v)  # type: ignore[attr-defined]
    np.testing.assert_allclose(product.numpy(), T @ v.numpy(), atol=1e-14)


def test_the_membrane_is_linear_triangles_on_its_sides() -> None:
    """Assemble the stiffness matrix triangle by triangle."""
    problem = Membrane(n=3)
    nodes = problem.n + 2
    A = np.zeros((nodes**2, nodes**2))
    element = 0.5 * np.array([[2.0, -1.0, -1.0], [-1.0, 1.0, 0.0], [-1.0, 0.0, 1.0]])
    for i in range(nodes - 1):
        for j in range(nodes - 1):
            corner = i * nodes + j
            for t in ([corner, corner + 1, corner + nodes], [corner + nodes + 1, corner + nodes, corner + 1]):
                A[np.ix_(t, t)] += element
    free = [i * nodes + j for i in range(nodes) for j in range(1, nodes)]
    f = problem.objective()
    got = f.hessian_product(torch.zeros(f.size).double(), torch.eye(f.size, dtype=torch.float64))  # type: ignore[attr-defined]
    np.testing.assert_allclose(got.numpy(), A[np.ix_(free, free)], atol=1e-15)
    assert float(f.gradient(torch.zeros(f.size).double()).sum()) == pytest.approx(1.0 - 0.5 * problem.grid().h)


@pytest.mark.parametrize("problem", [Quadratic(n=31, dim=1), Quadratic(n=30), Quadratic(n=1), Quadratic(n=2, dim=1)])
def test_the_quadratic_solution_is_exact(problem: Quadratic) -> None:
    f, exact = problem.objective(), problem.solution()
    assert float(f.gradient(exact).abs().max()) <= 1e-14
    assert f.bounds.is_free and problem.metrics(exact)["relative_l2"] == 0.0
    shape = problem.grid().shape
    first = problem.grid().axis(0)
    expected = sum(
        a
        * torch.sin(k * torch.pi * first).view(-1, *[1] * (len(shape) - 1))
        * (torch.sin(m * torch.pi * first) if len(shape) == 2 else 1.0)
        for k, m, a in ((1, 1, 1.0), (3, 2, 0.5), (5, 7, 0.25))
    )
    torch.testing.assert_close(exact.view(shape), expected)


def test_the_minimum_of_the_obstacle_problem() -> None:
    """algorithms.md 9.3: -1.22905169 with 1213 active nodes."""
    value, x = independent_minimum(Obstacle(n=63))
    assert value == pytest.approx(-1.22905169, abs=5e-9)
    assert Obstacle(n=63).metrics(x) == {"energy": pytest.approx(value), "active": 1213.0}


@pytest.mark.parametrize(
    ("problem", "expected", "active"),
    [
        (Membrane(n=31), -0.150778, 19),
        (MinimalSurface(n=31), 1.457762, 30),
        (Bratu(n=31), -3.002370, 0),
        (Ignition(n=31), -11.313526, 277),
    ],
    ids=name,
)
def test_minima_found_by_an_independent_solver(problem: GridProblem, expected: float, active: int) -> None:
    """Regression values; all problems but bratu at lambda = 3 touch their bounds."""
    value, x = independent_minimum(problem, 1e-8)
    f = problem.objective()
    assert f.bounds.violation(x) == 0.0 and f.bounds.measure(x, f.gradient(x)) <= 1e-7
    assert value == pytest.approx(expected, abs=2e-6)
    assert problem.metrics(x)["active"] == pytest.approx(active, abs=2)


def test_the_least_squares_problem_has_its_bound_active() -> None:
    value, x = independent_minimum(MoreBV(n=15), 1e-6)
    assert MoreBV(n=15).metrics(x)["active"] > 0
    assert value < float(MoreBV(n=15).objective().value(MoreBV(n=15).initial()))


def test_energies_are_consistent_with_the_integrals() -> None:
    """At u = sin(pi x) sin(pi y) the Dirichlet energy is pi^2/4; the densities are integrated by a fine rule."""

    def bump(problem: GridProblem) -> Tensor:
        x, y = problem.grid().points()
        return (torch.sin(torch.pi * x) * torch.sin(torch.pi * y)).reshape(-1)

    n = 255
    t = torch.arange(1, n + 1).double() / (n + 1)
    u = torch.sin(torch.pi * t)[None, :] * torch.sin(torch.pi * t)[:, None]
    dirichlet = torch.pi**2 / 4
    obstacle = Obstacle(n=n)
    assert float(obstacle.objective().value(bump(obstacle))) == pytest.approx(dirichlet + 40 / torch.pi**2, rel=1e-3)
    bratu = Bratu(n=n)
    boundary = 1.0 - (n / (n + 1)) ** 2  # e^0 on the boundary layer is not summed
    integral = float(torch.exp(u).mean()) * (n / (n + 1)) ** 2 + boundary
    got = float(bratu.objective().value(bump(bratu)))
    assert got == pytest.approx(dirichlet - 3.0 * (integral - boundary), rel=1e-4)
    flat = replace(MinimalSurface(n=n), height=0.0)
    surface = replace(flat.objective(), frame=torch.zeros(n + 2, n + 2, dtype=torch.float64))  # type: ignore[type-var]
    small = 1e-3 * bump(flat)
    assert float(surface.value(small)) - 1.0 == pytest.approx(1e-6 * dirichlet, rel=1e-3)
    more = MoreBV(n=n)
    x, y = more.grid().points()
    residual = -2 * torch.pi**2 * u - 0.5 * (u + x + y + 1.0) ** 3
    assert float(more.objective().value(bump(more))) == pytest.approx(float((residual**2).mean()), rel=2e-2)


def test_enneper_boundary_values_are_those_of_the_minimal_surface() -> None:
    """Without a plate the discrete minimum converges to Enneper's surface, which is 0 on the diagonals."""
    problem = MinimalSurface(n=15, height=-10.0)
    frame = problem.objective().frame  # type: ignore[attr-defined]
    corners = frame[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert float(corners.abs().max()) <= 1e-14
    torch.testing.assert_close(frame[0], -frame[:, 0])
    _, x = independent_minimum(problem, 1e-10)
    centre = x.view(15, 15)
    assert float(centre[7, 7].abs()) <= 1e-6
    torch.testing.assert_close(centre, -centre.T, rtol=0.0, atol=1e-6)


@pytest.mark.parametrize("problem", PROBLEMS, ids=name)
def test_starts_are_feasible_and_equal_for_every_seed(problem: GridProblem) -> None:
    f, x = problem.objective(), problem.initial(3)
    assert x.shape == (f.size,) and f.bounds.violation(x) == 0.0
    assert torch.equal(x, problem.initial())
    f.bounds.check(x)
    assert set(problem.metrics(x)) == {"energy"} | ({"relative_l2"} if f.bounds.is_free else {"active"})


def test_fields_are_the_keys_of_the_command_line() -> None:
    assert [f.name for f in fields(Quadratic)] == ["n", "dtype", "device", "dim"]
    assert [f.name for f in fields(Obstacle)] == ["n", "dtype", "device", "load", "lower"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"n": 0}, "`n` must be >= 1"),
        ({"dim": 3}, "`dim` must be 1 or 2, got 3"),
        ({"dtype": "float16"}, "`dtype` must be one of float64, float32, got 'float16'"),
    ],
)
def test_bad_fields_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Quadratic(**arguments)  # type: ignore[arg-type]


def test_every_vector_of_a_batch_is_counted() -> None:
    f = Obstacle(n=5).objective()
    x = torch.zeros(3, f.size, dtype=torch.float64)
    with counting() as cost:
        f.gradient(x)
        f.hessian_product(x, x)
    assert (cost.gradients, cost.work) == (3, 6.0)


def test_the_lifting_of_a_surface_is_exact_for_what_is_linear_between_opposite_sides() -> None:
    t = torch.linspace(0.0, 1.0, 9, dtype=torch.float64)
    down, across = t[:, None], t[None, :]
    whole = (1.0 + down.square()) * (2.0 - across) + across.sin() * (1.0 - down)
    assert torch.allclose(transfinite(whole), whole[1:-1, 1:-1], atol=1e-14)


def test_the_plate_is_as_high_as_it_is_said_to_be() -> None:
    lower = MinimalSurface(n=7).objective().bounds.lower
    assert {float(v) for v in lower[torch.isfinite(lower)]} == {0.1}


def test_measured_prices_leave_the_windows_as_they_are():
    problem = Obstacle(n=15)
    f, x = problem.objective(), problem.initial(0)
    priced = calibrated(f, factors_of(f, x, 1e-4, lambda number: number))
    decomposition = problem.decomposition(4, 1)
    plain, models = (decomposition.models(h, x, f.gradient(x)) for h in (f, priced))
    assert type(models) is type(plain)
    y = decomposition.gather(x) + 0.01
    assert torch.equal(models.gradient(y), plain.gradient(y))
