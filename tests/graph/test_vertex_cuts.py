"""Hybrid cuts through hubs against their definition."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mldd.graph import Graph, partition, report, vertex_cut
from tests.small_graphs import few, graphs, grid

pymetis = pytest.importorskip("pymetis", reason="partitions need pymetis")


@few
@given(graphs(), st.integers(0, 4), st.data())
def test_every_edge_has_one_part_and_that_part_has_its_ends(case, hubs, data):
    n, edges = case
    parts = data.draw(st.integers(1, min(n, 3)))
    graph = Graph.from_edges(edges, n)
    cut = vertex_cut(graph, parts, hubs)
    degree, part = graph.degree.tolist(), cut.part.tolist()
    held = {(part[v], v) for v in range(n)}
    for (i, j), p in zip(graph.edge_index.T.tolist(), cut.edge_part.tolist(), strict=True):
        assert p == (part[j] if degree[i] > hubs else part[i])
        held |= {(p, i), (p, j)}
    assert sorted(held) == [tuple(pair) for pair in cut.replicas.T.tolist()]
    found = cut.report()
    assert found["hubs"] == sum(d > hubs for d in degree)
    assert found["replication_factor"] == pytest.approx(len(held) / n) and found["copies"] == len(held) - n
    most = max(sum(p == q for q, _ in held) for p in range(parts))
    assert found["balance"] == pytest.approx(most * parts / len(held))
    work = np.bincount(cut.edge_part.numpy(), minlength=parts)
    assert found["edge_balance"] == pytest.approx(work.max() * parts / max(graph.edges, 1))


def test_without_hubs_it_is_a_partition():
    graph = grid(12)
    cut = vertex_cut(graph, 4, hubs=8)
    found = report(graph, cut.part)
    assert cut.report()["copies"] == found["halo_rows"] and cut.report()["hubs"] == 0
    assert cut.report()["edge_balance"] == pytest.approx(found["edge_balance"])


def test_a_star_is_cut_through_its_hub():
    """Every part needs a copy of the hub, and nobody a copy of a leaf; a partition copies the leaves to the hub."""
    graph = Graph.from_edges(torch.stack([torch.zeros(100, dtype=torch.int64), torch.arange(1, 101)]), 101)
    cut = vertex_cut(graph, 4)
    assert cut.hubs.nonzero().tolist() == [[0]]
    assert cut.report()["copies"] == 3 and cut.report()["edge_balance"] <= 1.05
    assert report(graph, partition(graph, 4))["halo_rows"] > 70


def test_vertex_cut_says_what_is_wrong():
    for hubs in (-1.0, float("nan")):
        with pytest.raises(ValueError, match="`hubs` must be a degree >= 0, got"):
            vertex_cut(grid(3), 2, hubs)
    with pytest.raises(ValueError, match="`parts` must be >= 1"):
        vertex_cut(grid(3), 10)
