"""The loss of a graph network: derivatives for every layer, the hook of subclasses, operators that communicate."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from mldd.graph import Graph
from mldd.problems.graphs import NodeLoss
from mldd.problems.nets import Dropout, GraphNet, Source, Sparse, stack
from mldd.problems.nets.layers import layer_kinds, layer_of

KINDS = layer_kinds()
KIND = {"dtype": torch.float64, "device": "cpu"}


def objective(kind, *, parts=None, activation="tanh", residual=True):
    random, n = np.random.default_rng(0), 24
    graph = Graph.from_edges(torch.from_numpy(random.integers(n, size=(2, 40))), n)
    source = Source.of(kind, layer_of(kind).operator(graph), random.standard_normal((n, 4)), random.random((n, 3)) / n)
    chosen = [np.arange(n), np.arange(3, 12), np.array([20])][: parts or 1]
    given = stack([source.piece(k, 3, propagated=False) for k in chosen], single=parts is None, **KIND)
    net = GraphNet(
        kind, (4, 6, 6, 3), heads=2 if layer_of(kind).many_heads else 1, activation=activation, residual=residual
    )
    return NodeLoss(net, given, 0.01)


def directions(f, parts):
    shape = (f.size,) if parts is None else (parts, f.size)
    generator = torch.Generator().manual_seed(0)
    return [0.3 * torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("dropout", [None, Dropout(0.3, 1, 2)])
@pytest.mark.parametrize("parts", [None, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_gradient_and_hessian_product(kind, parts, dropout):
    f = replace(objective(kind, parts=parts), dropout=dropout)
    x, v = directions(f, parts)
    h = 1e-5
    value, g = f.value_and_gradient(x)
    assert torch.allclose(value, f.value(x), rtol=1e-13)
    slope = (f.value(x + h * v) - f.value(x - h * v)) / (2 * h)
    assert torch.allclose((g * v).sum(-1), slope, rtol=1e-6, atol=1e-8)
    bend = (f.gradient(x + h * v) - f.gradient(x - h * v)) / (2 * h)
    assert torch.allclose(f.hessian_product(x, v), bend, rtol=1e-5, atol=1e-7)


@dataclass(frozen=True)
class Squares(NodeLoss):
    """Half the squared distance of the outputs from the targets."""

    def _loss(self, parameters):
        batch, scales = self._sample
        d = self.net.outputs(parameters, batch, scales) - batch.targets
        return 0.5 * (d.square().sum() if batch.parts is None else d.view(batch.parts, -1).square().sum(1))


@pytest.mark.parametrize("parts", [None, 3])
def test_a_subclass_states_its_loss_alone(parts):
    base = objective("gat", parts=parts)
    f = Squares(base.net, base.batch, base.decay)
    x, v = directions(f, parts)
    value, g = f.value_and_gradient(x)
    assert not torch.allclose(value, base.value(x))
    assert torch.allclose((g * v).sum(-1), (f.value(x + 1e-6 * v) - f.value(x - 1e-6 * v)) / 2e-6, rtol=1e-6)
    bend = (f.gradient(x + 1e-6 * v) - f.gradient(x - 1e-6 * v)) / 2e-6
    assert torch.allclose(f.hessian_product(x, v), bend, rtol=1e-5, atol=1e-5)


class Remote:
    """An operator some of whose columns are elsewhere: a stand-in that counts the exchanges there and back."""

    def __init__(self, own, halo, rows, log):
        self.own, self.halo, self.rows, self.log = own, halo, rows, log
        self.shape, self.nnz = (own.shape[0], own.shape[1] + len(rows)), own.nnz + halo.nnz
        self.sizes = (*self.shape, self.nnz)

    @property
    def pattern(self):
        matrices = [s.matrix.to_dense() for s in (self.own, self.halo)]
        return Sparse.of(torch.cat(matrices, 1).numpy())

    def extend(self, state):
        return torch.cat([state, Fetch.apply(state, self.rows, self.log)])

    def __matmul__(self, dense):
        return self.own @ dense + self.halo @ Fetch.apply(dense, self.rows, self.log)


class Fetch(torch.autograd.Function):
    """Rows that another rank would send; here they are our own."""

    @staticmethod
    def forward(ctx, state, rows, log):
        ctx.given = rows, log, len(state)
        log.append("there")
        return state[rows]

    @staticmethod
    def backward(ctx, g):
        rows, log, n = ctx.given
        log.append("back")
        return g.new_zeros(n, *g.shape[1:]).index_add(0, rows, g), None, None


@pytest.mark.parametrize("kind", KINDS)
def test_operators_that_communicate(kind):
    """Half of the columns are fetched; value, gradient and Hessian products are those of the whole operator."""
    f = objective(kind)
    log, rows = [], torch.arange(0, 24, 2)

    def remote(b):
        dense = b.matrix.to_dense()
        halo, own = dense[:, rows], dense.clone()
        own[:, rows] = 0.0
        return Remote(Sparse.of(own.numpy()), Sparse.of(halo.numpy()), rows, log)

    operators = tuple(tuple(None if b is None else remote(b) for b in layer) for layer in f.batch.operators)
    other = replace(f, batch=replace(f.batch, operators=operators))
    x, v = directions(f, None)
    assert torch.allclose(other.value(x), f.value(x), rtol=1e-12)
    assert log == ["there"] * 3
    log.clear()
    assert torch.allclose(other.gradient(x), f.gradient(x), rtol=1e-10, atol=1e-13)
    # the features need no gradient: where they are propagated themselves nothing goes back
    assert log.count("there") == 3
    assert log.count("back") in (2, 3)
    assert torch.allclose(other.hessian_product(x, v), f.hessian_product(x, v), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_a_rank_without_nodes(kind):
    """A share of no output has the loss and gradient zero."""
    f = objective(kind)
    n = f.batch.rows[0]
    empty = [Sparse.of(np.zeros((0, k))) for k in (0, 0, 0)]
    operators = tuple(
        tuple(None if b is None else e for b in layer) for layer, e in zip(f.batch.operators, empty, strict=True)
    )
    none = replace(
        f.batch,
        rows=(0, 0, 0, 0),
        features=tuple(x[:0] for x in f.batch.features),
        operators=operators,
        nodes=f.batch.nodes[:, :0],
        targets=f.batch.targets[:0],
    )
    assert n > 0
    g = replace(f, batch=none, decay=0.0)
    x, v = directions(f, None)
    value, gradient = g.value_and_gradient(x)
    assert float(value) == 0.0
    assert not gradient.any()
    assert not g.hessian_product(x, v).any()
