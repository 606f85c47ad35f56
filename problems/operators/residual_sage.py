"""A residual GraphSAGE network for fields: every sample of a batch, and every subdomain, in one product per layer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Layout
from mldd.problems.nets import Operator


@dataclass(frozen=True)
class ResidualSage:
    r"""Linear encoder, layers ``S <- S + silu(S W + sum_k A_k S V_k + b)``, linear decoder.

    The first aggregation A_1 is the mean over neighbours; where directions mean something, others are derivatives.

    Parameters
    ----------
    hidden : int
        Width of the states.
    layers : int
        Number of layers, and so of rings of neighbours that an output depends on.
    inputs : int
        Fields that are read at every node.
    aggregations : int
        Number of the A_k.

    Raises
    ------
    ValueError
        A number below one.

    References
    ----------
    Hamilton, Ying and Leskovec, arXiv 1706.02216, algorithm 1 with the mean of the neighbours; residual connections as
    in He et al., arXiv 1512.03385.
    """

    hidden: int = 24
    layers: int = 4
    inputs: int = 2
    aggregations: int = 1

    def __post_init__(self) -> None:
        """Refuse a network that cannot be."""
        for name in ("hidden", "layers", "inputs", "aggregations"):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` must be >= 1, got {getattr(self, name)}")

    @cached_property
    def layout(self) -> Layout:
        """Encoder, layers and decoder; weights have the shape (in, out)."""
        h = self.hidden
        shapes: list[tuple[int, ...]] = [(self.inputs, h), (h,)]
        for _ in range(self.layers):
            shapes += [*[(h, h)] * (1 + self.aggregations), (h,)]
        per = 2 + self.aggregations
        of_layer = [0, 0, *(1 + k // per for k in range(per * self.layers)), *[self.layers + 1] * 2]
        return Layout((*shapes, (h, 1), (1,)), tuple(of_layer))

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the tensors of the layout: ``layers.0.neighbours.0``."""
        kinds = "own", *(f"neighbours.{k}" for k in range(self.aggregations)), "bias"
        inner = [f"layers.{k}.{kind}" for k in range(self.layers) for kind in kinds]
        return "encoder.weight", "encoder.bias", *inner, "decoder.weight", "decoder.bias"

    def initial(self, seed: int = 0) -> Tensor:
        """Return a normal start scaled by the number of inputs; biases and decoder are zero, and so are the outputs.

        Parameters
        ----------
        seed : int
            Of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        x = torch.zeros(self.layout.size, dtype=torch.float64)
        for name, view in zip(self.names, self.layout.views(x), strict=True):
            if view.dim() == 2 and not name.startswith("decoder"):
                fan = len(view) * (1 if name.startswith("encoder") else 1 + self.aggregations)
                view.normal_(0.0, 1.0 / math.sqrt(fan), generator=generator)
        return x

    def outputs(self, parameters: Sequence[Tensor], inputs: Tensor, means: Sequence[Operator]) -> Tensor:
        """Return the outputs at the nodes that the last layer keeps, shape (p, k, b).

        Parameters
        ----------
        parameters : sequence of Tensor
            Tensors of the layout with a leading axis of length p: every subdomain has its own.
        inputs : Tensor, shape (p, m, b, inputs)
            Fields at the m nodes of every subdomain in b samples.
        means : sequence of Operator
            One per layer: the aggregations one below the other, each block-diagonal over the subdomains, for the nodes
            that the layer keeps, which are the first ones of those before.
        """
        encoder, shift, *inner, decoder, last = parameters
        per = 2 + self.aggregations
        p, _, b, _ = inputs.shape
        state = torch.baddbmm(shift[:, None], inputs.flatten(1, 2), encoder)
        for k, mean in enumerate(means):
            own, *neighbours, bias = inner[per * k : per * (k + 1)]
            around = (mean @ state.view(-1, b * self.hidden)).view(self.aggregations, p, -1, self.hidden)
            here = state[:, : around.shape[2]]
            slope = torch.baddbmm(bias[:, None], here, own)
            for found, weight in zip(around, neighbours, strict=True):
                slope = torch.baddbmm(slope, found, weight)
            state = here + torch.nn.functional.silu(slope)
        return torch.baddbmm(last[:, None], state, decoder).view(p, -1, b)

    def work(self, rows: Sequence[float], entries: Sequence[float]) -> float:
        """Return the cost of a sweep of one sample, in multiplications and what else is done to an entry of a state.

        Parameters
        ----------
        rows : sequence of float
            Nodes that are read, and those that every layer keeps.
        entries : sequence of float
            Entries of the aggregations of every layer.
        """
        h, touched = self.hidden, 10.0  # a SiLU and its derivative
        of_layers = sum(kept * h * ((1 + self.aggregations) * h + touched) for kept in rows[1:])
        return rows[0] * self.inputs * h + of_layers + rows[-1] * h + h * sum(entries)
