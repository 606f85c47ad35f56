"""Decompositions of the data: subdomains that all update the same unknowns, and differ by their local models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Bounds, Objective
from mldd.algebra.decompositions.decomposition import Build, Combine, weights_of


@dataclass(frozen=True)
class SharedDecomposition:
    """Subdomains that update the same unknowns: parts of a graph or of the data, each with a copy of all parameters.

    It has the batch interface of `Decomposition` without lists of indices: local unknowns are rows of length n.

    Parameters
    ----------
    size : int
        Number n of unknowns.
    parts : int
        Number of subdomains on all ranks.
    build : callable
        As for `Decomposition`; rows have length n.
    owner : Tensor, shape (n,), int64, optional
        The subdomain that owns each unknown, for the weights "ras". None, as for parts of a graph or of the data, where
        any owner would be a matter of how the parts are numbered.
    local : range
        Numbers of the subdomains that this rank holds.
    mask : Tensor, shape (parts, n), bool, optional
        The unknowns that every subdomain updates, all by default: subdomains of both the graph and the parameters.
    corrected, blocks
        As for `Decomposition`.
    device : torch.device or str
        Of the weights.
    shares : callable, optional
        ``shares(f)`` gives the weights, shape (parts,), with which the subdomains' own losses, without correction, add
        up to the objective `f`: the samples or labelled nodes of each over all of them. None: all the same.

    Raises
    ------
    ValueError
        An owner that does not update its unknown, or a subdomain that updates nothing.
    """

    size: int
    parts: int
    build: Build
    owner: Tensor | None
    local: range
    mask: Tensor | None = None
    corrected: bool = True
    blocks: Sequence[slice] = (slice(None),)
    device: torch.device | str = "cpu"
    shares: Callable[[Objective], Tensor] | None = None

    def __post_init__(self) -> None:
        """Check the invariants once."""
        self._check_owner()
        if self.mask is None:
            return
        if self.mask.shape != (self.parts, self.size) or self.mask.dtype != torch.bool:
            raise ValueError(f"`mask` must be bool of shape ({self.parts}, {self.size}), got {tuple(self.mask.shape)}")
        if not bool(self.mask.any(1).all()):
            raise ValueError("every subdomain needs an unknown, got a row of `mask` without any; use fewer parts")
        if self.owner is not None and not bool(self.mask.gather(0, self.owner[None]).all()):
            raise ValueError(
                "every unknown must be updated by its owner, got one that is not in the owner's row of `mask`"
            )

    def _check_owner(self) -> None:
        if self.owner is None:
            return
        if self.owner.shape != (self.size,):
            raise ValueError(f"`owner` must have shape ({self.size},), got {tuple(self.owner.shape)}")
        low, high = int(self.owner.min()), int(self.owner.max())
        if low < 0 or high >= self.parts:
            raise ValueError(f"`owner` must lie in 0..{self.parts - 1}, got {low}..{high}")

    @property
    def usual(self) -> Combine:
        """The weights of a method that is not told any."""
        return "wasm" if self.owner is None else "ras"

    def models(self, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        """Return the batch of local objectives at `x`, corrected with the gradient `g` there where it is given."""
        return self.build(self, f, x, g)

    def shares_of(self, f: Objective) -> Tensor:
        """Return the weights of the subdomains' own losses in `f`, shape (parts,), float64; they add up to one.

        Parameters
        ----------
        f : Objective
            The objective, of a step or not.
        """
        if self.shares is None:
            return torch.full((self.parts,), 1.0 / self.parts, dtype=torch.float64)
        return self.shares(f)

    @cached_property
    def _alone(self) -> dict[int, SharedDecomposition]:
        return {}

    def alone(self, k: int) -> SharedDecomposition:
        """Return the decomposition with subdomain `k` as the only local one; a rank that does not hold it has none."""
        if k not in self._alone:
            self._alone[k] = replace(self, local=range(k, k + (k in self.local)))
        return self._alone[k]

    @cached_property
    def multiplicity(self) -> Tensor:
        """Number of subdomains that update each unknown, shape (n,)."""
        if self.mask is None:
            return torch.full((self.size,), self.parts, device=self.device)
        return self.mask.sum(0)

    @cached_property
    def valid(self) -> Tensor:
        """Which entries of the local rows are updated, shape (p, n)."""
        if self.mask is None:
            return torch.ones(1, 1, dtype=torch.bool, device=self.device).expand(len(self.local), self.size)
        return self.mask[self.local.start : self.local.stop]

    @cached_property
    def owned(self) -> Tensor:
        """Which entries of the local rows are owned, shape (p, n).

        Raises
        ------
        ValueError
            Nobody owns an unknown.
        """
        if self.owner is None:
            raise ValueError(
                "combine=ras takes every unknown from its owner, got subdomains that update the same unknowns and own "
                "none (parts of a graph or of the data); use combine=wasm"
            )
        return self.owner == torch.tensor(self.local, device=self.owner.device)[:, None]

    def weights(self, kind: Combine, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return the diagonal weights of the local corrections, shape (p, n), as `Decomposition.weights` does.

        Raises
        ------
        ValueError
            Unknown `kind`.
        """
        owned = self.owned if kind == "ras" else self.valid
        return weights_of(kind, self.valid, owned, self.multiplicity, dtype)

    def gather(self, x: Tensor) -> Tensor:
        """Return a copy of `x` per local subdomain, shape (p, n)."""
        return x.expand(len(self.local), -1).clone()

    def scatter(self, corrections: Tensor) -> Tensor:
        """Return the sum of the (weighted) local corrections of this rank, shape (n,)."""
        return corrections.sum(0)

    def spread(self, corrections: Tensor) -> Tensor:
        """Return each local correction extended by zero to all unknowns, shape (p, n)."""
        return corrections

    def gather_bounds(self, bounds: Bounds, y: Tensor) -> Bounds:
        """Return the bounds of the local rows; what a subdomain does not update is fixed at its value in `y`.

        Without bounds it needs none: local models have a zero gradient there.
        """
        if self.mask is None or bounds.is_free:
            return Bounds(bounds.lower.expand_as(y), bounds.upper.expand_as(y), bounds.is_free)
        return Bounds(torch.where(self.valid, bounds.lower, y), torch.where(self.valid, bounds.upper, y), False)
