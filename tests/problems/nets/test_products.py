"""Products of layers: the order of sparse and dense ones, fast kernels and their derivatives, blocks, heads."""

import pytest
import scipy.sparse as sp
import torch

from mldd.problems.nets import Sparse
from mldd.problems.nets.layers import products as layers
from mldd.problems.nets.layers.gat import by_head


def random(*shape, seed=0, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_()


@pytest.mark.parametrize("samples", [(), (3,)])
def test_the_fast_dense_product_has_the_derivatives_of_the_plain_one(monkeypatch, samples):
    monkeypatch.setattr(layers, "_TALL", 1)
    state, weight = random(40, *samples, 6), random(6, 5, seed=1)
    found, precise = [], [t.detach().double().requires_grad_() for t in (state, weight)]
    for x, w in ((state, weight), precise):
        z = layers.linear(x, w).tanh()
        g = torch.autograd.grad(z.square().sum(), (x, w), create_graph=True)
        bend = torch.autograd.grad(sum(d.sin().sum() for d in g), (x, w))
        found.append([z.detach(), *(d.detach() for d in g), *bend])
    for fast, exact in zip(*found, strict=True):
        assert fast.shape == exact.shape
        assert float((fast - exact).abs().max()) < 1e-5 * float(exact.abs().max())


def test_both_orders_of_products_agree_and_the_cheaper_is_taken():
    operator = Sparse.of(sp.random(6, 9, 0.5, random_state=0))
    state = random(9, 4, dtype=torch.float64)
    for outer in (2, 7):
        weight = random(4, outer, seed=1, dtype=torch.float64)
        dense = operator.matrix.to_dense() @ state @ weight
        assert torch.allclose(layers.propagated(operator, state, weight), dense)
    square = Sparse.of(sp.random(9, 9, 0.5, random_state=0))
    assert layers.sparse_first(square, 4, 7)
    assert not layers.sparse_first(square, 7, 4)
    assert not layers.sparse_first(square, 5, 5)
    assert layers.sparse_first(square, 5, 5, features=True)  # nothing to send back


def test_parameters_of_blocks():
    state, bias, factor = random(6, 2, 3), random(3, 3, seed=1), random(3, 1, seed=2)
    for k in range(3):
        rows = slice(2 * k, 2 * k + 2)
        assert torch.equal(layers.shifted(state, bias)[rows], state[rows] + bias[k])
        assert torch.equal(layers.scaled(state, factor)[rows], state[rows] * factor[k])
    z = random(5, 6)
    vector = random(2, 6, seed=3)
    for k in range(2):
        expected = (z.view(5, 3, 2) * vector[k].view(3, 2)).sum(2)
        assert torch.allclose(z @ by_head(vector, 3)[k], expected, atol=1e-6)


def test_too_many_copies_are_refused():
    with pytest.raises(ValueError, match="heads times samples must be <= "):
        Sparse.of(sp.random(50, 50, 0.5, random_state=0)).repeated(2**22)
