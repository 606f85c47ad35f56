"""A model of torch_geometric that the built-in layers evaluate has the loss, gradient and training of its own calls."""

import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import mldd
from mldd.algebra import sampled
from mldd.loop import Stop, minimise
from mldd.problems.modules import GraphProblem
from mldd.problems.nets import built_in
from mldd.solvers import Adam
from tests.problems.modules.one_graph.test_graph_problem import C, F, N, data, plain_loss

models = pytest.importorskip("torch_geometric.nn.models")


def with_dropout_inside(net):
    net.convs[0].nn.dropout = [0.5, 0.0]
    return net


COVERED = {
    "gcn": lambda **more: models.GCN(F, 8, 3, C, **more),
    "sage": lambda **more: models.GraphSAGE(F, 8, 2, C, act="tanh", **more),
    "gin": lambda **more: models.GIN(F, 8, 2, C, train_eps=True, eps=0.3, **more),
    "gat": lambda **more: models.GAT(F, 8, 3, C, heads=2, act="elu"),
    "one layer": lambda **more: models.GAT(F, 8, 1, C, heads=3),
    "no outputs": lambda **more: models.GCN(F, C, 2, act="gelu"),
}
OTHERS = {
    "GATv2Conv": lambda: models.GAT(F, 8, 2, C, v2=True),
    "jk=cat": lambda: models.GCN(F, 8, 2, C, jk="cat"),
    "norm=BatchNorm": lambda: models.GraphSAGE(F, 8, 2, C, norm="batch_norm"),
    "improved=True": lambda: models.GCN(F, 8, 2, C, improved=True),
    "cached=True": lambda: models.GCN(F, 8, 2, C, cached=True),
    "parameters lin.weight": lambda: models.GCN(F, 8, 2, C, bias=False),
    "dropout=0.5": lambda: models.GAT(F, 8, 2, C, dropout=0.5),
    "aggr=max": lambda: models.GraphSAGE(F, 8, 2, C, aggr="max"),
    "residual=True": lambda: models.GAT(F, 8, 2, C, residual=True),
    "edge_dim=2": lambda: models.GAT(F, 8, 2, C, edge_dim=2),
    "activation is LeakyReLU": lambda: models.GCN(F, 8, 2, C, act="leaky_relu"),
    "heads of its last layer": lambda: models.GAT(F, 8, 2, heads=2),
    "networks inside": lambda: with_dropout_inside(models.GIN(F, 8, 2, C)),
    "none of the models": lambda: models.EdgeCNN(F, 8, 2, C),
}


def graph(loops=False):
    """The graph of the other tests with doubled edges, and perhaps loops; weights of edges only with `weights`."""
    given = data()
    more = given["edge_index"][:, :9]
    if loops:
        more = torch.cat([more, torch.tensor([[3, 5], [3, 5]])], 1)
    edges = torch.cat([given["edge_index"], more], 1)
    weights = 0.5 + torch.rand(edges.shape[1], generator=torch.Generator().manual_seed(1))
    return {**given, "edge_index": edges, "edge_attr": None, "edge_weight": weights}


def graph_of(given):
    return {k: v for k, v in given.items() if v is not None}


def made(make, given, **options):
    torch.manual_seed(1)
    return mldd.problem(GraphProblem, net=make().double(), data=graph_of(given), **options)


def own_calls(p, given, **options):
    """The same network by its own calls: a derived class may do something else, and is not taken over."""
    net = copy.deepcopy(p.net)
    net.__class__ = type("Derived", (type(net),), {})
    return mldd.problem(GraphProblem, net=net, data=graph_of(given), **options)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("name", COVERED)
def test_loss_and_gradient_are_those_of_the_model(name, weighted):
    given = graph(loops=True)
    if not weighted:
        given["edge_weight"] = None
    p = made(COVERED[name], given)
    assert p.fast is not None, p.details()
    x = p.initial() + 0.05 * torch.randn(p.model.size, generator=torch.Generator().manual_seed(2))
    value, g = p.objective().value_and_gradient(x)
    expected, gradient = plain_loss(p, x, {k: v for k, v in given.items() if v is not None})
    torch.testing.assert_close(value, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(g, gradient, rtol=1e-10, atol=1e-12)
    assert f"{type(p.net).__name__} is evaluated by built-in layers" in p.details()["notes"]


@pytest.mark.parametrize("name", ["gcn", "sage", "gin", "gat"])
def test_ten_steps_of_adam_are_those_of_a_plain_loop(name):
    given = graph()
    p = made(COVERED[name], given)
    net = copy.deepcopy(p.net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01)
    x, mask = given["x"].double(), given["train_mask"]
    weights = given["edge_weight"].double()
    for _ in range(10):
        optimizer.zero_grad()
        functional.cross_entropy(net(x, given["edge_index"], weights)[mask], given["y"][mask]).backward()
        optimizer.step()
    found = minimise(p.objective(), p.initial(), Adam(0.01), stop=Stop(10)).x
    expected = nn.utils.parameters_to_vector(net.parameters()).detach()
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)
    assert p.module(found) is p.net
    torch.testing.assert_close(p.net(x, given["edge_index"], weights), net(x, given["edge_index"], weights))


