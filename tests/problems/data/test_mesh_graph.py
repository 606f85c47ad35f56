"""The hidden mesh of a graph file: the edges of the file, one by one, and a forecast over them."""

import numpy as np
import pytest
import torch

from mldd import minimise
from mldd.loop import Stop
from mldd.problems.data import DataError, mesh_of_graph, on_sphere
from mldd.problems.data.formats import TypedGraph, write_typed_graph
from mldd.problems.forecasts import Forecasting, ForecastNetwork, Plan
from mldd.solvers import LBFGS
from tests.small_anemoi import small_graph
from tests.small_series import waves

pytest.importorskip("torch_geometric")
SERIES = waves(120, 3, 4)
STEP = {
    "encoder": ("data", "to", "hidden"),
    "processor": ("hidden", "to", "hidden"),
    "decoder": ("hidden", "to", "data"),
}


@pytest.fixture(scope="module")
def graph():
    return small_graph(SERIES.latitude, SERIES.longitude, resolution=1)


@pytest.fixture(scope="module")
def file(graph, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "graph.pt"
    write_typed_graph(graph, path)
    return path


def test_edges_are_those_of_the_file(file, graph):
    mesh = mesh_of_graph(file, SERIES.latitude, SERIES.longitude)
    for link, kind in zip((mesh.encode, mesh.process, mesh.decode), STEP.values(), strict=True):
        pairs = {(int(t), int(s)) for s, t in graph.index(kind).T.tolist()}
        rows, columns = link.matrix.nonzero()
        assert set(zip(rows.tolist(), columns.tolist(), strict=True)) == pairs
        np.testing.assert_allclose(link.matrix.sum(1)[np.unique(rows)], 1.0)  # means of messages
    x = np.degrees(graph.nodes["hidden"]["x"].numpy())
    np.testing.assert_allclose(mesh.points, on_sphere(x[:, 0], x[:, 1]), atol=1e-6)


def test_a_forecast_over_the_mesh_is_trained_kept_and_used(file, tmp_path):
    network = ForecastNetwork("epd", hidden=8, mesh_graph=str(file))
    problem = Forecasting(SERIES, Plan(horizon=2, history=2), network)
    assert problem.mesh.points.shape == (42, 3)
    result = minimise(problem.objective(), problem.initial(0), LBFGS(), stop=Stop(max_steps=3))
    assert result.record.value < 0.99
    model = problem.module(result.x)
    expected = problem.forecasts(result.x, np.array([100]))
    np.testing.assert_allclose(
        model.predict(SERIES, start=[100]).fields["a"].values.ravel(), expected.ravel(), rtol=1e-9
    )
    file.rename(tmp_path / "kept.pt")
    try:
        write_typed_graph(small_graph(SERIES.latitude, SERIES.longitude, resolution=2), file)
        with pytest.raises(DataError, match="expected the graph of the training, got another one"):
            model.predict(SERIES, start=[100])
    finally:
        (tmp_path / "kept.pt").replace(file)


def test_graphs_that_do_not_fit_are_refused(file, graph, tmp_path):
    with pytest.raises(DataError, match="where the series has its own, got 12 elsewhere, up to 111 km"):
        mesh_of_graph(file, SERIES.latitude + 1, SERIES.longitude)
    with pytest.raises(DataError, match="expected 11 nodes data, as the series has, got 12"):
        mesh_of_graph(file, SERIES.latitude[1:], SERIES.longitude[1:])
    fewer = TypedGraph(graph.nodes, {kind: of for kind, of in graph.edges.items() if kind != STEP["decoder"]})
    write_typed_graph(fewer, tmp_path / "fewer.pt")
    with pytest.raises(DataError, match="encoder, processor and decoder edges, got data to hidden, hidden to hidden"):
        mesh_of_graph(tmp_path / "fewer.pt", SERIES.latitude, SERIES.longitude)
    for options in ({"model": "sage"}, {"model": "epd", "mesh_nodes": 5}):
        with pytest.raises(ValueError, match="`mesh_graph` is the mesh of model=epd without mesh_nodes, got m"):
            ForecastNetwork(**options, mesh_graph=str(file))
    assert torch.is_tensor(graph.nodes["data"]["x"])
