"""Clusters of a graph in shards: coarse graphs, and local graphs that are fine on one subdomain and coarse elsewhere.

Clusters lie within parts, never across two of them, and how many a part has follows from the sizes of all parts alone.
They are therefore the same on any number of ranks, which hold whole parts, and those of `mldd.graph.nested` for the
whole graph with ``within=part``. What ranks know of each other are clusters: their features, targets and edges are
averaged by the rank that holds their nodes before they are gathered.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mldd.graph import cluster_counts, nested
from mldd.problems.graphs.shard_graph import ShardGraph
from mldd.problems.nets import Piece, Source, composite_labels

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class ShardClusters:
    """Clusters of the nodes of all ranks; every property is made by all ranks together.

    Parameters
    ----------
    graph : ShardGraph
        The own m nodes of this rank and their halo of h nodes.
    own : ndarray, shape (m,), int64
        Cluster of every own node, numbered over all ranks.
    mine : range
        Clusters of this rank.
    total : int
        Number C of clusters of all ranks.
    """

    graph: ShardGraph
    own: Ints
    mine: range
    total: int

    @staticmethod
    def of(graph: ShardGraph, part: Ints, nodes: Ints, sizes: Sequence[int], seed: int) -> list[ShardClusters]:
        """Return clusters within the parts, one set per level; those of a level are unions of those of the one before.

        Parameters
        ----------
        graph : ShardGraph
            The own nodes.
        part : ndarray, shape (m,), int64
            Part of every own node; a rank has consecutive parts, each of them whole.
        nodes : ndarray, shape (parts,), int64
            Nodes of every part, those of other ranks included.
        sizes : sequence of int
            About how many clusters there are on every level, descending; every part has at least one.
        seed : int
            Of the clustering.
        """
        counts = cluster_counts(nodes, sizes)
        first, last = int(part.min()), int(part.max())
        own = np.empty((len(sizes), len(part)), dtype=np.int64)
        starts = [np.concatenate([[0], np.cumsum(of_parts)]) for of_parts in counts]
        for k in range(first, last + 1):
            members = np.flatnonzero(part == k)
            inside = graph.shard.inside.subgraph(torch.from_numpy(members))
            maps = nested(inside, [int(of_parts[k]) for of_parts in counts], seed=seed)
            for row, start, labels in zip(own, starts, maps, strict=True):
                row[members] = start[k] + labels.numpy()
        return [
            ShardClusters(graph, row, range(int(start[first]), int(start[last + 1])), int(start[-1]))
            for row, start in zip(own, starts, strict=True)
        ]

    @cached_property
    def labels(self) -> Ints:
        """Cluster of every own node and of every node of the halo, shape (m + h,)."""
        return np.concatenate([self.own, self.graph.fetched(self.own[:, None])[:, 0]])

    @cached_property
    def _sums(self) -> Any:
        """The map that adds up the own nodes of every cluster of this rank, csr_matrix of shape (clusters, m)."""
        m = len(self.own)
        return sp.csr_matrix((np.ones(m), (self.own - self.mine.start, np.arange(m))), shape=(len(self.mine), m))

    @cached_property
    def source(self) -> Source:
        """Operator, features and targets of the C clusters, the same on every rank."""
        graph, sums, span = self.graph, self._sums, len(self.labels)
        mean = sp.csr_matrix(sp.diags(1.0 / np.asarray(sums.sum(1)).ravel()) @ sums)
        into = sp.csr_matrix((np.ones(span), (np.arange(span), self.labels)), shape=(span, self.total))
        return Source(
            graph.kind,
            operator=self._gathered(mean @ (graph.operator @ into)),
            features=self._gathered(mean @ graph.shard.data.features) if not graph.layer.beforehand else None,
            terms=tuple(self._gathered(mean @ term) for term in graph.terms),
            targets=self._gathered(sums @ graph.targets),
            attributes=tuple(self._gathered(mean @ (e @ into)) for e in graph.attributes),
        )

    def _gathered(self, rows: Any) -> Any:
        """Return the rows of all ranks, one below the other."""
        comm = self.graph.comm
        if not sp.issparse(rows):
            return comm.gather(torch.from_numpy(np.asarray(rows))).numpy()
        entries = rows.tocoo()
        row = entries.row + float(self.mine.start)
        triples = np.stack([row, entries.col.astype(np.float64), entries.data], 1)
        row, column, data = comm.gather(torch.from_numpy(triples)).numpy().T
        return sp.csr_matrix((data, (row.astype(np.int64), column.astype(np.int64))), (self.total, rows.shape[1]))

    def coarse(self, layers: int) -> Piece:
        """Return the graph of all clusters.

        Parameters
        ----------
        layers : int
            Of the network.
        """
        return self.source.aggregated(np.arange(self.total), layers)

    # -------------------------------------------------------------------------------- composite graphs

    @cached_property
    def _others(self) -> Ints:
        """Clusters of the other ranks."""
        return np.delete(np.arange(self.total), self.mine)

    @cached_property
    def _reduced(self) -> Source:
        """The graph of the own nodes, first, and the clusters of all other ranks: no exchange is left in it."""
        graph, whole, others, m = self.graph, self.source, self._others, len(self.own)
        beyond = np.searchsorted(others, self.labels[m:])
        h = len(beyond)
        into = sp.csr_matrix((np.ones(h), (np.arange(h), beyond)), shape=(h, len(others)))
        average = sp.diags(1.0 / self._sizes[others]) @ into.T

        def both(own: Any, back: Any, far: Any) -> Any:
            upper, lower = [own[:, :m], own[:, m:] @ into], [average @ back, far[others][:, others]]
            return sp.csr_matrix(sp.bmat([upper, lower]))

        edges = zip(graph.attributes, graph.attributes_back, whole.attributes, strict=True)
        features = None if whole.features is None else _stacked(graph.shard.data.features, whole.features[others])
        return Source(
            graph.kind,
            operator=both(graph.operator, graph.back, whole.operator),
            features=features,
            terms=tuple(_stacked(own, far[others]) for own, far in zip(graph.terms, whole.terms, strict=True)),
            targets=np.concatenate([graph.targets, whole.targets[others]]),
            attributes=tuple(both(*pieces) for pieces in edges),
        )

    @property
    def _sizes(self) -> Floats:
        """Number of nodes of every cluster, shape (C,)."""
        own = np.asarray(self._sums.sum(1), dtype=np.float64)
        return self.graph.comm.gather(torch.from_numpy(own)).numpy()[:, 0]

    def composite(self, part: Ints, layers: int) -> list[Piece]:
        """Return the local graphs of the parts of this rank: own nodes one by one, all others as clusters.

        Parameters
        ----------
        part : ndarray, shape (m,), int64
            Part of every own node, within which the clusters lie.
        layers : int
            Of the network.
        """
        source, far = self._reduced, np.zeros(len(self._others), dtype=bool)
        clusters = np.concatenate([self.own, self._others])
        numbers = range(int(part.min()), int(part.max()) + 1)
        labels = [composite_labels(np.append(part == k, far), clusters) for k in numbers]
        return [source.aggregated(of_part, layers) for of_part in labels]


def _stacked(upper: Any, lower: Any) -> Any:
    if sp.issparse(upper) or sp.issparse(lower):
        return sp.vstack([sp.csr_matrix(upper), sp.csr_matrix(lower)], format="csr")
    return np.concatenate([upper, lower])
