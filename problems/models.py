"""Graph networks as pure functions of (parameters, operators, features), for one graph or a batch of them.

A layer maps H to ``sum_t (B_t H) W_t + b``: GCN has the one term B = A (normalised adjacency), GraphSAGE has B = I and
B = A (mean over neighbours). Layer l works on the nodes that the outputs depend on and on no others: its operator is
rectangular and the nodes are ordered so that those of a later layer come first. A batch of p graphs, each with its own
parameters, is one block-diagonal graph: sparse products act on all blocks at once and dense ones are batched, no loop.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mldd.flatten import Layout
from mldd.problems.dropout import Dropout
from mldd.problems.operators import Sparse

Kind = Literal["gcn", "sage"]
_TOUCH = 30  # cost of bias, ReLU, softmax and derivatives per state entry, in multiplications (measured)
_TERMS: dict[str, tuple[bool, ...]] = {"gcn": (True,), "sage": (False, True)}  # which terms propagate


# ------------------------------------------------------------------------------------------------ graphs


@dataclass(frozen=True, eq=False)
class Batch:
    """Graphs ready for evaluation: one (``parts`` None) or p with own parameters each, padded to equal numbers of rows.

    Parameters
    ----------
    parts : int or None
        Number p of graphs; None for a single one with parameters of shape (N,).
    rows : tuple of int
        Nodes of every graph that enter layer l (l = 0, ..., L), the last one for the outputs; descending.
    features : tuple of Tensor or Sparse
        Inputs of the first layer: X, or if `propagated` the products B_t X, one per term. Dense of shape (p r, F), or
        block-diagonal of shape (p r, p F).
    propagated : bool
    operators : tuple of tuple of Sparse or None
        B_t of every layer and term, shape (p rows[l + 1], p rows[l]); None is the identity, or applied beforehand.
    nodes : Tensor, shape (p, rows[0]), int64
        Global numbers of the nodes (for dropout); any number at padding.
    targets : Tensor, shape (p rows[L], C)
        Weight of every class in the loss at every output: ``loss = -sum(targets * log_softmax(outputs))``.
    read : tuple of int
        Nodes of every graph, padding excluded.
    """

    parts: int | None
    rows: tuple[int, ...]
    features: tuple[Tensor | Sparse, ...]
    propagated: bool
    operators: tuple[tuple[Sparse | None, ...], ...]
    nodes: Tensor
    targets: Tensor
    read: tuple[int, ...]

    def first(self, state: Tensor, rows: int) -> Tensor:
        """Return the first `rows` nodes of every graph from a state of shape (p r, H)."""
        p = self.parts or 1
        if len(state) == p * rows:
            return state
        return state[:rows] if p == 1 else _blocks(state, p)[:, :rows].flatten(0, 1)

    def work(self, widths: tuple[int, ...]) -> float:
        """Estimate the cost of a sweep: multiplications of all matrix products, and what is done per state entry."""
        entries = [x.values.numel() if isinstance(x, Sparse) else x.numel() for x in self.features]
        terms = len(self.operators[0])
        total = sum(entries) * widths[1] * (1 if self.propagated else terms)
        for layer, operators in enumerate(self.operators):
            total += _TOUCH * (self.parts or 1) * self.rows[layer + 1] * widths[layer + 1]
            narrow = widths[1] if layer == 0 else min(widths[layer : layer + 2])
            total += narrow * sum(0 if b is None else b.values.numel() for b in operators)
            if layer > 0:
                total += terms * (self.parts or 1) * self.rows[layer] * widths[layer] * widths[layer + 1]
        return float(total)

    @cached_property
    def _entries(self) -> Tensor:
        """Numbers of the entries of the features."""
        x, nodes = self.features[0], self.nodes.flatten()
        if isinstance(x, Sparse):
            width = x.shape[1] // (self.parts or 1)
            rows, columns = x.entries
            return nodes[rows] * width + columns % width
        return nodes[:, None] * x.shape[1] + torch.arange(x.shape[1], device=x.device)

    def dropped(self, dropout: Dropout) -> Batch:
        """Return the batch with dropout on its features."""
        x = self.features[0]
        values = x.values if isinstance(x, Sparse) else x
        values = values * dropout.scale(self._entries, 0, values.dtype)
        return replace(self, features=(x.with_values(values) if isinstance(x, Sparse) else values,))

    def scale(self, dropout: Dropout, layer: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return dropout's factors for the state that enters `layer`, shape (p rows[layer], width)."""
        nodes = self.nodes[:, : self.rows[layer]].reshape(-1, 1)
        return dropout.scale(nodes * width + torch.arange(width, device=nodes.device), layer, dtype)


# ------------------------------------------------------------------------------------------------ networks


