"""What every kind of layer keeps: shards, composite graphs and derivatives agree with the whole graph."""

from __future__ import annotations

import textwrap

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from hypothesis import given

import mldd
from mldd.graph import Graph
from mldd.problems.data import GraphData, write
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import Network, NodeClassification, NodeLoss, ShardedClassification
from mldd.problems.nets import GraphNet, Source, stack
from mldd.problems.nets.layers import GCN, SAGE, Layer, layer_kinds, layer_of
from tests.small_graphs import dense, few, graphs

KIND = {"dtype": torch.float64, "device": "cpu"}


def graph(n=24, seed=0):
    """A random graph whose last node is isolated; its edges have two attributes, others in each direction."""
    random = np.random.default_rng(seed)
    edges = random.integers(n - 1, size=(2, 2 * n))
    both = torch.from_numpy(np.concatenate([edges, edges[::-1]], axis=1))
    return Graph.from_edges(both, n, edge_attributes=torch.from_numpy(random.standard_normal((4 * n, 2))))


def attributes(kind):
    return len(layer_of(kind).attributes(graph()))


def rows_of_a_shard_are_those_of_the_whole(layer: Layer) -> None:
    whole, adjacency = layer.operator(graph()).toarray(), graph().scipy(weighted=False)
    degrees = np.asarray(adjacency.sum(1), dtype=float).ravel()
    for own in (np.arange(8), np.arange(5, 24), np.array([23])):
        order = np.concatenate([own, np.delete(np.arange(24), own)])  # own nodes come first, as in a shard
        rows = sp.csr_matrix(adjacency[own][:, order])
        got = layer.values(layer.looped(rows), degrees[own], degrees[order])
        np.testing.assert_allclose(got.toarray(), whole[own][:, order], atol=1e-14)
        away = sp.csr_matrix(adjacency[order[len(own) :]][:, own])  # entries of the halo's rows
        got = layer.values(away, degrees[order[len(own) :]], degrees[own])
        np.testing.assert_allclose(got.toarray(), whole[order[len(own) :]][:, own], atol=1e-14)


@few
@given(graphs())
def test_operators_of_gcn_and_sage(case):
    n, edges = case
    graph, a = Graph.from_edges(edges, n), dense(n, edges)
    loops = a + np.eye(n)
    root = np.diag(loops.sum(1) ** -0.5)
    np.testing.assert_allclose(GCN().operator(graph).toarray(), root @ loops @ root, atol=1e-15)
    mean = a / np.maximum(a.sum(1), 1)[:, None]
    np.testing.assert_allclose(SAGE().operator(graph).toarray(), mean, atol=1e-15)


def test_operators_with_weights():
    graph = Graph.from_edges(torch.tensor([[0, 1], [1, 2]]), 3, torch.tensor([3.0, 1.0]))
    assert SAGE().operator(graph, weighted=True).toarray().tolist() == [[0, 1, 0], [0.75, 0, 0.25], [0, 1, 0]]
    assert SAGE().operator(graph).toarray().tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]


def loss(kind: str, batch_of) -> tuple[GraphNet, NodeLoss]:
    random = np.random.default_rng(1)
    x, y, layer = random.standard_normal((24, 4)), random.random((24, 3)), layer_of(kind)
    source = Source.of(kind, layer.operator(graph()), x, y, layer.attributes(graph()))
    heads = 2 if layer_of(kind).many_heads else 1
    net = GraphNet(kind, (4, 6, 6, 3), heads=heads, activation="tanh", edge_attributes=attributes(kind))
    return net, NodeLoss(net, stack([batch_of(source)], single=True, **KIND), 0.1)


