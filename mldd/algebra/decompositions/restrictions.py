"""Local models of any objective: its restrictions to the subdomains; and decompositions into runs of unknowns."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Bounds, Corrected, Objective, check_rows, on_this_rank, value_and_gradient
from mldd.algebra.decompositions.decomposition import Build, Decomposition, Subdomain


@dataclass(frozen=True)
class LocalRestrictions:
    """Local models of any objective: ``y_i -> f(x + P_i (y_i - R_i x))``, one fine gradient per subdomain.

    The fallback for objectives that know no cheaper way to evaluate a subdomain; `f` that take a batch of vectors (p,
    n) say so with the attribute ``batched`` and are called once.

    Parameters
    ----------
    f : Objective
        The objective on all unknowns.
    decomposition : Decomposition
        Of its unknowns.
    x : Tensor, shape (n,)
        The iterate.
    """

    f: Objective
    decomposition: Decomposition
    x: Tensor

    @property
    def size(self) -> int:
        """Length of a row."""
        return self.decomposition.indices.shape[1]

    @property
    def bounds(self) -> Bounds:
        """Bounds of the stacked unknowns."""
        return self.decomposition.gather_bounds(self.f.bounds, self.decomposition.gather(self.x))

    @cached_property
    def _buffer(self) -> Tensor:
        return self.x.expand(len(self.decomposition.indices), -1).clone()

    def _points(self, y: Tensor) -> Tensor:
        """Return the full vectors ``x + P_i (y_i - R_i x)``, in a buffer where only these unknowns ever change."""
        d = self.decomposition
        if d.runs is not None:
            for point, row, run in zip(self._buffer, y, d.runs, strict=True):
                point[run] = row[: run.stop - run.start]
        else:  # padding repeats the first unknown of its row and must not overwrite it
            self._buffer.view(-1).index_copy_(0, d.places[d.valid], y[d.valid])
        return self._buffer

    def _rows(self, vectors: Tensor) -> Tensor:
        """Return ``R_i`` of the full vectors, zero at padding."""
        d = self.decomposition
        if d.runs is None:
            return vectors.gather(1, d.indices).mul_(d.valid)
        rows = vectors.new_zeros(d.indices.shape)
        for row, vector, run in zip(rows, vectors, d.runs, strict=True):
            row[: run.stop - run.start] = vector[run]
        return rows

    def value(self, y: Tensor) -> Tensor:
        """Return the values, shape (p,)."""
        points = self._points(y)
        with on_this_rank():
            if not _batched(self.f):
                return torch.stack([self.f.value(p) for p in points])
            values = self.f.value(points)
        check_rows(self.f, points, values, None)
        return values

    def gradient(self, y: Tensor) -> Tensor:
        """Return the gradients of all local models, shape (p, m)."""
        points = self._points(y)
        with on_this_rank():
            g = self.f.gradient(points) if _batched(self.f) else torch.stack([self.f.gradient(p) for p in points])
        check_rows(self.f, points, None, g)
        return self._rows(g)

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients of all local models, in one sweep where `f` offers it."""
        points = self._points(y)
        with on_this_rank():
            if _batched(self.f):
                values, g = value_and_gradient(self.f, points)
            else:
                pairs = [value_and_gradient(self.f, p) for p in points]
                values, g = (torch.stack(list(column)) for column in zip(*pairs, strict=True))
        check_rows(self.f, points, values, g)
        return values, self._rows(g)

    def hessian_product(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``R_i H P_i v_i`` of all local models, shape (p, m)."""
        product = self.f.hessian_product  # type: ignore[attr-defined]
        points, directions = self._points(y), self.decomposition.spread(v * self.decomposition.valid)
        with on_this_rank():
            if _batched(self.f):
                spread = product(points, directions)
            else:
                spread = torch.stack([product(p, d) for p, d in zip(points, directions, strict=True)])
        return self._rows(spread)


def _batched(f: Objective) -> bool:
    return bool(getattr(f, "batched", getattr(getattr(f, "f", f), "batched", False)))


def index_decomposition(f: Objective, subdomains: Sequence[Subdomain], local: range | None = None) -> Decomposition:
    """Return a decomposition of the unknowns of `f` whose local models are restrictions of `f` itself.

    Parameters
    ----------
    f : Objective
        The objective.
    subdomains : Sequence of Subdomain
        All of them, on every rank.
    local : range, optional
        Numbers of those that this rank holds, all by default.

    Examples
    --------
    A network's layers as subdomains: ``index_decomposition(f, contiguous(f.sizes, parts=2))``.
    """
    chosen = range(len(subdomains)) if local is None else local
    return Decomposition(f.size, subdomains, local_restrictions, chosen)


def local_restrictions(decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> LocalRestrictions:
    """Return the local models of any objective; their gradient is consistent without a correction.

    Parameters
    ----------
    decomposition : Decomposition
        Of its unknowns.
    f : Objective
        The objective.
    x : Tensor, shape (n,)
        The iterate.
    g : Tensor, shape (n,), optional
        The gradient there, which is not needed.
    """
    return LocalRestrictions(f, decomposition, x.clone())


def corrected_models(local: Callable[[Any, Objective], Objective]) -> Build:
    """Return what builds first-order corrected local models: their gradient at the iterate is the global one.

    Without the global gradient they are the local losses as they are.

    Parameters
    ----------
    local : callable
        ``local(decomposition, f)`` returns the batch of local losses that goes with an objective.
    """

    def build(decomposition: Any, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        y0, models = decomposition.gather(x), local(decomposition, f)
        if g is None and f.bounds.is_free:
            return models
        delta = torch.zeros_like(y0) if g is None else g * decomposition.valid - models.gradient(y0)
        return Corrected(models, delta, y0, decomposition.gather_bounds(f.bounds, y0))

    return build


def contiguous(sizes: Sequence[int], parts: int, overlap: int = 0) -> list[Subdomain]:
    """Return `parts` runs of consecutive blocks of unknowns (layers), each widened by `overlap` blocks on both sides.

    Every cut is the one nearest to an even division of the unknowns that leaves a block for each part.

    Parameters
    ----------
    sizes : sequence of int
        Number of unknowns of each block.
    parts, overlap : int
        Number of runs, and of blocks by which each is widened on both sides.

    Raises
    ------
    ValueError
        More parts than blocks, or a negative overlap.
    """
    if not 1 <= parts <= len(sizes):
        raise ValueError(f"`parts` must be between 1 and {len(sizes)} (the number of blocks), got {parts}")
    if overlap < 0:
        raise ValueError(f"`overlap` must be >= 0, got {overlap}")
    starts = [sum(sizes[:k]) for k in range(len(sizes) + 1)]
    cuts = [0]
    for k in range(1, parts):
        possible = range(cuts[-1] + 1, len(sizes) - (parts - k) + 1)
        cuts.append(min((abs(starts[cut] * parts - k * starts[-1]), cut) for cut in possible)[1])
    cuts.append(len(sizes))
    subdomains = []
    for first, last in zip(cuts, cuts[1:], strict=False):
        low, high = max(0, first - overlap), min(len(sizes), last + overlap)
        indices = torch.arange(starts[low], starts[high])
        subdomains.append(Subdomain(indices, (indices >= starts[first]) & (indices < starts[last])))
    return subdomains
