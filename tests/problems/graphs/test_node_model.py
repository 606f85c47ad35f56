"""Trained classifiers of nodes: the outputs of the problem, on its own graph and on others."""

import numpy as np
import pytest
import torch

import mldd
from mldd.models import load, save
from mldd.problems.data import DataError, load_graph
from mldd.problems.graphs import Network, NodeClassification, ShardedClassification, SubdomainNetworks
from tests.helpers import user_arrays, user_tensors


def trained(data, **options):
    problem = mldd.problem(NodeClassification, name=data, **options)
    return problem, problem.initial(3) * 1.5


@pytest.mark.parametrize(
    "options",
    [{}, {"model": "sage", "residual": True, "layers": 3}, {"model": "gat", "heads": 2}, {"model": "gin"}],
    ids=str,
)
def test_predictions_are_the_softmax_of_the_problem(tmp_path, options):
    np.savez(tmp_path / "own.npz", **user_arrays())
    problem, x = trained(str(tmp_path / "own.npz"), hidden=6, **options)
    save(tmp_path / "model.pt", problem.module(x), {})
    made = load(tmp_path).predict(tmp_path / "own.npz")
    np.testing.assert_allclose(made["probability"], torch.softmax(problem.logits(x), 1).numpy(), atol=1e-12)
    assert (made["predicted_class"] == problem.logits(x).argmax(1).numpy()).all()
    np.testing.assert_allclose(made["probability"].sum(1), 1.0)


def test_predictions_in_single_precision_stay_in_it(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    problem, x = trained(str(tmp_path / "own.npz"), dtype="float32")
    save(tmp_path / "model.pt", problem.module(x.float()), {})
    model = load(tmp_path)
    assert model.kind["dtype"] == torch.float32
    np.testing.assert_allclose(
        model.predict(tmp_path / "own.npz")["probability"],
        torch.softmax(problem.logits(x.float()).double(), 1).numpy(),
        atol=1e-6,
    )


def test_shards_and_the_whole_graph_have_the_same_model(tmp_path):
    np.savez(tmp_path / "own.npz", **user_arrays())
    data = load_graph(tmp_path / "own.npz")
    whole, x = trained(data, hidden=6)
    shards = ShardedClassification.of(data, torch.arange(60) % 2, network=Network(hidden=6))
    assert {k: tuple(v.shape) for k, v in whole.module(x).state_dict().items()} == {
        k: tuple(v.shape) for k, v in shards.module(x).state_dict().items()
    }
    both = [problem.module(x).predict(data)["probability"] for problem in (whole, shards)]
    np.testing.assert_array_equal(*both)


def test_data_in_memory_and_without_labels(tmp_path):
    tensors = user_tensors()
    torch.save(tensors, tmp_path / "own.pt")
    problem, x = trained(str(tmp_path / "own.pt"))
    model = problem.module(x)
    wanted = torch.softmax(problem.logits(x), 1).numpy()
    bare = {key: value for key, value in tensors.items() if key != "y"}
    torch.save(bare, tmp_path / "bare.pt")
    given = [bare, tmp_path / "bare.pt"]
    geometric = pytest.importorskip("torch_geometric.data", reason="torch_geometric is not installed")
    for data in (*given, geometric.Data(**bare), problem.graph_data):
        np.testing.assert_allclose(model.predict(data)["probability"], wanted, atol=1e-12)


def test_attributes_of_edges_are_read(tmp_path):
    tensors = {**user_tensors(), "edge_attr": torch.rand(59, 2, generator=torch.Generator().manual_seed(0))}
    torch.save(tensors, tmp_path / "own.pt")
    problem, x = trained(str(tmp_path / "own.pt"), model="transformer", hidden=4)
    model = problem.module(x)
    np.testing.assert_allclose(
        model.predict(tensors)["probability"], torch.softmax(problem.logits(x), 1).numpy(), atol=1e-12
    )
    other = model.predict({**tensors, "edge_attr": 5 * tensors["edge_attr"]})["probability"]
    assert np.abs(other - model.predict(tensors)["probability"]).max() > 1e-6
    without = {key: value for key, value in tensors.items() if key != "edge_attr"}
    with pytest.raises(DataError, match=r"edges must have 2 attributes \(edge_attr\) as in the training on .*, got 0"):
        model.predict(without)


def test_rows_of_counts_are_normalised_as_in_the_training():
    data = load_graph("digits-graph")
    problem, x = trained(data)
    model = problem.module(x)
    counts = {"x": data.features * 7, "edge_index": torch.stack(_ends(data.graph))}
    model.row_normalise = True
    made = model.predict(counts)
    assert any("divided by their sums" in note for note in made.notes)
    np.testing.assert_allclose(made["probability"], model.predict({**counts, "x": data.features})["probability"])


def _ends(graph):
    row = torch.repeat_interleave(torch.arange(graph.nodes), graph.indptr.diff())
    return row, graph.indices


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.ones(60, 7)}, "nodes must have 5 features as in the training on .*own.pt, got 7"),
        ({"x": torch.full((60, 5), torch.nan)}, "x must be finite"),
        ({"x": None}, "got no x; add it"),
        ({"edge_index": None}, "got no edge_index; add it"),
    ],
)
def test_other_data_are_refused_in_one_line(tmp_path, change, words):
    torch.save(user_tensors(), tmp_path / "own.pt")
    problem, x = trained(str(tmp_path / "own.pt"))
    with pytest.raises(DataError, match=words) as error:
        problem.module(x).predict({**user_tensors(), **change})
    assert "\n" not in str(error.value)


def test_networks_of_subdomains_are_no_single_module():
    problem = SubdomainNetworks("digits-graph")
    with pytest.raises(ValueError, match=r"problem SubdomainNetworks does not have `module\(x\)`"):
        problem.module(problem.initial())
