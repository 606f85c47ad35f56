"""What a rank makes of its shard: operators with halos, and batches for evaluation.

Nothing of the size of the whole graph is ever on one rank. What ranks know of each other are the nodes next to their
own, and clusters (`mldd.problems.graphs.shard_clusters`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.problems.data import Shard
from mldd.problems.nets import Batch, HaloOperator, Operator, Sparse, edge_means
from mldd.problems.nets.layers import Layer, layer_of
from mldd.ranks import Communicator, Halo, Messages

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class ShardGraph:
    """The own m nodes of this rank with the h nodes of their halo; every property is made by all ranks together.

    Parameters
    ----------
    shard : Shard
        Joined: owners are ranks.
    kind : str
        Of the layers.
    targets : ndarray, shape (m, C)
        Weight of every class of the own nodes in the loss.
    comm : Communicator
        The ranks that hold shards.
    messages : {"auto", "mpi", "petsc"}
        What carries halos.
    precision : {"float64", "float32"}
        Of the entries of operators, and of products with features that are in single precision themselves.
    """

    shard: Shard
    kind: str
    targets: Floats
    comm: Communicator
    messages: Messages = "auto"
    precision: Literal["float64", "float32"] = "float64"

    @cached_property
    def halo(self) -> Halo:
        """All nodes next to the own ones."""
        owner, index = torch.from_numpy(self.shard.halo.owner), torch.from_numpy(self.shard.halo.index)
        return Halo(self.comm, self.shard.own, owner, index, self.messages)

    def fetched(self, rows: NDArray[Any]) -> NDArray[Any]:
        """Return the rows of the halo, of any dtype that torch knows.

        Parameters
        ----------
        rows : NDArray[Any], shape (n, ...)
            Own rows.
        """
        return self.halo.exchange(torch.from_numpy(np.ascontiguousarray(rows))).numpy()

    def fetched_matrix(self, rows: Any) -> Any:
        """Return the rows of the halo of a dense or a CSR matrix; entries of the latter are a halo of their own.

        Parameters
        ----------
        rows : Any, shape (n, F)
            Own rows, dense or CSR.
        """
        if not sp.issparse(rows):
            return self.fetched(rows)
        starts = rows.indptr[:-1].astype(np.int64)
        theirs = self.fetched(np.stack([starts, np.diff(rows.indptr)], 1))
        indptr = np.concatenate([[0], np.cumsum(theirs[:, 1])])
        entries = np.repeat(theirs[:, 0] - indptr[:-1], theirs[:, 1]) + np.arange(indptr[-1])
        owner = torch.from_numpy(np.repeat(self.shard.halo.owner, theirs[:, 1]))
        halo = Halo(self.comm, rows.nnz, owner, torch.from_numpy(entries), self.messages)
        pairs = np.stack([rows.indices.astype(np.float64), rows.data], 1)
        got = halo.exchange(torch.from_numpy(pairs)).numpy()
        return sp.csr_matrix((got[:, 1], got[:, 0].astype(np.int64), indptr), shape=(self.halo.size, rows.shape[1]))

    # -------------------------------------------------------------------------------- operators

    @property
    def layer(self) -> Layer:
        """The kind of the layers."""
        return layer_of(self.kind)

    @cached_property
    def degrees(self) -> Floats:
        """Degree of every own node and of every node of the halo: neighbours, or sums of weights; shape (m + h,)."""
        own = np.asarray(self._edges.sum(1), dtype=np.float64).ravel()
        return np.concatenate([own, self.fetched(own[:, None])[:, 0]])

    @cached_property
    def _edges(self) -> Any:
        """Ones or weights, as the layer takes them, csr_matrix of shape (m, m + h)."""
        return self.shard.adjacency(self.layer.weightable)

    @cached_property
    def attributes(self) -> tuple[Any, ...]:
        """Edge attributes that the layer takes, one csr_matrix of shape (m, m + h) each."""
        given = self.shard.edges.attributes
        if given is None or not self.layer.edge_inputs:
            return ()
        return tuple(self.shard.on_edges(e) for e in given.T.copy())

    @cached_property
    def attributes_back(self) -> tuple[Any, ...]:
        """Attributes of the edges by which the halo reads the own nodes, one csr_matrix of shape (h, m) each."""
        numbers = self.shard.numbers
        if not self.attributes:
            return ()
        columns = np.concatenate([numbers, self.fetched(numbers[:, None])[:, 0]])
        found = []
        for e in self.attributes:
            rows = sp.csr_matrix((e.data, columns[e.indices], e.indptr), shape=(e.shape[0], self.shard.whole.nodes))
            found.append(self.fetched_matrix(rows)[:, numbers])
        return tuple(found)

    @cached_property
    def operator(self) -> Any:
        """Rows of the propagation that are this rank's, csr_matrix of shape (m, m + h)."""
        m, rows = self.shard.own, self.layer.looped(self._edges)
        return self.layer.values(rows, self.degrees[:m], self.degrees).astype(self.precision, copy=False)

    @cached_property
    def back(self) -> Any:
        """Entries of the halo's rows in the columns of the own nodes, csr_matrix of shape (h, m): A is symmetric."""
        m = self.shard.own
        return self.layer.values(self._edges[:, m:].T.tocsr(), self.degrees[m:], self.degrees[:m])

    # -------------------------------------------------------------------------------- features

    def extended(self) -> Any:
        """Return the features of own nodes and halo, shape (m + h, F), fetched anew."""
        own = self.shard.data.features
        rows = [own, self.fetched_matrix(own)]
        return sp.vstack(rows, format="csr") if sp.issparse(own) else np.concatenate(rows)

    @cached_property
    def terms(self) -> tuple[Any, ...]:
        """Inputs of the first layer of the own nodes with the propagation done; the features alone for attention."""
        if not self.layer.beforehand:
            return (self.shard.data.features,)
        return self.layer.on_terms(self.shard.data.features, self.operator @ self.extended())

    @cached_property
    def cheaper(self) -> bool:
        """Whether the first layer is cheaper with the propagation done beforehand, on all ranks together."""
        if not self.layer.beforehand:
            return False
        sizes = [_entries(self.terms[-1]), _entries(self.shard.data.features) + self.operator.nnz]
        after, before = self.comm.sum_scalars([float(size) for size in sizes])
        return after <= before

    # -------------------------------------------------------------------------------- batches

    def batch(self, outputs: Mask, layers: int, propagated: bool | None = None, **kind: Any) -> Batch:
        """Return what evaluates these own nodes: as many hops as there are layers, through all ranks.

        Parameters
        ----------
        outputs : ndarray, shape (m,), bool
            Own nodes whose outputs are asked for.
        layers : int
            Of the network.
        propagated : bool, optional
            Whether the first propagation is done beforehand; by default where that is cheaper.
        **kind
            `dtype` and `device`.
        """
        propagated = self.cheaper if propagated is None else propagated
        reach = _Reach.of(self, outputs, layers, propagated)
        order, rows = reach.order, reach.rows
        operators: list[tuple[Operator | None, ...]] = []
        attributes: list[Tensor] = []
        for layer in range(layers):
            if layer == 0 and propagated:
                operators.append((None,) * len(self.terms))
                continue
            read, columns = order[: rows[layer + 1]], reach.columns(layer)
            matrix = self.operator[read][:, columns]
            if self.attributes:
                means = edge_means(matrix, [e[read][:, columns] for e in self.attributes])
                attributes.append(torch.from_numpy(means).to(**kind))
            if layer == 0 or self.comm.ranks == 1:  # the features of the halo are here: nothing is exchanged
                operators.append(self.layer.on_terms(None, Sparse.of(matrix, **kind)))
            else:
                operators.append(self.layer.on_terms(None, HaloOperator.of(matrix, reach.exchange(layer), **kind)))
        nodes = self.shard.numbers[order[: rows[1] if propagated else rows[0]]]
        if propagated:
            inputs = [term[order[: rows[1]]] for term in self.terms]
        else:
            inputs = [self.extended()[reach.columns(0)]]
            nodes = np.concatenate([nodes, self.fetched(self.shard.numbers)[reach.beyond[0]]])
            rows = (len(nodes), *rows[1:])
        targets = np.where(outputs[:, None], self.targets, 0.0)[order[: rows[-1]]]
        return Batch(
            parts=None,
            rows=rows,
            features=tuple(_stored(x, **kind) for x in inputs),
            propagated=propagated,
            operators=tuple(operators),
            nodes=torch.from_numpy(nodes)[None].to(kind.get("device", "cpu")),
            targets=torch.from_numpy(targets).to(**kind),
            read=(len(nodes),),
            attributes=tuple(attributes),
        )


