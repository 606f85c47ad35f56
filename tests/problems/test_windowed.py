"""Window models: partition of unity, losses against slow explicit ones, local models, boundary conditions."""

import math

import pytest
import torch

from mldd.cost import Price, counting
from mldd.decomposition import LocalRestrictions
from mldd.objective import Objective
from mldd.problems.equations import equation, hammersley
from mldd.problems.taylor import Network
from mldd.problems.window_model import WindowModel
from mldd.problems.windowed import WindowedPoisson
from mldd.solver import Stop, minimise
from mldd.solvers.baselines import Adam
from mldd.solvers.batch_lbfgs import BatchLBFGS
from mldd.solvers.schwarz import NonlinearSchwarz
from mldd.solvers.spqn import SchwarzLBFGS
from tests.helpers import launch, needs_mpi

F64 = {"dtype": torch.float64}
SMALL = {"windows": 5, "width": 0.4, "points": 60, "hidden": "5-4"}


def rough(size, seed=0):
    return 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed), **F64)


def two_dimensional(name="burgers", coarse=True):
    e = equation(name)
    centres, radii = WindowModel.grid(e, (2, 3), (1.4, 0.8))
    return WindowModel(e, Network((2, 4, 4, 1), "residual"), centres, radii, Network((2, 3, 1)) if coarse else None)


def explicit(model, x, points):
    """u at points, shape (m, 1): every network in its window by its formula, one after the other."""
    pieces = torch.split(x, model.blocks)
    lower, upper = (torch.tensor(corner, **F64) for corner in (model.equation.lower, model.equation.upper))

    def dense(net, parameters, at):
        state, each = at, net.linear(net.layout.views(parameters))
        for layer, (weight, bias, scale) in enumerate(each):
            z = (state @ weight.T + bias) * (1.0 if scale is None else 10.0 * scale)
            last, residual = layer + 1 == net.layers, net.kind == "residual" and layer
            state = z if last else state + net.step * torch.tanh(z) if residual else torch.tanh(z)
        return state

    bumps = []
    for c, r in zip(model.centres, model.radii, strict=True):
        s = (points - c) / r
        bumps.append(torch.where(s.abs() < 1, (1 + torch.cos(math.pi * s)) ** 2, 0.0 * s).prod(1, keepdim=True))
    total = sum(bumps)
    networks = [
        bump / total * dense(model.net, piece, (points - c) / r)
        for bump, piece, c, r in zip(bumps, pieces, model.centres, model.radii, strict=False)
    ]
    if model.coarse:
        networks.append(dense(model.coarse, pieces[-1], 2 * (points - lower) / (upper - lower) - 1))
    return model.equation.lift(points) + model.equation.factor(points) * sum(networks)


def explicit_loss(model, x, points):
    """Mean squared residual by nested automatic differentiation of `explicit`."""
    points = points.clone().requires_grad_()
    u = explicit(model, x, points)

    def along(value, k):
        return torch.autograd.grad(value.sum(), points, create_graph=True)[0][:, k : k + 1]

    first = [along(u, k) if order else None for k, order in enumerate(model.equation.orders)]
    second = [along(first[k], k) if order == 2 else None for k, order in enumerate(model.equation.orders)]
    jets = type("Jets", (), {"value": u, "first": first, "second": second})
    return model.equation.residual(jets, points.detach()).square().mean()


