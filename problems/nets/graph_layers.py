"""Layers of graph networks as pure functions: GCN, GraphSAGE, GIN and GAT.

With the operators B of a layer (`mldd.problems.nets.composite.propagation`), states H and weights, shape (in, out)::

    gcn    A H W + b                                       A = D^-1/2 (I + adjacency) D^-1/2
    sage   H W_self + A H W_neighbours + b                 A = D^-1 adjacency
    gin    act(((1 + eps) H + A H) W_1 + b_1) W_2 + b_2    A = adjacency
    gat    alpha(H W) H W + b, head by head                alpha on the entries of I + adjacency

Weights have a leading axis p for a batch of p graphs with parameters of their own.

References
----------
Kipf and Welling, arXiv:1609.02907, equation 2; Hamilton, Ying and Leskovec, arXiv:1706.02216, algorithm 1 (mean); Xu et
al., arXiv:1810.00826, equation 4.1; Velickovic et al., arXiv:1710.10903, equations 1 to 6.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from mldd.problems.nets.attention import attend
from mldd.problems.nets.operators import Operator, Sparse, one_dnn, tall

if TYPE_CHECKING:
    from mldd.problems.nets.graph_net import Batch

Kind = Literal["gcn", "sage", "gin", "gat"]
GraphActivation = Literal["relu", "gelu", "tanh", "elu"]
# In place where the derivative needs the result alone.
GRAPH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh_,
    "elu": torch.nn.functional.elu,
}
_TALL = 2**17  # entries of a state from which oneDNN saves more than its call costs (measured)
# Inputs of a layer: whether each is propagated.
TERMS: dict[str, tuple[bool, ...]] = {"gcn": (True,), "sage": (False, True), "gin": (False, True), "gat": (True,)}


def tensors(kind: Kind, inner: int, outer: int, heads: int = 1, last: bool = False) -> dict[str, tuple[int, ...]]:
    """Return names and shapes of the parameters of a layer, the weights that take in its state first.

    Heads have ``outer / heads`` columns each, that are concatenated; in the last layer `outer` each, that are averaged.
    """
    if kind == "gcn":
        return {"weight": (inner, outer), "bias": (outer,)}
    if kind == "sage":
        return {"self": (inner, outer), "neighbours": (inner, outer), "bias": (outer,)}
    if kind == "gin":
        mlp: dict[str, tuple[int, ...]] = {"first": (inner, outer), "shift": (outer,), "second": (outer, outer)}
        return mlp | {"bias": (outer,), "epsilon": (1,)}
    width = heads * outer if last else outer
    return {"weight": (inner, width), "centre": (width,), "neighbour": (width,), "bias": (outer,)}


def convolved(batch: Batch, layer: int, states: Sequence[Tensor | Sparse], weights: Sequence[Tensor]) -> Tensor:
    """Return ``sum_t B_t H W_t + b``."""
    *weights, bias = weights
    out: Tensor | None = None
    for operator, state, weight in zip(batch.operators[layer], states, weights, strict=True):
        if operator is not None:
            z = propagated(operator, state, weight, layer == 0)
        elif isinstance(state, Sparse):
            z = batch.first(linear(state, weight), batch.rows[layer + 1])
        else:
            z = linear(batch.first(state, batch.rows[layer + 1]), weight)
        out = z if out is None else out + z
    assert out is not None
    return shifted(out, bias)


def isomorphic(
    batch: Batch,
    layer: int,
    states: Sequence[Tensor | Sparse],
    weights: Sequence[Tensor],
    act: Callable[[Tensor], Tensor],
) -> Tensor:
    """Return ``act(((1 + eps) H + A H) W_1 + b_1) W_2 + b_2``."""
    first, shift, second, bias, epsilon = weights
    operator, rows = batch.operators[layer][1], batch.rows[layer + 1]

    def summed(state: Tensor) -> Tensor:
        assert operator is not None
        return applied(operator, state) + scaled(batch.first(state, rows), 1.0 + epsilon)

    own = states[0]
    if operator is None:
        z = scaled(linear(own, first), 1.0 + epsilon) + linear(states[1], first)
    elif isinstance(own, Sparse) or not sparse_first(operator, first.shape[-2], first.shape[-1], layer == 0):
        z = summed(linear(own, first))
    else:
        z = linear(summed(own), first)
    return shifted(linear(act(shifted(z, shift)), second), bias)


def attentive(
    batch: Batch, layer: int, states: Sequence[Tensor | Sparse], weights: Sequence[Tensor], heads: int
) -> Tensor:
    """Return ``sum_j alpha_ij W h_j + b`` of every head, next to each other, or averaged where b has one width."""
    weight, centre, neighbour, bias = weights
    operator = batch.operators[layer][0]
    assert operator is not None
    z = operator.extend(linear(states[0], weight))
    scores = linear(z, torch.cat([by_head(centre, heads), by_head(neighbour, heads)], -1))
    of_centre = batch.first(scores[..., :heads], batch.rows[layer + 1])
    pattern = operator.pattern.repeated(heads * batch.samples)
    each = z.reshape(pattern.shape[1], z.shape[-1] // heads)
    with torch.autocast(z.device.type, enabled=False):
        given = (s.to(pattern.values.dtype) for s in (of_centre.reshape(-1), scores[..., heads:].reshape(-1), each))
        out = attend(pattern, *given)
    out = out.view(*of_centre.shape, each.shape[1])
    return shifted(out.flatten(-2) if bias.shape[-1] == z.shape[-1] else out.mean(-2), bias)


def by_head(vector: Tensor, heads: int) -> Tensor:
    """Return the matrix, shape (.., heads f, heads), that multiplies each head with its part of `vector`."""
    eye = torch.eye(heads, dtype=vector.dtype, device=vector.device)
    parts = vector.view(*vector.shape[:-1], heads, vector.shape[-1] // heads)
    return (parts[..., None] * eye[:, None]).flatten(-3, -2)


# ------------------------------------------------------------------------------------------------ products


def linear(state: Tensor | Sparse, weight: Tensor) -> Tensor:
    """Return H W for one graph, or block by block for weights of shape (p, in, out)."""
    if isinstance(state, Sparse):
        return state @ weight.reshape(-1, weight.shape[-1])
    if weight.dim() == 2:
        if one_dnn(state) and state.numel() >= _TALL and not torch.is_autocast_enabled("cpu"):
            out: Tensor = _Linear.apply(state, weight)  # type: ignore[no-untyped-call]
            return out
        return state @ weight
    blocks = state.reshape(len(weight), -1, weight.shape[1])
    return torch.bmm(blocks, weight).view(*state.shape[:-1], weight.shape[2])


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, state: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(state, weight)
        return tall(state, weight)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, Tensor | None]:
        state, weight = ctx.saved_tensors
        of_state = linear(g.contiguous(), weight.t()) if ctx.needs_input_grad[0] else None
        of_weight = state.flatten(0, -2).t() @ g.flatten(0, -2) if ctx.needs_input_grad[1] else None
        return of_state, of_weight


def shifted(state: Tensor, bias: Tensor) -> Tensor:
    """Return H + b, for biases of shape (p, H) block by block."""
    if bias.dim() == 1:
        return state + bias
    return (state.reshape(len(bias), -1, bias.shape[1]) + bias[:, None]).view(state.shape)


def scaled(state: Tensor, factor: Tensor) -> Tensor:
    """Return H times one factor, shape (1,), or one per block, shape (p, 1)."""
    if factor.dim() == 1:
        return state * factor
    return (state.reshape(len(factor), -1) * factor).view(state.shape)


def applied(operator: Operator, state: Tensor) -> Tensor:
    """Return A H, for all samples at once."""
    out = operator @ state.flatten(1)
    return out if state.dim() == 2 else out.view(len(out), *state.shape[1:])


def sparse_first(operator: Operator, inner: int, outer: int, features: bool = False) -> bool:
    """Whether (A H) W takes fewer multiplications than A (H W), with the derivatives in W, and in H if no `features`.

    The same on all ranks that share the operator.
    """
    m, n, nnz = operator.sizes
    dense, sparse = (2, 1) if features else (3, 2)
    return dense * m * inner * outer + sparse * nnz * inner < dense * n * inner * outer + 2 * nnz * outer


def propagated(operator: Operator, state: Tensor | Sparse, weight: Tensor, features: bool = False) -> Tensor:
    """Return A H W in the cheaper order."""
    if isinstance(state, Sparse) or not sparse_first(operator, weight.shape[-2], weight.shape[-1], features):
        return applied(operator, linear(state, weight))
    return linear(applied(operator, state), weight)
