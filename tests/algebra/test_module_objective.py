"""Evaluations leave a module as it was: buffers, modes, random generators; and are functions of the parameters."""

import pytest
import torch
from torch import nn

from mldd.algebra import FlatModule, ModuleObjective

INPUTS = torch.randn(12, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Counting(nn.Module):
    """It writes to a buffer in one way, and exchanges another one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(1))
        self.register_buffer("nothing", None)

    def forward(self, x):
        self.calls += 1
        self.last = x.detach().sum()
        self.register_buffer("extra", x.detach())
        return x


def noisy():
    torch.manual_seed(1)
    norm = nn.BatchNorm1d(4, dtype=torch.float64)
    return nn.Sequential(nn.Linear(3, 4).double(), norm, nn.Dropout(0.5), nn.Linear(4, 1).double(), Counting())


def loss(module):
    return module(INPUTS).square().mean()


def test_an_evaluation_changes_nothing():
    net = noisy()
    net[1].eval()
    f = ModuleObjective(net, loss)
    x, v = f.initial() + 0.1, torch.ones(f.size, dtype=torch.float64)
    buffers = {name: (b, b.clone(), b._version) for name, b in net.named_buffers()}
    parameters = [p.detach().clone() for p in net.parameters()]
    modes = [m.training for m in net.modules()]
    generator = torch.get_rng_state()
    for evaluate in (f.value, f.gradient, f.value_and_gradient, lambda x: f.hessian_product(x, v)):
        evaluate(x)
        now = dict(net.named_buffers())
        assert list(now) == list(buffers)
        for name, (buffer, value, version) in buffers.items():
            assert now[name] is buffer and torch.equal(buffer, value) and buffer._version == version
        assert "extra" not in net[4]._buffers and net[4].nothing is None
        assert all(torch.equal(p, q) for p, q in zip(net.parameters(), parameters, strict=True))
        assert [m.training for m in net.modules()] == modes
        assert torch.equal(torch.get_rng_state(), generator)


def test_noise_is_a_function_of_its_seed():
    net = noisy()
    f, g = ModuleObjective(net, loss), ModuleObjective(net, loss, noise=1)
    x = f.initial()
    assert torch.equal(f.value(x), f.value_and_gradient(x)[0]) and not torch.equal(f.value(x), g.value(x))
    # dropout as torch's generator makes it from this seed
    torch.manual_seed(1)
    expected = loss(net)
    torch.testing.assert_close(g.value(x), expected.detach(), rtol=1e-12, atol=0)
    h, v = 1e-6, torch.ones(f.size, dtype=torch.float64)
    slope = (g.value(x + h * v) - g.value(x - h * v)) / (2 * h)
    torch.testing.assert_close(g.gradient(x) @ v, slope, rtol=1e-6, atol=1e-8)


def test_modes_hold_inside_alone():
    net = noisy()
    model = FlatModule(net)
    x = model.flat.clone()
    modes = {m: False for m in net.modules()}
    seen = []

    def watching(module):
        seen.append([m.training for m in module.modules()])
        return loss(module)

    value = model.value(x, watching, modes=modes)
    assert not any(seen[0]) and all(m.training for m in net.modules())
    net.eval()
    torch.testing.assert_close(value, loss(net).detach(), rtol=1e-14, atol=0)


def test_what_is_no_number_is_refused():
    net = noisy()
    for wrong, words in ((lambda m: m(INPUTS), r"shape \(12, 1\)"), (lambda m: 3.0, "float")):
        f = ModuleObjective(net, wrong)
        for evaluate in (f.value, f.gradient, lambda x, f=f: f.hessian_product(x, x)):
            with pytest.raises(ValueError, match=f"`loss` must return one number as a tensor, got {words}"):
                evaluate(f.initial())
