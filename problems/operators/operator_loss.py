"""The mean squared error of a learned operator as an objective: of the whole graph, or of a batch of subdomains."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Bounds, Price
from mldd.problems.nets import Draw
from mldd.problems.operators.local_graphs import GraphBatch
from mldd.problems.operators.residual_sage import ResidualSage
from mldd.problems.operators.sample_stream import SampleStream
from mldd.ranks import Communicator

# Values of a field that are evaluated together. States of more leave the caches; where every layer exchanges a halo,
# fewer messages matter more, and memory is the limit.
AT_ONCE, AT_ONCE_EXCHANGED = 2**13, 2**18


@dataclass(frozen=True, eq=False)
class OperatorLoss:
    """``sum_is weight_i (z_is - y_is)^2 / total`` over nodes i and samples s, y in units of `scale`.

    Parameters
    ----------
    net : ResidualSage
        The network.
    stream : SampleStream
        Makes the samples.
    graph : GraphBatch
        Nodes and means: of the whole, of this rank's share, or of p subdomains with own parameters.
    numbers : Tensor, shape (p, b), int64
        Training samples of every subdomain.
    scale : float
        One unit of the outputs in that of the state.
    total : int
        Samples by which the sum is divided: those of all ranks, or of a subdomain.
    price : Price
        Cost of an evaluation of one subdomain, in fine gradients.
    comm : Communicator or None
        Value and gradient are summed over its ranks in one collective; None for a batch of subdomains.
    at_once : int
        Samples that are evaluated together; where ranks share nodes it is the same on all.
    drawn : Draw, optional
        The mini-batch, where it is one.
    """

    net: ResidualSage
    stream: SampleStream
    graph: GraphBatch
    numbers: Tensor
    scale: float
    total: int
    price: Price
    comm: Communicator | None
    at_once: int
    drawn: Draw | None = None

    @property
    def size(self) -> int:
        """Number N of parameters."""
        return self.net.layout.size

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        lead = () if self.comm is not None else (len(self.numbers),)
        return Bounds.free(*lead, self.size, dtype=self.stream.dtype, device=self.stream.device)

    def _blocks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield inputs, shape (p, m, b, inputs), and targets, shape (p, k, b), of some samples at a time."""
        nodes, own = self.graph.nodes, self.graph.weights.shape[1]
        if not self.numbers.numel():  # more ranks than samples
            return
        for numbers in torch.split(self.numbers, self.at_once, dim=1):
            distinct, place = torch.unique(numbers, return_inverse=True)
            fields = self.stream.fields("training", distinct.tolist())
            place = place.to(nodes.device)
            found = fields.transpose(1, 2)[place[:, None, :], nodes[:, :, None]]  # (p, m, b, inputs + 1)
            yield found[..., :-1].contiguous(), found[:, :own, :, -1] / self.scale

    def _loss(self, parameters: list[Tensor], inputs: Tensor, targets: Tensor) -> Tensor:
        """Return the losses of the subdomains over one block, shape (p,)."""
        gap = self.net.outputs(parameters, inputs, self.graph.means) - targets
        return (gap.square().sum(2) * self.graph.weights).sum(1) / self.total

    def _of_parts(self, x: Tensor) -> Tensor:
        return x[None] if self.comm is not None else x

    def _summed(self, buffer: Tensor) -> Tensor:
        return buffer if self.comm is None else self.comm.sum(buffer[0])

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (p,)."""
        self.price.of_value(len(self.numbers))
        parameters, total = self.net.layout.views(self._of_parts(x)), x.new_zeros(len(self.numbers))
        with torch.no_grad():
            for block in self._blocks():
                total += self._loss(parameters, *block)
        return total if self.comm is None else self.comm.sum_values(total[0])

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, block by block, and in one collective.

        Parameters
        ----------
        x : Tensor, shape (N,) or (p, N)
            Parameters.
        """
        self.price.of_gradient(len(self.numbers))
        layout, parts = self.net.layout, self._of_parts(x)
        total = x.new_zeros(len(parts), self.size + 1)
        for block in self._blocks():
            leaves = layout.leaves(parts)
            values = self._loss(leaves, *block)
            total += layout.pack(torch.autograd.grad(values.sum(), leaves), values.detach())
        total = self._summed(total)
        return total[..., -1].clone(), total[..., :-1]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``, block by block."""
        self.price.of_product(len(self.numbers))
        layout, parts = self.net.layout, self._of_parts(x)
        directions, total = layout.views(self._of_parts(v)), torch.zeros_like(parts)
        for block in self._blocks():
            leaves = layout.leaves(parts)
            g = torch.autograd.grad(self._loss(leaves, *block).sum(), leaves, create_graph=True)
            slope = torch.stack([(a * b).sum() for a, b in zip(g, directions, strict=True)]).sum()
            total += layout.pack(torch.autograd.grad(slope, leaves, materialize_grads=True, allow_unused=True))
        return self._summed(total)
