"""Data sets: sanity figures where the data is at hand, where files are looked for, and what a record checks."""

import hashlib
import pickle
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pooch
import pytest
import torch

from mldd.graph import Graph
from mldd.problems.data import DataError, GraphData, datasets, load_digits_images, load_graph
from mldd.problems.data.datasets import digits_graph, sbm

# name: nodes, edges, features, class sizes, masks, sparse
FIGURES = {
    "cora": (2708, 10556, 1433, [351, 217, 418, 818, 426, 298, 180], [140, 500, 1000], True),
    "citeseer": (3327, 9104, 3703, [249, 590, 668, 701, 596, 508], [120, 500, 1000], True),
    "photo": (7650, 238162, 745, [369, 1686, 703, 915, 882, 823, 1941, 331], [160, 240, 7250], False),
    "physics": (34493, 495924, 8415, [5750, 5045, 17426, 2753, 3519], [100, 150, 34243], True),
    "minesweeper": (10000, 78804, 7, [8000, 2000], [5000, 2500, 2500], False),
    "texas": (183, 558, 1703, [33, 1, 18, 101, 30], [87, 59, 37], True),
}


def refused(call, *words):
    """Return the one line with which a call refuses its data."""
    with pytest.raises(DataError) as info:
        call()
    line = str(info.value)
    assert "\n" not in line and all(word in line for word in words), line
    return line


def offline(*_, **__):
    raise OSError("no network in tests")


def at_hand(monkeypatch, name, **options):
    monkeypatch.setattr(pooch, "retrieve", offline)
    try:
        return load_graph(name, **options)
    except DataError as error:
        if "no network in tests" in str(error):
            pytest.skip(f"the files of {name} are not at hand")
        raise


def snapshot(folder):
    return sorted((path, path.stat().st_mtime_ns) for path in Path(folder).rglob("*"))


# ------------------------------------------------------------------------------------------------- known sets


@pytest.mark.parametrize("name", FIGURES)
def test_figures(name, monkeypatch):
    data = at_hand(monkeypatch, name)
    nodes, edges, features, sizes, masks, sparse = FIGURES[name]
    assert (data.graph.nodes, data.graph.edges, data.features.shape[1]) == (nodes, edges, features)
    assert data.labels[data.labels >= 0].bincount().tolist() == sizes and data.classes == len(sizes)
    assert [int(m.sum()) for m in (data.train, data.validation, data.test)] == masks
    assert (data.features.layout == torch.sparse_csr) == sparse and data.features.dtype == torch.float64
    assert data.metric == ("auc" if name == "minesweeper" else "accuracy")


def test_photo_homophily(monkeypatch):
    data = at_hand(monkeypatch, "photo")
    row, col = data.graph.edge_index
    assert float((data.labels[row] == data.labels[col]).double().mean()) == pytest.approx(0.827, abs=5e-4)
    assert data.features.unique().tolist() == [0, 1]


def test_cora_rows_and_split(monkeypatch):
    data = at_hand(monkeypatch, "cora")
    sums = torch.zeros(2708, dtype=torch.float64)
    rows = torch.repeat_interleave(torch.arange(2708), data.features.crow_indices().diff())
    sums.index_add_(0, rows, data.features.values())
    assert ((sums - 1).abs() < 1e-12).all()
    assert data.train.nonzero().ravel().tolist() == list(range(140)) and bool(data.test[-1000:].all())
    assert data.labels[data.train].bincount().tolist() == [20] * 7
    raw = at_hand(monkeypatch, "cora", row_normalise=False).features.values()
    assert raw.unique().tolist() == [1]


def test_citeseer_isolated_test_nodes_have_no_features(monkeypatch):
    data = at_hand(monkeypatch, "citeseer")
    empty = data.features.crow_indices().diff() == 0
    missing = torch.arange(3327).ge(2312) & ~data.test
    assert int(missing.sum()) == 15 and bool(empty[missing].all())
    assert torch.equal(data.labels == -1, missing)
    assert int((data.graph.degree == 0).sum()) == 48


