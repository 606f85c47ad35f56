"""Clusters of neighbouring nodes, on one level or nested on several: what coarse graphs are made of.

Two ways lead to them: METIS cuts the graph into balanced parts; heavy-edge matching merges the ends of strong edges,
pair by pair, until the number is reached. Both look at the weights of the graph; `mldd.graph.coupling.edge_weights`
makes these from features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph.graph import Graph, kind_of
from mldd.graph.partitioning import partition

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Method = Literal["metis", "matching"]

_HEAVY = 2.0  # clusters of matching that are joined have at most this many times the mean size
_ALONE = 0.25  # share of clusters without a partner from which those with a common neighbour are paired
_SLOW = 0.05  # share of clusters below which matching has come to its end and any two are paired


def aggregate(
    graph: Graph, clusters: int, *, seed: int = 0, within: Tensor | None = None, method: Method = "metis"
) -> Tensor:
    """Group the nodes into `clusters` clusters of neighbours, none of them empty.

    Parameters
    ----------
    graph : Graph
        Strong edges (by its weights) are kept inside clusters.
    clusters : int
        Number of clusters wanted, 1..n.
    seed : int
        The same seed gives the same clusters.
    within : LongTensor, shape (n,), optional
        A part per node; clusters do not cross parts. Every part gets its share by size and at least one cluster, so the
        total is exact unless there are more parts than clusters.
    method : {"metis", "matching"}
        METIS, or heavy-edge matching: see `nested`.

    Returns
    -------
    LongTensor, shape (n,)
        Labels 0..k-1, each of which occurs; the clusters of one part are consecutive.

    Raises
    ------
    ValueError
        A number of clusters that the graph has no nodes for, an unknown method, a wrong `within`.
    """
    return nested(graph, [clusters], seed=seed, within=within, method=method)[0]


def nested(
    graph: Graph,
    sizes: Sequence[int],
    *,
    seed: int = 0,
    within: Tensor | None = None,
    method: Method = "metis",
) -> list[Tensor]:
    """Group the nodes on several levels: every cluster of a level is a union of clusters of the level before.

    Each level groups the contracted graph of the one before, with the sums of edge weights and with the sizes of the
    clusters as node weights.

    Parameters
    ----------
    graph, seed, within
        As in `aggregate`.
    sizes : sequence of int
        Number of clusters on every level, descending: 1 <= ... <= sizes[1] <= sizes[0] <= n.
    method : {"metis", "matching"}
        ``matching``: every cluster points at the neighbour with the largest ``w_uv / (s_u s_v)`` (w: summed edge
        weight, s: sizes), those that point at each other are merged, and so on until nobody has a free neighbour; then
        the graph is contracted and it begins anew. Clusters left without a partner are paired if they have a common
        neighbour, and at the very end (isolated nodes, small components) if they are the smallest. The last round
        merges the strongest pairs only, so that the number is exact.

    Returns
    -------
    list of LongTensor, shape (n,)
        One map from nodes to clusters 0..k-1 per level.

    Raises
    ------
    ValueError
        As `aggregate`, and sizes that do not descend.

    References
    ----------
    Karypis and Kumar, doi:10.1137/S1064827595287997, section 3 (heavy-edge matching); Holtgrewe, Sanders and Schulz,
    arXiv:0910.2004, section 3 (the rating by weight over the product of sizes); Fagginger Auer and Bisseling,
    doi:10.1007/978-3-642-30397-5_10 (pointing at each other, in parallel).

    Examples
    --------
    A path of eight nodes in pairs, then in fours:

    >>> path = Graph.from_edges(torch.stack([torch.arange(7), torch.arange(1, 8)]), 8)
    >>> pairs, fours = nested(path, [4, 2])
    >>> [len(pairs[fours == k].unique()) for k in (0, 1)]
    [2, 2]
    """
    if method not in ("metis", "matching"):
        raise ValueError(f"`method` must be metis or matching, got {method!r}")
    for before, clusters in zip([graph.nodes, *sizes], sizes, strict=False):
        if not 1 <= clusters <= before:
            most = "nodes of the graph" if before == graph.nodes else "clusters of the level before"
            raise ValueError(f"`clusters` must be in 1..{before} ({most}), got {clusters}")
    part = _parts(graph, within)
    group = _by_metis if method == "metis" else _by_matching
    crowd = _Crowd(graph.scipy(), np.ones(graph.nodes, dtype=np.int64), part)
    labels, levels = np.arange(graph.nodes), []
    for targets in cluster_counts(np.bincount(part), sizes):
        found = group(crowd, targets, seed)
        crowd, labels = crowd.merged(found), found[labels]
        levels.append(torch.from_numpy(labels))
    return levels


def cluster_counts(nodes: Ints, sizes: Sequence[int]) -> list[Ints]:
    """Return the number of clusters of every part on every level, as `nested` has them within parts.

    They follow from the sizes of the parts alone: whoever holds some of the parts can cluster these by themselves.

    Parameters
    ----------
    nodes : ndarray, shape (parts,), int64
        Nodes of every part.
    sizes : sequence of int
        Number of clusters on every level, descending.

    Returns
    -------
    list of ndarray, shape (parts,), int64
        At least one cluster per part, so that the total is more than asked for where there are more parts.

    Examples
    --------
    >>> [counts.tolist() for counts in cluster_counts(np.array([30, 10, 1]), [6, 2])]
    [[3, 2, 1], [1, 1, 1]]
    """
    counts = [nodes]
    for clusters in sizes:
        counts.append(_shares(counts[-1], clusters))
    return counts[1:]


def _parts(graph: Graph, within: Tensor | None) -> Ints:
    """Return the part of every node, numbered 0, 1, ... without gaps."""
    if within is None:
        return np.zeros(graph.nodes, dtype=np.int64)
    if within.dtype != torch.int64 or within.shape != (graph.nodes,):
        raise ValueError(f"`within` must be int64 of shape ({graph.nodes},), got {kind_of(within)}")
    return np.asarray(np.unique(within.cpu().numpy(), return_inverse=True)[1], dtype=np.int64)


def _shares(sizes: Ints, clusters: int) -> Ints:
    """Share `clusters` out in proportion to the sizes: every share at least 1, the rest by largest remainder."""
    spare = max(clusters - sizes.size, 0)
    quota = spare * (sizes - 1) / max(int((sizes - 1).sum()), 1)
    shares = np.floor(quota).astype(np.int64)
    rest = spare - int(shares.sum())
    shares[np.argsort(shares - quota, kind="stable")[:rest]] += 1
    return 1 + shares


@dataclass(frozen=True, eq=False)
class _Crowd:
    """The clusters so far: the weights between them, their sizes in nodes, and the part that each belongs to."""

    matrix: sp.csr_matrix
    sizes: Ints
    part: Ints

    @property
    def graph(self) -> Graph:
        indptr, indices = (torch.from_numpy(a.astype(np.int64)) for a in (self.matrix.indptr, self.matrix.indices))
        return Graph(indptr, indices, torch.from_numpy(self.matrix.data))

    def merged(self, labels: Ints) -> _Crowd:
        """Return the clusters of these clusters."""
        m, k = len(labels), int(labels.max()) + 1
        t = sp.csr_matrix((np.ones(m), labels, np.arange(m + 1)), shape=(m, k))
        matrix = sp.csr_matrix(t.T @ self.matrix @ t)
        matrix.setdiag(0)
        matrix.eliminate_zeros()
        matrix.sort_indices()
        part = np.empty(k, dtype=np.int64)
        part[labels] = self.part
        return _Crowd(matrix, np.bincount(labels, self.sizes, k).astype(np.int64), part)


def _by_metis(crowd: _Crowd, targets: Ints, seed: int) -> Ints:
    """Cut every part into its share of clusters, shape (m,)."""
    graph = crowd.graph
    weights = None if bool((crowd.sizes == crowd.sizes[0]).all()) else torch.from_numpy(crowd.sizes)
    members = np.split(np.argsort(crowd.part, kind="stable"), np.cumsum(np.bincount(crowd.part))[:-1])
    labels = np.empty(len(crowd.part), dtype=np.int64)
    start = 0
    for index, share in zip(members, targets.tolist(), strict=True):
        nodes = torch.from_numpy(index)
        inside = graph if len(targets) == 1 else graph.subgraph(nodes)
        heavy = None if weights is None else weights[nodes]
        labels[index] = start + partition(inside, share, seed=seed, node_weights=heavy).numpy()
        start += share
    return labels


# ------------------------------------------------------------------------------------------------ matching


def _by_matching(crowd: _Crowd, targets: Ints, seed: int) -> Ints:
    """Merge pairs until every part has its share of clusters; return the cluster of every member, shape (m,)."""
    random = np.random.default_rng(seed)
    heaviest = _HEAVY * np.bincount(crowd.part, crowd.sizes) / targets
    labels = np.arange(len(crowd.sizes))
    while True:
        allowed = np.bincount(crowd.part, minlength=len(targets)) - targets
        if not allowed.any():
            break
        found = _paired(_pairs(crowd, allowed, heaviest, random), len(crowd.sizes))
        crowd, labels = crowd.merged(found), found[labels]
    place = np.empty(len(crowd.part), dtype=np.int64)
    place[np.argsort(crowd.part, kind="stable")] = np.arange(len(crowd.part))
    return np.asarray(place[labels])


def _paired(pairs: Ints, m: int) -> Ints:
    """Return new numbers 0, 1, ... that the two of a pair share, shape (m,)."""
    first = np.arange(m)
    first[pairs[1]] = pairs[0]
    return np.asarray(np.unique(first, return_inverse=True)[1], dtype=np.int64)


def _pairs(crowd: _Crowd, allowed: Ints, heaviest: Floats, random: np.random.Generator) -> Ints:
    """Return disjoint pairs to merge, shape (2, k): the strongest, at most `allowed` of every part."""
    part, sizes, m = crowd.part, crowd.sizes, len(crowd.sizes)
    upper = sp.triu(crowd.matrix, 1).tocoo()
    u, v = upper.row.astype(np.int64), upper.col.astype(np.int64)
    keep = (part[u] == part[v]) & (allowed[part[u]] > 0)
    u, v, weight = u[keep], v[keep], upper.data[keep]
    light = sizes[u] + sizes[v] <= heaviest[part[u]]
    ends = np.stack([u[light], v[light]])
    pairs = _handshakes(ends, weight[light] / (sizes[ends[0]] * sizes[ends[1]]), m, random)
    open_ = allowed[part] > 0
    counts = np.bincount(part[open_], minlength=len(allowed))
    if pairs.shape[1] * 2 < (1 - _ALONE) * open_.sum():
        common = _common_neighbours(u, v, weight, _single(pairs, open_), m)
        pairs = np.concatenate([pairs, common[:, _fits(common, sizes, heaviest, part)]], axis=1)
    slow = np.bincount(part[pairs[0]], minlength=len(allowed)) < np.minimum(allowed, _SLOW * counts)
    alone = np.flatnonzero(_single(pairs, open_) & slow[part])
    alone = alone[np.lexsort((sizes[alone], part[alone]))]
    rest = _neighbours_in_line(alone, part[alone])
    # the smallest two of a part are merged whatever their size: the number of clusters has to come down
    smallest = np.append(True, part[rest[0, 1:]] != part[rest[0, :-1]])[: rest.shape[1]]
    pairs = np.concatenate([pairs, rest[:, smallest | _fits(rest, sizes, heaviest, part)]], axis=1)
    return _first(pairs, part[pairs[0]], allowed)


def _fits(pairs: Ints, sizes: Ints, heaviest: Floats, part: Ints) -> NDArray[np.bool_]:
    return np.asarray(sizes[pairs].sum(0) <= heaviest[part[pairs[0]]])


def _single(pairs: Ints, open_: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Say which of the `open_` clusters are in no pair."""
    single = open_.copy()
    single[pairs.ravel()] = False
    return single


