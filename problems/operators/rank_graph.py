"""The nodes of one rank, with the means of all layers: the halo of the inputs is read, that of the states exchanged."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from mldd.problems.nets import HaloOperator, Sparse
from mldd.problems.operators.local_graphs import GraphBatch, Ints, NodeDomain, aggregations
from mldd.ranks import Communicator, Halo


def rank_graph(
    domain: NodeDomain, part: Ints, layers: int, comm: Communicator, dtype: torch.dtype, device: torch.device | str
) -> GraphBatch:
    """Return the own nodes of this rank with their neighbours behind them; all ranks call it together.

    The inputs of the neighbours are known, so the first layer needs no message, and the others one exchange each.

    Parameters
    ----------
    domain : NodeDomain
        All nodes.
    part : ndarray, shape (n,)
        The rank of every node.
    layers : int
        Of the network.
    comm : Communicator
        The ranks.
    dtype : torch.dtype
        Of the means.
    device : torch.device or str
        Where they are.
    """
    own = np.flatnonzero(part == comm.rank)
    read = np.setdiff1d(domain.matrix[own].indices, own)
    read = read[np.argsort(part[read], kind="stable")]
    number = np.empty(domain.nodes, dtype=np.int64)
    for rank in range(comm.ranks):
        theirs = np.flatnonzero(part == rank)
        number[theirs] = np.arange(len(theirs))
    halo = Halo(comm, len(own), torch.from_numpy(part[read]), torch.from_numpy(number[read]))
    nodes = np.concatenate([own, read])
    every = aggregations(domain.matrix, domain.derivatives)
    rows = sp.vstack([matrix[own][:, nodes] for matrix in every], format="csr")
    first, others = Sparse.of(rows, dtype, device), HaloOperator.of(rows, halo, dtype, device)
    weights = torch.full((1, len(own)), 1.0 / domain.nodes, dtype=dtype, device=device)  # ranks add up to the mean
    means = (first, *[others] * (layers - 1))
    return GraphBatch(torch.from_numpy(nodes)[None].to(device), weights, means, (len(nodes), *[len(own)] * layers))