def composite_graphs_of_single_nodes_are_the_whole(kind: str) -> None:
    net, whole = loss(kind, lambda source: source.piece(np.arange(24), 3))
    _, composite = loss(kind, lambda source: source.aggregated(np.arange(24), 3))
    _, plain = loss(kind, lambda source: source.piece(np.arange(24), 3, propagated=False))
    x = net.initial(3) + 0.1
    for other in (composite, plain):
        torch.testing.assert_close(other.value(x), whole.value(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(other.gradient(x), whole.gradient(x), rtol=1e-10, atol=1e-12)


def gradients_are_differences(kind: str) -> None:
    net, f = loss(kind, lambda source: source.piece(np.arange(24), 3))
    x, generator = net.initial(0) + 0.1, torch.Generator().manual_seed(0)
    g = f.gradient(x)
    for _ in range(3):
        v = torch.randn(len(x), generator=generator, dtype=x.dtype)
        h = 1e-5
        difference = (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)
        torch.testing.assert_close(difference, g @ v, rtol=1e-6, atol=1e-8)
        difference = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
        assert float((f.hessian_product(x, v) - difference).norm()) <= 1e-5 * float(difference.norm())


def parameters_are_declared(kind: str) -> None:
    layer, net = layer_of(kind), loss(kind, lambda source: source.piece(np.arange(24), 3))[0]
    named = layer.tensors(4, 6, attributes=net.edge_attributes)
    assert set(layer.inputs) | set(layer.scores) | set(layer.inner) | set(layer.edge_inputs) <= set(named)
    assert all(named[name][0] == 4 for name in layer.inputs)
    assert all(named[name][0] == 2 for name in layer.edge_inputs)
    assert not set(layer.edge_inputs) & set(layer.tensors(4, 6))
    assert net.layout.size == len(net.initial(0))


def data(seed=0):
    """A graph of three classes with an isolated node and attributes of edges."""
    random, labels = np.random.default_rng(seed), torch.arange(24) % 3
    masks = [torch.arange(24) % 4 == k for k in (0, 1, 2)]
    return GraphData("small", graph(), torch.from_numpy(random.standard_normal((24, 5))), labels, *masks, classes=3)


def shards_are_the_whole(kind: str, tmp_path) -> None:
    heads = 2 if layer_of(kind).many_heads else 1
    options = {"model": kind, "hidden": 6, "layers": 3, "heads": heads, "clusters": 5}
    for dropout in (0.0, 0.4):
        whole = mldd.problem(NodeClassification, name=data(), dropout=dropout, **options)
        x = whole.initial(1) + 0.05
        for parts in (1, 2, 3):
            write(data(), torch.arange(24) % parts, tmp_path / str(parts))
            shards = mldd.problem(ShardedClassification, folder=tmp_path / str(parts), dropout=dropout, **options)
            for f, g in ((whole.objective(), shards.objective()), (whole.objective(3), shards.objective(3))):
                torch.testing.assert_close(g.value(x), f.value(x), rtol=1e-12, atol=0)
                torch.testing.assert_close(g.gradient(x), f.gradient(x), rtol=1e-10, atol=1e-13)
            torch.testing.assert_close(shards.logits(x), whole.logits(x)[shards.shard.numbers], rtol=1e-11, atol=1e-12)


def isolated_nodes_see_themselves(kind: str) -> None:
    net, f = loss(kind, lambda source: source.piece(np.array([23]), 3))
    assert f.batch.rows == (1, 1, 1, 1)
    assert f.value(net.initial(0)).isfinite() and f.gradient(net.initial(0)).isfinite().all()


@pytest.mark.parametrize("kind", layer_kinds())
def test_every_kind_keeps_the_contract(kind, tmp_path):
    parameters_are_declared(kind)
    rows_of_a_shard_are_those_of_the_whole(layer_of(kind))
    composite_graphs_of_single_nodes_are_the_whole(kind)
    gradients_are_differences(kind)
    shards_are_the_whole(kind, tmp_path)
    isolated_nodes_see_themselves(kind)


class SumElsewhere(SAGE):
    """Sum over neighbours on whole graphs, forgotten for shards."""

    def operator(self, graph, weighted=False):
        return graph.scipy(weighted=weighted)


class SumGiven(SAGE):
    """The same, where it belongs."""

    def values(self, pattern, rows, columns):
        return pattern


class LoopForgotten(GCN):
    """The diagonal is added on whole graphs alone."""

    def looped(self, adjacency):
        return super().looped(adjacency) if adjacency.shape[0] == adjacency.shape[1] else adjacency


def test_wrong_layers_are_caught_and_right_ones_are_not():
    rows_of_a_shard_are_those_of_the_whole(SumGiven())
    for wrong in (SumElsewhere(), LoopForgotten()):
        with pytest.raises(AssertionError):
            rows_of_a_shard_are_those_of_the_whole(wrong)


def test_a_layer_from_a_file_is_trained_like_a_kind_of_ours(tmp_path):
    (tmp_path / "my_layer.py").write_text(
        textwrap.dedent(
            """
            from dataclasses import dataclass
            from mldd.problems.nets.layers import SAGE

            @dataclass(frozen=True)
            class Sum(SAGE):
                def values(self, pattern, rows, columns):
                    return pattern
            """
        )
    )
    kind = f"{tmp_path / 'my_layer.py'}:Sum"
    composite_graphs_of_single_nodes_are_the_whole(kind)
    gradients_are_differences(kind)
    problem = NodeClassification(sbm(nodes=60), network=Network(model=kind, dropout=0.0))
    f, x = problem.objective(), problem.initial(0)
    mean = NodeClassification(sbm(nodes=60), network=Network(model="sage", dropout=0.0)).objective()
    assert problem.hierarchy(2)[1].objective.value(x).isfinite() and f.value(x) != mean.value(x)


def test_an_unknown_kind_and_a_class_that_is_none_are_refused(tmp_path):
    with pytest.raises(ValueError, match="`kind` must be one of gcn, sage, .*, or file.py:Class, got 'cheb'"):
        layer_of("cheb")
    with pytest.raises(ValueError, match="must be a subclass of mldd.problems.nets.layers.Layer"):
        layer_of("mldd.problems.graphs:NodeClassification")
