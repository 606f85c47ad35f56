"""Grids on the unit interval and square, the transfers between them, and their Schwarz decompositions.

A grid has n interior nodes per side and mesh width h = 1/(n+1). Node (i, j) sits at y = (i+1) h, x = (j+1) h and has
the flat number ``i * columns + j``. A side is *open* (zero Dirichlet: no unknowns on it) or *natural* (unknowns on
it, counted as one more node of that axis).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod

import torch
import torch.nn.functional as F
from torch import Tensor

from mldd.algebra import Bounds, Compose, Hierarchy, Level, Objective, Price, Rule, Transfer
from mldd.problems.grids import compiled_stencils as compiled

# Below this many nodes per side two dense products with 1-D factors cost less than the calls of the slice code.
DENSE = 31

# Makes the objective of a problem on a grid, with the price of its evaluations.
Discretise = Callable[["Grid", Price], Objective]


@dataclass(frozen=True)
class Grid:
    """A uniform grid on the unit interval (`dim` 1) or square (`dim` 2).

    Parameters
    ----------
    n : int
        Interior nodes per side.
    dim : int
        Dimension, 1 or 2.
    natural : tuple of bool, length 2 dim
        Whether the sides y=0, y=1, x=0, x=1 (in one dimension x=0, x=1) carry unknowns.

    Raises
    ------
    ValueError
        No interior node, or a dimension other than 1 and 2.
    """

    n: int
    dim: int = 2
    natural: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        """Check n and dim; all sides are open by default."""
        if self.dim not in (1, 2):
            raise ValueError(f"`dim` must be 1 or 2, got {self.dim}")
        if self.n < 1:
            raise ValueError(f"`n` must be >= 1 (interior nodes per side), got {self.n}")
        if not self.natural:
            object.__setattr__(self, "natural", (False,) * (2 * self.dim))

    @property
    def h(self) -> float:
        """Mesh width."""
        return 1.0 / (self.n + 1)

    @cached_property
    def shape(self) -> tuple[int, ...]:
        """Unknowns per axis: (rows, columns) or (nodes,)."""
        return tuple(self.n + sum(self.natural[2 * k : 2 * k + 2]) for k in range(self.dim))

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return prod(self.shape)

    def axis(self, k: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
        """Return the coordinates of the unknowns along axis `k` (0 is y in two dimensions).

        Parameters
        ----------
        k : int
            Number of the axis; in two dimensions 0 is y and 1 is x.
        dtype : torch.dtype
            Of the coordinates.
        device : torch.device | str
            Of the coordinates.
        """
        first = 0 if self.natural[2 * k] else 1
        # Divide in double precision on the host: the coordinates, and so the bounds, are the same on every device.
        return (torch.arange(first, first + self.shape[k], dtype=torch.float64) / (self.n + 1)).to(device, dtype)

    def points(self, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """Return x of shape (1, columns) and y of shape (rows, 1); they broadcast to the grid.

        Parameters
        ----------
        dtype : torch.dtype
            Of the coordinates.
        device : torch.device | str
            Of the coordinates.
        """
        return self.axis(1, dtype, device)[None, :], self.axis(0, dtype, device)[:, None]

    def coarser(self) -> Grid:
        """Return the grid with every other node.

        Raises
        ------
        ValueError
            n is even or less than 3.
        """
        if self.n < 3 or self.n % 2 == 0:
            raise ValueError(f"a grid has a coarser one when `n` is odd and >= 3, got {self.n}")
        return Grid((self.n - 1) // 2, self.dim, self.natural)


@lru_cache(maxsize=64)
def _interpolation(coarse: int, low: bool, high: bool, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the dense 1-D interpolation matrix, shape (fine, coarse)."""
    fine = torch.empty((2 * coarse + 1 - low - high, coarse), dtype=dtype, device=device)
    _interpolate(torch.eye(coarse, dtype=dtype, device=device), fine.zero_(), low, high)
    return fine


def _interpolate(coarse: Tensor, fine: Tensor, low: bool, high: bool) -> None:
    """Write the linear interpolant of `coarse` along the first axis into `fine`; `low`, `high`: natural ends."""
    k, first = len(coarse), 0 if low else 1
    fine[first : first + 2 * k - 1 : 2] = coarse
    if k > 1:
        torch.lerp(coarse[:-1], coarse[1:], 0.5, out=fine[first + 1 : first + 2 * k - 2 : 2])
    if not low:
        torch.mul(coarse[0], 0.5, out=fine[0])
    if not high:
        torch.mul(coarse[-1], 0.5, out=fine[-1])


def _restrict(fine: Tensor, low: bool, high: bool) -> Tensor:
    """Return the transpose of `_interpolate` along the first axis."""
    if not low and not high:
        return torch.lerp(fine[:-1:2], fine[2::2], 0.5).add_(fine[1::2])
    first = 0 if low else 1
    coarse = fine[first : len(fine) if high else -1 : 2].clone()
    between = fine[first + 1 : first + 2 * len(coarse) - 2 : 2]
    coarse[:-1].add_(between, alpha=0.5)
    coarse[1:].add_(between, alpha=0.5)
    if not low:
        coarse[0].add_(fine[0], alpha=0.5)
    if not high:
        coarse[-1].add_(fine[-1], alpha=0.5)
    return coarse