def test_split_chooses_the_row_and_is_checked(monkeypatch):
    first, second = (at_hand(monkeypatch, "texas", split=split) for split in (0, 1))
    assert not torch.equal(first.train, second.train)
    refused(lambda: load_graph("texas", split=10), "`split` must be < 10", "got 10")
    with pytest.raises(ValueError, match="`split` must be >= 0, got -1"):
        load_graph("texas", split=-1)


# ------------------------------------------------------------------------------------------------- made here


def test_digits():
    images, labels = load_digits_images()
    assert images.shape == (1797, 64) and images.dtype == torch.float64 and float(images.max()) == 1
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_digits_graph_joins_nearest_neighbours():
    data = load_graph("digits-graph")
    distance = torch.cdist(data.features, data.features).fill_diagonal_(torch.inf)
    farthest = distance.sort(1).values[:, 7]
    row, col = data.graph.edge_index
    near = distance[row, col]
    assert bool(((near <= farthest[row] + 1e-9) | (near <= farthest[col] + 1e-9)).all())
    assert int(data.graph.degree.min()) >= 8
    assert [int(m.sum()) for m in (data.train, data.validation, data.test)] == [200, 300, 1297]
    assert data.labels[data.train].bincount().tolist() == [20] * 10
    assert not torch.equal(data.train, digits_graph(split=1).train)
    with pytest.raises(ValueError, match="`neighbours` must be in"):
        digits_graph(neighbours=0)


def test_sbm_is_planted_and_seeded():
    data = load_graph("sbm")
    row, col = data.graph.edge_index
    same = data.labels[row] == data.labels[col]
    assert float(same.sum()) / 4000 == pytest.approx(12, rel=0.03)
    assert float((~same).sum()) / 4000 == pytest.approx(4, rel=0.03)
    assert data.labels.bincount().tolist() == [500] * 8
    again, other = sbm(), sbm(seed=1)
    assert torch.equal(again.graph.indices, data.graph.indices) and torch.equal(again.features, data.features)
    assert not torch.equal(other.features, data.features)
    uneven = sbm(nodes=103, classes=5, features=2)
    assert uneven.labels.bincount().tolist() == [21, 21, 20, 21, 20]
    with pytest.raises(ValueError, match="sbm must have >= 2 classes"):
        sbm(classes=1)


def test_sbm_features_follow_the_class():
    data = sbm(noise=0.0)
    means = torch.stack([data.features[data.labels == c].mean(0) for c in range(8)])
    torch.testing.assert_close(means[data.labels], data.features)


def test_sbm_needs_no_square_memory():
    assert sbm(nodes=100_000, features=2).graph.nodes == 100_000


# ------------------------------------------------------------------------------------------------- where files are


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """Make `texas` a small file that nobody else has, with empty folders around it; returns (content, source)."""
    source = tmp_path / "source.npz"
    n = np.arange(59)
    masks = {f"{name}_masks": np.arange(60)[None] % 3 == i for i, name in enumerate(("train", "val", "test"))}
    edges, features = np.stack([n, n + 1], 1), np.ones((60, 2))
    np.savez(source, edges=edges, node_features=features, node_labels=np.arange(60) % 3, **masks)
    content = source.read_bytes()
    for name in ("work", "data", "cache"):
        (tmp_path / name).mkdir()
    handler = partial(SimpleHTTPRequestHandler, directory=str(tmp_path))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/{source.name}"
    file = datasets.KnownFile("folder/of_this_test.npz", hashlib.sha256(content).hexdigest(), url)
    monkeypatch.setitem(datasets._ARRAYS, "texas", (file,))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("MLDD_DATA", raising=False)
    monkeypatch.chdir(tmp_path / "work")
    yield content, source
    server.shutdown()
    server.server_close()


def test_download_is_checked_and_cached(tiny, tmp_path):
    _, source = tiny
    assert load_graph("texas").graph.nodes == 60
    cached = tmp_path / "cache/mldd/folder/of_this_test.npz"
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file()] == [cached]
    source.unlink()
    assert load_graph("texas", data=tmp_path / "data").graph.nodes == 60
    assert snapshot(tmp_path / "data") == []
    cached.write_bytes(b"damaged")
    refused(lambda: load_graph("texas"), str(cached), "expected sha256", "7 bytes", "delete it")


