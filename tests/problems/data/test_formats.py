"""Files of graphs: layouts by hand, and everything that can be wrong or hostile in a file."""

import io
import pickle
import zipfile
from collections import defaultdict

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.graph import Graph
from mldd.problems.data import DataError, load_graph
from mldd.problems.data.formats import csr, read_graphdata, read_planetoid
from mldd.problems.data.formats.pickles import matrix_of, unpickle
from tests.helpers import Evil, user_arrays, user_tensors


def refused(call, *words):
    """Return the one line with which a call refuses its data."""
    with pytest.raises(DataError) as info:
        call()
    line = str(info.value)
    assert "\n" not in line and all(word in line for word in words), line
    return line


# ------------------------------------------------------------------------------------------------- a user's file


def saved(path, arrays):
    np.savez(path, **arrays)
    return str(path)


def test_npz_of_a_user(tmp_path):
    arrays = user_arrays()
    data = load_graph(saved(tmp_path / "own.npz", arrays), split=4)
    adjacency = sp.csr_matrix((arrays["adj_data"], arrays["adj_indices"], arrays["adj_indptr"]), arrays["adj_shape"])
    expected = (adjacency + adjacency.T).toarray() > 0
    np.fill_diagonal(expected, False)
    assert np.array_equal(data.graph.scipy().toarray() > 0, expected)
    assert data.features.numpy().ravel().tolist() == arrays["attr_data"].tolist()
    normalised = load_graph(tmp_path / "own.npz", row_normalise=True)
    assert ((normalised.features.sum(1) - 1).abs() < 1e-12).all()
    assert data.labels[data.train].bincount().tolist() == [6, 6, 6]  # a third of each class at most
    assert bool((data.train | data.validation | data.test).all())


def test_npz_with_dense_features_and_masks(tmp_path):
    arrays = {key: value for key, value in user_arrays().items() if not key.startswith("attr")}
    number = np.arange(60)
    masks = {"train_mask": number < 20, "val_mask": (number >= 20) & (number < 40), "test_mask": number >= 40}
    features = np.random.default_rng(0).standard_normal((60, 4)).astype(np.float32)
    data = load_graph(saved(tmp_path / "own.npz", {**arrays, **masks, "attr_matrix": features}))
    assert data.features.tolist() == features.astype(float).tolist()
    assert data.test.tolist() == masks["test_mask"].tolist()


def npz_cases():
    good = user_arrays()
    number = np.arange(60)
    thirds = {"train_mask": number < 20, "val_mask": (number >= 20) & (number < 40), "test_mask": number >= 40}
    nan = good["attr_data"].copy()
    nan[3] = np.nan
    inf = good["attr_data"].copy()
    inf[5] = np.inf
    far = good["adj_indices"].copy()
    far[0] = 10**9
    bad = {
        "object": ({"labels": np.array([{}] * 60, dtype=object)}, ["plain arrays"]),
        "not-square": ({"adj_shape": np.array([60, 61])}, ["square", "(60, 61)"]),
        "shape": ({"adj_shape": np.array([59, 59])}, ["fit together"]),
        "nothing": ({"attr_shape": np.array([0, 5])}, ["two positive sizes", "[0, 5]"]),
        "huge": ({"attr_shape": np.array([2**40, 5])}, ["fit together"]),
        "indices": ({"adj_indices": far}, ["fit together"]),
        "indptr": ({"adj_indptr": good["adj_indptr"][::-1]}, ["fit together"]),
        "float-indices": ({"adj_indices": good["adj_indices"] * 1.0}, ["integers", "float64"]),
        "text": ({"attr_data": np.array(["a"] * 300)}, ["real numbers"]),
        "short": ({"labels": np.arange(59) % 3}, ["labels", "(60,)", "(59,)"]),
        "negative": ({"labels": np.arange(60) % 3 - 2}, ["labels", "-2..0"]),
        "large": ({"labels": np.arange(60) * 10**15}, ["labels", "renumber"]),
        "float": ({"labels": np.arange(60) % 3 * 1.0}, ["labels", "integers", "float64"]),
        "one-class": ({"labels": np.zeros(60, dtype=np.int64)}, ["2 classes"]),
        "nan": ({"attr_data": nan}, ["finite", "1 entries"]),
        "inf": ({"attr_data": inf}, ["finite", "1 entries"]),
        "rows": ({"attr_matrix": np.ones((59, 2))}, ["60 nodes", "59 rows"]),
        "flat": ({"attr_matrix": np.ones(60)}, ["(n, F)"]),
        "nan-dense": ({"attr_matrix": np.full((60, 2), np.nan)}, ["finite", "120 entries"]),
        "overlap": ({**thirds, "val_mask": number < 40}, ["disjoint", "20 nodes"]),
        "empty": ({**thirds, "val_mask": number < 0}, ["validation", "at least one"]),
        "one-mask": ({"train_mask": number < 20}, ["or none", "train"]),
        "int-mask": ({**thirds, "train_mask": number}, ["train mask", "bool"]),
        "short-mask": ({**thirds, "test_mask": number[:50] > 40}, ["test mask", "60"]),
        "uneven-masks": ({**thirds, "test_mask": np.stack([number >= 40] * 2)}, ["[1, 1, 2]"]),
        "missing": ({"adj_data": None}, ["adj_data"]),
        "keys": ({"adj_indptr": None}, ["expected the arrays", "labels"]),
        "no-labels": ({"labels": None}, ["expected labels", "got none; add them"]),
        "labels-unknown": ({"labels": np.full(60, -1)}, ["expected labels", "got none; add them"]),
    }
    return [pytest.param(change, words, id=name) for name, (change, words) in bad.items()]


