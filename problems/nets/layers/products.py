"""Products of states, weights and operators that layers are made of, for one graph or a batch of them.

Weights have a leading axis p for a batch of p graphs with parameters of their own.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from mldd.problems.nets import Operator, Sparse, add_outer, attend, one_dnn, tall

_TALL = 2**17  # entries of a state from which oneDNN saves more than its call costs (measured)


def linear(state: Tensor | Sparse, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return H W (+ b) for one graph, or block by block for weights of shape (p, in, out).

    Parameters
    ----------
    state : Tensor or Sparse, shape (p r, ..., in)
        H.
    weight : Tensor, shape (in, out) or (p, in, out)
        W.
    bias : Tensor, shape (out,) or (p, out), optional
        b.
    """
    if weight.dim() == 2 and not isinstance(state, Sparse):
        if one_dnn(state) and state.numel() >= _TALL and not torch.is_autocast_enabled("cpu"):
            out: Tensor = _Linear.apply(state, weight, bias)  # type: ignore[no-untyped-call]
            return out
        return torch.nn.functional.linear(state, weight.t(), bias)
    if isinstance(state, Sparse):
        product = state @ weight.reshape(-1, weight.shape[-1])
    else:
        blocks = state.reshape(len(weight), -1, weight.shape[1])
        product = torch.bmm(blocks, weight).view(*state.shape[:-1], weight.shape[2])
    return product if bias is None else shifted(product, bias)


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(state, weight)
        return tall(state, weight, bias)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        state, weight = ctx.saved_tensors
        needed, rows = ctx.needs_input_grad, g.flatten(0, -2)
        of_state = linear(g.contiguous(), weight.t()) if needed[0] else None
        of_weight = _outer(state.flatten(0, -2), rows) if needed[1] else None
        return of_state, of_weight, rows.sum(0) if needed[2] else None


def _outer(x: Tensor, g: Tensor) -> Tensor:
    """Return X^T G, differentiable."""
    if torch.is_grad_enabled():
        return x.t() @ g
    out = x.new_zeros(x.shape[1], g.shape[1])
    add_outer(out, x, g)
    return out


def shifted(state: Tensor, bias: Tensor) -> Tensor:
    """Return H + b, block by block for biases of their own.

    Parameters
    ----------
    state : Tensor, shape (p r, ..., H)
        H.
    bias : Tensor, shape (H,) or (p, H)
        b.
    """
    if bias.dim() == 1:
        return state + bias
    return (state.reshape(len(bias), -1, bias.shape[1]) + bias[:, None]).view(state.shape)


def scaled(state: Tensor, factor: Tensor) -> Tensor:
    """Return H times a factor, block by block for factors of their own.

    Parameters
    ----------
    state : Tensor, shape (p r, ..., H)
        H.
    factor : Tensor, shape (1,) or (p, 1)
        One number per block.
    """
    if factor.dim() == 1:
        return state * factor
    return (state.reshape(len(factor), -1) * factor).view(state.shape)


def applied(operator: Operator, state: Tensor) -> Tensor:
    """Return A H, for all samples at once.

    Parameters
    ----------
    operator : Operator
        A.
    state : Tensor, shape (n, F) or (n, S, F)
        H.
    """
    out = operator @ state.flatten(1)
    return out if state.dim() == 2 else out.view(len(out), *state.shape[1:])


def sparse_first(operator: Operator, inner: int, outer: int, features: bool = False) -> bool:
    """Whether (A H) W takes fewer multiplications than A (H W), with the derivatives in W, and in H if no `features`.

    The same on all ranks that share the operator.

    Parameters
    ----------
    operator : Operator
        A, by whose sizes all ranks decide.
    inner : int
        Rows of W.
    outer : int
        Columns of W.
    features : bool
        Whether H are features, for which no derivative is needed.
    """
    m, n, nnz = operator.sizes
    dense, sparse = (2, 1) if features else (3, 2)
    return dense * m * inner * outer + sparse * nnz * inner < dense * n * inner * outer + 2 * nnz * outer


def propagated(operator: Operator, state: Tensor | Sparse, weight: Tensor, features: bool = False) -> Tensor:
    """Return A H W in the cheaper order.

    Parameters
    ----------
    operator : Operator
        A.
    state : Tensor or Sparse
        H.
    weight : Tensor, shape (in, out) or (p, in, out)
        W.
    features : bool
        Whether H are features, for which no derivative is needed.
    """
    if isinstance(state, Sparse) or not sparse_first(operator, weight.shape[-2], weight.shape[-1], features):
        return applied(operator, linear(state, weight))
    return linear(applied(operator, state), weight)


def by_head(vector: Tensor, heads: int) -> Tensor:
    """Return the matrix, shape (.., heads f, heads), that multiplies each head with its part of a vector.

    Parameters
    ----------
    vector : Tensor, shape (.., heads f)
        Head after head.
    heads : int
        Number of heads.
    """
    eye = torch.eye(heads, dtype=vector.dtype, device=vector.device)
    parts = vector.view(*vector.shape[:-1], heads, vector.shape[-1] // heads)
    return (parts[..., None] * eye[:, None]).flatten(-3, -2)


def attended(pattern: Sparse, scores: Tensor, sent: Tensor) -> Tensor:
    """Return the attention-weighted means of what is sent, head by head, shape (m samples heads, f).

    Parameters
    ----------
    pattern : Sparse, shape (m, n)
        The matrix of the graph.
    scores : Tensor, shape (nnz, samples heads)
        Of every entry.
    sent : Tensor, shape (n, [samples,] heads f)
        States of the columns.
    """
    times = scores.shape[1]
    each = sent.reshape(-1, math.prod(sent.shape[1:]) // times)  # there may be no rows
    return attend(pattern.repeated(times), pattern.of_copies(scores), each)
