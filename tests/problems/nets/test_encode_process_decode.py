"""Encode-process-decode: against a loop over edges, finite differences, permutations, cuts, batches, aggregation."""

import math

import numpy as np
import pytest
import torch

import mldd
from mldd.problems.data import HiddenMesh, Link, Series, regional_mesh
from mldd.problems.forecasts import Forecasting
from mldd.problems.forecasts.forecast_parts import local_batch
from mldd.problems.nets import EncodeProcessDecode, MeshSource, stack_meshes

KIND = {"dtype": torch.float64, "device": "cpu"}
SAMPLES, FEATURES, CLASSES = 3, 2, 2
ACTIVATIONS = {
    "silu": lambda v: v / (1 + np.exp(-v)),
    "gelu": lambda v: v * 0.5 * (1 + np.vectorize(math.erf)(v / math.sqrt(2))),
    "relu": lambda v: np.maximum(v, 0),
    "tanh": np.tanh,
}


def make_source(*, nodes=9, mean=True, seed=0):
    random = np.random.default_rng(seed)
    latitude, longitude = np.meshgrid(50 + 0.5 * np.arange(5), 0.5 * np.arange(6), indexing="ij")
    mesh = regional_mesh(latitude.ravel(), longitude.ravel(), nodes, levels=2, links=3, neighbours=3, mean=mean)
    wide = random.standard_normal((30, SAMPLES * (FEATURES + CLASSES)))
    return MeshSource(mesh, wide[:, : SAMPLES * FEATURES], wide[:, SAMPLES * FEATURES :])


def single(piece):
    return stack_meshes([piece], single=True, samples=SAMPLES, **KIND)


def random_parameters(net, seed=0, *lead):
    generator = torch.Generator().manual_seed(seed)
    return 0.5 * torch.randn(*lead, net.layout.size, generator=generator, dtype=torch.float64)


def evaluate(net, batch, x):
    return net.outputs(net.layout.views(x), batch)


def looped_block(act, norm, weights, link, senders, receivers):
    """Send along one edge after the other and update one node after the other."""
    w_x, b_x, w_e, w_s, w_r, b, w_v, w_a, c, w_o, c_o, *gain = weights
    totals = np.zeros_like(receivers)
    coo = link.matrix.tocoo()
    for i, j, value, e in zip(coo.row, coo.col, coo.data, link.features, strict=True):
        pre = act(e @ w_x + b_x) @ w_e + senders[j] @ w_s + receivers[i] @ w_r + b
        totals[i] += value * act(pre)
    out = np.empty_like(receivers)
    for i in range(len(receivers)):
        change = act(receivers[i] @ w_v + totals[i] @ w_a + c) @ w_o + c_o
        if norm:
            centred = change - change.mean()
            change = centred / np.sqrt((centred**2).mean() + 1e-5) * (1 + gain[0]) + gain[1]
        out[i] = receivers[i] + change
    return out


def looped(net, source, x, sample):
    """Return the outputs of one sample, shape (n, C)."""
    act = ACTIVATIONS[net.activation]
    views = [v.numpy() for v in net.layout.views(x)]
    inputs = source.features[:, sample * FEATURES : (sample + 1) * FEATURES]
    grid, mesh = act(inputs @ views[0] + views[1]), act(source.mesh.static @ views[2] + views[3])
    size = 13 if net.norm else 11
    links = [source.mesh.encode, *[source.mesh.process] * net.rounds, source.mesh.decode]
    for k, link in enumerate(links):
        weights = views[4 + k * size : 4 + (k + 1) * size]
        senders, receivers = (grid, mesh) if k == 0 else (mesh, mesh if k <= net.rounds else grid)
        mesh = looped_block(act, net.norm, weights, link, senders, receivers)
    head = views[4 + len(links) * size :]
    return mesh @ head[0] + head[1] + (inputs @ head[2] if net.skip else 0.0)


