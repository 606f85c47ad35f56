"""Attention along the entries of a sparse pattern, differentiable any number of times, by products of compressed rows.

With the entries (i, j) of a matrix m, scores e of the entries and states z of its columns::

    out_i = sum_j alpha_ij z_j,    alpha_ij = m_ij exp(e_ij) / sum_k m_ik exp(e_ik)

m is one on a graph; on an aggregated graph it counts neighbours, so that nodes with equal states may be merged. Every
step and its derivative is a product with a matrix of the pattern or one that is sampled on it. Several heads are a
graph of its own, `Sparse.repeated`: no loop over heads or edges.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mldd.problems.nets.operators import Sparse, multiply, permuted, revalued

SLOPE = 0.2  # of LeakyReLU for negative arguments


def attend(pattern: Sparse, scores: Tensor, state: Tensor, told: Tensor | None = None) -> Tensor:
    """Return the attention-weighted means of the states, shape (m, F); zero in a row without entries.

    Parameters
    ----------
    pattern : Sparse, shape (m, n)
        Its entries are the (positive) multiplicities.
    scores : Tensor, shape (nnz,)
        Scores e of the entries, row by row.
    state : Tensor, shape (n, F)
        States of the columns.
    told : Tensor, shape (nnz, k), optional
        Numbers of the entries, whose means are k further columns of the result.

    References
    ----------
    Velickovic et al., arXiv:1710.10903, equations 1 to 4.
    """
    with torch.no_grad():  # the softmax does not depend on what is subtracted
        offsets = pattern.matrix.crow_indices().long()
        most = torch.segment_reduce(scores, "max", offsets=offsets, axis=0, unsafe=True).index_select(0, pattern.row)
    weights = (scores - most).exp()
    if not pattern.ones:
        weights = weights * pattern.values
    sums = weighted(pattern, weights, torch.cat([state, state.new_ones(len(state), 1)], 1))
    total, sums = sums[:, -1:].clamp_min(torch.finfo(sums.dtype).tiny), sums[:, :-1]
    if told is not None:
        of_entries = told.new_zeros(len(sums), told.shape[1]).index_add(0, pattern.row, weights[:, None] * told)
        sums = torch.cat([sums, of_entries], 1)
    return sums / total


def bent(pattern: Sparse, centres: Tensor, neighbours: Tensor) -> Tensor:
    """Return ``LeakyReLU(c_i + n_j)`` of every entry (i, j), shape (nnz, F), differentiable in both.

    Parameters
    ----------
    pattern : Sparse, shape (m, n)
        Which entries are asked for.
    centres : Tensor, shape (m, F)
        What belongs to rows, c.
    neighbours : Tensor, shape (n, F)
        What belongs to columns, n.
    """
    return torch.nn.functional.leaky_relu_(pattern.ends @ torch.cat([centres, neighbours]), SLOPE)


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


def _turned(pattern: Sparse, values: Tensor) -> Tensor:
    """Return the entries of the matrix in the order of its transpose."""
    return permuted(values, pattern.order, pattern.inverse)


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
