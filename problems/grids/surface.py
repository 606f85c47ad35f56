"""The area of a graph over a grid of linear triangles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from mldd.algebra import Bounds, Hessian, Price
from mldd.problems.grids import compiled_stencils as compiled
from mldd.problems.grids.grid_windows import GridDecomposition
from mldd.problems.grids.stencils import PIECE, local_price, members


@dataclass(frozen=True)
class _Cells:
    """Differences along the edges, and ``s = h / (2 sqrt(h^2 + dx^2 + dy^2))`` of both triangles of every cell.

    A cell is cut by the diagonal from its upper left to its lower right node (rows count downwards): the first
    triangle has the edges that leave node (i, j), the second those that enter node (i+1, j+1).
    """

    dx: Tensor
    dy: Tensor
    first: Tensor
    second: Tensor

    @property
    def corners(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Edges of the triangles: dx and dy of the first, dx and dy of the second, each of the shape of the cells."""
        return self.dx[..., :-1, :], self.dy[..., :, :-1], self.dx[..., 1:, :], self.dy[..., :, 1:]

    def divergence(self, across: Tensor, down: Tensor, out: Tensor) -> None:
        """Write the gradient at inner nodes into `out`, from the fluxes of inner rows (across) and columns (down)."""
        torch.sub(across[..., :-1], across[..., 1:], out=out)
        out.add_(down[..., :-1, :]).sub_(down[..., 1:, :])

    def weights(self, first: Tensor, second: Tensor) -> tuple[Tensor, Tensor]:
        """Return the sums over the two triangles at every edge of inner rows and of inner columns."""
        return first[..., 1:, :] + second[..., :-1, :], first[..., :, 1:] + second[..., :, :-1]

    def inner(self) -> tuple[Tensor, Tensor]:
        """Return dx of inner rows and dy of inner columns."""
        return self.dx[..., 1:-1, :], self.dy[..., :, 1:-1]


