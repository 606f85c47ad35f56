"""Fully connected networks: against torch, batches, levels, subdomains, mini-batches, bad options."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from mldd.algebra import counting, sampled
from mldd.loop import Stop, minimise
from mldd.problems.images import Digits
from mldd.problems.nets import Classification, Dense, MiniBatches, parse_widths
from mldd.solvers import Sgd


@pytest.fixture(scope="module")
def digits():
    pytest.importorskip("sklearn")
    return Digits(hidden="16-8", samples=200)


def small(seed=0, activation="tanh"):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(40, 6, generator=generator, dtype=torch.float64)
    return Classification.of(inputs, torch.arange(40) % 3, (5, 4), activation)


@pytest.mark.parametrize("activation", ["tanh", "relu", "sigmoid"])
def test_against_torch(activation):
    f = small(activation=activation)
    x = f.initial(1)
    act = {"tanh": nn.Tanh, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}[activation]
    module = nn.Sequential(nn.Linear(6, 5), act(), nn.Linear(5, 4), act(), nn.Linear(4, 3)).double()
    with torch.no_grad():
        for parameter, view in zip(module.parameters(), f.net.layout.views(x), strict=True):
            parameter.copy_(view)
    expected = nn.functional.cross_entropy(module(f.inputs), f.labels)
    expected.backward()
    value, g = f.value_and_gradient(x)
    assert torch.allclose(value, expected.detach(), rtol=1e-13)
    assert torch.allclose(f.value(x), value, rtol=1e-13)
    assert torch.allclose(g, torch.cat([p.grad.flatten() for p in module.parameters()]), atol=1e-14)


def test_a_batch_is_a_loop():
    f = small()
    x = torch.stack([f.initial(seed) for seed in range(3)])
    values, g = f.value_and_gradient(x)
    products = f.hessian_product(x, g)
    for k in range(3):
        value, row = f.value_and_gradient(x[k])
        assert torch.allclose(values[k], value)
        assert torch.allclose(g[k], row, atol=1e-14)
        assert torch.allclose(products[k], f.hessian_product(x[k], g[k]), atol=1e-14)
    assert torch.allclose(f.value(x), values)


def test_hessian_product():
    f = small()
    x, v, h = f.initial(0), torch.randn(f.size, dtype=torch.float64), 1e-6
    expected = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
    assert torch.allclose(f.hessian_product(x, v), expected, atol=1e-8)


def test_counts_rows_of_a_batch():
    f = small()
    x = f.initial(0)
    with counting() as cost:
        f.gradient(x)
        f.gradient(x.expand(3, -1))
        f.value(x)
    assert (cost.gradients, cost.values, cost.work) == (4, 1, pytest.approx(4 + 1 / 3))


def test_digits(digits):
    f, x = digits.objective(), digits.initial(0)
    assert f.size == 64 * 16 + 16 + 16 * 8 + 8 + 8 * 10 + 10
    assert set(digits.metrics(x)) == {"train_accuracy", "test_accuracy"}
    for _ in range(150):
        x = x - 1.0 * f.gradient(x)
    found = digits.metrics(x)
    assert found["train_accuracy"] > 0.9
    assert found["test_accuracy"] > 0.7


def test_benchmark_network():
    pytest.importorskip("sklearn")
    assert Digits().objective().size == 17226


def test_levels_are_nested_subsets(digits):
    hierarchy = digits.hierarchy(3)
    assert [len(level.objective.inputs) for level in hierarchy.levels] == [200, 100, 50]
    assert torch.equal(hierarchy[1].objective.inputs, hierarchy[0].objective.inputs[:100])
    with counting() as cost:
        hierarchy[2].objective.gradient(digits.initial(0))
    assert (cost.gradients, cost.work) == (0, 0.25)
    for levels in (0, 6):
        with pytest.raises(ValueError, match=r"`levels` must be in 1\.\.5"):
            digits.hierarchy(levels)


@pytest.mark.parametrize(("parts", "overlap"), [(1, 0), (2, 0), (3, 0), (3, 1)])
def test_layers_as_subdomains(digits, parts, overlap):
    f, x = digits.objective(), digits.initial(0)
    d = digits.decomposition(parts, overlap)
    g = f.gradient(x)
    models = d.models(f, x, None)
    with counting() as cost:
        local = models.gradient(d.gather(x))
    assert torch.allclose(local, d.gather(g) * d.valid, atol=1e-14)
    assert (cost.gradients, cost.work) == (0, parts)
    assert torch.allclose(d.scatter(d.weights("wasm") * d.gather(g)), g)
    assert torch.allclose(d.scatter(d.weights("ras") * d.gather(g)), g)


# ------------------------------------------------------------------------------------------------ parts of the data


def whole(problem, rows):
    """Return the plain loss over some of the samples, made by torch's own functions."""

    def loss(x):
        images, labels = problem._permuted
        return nn.functional.cross_entropy(problem.net.outputs(problem.net.layout.views(x), images[rows]), labels[rows])

    return loss


