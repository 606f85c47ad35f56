"""Graph networks: against torch_geometric, finite differences, and one graph at a time; dropout as a hash."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.graph import Graph, normalised
from mldd.problems.composite import Source, stack
from mldd.problems.dropout import Dropout
from mldd.problems.models import GraphNet, cross_entropy
from mldd.problems.operators import Sparse

KIND = {"dtype": torch.float64, "device": "cpu"}


def random_graph(n=30, m=60, seed=0):
    return Graph.from_edges(torch.from_numpy(np.random.default_rng(seed).integers(n, size=(2, m))), n)


def source(kind, *, n=30, features=5, classes=3, sparse=False, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, features))
    if sparse:
        x = sp.csr_matrix(x * (random.random(x.shape) < 0.2))
    targets = np.eye(classes)[random.integers(classes, size=n)] / n
    operator = normalised(random_graph(n, seed=seed), "gcn" if kind == "gcn" else "mean")
    return Source.of(kind, operator, x, targets)


def evaluate(net, batch, x, dropout=None):
    """Return value and gradient by plain autograd through the flat vector."""
    x = x.clone().requires_grad_()
    scales = None
    if dropout is not None:
        scales = [batch.scale(dropout, k, net.widths[k], x.dtype) for k in range(1, net.layers)]
        batch = batch.dropped(dropout)
    value = cross_entropy(net.outputs(net.layout.views(x), batch, scales), batch.targets, batch.parts)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def test_sparse_product_and_its_derivatives():
    a = Sparse.of(sp.random(6, 4, 0.4, random_state=0))
    dense = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(a @ dense, a.matrix.to_dense() @ dense)
    assert torch.equal(a.transposed.to_dense(), a.matrix.to_dense().t())
    assert torch.autograd.gradcheck(lambda z: (a @ z).tanh(), dense)
    assert torch.autograd.gradgradcheck(lambda z: (a @ z).tanh(), dense)
    b = a.with_values(a.values * torch.arange(len(a.values)))
    assert torch.equal(b.transposed.to_dense(), b.matrix.to_dense().t())
    rows, columns = a.entries
    assert torch.equal(a.matrix.to_dense()[rows, columns], a.values)


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", ["gcn", "sage"])
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_against_torch_geometric(kind, layers, sparse):
    nn = pytest.importorskip("torch_geometric.nn")
    graph, of = random_graph(), source(kind, sparse=sparse)
    net = GraphNet(kind, (5, *[4] * (layers - 1), 3))
    x = net.initial(1) + 0.1
    batch = stack([of.piece(np.arange(30), layers)], single=True, **KIND)
    value, g = evaluate(net, batch, x)

    views = [v.clone().requires_grad_() for v in net.layout.views(x)]
    state = torch.from_numpy(of.features.toarray() if sparse else of.features)
    for layer in range(layers):
        if kind == "gcn":
            conv = nn.GCNConv(*net.widths[layer : layer + 2]).double()
            given = {"lin.weight": views[2 * layer].t(), "bias": views[2 * layer + 1]}
        else:
            conv = nn.SAGEConv(*net.widths[layer : layer + 2]).double()
            root, neighbours, bias = views[3 * layer : 3 * layer + 3]
            given = {"lin_r.weight": root.t(), "lin_l.weight": neighbours.t(), "lin_l.bias": bias}
        state = torch.func.functional_call(conv, given, (state, graph.edge_index))
        state = torch.relu(state) if layer + 1 < layers else state
    expected = -(torch.from_numpy(of.targets) * torch.log_softmax(state, 1)).sum()
    assert torch.allclose(value, expected.detach(), rtol=1e-13)
    reference = torch.cat([d.flatten() for d in torch.autograd.grad(expected, views)])
    assert torch.allclose(g, reference, rtol=1e-11, atol=1e-14)


@pytest.mark.parametrize("kind", ["gcn", "sage"])
def test_a_batch_is_a_loop(kind):
    of = source(kind, sparse=True)
    net = GraphNet(kind, (5, 4, 3))
    outputs = [np.arange(7), np.arange(5, 30), np.array([29]), np.arange(0)]
    x = torch.randn(4, net.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for propagated in (False, True):
        pieces = [of.piece(chosen, 2, propagated=propagated) for chosen in outputs]
        dropout = None if propagated else Dropout(0.4, seed=3, step=1)
        values, g = evaluate(net, stack(pieces, **KIND), x, dropout)
        for k, piece in enumerate(pieces):
            value, row = evaluate(net, stack([piece], single=True, **KIND), x[k], dropout)
            assert torch.allclose(values[k], value, atol=1e-14)
            assert torch.allclose(g[k], row, atol=1e-14)


def test_dropout_keeps_the_mean_and_depends_on_seed_step_layer():
    ids = torch.arange(200_000)
    base = Dropout(0.3, seed=1, step=2)
    scale = base.scale(ids, 1, torch.float64)
    assert set(scale.unique().tolist()) == {0.0, 1 / 0.7}
    assert abs(float(scale.mean()) - 1) < 5 * (0.3 / 0.7 / 200_000) ** 0.5
    assert torch.equal(scale, base.scale(ids, 1, torch.float64))
    others = [Dropout(0.3, 2, 2), Dropout(0.3, 1, 3), Dropout(0.3, 2, 1), Dropout(0.3, 0, 2)]
    streams = [scale, base.scale(ids, 2, torch.float64), *(other.scale(ids, 1, torch.float64) for other in others)]
    correlation = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams))
    assert float(correlation.abs().max()) < 5 / 200_000**0.5
    neighbours = torch.corrcoef(torch.stack([scale[:-1], scale[1:], scale.roll(16)[1:], scale.roll(64)[1:]]))
    assert float((neighbours - torch.eye(4)).abs().max()) < 5 / 200_000**0.5
    counts = scale.view(2000, 100).ne(0).sum(1).double()
    assert abs(float(counts.var()) / 21 - 1) < 0.2  # binomial


def test_dropout_of_zero_keeps_all_and_order_does_not_matter():
    ids = torch.randint(2**40, (500,), generator=torch.Generator().manual_seed(0))
    assert bool((Dropout(0.0).scale(ids, 0, torch.float32) == 1).all())
    order = torch.randperm(500)
    scale = Dropout(0.5).scale(ids, 0, torch.float32)
    assert torch.equal(Dropout(0.5).scale(ids[order], 0, torch.float32), scale[order])
    nearly = Dropout(0.999).scale(torch.arange(100_000), 0, torch.float64)
    assert 60 < int((nearly > 0).sum()) < 145


def test_start_is_glorots():
    net = GraphNet("sage", (50, 20, 3))
    x = net.initial(0)
    views = net.layout.views(x)
    assert torch.equal(x, net.initial(0))
    assert not torch.equal(x, net.initial(1))
    for view in views:
        if view.dim() == 1:
            assert not view.any()
        else:
            bound = (6 / sum(view.shape)) ** 0.5
            assert 0.85 * bound < float(view.abs().max()) <= bound
    assert net.decayed == 2 * 50 * 20
    assert [int(net.units.max()), len(net.units)] == [19, net.layout.size]
