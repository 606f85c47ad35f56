"""Narrower and shallower networks: the finer one is the same function, and all that follows from it."""

import itertools
from dataclasses import replace

import pytest
import torch

import mldd
from mldd.algebra import Bounds, Identity, MatrixTransfer, carried
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import NodeClassification
from mldd.problems.nets import GraphNet, coarser, most_levels, transfer

DATA = sbm(nodes=120, classes=4, features=6)
CPU = torch.device("cpu")


def told():
    """The data with two attributes of every edge."""
    graph = DATA.graph
    attributes = torch.randn(graph.edges, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return replace(DATA, graph=replace(graph, edge_attributes=attributes))


DATA = told()


def problem(**options):
    return mldd.problem(NodeClassification, **{"name": DATA, "hidden": 12, "layers": 5, "dropout": 0.0, **options})


def random(n, seed=0):
    return 0.4 * torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def options():
    """Every kind of layer, with all that goes with it."""
    for model, activation, residual in itertools.product(
        ("gcn", "sage", "gin", "gat"), ("relu", "tanh", "gelu"), (False, True)
    ):
        yield {"model": model, "activation": activation, "residual": residual}
    yield {"model": "gat", "heads": 2}
    yield {"model": "gatv2", "heads": 2}
    yield {"model": "gat", "heads": 2, "residual": True, "activation": "elu"}
    yield {"model": "transformer", "heads": 2}
    yield {"model": "transformer", "residual": True, "activation": "tanh"}


def deep(o):
    if o["residual"]:
        return o["activation"] != "relu"
    return o["model"] in ("sage", "transformer") and o["activation"] == "relu"


def cases():
    for o in options():
        full = {"residual": False, "activation": "relu", **o}
        yield full, "width"
        if deep(full):
            yield full, "depth"
            yield full, "width+depth"


@pytest.mark.parametrize(("choice", "coarsen"), list(cases()), ids=str)
def test_the_lifted_network_is_the_same_function(choice, coarsen):
    p = problem(coarsen=coarsen, decay=0.03, **choice)
    fine, coarse = (level.objective for level in p.hierarchy(2).levels)
    between = p.hierarchy(2)[1].transfer
    y = random(coarse.size)
    x = between.lift(y)
    assert coarse.size < fine.size
    assert torch.allclose(fine.value(x), coarse.value(y), rtol=1e-12)
    assert torch.allclose(between.inject(x), y, rtol=1e-14)
    # f_H(y) = f(P y + c), and so its gradient is the restricted one
    g = coarse.gradient(y)
    assert torch.allclose(between.restrict(fine.gradient(x)), g, atol=1e-12 * float(g.abs().max()))
    v = random(coarse.size, 1)
    assert torch.allclose(between.prolong(v), between.lift(y + v) - x, atol=1e-14)
    product = coarse.hessian_product(y, v)
    assert torch.allclose(between.restrict(fine.hessian_product(x, between.prolong(v))), product, atol=1e-10)


@pytest.mark.parametrize("coarsen", ["width", "depth", "width+depth", "graph+width", "data+depth"])
def test_dot_test_and_composition(coarsen):
    levels = problem(model="sage", coarsen=coarsen, hidden=7, clusters=40).hierarchy(3).levels
    for level in levels[1:]:
        n, m = level.transfer.shape
        g, e = random(n), random(m, 1)
        assert torch.allclose(level.transfer.prolong(e) @ g, e @ level.transfer.restrict(g), rtol=1e-13)
    y = random(levels[2].objective.size)
    x = levels[1].transfer.lift(levels[2].transfer.lift(y))
    assert torch.allclose(levels[2].transfer.inject(levels[1].transfer.inject(x)), y, rtol=1e-14)


def test_odd_widths_keep_the_function_without_decay():
    p = problem(hidden=7, coarsen="width", decay=0.0)
    levels = p.hierarchy(4).levels
    assert [level.objective.net.widths[1] for level in levels] == [7, 4, 2, 1]
    x = random(levels[3].objective.size)
    value = levels[3].objective.value(x)
    for level in reversed(levels[1:]):
        x = level.transfer.lift(x)
    assert torch.allclose(levels[0].objective.value(x), value, rtol=1e-12)


def test_copies_of_a_unit_part_in_training():
    p = problem(layers=2, coarsen="width")
    fine, between = p.objective(), p.hierarchy(2)[1].transfer
    x = between.lift(random(between.size))
    first = p.net.layout.views(x)[0]
    assert torch.equal(first[:, 0], first[:, 1]), "the two copies of a unit are equal"
    g = p.net.layout.views(fine.gradient(x))[0]
    assert not torch.allclose(g[:, 0], g[:, 1], rtol=0.1)


def test_inserted_layers_learn():
    for choice in ({"model": "sage"}, {"model": "gin", "activation": "tanh", "residual": True}):
        p = problem(coarsen="depth", decay=0.0, **choice)
        between = p.hierarchy(2)[1].transfer
        g = p.objective().gradient(between.lift(random(between.size)))
        for layer in (1, 3):
            assert float(g[p.net.layout.slices[layer]].abs().max()) > 0


def test_how_many_networks_there_are():
    net = GraphNet("sage", (6, 8, 8, 8, 8, 4))
    assert (most_levels(net, True, False), most_levels(net, False, True), most_levels(net, True, True)) == (4, 3, 3)
    assert coarser(net, False, True).widths == (6, 8, 8, 4)
    assert coarser(GraphNet("gat", (6, 12, 12, 4), heads=2), True, False).widths == (6, 6, 6, 4)
    assert most_levels(GraphNet("gcn", (6, 4)), True, False) == 1
    # at width 4 the last layer would become residual
    assert most_levels(GraphNet("gcn", (6, 16, 16, 4), residual=True), True, False) == 2
    with pytest.raises(ValueError, match=r"coarsening in depth needs layers .* got gcn with relu, residual=False"):
        problem(coarsen="depth").hierarchy(2)


def test_bounds_are_those_of_the_matrix():
    net = GraphNet("sage", (3, 4, 4, 4, 2))
    between = transfer(net, True, True, torch.float64, CPU)
    n, m = between.shape
    assert between.restrict_bounds(Bounds.free(n)).is_free
    bounds = Bounds(-1.0 - torch.rand(n, dtype=torch.float64), 1.0 + torch.rand(n, dtype=torch.float64))
    dense = torch.stack([between.prolong(e) for e in torch.eye(m, dtype=torch.float64)], 1)
    expected, found = MatrixTransfer(dense).restrict_bounds(bounds), between.restrict_bounds(bounds)
    assert torch.equal(found.lower, expected.lower) and torch.equal(found.upper, expected.upper)


def test_a_narrow_start_helps():
    p = problem(layers=2, hidden=16, coarsen="width", labels="all")
    fine, coarse = (level.objective for level in p.hierarchy(2).levels)
    between = p.hierarchy(2)[1].transfer

    def descend(f, x, steps):
        for _ in range(steps):
            x = x - 2.0 * f.gradient(x)
        return x

    y = descend(coarse, coarse.net.initial(0), 40)  # half the work of a fine step each
    nested = descend(fine, between.lift(y), 20)
    assert float(fine.value(nested)) < float(coarse.value(y))
    assert float(fine.value(nested)) < float(fine.value(descend(fine, p.initial(0), 30)))
    assert replace(p, spaces=replace(p.spaces, coarsen="graph")).hierarchy(2)[1].transfer.shape == (
        fine.size,
        fine.size,
    )


def test_nested_iteration_carries_the_function_of_the_coarse_network_up():
    """With no step on the fine network, the iterate after nested iteration is the coarse network's function."""
    deep = problem(model="sage", layers=4, decay=0.0, coarsen="depth")
    hierarchy, x = deep.hierarchy(2), deep.initial(0)
    between = hierarchy[1].transfer
    y = between.inject(x) + 0.25 * random(hierarchy[1].objective.size)
    coarse, fine = hierarchy[1].objective.value(y), hierarchy[0].objective.value(carried(between, y, y * 0, x))
    assert float(fine) == pytest.approx(float(coarse), rel=1e-10)
    found = carried(Identity(3), torch.ones(3), torch.zeros(3), torch.full((3,), 2.0))
    assert torch.equal(found, torch.full((3,), 3.0))
