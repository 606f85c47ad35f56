"""Partitions of every method, refinement, repartition and reports against brute force."""

import itertools
import re
import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mldd.algebra import loaded
from mldd.graph import Graph, heaviest, partition, partition_methods, report
from mldd.graph.partitioners import REGISTERED, petsc_types
from mldd.graph.partitioning import _repaired, repartition
from mldd.graph.refinement import balanced, refined
from tests.small_graphs import dense, few, graphs, grid

pymetis = pytest.importorskip("pymetis", reason="partitions need pymetis")

WHEEL = {"kahypar": "mtkahypar", "kahypar-km1": "mtkahypar", "kahip": "kahip", "petsc": "petsc4py"}
METHODS = [
    pytest.param(name, marks=pytest.mark.skipif(find_spec(WHEEL.get(name, "torch")) is None, reason="no wheel"))
    for name in partition_methods()
]
POINTS = torch.stack([torch.arange(400) // 20, torch.arange(400) % 20], 1).double()  # of grid(20), in degrees


def sphere(n, seed=0, middle=180.0):
    """Points around a longitude, and edges between near ones."""
    rng = np.random.default_rng(seed)
    latitude, longitude = rng.uniform(-20, 20, n), rng.uniform(middle - 25, middle + 25, n)
    apart = np.hypot(latitude[:, None] - latitude, longitude[:, None] - longitude)
    edges = torch.from_numpy(np.stack(np.nonzero(apart < 8)))
    longitude = (longitude + 180) % 360 - 180
    return Graph.from_edges(edges, n), torch.from_numpy(np.stack([latitude, longitude], 1))


def halo_rows(matrix, label):
    """Count by definition: nodes of other parts that a part reads."""
    return sum(int(((matrix[label == p].sum(0) > 0) & (label != p)).sum()) for p in np.unique(label))


def heaviest_part(labels, weights, parts):
    return torch.bincount(labels, weights=weights.double(), minlength=parts).max().item()


# methods


def test_every_partitioner_of_the_table_is_there():
    assert partition_methods() == [*REGISTERED, "best"]
    for target in REGISTERED.values():
        assert loaded(target, "function").__doc__


@pytest.mark.parametrize("method", METHODS[:-1])  # `best` is made of the others
@pytest.mark.parametrize("parts", [3, 16])
def test_every_method_is_balanced_and_deterministic(method, parts):
    graph = grid(20)
    labels = partition(graph, parts, method, seed=3, coordinates=POINTS)
    sizes = torch.bincount(labels, minlength=parts)
    assert labels.dtype == torch.int64 and len(sizes) == parts and int(sizes.min()) >= 1
    assert int(sizes.max()) <= float(heaviest(np.ones(400), parts, 0.05))
    assert torch.equal(labels, partition(graph, parts, method, seed=3, coordinates=POINTS))
    bound = (
        760
        if method in ("random", "mixed")
        else 21 * (parts - 1)
        if method in ("contiguous", "petsc")
        else 45 * parts**0.5
    )
    assert report(graph, labels)["cut"] <= bound


@pytest.mark.parametrize("method", METHODS)
def test_every_method_balances_weights(method):
    weights = torch.ones(400)
    weights[:40] = 10.0
    labels = partition(grid(20), 4, method, node_weights=weights, coordinates=POINTS)
    assert heaviest_part(labels, weights, 4) <= 1.15 * 760 / 4
    assert len(labels.unique()) == 4


@pytest.mark.parametrize("method", METHODS)
def test_every_method_takes_islands_and_few_nodes(method):
    """Isolated nodes, one node per part, more parts than components, a graph without edges."""
    islands = Graph.from_edges(torch.tensor([[0, 1, 4, 5], [1, 2, 5, 6]]), 10)
    empty = Graph.from_edges(torch.empty(2, 0, dtype=torch.int64), 10)
    place = torch.rand(10, 3, generator=torch.Generator().manual_seed(0))
    for graph, parts in itertools.product((islands, empty), (1, 2, 3, 9, 10)):
        labels = partition(graph, parts, method, coordinates=place)
        assert labels.unique().tolist() == list(range(parts))
    with pytest.raises(ValueError, match=r"`parts` must be >= 1 and <= nodes of the graph \(10\), got 11"):
        partition(islands, 11, method, coordinates=place)


@pytest.mark.parametrize("weighted", [False, True])
def test_mixed_parts_are_balanced_unions_that_resemble_each_other(weighted):
    weights = torch.from_numpy(np.random.default_rng(0).uniform(1.0, 3.0, 400)) if weighted else None
    labels = partition(grid(20), 4, "mixed", node_weights=weights, imbalance=0.2)
    assert labels.unique().tolist() == [0, 1, 2, 3]
    loads = torch.bincount(labels, weights=weights, minlength=4).double()
    assert float(loads.max() - loads.min()) <= 12 * (3 if weighted else 1)  # a small part has about 4 nodes
    of = lambda method: POINTS[partition(grid(20), 4, method) == 0].mean(0)  # noqa: E731
    centre = POINTS.mean(0)
    assert float((of("mixed") - centre).norm()) < 0.6 * float((of("metis") - centre).norm())
    assert not torch.equal(labels, partition(grid(20), 4, "mixed", node_weights=weights, imbalance=0.2, seed=1))


@pytest.mark.parametrize("method", ["metis", "kahypar", "kahip", "spectral"])
def test_weak_edges_are_cut(method):
    """A strong path of nodes 0..9 next to another: the ladder's rungs are weak, so they are cut, all ten."""
    if method in WHEEL:
        pytest.importorskip(WHEEL[method])
    n = torch.arange(9)
    edges = torch.cat([torch.stack([n, n + 1]), torch.stack([n + 10, n + 11]), torch.arange(20).reshape(2, 10)], 1)
    weights = torch.cat([torch.full((18,), 1.0), torch.full((10,), 0.01)])
    graph = Graph.from_edges(edges, 20, weights)
    labels = partition(graph, 2, method)
    assert labels[:10].unique().numel() == labels[10:].unique().numel() == 1
    assert report(graph, labels)["weighted_cut"] == pytest.approx(0.1)
    assert report(Graph.from_edges(edges, 20), partition(Graph.from_edges(edges, 20), 2, method))["cut"] == 2


@pytest.mark.parametrize("method", ["metis-volume", "kahypar-km1", "best"])
def test_halo_methods_find_the_fewest_rows(method):
    """Two cliques of ten that share a hub: wherever it goes, one row is read there and ten here."""
    if method in WHEEL:
        pytest.importorskip(WHEEL[method])
    pairs = [p for start in (0, 10) for p in itertools.combinations(range(start, start + 10), 2)]
    pairs += [(20, k) for k in range(20)]
    graph = Graph.from_edges(torch.tensor(pairs).T, 21)
    assert report(graph, partition(graph, 2, method, imbalance=0.1))["halo_rows"] == 11


def test_default_is_metis_as_it_always_was():
    graph = grid(20)
    for parts in (4, 16):
        csr = pymetis.CSRAdjacency(graph.indptr.numpy(), graph.indices.numpy())
        found = pymetis.part_graph(parts, csr, recursive=parts < 8, options=pymetis.Options(seed=5))[1]
        assert partition(graph, parts, seed=5).tolist() == list(found)


def test_best_is_no_worse_than_its_candidates(monkeypatch):
    monkeypatch.setattr("mldd.graph.partitioning._CANDIDATES", {"metis": "pymetis", "metis-volume": "pymetis"})
    graph, _ = sphere(500)
    least = min(
        report(graph, partition(graph, 8, name, seed=s))["halo_rows"]
        for name in ("metis", "metis-volume")
        for s in range(3)
    )
    labels = partition(graph, 8, "best")
    assert torch.equal(labels, partition(graph, 8, "best"))
    assert report(graph, labels)["halo_rows"] <= least
    assert report(graph, labels)["balance"] * 500 / 8 <= heaviest(np.ones(500), 8, 0.03)


def test_geometric_sees_no_seam_at_180_degrees():
    graph, place = sphere(300)
    _, turned = sphere(300, middle=0.0)
    assert place[:, 1].min() < -170 and place[:, 1].max() > 170
    cut = [report(graph, partition(graph, 6, "geometric", coordinates=c))["cut"] for c in (place, turned)]
    assert cut[0] == cut[1]
    assert torch.equal(
        *(partition(graph, 6, "geometric", coordinates=place + torch.tensor([0.0, d])) for d in (0, 360))
    )


def test_geometric_halves_at_the_weighted_median():
    line = torch.tensor([[3.0], [0.0], [2.0], [1.0], [9.0], [5.0]])
    graph = Graph.from_edges(torch.tensor([[0], [1]]), 6)
    assert partition(graph, 2, "geometric", coordinates=line).tolist() == [1, 0, 0, 0, 1, 1]
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 9.0, 1.0])
    assert partition(graph, 2, "geometric", coordinates=line, node_weights=weights).tolist() == [0, 0, 0, 0, 1, 0]
    assert partition(graph, 3, "geometric", coordinates=line).tolist() == [1, 0, 1, 0, 2, 2]


