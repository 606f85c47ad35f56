"""The loss of a graph network as an objective: of a whole graph, a share of a rank, a batch of subdomains, a sample."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Bounds, Price, Stochastic
from mldd.problems.nets import Batch, Dropout, GraphNet, cross_entropy
from mldd.ranks import Communicator


@dataclass(frozen=True)
class NodeLoss:
    """Weighted cross-entropy of a graph network plus weight decay on its first layer, for one graph or a batch.

    ``f(x) = -sum_i sum_c Y_ic log softmax(z_i(x))_c + decay / 2 ||W_1||^2``. Over several ranks, each evaluates the
    outputs of its own nodes, with a halo deep enough that they are exact, and value and gradient are summed in one
    collective.

    Parameters
    ----------
    net : GraphNet
        The network.
    batch : Batch
        Graphs and targets Y of this rank.
    decay : float
        Factor of the weight decay.
    price : Price
        Cost of an evaluation in fine gradients.
    comm : Communicator or None
        Ranks to sum over; None where every rank evaluates all of it.
    dropout : Dropout, optional
        The sample; without it nothing is dropped.
    mask : Tensor, shape (p, N), optional
        Unknowns that every member of a batch updates; its gradient is zero elsewhere.
    """

    net: GraphNet
    batch: Batch
    decay: float = 0.0
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = None
    dropout: Dropout | None = None
    mask: Tensor | None = None

    @property
    def size(self) -> int:
        """Number N of parameters."""
        return self.net.layout.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of parameters of each layer."""
        return self.net.layout.blocks

    @property
    def batched(self) -> bool:
        """Whether it takes a batch (p, N), one row per graph."""
        return self.batch.parts is not None

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        like = self.batch.targets
        shape = (self.size,) if self.batch.parts is None else (self.batch.parts, self.size)
        return Bounds.free(*shape, dtype=like.dtype, device=like.device)

    @cached_property
    def _sample(self) -> tuple[Batch, list[Tensor] | None]:
        """The batch with dropout on its features, and the factors of the hidden layers: drawn once per sample."""
        return self.batch.with_dropout(self.dropout, self.net.widths)

    def _loss(self, parameters: list[Tensor]) -> Tensor:
        batch, scales = self._sample
        return cross_entropy(self.net.outputs(parameters, batch, scales), batch.targets, batch.parts, batch.samples)

    def _summed(self, buffer: Tensor) -> Tensor:
        return buffer if self.comm is None else self.comm.sum(buffer)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (p,)."""
        self.price.of_value()
        with torch.no_grad():
            value = self._loss(self.net.layout.views(x))
        if self.comm is not None:
            value = self.comm.sum_values(value)
        return value + self._decay(x)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective."""
        self.price.of_gradient()
        leaves = self.net.layout.leaves(x)
        values = self._loss(leaves)
        total = values if values.dim() == 0 else values.sum()  # members do not interact
        pieces = torch.autograd.grad(total, leaves)
        buffer = self._summed(self.net.layout.pack(pieces, values.detach()[..., None]))
        return buffer[..., -1] + self._decay(x), self._masked(self._decayed(buffer[..., :-1], x))

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``."""
        self.price.of_product()
        layout = self.net.layout
        v = v if self.mask is None else v * self.mask
        leaves = layout.leaves(x)
        g = torch.autograd.grad(self._loss(leaves).sum(), leaves, create_graph=True)
        slope = torch.stack([(a * b).sum() for a, b in zip(g, layout.views(v), strict=True)]).sum()
        products = torch.autograd.grad(slope, leaves, allow_unused=True)
        filled = [torch.zeros_like(p) if d is None else d for d, p in zip(products, leaves, strict=True)]
        return self._masked(self._decayed(self._summed(layout.pack(filled)), v))

    def _decay(self, x: Tensor) -> Tensor:
        if self.decay == 0:
            return x.new_zeros(())
        norm: Tensor = torch.linalg.vector_norm(x[..., : self.net.decayed], dim=-1)  # needs no temporary vector
        return norm.square() * (0.5 * self.decay)

    def _decayed(self, g: Tensor, x: Tensor) -> Tensor:
        if self.decay != 0:
            k = self.net.decayed
            g[..., :k].add_(x[..., :k], alpha=self.decay)
        return g

    def _masked(self, g: Tensor) -> Tensor:
        return g if self.mask is None else g.mul_(self.mask)


def with_dropout(loss: NodeLoss, samples: Batch, probability: float, seed: int) -> Stochastic:
    """Return the loss of a network that is trained with dropout: itself without, with a new objective per outer step.

    Parameters
    ----------
    loss : NodeLoss
        The loss without dropout.
    samples : Batch
        The graph for samples: its features not yet propagated.
    probability : float
        With which an entry of the features or of a hidden state is dropped.
    seed : int
        Samples depend on this seed and the step alone.
    """
    return Stochastic(loss, lambda step: replace(loss, batch=samples, dropout=Dropout(probability, seed, step)))
