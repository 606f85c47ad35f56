"""Node classification: exact halos, composite graphs, corrected local models, levels, counting, bad input."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mldd
from mldd.algebra import Objective, counting, offers, sampled
from mldd.command.names import solver_spec
from mldd.graph import Graph
from mldd.graph.partitioning import repartition
from mldd.loop import Stop, minimise
from mldd.problems.data import DataError, GraphData, load_graph
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import NodeClassification
from mldd.problems.nets import GraphNet, Source, composite_labels, stack
from mldd.problems.nets.composite import receptive
from mldd.problems.nets.layers import layer_of
from mldd.ranks import Communicator
from mldd.solvers import LocalSgd, Sgd

KIND = {"dtype": torch.float64, "device": "cpu"}
DATA = sbm(nodes=240, classes=4, features=6)


def problem(**options):
    return mldd.problem(NodeClassification, **{"name": DATA, "hidden": 5, "dropout": 0.0, **options})


def given_graph(edges, nodes, *, features=4, train=None):
    """Return data on a graph of one's own; every third node is for training unless said."""
    random = np.random.default_rng(0)
    index = torch.arange(nodes)
    train = index % 3 == 0 if train is None else train
    rest = ~train
    half = rest.long().cumsum(0) % 2 == 0
    graph = Graph.from_edges(torch.tensor(edges, dtype=torch.int64).reshape(-1, 2).t(), nodes)
    values = torch.from_numpy(random.standard_normal((nodes, features)))
    return GraphData("given", graph, values, index % 2, train, rest & half, rest & ~half, classes=2)


