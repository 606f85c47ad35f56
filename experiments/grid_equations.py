"""Equations for fields on a grid of nodes, on windows of it: residuals, sparse Jacobians and Newton's method."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Protocol

import numpy as np
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

LOCAL_RTOL = 1e-10
Box = tuple[int, int, int, int]  # first and last row, first and last column; the last ones are not in it


class Equations(Protocol):
    """``F(u) = 0`` for some fields at n x n inner nodes, each equation with the 3 x 3 nodes around its own.

    Residuals are integrals over the cells of nodes, so that those of a coarser grid are sums of finer ones.
    """

    n: int
    fields: int

    @property
    def frame(self) -> Tensor:
        """Fixed values on the ring around the nodes, shape (fields, n + 2, n + 2)."""
        ...

    def walls(self, u: Tensor, sides: tuple[bool, ...]) -> Tensor:
        """Return a window with its ring, with ring values that depend on inner ones set at the sides that are walls.

        Parameters
        ----------
        u : Tensor, shape (fields, rows + 2, columns + 2)
            The window.
        sides : tuple of bool
            Whether its first row, last row, first column and last column lie at a wall.
        """
        ...

    def residual(self, u: Tensor, corner: tuple[int, int]) -> Tensor:
        """Return the residuals of a window, shape (fields, rows, columns).

        Parameters
        ----------
        u : Tensor, shape (fields, rows + 2, columns + 2)
            The window with its ring.
        corner : tuple of int
            Its first row and column.
        """
        ...


@lru_cache(maxsize=64)
def pattern(fields: int, rows: int, columns: int) -> tuple[Tensor, np.ndarray, np.ndarray, np.ndarray]:
    """Return directions that find a Jacobian with a 3 x 3 stencil, and row, column and use of every number found."""
    i, j = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    seeds, where, which, used = [], [], [], []
    out = torch.arange(fields * rows * columns).view(fields, rows, columns)
    for a in range(3):
        for b in range(3):
            ii, jj = i + (a - i + 1) % 3 - 1, j + (b - j + 1) % 3 - 1  # the neighbour of this colour
            inside = (ii >= 0) & (ii < rows) & (jj >= 0) & (jj < columns)
            for k in range(fields):
                seed = torch.zeros(fields, rows, columns, dtype=torch.float64)
                seed[k, a::3, b::3] = 1.0
                seeds.append(seed)
                where.append(out)
                which.append((k * rows * columns + ii * columns + jj).expand(fields, -1, -1))
                used.append(inside.expand(fields, -1, -1))
    flat = [torch.stack(items).flatten().numpy() for items in (where, which, used)]
    return torch.stack(seeds), flat[0], flat[1], flat[2]


@dataclass(frozen=True)
class Window:
    """The equations of a rectangle of nodes; everything around it is fixed.

    Parameters
    ----------
    equations : Equations
        All of them.
    box : tuple of int
        The rectangle.
    """

    equations: Equations
    box: Box

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of the unknowns: fields, rows, columns."""
        a, b, c, d = self.box
        return self.equations.fields, b - a, d - c

    def take(self, u: Tensor) -> Tensor:
        """Return the unknowns of the window out of all."""
        a, b, c, d = self.box
        return u[:, a:b, c:d]

    def _of(self, framed: Tensor) -> Callable[[Tensor], Tensor]:
        a, b, c, d = self.box
        n = self.equations.n
        ring, sides = framed[:, a : b + 2, c : d + 2], (a == 0, b == n, c == 0, d == n)

        def residual(y: Tensor) -> Tensor:
            full = ring + torch.nn.functional.pad(y - ring[:, 1:-1, 1:-1], (1, 1, 1, 1))
            return self.equations.residual(self.equations.walls(full, sides), (a, c))

        return residual

    def residual(self, framed: Tensor, y: Tensor) -> Tensor:
        """Return the residuals at `y`, between the values of `framed` around it."""
        return self._of(framed)(y)

    def jacobian(self, framed: Tensor, y: Tensor) -> csc_matrix:
        """Return the square Jacobian at `y`, by automatic differentiation along few directions."""
        seeds, where, which, used = pattern(*self.shape)
        f = self._of(framed)
        columns = torch.func.vmap(lambda v: torch.func.jvp(f, (y,), (v,))[1])(seeds)
        size, values = y.numel(), columns.flatten().numpy()
        keep = used & (values != 0.0)
        return csc_matrix((values[keep], (where[keep], which[keep])), shape=(size, size))

    def newton(self, framed: Tensor, y: Tensor, right: Tensor | float = 0.0) -> tuple[Tensor, bool]:
        """Solve ``F(y) = right`` by damped Newton steps; return where they end, and whether they converged.

        A step is taken where the next one with the same matrix is shorter (Deuflhard's natural monotonicity test): how
        the equations are scaled does not matter.
        """
        r = self.residual(framed, y) - right
        first = norm = float(r.norm())
        for _ in range(50):
            if norm <= LOCAL_RTOL * first or norm <= 1e-14:
                return y, True
            lu, t = splu(self.jacobian(framed, y)), 1.0
            d = solved(lu, -r)
            while t > 1e-4:
                trial = self.residual(framed, y + t * d) - right
                if float(solved(lu, trial).norm()) <= (1.0 - 0.25 * t) * float(d.norm()):
                    break
                t *= 0.5
            else:
                break
            y, r, norm = y + t * d, trial, float(trial.norm())
        return y, norm <= 1e-2 * first


def solved(lu: Any, b: Tensor) -> Tensor:
    """Return the solution for a right-hand side of any shape."""
    return torch.from_numpy(lu.solve(b.reshape(-1).numpy())).view(b.shape)


def times(matrix: csc_matrix, v: Tensor) -> Tensor:
    """Return the product with a vector of any shape."""
    return torch.from_numpy(matrix @ v.reshape(-1).numpy())


def framed(equations: Equations, u: Tensor) -> Tensor:
    """Return all unknowns with the ring around them."""
    full = equations.frame.clone()
    full[:, 1:-1, 1:-1] = u
    return equations.walls(full, (True, True, True, True))


@lru_cache(maxsize=1024)
def _grown(box: Box, n: int, fields: int) -> tuple[Box, np.ndarray]:
    a, b, c, d = box
    wide = (max(0, a - 1), min(n, b + 1), max(0, c - 1), min(n, d + 1))
    numbers = np.arange(fields * (wide[1] - wide[0]) * (wide[3] - wide[2]))
    numbers = numbers.reshape(fields, wide[1] - wide[0], wide[3] - wide[2])
    inside = numbers[:, a - wide[0] : b - wide[0], c - wide[2] : d - wide[2]].reshape(-1)
    return wide, inside


def grown(window: Window) -> tuple[Window, np.ndarray]:
    """Return the window with one more layer, and the numbers of its own unknowns therein."""
    wide, inside = _grown(window.box, window.equations.n, window.equations.fields)
    return Window(window.equations, wide), inside
