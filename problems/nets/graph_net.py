"""Graph networks as pure functions of (parameters, operators, features), for one graph or a batch of them.

Layer l (`mldd.problems.nets.layers`) works on the nodes that the outputs depend on and on no others: its operator
is rectangular and the nodes are ordered so that those of a later layer come first. A batch of p graphs, each with its
own parameters, is one block-diagonal graph: sparse products act on all blocks at once and dense ones are batched, no
loop.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Layout
from mldd.problems.nets import graph_sweeps as sweeps
from mldd.problems.nets.dropout import Dropout
from mldd.problems.nets.layers import Layer, layer_of
from mldd.problems.nets.operators import Operator, Sparse

GraphActivation = Literal["relu", "gelu", "tanh", "elu"]
# In place where the derivative needs the result alone.
GRAPH_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "gelu": torch.nn.functional.gelu,
    "tanh": torch.tanh_,
    "elu": torch.nn.functional.elu,
}
_CALL = 4e5  # cost per layer of a sweep of whatever size: calls, small tensors (measured, in multiplications)
_DRAW = 28  # cost of drawing dropout for an entry of features or states
_TOUCH = 30  # cost of bias, ReLU, softmax and derivatives per state entry, in multiplications (measured)


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
        Inputs of the first layer: X, or if `propagated` the products B_t X, one per term. Dense of shape (p r, S F), or
        block-diagonal of shape (p r, p F), where S must be 1.
    propagated : bool
        Whether A has been applied to the features.
    operators : tuple of tuple of Operator or None
        B_t of every layer and term, shape (p rows[l + 1], p rows[l]); None is the identity, or applied beforehand.
    nodes : Tensor, shape (p, rows[0]), int64
        Global numbers of the nodes (for dropout); any number at padding.
    targets : Tensor, shape (p rows[L], S C)
        Weight of every class in the loss at every output: ``loss = -sum(targets * log_softmax(outputs))``.
    read : tuple of int
        Nodes of every graph, padding excluded.
    samples : int
        Number S of samples that share the graphs and the parameters: sparse products act on all of them at once.
    attributes : tuple of Tensor, shape (nnz, k)
        Per layer the attributes of edges, in the order of the entries of its operator; empty where there are none.
    """

    parts: int | None
    rows: tuple[int, ...]
    features: tuple[Tensor | Sparse, ...]
    propagated: bool
    operators: tuple[tuple[Operator | None, ...], ...]
    nodes: Tensor
    targets: Tensor
    read: tuple[int, ...]
    samples: int = 1
    attributes: tuple[Tensor, ...] = ()

    def first(self, state: Tensor, rows: int) -> Tensor:
        """Return the first nodes of every graph.

        Parameters
        ----------
        state : Tensor, shape (p r, H) or (p r, S, H)
            States of the nodes.
        rows : int
            How many nodes of every graph.
        """
        p = self.parts or 1
        if len(state) == p * rows:
            return state
        return state[:rows] if p == 1 else state.view(p, len(state) // p, *state.shape[1:])[:, :rows].flatten(0, 1)

    def work(self, widths: tuple[int, ...], drawn: bool = False) -> float:
        """Return an estimate of the cost of a sweep: multiplications of matrix products, work per entry, and calls.

        Parameters
        ----------
        widths : tuple of int
            Of features, hidden states and outputs.
        drawn : bool
            Whether dropout is drawn for it.
        """
        entries = [x.nnz if isinstance(x, Sparse) else x.numel() for x in self.features]
        terms, graphs = len(self.operators[0]), (self.parts or 1) * self.samples
        total = _CALL * len(self.operators) + sum(entries) * widths[1] * (1 if self.propagated else terms)
        if drawn:
            hidden = sum(rows * width for rows, width in zip(self.rows[1:], widths[1:-1], strict=False))
            total += _DRAW * (sum(entries) + graphs * hidden)
        for layer, operators in enumerate(self.operators):
            total += _TOUCH * graphs * self.rows[layer + 1] * widths[layer + 1]
            narrow = widths[1] if layer == 0 else min(widths[layer : layer + 2])
            total += self.samples * narrow * sum(0 if b is None else b.nnz for b in operators)
            if layer > 0:
                total += terms * graphs * self.rows[layer] * widths[layer] * widths[layer + 1]
        return float(total)

    def states(self, stored: Tensor) -> Tensor:
        """Return what is stored as (p r, S F) as states of shape (p r, S, F); for one sample both are (p r, F).

        Parameters
        ----------
        stored : Tensor, shape (p r, S F)
            Samples side by side.
        """
        rows, columns = stored.shape
        return stored if self.samples == 1 else stored.view(rows, self.samples, columns // self.samples)

    @cached_property
    def _entries(self) -> Tensor:
        """Numbers of the entries of the features."""
        x, nodes = self.features[0], self.nodes.flatten()
        if isinstance(x, Sparse):
            width = x.shape[1] // (self.parts or 1)
            rows, columns = x.entries
            return nodes[rows] * width + columns % width
        return nodes[:, None] * x.shape[1] + torch.arange(x.shape[1], device=x.device)

    def with_dropout(self, dropout: Dropout | None, widths: tuple[int, ...]) -> tuple[Batch, list[Tensor] | None]:
        """Return the batch with dropout on its features, and the factors of the states between the layers.

        Parameters
        ----------
        dropout : Dropout, optional
            None drops nothing.
        widths : tuple of int
            Features, hidden widths, classes.
        """
        if dropout is None:
            return self, None
        dtype = self.targets.dtype
        return self.dropped(dropout), [self.scale(dropout, k, widths[k], dtype) for k in range(1, len(widths) - 1)]

    def dropped(self, dropout: Dropout) -> Batch:
        """Return the batch with dropout on its features.

        Parameters
        ----------
        dropout : Dropout
            Which entries are dropped.
        """
        x = self.features[0]
        values = x.values if isinstance(x, Sparse) else x
        values = values * dropout.scale(self._entries, 0, values.dtype)
        return replace(self, features=(x.with_values(values) if isinstance(x, Sparse) else values,))

    def scale(self, dropout: Dropout, layer: int, width: int, dtype: torch.dtype) -> Tensor:
        """Return dropout's factors for the state that enters `layer`, shape (p rows[layer], [S,] width).

        Parameters
        ----------
        dropout : Dropout
            Which entries are dropped.
        layer : int
            Number of the layer.
        width : int
            Columns of its state.
        dtype : dtype
            Of the factors.
        """
        nodes, row = self.nodes[:, : self.rows[layer]].reshape(-1, 1), self.samples * width
        return self.states(dropout.scale(nodes * row + torch.arange(row, device=nodes.device), layer, dtype))


# ------------------------------------------------------------------------------------------------ networks


@dataclass(frozen=True)
class GraphNet:
    """A graph network of any depth: layers of one kind with an activation between them.

    Parameters
    ----------
    kind : str
        gcn, sage, gin, gat, gatv2, transformer or another one of `mldd.problems.nets.layers`, or ``file.py:Class``.
    widths : tuple of int
        Features, hidden widths, classes.
    heads : int
        Of attention: they share the hidden width, and are averaged in the last layer.
    activation : {"relu", "gelu", "tanh", "elu"}
        Between the layers, and inside of those of GIN.
    residual : bool
        ``H + act(layer(H))`` from the second layer on wherever the widths agree.
    edge_attributes : int
        Numbers that every edge of the graphs has, where the layer takes them.

    Raises
    ------
    ValueError
        An unknown choice, fewer than two widths, heads that do not divide a hidden width, attributes of edges for a
        layer that takes none.
    """

    kind: str
    widths: tuple[int, ...]
    heads: int = 1
    activation: GraphActivation = "relu"
    residual: bool = False
    edge_attributes: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no network."""
        if self.activation not in GRAPH_ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(GRAPH_ACTIVATIONS)}, got {self.activation!r}")
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"`widths` must be at least two numbers >= 1, got {self.widths}")
        layer = layer_of(self.kind)
        if self.heads < 1 or (self.heads > 1 and not layer.many_heads):
            raise ValueError(f"`heads` must be >= 1, and 1 for {self.kind!r}, which has none, got {self.heads}")
        if any(width % self.heads for width in self.widths[1:-1]):
            raise ValueError(f"`heads` must divide every hidden width of {self.widths}, got {self.heads}")

        if self.edge_attributes < 0 or (self.edge_attributes and not layer.edge_inputs):
            least = f"0 for {self.kind!r}, which takes none" if not layer.edge_inputs else ">= 0"
            raise ValueError(f"`edge_attributes` must be {least}, got {self.edge_attributes}")

    @cached_property
    def spare(self) -> dict[Any, list[sweeps.SweepBuffers]]:
        """Buffers that no evaluation uses."""
        return {}

    @property
    def layer(self) -> Layer:
        """The kind of its layers."""
        return layer_of(self.kind)

    @property
    def layers(self) -> int:
        """Number L of layers."""
        return len(self.widths) - 1

    @cached_property
    def _tensors(self) -> list[dict[str, tuple[int, ...]]]:
        return [self.tensors(layer) for layer in range(self.layers)]

    def tensors(self, layer: int) -> dict[str, tuple[int, ...]]:
        """Return names and shapes of the parameters of a layer.

        Parameters
        ----------
        layer : int
            Its number, from 0.
        """
        inner, outer = self.widths[layer : layer + 2]
        return self.layer.tensors(inner, outer, self.heads, layer + 1 == self.layers, self.edge_attributes)

    @cached_property
    def layout(self) -> Layout:
        """Per layer the tensors that `mldd.problems.nets.layers.Layer.tensors` names, in that order."""
        shapes = [shape for named in self._tensors for shape in named.values()]
        return Layout(tuple(shapes), tuple(k for k, named in enumerate(self._tensors) for _ in named))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the layout: ``layers.0.weight``."""
        return tuple(f"layers.{k}.{name}" for k, named in enumerate(self._tensors) for name in named)

    @property
    def decayed(self) -> int:
        """Number of unknowns with weight decay: the weights that take in the features, which come first."""
        return sum(math.prod(self._tensors[0][name]) for name in self.layer.inputs)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's uniform start; biases and the eps of GIN are zero; shape (N,), float64.

        The vectors of GAT's scores are taken as the linear map of the 2 f states of an edge to one score.

        References
        ----------
        Glorot and Bengio, AISTATS 2010, equation 16.
        """
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        names = [name for named in self._tensors for name in named]
        for name, view in zip(names, self.layout.views(x), strict=True):
            fans = sum(view.shape) if view.dim() == 2 else 2 * len(view) // self.heads + 1
            if view.dim() == 2 or name in self.layer.scores:
                bound = math.sqrt(6.0 / fans)
                view.uniform_(-bound, bound, generator=generator)
        return x

    def outputs(self, parameters: list[Tensor], batch: Batch, scales: list[Tensor] | None = None) -> Tensor:
        """Return the outputs of all graphs, shape (p rows[L], S C).

        Parameters
        ----------
        parameters : list of Tensor
            ``layout.views(x)`` of x, shape (N,), or (p, N) for a batch.
        batch : Batch
            Graphs, features and targets.
        scales : list of Tensor, optional
            Dropout's factors of the states that enter layers 1, ..., L - 1; that of the features is in the batch.
        """
        if sweeps.suited(self, batch):
            return sweeps.outputs(self, parameters, batch, scales)
        return self.graph(parameters, batch, scales)

    def graph(self, parameters: list[Tensor], batch: Batch, scales: list[Tensor] | None = None) -> Tensor:
        """Return `outputs` as a graph of autograd's own operations.

        Parameters
        ----------
        parameters : list of Tensor
            Tensors of the network, views of its parameters.
        batch : Batch
            Graphs, features and targets.
        scales : list of Tensor, optional
            As for `outputs`.
        """
        inputs = [x if isinstance(x, Sparse) else batch.states(x) for x in batch.features]
        given = inputs if batch.propagated else inputs * len(self.layer.terms)
        state: Tensor = batch.targets  # any tensor: that before the first layer is not looked at
        count, act = len(self._tensors[0]), GRAPH_ACTIVATIONS[self.activation]
        for layer in range(self.layers):
            weights = parameters[layer * count : (layer + 1) * count]
            out = self.layer(batch, layer, given, weights, act, self.heads)
            if layer + 1 < self.layers:
                out = act(out)
            if self.residual and layer > 0 and self.widths[layer] == self.widths[layer + 1]:
                out = out + batch.first(state, batch.rows[layer + 1])
            state = out if scales is None or layer + 1 == self.layers else out * scales[layer]
            given = [state] * len(self.layer.terms)
        return state.flatten(1)


def cross_entropy(outputs: Tensor, targets: Tensor, parts: int | None, samples: int = 1) -> Tensor:
    """Return ``-sum(targets * log_softmax(outputs))``, of shape () or (p,), for outputs of shape (p r, S C).

    Parameters
    ----------
    outputs : Tensor, shape (p r, S C)
        Outputs of the network.
    targets : Tensor, shape (p r, S C)
        Weight of every class.
    parts : int or None
        Number p of graphs with parameters of their own; None for one value of shape ().
    samples : int
        Number S of samples side by side.
    """
    shape = (parts or 1, -1, outputs.shape[1] // samples)
    value: Tensor = _CrossEntropy.apply(outputs.reshape(shape), targets.reshape(shape))  # type: ignore[no-untyped-call]
    return value[0] if parts is None else value


class _CrossEntropy(torch.autograd.Function):
    """The loss of p graphs; its gradient ``softmax(z) sum_c Y_c - Y`` needs one new array."""

    @staticmethod
    def forward(ctx: Any, outputs: Tensor, targets: Tensor) -> Tensor:
        logarithm = torch.log_softmax(outputs, 2)
        ctx.save_for_backward(outputs, targets)
        ctx.logarithm = logarithm
        value: Tensor = torch.linalg.vecdot(targets.flatten(1), logarithm.flatten(1))
        return -value

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None]:
        outputs, targets = ctx.saved_tensors
        total, logarithm = targets.sum(2, keepdim=True), ctx.logarithm
        if torch.is_grad_enabled():
            return (torch.softmax(outputs, 2) * total - targets) * g[:, None, None], None
        exponential: Tensor = logarithm.exp()
        return exponential.mul_(total).sub_(targets).mul_(g[:, None, None]), None
