"""Sweeps in buffers give what autograd gives, for every order of products, blocks of any size, and twice."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.graph import Graph
from mldd.problems.graphs import NodeLoss
from mldd.problems.nets import Dropout, GraphNet, Source, stack
from mldd.problems.nets import graph_sweeps as sweeps
from mldd.problems.nets.layers import layer_of


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(sweeps, "_BLOCK", 40)
    monkeypatch.setattr(sweeps, "_LEAST", 1)


def batch(kind, *, outputs=None, sparse=False, propagated=False, layers=3, samples=1, dtype=torch.float64):
    random, n = np.random.default_rng(0), 40
    graph = Graph.from_edges(torch.from_numpy(random.integers(n, size=(2, 60))), n)
    x = random.standard_normal((n, samples * 6)) * (random.random((n, samples * 6)) < 0.4)
    source = Source.of(
        kind, layer_of(kind).operator(graph), sp.csr_matrix(x) if sparse else x, random.random((n, samples * 3))
    )
    piece = source.piece(np.arange(n) if outputs is None else outputs, layers, propagated=propagated)
    return stack([piece], single=True, samples=samples, dtype=dtype, device="cpu")


def point(net, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    return (net.initial(0) + 0.1 * torch.randn(net.layout.size, generator=generator, dtype=torch.float64)).to(dtype)


def both(net, given, x, scales=None):
    """Return outputs and gradient of a nonlinear function of them, by sweep and by autograd."""
    found = []
    for outputs in (lambda p: sweeps.outputs(net, p, given, scales), lambda p: net.graph(p, given, scales)):
        leaves = net.layout.leaves(x)
        z = outputs(leaves)
        found.append((z.detach(), net.layout.pack(torch.autograd.grad(z.tanh().sum(), leaves))))
    return found


@pytest.mark.parametrize("widths", [(6, 4, 9, 3), (6, 9, 4, 3), (6, 2, 2, 3)])
@pytest.mark.parametrize("propagated", [False, True])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("outputs", [None, np.array([3, 17, 20])])
@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_a_sweep_is_autograd(kind, outputs, sparse, propagated, widths):
    net = GraphNet(kind, widths)
    given = batch(kind, outputs=outputs, sparse=sparse, propagated=propagated)
    assert sweeps.suited(net, given)
    (z, g), (expected, reference) = both(net, given, point(net))
    assert torch.allclose(z, expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(g, reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_dropout_and_samples(kind, samples):
    net, dropout = GraphNet(kind, (6, 5, 4, 3)), Dropout(0.4, seed=1, step=2)
    given = batch(kind, samples=samples, outputs=np.arange(5, 21)).dropped(dropout)
    scales = [given.scale(dropout, k, net.widths[k], torch.float64) for k in (1, 2)]
    (z, g), (expected, reference) = both(net, given, point(net), scales)
    assert torch.allclose(z, expected, rtol=1e-12, atol=1e-14)
    assert torch.allclose(g, reference, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("hidden", [4, 70])
@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_single_precision(kind, hidden):
    net = GraphNet(kind, (6, hidden, 130, 3))
    given = batch(kind, dtype=torch.float32)
    (z, g), (expected, reference) = both(net, given, point(net, torch.float32))
    assert torch.allclose(z, expected, rtol=1e-5, atol=1e-5)
    assert float((g - reference).abs().max()) < 1e-5 * float(reference.abs().max())


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_hessian_products_and_several_evaluations_at_once(kind):
    net = GraphNet(kind, (6, 5, 3))
    f, x = NodeLoss(net, batch(kind, layers=2), 0.01), point(net)
    v = torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope = (f.gradient(x + 1e-6 * v) - f.gradient(x - 1e-6 * v)) / 2e-6
    assert torch.allclose(f.hessian_product(x, v), slope, rtol=1e-6, atol=1e-6)
    assert abs(float(v @ f.gradient(x) - (f.value(x + 1e-6 * v) - f.value(x - 1e-6 * v)) / 2e-6)) < 1e-6
    leaves, others = net.layout.leaves(x), net.layout.leaves(2 * x)
    first, second = (net.outputs(p, f.batch).square().sum() for p in (leaves, others))
    once = torch.autograd.grad(first, leaves, retain_graph=True)
    torch.autograd.grad(second, others)
    again = torch.autograd.grad(first, leaves)
    assert all(torch.allclose(a, b, rtol=1e-13) for a, b in zip(once, again, strict=True))


def test_buffers_are_used_again():
    net = GraphNet("sage", (6, 5, 3))
    f = NodeLoss(net, batch("sage", layers=2))
    for _ in range(3):
        f.gradient(point(net))
        f.value(point(net))
    assert [len(kept) for kept in net.spare.values()] == [1]


def test_what_has_no_sweep():
    given = batch("gcn")
    assert not sweeps.suited(GraphNet("gcn", (6, 4, 4, 3), residual=True), given)
    assert not sweeps.suited(GraphNet("gcn", (6, 4, 4, 3), activation="elu"), given)
    assert not sweeps.suited(GraphNet("gin", (6, 4, 4, 3)), batch("gin"))
