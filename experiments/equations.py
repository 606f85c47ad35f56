"""Equations on grids that are the gradient of nothing, by Newton's method on nonlinear Schwarz iterations.

The formulas are those of `mldd.solvers.Raspen` and `Aspin`. These minimise: their matrices are symmetric, and an energy
says whether a step is good. Here matrices are factorised by LU, and a step has to lower the norm of what is solved: of
the sweep's correction, or of the equations for Newton's method itself. Where equations are the gradient of an energy,
both take the same steps (`tests/test_equations.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csc_matrix
from scipy.sparse.linalg import splu
from torch import Tensor

from experiments.grid_equations import Equations, Window, framed, grown, solved, times
from mldd.problems.grids import Obstacle
from mldd.problems.grids.grid import Grid, GridTransfer
from mldd.solvers import Krylov

Method = Literal["newton", "aspin", "raspen", "nras"]


@dataclass(frozen=True)
class Coarse:
    """A coarser grid of the same equations, by halving.

    Parameters
    ----------
    equations : Equations
        Those of the coarse grid.
    n : int
        Nodes per side of the fine grid.
    """

    equations: Equations
    n: int

    @cached_property
    def whole(self) -> Window:
        """All nodes."""
        return Window(self.equations, (0, self.equations.n, 0, self.equations.n))

    @cached_property
    def transfers(self) -> list[GridTransfer]:
        """From the finest to the coarsest."""
        grid, found = Grid(self.n), []
        while grid.n > self.equations.n:
            found.append(GridTransfer(grid))
            grid = found[-1].coarse
        return found

    def _each(self, fields: Tensor, name: str, n: int) -> Tensor:
        steps = self.transfers if name != "prolong" else self.transfers[::-1]
        rows = []
        for field in fields:
            v = field.reshape(-1)
            for step in steps:
                v = getattr(step, name)(v)
            rows.append(v.view(n, n))
        return torch.stack(rows)

    def restrict(self, r: Tensor) -> Tensor:
        """Return ``P^T r`` of every field."""
        return self._each(r, "restrict", self.equations.n)

    def inject(self, u: Tensor) -> Tensor:
        """Return the values at the coarse nodes."""
        return self._each(u, "inject", self.equations.n)

    def prolong(self, e: Tensor) -> Tensor:
        """Return the interpolant of every field, zero on the ring."""
        return self._each(e, "prolong", self.n)


@dataclass(frozen=True)
class Schwarz:
    """Equations, their subdomains, and a coarse level.

    Parameters
    ----------
    equations : Equations
        What is solved.
    method : {"newton", "aspin", "raspen", "nras"}
        "newton" has the linear Schwarz method with the same subdomains as its preconditioner.
    parts, overlap : int
        Subdomains, and the layers that are added to each; they are cut as those of mldd's grids.
    coarse : Coarse, optional
        The coarse level.
    """

    equations: Equations
    method: Method
    parts: int
    overlap: int
    coarse: Coarse | None = None

    @cached_property
    def windows(self) -> list[tuple[Window, Tensor]]:
        """Every subdomain and its weights: one at its own nodes, and for aspin one everywhere."""
        n = self.equations.n
        found = []
        for part in Obstacle(n).decomposition(self.parts, self.overlap).subdomains:
            rows, columns = part.indices // n, part.indices % n
            box = (int(rows.min()), int(rows.max()) + 1, int(columns.min()), int(columns.max()) + 1)
            weights = torch.zeros(n * n, dtype=torch.float64)
            weights[part.indices] = part.owned.double() if self.method != "aspin" else 1.0
            window = Window(self.equations, box)
            found.append((window, window.take(weights.view(1, n, n))))
        return found

    @cached_property
    def whole(self) -> Window:
        """All nodes."""
        n = self.equations.n
        return Window(self.equations, (0, n, 0, n))

    def total(self, corrections: list[Tensor]) -> Tensor:
        """Return the weighted sum of local corrections."""
        out = torch.zeros(self.whole.shape, dtype=torch.float64)
        for (window, weights), c in zip(self.windows, corrections, strict=True):
            window.take(out).add_(weights * c)
        return out


class Point:
    """What is solved instead of the equations, at one point, and the product with its Jacobian.

    Parameters
    ----------
    schwarz : Schwarz
        The method.
    u : Tensor, shape (fields, n, n)
        The point.

    Attributes
    ----------
    correction : Tensor, shape (fields, n, n)
        What the coarse level and a sweep add to `u`; zero at a solution.
    unsolved : int
        Local and coarse problems that Newton's method has not solved.
    """

    def __init__(self, schwarz: Schwarz, u: Tensor) -> None:
        self.schwarz, self.u, self.unsolved = schwarz, u, 0
        self.residual = schwarz.whole.residual(framed(schwarz.equations, u), u)
        linear = schwarz.method == "newton"
        first = torch.zeros_like(u) if schwarz.coarse is None else self._coarse(schwarz.coarse, linear)
        self._start = u + first
        around = framed(schwarz.equations, self._start)
        right = self.residual + times(self._matrix, first).view(u.shape) if linear else None
        corrections = []
        for k, (window, _) in enumerate(schwarz.windows):
            y = window.take(self._start)
            if right is not None:
                corrections.append(solved(self._local[k][1], -window.take(right)))
                continue
            end, good = window.newton(around, y)
            self.unsolved += not good
            corrections.append(end - y)
        self._corrections = corrections
        self._sum = schwarz.total(corrections)
        self.correction = first + self._sum

    @cached_property
    def _matrix(self) -> csc_matrix:
        """The Jacobian of all equations at `u`."""
        return self.schwarz.whole.jacobian(framed(self.schwarz.equations, self.u), self.u)

    def _coarse(self, coarse: Coarse, linear: bool) -> Tensor:
        """Return the coarse correction: a full approximation scheme, or one linear solve."""
        y0, g = coarse.inject(self.u), coarse.restrict(self.residual)
        around = framed(coarse.equations, y0)
        self._coarse_first = coarse.whole.jacobian(around, y0)
        if linear:
            self._coarse_lu = splu(self._coarse_first)
            return coarse.prolong(solved(self._coarse_lu, -g))
        y, good = coarse.whole.newton(around, y0, coarse.whole.residual(around, y0) - g)
        self.unsolved += not good
        self._coarse_lu = splu(coarse.whole.jacobian(around, y))
        return coarse.prolong(y - y0)

    def _coarse_product(self, coarse: Coarse, z: Tensor) -> Tensor:
        """Return the derivative of the coarse correction along `z`."""
        fine = coarse.restrict(times(self._matrix, z).view(z.shape))
        if self.schwarz.method == "newton":
            return coarse.prolong(solved(self._coarse_lu, -fine))
        e = coarse.inject(z)
        return coarse.prolong(solved(self._coarse_lu, times(self._coarse_first, e).view(e.shape) - fine) - e)

    @property
    def _at(self) -> Tensor:
        """Where matrices are taken but for RASPEN: Newton's method has the point, ASPIN where all corrections lead."""
        return self.u if self.schwarz.method == "newton" else self._start + self._sum

    @cached_property
    def _outer(self) -> csc_matrix:
        """The Jacobian of all equations there."""
        if self.schwarz.method == "newton":
            return self._matrix
        return self.schwarz.whole.jacobian(framed(self.schwarz.equations, self._at), self._at)

    @cached_property
    def _local(self) -> list[tuple[csc_matrix | None, Any]]:
        """Of every subdomain, the factors of its Jacobian; for RASPEN, whose points differ, also the rows around it."""
        schwarz, found = self.schwarz, []
        for k, (window, _) in enumerate(schwarz.windows):
            if schwarz.method != "raspen":
                around = framed(schwarz.equations, self._at)
                found.append((None, splu(window.jacobian(around, window.take(self._at)))))
                continue
            at = self._start.clone()
            window.take(at).add_(self._corrections[k])
            wide, inside = grown(window)
            rows = wide.jacobian(framed(schwarz.equations, at), wide.take(at)).tocsr()[inside]
            found.append((rows, splu(rows[:, inside].tocsc())))
        return found

    def product(self, z: Tensor) -> Tensor:
        """Return the product of minus the Jacobian of the correction with a flat vector."""
        schwarz = self.schwarz
        z = z.view(self.u.shape)
        v = z if schwarz.coarse is None else z + self._coarse_product(schwarz.coarse, z)
        image = None if schwarz.method == "raspen" else times(self._outer, v).view(v.shape)
        steps = []
        for (window, _), (rows, lu) in zip(schwarz.windows, self._local, strict=True):
            right = window.take(image) if image is not None else times(rows, grown(window)[0].take(v))
            steps.append(solved(lu, right).view(window.shape))
        return (z - v + schwarz.total(steps)).reshape(-1)


