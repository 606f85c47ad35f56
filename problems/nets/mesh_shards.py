"""A grid and its hidden mesh shared out to ranks: every rank holds its own nodes and fetches one halo per block."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.problems.data import HiddenMesh, Link
from mldd.problems.nets.halo_operator import HaloOperator
from mldd.problems.nets.mesh_batches import Channel, MeshBatch
from mldd.ranks import Communicator, Halo

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


def mesh_shard(
    mesh: HiddenMesh,
    part: Tensor | Ints,
    features: Floats,
    targets: Floats,
    rounds: int,
    comm: Communicator,
    samples: int = 1,
    **kind: Any,
) -> MeshBatch:
    """Return the batch of this rank; all ranks together evaluate the whole grid. It is made by all ranks together.

    A mesh node lives with the part of its nearest grid node. In the encoder, every round and the decoder a rank fetches
    the products of those senders that its own receivers hear and others own; backward, their gradients travel home.
    Values and gradients summed over ranks are those of one rank.

    Parameters
    ----------
    mesh : HiddenMesh
        Coordinates and edges of all nodes.
    part : Tensor or ndarray, shape (n,), int64
        The rank of every grid node.
    features, targets : ndarray, shapes (r, S F) and (r, S C)
        Of this rank's r grid nodes, in ascending order.
    rounds : int
        Of the processor.
    comm : Communicator
        Ranks that hold the parts.
    samples : int
        Number S of samples side by side.
    **kind
        `dtype` and `device` of the tensors.

    Raises
    ------
    ValueError
        A part that is no rank, or features of other nodes.
    """
    grid = np.asarray(part, dtype=np.int64)
    if grid.shape != (len(mesh.grid),) or grid.min() < 0 or grid.max() >= comm.ranks:
        raise ValueError(
            f"`part` must give {len(mesh.grid)} grid nodes a rank in 0..{comm.ranks - 1}, got shape {grid.shape} and "
            f"{grid.min(initial=0)}..{grid.max(initial=0)}"
        )
    own = np.flatnonzero(grid == comm.rank)
    if not len(own) == len(features) == len(targets):
        raise ValueError(
            f"`features` and `targets` must have a row for each of the {len(own)} grid nodes of rank {comm.rank}, "
            f"got {len(features)} and {len(targets)}"
        )
    points = mesh.owners(grid)
    process = _channel(mesh.process, points, points, comm, **kind)
    channels = (
        _channel(mesh.encode, points, grid, comm, **kind),
        *[process] * rounds,
        _channel(mesh.decode, grid, points, comm, **kind),
    )
    static = mesh.static[points == comm.rank]
    inputs, wanted, fixed = (torch.from_numpy(np.ascontiguousarray(a)).to(**kind) for a in (features, targets, static))
    nodes = torch.from_numpy(own)[None].to(inputs.device)
    return MeshBatch(None, (inputs,), fixed, channels, nodes, wanted, (len(own),), samples)


def _channel(link: Link, receivers: Ints, senders: Ints, comm: Communicator, **kind: Any) -> Channel:
    """Return the edges into the receivers of this rank, given the ranks of receivers, (m,), and senders, (n,)."""
    rows, own = np.flatnonzero(receivers == comm.rank), np.flatnonzero(senders == comm.rank)
    heard = np.unique(link.matrix[rows].indices).astype(np.int64)
    halo = heard[senders[heard] != comm.rank]
    halo = halo[np.argsort(senders[halo], kind="stable")]
    order = np.argsort(senders, kind="stable")
    place = np.empty(len(senders), dtype=np.int64)  # of every sender among those of its rank
    starts = np.cumsum(np.bincount(senders, minlength=comm.ranks)) - np.bincount(senders, minlength=comm.ranks)
    place[order] = np.arange(len(senders)) - starts[senders[order]]
    exchange = Halo(comm, len(own), torch.from_numpy(senders[halo]), torch.from_numpy(place[halo]))
    local = link.cut(rows, np.concatenate([own, halo]))
    features = torch.from_numpy(local.features).to(**kind)
    return Channel.of(HaloOperator.of(local.matrix, exchange, **kind), features)
