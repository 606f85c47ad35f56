"""Local graphs for node classification: nodes with an exact halo, graphs by aggregation, and composite graphs of both.

A composite graph is the whole graph, fine on the own nodes of a subdomain and aggregated elsewhere: with the 0/1 map T
from nodes to composite nodes and D = T^T 1, the features of the first layer are ``D^-1 T^T X`` and ``D^-1 T^T (A X)``,
the operator of the others is ``D^-1 T^T A T``, and the targets are ``T^T Y``. For GIN it holds the mean numbers of
neighbours of the members, for GAT these are the multiplicities in the softmax. The idea is that of composite grids and
of Bank and Holst, doi:10.1137/S1064827599353701. The outputs are exact with one composite node per node, and where all
members of every composite node have the same features and the same numbers of neighbours in every composite node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph, grow
from mldd.problems.nets.graph_net import Batch
from mldd.problems.nets.layers import Layer, layer_of
from mldd.problems.nets.operators import Sparse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_DENSE = 0.25  # share of non-zeros from which dense products are faster


@dataclass(frozen=True, eq=False)
class Piece:
    """One local graph, its nodes ordered so that those of a later layer come first.

    Parameters
    ----------
    nodes : ndarray, shape (rows[0],)
        Global numbers of the nodes that it reads.
    rows : tuple of int
        Nodes that enter each layer, then the outputs.
    features : tuple of matrices
        X, or (`propagated`) the input of every term of the first layer.
    propagated : bool
        Whether the first propagation is done.
    operators : tuple of tuple of csr_matrix or None
        Of every layer and term, shape (rows[l + 1], rows[l]); None is the identity, or applied beforehand.
    targets : ndarray, shape (rows[L], C)
        Weight of every class at every output.
    read : int
        Nodes of the local graph.
    attributes : tuple of tuple of csr_matrix
        Per layer the rows and columns of `Source.attributes` that its operator has; empty where there are none.
    """

    nodes: Ints
    rows: tuple[int, ...]
    features: tuple[Any, ...]
    propagated: bool
    operators: tuple[tuple[Any, ...], ...]
    targets: Floats
    read: int
    attributes: tuple[tuple[Any, ...], ...] = ()


@dataclass(frozen=True, eq=False)
class Source:
    """Operator, features and targets of a graph, of which local graphs are parts or coarser models.

    Parameters
    ----------
    kind : str
        Of the layers.
    operator : csr_matrix, shape (n, n)
        `propagation` A; rows are taken as they are, never normalised anew.
    features : ndarray or csr_matrix, shape (n, F)
        X.
    terms : tuple of matrices
        Inputs of the first layer with the propagation already done: (A X,) for GCN, (X, A X) for GraphSAGE and GIN;
        (X,) for GAT, where nothing can be done beforehand.
    targets : ndarray, shape (n, C)
        Y, the weight of every class of every node in the loss.
    attributes : tuple of csr_matrix, shape (n, n)
        Per attribute of edges its sum over the edges that an entry of the operator stands for.
    """

    kind: str
    operator: Any
    features: Any
    terms: tuple[Any, ...]
    targets: Floats
    attributes: tuple[Any, ...] = ()

    @staticmethod
    def of(kind: str, operator: Any, features: Any, targets: Floats, attributes: tuple[Any, ...] = ()) -> Source:
        """Return a source with the first propagation done.

        Parameters
        ----------
        kind, operator, features, targets, attributes
            As of the source; the attributes are what `Layer.attributes` returns.
        """
        layer = layer_of(kind)
        if not layer.beforehand:
            return Source(kind, operator, features, (features,), targets, attributes)
        return Source(kind, operator, features, layer.on_terms(features, operator @ features), targets, attributes)

    @property
    def layer(self) -> Layer:
        """The kind of the layers."""
        return layer_of(self.kind)

    @property
    def cheaper(self) -> bool:
        """Whether the first layer is cheaper with the propagation done beforehand: sparse features may fill in."""
        return self.layer.beforehand and _entries(self.terms[-1]) <= _entries(self.features) + int(self.operator.nnz)

    def piece(
        self, outputs: Ints, layers: int, *, propagated: bool | None = None, targets: Floats | None = None
    ) -> Piece:
        """Return what the outputs depend on, as many hops as there are layers: these outputs are exact.

        Parameters
        ----------
        outputs : ndarray, shape (k,)
            Nodes whose outputs enter the loss.
        layers : int
            Number of layers.
        propagated : bool, optional
            Whether the first propagation is done beforehand; by default where that is cheaper. Never for GAT.
        targets : ndarray, shape (n, C), optional
            Other weights than the source's.
        """
        propagated = self.layer.beforehand and (self.cheaper if propagated is None else propagated)
        order, rows = receptive(self.operator, outputs, layers)
        operators = [
            self.layer.on_terms(None, _cut(self.operator, order[: rows[k + 1]], order[: rows[k]]))
            for k in range(layers)
        ]
        if propagated:
            operators[0] = (None,) * len(self.terms)
            features = tuple(term[order[: rows[1]]] for term in self.terms)
        else:
            features = (self.features[order],)
        wanted = self.targets if targets is None else targets
        attributes = tuple(
            tuple(_cut(e, order[: rows[k + 1]], order[: rows[k]]) for e in self.attributes) for k in range(layers)
        )
        chosen = wanted[order[: rows[-1]]]
        return Piece(order, rows, features, propagated, tuple(operators), chosen, len(order), attributes)

    def aggregated(self, labels: Ints, layers: int) -> Piece:
        """Return the composite graph of a map from nodes to composite nodes.

        Parameters
        ----------
        labels : ndarray, shape (n,), int64
            Composite node 0, ..., m - 1 of every node.
        layers : int
            Number of layers.
        """
        n, m = len(labels), int(labels.max()) + 1
        t = sp.csr_matrix((np.ones(n), (labels, np.arange(n))), shape=(m, n))  # T^T
        mean = sp.csr_matrix(sp.diags(1.0 / np.bincount(labels, minlength=m)) @ t)
        terms = tuple(_lean(mean @ term) for term in self.terms)
        coarse = Source(
            self.kind,
            operator=sp.csr_matrix(mean @ self.operator @ t.T),
            features=None if self.layer.beforehand else terms[0],
            terms=terms,
            targets=np.asarray(t @ self.targets),
            attributes=tuple(sp.csr_matrix(mean @ e @ t.T) for e in self.attributes),
        )
        return coarse.piece(np.flatnonzero(coarse.targets.any(1)), layers, propagated=True)

    def restricted(self, nodes: Ints) -> Source:
        """Return the source of the graph between some nodes, which are numbered anew in their order.

        Rows that lose entries are scaled such that they keep their sum: a mean over neighbours becomes that over those
        that are left. What the first layer propagates beforehand stays what it is on the whole graph.

        Parameters
        ----------
        nodes : ndarray, shape (m,), int64
            Some nodes.
        """
        rows = self.operator[nodes]
        kept = sp.csr_matrix(rows[:, nodes])
        full, left = (np.asarray(a.sum(1)).ravel() for a in (rows, kept))
        scale = sp.diags(np.divide(full, left, out=np.ones(len(nodes)), where=left > 0))
        return Source(
            self.kind,
            operator=sp.csr_matrix(scale @ kept),
            features=None if self.features is None else self.features[nodes],
            terms=tuple(term[nodes] for term in self.terms),
            targets=self.targets[nodes],
            attributes=tuple(sp.csr_matrix(scale @ e[nodes][:, nodes]) for e in self.attributes),
        )


def composite_labels(
    own: NDArray[np.bool_], clusters: Ints | Sequence[Ints], hops: Ints | None = None, reach: Sequence[int] = ()
) -> Ints:
    """Return the map to composite nodes: own nodes one by one, first; then the clusters of the others.

    Clusters may be graded: from those of the first map near the own nodes to those of the last far away. A cluster of
    map k >= 1 is kept whole if all its members are more than ``reach[k - 1]`` hops from the own nodes.

    Parameters
    ----------
    own : ndarray, shape (n,), bool
        Nodes that stay single.
    clusters : ndarray, shape (n,), or sequence of these
        One map from nodes to clusters, or several, each cluster a union of clusters of the map before.
    hops : ndarray, shape (n,), optional
        Of every node from the own ones (`distances`).
    reach : sequence of int
        Ascending, one number less than there are maps.

    Raises
    ------
    ValueError
        Several maps without distances, or another number of `reach`, or a descending one.

    Examples
    --------
    One own node at the end of a path, pairs near it and fours from the third hop on:

    >>> node = np.arange(12)
    >>> composite_labels(node == 0, [node // 2, node // 4], node, [2])
    array([0, 1, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4])
    """
    maps = [clusters] if isinstance(clusters, np.ndarray) else list(clusters)
    if len(reach) != len(maps) - 1 or list(reach) != sorted(reach) or (hops is None and len(maps) > 1):
        given = "no `hops`" if hops is None else f"{len(maps)} maps and {list(reach)}"
        raise ValueError(f"`reach` must ascend, one number less than maps of clusters, and needs `hops`; got {given}")
    group = maps[0]
    for coarse, within in zip(maps[1:], reach, strict=True):
        nearest = np.full(int(coarse.max()) + 1, np.iinfo(np.int64).max)
        np.minimum.at(nearest, coarse, np.asarray(hops))
        group = np.where(nearest[coarse] > within, int(group.max()) + 1 + coarse, group)
    labels = np.empty(len(own), dtype=np.int64)
    labels[own] = np.arange(own.sum())
    labels[~own] = own.sum() + np.unique(group[~own], return_inverse=True)[1]
    return labels


def distances(graph: Graph, own: NDArray[np.bool_], most: int) -> Ints:
    """Return the hops of every node from the own ones, shape (n,).

    Parameters
    ----------
    graph : Graph
        Whose edges count.
    own : ndarray, shape (n,), bool
        Nodes at distance 0.
    most : int
        Hops up to which they are counted; ``most + 1`` stands for all beyond.
    """
    hops = np.where(own, 0, most + 1)
    mask = torch.from_numpy(own)
    for k in range(1, most + 1):
        mask = grow(graph, mask, 1)
        hops[mask.numpy() & (hops > k)] = k
    return hops


def receptive(operator: Any, outputs: Ints, layers: int) -> tuple[Ints, tuple[int, ...]]:
    """Return the nodes that `outputs` depend on, nearest first, and how many of them enter each layer.

    Parameters
    ----------
    operator : csr_matrix, shape (n, n)
        Its rows name what a node depends on.
    outputs : ndarray, shape (k,), int64
        Nodes whose outputs are wanted.
    layers : int
        Number of layers.

    Examples
    --------
    On the path 0 - 1 - 2 - 3:

    >>> path = sp.diags([[1.0] * 3, [1.0] * 3], [-1, 1], format="csr")
    >>> receptive(path, np.array([0]), 2)
    (array([0, 1, 2]), (3, 2, 1))
    """
    order = np.asarray(outputs, dtype=np.int64)
    inside = np.zeros(operator.shape[0], dtype=bool)
    inside[order] = True
    rows, front = [len(order)], order
    for _ in range(layers):
        reached = np.unique(operator[front].indices).astype(np.int64) if len(front) else front
        front = reached[~inside[reached]]
        inside[front] = True
        order = np.concatenate([order, front])
        rows.append(len(order))
    return order, tuple(reversed(rows))


def _cut(matrix: Any, rows: Ints, columns: Ints) -> Any:
    """Return ``matrix[rows][:, columns]``."""
    n = matrix.shape[0]
    if len(rows) == n and len(columns) == n and np.array_equal(rows, np.arange(n)):
        return matrix
    return matrix[rows][:, columns]


def _entries(matrix: Any) -> int:
    return int(matrix.nnz) if sp.issparse(matrix) else int(np.prod(matrix.shape))


def _lean(matrix: Any) -> Any:
    """Store a matrix dense where that makes products faster."""
    if sp.issparse(matrix) and matrix.nnz > _DENSE * np.prod(matrix.shape):
        return matrix.toarray()
    return matrix


def stack(pieces: Sequence[Piece], single: bool = False, samples: int = 1, **kind: Any) -> Batch:
    """Return local graphs as one batch, padded by nodes without neighbours and without targets.

    Parameters
    ----------
    pieces : sequence of Piece
        With the same number of layers; all are propagated or none.
    single : bool
        One graph with parameters of shape (N,) instead of a batch.
    samples : int
        Number S of samples in the columns of (dense) features, shape (n, S F), and targets, shape (n, S C).
    **kind
        `dtype` and `device` of the tensors.
    """
    layers = len(pieces[0].operators)
    rows = tuple(max(1, *(piece.rows[k] for piece in pieces)) for k in range(layers + 1))
    propagated = pieces[0].propagated
    top = rows[1] if propagated else rows[0]
    features: list[Tensor | Sparse] = []
    for t in range(len(pieces[0].features)):
        blocks = [piece.features[t] for piece in pieces]
        if any(not sp.issparse(b) for b in blocks):
            dense = [_padded(b.toarray() if sp.issparse(b) else b, top) for b in blocks]
            features.append(torch.from_numpy(np.concatenate(dense)).to(**kind))
        else:
            features.append(_diagonal(blocks, (top, blocks[0].shape[1]), **kind))
    operators = tuple(
        tuple(
            None if column[0] is None else _diagonal(column, (rows[k + 1], rows[k]), **kind)
            for column in zip(*(piece.operators[k] for piece in pieces), strict=True)
        )
        for k in range(layers)
    )
    nodes = np.stack([np.concatenate([p.nodes, np.zeros(rows[0] - len(p.nodes), dtype=np.int64)]) for p in pieces])
    targets = np.concatenate([_padded(piece.targets, rows[-1]) for piece in pieces])
    return Batch(
        parts=None if single else len(pieces),
        rows=rows,
        features=tuple(features),
        propagated=propagated,
        operators=operators,
        nodes=torch.from_numpy(nodes).to(kind.get("device", "cpu")),
        targets=torch.from_numpy(targets).to(**kind),
        read=tuple(piece.read for piece in pieces),
        samples=samples,
        attributes=_attributes(pieces, **kind),
    )


def _attributes(pieces: Sequence[Piece], **kind: Any) -> tuple[Tensor, ...]:
    """Return the attributes of edges of every layer, in the order of the entries of the block-diagonal operator."""
    if not pieces[0].attributes or not pieces[0].attributes[0]:
        return ()
    layers = range(len(pieces[0].operators))
    each = [[edge_means(p.operators[k][0], p.attributes[k]) for p in pieces] for k in layers]
    return tuple(torch.from_numpy(np.concatenate(of_layer)).to(**kind) for of_layer in each)


def edge_means(operator: Any, sums: Sequence[Any]) -> Floats:
    """Return the mean attributes of the edges that every entry stands for, row by row, shape (nnz, k).

    Parameters
    ----------
    operator : csr_matrix, shape (m, n)
        Its entries are numbers of edges.
    sums : sequence of csr_matrix, shape (m, n)
        Sums of each of the k attributes over these edges.
    """
    rows = operator.sorted_indices()
    row = np.repeat(np.arange(rows.shape[0]), np.diff(rows.indptr))
    if len(row) == 0:
        return np.zeros((0, len(sums)))
    return np.stack([np.asarray(s[row, rows.indices]).ravel() / rows.data for s in sums], axis=1)


def _padded(matrix: Floats, rows: int) -> Floats:
    out = np.zeros((rows, matrix.shape[1]))
    out[: len(matrix)] = matrix
    return out


def _diagonal(blocks: Sequence[Any], shape: tuple[int, int], **kind: Any) -> Sparse:
    """Put blocks, each padded to `shape`, on the diagonal."""
    coo = [block.tocoo() for block in blocks]
    row = np.concatenate([b.row.astype(np.int64) + k * shape[0] for k, b in enumerate(coo)])
    column = np.concatenate([b.col.astype(np.int64) + k * shape[1] for k, b in enumerate(coo)])
    data = np.concatenate([b.data for b in coo])
    size = (len(blocks) * shape[0], len(blocks) * shape[1])
    return Sparse.of(sp.csr_matrix((data, (row, column)), shape=size), **kind)
