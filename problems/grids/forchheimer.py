"""Forchheimer flow on an interval: a nonlinear diffusion problem, the test of RASPEN."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from math import pi
from typing import ClassVar

import torch
from torch import Tensor

from mldd.algebra import Bounds, Hierarchy, Level, MatrixTransfer, Price, Restricted, uncounted
from mldd.problems.grids.grid import Grid
from mldd.problems.grids.grid_windows import GridDecomposition
from mldd.problems.grids.pde import GridProblem
from mldd.problems.grids.stencils import local_price

LENGTH = 1.5
ENDS = (0.0, 1.0)


@dataclass(frozen=True)
class FluxEnergy:
    r"""``sum_c (h / k_c) Q(k_c s_c) - <load, u>`` over cells c with slopes ``s_c = (u_{c+1} - u_c) / h``.

    ``Q' = q(g) = sgn(g) (-1 + sqrt(1 + 4 gamma |g|)) / (2 gamma)``, Forchheimer's law; q(g) = g for gamma = 0. The
    gradient is ``q(k_i s_i) - q(k_{i+1} s_{i+1}) - load_i``, the energy is convex, and its Hessian is continuous but
    has a kink where a slope changes its sign.

    Parameters
    ----------
    conductivity : Tensor, shape (n + 1,) or (p, n + 1)
        k on the cells.
    load : Tensor, shape (n,) or (p, n)
        Integrals of f against the hat functions.
    left, right : Tensor, shape () or (p, 1)
        Values of u at the two ends.
    h : float
        Mesh width.
    gamma : float
        Strength of the nonlinearity; 0 is linear flow.
    bounds : Bounds
        Of the unknowns.
    price : Price
        Work of one evaluation in fine gradients.
    valid : Tensor, shape (p, n), optional
        One at unknowns, zero at the padding of windows.
    """

    conductivity: Tensor
    load: Tensor
    left: Tensor
    right: Tensor
    h: float
    gamma: float
    bounds: Bounds
    price: Price = field(default_factory=Price)
    valid: Tensor | None = None
    batched: ClassVar[bool] = True
    band: ClassVar[int] = 1  # the Hessian is tridiagonal

    @property
    def size(self) -> int:
        """Number of unknowns (of a row of a batch)."""
        return self.load.shape[-1]

    def _times(self, x: Tensor) -> int:
        """Return how many objectives `x` is for; the price of the windows of a decomposition is that of all of them."""
        return len(x) if x.dim() > self.conductivity.dim() else 1

    def _rises(self, u: Tensor, left: Tensor | float, right: Tensor | float) -> Tensor:
        """Return the differences of neighbours, with values at both ends, shape (..., n + 1)."""
        rises = u.new_empty(*u.shape[:-1], u.shape[-1] + 1)
        rises[..., 1:-1] = u[..., 1:] - u[..., :-1]
        rises[..., :1] = u[..., :1] - left
        rises[..., -1:] = right - u[..., -1:]
        return rises

    def _drive(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Return ``g = k s`` on the cells and ``r = sqrt(1 + 4 gamma |g|)``."""
        g = self._rises(u, self.left, self.right).mul_(self.conductivity).div_(self.h)
        return g, torch.sqrt(1.0 + 4.0 * self.gamma * g.abs())

    def _balance(self, fluxes: Tensor) -> Tensor:
        """Return what flows into every node minus what flows out, zero at padding."""
        net = fluxes[..., :-1] - fluxes[..., 1:]
        return net if self.valid is None else net.mul_(self.valid)

    def _value(self, u: Tensor, g: Tensor, r: Tensor) -> Tensor:
        # Q(g) = (r - 1)^2 (2 r + 1) / (24 gamma^2) with r - 1 = 4 gamma |g| / (r + 1): no division by gamma
        density = (g / (r + 1.0)).square_().mul_((2.0 * r + 1.0) / self.conductivity)
        return (2.0 / 3.0) * self.h * density.sum(-1) - (self.load * u).sum(-1)

    def _gradient(self, g: Tensor, r: Tensor) -> Tensor:
        balance = self._balance(2.0 * g / (r + 1.0))
        return balance - (self.load if self.valid is None else self.load * self.valid)

    def value(self, x: Tensor) -> Tensor:
        """Return the energy, shape () or (p,)."""
        self.price.of_value(self._times(x))
        return self._value(x, *self._drive(x))

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        self.price.of_gradient(self._times(x))
        return self._gradient(*self._drive(x))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in one sweep.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Iterate.
        """
        self.price.of_gradient(self._times(x))
        g, r = self._drive(x)
        return self._value(x, g, r), self._gradient(g, r)

    def stiffness(self, x: Tensor) -> Tensor:
        """Return ``k q'(k s) / h`` on the cells, shape (..., n + 1), with ``q'(g) = 1 / r``.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Iterate.
        """
        return self.conductivity / (self.h * self._drive(x)[1])

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v``, a tridiagonal product."""
        self.price.of_product(self._times(x))
        v = v if self.valid is None else v * self.valid
        return self._balance(self._rises(v, 0.0, 0.0).mul_(self.stiffness(x)))

    def local(self, decomposition: GridDecomposition, x: Tensor) -> FluxEnergy:
        """Return the batch of local energies ``y_i -> f(x + P_i (y_i - R_i x))`` up to constants."""
        nodes = decomposition.framed  # of the windows and of one neighbour on each side, (p, w + 2)
        first, last = nodes[:, :1], nodes[:, -1:]
        inside = x.index_select(0, torch.cat([first, last], 1).clamp(max=self.size - 1).view(-1)).view(-1, 2)
        cells = nodes[:, 1:2] + torch.arange(nodes.shape[1] - 1, device=nodes.device)
        y = decomposition.gather(x)
        return replace(
            self,
            conductivity=self.conductivity[cells],
            load=decomposition.cut(self.load),
            left=torch.where(first < self.size, inside[:, :1], self.left),
            right=torch.where(last < self.size, inside[:, 1:], self.right),
            bounds=decomposition.gather_bounds(self.bounds, y),
            price=local_price(self.price, decomposition),
            valid=decomposition.mask(x.dtype),
        )


