"""Numberings in Anemoi's blocks: exact sizes, brute-force counts, the same graph and the same data, other numbers."""

import csv

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.anemoi.blocks import attached_parts, block_of, block_sizes, exactly, nested_parts, rows_needed
from mldd.anemoi.numbering import check_symmetric, numbering, renumbered, rows_table
from mldd.command import main
from mldd.problems.data import DataError, File
from mldd.problems.data.formats import TypedGraph, read_typed_graph, write_typed_graph
from tests.small_anemoi import attributes_of, grid, small_graph, write_zarr

COUNTS = [2, 4, 8]
LATITUDES, LONGITUDES = grid(17, 23)


@pytest.fixture(scope="module")
def graph():
    return small_graph(LATITUDES, LONGITUDES, resolution=3)


@pytest.fixture(scope="module")
def orders(graph):
    return numbering(graph, COUNTS)


def test_blocks_are_those_of_torch():
    for nodes, ranks in ((10, 3), (391, 8), (8, 8)):
        expected = [len(piece) for piece in torch.tensor_split(torch.arange(nodes), ranks)]
        assert block_sizes(nodes, ranks).tolist() == expected
        assert np.bincount(block_of(nodes, ranks)).tolist() == expected


def brute_force(index, source_blocks, target_blocks, ranks):
    """Sets of sources that each rank does not own."""
    needed = [set() for _ in range(ranks)]
    for source, target in index.T.tolist():
        if source_blocks[source] != target_blocks[target]:
            needed[target_blocks[target]].add(source)
    return [len(rows) for rows in needed]


def test_rows_are_counted_as_by_brute_force(graph):
    for kind in graph.edges:
        for ranks in COUNTS:
            blocks = [block_of(graph.size(name), ranks) for name in (kind[0], kind[2])]
            index = graph.index(kind).numpy()
            assert rows_needed(index, *blocks, ranks).tolist() == brute_force(index, *blocks, ranks)


def test_a_numbering_saves_rows_in_all_counts_of_ranks(graph, orders):
    before, after = (rows_table(g, COUNTS, "") for g in (graph, renumbered(graph, orders)))
    for old, new in zip(before, after, strict=True):
        if old["role"] == "processor":
            assert new["rows"] < old["rows"]
        if old["ranks"] == 8:
            assert new["rows"] < 0.8 * old["rows"] and new["largest"] < old["largest"]
    assert {row["role"] for row in before} == {"encoder", "processor", "decoder"}


def test_the_graph_is_the_same_under_other_numbers(graph, orders):
    made = renumbered(graph, orders)
    for name, order in orders.items():
        assert sorted(order.tolist()) == list(range(graph.size(name)))
        assert torch.equal(made.nodes[name]["x"], graph.nodes[name]["x"][torch.from_numpy(order)])
        assert made.nodes[name]["node_type"] == graph.nodes[name]["node_type"]
        assert made.nodes[name]["original_index"].tolist() == order.tolist()
    area = {
        tuple(x): float(a)
        for x, a in zip(graph.nodes["data"]["x"].tolist(), graph.nodes["data"]["area_weight"], strict=True)
    }
    for x, a in zip(made.nodes["data"]["x"].tolist(), made.nodes["data"]["area_weight"], strict=True):
        assert area[tuple(x)] == float(a)
    for kind in graph.edges:
        # edges by the places of their ends, which do not depend on any number
        def by_place(of, kind=kind):
            index = of.index(kind)
            ends = [of.nodes[name]["x"][row].tolist() for name, row in ((kind[0], index[0]), (kind[2], index[1]))]
            lengths = of.edges[kind]["edge_length"].flatten().tolist()
            return sorted(zip(map(tuple, ends[0]), map(tuple, ends[1]), lengths, strict=True))

        assert by_place(made) == by_place(graph)
        assert made.edges[kind]["edge_index"].dtype == torch.int32
        assert bool((made.index(kind)[1].diff() >= 0).all())
    twice = renumbered(made, numbering(made, COUNTS))
    old = twice.nodes["data"]["original_index"]
    assert torch.equal(twice.nodes["data"]["x"], graph.nodes["data"]["x"][old])


