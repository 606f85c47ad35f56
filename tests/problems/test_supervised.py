"""Fully connected networks: against torch, batches, levels, layers as subdomains, bad options."""

import pytest
import torch
from torch import nn

from mldd.cost import counting
from mldd.problems.supervised import Classification, Dense, Digits, parse_widths


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
    assert digits.solution() is None
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
    assert (cost.gradients, cost.local_work) == (0, parts)
    assert torch.allclose(d.scatter(d.weights("wasm") * d.gather(g)), g)
    assert torch.allclose(d.scatter(d.weights("ras") * d.gather(g)), g)


def test_refuses(digits):
    for wrong, words in (
        ({"hidden": "0"}, "`hidden`"),
        ({"hidden": "a-b"}, "`hidden`"),
        ({"activation": "step"}, "`activation` must be one of tanh"),
        ({"samples": 1797}, "`samples` must be in"),
        ({"dtype": "int"}, "`dtype` must be one of"),
    ):
        with pytest.raises(ValueError, match=words):
            Digits(**wrong)
    with pytest.raises(ValueError, match=r"`parts` must be in 1\.\.3 \(the layers of the network\), got 4"):
        digits.decomposition(4)
    with pytest.raises(ValueError, match="`widths`"):
        Dense((3, 0))
    with pytest.raises(ValueError, match="finite"):
        Classification.of(torch.full((2, 2), torch.nan), torch.tensor([0, 1]))
    with pytest.raises(ValueError, match="`labels` be int64"):
        Classification.of(torch.ones(2, 2), torch.ones(2))
    assert parse_widths("7") == (7,)
