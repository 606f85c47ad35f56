"""Fully connected networks and their loss over labelled samples, for one vector of parameters or a batch of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from mldd.algebra import Bounds, Layout, Objective, Price, innermost
from mldd.ranks import SERIAL, Communicator

Activation = Literal["tanh", "relu", "sigmoid"]
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


def parse_widths(text: str) -> tuple[int, ...]:
    """Return hidden widths from a text.

    Parameters
    ----------
    text : str
        Positive numbers joined by '-'.

    Raises
    ------
    ValueError
        A text that is no such thing.

    Examples
    --------
    >>> parse_widths("128-64")
    (128, 64)
    """
    pieces = str(text).split("-")
    if not all(piece.isdigit() and int(piece) > 0 for piece in pieces):
        raise ValueError(f"`hidden` must be widths joined by '-', as in 128-64, got {text!r}")
    return tuple(map(int, pieces))


@dataclass(frozen=True)
class Dense:
    """A fully connected network: ``H -> act(H W^T + b)``, the last layer without activation.

    Parameters
    ----------
    widths : tuple of int
        Inputs, hidden widths, classes.
    activation : {"tanh", "relu", "sigmoid"}
        Between the layers.
    """

    widths: tuple[int, ...]
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        """Refuse a network that cannot be."""
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"`widths` must be two or more numbers >= 1, got {self.widths}")
        if self.activation not in ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(ACTIVATIONS)}, got {self.activation!r}")

    @property
    def layers(self) -> int:
        """Number of layers."""
        return len(self.widths) - 1

    @cached_property
    def layout(self) -> Layout:
        """Per layer the weights, shape (out, in) as torch has them, then the bias."""
        shapes: list[tuple[int, ...]] = []
        for i, o in zip(self.widths, self.widths[1:], strict=False):
            shapes += [(o, i), (o,)]
        return Layout(tuple(shapes), tuple(k // 2 for k in range(2 * self.layers)))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the layout: ``layers.0.weight``."""
        return tuple(f"layers.{k}.{name}" for k in range(self.layers) for name in ("weight", "bias"))

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's uniform start, biases zero; shape (N,), float64."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        for weight in self.layout.views(x)[::2]:
            bound = math.sqrt(6.0 / sum(weight.shape))
            weight.uniform_(-bound, bound, generator=generator)
        return x

    def outputs(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs, shape (m, C), or (p, m, C) for parameters with a leading axis of length p.

        Parameters
        ----------
        parameters : list of Tensor
            Weights and biases of the layers.
        inputs : Tensor, shape (m, F) or (p, m, F)
            Samples.
        """
        act = ACTIVATIONS[self.activation]
        state = inputs
        for layer in range(self.layers):
            weight, bias = parameters[2 * layer : 2 * layer + 2]
            if weight.dim() == 2:
                state = torch.nn.functional.linear(state, weight, bias)
            else:
                state = torch.baddbmm(bias[:, None], state.expand(len(weight), -1, -1), weight.transpose(1, 2))
            if layer + 1 < self.layers:
                state = act(state)
        return state


@dataclass(frozen=True, eq=False)
class Draw:
    """Which mini-batch an objective is the loss over.

    Parameters
    ----------
    step : int
        Outer step.
    rows : Tensor, shape (b,), int64
        Numbers of its samples, those of all ranks.
    """

    step: int
    rows: Tensor


def draw_of(f: Objective) -> Draw | None:
    """Return the mini-batch that an objective, or what it is composed of, is the loss over; None for all samples.

    Parameters
    ----------
    f : Objective
        The outermost layer.
    """
    drawn: Draw | None = getattr(innermost(f), "drawn", None)
    return drawn


@dataclass(frozen=True)
class Classification:
    """Mean cross-entropy of a fully connected network over samples that are divided over the ranks.

    Parameters
    ----------
    net : Dense
        The network.
    inputs : Tensor, shape (m, F) or (p, m, F)
        Samples of this rank; or those of p subdomains, each with parameters of its own.
    labels : Tensor, shape (m,) or (p, m), int64
        Class of every sample.
    total : int
        Samples of all ranks, by which the sum of the losses is divided.
    price : Price
        Cost of an evaluation, in fine gradients.
    comm : Communicator or None
        Value and gradient are summed over its ranks in one collective; None where this rank has all samples.
    weights : Tensor, shape (p, m), optional
        Weight of every sample instead of ``1 / total``: zero at padding.
    drawn : Draw, optional
        The mini-batch, where it is one.
    """

    net: Dense
    inputs: Tensor
    labels: Tensor
    total: int
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = SERIAL
    weights: Tensor | None = None
    drawn: Draw | None = None

    batched = True  # takes (p, N), p copies of the parameters, too: on the same samples, or on those of p subdomains

    @staticmethod
    def of(
        inputs: Tensor,
        labels: Tensor,
        hidden: tuple[int, ...] = (128, 64),
        activation: Activation = "tanh",
        *,
        price: Price = Price(),  # noqa: B008 (frozen)
        comm: Communicator = SERIAL,
    ) -> Classification:
        """Return the loss of the samples of this rank, its share of all.

        Parameters
        ----------
        inputs : Tensor, shape (n, F)
            All samples.
        labels : Tensor, shape (n,), int64
            Their classes.
        hidden : tuple of int
            Hidden widths.
        activation : {"tanh", "relu", "sigmoid"}
            Between the layers.
        price : Price
            Cost of an evaluation, in fine gradients.
        comm : Communicator
            Ranks that share the samples.

        Raises
        ------
        ValueError
            Tensors that do not fit, or features that are not finite.

        Examples
        --------
        >>> f = Classification.of(torch.randn(20, 4), torch.arange(20) % 3, hidden=(5,))
        >>> f.size, f.sizes
        (43, (25, 18))
        """
        if inputs.dim() != 2 or labels.shape != inputs.shape[:1] or labels.dtype != torch.int64 or not len(labels):
            raise ValueError(
                "`inputs` must have shape (m, F) and `labels` be int64 of shape (m,) with m >= 1, got "
                f"{tuple(inputs.shape)} and {labels.dtype} {tuple(labels.shape)}"
            )
        if not bool(torch.isfinite(inputs).all()):
            raise ValueError("`inputs` must be finite, got NaN or infinity; clean them first")
        if int(labels.min()) < 0:
            raise ValueError(f"`labels` must be >= 0, got {int(labels.min())}")
        net = Dense((inputs.shape[1], *hidden, int(labels.max()) + 1), activation)
        mine = comm.share(len(inputs))
        part = slice(mine.start, mine.stop)
        price = price.scaled(len(mine) / len(inputs))
        return Classification(net, inputs[part].contiguous(), labels[part], len(inputs), price, comm)

    @property
    def size(self) -> int:
        """Number N of parameters."""
        return self.net.layout.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of parameters of each layer."""
        return self.net.layout.blocks

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        lead = self.labels.shape[:-1]
        return Bounds.free(*lead, self.size, dtype=self.inputs.dtype, device=self.inputs.device)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, shape (N,)."""
        return self.net.initial(seed).to(self.inputs)

    def _loss(self, parameters: list[Tensor]) -> Tensor:
        outputs = self.net.outputs(parameters, self.inputs)
        if outputs.dim() == 2:
            return torch.nn.functional.cross_entropy(outputs, self.labels, reduction="sum") / self.total
        targets = self.labels.expand(len(outputs), -1)
        losses = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        losses = losses.view(outputs.shape[:2])
        return losses.sum(1) / self.total if self.weights is None else (losses * self.weights).sum(1)

    def _rows(self, x: Tensor) -> int:
        return 1 if x.dim() == 1 else len(x)

    def _summed(self, buffer: Tensor) -> Tensor:
        return buffer if self.comm is None else self.comm.sum(buffer)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (p,)."""
        self.price.of_value(self._rows(x))
        with torch.no_grad():
            value = self._loss(self.net.layout.views(x))
        return value if self.comm is None else self.comm.sum_values(value)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective.

        Parameters
        ----------
        x : Tensor, shape (N,) or (p, N)
            Parameters.
        """
        self.price.of_gradient(self._rows(x))
        leaves = self.net.layout.leaves(x)
        values = self._loss(leaves)
        g = torch.autograd.grad(values.sum(), leaves)
        buffer = self._summed(self.net.layout.pack(g, values.detach()[..., None]))
        return buffer[..., -1].clone(), buffer[..., :-1]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``."""
        self.price.of_product(self._rows(x))
        leaves = self.net.layout.leaves(x)
        g = torch.autograd.grad(self._loss(leaves).sum(), leaves, create_graph=True)
        slope = torch.stack([(a * b).sum() for a, b in zip(g, self.net.layout.views(v), strict=True)]).sum()
        return self._summed(self.net.layout.pack(torch.autograd.grad(slope, leaves)))