@pytest.mark.parametrize(
    ("options", "mean"),
    [
        ({"rounds": 1}, True),
        ({"rounds": 2, "norm": True}, False),
        ({"rounds": 2, "activation": "gelu", "skip": False}, True),
        ({"rounds": 1, "activation": "relu"}, False),
        ({"rounds": 3, "activation": "tanh", "norm": True}, True),
    ],
)
def test_against_a_loop_over_edges(options, mean):
    source = make_source(mean=mean)
    net = EncodeProcessDecode(FEATURES, 4, CLASSES, **options)
    x = random_parameters(net)
    out = evaluate(net, single(source.piece(np.arange(30), net.layers)), x).unflatten(1, (SAMPLES, -1))
    for sample in range(SAMPLES):
        expected = torch.from_numpy(looped(net, source, x, sample))
        assert torch.allclose(out[:, sample], expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("norm", [False, True])
def test_finite_differences(norm):
    source = make_source()
    net = EncodeProcessDecode(FEATURES, 3, CLASSES, rounds=1, norm=norm)
    batch = single(source.piece(np.arange(30), net.layers))
    x = random_parameters(net)

    def loss(z):
        return (evaluate(net, batch, z) - batch.targets).square().sum()

    def gradient(z, **options):
        leaf = z.clone().requires_grad_()
        return torch.autograd.grad(loss(leaf), leaf, **options)[0], leaf

    g = gradient(x)[0]
    directions = torch.randn(8, net.layout.size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for v in torch.cat([directions, torch.eye(net.layout.size, dtype=torch.float64)[::7]]):
        slope = (loss(x + 1e-6 * v) - loss(x - 1e-6 * v)) / 2e-6
        assert torch.isclose(slope, g @ v, rtol=1e-6, atol=1e-5)
    v = directions[0]
    again, leaf = gradient(x, create_graph=True)
    product = torch.autograd.grad(again @ v, leaf)[0]
    quotient = (gradient(x + 1e-5 * v)[0] - gradient(x - 1e-5 * v)[0]) / 2e-5
    assert torch.allclose(product, quotient, rtol=1e-5, atol=1e-4)


def test_grid_and_mesh_nodes_may_be_renumbered():
    source = make_source()
    mesh, random = source.mesh, np.random.default_rng(3)
    net = EncodeProcessDecode(FEATURES, 4, CLASSES, rounds=2, norm=True)
    x = random_parameters(net)
    out = evaluate(net, single(source.piece(np.arange(30), net.layers)), x)
    g, m = random.permutation(30), random.permutation(9)
    links = (mesh.encode.cut(m, g), mesh.process.cut(m, m), mesh.decode.cut(g, m))
    other = MeshSource(
        HiddenMesh(mesh.grid[g], mesh.points[m], mesh.sizes, *links), source.features[g], source.targets[g]
    )
    again = evaluate(net, single(other.piece(np.arange(30), net.layers)), x)
    assert torch.allclose(again, out[torch.from_numpy(g)], rtol=1e-12, atol=1e-12)


def test_outputs_of_a_part_are_exact():
    source = make_source(nodes=15)
    net = EncodeProcessDecode(FEATURES, 4, CLASSES, rounds=1)
    x = random_parameters(net)
    out = evaluate(net, single(source.piece(np.arange(30), net.layers)), x)
    for outputs in (np.array([0]), np.array([29, 3, 7]), np.arange(12)):
        piece = source.piece(outputs, net.layers)
        assert torch.allclose(evaluate(net, single(piece), x), out[outputs], rtol=1e-12, atol=1e-12)
        assert np.array_equal(piece.targets, source.targets[outputs])
    assert source.piece(np.array([0]), net.layers).read < 30


def test_a_batch_is_a_loop():
    source = make_source(nodes=15)
    net = EncodeProcessDecode(FEATURES, 4, CLASSES, rounds=2, norm=True)
    labels = np.where(np.arange(30) < 12, np.arange(30), 12 + np.arange(30) // 9)
    labels = np.unique(labels, return_inverse=True)[1]
    pieces = [source.piece(np.arange(7), net.layers), source.aggregated(labels, net.layers)]
    pieces += [source.piece(np.array([29]), net.layers)]
    x = random_parameters(net, 0, 3)
    leaf = x.clone().requires_grad_()
    batch = stack_meshes(pieces, samples=SAMPLES, **KIND)
    out = evaluate(net, batch, leaf).unflatten(0, (3, -1))
    g = torch.autograd.grad(((out.flatten(0, 1) - batch.targets) * batch.targets).sum(), leaf)[0]
    for k, piece in enumerate(pieces):
        alone = x[k].clone().requires_grad_()
        graph = single(piece)
        mine = evaluate(net, graph, alone)
        assert torch.allclose(out[k, : len(mine)], mine, rtol=1e-12, atol=1e-12)
        row = torch.autograd.grad(((mine - graph.targets) * graph.targets).sum(), alone)[0]
        assert torch.allclose(g[k], row, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("mean", [True, False])
def test_aggregation(mean):
    source = make_source(mean=mean)
    net = EncodeProcessDecode(FEATURES, 4, CLASSES, rounds=2)
    x = random_parameters(net)
    whole = evaluate(net, single(source.piece(np.arange(30), net.layers)), x)
    fine = source.aggregated(np.arange(30), net.layers)
    assert torch.allclose(evaluate(net, single(fine), x), whole, rtol=1e-12, atol=1e-12)
    assert np.array_equal(fine.nodes, np.arange(30))
    labels = source.mesh.labels()
    coarse = source.aggregated(labels, net.layers)
    assert np.allclose(coarse.targets.sum(0), source.targets.sum(0))
    assert np.allclose(np.bincount(labels) @ coarse.features, source.features.sum(0))
    assert set(coarse.nodes[np.bincount(labels) > 1].tolist()) == {-1}
    assert len(coarse.static) == 9  # each mesh node is the nearest one of its own grid node
    halves = np.arange(30) // 15
    assert source.aggregated(halves, net.layers).static.shape == (2, 3)


def test_aggregation_of_nodes_that_are_alike_is_exact():
    """Edges without features, the same inputs everywhere, the same number of messages: every cluster is its nodes."""
    source = make_source()
    source.features[:] = source.features[0]
    mesh = source.mesh
    links = [Link(link.matrix, 0 * link.features) for link in (mesh.encode, mesh.process, mesh.decode)]
    alike = HiddenMesh(mesh.grid, mesh.points, mesh.sizes, *links)
    alike.__dict__["static"] = np.ones((9, 3))
    source = MeshSource(alike, source.features, source.targets)
    net = EncodeProcessDecode(FEATURES, 4, CLASSES, rounds=2)
    x = random_parameters(net)
    whole = evaluate(net, single(source.piece(np.arange(30), net.layers)), x)
    labels = np.arange(30) // 7
    coarse = evaluate(net, single(source.aggregated(labels, net.layers)), x)
    assert torch.allclose(coarse[torch.from_numpy(labels)], whole, rtol=1e-12, atol=1e-12)


def test_start_layout_and_units():
    net = EncodeProcessDecode(6, 5, 2, rounds=3, norm=True)
    x = net.initial(0)
    assert torch.equal(x, net.initial(0))
    assert not torch.equal(x, net.initial(1))
    assert net.layout.layers[-1] + 1 == net.layers == 5
    assert net.layout.size == net.decayed
    for view in net.layout.views(x)[:-3]:
        if view.dim() == 1:
            assert not view.any()
        else:
            bound = math.sqrt(6 / sum(view.shape))
            assert 0.6 * bound < float(view.abs().max()) <= bound
    source = make_source()
    start = EncodeProcessDecode(FEATURES, 4, CLASSES)
    assert not evaluate(start, single(source.piece(np.arange(30), start.layers)), start.initial(0)).any()


def test_work_grows_with_samples_and_shrinks_with_aggregation():
    source = make_source()
    net = EncodeProcessDecode(FEATURES, 8, CLASSES)
    whole = single(source.piece(np.arange(30), net.layers)).work(net.widths)
    coarse = single(source.aggregated(source.mesh.labels(), net.layers)).work(net.widths)
    assert 0.1 * whole < coarse < 0.8 * whole


@pytest.mark.parametrize(
    ("options", "message"),
    [({"rounds": 0}, "`rounds` must be >= 1"), ({"activation": "sine"}, "`activation` must be one of silu")],
)
def test_bad_options(options, message):
    with pytest.raises(ValueError, match=message):
        EncodeProcessDecode(2, 4, **options)


def test_dropout_is_refused():
    net, source = EncodeProcessDecode(FEATURES, 4, CLASSES), make_source()
    batch = single(source.piece(np.arange(30), net.layers))
    with pytest.raises(ValueError, match="no dropout"):
        net.outputs(net.layout.views(net.initial()), batch, [])


def make_forecasting(**options):
    random = np.random.default_rng(0)
    latitude, longitude = np.meshgrid(50 + np.arange(5.0), np.arange(6.0), indexing="ij")
    time = np.datetime64("2020-01-01", "s") + 3600 * np.arange(150)
    values = random.standard_normal((150, 30, 1)).cumsum(0)
    series = Series("walk", values, time, latitude.ravel(), longitude.ravel(), ("t",), grid=(5, 6))
    return mldd.problem(Forecasting, name=series, model="epd", hidden=4, layers=1, horizon=2, **options)


def test_local_models_of_a_forecast():
    """Own losses are those of their nodes; a composite graph of single nodes is the graph; all are corrected."""
    problem = make_forecasting(local="own")
    f, x = problem.objective(), random_parameters(problem.net)
    value, g = f.value_and_gradient(x)
    part = problem.parts(3)
    local = local_batch(problem, part, range(3))
    values = local.value(x.expand(3, -1).contiguous())
    weight = torch.stack([torch.from_numpy(problem.series.weights)[part == k].sum() for k in range(3)])
    assert torch.allclose((values * weight).sum() / weight.sum(), value, rtol=1e-12)
    for made in (problem, make_forecasting(local="composite", clusters=9)):
        decomposition = made.decomposition(3, 1)
        models = decomposition.models(f, x, g)
        assert torch.allclose(models.gradient(decomposition.gather(x)), g.expand(3, -1), rtol=1e-10, atol=1e-12)
    whole = make_forecasting(local="composite", clusters=30)
    exact = local_batch(whole, part, range(3)).value(x.expand(3, -1).contiguous())
    assert torch.allclose(exact, value.expand(3), rtol=1e-12)
    assert [level.objective.price.gradient < 1 for level in whole.hierarchy(3)] == [False, False, True]