@pytest.mark.parametrize(("change", "words"), npz_cases())
def test_bad_npz_is_one_line(tmp_path, change, words):
    arrays = {key: value for key, value in {**user_arrays(), **change}.items() if value is not None}
    path = saved(tmp_path / "bad.npz", arrays)
    refused(lambda: load_graph(path), path, *words)


@pytest.mark.parametrize("suffix", ["npz", "pt"])
def test_truncated_foreign_and_absent_files(tmp_path, suffix):
    good, path = tmp_path / f"good.{suffix}", tmp_path / f"bad.{suffix}"
    np.savez(good, **user_arrays()) if suffix == "npz" else torch.save(user_tensors(), good)
    load_graph(good)
    content = good.read_bytes()
    foreign = io.BytesIO()
    np.save(foreign, np.ones(3))
    damaged = bytearray(content)
    damaged[len(content) // 3 : len(content) // 3 + 200] = b"x" * 200
    for junk in (b"", b"PK\x03\x04", content[:-30], content[: len(content) // 2], b"hello\n" * 50, foreign.getvalue()):
        path.write_bytes(junk)
        refused(lambda: load_graph(path), str(path), "expected a", f"{len(junk)} bytes")
    path.write_bytes(damaged)
    if suffix == "npz":  # a .pt has no checksum of its own contents
        refused(lambda: load_graph(path), str(path))
    refused(lambda: load_graph(tmp_path / f"none.{suffix}"), "readable file", "No such file")
    path.unlink()
    path.mkdir()
    refused(lambda: load_graph(path), "readable file")


@pytest.mark.parametrize("name", ["core", "cora.txt", ""])
def test_unknown_names_are_listed(name):
    refused(lambda: load_graph(name), "cora, citeseer", repr(name))


def test_pt_dictionary_and_data(tmp_path):
    tensors = user_tensors()
    number = torch.arange(60)
    masks = {"train_mask": number < 20, "val_mask": (number >= 20) & (number < 40), "test_mask": number >= 40}
    stacked = {key: torch.stack([mask, mask.roll(1)], 1) for key, mask in masks.items()}
    torch.save({**tensors, **stacked}, tmp_path / "own.pt")
    data = load_graph(tmp_path / "own.pt", split=1)
    assert data.graph.edges == 118 and torch.equal(data.train, masks["train_mask"].roll(1))
    torch.testing.assert_close(data.features, tensors["x"].double())
    geometric = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")
    torch.save(geometric.Data(**tensors, **masks), tmp_path / "data.pt")
    data = load_graph(tmp_path / "data.pt")
    assert torch.equal(data.test, masks["test_mask"]) and torch.equal(data.labels, tensors["y"])


@pytest.mark.filterwarnings("ignore:Sparse")
def test_pt_with_sparse_features(tmp_path):
    x = torch.eye(60, dtype=torch.float64)
    for sparse in (x.to_sparse_csr(), x.to_sparse()):
        torch.save({**user_tensors(), "x": sparse}, tmp_path / "own.pt")
        assert torch.equal(load_graph(tmp_path / "own.pt").features.to_dense(), x)


@pytest.mark.filterwarnings("ignore:Sparse")
def test_pt_with_wild_sparse_indices(tmp_path):
    pieces = torch.tensor([0, *range(1, 61)]), torch.full((60,), 10**8), torch.ones(60)
    wild = torch.sparse_csr_tensor(*pieces, size=(60, 60), check_invariants=False)
    torch.save({**user_tensors(), "x": wild}, tmp_path / "wild.pt")
    refused(lambda: load_graph(tmp_path / "wild.pt"), "plain tensors")
    index = torch.stack([torch.full((60,), 10**8), torch.arange(60)])
    wild = torch.sparse_coo_tensor(index, torch.ones(60), size=(60, 60), check_invariants=False)
    torch.save({**user_tensors(), "x": wild}, tmp_path / "wild.pt")
    refused(lambda: load_graph(tmp_path / "wild.pt"), "plain tensors")


def test_pt_with_short_floats(tmp_path):
    torch.save({**user_tensors(), "x": torch.ones(60, 2, dtype=torch.bfloat16)}, tmp_path / "own.pt")
    assert load_graph(tmp_path / "own.pt").features.tolist() == [[1.0, 1.0]] * 60


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": None}, ["no x"]),
        ({"x": torch.full((60, 2), torch.nan)}, ["finite"]),
        ({"x": torch.ones(60)}, ["(n, F)"]),
        ({"x": torch.ones(60, 2, dtype=torch.complex64)}, ["real numbers"]),
        ({"edge_index": torch.tensor([[0], [60]])}, ["0..59", "0..60"]),
        ({"edge_index": torch.ones(2, 3)}, ["integers", "float32"]),
        ({"edge_index": torch.ones(3, 2, dtype=torch.int64)}, ["two rows"]),
        ({"y": torch.ones(60)}, ["labels", "integers"]),
        ({"y": -torch.ones(60, dtype=torch.int64)}, ["labels", "got none"]),
        ({"y": None}, ["labels", "got none; add them"]),
        ({"train_mask": torch.ones(60, dtype=torch.bool)}, ["or none"]),
    ],
)
def test_bad_pt_is_one_line(tmp_path, change, words):
    tensors = {key: value for key, value in {**user_tensors(), **change}.items() if value is not None}
    torch.save(tensors, tmp_path / "bad.pt")
    refused(lambda: load_graph(tmp_path / "bad.pt"), "bad.pt", *words)


# ------------------------------------------------------------------------------------------------- malice


def test_evil_pickles_execute_nothing(tmp_path):
    proof = tmp_path / "executed"
    for protocol in range(6):
        content = pickle.dumps({"x": Evil(proof)}, protocol)
        refused(lambda content=content: unpickle(content, "evil"), "evil: expected a pickle of plain arrays", "system")
    assert not proof.exists()
    pickle.loads(content)
    assert proof.exists()  # the pickle is really evil


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "numpy load", "os system", "scipy.io loadmat"])
def test_only_listed_names_are_found(name):
    refused(lambda: unpickle(f"c{name}\n.".replace(" ", "\n").encode(), "f"), name.replace(" ", "."))


