"""Graph transformer: attention by inner products of queries and keys, with attributes of edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mldd.problems.nets import Sparse
from mldd.problems.nets.layers.layer import Act, Layer
from mldd.problems.nets.layers.products import linear, shifted, softmax

if TYPE_CHECKING:
    from mldd.problems.nets import Batch


@dataclass(frozen=True)
class Transformer(Layer):
    """Graph transformer layer ``W_s h_i + sum_j alpha_ij (W_v h_j + W_e e_ij) + b`` over the neighbours j of i.

    ``alpha_i = softmax_j((W_q h_i)^T (W_k h_j + W_e e_ij) / sqrt(d))`` head by head, d the width of a head; the softmax
    counts an edge as often as its entry in A says. e_ij are the attributes of the edge from j to i; on a composite
    graph they are means over the edges that were merged. Without attributes there is no W_e. Keys, queries and values
    have no biases.

    References
    ----------
    Shi et al., arXiv:2009.03509, equations 3 and 4, with the own node added instead of gated.
    """

    beforehand: ClassVar[bool] = False
    many_heads: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("query", "key", "value", "skip")
    scores: ClassVar[tuple[str, ...]] = ("query",)
    edge_inputs: ClassVar[tuple[str, ...]] = ("edge",)
    passing: ClassVar[str] = "skip"
    inner: ClassVar[tuple[str, ...]] = ("query", "key")  # products of two zeros would stay zero

    def tensors(
        self, inner: int, outer: int, heads: int = 1, last: bool = False, attributes: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Return W_q, W_k, W_v, W_s, W_e if edges have attributes, and b."""
        width = heads * outer if last else outer
        named: dict[str, tuple[int, ...]] = {name: (inner, width) for name in ("query", "key", "value")}
        named |= {"skip": (inner, outer)} | ({"edge": (attributes, width)} if attributes else {})
        return named | {"bias": (outer,)}

    def score_factor(self, width: int) -> float:
        """Return ``1 / sqrt(width)``."""
        return 1.0 / math.sqrt(width)

    def __call__(
        self,
        batch: Batch,
        layer: int,
        states: Sequence[Tensor | Sparse],
        weights: Sequence[Tensor],
        act: Act,
        heads: int,
    ) -> Tensor:
        """Return the heads next to each other, or their mean where b has the width of one."""
        query, key, value, skip, *edge, bias = weights
        operator, rows = batch.operators[layer][0], batch.rows[layer + 1]
        assert operator is not None
        pattern, width = operator.pattern, key.shape[-1]
        row, column = pattern.entries
        x = states[0] if isinstance(states[0], Sparse) else batch.first(states[0], rows)
        own = batch.first(linear(x, torch.cat([query, skip], -1)), rows).to(pattern.values.dtype)
        sent = operator.extend(linear(states[0], torch.cat([key, value], -1))).to(pattern.values.dtype)[column]
        pairs = sent.view(*sent.shape[:-1], 2, heads, width // heads)  # of key and value
        if edge:
            told = _of_edges(batch.attributes[layer], edge[0], row // rows)
            pairs = pairs + told.view(len(told), *[1] * (pairs.dim() - 3), *pairs.shape[-2:])
        asked = own[..., :width].reshape(*own.shape[:-1], heads, width // heads)[row]
        score = (asked * pairs[..., 0, :, :]).sum(-1) * self.score_factor(width // heads)
        alpha = softmax(score, row, len(own), pattern.values)
        each = own.new_zeros(len(own), *pairs.shape[1:-3], *pairs.shape[-2:])
        each = each.index_add(0, row, alpha[..., None] * pairs[..., 1, :, :])
        out = each.flatten(-2) if bias.shape[-1] == width else each.mean(-2)
        return shifted(out + own[..., width:], bias)


def _of_edges(attributes: Tensor, weight: Tensor, graph: Tensor) -> Tensor:
    """Return W_e e of every edge, shape (nnz, width), with the weight of its graph if each has its own."""
    with torch.autocast(weight.device.type, enabled=False):
        if weight.dim() == 2:
            return attributes @ weight
        return torch.bmm(attributes[:, None], weight[graph])[:, 0]
