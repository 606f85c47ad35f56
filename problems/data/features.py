"""Features of nodes: dense arrays and sparse matrices, as NumPy and SciPy have them and as tensors."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor


def normalised_rows(features: Any) -> Any:
    """Return non-negative features with rows of sum one; rows of zeros, and features with signs, stay as they are.

    Parameters
    ----------
    features : array or csr_matrix, shape (n, F)
        One row per node.
    """
    if features.min() < 0:
        return features
    sums = np.asarray(features.sum(axis=1), dtype=np.float64).ravel()
    inverse = np.divide(1.0, sums, out=np.ones_like(sums), where=sums > 0)
    return sp.csr_matrix(sp.diags(inverse) @ features) if sp.issparse(features) else inverse[:, None] * features


def to_tensor(features: Any) -> Tensor:
    """Return a matrix as a tensor: sparse CSR below 10 % non-zeros, dense otherwise.

    Parameters
    ----------
    features : array or csr_matrix, shape (n, F)
        One row per node.
    """
    cells = features.shape[0] * features.shape[1]
    nonzeros = features.count_nonzero() if sp.issparse(features) else np.count_nonzero(features)
    if nonzeros >= 0.1 * cells:
        return torch.from_numpy(np.asarray(features.toarray() if sp.issparse(features) else features, dtype=np.float64))
    matrix = sp.csr_matrix(features, dtype=np.float64)
    matrix.eliminate_zeros()
    matrix.sort_indices()
    pointers, columns = (torch.from_numpy(a.astype(np.int64)) for a in (matrix.indptr, matrix.indices))
    values, size = torch.from_numpy(matrix.data), tuple(matrix.shape)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
        return torch.sparse_csr_tensor(pointers, columns, values, size=size, check_invariants=True)


def from_tensor(features: Tensor) -> Any:
    """Return features as a NumPy array or a SciPy CSR matrix that shares their memory.

    Parameters
    ----------
    features : Tensor, shape (n, F)
        Dense, or sparse CSR.
    """
    if features.layout == torch.strided:
        return features.numpy()
    pieces = (features.values().numpy(), features.col_indices().numpy(), features.crow_indices().numpy())
    return sp.csr_matrix(pieces, shape=tuple(features.shape))
