"""Decompositions of the unknowns into overlapping subdomains, of which each minimises a local model.

Two things are decomposed and named apart: the *graph* (who evaluates which nodes, `mldd.graph.graph`) and the
*parameters* (who updates which unknowns, here). A subdomain of the graph usually updates all parameters; see
`mldd.problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from mldd.algebra import Bounds, IndexTransfer, Objective

Combine = Literal["asm", "ras", "wasm"]


@dataclass(frozen=True)
class Subdomain:
    """One overlapping subdomain.

    Parameters
    ----------
    indices : Tensor, shape (m,), int64
        Unknowns it updates, owned ones and overlap.
    owned : Tensor, shape (m,), bool
        Which of them it owns; every unknown is owned by exactly one subdomain.
    """

    indices: Tensor
    owned: Tensor


# Makes the batch of local objectives of a decomposition (one row per local subdomain, shape (p, m)) at the iterate x:
# first-order corrected with the gradient g there, where it is given.
Build = Callable[[Any, Objective, Tensor, Tensor | None], Objective]


@dataclass(frozen=True)
class Decomposition:
    """Subdomains of n unknowns; the local ones are stacked into a (p, m) batch, padded at the end of rows.

    Parameters
    ----------
    size : int
        Number n of unknowns.
    subdomains : sequence of Subdomain
        All of them, on every rank (records of indices only).
    build : callable
        ``build(decomposition, f, x, g)`` gives the batch of local objectives of the subdomains in
        ``decomposition.local``, as functions of the stacked local unknowns; padded entries never move, as they have
        equal bounds or a zero gradient.
    local : range
        Numbers of the subdomains that this rank holds.
    corrected : bool
        The models are to be first-order corrected with the gradient at x.
    blocks : sequence of slice
        Consecutive groups of unknowns (layers of a network) by which a small coarse space splits its columns.

    Raises
    ------
    ValueError
        An empty subdomain, or an unknown that is owned by none or by several.
    """

    size: int
    subdomains: Sequence[Subdomain]
    build: Build
    local: range = field(default=None)  # type: ignore[assignment]
    corrected: bool = False
    blocks: Sequence[slice] = (slice(None),)

    def __post_init__(self) -> None:
        """Check the invariants once."""
        if self.local is None:
            object.__setattr__(self, "local", range(len(self.subdomains)))
        empty = [k for k, s in enumerate(self.subdomains) if len(s.indices) == 0]
        if empty:
            raise ValueError(f"every subdomain needs an unknown, got none in number {empty[0]}; use fewer parts")
        ends = [end for s in self.subdomains for end in (int(s.indices.min()), int(s.indices.max()))]
        if min(ends) < 0 or max(ends) >= self.size:
            raise ValueError(f"unknowns of subdomains must be in 0..{self.size - 1}, got {min(ends)}..{max(ends)}")
        owners = self._count(lambda s: s.indices[s.owned])
        if not bool((owners == 1).all()):
            i = int((owners != 1).nonzero()[0])
            raise ValueError(f"every unknown must be owned by one subdomain, got {int(owners[i])} for unknown {i}")

    def _count(self, pick: Callable[[Subdomain], Tensor]) -> Tensor:
        return torch.bincount(torch.cat([pick(s) for s in self.subdomains]).cpu(), minlength=self.size)

    @property
    def parts(self) -> int:
        """Number of subdomains on all ranks."""
        return len(self.subdomains)

    @property
    def usual(self) -> Combine:
        """The weights of a method that is not told any."""
        return "ras"

    def models(self, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        """Return the batch of local objectives at `x`, corrected with the gradient `g` there where it is given.

        Parameters
        ----------
        f : Objective
            The objective.
        x : Tensor, shape (n,)
            The iterate.
        g : Tensor, shape (n,), optional
            The gradient there.
        """
        return self.build(self, f, x, g)

    @cached_property
    def _alone(self) -> dict[int, Decomposition]:
        return {}

    def alone(self, k: int) -> Decomposition:
        """Return the decomposition with subdomain `k` as the only local one; a rank that does not hold it has none.

        Parameters
        ----------
        k : int
            Number of the subdomain.
        """
        if k not in self._alone:
            self._alone[k] = replace(self, local=range(k, k + (k in self.local)))
        return self._alone[k]

    @cached_property
    def multiplicity(self) -> Tensor:
        """Number of subdomains that update each unknown, shape (n,)."""
        return self._count(lambda s: s.indices).to(self.subdomains[0].indices.device)

    @cached_property
    def indices(self) -> Tensor:
        """Stacked indices of the local subdomains, shape (p, m); padding repeats the first index of the row."""
        mine = [self.subdomains[k].indices for k in self.local]
        width = max((len(i) for i in mine), default=0)
        return (
            torch.stack([torch.cat([i, i[:1].expand(width - len(i))]) for i in mine])
            if mine
            else torch.empty((0, 0), dtype=torch.int64)
        )

    @cached_property
    def valid(self) -> Tensor:
        """Which entries of the stack are unknowns (not padding), shape (p, m)."""
        return self._stack(lambda s: torch.ones_like(s.owned))

    @cached_property
    def owned(self) -> Tensor:
        """Which entries of the stack are owned, shape (p, m)."""
        return self._stack(lambda s: s.owned)

    @cached_property
    def places(self) -> Tensor:
        """Positions of the entries of the stack in p full vectors laid end to end, shape (p, m)."""
        return self.indices + self.size * torch.arange(len(self.indices), device=self.indices.device)[:, None]

    @cached_property
    def runs(self) -> list[slice] | None:
        """The local subdomains as slices where all are runs of consecutive unknowns (layers): copying is then cheap."""
        mine = [self.subdomains[k].indices for k in self.local]
        in_front = all(bool(row[: len(i)].all()) for row, i in zip(self.valid, mine, strict=True))
        if not in_front or not all(bool((i.diff() == 1).all()) for i in mine):
            return None
        return [slice(int(i[0]), int(i[-1]) + 1) for i in mine]

    def _stack(self, pick: Callable[[Subdomain], Tensor]) -> Tensor:
        out = torch.zeros_like(self.indices, dtype=torch.bool)
        for row, k in enumerate(self.local):
            values = pick(self.subdomains[k])
            out[row, : len(values)] = values
        return out

    def transfer(self, k: int) -> IndexTransfer:
        """Return the Boolean transfer between all unknowns and those of subdomain `k`.

        Parameters
        ----------
        k : int
            Number of the subdomain.
        """
        return IndexTransfer(self.subdomains[k].indices, self.size)

    def weights(self, kind: Combine, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the diagonal weights of the local corrections, shape (p, m), zero at padding.

        ``asm``: one (sum of all corrections); ``ras``: one at owned unknowns; ``wasm``: one over the multiplicity. The
        last two are partitions of unity, so combined corrections stay in the box.

        Parameters
        ----------
        kind : Combine
            The method that combines corrections.
        dtype : torch.dtype
            Of the weights.

        Raises
        ------
        ValueError
            Unknown `kind`.
        """
        return weights_of(kind, self.valid, self.owned, self.multiplicity[self.indices], dtype)

    def gather(self, x: Tensor) -> Tensor:
        """Return the local copies of `x`, shape (p, m).

        Parameters
        ----------
        x : Tensor, shape (n,)
            All unknowns.
        """
        if self.runs is None:
            return x[self.indices]
        rows = x.new_empty(self.indices.shape)
        for row, run in zip(rows, self.runs, strict=True):
            row[: run.stop - run.start] = x[run]
            row[run.stop - run.start :] = x[run.start]
        return rows

    def scatter(self, corrections: Tensor) -> Tensor:
        """Return the sum of the (weighted) local corrections of this rank, shape (n,).

        Parameters
        ----------
        corrections : Tensor, shape (p, m)
            One row per local subdomain.
        """
        total = corrections.new_zeros(self.size)
        if self.runs is None:
            return total.index_add_(0, self.indices.flatten(), corrections.flatten())
        for row, run in zip(corrections, self.runs, strict=True):
            total[run] += row[: run.stop - run.start]
        return total

    def spread(self, corrections: Tensor) -> Tensor:
        """Return each local correction extended by zero to all unknowns, shape (p, n).

        Parameters
        ----------
        corrections : Tensor, shape (p, m)
            One row per local subdomain.
        """
        return corrections.new_zeros((len(corrections), self.size)).scatter_add_(1, self.indices, corrections)

    def gather_bounds(self, bounds: Bounds, y: Tensor) -> Bounds:
        """Return the bounds of the stacked unknowns; padding is fixed at its value in `y`.

        Without bounds padding needs none: local models have a zero gradient there.

        Parameters
        ----------
        bounds : Bounds
            Of all unknowns.
        y : Tensor, shape (p, m)
            The stacked unknowns.
        """
        if bounds.is_free:
            return Bounds.free(*y.shape, dtype=y.dtype, device=y.device)
        lower, upper = bounds.lower[self.indices], bounds.upper[self.indices]
        return Bounds(torch.where(self.valid, lower, y), torch.where(self.valid, upper, y), False)


