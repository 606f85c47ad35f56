"""Shards: the graph can be put together again from them, on any number of ranks, and damaged files are refused."""

import json
import os
import re

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.graph import Graph, partition
from mldd.problems.data import DataError, GraphData, cut, joined, shares, write
from mldd.problems.data.checksums import digest
from mldd.problems.data.datasets import sbm
from mldd.problems.data.features import to_tensor
from mldd.problems.data.shard_files import MANIFEST, read, read_manifest


@pytest.fixture(scope="module")
def data():
    return sbm(nodes=120, classes=3, features=4)


@pytest.fixture(scope="module")
def part(data):
    return partition(data.graph, 5)


@pytest.fixture
def folder(data, part, tmp_path):
    write(data, part, tmp_path / "shards")
    return tmp_path / "shards"


def path_graph(n=11, weights=None, sparse=False):
    """A path with a self-made split, dense or sparse features."""
    edges = torch.stack([torch.arange(n - 1), torch.arange(1, n)])
    x = torch.eye(n, dtype=torch.float64)
    number = torch.arange(n)
    masks = [number % 3 == k for k in range(3)]
    return GraphData(
        "path", Graph.from_edges(edges, n, weights), to_tensor(x.numpy()) if sparse else x, number % 2, *masks, 2
    )


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else np.asarray(matrix)


def check(ranks, data):
    """Every row of the adjacency, with the columns found where the shard says."""
    adjacency = data.graph.scipy()
    assert sorted(np.concatenate([s.numbers for s in ranks])) == list(range(data.graph.nodes))
    for shard in ranks:
        halo = np.array(
            [ranks[r].numbers[i] for r, i in zip(shard.halo.owner, shard.halo.index, strict=True)], dtype=int
        )
        whole = adjacency[shard.numbers]
        edges = shard.edges
        assert whole.nnz == len(edges.indices)
        values = np.ones(whole.nnz) if edges.weights is None else edges.weights
        found = sp.csr_matrix((values, edges.indices, edges.indptr), (shard.own, shard.own + shard.halo.size))
        columns = np.concatenate([shard.numbers, halo])
        assert np.array_equal(found.toarray(), whole[:, columns].toarray())
        assert np.all(np.diff(shard.halo.owner) >= 0) and len(set(columns)) == len(columns)
        x = data.features if data.features.layout == torch.strided else data.features.to_dense()
        assert np.array_equal(dense(shard.data.features), x.numpy()[shard.numbers])
        assert np.array_equal(shard.data.labels, data.labels.numpy()[shard.numbers])
        for name in ("train", "validation", "test"):
            assert np.array_equal(getattr(shard.data, name), getattr(data, name).numpy()[shard.numbers])


def test_a_path_by_hand():
    """0 - 1 - 2 - 3 | 4 - 5 - 6 - 7: the middle edge is cut."""
    left, right = cut(path_graph(8), torch.tensor([0] * 4 + [1] * 4))
    assert left.numbers.tolist() == [0, 1, 2, 3] and right.numbers.tolist() == [4, 5, 6, 7]
    assert left.edges.indices.tolist() == [1, 0, 2, 1, 3, 2, 4] and left.edges.indptr.tolist() == [0, 1, 3, 5, 7]
    assert (left.halo.owner.tolist(), left.halo.index.tolist()) == ([1], [0])
    assert (right.halo.owner.tolist(), right.halo.index.tolist()) == ([0], [3])
    assert right.edges.indices.tolist() == [4, 1, 0, 2, 1, 3, 2]
    assert left.inside.edges == 6 and left.whole.nodes == 8


@pytest.mark.parametrize("ranks", [1, 2, 3, 5])
def test_files_read_on_fewer_ranks_give_the_graph(folder, data, ranks):
    check([read(folder, rank, ranks) for rank in range(ranks)], data)


