"""Sparse operators: products and their derivatives against dense matrices, copies, orders of entries."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

from mldd.problems.nets import Sparse, multiply


def test_sparse_product_and_its_derivatives():
    a = Sparse.of(sp.random(6, 4, 0.4, random_state=0))
    dense = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(a @ dense, a.matrix.to_dense() @ dense)
    assert torch.equal(a.transposed.to_dense(), a.matrix.to_dense().t())
    assert torch.autograd.gradcheck(lambda z: (a @ z).tanh(), dense)
    assert torch.autograd.gradgradcheck(lambda z: (a @ z).tanh(), dense)
    b = a.with_values(a.values * torch.arange(len(a.values)))
    assert torch.equal(b.transposed.to_dense(), b.matrix.to_dense().t())
    rows, columns = a.entries
    assert torch.equal(a.matrix.to_dense()[rows, columns], a.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1, 3, 8, 40])
@pytest.mark.parametrize("density", [0.0, 0.3])
def test_every_kernel_is_the_product(dtype, width, density):
    a = Sparse.of(sp.random(9, 7, density, random_state=0), dtype=dtype)
    z = torch.randn(width, 7, generator=torch.Generator().manual_seed(0), dtype=dtype).t().requires_grad_()
    g = torch.randn(9, width, generator=torch.Generator().manual_seed(1), dtype=dtype)
    dense = a.matrix.to_dense()
    assert torch.allclose(multiply(a.matrix, z.detach()), dense @ z.detach(), rtol=1e-5)
    assert torch.allclose(torch.autograd.grad(a @ z, z, g)[0], dense.t() @ g, rtol=1e-5, atol=1e-6)
    column = torch.autograd.grad((a @ z).sum(), z)[0]  # an expanded gradient
    assert torch.allclose(column, dense.sum(0)[:, None].expand(7, width), rtol=1e-5, atol=1e-6)


def test_copies_are_kronecker_products():
    a = Sparse.of(sp.random(6, 5, 0.4, random_state=0))
    for times in (1, 3):
        b, expected = a.repeated(times), torch.from_numpy(np.kron(a.matrix.to_dense().numpy(), np.eye(times)))
        assert b is a.repeated(times)
        assert torch.equal(b.matrix.to_dense(), expected)
        assert torch.equal(b.transposed.to_dense(), expected.t())
        assert torch.equal(b.values[b.order], b.transposed.values())
        assert torch.equal(b.t.values[b.t.order], b.values)
        assert torch.equal(expected[b.row.long(), b.column.long()], b.values)
    assert a.sizes == (6, 5, a.nnz)
    assert a.pattern is a
    state = torch.ones(5, 2)
    assert a.extend(state) is state
    assert not a.ones
    assert a.with_values(torch.ones(a.nnz)).ones
