"""Attention along the entries of a sparse pattern, differentiable any number of times, by products of compressed rows.

With the entries (i, j) of a matrix m, scores c and n of its rows and columns and states z of its columns::

    out_i = sum_j alpha_ij z_j,    alpha_ij = m_ij exp(e_ij) / sum_k m_ik exp(e_ik),    e_ij = LeakyReLU(c_i + n_j)

m is one on a graph; on an aggregated graph it counts neighbours, so that nodes with equal states may be merged. Every
step and its derivative is one of three: a product with a matrix of the pattern, a product that is sampled on it, and
the sums of rows and columns. Several heads are a graph of its own, `Sparse.repeated`: no loop over heads or edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mldd.problems.nets.operators import Sparse, multiply, revalued

SLOPE = 0.2  # of LeakyReLU for negative arguments


def attend(pattern: Sparse, centre: Tensor, neighbour: Tensor, state: Tensor) -> Tensor:
    """Return the attention-weighted means of the states, shape (m, F); zero in a row without entries.

    Parameters
    ----------
    pattern : Sparse, shape (m, n)
        Its entries are the (positive) multiplicities.
    centre, neighbour : Tensor, shapes (m,) and (n,)
        Scores c and n.
    state : Tensor, shape (n, F)
        States of the columns.

    References
    ----------
    Velickovic et al., arXiv:1710.10903, equations 1 to 4, the scores a^T [W h_i || W h_j] given as two summands.
    """
    e = torch.nn.functional.leaky_relu(_outer_sum(pattern, centre, neighbour), SLOPE)
    with torch.no_grad():  # the softmax does not depend on what is subtracted
        offsets = pattern.matrix.crow_indices().long()
        most = torch.segment_reduce(e, "max", offsets=offsets, axis=0, unsafe=True).index_select(0, pattern.row)
    weights = (e - most).exp()
    if not pattern.ones:
        weights = weights * pattern.values
    sums = weighted(pattern, weights, torch.cat([state, state.new_ones(len(state), 1)], 1))
    return sums[:, :-1] / sums[:, -1:].clamp_min(torch.finfo(sums.dtype).tiny)


def weighted(pattern: Sparse, values: Tensor, dense: Tensor) -> Tensor:
    """Return the product of the matrix with these entries, shape (nnz,), and a dense one, differentiable in both.

    Parameters
    ----------
    pattern : Sparse, shape (m, n)
        Where the entries are.
    values : Tensor, shape (nnz,)
        Entries, row by row.
    dense : Tensor, shape (n, F)
        What is multiplied.
    """
    out: Tensor = _Weighted.apply(pattern, values, dense)  # type: ignore[no-untyped-call]
    return out


def sampled(pattern: Sparse, left: Tensor, right: Tensor) -> Tensor:
    """Return the entries of ``left right^T`` on the pattern, shape (nnz,), differentiable in both.

    Parameters
    ----------
    pattern : Sparse, shape (m, n)
        Which entries are asked for.
    left : Tensor, shape (m, F)
        Rows.
    right : Tensor, shape (n, F)
        Columns.
    """
    out: Tensor = _Sampled.apply(pattern, left, right)  # type: ignore[no-untyped-call]
    return out


def _outer_sum(pattern: Sparse, rows: Tensor, columns: Tensor) -> Tensor:
    out: Tensor = _OuterSum.apply(pattern, rows, columns)  # type: ignore[no-untyped-call]
    return out


def _sums(pattern: Sparse, values: Tensor) -> tuple[Tensor, Tensor]:
    out: tuple[Tensor, Tensor] = _Sums.apply(pattern, values)  # type: ignore[no-untyped-call]
    return out


def _turned(pattern: Sparse, values: Tensor) -> Tensor:
    """Return the entries of the matrix in the order of its transpose."""
    out: Tensor = _Turned.apply(pattern, values)  # type: ignore[no-untyped-call]
    return out


class _Weighted(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Sparse, values: Tensor, dense: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(values, dense)
        return multiply(revalued(pattern.matrix, values), dense)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (values, dense), pattern = ctx.saved_tensors, ctx.pattern
        of_values = sampled(pattern, g, dense) if ctx.needs_input_grad[1] else None
        of_dense = weighted(pattern.t, _turned(pattern, values), g) if ctx.needs_input_grad[2] else None
        return None, of_values, of_dense


class _Sampled(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Sparse, left: Tensor, right: Tensor) -> Tensor:
        ctx.pattern = pattern
        ctx.save_for_backward(left, right)
        left, right = left.contiguous(), right.contiguous()
        entries: Tensor = torch.sparse.sampled_addmm(pattern.matrix, left, right.t(), beta=0.0).values()
        return entries

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        (left, right), pattern = ctx.saved_tensors, ctx.pattern
        of_left = weighted(pattern, g, right) if ctx.needs_input_grad[1] else None
        of_right = weighted(pattern.t, _turned(pattern, g), left) if ctx.needs_input_grad[2] else None
        return None, of_left, of_right


class _OuterSum(torch.autograd.Function):
    """c_i + n_j on the pattern; its adjoint sums over rows and over columns."""

    @staticmethod
    def forward(ctx: Any, pattern: Sparse, rows: Tensor, columns: Tensor) -> Tensor:
        ctx.pattern = pattern
        return rows.index_select(0, pattern.row).add_(columns.index_select(0, pattern.column))

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_sums(ctx.pattern, g)


class _Sums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Sparse, values: Tensor) -> tuple[Tensor, Tensor]:
        ctx.pattern = pattern
        m, n = pattern.shape
        turned = values.index_select(0, pattern.order)
        rows = multiply(revalued(pattern.matrix, values), values.new_ones(n, 1))
        return rows[:, 0], multiply(revalued(pattern.transposed, turned), values.new_ones(m, 1))[:, 0]

    @staticmethod
    def backward(ctx: Any, rows: Tensor, columns: Tensor) -> tuple[Tensor | None, ...]:
        return None, _outer_sum(ctx.pattern, rows, columns)


class _Turned(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, pattern: Sparse, values: Tensor) -> Tensor:
        ctx.pattern = pattern
        return values.index_select(0, pattern.order)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        return None, _turned(ctx.pattern.t, g)
