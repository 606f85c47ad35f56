"""Attention on a pattern: against dense formulas and finite differences of first and second order."""

import pytest
import scipy.sparse as sp
import torch

from mldd.problems.nets import Sparse
from mldd.problems.nets.attention import attend, bent, sampled, weighted

PATTERN = Sparse.of(sp.random(4, 3, 0.6, random_state=0))


def additive(pattern, rows, columns, state):
    """Attention whose scores are LeakyReLU of a sum over both ends."""
    return attend(pattern, bent(pattern, rows[:, None], columns[:, None])[:, 0], state)


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
    out = additive(PATTERN, rows, columns, state)
    assert torch.allclose(out, expected, rtol=1e-12, atol=1e-14)


def test_a_row_without_entries_is_zero_and_has_no_gradient():
    pattern = Sparse.of(sp.csr_matrix(([1.0, 1.0], ([0, 0], [0, 1])), shape=(2, 2)))
    inputs = random(2), random(2, seed=1), random(2, 3, seed=2)
    out = additive(pattern, *inputs)
    assert not out[1].any()
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(out.square().sum(), inputs))


def test_derivatives():
    inputs = random(4), random(3, seed=1), random(3, 2, seed=2)
    assert torch.autograd.gradcheck(lambda *a: additive(PATTERN, *a).tanh(), inputs)
    assert torch.autograd.gradgradcheck(lambda *a: additive(PATTERN, *a).tanh(), inputs)


def test_weighted_and_sampled_products():
    values, left, right = random(PATTERN.nnz), random(4, 2, seed=1), random(3, 2, seed=2)
    matrix = PATTERN.with_values(values.detach()).matrix.to_dense()
    assert torch.allclose(weighted(PATTERN, values, right), matrix @ right)
    rows, columns = PATTERN.entries
    assert torch.allclose(sampled(PATTERN, left, right), (left @ right.t())[rows, columns])
    assert torch.autograd.gradgradcheck(lambda *a: weighted(PATTERN, *a).tanh(), (values, right))
    assert torch.autograd.gradgradcheck(lambda *a: sampled(PATTERN, *a).tanh(), (left, right))


def test_both_ends_of_every_entry():
    rows, columns = random(4, 2), random(3, 2, seed=1)
    i, j = PATTERN.entries
    assert torch.allclose(bent(PATTERN, rows, columns), torch.nn.functional.leaky_relu(rows[i] + columns[j], 0.2))
    assert torch.allclose(PATTERN.ends.transposed.to_dense(), PATTERN.ends.matrix.to_dense().t())
    assert torch.autograd.gradgradcheck(lambda *a: bent(PATTERN, *a).tanh(), (rows, columns))


def test_means_of_numbers_of_entries():
    """They are means of states where the numbers of an entry are those of its column."""
    scores, state = random(PATTERN.nnz), random(3, 2, seed=1)
    out = attend(PATTERN, scores, state, state.detach()[PATTERN.entries[1]])
    assert torch.allclose(out[:, :2], out[:, 2:], rtol=1e-12)


@pytest.mark.parametrize("times", [1, 3])
def test_entries_of_copies(times):
    values = random(PATTERN.nnz, times)
    spread = PATTERN.of_copies(values)
    copies = [PATTERN.with_values(column).matrix.to_dense() for column in values.detach().unbind(1)]
    whole = torch.stack(copies, 1)[..., None] * torch.eye(times, dtype=torch.float64)[:, None]  # (m, t, n, t)
    repeated = PATTERN.repeated(times)
    assert torch.equal(repeated.with_values(spread.detach()).matrix.to_dense(), whole.flatten(2).flatten(0, 1))
    assert torch.equal(
        values.detach().sum(1)[PATTERN.originals(times)],
        PATTERN.of_copies(values.detach().sum(1, True).expand(-1, times)),
    )
    assert torch.autograd.gradgradcheck(lambda v: PATTERN.of_copies(v).tanh(), values)
