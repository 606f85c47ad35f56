"""Two-layer graph networks in plain torch, as a competent user writes them in some fifteen lines: peers of `layers.py`.

The operator is a CSR tensor that keeps its transpose, A X is computed once, products go before the operator where the
weight narrows, and attention works on edges. Weights are those of `GraphNet`, layer by layer in its order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import scipy.sparse as sp
import torch
from torch import Tensor
from torch.nn.functional import leaky_relu

Network = Callable[[Sequence[Tensor]], Tensor]
Pair = tuple[Tensor, Tensor]


class Product(torch.autograd.Function):
    """A H, differentiable in H, with the stored transpose."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.transposed = transposed
        return matrix @ dense

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, Tensor]:
        return None, None, ctx.transposed @ g


def pair(matrix: Any, dtype: torch.dtype) -> Pair:
    """Return a SciPy matrix and its transpose as CSR tensors of 32-bit indices."""
    both = []
    for m in (sp.csr_matrix(matrix), sp.csr_matrix(matrix.T)):
        m.sort_indices()
        indptr, indices = (torch.from_numpy(a.astype("int32")) for a in (m.indptr, m.indices))
        both.append(torch.sparse_csr_tensor(indptr, indices, torch.from_numpy(m.data).to(dtype), m.shape))
    return both[0], both[1]


def times(left: Pair | Tensor, right: Tensor) -> Tensor:
    """Return the product of a dense matrix, or of a sparse one with its stored transpose."""
    return left @ right if isinstance(left, Tensor) else Product.apply(*left, right)  # type: ignore[no-untyped-call]


def _softmax(scores: Tensor, row: Tensor, rows: int) -> Tensor:
    index = row[:, None].expand_as(scores)
    with torch.no_grad():
        most = scores.new_zeros(rows, scores.shape[1]).scatter_reduce(0, index, scores, "amax", include_self=False)
    w = (scores - most[row]).exp()
    return w / scores.new_zeros(rows, scores.shape[1]).index_add(0, row, w)[row]


def network(kind: str, operator: Any, features: Any, heads: int, dtype: torch.dtype) -> Network:
    """Return the outputs of a network of two layers as a function of the tensors of `GraphNet`.

    `operator` is the SciPy matrix of the layer, `features` a NumPy array or a SciPy matrix.
    """

    def kept(matrix: Any) -> Pair | Tensor:
        return pair(matrix, dtype) if sp.issparse(matrix) else torch.from_numpy(matrix).to(dtype)

    n, sparse = operator.shape[0], pair(operator, dtype)
    x, ax = kept(features), kept(operator @ features)
    entries = sp.coo_matrix(operator)
    row, col = (torch.from_numpy(index).long() for index in (entries.row, entries.col))

    def gcn(p: Sequence[Tensor]) -> Tensor:
        h = torch.relu(times(ax, p[0]) + p[1])
        return times(sparse, h @ p[2]) + p[3]

    def sage(p: Sequence[Tensor]) -> Tensor:
        h = torch.relu(times(x, p[0]) + times(ax, p[1]) + p[2])
        return h @ p[3] + times(sparse, h @ p[4]) + p[5]

    def gin(p: Sequence[Tensor]) -> Tensor:
        h = torch.relu(torch.relu((1 + p[4]) * times(x, p[0]) + times(ax, p[0]) + p[1]) @ p[2] + p[3])
        z = h @ p[5]
        return torch.relu((1 + p[9]) * z + times(sparse, z) + p[6]) @ p[7] + p[8]

    def gathered(scores: Tensor, sent: Tensor) -> Tensor:
        """Return the sums over edges of what is sent, weighted by the softmax of the scores, head by head."""
        alpha = _softmax(scores, row, n)
        return sent.new_zeros(n, *sent.shape[1:]).index_add(0, row, alpha[..., None] * sent)

    def joined(out: Tensor, bias: Tensor) -> Tensor:
        return out.flatten(1) + bias if bias.numel() == out[0].numel() else out.mean(1) + bias

    def gat_layer(h: Pair | Tensor, w: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        z = times(h, w).view(n, heads, -1)
        centre, neighbour = ((z * v.view(heads, -1)).sum(-1) for v in (c, a))
        return joined(gathered(leaky_relu(centre[row] + neighbour[col], 0.2), z[col]), b)

    def gatv2_layer(h: Pair | Tensor, w: Tensor, c: Tensor, a: Tensor, b: Tensor) -> Tensor:
        sent, own = (times(h, weight).view(n, heads, -1) for weight in (w, c))
        each = sent[col]
        return joined(gathered((leaky_relu(own[row] + each, 0.2) * a.view(heads, -1)).sum(-1), each), b)

    def transformer_layer(h: Pair | Tensor, q: Tensor, k: Tensor, v: Tensor, s: Tensor, b: Tensor) -> Tensor:
        query, key, value = (times(h, weight).view(n, heads, -1) for weight in (q, k, v))
        scores = (query[row] * key[col]).sum(-1) / key.shape[-1] ** 0.5
        return joined(gathered(scores, value[col]), b) + times(h, s)

    def twice(layer: Callable[..., Tensor]) -> Network:
        return lambda p: layer(torch.relu(layer(x, *p[: len(p) // 2])), *p[len(p) // 2 :])

    attention = {"gat": gat_layer, "gatv2": gatv2_layer, "transformer": transformer_layer}
    return twice(attention[kind]) if kind in attention else {"gcn": gcn, "sage": sage, "gin": gin}[kind]
