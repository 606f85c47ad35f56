"""Layouts are views; module objectives evaluate without a copy and leave the module as it was."""

import pytest
import torch
from torch import Tensor, nn

from mldd.algebra import Layout, ModuleObjective, Objective, counting, joined
from mldd.algebra.flatten import flatten
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


class Wrapped(Tensor):
    """A kind of tensor that has no memory of its own in the flat vector."""


@pytest.mark.parametrize("tensor", [torch.zeros(2, 2).to_sparse(), torch.zeros(2).as_subclass(Wrapped)])
def test_joined_refuses_tensors_of_other_kinds(tensor):
    with pytest.raises(ValueError, match="parameters must be ordinary dense tensors, whole on every rank, got "):
        joined([nn.Parameter(tensor)])


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


# ------------------------------------------------------------------------------------------------ kinds of losses


def test_layout_of_numbers():
    layout = Layout(((), (2,), ()))
    x = torch.arange(8.0).view(2, 4)
    views = layout.views(x)
    assert [tuple(v.shape) for v in views] == [(2,), (2, 2), (2,)]
    assert torch.equal(layout.pack(views), x)
    assert torch.equal(layout.pack(layout.views(x[0]), torch.tensor(7.0)), torch.tensor([0.0, 1.0, 2.0, 3.0, 7.0]))


def heat(module):
    """The loss of u' = -k u with a coefficient k of shape (): it differentiates by its input, and needs a number."""
    t = torch.linspace(0, 1, 7, dtype=torch.float64)[:, None].requires_grad_()
    u = module["net"](t)
    (du,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    return (du + module["k"].weight * u).square().mean() + (u[0] - 1).square().sum()


def curve():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()


class Number(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))


def penalised(module):
    """A loss with the squared norm of its own gradient by the parameters."""
    plain = loss(module)
    return plain + 0.1 * sum(
        g.square().sum() for g in torch.autograd.grad(plain, module.parameters(), create_graph=True)
    )


@pytest.mark.parametrize(
    "f",
    [
        lambda: ModuleObjective(nn.ModuleDict({"net": curve(), "k": Number()}), heat),
        lambda: ModuleObjective(net(), penalised),
    ],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.enable_grad])
def test_losses_that_differentiate_inside(f, context):
    f = f()
    x, v = f.initial(), torch.randn(f.size, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    h = 1e-5
    with context():
        value, g = f.value_and_gradient(x)
        assert torch.equal(f.value(x), value) and not value.requires_grad
        slope = (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)
        torch.testing.assert_close(g @ v, slope, rtol=1e-7, atol=1e-9)
        curvature = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
        torch.testing.assert_close(f.hessian_product(x, v), curvature, rtol=1e-6, atol=1e-8)
    assert slope.abs() > 1e-3


def test_a_loss_that_autograd_does_not_see_is_refused():
    f = ModuleObjective(net(), lambda m: loss(m).detach())
    for evaluate in (f.gradient, f.value_and_gradient, lambda x: f.hessian_product(x, x)):
        with pytest.raises(ValueError, match="`loss` must depend on the parameters through autograd, got a constant"):
            evaluate(f.initial())


# ------------------------------------------------------------------------------------------------ one module twice


def test_two_objectives_on_one_module_both_write_into_it():
    module = net()
    first, second = ModuleObjective(module, loss), ModuleObjective(module, lambda m: 2 * loss(m))
    module[0].weight.requires_grad_(False)
    part = ModuleObjective(module, loss)
    module[0].weight.requires_grad_(True)
    x = torch.linspace(-1, 1, first.size, dtype=torch.float64)
    for f in (first, second, first):
        x = x + 1
        assert f.load(x) is module
        assert torch.equal(torch.cat([p.detach().flatten() for p in module.parameters()]), x)
        assert torch.equal(first.initial(), x) and torch.equal(second.initial(), x)
    module[0].weight.requires_grad_(False)
    part.load(torch.zeros(part.size, dtype=torch.float64))
    assert not module[2].weight.any() and torch.equal(module[0].weight.detach().flatten(), x[:12])


def test_memory_that_was_exchanged_is_taken_over():
    module = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Conv2d(2, 2, 2)).double()
    f = ModuleObjective(module, lambda m: m[0].weight[0].sum() + m[1].weight.sum())
    module[0].weight.data = module[0].weight.data.t()  # the same memory with other strides
    module.to(memory_format=torch.channels_last)
    expected = torch.cat([p.detach().flatten() for p in module.parameters()]).clone()
    assert torch.equal(f.initial(), expected)
    f.load(expected + 1)
    assert torch.equal(torch.cat([p.detach().flatten() for p in module.parameters()]), expected + 1)
    module[0].weight.data = torch.zeros(2, 3, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"of shape \(3, 3\) on cpu .* got torch.float64 of shape \(2, 3\)"):
        f.load(expected)


def test_a_module_with_other_parameters_is_refused():
    module = net()
    f = ModuleObjective(module, loss)
    x = f.initial()
    module.load_state_dict({k: v.clone() for k, v in module.state_dict().items()}, assign=True)
    for use in (f.value, f.gradient, f.load):
        with pytest.raises(ValueError, match="must keep the trainable parameters it was given with"):
            use(x)