def test_windows_sum_to_one_and_their_slopes_to_zero():
    model = two_dimensional()
    points = model.equation.scaled(hammersley(50, 2)).requires_grad_()
    weights = model.weights(points)
    assert torch.equal((weights > 0).T, model.inside(points))
    torch.testing.assert_close(weights.sum(1), torch.ones(50, **F64))
    each = [torch.autograd.grad(w.sum(), points, create_graph=True)[0] for w in weights.unbind(1)]
    torch.testing.assert_close(sum(each), torch.zeros(50, 2, **F64), rtol=0, atol=1e-13)
    bends = sum(torch.autograd.grad(slope[:, 0].sum(), points, retain_graph=True)[0] for slope in each)
    torch.testing.assert_close(bends, torch.zeros(50, 2, **F64), rtol=0, atol=1e-12)
    assert int(model.inside(points).sum(0).max()) >= 4


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize("frequency", [1.0, 1.5])
def test_poisson_is_the_explicit_loss(coarse, frequency):
    problem = WindowedPoisson(frequency, coarse=coarse, **SMALL)
    f, x = problem.objective(), rough(problem.objective().size).requires_grad_()
    expected = explicit_loss(problem.model, x, problem.collocation)
    (gradient,) = torch.autograd.grad(expected, x)
    value, g = f.value_and_gradient(x.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(f.value(x.detach()), expected.detach())
    torch.testing.assert_close(g, gradient)
    points = torch.linspace(0, 1, 33, **F64)[:, None]
    torch.testing.assert_close(problem.predict(x.detach(), points), explicit(problem.model, x, points)[:, 0].detach())
    assert isinstance(f, Objective)


@pytest.mark.parametrize("name", ["burgers", "diffusion-advection", "klein-gordon", "allen-cahn"])
def test_equations_in_two_dimensions(name):
    model = two_dimensional(name)
    points = model.equation.scaled(hammersley(40, 2))
    f, x = model.loss(points, 40, Price(), None), rough(sum(model.blocks)).requires_grad_()
    expected = explicit_loss(model, x, points)
    (gradient,) = torch.autograd.grad(expected, x)
    value, g = f.value_and_gradient(x.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(g, gradient, rtol=1e-6, atol=1e-7 * float(gradient.abs().max()))


def test_hessian_product_is_the_difference_of_gradients():
    for f in (
        WindowedPoisson(coarse=True, **SMALL).objective(),
        two_dimensional().loss(torch.rand(40, 2, **F64), 40, Price(), None),
    ):
        x, v, h = rough(f.size), rough(f.size, seed=1), 1e-5
        difference = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
        torch.testing.assert_close(
            f.hessian_product(x, v), difference, rtol=1e-5, atol=1e-6 * float(difference.abs().max())
        )


@pytest.mark.parametrize("coarse", [False, True])
@pytest.mark.parametrize(("parts", "overlap"), [(5, 0), (5, 1), (2, 0), (3, 1), (1, 0)])
def test_local_models_are_restrictions(parts, overlap, coarse):
    problem = WindowedPoisson(coarse=coarse, **SMALL)
    d, f = problem.decomposition(parts + (parts == 5 and coarse), overlap), problem.objective()
    x = rough(f.size)
    found, expected = d.models(f, x, f.gradient(x)), LocalRestrictions(f, d, x)
    start = d.gather(x)
    y, v = (
        start + d.valid * 0.3 * torch.randn(start.shape, generator=torch.Generator().manual_seed(k), **F64)
        for k in (1, 2)
    )
    for at in (start, y):
        values, g = found.value_and_gradient(at)
        torch.testing.assert_close(values, expected.value(at))
        torch.testing.assert_close(found.value(at), values)
        torch.testing.assert_close(g, expected.gradient(at), rtol=1e-7, atol=1e-9 * float(g.abs().max()))
    product = expected.hessian_product(y, v * d.valid)
    torch.testing.assert_close(
        found.hessian_product(y, v * d.valid), product, rtol=1e-7, atol=1e-9 * float(product.abs().max())
    )
    for k in range(d.parts):
        one = d.alone(k)
        row = one.models(f, x, None).gradient(one.gather(y_of(d, x, y, k)))
        torch.testing.assert_close(
            row[0], d.models(f, y_of(d, x, y, k), None).gradient(d.gather(y_of(d, x, y, k)))[k, : row.shape[1]]
        )


def y_of(d, x, y, k):
    """x with the unknowns of subdomain k from the rows y."""
    new = x.clone()
    new[d.subdomains[k].indices] = y[k, : len(d.subdomains[k].indices)]
    return new


def test_nonlinear_local_models_are_restrictions():
    model = two_dimensional()
    points = model.equation.scaled(hammersley(40, 2))
    f, ends = model.loss(points, 40, Price(), None), [0, *torch.tensor(model.blocks).cumsum(0).tolist()]
    x = rough(f.size)
    local = model.locals(f, points, [range(0, 2), range(2, 3), range(3, 6), range(6, 7)], range(4))
    subdomains = WindowedPoisson(**SMALL).decomposition(1).subdomains[0]
    blocks = [torch.arange(ends[a], ends[b]) for a, b in ((0, 2), (2, 3), (3, 6), (6, 7))]
    made = [type(subdomains)(i, torch.ones(len(i), dtype=torch.bool)) for i in blocks]
    d = type(WindowedPoisson(**SMALL).decomposition(1))(f.size, made, lambda d, f, x, g: local.at(x, d))
    y = d.gather(x) + d.valid * 0.3 * torch.randn(d.indices.shape, generator=torch.Generator().manual_seed(1), **F64)
    found, expected = d.models(f, x, None), LocalRestrictions(f, d, x)
    torch.testing.assert_close(found.value(y), expected.value(y))
    g = expected.gradient(y)
    torch.testing.assert_close(found.gradient(y), g, rtol=1e-7, atol=1e-9 * float(g.abs().max()))


def test_boundary_conditions_hold_for_any_parameters():
    problem = WindowedPoisson(1.5, **SMALL)
    ends = problem.predict(10 * rough(problem.objective().size), torch.tensor([[0.0], [1.0]], **F64))
    torch.testing.assert_close(ends, torch.tensor([0.0, math.sin(1.5 * math.pi)], **F64), rtol=0, atol=1e-14)
    model = two_dimensional()
    t = torch.rand(20, 1, **F64)
    walls = torch.cat([torch.cat([t, torch.ones_like(t)], 1), torch.cat([0 * t, 2 * t - 1], 1)])
    u = model.values(walls)(rough(sum(model.blocks)))
    torch.testing.assert_close(u, torch.cat([0 * t, -torch.sin(math.pi * (2 * t - 1))])[:, 0], rtol=0, atol=1e-13)


def test_the_solution_has_no_residual():
    """The residual of the exact solution vanishes: with all networks zero, u = g = the solution of a straight line."""
    problem = WindowedPoisson(**SMALL)
    mean = (math.pi**4 * torch.sin(math.pi * problem.collocation) ** 2).mean()
    torch.testing.assert_close(problem.objective().value(torch.zeros(problem.objective().size, **F64)), mean)


def test_training_reduces_the_error():
    problem = WindowedPoisson(windows=3, width=0.8, points=40, hidden="8-8")
    f, x, d = problem.objective(), problem.initial(0), problem.decomposition(3)
    assert problem.metrics(minimise(f, x, Adam(3e-2), stop=Stop(200)).x)["relative_l2"] < 0.02
    aspqn = SchwarzLBFGS(d, local_steps=5, global_steps=5, memory=10)
    assert problem.metrics(minimise(f, x, aspqn, stop=Stop(15)).x)["relative_l2"] < 0.02
    sweeps = minimise(f, x, NonlinearSchwarz(d, local=BatchLBFGS(), local_steps=10), stop=Stop(15))
    assert float(f.value(sweeps.x)) < 0.4 * float(f.value(x))


def test_costs():
    problem = WindowedPoisson(**SMALL)
    f, x, d = problem.objective(), problem.initial(0), problem.decomposition(5)
    with counting() as cost:
        models = d.models(f, x, None)
        assert (cost.gradients, cost.work) == (0, 0.0)
        assert cost.local_work == pytest.approx(1 / 3)
        models.value_and_gradient(d.gather(x))
        assert cost.local_work == pytest.approx(1 / 3 + 1)
        f.gradient(x)
    assert (cost.gradients, cost.work, cost.synchronisations) == (1, 1.0, 1)


def test_single_precision():
    problem = WindowedPoisson(dtype="float32", **SMALL)
    f, x = problem.objective(), problem.initial(0)
    exact = WindowedPoisson(**SMALL).objective().gradient(x.double())
    g = f.gradient(x)
    assert g.dtype == torch.float32
    assert float((g - exact).norm() / exact.norm()) < 1e-4
    near = torch.tensor([[0.2 - 1e-7]])  # at the very edge of the window that is centred at 0
    table = problem.model.loss(near, 1, Price(), None).patches[0].coefficients
    assert bool(torch.isfinite(table).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 0}, "`windows` must be >= 1"),
        ({"test": 1}, "`test` must be >= 2"),
        ({"points": 1}, "`points` must be >= 2"),
        ({"width": 0.0}, "`width` must be > 0"),
        ({"frequency": math.inf}, "`frequency` must be > 0"),
        ({"hidden": "a"}, "`hidden` must be widths"),
        ({"dtype": "half"}, "`dtype` must be one of"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        WindowedPoisson(**options)


def test_bad_decompositions():
    problem = WindowedPoisson(**SMALL)
    for parts in (0, 6):
        with pytest.raises(ValueError, match=r"`parts` must be in 1..5 \(the networks\)"):
            problem.decomposition(parts)
    with pytest.raises(ValueError, match="`levels` must be 1"):
        problem.hierarchy(2)
    with pytest.raises(ValueError, match="windows must cover every point"):
        WindowedPoisson(windows=3, width=0.4).objective()


SCRIPT = """
    import torch
    from mldd.parallel import SERIAL, world
    from mldd.problems.windowed import WindowedPoisson
    from mldd.solver import Stop, minimise
    from mldd.solvers.baselines import Adam
    from mldd.solvers.batch_lbfgs import BatchLBFGS
    from mldd.solvers.schwarz import NonlinearSchwarz

    assert world().ranks == 2

    def run(comm, make, **options):
        problem = WindowedPoisson(windows=5, width=0.4, points=60, hidden="5-4", comm=comm, **options)
        solver = make(problem, comm)
        result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(4), comm=comm)
        return result.x, result.record

    def schwarz(order):
        return lambda p, comm: NonlinearSchwarz(
            p.decomposition(p.model.windows), local=BatchLBFGS(), local_steps=2, order=order, comm=comm)

    for make in (lambda p, comm: Adam(1e-2), schwarz("additive"), schwarz("multiplicative")):
        for coarse in (False, True):
            x, record = run(SERIAL, make, coarse=coarse)
            y, again = run(world(), make, coarse=coarse)
            assert float((x - y).abs().max()) < 1e-7 * float(x.abs().max()), float((x - y).abs().max())
            assert again.synchronisations == record.synchronisations
    print("same")
"""


@needs_mpi
def test_two_ranks_are_one():
    assert launch(2, SCRIPT).stdout.count("same") == 2
