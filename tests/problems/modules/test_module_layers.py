"""Layers of torch modules as subdomains: against lists of indices written by hand."""

import pytest
import torch
from torch import nn

from mldd.algebra import ModuleObjective
from mldd.problems.modules import ModuleLayers


class Forecaster(nn.Module):
    """An encoder of two layers, a processor with a scale of its own, a decoder that shares the encoder's first bias."""

    def __init__(self):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(2))
        self.encoder = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2, bias=False))
        self.processor = nn.Module()
        self.processor.scale = nn.Parameter(torch.ones(()))
        self.processor.inner = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.norm.bias.requires_grad_(False)
        self.decoder = nn.Linear(2, 3)
        self.decoder.bias = self.encoder[0].bias

    def forward(self, x):
        return self.decoder(self.norm(self.processor.scale * self.processor.inner(self.encoder(x + self.shift))))


def indices(subdomains):
    return [(s.indices.tolist(), s.indices[s.owned].tolist()) for s in subdomains]


def test_one_layer_per_module_that_holds_parameters():
    layers = ModuleLayers.of(Forecaster())
    assert layers.names == ("", "encoder.0", "encoder.2", "processor", "processor.inner", "norm", "decoder")
    assert layers.layout.blocks == (2, 9, 6, 1, 6, 2, 6)
    assert layers.layout.shapes == ((2,), (3, 2), (3,), (2, 3), (), (2, 2), (2,), (2,), (3, 2))
    assert layers.layout.size == 32


def test_the_layout_is_that_of_the_objective():
    net = Forecaster()
    f = ModuleObjective(net, lambda m: m(torch.ones(4, 2)).square().sum())
    assert ModuleLayers.of(net).layout.shapes == f.layout.shapes


def test_groups_and_overlap_by_neighbours():
    layers = ModuleLayers.of(Forecaster(), [("shift", "encoder"), "processor", ("norm", "decoder")])
    assert layers.names == ("shift+encoder", "processor", "norm+decoder")
    assert layers.layout.blocks == (17, 7, 8)
    first, second, third = list(range(17)), list(range(17, 24)), list(range(24, 32))
    assert indices(layers.subdomains(3)) == [(first, first), (second, second), (third, third)]
    assert indices(layers.subdomains(2, 1)) == [(first + second, first), (first + second + third, second + third)]


def test_the_longest_name_wins():
    names = ModuleLayers.of(Forecaster(), ["shift", "encoder", "processor", "processor.inner", "norm", "decoder"]).names
    assert names == ("shift", "encoder", "processor", "processor.inner", "norm", "decoder")
    assert ModuleLayers.of(Forecaster(), ["", "decoder"]).names == ("", "decoder")


@pytest.mark.parametrize("overlap", [0, 1])
def test_local_models_are_the_restrictions(overlap):
    net = Forecaster().double()
    inputs = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    f = ModuleObjective(net, lambda m: m(inputs).square().mean())
    d = ModuleLayers.of(net).decomposition(3, overlap)
    x = f.initial()
    y = d.gather(x) + 0.1
    values, g = d.models(f, x, None).value_and_gradient(y)
    for k, subdomain in enumerate(d.subdomains):
        moved = x.clone()
        moved[subdomain.indices] += 0.1
        m = len(subdomain.indices)
        torch.testing.assert_close(values[k], f.value(moved), rtol=1e-12, atol=0)
        torch.testing.assert_close(g[k, :m], f.gradient(moved)[subdomain.indices], rtol=1e-12, atol=1e-14)
    assert sum(slice_.stop - slice_.start for slice_ in d.blocks) == f.size


def test_refuses():
    net = Forecaster()
    for groups, words in (
        (["encoder", "processor", "decoder"], "without one for shift; add 'shift' to one of them"),
        (["", "head"], "none for 'head'; the module has shift, encoder, processor, norm, decoder"),
        ([("shift", "processor"), "encoder", "norm", "decoder"], r"got 'shift\+processor' with others in between"),
    ):
        with pytest.raises(ValueError, match=words):
            ModuleLayers.of(net, groups)
    with pytest.raises(ValueError, match=r"`parts` must be in 1\.\.7 \(the layers the module itself, encoder\.0"):
        ModuleLayers.of(net).decomposition(8)
    with pytest.raises(ValueError, match="`overlap` must be >= 0"):
        ModuleLayers.of(net).decomposition(2, -1)
    with pytest.raises(ValueError, match="trainable parameter, got none in ReLU"):
        ModuleLayers.of(nn.ReLU())