def test_one_node_per_part_isolated_nodes_weights_and_sparse_features(tmp_path):
    weighted = path_graph(12, weights=torch.arange(1.0, 12.0), sparse=True)
    lonely = path_graph(12)
    lonely = GraphData(
        "lonely",
        Graph.from_edges(torch.tensor([[0], [1]]), 12),
        *(getattr(lonely, name) for name in ("features", "labels", "train", "validation", "test", "classes")),
    )
    for graph, part in (
        (weighted, torch.arange(12)),
        (weighted, torch.arange(12) % 2),
        (lonely, torch.arange(12) // 2),
    ):
        shards = cut(graph, part)
        check(shards, graph)
        write(graph, part, tmp_path)
        parts = len(shards)
        for ranks in {1, 2, parts}:
            check([read(tmp_path, rank, ranks) for rank in range(ranks)], graph)
            groups = shares(parts, ranks)
            check([joined(shards[g.start : g.stop], ranks) for g in groups], graph)


def test_checksums_are_those_of_the_files(folder, monkeypatch):
    import hashlib

    monkeypatch.setattr("mldd.problems.data.checksums._PIECE", 1000)
    monkeypatch.delattr(hashlib, "file_digest", raising=False)  # Python 3.10 has none
    for entry in read_manifest(folder)["parts"]:
        assert entry["sha256"] == digest(folder / entry["file"])
        assert entry["sha256"] == hashlib.sha256((folder / entry["file"]).read_bytes()).hexdigest()


def test_shares_are_those_of_the_communicator():
    from mldd.ranks import Communicator

    class Ranks(Communicator):
        rank, ranks = 1, 3

    assert shares(7, 3)[1] == Ranks().share(7)


def test_parts_that_make_no_sense_are_refused(data):
    for part, message in (
        (torch.zeros(7, dtype=torch.int64), "must be the part 0, 1, ... of each of 120 nodes"),
        (torch.zeros(120), "int64, got float32"),
        (torch.full((120,), -1), "must be the part 0, 1"),
        (torch.arange(120) % 2 * 2, "every part needs a node, got none in part 1"),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            cut(data, part)


def test_ranks_without_a_part_are_refused(folder):
    with pytest.raises(DataError, match="a graph of 5 parts needs at most 5 ranks, got 6; cut it into more parts"):
        read(folder, 0, 6)


def spoil(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        middle = len(content) // 2
        flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
        path.write_bytes(content[:middle] if how == "truncated" else flipped)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", "part-00003.npz: expected part 3 of the graph, got No such file"),
        ("truncated", r"part-00003.npz: expected sha256 \w{12}..., got \d+ of \d+ bytes: damaged or of another graph"),
        ("flipped", r"part-00003.npz: expected sha256 \w{12}..., got sha256 \w{12}"),
    ],
)
def test_a_damaged_part_is_refused_by_who_reads_it(folder, how, message):
    spoil(folder / "part-00003.npz", how)
    read(folder, 0, 5)
    with pytest.raises(DataError, match=message) as caught:
        read(folder, 3, 5)
    assert "\n" not in str(caught.value) and "mldd partition" in str(caught.value)


def change(folder, **entries):
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | entries))


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"version": 1}, "expected version 2 of the format, got 1"),
        ({"format": "zarr"}, "expected a manifest of shards .* got another file"),
        ({"parts": []}, "expected sizes, classes, metric and a list of parts"),
        ({"parts": [{"file": 1}]}, "expected sizes, classes, metric and a list of parts"),
        ({"classes": -1}, "expected sizes, classes, metric and a list of parts"),
        ({"nodes": 7}, "expected parts of 7 nodes together, got 120"),
    ],
)
def test_a_wrong_manifest_is_refused(folder, entries, message):
    change(folder, **entries)
    with pytest.raises(DataError, match=message):
        read_manifest(folder)


def test_no_manifest_and_no_json(folder):
    (folder / MANIFEST).write_text("{")
    with pytest.raises(DataError, match="got no JSON"):
        read(folder)
    (folder / MANIFEST).unlink()
    with pytest.raises(DataError, match="expected a manifest of shards, got No such file"):
        read(folder)


def test_the_manifest_of_other_data_is_refused(folder, tmp_path):
    other = sbm(nodes=120, classes=3, features=4, seed=1)
    write(other, partition(other.graph, 5), tmp_path / "other")
    (folder / MANIFEST).write_bytes((tmp_path / "other" / MANIFEST).read_bytes())
    with pytest.raises(DataError, match="damaged or of another graph"):
        read(folder, 0, 5)


