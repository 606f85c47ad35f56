"""Graph operations against dense matrices and brute force."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mldd.graph import Graph, grow
from tests.small_graphs import dense, few, graphs, grid


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


def test_attributes_are_those_of_the_edge_that_is_read():
    edges = torch.tensor([[0, 1, 1, 2, 2, 0], [1, 0, 2, 2, 0, 1]])  # 0 -> 1 twice, 1 -> 2 and 2 -> 0 one way, a loop
    given = torch.tensor([[1.0, 10.0], [2.0, 20.0], [3.0, 30.0], [9.0, 9.0], [4.0, 40.0], [5.0, 50.0]])
    graph = Graph.from_edges(edges, 4, edge_attributes=given)
    found = {tuple(e): a for e, a in zip(graph.edge_index.T.tolist(), graph.edge_attributes.tolist(), strict=True)}
    mean = [3.0, 30.0]  # of 0 -> 1, which 1 reads
    of = {(1, 0): mean, (0, 1): [2, 20], (2, 1): [3, 30], (1, 2): [3, 30], (0, 2): [4, 40], (2, 0): [4, 40]}
    assert found == of
    part = graph.subgraph(torch.tensor([2, 0]))
    assert part.edge_attributes.tolist() == [[4, 40], [4, 40]] and part.edges == 2
    assert graph.subgraph(torch.tensor([3])).edge_attributes.shape == (0, 2)
    assert Graph.from_edges(edges[:, 3:4], 4, edge_attributes=given[3:4]).edge_attributes.shape == (0, 2)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            torch.ones(3, 1),
            r"`edge_attributes` must be floating-point of shape \(2, k\), one row per edge, got .*\(3, 1",
        ),
        (torch.ones(2), r"one row per edge, got float32 of shape \(2,\)"),
        (torch.ones(2, 1, dtype=torch.int64), "floating-point"),
        (torch.full((2, 1), torch.nan), "must be finite, got NaN"),
    ],
)
def test_bad_attributes(given, message):
    with pytest.raises(ValueError, match=message):
        Graph.from_edges(torch.tensor([[0, 1], [1, 2]]), 3, edge_attributes=given)
