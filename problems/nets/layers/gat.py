"""Graph attention."""

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
class GAT(Layer):
    """Graph attention ``alpha(H W) H W + b``, head by head, alpha on the entries of I + adjacency.

    The entries of A are the multiplicities of neighbours: on a composite graph nodes with equal states may be merged.

    References
    ----------
    Velickovic et al., arXiv:1710.10903, equations 1 to 6.
    """

    beforehand: ClassVar[bool] = False
    self_loops: ClassVar[bool] = True
    many_heads: ClassVar[bool] = True
    scores: ClassVar[tuple[str, ...]] = ("centre", "neighbour")

    def tensors(
        self, inner: int, outer: int, heads: int = 1, last: bool = False, attributes: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Return W, the vectors of the scores of the two ends of an edge, and b."""
        width = heads * outer if last else outer
        return {"weight": (inner, width), "centre": (width,), "neighbour": (width,), "bias": (outer,)}

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
        weight, centre, neighbour, bias = weights
        operator = batch.operators[layer][0]
        assert operator is not None
        z = operator.extend(linear(states[0], weight))
        scores = linear(z, torch.cat([by_head(centre, heads), by_head(neighbour, heads)], -1))
        of_centre = batch.first(scores[..., :heads], batch.rows[layer + 1])
        pattern = operator.pattern
        with torch.autocast(z.device.type, enabled=False):
            own, other, sent = (t.to(pattern.values.dtype) for t in (of_centre, scores[..., heads:], z))
            out = attended(pattern, bent(pattern, own.flatten(1), other.flatten(1)), sent)
        out = out.view(*of_centre.shape, z.shape[-1] // heads)
        return shifted(out.flatten(-2) if bias.shape[-1] == z.shape[-1] else out.mean(-2), bias)