@dataclass(frozen=True, eq=False)
class _Reach:
    """The nodes that outputs depend on, layer by layer, on all ranks.

    Parameters
    ----------
    graph : ShardGraph
    order : ndarray, int64
        Own nodes that are read, those of a later layer first.
    rows : tuple of int
        How many of them enter each layer, then the outputs; at least one.
    beyond : list of ndarray, int64
        Nodes of the halo that enter each layer, ascending by owner; none where nothing is propagated.
    places : ndarray, shape (h,), int64
        Place of every node of the halo in the order of its owner.
    """

    graph: ShardGraph
    order: Ints
    rows: tuple[int, ...]
    beyond: list[Ints]
    places: Ints

    @staticmethod
    def of(graph: ShardGraph, outputs: Mask, layers: int, propagated: bool) -> _Reach:
        """Follow the edges from the outputs back to the features; one exchange per layer."""
        m, pattern = graph.shard.own, graph.operator
        inside = outputs.copy()
        inside[0] |= not inside.any()  # no rank is left out of an exchange
        depth, rows, beyond = inside.astype(np.int64), [int(inside.sum())], []
        for layer in reversed(range(layers)):
            if layer == 0 and propagated:
                rows.append(rows[-1])
                beyond.append(np.empty(0, dtype=np.int64))
                break
            touched = np.zeros(pattern.shape[1], dtype=bool)
            touched[pattern[np.flatnonzero(inside)].indices] = True
            read = torch.from_numpy(touched[m:, None].astype(np.float64))
            if layer > 0:  # the owners have to compute these states; features they have
                asked = graph.halo.end_back(graph.halo.begin_back(read), torch.zeros(m, 1, dtype=torch.float64))
                inside |= asked[:, 0].numpy() > 0
            inside |= touched[:m]
            depth += inside
            rows.append(int(inside.sum()))
            beyond.append(np.flatnonzero(touched[m:]))
        order = np.argsort(-depth, kind="stable")[: rows[-1]]
        place = np.zeros(m, dtype=np.int64)
        place[order] = np.arange(len(order))
        return _Reach(graph, order, tuple(reversed(rows)), beyond[::-1], graph.fetched(place[:, None])[:, 0])

    def columns(self, layer: int) -> Ints:
        """Return the columns of the operator that layer `layer` reads: own nodes in order, then the halo."""
        return np.concatenate([self.order[: self.rows[layer]], self.graph.shard.own + self.beyond[layer]])

    def exchange(self, layer: int) -> Halo:
        """Return the halo of layer `layer`."""
        graph, far = self.graph, self.beyond[layer]
        owner, place = (torch.from_numpy(a[far]) for a in (graph.shard.halo.owner, self.places))
        return Halo(graph.comm, self.rows[layer], owner, place, graph.messages)


def _entries(matrix: Any) -> int:
    return int(matrix.nnz) if sp.issparse(matrix) else int(np.prod(matrix.shape))


def _stored(matrix: Any, **kind: Any) -> Tensor | Sparse:
    return Sparse.of(matrix, **kind) if sp.issparse(matrix) else torch.from_numpy(np.asarray(matrix)).to(**kind)
