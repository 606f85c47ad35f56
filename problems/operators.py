"""Sparse operators of graph layers, differentiable in what they are applied to."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Sparse:
    """A sparse matrix with its transpose, so that products and their derivatives are both products of compressed rows.

    Parameters
    ----------
    matrix, transposed : Tensor, sparse CSR, shapes (m, n) and (n, m)
    order : Tensor, shape (nnz,), int64
        Values of `transposed` are ``values[order]``.
    """

    matrix: Tensor
    transposed: Tensor
    order: Tensor

    @staticmethod
    def of(matrix: Any, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Sparse:
        """Take over a SciPy matrix."""
        rows = sp.csr_matrix(matrix)
        rows.sort_indices()
        number = sp.csr_matrix((np.arange(rows.nnz), rows.indices, rows.indptr), rows.shape).T.tocsr()
        order = torch.from_numpy(number.data.astype(np.int64)).to(device)
        values = torch.from_numpy(np.ascontiguousarray(rows.data, dtype=np.float64)).to(device=device, dtype=dtype)
        columns = sp.csr_matrix((rows.data[number.data], number.indices, number.indptr), number.shape)
        return Sparse(_csr(rows, values), _csr(columns, values[order]), order)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @property
    def values(self) -> Tensor:
        """Entries row by row, shape (nnz,)."""
        return self.matrix.values()

    @cached_property
    def entries(self) -> tuple[Tensor, Tensor]:
        """Row and column of every entry, int64."""
        counts = self.matrix.crow_indices().long().diff()
        rows = torch.repeat_interleave(torch.arange(self.shape[0], device=counts.device), counts)
        return rows, self.matrix.col_indices().long()

    def with_values(self, values: Tensor) -> Sparse:
        """Return the matrix of the same pattern with other entries."""
        return Sparse(_revalued(self.matrix, values), _revalued(self.transposed, values[self.order]), self.order)

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with a dense matrix, differentiable (any number of times) in the latter."""
        if dense.requires_grad and torch.is_grad_enabled():
            return _product(self.matrix, self.transposed, dense)
        return self.matrix @ dense


class _Product(torch.autograd.Function):
    """A X with the derivative A^T G: torch's own would build the transpose anew in every sweep."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.pair = matrix, transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:
        matrix, transposed = ctx.pair
        if torch.is_grad_enabled():
            return None, None, _product(transposed, matrix, g)
        return None, None, transposed @ g


def _product(matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
    out: Tensor = _Product.apply(matrix, transposed, dense)  # type: ignore[no-untyped-call]
    return out


def _csr(matrix: Any, values: Tensor) -> Tensor:
    """Make a CSR tensor of 32-bit indices: the sparse library works on these without converting."""
    indptr, indices = (torch.from_numpy(a.astype(np.int32)).to(values.device) for a in (matrix.indptr, matrix.indices))
    return _tensor(indptr, indices, values, matrix.shape)


def _revalued(matrix: Tensor, values: Tensor) -> Tensor:
    return _tensor(matrix.crow_indices(), matrix.col_indices(), values, tuple(matrix.shape))


def _tensor(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* beta")  # once per process, about torch's own plans
        return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)