def _extreme(fine: Tensor, low: bool, high: bool, larger: bool) -> Tensor:
    """Return the maximum (or minimum) of `fine` over the support of every coarse hat along the first axis."""
    best = torch.maximum if larger else torch.minimum
    if not low and not high:
        coarse = best(fine[:-1:2], fine[2::2])
        return best(coarse, fine[1::2], out=coarse)
    first = 0 if low else 1
    coarse = fine[first : len(fine) if high else -1 : 2].clone()
    between = fine[first + 1 : first + 2 * len(coarse) - 2 : 2]
    best(coarse[:-1], between, out=coarse[:-1])
    best(coarse[1:], between, out=coarse[1:])
    if not low:
        best(coarse[0], fine[0], out=coarse[0])
    if not high:
        best(coarse[-1], fine[-1], out=coarse[-1])
    return coarse


@dataclass(frozen=True)
class GridTransfer:
    """Linear or bilinear interpolation between a grid and the one with every other node.

    ``P >= 0`` with row sums at most one, ``R = P^T`` (gradients are dual vectors, sums over cells), iterates are
    injected.

    Parameters
    ----------
    grid : Grid
        The fine one; its n is odd and at least 3.
    splines : bool
        Prolong by cubic B-splines, ``(1 4 6 4 1) / 8`` along every axis, in the place of hats: for energies of fourth
        order, of which the kinks of hats have far more than the coarse grid knows of.

    Raises
    ------
    ValueError
        The grid has no coarser one, or natural sides together with splines.

    References
    ----------
    Hemker, J. Comput. Appl. Math. 32 (1990), for the orders of transfers that an equation asks for.
    """

    grid: Grid
    splines: bool = False

    def __post_init__(self) -> None:
        """Check that there is a coarser grid."""
        _ = self.coarse
        if self.splines and any(self.grid.natural):
            raise ValueError("`splines` needs a grid without natural sides, got one with some; use hats")

    @cached_property
    def coarse(self) -> Grid:
        """The coarse grid."""
        return self.grid.coarser()

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return self.grid.size, self.coarse.size

    def _factors(self, like: Tensor) -> tuple[Tensor, Tensor]:
        rows, columns = self.coarse.shape
        natural = self.grid.natural
        return (
            _interpolation(rows, natural[0], natural[1], like.dtype, like.device),
            _interpolation(columns, natural[2], natural[3], like.dtype, like.device),
        )

    def prolong(self, e: Tensor) -> Tensor:
        """Return the interpolant ``P e``, shape (n,)."""
        fine = self._interpolant(e)
        return self._averaged(fine) if self.splines else fine

    def _averaged(self, values: Tensor) -> Tensor:
        """Return ``(1 2 1) / 4`` along every axis: it makes splines of hats, and is its own transpose."""
        values = values.view(self.grid.shape)
        for axis, n in enumerate(self.grid.shape):
            out = values * 0.5
            out.narrow(axis, 1, n - 1).add_(values.narrow(axis, 0, n - 1), alpha=0.25)
            out.narrow(axis, 0, n - 1).add_(values.narrow(axis, 1, n - 1), alpha=0.25)
            values = out
        return values.view(-1)

    def _interpolant(self, e: Tensor) -> Tensor:
        functions = compiled.suited(e)
        if functions is not None:
            return compiled.prolong(functions, e, self.grid, self.coarse)
        natural = self.grid.natural
        if self.grid.dim == 1:
            fine = e.new_empty(self.grid.size)
            _interpolate(e, fine, natural[0], natural[1])
            return fine
        values = e.view(self.coarse.shape)
        if self.coarse.n <= DENSE:
            rows, columns = self._factors(e)
            return (rows @ values @ columns.t()).view(-1)
        # Columns first: only the few rows of the coarse grid are then walked with a stride.
        half = e.new_empty(self.coarse.shape[0], self.grid.shape[1])
        _interpolate(values.t(), half.t(), natural[2], natural[3])
        fine = e.new_empty(self.grid.shape)
        _interpolate(half, fine, natural[0], natural[1])
        return fine.view(-1)

    def restrict(self, g: Tensor) -> Tensor:
        """Return ``P^T g``, shape (m,)."""
        g = self._averaged(g) if self.splines else g
        functions = compiled.suited(g)
        if functions is not None:
            return compiled.restrict(functions, g, self.grid, self.coarse)
        natural = self.grid.natural
        if self.grid.dim == 1:
            return _restrict(g, natural[0], natural[1])
        values = g.view(self.grid.shape)
        if self.coarse.n <= DENSE:
            rows, columns = self._factors(g)
            return (rows.t() @ values @ columns).view(-1)
        half = _restrict(values, natural[0], natural[1])
        return _restrict(half.t(), natural[2], natural[3]).t().reshape(-1)

    def inject(self, x: Tensor) -> Tensor:
        """Return the values of `x` at the coarse nodes."""
        picks = [slice(0 if low else 1, None, 2) for low in self.grid.natural[::2]]
        values = x.view(self.grid.shape)[tuple(picks)]
        # Between two open ends the last of these is the last coarse node; a natural end has one at the end itself.
        return values.reshape(-1).clone() if values.is_contiguous() else values.reshape(-1)

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return coarse bounds by Kornhuber's rule (maximum over the 3x3 support) or by Gelman and Mandel's.

        Parameters
        ----------
        bounds : Bounds
            On fine corrections; they contain zero.
        rule : str
            "truncated" is Kornhuber's rule here; `mldd.algebra.transfer.Truncated` leaves out the active unknowns.

        References
        ----------
        Kornhuber, Numer. Math. 69 (1994); Gelman and Mandel, Math. Program. 48 (1990).
        """
        lower, upper = bounds.lower, bounds.upper
        if bounds.is_free:
            return Bounds.free(self.shape[1], dtype=lower.dtype, device=lower.device)
        if rule == "gelman-mandel":
            # The largest row sum of |P| is one: that of a coarse node.
            return Bounds(lower.max().repeat(self.shape[1]), upper.min().repeat(self.shape[1]), False)
        return Bounds(self._restrict_bound(lower, True), self._restrict_bound(upper, False), False)

    def _restrict_bound(self, bound: Tensor, larger: bool) -> Tensor:
        natural = self.grid.natural
        if self.splines:  # their supports are those of hats and one layer of nodes more
            for axis, n in enumerate(self.grid.shape):
                values, best = bound.view(self.grid.shape), torch.maximum if larger else torch.minimum
                wide = values.clone()
                for here, there in ((0, 1), (1, 0)):
                    part = wide.narrow(axis, here, n - 1)
                    best(part, values.narrow(axis, there, n - 1), out=part)
                bound = wide.view(-1)
        if self.grid.dim == 1:
            return _extreme(bound, natural[0], natural[1], larger)
        half = _extreme(bound.view(self.grid.shape), natural[0], natural[1], larger)
        if natural[2] or natural[3]:
            return _extreme(half.t(), natural[2], natural[3], larger).t().reshape(-1)
        if larger:
            return F.max_pool1d(half, 3, 2).view(-1)
        return F.max_pool1d(half.neg_(), 3, 2).neg_().view(-1)


def grid_hierarchy(
    grid: Grid,
    discretise: Discretise,
    levels: int,
    coarsen: int = 2,
    lifting: Callable[[Grid], Tensor] | None = None,
    splines: bool = False,
) -> Hierarchy:
    """Return the hierarchy of rediscretised objectives on `levels` grids, the finest first.

    Parameters
    ----------
    grid : Grid
        The finest.
    discretise : callable
        ``discretise(grid, price)`` returns the objective on a grid.
    levels : int
        How many grids, the finest included.
    coarsen : int
        Ratio of mesh widths of neighbours: 2, 4, 8, ...
    lifting : callable, optional
        ``lifting(grid)`` returns a smooth function with the boundary values on a grid, see `mldd.algebra.Level`.
    splines : bool
        Whether transfers are those of splines, see `GridTransfer`.

    Raises
    ------
    ValueError
        More levels than the grid has, or a ratio that is no power of two.
    """
    if coarsen < 2 or coarsen & (coarsen - 1):
        raise ValueError(f"`coarsen` must be a power of two >= 2, got {coarsen}")
    halvings = coarsen.bit_length() - 1
    _check_levels(grid.n, levels, halvings)
    finest = grid.size
    lift = (lambda grid: None) if lifting is None else lifting
    built = [Level(discretise(grid, Price(product=1.0, value=1.0)), lifting=lift(grid))]
    for _ in range(levels - 1):
        transfer: Transfer | None = None
        for _ in range(halvings):
            step = GridTransfer(grid, splines)
            transfer = step if transfer is None else Compose(transfer, step)
            grid = step.coarse
        work = grid.size / finest
        f = discretise(grid, Price(work, False, value=1.0, product=1.0))
        built.append(Level(f, transfer, work, lift(grid)))
    return Hierarchy(tuple(built))


def _check_levels(n: int, levels: int, halvings: int) -> None:
    possible, k = 0, n
    while k >= 3 and k % 2 == 1:
        possible, k = possible + 1, (k - 1) // 2
    available = possible // halvings + 1
    if levels < 1:
        raise ValueError(f"`levels` must be >= 1, got {levels}")
    if levels > available:
        cells = 2 ** (halvings * (levels - 1))
        near = max(2, round((n + 1) / cells)) * cells - 1
        raise ValueError(
            f"`levels` must be <= {available} for n={n} (n is halved while odd and >= 3), got {levels}; "
            f"n={near} has {levels}"
        )
