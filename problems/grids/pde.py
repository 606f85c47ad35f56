"""Bound-constrained variational problems on the unit square, with geometric hierarchies and Schwarz decompositions."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import Any, ClassVar

import torch
from torch import Tensor

from mldd.algebra import Bounds, Decomposition, Hierarchy, Objective, Price, uncounted
from mldd.loop import Problem
from mldd.problems.grids.energies import BoundaryValueEnergy, BratuReaction, IgnitionReaction, StencilEnergy
from mldd.problems.grids.grid import Grid, grid_hierarchy
from mldd.problems.grids.grid_windows import grid_decomposition
from mldd.problems.grids.stencils import EdgeWeights
from mldd.problems.grids.surface import SurfaceEnergy, enneper, transfinite
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

_DTYPES = {"float64": torch.float64, "float32": torch.float32}


@dataclass(frozen=True)
class GridProblem(Problem):
    """What the problems on grids share.

    Parameters
    ----------
    n : int
        Interior nodes per side.
    dtype : str
        float64 or float32.
    device : str
        As torch knows it: cpu, cuda, cuda:1.

    Raises
    ------
    ValueError
        Unknown dtype, or no interior node.
    """

    n: int = 63
    dtype: str = "float64"
    device: str = "cpu"
    splines: ClassVar[bool] = False  # whether transfers are those of splines

    def __post_init__(self) -> None:
        """Check the fields that are shared."""
        if self.dtype not in _DTYPES:
            raise ValueError(f"`dtype` must be one of {', '.join(_DTYPES)}, got {self.dtype!r}")
        self.grid()

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype as an object."""
        return _DTYPES[self.dtype]

    @property
    def torch_device(self) -> torch.device:
        """The device as an object."""
        return pick_device(self.device)

    def grid(self) -> Grid:
        """Return the finest grid."""
        return Grid(self.n)

    def energy(self, grid: Grid, price: Price) -> Objective:
        """Return the energy of the problem on `grid`.

        Parameters
        ----------
        grid : Grid
            The finest grid or a coarser one.
        price : Price
            Work of one evaluation in fine gradients.
        """
        raise NotImplementedError

    def objective(self, sample: int | None = None) -> Objective:
        """Return the energy on the finest grid; `sample` is not used (nothing is random).

        Parameters
        ----------
        sample : int, optional
            Ignored.
        """
        return self.energy(self.grid(), Price(value=1.0, product=1.0))

    def initial(self, seed: int = 0) -> Tensor:
        """Return the start, zero moved into the bounds, whatever the seed; shape (size,).

        Parameters
        ----------
        seed : int
            Ignored: nothing is random.
        """
        bounds = self.objective().bounds
        return bounds.project(bounds.lower.new_zeros(bounds.lower.shape))

    def hierarchy(self, levels: int, coarsen: int = 2) -> Hierarchy:
        """Return `levels` rediscretised energies on grids whose mesh widths have the ratio `coarsen`.

        Parameters
        ----------
        levels : int
            How many grids, the finest included.
        coarsen : int
            Ratio of mesh widths of neighbours: 2, 4, 8, ...

        Raises
        ------
        ValueError
            More levels than the grid has.
        """
        return grid_hierarchy(self.grid(), self.energy, levels, coarsen, self.lifting, self.splines)

    def lifting(self, grid: Grid) -> Tensor:
        """Return a smooth function with the boundary values on a grid, shape (size,): zero.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        """
        return torch.zeros(grid.size, dtype=self.torch_dtype, device=self.torch_device)

    def coarse_hierarchy(self, levels: int, parts: int) -> Hierarchy:
        """Return levels for a Schwarz method of `parts` subdomains: about two coarsest cells per subdomain side.

        Parameters
        ----------
        levels : int
            How many grids, the finest included.
        parts : int
            Number of subdomains.
        """
        cells = (self.n + 1) // (2 * max(1, round(parts**0.5)))
        halvings = max(1, (max(cells, 2).bit_length() - 1) // max(1, levels - 1))
        return self.hierarchy(levels, 2**halvings)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters that suit this problem: a sequence of grids, and the quadratic model of ML-ADAGB2.

        Local solves of DD-ADAGB2 end early: coarse levels and seams have the next word.

        Parameters
        ----------
        solver : str
            Name of a solver on the command line.
        """
        sequence = {"coarse.model": "auto", "coarse.nested": 0.1}
        suits = {
            "ml-adagrad": sequence | {"coarse.rtol": 0.003, "coarse.smoothing": 2},
            "dd-adagrad": sequence | {"local_rtol": 0.3},
        }
        return suits.get(solver, {})

    def decomposition(self, parts: int, overlap: int = 1, comm: Communicator = SERIAL) -> Decomposition:
        """Return the decomposition of the finest grid into rectangles.

        Parameters
        ----------
        parts : int
            Number of rectangles.
        overlap : int
            Layers of nodes added to every rectangle on every side.
        comm : Communicator
            Its ranks share the rectangles.

        Raises
        ------
        ValueError
            More parts than fit, or a negative overlap.
        """
        return grid_decomposition(self.grid(), parts, overlap, comm, self.torch_device)

    def array_shape(self) -> tuple[int, ...]:
        """Return the numbers of unknowns along y and x."""
        return self.grid().shape

    def solution(self) -> Tensor | None:
        """Return the minimiser where it is known in closed form."""
        return None

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the energy, the number of unknowns at a bound, and the relative error where the solution is known.

        Parameters
        ----------
        x : Tensor, shape (size,)
            Iterate.
        """
        objective, exact = self.objective(), self.solution()
        with uncounted():
            found = {"energy": float(objective.value(x))}
        if not objective.bounds.is_free:
            found["active"] = float(((x <= objective.bounds.lower) | (x >= objective.bounds.upper)).sum())
        if exact is not None:
            found["relative_l2"] = float(torch.linalg.vector_norm(x - exact) / torch.linalg.vector_norm(exact))
        return found

    def _box(self, lower: Tensor | float, upper: Tensor | float, grid: Grid) -> Bounds:
        """Return bounds from fields that broadcast to the grid."""

        def flat(bound: Tensor | float) -> Tensor:
            field = torch.as_tensor(bound, dtype=self.torch_dtype, device=self.torch_device)
            return field.expand(grid.shape).reshape(-1).clone()

        return Bounds(flat(lower), flat(upper))

    def _constant(self, value: float) -> Tensor:
        return torch.tensor(value, dtype=self.torch_dtype, device=self.torch_device)


@dataclass(frozen=True)
class Obstacle(GridProblem):
    """``min integral 1/2 |grad u|^2 + load u`` with ``u >= lower``, zero boundary values.

    5-point matrix with diagonal 4, load ``load h^2``. With n = 63, load 10 and lower -0.25 the minimum is -1.22905169
    with 1213 nodes at the bound.

    Parameters
    ----------
    load : float
        Constant force density.
    lower : float
        Height of the obstacle.
    """

    load: float = 10.0
    lower: float = -0.25

    def energy(self, grid: Grid, price: Price) -> StencilEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        bounds = self._box(self.lower, torch.inf, grid)
        return StencilEnergy(grid.shape, bounds, self._constant(self.load * grid.h**2), price=price)


@dataclass(frozen=True)
class Membrane(GridProblem):
    """``min integral 1/2 |grad u|^2 + u``, fixed at x = 0, over an obstacle at the edge x = 1.

    There ``u >= -1.3 + sqrt(1 - (y - 1/2)^2)``, the arc of a circle; y = 0, y = 1 and x = 1 are natural boundaries.
    (Zero values on the sides y = 0 and y = 1 too would keep u above -0.12, far from the obstacle at -0.3.)

    The three natural sides carry unknowns: (n + 2) x (n + 1) of them. Linear triangles give the 5-point matrix with
    half weights on edges along a natural side; the load is the trapezoidal rule. Interpolation and coarser grids keep
    the sides.

    References
    ----------
    Domorádová and Dostál, Numer. Linear Algebra Appl. 14 (2007) 791-806; arXiv 2103.14552, example MEMBRANE.
    """

    def grid(self) -> Grid:
        """Return the finest grid."""
        return Grid(self.n, 2, (True, True, False, True))

    def energy(self, grid: Grid, price: Price) -> StencilEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        x, y = grid.points(self.torch_dtype, self.torch_device)
        across, down = torch.ones_like(y), torch.ones_like(x)
        across[[0, -1]] = 0.5
        down[:, -1] = 0.5
        # Sum of the weights of a node's four edges; a natural side takes one away and halves two.
        edges = EdgeWeights(across, down, 4.0 * across * down)
        lower = torch.full_like(edges.diagonal, -torch.inf)
        lower[:, -1:] = (1.0 - (y - 0.5).square()).sqrt() - 1.3
        return StencilEnergy(
            grid.shape, self._box(lower, torch.inf, grid), grid.h**2 * across * down, edges=edges, price=price
        )


@dataclass(frozen=True)
class MinimalSurface(GridProblem):
    """Least area over (-1/2, 1/2)^2 with the boundary of Enneper's surface, above a plate in the middle.

    ``min integral sqrt(1 + |grad u|^2)`` with ``u >= height`` where ``|x|, |y| <= 1/4``.

    Parameters
    ----------
    height : float
        Of the plate; -inf takes it away, and with it all bounds.

    References
    ----------
    MINPACK-2 (problem MSA) with the obstacle of PETSc's example ``tao/bound/tutorials/plate2.c`` (height 0.1, half of
    the side).
    """

    height: float = 0.1

    def energy(self, grid: Grid, price: Price) -> SurfaceEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        x, y = grid.points(self.torch_dtype, self.torch_device)
        plate = ((x - 0.5).abs() <= 0.25) & ((y - 0.5).abs() <= 0.25)
        lower = torch.where(plate, self._constant(self.height), -torch.inf)
        frame = enneper(grid.n, self.torch_dtype, self.torch_device)
        free = Bounds.free(grid.size, dtype=self.torch_dtype, device=self.torch_device)
        bounds = free if self.height == -torch.inf else self._box(lower, torch.inf, grid)
        return SurfaceEnergy(frame, bounds, grid.h, price)

    def lifting(self, grid: Grid) -> Tensor:
        """Return the transfinite interpolant (Coons patch) of the boundary curve, shape (size,).

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        """
        return transfinite(enneper(grid.n, self.torch_dtype, self.torch_device)).reshape(-1)


@dataclass(frozen=True)
class Bratu(GridProblem):
    """``min integral 1/2 |grad u|^2 - lam e^u`` with ``u <= upper``, zero boundary values: -Laplace u = lam e^u inside.

    The energy is not convex, and without the bound it has no minimum; lam below 6.808 has a solution, which is a
    local minimum.

    Parameters
    ----------
    lam : float
        The lambda of the equation.
    upper : float
        Upper bound of u.

    References
    ----------
    arXiv 2103.14552, example BRATU (lambda 3 to 5, upper 0.45).
    """

    lam: float = 3.0
    upper: float = 0.45

    def energy(self, grid: Grid, price: Price) -> StencilEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        bounds = self._box(-torch.inf, self.upper, grid)
        return StencilEnergy(grid.shape, bounds, self._constant(0.0), BratuReaction(self.lam), grid.h**2, price=price)


@dataclass(frozen=True)
class Ignition(GridProblem):
    """``min integral 1/2 |grad u|^2 - (u e^u - e^u) - f u``, zero boundary values, between an obstacle and 1/2.

    ``f = (9 pi^2 + e^{(x^2 - x^3) sin 3 pi y} (x^2 - x^3) + 6 x - 2) sin 3 pi x`` and ``u >= 0.2 - 8 (x - 7/16)^2 - 8
    (y - 7/16)^2``. The energy is not convex; the bounds keep it bounded below.

    Parameters
    ----------
    upper : float
        Upper bound of u.

    References
    ----------
    arXiv 2103.14552, example IGNITION, as it stands there. (The solution of ``-Laplace u + u e^u = f`` in Briggs,
    Henson and McCormick, A Multigrid Tutorial, ch. 6, is ``(x^2 - x^3) sin 3 pi y``; its right-hand side and the sign
    of the reaction differ.)
    """

    upper: float = 0.5

    def energy(self, grid: Grid, price: Price) -> StencilEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        x, y = grid.points(self.torch_dtype, self.torch_device)
        bump = x**2 - x**3
        f = (9.0 * pi**2 + torch.exp(bump * torch.sin(3.0 * pi * y)) * bump + 6.0 * x - 2.0) * torch.sin(3.0 * pi * x)
        lower = 0.2 - 8.0 * (x - 7.0 / 16.0) ** 2 - 8.0 * (y - 7.0 / 16.0) ** 2
        bounds = self._box(lower, self.upper, grid)
        return StencilEnergy(grid.shape, bounds, f * -(grid.h**2), IgnitionReaction(), grid.h**2, price=price)


@dataclass(frozen=True)
class MoreBV(GridProblem):
    """``min integral |Laplace u - 1/2 (u + x + y + 1)^3|^2`` over an obstacle, zero boundary values.

    ``u >= sin 5 pi x sin pi y sin pi (1-x) sin pi (1-y)``. A fourth-order energy: with hats V-cycles get worse with
    every level, and contact sets shrink by about a layer of nodes per Newton step, however exact (5, 13, 26 and 52
    steps from zero for n = 15, 31, 63 and 127 with direct solves).

    References
    ----------
    Moré and Cosnard, ACM Trans. Math. Softw. 5 (1979); arXiv 2103.14552, example MOREBV.
    """

    splines = True

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters that suit a fourth-order energy: longer and better steps on all levels."""
        better = {"smoother.kappa": 10.0, "smoother.model_steps": 20} if solver == "ml-adagrad" else {}
        return super().settings(solver) | better

    def energy(self, grid: Grid, price: Price) -> BoundaryValueEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        x, y = grid.points(self.torch_dtype, self.torch_device)
        arch = torch.sin(5.0 * pi * x) * torch.sin(pi * (1.0 - x)) * torch.sin(pi * y) * torch.sin(pi * (1.0 - y))
        return BoundaryValueEnergy(x + y + 1.0, self._box(arch, torch.inf, grid), grid.h, price)
