"""Layouts are views; module objectives evaluate without a copy and leave the module as it was."""

import pytest
import torch
from torch import nn

from mldd.algebra import Layout, Objective, counting
from mldd.algebra.flatten import ModuleObjective, flatten
from mldd.loop import Stop, minimise


def net(*, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).to(dtype)


X, Y = torch.linspace(-1, 1, 15, dtype=torch.float64).view(5, 3), torch.tensor([0, 1, 1, 0, 1])


def loss(module):
    return nn.functional.cross_entropy(module(X), Y)


def test_views_share_memory_and_keep_leading_axes():
    layout = Layout(((2, 3), (3,), (3, 1)), (0, 0, 1))
    x = torch.arange(24.0).view(2, 12)
    views = layout.views(x)
    assert [tuple(v.shape) for v in views] == [(2, 2, 3), (2, 3), (2, 3, 1)]
    views[1][1, 0] = -1.0
    assert x[1, 6] == -1.0
    assert torch.equal(layout.pack(views), x)
    assert layout.blocks == (9, 3)
    assert layout.slices == (slice(0, 9), slice(9, 12))
    assert layout.layer.tolist() == [0] * 9 + [1] * 3
    assert layout.offsets == [0, 6, 9, 12]


def test_pack_appends():
    layout = Layout(((2,), (1,)))
    assert layout.pack([torch.ones(2), torch.zeros(1)], torch.tensor([5.0])).tolist() == [1.0, 1.0, 0.0, 5.0]


@pytest.mark.parametrize(("shapes", "layers"), [((), ()), (((1,),), (1,)), (((1,), (1,)), (0, 2)), (((1,),), (0, 0))])
def test_layout_refuses(shapes, layers):
    with pytest.raises(ValueError, match="layout needs|`layers` must"):
        Layout(shapes, layers)


def test_flatten_shares_memory():
    module = net()
    before = [p.detach().clone() for p in module.parameters()]
    x = flatten(module)
    assert all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    x.zero_()
    assert all(not p.any() for p in module.parameters())


def test_objective_is_the_loss_of_the_module():
    module = net()
    f = ModuleObjective(module, loss)
    assert isinstance(f, Objective)
    x = f.initial()
    y = x + 0.1
    home = f.flat.clone()
    value, g = f.value_and_gradient(y)
    assert torch.equal(f.flat, home)
    assert all(p.untyped_storage().data_ptr() == f.flat.untyped_storage().data_ptr() for p in module.parameters())
    f.load(y)
    direct = loss(module)
    direct.backward()
    assert torch.equal(value, direct.detach())
    assert torch.equal(f.value(y), value)
    assert torch.equal(g, torch.cat([p.grad.flatten() for p in module.parameters()]))


def test_evaluation_copies_nothing():
    seen = []

    def watching(module):
        seen.extend(p.untyped_storage().data_ptr() for p in module.parameters())
        return loss(module)

    f = ModuleObjective(net(), watching)
    y = f.initial() + 1
    f.value_and_gradient(y)
    assert set(seen) == {y.untyped_storage().data_ptr()}


def test_module_is_put_back_after_an_error():
    def fails(module):
        raise RuntimeError("no loss")

    f = ModuleObjective(net(), fails)
    with pytest.raises(RuntimeError, match="no loss"):
        f.gradient(f.initial() + 1)
    assert all(p.untyped_storage().data_ptr() == f.flat.untyped_storage().data_ptr() for p in f.module.parameters())


def test_hessian_product():
    f = ModuleObjective(net(), loss)
    x, v = f.initial(), torch.randn(f.size, dtype=torch.float64)
    h = 1e-6
    expected = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
    assert torch.allclose(f.hessian_product(x, v), expected, atol=1e-8)


def test_frozen_unused_and_shared_parameters():
    module = nn.ModuleDict({"a": nn.Linear(3, 3), "b": nn.Linear(3, 3), "frozen": nn.Linear(2, 2)})
    module["b"].weight = module["a"].weight
    module["frozen"].requires_grad_(False)
    f = ModuleObjective(module, lambda m: (m["a"](torch.ones(3)) ** 2).sum())
    assert f.size == 9 + 3 + 3
    g = f.gradient(f.initial())
    assert g[:12].any()
    assert not g[12:].any()  # b's bias is not used


def test_refuses_modules_without_parameters_or_of_two_dtypes():
    with pytest.raises(ValueError, match="trainable parameter"):
        flatten(nn.ReLU())
    with pytest.raises(ValueError, match="one dtype"):
        flatten(nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1).double()))


def test_counts():
    f = ModuleObjective(net(), loss)
    x = f.initial()
    with counting() as cost:
        f.value(x)
        f.gradient(x)
        f.hessian_product(x, x)
    assert (cost.values, cost.gradients, cost.work) == (1, 1, pytest.approx(1 / 3 + 1 + 2))


def test_minimise_trains_a_module():
    from mldd.solvers import AdaGrad

    f = ModuleObjective(net(), loss)
    result = minimise(f, f.initial(), AdaGrad(), stop=Stop(max_steps=50))
    assert f.value(result.x) < f.value(f.initial()) - 0.05
