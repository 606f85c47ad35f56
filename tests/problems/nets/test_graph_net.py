"""Graph networks: against torch_geometric, finite differences, and one graph at a time; dropout as a hash."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.graph import Graph
from mldd.problems.nets import Dropout, GraphNet, Source, cross_entropy, stack
from mldd.problems.nets.layers import layer_kinds, layer_of

KINDS = layer_kinds()
KIND = {"dtype": torch.float64, "device": "cpu"}


def random_graph(n=30, m=60, seed=0):
    random = np.random.default_rng(seed)
    edges = random.integers(n, size=(2, m))
    both = torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1))
    return Graph.from_edges(both, n, edge_attributes=torch.from_numpy(random.standard_normal((2 * m, 2))))


def source(kind, *, n=30, features=5, classes=3, sparse=False, seed=0):
    random = np.random.default_rng(seed)
    x = random.standard_normal((n, features))
    if sparse:
        x = sp.csr_matrix(x * (random.random(x.shape) < 0.2))
    targets = np.eye(classes)[random.integers(classes, size=n)] / n
    graph, layer = random_graph(n, seed=seed), layer_of(kind)
    return Source.of(kind, layer.operator(graph), x, targets, layer.attributes(graph))


def network(kind, widths, **options):
    heads, attributes = 2 if layer_of(kind).many_heads else 1, 2 if layer_of(kind).edge_inputs else 0
    return GraphNet(kind, widths, heads=heads, edge_attributes=attributes, **options)


def evaluate(net, batch, x, dropout=None):
    """Return value and gradient by plain autograd through the flat vector."""
    x = x.clone().requires_grad_()
    scales = None
    if dropout is not None:
        scales = [batch.scale(dropout, k, net.widths[k], x.dtype) for k in range(1, net.layers)]
        batch = batch.dropped(dropout)
    value = cross_entropy(net.outputs(net.layout.views(x), batch, scales), batch.targets, batch.parts, batch.samples)
    return value.detach(), torch.autograd.grad(value.sum(), x)[0]


def peer(nn, kind, views, inner, outer, last):
    """Return a layer of torch_geometric and the same weights in its names."""
    if kind == "gcn":
        return nn.GCNConv(inner, outer), {"lin.weight": views[0].t(), "bias": views[1]}
    if kind == "sage":
        root, neighbours, bias = views
        return nn.SAGEConv(inner, outer), {"lin_r.weight": root.t(), "lin_l.weight": neighbours.t(), "lin_l.bias": bias}
    if kind == "gin":
        first, shift, second, bias, epsilon = views
        linear = torch.nn.Linear
        mlp = torch.nn.Sequential(linear(inner, outer), torch.nn.ReLU(), linear(outer, outer))
        names = {"nn.0.weight": first.t(), "nn.0.bias": shift, "nn.2.weight": second.t(), "nn.2.bias": bias}
        return nn.GINConv(mlp, train_eps=True), names | {"eps": epsilon}
    if kind == "gatv2":
        weight, centre, score, bias = views
        names = {"lin_l.weight": weight.t(), "lin_r.weight": centre.t(), "att": score.view(1, 2, -1), "bias": bias}
        names |= {"lin_l.bias": torch.zeros_like(score), "lin_r.bias": torch.zeros_like(score)}  # the paper has none
        return nn.GATv2Conv(inner, outer if last else outer // 2, heads=2, concat=not last), names
    if kind == "transformer":
        query, key, value, skip, edge, bias = views
        names = {"lin_query.weight": query.t(), "lin_key.weight": key.t(), "lin_value.weight": value.t()}
        names |= {name.replace("weight", "bias"): torch.zeros(w.shape[0]).double() for name, w in names.items()}
        names |= {"lin_skip.weight": skip.t(), "lin_skip.bias": bias, "lin_edge.weight": edge.t()}
        return nn.TransformerConv(inner, outer if last else outer // 2, heads=2, concat=not last, edge_dim=2), names
    weight, centre, neighbour, bias = views
    names = {"lin.weight": weight.t(), "att_dst": centre.view(1, 2, -1), "att_src": neighbour.view(1, 2, -1)}
    return nn.GATConv(inner, outer if last else outer // 2, heads=2, concat=not last), names | {"bias": bias}


@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layers", [1, 2, 3])
def test_against_torch_geometric(kind, layers, sparse):
    nn = pytest.importorskip("torch_geometric.nn")
    graph, of = random_graph(), source(kind, sparse=sparse)
    net = network(kind, (5, *[4] * (layers - 1), 3))
    x = net.initial(1) + 0.1
    batch = stack([of.piece(np.arange(30), layers)], single=True, **KIND)
    value, g = evaluate(net, batch, x)

    views = [v.clone().requires_grad_() for v in net.layout.views(x)]
    state, count = torch.from_numpy(of.features.toarray() if sparse else of.features), len(views) // layers
    for layer in range(layers):
        last = layer + 1 == layers
        of_layer = views[layer * count : (layer + 1) * count]
        conv, weights = peer(nn, kind, of_layer, *net.widths[layer : layer + 2], last)
        # in torch_geometric the second end of an edge reads the first
        given = (state, graph.edge_index.flip(0), *([graph.edge_attributes] if net.edge_attributes else []))
        state = torch.func.functional_call(conv.double(), weights, given)
        state = state if last else torch.relu(state)
    expected = -(torch.from_numpy(of.targets) * torch.log_softmax(state, 1)).sum()
    assert torch.allclose(value, expected.detach(), rtol=1e-12)
    reference = torch.cat([d.flatten() for d in torch.autograd.grad(expected, views)])
    assert torch.allclose(g, reference, rtol=1e-10, atol=1e-13)


def dense_layer(kind, operator, state, views, heads, last, act, attributes):
    """Return a layer by its formula, with dense matrices."""
    if kind == "transformer":
        query, key, value, skip, edge, bias = views
        out = []
        each = (v.chunk(heads, -1) for v in (state @ query, state @ key, state @ value, attributes @ edge))
        for q, k, v, e in zip(*each, strict=True):
            score = (q[:, None] * (k + e)).sum(-1) / q.shape[1] ** 0.5
            alpha = torch.softmax(torch.where(operator > 0, score + operator.log(), -torch.inf), 1).nan_to_num()
            out.append((alpha[..., None] * (v + e)).sum(1))
        return (torch.stack(out).mean(0) if last else torch.cat(out, 1)) + state @ skip + bias
    if kind == "gcn":
        return operator @ state @ views[0] + views[1]
    if kind == "sage":
        return state @ views[0] + operator @ state @ views[1] + views[2]
    if kind == "gin":
        first, shift, second, bias, epsilon = views
        return act(((1 + epsilon) * state + operator @ state) @ first + shift) @ second + bias
    if kind == "gatv2":
        weight, centre, score, bias = views
        out = []
        for sent, mine, a in zip(*(v.chunk(heads, -1) for v in (state @ weight, state @ centre, score)), strict=True):
            e = torch.nn.functional.leaky_relu(mine[:, None] + sent, 0.2) @ a
            out.append(torch.softmax(torch.where(operator > 0, e + operator.log(), -torch.inf), 1) @ sent)
        return (torch.stack(out).mean(0) if last else torch.cat(out, 1)) + bias
    weight, centre, neighbour, bias = views
    z, out = state @ weight, []
    for mine, a, b in zip(*(v.chunk(heads, -1) for v in (z, centre, neighbour)), strict=True):
        e = torch.nn.functional.leaky_relu((mine @ a)[:, None] + mine @ b, 0.2)
        out.append(torch.softmax(torch.where(operator > 0, e + operator.log(), -torch.inf), 1) @ mine)
    return (torch.stack(out).mean(0) if last else torch.cat(out, 1)) + bias


@pytest.mark.parametrize("activation", ["relu", "gelu", "tanh", "elu"])
@pytest.mark.parametrize("kind", KINDS)
def test_against_dense_formulas_with_residuals(kind, activation):
    of, net = source(kind), network(kind, (5, 4, 4, 6, 6, 3), activation=activation, residual=True)
    act = getattr(torch.nn.functional, activation)
    x = net.initial(2) + 0.1 * torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0))
    outputs = torch.tensor([3, 11, 27])
    value, g = evaluate(net, stack([of.piece(outputs.numpy(), 5)], single=True, **KIND), x)

    point = x.clone().requires_grad_()
    views, state = net.layout.views(point), torch.from_numpy(of.features)
    operator, count = torch.from_numpy(of.operator.toarray()), len(views) // 5
    dense = np.stack([e.toarray() for e in of.attributes], 2) if of.attributes else np.zeros((30, 30, 0))
    for layer in range(5):
        weights = views[layer * count : (layer + 1) * count]
        new = dense_layer(kind, operator, state, weights, net.heads, layer == 4, act, torch.from_numpy(dense))
        new = new if layer == 4 else act(new)
        state = new + state if layer in (1, 3) else new
    expected = -(torch.from_numpy(of.targets) * torch.log_softmax(state, 1))[outputs].sum()
    assert torch.allclose(value, expected.detach(), rtol=1e-12)
    assert torch.allclose(g, torch.autograd.grad(expected, point)[0], rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_is_a_loop(kind):
    of = source(kind, sparse=True)
    net = network(kind, (5, 4, 3))
    outputs = [np.arange(7), np.arange(5, 30), np.array([29]), np.arange(0)]
    x = torch.randn(4, net.layout.size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for propagated in (False, True):
        pieces = [of.piece(chosen, 2, propagated=propagated) for chosen in outputs]
        dropout = None if propagated else Dropout(0.4, seed=3, step=1)
        values, g = evaluate(net, stack(pieces, **KIND), x, dropout)
        for k, piece in enumerate(pieces):
            value, row = evaluate(net, stack([piece], single=True, **KIND), x[k], dropout)
            assert torch.allclose(values[k], value, atol=1e-13)
            assert torch.allclose(g[k], row, atol=1e-13)


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


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("propagated", [False, True])
@pytest.mark.parametrize("parts", [None, 3])
def test_samples_are_a_loop(kind, propagated, parts):
    random, samples = np.random.default_rng(1), 4
    x, y = random.standard_normal((30, samples, 5)), random.random((30, samples, 3))
    operator, attributes = layer_of(kind).operator(random_graph()), layer_of(kind).attributes(random_graph())
    chosen = [np.arange(9), np.arange(4, 21), np.array([29])][: parts or 1]

    def batch(features, targets, count):
        of = Source.of(kind, operator, features.reshape(30, -1), targets.reshape(30, -1), attributes)
        pieces = [of.piece(outputs, 3, propagated=propagated) for outputs in chosen]
        return stack(pieces, single=parts is None, samples=count, **KIND)

    net = network(kind, (5, 4, 6, 3))
    shape = (net.layout.size,) if parts is None else (parts, net.layout.size)
    point = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    joint = batch(x, y, samples)
    value, g = evaluate(net, joint, point)
    single = [evaluate(net, batch(x[:, s], y[:, s], 1), point) for s in range(samples)]
    assert torch.allclose(value, sum(v for v, _ in single), rtol=1e-12)
    assert torch.allclose(g, sum(row for _, row in single), rtol=1e-10, atol=1e-13)
    outputs = net.outputs(net.layout.views(point), joint)
    assert outputs.shape == joint.targets.shape
    # work grows with the samples, beyond that of the calls
    works = [batch(x[:, :s], y[:, :s], s).work(net.widths) for s in (1, 2, samples)]
    assert works[2] - works[0] == pytest.approx((samples - 1) * (works[1] - works[0]))
    assert joint.work(net.widths) == works[2] < joint.work(net.widths, drawn=True)


def test_decay_and_start_of_attention_and_isomorphism():
    gat = GraphNet("gat", (50, 16, 3), heads=4)
    assert [tuple(v.shape) for v in gat.layout.views(gat.initial())] == [
        *((50, 16), (16,), (16,), (16,)),
        *((16, 12), (12,), (12,), (3,)),
    ]
    assert gat.decayed == 50 * 16
    start = gat.layout.views(gat.initial())
    assert 0.5 * (6 / 9) ** 0.5 < float(start[1].abs().max()) <= (6 / 9) ** 0.5
    assert not start[3].any()
    gin = GraphNet("gin", (50, 16, 3))
    assert gin.decayed == 50 * 16
    assert not gin.layout.views(gin.initial())[4].any()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"kind": "cheb"},
            "`kind` must be one of gcn, sage, gin, gat, gatv2, .*, or file.py:Class, got 'cheb'",
        ),
        ({"activation": "sine"}, "`activation` must be one of relu, gelu, tanh, elu, got 'sine'"),
        ({"widths": (4,)}, "`widths` must be at least two numbers"),
        ({"heads": 2}, "`heads` must be >= 1, and 1 for 'gcn'"),
        ({"edge_attributes": 1}, "`edge_attributes` must be 0 for 'gcn', which takes none, got 1"),
        ({"kind": "transformer", "edge_attributes": -1}, "`edge_attributes` must be >= 0, got -1"),
        ({"kind": "gat", "heads": 3}, r"`heads` must divide every hidden width of \(5, 4, 3\), got 3"),
    ],
)
def test_bad_networks(given, message):
    with pytest.raises(ValueError, match=message):
        GraphNet(**{"kind": "gcn", "widths": (5, 4, 3), **given})