@pytest.mark.parametrize("factors", [[2, 2, 2], [8]])
def test_parts_have_exactly_their_sizes_and_are_nested(factors, graph):
    n, m = graph.size("hidden"), graph.size("data")
    source, target = graph.index(("hidden", "to", "hidden")).numpy()
    adjacency = sp.csr_matrix((np.ones(len(source)), (source, target)), shape=(n, n))
    labels = nested_parts(adjacency, block_sizes(n, 8), factors)
    assert np.bincount(labels).tolist() == block_sizes(n, 8).tolist()
    index = graph.index(("data", "to", "hidden")).numpy()
    votes = sp.csr_matrix((np.ones(index.shape[1]), index), shape=(m, n))
    attached = attached_parts(votes, labels, block_sizes(m, 8), factors)
    assert np.bincount(attached).tolist() == block_sizes(m, 8).tolist()


def test_surplus_nodes_go_from_part_to_part():
    n = 40  # a path of four runs, the first too long, the last too short
    path = sp.diags([np.ones(n - 1)] * 2, [-1, 1]).tocsr()
    labels = exactly(path, np.repeat(np.arange(4), (16, 10, 10, 4)), np.array([10, 10, 10, 10]))
    assert labels.tolist() == np.repeat(np.arange(4), 10).tolist()
    apart = exactly(sp.csr_matrix((6, 6)), np.zeros(6, dtype=np.int64), np.array([2, 4]))
    assert np.bincount(apart).tolist() == [2, 4]


def one_way(graph):
    kind = ("hidden", "to", "hidden")
    index = graph.edges[kind]["edge_index"][:, 1:]
    return TypedGraph(graph.nodes, {**graph.edges, kind: {"edge_index": index}})


def test_a_hidden_graph_that_is_not_symmetric_is_refused(graph):
    check_symmetric(graph)
    with pytest.raises(ValueError, match=r"hidden to hidden must go both ways, .* got 1 of \d+ without the opp"):
        numbering(one_way(graph), COUNTS)


@pytest.mark.parametrize("counts", [[], [1], [2, 2], [4, 6], [4, 2]])
def test_counts_that_are_not_nested_are_refused(counts, graph):
    with pytest.raises(ValueError, match="each a multiple of the one before"):
        numbering(graph, counts)


def test_more_ranks_than_nodes_and_nodes_without_edges_are_refused(graph):
    with pytest.raises(ValueError, match=r"`ranks` must be <= 391 \(nodes of data\), got 392"):
        numbering(graph, [392])
    lonely = TypedGraph({**graph.nodes, "more": {"x": torch.zeros(9, 2)}}, graph.edges)
    with pytest.raises(ValueError, match="must have edges to others, got none for more"):
        numbering(lonely, [2])


# ---------------------------------------------------------------------------------------------------- files


@pytest.fixture
def files(tmp_path, graph):
    """A graph file and the data set behind its data nodes."""
    pytest.importorskip("torch_geometric")
    pytest.importorskip("zarr")
    write_typed_graph(graph, tmp_path / "graph.pt")
    data = np.random.default_rng(0).normal(size=(5, 2, 1, len(LATITUDES)))
    dates = np.datetime64("2020-01-01") + np.arange(5) * np.timedelta64(6, "h")
    store = write_zarr(tmp_path / "set.zarr", data, ["2t", "z"], dates, LATITUDES, LONGITUDES, field_shape=[17, 23])
    return tmp_path / "graph.pt", store


def run(*words):
    return main(["anemoi", "reorder", *map(str, words)])


