"""Physics-informed networks: residuals, built-in conditions, derivatives, levels, subdomains, mini-batches."""

import math
from dataclasses import replace

import pytest
import torch

from mldd.algebra import LocalRestrictions, counting, sampled
from mldd.loop import Stop, minimise
from mldd.problems.pinns import Jets
from mldd.problems.pinns.equations import equation, hammersley, jets_of
from mldd.problems.pinns.layer_models import LayerModels
from mldd.problems.pinns.pinn_options import PRESETS
from mldd.solvers import LBFGS, Adam
from tests.helpers import pinn

NAMES = list(PRESETS)
IN_TIME = ["burgers", "klein-gordon", "allen-cahn"]


def small(name="burgers", **options):
    return pinn(name, **({"depth": 4, "width": 6, "points": 64} | options))


def start(problem, seed=0):
    """Parameters without a zero: biases and slopes count as well."""
    x = problem.initial(seed)
    return x + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def nested(function, points, orders):
    """Derivatives by nested automatic differentiation that keeps the graph of the parameters."""
    points = points.clone().requires_grad_()
    value = function(points)
    first, second = [], []
    for k, order in enumerate(orders):
        slope = torch.autograd.grad(value.sum(), points, create_graph=True)[0][:, k : k + 1]
        bend = torch.autograd.grad(slope.sum(), points, create_graph=True)[0][:, k : k + 1] if order == 2 else None
        first.append(slope)
        second.append(bend)
    return Jets(value, tuple(first), tuple(second))


def forward(problem, parameters, points):
    """The network by its definition."""
    tensors = list(parameters)
    state, hidden = points, problem.net.layers - 1
    for layer in range(hidden):
        if problem.net.kind == "dense":
            weight, bias, slope = tensors[2 * layer], tensors[2 * layer + 1], 1.0
        else:
            weight, bias, a = tensors[3 * layer : 3 * layer + 3]
            slope = 10 * a
        new = torch.tanh(slope * (state @ weight.T + bias))
        plain = problem.net.kind == "dense" or layer == 0
        state = new if plain else state + problem.net.horizon / (hidden - 1) * new
    return state @ tensors[-2].T + tensors[-1]


def exact_jets(name, points):
    """Values and derivatives of closed forms."""
    if name == "poisson1d":
        w = math.pi
        return Jets(torch.sin(w * points) / w**2, (torch.cos(w * points) / w,), (-torch.sin(w * points),))
    t, x = points[:, :1], points[:, 1:]
    zero = torch.zeros_like(x)
    return Jets(x * torch.cos(t), (-x * torch.sin(t), torch.cos(t)), (-x * torch.cos(t), zero))


@pytest.mark.parametrize("name", ["poisson1d", "klein-gordon"])
def test_closed_forms_have_no_residual(name):
    e = equation(name)
    points = e.scaled(hammersley(50, e.dim))
    jets = exact_jets(name, points)
    assert torch.allclose(jets.value[:, 0], e.solution(points))
    assert float(e.residual(jets, points).abs().max()) < 1e-12
    wrong = replace(jets, value=jets.value + 0.1, second=tuple(b + 0.1 for b in jets.second))
    assert float(e.residual(wrong, points).abs().max()) > 0.01


