"""Subdomains of operator learning: shares of the samples, parts of the graph with rings around them, or both."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from mldd.algebra import Objective, SharedDecomposition, corrected_models
from mldd.problems.nets import draw_of, pieces
from mldd.problems.operators.local_graphs import GraphBatch, LocalGraph
from mldd.ranks import Communicator

if TYPE_CHECKING:
    from mldd.problems.operators.operator_loss import OperatorLoss
    from mldd.problems.operators.operator_problem import OperatorProblem


def decomposition(problem: OperatorProblem, parts: int, overlap: int, comm: Communicator) -> SharedDecomposition:
    """Return the decomposition; subdomain k has the part ``k // shares`` of the graph and the share ``k % shares``.

    A local loss is the mean squared error over the own nodes and samples: where overlaps are exact, the mean of all,
    weighted by their shares, is the loss.

    Parameters
    ----------
    problem : OperatorProblem
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
    made = OperatorSubdomains(problem, parts // shares, shares, overlap)
    layout, mine = problem.net.layout, comm.share(parts)
    made.graphs(mine)  # here, where bad parts are refused, and outside of any clock
    device = problem.kind["device"]
    built = corrected_models(made.models)
    return SharedDecomposition(
        layout.size, parts, built, None, mine, blocks=layout.slices, device=device, shares=made.weights
    )


@dataclass(frozen=True, eq=False)
class OperatorSubdomains:
    """Parts of the graph times shares of the samples.

    Parameters
    ----------
    problem : OperatorProblem
        What is decomposed.
    parts, shares : int
        Parts of the graph, and shares of the samples.
    overlap : int
        Rings of neighbours around every part.
    """

    problem: OperatorProblem
    parts: int
    shares: int
    overlap: int

    @cached_property
    def _part(self) -> Any:
        return self.problem.domain.parts(self.parts, self.problem.pieces.cut, self.problem.seed)

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
            rings = min(self.overlap, self.problem.net.layers)
            numbers = sorted({k // self.shares for k in chosen})
            cut = {k: LocalGraph.around(self.problem.domain, self._part == k, rings) for k in numbers}
            listed = [cut[k // self.shares] for k in chosen]
            self._batches[chosen] = GraphBatch.of(listed, self.problem.net.layers, **self.problem.kind)
        return self._batches[chosen]

    def models(self, decomposition: Any, f: Objective) -> OperatorLoss:
        """Return the local losses over the samples of an objective.

        Parameters
        ----------
        decomposition : SharedDecomposition
            Says which subdomains are local.
        f : Objective
            The objective.
        """
        drawn, chosen = draw_of(f), decomposition.local
        rows = torch.arange(self.problem.sampling.shown) if drawn is None else drawn.rows
        of_share = pieces(rows, self.shares)
        numbers = torch.stack([of_share[k % self.shares] for k in chosen])
        return self.problem.loss(self.graphs(chosen), numbers, numbers.shape[1], None, drawn)

    def weights(self, f: Objective) -> Tensor:
        """Return the share of every subdomain in the loss, shape (parts * shares,).

        Parameters
        ----------
        f : Objective
            The objective.
        """
        own = torch.from_numpy(np.bincount(self._part, minlength=self.parts)).double()
        return (own / (len(self._part) * self.shares)).repeat_interleave(self.shares)