def gradient(loss, x):
    x = x.clone().requires_grad_()
    return torch.autograd.grad(loss(x), x)[0]


@pytest.mark.parametrize(("parts", "overlap"), [(1, 0), (2, 0), (3, 7), (4, 200)])
def test_parts_of_the_data(digits, parts, overlap):
    problem = replace(digits, subdomains="data", samples=201)
    f, x = problem.objective(), problem.initial(0)
    d, g = problem.decomposition(parts, overlap), f.gradient(x)
    cuts = [k * 201 // parts for k in range(parts + 1)]
    ranges = [range(max(0, a - overlap), min(201, b + overlap)) for a, b in zip(cuts, cuts[1:], strict=False)]
    losses = [whole(problem, torch.tensor(rows)) for rows in ranges]
    y = d.gather(x) + 0.1 * torch.randn(parts, f.size, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    own, corrected = d.models(f, x, None), d.models(f, x, g)
    with counting() as cost:
        values, gradients = own.value_and_gradient(y)
    assert cost.work == pytest.approx(sum(map(len, ranges)) / 201)
    assert cost.gradients == 0
    for k, loss in enumerate(losses):
        assert torch.allclose(values[k], loss(y[k]), rtol=1e-13)
        assert torch.allclose(gradients[k], gradient(loss, y[k]), atol=1e-14)
        delta = g - gradient(loss, x)
        assert torch.allclose(corrected.gradient(y)[k], gradients[k] + delta, atol=1e-14)
        assert torch.allclose(corrected.value(y)[k], values[k] + delta @ (y[k] - x), rtol=1e-12)
        alone = d.alone(k)
        assert torch.allclose(alone.models(f, x, g).gradient(y[k : k + 1]), corrected.gradient(y)[k], atol=1e-14)
    assert torch.allclose(corrected.gradient(d.gather(x)), g.expand(parts, -1), atol=1e-15)
    v = torch.randn(parts, f.size, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    expected = (corrected.gradient(y + 1e-6 * v) - corrected.gradient(y - 1e-6 * v)) / 2e-6
    assert torch.allclose(corrected.hessian_product(y, v), expected, atol=1e-7)
    assert torch.allclose(d.scatter(d.weights(d.usual) * d.gather(g)), g)
    nobody = replace(d, local=range(parts, parts))
    assert nobody.models(f, x, g).gradient(nobody.gather(x)).shape == (0, f.size)


# ------------------------------------------------------------------------------------------------ mini-batches


def test_mini_batches_pass_through_all_samples():
    batches = MiniBatches(10, 3, key=(5,))
    for epoch in range(3):
        rows = torch.cat([batches.rows(3 * epoch + k) for k in range(3)])
        assert len(rows) == 9 == len(rows.unique())
    assert not torch.equal(batches.rows(0), batches.rows(3))
    assert not torch.equal(batches.rows(0), MiniBatches(10, 3, key=(6,)).rows(0))
    growing = MiniBatches(10, 2, 1.6)
    assert [len(growing.rows(k)) for k in range(13)] == [2] * 5 + [3] * 3 + [5] * 2 + [8] + [10] * 2
    assert torch.equal(growing.rows(12), torch.arange(10))


@pytest.mark.parametrize("sampling", ["nested", "shared", "independent"])
def test_what_levels_and_parts_see_of_a_mini_batch(digits, sampling):
    problem = replace(digits, subdomains="data", batch=40, sampling=sampling)
    f, x = problem.objective(3), problem.initial(0)
    assert torch.equal(problem.objective(3).drawn.rows, sampled(problem.objective(), 3).drawn.rows)
    assert torch.allclose(f.gradient(x), gradient(whole(problem, f.drawn.rows), x), atol=1e-14)
    assert torch.allclose(problem.objective().value(x), whole(problem, slice(200))(x))

    levels = [sampled(level.objective, 3) for level in problem.hierarchy(3).levels]
    rows = [level.drawn.rows for level in levels]
    assert torch.equal(rows[0], f.drawn.rows)
    assert [len(r) for r in rows] == ([40] * 3 if sampling == "shared" else [40, 20, 10])
    assert all((torch.equal(r, rows[0][: len(r)])) == (sampling != "independent") for r in rows[1:])
    assert sampling != "independent" or (int(rows[1].max()) < 100 and int(rows[2].max()) < 50)
    with counting() as cost:
        levels[2].gradient(x)
        f.gradient(x)
    assert (cost.gradients, cost.work) == (1, (len(rows[2]) + 40) / 200)

    d, g = problem.decomposition(3), f.gradient(x)
    models = d.models(f, x, None)
    assert torch.allclose(d.models(f, x, g).gradient(d.gather(x)), g.expand(3, -1), atol=1e-15)
    if sampling == "independent":
        other = models.sample(1)
        assert models.f.inputs.shape == other.inputs.shape == (3, 13, 64)
        images = [{tuple(i.tolist()) for i in part} for part in torch.tensor_split(problem._permuted[0][:200], 3)]
        for k in range(3):
            seen = [{tuple(i.tolist()) for i in m.inputs[k]} for m in (models.f, other)]
            assert seen[0] != seen[1] and seen[0] | seen[1] <= images[k]
        return
    cuts = [k * 40 // 3 for k in range(4)]
    for k, (a, b) in enumerate(zip(cuts, cuts[1:], strict=False)):
        assert torch.allclose(models.value(d.gather(x))[k], whole(problem, f.drawn.rows[a:b])(x))


def test_layers_see_the_whole_mini_batch(digits):
    problem = replace(digits, batch=40)
    f, x, d = problem.objective(2), problem.initial(0), problem.decomposition(2)
    assert torch.allclose(d.models(f, x, None).gradient(d.gather(x)), d.gather(f.gradient(x)) * d.valid, atol=1e-14)


def test_training_with_growing_mini_batches(digits):
    problem = replace(digits, batch=50, growth=2.0)
    result = minimise(problem.objective(), problem.initial(0), Sgd(0.5), stop=Stop(10))
    # 4 of 50, 2 of 100, then all 200: the last gradient belongs to step 10
    assert result.record.cost.work_units == pytest.approx(4 * 0.25 + 2 * 0.5 + 5)
    full = problem.objective()
    assert float(full.value(result.x)) < 0.8 * float(full.value(problem.initial(0)))


def test_refuses(digits):
    for wrong, words in (
        ({"hidden": "0"}, "`hidden`"),
        ({"hidden": "a-b"}, "`hidden`"),
        ({"activation": "step"}, "`activation` must be one of tanh"),
        ({"samples": 1797}, "`samples` must be in"),
        ({"dtype": "int"}, "`dtype` must be one of"),
        ({"subdomains": "graph"}, "`subdomains` must be one of parameters, data"),
        ({"sampling": "fresh"}, "`sampling` must be one of nested, shared, independent"),
        ({"batch": 1401}, r"`batch` must be in 0\.\.1400"),
        ({"batch": 10, "growth": 0.5}, "`growth` must be >= 1"),
        ({"growth": 2.0}, "`growth` needs mini-batches"),
    ):
        with pytest.raises(ValueError, match=words):
            Digits(**wrong)
    with pytest.raises(ValueError, match=r"`parts` must be in 1\.\.3 \(the layers of the network\), got 4"):
        digits.decomposition(4)
    of_data = replace(digits, subdomains="data")
    for parts, overlap, words in ((201, 0, r"`parts` must be in 1\.\.200 \(the samples\)"), (2, -1, "`overlap`")):
        with pytest.raises(ValueError, match=words):
            of_data.decomposition(parts, overlap)
    with pytest.raises(ValueError, match=r"`parts` must be in 1\.\.8 \(the mini-batch\), got 9"):
        replace(of_data, batch=8).decomposition(9)
    with pytest.raises(ValueError, match="`widths`"):
        Dense((3, 0))
    with pytest.raises(ValueError, match="finite"):
        Classification.of(torch.full((2, 2), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`labels` be int64"):
        Classification.of(torch.ones(2, 2), torch.ones(2))
    assert parse_widths("7") == (7,)
