"""Clusters of nodes with similar inputs, near or far: coarse graphs for networks where neighbours are unlike."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float32]
_WIDTH = 32  # columns to which wider features are projected: distances keep within some twenty per cent
_SWEEPS = 8  # of Lloyd's iteration; the clusters need not be the best ones


def similar(operator: Any, features: Any, hops: int, sizes: Sequence[int], *, seed: int = 0) -> list[Tensor]:
    """Group nodes by k-means of what layers see of them: ``(X, A X, ..., A^h X)``, each block of unit variance.

    Two nodes whose rows are equal in all blocks have equal outputs in a linear network that propagates h times, whether
    neighbours are alike or not. The aggregated graph is exact for any network where the clusters are an equitable
    partition of nodes with equal features: see `mldd.problems.nets.composite`.

    Parameters
    ----------
    operator : csr_matrix, shape (n, n)
        Propagation A.
    features : ndarray or csr_matrix, shape (n, F)
        X; projected to 32 random columns where it is wider (Johnson and Lindenstrauss).
    hops : int
        h.
    sizes : sequence of int
        Numbers of clusters, one map each; the maps are not nested.
    seed : int
        Of the first centres.

    Returns
    -------
    list of LongTensor, shape (n,)
        Labels 0, 1, ...; nodes that are equal make for fewer clusters than asked.

    References
    ----------
    Lloyd, doi:10.1109/TIT.1982.1056489.
    """
    rows = _blocks(operator, features, hops, seed)
    return [_clustered(rows, size, seed) for size in sizes]


def _blocks(operator: Any, features: Any, hops: int, seed: int) -> Floats:
    block = features
    if features.shape[1] > _WIDTH:
        block = features @ np.random.default_rng(seed).standard_normal((features.shape[1], _WIDTH))
    block = np.asarray(block.toarray() if sp.issparse(block) else block, dtype=np.float64)
    blocks = [block]
    for _ in range(hops):
        blocks.append(operator @ blocks[-1])
    scaled = [b / max(float(np.sqrt(b.var(axis=0).sum())), 1e-300) for b in blocks]
    return np.concatenate(scaled, axis=1).astype(np.float32)


def _clustered(rows: Floats, size: int, seed: int) -> Tensor:
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    distinct, which = np.unique(rows, axis=0, return_inverse=True)
    if len(distinct) <= size:
        return torch.from_numpy(which.reshape(-1).astype(np.int64))
    means = KMeans(size, init="random", n_init=1, max_iter=_SWEEPS, tol=0.0, random_state=seed)
    with threadpool_limits(1, "openmp"):  # threads add up centres in any order: ranks would differ
        labels = means.fit_predict(rows)
    return torch.from_numpy(np.unique(labels, return_inverse=True)[1].astype(np.int64))
