"""A network of a user's is validated while it is trained, kept, and read back into a module of the same class."""

import pytest
import torch
from torch.nn import functional

import mldd
from mldd.loop import Stop, Validation, minimise
from mldd.models import save
from mldd.problems.modules import GraphProblem
from mldd.solvers import Adam

geometric = pytest.importorskip("torch_geometric")


def some(**more):
    from torch_geometric.data import Data

    generator = torch.Generator().manual_seed(0)
    number = torch.arange(60)
    edges = torch.stack([number, (number + 1) % 60])
    masks = {"train_mask": number < 30, "val_mask": (number >= 30) & (number < 45), "test_mask": number >= 45}
    y = number % 3
    x = torch.randn(60, 5, generator=generator) + functional.one_hot(y, 5)
    data = Data(x=x, edge_index=torch.cat([edges, edges.flip(0)], 1), y=y, **masks)
    torch.manual_seed(0)
    net = geometric.nn.models.GraphSAGE(5, 8, num_layers=2, out_channels=3)
    return GraphProblem(net, data, **more), net, data


def test_the_best_network_is_kept_and_read_back(tmp_path):
    problem, net, data = some()
    validation = Validation(problem.validation, every=2)
    result = minimise(problem.objective(), problem.initial(), Adam(0.05), stop=Stop(40), validation=validation)
    assert validation.value == min(v for v in result.history.column("validation_loss") if v == v)
    save(tmp_path / "model.pt", problem.module(validation.best), {"step": validation.step})
    fresh = geometric.nn.models.GraphSAGE(5, 8, num_layers=2, out_channels=3)
    assert mldd.load(tmp_path, fresh) is fresh and not fresh.training
    outputs = fresh(data.x, data.edge_index)[data.val_mask]
    assert functional.cross_entropy(outputs, data.y[data.val_mask]).item() == pytest.approx(validation.value, rel=1e-5)


def test_validation_needs_nodes_that_are_not_trained_on():
    problem = some(labels="all")[0]
    with pytest.raises(ValueError, match="got labels=all; leave one of them out"):
        problem.validation(problem.initial())
    data = some()[2]
    del data.val_mask
    problem = GraphProblem(some()[1], data)
    with pytest.raises(ValueError, match="must have val_mask with a labelled node for a validation, got none"):
        problem.validation(problem.initial())
