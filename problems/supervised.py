"""Supervised classification by fully connected networks: the digits of benchmark B1, and any tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.bounds import Bounds
from mldd.cost import Price
from mldd.decomposition import Decomposition, LocalRestrictions, contiguous
from mldd.flatten import Layout
from mldd.hierarchy import Hierarchy, Level
from mldd.objective import Objective
from mldd.parallel import SERIAL, Communicator
from mldd.parallel import device as pick_device
from mldd.problems.datasets import load_digits_images
from mldd.transfer import Identity

Activation = Literal["tanh", "relu", "sigmoid"]
# Hyper-parameters for full batches of 1,400 digits: tuned on the training loss after 300 steps, seeds 0 and 1.
_FIRST_ORDER = {"rate": 0.1, "varsigma": 1e-3}
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.01},
    "sgd": {"lr": 0.3, "momentum": 0.9},
    "torch-adagrad": {"lr": 0.1},
    "adagrad": _FIRST_ORDER,
    "ml-adagrad": _FIRST_ORDER | {"coarse_steps": 5},
    "dd-adagrad": _FIRST_ORDER | {"parts": 2, "global_steps": 1},
}
_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "relu": torch.relu, "sigmoid": torch.sigmoid}


@dataclass(frozen=True)
class Dense:
    """A fully connected network: ``H -> act(H W^T + b)``, the last layer without activation.

    Parameters
    ----------
    widths : tuple of int
        Inputs, hidden widths, classes.
    activation : {"tanh", "relu", "sigmoid"}
    """

    widths: tuple[int, ...]
    activation: Activation = "tanh"

    def __post_init__(self) -> None:
        """Refuse a network that cannot be."""
        if len(self.widths) < 2 or min(self.widths) < 1:
            raise ValueError(f"`widths` must be two or more numbers >= 1, got {self.widths}")
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")

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

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's uniform start, biases zero; shape (N,), float64."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        for weight in self.layout.views(x)[::2]:
            bound = math.sqrt(6.0 / sum(weight.shape))
            weight.uniform_(-bound, bound, generator=generator)
        return x

    def outputs(self, parameters: list[Tensor], inputs: Tensor) -> Tensor:
        """Return the outputs, shape (m, C), or (p, m, C) for parameters with a leading axis of length p."""
        act = _ACTIVATIONS[self.activation]
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


@dataclass(frozen=True)
class Classification:
    """Mean cross-entropy of a fully connected network over samples that are divided over the ranks.

    Parameters
    ----------
    net : Dense
    inputs : Tensor, shape (m, F)
        Samples of this rank.
    labels : Tensor, shape (m,), int64
    total : int
        Samples of all ranks.
    price : Price
    comm : Communicator or None
        Value and gradient are summed over its ranks in one collective; None where this rank has all samples.
    """

    net: Dense
    inputs: Tensor
    labels: Tensor
    total: int
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = SERIAL

    batched = True  # takes (p, N), p copies of the parameters on the same samples, too

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
        """Take the share of this rank of all samples.

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
        return Bounds.free(self.size, dtype=self.inputs.dtype, device=self.inputs.device)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, shape (N,)."""
        return self.net.initial(seed).to(self.inputs)

    def _loss(self, parameters: list[Tensor]) -> Tensor:
        outputs = self.net.outputs(parameters, self.inputs)
        if outputs.dim() == 2:
            return torch.nn.functional.cross_entropy(outputs, self.labels, reduction="sum") / self.total
        targets = self.labels.expand(len(outputs), -1)
        losses = torch.nn.functional.cross_entropy(outputs.flatten(0, 1), targets.flatten(), reduction="none")
        return losses.view(len(outputs), -1).sum(1) / self.total

    def _rows(self, x: Tensor) -> int:
        return 1 if x.dim() == 1 else len(x)

    def _summed(self, buffer: Tensor) -> Tensor:
        return buffer if self.comm is None else self.comm.sum(buffer)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (p,)."""
        self.price.of_value(self._rows(x))
        with torch.no_grad():
            value = self._loss(self.net.layout.views(x))
        if self.comm is None or self.comm.ranks == 1:
            return value
        total = self.comm.sum_scalars(value.flatten().tolist())
        return value.new_tensor(total).view_as(value)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective."""
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


def parse_widths(text: str) -> tuple[int, ...]:
    """Read hidden widths.

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
class Digits:
    """Recognise scikit-learn's digits with a 64-128-64-10 network, full batch (benchmark B1).

    Parameters
    ----------
    hidden : str
        Hidden widths joined by "-".
    activation : {"tanh", "relu", "sigmoid"}
    samples : int
        Training samples, the first ones of a seeded permutation; the others are for testing.
    seed : int
        Of that permutation.
    dtype : {"float64", "float32"}
    device : {"cpu", "cuda", "auto"}
    comm : Communicator
        Its ranks divide the samples.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    hidden: str = "128-64"
    activation: Activation = "tanh"
    samples: int = 1400
    seed: int = 0
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    comm: Communicator = field(default=SERIAL)

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        parse_widths(self.hidden)
        if self.activation not in _ACTIVATIONS:
            raise ValueError(f"`activation` must be one of {', '.join(_ACTIVATIONS)}, got {self.activation!r}")
        if self.dtype not in ("float64", "float32"):
            raise ValueError(f"`dtype` must be one of float64, float32, got {self.dtype!r}")
        if not 10 <= self.samples < 1797:
            raise ValueError(f"`samples` must be in 10..1796, got {self.samples}")

    @cached_property
    def _kind(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def _permuted(self) -> tuple[Tensor, Tensor]:
        images, labels = load_digits_images()
        order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(self.seed))
        return images[order].to(**self._kind), labels[order].to(self._kind["device"])

    def _on(self, samples: int, price: Price, comm: Communicator | None) -> Classification:
        images, labels = self._permuted
        net = Dense((64, *parse_widths(self.hidden), 10), self.activation)
        mine = range(samples) if comm is None else comm.share(samples)
        part = slice(mine.start, mine.stop)
        return Classification(net, images[part], labels[part], samples, price, comm)

    @cached_property
    def _objective(self) -> Classification:
        return self._on(self.samples, Price(), self.comm)

    def objective(self, sample: int | None = None) -> Classification:
        """Return the loss over all training samples, whatever the `sample`: full batch."""
        return self._objective

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, shape (N,)."""
        return self._objective.initial(seed)

    def solution(self) -> None:
        """Return None: no minimiser is known."""

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss over all samples, over the first half of them, over the first quarter, ...

        Raises
        ------
        ValueError
            No level, or a coarsest one of fewer than ten samples.
        """
        most = int(math.log2(self.samples / 10)) + 1
        if not 1 <= levels <= most:
            raise ValueError(f"`levels` must be in 1..{most} for {self.samples} samples, got {levels}")
        made = [Level(self.objective())]
        for k in range(1, levels):
            f = self._on(self.samples >> k, Price((self.samples >> k) / self.samples, fine=False), self.comm)
            made.append(Level(f, Identity(f.size), f.price.gradient))
        return Hierarchy(tuple(made))

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> Decomposition:
        """Return the decomposition of the parameters into runs of layers, widened by `overlap` layers on both sides.

        Raises
        ------
        ValueError
            More parts than layers, fewer than ranks, or a negative overlap.
        """
        comm = self.comm if comm is None else comm
        f = self._on(self.samples, Price(), None)  # ranks hold other subdomains, so each evaluates all samples
        if not 1 <= parts <= len(f.sizes):
            raise ValueError(f"`parts` must be in 1..{len(f.sizes)} (the layers of the network), got {parts}")
        if parts < comm.ranks:
            raise ValueError(f"`parts` must be >= {comm.ranks} (the ranks), got {parts}")

        def models(objective: Objective, x: Tensor, g: Tensor | None) -> Objective:
            return LocalRestrictions(f, decomposition, x.clone())

        subdomains = contiguous(f.sizes, parts, overlap)
        decomposition = Decomposition(f.size, subdomains, models, comm.share(parts), blocks=f.net.layout.slices)
        return decomposition

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        return dict(_SETTINGS.get(solver, {}))

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the accuracies on training and test samples."""
        images, labels = self._permuted
        net = self._objective.net
        with torch.no_grad():
            right = (net.outputs(net.layout.views(x), images).argmax(1) == labels).double()
        return {
            "train_accuracy": float(right[: self.samples].mean()),
            "test_accuracy": float(right[self.samples :].mean()),
        }
