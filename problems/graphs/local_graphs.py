"""Local graphs of subdomains of a graph that is in memory as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import Layout, Objective, contiguous
from mldd.graph import Graph, grow
from mldd.problems.graphs.graph_levels import clustered
from mldd.problems.graphs.graph_options import Spaces
from mldd.problems.nets import Piece, Source, composite_labels, distances, shares_of


@dataclass(frozen=True, eq=False)
class LocalGraphs:
    """Local graphs of parts: aggregated outside, cut off there, or all that the labelled nodes of the part depend on.

    Parameters
    ----------
    graph : Graph
        The whole graph.
    source : Source
        Its operator, features and targets.
    layers : int
        Of the network.
    spaces : Spaces
        How clusters of composite graphs are made.
    clusters : int
        Clusters of a composite graph before its own nodes become fine.
    seed : int
        Of the clustering.
    """

    graph: Graph
    source: Source
    layers: int
    spaces: Spaces
    clusters: int
    seed: int

    def _inside(self, part: Tensor, number: int, overlap: int) -> NDArray[np.bool_]:
        inside: NDArray[np.bool_] = grow(self.graph, part == number, overlap).numpy()
        return inside

    def of(
        self, local: str, part: Tensor, chosen: Sequence[int], overlap: int, one_hot: NDArray[np.float64]
    ) -> list[Piece]:
        """Return the local graphs of some parts, of a kind that `Spaces` knows.

        Parameters
        ----------
        local : {"composite", "own", "restricted"}
            The kind.
        part, chosen, overlap, one_hot
            As for `own` and `restricted`.
        """
        if local == "composite":
            return self.composite(part, chosen, overlap)
        made = self.own if local == "own" else self.restricted
        return made(part, chosen, overlap, one_hot)

    def shares(self, part: Tensor, parts: int, overlap: int, labelled: Tensor) -> Callable[[Objective], Tensor] | None:
        """Return what gives the shares of the parts in the loss, their labelled nodes; None for composite graphs.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            Part of every node.
        parts : int
            Number of parts.
        overlap : int
            Layers of nodes that are added to every part.
        labelled : Tensor, shape (n,), bool
            Nodes in the loss.
        """
        if self.spaces.local == "composite":  # each has the loss over all nodes
            return None
        layers = 0 if self.spaces.local == "restricted" else overlap

        @cache
        def found() -> Tensor:
            return shares_of([(grow(self.graph, part == k, layers) & labelled).nonzero() for k in range(parts)])

        return lambda f: found()

    def composite(self, part: Tensor, chosen: Sequence[int], overlap: int) -> list[Piece]:
        """Return the composite graphs of some parts: their nodes one by one, clusters of all others.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            Part of every node; clusters lie within the parts.
        chosen : sequence of int
            Which parts.
        overlap : int
            Layers of nodes that are added to every part.
        """
        spaces = self.spaces
        sizes = [max(self.clusters // 4**k, int(part.max()) + 1) for k in range(spaces.grades)]
        maps = clustered(self.graph, self.source, self.layers, sizes, spaces.clustering, self.seed, part)
        reach, made = [self.layers * k for k in range(1, spaces.grades)], []
        for k in chosen:
            own = self._inside(part, k, overlap)
            hops = distances(self.graph, own, reach[-1]) if reach else None
            made.append(self.source.aggregated(composite_labels(own, maps, hops, reach), self.layers))
        return made

    def own(self, part: Tensor, chosen: Sequence[int], overlap: int, one_hot: NDArray[np.float64]) -> list[Piece]:
        """Return the graphs of the mean losses over the labelled nodes of some parts; a part without any has none.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            Part of every node.
        chosen : sequence of int
            Which parts.
        overlap : int
            Layers of nodes that are added to every part.
        one_hot : ndarray, shape (n, C)
            Classes of the labelled nodes, zero rows for the others.
        """
        made = []
        for k in chosen:
            outputs = np.flatnonzero(self._inside(part, k, overlap) & one_hot.any(1))
            made.append(self.source.piece(outputs, self.layers, targets=one_hot / max(len(outputs), 1)))
        return made

    def restricted(
        self, part: Tensor, chosen: Sequence[int], overlap: int, one_hot: NDArray[np.float64]
    ) -> list[Piece]:
        """Return the graphs between the nodes of some parts and their overlaps, with the mean losses of the parts.

        The labelled nodes of the part alone count; with as much overlap as there are layers their outputs are exact.

        Parameters
        ----------
        part : Tensor, shape (n,), int64
            Part of every node.
        chosen : sequence of int
            Which parts.
        overlap : int
            Layers of nodes around a part that are in its graph.
        one_hot : ndarray, shape (n, C)
            Classes of the labelled nodes, zero rows for the others.
        """
        made = []
        for k in chosen:
            nodes = np.flatnonzero(self._inside(part, k, overlap))
            outputs = np.flatnonzero((part[nodes] == k).numpy() & one_hot[nodes].any(1))
            targets = one_hot[nodes] / max(len(outputs), 1)
            # What is propagated beforehand is an input of the nodes, and belongs to the data.
            piece = self.source.restricted(nodes).piece(outputs, self.layers, targets=targets)
            made.append(replace(piece, nodes=nodes[piece.nodes]))
        return made


def unknowns(
    subdomains: str, layout: Layout, parts: int, overlap: int, device: torch.device
) -> tuple[Tensor | None, Tensor | None, list[int]]:
    """Return owners of the parameters (None: no one), who updates which (None: all), and the part of each subdomain.

    Parameters
    ----------
    subdomains : {"graph", "parameters", "both"}
        What is decomposed.
    layout : Layout
        Of the network.
    parts : int
        Parts of the graph, or runs of layers.
    overlap : int
        Layers of the network that are added to a run on both sides.
    device : torch.device
        Where the results are needed.
    """
    if subdomains == "graph":
        return None, None, list(range(parts))
    if subdomains == "both":
        layers = len(layout.blocks)
        mask = torch.arange(parts * layers)[:, None] % layers == layout.layer
        return None, mask.to(device), [k // layers for k in range(parts * layers)]
    runs = contiguous(layout.blocks, parts, overlap)
    owner, mask = torch.zeros(layout.size, dtype=torch.int64), torch.zeros(parts, layout.size, dtype=torch.bool)
    for k, run in enumerate(runs):
        owner[run.indices[run.owned]] = k
        mask[k, run.indices] = True
    return owner.to(device), mask.to(device), [0] * parts