def test_spectral_keeps_components_whole():
    """Three paths of 40, 20 and 20 nodes in two parts: nothing has to be cut."""
    edges = torch.tensor([(k, k + 1) for k in range(79) if k not in (19, 59)]).T
    graph = Graph.from_edges(edges, 80)
    assert report(graph, partition(graph, 2, "spectral"))["cut"] == 0
    assert report(graph, partition(graph, 4, "spectral"))["cut"] == 1
    long = Graph.from_edges(torch.stack([torch.arange(599), torch.arange(1, 600)]), 600)  # by LOBPCG
    assert report(long, partition(long, 2, "spectral"))["cut"] == 1


def test_petsc_types():
    pytest.importorskip("petsc4py")
    there = petsc_types()
    assert "average" in there
    assert partition(grid(4), 4, "petsc-average").tolist() == [k // 4 for k in range(16)]
    with pytest.raises(ValueError, match="`method` petsc-TYPE must name one of .*average.* got nonsense"):
        partition(grid(4), 2, "petsc-nonsense")
    with pytest.raises(ValueError, match="PETSc's partitioner square refuses the graph: .*; use another method"):
        partition(grid(4), 3, "petsc-square")


# refinement


@settings(max_examples=30, deadline=None)
@given(graphs(), st.data())
def test_refinement_never_makes_it_worse(case, data):
    n, edges = case
    parts = data.draw(st.integers(1, min(n, 4)))
    part = np.array(data.draw(st.permutations([k % parts for k in range(n)])))
    graph, matrix = Graph.from_edges(edges, n), dense(n, edges)
    better = refined(graph, part, parts, np.ones((n, 1)), 0.03)
    assert halo_rows(matrix, better) <= halo_rows(matrix, part)
    assert set(better) == set(part) and np.bincount(better).max() <= heaviest(np.ones(n), parts, 0.03)
    cut = refined(graph, part, parts, np.ones((n, 1)), 0.03, "cut")
    assert report(graph, torch.from_numpy(cut))["cut"] <= report(graph, torch.from_numpy(part))["cut"]


def test_refinement_lowers_halo_rows():
    graph, _ = sphere(600)
    part = partition(graph, 6, "contiguous").numpy()
    rows = [
        report(graph, torch.from_numpy(p))["halo_rows"] for p in (part, refined(graph, part, 6, np.ones((600, 1)), 0.1))
    ]
    assert rows[1] < 0.8 * rows[0]


def test_several_weights_are_balanced_each():
    """Nodes, edges and training nodes at once, on a graph with hubs."""
    rng = np.random.default_rng(0)
    ends = (rng.power(0.4, (2, 6000)) * 1000).astype(np.int64)
    graph = Graph.from_edges(torch.from_numpy(ends), 1000)
    train = torch.from_numpy(rng.random(1000) < 0.1)
    weights = torch.stack([torch.ones(1000), graph.degree, train], 1)
    labels = partition(graph, 6, node_weights=weights)
    for column in weights.T.double():
        assert heaviest_part(labels, column, 6) <= float(heaviest(column.numpy(), 6, 0.03))
    alone = partition(graph, 6)
    assert any(
        heaviest_part(alone, column, 6) > 1.2 * float(heaviest(column.numpy(), 6, 0.03))
        for column in weights.T.double()
    )


@settings(max_examples=30, deadline=None)
@given(graphs(), st.data())
def test_balancing_lowers_the_excess(case, data):
    n, edges = case
    parts = data.draw(st.integers(1, 4))
    part = np.array(data.draw(st.lists(st.integers(0, parts - 1), min_size=n, max_size=n)))
    weights = np.array(
        data.draw(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 3)), min_size=n, max_size=n)), float
    )

    def excess(labels, used):
        loads = np.stack([np.bincount(labels, weights=w, minlength=parts) for w in used.T], 1)
        return (np.maximum(loads - heaviest(used, parts, 0.03), 0) / np.maximum(used.sum(0), 1)).sum()

    graph = Graph.from_edges(edges, n)
    assert excess(balanced(graph, part, parts, weights, 0.03), weights) <= excess(part, weights) + 1e-12
    assert excess(balanced(graph, part, parts, weights[:, :1], 0.03), weights[:, :1]) == pytest.approx(0)


