"""Graph attention whose scores are not monotone in the neighbour alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from mldd.problems.nets import Sparse, bent
from mldd.problems.nets.layers.layer import Act, Layer
from mldd.problems.nets.layers.products import attended, by_head, linear, shifted

if TYPE_CHECKING:
    from mldd.problems.nets import Batch


@dataclass(frozen=True)
class GATv2(Layer):
    """Dynamic graph attention: ``sum_j alpha_ij W_n h_j + b``, ``alpha = softmax_j(a^T LeakyReLU(W_c h_i + W_n h_j))``.

    j runs over the neighbours of i and i itself; the softmax counts an edge as often as its entry in A says.

    References
    ----------
    Brody, Alon and Yahav, arXiv:2105.14491, equation 7.
    """

    beforehand: ClassVar[bool] = False
    self_loops: ClassVar[bool] = True
    many_heads: ClassVar[bool] = True
    inputs: ClassVar[tuple[str, ...]] = ("weight", "centre")
    scores: ClassVar[tuple[str, ...]] = ("score",)

    def tensors(
        self, inner: int, outer: int, heads: int = 1, last: bool = False, attributes: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Return W_n, W_c, a and b."""
        width = heads * outer if last else outer
        return {"weight": (inner, width), "centre": (inner, width), "score": (width,), "bias": (outer,)}

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
        weight, centre, score, bias = weights
        operator, rows = batch.operators[layer][0], batch.rows[layer + 1]
        assert operator is not None
        pattern = operator.pattern
        sent = operator.extend(linear(states[0], weight)).to(pattern.values.dtype)
        centres = batch.first(linear(states[0], centre), rows).to(pattern.values.dtype)
        width = centres.shape[-1]
        with torch.autocast(sent.device.type, enabled=False):
            pairs = bent(pattern, centres.flatten(1), sent.flatten(1)).view(-1, batch.samples, width)
            if score.dim() == 1:
                scores = linear(pairs, by_head(score, heads))
            else:  # one vector a per graph of a batch
                vectors = score[pattern.entries[0] // rows].view(-1, 1, heads, width // heads)
                scores = (pairs.view(*pairs.shape[:2], heads, width // heads) * vectors).sum(-1)
            out = attended(pattern, scores.flatten(1), sent)
        out = out.view(*centres.shape[:-1], heads, width // heads)
        return shifted(out.flatten(-2) if bias.shape[-1] == width else out.mean(-2), bias)