def test_failed_and_wrong_downloads_are_one_line(tiny, tmp_path, monkeypatch):
    _, source = tiny
    source.write_bytes(b"something else")
    refused(lambda: load_graph("texas"), "could not be downloaded", "hash", "does not match")
    source.unlink()
    refused(
        lambda: load_graph("texas", data=tmp_path / "data"), "of_this_test.npz", str(tmp_path / "data"), "MLDD_DATA"
    )
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_cache_that_cannot_be_written(tiny, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    refused(lambda: load_graph("texas"), "writable cache", "XDG_CACHE_HOME")


def test_order_of_the_folders(tiny, tmp_path, monkeypatch):
    content, source = tiny
    source.unlink()
    shared = tmp_path / "shared/data"
    places = [shared / "folder", tmp_path / "environment", tmp_path / "data/folder"]
    monkeypatch.setenv("MLDD_DATA", str(tmp_path / "environment"))
    for place in places:
        place.mkdir(parents=True)
    for place in places:  # the later one is looked into first
        path = place / "of_this_test.npz"
        path.write_bytes(content)
        before = snapshot(tmp_path)
        assert load_graph("texas", data=tmp_path / "data").graph.nodes == 60
        assert snapshot(tmp_path) == before
        path.write_bytes(content[:-1])
        refused(lambda: load_graph("texas", data=tmp_path / "data"), str(path))
    refused(lambda: load_graph("texas", data=tmp_path / "none"), "`data` must be a folder", "none")
    monkeypatch.setenv("MLDD_DATA", str(tmp_path / "none"))
    refused(lambda: load_graph("texas"), "$MLDD_DATA must be a folder")


def test_the_folder_beside_the_checkout_is_looked_into_from_anywhere(tiny):
    tiny[1].unlink()  # nor can it be downloaded
    beside = Path(__file__).resolve().parents[4] / "shared" / "data"
    refused(lambda: load_graph("texas"), f"{beside}, ")


def test_known_pickles_are_not_opened_with_a_wrong_checksum(tmp_path, monkeypatch):
    for ending in ("x", "y", "tx", "ty", "allx", "ally", "graph", "test.index"):
        (tmp_path / f"ind.cora.{ending}").write_bytes(pickle.dumps({}))
    monkeypatch.setattr(datasets, "read_planetoid", None)
    refused(lambda: load_graph("cora", data=tmp_path), "ind.cora.x", "expected sha256 23cfa55d91c6")


# ------------------------------------------------------------------------------------------------- the record


def test_graph_data_checks_itself():
    graph = Graph.from_edges(torch.tensor([[0, 1], [1, 2]]), 3)
    first, second, third = torch.eye(3, dtype=torch.bool)
    good = {
        "name": "g",
        "graph": graph,
        "features": torch.ones(3, 1, dtype=torch.float64),
        "labels": torch.tensor([0, 1, 1]),
        "train": first,
        "validation": second,
        "test": third,
        "classes": 2,
    }
    GraphData(**good)
    bad = [
        ({"features": torch.ones(2, 1, dtype=torch.float64)}, "features"),
        ({"features": torch.ones(3, 1)}, "float64"),
        ({"features": torch.full((3, 1), torch.inf, dtype=torch.float64)}, "finite"),
        ({"labels": torch.tensor([0, 1])}, "labels"),
        ({"labels": torch.tensor([0, 1, 2])}, "0..classes-1"),
        ({"labels": torch.tensor([0.0, 1.0, 1.0])}, "int64"),
        ({"train": third}, "disjoint"),
        ({"train": first.long()}, "train mask"),
        ({"test": third & first}, "at least one"),
        ({"metric": "auc", "classes": 3}, "auc"),
    ]
    for change, word in bad:
        refused(lambda change=change: GraphData(**{**good, **change}), "g: ", word)
