"""Subdomains of operator learning: shares of the samples, parts of the graph with rings around them, or both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from mldd.algebra import Corrected, Objective, SharedDecomposition, Stochastic
from mldd.problems.nets import Draw, draw_of, pieces, subset
from mldd.problems.operators.torus import GraphBatch, LocalGraph, adjacency, parts_of
from mldd.ranks import Communicator

if TYPE_CHECKING:
    from mldd.problems.operators.allen_cahn_operator import AllenCahnOperator
    from mldd.problems.operators.operator_loss import OperatorLoss


def decomposition(problem: AllenCahnOperator, parts: int, overlap: int, comm: Communicator) -> SharedDecomposition:
    """Return the decomposition; subdomain k has the part ``k // shares`` of the graph and the share ``k % shares``.

    The mean of the local losses is the mean squared error where overlaps are exact; every node and sample counts once.

    Parameters
    ----------
    problem : AllenCahnOperator
        What is decomposed.
    parts, overlap : int
        Number of subdomains, and rings of neighbours around each part of the graph.
    comm : Communicator
        The ranks that share the subdomains.

    Raises
    ------
    ValueError
        Fewer subdomains than ranks, shares that the samples cannot be divided into, or a negative overlap.
    """
    for name, least, given in (("parts", comm.ranks, parts), ("overlap", 0, overlap)):
        if given < least:
            raise ValueError(f"`{name}` must be >= {least}, got {given}")
    chosen = problem.pieces.subdomains
    shares = {"samples": parts, "parts": 1, "both": problem.pieces.shares}[chosen]
    if parts % shares:
        raise ValueError(f"`parts` must be a multiple of {shares} (the shares), got {parts}")
    for name, number in (("batch", problem.sampling.batch), ("samples", problem.sampling.shown)):
        if number % shares:
            raise ValueError(f"`{name}` must be a multiple of {shares} (the shares of it), got {number}")
    made = Subdomains(problem, parts // shares, shares, overlap)
    layout, mine = problem.net.layout, comm.share(parts)
    made.graphs(mine)  # here, where bad parts are refused, and outside of any clock
    device = problem.kind["device"]
    return SharedDecomposition(layout.size, parts, made.build, None, mine, blocks=layout.slices, device=device)


@dataclass(frozen=True, eq=False)
class Subdomains:
    """Parts of the graph times shares of the samples.

    Parameters
    ----------
    problem : AllenCahnOperator
        What is decomposed.
    parts, shares : int
        Parts of the graph, and shares of the samples.
    overlap : int
        Rings of neighbours around every part.
    """

    problem: AllenCahnOperator
    parts: int
    shares: int
    overlap: int

    @cached_property
    def _part(self) -> Any:
        return parts_of(self.problem.n, self.parts, self.problem.pieces.cut, self.problem.seed)

    @cached_property
    def _batches(self) -> dict[range, GraphBatch]:
        return {}

    def graphs(self, chosen: range) -> GraphBatch:
        """Return the local graphs of some subdomains; kept.

        Parameters
        ----------
        chosen : range
            Their numbers.
        """
        if chosen not in self._batches:
            matrix, rings = adjacency(self.problem.n), min(self.overlap, self.problem.net.layers)
            numbers = sorted({k // self.shares for k in chosen})
            cut = {k: LocalGraph.around(matrix, self._part == k, rings) for k in numbers}
            listed = [cut[k // self.shares] for k in chosen]
            self._batches[chosen] = GraphBatch.of(listed, self.problem.net.layers, **self.problem.kind)
        return self._batches[chosen]

    def loss(self, chosen: range, of_share: list[Tensor], drawn: Draw | None) -> OperatorLoss:
        """Return the local losses of some subdomains as one batched objective of (p, N).

        Parameters
        ----------
        chosen : range
            Numbers of the subdomains.
        of_share : list of Tensor, shape (b,)
            Samples of every share.
        drawn : Draw or None
            The mini-batch that they are of.
        """
        numbers = torch.stack([of_share[k % self.shares] for k in chosen])
        factor = self.parts / (self.problem.n**2 * numbers.shape[1])
        return self.problem.loss(self.graphs(chosen), numbers, factor, None, drawn)

    def _drawn(self, step: int, local: int) -> list[Tensor]:
        """Return the samples that a local step of an outer step sees, share by share."""
        options = self.problem.sampling
        if not options.samples:
            return pieces(self.problem.numbers(step, local), self.shares)
        own, count = pieces(torch.arange(options.samples), self.shares), options.batch // self.shares
        key = self.problem.seed % 2**64
        return [rows[subset(len(rows), count, key, 1, step, local, k)] for k, rows in enumerate(own)]

    def build(self, decomposition: Any, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        """Return the local models: with other samples in every local step, or first-order corrected on those of `f`.

        Parameters
        ----------
        decomposition : SharedDecomposition
            Says which subdomains are local.
        f : Objective
            The objective.
        x : Tensor, shape (N,)
            The iterate.
        g : Tensor, shape (N,), optional
            The gradient there.
        """
        drawn, chosen = draw_of(f), decomposition.local
        if drawn is not None and g is None:

            def draw(local: int) -> OperatorLoss:
                return self.loss(chosen, self._drawn(drawn.step, local), drawn)

            return Stochastic(draw(0), draw)
        rows = torch.arange(self.problem.sampling.shown) if drawn is None else drawn.rows
        model = self.loss(chosen, pieces(rows, self.shares), drawn)
        if g is None:
            return model
        y0 = decomposition.gather(x)
        return Corrected(model, g - model.gradient(y0), y0)