def test_evil_npz_and_pt_execute_nothing(tmp_path):
    proof = tmp_path / "executed"
    box = np.empty((), dtype=object)
    box[()] = Evil(proof)
    np.savez(tmp_path / "evil.npz", **{**user_arrays(), "labels": box})
    refused(lambda: load_graph(tmp_path / "evil.npz"), "plain arrays")
    np.savez(tmp_path / "boxes.npz", adj_matrix=box, node_attr=box, node_label=np.zeros(3, dtype=np.int64))
    refused(lambda: read_graphdata((tmp_path / "boxes.npz").read_bytes(), "boxes"), "system")
    torch.save({**user_tensors(), "z": Evil(proof)}, tmp_path / "evil.pt")
    refused(lambda: load_graph(tmp_path / "evil.pt"), "plain tensors")
    (tmp_path / "bare.pt").write_bytes(pickle.dumps(Evil(proof)))
    refused(lambda: load_graph(tmp_path / "bare.pt"), "plain tensors")
    assert not proof.exists()


def test_matrices_with_wild_indices_never_reach_scipy():
    matrix = sp.csr_matrix(np.eye(3))
    matrix.indices = np.array([0, 1, 10**8], dtype=np.int32)
    refused(lambda: matrix_of(unpickle(pickle.dumps(matrix, 3), "f"), "f"), "fit together")
    refused(lambda: csr(np.ones(1), np.zeros(1, int), np.array([0, 1]), [1], "f"), "two positive sizes")
    refused(lambda: csr(np.ones(1), np.zeros(1, int), np.array([0, 1]), ["a", "b"], "f"), "shape must be integers")


