"""Levels of node classification: coarse graphs that are nested, fewer data, and everything at once."""

import numpy as np
import pytest
import torch

import mldd
from mldd.algebra import counting
from mldd.loop import Stop, minimise
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import NodeClassification
from mldd.problems.graphs.graph_levels import kinds_of
from mldd.solvers import AdaGrad, CoarseSolve, MultilevelAdaGrad, NonlinearSchwarz, Recursion, SchwarzAdaGrad

DATA = sbm(nodes=240, classes=4, features=6)
ALL = ("graph", "data", "width", "depth", "graph+width", "data+graph", "width+depth", "graph+width+depth+data")


def problem(**options):
    return mldd.problem(
        NodeClassification,
        **{"name": DATA, "hidden": 8, "layers": 4, "model": "sage", "dropout": 0.0, "clusters": 48, **options},
    )


@pytest.mark.parametrize("coarsen", ALL)
def test_coarse_models_are_first_order_consistent(coarsen):
    p = problem(coarsen=coarsen)
    hierarchy, x = p.hierarchy(3), p.initial(0) + 0.05
    assert [level.work for level in hierarchy.levels] == sorted([level.work for level in hierarchy.levels])[::-1]
    solver = MultilevelAdaGrad(hierarchy, coarse=Recursion(steps=2, threshold=0.0))
    seen = []

    def visit(k, f, y, g, bounds, state):
        seen.append(k)
        assert torch.allclose(f.gradient(y), g, rtol=1e-12, atol=1e-15), "grad h(y_0) = R g"
        value, step = f.value(y), 1e-6 * torch.ones_like(y)
        assert torch.allclose((f.value(y + step) - f.value(y - step)) / 2e-6, g.sum(), atol=1e-6)
        assert float(value) == float(value)
        y.add_(g, alpha=-1e-3)

    object.__setattr__(solver, "visit", visit)
    f, state = p.objective(), solver.init(p.objective(), x)
    g = f.gradient(x)
    solver.recurse(0, f, x, g, f.bounds, state)
    y = hierarchy[1].transfer.inject(x)
    solver.recurse(1, hierarchy[1].objective, y, hierarchy[1].objective.gradient(y), f.bounds.free(len(y)), state)
    assert seen == [1, 2]


@pytest.mark.parametrize("coarsen", ALL)
def test_methods_with_levels_run(coarsen):
    p = problem(coarsen=coarsen, clustering="matching")
    f, x = p.objective(), p.initial(0)
    before = float(f.value(x))
    first, coarse = AdaGrad(1e-3, 0.1), Recursion(steps=2)
    for solver in (
        MultilevelAdaGrad(p.hierarchy(3), first, coarse),
        SchwarzAdaGrad(p.decomposition(2), p.hierarchy(2), first, coarse, local_steps=2),
        NonlinearSchwarz(p.decomposition(2), p.hierarchy(2), coarse=CoarseSolve(steps=2), local_steps=2),
    ):
        assert float(f.value(minimise(f, p.initial(0), solver, stop=Stop(max_steps=4)).x)) < before


@pytest.mark.parametrize("clustering", ["metis", "matching"])
def test_coarse_graphs_are_nested(clustering):
    p = problem(clustering=clustering)
    batches = [level.objective.batch for level in p.hierarchy(4).levels[1:]]
    assert [batch.read[0] <= size for batch, size in zip(batches, (48, 12, 3), strict=True)] == [True] * 3
    # targets are sums over clusters: those of a level are sums of the finer level's
    totals = [batch.targets.sum(0) for batch in batches]
    assert torch.allclose(totals[0], totals[1]) and torch.allclose(totals[0], totals[2])
    assert np.isclose(float(totals[0].sum()), 1.0)


def test_fewer_data_keep_the_weight_of_every_class():
    p = problem(coarsen="data", labels="all")
    levels = p.hierarchy(4).levels
    kept = [set(level.objective.batch.nodes[0, : level.objective.batch.rows[-1]].tolist()) for level in levels]
    whole = levels[0].objective.batch.targets.sum(0)
    classes = DATA.labels
    for before, after, level in zip(kept, kept[1:], levels[1:], strict=False):
        assert after < before
        counts = [torch.bincount(classes[list(nodes)], minlength=4) for nodes in (before, after)]
        assert torch.equal(counts[1], -(-counts[0] // 2)), "half of every class, rounded up"
        assert torch.allclose(level.objective.batch.targets.sum(0), whole)
    # with the labels of all nodes of a class equally weighted the loss is the weighted mean of those that are left
    x = p.initial(0) + 0.1
    nodes = torch.tensor(sorted(kept[1]))
    outputs = torch.log_softmax(p.logits(x), 1)[nodes, classes[nodes]]
    share = whole[classes[nodes]] / torch.bincount(classes[nodes])[classes[nodes]]
    decay = 0.5 * p.network.decay * x[: p.net.decayed].square().sum()
    assert torch.allclose(levels[1].objective.value(x), decay - (share * outputs).sum(), rtol=1e-12)


def test_coarse_levels_are_counted_as_such():
    hierarchy = problem(coarsen="width+data").hierarchy(3)
    for level in hierarchy.levels[1:]:
        with counting() as cost:
            level.objective.gradient(torch.zeros(level.objective.size, dtype=torch.float64))
        assert (cost.gradients, cost.synchronisations) == (0, 0)
        assert cost.work == pytest.approx(level.work) and 0 < level.work < 1


def test_refuses():
    with pytest.raises(ValueError, match="`coarsen` must be some of graph, width, depth, data joined by"):
        problem(coarsen="graph+nodes")
    with pytest.raises(ValueError, match="`coarsen` must be some of"):
        kinds_of("width+width")
    with pytest.raises(
        ValueError, match=r"`levels` must be in 1\.\.3 for coarsen=graph\+depth and a graph of 240 nodes"
    ):
        problem(coarsen="graph+depth").hierarchy(4)