@dataclass(frozen=True)
class Forchheimer(GridProblem):
    r"""``(q(-k u'))' = f`` on (0, 3/2), u = 0 and 1 at the ends, with Forchheimer's law for q, see `FluxEnergy`.

    k = 2 + cos 5 pi x and f = 50 sin(5 pi x) e^x. This is the stationarity of the convex energy ``integral Q(k u') / k
    - f u`` with Q' = q, discretised by linear elements with k at the midpoints of cells (finite volumes); with n = 149
    the mesh width is 1/100.

    Parameters
    ----------
    gamma : float
        Strength of the nonlinearity, >= 0.
    n : int
        Interior nodes.

    References
    ----------
    Dolean, Gander, Kheriji, Kwok and Masson, SIAM J. Sci. Comput. 38 (2016), arXiv 1605.04419, section on the
    Forchheimer equation in one dimension. The data k, f, gamma = 1 and h = 1/100 are from memory, not verified
    against the paper.
    """

    n: int = 149
    gamma: float = 1.0

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        if not 0 <= self.gamma < torch.inf:
            raise ValueError(f"`gamma` must be >= 0, got {self.gamma}")

    def grid(self) -> Grid:
        """Return the finest grid (of the unit interval; the problem's interval is 3/2 long)."""
        return Grid(self.n, 1)

    def energy(self, grid: Grid, price: Price) -> FluxEnergy:
        """Return the energy on `grid`.

        Parameters
        ----------
        grid : Grid
            Nodes and their spacing.
        price : Price
            What one evaluation costs.
        """
        h = LENGTH * grid.h
        x = LENGTH * grid.axis(0)
        midpoints = (torch.arange(grid.n + 1, dtype=torch.float64) + 0.5) * h
        conductivity = 2.0 + torch.cos(5.0 * pi * midpoints)
        load = h * 50.0 * torch.sin(5.0 * pi * x) * torch.exp(x)
        left, right = (self._constant(value) for value in ENDS)
        return FluxEnergy(
            conductivity.to(self.torch_device, self.torch_dtype),
            load.to(self.torch_device, self.torch_dtype),
            left,
            right,
            h,
            self.gamma,
            Bounds.free(grid.size, dtype=self.torch_dtype, device=self.torch_device),
            price,
        )

    def interpolant(self) -> Tensor:
        """Return the linear interpolant of the boundary values, a better start than zero; shape (n,)."""
        left, right = ENDS
        return left + (right - left) * self.grid().axis(0, self.torch_dtype, self.torch_device)

    def coarse_hierarchy(self, levels: int, parts: int) -> Hierarchy:
        """Return the finest level and, below it, the energy on the interpolant plus hats at the interfaces of `parts`.

        The coarse model is ``y -> f(u_0 + P y)``, u_0 with the boundary values and zero at the interfaces.

        Raises
        ------
        ValueError
            Levels other than 1 and 2, or no interface.
        """
        if levels not in (1, 2):
            raise ValueError(f"`levels` must be 1 or 2 (hats at the interfaces), got {levels}")
        fine = Level(self.objective())
        if levels == 1:
            return Hierarchy((fine,))
        nodes = _interfaces(self.n, parts)
        hats = _hats(nodes, self.n).to(self.torch_device, self.torch_dtype)
        points = torch.zeros_like(hats[:, 1:-1]).t().contiguous()
        points[torch.arange(parts - 1), nodes] = 1.0
        transfer = MatrixTransfer(hats[:, 1:-1].contiguous(), points)
        f = self.energy(self.grid(), Price(1.0, False, value=1.0, product=1.0))
        ends = hats[:, 0] * ENDS[0] + hats[:, -1] * ENDS[1]
        return Hierarchy((fine, Level(Restricted(f, ends, transfer), transfer, 1.0)))

    @cached_property
    def _solution(self) -> Tensor:
        """Newton's method in double precision from the interpolant of the boundary values."""
        problem = replace(self, dtype="float64", device="cpu")
        f, u = problem.energy(problem.grid(), Price()), problem.interpolant()
        rounding = 1e-13 * max(1.0, 0.01 / f.h)
        with uncounted():
            for _ in range(50):
                step = _tridiagonal_solve(f.stiffness(u), f.gradient(u))
                u = u - step
                if float(step.abs().max()) <= rounding:
                    return u
        raise RuntimeError(
            f"Newton's method must reach steps below {rounding:.1e}, got {float(step.abs().max()):.1e} after 50 "
            "iterations; use a smaller `gamma` or `n`"
        )

    def solution(self) -> Tensor:
        """Return the discrete solution, by Newton's method until its steps are below 1e-13; shape (n,).

        Raises
        ------
        RuntimeError
            Newton's method does not get there.
        """
        return self._solution.to(self.torch_device, self.torch_dtype)

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the energy, and the largest and the relative error against the discrete solution."""
        return {**super().metrics(x), "max_error": float((x - self.solution()).abs().max())}


def _tridiagonal_solve(stiffness: Tensor, b: Tensor) -> Tensor:
    """Solve with the matrix of the Hessian, shape (n, n), from the weights of its n + 1 cells."""
    from scipy.linalg import solveh_banded

    bands = torch.zeros(2, len(b), dtype=b.dtype)
    bands[0, 1:] = -stiffness[1:-1]
    bands[1] = stiffness[:-1] + stiffness[1:]
    return torch.from_numpy(solveh_banded(bands.numpy(), b.numpy()))


def _interfaces(n: int, parts: int) -> Tensor:
    """Return the first node of every subdomain but the first, as `mldd.problems.grids.grid_windows` cuts them."""
    if not 2 <= parts <= n:
        raise ValueError(f"`parts` must be in 2..{n} for a coarse level of hats at interfaces, got {parts}")
    return torch.tensor([k * n // parts for k in range(1, parts)])


def _hats(nodes: Tensor, n: int) -> Tensor:
    """Return the linear hats of the coarse mesh of `nodes` and the two ends at all n nodes, shape (n, nodes + 2)."""
    ends = torch.tensor([-1]), torch.tensor([n])
    corners = torch.cat([ends[0], nodes, ends[1]]).double()
    at = torch.arange(n, dtype=torch.float64)[:, None]
    widths = corners.diff()
    rising = (at - corners[:-1]) / widths  # in cell j from 0 to 1
    inside = (rising >= 0) & (rising < 1)
    hats = torch.zeros(n, len(corners), dtype=torch.float64)
    hats[:, :-1] += torch.where(inside, 1.0 - rising, 0.0)
    hats[:, 1:] += torch.where(inside, rising, 0.0)
    return hats
