"""Schwarz decompositions of grids: rectangles with overlap, stacked as windows of one size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from mldd.algebra import Calibrated, Corrected, Decomposition, LocalRestrictions, Objective, Remembered, Subdomain
from mldd.problems.grids.grid import Grid
from mldd.ranks import SERIAL, Communicator

# [first, last) of the owned nodes and of the nodes with overlap, along one axis.
Interval = tuple[int, int, int, int]


@dataclass(frozen=True)
class GridDecomposition(Decomposition):
    """A decomposition whose local subdomains are stacked as windows (p, rows, columns) of the grid, all of one size.

    A window is a subdomain, made as large as the largest subdomain and moved so that it lies in the grid. Its nodes
    outside the subdomain are the padding of the stack: they keep the values of the iterate there.

    Parameters
    ----------
    shape : tuple of int
        Of the grid.
    boxes : tuple
        Of every subdomain, its `Interval` along every axis.
    """

    shape: tuple[int, ...] = ()
    boxes: tuple[tuple[Interval, ...], ...] = ()

    @cached_property
    def window(self) -> tuple[int, ...]:
        """Size of the windows: the largest subdomain of all ranks, so that results do not depend on their number."""
        return tuple(max(box[k][3] - box[k][2] for box in self.boxes) for k in range(len(self.shape)))

    @property
    def _device(self) -> torch.device:
        return self.subdomains[0].indices.device

    def _corners(self, k: int) -> Tensor:
        """Return the first node of the local windows along axis `k`, shape (p,)."""
        room = self.shape[k] - self.window[k]
        return torch.tensor([min(self.boxes[i][k][2], room) for i in self.local], dtype=torch.int64)

    def _nodes(self, k: int, before: int = 0, after: int = 0) -> Tensor:
        """Return the coordinates of the nodes of the local windows along axis `k`, widened, shape (p, length)."""
        return self._corners(k)[:, None] + torch.arange(-before, self.window[k] + after)

    def _flat(self, coordinates: list[Tensor]) -> Tensor:
        """Return flat numbers; `size` for nodes outside of the grid."""
        nodes = coordinates[0] if len(self.shape) == 1 else coordinates[0][:, :, None]
        inside = (nodes >= 0) & (nodes < self.shape[0])
        if len(self.shape) == 2:
            across = coordinates[1][:, None, :]
            inside = inside & (across >= 0) & (across < self.shape[1])
            nodes = nodes * self.shape[1] + across
        return torch.where(inside, nodes, self.size)

    def _between(self, first: int, last: int) -> Tensor:
        """Return which nodes of the windows lie in [box[first], box[last]) along all axes, shape (p, m)."""
        inside = torch.ones((len(self.local), *self.window), dtype=torch.bool)
        for k in range(len(self.shape)):
            low = torch.tensor([self.boxes[i][k][first] for i in self.local], dtype=torch.int64)[:, None]
            high = torch.tensor([self.boxes[i][k][last] for i in self.local], dtype=torch.int64)[:, None]
            along = (self._nodes(k) >= low) & (self._nodes(k) < high)
            inside &= along if len(self.shape) == 1 else along[:, :, None] if k == 0 else along[:, None, :]
        return inside.flatten(1).to(self._device)

    @cached_property
    def indices(self) -> Tensor:
        """Flat numbers of the nodes of the local windows, shape (p, m)."""
        return self._flat([self._nodes(k) for k in range(len(self.shape))]).flatten(1).to(self._device)

    @cached_property
    def valid(self) -> Tensor:
        """Which nodes of the windows belong to the subdomain, shape (p, m)."""
        return self._between(2, 3)

    @cached_property
    def owned(self) -> Tensor:
        """Which nodes of the windows the subdomain owns, shape (p, m)."""
        return self._between(0, 1)

    @cached_property
    def held(self) -> int:
        """Number of unknowns of the local subdomains, overlap counted as often as it occurs."""
        return int(self.valid.sum())

    @cached_property
    def _is_padded(self) -> bool:
        return self.held < self.valid.numel()

    @cached_property
    def _masks(self) -> dict[torch.dtype, Tensor]:
        return {}

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """Return one at unknowns and zero at padding, shape (p, m); None without padding. Not to be written to.

        Parameters
        ----------
        dtype : torch.dtype
            Of the mask.
        """
        if not self._is_padded:
            return None
        if dtype not in self._masks:
            self._masks[dtype] = self.valid.to(dtype)
        return self._masks[dtype]

    def gather(self, x: Tensor) -> Tensor:
        """Return the local copies of `x`, shape (p, m).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Vector of the whole grid.
        """
        # A quarter of the time of x[indices].
        return x.index_select(0, self.indices.view(-1)).view(self.indices.shape)

    def cut(self, field: Tensor) -> Tensor:
        """Return a copy of the windows of a field on the grid (or of a constant), shape (p, *window).

        Parameters
        ----------
        field : Tensor, shape () or that of the grid, with leading axes
            Values at the nodes.
        """
        if field.dim() == 0:
            return field.repeat(len(self.local), *self.window)
        return self.gather(field.reshape(-1)).view(len(self.local), *self.window)

    @cached_property
    def framed(self) -> Tensor:
        """Flat numbers of the nodes of the windows and one ring around them, `size` outside of the grid."""
        return self._flat([self._nodes(k, 1, 1) for k in range(len(self.shape))]).to(self._device)

    @cached_property
    def _framed_in_ring(self) -> Tensor:
        """Flat numbers of `framed` in the grid with its boundary nodes (two dimensions): none is outside."""
        down, across = self._nodes(0, 1, 1) + 1, self._nodes(1, 1, 1) + 1
        return (down[:, :, None] * (self.shape[1] + 2) + across[:, None, :]).to(self._device)

    def cut_framed(self, field: Tensor) -> Tensor:
        """Return the windows with the ring around them of a field on the grid and its boundary, shape (p, r+2, c+2).

        Parameters
        ----------
        field : Tensor, shape (rows + 2, columns + 2)
            Values at the nodes and on the boundary.
        """
        return field.reshape(-1)[self._framed_in_ring]

    def rings(self, load: Tensor, x: Tensor) -> Iterator[tuple[Tensor, Tensor, int]]:
        """Yield, for every side of the windows, the part of `load` along it, the values of `x` outside, and the axis.

        Values outside of the grid are zero.

        Parameters
        ----------
        load : Tensor, shape (p, *window)
            Loads of the windows.
        x : Tensor, shape (n,)
            Iterate.
        """
        padded = torch.cat([x, x.new_zeros(1)])
        inner = self.framed if len(self.shape) == 1 else self.framed[:, :, 1:-1]
        last = self.window[0]
        for side, outside in ((0, 0), (last - 1, last + 1)):
            yield load[:, side], padded[inner[:, outside]] if len(self.shape) == 1 else padded[inner[:, outside, :]], 0
        if len(self.shape) == 2:
            inner, last = self.framed[:, 1:-1], self.window[1]
            for side, outside in ((0, 0), (last - 1, last + 1)):
                yield load[:, :, side], padded[inner[:, :, outside]], 1


def _splits(length: int, parts: int, overlap: int) -> list[Interval]:
    """Cut an axis at the floors of ``linspace(0, length, parts + 1)`` and widen the pieces."""
    cuts = [k * length // parts for k in range(parts + 1)]
    return [(a, b, max(0, a - overlap), min(length, b + overlap)) for a, b in zip(cuts, cuts[1:], strict=False)]


def _factors(shape: tuple[int, ...], parts: int) -> tuple[int, ...]:
    """Return the numbers of parts per axis, as near to a square as `parts` allows."""
    if parts < 1:
        raise ValueError(f"`parts` must be >= 1, got {parts}")
    if parts > prod(shape):
        raise ValueError(f"`parts` must be <= {prod(shape)} (the number of unknowns), got {parts}")
    if len(shape) == 1:
        return (parts,)
    down = max(a for a in range(1, int(parts**0.5) + 1) if parts % a == 0)
    if down > shape[0] or parts // down > shape[1]:
        raise ValueError(
            f"`parts` = {parts} = {down} x {parts // down} rectangles need at least as many nodes per side, "
            f"got a grid of {shape[0]} x {shape[1]}; use fewer parts, or a number that is nearer to a square"
        )
    return down, parts // down


def grid_decomposition(
    grid: Grid, parts: int, overlap: int = 1, comm: Communicator = SERIAL, device: torch.device | str = "cpu"
) -> GridDecomposition:
    """Return the decomposition of a grid into `parts` rectangles (a x b, as near to a square as possible) with overlap.

    Parameters
    ----------
    grid : Grid
        The grid that is cut.
    parts : int
        Number of subdomains on all ranks.
    overlap : int
        Layers of nodes added to every subdomain on every side.
    comm : Communicator
        Its ranks share the subdomains.
    device : torch.device or str
        Of the index sets.

    Raises
    ------
    ValueError
        More parts than nodes, or along a side than its nodes, or a negative overlap.
    """
    if overlap < 0:
        raise ValueError(f"`overlap` must be >= 0, got {overlap}")
    counts = _factors(grid.shape, parts)
    boxes: list[tuple[Interval, ...]] = [(i,) for i in _splits(grid.shape[0], counts[0], overlap)]
    if grid.dim == 2:
        boxes = [(*box, j) for box in boxes for j in _splits(grid.shape[1], counts[1], overlap)]
    subdomains = [_subdomain(grid.shape, box, device) for box in boxes]

    def build(decomposition: GridDecomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        return local_models(f, decomposition, x)

    return GridDecomposition(grid.size, subdomains, build, comm.share(parts), shape=grid.shape, boxes=tuple(boxes))


def _subdomain(shape: tuple[int, ...], box: tuple[Interval, ...], device: torch.device | str) -> Subdomain:
    nodes = [torch.arange(low, high) for _, _, low, high in box]
    owned = [(i >= first) & (i < last) for i, (first, last, _, _) in zip(nodes, box, strict=True)]
    if len(shape) == 1:
        return Subdomain(nodes[0].to(device), owned[0].to(device))
    indices = (nodes[0][:, None] * shape[1] + nodes[1][None, :]).flatten()
    return Subdomain(indices.to(device), (owned[0][:, None] & owned[1][None, :]).flatten().to(device))


@runtime_checkable
class WindowedEnergy(Protocol):
    """An objective of a grid that can be evaluated on windows."""

    def local(self, decomposition: GridDecomposition, x: Tensor) -> Objective:
        """Return the batch of local objectives at `x`.

        Parameters
        ----------
        decomposition : GridDecomposition
            The windows of this rank.
        x : Tensor, shape (n,)
            Iterate, which is fixed outside of the windows.
        """
        ...


def local_models(f: Objective, decomposition: GridDecomposition, x: Tensor) -> Objective:
    """Return the batch of local objectives ``y_i -> f(x + P_i (y_i - R_i x))``, on windows where `f` knows how.

    Energies of the grid have a method ``local(decomposition, x)``; a linear correction is cut out with them; anything
    else is restricted as a whole (`LocalRestrictions`).

    Parameters
    ----------
    f : Objective
        Objective of the whole grid.
    decomposition : GridDecomposition
        The windows of this rank.
    x : Tensor, shape (n,)
        Iterate, which is fixed outside of the windows.
    """
    if isinstance(f, Remembered | Calibrated):  # layers that change no value
        return local_models(f.f, decomposition, x)
    if isinstance(f, Corrected):
        inner = local_models(f.f, decomposition, x)
        mask = decomposition.mask(x.dtype)
        delta = decomposition.gather(f.delta)
        bounds = decomposition.gather_bounds(f.bounds, decomposition.gather(x))
        return Corrected(inner, delta if mask is None else delta * mask, decomposition.gather(f.y0), bounds)
    if isinstance(f, WindowedEnergy):
        return f.local(decomposition, x)
    return LocalRestrictions(f, decomposition, x.clone())
