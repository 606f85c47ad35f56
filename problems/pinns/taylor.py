"""Networks with their first and second derivatives along input coordinates, by propagating Taylor coefficients.

Value, first and second derivatives are *streams* that every layer maps at once: a linear layer maps each stream by the
same weights, and an activation maps them by the chain rule, for tanh with ``t = tanh(z)``, ``d = 1 - t^2``::

    h = t,    h_k = d z_k,    h_kk = d z_kk - 2 t h_k z_k

where ``_k`` is the derivative along input coordinate k. One forward sweep gives all derivatives of the residual of a
differential equation, and one backward sweep the gradient with respect to the parameters
(`mldd.problems.pinns.taylor_sweeps`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Layout
from mldd.problems.pinns import compiled_sweeps as compiled
from mldd.problems.pinns.taylor_sweeps import Propagation, StreamEvaluation, scaled

Kind = Literal["dense", "residual"]
_SCALE = 0.1  # a at the start, so that n a = 1


@dataclass(frozen=True)
class Jets:
    """Values and derivatives of a network at points.

    Attributes
    ----------
    value : Tensor, shape (..., m, outputs)
        Values of the function.
    first, second : tuple of Tensor or None
        Per input coordinate the derivative of order 1 and 2, of the shape of `value`; None where not asked for.
    """

    value: Tensor
    first: tuple[Tensor | None, ...]
    second: tuple[Tensor | None, ...]


@dataclass(frozen=True)
class TaylorNetwork:
    """A fully connected tanh network, plain or residual.

    ``dense``: ``y_l = tanh(W_l y_{l-1} + b_l)``, the last layer linear. ``residual``: ``y_1 = tanh(n a_1 (W_1 y_0 +
    b_1))``, ``y_l = y_{l-1} + dt tanh(n a_l (W_l y_{l-1} + b_l))``, the last layer linear, with n = 10, a trainable
    scale a_l per layer (0.1 at the start) and ``dt = horizon / (hidden layers - 1)``.

    Parameters
    ----------
    widths : tuple of int
        Inputs, hidden widths (all equal for ``residual``), outputs.
    kind : {"dense", "residual"}
        A plain tanh network, or a residual one with trainable slopes.
    horizon : float
        The "time" that the residual layers span.

    Raises
    ------
    ValueError
        A network that cannot be.

    References
    ----------
    The residual network is that of arXiv 2306.17648, as its authors' published code has it; trainable scales: Jagtap,
    Kawaguchi and Karniadakis, arXiv 1906.01170.

    Examples
    --------
    >>> net = TaylorNetwork((1, 8, 1))
    >>> x, points = net.initial(seed=0), torch.rand(5, 1, dtype=torch.float64)
    >>> jets = net.jets(net.layout.views(x), points, orders=(2,))
    >>> jets.value.shape, jets.second[0].shape
    (torch.Size([5, 1]), torch.Size([5, 1]))
    """

    widths: tuple[int, ...]
    kind: Kind = "dense"
    horizon: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a network that cannot be."""
        if len(self.widths) < 3 or min(self.widths) < 1:
            raise ValueError(f"`widths` must be three or more numbers >= 1, got {self.widths}")
        if self.kind not in ("dense", "residual"):
            raise ValueError(f"`kind` must be one of dense, residual, got {self.kind!r}")
        if self.kind == "residual" and len(set(self.widths[1:-1])) > 1:
            raise ValueError(f"hidden `widths` of a residual network must be equal, got {self.widths[1:-1]}")
        if not self.horizon > 0:
            raise ValueError(f"`horizon` must be > 0, got {self.horizon}")

    @property
    def layers(self) -> int:
        """Number of layers, the linear last one included."""
        return len(self.widths) - 1

    @cached_property
    def layout(self) -> Layout:
        """Per layer weights, shape (out, in), bias, shape (out,), and, for ``residual`` but the last, a, shape (1,)."""
        shapes: list[tuple[int, ...]] = []
        layers: list[int] = []
        for layer, (i, o) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            scaled = self.kind == "residual" and layer + 1 < self.layers
            shapes += [(o, i), (o,), (1,)] if scaled else [(o, i), (o,)]
            layers += [layer] * (3 if scaled else 2)
        return Layout(tuple(shapes), tuple(layers))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the layout: ``layers.0.weight``."""
        kinds = ("weight", "bias", "scale")
        places = self.layout.layers
        return tuple(f"layers.{k}.{kinds[i - places.index(k)]}" for i, k in enumerate(places))

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's uniform start, biases zero, scales 0.1; shape (N,), float64."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        for weight, _, scale in self.linear(self.layout.views(x)):
            bound = math.sqrt(6.0 / sum(weight.shape))
            weight.uniform_(-bound, bound, generator=generator)
            if scale is not None:
                scale.fill_(_SCALE)
        return x

    def linear(self, tensors: Sequence[Tensor]) -> Iterator[tuple[Tensor, Tensor, Tensor | None]]:
        """Yield weights, bias and scale (None where the layer has none) of every layer out of the layout's tensors.

        Parameters
        ----------
        tensors : sequence of Tensor
            Views of the layout.
        """
        each = iter(tensors)
        for layer in range(self.layers):
            scaled = self.kind == "residual" and layer + 1 < self.layers
            yield next(each), next(each), next(each) if scaled else None

    @property
    def step(self) -> float:
        """The dt of the residual layers."""
        return self.horizon / max(1, self.layers - 2)

    @cached_property
    def _spare(self) -> dict[Hashable, list[Any]]:
        """Buffers of finished evaluations, to be used again."""
        return {}

    def at(self, points: Tensor, orders: Sequence[int]) -> Streams:
        """Return the streams of the input at fixed `points`, to be evaluated with many parameters.

        Parameters
        ----------
        points : Tensor, shape (m, d)
            Points of the box, one in a row.
        orders : tuple of int
            Highest derivative along each coordinate.
        """
        return Streams(self, points, tuple(orders))

    def jets(self, parameters: Sequence[Tensor], points: Tensor, orders: Sequence[int]) -> Jets:
        """Return values and derivatives at `points`.

        Parameters
        ----------
        parameters : sequence of Tensor
            The views of `layout`, with or without a leading axis of length p.
        points : Tensor, shape (m, d) or (p, m, d)
            Points of the box, one in a row.
        orders : sequence of int, length d
            Highest derivative along each input coordinate: 0, 1 or 2.
        """
        return self.at(points, orders).jets(parameters)


@dataclass(frozen=True)
class Streams:
    """The input of a network at fixed points with its derivatives, to be evaluated with many parameters.

    Many points are best taken about a thousand at a time: the streams of all layers then stay in the cache.

    Parameters
    ----------
    net : TaylorNetwork
        The network.
    points : Tensor, shape (m, d) or (p, m, d)
        Points of the box, one in a row.
    orders : tuple of int, length d
        Highest derivative along each coordinate.

    Raises
    ------
    ValueError
        Points or orders that do not fit the network.
    """

    net: TaylorNetwork
    points: Tensor
    orders: tuple[int, ...]

    def __post_init__(self) -> None:
        """Refuse what does not fit."""
        d = self.net.widths[0]
        if self.points.dim() not in (2, 3) or self.points.shape[-1] != d:
            raise ValueError(f"`points` must have shape (m, {d}) or (p, m, {d}), got {tuple(self.points.shape)}")
        if len(self.orders) != d or not set(self.orders) <= {0, 1, 2}:
            raise ValueError(f"`orders` must be {d} numbers out of 0, 1, 2 (one per input), got {self.orders}")

    @cached_property
    def slopes(self) -> list[int]:
        """Coordinates of the streams of first derivatives, those without a second one before the others."""
        return sorted((k for k, order in enumerate(self.orders) if order), key=lambda k: (self.orders[k], k))

    @cached_property
    def bends(self) -> list[int]:
        """Coordinates of the streams of second derivatives."""
        return [k for k in self.slopes if self.orders[k] == 2]

    @property
    def count(self) -> int:
        """Number S of streams."""
        return 1 + len(self.slopes) + len(self.bends)

    @cached_property
    def inputs(self) -> Tensor:
        """The streams of the input, shape (1 or p, S, m, d): the points, unit vectors, zeros."""
        points = self.points if self.points.dim() == 3 else self.points[None]
        stack = points.new_zeros((len(points), self.count, *points.shape[1:]))
        stack[:, 0] = points
        for row, k in enumerate(self.slopes, start=1):
            stack[:, row, :, k] = 1.0
        return stack

    @cached_property
    def columns(self) -> Tensor:
        """The same as columns, shape (1 or p, d, S m): those of the points come first."""
        return self.inputs.flatten(1, 2).transpose(1, 2).contiguous()

    def jets(self, parameters: Sequence[Tensor]) -> Jets:
        """Return values and derivatives for the views of the network's layout, with or without a leading axis p.

        Autograd differentiates them once by a hand-written sweep, and further by torch's own operations.

        Parameters
        ----------
        parameters : sequence of Tensor
            Views of the layout, with or without a leading axis.
        """
        if self.points.dim() == 3 and parameters[0].dim() == 2:
            parameters = [t.expand(len(self.points), *t.shape) for t in parameters]
        if torch.is_grad_enabled() and any(t.requires_grad for t in parameters):
            return self.split(Propagation.apply(self, *parameters))  # type: ignore[no-untyped-call]
        evaluation = self.forward(parameters)
        streams = evaluation.streams.clone()
        evaluation.release()
        return self.split(streams)

    @cached_property
    def blocks(self) -> Tensor:
        """The points as the compiled sweeps read them."""
        return compiled.blocks_of(self.points)

    def forward(self, parameters: Sequence[Tensor]) -> StreamEvaluation | compiled.CompiledEvaluation:
        """Return an evaluation without a graph, in buffers: the way with the least overhead to values and gradients.

        Parameters
        ----------
        parameters : sequence of Tensor
            The views of the layout; with a leading axis where the points have one.
        """
        functions = compiled.suited(self, parameters)
        if functions is None:
            return self.layered(parameters)
        batch = len(parameters[0]) if parameters[0].dim() == 3 else 0
        key = ("compiled", batch, *self._key)
        left = self.net._spare.get(key)
        evaluation: compiled.CompiledEvaluation
        evaluation = left.pop() if left else compiled.CompiledEvaluation(key, self, batch, functions)
        evaluation.run(self, parameters)
        return evaluation

    def layered(self, parameters: Sequence[Tensor]) -> StreamEvaluation:
        """Return an evaluation that keeps the streams of every layer, in torch.

        Parameters
        ----------
        parameters : sequence of Tensor
            As for `forward`.
        """
        key = (len(parameters[0]) if parameters[0].dim() == 3 else 0, *self._key)
        left = self.net._spare.get(key)
        evaluation: StreamEvaluation = left.pop() if left else StreamEvaluation(key, self)
        with torch.no_grad():
            evaluation._forward(self, parameters)
        return evaluation

    def pullback(self, parameters: Sequence[Tensor], loss: Callable[[Jets], Tensor], out: Sequence[Tensor]) -> Tensor:
        """Return ``loss(jets)``, and write the gradient of its sum to `out`, tensors shaped as `parameters`.

        Autograd sees no more than what `loss` does with values and derivatives.

        Parameters
        ----------
        parameters : sequence of Tensor
            Views of the layout, with or without a leading axis.
        loss : callable
            Function of values and derivatives.
        out : sequence of Tensor
            Gets the gradient, shaped as the parameters.
        """
        evaluation = self.forward(parameters)
        streams = evaluation.streams.clone().requires_grad_()
        with torch.enable_grad():
            value = loss(self.split(streams))
            (g,) = torch.autograd.grad(value.sum(), streams)
        evaluation.backward(g, out)
        return value.detach()

    @cached_property
    def _key(self) -> tuple[Hashable, ...]:
        return self.points.shape[-2], self.points.dim(), self.orders, self.points.dtype, self.points.device

    def split(self, streams: Tensor) -> Jets:
        """Return the streams, shape (..., S, m, outputs), as a record of views.

        Parameters
        ----------
        streams : Tensor, shape (..., S, m, outputs)
            Values and derivatives, one kind behind the other.
        """
        rows = streams.unbind(-3)
        begin = 1 + len(self.slopes)
        first = dict(zip(self.slopes, rows[1:begin], strict=True))
        second = dict(zip(self.bends, rows[begin:], strict=True))
        keys = range(len(self.orders))
        return Jets(rows[0], tuple(first.get(k) for k in keys), tuple(second.get(k) for k in keys))

    def graph(self, parameters: Sequence[Tensor]) -> Tensor:
        """Return the streams, shape (..., S, m, outputs), by operations that autograd differentiates repeatedly.

        Parameters
        ----------
        parameters : sequence of Tensor
            Views of the layout, with or without a leading axis.
        """
        state = self.inputs if parameters[0].dim() == 3 else self.inputs[0]
        for layer, (weight, bias, _) in enumerate(scaled(self.net.linear(parameters))):
            streams = torch.matmul(state, weight.transpose(-1, -2)[..., None, :, :])
            shifted = streams[..., :1, :, :] + bias[..., None, None, :]
            streams = torch.cat([shifted, streams[..., 1:, :, :]], -3)
            if layer + 1 == self.net.layers:
                break
            new = self._activated(streams)
            state = state + self.net.step * new if layer and self.net.kind == "residual" else new
        return streams

    def _activated(self, streams: Tensor) -> Tensor:
        value, first, second = torch.split(streams, [1, len(self.slopes), len(self.bends)], dim=-3)
        t = torch.tanh(value)
        d = 1 - t * t
        h = d * first
        flat = len(self.slopes) - len(self.bends)
        bend = h[..., flat:, :, :] * first[..., flat:, :, :]
        return torch.cat([t, h, d * second - 2 * t * bend], -3)
