"""Classification in shards on one rank: loss, derivatives, coarse graphs, local models are those of the whole graph."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.algebra import counting, innermost, sampled
from mldd.command import names
from mldd.graph import Graph, nested, partition
from mldd.problems.data import DataError, GraphData, write
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import Network, NodeClassification, NodeLoss, ShardedClassification
from mldd.problems.graphs.shard_clusters import ShardClusters
from mldd.problems.nets import composite_labels, stack
from mldd.problems.nets.layers import layer_kinds, layer_of
from mldd.ranks import SERIAL
from tests.helpers import result
from tests.small_graphs import sharded

MODELS = layer_kinds()


@pytest.fixture(scope="module")
def data():
    return sbm(nodes=120, classes=3, features=4)


@pytest.fixture(scope="module")
def part(data):
    return partition(data.graph, 4)


def close(a, b, tolerance=1e-12):
    return bool((a - b).norm() <= tolerance * (b.norm() + 1e-300))


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("layers", [1, 3])
def test_loss_and_derivatives_are_those_of_the_whole_graph(data, part, model, layers):
    options = {"model": model, "layers": layers, "hidden": 6, "dropout": 0.3, "labels": "all"}
    if layers == 3:
        options |= {"residual": True, "activation": "elu", "heads": 2 if layer_of(model).many_heads else 1}
    one, whole = sharded(data, part, **options), mldd.problem(NodeClassification, name=data, **options)
    x = one.initial(0) + 0.1
    v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
    for step in (None, 2):
        f, g = (p.objective() if step is None else sampled(p.objective(), step) for p in (one, whole))
        for a, b in zip((*f.value_and_gradient(x), f.value(x)), (*g.value_and_gradient(x), g.value(x)), strict=True):
            assert close(a, b)
        assert close(f.hessian_product(x, v), g.hessian_product(x, v), 1e-11)
    assert one.metrics(x) == pytest.approx(whole.metrics(x))
    assert close(one.logits(x), whole.logits(x)[torch.from_numpy(one.shard.numbers)])


def test_files_and_memory_hold_the_same_problem(data, part, tmp_path):
    write(data, part, tmp_path)
    one, other = (
        ShardedClassification(tmp_path, network=Network(dropout=0.0)),
        ShardedClassification.of(data, part, network=Network(dropout=0.0)),
    )
    x = one.initial(3)
    assert close(one.objective().gradient(x), other.objective().gradient(x))


def clusters_of(problem, parts, clusters):
    """Cluster of every node by its global number, those of a local model."""
    part = problem.parts(parts)
    (found,) = ShardClusters.of(problem.graph, part, np.bincount(part), [clusters], problem.seed)
    labels = np.empty(problem.shard.own, dtype=np.int64)
    labels[problem.shard.numbers] = found.own
    return labels


@pytest.mark.parametrize("model", MODELS)
def test_composite_local_models_are_those_of_the_whole_graph(data, part, model):
    """The oracle aggregates the whole graph; shards only ever see clusters of other parts."""
    options = {"model": model, "hidden": 5, "dropout": 0.0, "clusters": 12}
    one, whole = sharded(data, part, **options), mldd.problem(NodeClassification, name=data, **options)
    f, x = one.objective(), one.initial(0) + 0.1
    decomposition = one.decomposition(4)
    g = f.gradient(x)
    local = decomposition.models(f, x, g)
    assert close(local.gradient(decomposition.gather(x)), g.expand(4, -1))  # first-order consistent
    clusters = clusters_of(one, 4, 12)
    assert all(len(set(part.numpy()[clusters == c])) == 1 for c in range(clusters.max() + 1))
    pieces = [whole.source.aggregated(composite_labels((part == k).numpy(), clusters), 2) for k in range(4)]
    oracle = NodeLoss(whole.net, stack(pieces, dtype=torch.float64), whole.network.decay)
    y = (decomposition.gather(x) + 0.01 * torch.arange(4)[:, None]).contiguous()
    theirs = whole.decomposition(part).models(whole.objective(), x, g).f
    for a, b, c in zip(*(h.value_and_gradient(y) for h in (local.f, oracle, theirs)), strict=True):
        assert close(a, b) and close(a, c)


def test_clusters_are_those_of_the_whole_graph(data, part):
    one = ShardedClassification.of(data, part)
    sizes = [24, 8]
    found = ShardClusters.of(one.graph, one.shard.part, one.shard.whole.sizes, sizes, 0)
    for clusters, theirs in zip(found, nested(data.graph, sizes, within=part), strict=True):
        labels = np.empty(120, dtype=np.int64)
        labels[one.shard.numbers] = clusters.own
        assert clusters.total == int(theirs.max()) + 1 and np.array_equal(labels, theirs.numpy())


def test_more_clusters_than_nodes_are_a_cluster_per_node(data, part):
    few, many = (
        ShardedClassification.of(data, part, network=Network(hidden=5, dropout=0.0), clusters=clusters)
        for clusters in (120, 10_000)
    )
    x = few.initial(0)
    assert torch.equal(*(one.hierarchy(2).levels[1].objective.gradient(x) for one in (few, many)))


@pytest.mark.parametrize(("parts", "of"), [(4, 1), (8, 1), (2, 2), (1, 4)])
def test_subdomains_are_shards_or_pieces_or_unions_of_them(data, part, parts, of):
    one = ShardedClassification.of(data, part)
    found = one.parts(parts)
    shard = part.numpy()[one.shard.numbers]
    assert sorted(set(found)) == list(range(parts))
    assert np.array_equal(shard // of, found // max(parts // 4, 1))


def test_a_cluster_per_node_gives_the_loss_itself(data, part):
    one = ShardedClassification.of(data, part, network=Network(hidden=5, dropout=0.0), clusters=120)
    f, x = one.objective(), one.initial(0) + 0.1
    assert close(one.hierarchy(2).levels[1].objective.gradient(x), f.gradient(x))
    local = one.decomposition(4).models(f, x, None)
    assert close(local.gradient(x.expand(4, -1)), f.gradient(x).expand(4, -1))


def test_own_local_models_are_mean_losses_on_the_graph_of_the_own_nodes(data, part):
    """By dense matrices: the rows of the propagation are those of the whole graph, its columns the own nodes."""
    one = ShardedClassification.of(data, part, network=Network(hidden=5, dropout=0.0, decay=0.0), local="own")
    f, x = one.objective(), one.initial(0) + 0.1
    values = one.decomposition(4).models(f, x, None).value(x.expand(4, -1))
    A = torch.from_numpy(layer_of("gcn").operator(data.graph).toarray())
    w1, b1, w2, b2 = x.split([20, 5, 15, 3])
    hidden = torch.relu(A @ data.features.double() @ w1.view(4, 5) + b1)
    for k in range(4):
        own, labelled = part == k, data.train[part == k]
        z = A[own][:, own] @ hidden[own] @ w2.view(5, 3) + b2
        assert close(values[k], torch.nn.functional.cross_entropy(z[labelled], data.labels[own][labelled]))


@pytest.mark.parametrize("local", ["composite", "own"])
def test_parts_of_a_rank_can_be_taken_alone(data, part, local):
    one = ShardedClassification.of(data, part, network=Network(hidden=5, dropout=0.0), local=local)
    f, x = one.objective(), one.initial(0)
    d = one.decomposition(4)
    together = d.models(f, x, None).gradient(d.gather(x))
    for k in range(4):
        alone = d.alone(k)
        assert close(alone.models(f, x, None).gradient(alone.gather(x))[0], together[k])


def test_levels(data, part):
    one = ShardedClassification.of(data, part, network=Network(dropout=0.0), clusters=32)
    hierarchy = one.hierarchy(3)
    sizes = [len(level.objective.batch.nodes[0]) for level in hierarchy.levels[1:]]
    assert sizes[0] <= 32 and sizes[1] <= 8
    assert [level.work < 1 for level in hierarchy.levels] == [False, True, True]
    for levels in (0, 7):
        with pytest.raises(ValueError, match=rf"`levels` must be in 1..3 for 32 clusters .* got {levels}"):
            one.hierarchy(levels)


def test_parts_without_labelled_nodes_and_isolated_nodes():
    """Labels on the first five of 20 nodes, the last five without edges."""
    number = torch.arange(20)
    edges = torch.stack([number[:14], number[1:15]])
    masks = [number < 5, (number >= 5) & (number < 10), number >= 10]
    data = GraphData("short", Graph.from_edges(edges, 20), torch.rand(20, 3).double(), number % 2, *masks, 2)
    whole = NodeClassification(data, network=Network(dropout=0.0, hidden=4, layers=3))
    for part in (number // 5, number, number % 4):
        for local in ("composite", "own"):
            one = ShardedClassification.of(data, part, network=Network(dropout=0.0, hidden=4, layers=3), local=local)
            x = one.initial(0) + 0.1
            f = one.objective()
            assert close(f.gradient(x), whole.objective().gradient(x))
            parts = len(one.shard.whole.sizes)
            models = one.decomposition(parts).models(f, x, f.gradient(x))
            assert close(models.gradient(x.expand(parts, -1)), f.gradient(x).expand(parts, -1))


def test_no_labelled_node_at_all_is_refused(data, part):
    one = ShardedClassification.of(data, part)
    shard = replace(one.shard, data=replace(one.shard.data, train=np.zeros(120, dtype=bool)))
    with pytest.raises(DataError, match="at least one labelled node is needed, got none"):
        ShardedClassification(shard).objective()


def test_only_what_the_outputs_depend_on_is_computed():
    """Of a path with one label at its end, two layers read three nodes."""
    number = torch.arange(30)
    edges = torch.stack([number[:-1], number[1:]])
    masks = [number == 0, number == 1, number > 1]
    data = GraphData("path", Graph.from_edges(edges, 30), torch.eye(30).double(), number % 2, *masks, 2)
    f = ShardedClassification.of(data, number // 15, network=Network(dropout=0.0, model="gat")).objective()
    assert f.batch.rows == (3, 2, 1) and f.batch.nodes.tolist() == [[0, 1, 2]]


def test_options_that_make_no_sense(data, part):
    one = ShardedClassification.of(data, part)
    for call, message in (
        (lambda: ShardedClassification.of(data, part, network=Network(model="mlp")), "`model` must be one of"),
        (lambda: ShardedClassification.of(data, part, network=Network(dropout=1.0)), r"`dropout` must be in \[0, 1\)"),
        (lambda: ShardedClassification.of(data, part, network=Network(layers=0)), "`layers` must be >= 1, got 0"),
        (lambda: one.decomposition(4, 1), "`overlap` must be 0 for a graph in shards, got 1"),
        (lambda: one.decomposition(0), "`parts` must be >= 1, got 0"),
        (
            lambda: one.decomposition(6),
            "`parts` must be a multiple of the 4 shards, or .* got 6; parts=4",
        ),
        (lambda: one.decomposition(480), r"`parts` must be <= (\d+) for \d+ nodes in a shard, got 480"),
    ):
        with pytest.raises(ValueError, match=message):
            call()

    class Ranks(type(SERIAL)):
        ranks = 2

    with pytest.raises(ValueError, match="`comm` must have the 1 ranks that hold the shards, got 2"):
        one.decomposition(4, 0, Ranks())


def test_bytes_are_told_by_kind(data, part):
    one = ShardedClassification.of(data, part, network=Network(dropout=0.0))
    details = one.details()
    (here,) = details["ranks"]
    assert details["shards"] == 4 and details["halo"] == "exact" and (here["own_nodes"], here["halo_nodes"]) == (120, 0)
    batch = innermost(one.objective()).batch
    assert here["features"] == 8 * batch.features[0].numel() and here["targets"] == 8 * batch.targets.numel()
    assert here["peak"] > here["shard"] == one.shard.bytes and here["operators"] > 0


def test_a_single_rank_exchanges_nothing(data, part):
    f = ShardedClassification.of(data, part, network=Network(dropout=0.0)).objective()
    with counting() as cost:
        f.gradient(torch.zeros(f.size, dtype=torch.float64))
    assert (cost.gradients, cost.work, cost.exchanges, cost.halo_rows) == (1, 1.0, 0, 0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype(data, part, dtype):
    one = ShardedClassification.of(data, part, network=Network(model="sage"), dtype=dtype)
    f = one.objective()
    assert f.gradient(one.initial(0)).dtype == getattr(torch, dtype) == innermost(f).batch.targets.dtype
    assert (
        one.decomposition(2).models(f, one.initial(0), None).gradient(one.initial(0).expand(2, -1)).dtype
        == innermost(f).batch.targets.dtype
    )


# the command line


def test_train_reads_a_folder(run, tmp_path, data, part, without_figures):
    write(data, part, tmp_path / "shards")
    code, _, err = run(
        f"train {tmp_path}/shards:hidden=4 --solver dd-adagrad --levels 2 --steps 3 --out", tmp_path / "out"
    )
    assert (code, err) == (0, "")
    content = result(tmp_path / "out")
    assert (content["parts"], content["overlap"], content["levels"]) == (4, 0, 2)
    assert content["details"]["shards"] == 4 and content["exchanges"] == 0
    assert "test_accuracy" in content["metrics"]


def test_a_damaged_folder_is_one_line(run, tmp_path, data, part):
    write(data, part, tmp_path)
    (tmp_path / "part-00001.npz").write_bytes(b"")
    code, _, err = run(f"train {tmp_path} --solver adam --steps 3")
    assert code == 2 and err.count("\n") == 1 and "part-00001.npz: expected sha256" in err


def test_a_folder_is_a_problem_and_a_name_stays_one(tmp_path, data, part, monkeypatch):
    write(data, part, tmp_path / "cora")
    write(data, part, tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert names.problem_spec("cora").kind is NodeClassification
    spec = names.problem_spec("mine:model=gat,layers=3")
    assert spec.kind is ShardedClassification
    assert (spec.keys, spec.fixed) == ({"network.model": "gat", "network.layers": 3}, {"folder": "mine"})
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="unknown problem 'empty'"):
        names.problem_spec("empty")


def test_settings_are_those_of_node_classification(data, part):
    one, whole = ShardedClassification.of(data, part), NodeClassification(data)
    for solver in ("adam", "lbfgs", "dd-adagrad"):
        assert one.settings(solver) == whole.settings(solver) | {"parts": 4, "overlap": 0}


def test_missing_folder(tmp_path):
    with pytest.raises(DataError, match="expected a manifest of shards"):
        _ = ShardedClassification(tmp_path / "none").shard
