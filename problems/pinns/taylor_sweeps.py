"""Streams of values and derivatives through a network and back, in buffers and without autograd.

The streams are those of `mldd.problems.pinns.taylor`. With the adjoints a, a_k, a_kk of the streams h, h_k, h_kk, those
of z
are::

    d a - 2 t sum_k (h_k a_k + h_kk a_kk) - 2 sum_k h_k^2 a_kk,    d a_k - 4 t h_k a_kk,    d a_kk

so that the sweep back needs t, d and the streams of h alone. In the buffers streams have the shape (p, features, S,
points): products with narrow matrices are fastest with the points last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from mldd.problems.pinns.taylor import Streams

_SLOPE = 10.0  # n in tanh(n a z)
Linear = tuple[Tensor, Tensor, Tensor | None]


def scaled(layers: Iterable[Linear]) -> list[Linear]:
    """Return weights and bias of every layer, times n a where the layer has a scale, and this factor.

    Parameters
    ----------
    layers : iterable
        Weights, bias and scale of every layer.
    """
    return [
        (w, b, None) if a is None else ((_SLOPE * a)[..., None] * w, _SLOPE * a * b, _SLOPE * a) for w, b, a in layers
    ]


class Stack:
    """All streams of one layer, shape (p, w, S, m), and the views of them that the sweeps work on.

    Parameters
    ----------
    streams : Streams
        The points and derivatives that are asked for.
    whole : Tensor, shape (p, w, S, m)
        All streams of the layer.
    """

    def __init__(self, streams: Streams, whole: Tensor) -> None:
        first = 1 + len(streams.slopes) - len(streams.bends)
        self.all = whole
        self.flat = whole.flatten(2)
        self.turned = self.flat.transpose(1, 2)
        self.each = whole.unbind(2)
        self.value = self.each[0]
        self.derivatives = whole[:, :, 1:]
        self.bent = slice(first, 1 + len(streams.slopes))
        self.column = self.value[:, :, None]
        self.curved = whole[:, :, self.bent]  # the first derivatives that have a second one
        self.second = whole[:, :, self.bent.stop :]


class StreamEvaluation:
    """One evaluation of p networks: the streams of every layer, and what the sweep back writes to.

    Products give the streams of 2 z, and take adjoints of those, because ``t = 2 / (1 + exp(-2 z)) - 1``.

    Attributes
    ----------
    streams : Tensor, shape (..., S, m, outputs)
        The result; it is written to again after `release`.
    key : tuple
        What evaluations that can share buffers have in common: networks, points, orders, dtype, device.
    source : Streams
        The points and derivatives that are asked for.
    """

    def __init__(self, key: tuple[Any, ...], source: Streams) -> None:
        batch, m = key[:2]
        p, net, like = max(1, batch), source.net, source.points

        def stack(width: int) -> Stack:
            return Stack(source, like.new_empty((p, width, source.count, m)))

        residual, hidden = net.kind == "residual", net.widths[1:-1]
        self.residual, self.layers = residual, net.layers
        self.bound: tuple[Streams, Sequence[Tensor]] | None = None
        shared = {w: (stack(w), stack(w), stack(w)) for w in set(hidden)}
        self.key, self.net, self.batch = key, net, batch > 0
        self.minus, self.half = like.new_tensor(-1.0), like.new_tensor(0.5)
        self.count, self.bends = source.count, len(source.bends)
        self.hidden = [stack(w) for w in hidden]
        self.states = [stack(h.all.shape[1]) if residual and k else h for k, h in enumerate(self.hidden)]
        self.outputs = stack(net.widths[-1])
        streams = self.outputs.all.permute(0, 2, 3, 1)
        self.streams = streams if batch else streams[0]
        self.slope = [like.new_empty((p, w, m)) for w in hidden]  # d / 2
        self.slopes = [slope[:, :, None] for slope in self.slope]
        self.scratch = [shared[w][2] for w in hidden]
        # adjoints of the states: one is read while that of the layer below is written, except in a residual network,
        # where the one is added to the other, and the adjoints of z have a stack of their own
        self.adjoints = [shared[w][0 if residual else k % 2] for k, w in enumerate(hidden)]
        self.inner = [
            shared[w][1] if residual and k else a for (k, w), a in zip(enumerate(hidden), self.adjoints, strict=True)
        ]

    def release(self) -> None:
        """Leave the buffers to the next evaluation of this kind."""
        self.net._spare.setdefault(self.key, []).append(self)

    def backward(self, g: Tensor, out: Sequence[Tensor]) -> None:
        """Write the gradient with respect to the parameters to `out`, shaped as they are, and release the buffers.

        Parameters
        ----------
        g : Tensor, shape (..., S, m, outputs)
            The gradient with respect to `streams`.
        out : sequence of Tensor
            Gets the gradient, shaped as the parameters.
        """
        with torch.no_grad():
            self._backward(g if self.batch else g[None], out if self.batch else [t[None] for t in out])
        self.release()

    def squash(self, layer: int) -> None:
        """Turn 2 z into t, and write d / 2.

        Parameters
        ----------
        layer : int
            Number of the layer.
        """
        t = self.hidden[layer].value.sigmoid_()
        # 2 / (1 + exp(-2 z)) - 1 is tanh up to rounding errors relative to 1, in a quarter of its time
        torch.add(self.minus, t, alpha=2.0, out=t)
        torch.addcmul(self.half, t, t, value=-0.5, out=self.slope[layer])

    def enter(self) -> None:
        """Write the streams of h of the first layer, where derivatives of z are constant."""
        h = self.hidden[0]
        torch.baddbmm(self.biases[0], self.weights[0], self.points, beta=2.0, alpha=2.0, out=h.value)
        self.squash(0)
        for k, column in enumerate(self.inputs, start=1):
            twice = 2.0 * column
            torch.mul(self.slope[0], twice, out=h.each[k])
            if k >= h.bent.start:
                torch.mul(h.value, h.each[k], out=h.each[k + self.bends]).mul_(-twice)

    def activate(self, layer: int) -> None:
        """Turn the streams of 2 z into those of h: ``h_k = d/2 z_k``, ``h_kk = d/2 (z_kk - t z_k^2)``.

        Parameters
        ----------
        layer : int
            Number of the layer.
        """
        self.squash(layer)
        z = self.hidden[layer]
        if self.bends:
            scratch = torch.mul(z.curved, z.column, out=self.scratch[layer].curved)
            z.second.addcmul_(scratch, z.curved, value=-1.0)
        if self.count > 1:
            z.derivatives.mul_(self.slopes[layer])

    def pull(self, layer: int) -> Stack:
        """Return the adjoints of the streams of 2 z, made from those of h in `inner`.

        Parameters
        ----------
        layer : int
            Number of the layer.
        """
        h, a, scratch = self.hidden[layer], self.inner[layer], self.scratch[layer]
        if self.count == 1:
            a.all.mul_(self.slopes[layer])
            return a
        total = torch.mul(a.each[1], h.each[1], out=scratch.value)
        for k in range(2, self.count):
            total.addcmul_(a.each[k], h.each[k])
        if self.bends:
            torch.mul(h.curved, a.second, out=scratch.second)
        a.all.mul_(self.slopes[layer])
        a.value.addcmul_(h.value, total, value=-1.0)
        if self.bends:
            a.curved.addcmul_(h.column, scratch.second, value=-2.0)
        for k in range(h.bent.start, h.bent.stop):
            a.value.addcmul_(h.each[k], scratch.each[k + self.bends], value=-1.0)
        return a

    def bind(self, source: Streams, layers: Sequence[Linear]) -> None:
        """Make the views of points and of (scaled) weights and biases that the sweeps need.

        Parameters
        ----------
        source : Streams
            The points and derivatives that are asked for.
        layers : sequence
            Weights, bias and scale of every layer.
        """
        self.weights = [weight for weight, _, _ in layers]
        self.biases = [bias[..., None] for _, bias, _ in layers]
        self.down = [weight.transpose(1, 2) for weight in self.weights]
        self.inputs = [self.weights[0][:, :, k, None] for k in source.slopes]
        columns = source.columns.expand(len(self.weights[0]), -1, -1)
        self.points, self.turned = columns[..., : source.points.shape[-2]], columns.transpose(1, 2)

    def _forward(self, source: Streams, parameters: Sequence[Tensor]) -> None:
        """Propagate all streams through all layers."""
        # views of the same tensors are made once; a tuple still has those it had, and scales are multiplied anew
        bound = (source, parameters) if isinstance(parameters, tuple) and not self.residual else None
        if bound is None or self.bound is None or bound[0] is not self.bound[0] or bound[1] is not self.bound[1]:
            self.linear = list(self.net.linear(parameters if self.batch else [t[None] for t in parameters]))
            self.bind(source, scaled(self.linear))
            self.bound = bound
        self.rise(0, None)

    def rise(self, first: int, state: Stack | None) -> None:
        """Propagate all streams from `state`, that below layer `first` (None for the input), to the output.

        Parameters
        ----------
        first : int
            Number of the first layer.
        state : Stack or None
            The streams below the first layer, None for the input.
        """
        for layer in range(first, self.layers):
            last = layer + 1 == self.layers
            h, alpha = (self.outputs, 1.0) if last else (self.hidden[layer], 2.0)
            if state is None:
                self.enter()
            else:
                h.flat.baddbmm_(self.weights[layer], state.flat, beta=0.0, alpha=alpha)
                h.value.add_(self.biases[layer], alpha=alpha)
                if last:
                    break
                self.activate(layer)
                if self.residual:
                    torch.add(state.all, h.all, alpha=self.net.step, out=self.states[layer].all)
            state = self.states[layer]

    def _backward(self, g: Tensor, out: Sequence[Tensor]) -> None:
        """Take the adjoints back through all layers."""
        self.sink(g, out, range(self.layers), None)
        if self.residual:
            unscale(self.linear, list(self.net.linear(out)))

    def sink(self, g: Tensor, out: Sequence[Tensor], layers: range, state: Stack | None) -> None:
        """Write the gradient with respect to the (scaled) weights and biases of `layers`, above `state`, to `out`.

        Parameters
        ----------
        g : Tensor, shape (..., S, m, outputs)
            Gradient with respect to the streams of the output.
        out : sequence of Tensor
            Gets the gradient, shaped as the parameters.
        layers : range
            Layers whose gradient is asked for.
        state : Stack or None
            The streams below the first layer, None for the input.
        """
        gradients = list(self.net.linear(out))
        a, alpha = self.outputs, 1.0
        a.all.copy_(g.permute(0, 3, 1, 2))
        for layer in reversed(range(layers.start, self.layers)):
            if layer < layers.stop:
                below = state if layer == layers.start else self.states[layer - 1]
                turned = self.turned if below is None else below.turned
                gradients[layer][0].baddbmm_(a.flat, turned, beta=0.0, alpha=alpha)
                torch.sum(a.value, -1, out=gradients[layer][1])
                if layer + 1 < self.layers:
                    gradients[layer][1].mul_(alpha)
            if layer == layers.start:
                break
            self.descend(layer, a, alpha)
            a, alpha = self.pull(layer - 1), 2.0

    def descend(self, layer: int, a: Stack, alpha: float) -> None:
        """Write the adjoints of the streams that `layer` multiplied.

        Parameters
        ----------
        layer : int
            Number of the layer.
        a : Stack
            Adjoints of the streams of 2 z.
        alpha : float
            Factor on the product.
        """
        down, adjoint = self.down[layer], self.adjoints[layer - 1]
        if self.residual and layer + 1 < self.layers:  # the state was added to: its adjoint is, too
            adjoint.flat.baddbmm_(down, a.flat, alpha=alpha)
        elif down.shape[2] == 1 and alpha == 1.0:
            torch.mul(down, a.flat, out=adjoint.flat)
        else:
            adjoint.flat.baddbmm_(down, a.flat, beta=0.0, alpha=alpha)
        if self.inner[layer - 1] is not adjoint:
            torch.mul(adjoint.all, self.net.step, out=self.inner[layer - 1].all)


def unscale(layers: Sequence[Linear], gradients: Sequence[Linear]) -> None:
    """Turn gradients with respect to ``n a W``, ``n a b`` into those with respect to W, b, a.

    Parameters
    ----------
    layers : sequence
        Weights, bias and scale of every layer.
    gradients : sequence
        Gradients with respect to scaled weights and biases, changed to those of the unscaled ones.
    """
    for (weight, bias, scale), (of_weight, of_bias, of_scale) in zip(layers, gradients, strict=True):
        if scale is None or of_scale is None:
            continue
        total = (of_weight * weight).sum((1, 2)) + (of_bias * bias).sum(1)
        torch.mul(total[:, None], _SLOPE, out=of_scale)
        of_weight.mul_((_SLOPE * scale)[..., None])
        of_bias.mul_(_SLOPE * scale)


class Propagation(torch.autograd.Function):
    """The two sweeps as an operation of autograd; what needs a graph of the gradient goes by `Streams.graph`."""

    @staticmethod
    def forward(ctx: Any, source: Streams, *parameters: Tensor) -> Tensor:
        """Return the streams of the output, shape (..., S, m, outputs).

        Parameters
        ----------
        ctx : object
            Autograd's context.
        source : Streams
            The points and derivatives that are asked for.
        parameters : sequence of Tensor
            Views of the layout, with or without a leading axis.
        """
        ctx.save_for_backward(*parameters)
        evaluation = source.forward(parameters)
        ctx.source, ctx.evaluation = source, evaluation
        return evaluation.streams.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients with respect to the parameters.

        Parameters
        ----------
        ctx : object
            Autograd's context.
        g : Tensor, shape (..., S, m, outputs)
            Gradient with respect to the streams of the output.
        """
        parameters, needed = ctx.saved_tensors, ctx.needs_input_grad[1:]
        if torch.is_grad_enabled():
            wanted = [p for p, need in zip(parameters, needed, strict=True) if need]
            found = iter(torch.autograd.grad(ctx.source.graph(parameters), wanted, g, create_graph=True))
            return None, *(next(found) if need else None for need in needed)
        evaluation = ctx.evaluation or ctx.source.forward(parameters)  # None: swept before, with `retain_graph`
        ctx.evaluation = None
        out = [torch.empty(p.shape, dtype=p.dtype, device=p.device) for p in parameters]
        evaluation.backward(g, out)
        return None, *out
