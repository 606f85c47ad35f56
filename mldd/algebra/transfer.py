"""Transfers between a fine space and a subspace: prolong, restrict, inject, and bounds that stay feasible."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal, Protocol

import torch
from torch import Tensor

from mldd.algebra.bounds import Bounds

Rule = Literal["kornhuber", "gelman-mandel", "truncated"]


class Transfer(Protocol):
    """Maps between a fine space of n unknowns and a coarse one of m.

    ``prolong`` takes corrections up (P e), ``restrict`` takes gradients down (P^T g), ``inject`` takes iterates down.
    """

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        ...

    def prolong(self, e: Tensor) -> Tensor:
        """Return ``P e``.

        Parameters
        ----------
        e : Tensor, shape (m,)
            A coarse vector.
        """
        ...

    def restrict(self, g: Tensor) -> Tensor:
        """Return ``P^T g``.

        Parameters
        ----------
        g : Tensor, shape (n,)
            A fine gradient.
        """
        ...

    def inject(self, x: Tensor) -> Tensor:
        """Return the coarse iterate that stands for `x`.

        Parameters
        ----------
        x : Tensor, shape (n,)
            A fine iterate.
        """
        ...

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return bounds on a coarse correction e such that ``P e`` satisfies `bounds` (which contain 0).

        Parameters
        ----------
        bounds : Bounds
            On a fine correction.
        rule : Rule
            How they are restricted.
        """
        ...


@dataclass(frozen=True)
class Identity:
    """The two spaces are the same: coarser graphs or fewer data share the parameters of the fine network.

    Parameters
    ----------
    size : int
        Number of unknowns.
    """

    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, n)."""
        return self.size, self.size

    def prolong(self, e: Tensor) -> Tensor:
        """Return `e`."""
        return e

    def restrict(self, g: Tensor) -> Tensor:
        """Return `g`."""
        return g

    def inject(self, x: Tensor) -> Tensor:
        """Return a copy of `x`."""
        return x.clone()

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return `bounds`, for every rule."""
        return bounds


@dataclass(frozen=True)
class IndexTransfer:
    """Boolean prolongation: the subspace is a subset of the unknowns.

    Parameters
    ----------
    indices : Tensor, shape (m,), int64
        The fine unknown of each coarse one; no unknown twice.
    size : int
        Number n of fine unknowns.
    """

    indices: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.size, len(self.indices)

    def prolong(self, e: Tensor) -> Tensor:
        """Return `e` extended by zero."""
        return e.new_zeros(self.size).index_copy_(0, self.indices, e)

    def restrict(self, g: Tensor) -> Tensor:
        """Return the components of `g` in the subset."""
        return g[self.indices]

    def inject(self, x: Tensor) -> Tensor:
        """Return the components of `x` in the subset."""
        return x[self.indices]

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return the bounds of the subset, for every rule: components do not interact."""
        return Bounds(bounds.lower[self.indices], bounds.upper[self.indices], bounds.is_free)


@dataclass(frozen=True)
class MatrixTransfer:
    """Prolongation by a sparse matrix: aggregates, or a small coarse space with few columns.

    Parameters
    ----------
    matrix : Tensor, shape (n, m), sparse COO (coalesced) or dense
        P. The rule "kornhuber" needs ``P >= 0`` with row sums at most one; "gelman-mandel" takes any sign.
    injection : Tensor, shape (m, n), sparse, optional
        Left inverse that takes iterates down. By default ``diag(P^T P)^-1 P^T``, exact for disjoint columns.
    """

    matrix: Tensor
    injection: Tensor | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.matrix.shape[0], self.matrix.shape[1]

    @cached_property
    def _transposed(self) -> Tensor:
        return self.matrix.t().coalesce() if self.matrix.is_sparse else self.matrix.t()

    @cached_property
    def _entries(self) -> tuple[Tensor, Tensor, Tensor]:
        matrix = self.matrix if self.matrix.is_sparse else self.matrix.to_sparse()
        matrix = matrix.coalesce()
        return matrix.indices()[0], matrix.indices()[1], matrix.values()

    @cached_property
    def is_averaging(self) -> bool:
        """Whether ``P >= 0`` with row sums at most one."""
        rows, _, values = self._entries
        sums = values.new_zeros(self.shape[0]).index_add_(0, rows, values)
        return bool((values >= 0).all()) and bool((sums <= 1 + 1e-12).all())

    def prolong(self, e: Tensor) -> Tensor:
        """Return ``P e``."""
        return self.matrix @ e

    def restrict(self, g: Tensor) -> Tensor:
        """Return ``P^T g``."""
        return self._transposed @ g

    def inject(self, x: Tensor) -> Tensor:
        """Return the coarse iterate."""
        if self.injection is not None:
            return self.injection @ x
        rows, columns, values = self._entries
        squares = values.new_zeros(self.shape[1]).index_add_(0, columns, values * values)
        return self.restrict(x) / squares

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return coarse bounds by Kornhuber's or by Gelman and Mandel's rule.

        Kornhuber: ``lower_j = max_{i in supp P_j} lower_i``. Gelman-Mandel: one shift for all j,
        ``max_i lower_i / ||P||_inf`` with the sign rule of recursive trust regions for entries of either sign.

        Raises
        ------
        ValueError
            Kornhuber's rule for a P with negative entries or row sums above one.

        References
        ----------
        Kornhuber, Numer. Math. 69 (1994); Gelman and Mandel, Math. Program. 48 (1990); the formulas are those of the
        UTOPIA library's multilevel constraints.
        """
        if bounds.is_free:
            return Bounds.free(self.shape[1], dtype=bounds.lower.dtype, device=bounds.lower.device)
        rows, columns, values = self._entries
        if rule == "gelman-mandel":
            return self._gelman_mandel(bounds)
        if not self.is_averaging:
            raise ValueError(
                'rule "kornhuber" needs P >= 0 with row sums <= 1; use rule "gelman-mandel" for this transfer'
            )
        empty = bounds.lower.new_full((self.shape[1],), torch.inf)
        keep = values != 0
        rows, columns = rows[keep], columns[keep]
        lower = (-empty).scatter_reduce_(0, columns, bounds.lower[rows], "amax")
        upper = empty.scatter_reduce_(0, columns, bounds.upper[rows], "amin")
        return Bounds(lower, upper, False)

    def _gelman_mandel(self, bounds: Bounds) -> Bounds:
        rows, columns, values = self._entries
        scale = values.new_zeros(self.shape[0]).index_add_(0, rows, values.abs()).max().clamp_min(1e-300)
        positive, negative = rows[values > 0], rows[values < 0]
        # The last entry is for a P without entries.
        infinity = values.new_full((1,), torch.inf)
        lower = torch.cat([bounds.lower[positive], -bounds.upper[negative], -infinity]).max() / scale
        upper = torch.cat([bounds.upper[positive], -bounds.lower[negative], infinity]).min() / scale
        return Bounds(lower.expand(self.shape[1]).clone(), upper.expand(self.shape[1]).clone(), False)


