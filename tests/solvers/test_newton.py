"""Newton's method in batches: closed forms, dense factorisations, negative curvature, rounding, and bad input."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import pytest
import torch
from torch import Tensor

from mldd.algebra import (
    DIFFERENCES,
    Bounds,
    Corrected,
    Price,
    Remembered,
    contiguous,
    counting,
    index_decomposition,
    offers,
    product_price,
    with_products,
)
from mldd.loop import Status, Stop, minimise
from mldd.solvers import NewtonCG
from mldd.solvers.parts import Factors, Sweep, half_bandwidth, hessians, truncated_cg
from mldd.solvers.parts.hessian_solve import Inverse, extreme_eigenvalues
from tests.helpers import Failing, Quadratic, Rosenbrock, WithoutProducts, quadratic

DENSE, CG = NewtonCG(), NewtonCG(dense=0)


@dataclass(frozen=True)
class Batch:
    """Independent quartics ``sum_j a_j y_j^4 / 4 + y^T A_i y / 2 - b_i y``, one per row."""

    A: Tensor
    b: Tensor
    quartic: float = 0.0
    band: int | None = None
    price: Price = field(default_factory=Price)

    @property
    def size(self) -> int:
        return self.b.shape[-1]

    @property
    def bounds(self) -> Bounds:
        return Bounds.free(*self.b.shape)

    def value(self, x: Tensor) -> Tensor:
        self.price.of_value()
        return (0.25 * self.quartic * x**4 + x * (0.5 * self._product(x) - self.b)).sum(-1)

    def gradient(self, x: Tensor) -> Tensor:
        self.price.of_gradient()
        return self.quartic * x**3 + self._product(x) - self.b

    def _product(self, v: Tensor) -> Tensor:
        return (self.A @ v[..., None])[..., 0]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        self.price.of_product()
        return 3.0 * self.quartic * x**2 * v + self._product(v)

    def row(self, i: int) -> Batch:
        return replace(self, A=self.A[i], b=self.b[i])


def symmetric(*shape: int, seed: int = 0) -> Tensor:
    A = torch.randn(*shape, shape[-1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return A + A.mT


def vector(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def batch(p: int = 4, m: int = 7, quartic: float = 1.0, shift: float = 0.0) -> Batch:
    return Batch(symmetric(p, m) + shift * torch.eye(m, dtype=torch.float64), vector(p, m), quartic)


# the method


def test_a_quadratic_takes_one_step_with_dense_factors():
    f = quadratic(40)
    result = minimise(f, vector(40), DENSE, stop=Stop(5, atol=1e-11))
    assert result.record.step == 1
    torch.testing.assert_close(result.x, f.solution(), rtol=0, atol=1e-12)


def test_cg_reaches_the_solution_superlinearly():
    f = quadratic(60, condition=1e3)
    result = minimise(f, vector(60), CG, stop=Stop(30, atol=1e-10))
    measures = result.history.column("measure")
    assert result.status is Status.converged_atol and result.record.step <= 10
    assert measures[-1] / measures[-2] < 1e-2 < measures[1] / measures[0]


@pytest.mark.parametrize("solver", [DENSE, CG])
def test_rosenbrock_falls_in_every_step_and_ends_fast(solver):
    f = Rosenbrock(20)
    result = minimise(f, f.start(), solver, stop=Stop(200, atol=1e-12), values=True)
    values = result.history.column("value")
    assert result.status is Status.converged_atol
    assert all(b <= a * (1 + 1e-15) for a, b in zip(values, values[1:], strict=False))
    measures = result.history.column("measure")
    assert measures[-1] < 1e-3 * measures[-2]
    if float(result.x[0]) > 0:  # from n = 4 on there is a second minimiser, at x_0 < 0
        torch.testing.assert_close(result.x, torch.ones(20, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("solver", [DENSE, CG])
def test_the_end_is_quadratic(solver):
    f = batch(1, 7, shift=8.0).row(0)
    x, errors = vector(7), []
    state = solver.init(f, x)
    exact = minimise(f, x, DENSE, stop=Stop(50, atol=1e-14)).x
    for _ in range(20):
        x, state = solver.step(f, x, state)
        errors.append(float((x - exact).norm()))
        if errors[-1] < 1e-9:
            break
    order = math.log(errors[-2] / errors[-3]) / math.log(errors[-3] / errors[-4])
    assert order > (1.7 if solver is DENSE else 1.2), errors


@pytest.mark.parametrize("solver", [DENSE, CG])
def test_a_batch_is_its_rows(solver):
    f, x = batch(), vector(4, 7, seed=5)
    rows = [x[i].clone() for i in range(4)]
    state, states = solver.init(f, x), [solver.init(f.row(i), rows[i]) for i in range(4)]
    for _ in range(6):
        x, state = solver.step(f, x, state)
        for i in range(4):
            rows[i], states[i] = solver.step(f.row(i), rows[i], states[i])
    torch.testing.assert_close(x, torch.stack(rows), rtol=1e-9, atol=1e-9)
    assert state.notes.get("negative curvature", 0) == sum(s.notes.get("negative curvature", 0) for s in states) > 0


@pytest.mark.parametrize("solver", [replace(DENSE, rtol=1e-10), replace(CG, rtol=1e-10)])
def test_rows_that_have_converged_stay_put(solver):
    f, x = batch(3, 7, shift=8.0), vector(3, 7, seed=5)
    x[1] = minimise(f.row(1), x[1], DENSE, stop=Stop(50, atol=1e-14)).x
    state = solver.init(f, x)
    state.first[1] = 1.0
    kept = x[1].clone()
    for _ in range(30):
        x, state = solver.step(f, x, state)
        assert torch.equal(x[1], kept)
        if state.status is not None:
            break
    assert state.status is Status.converged_rtol
    assert bool((f.gradient(x).norm(dim=1) <= 1e-10 * state.first).all())


def test_a_relative_tolerance_ends_the_loop():
    result = minimise(quadratic(20), vector(20), NewtonCG(rtol=1e-8), stop=Stop(50))
    assert result.status is Status.converged_rtol and result.record.step == 1


def test_a_stationary_point_is_kept():
    f = Batch(torch.eye(5, dtype=torch.float64), torch.zeros(5, dtype=torch.float64))
    x = torch.zeros(5, dtype=torch.float64)
    x, state = DENSE.step(f, x, DENSE.init(f, x))
    assert float(x.abs().max()) == 0.0 and state.status is Status.converged_atol


def test_rounding_ends_in_a_reason_within_few_evaluations():
    f = quadratic(30, condition=1e6)
    result = minimise(f, vector(30), DENSE, stop=Stop(50))
    assert result.status is Status.stalled and result.record.step <= 6
    assert result.record.measure < 1e-8
    assert result.record.cost.gradient_evaluations < 15


def test_values_whose_decrease_drowns_in_rounding_do_not_end_newtons_method():
    f = quadratic(30)
    far = replace(f, b=f.b)

    @dataclass(frozen=True)
    class Lifted(Quadratic):
        def value(self, x: Tensor) -> Tensor:
            return f.value(x) + 1e9

        def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.value(x), f.gradient(x)

    x = f.solution() + 1e-5 * vector(30)
    result = minimise(Lifted(far.A, far.b, far.bounds), x, DENSE, stop=Stop(5, atol=1e-11))
    assert result.status is Status.converged_atol


# curvature


@pytest.mark.parametrize("solver", [DENSE, CG])
def test_negative_curvature_is_followed_and_noted(solver):
    """x^4/4 - x^2/2 + y^2/2 has a saddle at 0 and minimisers at (1, 0) and (-1, 0)."""
    f = Batch(torch.diag(torch.tensor([-1.0, 1.0]).double()), torch.zeros(2).double(), 0.0)

    @dataclass(frozen=True)
    class Well(Batch):
        def value(self, x: Tensor) -> Tensor:
            return f.value(x) + 0.25 * x[..., 0] ** 4

        def gradient(self, x: Tensor) -> Tensor:
            g = f.gradient(x)
            g[..., 0] += x[..., 0] ** 3
            return g

        def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
            out = f.hessian_product(x, v)
            out[..., 0] += 3.0 * x[..., 0] ** 2 * v[..., 0]
            return out

    start = torch.tensor([1e-3, 0.5], dtype=torch.float64)
    result = minimise(Well(f.A, f.b), start, solver, stop=Stop(50, atol=1e-10))
    assert result.status is Status.converged_atol and result.record.step < 25
    torch.testing.assert_close(result.x, torch.tensor([1.0, 0.0]).double(), rtol=0, atol=1e-9)
    assert result.state.notes["negative curvature"] >= 1


def test_products_with_unit_vectors_give_the_hessian():
    f, x = batch(), vector(4, 7)
    H = hessians(lambda v: f.hessian_product(x, v), x)
    torch.testing.assert_close(H, f.A + torch.diag_embed(3.0 * x**2), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(hessians(lambda v: f.row(1).hessian_product(x[1], v), x[1]), H[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("band", [0, 1, 2, 6, 9])
def test_banded_hessians_take_few_products(band):
    m = 7
    keep = (torch.arange(m)[:, None] - torch.arange(m)).abs() <= band
    f = Batch(symmetric(3, m) * keep, vector(3, m), 1.0, band)
    x = vector(3, m)
    with counting() as cost:
        H = hessians(lambda v: f.hessian_product(x, v), x, half_bandwidth(Remembered(Corrected(f, x, x))))
    torch.testing.assert_close(H, f.A + torch.diag_embed(3.0 * x**2), rtol=1e-14, atol=1e-14)
    assert cost.work == 2 * min(m, 2 * band + 1)


def test_factors_take_the_absolute_value_of_indefinite_matrices():
    H = torch.stack([symmetric(6), symmetric(6) + 20 * torch.eye(6).double(), torch.zeros(6, 6).double()])
    b = vector(3, 6)
    factors = Factors.of(H, torch.ones(3, dtype=torch.bool))
    values, V = torch.linalg.eigh(H[0])
    expected = [V @ ((V.T @ b[0]) / values.abs()), torch.linalg.solve(H[1], b[1])]
    torch.testing.assert_close(factors.solve(b)[:2], torch.stack(expected), rtol=1e-10, atol=1e-10)
    assert factors.raised.tolist() == factors.negative.tolist() == [True, False, False]
    assert bool(torch.isfinite(factors.solve(b)).all())


def test_factors_of_singular_matrices_and_padding():
    A = symmetric(5) + 12 * torch.eye(5).double()
    padded = torch.zeros(7, 7).double()
    padded[:5, :5] = A
    u = vector(7)
    singular = torch.outer(u, u)
    factors = Factors.of(torch.stack([padded, singular]), torch.tensor([True, True]))
    b = torch.stack([torch.cat([vector(5), torch.zeros(2).double()]), 3.0 * u])
    solved = factors.solve(b)
    torch.testing.assert_close(solved[0, :5], torch.linalg.solve(A, b[0, :5]), rtol=1e-12, atol=1e-12)
    assert solved[0, 5:].tolist() == [0.0, 0.0]
    torch.testing.assert_close(solved[1], 3.0 * u / (u @ u), rtol=1e-6, atol=1e-6)
    assert factors.raised.tolist() == [False, True] and factors.negative.tolist() == [False, False]


def test_matrices_that_are_not_finite_or_not_asked_for_do_no_harm():
    H = torch.stack([torch.full((3, 3), math.nan).double(), -torch.eye(3).double(), 2 * torch.eye(3).double()])
    factors = Factors.of(H, torch.tensor([True, False, True]))
    torch.testing.assert_close(factors.solve(torch.ones(3, 3).double())[2], torch.full((3,), 0.5).double())
    assert factors.raised.tolist() == [False, False, False]


def test_cg_solves_every_row_to_its_tolerance():
    A = symmetric(4, 9) + 12 * torch.eye(9).double()
    b = vector(4, 9)
    tolerance = torch.tensor([1e-12, 1e-3, 1e-12, 1e-12]).double()
    active = torch.tensor([True, True, False, True])
    found = truncated_cg(lambda v: (A @ v[..., None])[..., 0], b, tolerance, active, 100)
    residuals = (b - (A @ found.x[..., None])[..., 0]).norm(dim=1)
    assert bool((residuals[active] <= 1.1 * tolerance[active]).all()) and residuals[1] > 1e-8
    assert float(found.x[2].abs().max()) == 0.0 and not bool(found.negative.any())


def test_cg_ends_at_negative_curvature_with_a_descent_direction():
    A, b = symmetric(3, 9, seed=3), vector(3, 9)
    found = truncated_cg(
        lambda v: (A @ v[..., None])[..., 0], b, torch.full((3,), 1e-12).double(), torch.ones(3, dtype=torch.bool), 100
    )
    assert bool(found.negative.all())
    assert bool(((found.x * b).sum(-1) > 0).all())


@pytest.mark.parametrize("dense", [0, 20])
def test_inverses_by_factors_and_by_cg_agree(dense):
    f, x = batch(4, 9, shift=9.0), vector(4, 9)
    inverse = Inverse(lambda v: f.hessian_product(x, v), x, dense, 1e-13, 100)
    b = vector(4, 9, seed=7)
    torch.testing.assert_close(f.hessian_product(x, inverse.solve(b)), b, rtol=1e-10, atol=1e-10)
    assert not bool(inverse.raised.any()) and inverse.unsolved == 0


def test_an_inverse_by_cg_is_shifted_where_the_matrix_is_indefinite():
    A = torch.stack([torch.diag(torch.tensor([-2.0, 1.0, 3.0])), torch.diag(torch.tensor([2.0, 1.0, 3.0]))]).double()
    inverse = Inverse(lambda v: (A @ v[..., None])[..., 0], torch.zeros(2, 3).double(), 0, 1e-13, 50)
    b = torch.ones(2, 3).double()
    x = inverse.solve(b)
    assert bool((x * b).sum(1).min() > 0) and inverse.negative.tolist() == inverse.raised.tolist() == [True, False]
    torch.testing.assert_close(x[1], 1.0 / torch.tensor([2.0, 1.0, 3.0]).double())
    shift = b[0, 0] / x[0, 0] - A[0, 0, 0]
    assert shift > 2.0
    torch.testing.assert_close(x[0], b[0] / (A[0].diagonal() + shift), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(inverse.solve(b), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_an_inverse_by_cg_solves_indefinite_batches_with_one_operator(seed):
    """Twenty matrices with a few eigenvalues below zero, as deep as the spectrum is wide or next to zero."""
    p, m, generator = 20, 60, torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(p, m, m, generator=generator, dtype=torch.float64))[0]
    values = torch.rand(p, m, generator=generator, dtype=torch.float64) * 10 + 0.1
    depth = 10.0 ** torch.linspace(-3, 1, p, dtype=torch.float64)
    values[:, :4] = -depth[:, None] * (0.5 + torch.rand(p, 4, generator=generator, dtype=torch.float64))
    A = (Q * values[:, None]) @ Q.mT
    inverse = Inverse(lambda v: (A @ v[..., None])[..., 0], torch.zeros(p, m).double(), 0, 1e-10, 1000)
    assert bool(inverse.negative.all()) and bool(inverse.raised.all())
    shifted = A + inverse.shift[..., None] * torch.eye(m, dtype=torch.float64)
    lowest = torch.linalg.eigvalsh(shifted)[:, 0]
    assert bool((lowest > 0).all()) and bool((inverse.shift[:, 0] <= 4.0 * depth * 1.5 + 0.1).all())
    for _ in range(3):  # the same operator for every right-hand side
        b = torch.randn(p, m, generator=generator, dtype=torch.float64)
        torch.testing.assert_close(inverse.solve(b), torch.linalg.solve(shifted, b), rtol=1e-6, atol=1e-6)
    assert inverse.unsolved == 0 and inverse.residual <= 1e-9


def test_lanczos_finds_the_extreme_eigenvalues_and_passes_over_padding():
    values = torch.stack([torch.linspace(-3.0, 40.0, 50), torch.linspace(0.5, 7.0, 50)]).double()
    values[:, -5:] = 0.0
    lowest, error, largest = extreme_eigenvalues(lambda v: values * v, torch.zeros(2, 50).double())
    exact = torch.tensor([-3.0, 0.5], dtype=torch.float64)
    assert bool(((lowest - exact).abs() <= error + 1e-10).all())
    torch.testing.assert_close(largest, values.max(1)[0], rtol=0.05, atol=0)


def test_a_gradient_without_curvature_is_followed():
    f = Batch(torch.zeros(3, 3).double(), torch.ones(3).double())
    for solver in (DENSE, CG):
        x = torch.zeros(3, dtype=torch.float64)
        x, _ = solver.step(f, x, solver.init(f, x))
        assert float(x.min()) > 0


# as a local solver


@pytest.mark.parametrize("solver", [DENSE, CG])
def test_padded_subdomains_are_solved_exactly(solver):
    f = quadratic(11)
    subdomains = contiguous([1] * 11, 3, overlap=1)  # 4, 6, 5 unknowns
    decomposition = index_decomposition(f, subdomains)
    sweep = Sweep(decomposition, replace(solver, rtol=1e-12), 40, combine="asm", damping=1.0)
    x = vector(11)
    state = sweep.init(f, x)
    c = sweep.corrections(f, x, state)
    r = -f.gradient(x)
    for row, subdomain in zip(c, subdomains, strict=True):
        i = subdomain.indices
        expected = torch.linalg.solve(f.A[i][:, i], r[i])
        torch.testing.assert_close(row[: len(i)], expected, rtol=1e-9, atol=1e-10)
        assert bool((row[len(i) :] == 0).all())


def test_fixed_unknowns_stay():
    f = quadratic(8)
    lower, upper = torch.full((8,), -math.inf).double(), torch.full((8,), math.inf).double()
    lower[2] = upper[2] = 0.7
    x = torch.zeros(8, dtype=torch.float64)
    for solver in (DENSE, CG):
        result = minimise(replace(f, bounds=Bounds(lower, upper)), x, solver, stop=Stop(20, atol=1e-10))
        others = torch.arange(8) != 2
        expected = torch.linalg.solve(f.A[others][:, others], f.b[others] - 0.7 * f.A[others][:, 2])
        assert float(result.x[2]) == 0.7
        torch.testing.assert_close(result.x[others], expected, rtol=0, atol=1e-9)


# bad input


def test_bounds_and_missing_products_are_refused():
    with pytest.raises(ValueError, match="without bounds, got .*tao:bntr"):
        DENSE.init(quadratic(8, bounded=True), torch.zeros(8, dtype=torch.float64))


@pytest.mark.parametrize("solver", [DENSE, CG])
def test_without_hessian_products_differences_of_gradients_lead_to_the_same_minimiser(solver):
    f = WithoutProducts(Rosenbrock(8))
    exact = minimise(f.f, f.f.start(), solver, stop=Stop(100, atol=1e-7))
    found = minimise(f, f.f.start(), solver, stop=Stop(100, atol=1e-7))
    assert found.status is exact.status is Status.converged_atol
    torch.testing.assert_close(found.x, exact.x, rtol=0, atol=1e-6)
    assert found.state.notes[DIFFERENCES] == found.record.step and DIFFERENCES not in exact.state.notes


def test_a_difference_is_close_to_the_product_and_costs_a_gradient():
    f, random = Rosenbrock(8), torch.Generator().manual_seed(0)
    x, v, w = (torch.randn(8, generator=random, dtype=torch.float64) for _ in range(3))
    g = with_products(Corrected(Remembered(WithoutProducts(f)), w, x))
    assert offers(g, "hessian_product") and not offers(g, "hessian_diagonal") and product_price(g) == 1.0
    for direction in (v, w):
        torch.testing.assert_close(
            g.hessian_product(x, direction), f.hessian_product(x, direction), rtol=1e-5, atol=1e-4
        )
    assert g.f.f.f.gradients == 3  # at x once


@pytest.mark.parametrize(
    "field, value", [("rtol", -1.0), ("rtol", 1.0), ("forcing", 0.0), ("dense", -1), ("cg_steps", 0), ("c1", 0.5)]
)
def test_hyper_parameters_out_of_range(field, value):
    with pytest.raises(ValueError, match=f"`{field}`.*got"):
        NewtonCG(**{field: value})


def test_a_gradient_that_lies_is_said():
    f = quadratic(8)

    @dataclass(frozen=True)
    class Lying(Quadratic):
        def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return f.value(x), -f.gradient(x)

        def gradient(self, x: Tensor) -> Tensor:
            return -f.gradient(x)

    x = vector(8)
    result = minimise(Lying(f.A, f.b, f.bounds), x, DENSE, stop=Stop(50))
    assert result.status is Status.stalled and torch.equal(result.x, x)
    assert result.state.rejected == 1


def test_what_is_not_finite_is_said():
    f = Failing(quadratic(6), 0, lambda: torch.tensor(math.nan, dtype=torch.float64))

    @dataclass
    class WithProduct(Failing):
        def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
            return v

    result = minimise(WithProduct(f.f, 0, f.fail), torch.ones(6, dtype=torch.float64), DENSE, stop=Stop(5))
    assert result.status is Status.diverged


def test_single_precision_reaches_its_rounding():
    result = minimise(quadratic(20, dtype=torch.float32), torch.zeros(20), DENSE, stop=Stop(20, atol=1e-4))
    assert result.status is Status.converged_atol and result.x.dtype == torch.float32