def weights_of(kind: Combine, valid: Tensor, owned: Tensor, multiplicity: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the weights of corrections, of the shape of `valid`.

    Parameters
    ----------
    kind : {"asm", "ras", "wasm"}
        Which ones.
    valid, owned : Tensor, shape (p, m), bool
        Entries that are unknowns, and those that the row owns.
    multiplicity : Tensor
        How many subdomains update each, of a shape that goes with `valid`.
    dtype : torch.dtype
        Of the result.

    Raises
    ------
    ValueError
        No such weights.
    """
    if kind == "asm":
        return valid.to(dtype)
    if kind == "ras":
        return owned.to(dtype)
    if kind == "wasm":
        return valid.to(dtype) / multiplicity.to(dtype)
    raise ValueError(f"`combine` must be one of asm, ras, wasm, got {kind!r}")


def split(rows: Tensor, blocks: Sequence[slice]) -> Tensor:
    """Return every row of `rows`, shape (k, n), cut into its parts in the blocks, zero elsewhere: block by block.

    Parameters
    ----------
    rows : Tensor, shape (k, n)
        Vectors of all unknowns.
    blocks : Sequence of slice
        Consecutive groups of unknowns.
    """
    out = rows.new_zeros((len(blocks), *rows.shape))
    for pieces, block in zip(out, blocks, strict=True):
        pieces[:, block] = rows[:, block]
    return out.flatten(0, 1)