@pytest.mark.parametrize("name", ["burgers", "diffusion-advection", "allen-cahn"])
def test_references_have_no_residual(name):
    e, h = equation(name), 1e-3
    points = e.scaled(0.1 + 0.8 * hammersley(200))
    points = points[points[:, 1].abs() > 0.1]  # where differences resolve the shock of Burgers' equation

    def u(k, steps):
        moved = points.clone()
        moved[:, k] += steps * h
        return e.solution(moved)[:, None]

    first = [(8 * (u(k, 1) - u(k, -1)) - u(k, 2) + u(k, -2)) / (12 * h) for k in (0, 1)]
    second = [(16 * (u(k, 1) + u(k, -1)) - u(k, 2) - u(k, -2) - 30 * u(k, 0)) / (12 * h**2) for k in (0, 1)]
    assert float(e.residual(Jets(u(0, 0), tuple(first), tuple(second)), points).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", ["dense", "residual"])
@pytest.mark.parametrize("name", NAMES)
def test_residuals_against_nested_differentiation(name, kind):
    problem = small(name, kind=kind)
    f, x = problem.objective(), start(problem)
    e, leaves = f.equation, f.net.layout.leaves(x)

    def u(points):
        return e.lift(points) + e.factor(points) * forward(problem, leaves, points)

    expected = e.residual(nested(u, f.points, e.orders), f.points)
    assert torch.allclose(f.residuals(x), expected[:, 0], rtol=1e-10, atol=1e-11)
    loss = expected.square().mean()
    value, g = f.value_and_gradient(x)
    assert torch.allclose(value, loss.detach(), rtol=1e-12)
    assert torch.allclose(f.value(x), value, rtol=1e-12)
    by_hand = f.net.layout.pack(torch.autograd.grad(loss, leaves))
    assert torch.allclose(g, by_hand, rtol=1e-9, atol=1e-10 * float(g.abs().max()))
    assert torch.allclose(problem.predict(x, f.points), u(f.points).detach()[:, 0], atol=1e-13)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_and_products_against_differences(name):
    problem = small(name)
    f, x, h = problem.objective(), start(problem), 1e-6
    v = torch.randn(len(x), generator=torch.Generator().manual_seed(3), dtype=x.dtype)
    value, g = f.value_and_gradient(x)
    slope = (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)
    assert float(g @ v) == pytest.approx(float(slope), rel=1e-6, abs=1e-7 * float(value))
    expected = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
    assert torch.allclose(f.hessian_product(x, v), expected, rtol=1e-5, atol=1e-6 * float(expected.abs().max()))


def test_a_batch_is_a_loop():
    problem = small("klein-gordon")
    f = problem.objective()
    x = torch.stack([start(problem, seed) for seed in range(3)])
    values, g = f.value_and_gradient(x)
    products = f.hessian_product(x, g)
    for k in range(3):
        value, row = f.value_and_gradient(x[k])
        assert torch.allclose(values[k], value)
        assert torch.allclose(g[k], row, rtol=1e-10)
        assert torch.allclose(products[k], f.hessian_product(x[k], g[k]), rtol=1e-9)
    assert torch.allclose(f.value(x), values)


@pytest.mark.parametrize("name", NAMES)
def test_conditions_hold_for_any_parameters(name):
    problem = small(name)
    x, e = 5 * start(problem), equation(name)
    unit = hammersley(40, e.dim)
    for k in range(e.dim):
        for side in (0.0, 1.0):
            if e.dim == 2 and name in IN_TIME and (k, side) == (0, 1.0):
                continue  # the end of time is free
            on_side = unit.clone()
            on_side[:, k] = side
            points = e.scaled(on_side)
            assert torch.allclose(problem.predict(x, points), e.solution(points), atol=1e-11)
    inner = e.scaled(unit)
    assert float((problem.predict(x, inner) - problem.predict(problem.initial(1), inner)).abs().max()) > 1e-2


def test_klein_gordon_starts_at_rest_and_does_not_contain_its_solution():
    problem = small("klein-gordon")
    x, points, h = start(problem), equation("klein-gordon").scaled(hammersley(40)), 1e-4
    at_rest = points.clone()
    at_rest[:, 0] = h
    assert float((problem.predict(x, at_rest) - points[:, 1]).abs().max()) < 1e-5  # of order h^2
    x[-7:] = 0.0  # the last layer: u = g
    assert float((problem.predict(x, points) - equation("klein-gordon").solution(points)).abs().max()) > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_factors_are_at_most_one(name):
    e = equation(name)
    grid = torch.cartesian_prod(*[torch.linspace(0, 1, 101, dtype=torch.float64)] * e.dim).view(-1, e.dim)
    factor = e.factor(e.scaled(grid))
    assert float(factor.max()) == pytest.approx(1.0, abs=1e-12)
    assert float(factor.min()) >= 0.0


def test_jets_of_functions():
    points = hammersley(5) + 0.1
    jets = jets_of(lambda p: p[:, :1] ** 3 * p[:, 1:], points, (2, 1))
    x, y = points[:, :1], points[:, 1:]
    assert torch.allclose(jets.first[0], 3 * x**2 * y)
    assert torch.allclose(jets.second[0], 6 * x * y)
    assert torch.allclose(jets.first[1], x**3)
    assert jets.second[1] is None
    constant = jets_of(lambda p: torch.zeros_like(p[:, :1]), points, (2, 0))
    assert torch.equal(constant.second[0], torch.zeros(5, 1, dtype=torch.float64))


def test_hammersley():
    points = hammersley(256)
    assert torch.equal(points[:, 1].sort().values, torch.arange(256) / 256)  # a permutation of i / N
    for level in range(9):  # every elementary interval of volume 1/N holds one point: a (0, 8, 2)-net
        boxes = (points[:, 0] * 2**level).long() * 2 ** (8 - level) + (points[:, 1] * 2 ** (8 - level)).long()
        assert len(boxes.unique()) == 256
    from scipy.stats import qmc

    random = torch.rand(500, 2, generator=torch.Generator().manual_seed(0))
    assert qmc.discrepancy(hammersley(500).numpy()) < 0.1 * qmc.discrepancy(random.double().numpy())
    assert torch.allclose(hammersley(10, 3)[:, 2], ternary(10))
    assert torch.equal(hammersley(3, 1)[:, 0], torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64))


