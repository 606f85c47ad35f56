"""Partitions of graphs behind one interface, what a partition costs, and new partitions that stay near an old one."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from typing import Any, cast

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import from_outside, loaded, registered, way_to_install
from mldd.graph.coupling import opposite, points
from mldd.graph.cut import Cut, Partitioner, heaviest
from mldd.graph.graph import Graph, kind_of
from mldd.graph.refinement import balanced, refined

__all__ = ["Repartition", "check_part", "partition", "partition_methods", "repartition", "report"]

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

_METHODS: dict[str, str] = registered("mldd.graph.partitioners")  # name -> "module:function"
_WITHOUT_EDGES = ("geometric", "random")  # they look at no edge, so they cut graphs that have none
_PETSC = re.compile(r"petsc(-(?P<kind>[^:]*))?")  # knows no weights of nodes
# What `best` tries, as far as it is installed, and from how many seeds: on large graphs one pass takes minutes.
_CANDIDATES = {"metis": "pymetis", "metis-volume": "pymetis", "kahypar-km1": "mtkahypar", "kahip": "kahip"}
_TRIES, _LARGE = 3, 200_000  # directed edges from which on it takes one seed


def partition_methods() -> list[str]:
    """Return the methods of `partition`; ``petsc-TYPE`` is one too, for every type of MatPartitioning in the build."""
    return [*_METHODS, "best"]


def partition(
    graph: Graph,
    parts: int,
    method: str = "metis",
    *,
    seed: int = 0,
    node_weights: Tensor | None = None,
    coordinates: Tensor | None = None,
    imbalance: float = 0.03,
) -> Tensor:
    """Cut the graph into parts of nearly equal weight that read few nodes of each other.

    =============  ==================================================================================================
    metis          few and weak edges cut (below 8 parts by bisection, which is balanced to 0.1 %)
    metis-volume   METIS's communication volume, few halo rows; edge weights play no role
    mixed          unions of many small parts of METIS, at random: parts that resemble each other
    kahypar        few and weak edges cut, by Mt-KaHyPar
    kahypar-km1    few halo rows: connectivity of the hypergraph of neighbourhoods; edge weights play no role
    kahip          few and weak edges cut, by KaHIP
    petsc          PETSc's MatPartitioning: the best type in the build; ``petsc-TYPE`` chooses
    geometric      recursive bisection of `coordinates` across principal axes
    spectral       recursive bisection of Fiedler vectors, component by component
    contiguous     runs of the numbering
    random         no regard to edges
    best           of METIS (both), KaHyPar (KM1) and KaHIP, three seeds each where the graph has fewer than 200,000
                   directed edges, every result refined by moves that lower halo rows: the fewest halo rows
    =============  ==================================================================================================

    Parameters
    ----------
    graph : Graph
        Its weights, if any, are scaled to integers in 1..1000 for all but geometric and spectral.
    parts : int
        Number of parts; none of them comes out empty.
    method : str
        One of these, a name of an entry point of the group ``mldd.partitioners``, or ``file.py:function`` or
        ``package.module:function``, a function as `mldd.graph.Partitioner` describes it.
    seed : int
        The same seed gives the same partition.
    node_weights : Tensor, shape (n,) or (n, c), optional
        Non-negative weights to balance; the default counts nodes. Several (ones, degrees and a mask of training nodes,
        say) are added up, each divided by its mean, for the method, whose wheel may know one weight only; then nodes at
        the boundaries are moved until each of them is balanced by itself (`mldd.graph.refinement.balanced`).
    coordinates : Tensor, shape (n, 2) or (n, d), optional
        Two columns are latitude and longitude in degrees, other numbers of columns are Cartesian.
    imbalance : float
        Aim: no part heavier than max(1.03 m, m + (1 - 1 / p) w) for 0.03, where m is the mean and w the heaviest node.

    Returns
    -------
    LongTensor, shape (n,)
        The part of every node, 0..parts-1.

    Raises
    ------
    ValueError
        If there are fewer nodes than parts, the adjacency is not symmetric, the weights do not fit, or the method is
        unknown, lacks its coordinates or returns no partition.
    FileNotFoundError
        If the file of the method is missing.
    ImportError
        If the wheel of the method is missing.
    """
    nodes = graph.nodes
    if parts < 1 or parts > nodes:
        raise ValueError(f"`parts` must be >= 1 and <= nodes of the graph ({nodes}), got {parts}")
    if not 0 <= imbalance < np.inf:
        raise ValueError(f"`imbalance` must be >= 0 and finite, got {imbalance}")
    cutter = _cutter(method)
    _check_symmetric(graph)
    weights = None if node_weights is None else _check_node_weights(node_weights, nodes)
    place = None if coordinates is None else points(coordinates, nodes)
    if parts == 1:
        return torch.zeros(nodes, dtype=torch.int64)
    if parts == nodes:
        return torch.arange(nodes)
    one = None if weights is None else weights.mean(axis=1) if weights.shape[1] > 1 else weights[:, 0]
    cut = Cut(graph, parts, seed, imbalance, one, place)
    if graph.edges == 0 and place is None and method not in _WITHOUT_EDGES:
        cutter = _cutter("contiguous")
    labels = _checked(cutter(cut), cut, method)
    if weights is not None and (weights.shape[1] > 1 or _PETSC.fullmatch(method)):
        # within half the imbalance first: without room no node could move
        labels = balanced(graph, labels, parts, weights, imbalance / 2)
        labels = refined(graph, labels, parts, weights, imbalance, "halo" if graph.weights is None else "cut", seed)
    return torch.from_numpy(_repaired(labels, parts))


def _cutter(method: str) -> Partitioner:
    """Look a method up."""
    if method in _METHODS or from_outside(method, _METHODS) == method:
        return cast(Partitioner, loaded(_METHODS.get(method, method), "function"))
    if method == "best":
        return _best
    of_petsc = _PETSC.fullmatch(method)
    if of_petsc is None:
        raise ValueError(f"`method` must be one of {' '.join(partition_methods())} or petsc-TYPE, got {method!r}")
    return partial(loaded(_METHODS["petsc"], "function"), kind=of_petsc["kind"])


def _checked(labels: Any, cut: Cut, method: str) -> Ints:
    """Refuse what is no part of every node; the method may be one of the user's."""
    found, nodes = np.asarray(labels), cut.graph.nodes
    if found.shape != (nodes,) or found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= cut.parts:
        kind = f"{found.dtype} of shape {found.shape}"
        within = f" in {found.min()}..{found.max()}" if found.size and found.dtype.kind in "iuf" else ""
        raise ValueError(
            f"method {method} must return integers 0..{cut.parts - 1} of shape ({nodes},), got {kind}{within}"
        )
    return found.astype(np.int64)


