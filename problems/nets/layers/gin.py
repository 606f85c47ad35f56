"""Graph isomorphism network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from torch import Tensor

from mldd.problems.nets import Sparse
from mldd.problems.nets.layers.layer import Act, Layer
from mldd.problems.nets.layers.products import applied, linear, scaled, shifted, sparse_first

if TYPE_CHECKING:
    from mldd.problems.nets import Batch


@dataclass(frozen=True)
class GIN(Layer):
    """Graph isomorphism network ``act(((1 + eps) H + A H) W_1 + b_1) W_2 + b_2`` with the adjacency matrix A.

    References
    ----------
    Xu et al., arXiv:1810.00826, equation 4.1.
    """

    terms: ClassVar[tuple[bool, ...]] = (False, True)
    inputs: ClassVar[tuple[str, ...]] = ("first",)
    inner: ClassVar[tuple[str, ...]] = ("first",)

    def tensors(
        self, inner: int, outer: int, heads: int = 1, last: bool = False, attributes: int = 0
    ) -> dict[str, tuple[int, ...]]:
        """Return W_1, b_1, W_2, b_2 and eps."""
        mlp: dict[str, tuple[int, ...]] = {"first": (inner, outer), "shift": (outer,), "second": (outer, outer)}
        return mlp | {"bias": (outer,), "epsilon": (1,)}

    def __call__(
        self,
        batch: Batch,
        layer: int,
        states: Sequence[Tensor | Sparse],
        weights: Sequence[Tensor],
        act: Act,
        heads: int,
    ) -> Tensor:
        """Return the new state."""
        first, shift, second, bias, epsilon = weights
        operator, rows = batch.operators[layer][1], batch.rows[layer + 1]

        def summed(state: Tensor) -> Tensor:
            assert operator is not None
            return applied(operator, state) + scaled(batch.first(state, rows), 1.0 + epsilon)

        own = states[0]
        if operator is None:
            z = linear(own, first * (1.0 + epsilon)[..., None], shift) + linear(states[1], first)
        elif isinstance(own, Sparse) or not sparse_first(operator, first.shape[-2], first.shape[-1], layer == 0):
            z = shifted(summed(linear(own, first)), shift)
        else:
            z = linear(summed(own), first, shift)
        return linear(act(z), second, bias)