@pytest.mark.parametrize("name", ["gcn", "sage", "gin"])
def test_samples_products_levels_and_parts_are_those_of_its_own_calls(name):
    given = graph()
    given["edge_weight"] = given["edge_weight"] if name == "gcn" else None
    p = made(lambda: COVERED[name](dropout=0.4), given)
    q = own_calls(p, given)
    assert p.fast is not None and q.fast is None
    x = p.initial() + 0.05
    pairs = [[sampled(r.objective(), 3) for r in (p, q)], [r.spaces.coarse(20) for r in (p, q)]]
    for f, g in pairs:
        torch.testing.assert_close(f.gradient(x), g.gradient(x), rtol=1e-9, atol=1e-11)
    f, g = [r.objective().f for r in (p, q)]
    v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
    torch.testing.assert_close(f.hessian_product(x, v), g.hessian_product(x, v), rtol=1e-9, atol=1e-11)
    part = p.spaces.parts(3)
    rows = torch.stack([x, x + 0.1, x - 0.1])
    f, g = [r.spaces.local_losses(part, range(3), 1) for r in (p, q)]
    torch.testing.assert_close(f.gradient(rows), g.gradient(rows), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reason", OTHERS)
def test_what_is_not_covered_runs_by_its_own_calls_and_is_said(reason):
    given = data() if reason == "edge_dim=2" else graph()
    p = made(OTHERS[reason], given)
    assert p.fast is None
    assert reason in built_in(p.net, p.arguments.whole)
    notes = " ".join(p.details().get("notes", []))
    assert (f"{type(p.net).__name__} is evaluated by torch_geometric, as" in notes) == (reason != "none of the models")


def test_hooks_and_arguments_by_position_are_not_taken_over():
    given = graph()
    p = made(COVERED["gcn"], given, inputs=("x", "edge_index", "edge_weight"))
    assert p.fast is None and "called by position" in p.details()["notes"][-1]
    p = made(COVERED["gcn"], given)
    p.net.convs[0].register_forward_hook(lambda *_: None)
    assert p.fast is None and "it has hooks" in p.details()["notes"][-1]


def test_large_graphs_go_through_the_sweeps_in_buffers():
    """States of more than 2^21 entries, in float32 as they are used; the sweep has a derivative of its own."""
    n, random = 70_000, torch.Generator().manual_seed(0)
    ends = torch.randint(0, n, (2, 2 * n), generator=random)
    y, x = torch.arange(n) % C, torch.randn(n, F, generator=random)
    torch.manual_seed(0)
    p = GraphProblem(models.GCN(F, 32, 2, C), {"x": x, "edge_index": ends, "y": y, "train_mask": torch.arange(n) > 5})
    value, g = p.objective().value_and_gradient(p.initial())
    out = p.net(x, ends)[6:]
    expected = functional.cross_entropy(out, y[6:])
    gradient = torch.cat([d.flatten() for d in torch.autograd.grad(expected, list(p.net.parameters()))])
    torch.testing.assert_close(value, expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(g, gradient, rtol=1e-3, atol=1e-5)


def test_the_users_own_module_is_trained():
    given = graph()
    torch.manual_seed(0)
    net = models.GraphSAGE(F, 8, 2, C)
    run = mldd.train(net, {k: v for k, v in given.items() if v is not None}, solver="adam:lr=0.05", steps=30)
    assert run.model is net
    rows, y = given["train_mask"], given["y"]
    with torch.no_grad():
        right = net(given["x"], given["edge_index"]).argmax(1) == y
    assert float(right[rows].double().mean()) == pytest.approx(run.metrics["train_accuracy"])
    assert np.isclose(float(run.problem.objective().value(run.x)), run.content["loss"])
    assert N == len(right)


@pytest.mark.parametrize("local", ["composite", "own"])
@pytest.mark.parametrize("name", ["gcn", "gin", "gat"])
def test_parts_are_evaluated_together(name, local):
    given = {**graph(), "edge_weight": None}
    p = made(COVERED[name], given, local=local)
    q = own_calls(p, given, local=local)
    random = torch.Generator().manual_seed(4)
    x, v = (torch.randn(3, p.model.size, generator=random, dtype=torch.float64) for _ in range(2))
    f, g = (r.spaces.local_losses(p.spaces.parts(3), range(3), 1) for r in (p, q))
    assert f._stacked is not None and g._stacked is None
    torch.testing.assert_close(f.value(x), g.value(x), rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(f.gradient(x), g.gradient(x), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(f.hessian_product(x, v), g.hessian_product(x, v), rtol=1e-8, atol=1e-10)
    assert all(a.shape == b.shape for a, b in zip(p.net.parameters(), q.net.parameters(), strict=True))


def test_frozen_parameters_are_shared_by_parts_one_after_the_other():
    given = {**graph(), "edge_weight": None}
    torch.manual_seed(0)
    net = COVERED["gcn"]().double()
    net.convs[0].bias.requires_grad_(False)
    p = GraphProblem(net, {k: v for k, v in given.items() if v is not None})
    q = own_calls(p, given)
    x = p.initial().expand(3, -1) + torch.arange(3.0).double()[:, None] / 10
    f, g = (r.spaces.local_losses(p.spaces.parts(3), range(3)) for r in (p, q))
    assert f._stacked is None
    torch.testing.assert_close(f.gradient(x), g.gradient(x), rtol=1e-9, atol=1e-11)