@dataclass(frozen=True)
class GraphNet:
    """A graph network of any depth: layers of one kind, ReLU between them.

    Parameters
    ----------
    kind : {"gcn", "sage"}
    widths : tuple of int
        Features, hidden widths, classes.

    References
    ----------
    Kipf and Welling, arXiv:1609.02907, equation 2; Hamilton, Ying and Leskovec, arXiv:1706.02216, algorithm 1 (mean).
    """

    kind: Kind
    widths: tuple[int, ...]

    @property
    def layers(self) -> int:
        """Number L of layers."""
        return len(self.widths) - 1

    @cached_property
    def layout(self) -> Layout:
        """Per layer the weights of every term, shape (in, out), then the bias; SAGE: own node, then neighbours."""
        terms = len(_TERMS[self.kind])
        shapes: list[tuple[int, ...]] = []
        for i, o in zip(self.widths, self.widths[1:], strict=False):
            shapes += [(i, o)] * terms + [(o,)]
        return Layout(tuple(shapes), tuple(k for k in range(self.layers) for _ in range(terms + 1)))

    @cached_property
    def units(self) -> Tensor:
        """The unit of its layer that every unknown feeds, shape (N,), int64: the column of a weight."""
        layout = self.layout
        return torch.cat([torch.arange(n) % s[-1] for n, s in zip(layout.sizes, layout.shapes, strict=True)])

    @property
    def decayed(self) -> int:
        """Number of unknowns with weight decay: the weights of the first layer, which come first."""
        return len(_TERMS[self.kind]) * self.widths[0] * self.widths[1]

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's uniform start, biases zero; shape (N,), float64.

        References
        ----------
        Glorot and Bengio, AISTATS 2010, equation 16.
        """
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        for view in self.layout.views(x):
            if view.dim() == 2:
                bound = math.sqrt(6.0 / sum(view.shape))
                view.uniform_(-bound, bound, generator=generator)
        return x

    def outputs(self, parameters: list[Tensor], batch: Batch, scales: list[Tensor] | None = None) -> Tensor:
        """Return the outputs of all graphs, shape (p rows[L], C).

        Parameters
        ----------
        parameters : list of Tensor
            ``layout.views(x)`` of x, shape (N,), or (p, N) for a batch.
        batch : Batch
        scales : list of Tensor, optional
            Dropout's factors of the states that enter layers 1, ..., L - 1; that of the features is in the batch.
        """
        terms = len(_TERMS[self.kind])
        state = batch.features[0]
        for layer in range(self.layers):
            *weights, bias = parameters[layer * (terms + 1) : (layer + 1) * (terms + 1)]
            out: Tensor | None = None
            for t, weight in enumerate(weights):
                done = layer == 0 and batch.propagated
                z = self._term(batch, layer, t, batch.features[t] if done else state, weight)
                out = z if out is None else out + z
            assert out is not None
            state = out + bias if bias.dim() == 1 else (_blocks(out, len(bias)) + bias[:, None]).flatten(0, 1)
            if layer + 1 < self.layers:
                state = torch.relu(state)
                if scales is not None:
                    state = state * scales[layer]
        assert isinstance(state, Tensor)
        return state

    @staticmethod
    def _term(batch: Batch, layer: int, t: int, state: Tensor | Sparse, weight: Tensor) -> Tensor:
        """Return ``(B_t H) W_t``."""
        operator, rows = batch.operators[layer][t], batch.rows[layer + 1]
        if operator is not None:
            return _propagated(operator, state, weight)
        if isinstance(state, Sparse):
            return batch.first(_linear(state, weight), rows)
        return _linear(batch.first(state, rows), weight)


def _blocks(state: Tensor, parts: int) -> Tensor:
    """View a state of shape (p r, H) as (p, r, H)."""
    return state.view(parts, len(state) // parts, -1)


def _linear(state: Tensor | Sparse, weight: Tensor) -> Tensor:
    """Return H W for one graph, or block by block for weights of shape (p, in, out)."""
    if isinstance(state, Sparse):
        return state @ weight.reshape(-1, weight.shape[-1])
    if weight.dim() == 2:
        return state @ weight
    return torch.bmm(_blocks(state, len(weight)), weight).flatten(0, 1)


def _propagated(operator: Sparse, state: Tensor | Sparse, weight: Tensor) -> Tensor:
    """Return A H W in the cheaper order."""
    if isinstance(state, Sparse):
        return operator @ _linear(state, weight)
    (m, n), nnz, (inner, outer) = operator.shape, operator.values.numel(), weight.shape[-2:]
    if m * inner * outer + nnz * inner < n * inner * outer + nnz * outer:
        return _linear(operator @ state, weight)
    return operator @ _linear(state, weight)


def cross_entropy(outputs: Tensor, targets: Tensor, parts: int | None) -> Tensor:
    """Return ``-sum(targets * log_softmax(outputs))``, of shape () or (p,)."""
    terms = targets * torch.log_softmax(outputs, dim=1)
    return -terms.sum() if parts is None else -terms.view(parts, -1).sum(1)