def test_the_command_writes_graph_and_cells_in_one_order(files, tmp_path, capsys):
    import zarr

    file, store = files
    assert run(file, store, "--ranks", "2,4", "--out", tmp_path / "new") == 0
    out = capsys.readouterr().out
    assert "as numbered" in out and "note: a checkpoint of Anemoi fits only" in out
    made = read_typed_graph(File(tmp_path / "new" / "graph.pt"))
    order = made.nodes["data"]["original_index"].numpy()
    old, new = (zarr.open_group(str(path), mode="r") for path in (store, tmp_path / "new" / "set.zarr"))
    assert np.array_equal(new["data"][:], old["data"][:][..., order])
    assert np.array_equal(new["latitudes"][:], LATITUDES[order])
    assert np.allclose(np.radians(new["longitudes"][:]), made.nodes["data"]["x"][:, 1], atol=1e-6)
    for name in ("dates", "mean", "stdev"):
        assert np.array_equal(new[name][:], old[name][:])
    assert new["data"].chunks == old["data"].chunks and (tmp_path / "new/set.zarr/.zgroup").exists()
    before, after = attributes_of(store), attributes_of(tmp_path / "new" / "set.zarr")
    assert after["field_shape"] == [391] and after["uuid"] != before["uuid"]
    for key in before.keys() - {"field_shape", "uuid"}:
        assert after[key] == before[key]
    rows = list(csv.DictReader((tmp_path / "new" / "rows.csv").open()))
    assert len(rows) == 12 and {row["numbering"] for row in rows} == {"as numbered", "renumbered"}
    assert run(file, store, "--ranks", "2,4", "--out", tmp_path / "new") == 2
    assert "must be a new or empty folder" in capsys.readouterr().err


def test_cells_that_are_not_the_nodes_are_refused(files, tmp_path, capsys):
    file, store = files
    data, dates = np.zeros((2, 1, 1, 391)), np.array(["2020-01-01", "2020-01-02"], dtype="datetime64[s]")
    moved = write_zarr(tmp_path / "moved.zarr", data, ["2t"], dates, LATITUDES + 1, LONGITUDES)
    fewer = write_zarr(tmp_path / "fewer.zarr", data[..., 1:], ["2t"], dates, LATITUDES[1:], LONGITUDES[1:])
    for given, words in ((moved, "got 391 elsewhere, up to 111 km"), (fewer, "expected 391 cells"), (file, "got none")):
        assert run(file, given, "--ranks", "2", "--out", tmp_path / "new") == 2
        assert words in capsys.readouterr().err
    assert run(file, "--ranks", "2", "--out", tmp_path / "alone") == 0
    assert "the data of nodes data must be permuted too" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()


class Evil:
    def __reduce__(self):
        return print, ("executed",)


def test_a_graph_file_is_read_without_trust(files, tmp_path, graph, capsys):
    made = read_typed_graph(File(files[0]))
    for name, of in (*graph.nodes.items(), *graph.edges.items()):
        read = (made.nodes if isinstance(name, str) else made.edges)[name]
        assert read.keys() == of.keys()
        for key, value in of.items():
            assert torch.equal(read[key], value) if isinstance(value, torch.Tensor) else read[key] == value
    torch.save(Evil(), tmp_path / "evil.pt")
    torch.save({"x": 1}, tmp_path / "dict.pt")
    for name in ("evil.pt", "dict.pt"):
        with pytest.raises(DataError, match="expected a HeteroData of plain tensors"):
            read_typed_graph(File(tmp_path / name))
    assert "executed" not in capsys.readouterr().out


def test_edges_that_lead_nowhere_are_refused(graph, tmp_path):
    pytest.importorskip("torch_geometric")
    kind = ("data", "to", "hidden")
    outside = TypedGraph(graph.nodes, {**graph.edges, kind: {"edge_index": torch.tensor([[391], [0]])}})
    write_typed_graph(outside, tmp_path / "outside.pt")
    with pytest.raises(DataError, match=r"expected edges data to hidden between nodes 0..390 of data, got 391..391"):
        read_typed_graph(File(tmp_path / "outside.pt"))