def start(p, seed=0):
    """Return a start with non-zero biases."""
    x = p.initial(seed)
    return x + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def differences(f, x, v, h=1e-6):
    return (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
@pytest.mark.parametrize("labels", ["train", "all"])
@pytest.mark.parametrize(("model", "layers"), [("gcn", 1), ("gcn", 2), ("gcn", 3), ("sage", 2), ("sage", 1)])
def test_gradient_and_hessian_product(model, layers, labels, dropout):
    p = problem(model=model, layers=layers, labels=labels, dropout=dropout, decay=0.01)
    f, x = sampled(p.objective(), 3), start(p)
    assert isinstance(f, Objective)
    assert offers(f, "hessian_product")
    generator = torch.Generator().manual_seed(1)
    v = torch.randn(f.size, generator=generator, dtype=torch.float64)
    value, g = f.value_and_gradient(x)
    assert torch.allclose(value, f.value(x), rtol=1e-14)
    assert abs(float(v @ g - differences(f, x, v))) < 1e-7
    expected = (f.gradient(x + 1e-6 * v) - f.gradient(x - 1e-6 * v)) / 2e-6
    assert torch.allclose(f.hessian_product(x, v), expected, atol=2e-7)


def test_only_the_receptive_field_is_evaluated_and_that_changes_nothing():
    p = problem(labels="train")
    f, x = p.objective(), start(p)
    outputs = torch.log_softmax(p.logits(x), 1)
    train, labels = DATA.train, DATA.labels
    weights = p.net.layout.views(x)[0]
    expected = -outputs[train, labels[train]].mean() + 0.5 * 5e-4 * weights.square().sum()
    assert torch.allclose(f.value(x), expected, rtol=1e-13)
    assert f.batch.rows[-1] == int(train.sum())


@settings(max_examples=100, deadline=None)
@given(
    nodes=st.integers(1, 25),
    edges=st.lists(st.tuples(st.integers(0, 24), st.integers(0, 24)), max_size=60),
    layers=st.integers(1, 4),
    parts=st.integers(1, 4),
    model=st.sampled_from(["gcn", "sage"]),
)
def test_outputs_of_a_part_with_its_halo_are_exact(nodes, edges, layers, parts, model):
    random = np.random.default_rng(nodes)
    index = torch.tensor([(a % nodes, b % nodes) for a, b in edges], dtype=torch.int64).reshape(-1, 2).t()
    operator = layer_of(model).operator(Graph.from_edges(index, nodes))
    source = Source.of(model, operator, random.standard_normal((nodes, 3)), np.zeros((nodes, 2)))
    net = GraphNet(model, (3, *[4] * (layers - 1), 2))
    views = net.layout.views(net.initial(0) + 0.1)
    whole = net.outputs(views, stack([source.piece(np.arange(nodes), layers)], single=True, **KIND))
    part = random.integers(parts, size=nodes)
    for k in range(parts):
        own = np.flatnonzero(part == k)
        for propagated in (False, True):
            piece = source.piece(own, layers, propagated=propagated)
            outputs = net.outputs(views, stack([piece], single=True, **KIND))
            assert torch.allclose(outputs[: len(own)], whole[own], rtol=1e-12, atol=1e-14)


def test_receptive_field_grows_by_one_hop_per_layer():
    path = sp.diags([[1.0] * 9, [1.0] * 9], [-1, 1], format="csr")
    order, rows = receptive(path, np.array([4]), 3)
    assert rows == (7, 5, 3, 1)
    assert [sorted(order[:k].tolist()) for k in rows] == [list(range(4 - d, 5 + d)) for d in (3, 2, 1, 0)]


@pytest.mark.parametrize("model", ["gcn", "sage"])
@pytest.mark.parametrize("labels", ["train", "all"])
def test_a_composite_graph_of_single_nodes_is_the_graph(model, labels):
    p = problem(model=model, labels=labels, layers=3)
    x = start(p)
    value, g = p.objective().value_and_gradient(x)
    everything = np.arange(240)[np.random.default_rng(0).permutation(240)]
    for source_labels in (everything, composite_labels(np.ones(240, bool), everything)):
        batch = stack([p.source.aggregated(source_labels, 3)], single=True, **KIND)
        other, row = replace(p.objective(), batch=batch).value_and_gradient(x)
        assert torch.allclose(other, value, rtol=1e-13)
        assert torch.allclose(row, g, atol=1e-14)


@pytest.mark.parametrize("model", ["gcn", "sage"])
def test_composite_graph_against_dense_matrices(model):
    p = problem(model=model, labels="all")
    x, own = start(p), np.arange(240) < 60
    labels = composite_labels(own, np.arange(240) // 10)
    assert labels.max() + 1 == 60 + 18
    t = torch.nn.functional.one_hot(torch.from_numpy(labels)).double()
    mean = (t / t.sum(0)).t()
    operator, features = torch.from_numpy(p.source.operator.toarray()), DATA.features
    views, coarse = p.net.layout.views(x), mean @ operator @ t
    if model == "gcn":
        state = torch.relu(mean @ operator @ features @ views[0] + views[1])
        outputs = coarse @ state @ views[2] + views[3]
    else:
        state = torch.relu(mean @ features @ views[0] + mean @ operator @ features @ views[1] + views[2])
        outputs = state @ views[3] + coarse @ state @ views[4] + views[5]
    targets = t.t() @ torch.from_numpy(p.source.targets)
    assert torch.allclose(targets.sum(), torch.tensor(1.0, dtype=torch.float64))
    expected = -(targets * torch.log_softmax(outputs, 1)).sum()
    batch = stack([p.source.aggregated(labels, 2)], single=True, **KIND)
    assert torch.allclose(replace(p.objective(), batch=batch, decay=0.0).value(x), expected, rtol=1e-12)


@pytest.mark.parametrize("local", ["composite", "own"])
@pytest.mark.parametrize(
    ("parts", "overlap", "subdomains"),
    [(1, 0, "graph"), (5, 0, "graph"), (3, 1, "both"), (2, 0, "parameters"), (2, 1, "parameters")],
)
def test_local_models_are_first_order_consistent(local, parts, overlap, subdomains):
    p = problem(local=local, dropout=0.5, subdomains=subdomains)
    d = p.decomposition(parts, overlap)
    f, x = sampled(p.objective(), 0), start(p)
    g = f.gradient(x)
    models, y = d.models(f, x, g), d.gather(x)
    assert d.parts == parts * (2 if subdomains == "both" else 1)
    assert torch.allclose(models.gradient(y), g * d.valid, atol=1e-15)
    v = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * d.valid
    slopes = (models.value(y + 1e-6 * v) - models.value(y - 1e-6 * v)) / 2e-6
    assert torch.allclose(slopes, (models.gradient(y) * v).sum(1), atol=1e-7)
    bend = (models.gradient(y + 1e-6 * v) - models.gradient(y - 1e-6 * v)) / 2e-6
    assert torch.allclose(models.hessian_product(y, v), bend, atol=1e-6)
    assert bool((models.gradient(y + 0.1 * v)[~d.valid] == 0).all()), "what a subdomain does not update must not move"
    for kind in ("ras", "wasm") if subdomains == "parameters" else ("wasm",):  # else nobody owns an unknown
        assert torch.allclose(d.scatter(d.weights(kind) * y), x)
    assert torch.allclose(d.scatter(d.weights("asm") * y), x * d.multiplicity)


@pytest.mark.parametrize("clustering", ["metis", "matching"])
def test_graded_clusters(clustering):
    ring = given_graph([(k, (k + 1) % 160) for k in range(160)], 160)
    options = {"name": ring, "clusters": 80, "clustering": clustering}
    plain, graded = problem(**options), problem(**options, grades=3)
    x = start(plain)
    sizes = [p.local_batch(p.parts(4), range(4)).batch.read for p in (plain, graded)]
    assert all(few < many for few, many in zip(*reversed(sizes), strict=True)), "coarser far away, so fewer nodes"
    f, d = graded.objective(), graded.decomposition(4)
    g = f.gradient(x)
    models, y = d.models(f, x, g), d.gather(x)
    assert torch.allclose(models.gradient(y), g.expand(4, -1), atol=1e-15)
    # the targets of all nodes are in every composite graph
    assert torch.allclose(models.f.batch.targets.view(4, -1).sum(1), torch.ones(4, dtype=torch.float64))


def test_own_models_are_the_mean_losses_of_the_parts():
    p = problem(local="own", decay=0.0)
    part, x = p.parts(3), start(p)
    f = p.local_batch(part, [0, 2], overlap=0)
    outputs = torch.log_softmax(p.logits(x), 1)
    for row, k in enumerate((0, 2)):
        own = (part == k) & DATA.train
        expected = -outputs[own, DATA.labels[own]].mean()
        assert torch.allclose(f.value(x.expand(2, -1))[row], expected, rtol=1e-12)


@pytest.mark.parametrize("local", ["composite", "own"])
def test_a_batch_is_a_loop(local):
    p = problem(local=local)
    part, x = p.parts(4), torch.stack([start(p, seed) for seed in range(4)])
    values, g = p.local_batch(part, range(4)).value_and_gradient(x)
    for k in range(4):
        value, row = p.local_batch(part, [k]).value_and_gradient(x[k : k + 1])
        assert torch.allclose(value[0], values[k], rtol=1e-13)
        assert torch.allclose(row[0], g[k], atol=1e-14)


def test_samples_differ_by_step_and_seed_and_are_repeatable():
    p = problem(dropout=0.5)
    f, x = p.objective(), start(p)
    assert hasattr(f, "sample")
    assert not hasattr(problem().objective(), "sample")
    assert not hasattr(f.sample(0), "sample")
    values = [float(f.sample(k).value(x)) for k in range(40)]
    assert len(set(values)) == 40
    assert values[3] == float(p.objective(3).value(x)) == float(problem(dropout=0.5).objective().sample(3).value(x))
    assert values[3] != float(problem(dropout=0.5, seed=1).objective(3).value(x))
    assert float(f.value(x)) == float(problem().objective().value(x))
    assert abs(np.mean(values) - float(f.value(x))) < 0.15 * float(f.value(x))


def test_levels():
    p = problem(clusters=40)
    hierarchy = p.hierarchy(3)
    x = start(p)
    assert [level.objective.size for level in hierarchy.levels] == [p.net.layout.size] * 3
    assert 1 > hierarchy[1].work > hierarchy[2].work > 0
    assert hierarchy[1].objective.batch.read[0] <= 40
    with counting() as cost:
        for level in hierarchy.levels:
            level.objective.gradient(x)
    assert cost.gradients == 1
    assert cost.work == pytest.approx(sum(level.work for level in hierarchy.levels))
    assert cost.synchronisations == 1
    for levels in (0, 5):
        with pytest.raises(ValueError, match=r"`levels` must be in 1\.\.4"):
            p.hierarchy(levels)
    same = replace(p, spaces=replace(p.spaces, clusters=240)).hierarchy(2)[1].objective
    assert torch.allclose(same.gradient(x), p.objective().gradient(x), atol=1e-14)


@pytest.mark.parametrize("local", ["composite", "own"])
def test_counting(local):
    p = problem(local=local)
    f, x, d = p.objective(), start(p), p.decomposition(4)
    g = f.gradient(x)
    with counting() as cost:
        models = d.models(f, x, g)
        models.gradient(d.gather(x))
    price = models.f.price.gradient
    assert 0.3 < price < 6
    assert (cost.gradients, cost.synchronisations) == (0, 0)
    assert cost.work == pytest.approx(2 * price)


def test_a_part_without_labels_and_isolated_nodes():
    train = torch.arange(24) < 3
    clique = [(a, b) for a in range(8) for b in range(a)]
    data = given_graph(
        clique + [(a + 8, b + 8) for a, b in clique], 24, train=train
    )  # two cliques, eight isolated nodes
    for model in ("gcn", "sage", "gin", "gat"):
        for local, more in (("composite", {}), ("composite", {"clustering": "matching", "grades": 3}), ("own", {})):
            p = problem(name=data, model=model, local=local, decay=0.1, **more)
            f, x, d = p.objective(), start(p), p.decomposition(6)
            g = f.gradient(x)
            models = d.models(f, x, g)
            assert torch.allclose(models.gradient(d.gather(x)), g.expand(6, -1), atol=1e-15)
            assert bool(torch.isfinite(models.value(d.gather(x))).all())
            metrics = p.metrics(x)
            assert set(metrics) == {"train_accuracy", "validation_accuracy", "test_accuracy"}
    local = problem(name=data, local="own", decay=0.1).local_batch((torch.arange(24) >= 3).long(), [0, 1])
    x = start(problem(name=data))
    assert torch.allclose(local.value(x.expand(2, -1))[1], 0.05 * x[: local.net.decayed].square().sum())


@pytest.mark.parametrize("options", [{}, {"local": "own"}, {"clustering": "matching"}, {"model": "gat"}])
def test_one_node_per_part_and_no_edges(options):
    data = given_graph([], 6)
    p = problem(name=data, **options)
    x = start(p)
    d = p.decomposition(6)
    models = d.models(p.objective(), x, p.objective().gradient(x))
    assert torch.allclose(models.gradient(d.gather(x)), p.objective().gradient(x).expand(6, -1), atol=1e-15)
    with pytest.raises(ValueError, match=r"`parts` must be .*<= nodes of the graph \(6\), got 7"):
        p.decomposition(7)


def test_sparse_features_are_those_of_dense_ones():
    random = np.random.default_rng(0)
    dense = DATA.features * torch.from_numpy(random.random((240, 6)) < 0.2)
    values = []
    for features in (dense, dense.to_sparse_csr()):
        p = problem(name=replace(DATA, features=features), dropout=0.5, labels="all")
        x = start(p)
        rows = [p.objective().gradient(x), p.objective(2).gradient(x)]
        d = p.decomposition(3)
        rows.append(d.models(p.objective(), x, rows[0]).gradient(d.gather(x) + 0.1).sum(0))
        values.append(torch.stack(rows))
    assert torch.allclose(*values, atol=1e-13)


def test_single_precision():
    p, q = problem(dtype="float32", dropout=0.5), problem(dropout=0.5)
    x = start(q)
    g = p.objective(1).gradient(x.float())
    assert g.dtype == torch.float32
    assert torch.allclose(g.double(), q.objective(1).gradient(x), atol=1e-5)
    assert p.initial(0).dtype == torch.float32
    assert p.objective().bounds.lower.dtype == torch.float32


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"dropout": 1.0}, r"`dropout` must be in \[0, 1\), got 1\.0"),
        ({"dropout": -0.1}, r"`dropout` must be in \[0, 1\), got -0\.1"),
        ({"dropout": float("nan")}, "`dropout` must be in"),
        ({"hidden": 0}, "`hidden` must be >= 1, got 0"),
        ({"layers": 0}, "`layers` must be >= 1, got 0"),
        ({"model": "cheb"}, "`model` must be one of gcn, sage, .*, gatv2, transformer, or file.py:Class, got 'cheb'"),
        ({"local": "global"}, "`local` must be one of composite, own, restricted, got 'global'"),
        ({"labels": "test"}, "`labels` must be one of train, all"),
        ({"dtype": "float16"}, "`dtype` must be one of"),
        ({"decay": -1.0}, "`decay` must be >= 0"),
        ({"clusters": -1}, "`clusters` must be >= 0, got -1"),
        ({"grades": 0}, "`grades` must be >= 1, got 0"),
        ({"clustering": "pairs"}, "`clustering` must be one of metis, matching, features, got 'pairs'"),
    ],
)
def test_refuses_options(options, words):
    with pytest.raises(ValueError, match=words):
        problem(**options)


