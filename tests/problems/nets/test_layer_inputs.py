"""Inputs of first layers: those of forecasts and of shards are what the networks multiply."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import mldd
from mldd.problems.forecasts import Forecasting
from mldd.problems.graphs import NodeClassification
from tests.small_graphs import grid, sharded
from tests.small_series import waves


@pytest.mark.parametrize("model", ["gcn", "sage"])
def test_inputs_of_forecasts_have_a_row_per_node_and_sample(model: str) -> None:
    p = mldd.problem(Forecasting, name=waves(times=80), model=model, hidden=4, horizon=3, stride=5)
    first, graphs = p.first_layer(), p.local_graphs
    X = graphs.features.reshape(graphs.graph.nodes, graphs.samples, -1)
    AX = np.einsum("ij,jsf->isf", graphs.operator.toarray(), X)
    wanted = AX if model == "gcn" else np.concatenate([X, AX], 2)
    Z = np.asarray(first.inputs[0])
    assert np.allclose(Z, wanted.reshape(len(Z), -1))
    x = torch.arange(p.net.layout.size, dtype=torch.float64)
    *weights, bias = p.net.layout.views(x)[: 2 if model == "gcn" else 3]
    assert torch.equal(x[first.places], torch.cat([*weights, bias[None]]))
    with pytest.raises(ValueError, match="needs a network that reads the data alone, got rollout=2"):
        mldd.problem(Forecasting, name=waves(times=80), model=model, rollout=2).first_layer()


def test_shards_have_the_moments_of_the_whole_graph() -> None:
    from mldd.problems.data import GraphData

    n, generator = 36, torch.Generator().manual_seed(0)
    x = torch.rand(n, 5, generator=generator, dtype=torch.float64)
    fold = torch.arange(n) % 3
    masks = {"train": fold == 0, "validation": fold == 1, "test": fold == 2}
    data = GraphData("grid", grid(6), x, torch.arange(n) % 2, classes=2, **masks)
    options = {"model": "sage", "hidden": 3, "labels": "all"}
    whole = mldd.problem(NodeClassification, name=data, **options).first_layer()
    shard = sharded(data, (torch.arange(n) >= 20).long(), **options).first_layer()
    eye = np.eye(whole.size)
    assert torch.equal(shard.places, whole.places)
    assert np.allclose(shard.moment(eye), whole.moment(eye), rtol=1e-10)
    assert shard.squares == pytest.approx(whole.squares, rel=1e-10)
