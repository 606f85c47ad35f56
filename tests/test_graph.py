"""Graph operations against dense matrices and brute force."""

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mldd.aggregation import aggregate
from mldd.graph import Graph, grow, normalised
from mldd.partition import _repaired, edge_weights, partition, report

pymetis = pytest.importorskip("pymetis", reason="partitions need pymetis")


@st.composite
def graphs(draw, most=12):
    n = draw(st.integers(1, most))
    node = st.integers(0, n - 1)
    pairs = draw(st.lists(st.tuples(node, node), max_size=30))
    return n, torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2).T


def dense(n, edges):
    matrix = np.zeros((n, n))
    for i, j in edges.T.tolist():
        if i != j:
            matrix[i, j] = matrix[j, i] = 1
    return matrix


def grid(side):
    number = torch.arange(side * side).reshape(side, side)
    right = torch.stack([number[:, :-1].ravel(), number[:, 1:].ravel()])
    down = torch.stack([number[:-1].ravel(), number[1:].ravel()])
    return Graph.from_edges(torch.cat([right, down], 1), side * side)


few = settings(max_examples=40, deadline=None)


@few
@given(graphs())
def test_from_edges_symmetrises_and_merges(case):
    n, edges = case
    graph, oracle = Graph.from_edges(edges, n), dense(n, edges)
    assert np.array_equal(graph.scipy().toarray(), oracle)
    assert graph.nodes == n and graph.edges == oracle.sum()
    assert graph.degree.tolist() == oracle.sum(1).tolist()
    assert torch.equal(graph.edge_index, torch.from_numpy(np.stack(np.nonzero(oracle))))
    assert graph.weights is None
    again = Graph.from_edges(graph.edge_index, n)
    assert torch.equal(again.indptr, graph.indptr) and torch.equal(again.indices, graph.indices)


@few
@given(graphs())
def test_components(case):
    n, edges = case
    reach = np.linalg.matrix_power(dense(n, edges) + np.eye(n), n) > 0
    labels = Graph.from_edges(edges, n).components().numpy()
    assert np.array_equal(labels[:, None] == labels, reach)


@few
@given(graphs(), st.integers(0, 4), st.randoms())
def test_grow_is_a_matrix_power(case, hops, random):
    n, edges = case
    graph = Graph.from_edges(edges, n)
    nodes = torch.tensor(sorted(random.sample(range(n), random.randint(0, n))), dtype=torch.int64)
    mask = torch.zeros(n, dtype=torch.bool)
    mask[nodes] = True
    oracle = np.linalg.matrix_power(dense(n, edges) + np.eye(n), hops) @ mask.numpy() > 0
    before = mask.clone()
    assert grow(graph, nodes, hops).tolist() == grow(graph, mask, hops).tolist() == oracle.tolist()
    assert torch.equal(mask, before)
    both = torch.stack([mask, ~mask], 1)
    assert torch.equal(grow(graph, both, hops)[:, 0], grow(graph, mask, hops))
    assert torch.equal(grow(graph, both, hops)[:, 1], grow(graph, ~mask, hops))


@few
@given(graphs())
def test_normalised(case):
    n, edges = case
    graph, a = Graph.from_edges(edges, n), dense(n, edges)
    loops = a + np.eye(n)
    root = np.diag(loops.sum(1) ** -0.5)
    np.testing.assert_allclose(normalised(graph).toarray(), root @ loops @ root, atol=1e-15)
    mean = a / np.maximum(a.sum(1), 1)[:, None]
    np.testing.assert_allclose(normalised(graph, "mean").toarray(), mean, atol=1e-15)


def test_normalised_with_weights():
    graph = Graph.from_edges(torch.tensor([[0, 1], [1, 2]]), 3, torch.tensor([3.0, 1.0]))
    assert normalised(graph, "mean", weighted=True).toarray().tolist() == [[0, 1, 0], [0.75, 0, 0.25], [0, 1, 0]]
    assert normalised(graph, "mean").toarray().tolist() == [[0, 1, 0], [0.5, 0, 0.5], [0, 1, 0]]
    with pytest.raises(ValueError, match="`kind` must be 'gcn' or 'mean', got 'sum'"):
        normalised(graph, "sum")


