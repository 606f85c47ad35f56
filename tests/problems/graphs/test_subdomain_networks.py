"""Networks of their own: partition of unity, blended outputs against plain formulas, restrictions, every method."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import mldd
from mldd.algebra import Objective, counting, offers, sampled
from mldd.graph import Graph
from mldd.loop import Stop, minimise
from mldd.problems.data import GraphData
from mldd.problems.data.datasets import sbm
from mldd.problems.graphs import Network, NodeClassification, Spaces, SubdomainNetworks
from mldd.problems.graphs.subdomain_networks import partition_of_unity
from mldd.ranks import Communicator
from mldd.solvers import LBFGS, AdaGrad, Apts, Aspin, NonlinearSchwarz, SchwarzAdaGrad, SchwarzLBFGS
from tests.small_graphs import few, graphs

DATA = sbm(nodes=120, classes=4, features=6)
KINDS = [("gcn", "graph"), ("gcn", "none"), ("sage", "whole"), ("gin", "graph"), ("gat", "graph")]


def problem(**options):
    return mldd.problem(
        SubdomainNetworks, **{"name": DATA, "hidden": 4, "dropout": 0.0, "clusters": 20, "networks": 3, **options}
    )


def start(p, seed=0):
    x = p.initial(seed)
    return x + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


@few
@given(graphs(), st.data())
def test_weights_sum_to_one(case, data):
    n, edges = case
    parts = data.draw(st.integers(1, n))
    part = torch.arange(n) * parts // n
    overlap = data.draw(st.integers(0, 3))
    weights = partition_of_unity(Graph.from_edges(edges, n), part, overlap).toarray()
    assert weights.shape == (n, parts) and weights.min() >= 0
    assert np.allclose(weights.sum(1), 1.0, rtol=1e-14)
    assert (weights[np.arange(n), part.numpy()] > 0).all()


def test_weights_fade_with_the_distance():
    path = Graph.from_edges(torch.stack([torch.arange(19), torch.arange(1, 20)]), 20)
    part = (torch.arange(20) >= 10).long()
    weights = partition_of_unity(path, part, 2).toarray()
    left = weights[:, 0]
    assert (left[:8] == 1).all() and (left[12:] == 0).all()
    assert (np.diff(left[7:13]) < 0).all(), "from one to zero, hop by hop"
    assert np.allclose(left + left[::-1], 1.0), "the two halves mirror each other"
    bumps = (1 - np.cos(np.pi * np.array([4, 1]) / 5)) / 2  # node 8 is four hops inside of one part, one of the other
    assert np.isclose(left[8], bumps[0] / bumps.sum())
    assert np.array_equal(partition_of_unity(path, part, 0).toarray(), np.eye(2)[part.numpy()])


@pytest.mark.parametrize("model", ["gcn", "sage", "gin", "gat"])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_one_network_is_the_plain_problem(model, dropout):
    p = problem(networks=1, coarse="none", model=model, dropout=dropout)
    q = NodeClassification(DATA, network=Network(model=model, hidden=4, dropout=dropout))
    x, v = start(p), start(p, 1)
    assert torch.equal(p.initial(3), q.initial(3))
    for step in (None, 2) if dropout else (None,):
        f, g = p.objective(step), q.objective(step)
        assert torch.allclose(f.value(x), g.value(x), rtol=1e-13)
        assert torch.allclose(f.gradient(x), g.gradient(x), atol=1e-14)
        assert torch.allclose(f.hessian_product(x, v), g.hessian_product(x, v), atol=1e-12)
    assert torch.allclose(p.logits(x), q.logits(x), atol=1e-13)
    assert p.metrics(x) == q.metrics(x)


@pytest.mark.parametrize(("model", "coarse"), KINDS)
def test_the_loss_is_that_of_the_blended_outputs(model, coarse):
    p = problem(model=model, coarse=coarse, blend=2)
    f, x = p.objective(), start(p).requires_grad_()
    assert isinstance(f, Objective) and offers(f, "hessian_product")
    # every network on the whole graph, weighted by dense weights
    blocks = torch.split(x, list(p.sizes))
    plain = NodeClassification(DATA, network=Network(model=model, hidden=4, dropout=0.0), spaces=Spaces(clusters=20))
    weights = torch.from_numpy(p.unity.toarray())
    z = sum(
        weights[:, [k]] * p.net.outputs(p.net.layout.views(block), plain._whole) for k, block in enumerate(blocks[:3])
    )
    if coarse == "whole":
        z = z + p.coarse_net.outputs(p.coarse_net.layout.views(blocks[3]), plain._whole)
    if coarse == "graph":
        group = p._everywhere.groups[1]
        outputs = p.coarse_net.outputs(p.coarse_net.layout.views(blocks[3][None]), group.batch)
        order = group.batch.nodes[0, : group.batch.rows[-1]]
        z = z + outputs[order.argsort()][torch.from_numpy(p._cluster_of)]
    train = DATA.train
    expected = -torch.log_softmax(z, 1)[train, DATA.labels[train]].mean()
    for k, block in enumerate(blocks):
        net = p.net if k < 3 else p.coarse_net
        expected = expected + 0.5 * p.network.decay * block[: net.decayed].square().sum()
    (g,) = torch.autograd.grad(expected, x)
    x = x.detach()
    value, gradient = f.value_and_gradient(x)
    assert torch.allclose(value, expected.detach(), rtol=1e-12)
    assert torch.allclose(f.value(x), value, rtol=1e-14)
    assert torch.allclose(gradient, g, atol=1e-14)
    assert torch.allclose(p.logits(x), z.detach(), atol=1e-12)
    v = start(p, 1)
    bend = (f.gradient(x + 1e-6 * v) - f.gradient(x - 1e-6 * v)) / 2e-6
    assert torch.allclose(f.hessian_product(x, v), bend, atol=1e-7)


@pytest.mark.parametrize(("parts", "overlap"), [(4, 0), (2, 0), (3, 1), (1, 0)])
def test_local_models_are_restrictions(parts, overlap):
    p = problem()
    f, x, d = p.objective(), start(p), p.decomposition(parts, overlap)
    g = f.gradient(x)
    models, y = d.models(f, x, g), d.gather(x)
    assert torch.allclose(models.value(y), f.value(x).expand(parts), rtol=1e-13)
    assert torch.allclose(models.gradient(y), d.gather(g) * d.valid, atol=1e-15)
    e = 0.3 * start(p, 5)
    for k, subdomain in enumerate(d.subdomains):
        moved = x.clone()
        moved[subdomain.indices] += e[subdomain.indices]
        row = d.gather(x + e)
        assert torch.allclose(models.value(row)[k], f.value(moved), rtol=1e-12)
        expected = f.gradient(moved)[subdomain.indices]
        assert torch.allclose(models.gradient(row)[k][d.valid[k]], expected, atol=1e-14)
        v = d.gather(e) * d.valid
        product = f.hessian_product(moved, torch.zeros_like(x).index_copy_(0, subdomain.indices, e[subdomain.indices]))
        assert torch.allclose(models.hessian_product(row, v)[k][d.valid[k]], product[subdomain.indices], atol=1e-12)
    assert bool((models.gradient(y + 1.0)[~d.valid] == 0).all())


def test_outputs_known_from_the_gradient_are_not_computed_again():
    p = problem()
    f, x, d = p.objective(), start(p), p.decomposition(4)
    d.models(f, x, None)
    g = f.gradient(x)
    with counting() as cost:
        models = d.models(f, x, g)
    assert cost.work == pytest.approx(models.price.gradient / 3), "the networks of the subdomains, once"
    with counting() as other:
        d.models(f, x + 1e-3, None)
    assert other.work == pytest.approx(cost.work + 1 / 3)
    assert (cost.gradients, cost.synchronisations) == (0, 0)
    with counting() as third:
        f.value_and_gradient(x)
    assert (third.gradients, third.work, third.synchronisations) == (1, 1.0, 2)
    assert torch.allclose(d.models(f, x + 1e-3, None).gradient(d.gather(x)), models.gradient(d.gather(x)), atol=1e-2)


@pytest.mark.parametrize(
    "options", [{}, {"coarse": "whole"}, {"coarse_hidden": 4}, {"coarse_hidden": 4, "model": "gat"}], ids=str
)
def test_with_dropout_local_models_are_corrected(options):
    p = problem(dropout=0.4, **options)
    f, x, d = sampled(p.objective(), 3), start(p), p.decomposition(4)
    v = start(p, 1)
    slope = (f.value(x + 1e-6 * v) - f.value(x - 1e-6 * v)) / 2e-6
    assert torch.allclose(f.gradient(x) @ v, slope, atol=1e-8)
    assert torch.equal(f.value(x), sampled(p.objective(), 3).value(x))
    assert f.value(x) != sampled(p.objective(), 4).value(x)
    assert d.corrected
    g = f.gradient(x)
    assert torch.allclose(d.models(f, x, g).gradient(d.gather(x)), d.gather(g) * d.valid, atol=1e-15)


def test_every_schwarz_method_trains_them():
    p = problem(labels="all")
    f, d = p.objective(), p.decomposition(4)
    before = float(f.value(p.initial(0)))
    for solver in (
        LBFGS(),
        SchwarzAdaGrad(d, local=AdaGrad(1e-3, 0.1), local_steps=3),
        NonlinearSchwarz(d, globalisation="line-search", local_steps=4),
        NonlinearSchwarz(d, globalisation="line-search", local_steps=4, order="multiplicative"),
        SchwarzLBFGS(d),
        SchwarzLBFGS(d, order="multiplicative"),
        Apts(d),
    ):
        x = minimise(f, p.initial(0), solver, stop=Stop(max_steps=3)).x
        assert float(f.value(x)) < 0.8 * before, solver
    Aspin(d).init(f, p.initial(0))  # it does not refuse them


def test_parts_without_training_nodes_and_isolated_nodes():
    train = torch.arange(24) < 3
    clique = [(a, b) for a in range(8) for b in range(a)]
    edges = torch.tensor(clique + [(a + 8, b + 8) for a, b in clique]).t()  # two cliques, eight isolated nodes
    values = torch.from_numpy(np.random.default_rng(0).standard_normal((24, 3)))
    half = torch.arange(24) % 2 == 0
    data = GraphData(
        "given", Graph.from_edges(edges, 24), values, torch.arange(24) % 2, train, ~train & half, ~train & ~half, 2
    )
    for networks in (1, 6, 24):
        p = problem(name=data, networks=networks, decay=0.1, clusters=6)
        f, x, d = p.objective(), start(p), p.decomposition(networks)
        value, g = f.value_and_gradient(x)
        models = d.models(f, x, g)
        assert torch.allclose(models.gradient(d.gather(x)), d.gather(g) * d.valid, atol=1e-15)
        assert bool(torch.isfinite(value)) and set(p.metrics(x)) == set(problem().metrics(start(problem())))
    with pytest.raises(ValueError, match=r"`parts` must be >= 1 and <= nodes of the graph \(24\), got 25"):
        problem(name=data, networks=25).objective()


def test_precision():
    p = problem(networks=4)
    f, x = p.objective(), start(p)
    for evaluate, tolerance in (("float32", 1e-5), ("bfloat16", 0.05)):
        q = replace(p, evaluate=evaluate)
        g, d = q.objective().gradient(x), q.decomposition(5)
        assert g.dtype == torch.float64
        assert float((g - f.gradient(x)).norm() / g.norm()) < tolerance
        models = d.models(q.objective(), x, g)
        row = models.gradient(d.gather(x))
        assert row.dtype == torch.float64 and torch.allclose(row, d.gather(g) * d.valid, atol=tolerance)
    assert replace(p, dtype="float32").objective().gradient(x.float()).dtype == torch.float32


class Four:
    def Get_rank(self):  # noqa: N802
        return 3

    def Get_size(self):  # noqa: N802
        return 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"networks": 0}, "`networks` must be >= 1, got 0"),
        ({"blend": -1}, "`blend` must be >= 0, got -1"),
        ({"coarse": "fine"}, "`coarse` must be one of graph, whole, none, got 'fine'"),
        ({"subdomains": "both"}, "`subdomains` must be left out for networks of their own, got 'both'"),
        ({"hidden": 0}, "`hidden` must be >= 1, got 0"),
    ],
)
def test_refuses_options(options, words):
    with pytest.raises(ValueError, match=words):
        problem(**options)


def test_refuses_decompositions():
    p = problem()
    with pytest.raises(ValueError, match=r"`parts` must be in 1\.\.4 \(the networks\), got 5"):
        p.decomposition(5)
    with pytest.raises(ValueError, match=r"`parts` must be >= 4 \(the ranks\), got 3"):
        p.decomposition(3, comm=Communicator(Four()))
    with pytest.raises(ValueError, match="`levels` must be 1 for networks of their own, got 2"):
        p.hierarchy(2)
    assert len(p.hierarchy(1)) == 1
