"""Grids with hidden meshes, ready for evaluation: whole, cut out, or aggregated; single ones and batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.problems.data import HiddenMesh, Link
from mldd.problems.nets.composite import receptive
from mldd.problems.nets.operators import Operator, Sparse

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_TOUCH = 30  # cost of an activation and its derivative per entry, in multiplications


@dataclass(frozen=True, eq=False)
class Channel:
    """The edges of one block, ready for evaluation; p graphs with e edges each, padded, one below the other.

    Parameters
    ----------
    operator : Operator, shape (p m, p n)
        Its `extend` brings the senders that other ranks hold.
    features : Tensor, shape (p e, 4)
        Of the edges, in the order of the entries of ``operator.pattern``.
    send, receive : Sparse, shapes (p e, p n) and (p e, p m)
        The sender and the receiver of every edge; rows of padding are empty.
    join : Sparse, shape (p e, p n + p m)
        Both, side by side.
    total : Sparse, shape (p m, p e)
        Sums messages up with the entries B_ij.
    """

    operator: Operator
    features: Tensor
    send: Sparse
    receive: Sparse
    join: Sparse
    total: Sparse

    @staticmethod
    def of(operator: Operator, features: Tensor, parts: int = 1) -> Channel:
        """Return the edges of the pattern of an operator.

        Parameters
        ----------
        operator : Operator
            Block-diagonal with blocks of equal shape.
        features : Tensor, shape (nnz, 4)
            In the order of the entries of the pattern.
        parts : int
            Number of blocks.
        """
        pattern = operator.pattern
        rows, columns = (a.cpu().numpy() for a in pattern.entries)
        values = pattern.values
        (m, n), part = pattern.shape, rows // max(pattern.shape[0] // parts, 1)
        counts = np.bincount(part, minlength=parts)
        most, starts = max(int(counts.max(initial=0)), 1), np.cumsum(counts) - counts
        place, edges = np.arange(len(rows)) - starts[part] + most * part, most * parts
        padded = features.new_zeros(edges, features.shape[1])
        padded[torch.from_numpy(place).to(padded.device)] = features
        ones = np.ones(len(rows))
        send = sp.csr_matrix((ones, (place, columns)), shape=(edges, n))
        receive = sp.csr_matrix((ones, (place, rows)), shape=(edges, m))
        total = sp.csr_matrix((values.double().cpu().numpy(), (rows, place)), shape=(m, edges))
        made = [
            Sparse.of(matrix, values.dtype, values.device)
            for matrix in (send, receive, sp.hstack([send, receive]), total)
        ]
        return Channel(operator, padded, *made)

    @property
    def edges(self) -> int:
        """Number of edges of all graphs, padding included."""
        return self.total.shape[1]


@dataclass(frozen=True, eq=False)
class MeshBatch:
    """Grids with hidden meshes: one (`parts` None) or p with own parameters each, padded to equal numbers of nodes.

    Parameters
    ----------
    parts : int or None
        Number p of graphs; None for a single one with parameters of shape (N,).
    features : tuple of Tensor
        The inputs of the grid nodes, shape (p r, S F); the nodes with outputs come first in every graph.
    static : Tensor, shape (p m, 3)
        Features of the mesh nodes.
    channels : tuple of Channel
        Encoder, every round of the processor, decoder. A block's receivers are the first nodes of what came before.
    nodes : Tensor, shape (p, r), int64
        Global numbers of the grid nodes; any number at padding.
    targets : Tensor, shape (p k, S C)
        One row for each of the k nodes with outputs of every graph.
    read : tuple of int
        Grid nodes of every graph, padding excluded.
    samples : int
        Number S of samples that share graphs and parameters.
    """

    parts: int | None
    features: tuple[Tensor, ...]
    static: Tensor
    channels: tuple[Channel, ...]
    nodes: Tensor
    targets: Tensor
    read: tuple[int, ...]
    samples: int = 1

    @property
    def rows(self) -> tuple[int, ...]:
        """Grid nodes of every graph that are read, and those with outputs."""
        p = self.parts or 1
        return len(self.features[0]) // p, len(self.targets) // p

    def work(self, widths: tuple[int, ...]) -> float:
        """Return the cost of a sweep: multiplications of all matrix products, and what is done per state entry.

        Parameters
        ----------
        widths : tuple of int
            Inputs, hidden width, outputs.
        """
        f, h, c = widths
        grid, out = len(self.features[0]), len(self.targets)
        total = self.samples * (grid * (f + h) * h + out * (c * h + f * c))
        for channel in self.channels:
            receivers = channel.total.shape[0]
            total += self.samples * h * (4 * h * receivers + (_TOUCH + 4) * channel.edges + _TOUCH * receivers)
            total += channel.edges * h * (h + channel.features.shape[1])
        return float(total)


# ------------------------------------------------------------------------------------------------ local graphs


@dataclass(frozen=True, eq=False)
class MeshPiece:
    """One local grid with its mesh, the nodes with outputs first, the mesh nodes of later rounds first.

    Parameters
    ----------
    nodes : ndarray, shape (r,)
        Global numbers of its grid nodes (-1 where a node stands for a cluster).
    features : ndarray, shape (r, S F)
        Inputs of the grid nodes.
    static : ndarray, shape (m, 3)
        Features of the mesh nodes.
    links : tuple of Link
        Encoder, rounds, decoder.
    targets : ndarray, shape (k, S C)
        Of the nodes with outputs.
    """

    nodes: Ints
    features: Floats
    static: Floats
    links: tuple[Link, ...]
    targets: Floats

    @property
    def read(self) -> int:
        """Number of grid nodes."""
        return len(self.nodes)


@dataclass(frozen=True, eq=False)
class MeshSource:
    """What local grids are cut from; it takes the place of `mldd.problems.nets.composite.Source`.

    Parameters
    ----------
    mesh : HiddenMesh
        Grid with its hidden mesh.
    features : ndarray, shape (n, S F)
        Inputs of the grid nodes.
    targets : ndarray, shape (n, S C)
        Of the grid nodes.
    """

    mesh: HiddenMesh
    features: Floats
    targets: Floats

    def piece(self, outputs: Ints, layers: int, *, targets: Floats | None = None) -> MeshPiece:
        """Return what the outputs depend on, so that they are exact.

        Parameters
        ----------
        outputs : ndarray, shape (k,)
            Grid nodes whose outputs enter the loss.
        layers : int
            ``net.layers``: two more than there are rounds.
        targets : ndarray, shape (n, S C), optional
            Other targets than the source's.
        """
        mesh, outputs = self.mesh, np.asarray(outputs, dtype=np.int64)
        near = np.unique(mesh.decode.matrix[outputs].indices).astype(np.int64)
        order, rows = receptive(mesh.process.matrix, near, layers - 2)
        heard = np.unique(mesh.encode.matrix[order].indices).astype(np.int64)
        grid = np.concatenate([outputs, np.setdiff1d(heard, outputs)])
        rounds = [mesh.process.cut(order[:b], order[:a]) for a, b in zip(rows, rows[1:], strict=False)]
        links = (mesh.encode.cut(order, grid), *rounds, mesh.decode.cut(outputs, near))
        wanted = self.targets if targets is None else targets
        return MeshPiece(grid, self.features[grid], mesh.static[order], links, wanted[outputs])

    def aggregated(self, labels: Ints, layers: int) -> MeshPiece:
        """Return the grid aggregated by `labels`, shape (n,), from grid nodes to nodes 0, 1, ...; the mesh likewise.

        Features are means and targets are sums over the grid nodes that a node stands for, as in
        `mldd.problems.nets.composite.Source.aggregated`. Mesh nodes become one where their nearest grid nodes do;
        messages are merged (`mldd.problems.data.mesh_levels.Link.merged`).

        Parameters
        ----------
        labels : ndarray, shape (n,), int64
            Cluster of every grid node.
        layers : int
            Rounds of the processor.
        """
        mesh, count = self.mesh, np.bincount(labels)
        near = labels[mesh.nearest_grid]
        alone = count[near] == 1  # several of these may be nearest to one grid node and stay apart
        near = np.where(alone, len(count) + np.arange(len(near)), near)
        merged = np.unique(near, return_inverse=True)[1].astype(np.int64)
        rounds = mesh.process.merged(merged, merged)
        representative = np.unique(labels, return_index=True)[1]
        return MeshPiece(
            nodes=np.where(count == 1, representative, -1),
            features=_collected(labels, self.features) / count[:, None],
            static=_collected(merged, mesh.static) / np.bincount(merged)[:, None],
            links=(mesh.encode.merged(merged, labels), *[rounds] * (layers - 2), mesh.decode.merged(labels, merged)),
            targets=_collected(labels, self.targets),
        )


def _collected(labels: Ints, rows: Floats) -> Floats:
    """Return the sums of the rows with the same label."""
    matrix = sp.csr_matrix((np.ones(len(labels)), (labels, np.arange(len(labels)))))
    return np.asarray(matrix @ rows)


def stack_meshes(pieces: Sequence[MeshPiece], single: bool = False, samples: int = 1, **kind: Any) -> MeshBatch:
    """Return local grids as one batch, padded by nodes without edges and with targets of zero.

    Parameters
    ----------
    pieces : sequence of MeshPiece
        With the same number of rounds and samples.
    single : bool
        One graph with parameters of shape (N,) instead of a batch.
    samples : int
        Number S of samples side by side in the columns of features and targets.
    **kind
        `dtype` and `device` of the tensors.
    """
    grid, mesh, out = (max(1, *column) for column in zip(*map(_sizes, pieces), strict=True))
    channels = []
    for k, links in enumerate(zip(*(piece.links for piece in pieces), strict=True)):
        last = k == len(pieces[0].links) - 1
        receivers = out if last else max(1, *(link.matrix.shape[0] for link in links))
        senders = grid if k == 0 else max(1, *(link.matrix.shape[1] for link in links))
        channels.append(_channel(links, receivers, senders, **kind))

    def tensor(blocks: list[Floats], rows: int) -> Tensor:
        padded = [np.concatenate([b, np.zeros((rows - len(b), b.shape[1]), b.dtype)]) for b in blocks]
        return torch.from_numpy(np.concatenate(padded)).to(**kind)

    nodes = np.stack([np.pad(piece.nodes, (0, grid - len(piece.nodes))) for piece in pieces])
    return MeshBatch(
        parts=None if single else len(pieces),
        features=(tensor([piece.features for piece in pieces], grid),),
        static=tensor([piece.static for piece in pieces], mesh),
        channels=tuple(channels),
        nodes=torch.from_numpy(nodes).to(kind.get("device", "cpu")),
        targets=tensor([piece.targets for piece in pieces], out),
        read=tuple(piece.read for piece in pieces),
        samples=samples,
    )


def _sizes(piece: MeshPiece) -> tuple[int, int, int]:
    """Return the numbers of grid nodes, mesh nodes and outputs."""
    return len(piece.nodes), len(piece.static), len(piece.targets)


def _channel(links: Sequence[Link], receivers: int, senders: int, **kind: Any) -> Channel:
    """Put links, each padded to the same shape, on the diagonal."""
    parts = len(links)
    coo = [link.matrix.tocoo() for link in links]
    row = np.concatenate([c.row.astype(np.int64) + k * receivers for k, c in enumerate(coo)])
    column = np.concatenate([c.col.astype(np.int64) + k * senders for k, c in enumerate(coo)])
    data = np.concatenate([c.data for c in coo])
    matrix = sp.csr_matrix((data, (row, column)), shape=(parts * receivers, parts * senders))
    features = torch.from_numpy(np.concatenate([link.features for link in links])).to(**kind)
    return Channel.of(Sparse.of(matrix, **kind), features, parts)