def test_weights_of_duplicates_add_and_directions_do_not():
    edges = torch.tensor([[0, 0, 1, 2, 2], [1, 1, 0, 1, 2]])
    graph = Graph.from_edges(edges, 3, torch.tensor([1.0, 2.0, 3.0, 5.0, 9.0]))
    assert graph.scipy().toarray().tolist() == [[0, 3, 0], [3, 0, 5], [0, 5, 0]]
    assert graph.scipy(weighted=False).toarray().tolist() == [[0, 1, 0], [1, 0, 1], [0, 1, 0]]


def test_subgraph_keeps_order_and_weights():
    graph = Graph.from_edges(torch.tensor([[0, 1, 2], [1, 2, 3]]), 4, torch.tensor([1.0, 2.0, 3.0]))
    part = graph.subgraph(torch.tensor([3, 1, 2]))
    assert part.scipy().toarray().tolist() == [[0, 0, 3], [0, 0, 2], [3, 2, 0]]
    assert part.indices.tolist() == [2, 2, 0, 1]


@pytest.mark.parametrize("parts", [1, 2, 3, 7, 8, 16, 100, 399, 400])
def test_partition(parts):
    graph = grid(20)
    labels = partition(graph, parts, seed=3)
    sizes = torch.bincount(labels, minlength=parts)
    assert labels.dtype == torch.int64 and len(sizes) == parts and int(sizes.min()) >= 1
    if parts <= 16:
        assert int(sizes.max()) <= 1.1 * 400 / parts + 1
        assert report(graph, labels)["cut"] <= 40 * parts**0.5
    assert torch.equal(labels, partition(graph, parts, seed=3))


def test_partition_cuts_weak_edges():
    """A strong path of nodes 0..9 next to another: the ladder's rungs are weak, so they are cut, all ten."""
    n = torch.arange(9)
    edges = torch.cat([torch.stack([n, n + 1]), torch.stack([n + 10, n + 11]), torch.arange(20).reshape(2, 10)], 1)
    weights = torch.cat([torch.full((18,), 1.0), torch.full((10,), 0.01)])
    labels = partition(Graph.from_edges(edges, 20, weights), 2)
    assert labels[:10].unique().numel() == labels[10:].unique().numel() == 1
    assert report(Graph.from_edges(edges, 20), partition(Graph.from_edges(edges, 20), 2))["cut"] == 2


def test_partition_balances_node_weights():
    weights = torch.ones(400)
    weights[:40] = 10.0
    labels = partition(grid(20), 4, node_weights=weights)
    share = torch.bincount(labels, weights=weights) / weights.sum() * 4
    assert float(share.max()) < 1.15


@pytest.mark.parametrize("edges", [[[], []], [[0, 1, 4, 5], [1, 2, 5, 6]], [[3, 3], [3, 3]]])
@pytest.mark.parametrize("parts", [2, 3, 9])
def test_partition_of_disconnected_graphs(edges, parts):
    graph = Graph.from_edges(torch.tensor(edges, dtype=torch.int64), 10)
    assert torch.bincount(partition(graph, parts), minlength=parts).min() >= 1


@few
@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=40))
def test_empty_parts_are_repaired(parts, labels):
    labels = np.array(labels) % parts
    if parts <= labels.size:
        fixed = _repaired(labels, parts)
        assert np.bincount(fixed, minlength=parts).min() >= 1
        if np.bincount(labels, minlength=parts).min() >= 1:
            assert np.array_equal(fixed, labels)


def test_partition_says_what_is_wrong(monkeypatch):
    graph = grid(3)
    with pytest.raises(ValueError, match=r"`parts` must be >= 1 and <= nodes of the graph \(9\), got 10"):
        partition(graph, 10)
    with pytest.raises(ValueError, match="`parts` must be >= 1 .* got 0"):
        partition(graph, 0)
    for weights in (torch.ones(8), torch.full((9,), -1.0), torch.full((9,), torch.nan), torch.zeros(9)):
        with pytest.raises(ValueError, match="`node_weights` must"):
            partition(graph, 2, node_weights=weights)
    monkeypatch.setitem(sys.modules, "pymetis", None)
    with pytest.raises(ImportError, match="pip install pymetis"):
        partition(graph, 2)
    assert partition(graph, 1).tolist() == [0] * 9


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        (torch.tensor([[0], [3]]), r"must hold nodes 0\.\.2, got 0\.\.3"),
        (torch.tensor([[0], [-1]]), r"must hold nodes 0\.\.2, got -1\.\.0"),
        (torch.tensor([[0.0], [1.0]]), r"must be int64 of shape \(2, E\), got float32"),
        (torch.tensor([[0, 1, 2]]), r"must be int64 of shape \(2, E\), got int64 of shape \(1, 3\)"),
    ],
)
def test_from_edges_says_what_is_wrong(edges, message):
    with pytest.raises(ValueError, match="`edge_index` " + message):
        Graph.from_edges(edges, 3)


