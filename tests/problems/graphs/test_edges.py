"""What a user gives about edges: weights and attributes of a file reach the loss, or their loss is said."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.problems.data import DataError, GraphData, load_graph, write
from mldd.problems.graphs import Network, NodeClassification, ShardedClassification
from mldd.problems.nets.layers import layer_kinds, layer_of

N = 40


def tensors(seed=0):
    """A ring with chords, every edge in both directions, with weights and attributes."""
    i = torch.arange(N)
    one_way = torch.cat([torch.stack([i, (i + 1) % N]), torch.stack([i[::2], (i[::2] + 7) % N])], 1)
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(one_way.shape[1], generator=generator, dtype=torch.float64) + 0.3
    return {
        "x": torch.randn(N, 5, generator=generator, dtype=torch.float64),
        "edge_index": torch.cat([one_way, one_way.flip(0)], 1),
        "y": i % 3,
        "edge_weight": weights.repeat(2),
        "edge_attr": torch.randn(2 * one_way.shape[1], 2, generator=generator, dtype=torch.float64),
    }


def saved(path, given) -> GraphData:
    torch.save(given, path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_graph(path)


def problem(data, model, **options):
    return mldd.problem(NodeClassification, name=data, model=model, dropout=0.0, decay=0.0, hidden=4, **options)


@pytest.mark.parametrize("model", ["gcn", "transformer"])
def test_the_loss_is_that_of_torch_geometric_on_the_tensors_of_the_file(tmp_path, model):
    nn = pytest.importorskip("torch_geometric.nn")
    given = tensors()
    p = problem(saved(tmp_path / "own.pt", given), model, layers=1)
    x = p.initial(0) + 0.1
    views = p.net.layout.views(x)
    if model == "gcn":
        conv, weights = nn.GCNConv(5, 3), {"lin.weight": views[0].t(), "bias": views[1]}
        arguments = {"edge_weight": given["edge_weight"]}
    else:
        conv = nn.TransformerConv(5, 3, edge_dim=2)
        names = ("lin_query", "lin_key", "lin_value", "lin_skip", "lin_edge")
        weights = {f"{name}.weight": view.t() for name, view in zip(names, views, strict=False)}
        weights |= {f"{name}.bias": torch.zeros(3).double() for name in names[:3]} | {"lin_skip.bias": views[5]}
        arguments = {"edge_attr": given["edge_attr"]}
    out = torch.func.functional_call(conv.double(), weights, (given["x"], given["edge_index"]), arguments)
    train = p.graph_data.train
    expected = torch.nn.functional.cross_entropy(out[train], given["y"][train])
    torch.testing.assert_close(p.objective().value(x), expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize("model", layer_kinds())
def test_what_is_given_changes_the_loss_or_its_loss_is_said(tmp_path, model):
    given, half = tensors(), tensors()
    pairs = half["edge_index"].shape[1] // 2
    chosen = torch.arange(0, pairs, 2)
    chosen = torch.cat([chosen, chosen + pairs])  # both directions of half of the edges
    half["edge_weight"][chosen] *= 2
    moved = {**given, "edge_attr": given["edge_attr"].flip(0)}
    first = problem(saved(tmp_path / "a.pt", given), model)
    x = first.initial(0) + 0.05
    value = first.objective().value(x)
    by_weight = problem(saved(tmp_path / "b.pt", half), model).objective().value(x)
    by_attribute = problem(saved(tmp_path / "c.pt", moved), model).objective().value(x)
    lost = first.details().get("notes", [])
    assert (by_weight == value) == any("edge_weight" in note for note in lost)
    assert (by_attribute == value) == any("edge_attr" in note for note in lost)
    assert lost in ([], ["not used: edge_attr"], ["not used: edge_weight"], ["not used: edge_weight, edge_attr"])
    bare = {key: entry for key, entry in given.items() if key not in ("edge_weight", "edge_attr")}
    assert problem(saved(tmp_path / "d.pt", bare), model).details() == {}


@pytest.mark.parametrize("model", ["gcn", "sage", "gat", "transformer"])
def test_shards_keep_weights_and_attributes(tmp_path, model):
    data = saved(tmp_path / "own.pt", tensors())
    whole = problem(data, model)
    x = whole.initial(0) + 0.05
    for parts in (1, 3):
        write(data, torch.arange(N) * parts // N, tmp_path / str(parts))
        shards = ShardedClassification(
            tmp_path / str(parts), network=Network(model=model, dropout=0.0, decay=0.0, hidden=4)
        )
        torch.testing.assert_close(shards.objective().value(x), whole.objective().value(x), rtol=1e-12, atol=0)
        torch.testing.assert_close(
            shards.objective().gradient(x), whole.objective().gradient(x), rtol=1e-10, atol=1e-14
        )
        assert shards.details().get("notes", []) == whole.details().get("notes", [])


def test_coarse_graphs_and_subdomains_see_attributes():
    data = NodeClassification("sbm").graph_data
    graph = data.graph
    values = torch.randn(graph.edges, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    found = []
    for factor in (1.0, 3.0):
        p = problem(replace(data, graph=replace(graph, edge_attributes=factor * values)), "transformer", clusters=60)
        x = p.initial(0) + 0.05
        coarse = p.hierarchy(2)[1].objective
        local = p.local_batch(p.parts(3), [0, 1, 2])
        found.append([coarse.value(x), *local.value(x.expand(3, -1).contiguous())])
    assert all(a.isfinite() and a != b for a, b in zip(*found, strict=True))


def test_the_two_directions_of_an_edge(tmp_path):
    given = tensors()
    given["edge_weight"][:4] *= 2.0
    data = saved(tmp_path / "own.pt", given)
    assert data.notes == ("weights of 4 edges differ in their two directions: the larger is taken",)
    assert data.digest != saved(tmp_path / "own.pt", tensors()).digest
    one_way = {key: v[..., : v.shape[-1] // 2] if key == "edge_index" else v for key, v in given.items()}
    one_way |= {key: given[key][: len(given[key]) // 2] for key in ("edge_weight", "edge_attr")}
    single = saved(tmp_path / "one.pt", one_way)
    assert single.notes == ("60 of 60 edges go one way only and were taken both ways",)
    rows, columns = single.graph.edge_index
    back = {(i, j): k for k, (i, j) in enumerate(zip(rows.tolist(), columns.tolist(), strict=True))}
    turned = [back[j, i] for i, j in zip(rows.tolist(), columns.tolist(), strict=True)]
    assert torch.equal(single.graph.edge_attributes, single.graph.edge_attributes[turned])
    assert single.graph.edges == 120 and layer_of("transformer").attributes(single.graph)[0].nnz == 120


def test_archives_have_weights_too(tmp_path):
    given = {key: value.numpy() for key, value in tensors().items()}
    arrays = {"edges": given["edge_index"].T, "node_features": given["x"], "node_labels": given["y"]}
    np.savez(tmp_path / "own.npz", **arrays, edge_weight=given["edge_weight"], edge_attr=given["edge_attr"])
    torch.save(tensors(), tmp_path / "own.pt")
    mine, other = load_graph(tmp_path / "own.npz").graph, load_graph(tmp_path / "own.pt").graph
    assert torch.equal(mine.weights, other.weights) and torch.equal(mine.edge_attributes, other.edge_attributes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"edge_weight": torch.ones(3)}, "edge_weight must have 120 rows, one per edge, got shape"),
        ({"edge_weight": -torch.ones(120)}, "edge_weight must be > 0, got a minimum of -1; .* edge_attr"),
        ({"edge_weight": torch.ones(120, 2)}, "edge_weight must be one number per edge, got 2; name them edge_attr"),
        ({"edge_attr": torch.full((120, 1), torch.inf)}, "edge_attr"),
        ({"edge_attr": torch.ones(7, 2)}, "edge_attr must have 120 rows"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, change, message):
    torch.save({**tensors(), **change}, tmp_path / "own.pt")
    with pytest.raises(DataError, match=message):
        load_graph(tmp_path / "own.pt")


def test_one_number_per_edge_is_asked_about(tmp_path):
    given = tensors()
    given["edge_attr"] = given.pop("edge_weight")
    torch.save(given, tmp_path / "own.pt")
    with pytest.warns(UserWarning, match="edge_attr has one number per edge.* name it edge_weight if it is one"):
        data = load_graph(tmp_path / "own.pt")
    assert data.graph.weights is None and data.graph.edge_attributes.shape == (120, 1)
