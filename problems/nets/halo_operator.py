"""Operators of graph layers of which every rank holds its own rows: products fetch the halo while they work."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
from torch import Tensor

from mldd.problems.nets.operators import Sparse
from mldd.ranks import Exchange, linear


@dataclass(frozen=True, eq=False)
class HaloOperator:
    """The rows of an operator that this rank owns, ``(A_own, A_halo)``: applied to own rows, it fetches the others.

    ``A x = A_own x_own + A_halo x_halo``: the exchange runs while ``A_own x_own`` is computed. Backward, the gradients
    ``A_halo^T g`` travel to their owners while ``A_own^T g`` is computed. Making one without `sizes` is collective.

    Parameters
    ----------
    own : Sparse, shape (m, n)
        Columns of the own rows.
    halo : Sparse, shape (m, h)
        Columns of the halo.
    exchange : Exchange
        With n own rows and h of the halo: `mldd.ranks.halo.Halo`, or an approximation of it.
    sizes : tuple of int, optional
        Rows, columns and entries on all ranks together, by which all choose the same order of a product.

    Raises
    ------
    ValueError
        The shapes do not fit.
    """

    own: Sparse
    halo: Sparse
    exchange: Exchange
    sizes: tuple[int, int, int] = field(default=None)  # type: ignore[assignment]
    _made: dict[str, Sparse] = field(default_factory=dict, repr=False)  # shared by operators made of this one

    def __post_init__(self) -> None:
        """Check the shapes, and agree on the sizes unless they are given."""
        (m, n), (rows, h) = self.own.shape, self.halo.shape
        if rows != m or (n, h) != (self.exchange.own, self.exchange.size):
            expected = (m, self.exchange.own), (m, self.exchange.size)
            raise ValueError(f"the parts must have shapes {expected}, got {self.own.shape} and {self.halo.shape}")
        if self.sizes is None:
            total = self.exchange.comm.sum_scalars([m, n + h, self.nnz])
            object.__setattr__(self, "sizes", tuple(int(size) for size in total))

    @staticmethod
    def of(
        matrix: Any, exchange: Exchange, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> HaloOperator:
        """Return the operator of the rows of this rank.

        Parameters
        ----------
        matrix : csr_matrix, shape (m, n + h)
            Own columns first.
        exchange : Exchange
            Fetches the h rows of the halo.
        dtype : dtype
            Of the entries.
        device : device | str
            Where they are kept.
        """
        rows = sp.csc_matrix(matrix)
        own = Sparse.of(rows[:, : exchange.own], dtype, device)
        return HaloOperator(own, Sparse.of(rows[:, exchange.own :], dtype, device), exchange)

    @property
    def shape(self) -> tuple[int, int]:
        """(m, n + h)."""
        return self.own.shape[0], self.own.shape[1] + self.halo.shape[1]

    @property
    def nnz(self) -> int:
        """Number of entries of this rank."""
        return self.own.nnz + self.halo.nnz

    @property
    def pattern(self) -> Sparse:
        """Own rows with the columns of the halo behind the own ones, shape (m, n + h); kept."""
        if "pattern" not in self._made:
            values = self.own.values
            both = sp.hstack([_scipy(self.own), _scipy(self.halo)])
            self._made["pattern"] = Sparse.of(both, values.dtype, values.device)
        return self._made["pattern"]

    @property
    def held(self) -> tuple[Sparse, ...]:
        """The matrices that it keeps, with the `pattern` where that was asked for."""
        return self.own, self.halo, *self._made.values()

    def through(self, exchange: Exchange) -> HaloOperator:
        """Return the operator with another exchange of the same rows; nothing is made anew.

        Parameters
        ----------
        exchange : Exchange
            Another way to fetch the same rows.
        """
        return replace(self, exchange=exchange)

    def extend(self, state: Tensor) -> Tensor:
        """Return own rows and behind them those of the halo, shape (n + h, ...), differentiable in the own ones."""
        return torch.cat([state, self.exchange.exchange(state)])

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the own rows of the product, shape (m, H), differentiable (any number of times) in the own rows."""
        if dense.requires_grad and torch.is_grad_enabled():
            return linear(self._applied, self._transposed, dense)
        return self._applied(dense)

    def _applied(self, dense: Tensor) -> Tensor:
        pending = self.exchange.begin(dense)
        out = self.own @ dense
        halo = self.exchange.end(pending)
        return out.add_(self.halo @ halo) if self.halo.nnz else out

    def _transposed(self, g: Tensor) -> Tensor:
        """Return the own rows of ``A^T g`` summed over ranks."""
        pending = self.exchange.begin_back(self.halo.t @ g)
        return self.exchange.end_back(pending, self.own.t @ g)


def _scipy(matrix: Sparse) -> Any:
    rows, columns = (index.cpu().numpy() for index in matrix.entries)
    values = matrix.values.detach().cpu().double().numpy()
    return sp.csr_matrix((values, (rows.astype(np.int64), columns)), shape=matrix.shape)
