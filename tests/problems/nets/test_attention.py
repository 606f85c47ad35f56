"""Attention on a pattern: against dense formulas and finite differences of first and second order."""

import pytest
import scipy.sparse as sp
import torch

from mldd.problems.nets import Sparse
from mldd.problems.nets.attention import attend, sampled, weighted

PATTERN = Sparse.of(sp.random(4, 3, 0.6, random_state=0))


def random(*shape, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(*shape, generator=generator, dtype=torch.float64)).requires_grad_()


@pytest.mark.parametrize("scale", [1.0, 300.0])
def test_against_dense_attention(scale):
    """Scores of several hundred overflow without a shift by row."""
    rows, columns, state = random(4, scale=scale), random(3, seed=1, scale=scale), random(3, 3, seed=2)
    m = PATTERN.matrix.to_dense()
    e = torch.nn.functional.leaky_relu(rows[:, None] + columns, 0.2)
    dense = torch.softmax(torch.where(m > 0, e + m.log(), -torch.inf), 1)
    expected = torch.where(m.sum(1, keepdim=True) > 0, dense, 0.0) @ state
    out = attend(PATTERN, rows, columns, state)
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-14)


def test_a_row_without_entries_is_zero_and_has_no_gradient():
    pattern = Sparse.of(sp.csr_matrix(([1.0, 1.0], ([0, 0], [0, 1])), shape=(2, 2)))
    inputs = random(2), random(2, seed=1), random(2, 3, seed=2)
    out = attend(pattern, *inputs)
    assert not out[1].any()
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out.square().sum(), inputs))


def test_derivatives():
    inputs = random(4), random(3, seed=1), random(3, 2, seed=2)
    assert torch.autograd.gradcheck(lambda *a: attend(PATTERN, *a).tanh(), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: attend(PATTERN, *a).tanh(), inputs)


def test_weighted_and_sampled_products():
    values, left, right = random(PATTERN.nnz), random(4, 2, seed=1), random(3, 2, seed=2)
    matrix = PATTERN.with_values(values.detach()).matrix.to_dense()
    assert torch.allclose(weighted(PATTERN, values, right), matrix @ right)
    rows, columns = PATTERN.entries
    assert torch.allclose(sampled(PATTERN, left, right), (left @ right.t())[rows, columns])
    assert torch.autograd.gradgradcheck(lambda *a: weighted(PATTERN, *a).tanh(), (values, right))
    assert torch.autograd.gradgradcheck(lambda *a: sampled(PATTERN, *a).tanh(), (left, right))
