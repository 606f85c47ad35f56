"""Products of decompositions: every part of a graph once for every share of the samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Bounds, Corrected, Objective, value_and_gradient
from mldd.algebra.decompositions.shared_decomposition import SharedDecomposition


@dataclass(frozen=True)
class Joined:
    """Batches of objectives as one batch, each with its rows after those of the one before.

    Parameters
    ----------
    batches : sequence of Objective
        Of (p_k, n) tensors.
    lengths : sequence of int
        Their numbers of rows p_k.
    """

    batches: Sequence[Objective]
    lengths: Sequence[int]

    batched = True

    @property
    def size(self) -> int:
        """Number of unknowns of a row."""
        return self.batches[0].size

    @cached_property
    def bounds(self) -> Bounds:
        """Bounds of all rows."""
        every = [f.bounds for f in self.batches]
        lower, upper = (torch.cat([getattr(b, side) for b in every]) for side in ("lower", "upper"))
        return Bounds(lower, upper, all(b.is_free for b in every))

    def value(self, y: Tensor) -> Tensor:
        """Return the values, shape (p,).

        Parameters
        ----------
        y : Tensor, shape (p, n)
            Where to evaluate.
        """
        return torch.cat([f.value(rows) for f, rows in self._pairs(y)])

    def gradient(self, y: Tensor) -> Tensor:
        """Return the gradients, shape (p, n).

        Parameters
        ----------
        y : Tensor, shape (p, n)
            Where to evaluate.
        """
        return torch.cat([f.gradient(rows) for f, rows in self._pairs(y)])

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients.

        Parameters
        ----------
        y : Tensor, shape (p, n)
            Where to evaluate.
        """
        found = [value_and_gradient(f, rows) for f, rows in self._pairs(y)]
        return torch.cat([value for value, _ in found]), torch.cat([g for _, g in found])

    def _pairs(self, y: Tensor) -> list[tuple[Objective, Tensor]]:
        return list(zip(self.batches, torch.split(y, list(self.lengths)), strict=True))


def product(
    parts: SharedDecomposition,
    shares: int,
    of_share: Callable[[Objective, int], Objective],
    weights: Callable[[Objective], Tensor],
    local: range,
) -> SharedDecomposition:
    """Return a decomposition with a subdomain for every pair of a part and a share of the samples.

    Subdomain ``j p + i`` is part i of p with the samples of share j, so that ranks with neighbouring numbers have
    neighbouring parts of one share.

    Parameters
    ----------
    parts : SharedDecomposition
        The parts, without masks.
    shares : int
        Shares of the samples.
    of_share : callable
        ``of_share(f, j)`` returns an objective of which `parts` makes the local models with the samples of share j.
    weights : callable
        ``weights(f)`` returns how much of all samples every share has, shape (shares,), float64, with sum one.
    local : range
        Numbers of the subdomains that this rank holds.
    """
    p = parts.parts

    def build(decomposition: SharedDecomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        runs = _runs(decomposition.local, p)
        made = [replace(parts, local=run).models(of_share(f, j), x, None) for j, run in runs]
        own = made[0] if len(made) == 1 else Joined(made, [len(run) for _, run in runs])
        if g is None:
            return own
        y0 = decomposition.gather(x)
        delta = g * decomposition.valid - own.gradient(y0)
        return Corrected(own, delta, y0, decomposition.gather_bounds(f.bounds, y0))

    def shares_of(f: Objective) -> Tensor:
        return torch.outer(weights(f), parts.shares_of(f)).flatten()

    return replace(parts, parts=p * shares, build=build, local=local, shares=shares_of)


def _runs(local: range, parts: int) -> list[tuple[int, range]]:
    """Return the shares that a range of subdomains belongs to, each with its parts."""
    return [
        (j, range(max(local.start, j * parts) - j * parts, min(local.stop, (j + 1) * parts) - j * parts))
        for j in (range(local.start // parts, (local.stop - 1) // parts + 1) if len(local) else ())
    ]
