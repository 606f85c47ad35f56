"""Outputs and gradients of GCN and GraphSAGE in one sweep each, in buffers, block of rows by block of rows.

Written for the CPU, where the time of a plain evaluation of a large graph goes into new memory: a block stays in the
cache between its sparse product, its dense product, bias, ReLU and dropout, and the large arrays are made once. With G
the gradient with respect to the result of a layer, a term ``A (H W)`` has ``V = A^T G``, ``dW = H^T V`` and ``dH = V
W^T``; a term ``(A H) W`` keeps ``P = A H`` and has ``dW = P^T G`` and ``dH = A^T (G W^T)``. What needs a graph of the
gradient goes by autograd.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldd.problems.nets.layers import sparse_first
from mldd.problems.nets.operators import Sparse, add_outer, multiply, one_dnn, tall

if TYPE_CHECKING:
    from mldd.problems.nets.graph_net import Batch, GraphNet

# Entries of a block of rows. With 1e4 to 1e6 nodes and 64 to 256 columns the time varies by 4 % from 2**19 to 2**22, is
# 20 to 25 % longer at 2**17 (calls), and grows again where blocks leave the cache that cores share (measured).
_BLOCK = 2**20
_WEIGHTS = 2**12  # entries of W beyond which oneDNN is worth the copy of its result (measured: 64 x 64 is not)
_LEAST = 2**21  # entries of the first state from which blocks and buffers pay (measured)


def suited(net: GraphNet, batch: Batch) -> bool:
    """Whether there is a sweep for this, and it pays: one large graph, held by this rank, on the CPU.

    Parameters
    ----------
    net : GraphNet
        The network.
    batch : Batch
        What it is evaluated on.
    """
    plain = net.layer.swept and net.activation == "relu" and not net.residual
    operators = [b for layer in batch.operators for b in layer if b is not None]
    one = batch.parts is None and batch.targets.device.type == "cpu"
    large = batch.rows[1] * batch.samples * net.widths[1] >= _LEAST
    return plain and one and large and all(type(b) is Sparse for b in operators)


def outputs(net: GraphNet, parameters: Sequence[Tensor], batch: Batch, scales: list[Tensor] | None) -> Tensor:
    """Return the outputs, shape (rows[L], S C), differentiable any number of times in the parameters.

    Parameters
    ----------
    net : GraphNet
        The network.
    parameters : list of Tensor
        Tensors of the network, views of its parameters.
    batch : Batch
        One for which `suited` holds.
    scales : list of Tensor, optional
        Dropout's factors of the states between the layers.
    """
    if torch.is_grad_enabled() and any(p.requires_grad for p in parameters):
        out: Tensor = _Swept.apply(net, batch, scales, *parameters)  # type: ignore[no-untyped-call]
        return out
    evaluation = Evaluation(net, batch, scales, parameters)
    out = evaluation.forward()
    evaluation.release()
    return out


class _Swept(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, net: GraphNet, batch: Batch, scales: list[Tensor] | None, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        ctx.given = net, batch, scales
        evaluation = Evaluation(net, batch, scales, parameters)
        ctx.evaluation = evaluation
        return evaluation.forward()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        parameters, (net, batch, scales) = ctx.saved_tensors, ctx.given
        evaluation, ctx.evaluation = ctx.evaluation, None
        if torch.is_grad_enabled():
            if evaluation is not None:
                evaluation.release()
            out = net.graph(list(parameters), batch, scales)
            return None, None, None, *torch.autograd.grad(out, parameters, g, create_graph=True)
        if evaluation is None:  # swept before, with `retain_graph`
            evaluation = Evaluation(net, batch, scales, parameters)
            evaluation.forward()
        found = evaluation.backward(g.contiguous())
        evaluation.release()
        return None, None, None, *found


class SweepBuffers:
    """The large arrays of an evaluation, made when they are first asked for."""

    def __init__(self) -> None:
        self._made: dict[Any, Tensor] = {}

    def get(self, name: Any, rows: int, width: int, like: Tensor) -> Tensor:
        """Return an array of this shape, with anything in it.

        Parameters
        ----------
        name : any hashable
            Which array.
        rows : int
            Rows of the array.
        width : int
            Columns of the array.
        like : Tensor
            Its dtype and device are taken.
        """
        size = rows * width
        if name not in self._made or self._made[name].numel() < size:
            self._made[name] = like.new_empty(size)
        return self._made[name][:size].view(rows, width)


@dataclass(frozen=True, eq=False)
class Term:
    """One summand of a layer: its number, operator B, input H, weight W, and whether B comes before W.

    Parameters
    ----------
    layer : int
        Number of the layer.
    number : int
        Number of the term in its layer.
    operator : Sparse or None
        B; None is the identity, or applied beforehand.
    x : Tensor or Sparse
        H.
    weight : Tensor
        W.
    early : bool
        Whether B H is computed first.
    """

    layer: int
    number: int
    operator: Sparse | None
    x: Tensor | Sparse
    weight: Tensor
    early: bool


class Evaluation:
    """One evaluation: forward keeps the states that backward needs; buffers go back to the network by `release`.

    Parameters
    ----------
    net : GraphNet
        The network.
    batch : Batch
        Graphs, features and targets.
    scales : list of Tensor, optional
        Dropout's factors of the states between the layers.
    parameters : sequence of Tensor
        Tensors of the network.
    """

    def __init__(self, net: GraphNet, batch: Batch, scales: list[Tensor] | None, parameters: Sequence[Tensor]) -> None:
        self.net, self.batch, self.scales = net, batch, scales
        count = len(parameters) // net.layers
        self.weights = [[p.detach() for p in parameters[k * count : (k + 1) * count]] for k in range(net.layers)]
        self.key = (batch.rows, batch.samples, parameters[0].dtype)
        spare = net.spare.setdefault(self.key, [])
        self.buffers = spare.pop() if spare else SweepBuffers()
        self.states: list[Tensor] = []
        self.step = max(1, _BLOCK // (batch.samples * max(net.widths[1:])))

    def release(self) -> None:
        """Leave the buffers to the next evaluation of this kind."""
        self.net.spare[self.key].append(self.buffers)

    def _ranges(self, rows: int) -> Iterator[tuple[int, int]]:
        return ((a, min(a + self.step, rows)) for a in range(0, rows, self.step))

    def _get(self, name: Any, rows: int, width: int) -> Tensor:
        return self.buffers.get(name, rows, width * self.batch.samples, self.weights[0][0])

    def _terms(self, layer: int) -> Iterator[Term]:
        batch = self.batch
        for t, (operator, weight) in enumerate(zip(batch.operators[layer], self.weights[layer], strict=False)):
            assert operator is None or isinstance(operator, Sparse)
            x: Tensor | Sparse = batch.features[t if batch.propagated else 0] if layer == 0 else self.states[layer - 1]
            early = False
            if operator is not None and not isinstance(x, Sparse):
                early = sparse_first(operator, weight.shape[0], weight.shape[1], layer == 0)
            yield Term(layer, t, operator, x, weight, early)

    def _kept(self, term: Term, rows: int) -> Tensor:
        """Return the array for B H."""
        return self._get(("early", term.layer, term.number), rows, len(term.weight))

    # ------------------------------------------------------------------------------------------------ forward

    def forward(self) -> Tensor:
        """Return the outputs."""
        widths, rows = self.net.widths, self.batch.rows
        for layer in range(self.net.layers - 1):
            out = self._get(("state", layer), rows[layer + 1], widths[layer + 1])
            self._layer(layer, out)
            self.states.append(out)
        out = self.weights[0][0].new_empty(rows[-1], widths[-1] * self.batch.samples)
        self._layer(self.net.layers - 1, out)
        return out

    def _layer(self, layer: int, out: Tensor) -> None:
        """Write the state behind a layer."""
        bias, last = self.weights[layer][-1], layer + 1 == self.net.layers
        terms = [(term, self._multiplied(term)) for term in self._terms(layer)]
        for k, (a, b) in enumerate(self._ranges(len(out))):
            block = out[a:b].view(-1, len(bias))
            for term, z in terms:
                self._add(block, term, z, k, (a, b), None if term.number else bias)
            if not last:
                block.relu_()
                if self.scales is not None:
                    out[a:b] *= self.scales[layer][a:b].reshape(b - a, -1)

    def _multiplied(self, term: Term) -> Tensor | None:
        """Return H W where the operator comes last or H is sparse, else None."""
        x, weight = term.x, term.weight
        if isinstance(x, Sparse):
            return multiply(x.matrix, weight)
        if term.operator is None or term.early:
            return None
        z = self._get("product", len(x), weight.shape[1])
        for a, b in self._ranges(len(x)):
            _product(z[a:b].view(-1, weight.shape[1]), x[a:b].view(-1, len(weight)), weight)
        return z

    def _add(
        self, block: Tensor, term: Term, z: Tensor | None, k: int, rows: tuple[int, int], bias: Tensor | None
    ) -> None:
        """Add a term to block k; write it and the bias where there is one."""
        a, b = rows
        if z is not None:
            z = z[a:b] if term.operator is None else multiply(term.operator.blocks(self.step)[k], z)
            torch.add(z.view(block.shape), block if bias is None else bias, out=block)
            return
        assert isinstance(term.x, Tensor)
        own = term.x[a:b]
        if term.operator is not None:
            own = self._kept(term, term.operator.shape[0])[a:b]
            own.copy_(multiply(term.operator.blocks(self.step)[k], term.x))
        _product(block, own.reshape(-1, len(term.weight)), term.weight, bias, add=bias is None)

    # ------------------------------------------------------------------------------------------------ backward

    def backward(self, g: Tensor) -> list[Tensor]:
        """Return the gradients with respect to the parameters, from that with respect to the outputs.

        Parameters
        ----------
        g : Tensor, shape (rows[L], S C)
            Gradient with respect to the outputs.
        """
        found: list[Tensor] = []
        for layer in reversed(range(self.net.layers)):
            of_bias = g.view(-1, self.net.widths[layer + 1]).sum(0)
            below = None
            if layer > 0:
                below = self._get(("gradient", layer % 2), self.batch.rows[layer], self.net.widths[layer])
            found = [*(self._back(term, g, below) for term in self._terms(layer)), of_bias, *found]
            if below is not None:
                g = below
        return found

    def _back(self, term: Term, g: Tensor, below: Tensor | None) -> Tensor:
        """Return the gradient of a weight; write that of the state, or add to it from the second term on."""
        x, operator = term.x, term.operator
        if isinstance(x, Sparse):
            if operator is not None:
                return multiply(x.transposed, multiply(operator.transposed, g))
            # features behind the first rows do not enter
            return multiply(x.transposed, torch.nn.functional.pad(g, (0, 0, 0, x.shape[0] - len(g))))
        return self._back_early(term, g, below) if term.early else self._back_late(term, x, g, below)

    def _back_early(self, term: Term, g: Tensor, below: Tensor | None) -> Tensor:
        """Of ``(A H) W``."""
        weight, of_weight, kept = term.weight, torch.zeros_like(term.weight), self._kept(term, len(g))
        back = None if below is None else self._get("product", len(g), len(weight))
        for a, b in self._ranges(len(g)):
            rows = g[a:b].view(-1, weight.shape[1])
            add_outer(of_weight, kept[a:b].view(-1, len(weight)), rows)
            if back is not None:
                _product(back[a:b].view(-1, len(weight)), rows, weight.t())
        if below is not None and back is not None and term.operator is not None:
            for k, (a, b) in enumerate(self._ranges(len(below))):
                _write(below[a:b], multiply(term.operator.t.blocks(self.step)[k], back), term.number == 0)
                self._through(term, below, a, b)
        return of_weight

    def _back_late(self, term: Term, x: Tensor, g: Tensor, below: Tensor | None) -> Tensor:
        """Of ``A (H W)``, and of H W for the first rows of H."""
        weight, of_weight, operator = term.weight, torch.zeros_like(term.weight), term.operator
        for k, (a, b) in enumerate(self._ranges(len(g) if operator is None and below is None else len(x))):
            sent = g[a:b] if operator is None else multiply(operator.t.blocks(self.step)[k], g)
            m, rows = len(sent), sent.view(-1, weight.shape[1])
            add_outer(of_weight, x[a : a + m].reshape(-1, len(weight)), rows)
            if below is not None:
                _product(below[a : a + m].view(-1, len(weight)), rows, weight.t(), add=term.number > 0)
                if term.number == 0:
                    below[a + m : b] = 0.0
                self._through(term, below, a, b)
        return of_weight

    def _through(self, term: Term, g: Tensor, a: int, b: int) -> None:
        """Take a block of the gradient back through dropout and ReLU, with the last term, which completes it."""
        if term.number + 1 < len(self.batch.operators[term.layer]):
            return
        if self.scales is not None:
            g[a:b] *= self.scales[term.layer - 1][a:b].reshape(b - a, -1)
        torch.ops.aten.threshold_backward(g[a:b], self.states[term.layer - 1][a:b], 0.0, grad_input=g[a:b])


# ------------------------------------------------------------------------------------------------ blocks


def _write(target: Tensor, new: Tensor, first: bool) -> None:
    if first:
        target.copy_(new)
    else:
        target.add_(new)


def _product(target: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None = None, *, add: bool = False) -> None:
    """Write X W (+ b), or add it."""
    if one_dnn(x) and weight.numel() > _WEIGHTS:
        _write(target, tall(x, weight, bias), not add)
    elif add:
        target.addmm_(x, weight)
    elif bias is None:
        torch.mm(x, weight, out=target)
    else:
        torch.addmm(bias, x, weight, out=target)
