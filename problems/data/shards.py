"""Graphs cut into shards: what a rank holds of a graph, and how parts are joined for a rank.

In a shard the columns of the adjacency are numbered anew: own nodes first, ascending by their global number, then the
halo, ascending by owner.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph, kind_of
from mldd.problems.data.contents import SPLITS, DataError
from mldd.problems.data.datasets import GraphData
from mldd.problems.data.features import from_tensor

Array = NDArray[Any]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class CutGraph:
    """What every rank knows of the whole graph.

    Parameters
    ----------
    name : str
        Of the graph.
    classes : int
        Number of classes.
    metric : str
        "accuracy" or "auc".
    sizes : ndarray, shape (parts,), int64
        Nodes of every part.
    """

    name: str
    classes: int
    metric: str
    sizes: Ints

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return int(self.sizes.sum())

    @property
    def parts(self) -> int:
        """Number of parts."""
        return len(self.sizes)


@dataclass(frozen=True, eq=False)
class ShardEdges:
    """The E edges that lead to own nodes, row by row.

    Parameters
    ----------
    indptr, indices : ndarray, shapes (m + 1,) and (E,), int64
        Adjacency in compressed rows: columns 0..m-1 are the own nodes, m..m+h-1 the halo.
    weights : ndarray, shape (E,), or None
        Of the edges.
    attributes : ndarray, shape (E, k), or None
        Of the edges.
    """

    indptr: Ints
    indices: Ints
    weights: Array | None = None
    attributes: Array | None = None


@dataclass(frozen=True, eq=False)
class HaloNodes:
    """Where the h nodes of the halo live.

    Parameters
    ----------
    owner : ndarray, shape (h,), int64
        The part that owns every node (once `joined`: the rank), ascending.
    index : ndarray, shape (h,), int64
        The node's number there.
    """

    owner: Ints
    index: Ints

    @property
    def size(self) -> int:
        """Number h of nodes."""
        return len(self.owner)


@dataclass(frozen=True, eq=False)
class NodeData:
    """What the m own nodes carry.

    Parameters
    ----------
    features : ndarray or csr_matrix, shape (m, F)
        One row per node.
    labels : ndarray, shape (m,), int64
        Class, -1 where there is none.
    train, validation, test : ndarray, shape (m,), bool
        Masks of the split.
    """

    features: Any
    labels: Ints
    train: Array
    validation: Array
    test: Array


@dataclass(frozen=True, eq=False)
class Shard:
    """What one rank, or one part, holds of a graph: its m own nodes with all their edges, and where its halo lives.

    Parameters
    ----------
    whole : CutGraph
        The graph that it is a shard of.
    numbers : ndarray, shape (m,), int64
        Global numbers of the own nodes, ascending within each part.
    part : ndarray, shape (m,), int64
        Part of every own node, ascending.
    edges : ShardEdges
        Those of the own nodes.
    halo : HaloNodes
        The h nodes next to the own ones.
    data : NodeData
        Features, labels and masks of the own nodes.
    """

    whole: CutGraph
    numbers: Ints
    part: Ints
    edges: ShardEdges
    halo: HaloNodes
    data: NodeData

    @property
    def own(self) -> int:
        """Number m of own nodes."""
        return len(self.numbers)

    @property
    def bytes(self) -> int:
        """Bytes of its arrays."""
        records = (self, self.whole, self.edges, self.halo, self.data)
        held = [value for record in records for value in vars(record).values()]
        pieces = [piece for x in held if sp.issparse(x) for piece in (x.data, x.indices, x.indptr)]
        return sum(int(a.nbytes) for a in (*held, *pieces) if isinstance(a, np.ndarray))

    def adjacency(self, weighted: bool = False) -> Any:
        """Return the edges of the own nodes, csr_matrix of shape (m, m + h).

        Parameters
        ----------
        weighted : bool
            Whether entries are the weights of edges, if there are any, or ones.
        """
        weights = self.edges.weights
        return self.on_edges(np.ones(len(self.edges.indices)) if weights is None or not weighted else weights)

    def on_edges(self, values: Array) -> Any:
        """Return the matrix with an entry per edge, csr_matrix of shape (m, m + h).

        Parameters
        ----------
        values : ndarray, shape (E,)
            In the order of `edges.indices`.
        """
        rows = (values, self.edges.indices, self.edges.indptr)
        return sp.csr_matrix(rows, shape=(self.own, self.own + self.halo.size))

    @cached_property
    def inside(self) -> Graph:
        """The graph of the own nodes, without the edges to the halo."""
        square = self.adjacency(weighted=True)[:, : self.own].tocoo()
        edges = torch.from_numpy(np.stack([square.row, square.col]).astype(np.int64))
        return Graph.from_edges(edges, self.own, None if self.edges.weights is None else torch.from_numpy(square.data))


# ------------------------------------------------------------------------------------------------ cutting


def cut(data: GraphData, part: Tensor) -> list[Shard]:
    """Return one shard per part of a graph, all in memory.

    Parameters
    ----------
    data : GraphData
        The whole graph.
    part : LongTensor, shape (n,)
        The part of every node, 0..parts-1, each of which occurs.

    Raises
    ------
    ValueError
        A part without nodes, or numbers that do not fit.
    """
    return list(cutting(data, checked_part(part, data.graph.nodes)))


def checked_part(part: Tensor, nodes: int) -> Ints:
    """Return the part of every node as an array.

    Parameters
    ----------
    part : LongTensor, shape (n,)
        The part of every node.
    nodes : int
        Number n of nodes.

    Raises
    ------
    ValueError
        A part without nodes, or numbers that do not fit.
    """
    if part.dtype != torch.int64 or part.shape != (nodes,) or int(part.min()) < 0:
        raise ValueError(f"`part` must be the part 0, 1, ... of each of {nodes} nodes, int64, got {kind_of(part)}")
    of = part.cpu().numpy()
    sizes = np.bincount(of)
    if not sizes.all():
        raise ValueError(f"every part needs a node, got none in part {int(sizes.argmin())}; number the parts anew")
    return np.asarray(of, dtype=np.int64)


def cutting(data: GraphData, of: Ints) -> Iterator[Shard]:
    """Yield one shard after the other.

    Parameters
    ----------
    data : GraphData
        The whole graph.
    of : ndarray, shape (n,), int64
        The part of every node.
    """
    n, sizes = data.graph.nodes, np.bincount(of)
    order, ends = np.argsort(of, kind="stable"), np.cumsum(sizes)
    place = np.empty(n, dtype=np.int64)
    place[order] = np.arange(n) - np.repeat(ends - sizes, sizes)
    rows, attributes = data.graph.scipy(weighted=True), data.graph.edge_attributes
    whole, features = CutGraph(data.name, data.classes, data.metric, sizes), from_tensor(data.features)
    for k in range(len(sizes)):
        own = order[ends[k] - sizes[k] : ends[k]]
        local = rows[own]
        columns = local.indices.astype(np.int64)
        outside = of[columns] != k
        keys = of[columns[outside]] * n + columns[outside]
        halo = np.unique(keys)
        numbered = place[columns]
        numbered[outside] = len(own) + np.searchsorted(halo, keys)
        edges = ShardEdges(
            local.indptr.astype(np.int64),
            numbered,
            weights=None if data.graph.weights is None else local.data,
            attributes=None if attributes is None else attributes.numpy()[_entries(rows.indptr, own)],
        )
        masks = {name: getattr(data, name).numpy()[own] for name in SPLITS}
        carried = NodeData(features[own], data.labels.numpy()[own], **masks)
        yield Shard(whole, own, np.full(len(own), k), edges, HaloNodes(halo // n, place[halo % n]), carried)


def _entries(indptr: Array, rows: Ints) -> Ints:
    """Return the numbers of the entries of some rows, row by row."""
    lengths = np.diff(indptr)[rows]
    ends = np.cumsum(lengths)
    return np.repeat(indptr[rows] - ends + lengths, lengths) + np.arange(lengths.sum())


def shares(parts: int, ranks: int) -> list[range]:
    """Return the consecutive parts of every rank, as `Communicator.share` has them.

    Parameters
    ----------
    parts, ranks : int
        How many there are.

    Raises
    ------
    DataError
        Ranks without a part.
    """
    if ranks > parts:
        raise DataError(f"a graph of {parts} parts needs at most {parts} ranks, got {ranks}; cut it into more parts")
    return [range(rank * parts // ranks, (rank + 1) * parts // ranks) for rank in range(ranks)]


def joined(shards: Sequence[Shard], ranks: int) -> Shard:
    """Return the shard of a rank, joined of consecutive parts; owners of its halo become ranks.

    Parameters
    ----------
    shards : sequence of Shard
        The parts of one rank, as `shares` gives them out.
    ranks : int
        Number of ranks.
    """
    whole = shards[0].whole
    sizes, groups = whole.sizes, shares(whole.parts, ranks)
    rank_of = np.repeat(np.arange(ranks), [len(group) for group in groups])
    ends = np.cumsum(sizes)
    starts = ends - sizes
    base = starts - starts[[group.start for group in groups]][rank_of]  # first node of a part within its rank
    me = rank_of[shards[0].part[0]]
    m, n = sum(s.own for s in shards), int(sizes.sum()) + 1
    keys = [rank_of[s.halo.owner] * n + base[s.halo.owner] + s.halo.index for s in shards]
    halo = np.unique(np.concatenate([k[k // n != me] for k in keys]))
    columns = []
    for s, key in zip(shards, keys, strict=True):
        place = np.where(key // n == me, key % n, m + np.searchsorted(halo, key))
        columns.append(np.concatenate([np.arange(s.own) + base[s.part[0]], place])[s.edges.indices])
    degrees = np.concatenate([np.diff(s.edges.indptr) for s in shards])
    numbers, part = (np.concatenate([getattr(s, name) for s in shards]) for name in ("numbers", "part"))
    edges = ShardEdges(
        indptr=np.concatenate([[0], np.cumsum(degrees)]),
        indices=np.concatenate(columns),
        weights=_joined([s.edges.weights for s in shards]),
        attributes=_joined([s.edges.attributes for s in shards]),
    )
    per_node = {name: np.concatenate([getattr(s.data, name) for s in shards]) for name in ("labels", *SPLITS)}
    data = NodeData(_stacked([s.data.features for s in shards]), **per_node)
    return Shard(whole, numbers, part, edges, HaloNodes(halo // n, halo % n), data)


def _joined(pieces: Sequence[Array | None]) -> Array | None:
    there = [piece for piece in pieces if piece is not None]
    return np.concatenate(there) if there else None


def _stacked(pieces: Sequence[Any]) -> Any:
    if len(pieces) == 1:
        return pieces[0]
    return sp.vstack(pieces, format="csr") if sp.issparse(pieces[0]) else np.concatenate(pieces)