def _best(cut: Cut) -> Ints:
    """Return the candidate with the fewest halo rows within the imbalance; the most balanced one if none is."""
    there = [name for name, module in _CANDIDATES.items() if find_spec(module) is not None]
    if not there:
        raise ImportError(f"method best needs at least one partitioner: {way_to_install('mtkahypar')}")
    seeds = range(cut.seed, cut.seed + (_TRIES if cut.graph.edges < _LARGE else 1))
    load = cut.load[:, None]
    allowed = heaviest(cut.load, cut.parts, cut.imbalance)
    found: list[tuple[float, int, Ints]] = []
    for name in there:
        for seed in seeds:
            labels = _repaired(_cutter(name)(replace(cut, seed=seed)), cut.parts)
            labels = balanced(cut.graph, labels, cut.parts, load, cut.imbalance)
            labels = refined(cut.graph, labels, cut.parts, load, cut.imbalance, seed=seed)
            over = float(np.bincount(labels, weights=cut.load).max() / allowed)
            found.append((max(over, 1.0), int(_halo(cut.graph, torch.from_numpy(labels)).sum()), labels))
    return min(found, key=lambda entry: entry[:2])[2]


def _repaired(labels: Ints, parts: int) -> Ints:
    """Fill empty parts: each takes half the nodes of one of the largest parts, until none is empty."""
    labels = labels.copy()
    while True:
        sizes = np.bincount(labels, minlength=parts)
        empty = np.flatnonzero(sizes == 0)
        if empty.size == 0:
            return labels
        donors = np.argsort(-sizes, kind="stable")[: empty.size]
        donors = donors[sizes[donors] >= 2]
        heir = np.full(parts, -1)
        heir[donors] = empty[: donors.size]
        rank = _rank(labels, sizes)
        moves = (heir[labels] >= 0) & (rank >= (sizes[labels] + 1) // 2)
        labels[moves] = heir[labels[moves]]


def _rank(labels: Ints, sizes: Ints) -> Ints:
    """Return the place 0, 1, ... of every node within its part."""
    order = np.argsort(labels, kind="stable")
    start = np.cumsum(sizes) - sizes
    rank = np.empty(labels.size, dtype=np.int64)
    rank[order] = np.arange(labels.size) - start[labels[order]]
    return rank


# ------------------------------------------------------------------------------------------------ during training


@dataclass(frozen=True, eq=False)
class Repartition:
    """A new partition beside the old one.

    Attributes
    ----------
    part : LongTensor, shape (n,)
        Numbered such that as many nodes as possible keep their part.
    moved : int
        Nodes that change their part.
    before, after : float
        Weight of the cut under the new weights, by the old and by the new partition.
    """

    part: Tensor
    moved: int
    before: float
    after: float


def repartition(
    graph: Graph,
    part: Tensor,
    weights: Tensor,
    *,
    method: str = "refine",
    seed: int = 0,
    node_weights: Tensor | None = None,
    imbalance: float = 0.03,
) -> Repartition:
    """Cut the graph anew where its edges have come to weigh something else, and move few nodes.

    Parameters
    ----------
    graph : Graph
        The graph of the old partition.
    part : LongTensor, shape (n,)
        The old partition; no part may be empty.
    weights : Tensor, shape (E,)
        New weights of the edges (`mldd.graph.coupling`).
    method : str
        ``refine`` moves nodes at the boundary of the old parts as long as that lowers the weight of the cut; a method
        of `partition` starts from nothing, and its parts get the numbers with which the fewest nodes move.
    seed, node_weights, imbalance
        As in `partition`.

    Returns
    -------
    Repartition
    """
    parts = check_part(graph, part)
    weighted = Graph(graph.indptr, graph.indices, weights)
    _check_symmetric(weighted)
    old = part.cpu().numpy()
    if method == "refine":
        load = _check_node_weights(torch.ones(graph.nodes) if node_weights is None else node_weights, graph.nodes)
        new = balanced(weighted, old, parts, load, imbalance)
        new = _repaired(refined(weighted, new, parts, load, imbalance, "cut", seed), parts)
    else:
        options: dict[str, Any] = {"seed": seed, "node_weights": node_weights, "imbalance": imbalance}
        new = partition(weighted, parts, method, **options).numpy()
    new = _matched(old, new, parts)
    before, after = (_cut_weight(weighted, torch.from_numpy(labels)) for labels in (old, new))
    return Repartition(torch.from_numpy(new), int((new != old).sum()), before, after)


def _matched(old: Ints, new: Ints, parts: int) -> Ints:
    """Renumber `new` such that it agrees with `old` at as many nodes as possible."""
    from scipy.optimize import linear_sum_assignment

    agree = np.bincount(new * parts + old, minlength=parts * parts).reshape(parts, parts)
    number = linear_sum_assignment(agree, maximize=True)[1]
    return np.asarray(number[new], dtype=np.int64)


# ------------------------------------------------------------------------------------------------ what it costs


def report(graph: Graph, part: Tensor) -> dict[str, Any]:
    """Describe a partition.

    Parameters
    ----------
    graph : Graph
        The graph that is cut.
    part : LongTensor, shape (n,)
        The part of every node.

    Returns
    -------
    dict
        `parts`; `sizes` (nodes per part); `cut` (undirected edges between parts), `cut_fraction`, and `weighted_cut` if
        the graph has weights; `balance` (largest part over the average), `edge_balance` (the same for directed edges,
        each counted where its row is); `halo` (per part, nodes of other parts that it reads in one hop), `halo_rows`
        (the sum), which is `km1`: the sum over nodes v of l(v) - 1, where v and its neighbours lie in l(v) parts;
        `replication_factor` (n + halo_rows) / n; `components` (connected pieces per part).
    """
    parts = check_part(graph, part)
    row, col = graph.edge_index
    crossing = part[row] != part[col]
    halo = _halo(graph, part)
    sizes = torch.bincount(part, minlength=parts)
    work = torch.bincount(part[row], minlength=parts)
    cut, rows = int(crossing.sum()) // 2, int(halo.sum())
    found = {
        "parts": parts,
        "sizes": sizes.tolist(),
        "cut": cut,
        "cut_fraction": 2 * cut / max(graph.edges, 1),
        "balance": int(sizes.max()) * parts / graph.nodes,
        "edge_balance": int(work.max()) * parts / max(graph.edges, 1),
        "halo": halo.tolist(),
        "halo_rows": rows,
        "km1": rows,
        "replication_factor": 1 + rows / graph.nodes,
        "components": _pieces(graph, part, ~crossing, parts).tolist(),
    }
    return found if graph.weights is None else found | {"weighted_cut": _cut_weight(graph, part)}


def _halo(graph: Graph, part: Tensor) -> Tensor:
    """Count the nodes of other parts that each part reads."""
    row, col = graph.edge_index
    crossing = part[row] != part[col]
    pairs = torch.unique(part[row[crossing]] * graph.nodes + col[crossing])
    return torch.bincount(pairs // graph.nodes, minlength=int(part.max()) + 1)


def _pieces(graph: Graph, part: Tensor, inside: Tensor, parts: int) -> Tensor:
    """Count the connected components of every part."""
    row, col = graph.edge_index[:, inside].numpy()
    within = sp.coo_matrix((np.ones(len(row), dtype=np.int8), (row, col)), shape=(graph.nodes, graph.nodes))
    label = sp.csgraph.connected_components(within, directed=False)[1]
    first = np.unique(label, return_index=True)[1]
    return torch.bincount(part[torch.from_numpy(first)], minlength=parts)


def _cut_weight(graph: Graph, part: Tensor) -> float:
    row, col = graph.edge_index
    weights = torch.ones(graph.edges, dtype=torch.float64) if graph.weights is None else graph.weights
    return float(weights[part[row] != part[col]].sum()) / 2


def check_part(graph: Graph, part: Tensor, *, filled: bool = False) -> int:
    """Return the number of parts of a partition that is checked.

    Parameters
    ----------
    graph : Graph
        The graph that is cut.
    part : LongTensor, shape (n,)
        The part of every node.
    filled : bool
        Whether no part may be empty.

    Raises
    ------
    ValueError
        Numbers that are no parts of these nodes, or an empty part.
    """
    if part.dtype != torch.int64 or part.shape != (graph.nodes,) or int(part.min()) < 0:
        raise ValueError(f"`part` must be int64 >= 0 of shape ({graph.nodes},), got {kind_of(part)}")
    parts = int(part.max()) + 1
    empty = int((torch.bincount(part, minlength=parts) == 0).sum())
    if filled and empty:
        raise ValueError(f"every part 0..{parts - 1} must have a node, got {empty} that have none; number them anew")
    return parts


def _check_symmetric(graph: Graph) -> None:
    """Refuse a graph made by hand that partitioners written in C would stumble over."""
    indptr, indices = graph.indptr.numpy(), graph.indices.numpy()
    way_out = "use Graph.from_edges"
    if indptr[0] != 0 or indptr[-1] != len(indices) or (np.diff(indptr) < 0).any():
        raise ValueError(f"`indptr` of the graph must rise from 0 to {len(indices)}, got something else; {way_out}")
    if len(indices) == 0:
        return
    if indices.min() < 0 or indices.max() >= graph.nodes:
        raise ValueError(
            f"the graph must hold nodes 0..{graph.nodes - 1}, got {indices.min()}..{indices.max()}; {way_out}"
        )
    there = sp.csr_matrix((np.ones(len(indices), dtype=np.int8), indices, indptr), shape=(graph.nodes,) * 2).T.tocsr()
    there.sort_indices()
    row = np.repeat(np.arange(graph.nodes), np.diff(indptr))
    if (row == indices).any() or not (np.array_equal(there.indptr, indptr) and np.array_equal(there.indices, indices)):
        raise ValueError(
            "the adjacency of a graph that is cut must be symmetric, ascending in each row, without self loops, "
            f"got one that is not; {way_out}, which makes it so"
        )
    if graph.weights is not None:
        values = graph.weights.numpy()
        if not np.allclose(values, values[opposite(graph)], rtol=1e-9, atol=0):
            raise ValueError(f"`weights` must be equal in both directions of an edge, got others; {way_out}")


def _check_node_weights(weights: Tensor, nodes: int) -> Floats:
    """Return weights of shape (n, c); several are divided by their means."""
    if weights.dim() not in (1, 2) or len(weights) != nodes or weights.numel() == 0 or weights.dtype.is_complex:
        raise ValueError(f"`node_weights` must have shape ({nodes},) or ({nodes}, c), got {kind_of(weights)}")
    values = weights.cpu().double().reshape(nodes, -1)
    if not bool(torch.isfinite(values).all()) or float(values.min()) < 0 or float(values.sum(dim=0).min()) <= 0:
        raise ValueError(f"`node_weights` must be finite, >= 0, not all zero, got a minimum of {float(values.min())}")
    several = values.shape[1] > 1
    return np.asarray((values / values.mean(dim=0) if several else values).numpy(), dtype=np.float64)
