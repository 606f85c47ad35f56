"""A numbering of all nodes of an Anemoi graph whose contiguous blocks, one for each rank, are good parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray

from mldd.anemoi.blocks import attached_parts, block_of, block_sizes, nested_parts, rows_needed
from mldd.problems.data.formats import TypedGraph, per_row

Ints = NDArray[np.int64]
Rows = list[dict[str, Any]]


def factors_of(counts: list[int]) -> list[int]:
    """Return into how many parts every part is cut for nested counts of ranks.

    Parameters
    ----------
    counts : list of int
        Of ranks.

    Raises
    ------
    ValueError
        They are not ascending multiples of each other.

    Examples
    --------
    >>> factors_of([2, 4, 16])
    [2, 2, 4]
    """
    before = [1, *counts]
    if not counts or any(later <= one or later % one for one, later in zip(before, counts, strict=False)):
        raise ValueError(
            f"`ranks` must be > 1, each a multiple of the one before (one numbering serves all), got {counts}; "
            "give 2,4,8 say, or one number"
        )
    return [later // one for one, later in zip(before, counts, strict=False)]


def check_symmetric(graph: TypedGraph) -> None:
    """Refuse edges among nodes of one type that do not go both ways: Anemoi's halo exchange aborts on them.

    Parameters
    ----------
    graph : TypedGraph
        Of Anemoi.

    Raises
    ------
    ValueError
        Edges without their opposite.
    """
    for kind in (kind for kind in graph.edges if kind[0] == kind[2]):
        source, target = graph.index(kind).numpy()
        n = graph.size(kind[0])
        lonely = ~np.isin(source * n + target, target * n + source)
        if lonely.any():
            k = int(np.flatnonzero(lonely)[0])
            raise ValueError(
                f"edges {' '.join(kind)} must go both ways, or Anemoi's halo exchange aborts, got {int(lonely.sum())} "
                f"of {len(source)} without the opposite ({source[k]} to {target[k]}); build them by MultiScaleEdges, "
                "or add the opposite ones"
            )


def numbering(graph: TypedGraph, counts: list[int], seed: int = 0) -> dict[str, Ints]:
    """Return for every type of nodes its new order: the old number at each new place, shape (n,).

    Nodes with edges among them (the hidden mesh, the finest one where there are several) are cut by METIS; all others
    go to the part of most of their neighbours. Parts have the sizes of Anemoi's blocks for the largest number of ranks,
    and are nested for the smaller ones. Within a part the old order stays.

    Parameters
    ----------
    graph : TypedGraph
        Of Anemoi.
    counts : list of int
        Of ranks, ascending multiples.
    seed : int
        Of the partitioner.

    Raises
    ------
    ValueError
        Counts that do not fit, no hidden mesh, edges among its nodes that do not go both ways, or a type of nodes
        without edges to others.
    """
    factors = factors_of(counts)
    check_symmetric(graph)
    inner = {kind[0] for kind in graph.edges if kind[0] == kind[2]}
    if not inner:
        raise ValueError(f"the graph must have edges among hidden nodes, got {', '.join(map(' '.join, graph.edges))}")
    smallest = min(graph.nodes, key=graph.size)
    if counts[-1] > graph.size(smallest):
        raise ValueError(f"`ranks` must be <= {graph.size(smallest)} (nodes of {smallest}), got {counts[-1]}")
    first = max(inner, key=graph.size)
    sizes = {name: block_sizes(graph.size(name), counts[-1]) for name in graph.nodes}
    labels = {first: nested_parts(_adjacency(graph, first, first), sizes[first], factors, seed)}
    while len(labels) < len(graph.nodes):
        name, other = _next(graph, labels)
        labels[name] = attached_parts(_adjacency(graph, name, other), labels[other], sizes[name], factors)
    return {name: np.argsort(of, kind="stable") for name, of in labels.items()}


def _next(graph: TypedGraph, labels: Mapping[str, Ints]) -> tuple[str, str]:
    """Return a type of nodes that has no parts yet, and one with parts that it has edges with."""
    for source, _, target in graph.edges:
        for name, other in ((source, target), (target, source)):
            if name not in labels and other in labels:
                return name, other
    left = ", ".join(name for name in graph.nodes if name not in labels)
    raise ValueError(f"every type of nodes must have edges to others, got none for {left}; leave it out of the graph")


def _adjacency(graph: TypedGraph, name: str, other: str) -> sp.csr_matrix:
    """Return how many edges the nodes of two types share, in both directions, shape (n, m); none with themselves."""
    shape = graph.size(name), graph.size(other)
    total = sp.csr_matrix(shape)
    for kind in graph.edges:
        if {kind[0], kind[2]} == {name, other}:
            source, target = graph.index(kind).numpy()
            ends = (source, target) if kind[0] == name else (target, source)
            total = total + sp.csr_matrix((np.ones(len(source)), ends), shape=shape)
    if name == other:
        total = sp.csr_matrix(total + total.T)
        total.setdiag(0)
        total.eliminate_zeros()
    return sp.csr_matrix(total)


def renumbered(graph: TypedGraph, orders: Mapping[str, Ints]) -> TypedGraph:
    """Return the same graph with other numbers: attributes go with their nodes and edges, edges sorted by target.

    Every type of nodes keeps its old numbers as ``original_index``.

    Parameters
    ----------
    graph : TypedGraph
        Of Anemoi.
    orders : dict of str to ndarray
        As `numbering` returns it.
    """
    old = {name: torch.from_numpy(order) for name, order in orders.items()}
    place = {name: torch.argsort(order) for name, order in old.items()}
    nodes = {}
    for name, of in graph.nodes.items():
        moved = {key: tensor[old[name]] for key, tensor in per_row(of, graph.size(name)).items()}
        nodes[name] = {"original_index": old[name], **of, **moved}
    edges = {}
    for kind, of in graph.edges.items():
        source, target = graph.index(kind)
        index = torch.stack([place[kind[0]][source], place[kind[2]][target]])
        by = torch.argsort(index[1], stable=True)
        moved = {key: tensor[by] for key, tensor in per_row(of, index.shape[1]).items()}
        edges[kind] = {**of, **moved, "edge_index": index[:, by].to(of["edge_index"].dtype)}
    return TypedGraph(nodes, edges)


def rows_table(graph: TypedGraph, counts: list[int], numbered: str) -> Rows:
    """Return what the ranks read of each other, a row for every number of ranks and type of edges.

    Parameters
    ----------
    graph : TypedGraph
        Of Anemoi.
    counts : list of int
        Of ranks.
    numbered : str
        How its nodes are numbered.
    """
    table = []
    for ranks in counts:
        blocks = {name: block_of(graph.size(name), ranks) for name in graph.nodes}
        for kind in graph.edges:
            needed = rows_needed(graph.index(kind).numpy(), blocks[kind[0]], blocks[kind[2]], ranks)
            table.append(
                {
                    "ranks": ranks,
                    "numbering": numbered,
                    "role": graph.role(kind),
                    "edges": " ".join(kind),
                    "rows": int(needed.sum()),
                    "largest": int(needed.max()),
                }
            )
    return table
