"""Window models: partition of unity, losses against slow explicit ones, local models, boundary conditions."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch

from mldd.algebra import LocalRestrictions, Objective, Price, counting
from mldd.loop import Stop, minimise, read_csv
from mldd.problems.pinns import TaylorNetwork
from mldd.problems.pinns.equations import equation, hammersley
from mldd.problems.pinns.pinn_windows import parse_layout
from mldd.problems.pinns.window_model import WindowModel
from mldd.solvers import Adam, NonlinearSchwarz, SchwarzLBFGS
from mldd.solvers.parts import BatchLBFGS
from tests.helpers import needs_mpi, pinn, result, together

F64 = {"dtype": torch.float64}


def poisson(frequency=1.0, **options):
    small = {"count": 5, "ratio": 1.6, "points": 60, "depth": 3, "width": 5}
    return pinn("poisson1d", "windows", frequency=frequency, unit=True, **small | options)


def rough(size, seed=0):
    return 0.5 * torch.randn(size, generator=torch.Generator().manual_seed(seed), **F64)


def two_dimensional(name="burgers", coarse=True):
    e = equation(name)
    centres, radii = WindowModel.grid(e, (2, 3), 1.5)
    return WindowModel(
        e, TaylorNetwork((2, 4, 4, 1), "residual"), centres, radii, TaylorNetwork((2, 3, 1)) if coarse else None
    )


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
    problem = poisson(frequency, coarse=coarse)
    f, x = problem.objective(), rough(problem.objective().size).requires_grad_()
    expected = explicit_loss(problem.window_model, x, problem.collocation[0])
    (gradient,) = torch.autograd.grad(expected, x)
    value, g = f.value_and_gradient(x.detach())
    torch.testing.assert_close(value, expected.detach())
    torch.testing.assert_close(f.value(x.detach()), expected.detach())
    torch.testing.assert_close(g, gradient)
    points = torch.linspace(0, 1, 33, **F64)[:, None]
    torch.testing.assert_close(
        problem.predict(x.detach(), points), explicit(problem.window_model, x, points)[:, 0].detach()
    )
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


@pytest.mark.parametrize("numbers", [-1, 1])
def test_vectors_of_another_length_are_refused(numbers):
    f = pinn("poisson1d", "windows", points=40).objective()
    x = torch.zeros(f.size, dtype=torch.float64)
    wrong = torch.zeros(f.size + numbers, dtype=torch.float64)
    for call in (f.value, f.gradient, f.value_and_gradient, partial(f.hessian_product, x)):
        with pytest.raises(ValueError, match="must have shape"):
            call(wrong)


def test_hessian_product_is_the_difference_of_gradients():
    for f in (
        poisson(coarse=True).objective(),
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
    problem = poisson(coarse=coarse)
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
    subdomains = poisson().decomposition(1).subdomains[0]
    blocks = [torch.arange(ends[a], ends[b]) for a, b in ((0, 2), (2, 3), (3, 6), (6, 7))]
    made = [type(subdomains)(i, torch.ones(len(i), dtype=torch.bool)) for i in blocks]
    d = type(poisson().decomposition(1))(f.size, made, lambda d, f, x, g: local.at(x, d))
    y = d.gather(x) + d.valid * 0.3 * torch.randn(d.indices.shape, generator=torch.Generator().manual_seed(1), **F64)
    found, expected = d.models(f, x, None), LocalRestrictions(f, d, x)
    torch.testing.assert_close(found.value(y), expected.value(y))
    g = expected.gradient(y)
    torch.testing.assert_close(found.gradient(y), g, rtol=1e-7, atol=1e-9 * float(g.abs().max()))


def test_boundary_conditions_hold_for_any_parameters():
    problem = poisson(1.5)
    ends = problem.predict(10 * rough(problem.objective().size), torch.tensor([[0.0], [1.0]], **F64))
    torch.testing.assert_close(ends, torch.tensor([0.0, math.sin(1.5 * math.pi)], **F64), rtol=0, atol=1e-14)
    model = two_dimensional()
    t = torch.rand(20, 1, **F64)
    walls = torch.cat([torch.cat([t, torch.ones_like(t)], 1), torch.cat([0 * t, 2 * t - 1], 1)])
    u = model.values(walls)(rough(sum(model.blocks)))
    torch.testing.assert_close(u, torch.cat([0 * t, -torch.sin(math.pi * (2 * t - 1))])[:, 0], rtol=0, atol=1e-13)


def test_the_solution_has_no_residual():
    """The residual of the exact solution vanishes: with all networks zero, u = g = the solution of a straight line."""
    problem = poisson()
    mean = (math.pi**4 * torch.sin(math.pi * problem.collocation[0]) ** 2).mean()
    torch.testing.assert_close(problem.objective().value(torch.zeros(problem.objective().size, **F64)), mean)


def test_training_reduces_the_error():
    problem = poisson(count=3, points=40, width=8)
    f, x, d = problem.objective(), problem.initial(0), problem.decomposition(3)
    assert problem.metrics(minimise(f, x, Adam(3e-2), stop=Stop(200)).x)["relative_l2"] < 0.02
    aspqn = SchwarzLBFGS(d, local_steps=5, global_steps=5)
    assert problem.metrics(minimise(f, x, aspqn, stop=Stop(15)).x)["relative_l2"] < 0.02
    sweeps = minimise(f, x, NonlinearSchwarz(d, local=BatchLBFGS(), local_steps=10), stop=Stop(15))
    assert float(f.value(sweeps.x)) < 0.4 * float(f.value(x))


def test_costs():
    problem = poisson()
    f, x, d = problem.objective(), problem.initial(0), problem.decomposition(5)
    with counting() as cost:
        models = d.models(f, x, None)
        assert cost.gradients == 0
        assert cost.work == pytest.approx(2 / 3)  # the fields at x, of all windows and of those of this rank
        models.value_and_gradient(d.gather(x))
        assert cost.work == pytest.approx(2 / 3 + 1)
        f.gradient(x)
    assert (cost.gradients, cost.synchronisations, cost.scalar_synchronisations) == (1, 1, 0)
    assert cost.work == pytest.approx(2 / 3 + 2)


@pytest.mark.parametrize("overlap", [0, 1, 2])
def test_local_models_cost_their_true_size(overlap):
    """The networks of a run are evaluated at the points of their own windows: counted where it happens."""
    problem = poisson(count=8)
    f, x, d = problem.objective(), problem.initial(0), problem.decomposition(8, overlap)
    inside = problem.window_model.inside(problem.collocation[0]).sum(1)  # points of each network
    n = len(problem.window_model.blocks)
    runs = [range(max(0, k - overlap), min(n, k + 1 + overlap)) for k in range(n)]
    evaluated = sum(int(inside[j]) if j < len(inside) else len(problem.collocation[0]) for run in runs for j in run)
    models = d.models(f, x, None)
    with counting() as cost:
        models.gradient(d.gather(x))
    whole = int(inside.sum()) + len(problem.collocation[0]) * (n - len(inside))
    assert cost.work == pytest.approx(evaluated / whole)
    assert overlap == 0 or cost.work > 1 + overlap


def test_single_precision():
    problem = poisson(dtype="float32")
    f, x = problem.objective(), problem.initial(0)
    exact = poisson().objective().gradient(x.double())
    g = f.gradient(x)
    assert g.dtype == torch.float32
    assert float((g - exact).norm() / exact.norm()) < 1e-4
    near = torch.tensor([[0.2 - 1e-7]])  # at the very edge of the window that is centred at 0
    table = problem.window_model.loss(near, 1, Price(), None).patches[0].coefficients
    assert bool(torch.isfinite(table).all())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"count": -1}, "`windows` must be a number >= 1, got -1"),
        ({"count": "2x2"}, "`windows` must be a number >= 1, got '2x2'"),
        ({"name": "burgers", "count": "2x0"}, "`windows` must be numbers >= 1 joined by 'x', at most 2, .*got '2x0'"),
        ({"name": "burgers", "count": "2x2x2"}, "at most 2, as in 4 or 2x3, got '2x2x2'"),
        ({"ratio": 1.0}, r"`ratio` must be > 1 \(windows that overlap\), got 1.0"),
        ({"ratio": math.inf}, "`ratio` must be > 1"),
        ({"batch": 10}, "`batch` needs model=network, got 10 with model=windows"),
        ({"boundary": "soft"}, "`poisson.boundary` soft needs model=network"),
        ({"model": "network", "count": 3}, "`windows` needs model=windows, got .*count=3.* with model=network"),
        ({"model": "network", "coarse": True}, "`windows` needs model=windows"),
        ({"model": "network", "ratio": 2.0}, "`windows` needs model=windows"),
        ({"model": "fem"}, "`model` must be one of network, windows"),
        ({"name": "burgers", "unit": True}, "`poisson` is for poisson1d"),
        ({"frequency": math.inf}, "`frequency` must be > 0"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message) as caught:
        pinn(**{"name": "poisson1d", "model": "windows"} | options)
    assert "\n" not in str(caught.value)


def test_bad_decompositions():
    problem = poisson()
    for parts in (0, 6):
        with pytest.raises(ValueError, match=r"`parts` must be in 1..5 \(the networks\)"):
            problem.decomposition(parts)
    with pytest.raises(ValueError, match="every window must have collocation points, got 14 of 20 without"):
        poisson(count=20, points=4).objective()
    gaps = replace(problem.window_model, radii=problem.window_model.radii / 2)
    with pytest.raises(ValueError, match="windows must cover every point"):
        gaps.loss(problem.collocation[0], 60, Price(), None)


def test_layouts():
    assert parse_layout(3, 1) == (3,)
    model = pinn("klein-gordon", "windows", count="2x3", points=100, ratio=1.6).window_model
    assert model.centres.tolist() == [[t, x] for t in (0.0, 12.0) for x in (-1.0, 0.0, 1.0)]
    assert model.radii.tolist() == [[0.8 * 12, 0.8]] * 6
    slabs = pinn("burgers", "windows", points=100).window_model
    assert slabs.centres[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert (slabs.centres[:, 1].tolist(), slabs.radii[:, 1].tolist()) == ([0.0] * 4, [1.5] * 4)


@pytest.mark.parametrize(
    ("name", "layout", "coarse", "networks"),
    [
        ("burgers", 4, False, 4),
        ("diffusion-advection", "2x2", True, 5),
        ("klein-gordon", 3, True, 4),
        ("allen-cahn", "1x3", False, 3),
    ],
)
def test_the_command_line_trains_windows(name, layout, coarse, networks, run, without_figures, tmp_path):
    options = f"model=windows,windows.count={layout},windows.coarse={coarse},points=150,network.width=8"
    code, out, err = run(f"train {name}:{options} --solver aspqn:local_steps=5 --steps 3 --quiet --out", tmp_path)
    assert (code, err) == (0, "")
    found = result(tmp_path)
    assert (found["status"], found["parts"], found["overlap"]) == ("max_steps", networks, 0)
    assert "global_steps=10" in found["options"]["solver"]
    assert set(found["metrics"]) == {"relative_l2", "relative_l2_paper"}
    losses = [record.value for record in read_csv(tmp_path / "history.csv").records]
    assert losses[-1] == found["loss"]
    assert losses[0] > losses[1] > losses[2] > losses[3]


@pytest.mark.parametrize("name", ["burgers", "diffusion-advection"])
def test_problems_in_two_dimensions(name):
    problem = pinn(name, "windows", count="2x2", coarse=True, points=256, width=6, kind="residual")
    f, x = problem.objective(), rough(problem.objective().size)
    points = problem.collocation[0]
    expected = explicit_loss(problem.window_model, x.clone().requires_grad_(), points).detach()
    torch.testing.assert_close(f.value(x), expected)
    d = problem.decomposition(5)
    local = d.models(f, x, None).value_and_gradient(d.gather(x))
    torch.testing.assert_close(local[0], expected.expand(5))
    torch.testing.assert_close(d.scatter(local[1]), f.gradient(x))
    levels = problem.hierarchy(3)
    assert [level.objective.total for level in levels.levels] == [256, 64, 16]
    torch.testing.assert_close(levels[1].objective.value(x), expected, rtol=0.2, atol=0)
    exact = problem.test[1]
    u = explicit(problem.window_model, x, problem.test[0])[:, 0]
    assert problem.metrics(x)["relative_l2"] == pytest.approx(float((u - exact).norm() / exact.norm()))


def test_advice():
    problem = pinn("burgers", "windows", count=3, coarse=True, points=100)
    assert problem.settings("adam")["lr"] == 5e-3
    assert problem.settings("apts") == {"parts": 4, "overlap": 0}
    assert problem.settings("mspqn") == {"parts": 4, "overlap": 0, "local_steps": 10, "global_steps": 10}


SCRIPT = """
    import torch
    from mldd.ranks import SERIAL, world
    from tests.helpers import pinn
    from mldd.loop import Stop, minimise
    from mldd.solvers import Adam
    from mldd.solvers.parts import BatchLBFGS
    from mldd.solvers import NonlinearSchwarz

    assert world().ranks == 2

    small = {"count": 5, "points": 60, "depth": 3, "width": 5}

    def run(comm, make, **options):
        problem = pinn("poisson1d", "windows", unit=True, comm=comm, **small, **options)
        solver = make(problem, comm)
        result = minimise(problem.objective(), problem.initial(0), solver, stop=Stop(4), comm=comm)
        return result.x, result.record

    def schwarz(order):
        return lambda p, comm: NonlinearSchwarz(
            p.decomposition(p.window_model.windows), local=BatchLBFGS(), local_steps=2, order=order, comm=comm)

    for make in (lambda p, comm: Adam(1e-2), schwarz("additive"), schwarz("multiplicative")):
        for coarse in (False, True):
            x, record = run(SERIAL, make, coarse=coarse)
            y, again = run(world(), make, coarse=coarse)
            assert float((x - y).abs().max()) < 1e-7 * float(x.abs().max()), float((x - y).abs().max())
            assert again.cost.synchronisations == record.cost.synchronisations
    print("same")
"""


@needs_mpi
@pytest.mark.mpi
def test_two_ranks_are_one():
    assert together(2, SCRIPT).count("same") == 2