def ternary(count):
    digits = [[i % 3, i // 3 % 3, i // 9] for i in range(count)]
    return torch.tensor([a / 3 + b / 9 + c / 27 for a, b, c in digits], dtype=torch.float64)


@pytest.mark.parametrize(
    ("name", "size", "layers"),
    [
        ("poisson1d", 3001, 9),
        ("burgers", 2608, 8),
        ("diffusion-advection", 20610, 10),
        ("klein-gordon", 10406, 6),
        ("allen-cahn", 16902, 6),
    ],
)
def test_published_networks(name, size, layers):
    problem = pinn(name)
    f = problem.objective()
    assert (f.size, len(f.sizes), f.total) == (size, layers, 102 if name == "poisson1d" else 10_000)
    assert problem.settings("adam")["lr"] == PRESETS[name].rate
    assert problem.settings("aspqn")["parts"] == layers
    assert problem.settings("unknown") == {}


def test_penalised_ends():
    problem = pinn("poisson1d", boundary="soft", frequency=2.5)
    f, x = problem.objective(), start(problem)
    inside = torch.linspace(0, 1, 100, dtype=torch.float64)[:, None]
    leaves, w = f.net.layout.leaves(x), 2.5 * math.pi
    bend = nested(lambda p: forward(problem, leaves, p), inside, (2,)).second[0]
    ends = forward(problem, leaves, torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    target = torch.tensor([[0.0], [math.sin(w) / w**2]], dtype=torch.float64)
    expected = ((bend + torch.sin(w * inside)).square().sum() + (ends - target).square().sum()) / 102
    assert torch.allclose(f.value(x), expected.detach(), rtol=1e-10)
    assert torch.allclose(problem.predict(x, torch.tensor([[0.0], [1.0]])), ends.detach()[:, 0])


def test_metrics():
    problem = small("klein-gordon")
    x = start(problem)
    points, exact = problem.test
    assert points.shape == (200 * 400, 2)
    error = problem.predict(x, points) - exact
    found = problem.metrics(x)
    assert found["relative_l2"] == pytest.approx(float(error.norm() / exact.norm()))
    assert found["relative_l2_paper"] == pytest.approx(float(error.norm() / problem.predict(x, points).norm()))
    assert pinn("poisson1d").test[0].shape == (501, 1)


@pytest.mark.parametrize("boundary", ["hard", "soft"])
def test_training_solves_poisson(boundary):
    problem = pinn("poisson1d", depth=3, width=10, points=40, boundary=boundary)
    f = problem.objective()
    done = minimise(f, problem.initial(0), LBFGS(), stop=Stop(max_steps=300))
    assert float(f.value(done.x)) < 1e-5
    assert problem.metrics(done.x)["relative_l2"] < 2e-2


@pytest.mark.parametrize("name", NAMES)
def test_training_reduces_the_loss(name):
    problem = small(name, batch=32)
    f = problem.objective()
    x = problem.initial(0)
    done = minimise(f, x.clone(), Adam(lr=3e-3), stop=Stop(max_steps=200))
    assert float(f.value(done.x)) < 0.95 * float(f.value(x))


def test_mini_batches():
    problem = small(batch=20)
    f, x = problem.objective(), start(problem)
    with counting() as cost:
        first = sampled(f, 0)
        value, g = first.value_and_gradient(x)
    assert (cost.gradients, cost.work) == (1, 20 / 64)
    assert torch.equal(problem.objective(0).points, first.points)
    assert not torch.equal(sampled(f, 1).points, first.points)
    whole = [sampled(f, step) for step in range(3)]
    assert len(torch.cat([g.points for g in whole]).unique(dim=0)) == 60  # no point twice in an epoch
    assert torch.allclose(value, first.residuals(x).square().mean())
    local = problem.decomposition(2).models(first, x, None)
    assert torch.allclose(local.gradient(problem.decomposition(2).gather(x))[0, :5], g[:5], atol=1e-13)


def test_levels_have_fewer_points():
    problem = small(points=1024)
    hierarchy = problem.hierarchy(3)
    assert [level.objective.total for level in hierarchy.levels] == [1024, 256, 64]
    x = start(problem)
    values = [float(level.objective.value(x)) for level in hierarchy.levels]
    assert values[1] == pytest.approx(values[0], rel=0.1)
    with counting() as cost:
        hierarchy[1].objective.gradient(x)
    assert (cost.gradients, cost.work) == (0, 0.25)
    assert [level.objective.total for level in pinn("poisson1d").hierarchy(3).levels] == [102, 51, 25]
    for levels in (0, 5):
        with pytest.raises(ValueError, match=r"`levels` must be in 1\.\.4 for 1024 points"):
            problem.hierarchy(levels)


@pytest.mark.parametrize(("parts", "overlap"), [(1, 0), (2, 0), (4, 0), (4, 1)])
def test_layers_as_subdomains(parts, overlap):
    problem = small("allen-cahn")
    f, x = problem.objective(), start(problem)
    d = problem.decomposition(parts, overlap)
    g = f.gradient(x)
    models = d.models(f, x, None)
    y = d.gather(x)
    with counting() as cost:
        local = models.gradient(y)
    assert torch.allclose(local, d.gather(g) * d.valid, atol=1e-12)
    assert (cost.gradients, cost.work) == (0, parts)
    moved = y + 0.01 * d.valid
    for row, value in enumerate(models.value(moved)):
        full = x.clone()
        full[d.subdomains[row].indices] = moved[row, : len(d.subdomains[row].indices)]
        assert torch.allclose(value, f.value(full), rtol=1e-11)
    assert torch.allclose(d.scatter(d.weights("ras") * d.gather(g)), g)


@pytest.mark.parametrize("kind", ["dense", "residual"])
@pytest.mark.parametrize(("parts", "overlap"), [(1, 0), (2, 0), (4, 0), (4, 1)])
def test_models_of_layers_that_begin_at_their_first(kind, parts, overlap):
    problem = small("klein-gordon", kind=kind, points=1500)  # two pieces
    f, x = problem.objective(), start(problem)
    d = problem.decomposition(parts, overlap)
    plain, models = LocalRestrictions(f, d, x), d.models(f, x, None)
    assert isinstance(models, LayerModels)
    v = torch.randn(d.indices.shape, generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    for y in (d.gather(x), d.gather(x) + 0.1 * v * d.valid):  # the state below must survive evaluations
        expected, g = plain.value_and_gradient(y)
        with counting() as cost:
            value, found = models.value_and_gradient(y)
        assert torch.allclose(value, expected, rtol=1e-13)
        assert torch.allclose(found, g, rtol=1e-10, atol=1e-12 * float(g.abs().max()))
        assert torch.allclose(models.gradient(y), found, rtol=1e-12)
        assert torch.allclose(models.value(y), expected, rtol=1e-13)
        assert torch.allclose(models.hessian_product(y, v), plain.hessian_product(y, v))
    works = {(1, 0): 1, (2, 0): (1 + 1 + 0.5) / 3 + (0.5 + 0.5 + 0.5) / 3, (4, 0): 2.0, (4, 1): 10 * 0.25 / 3 + 6.5 / 3}
    assert (cost.gradients, cost.work) == (0, pytest.approx(works[parts, overlap]))


def test_single_precision():
    problem = small("burgers", dtype="float32")
    x = problem.initial(0)
    g = problem.objective().gradient(x)
    assert (x.dtype, g.dtype) == (torch.float32, torch.float32)
    assert torch.allclose(g.double(), small("burgers").objective().gradient(x.double()), rtol=1e-2, atol=1e-4)
    assert 0 < problem.metrics(x)["relative_l2"] < 10


def test_refuses():
    for wrong, words in (
        ({"name": "heat"}, "`name` must be one of poisson1d, burgers"),
        ({"kind": "cnn"}, "`kind` must be one of auto, dense, residual"),
        ({"depth": 1}, r"`depth` must be >= 2 \(or 0"),
        ({"width": -1}, "`width` must be >= 1"),
        ({"points": 3}, "`points` must be >= 4"),
        ({"batch": 103}, r"`batch` must be in 0\.\.102"),
        ({"frequency": 0.0}, "`frequency` must be > 0"),
        ({"dtype": "half"}, "`dtype` must be one of"),
        ({"boundary": "weak"}, "`boundary` must be one of hard, soft"),
        ({"name": "burgers", "boundary": "soft"}, "`poisson` is for poisson1d, got .* for burgers"),
    ):
        with pytest.raises(ValueError, match=words):
            pinn(**({"name": "poisson1d"} | wrong))
    for parts in (0, 5):
        with pytest.raises(ValueError, match=r"`parts` must be in 1\.\.4 \(the layers of the network\)"):
            small().decomposition(parts)
    with pytest.raises(ValueError, match="`overlap` must be >= 0"):
        small().decomposition(2, -1)
