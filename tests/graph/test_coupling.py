"""Weights of edges against their formulas, entry by entry."""

import numpy as np
import pytest
import torch

from mldd.graph import Graph, edge_weights
from mldd.graph.coupling import attention_weights, distance_weights, opposite, points
from tests.small_graphs import grid


def random(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def is_symmetric(graph, weights):
    matrix = Graph(graph.indptr, graph.indices, weights).scipy()
    return abs(matrix - matrix.T).max() <= 1e-14 * abs(matrix).max()


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_edge_weights_are_cosines(monkeypatch):
    monkeypatch.setattr("mldd.graph.coupling._CHUNK", 50)  # several chunks
    graph = grid(6)
    features = torch.randn(36, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    features[features.abs() < 0.7] = 0
    features[4] = 0
    features[1] = -features[0]
    weights = edge_weights(graph, features)
    for (i, j), weight in zip(graph.edge_index.T.tolist(), weights.tolist(), strict=True):
        cosine = torch.nn.functional.cosine_similarity(features[i], features[j], dim=0).item()
        assert weight == pytest.approx(max(1 + cosine, 1e-3), abs=1e-12)
    matrix = Graph(graph.indptr, graph.indices, weights).scipy()
    assert abs(matrix - matrix.T).max() == 0
    torch.testing.assert_close(edge_weights(graph, features.to_sparse_csr()), weights, rtol=0, atol=1e-14)


def test_distance_weights_follow_great_circles():
    """One degree of latitude, and one of longitude at 60 degrees north, across 180 degrees: half as long."""
    place = torch.tensor([[60.0, 179.5], [61.0, 179.5], [60.0, -179.5]])
    graph = Graph.from_edges(torch.tensor([[0, 0], [1, 2]]), 3)
    weights = distance_weights(graph, place)
    cosine = np.sin(np.radians(60)) ** 2 + np.cos(np.radians(60)) ** 2 * np.cos(np.radians(1))
    length = {(0, 1): np.radians(1), (0, 2): np.arccos(cosine)}
    mean = np.mean(list(length.values()))
    for (i, j), weight in zip(graph.edge_index.T.tolist(), weights.tolist(), strict=True):
        assert weight == pytest.approx(mean / length[tuple(sorted((i, j)))], rel=1e-9)
    assert is_symmetric(graph, weights)


def test_distance_weights_of_cartesian_points_and_equal_ones():
    graph = Graph.from_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4)
    weights = distance_weights(graph, torch.tensor([[0.0, 0, 0], [3.0, 4, 0], [3.0, 4, 0], [3.0, 4, 10]]))
    assert weights.tolist() == pytest.approx([1.0, 1.0, 1000.0, 1000.0, 0.5, 0.5])
    assert distance_weights(graph, torch.zeros(4, 3)).tolist() == [1.0] * 6
    assert points(torch.tensor([[0.0, 0.0], [0.0, 90.0], [90.0, 5.0]]), 3) == pytest.approx(np.eye(3), abs=1e-15)


def test_attention_weights():
    graph = grid(3)
    heads = random(graph.edges, 2)
    weights = attention_weights(graph, heads)
    pair = {tuple(e): abs(a).mean() for e, a in zip(graph.edge_index.T.tolist(), heads.abs().numpy(), strict=True)}
    expected = [pair[i, j] + pair[j, i] for i, j in graph.edge_index.T.tolist()]
    assert weights.tolist() == pytest.approx(expected) and is_symmetric(graph, weights)
    assert attention_weights(graph, torch.zeros(graph.edges)).tolist() == [1.0] * graph.edges
    one = torch.zeros(graph.edges)
    one[0] = 1.0
    assert float(attention_weights(graph, one).min()) == pytest.approx(1e-3 * 2 / graph.edges)


def test_opposite():
    graph = Graph.from_edges(torch.tensor([[0, 0, 1, 4, 2], [1, 3, 3, 0, 4]]), 5)
    assert torch.equal(graph.edge_index[:, torch.from_numpy(opposite(graph))], graph.edge_index.flip(0))


def test_weights_say_what_is_wrong():
    graph = grid(2)
    for call, message in (
        (lambda: edge_weights(graph, torch.ones(3, 2)), "`features` must have shape"),
        (lambda: distance_weights(graph, torch.ones(3, 2)), "`coordinates` must have shape"),
        (lambda: distance_weights(graph, torch.full((4, 2), torch.inf)), "`coordinates` must be finite, got 8 values"),
        (lambda: attention_weights(graph, torch.ones(3)), r"`attention` must have shape \(8,\) or \(E, heads\)"),
        (lambda: attention_weights(graph, torch.full((8,), torch.nan)), "`attention` must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            call()