# during training


def test_repartition_moves_few_nodes():
    graph = grid(20)
    part = partition(graph, 4)
    ones = torch.ones(graph.edges, dtype=torch.float64)
    assert repartition(graph, part, ones, method="metis").moved == 0, "the same cut gets the same numbers"
    shuffled = torch.tensor([2, 0, 3, 1])[part]
    assert repartition(graph, shuffled, ones, method="metis").part.tolist() == shuffled.tolist()
    row, col = graph.edge_index
    heavy = ones + 20 * (part[row] != part[col])  # what is cut has become strong
    new = repartition(graph, part, heavy)
    assert new.after < new.before and new.moved == int((new.part != part).sum()) < 200
    weighted = Graph(graph.indptr, graph.indices, heavy)
    assert new.before == pytest.approx(report(weighted, part)["weighted_cut"])
    assert new.after == pytest.approx(report(weighted, new.part)["weighted_cut"])
    assert report(graph, new.part)["balance"] <= 1.05


@few
@given(st.integers(1, 4), st.data())
def test_matching_is_the_best_of_all(parts, data):
    from mldd.graph.partitioning import _matched

    pairs = data.draw(
        st.lists(st.tuples(st.integers(0, parts - 1), st.integers(0, parts - 1)), min_size=1, max_size=20)
    )
    old, new = np.array(pairs).T
    most = max(int((np.array(p)[new] == old).sum()) for p in itertools.permutations(range(parts)))
    assert int((_matched(old, new, parts) == old).sum()) == most


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


