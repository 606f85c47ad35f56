"""Graph attention whose scores are not monotone in the neighbour alone."""

from __future__ import annotations

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

_SLOPE = 0.2  # of LeakyReLU for negative arguments


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
        row, column = pattern.entries
        sent = operator.extend(linear(states[0], weight)).to(pattern.values.dtype)[column]
        centres = batch.first(linear(states[0], centre), rows).to(pattern.values.dtype)
        bent = torch.nn.functional.leaky_relu(centres[row] + sent, _SLOPE)
        # one vector a per graph of a batch: entries of a graph follow each other
        vector = score if score.dim() == 1 else score[row // rows].view(-1, *[1] * (bent.dim() - 2), score.shape[-1])
        shape = (*bent.shape[:-1], heads, bent.shape[-1] // heads)
        alpha = softmax((bent * vector).view(shape).sum(-1), row, len(centres), pattern.values)
        out = centres.new_zeros(len(centres), *shape[1:]).index_add(0, row, alpha[..., None] * sent.view(shape))
        return shifted(out.flatten(-2) if bias.shape[-1] == bent.shape[-1] else out.mean(-2), bias)
