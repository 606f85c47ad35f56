"""Clusters of neighbouring nodes."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mldd.graph import Graph, aggregate, cluster_counts, nested
from tests.small_graphs import few, graphs, grid

pymetis = pytest.importorskip("pymetis", reason="partitions need pymetis")
both = pytest.mark.parametrize("method", ["metis", "matching"])


def unions(fine, coarse):
    """Say whether every cluster of `coarse` is a union of clusters of `fine`."""
    return all(coarse[fine == label].unique().numel() == 1 for label in fine.unique())


@both
@pytest.mark.parametrize("clusters", [1, 2, 10, 57, 400])
def test_aggregate(clusters, method):
    assert aggregate(grid(20), clusters, method=method).unique().tolist() == list(range(clusters))


@both
@few
@given(graphs(), st.data())
def test_aggregate_within_parts(method, case, data):
    n, edges = case
    part = torch.tensor(data.draw(st.lists(st.sampled_from([0, 3, 5]), min_size=n, max_size=n)))
    clusters = data.draw(st.integers(1, n))
    labels = aggregate(Graph.from_edges(edges, n), clusters, within=part, method=method)
    parts = part.unique().numel()
    assert labels.unique().tolist() == list(range(max(clusters, parts)))
    assert all(part[labels == label].unique().numel() == 1 for label in labels.unique())
    assert bool((part[labels.argsort(stable=True)].diff() >= 0).all()), "clusters of a part are consecutive"


@both
@few
@given(graphs(most=20), st.data())
def test_levels_are_nested_and_of_the_sizes_asked_for(method, case, data):
    n, edges = case
    sizes = sorted((data.draw(st.integers(1, n)) for _ in range(3)), reverse=True)
    seed = data.draw(st.integers(0, 3))
    graph = Graph.from_edges(edges, n)
    levels = nested(graph, sizes, seed=seed, method=method)
    assert [labels.unique().tolist() for labels in levels] == [list(range(size)) for size in sizes]
    assert unions(levels[0], levels[1]) and unions(levels[1], levels[2])
    assert all(torch.equal(a, b) for a, b in zip(levels, nested(graph, sizes, seed=seed, method=method), strict=True))


@both
def test_nested_levels_within_parts(method):
    part = torch.arange(400) // 100
    for labels, size in zip(nested(grid(20), [80, 16, 4], within=part, method=method), (80, 16, 4), strict=True):
        assert labels.unique().numel() == size and unions(labels, part)


def test_matching_merges_the_strongest_edges():
    path = torch.stack([torch.arange(7), torch.arange(1, 8)])
    weights = torch.tensor([5.0, 1, 2, 9, 3, 1, 7])  # 3-4, 6-7 and 0-1 are the best of both ends, 2 and 5 are left
    labels = aggregate(Graph.from_edges(path, 8, weights), 5, method="matching")
    assert sorted(torch.bincount(labels).tolist()) == [1, 1, 2, 2, 2]
    assert labels[3] == labels[4] and labels[6] == labels[7] and labels[0] == labels[1]
    assert len({int(labels[k]) for k in (2, 5)}) == 2
    six = aggregate(Graph.from_edges(path, 8, weights), 6, method="matching")
    assert six[3] == six[4] and six[6] == six[7] and six[0] != six[1], "the strongest pairs come first"


def test_matching_keeps_clusters_together_and_even():
    graph = grid(30)
    for clusters in (300, 100, 30):
        labels = aggregate(graph, clusters, method="matching")
        sizes = torch.bincount(labels)
        assert int(sizes.max()) <= 2 * 900 / clusters
        row, column = graph.edge_index
        inside = labels[row] == labels[column]
        whole = Graph.from_edges(torch.stack([row[inside], column[inside]]), 900).components().unique().numel()
        assert whole <= 1.05 * clusters, "nearly all clusters are connected"


@both
def test_isolated_nodes_and_stars(method):
    star = torch.stack([torch.zeros(30, dtype=torch.int64), torch.arange(1, 31)])
    for graph in (Graph.from_edges(star, 31), Graph.from_edges(star, 60), Graph.from_edges(star[:, :0], 31)):
        for clusters in (1, 3, 16, 31):
            sizes = torch.bincount(aggregate(graph, clusters, method=method))
            assert len(sizes) == clusters and int(sizes.min()) >= 1


@both
def test_aggregate_shares_in_proportion_and_follows_seeds(method):
    part = (torch.arange(400) >= 100).long()
    labels = aggregate(grid(20), 40, within=part, seed=1, method=method)
    assert labels[:100].unique().numel() == 10 and labels[100:].unique().numel() == 30
    assert torch.equal(labels, aggregate(grid(20), 40, within=part, seed=1, method=method))


@both
@pytest.mark.parametrize("sizes", [[40], [90, 20, 7], [3, 2]])
def test_counts_of_parts_follow_from_their_sizes(method, sizes):
    """Also where there are more parts than clusters, and each part alone gives what it gives among the others."""
    graph = grid(20)
    part = torch.bucketize(torch.arange(400), torch.tensor([7, 120, 150, 333]), right=True)
    nodes = torch.bincount(part).numpy()
    maps = nested(graph, sizes, within=part, method=method)
    for labels, counts in zip(maps, cluster_counts(nodes, sizes), strict=True):
        assert [len(labels[part == k].unique()) for k in range(5)] == counts.tolist()
    if method == "metis":
        for k in range(5):
            inside = graph.subgraph((part == k).nonzero().flatten())
            alone = nested(inside, [int(counts[k]) for counts in cluster_counts(nodes, sizes)])[0]
            assert torch.equal(alone, maps[0][part == k] - maps[0][part == k].min())


def test_refuses_what_makes_no_sense():
    with pytest.raises(ValueError, match=r"`clusters` must be in 1\.\.40 \(clusters of the level before\), got 41"):
        nested(grid(20), [40, 41])
    with pytest.raises(ValueError, match="`method` must be metis or matching, got 'pairs'"):
        aggregate(grid(20), 4, method="pairs")
    part = torch.zeros(400, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"`clusters` must be in 1\.\.400"):
        aggregate(grid(20), 401)
    with pytest.raises(ValueError, match="`within` must be int64"):
        aggregate(grid(20), 4, within=part[:3])