def test_arrays_that_do_not_fit_are_refused_though_the_checksum_holds(folder):
    import hashlib

    path = folder / "part-00000.npz"
    arrays = dict(np.load(path))
    for bad, message in (
        ({"indices": arrays["indices"] + 1000}, "that fit together"),
        ({"owner": arrays["owner"] * 0}, "that fit together"),
        ({"labels": arrays["labels"] + 3}, "that fit together"),
        ({"numbers": np.array([{}], dtype=object)}, "expected a .npz of plain arrays, got .*numbers holds objects"),
    ):
        np.savez(path, **(arrays | bad))
        parts = json.loads((folder / MANIFEST).read_text())["parts"]
        parts[0]["sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
        change(folder, parts=parts)
        with pytest.raises(DataError, match=message):
            read(folder, 0, 5)


def resealed(folder, arrays):
    """Put other arrays into the first part and their checksum into the manifest."""
    path = folder / "part-00000.npz"
    np.savez(path, **arrays)
    parts = json.loads((folder / MANIFEST).read_text())["parts"]
    parts[0]["sha256"] = digest(path)
    change(folder, parts=parts)


HOSTILE = [
    lambda a: a.astype(np.complex128),
    lambda a: a[:0],
    lambda a: np.array(3),
    lambda a: a.astype("U5"),
    lambda a: np.full(a.shape, 2**62),
    lambda a: np.full(a.shape, -(2**62)),
    lambda a: np.full(a.shape, np.nan),
    lambda a: a.reshape(-1, 1),
    lambda a: np.zeros(a.shape, dtype=[("a", "i4")]),
]


@pytest.mark.parametrize("odd", range(len(HOSTILE)))
def test_whatever_a_part_holds_is_refused_in_one_line(folder, odd):
    arrays = dict(np.load(folder / "part-00000.npz"))
    for name in [name for name in arrays if name != "features_dense" or odd not in (4, 5)]:  # large, but numbers
        resealed(folder, arrays | {name: HOSTILE[odd](arrays[name])})
        with pytest.raises(DataError) as caught:
            read(folder, 0, 5)
        assert "\n" not in str(caught.value) and len(str(caught.value)) < 600, (name, caught.value)


def test_a_part_that_lacks_an_array_is_refused_in_one_line(folder):
    arrays = dict(np.load(folder / "part-00000.npz"))
    for name in arrays:
        resealed(folder, {key: value for key, value in arrays.items() if key != name})
        with pytest.raises(DataError, match=r"expected the arrays of a shard, got KeyError: '\w+'"):
            read(folder, 0, 5)


@pytest.mark.parametrize(
    "content", ["[" * 100_000, '{"format": ' + "9" * 10_000 + "}", '{"parts": true}', "null", "\ud800"]
)
def test_whatever_stands_in_a_manifest_is_refused_in_one_line(folder, content):
    (folder / MANIFEST).write_text(content, errors="surrogatepass")
    with pytest.raises(DataError, match="manifest.json: expected") as caught:
        read(folder)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 600


@pytest.mark.parametrize("number", [2**63, 1e300, True, -1, "3", None, [1]])
@pytest.mark.parametrize("name", ["nodes", "classes", "features"])
def test_sizes_of_a_manifest_are_sizes(folder, name, number):
    change(folder, **{name: number})
    with pytest.raises(DataError, match="expected sizes, classes, metric and a list of parts"):
        read(folder)


def test_a_part_or_a_manifest_that_is_a_device_is_refused(folder):
    for name in ("part-00002.npz", MANIFEST):
        (folder / name).unlink()
        (folder / name).symlink_to("/dev/zero")
        with pytest.raises(DataError, match=f"{name}: expected a file, got a device, pipe or socket"):
            read(folder)


def test_writing_again_replaces_the_older_graph(folder, data):
    (folder / "notes.txt").write_text("mine")
    write(data, partition(data.graph, 2), folder)
    assert sorted(os.listdir(folder)) == [MANIFEST, "notes.txt", "part-00000.npz", "part-00001.npz"]
    check([read(folder, rank, 2) for rank in range(2)], data)


def test_an_older_graph_stays_where_the_new_parts_make_no_sense(folder, data):
    with pytest.raises(ValueError, match="must be the part 0, 1"):
        write(data, torch.zeros(7, dtype=torch.int64), folder)
    check([read(folder, rank, 2) for rank in range(2)], data)


def test_a_folder_is_no_graph_until_all_is_written(folder, data, monkeypatch):
    from mldd.problems.data import shard_files

    def fail(path):
        raise OSError("disk full")

    monkeypatch.setattr(shard_files, "digest", fail)
    with pytest.raises(OSError, match="disk full"):
        write(data, partition(data.graph, 2), folder)
    assert not (folder / MANIFEST).exists()
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def test_bytes_count_all_arrays():
    shard = cut(path_graph(sparse=True), torch.arange(11) // 6)[0]
    edges, halo, nodes = shard.edges, shard.halo, shard.data
    arrays = [shard.whole.sizes, shard.numbers, shard.part, edges.indptr, edges.indices, halo.owner, halo.index]
    arrays += [nodes.labels, nodes.train, nodes.validation, nodes.test]
    arrays += [nodes.features.data, nodes.features.indices, nodes.features.indptr]
    assert shard.bytes == sum(a.nbytes for a in arrays)
