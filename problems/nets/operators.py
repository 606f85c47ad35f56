"""Sparse operators of graph layers, differentiable in what they are applied to."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

_BAG, _REDUCED = 8, 32  # columns from which one kernel is faster than another (measured)


class Operator(Protocol):
    """What a layer of a graph network applies to its state; a network never knows whether others hold part of it.

    The state holds the rows of this rank, one per column of the operator where nothing is distributed. Every method
    that communicates is called by all ranks at the same time.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n): rows that this rank computes, columns that it reads."""
        ...

    @property
    def nnz(self) -> int:
        """Number of entries that this rank holds."""
        ...

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, columns and entries by which the order of a product is chosen: equal on all ranks that share it."""
        ...

    @property
    def pattern(self) -> Sparse:
        """The matrix of shape (m, n) whose entries attention works on."""
        ...

    def extend(self, state: Tensor) -> Tensor:
        """Return the rows of all n columns, differentiable, from those that this rank holds.

        Parameters
        ----------
        state : Tensor, shape (k, ...)
            Rows that this rank holds.
        """
        ...

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with the rows that this rank holds, differentiable in them; shape (m, H)."""
        ...


@dataclass(frozen=True, eq=False)
class Sparse:
    """A sparse matrix with its transpose, so that products and their derivatives are both products of compressed rows.

    Parameters
    ----------
    matrix, transposed : Tensor, sparse CSR, shapes (m, n) and (n, m)
        The matrix itself.
    order : Tensor, shape (nnz,), int64
        Values of `transposed` are ``values[order]``.
    """

    matrix: Tensor
    transposed: Tensor
    order: Tensor

    @staticmethod
    def of(matrix: Any, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Sparse:
        """Return the operator of a SciPy matrix.

        Parameters
        ----------
        matrix : sparse matrix, shape (m, n)
            Sorted here if it is not.
        dtype : dtype
            Of the entries.
        device : device | str
            Where they are kept.
        """
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
    def nnz(self) -> int:
        """Number of entries."""
        return self.order.numel()

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Rows, columns and entries."""
        return *self.shape, self.nnz

    @property
    def pattern(self) -> Sparse:
        """The matrix itself."""
        return self

    def extend(self, state: Tensor) -> Tensor:
        """Return the state itself: all its rows are here."""
        return state

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

    @cached_property
    def inverse(self) -> Tensor:
        """The permutation that undoes `order`: ``values = transposed.values()[inverse]``, int64."""
        inverse = torch.empty_like(self.order)
        inverse[self.order] = torch.arange(self.nnz, device=inverse.device)
        return inverse

    @cached_property
    def t(self) -> Sparse:
        """The transpose."""
        return Sparse(self.transposed, self.matrix, self.inverse)

    @property
    def column(self) -> Tensor:
        """Column of every entry, int32."""
        return self.matrix.col_indices()

    @cached_property
    def row(self) -> Tensor:
        """Row of every entry, int32."""
        return self.entries[0].int()

    @cached_property
    def ones(self) -> bool:
        """Whether all entries are one."""
        return bool((self.values == 1).all())

    def blocks(self, rows: int) -> list[Tensor]:
        """Return the matrix cut into CSR tensors; kept.

        Parameters
        ----------
        rows : int
            Rows of each, fewer in the last.
        """
        if rows not in self._blocks:
            self._blocks[rows] = list(self._cut(rows))
        return self._blocks[rows]

    @cached_property
    def _blocks(self) -> dict[int, list[Tensor]]:
        return {}

    def _cut(self, rows: int) -> Iterator[Tensor]:
        indptr, values, (m, n) = self.matrix.crow_indices(), self.values, self.shape
        for a in range(0, m, rows):
            b = min(a + rows, m)
            begin, end = int(indptr[a]), int(indptr[b])
            yield _tensor(indptr[a : b + 1] - begin, self.column[begin:end], values[begin:end], (b - a, n))

    def repeated(self, times: int) -> Sparse:
        """Return the Kronecker product with an identity, so many copies of the graph; kept.

        Parameters
        ----------
        times : int
            Rows of the identity.
        """
        if times == 1:
            return self
        if times not in self._copies:
            self._copies[times] = self._repeated(times)
        return self._copies[times]

    @cached_property
    def _copies(self) -> dict[int, Sparse]:
        return {}

    @cached_property
    def _places(self) -> dict[int, tuple[Tensor, Tensor]]:
        """Per number of copies, where the entries of all copies come from, and where they go."""
        return {}

    def _repeated(self, times: int) -> Sparse:
        matrix, entry, copy = _spread(self.matrix, times)
        transposed, turned, copy_of = _spread(self.transposed, times)
        number = torch.empty(self.nnz, times, dtype=torch.int64, device=entry.device)
        number[entry, copy] = torch.arange(len(entry), device=entry.device)
        self._places[times] = entry * times + copy, number.view(-1)
        return Sparse(matrix, transposed, number[self.order[turned], copy_of])

    def of_copies(self, values: Tensor) -> Tensor:
        """Return entries of several copies in the order of `repeated`, shape (nnz times,), differentiable.

        Parameters
        ----------
        values : Tensor, shape (nnz, times)
            Entries, one copy in a column.
        """
        times = values.shape[1]
        if times == 1:
            return values.view(-1)
        self.repeated(times)
        return permuted(values.reshape(-1), *self._places[times])

    def originals(self, times: int) -> Tensor:
        """Return the number of the entry that every entry of `repeated` is a copy of, int64.

        Parameters
        ----------
        times : int
            Number of copies.
        """
        if times == 1:
            return torch.arange(self.nnz, device=self.order.device)
        self.repeated(times)
        return self._places[times][0] // times

    @cached_property
    def ends(self) -> Sparse:
        """The matrix of shape (nnz, m + n) that adds to every entry what belongs to its row and to its column."""
        m, n = self.shape
        like, (row, column) = self.values, self.entries
        indices = torch.stack([row, column + m], 1).int().view(-1)
        indptr = torch.arange(0, 2 * self.nnz + 1, 2, dtype=torch.int32, device=like.device)
        # in the transpose the entries of a row follow each other, then those of a column
        order = torch.cat([torch.arange(self.nnz, device=like.device) * 2, self.order * 2 + 1])
        turned = self.matrix.crow_indices(), self.transposed.crow_indices()[1:] + self.nnz
        ones = like.new_ones(2 * self.nnz)
        return Sparse(
            _tensor(indptr, indices, ones, (self.nnz, m + n)),
            _tensor(torch.cat(turned), (order // 2).int(), ones, (m + n, self.nnz)),
            order,
        )

    def with_values(self, values: Tensor) -> Sparse:
        """Return the matrix of the same pattern with other entries.

        Parameters
        ----------
        values : Tensor, shape (nnz,)
            Entries, row by row.
        """
        turned = values.index_select(0, self.order)
        return Sparse(revalued(self.matrix, values), revalued(self.transposed, turned), self.order)

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with a dense matrix, differentiable (any number of times) in the latter."""
        if dense.requires_grad and torch.is_grad_enabled():
            return _product(self.matrix, self.transposed, dense)
        return multiply(self.matrix, dense)


class _Product(torch.autograd.Function):
    """A X with the derivative A^T G: torch's own would build the transpose anew in every sweep."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.pair = matrix, transposed
        return multiply(matrix, dense)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:
        matrix, transposed = ctx.pair
        if torch.is_grad_enabled():
            return None, None, _product(transposed, matrix, g)
        return None, None, multiply(transposed, g)


def _product(matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
    out: Tensor = _Product.apply(matrix, transposed, dense)  # type: ignore[no-untyped-call]
    return out


class _Permuted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, source: Tensor, target: Tensor) -> Tensor:
        ctx.pair = source, target
        return values.index_select(0, source)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None]:
        source, target = ctx.pair
        return permuted(g, target, source), None, None


def permuted(values: Tensor, source: Tensor, target: Tensor) -> Tensor:
    """Return ``values[source]``, differentiable any number of times without adding at indices.

    Parameters
    ----------
    values : Tensor, shape (k,)
        What is permuted.
    source, target : Tensor, shape (k,), int64
        A permutation and its inverse.
    """
    out: Tensor = _Permuted.apply(values, source, target)  # type: ignore[no-untyped-call]
    return out


def multiply(matrix: Tensor, dense: Tensor) -> Tensor:
    """Return the product of a CSR tensor with a dense matrix by the fastest kernel there is; not differentiable.

    On the CPU, torch's bag of weighted rows prefetches (two times faster than the sparse library from 8 columns on, in
    single precision), and its reduction of rows is faster than the library for wide matrices in double precision.

    Parameters
    ----------
    matrix : Tensor, sparse CSR, shape (m, n)
        In 32-bit indices.
    dense : Tensor, shape (n, F)
        What it is applied to.
    """
    if dense.device.type == "cpu" and matrix.values().numel() > 0:
        if dense.dtype == torch.float32 and dense.shape[1] >= _BAG:
            pieces = matrix.col_indices(), matrix.crow_indices()
            sums: Tensor = torch.embedding_bag(dense.contiguous(), *pieces, False, 0, False, matrix.values(), True)[0]
            return sums
        if dense.dtype == torch.float64 and dense.shape[1] >= _REDUCED:
            reduced: Tensor = torch.sparse.mm(matrix, dense.contiguous(), "sum")
            return reduced
    product: Tensor = matrix @ dense
    return product


# oneDNN multiplies tall matrices 1.5 to 2.5 times faster than the BLAS on some processors; torch shows it here alone.
_ONE_DNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def one_dnn(x: Tensor) -> bool:
    """Whether `tall` takes x.

    Parameters
    ----------
    x : Tensor
        The left factor.
    """
    return _ONE_DNN is not None and x.dtype == torch.float32 and x.device.type == "cpu" and x.numel() > 0


def tall(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return the dense product X W (+ b) by oneDNN; not differentiable.

    Parameters
    ----------
    x : Tensor, shape (m, k)
        The left factor, with many rows.
    weight : Tensor, shape (k, n)
        W.
    bias : Tensor, shape (n,), optional
        b.
    """
    assert _ONE_DNN is not None
    out: Tensor = _ONE_DNN(x, weight.t(), bias, "none", [], "")
    return out


def add_outer(target: Tensor, x: Tensor, g: Tensor) -> None:
    """Add X^T G to a matrix; not differentiable.

    The narrower factor goes first: libraries are up to 17 times slower the other way round (measured for 4 columns).

    Parameters
    ----------
    target : Tensor, shape (k, n)
        What is added to.
    x : Tensor, shape (m, k)
        X, with many rows.
    g : Tensor, shape (m, n)
        G.
    """
    if g.shape[1] < x.shape[1]:
        target.add_((g.t() @ x).t())
    else:
        target.addmm_(x.t(), g)


def _csr(matrix: Any, values: Tensor) -> Tensor:
    """Make a CSR tensor of 32-bit indices: the sparse library works on these without converting."""
    indptr, indices = (torch.from_numpy(a.astype(np.int32)).to(values.device) for a in (matrix.indptr, matrix.indices))
    return _tensor(indptr, indices, values, matrix.shape)


def _spread(matrix: Tensor, times: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the Kronecker product of a CSR tensor with an identity; of every entry the one and the copy it is of."""
    indptr, (m, n) = matrix.crow_indices().long(), matrix.shape
    if matrix.values().numel() * times >= 2**31:
        most = (2**31 - 1) // matrix.values().numel()
        raise ValueError(f"heads times samples must be <= {most} for {matrix.values().numel()} entries, got {times}")
    counts = indptr.diff().repeat_interleave(times)
    ends = counts.cumsum(0)
    row = torch.repeat_interleave(torch.arange(m * times, device=counts.device), counts)
    entry = torch.arange(len(row), device=row.device) - (ends - counts)[row] + indptr[row // times]
    copy = row % times
    pieces = torch.cat([ends.new_zeros(1), ends]).int(), (matrix.col_indices().long()[entry] * times + copy).int()
    return _tensor(*pieces, matrix.values()[entry], (m * times, n * times)), entry, copy


def revalued(matrix: Tensor, values: Tensor) -> Tensor:
    """Return the CSR tensor of the same pattern with other values.

    Parameters
    ----------
    matrix : Tensor, sparse CSR
        Whose pattern is kept.
    values : Tensor, shape (nnz,)
        Entries, row by row.
    """
    return _tensor(matrix.crow_indices(), matrix.col_indices(), values, tuple(matrix.shape))


def _tensor(indptr: Tensor, indices: Tensor, values: Tensor, shape: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse .* beta")  # once per process, about torch's own plans
        return torch.sparse_csr_tensor(indptr, indices, values, shape, check_invariants=False)