# ------------------------------------------------------------------------------------------------- Planetoid by hand


def plain(value):
    """Pickle without the protocols that need other names for arrays."""
    return pickle.dumps(value, 3)


def planetoid_files():
    """Two training nodes, 500 validation, 10 unlabelled, and test nodes 515, 512, 513 (514 is missing)."""
    known = np.eye(3)[np.arange(512) % 3]
    allx = sp.csr_matrix(known)
    graph = defaultdict(list, {i: [i + 1, i] for i in range(513)})
    objects = {
        "x": allx[:2],
        "y": known[:2].astype(np.int32),
        "allx": allx,
        "ally": known.astype(np.int32),
        "tx": sp.csr_matrix(np.diag([7.0, 8.0, 9.0])),
        "ty": np.eye(3, dtype=np.int32)[[2, 1, 2]],
        "graph": graph,
    }
    files = {key: plain(value) for key, value in objects.items()}
    return {**files, "test.index": b"515\n512\n513\n"}


def test_planetoid_by_hand():
    raw = read_planetoid(planetoid_files(), "made")
    features = raw.features.toarray()
    assert features.shape == (516, 3) and features[512:].tolist() == [[0, 8, 0], [0, 0, 9], [0, 0, 0], [7, 0, 0]]
    assert raw.labels[510:].tolist() == [0, 1, 1, 2, -1, 2]  # nobody knows the class of node 514
    assert raw.masks["train"].nonzero()[1].tolist() == [0, 1]
    assert raw.masks["validation"].nonzero()[1].tolist() == list(range(2, 502))
    assert raw.masks["test"].nonzero()[1].tolist() == [512, 513, 515]
    assert Graph.from_edges(torch.from_numpy(raw.edge_index), 516).edges == 2 * 513


@pytest.mark.parametrize(
    ("key", "content", "words"),
    [
        ("x", None, []),
        ("tx", None, ["eight"]),
        ("graph", plain({0: [10**6]}), ["0..515"]),
        ("graph", plain([1, 2]), ["eight"]),
        ("graph", plain({"a": ["b"]}), ["eight"]),
        ("tx", plain(np.eye(3)), ["eight"]),
        ("ty", plain(np.eye(2)), ["fit together"]),
        ("ally", plain(np.ones(3)), ["(n, F)"]),
        ("test.index", b"one\ntwo", ["eight"]),
        ("test.index", b"", ["fit together"]),
        ("test.index", b"1\n2\n3\n", ["fit together"]),
        ("allx", b"\x80\x02garbage", ["plain arrays"]),
    ],
)
def test_bad_planetoid_is_one_line(key, content, words):
    files = planetoid_files()
    files.pop(key)
    if content is not None:
        files[key] = content
    if key == "x" and content is None:
        assert read_planetoid(files, "made").labels.size == 516  # x is part of allx
    else:
        refused(lambda: read_planetoid(files, "made"), "made", *words)


def test_graphdata_by_hand():
    adjacency, features = (np.array(sp.csr_matrix(matrix), dtype=object) for matrix in (np.ones((3, 3)), np.eye(3)))
    stream = io.BytesIO()
    np.savez(stream, adj_matrix=adjacency, node_attr=features, node_label=np.arange(3))
    raw = read_graphdata(stream.getvalue(), "made")
    assert raw.edge_index.shape == (2, 9) and raw.features.toarray().tolist() == np.eye(3).tolist()
    refused(lambda: read_graphdata(stream.getvalue()[:-40], "made"), "expected a file of GraphData")
    empty = io.BytesIO()
    zipfile.ZipFile(empty, "w").close()
    refused(lambda: read_graphdata(empty.getvalue(), "made"), "expected a file of GraphData")
