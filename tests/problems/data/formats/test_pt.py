"""What torch_geometric keeps of one graph is read without trust; several graphs are refused with a way out."""

import numpy as np
import pytest
import torch

from mldd.problems.data import DataError, load_graph
from tests.helpers import Evil, user_tensors

geometric = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")


def processed(graphs, kind):
    """Return what the datasets of torch_geometric write: several versions of data and slices."""
    data, slices = geometric.InMemoryDataset.collate(graphs)
    return {
        "old": (data, slices),
        "dictionary": (data.to_dict(), slices, geometric.Data),
        "without slices": (data.to_dict(), None, geometric.Data),
        "list": graphs,
        "with features": (data.to_dict(), slices, {}, geometric.Data),
    }[kind]


KINDS = ["old", "dictionary", "without slices", "list", "with features"]


@pytest.mark.parametrize("kind", KINDS)
def test_one_graph_is_read(tmp_path, kind):
    tensors = user_tensors()
    torch.save(processed([geometric.Data(**tensors)], kind), tmp_path / "data.pt")
    data = load_graph(tmp_path / "data.pt")
    torch.testing.assert_close(data.features, tensors["x"].double())
    assert torch.equal(data.labels, tensors["y"]) and data.graph.edges == 118


@pytest.mark.parametrize("kind", ["old", "dictionary", "list", "with features"])
def test_several_graphs_are_refused_and_one_of_them_can_be_saved(tmp_path, kind):
    graphs = [geometric.Data(**user_tensors()) for _ in range(3)]
    torch.save(processed(graphs, kind), tmp_path / "data.pt")
    with pytest.raises(DataError, match=r"expected one graph, got 3; save one of them, torch.save\(dataset\[0\]"):
        load_graph(tmp_path / "data.pt")
    torch.save(graphs[0], tmp_path / "one.pt")
    assert load_graph(tmp_path / "one.pt").graph.nodes == 60


def test_several_kinds_of_nodes_are_refused_and_one_kind_can_be_saved(tmp_path):
    both = geometric.HeteroData()
    tensors = user_tensors()
    for kind in ("a", "b"):
        both[kind].x, both[kind].y = tensors["x"], tensors["y"]
        both[kind, "to", kind].edge_index = tensors["edge_index"]
    torch.save(both, tmp_path / "hetero.pt")
    with pytest.raises(DataError, match=r"got a HeteroData; save data.to_homogeneous\(\)"):
        load_graph(tmp_path / "hetero.pt")
    torch.save(both.to_homogeneous(), tmp_path / "one.pt")
    with pytest.warns(UserWarning, match="not used: node_type, edge_type"):
        assert load_graph(tmp_path / "one.pt").graph.nodes == 120


@pytest.mark.parametrize("place", ["in a tuple", "in a list", "as slices"])
def test_nothing_is_executed(tmp_path, place):
    proof = tmp_path / "executed"
    tensors = user_tensors()
    content = {"in a tuple": (tensors, Evil(proof)), "in a list": [tensors, Evil(proof)]}
    torch.save(content.get(place, (tensors, {"x": Evil(proof)})), tmp_path / "evil.pt")
    with pytest.raises(DataError, match="expected a .pt of plain tensors"):
        load_graph(tmp_path / "evil.pt")
    assert not proof.exists()


def test_what_is_not_used_is_said(tmp_path):
    tensors = user_tensors()
    extra = {"edge_label": torch.rand(59), "pos": torch.rand(60, 3), "names": [f"node {k}" for k in range(60)]}
    torch.save({**tensors, **extra}, tmp_path / "own.pt")
    with pytest.warns(UserWarning, match="own.pt: not used: edge_label, pos, names"):
        data = load_graph(tmp_path / "own.pt")
    assert data.notes == (
        "59 of 59 edges go one way only and were taken both ways",
        "not used: edge_label, pos, names",
    )


def test_nodes_without_label_are_in_no_part(tmp_path):
    tensors = user_tensors()
    tensors["y"][::7] = -1
    number = torch.arange(60)
    masks = {"train_mask": number < 20, "val_mask": (number >= 20) & (number < 40), "test_mask": number >= 40}
    for given in ({}, masks):
        torch.save({**tensors, **given}, tmp_path / "own.pt")
        data = load_graph(tmp_path / "own.pt")
        parts = data.train.int() + data.validation.int() + data.test.int()
        assert torch.equal(parts, (data.labels >= 0).int()) and data.classes == 3
        assert "9 nodes have no label (-1): they are in no loss and no metric" in data.notes
    assert torch.equal(data.train, masks["train_mask"] & (number % 7 != 0))


def test_names_beside_the_arrays_of_an_npz_are_left_alone(tmp_path):
    n = 60
    i = np.arange(n)
    arrays = {"edges": np.stack([i, (i + 1) % n], 1), "node_features": np.ones((n, 2)), "node_labels": i % 3}
    names = np.array({k: f"paper {k}" for k in range(n)}, dtype=object)
    np.savez(tmp_path / "named.npz", **arrays, idx_to_node=names)
    with pytest.warns(UserWarning, match="not used: idx_to_node"):
        assert load_graph(tmp_path / "named.npz").graph.nodes == n
    np.savez(tmp_path / "named.npz", **{**arrays, "node_labels": names})
    with pytest.raises(DataError, match="node_labels holds objects"):
        load_graph(tmp_path / "named.npz")