@few
@given(st.integers(1, 9), st.lists(st.integers(0, 8), min_size=1, max_size=40))
def test_empty_parts_are_repaired(parts, labels):
    labels = np.array(labels) % parts
    if parts <= labels.size:
        fixed = _repaired(labels, parts)
        assert np.bincount(fixed, minlength=parts).min() >= 1
        if np.bincount(labels, minlength=parts).min() >= 1:
            assert np.array_equal(fixed, labels)


# what is refused


@pytest.mark.parametrize("module", ["pymetis", "mtkahypar", "kahip"])
def test_missing_wheels_are_named(module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    way = "pip install pymetis" if module == "pymetis" else 'pip install "mldd[partition]"'
    methods = {"pymetis": ("metis", "metis-volume"), "mtkahypar": ("kahypar", "kahypar-km1"), "kahip": ("kahip",)}
    for method in methods[module]:
        with pytest.raises(ImportError, match=re.escape(f"needs {module}, which is not installed: {way}")):
            partition(grid(3), 2, method)
    assert partition(grid(3), 1).tolist() == [0] * 9


def test_partition_says_what_is_wrong():
    graph = grid(3)
    with pytest.raises(ValueError, match=r"`parts` must be >= 1 and <= nodes of the graph \(9\), got 10"):
        partition(graph, 10)
    with pytest.raises(ValueError, match="`parts` must be >= 1 .* got 0"):
        partition(graph, 0)
    with pytest.raises(
        ValueError, match="`method` must be one of metis metis-volume .* best or petsc-TYPE, got 'meits'"
    ):
        partition(graph, 2, "meits")
    with pytest.raises(ValueError, match="`imbalance` must be >= 0 and finite, got -0.1"):
        partition(graph, 2, imbalance=-0.1)
    for weights in (
        torch.ones(8),
        torch.full((9,), -1.0),
        torch.full((9,), torch.nan),
        torch.zeros(9),
        torch.ones(8, 2),
    ):
        with pytest.raises(ValueError, match="`node_weights` must"):
            partition(graph, 2, node_weights=weights)
    with pytest.raises(ValueError, match="`node_weights` must be finite, >= 0, not all zero"):
        partition(graph, 2, node_weights=torch.tensor([[1.0, 0.0]] * 9))


@pytest.mark.parametrize(
    ("coordinates", "message"),
    [
        (None, r"method geometric needs `coordinates` of shape \(9, 2\) or \(9, d\), got none"),
        (torch.zeros(8, 2), r"`coordinates` must have shape \(9, 2\) or \(9, d\), got float32 of shape \(8, 2\)"),
        (torch.zeros(9), r"`coordinates` must have shape .* got float32 of shape \(9,\)"),
        (torch.full((9, 2), torch.nan), "`coordinates` must be finite, got 18 values that are not"),
        (torch.full((9, 2), 100.0), "must be latitude .-90..90. and longitude in degrees, got a latitude of 100"),
    ],
)
def test_geometric_says_what_is_wrong(coordinates, message):
    with pytest.raises(ValueError, match=message):
        partition(grid(3), 2, "geometric", coordinates=coordinates)


@pytest.mark.parametrize("method", ["metis", "kahypar", "kahip", "petsc", "contiguous", "best"])
@pytest.mark.parametrize(
    ("indptr", "indices", "weights", "message"),
    [
        ([0, 1, 1, 1], [1], None, "must be symmetric"),
        ([0, 1, 2, 2], [0, 0], None, "must be symmetric, ascending in each row, without self loops"),
        ([0, 2, 3, 4], [2, 1, 0, 0], None, "must be symmetric, ascending"),
        ([0, 1, 2, 2], [1, 7], None, r"must hold nodes 0\.\.2, got 1\.\.7; use Graph.from_edges"),
        ([0, 2, 1, 2], [1, 0], None, "`indptr` of the graph must rise from 0 to 2"),
        ([0, 1, 2, 2], [1, 0], [1.0, 2.0], "`weights` must be equal in both directions"),
    ],
)
def test_graphs_made_by_hand_have_to_be_symmetric(method, indptr, indices, weights, message):
    weights = None if weights is None else torch.tensor(weights, dtype=torch.float64)
    graph = Graph(torch.tensor(indptr), torch.tensor(indices), weights)
    with pytest.raises(ValueError, match=message):
        partition(graph, 2, method)


def test_reports_say_what_is_wrong():
    for part in (torch.zeros(3, dtype=torch.int64), torch.zeros(4), torch.full((4,), -1)):
        with pytest.raises(ValueError, match="`part` must be int64"):
            report(grid(2), part)
        with pytest.raises(ValueError, match="`part` must be int64"):
            repartition(grid(2), part, torch.ones(8))
    with pytest.raises(ValueError, match="`weights` must be floating-point of shape"):
        repartition(grid(2), torch.zeros(4, dtype=torch.int64), torch.ones(3))


# what it costs


@few
@given(graphs(), st.data())
def test_report_counts(case, data):
    n, edges = case
    part = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    graph, matrix, label = Graph.from_edges(edges, n), dense(n, edges), part.numpy()
    found = report(graph, part)
    parts = label.max() + 1
    crossing = matrix * (label[:, None] != label)
    halo = [int((crossing[label == p].sum(0) > 0).sum()) for p in range(parts)]
    assert found["cut"] == crossing.sum() / 2 and found["halo"] == halo and found["halo_rows"] == sum(halo)
    assert found["km1"] == sum(len({*label[matrix[v] > 0], label[v]}) - 1 for v in range(n))
    assert found["replication_factor"] == pytest.approx(
        sum(np.sum((label == p) | (matrix[label == p].sum(0) > 0)) for p in range(parts)) / n
    )
    assert found["sizes"] == [int((label == p).sum()) for p in range(parts)]
    assert found["balance"] == max(found["sizes"]) * parts / n
    rows = [matrix[label == p].sum() for p in range(parts)]
    assert found["edge_balance"] == pytest.approx(max(rows) * parts / max(matrix.sum(), 1))
    for p in range(parts):
        inside = matrix[np.ix_(label == p, label == p)]
        reach = np.linalg.matrix_power(inside + np.eye(len(inside)), max(len(inside), 1)) > 0
        assert found["components"][p] == len(np.unique(reach, axis=0))
    assert "weighted_cut" not in found


@few
@given(graphs(), st.data())
def test_weighted_cut(case, data):
    n, edges = case
    part = torch.tensor(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    weights = torch.arange(1.0, edges.shape[1] + 1)
    graph = Graph.from_edges(edges, n, weights)
    label, matrix = part.numpy(), graph.scipy().toarray()
    assert report(graph, part)["weighted_cut"] == pytest.approx((matrix * (label[:, None] != label)).sum() / 2)