def test_graph_says_what_is_wrong():
    edge = torch.tensor([[0], [1]])
    with pytest.raises(ValueError, match="`nodes` must be >= 1, got 0"):
        Graph.from_edges(torch.empty(2, 0, dtype=torch.int64), 0)
    for weight in (0.0, -1.0, torch.nan, torch.inf):
        with pytest.raises(ValueError, match="`weights` must be positive and finite"):
            Graph.from_edges(edge, 2, torch.tensor([weight]))
    with pytest.raises(ValueError, match=r"`weights` must be floating-point of shape \(1,\)"):
        Graph.from_edges(edge, 2, torch.ones(2))
    with pytest.raises(ValueError, match="`indptr` must be int64"):
        Graph(torch.zeros(3), torch.zeros(0, dtype=torch.int64))
    graph = grid(2)
    for nodes in (torch.tensor([4]), torch.tensor([0.5]), torch.ones(3, dtype=torch.bool)):
        with pytest.raises(ValueError, match="`nodes`"):
            grow(graph, nodes, 1)
    with pytest.raises(ValueError, match="`hops` must be >= 0, got -1"):
        grow(graph, torch.tensor([0]), -1)
    with pytest.raises(ValueError, match="`features` must have shape"):
        edge_weights(graph, torch.ones(3, 2))
    with pytest.raises(ValueError, match="`part` must be"):
        report(graph, torch.zeros(3, dtype=torch.int64))


@pytest.mark.filterwarnings("ignore:Sparse CSR tensor support")
def test_edge_weights_are_cosines(monkeypatch):
    monkeypatch.setattr("mldd.partition._CHUNK", 50)  # several chunks
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


@pytest.mark.parametrize("clusters", [1, 2, 10, 57, 400])
def test_aggregate(clusters):
    assert aggregate(grid(20), clusters).unique().tolist() == list(range(clusters))


@few
@given(graphs(), st.data())
def test_aggregate_within_parts(case, data):
    n, edges = case
    part = torch.tensor(data.draw(st.lists(st.sampled_from([0, 3, 5]), min_size=n, max_size=n)))
    clusters = data.draw(st.integers(1, n))
    labels = aggregate(Graph.from_edges(edges, n), clusters, within=part)
    parts = part.unique().numel()
    assert labels.unique().tolist() == list(range(max(clusters, parts)))
    assert all(part[labels == label].unique().numel() == 1 for label in labels.unique())


def test_aggregate_shares_in_proportion_and_follows_seeds():
    part = (torch.arange(400) >= 100).long()
    labels = aggregate(grid(20), 40, within=part, seed=1)
    assert labels[:100].unique().numel() == 10 and labels[100:].unique().numel() == 30
    assert torch.equal(labels, aggregate(grid(20), 40, within=part, seed=1))
    with pytest.raises(ValueError, match=r"`clusters` must be in 1\.\.400"):
        aggregate(grid(20), 401)
    with pytest.raises(ValueError, match="`within` must be int64"):
        aggregate(grid(20), 4, within=part[:3])


@few
@given(graphs(), st.data())
def test_report_counts(case, data):
    n, edges = case
    part = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    result = report(Graph.from_edges(edges, n), part)
    matrix, label = dense(n, edges), part.numpy()
    parts = label.max() + 1
    crossing = matrix * (label[:, None] != label)
    halo = [int((crossing[label == p].sum(0) > 0).sum()) for p in range(parts)]
    assert result["cut"] == crossing.sum() / 2 and result["halo"] == halo and result["halo_rows"] == sum(halo)
    assert result["sizes"] == [int((label == p).sum()) for p in range(parts)]
    assert result["balance"] == max(result["sizes"]) * parts / n
