"""The Laplacian on the interval or the square: a quadratic energy whose minimiser is known in closed form."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from mldd.algebra import Bounds, Price
from mldd.problems.grids.energies import StencilEnergy
from mldd.problems.grids.grid import Grid
from mldd.problems.grids.pde import GridProblem

# Sine modes (frequency in y, in x, amplitude) of the solution; in one dimension the second is not used.
MODES = ((1, 1, 1.0), (3, 2, 0.5), (5, 7, 0.25))


@dataclass(frozen=True)
class Quadratic(GridProblem):
    """``min 1/2 x^T A x - b^T x`` with A = [-1 2 -1] or the 5-point matrix (diagonal 4), no bounds.

    Sines are eigenvectors: ``A sin(k pi y) sin(m pi x) = (4 - 2 cos k pi h - 2 cos m pi h) sin(k pi y) sin(m pi x)``
    at the nodes, so that the right-hand side of a sum of sines, and the solution, are exact up to rounding on every
    grid.

    Parameters
    ----------
    dim : int
        1 (interval) or 2 (square).
    """

    dim: int = 2

    def grid(self) -> Grid:
        """Return the finest grid."""
        return Grid(self.n, self.dim)

    def _modes(self, grid: Grid, of_rhs: bool) -> Tensor:
        axes = [grid.axis(k, torch.float64) for k in range(self.dim)]
        total = torch.zeros(grid.shape, dtype=torch.float64)
        for k, m, amplitude in MODES:
            eigenvalue = 2.0 - 2.0 * cos(k * pi * grid.h)
            mode = torch.sin(k * pi * axes[0])
            if self.dim == 2:
                eigenvalue += 2.0 - 2.0 * cos(m * pi * grid.h)
                mode = mode[:, None] * torch.sin(m * pi * axes[1])[None, :]
            total += (eigenvalue if of_rhs else 1.0) * amplitude * mode
        return total.to(self.torch_device, self.torch_dtype)

    def energy(self, grid: Grid, price: Price) -> StencilEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        # [-1 2 -1] is h times the stiffness matrix of linear elements: the coarser energy has to carry the finest h.
        scale = (grid.n + 1) / (self.n + 1) if self.dim == 1 else 1.0
        bounds = Bounds.free(grid.size, dtype=self.torch_dtype, device=self.torch_device)
        return StencilEnergy(grid.shape, bounds, self._modes(grid, True).mul_(-scale), scale=scale, price=price)

    def solution(self) -> Tensor:
        """Return the minimiser, shape (n,) or (n*n,)."""
        return self._modes(self.grid(), False).reshape(-1)