def _handshakes(ends: Ints, rating: Floats, m: int, random: np.random.Generator) -> Ints:
    """Return a maximal matching, best pairs first: edges that are the best of both ends, again and again."""
    order = np.lexsort((random.random(len(rating)), rating))
    rank = np.empty(len(rating), dtype=np.int64)
    rank[order] = np.arange(len(rating))
    chosen = []
    while rank.size:
        best = np.full(m, -1)
        np.maximum.at(best, ends[0], rank)
        np.maximum.at(best, ends[1], rank)
        mutual = (best[ends[0]] == rank) & (best[ends[1]] == rank)
        chosen.append(np.stack([*ends[:, mutual], rank[mutual]]))
        taken = np.zeros(m, dtype=bool)
        taken[ends[:, mutual].ravel()] = True
        free = ~taken[ends].any(0)
        ends, rank = ends[:, free], rank[free]
    if not chosen:
        return np.empty((2, 0), dtype=np.int64)
    pairs = np.concatenate(chosen, axis=1)
    return np.asarray(pairs[:2, np.argsort(-pairs[2])])


def _common_neighbours(u: Ints, v: Ints, weight: Floats, single: NDArray[np.bool_], m: int) -> Ints:
    """Pair the `single` clusters whose heaviest neighbour is the same."""
    row, column, data = np.concatenate([u, v]), np.concatenate([v, u]), np.concatenate([weight, weight])
    mine = single[row]
    row, column, data = row[mine], column[mine], data[mine]
    order = np.lexsort((column, data, row))
    last = np.append(row[order][1:] != row[order][:-1], True)[: len(order)]
    nodes, heavy = row[order][last], column[order][last]
    by_neighbour = np.argsort(heavy, kind="stable")
    return _neighbours_in_line(nodes[by_neighbour], heavy[by_neighbour])


def _neighbours_in_line(line: Ints, group: Ints) -> Ints:
    """Pair the first of every group with the second, the third with the fourth, ...; groups are consecutive."""
    if len(line) < 2:
        return np.empty((2, 0), dtype=np.int64)
    start = np.flatnonzero(np.append(True, group[1:] != group[:-1]))
    place = np.arange(len(line)) - np.repeat(start, np.diff(np.append(start, len(line))))
    first = np.flatnonzero((place[:-1] % 2 == 0) & (group[1:] == group[:-1]))
    return np.stack([line[first], line[first + 1]])


def _first(pairs: Ints, part: Ints, allowed: Ints) -> Ints:
    """Return the first `allowed` pairs of every part."""
    order = np.argsort(part, kind="stable")
    counts = np.bincount(part, minlength=len(allowed))
    place = np.arange(len(order)) - np.repeat(np.cumsum(counts) - counts, counts)
    return np.asarray(pairs[:, order[place < allowed[part[order]]]])
