"""Parts of exactly given sizes, nested parts, and what each of them reads of the others."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mldd.graph import Graph, partition

Ints = NDArray[np.int64]


def block_sizes(nodes: int, ranks: int) -> Ints:
    """Return the sizes of the contiguous blocks into which Anemoi cuts nodes: the first ones are one larger.

    Parameters
    ----------
    nodes, ranks : int
        Nodes of a type, and ranks of a model.
    """
    sizes: Ints = nodes // ranks + (np.arange(ranks) < nodes % ranks).astype(np.int64)
    return sizes


def block_of(nodes: int, ranks: int) -> Ints:
    """Return the rank that Anemoi gives every node, shape (nodes,).

    Parameters
    ----------
    nodes, ranks : int
        Nodes of a type, and ranks of a model.
    """
    return np.repeat(np.arange(ranks), block_sizes(nodes, ranks))


def rows_needed(edge_index: Ints, source: Ints, target: Ints, ranks: int) -> Ints:
    """Return how many rows every rank needs from others: distinct sources of its targets' edges, shape (ranks,).

    Parameters
    ----------
    edge_index : ndarray, shape (2, E), int64
        Numbers of sources and targets.
    source, target : ndarray of int64
        The rank of every source and target node.
    ranks : int
        Their number.
    """
    sources, reader = edge_index[0], target[edge_index[1]]
    crossing = source[sources] != reader
    pairs = np.unique(reader[crossing] * len(source) + sources[crossing])
    counts: Ints = np.bincount(pairs // len(source), minlength=ranks)
    return counts


def nested_parts(adjacency: sp.csr_matrix, sizes: Ints, factors: list[int], seed: int = 0) -> Ints:
    """Return parts of given sizes with few edges between them, which are cuts of larger parts, shape (n,).

    Parameters
    ----------
    adjacency : csr_matrix, shape (n, n)
        Symmetric.
    sizes : ndarray, shape (P,)
        Of the last parts.
    factors : list of int
        Into how many parts every part is cut, level by level; their product is P.
    seed : int
        Of the partitioner.
    """
    labels, count = np.zeros(adjacency.shape[0], dtype=np.int64), 1
    for factor in factors:
        wanted = sizes.reshape(count * factor, -1).sum(1)
        finer = np.empty_like(labels)
        for part in range(count):
            own = np.flatnonzero(labels == part)
            inner = adjacency[own][:, own]
            finer[own] = part * factor + _cut(inner, wanted[part * factor : (part + 1) * factor], seed)
        labels, count = finer, count * factor
    return labels


def _cut(adjacency: sp.csr_matrix, sizes: Ints, seed: int) -> Ints:
    """Cut a graph into parts of exactly these sizes."""
    parts = len(sizes)
    if parts == 1:
        return np.zeros(adjacency.shape[0], dtype=np.int64)
    pairs = adjacency.tocoo()
    graph = Graph.from_edges(torch.from_numpy(np.stack([pairs.row, pairs.col]).astype(np.int64)), adjacency.shape[0])
    return exactly(adjacency, partition(graph, parts, seed=seed).numpy().copy(), sizes)


def attached_parts(votes: sp.csr_matrix, others: Ints, sizes: Ints, factors: list[int]) -> Ints:
    """Return parts of given sizes for nodes that go where their neighbours of another type are, shape (n,).

    Parameters
    ----------
    votes : csr_matrix, shape (n, m)
        How many edges a node shares with each node of the other type.
    others : ndarray, shape (m,)
        The parts of those.
    sizes : ndarray, shape (P,)
        Of the last parts.
    factors : list of int
        As in `nested_parts`.
    """
    total = len(sizes)
    labels, count = np.zeros(votes.shape[0], dtype=np.int64), 1
    between = sp.csr_matrix(votes @ votes.T)
    between.setdiag(0)
    between.eliminate_zeros()  # nodes are neighbours where they share a node of the other type
    for factor in factors:
        count *= factor
        wanted = sizes.reshape(count, -1).sum(1)
        finer = np.empty_like(labels)
        of_others = others // (total // count)
        chosen = sp.csr_matrix((np.ones(len(others)), (np.arange(len(others)), of_others)), shape=(len(others), count))
        shares = np.asarray((votes @ chosen).todense())
        for part in range(count // factor):
            own, first = np.flatnonzero(labels == part), part * factor
            best = shares[own, first : first + factor].argmax(1)
            finer[own] = first + exactly(between[own][:, own], best, wanted[first : first + factor])
        labels = finer
    return labels


def exactly(adjacency: sp.csr_matrix, labels: Ints, sizes: Ints) -> Ints:
    """Return parts of exactly given sizes, made by moving nodes between neighbouring parts, shape (n,).

    Surplus nodes go along the shortest way from part to part to one that lacks some; on each of its steps the node is
    moved that loses the fewest neighbours.

    Parameters
    ----------
    adjacency : csr_matrix, shape (n, n)
        Symmetric.
    labels : ndarray, shape (n,), int64
        Parts to start from.
    sizes : ndarray, shape (P,)
        They add up to n.
    """
    parts = len(sizes)
    labels = labels.astype(np.int64).copy()
    member = sp.csr_matrix((np.ones(len(labels)), (np.arange(len(labels)), labels)), shape=(len(labels), parts))
    shared = np.asarray((adjacency @ member).todense())  # neighbours of every node in every part
    surplus = np.bincount(labels, minlength=parts) - sizes
    while surplus.any():
        first = int(surplus.argmax())
        way = _way(labels, shared, first, surplus)
        for a, b in zip(way, way[1:], strict=False):
            mine = np.flatnonzero(labels == a)
            node = int(mine[(shared[mine, b] - shared[mine, a]).argmax()])
            labels[node] = b
            near = slice(adjacency.indptr[node], adjacency.indptr[node + 1])
            shared[adjacency.indices[near], a] -= adjacency.data[near]
            shared[adjacency.indices[near], b] += adjacency.data[near]
        surplus[first] -= 1
        surplus[way[-1]] += 1
    return labels


def _way(labels: Ints, shared: NDArray[np.float64], first: int, surplus: Ints) -> list[int]:
    """Return the shortest way over neighbouring parts to one that lacks nodes; straight there where none leads on."""
    linked = np.stack([(shared[labels == part] > 0).any(0) for part in range(len(surplus))])
    before, front = {first: first}, [first]
    while front:
        reached = []
        for part in front:
            if surplus[part] < 0:
                way = [part]
                while way[-1] != first:
                    way.append(before[way[-1]])
                return way[::-1]
            for other in np.flatnonzero(linked[part]):
                if int(other) not in before:
                    before[int(other)] = part
                    reached.append(int(other))
        front = reached
    return [first, int(surplus.argmin())]
