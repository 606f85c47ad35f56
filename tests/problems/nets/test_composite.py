"""Composite graphs: exact on lifted graphs for every layer, clusters that grow with the distance."""

import numpy as np
import pytest
import torch

from mldd.graph import Graph
from mldd.problems.nets import GraphNet, Source, composite_labels, cross_entropy, distances, stack
from mldd.problems.nets.layers import layer_kinds, layer_of

KINDS = layer_kinds()
KIND = {"dtype": torch.float64, "device": "cpu"}
SIZES = (3, 3, 5, 1, 4)


def lifted(seed=0):
    """Return a graph of five clusters and the cluster of every node, in random order.

    Nodes of two clusters are joined completely or, where these have equal sizes, node a with a and a + 1; the last
    cluster is a cycle inside.
    """
    labels = np.repeat(np.arange(5), SIZES)
    block = [np.flatnonzero(labels == k) for k in range(5)]
    pairs = [(a, b) for i, j in ((0, 2), (2, 4), (1, 3), (2, 3)) for a in block[i] for b in block[j]]
    pairs += [(block[0][a], block[1][(a + s) % 3]) for a in range(3) for s in (0, 1)]
    pairs += [(block[4][a], block[4][(a + 1) % 4]) for a in range(4)]
    order = np.random.default_rng(seed).permutation(len(labels))
    edges = torch.from_numpy(np.argsort(order)[np.array(pairs)].T)
    both = torch.cat([edges, edges.flip(0)], 1)
    ends = labels[order][both.numpy()]  # attributes depend on the clusters of both ends, and on the direction
    attributes = torch.from_numpy(np.stack([np.sin(1.0 + ends[0] + 3 * ends[1]), np.cos(5.0 * ends[0] - ends[1])], 1))
    return Graph.from_edges(both, len(labels), edge_attributes=attributes), labels[order]


def evaluate(net, batch, x):
    point = x.clone().requires_grad_()
    outputs = net.outputs(net.layout.views(point), batch)
    value = cross_entropy(outputs, batch.targets, batch.parts)
    return outputs.detach(), value.detach(), torch.autograd.grad(value, point)[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("fine", ["none", "some", "all"])
def test_a_lift_of_its_quotient_is_exact(kind, fine):
    graph, clusters = lifted()
    random = np.random.default_rng(1)
    features, targets = random.standard_normal((5, 4))[clusters], random.random((len(clusters), 3))
    layer = layer_of(kind)
    source = Source.of(kind, layer.operator(graph), features, targets, layer.attributes(graph))
    options = {"heads": 2 if layer.many_heads else 1, "edge_attributes": 2 if layer.edge_inputs else 0}
    net = GraphNet(kind, (4, 6, 6, 3), residual=True, **options)
    x = net.initial(0) + 0.1 * torch.randn(net.layout.size, generator=torch.Generator().manual_seed(0))
    own = {"none": clusters < 0, "some": np.arange(len(clusters)) % 3 == 0, "all": clusters >= 0}[fine]
    labels = composite_labels(own, clusters)
    whole = stack([source.piece(np.arange(len(clusters)), 3)], single=True, **KIND)
    composite = stack([source.aggregated(labels, 3)], single=True, **KIND)
    outputs, value, g = evaluate(net, whole, x)
    coarse, other, row = evaluate(net, composite, x)
    assert torch.allclose(coarse[torch.from_numpy(labels)], outputs, rtol=1e-12, atol=1e-13)
    assert torch.allclose(other, value, rtol=1e-12)
    assert torch.allclose(row, g, rtol=1e-10, atol=1e-12)


def test_sums_and_multiplicities_are_mean_numbers_of_neighbours():
    graph, clusters = lifted()
    labels = composite_labels(clusters == 0, clusters)
    counts = np.zeros((len(graph.degree), labels.max() + 1))
    np.add.at(counts, (graph.edge_index[0].numpy(), labels[graph.edge_index[1].numpy()]), 1.0)
    expected = np.stack([counts[labels == k].mean(0) for k in range(labels.max() + 1)])
    x, y = np.ones((len(labels), 2)), np.ones((len(labels), 2))
    for kind, diagonal in (("gin", 0.0), ("gat", 1.0)):
        piece = Source.of(kind, layer_of(kind).operator(graph), x, y).aggregated(labels, 2)
        found = piece.operators[1][-1].toarray()
        assert np.allclose(found, (expected + diagonal * np.eye(len(expected)))[np.ix_(piece.nodes, piece.nodes)])


def test_clusters_grow_with_the_distance():
    n = 64
    path = Graph.from_edges(torch.stack([torch.arange(n - 1), torch.arange(1, n)]), n)
    node = np.arange(n)
    own = (node >= 8) & (node < 12)
    hops = distances(path, own, 20)
    assert np.array_equal(hops, np.minimum(np.maximum(np.maximum(8 - node, node - 11), 0), 21))
    labels = composite_labels(own, [node // 2, node // 4, node // 16], hops, [2, 12])
    assert np.array_equal(labels[own], np.arange(4))
    sizes = np.bincount(labels)[labels]
    assert set(sizes[own]) == {1}
    nearest = np.array([hops[labels == k].min() for k in labels])
    for size, least in ((4, 3), (16, 13)):
        assert (nearest[sizes == size] >= least).all()
    expected = np.select([own, node < 4, node < 16, node < 32], [1, 4, 2, 4], 16)
    assert np.array_equal(sizes, expected)
    assert np.array_equal(composite_labels(own, node // 2), composite_labels(own, [node // 2]))


def test_distances_end_where_asked_and_islands_are_far():
    graph = Graph.from_edges(torch.tensor([[0, 1], [1, 2]]), 5)
    own = np.arange(5) == 0
    assert distances(graph, own, 1).tolist() == [0, 1, 2, 2, 2]
    assert distances(graph, own, 9).tolist() == [0, 1, 2, 10, 10]


@pytest.mark.parametrize(
    ("reach", "hops", "message"),
    [([], None, "no `hops`"), ([1, 2], np.zeros(4), "2 maps"), ([], np.zeros(4), "2 maps")],
)
def test_bad_grades(reach, hops, message):
    with pytest.raises(ValueError, match=f"`reach` must ascend, one number less than maps .* got {message}"):
        composite_labels(np.zeros(4, bool), [np.arange(4), np.zeros(4, np.int64)], hops, reach)