@dataclass(frozen=True)
class SurfaceEnergy:
    """Area ``sum over triangles of |T| sqrt(1 + |grad u|^2)`` of the graph of u over a square grid.

    At small slopes it is, up to a constant, the Dirichlet energy ``1/2 u^T A u`` with the 5-point matrix A (diagonal
    4).

    Parameters
    ----------
    frame : Tensor, shape (..., rows + 2, columns + 2)
        Values on the ring around the unknowns: the boundary data, or what a window is fixed to. Its inner values are
        not read.
    bounds : Bounds
        Of the unknowns.
    h : float
        Mesh width.
    price : Price
        Work of one evaluation in fine gradients.
    valid : Tensor, shape (p, m), optional
        One at unknowns, zero at the padding of windows.
    """

    frame: Tensor
    bounds: Bounds
    h: float
    price: Price = field(default_factory=Price)
    valid: Tensor | None = None
    batched: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """Number of unknowns (of a row of a batch)."""
        return self.bounds.lower.shape[-1]

    def _blocks(self, x: Tensor) -> Iterator[tuple[int, int]]:
        """Cut the rows into blocks whose temporaries stay in the cache (on the CPU)."""
        rows = self.frame.shape[-2] - 2
        step = rows
        if x.device.type == "cpu":
            step = max(1, min(rows, PIECE * rows // max(1, x.numel())))
        for first in range(0, rows, step):
            yield first, min(rows, first + step)

    def _grid(self, x: Tensor) -> Tensor:
        return x.reshape(*x.shape[:-1], *(k - 2 for k in self.frame.shape[-2:]))

    def _framed(self, x: Tensor, first: int, last: int, frame: Tensor | None) -> Tensor:
        """Return rows [first, last) of the unknowns with the ring around them (`frame`, or zeros)."""
        values = self._grid(x)
        rows, columns = values.shape[-2:]
        shape = (*x.shape[:-1], last - first + 2, columns + 2)
        full = x.new_zeros(shape) if frame is None else frame[..., first : last + 2, :].expand(shape).clone()
        low, high = max(0, first - 1), min(rows, last + 1)
        full[..., low - first + 1 : high - first + 1, 1:-1] = values[..., low:high, :]
        return full

    def _cells(self, x: Tensor, first: int, last: int) -> _Cells:
        u = self._framed(x, first, last, self.frame)
        dx, dy = u[..., 1:] - u[..., :-1], u[..., 1:, :] - u[..., :-1, :]
        roots, four = [], x.new_tensor(4.0)
        for a, b in ((dx[..., :-1, :], dy[..., :-1]), (dx[..., 1:, :], dy[..., 1:])):
            # 1 / s^2 = 4 + 4 (dx^2 + dy^2) / h^2
            square = torch.addcmul(four, a, a, value=4.0 / self.h**2)
            roots.append(square.addcmul_(b, b, value=4.0 / self.h**2).rsqrt_())
        return _Cells(dx, dy, roots[0], roots[1])

    def _area(self, cells: _Cells, is_last: bool) -> Tensor:
        # Neighbouring blocks share a row of cells.
        stop = None if is_last else -1
        total = cells.first[..., :stop, :].reciprocal().sum((-2, -1))
        total += cells.second[..., :stop, :].reciprocal().sum((-2, -1))
        return total * (self.h**2 / 4.0)

    def _slope(self, cells: _Cells, out: Tensor) -> None:
        across, down = cells.weights(cells.first, cells.second)
        dx, dy = cells.inner()
        cells.divergence(across.mul_(dx), down.mul_(dy), out)

    def _only_valid(self, g: Tensor) -> Tensor:
        return g if self.valid is None else g.mul_(self.valid)

    def value(self, x: Tensor) -> Tensor:
        """Return the area, shape () or (p,)."""
        self.price.of_value(members(self.bounds, x))
        rows = self.frame.shape[-2] - 2
        return torch.stack([self._area(self._cells(x, a, b), b == rows) for a, b in self._blocks(x)]).sum(0)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of the area."""
        self.price.of_gradient(members(self.bounds, x))
        functions = compiled.suited(x, self.frame)
        if functions is not None:
            return self._only_valid(compiled.surface_gradient(functions, x, self.frame, self.h, False)[0])
        out = x.new_empty(x.shape)
        for a, b in self._blocks(x):
            self._slope(self._cells(x, a, b), self._grid(out)[..., a:b, :])
        return self._only_valid(out)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in one sweep.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Iterate.
        """
        self.price.of_gradient(members(self.bounds, x))
        functions = compiled.suited(x, self.frame)
        if functions is not None:
            g, area = compiled.surface_gradient(functions, x, self.frame, self.h, True)
            return area, self._only_valid(g)
        out, areas = x.new_empty(x.shape), []
        for a, b in self._blocks(x):
            cells = self._cells(x, a, b)
            areas.append(self._area(cells, b == self.frame.shape[-2] - 2))
            self._slope(cells, self._grid(out)[..., a:b, :])
        return torch.stack(areas).sum(0), self._only_valid(out)

    def hessian(self, x: Tensor) -> SurfaceHessian:
        """Return the Hessian as a weighted graph of the edges of the triangles.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            The point.
        """
        offsets, functions = (1, self.frame.shape[-1] - 2, self.frame.shape[-1] - 3), compiled.suited(x, self.frame)
        if functions is not None:
            diagonal, flat = compiled.surface_links(functions, x, self.frame, self.h)
            return SurfaceHessian(self, diagonal, tuple(zip(offsets, flat, strict=True)))
        return self._hessian(x, offsets)

    def _hessian(self, x: Tensor, offsets: tuple[int, ...]) -> SurfaceHessian:
        """Return the Hessian by operations in torch."""
        lead, (rows, columns) = x.shape[:-1], (k - 2 for k in self.frame.shape[-2:])
        across = x.new_empty(*lead, rows, columns + 1)
        down = x.new_empty(*lead, rows + 1, columns)
        slant = x.new_empty(*lead, rows + 1, columns + 1)
        for a, b in self._blocks(x):
            self._couple(self._cells(x, a, b), (across[..., a:b, :], down[..., a : b + 1, :], slant[..., a : b + 1, :]))
        diagonal = across[..., 1:] + across[..., :-1]
        diagonal.add_(down[..., 1:, :]).add_(down[..., :-1, :]).add_(slant[..., 1:, :-1]).add_(slant[..., :-1, 1:])
        links = x.new_zeros(3, *lead, rows, columns)  # by the end with the smaller number; edges to the ring left out
        links[0][..., :-1] = across[..., 1:-1]
        links[1][..., :-1, :] = down[..., 1:-1, :]
        links[2][..., :-1, 1:] = slant[..., 1:-1, 1:-1]
        flat = [w.flatten(-2)[..., : rows * columns - k] for w, k in zip(links, offsets, strict=True)]
        return SurfaceHessian(self, diagonal.flatten(-2), tuple(zip(offsets, flat, strict=True)))

    def _couple(self, cells: _Cells, out: tuple[Tensor, Tensor, Tensor]) -> None:
        """Write the weights of the edges along rows, along columns and across the cells of a block into `out`.

        With ``c = 4 s^3 / h^2`` the Hessian of a triangle is the graph with weights ``s - c dx (dx + dy)``,
        ``s - c dy (dx + dy)`` and, on the long edge, ``c dx dy``.
        """
        ax, ay, bx, by = cells.corners
        found = []
        for s, dx, dy in ((cells.first, ax, ay), (cells.second, bx, by)):
            cube, both = s**3 * (-4.0 / self.h**2), dx + dy
            bent = cube * both
            found.append((torch.addcmul(s, bent, dx), torch.addcmul(s, bent, dy), cube.mul_(dx).mul_(dy)))
        (along, below, first), (along_second, below_second, second) = found
        torch.add(along[..., 1:, :], along_second[..., :-1, :], out=out[0])
        torch.add(below[..., 1:], below_second[..., :-1], out=out[1])
        torch.add(first, second, out=out[2]).neg_()

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v``."""
        return self.hessian(x).product(v)

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Return the diagonal of the Hessian."""
        return self.hessian(x).diagonal

    def local(self, decomposition: GridDecomposition, x: Tensor) -> SurfaceEnergy:
        """Return the batch of local areas ``y_i -> f(x + P_i (y_i - R_i x))`` up to constants."""
        return replace(
            self,
            frame=decomposition.cut_framed(self._framed(x, 0, self.frame.shape[-2] - 2, self.frame)),
            bounds=decomposition.gather_bounds(self.bounds, decomposition.gather(x)),
            price=local_price(self.price, decomposition),
            valid=decomposition.mask(x.dtype),
        )


@dataclass(frozen=True)
class SurfaceHessian:
    """The Hessian of a `SurfaceEnergy` at one point: ``(H v)_i = sum_j w_ij (v_i - v_j)``, v zero on the ring.

    Parameters
    ----------
    energy : SurfaceEnergy
        Its price and padding are used.
    diagonal : Tensor, shape (n,) or (p, n)
        The sum of the weights of a node's edges.
    links : tuple of (int, Tensor)
        Of the edges along rows, along columns and across cells: the distance k of their ends in the numbering of the
        nodes, and their weights by the first end, shape (..., n - k), zero where there is no such edge.
    """

    energy: SurfaceEnergy
    diagonal: Tensor
    links: tuple[tuple[int, Tensor], ...]

    @property
    def largest(self) -> float:
        """Gershgorin's bound, from the weights of all edges but those to the ring."""
        beside, n = torch.zeros_like(self.diagonal), self.diagonal.shape[-1]
        for k, weight in self.links:
            size = weight.abs()
            beside.narrow(-1, 0, n - k).add_(size)
            beside.narrow(-1, k, n - k).add_(size)
        return 1.0 + float(beside.div_(self.diagonal).max())

    def product(self, v: Tensor) -> Tensor:
        """Return ``H v``."""
        f = self.energy
        f.price.of_product(members(f.bounds, v))
        v = v if f.valid is None else v * f.valid
        functions = compiled.suited(v, self.diagonal, *(weight for _, weight in self.links))
        if functions is not None:
            return f._only_valid(compiled.linked_points(functions, self.diagonal, self.links, v))
        out, n = self.diagonal * v, v.shape[-1]
        for k, weight in self.links:
            out.narrow(-1, 0, n - k).addcmul_(weight, v.narrow(-1, k, n - k), value=-1.0)
            out.narrow(-1, k, n - k).addcmul_(weight, v.narrow(-1, 0, n - k), value=-1.0)
        return f._only_valid(out)

    def defect(self, v: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Return ``weight (b - H v)``."""
        f, weights = self.energy, (w for _, w in self.links)
        functions = compiled.suited(v, b, weight, self.diagonal, *weights) if f.valid is None else None
        if functions is None:
            return Hessian.defect(self, v, b, weight)
        f.price.of_product(members(f.bounds, v))
        return compiled.linked_points(functions, self.diagonal, self.links, v, (b, weight))

    def relaxed(self, v: Tensor, b: Tensor, steps: Sequence[Tensor]) -> Tensor:
        """Return what the steps ``v <- v + w (b - H v)`` make of v."""
        f, weights = self.energy, (w for _, w in self.links)
        functions = compiled.suited(v, b, *steps, self.diagonal, *weights) if f.valid is None else None
        if functions is None:
            return Hessian.relaxed(self, v, b, steps)
        f.price.of_product(len(steps) * members(f.bounds, v))
        return compiled.relaxed_linked_points(functions, self.diagonal, self.links, v, b, steps)


def enneper(grid_n: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Tensor:
    """Return Enneper's minimal surface on the ring of a grid over (-1/2, 1/2)^2, shape (n + 2, n + 2), zero inside.

    The surface is ``(u + u v^2 - u^3/3, -v - u^2 v + v^3/3, u^2 - v^2)``; (u, v) of a boundary point comes from
    Newton's method.

    Parameters
    ----------
    grid_n : int
        Interior nodes per side.
    dtype : torch.dtype
        Of the surface.
    device : torch.device | str
        Of the surface.

    References
    ----------
    MINPACK-2 test problem collection (Averick, Carter, Moré, Xue 1992), problem MSA.
    """
    return _enneper(grid_n).to(device, dtype, copy=True)


@lru_cache(maxsize=16)
def _enneper(grid_n: int) -> Tensor:
    """Return the frame in double precision; all levels of a problem ask for it more than once."""
    t = torch.arange(grid_n + 2, dtype=torch.float64) / (grid_n + 1) - 0.5
    half = torch.full_like(t, 0.5)
    x, y = torch.stack([t, t, -half, half]), torch.stack([-half, half, t, t])
    u, v = x.clone(), -y
    for _ in range(20):
        uu, vv, uv = u * u, v * v, u * v
        f1, f2 = u + u * vv - u * uu / 3 - x, -v - uu * v + v * vv / 3 - y
        # The Jacobian is ((1 + v^2 - u^2, 2 u v), (-2 u v, v^2 - u^2 - 1)).
        j11, j12, j22 = 1 + vv - uu, 2 * uv, vv - uu - 1
        determinant = j11 * j22 + j12 * j12
        du, dv = (f1 * j22 - f2 * j12) / determinant, (f2 * j11 + f1 * j12) / determinant
        u, v = u - du, v - dv
        if float(du.abs().max() + dv.abs().max()) < 1e-15:
            break
    heights = u * u - v * v
    frame = torch.zeros((grid_n + 2, grid_n + 2), dtype=torch.float64)
    frame[0], frame[-1], frame[:, 0], frame[:, -1] = heights
    return frame


def transfinite(frame: Tensor) -> Tensor:
    """Return the function that is linear between opposite sides of a square, shape (n, n): Coons' patch without sides.

    Parameters
    ----------
    frame : Tensor, shape (n + 2, n + 2)
        Values on the ring; its inner values are not read.
    """
    t = torch.linspace(0.0, 1.0, len(frame), dtype=frame.dtype, device=frame.device)
    down, across = torch.stack([1.0 - t, t], 1), torch.stack([1.0 - t, t])
    sides = down @ frame[[0, -1]] + frame[:, [0, -1]] @ across
    corners = frame[[0, -1]][:, [0, -1]]
    return (sides - down @ corners @ across)[1:-1, 1:-1]