@dataclass
class Solution:
    """Where a method has led, and what it took."""

    u: Tensor
    status: str = "max_steps"
    steps: int = 0
    krylov: int = 0
    unsolved: int = 0
    measure: float = float("nan")


def solve(schwarz: Schwarz, u: Tensor, rtol: float, max_steps: int, krylov: Krylov | None = None) -> Solution:
    """Run a method from `u` until the norm of the equations has fallen by `rtol`.

    Every Newton step is halved until the norm of the correction (for "newton", of the equations) falls.
    """
    krylov = krylov or Krylov()
    here, out = Point(schwarz, u), Solution(u)
    first = float(here.residual.norm())
    for step in range(max_steps + 1):
        out.u, out.steps, out.measure = here.u, step, float(here.residual.norm())
        if not np.isfinite(out.measure):
            out.status = "diverged"
            return out
        if out.measure <= rtol * first:
            out.status = "converged_rtol"
            return out
        if step == max_steps:
            return out
        out.unsolved += here.unsolved
        if schwarz.method == "nras":
            here = Point(schwarz, here.u + here.correction)
            continue
        d, iterations, _ = krylov.solve(here.product, here.correction.reshape(-1))
        out.krylov += iterations
        found = searched(here, d.view(u.shape))
        if found is None:
            out.status = "stalled"
            return out
        here = found
    return out


def searched(here: Point, d: Tensor) -> Point | None:
    """Return the first of the points at step lengths 1, 1/2, 1/4, ... at which the norm is lower; None if none is.

    Nor is a point taken at which more local problems than here have not been solved: their corrections mean nothing.
    """
    plain = here.schwarz.method == "newton"
    norm, t = float((here.residual if plain else here.correction).norm()), 1.0
    whole = here.schwarz.whole
    while t > 1e-4:
        u = here.u + t * d
        if plain:
            after = float(whole.residual(framed(here.schwarz.equations, u), u).norm())
            found = None
        else:
            found = Point(here.schwarz, u)
            after = float(found.correction.norm()) if found.unsolved <= here.unsolved else np.inf
        if after <= (1.0 - 1e-4 * t) * norm:
            return found or Point(here.schwarz, u)
        t *= 0.5
    return None