@dataclass(frozen=True)
class Compose:
    """`fine` after `coarse`: ``P = P_fine P_coarse``.

    Parameters
    ----------
    fine : Transfer
        From the finest space down.
    coarse : Transfer
        From there on.
    """

    fine: Transfer
    coarse: Transfer

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.fine.shape[0], self.coarse.shape[1]

    def prolong(self, e: Tensor) -> Tensor:
        """Return ``P_fine P_coarse e``."""
        return self.fine.prolong(self.coarse.prolong(e))

    def restrict(self, g: Tensor) -> Tensor:
        """Return ``P_coarse^T P_fine^T g``."""
        return self.coarse.restrict(self.fine.restrict(g))

    def inject(self, x: Tensor) -> Tensor:
        """Return the iterate, taken down twice."""
        return self.coarse.inject(self.fine.inject(x))

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return the bounds, taken down twice."""
        return self.coarse.restrict_bounds(self.fine.restrict_bounds(bounds, rule), rule)


@dataclass(frozen=True)
class Truncated:
    """`transfer` with the rows of P at the active fine unknowns set to zero: those unknowns cannot move.

    Parameters
    ----------
    transfer : Transfer
        The plain one.
    active : Tensor, shape (n,), bool
        Fine unknowns that sit at a bound.

    References
    ----------
    Kornhuber, Numer. Math. 69 (1994): truncated monotone multigrid.
    """

    transfer: Transfer
    active: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.transfer.shape

    def prolong(self, e: Tensor) -> Tensor:
        """Return ``P e``, zero at active unknowns."""
        return self.transfer.prolong(e).masked_fill(self.active, 0.0)

    def restrict(self, g: Tensor) -> Tensor:
        """Return ``P^T g`` without the active unknowns."""
        return self.transfer.restrict(g.masked_fill(self.active, 0.0))

    def inject(self, x: Tensor) -> Tensor:
        """Return the coarse iterate of the plain transfer."""
        return self.transfer.inject(x)

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return Kornhuber's bounds with the active unknowns left out of maximum and minimum."""
        lower = bounds.lower.masked_fill(self.active, -torch.inf)
        upper = bounds.upper.masked_fill(self.active, torch.inf)
        return self.transfer.restrict_bounds(Bounds(lower, upper), "kornhuber")


def carried(transfer: Transfer, y: Tensor, y0: Tensor, x0: Tensor) -> Tensor:
    """Return the fine iterate of a coarse one `y` that began at `y0`, the coarse iterate of the fine `x0`.

    It is ``lift(y)`` where the transfer knows which fine iterate is the same function as `y` (coarse networks), and
    ``x0 + P (y - y0)`` otherwise.

    Parameters
    ----------
    transfer : Transfer
        Between the two levels.
    y : Tensor, shape (m,)
        Coarse iterate.
    y0 : Tensor, shape (m,)
        Where the coarse level began.
    x0 : Tensor, shape (n,)
        The fine iterate it began from.
    """
    lift = getattr(transfer, "lift", None)
    found: Tensor = x0 + transfer.prolong(y - y0) if lift is None else lift(y)
    return found