def test_refuses_decompositions_and_data():
    p = problem()
    with pytest.raises(ValueError, match="`parts` must be >= 1.*, got 0"):
        p.decomposition(0)
    with pytest.raises(ValueError, match="`overlap` must be >= 0, got -1"):
        p.decomposition(2, -1)
    with pytest.raises(ValueError, match="`subdomains` must be one of graph, parameters, both"):
        problem(subdomains="nodes")
    with pytest.raises(ValueError, match="`parts` must be between 1 and 2"):
        problem(subdomains="parameters").decomposition(3)
    with pytest.raises(ValueError, match="`combine` must be one of"):
        p.decomposition(2).weights("sum")

    class Four:
        def Get_rank(self):  # noqa: N802
            return 0

        def Get_size(self):  # noqa: N802
            return 4

    with pytest.raises(ValueError, match="`parts` must be >= 4 for 4 ranks, got 3"):
        p.decomposition(3, comm=Communicator(Four()))
    with pytest.raises(DataError):
        NodeClassification("nowhere").objective()


def test_cora_trains():
    try:
        load_graph("cora")
    except DataError as error:
        pytest.skip(str(error))
    p = NodeClassification(dtype="float32")
    f, x = p.objective(), p.initial(0)
    m, v = torch.zeros_like(x), torch.zeros_like(x)
    for k in range(1, 121):
        g = f.sample(k).gradient(x)
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        x = x - 0.01 * (m / (1 - 0.9**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
    assert p.metrics(x)["test_accuracy"] > 0.79


def test_a_training_goes_on_with_a_partition_that_follows_its_messages():
    """Repartition by what crosses the edges: few nodes move, the weighted cut falls, the solver keeps its state."""
    trained = problem()
    f, graph = trained.objective(), trained.graph
    old = trained.parts(4)
    solver = solver_spec("dd-adagrad").make(
        decomposition=trained.decomposition(old, 1), **trained.settings("dd-adagrad")
    )
    first = minimise(f, trained.initial(0), solver, stop=Stop(max_steps=3))
    weights = trained.logits(first.x).norm(dim=1)[graph.edge_index].sum(0)  # of what the two ends send
    new = repartition(graph, old, weights)
    assert 0 < new.moved < graph.nodes / 2
    cut = [float(weights[p[graph.edge_index[0]] != p[graph.edge_index[1]]].sum()) for p in (old, new.part)]
    assert cut[1] < cut[0]
    moved = replace(solver, decomposition=trained.decomposition(new.part, 1))
    second = minimise(f, first.x, moved, stop=Stop(max_steps=6), state=first.state)
    assert second.record.step == 6
    assert float(f.value(second.x)) < float(f.value(first.x)) < float(f.value(trained.initial(0)))


def test_a_partition_of_ones_own_is_checked():
    trained = problem()
    with pytest.raises(ValueError, match="every part"):
        trained.decomposition(torch.full((trained.graph.nodes,), 2))
    with pytest.raises(ValueError, match="`part` must be int64"):
        trained.decomposition(torch.zeros(3, dtype=torch.int64))


def test_the_area_under_the_curve_is_a_metric():
    p = problem(name=replace(given_graph([(0, 1), (1, 2)], 30), metric="auc"))
    assert 0 <= p.metrics(start(p))["test_auc"] <= 1


def lattice(side):
    """Return data on a grid of nodes."""
    index = np.arange(side**2).reshape(side, side)
    edges = [*zip(index[1:].ravel(), index[:-1].ravel(), strict=True)]
    edges += [*zip(index[:, 1:].ravel(), index[:, :-1].ravel(), strict=True)]
    return given_graph(edges, side**2)


@pytest.mark.parametrize("model", ["gcn", "sage", "gin", "gat"])
def test_parts_with_as_much_overlap_as_layers_add_up_to_the_whole(model):
    p = problem(name=lattice(9), model=model, layers=3, decay=0.01, local="restricted", heads=1)
    f, x = p.objective(), start(p)
    errors = []
    for overlap in range(4):
        d = p.decomposition(3, overlap)
        own = d.models(f, x, None).gradient(d.gather(x))
        errors.append(float((d.shares_of(f) @ own - f.gradient(x)).abs().max()))
    assert errors[3] < 1e-13 and errors[0] > 1e-6, errors
    step = minimise(f, x, LocalSgd(p.decomposition(3, 3), Sgd(0.1), local_steps=1), stop=Stop(2)).x
    torch.testing.assert_close(step, minimise(f, x, Sgd(0.1), stop=Stop(2)).x, rtol=0, atol=1e-13)


def test_rows_that_are_cut_keep_their_sum():
    source = problem(name=lattice(6), model="sage").source
    nodes = np.arange(13)
    cut = source.restricted(nodes).operator
    np.testing.assert_allclose(np.asarray(cut.sum(1)), np.asarray(source.operator[nodes].sum(1)), rtol=1e-14)
    np.testing.assert_array_equal(cut.toarray() > 0, source.operator[nodes][:, nodes].toarray() > 0)
