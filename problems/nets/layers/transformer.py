"""Graph transformer: attention by inner products of queries and keys, with attributes of edges."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mldd.problems.nets import Sparse, attend, sampled
from mldd.problems.nets.layers.layer import Act, Layer
from mldd.problems.nets.layers.products import linear, shifted

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
        dtype, shape = pattern.values.dtype, (batch.samples, heads, width // heads)
        x = states[0] if isinstance(states[0], Sparse) else batch.first(states[0], rows)
        own = batch.first(linear(x, torch.cat([query, skip], -1)), rows).to(dtype)
        sent = operator.extend(linear(states[0], torch.cat([key, value], -1))).to(dtype)
        asked = own[..., :width].reshape(-1, *shape) * self.score_factor(width // heads)
        keys, values = (sent[..., part].reshape(-1, shape[-1]) for part in (slice(width), slice(width, None)))
        with torch.autocast(sent.device.type, enabled=False):
            copies = pattern.repeated(batch.samples * heads)
            scores = sampled(copies, asked.flatten(0, 2), keys)
            if edge:
                matrix = edge[0].to(dtype).view(batch.parts or 1, -1, *shape[1:])  # (p, attributes, heads, f)
                told = batch.attributes[layer].index_select(0, pattern.originals(batch.samples * heads))
                out = _told(copies, scores, asked, values, matrix, told)
            else:
                out = attend(copies, scores, values)
        out = out.view(*own.shape[:-1], *shape[1:])
        return shifted((out.flatten(-2) if bias.shape[-1] == width else out.mean(-2)) + own[..., width:], bias)


def _told(copies: Sparse, scores: Tensor, asked: Tensor, values: Tensor, matrix: Tensor, told: Tensor) -> Tensor:
    """Return what `attend` does where keys and values have W_e e added, without making these for every edge.

    ``q^T W_e e = (W_e^T q)^T e`` is taken per row and entry, ``sum_j alpha_ij W_e e_ij = W_e sum_j alpha_ij e_ij``.
    """
    graphs = asked.view(len(matrix), -1, *asked.shape[1:])
    pulled = torch.einsum("prshf,pkhf->prshk", graphs, matrix).flatten(0, 3)
    scores = scores + torch.linalg.vecdot(pulled.index_select(0, copies.row), told)
    out = attend(copies, scores, values, told)
    width = values.shape[1]
    means = out[:, width:].view(*graphs.shape[:-1], told.shape[1])
    return out[:, :width] + torch.einsum("prshk,pkhf->prshf", means, matrix).reshape(-1, width)
