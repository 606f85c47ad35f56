"""The peer of peers_pde.py: PETSc's SNES vinewtonrsls with an assembled matrix, multigrid and a sequence of grids.

    python experiments/benchmarks/snes_multigrid.py [N]     iterations of every grid for an obstacle problem

Residuals and matrices are written in numpy, without mldd; so is the measure, the infinity norm of
``project(x - g) - x``. Grids have their boundary nodes (whose rows are those of the identity), so that DMDA
interpolates between them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
COARSEST = 7  # inner nodes per side of the coarsest grid
OPTIONS = {
    "snes_type": "vinewtonrsls",
    "snes_linesearch_type": "basic",
    "ksp_type": "fgmres",
    "ksp_rtol": "1e-3",
    "pc_type": "mg",
    "pc_mg_galerkin": "both",
    "mg_levels_ksp_type": "richardson",
    "mg_levels_ksp_max_it": "1",
    "mg_levels_pc_type": "sor",
    "mg_coarse_pc_type": "lu",
}


@dataclass
class Discrete:
    """A problem on one grid: what SNES asks for, in arrays of (n + 2, n + 2) nodes.

    Parameters
    ----------
    n : int
        Inner nodes per side.
    lower, upper : ndarray, shape (n + 2, n + 2)
        Bounds; infinite on the boundary.
    frame : ndarray, shape (n + 2, n + 2)
        Boundary values.
    kind : str
        "stencil" or "surface".
    load : ndarray, shape (n, n)
        Linear term of a stencil energy.
    reaction : callable, optional
        First and second derivative of the pointwise term, both times h^2.
    """

    n: int
    lower: Array
    upper: Array
    frame: Array
    kind: str = "stencil"
    load: Array | float = 0.0
    reaction: Callable[[Array], tuple[Array, Array]] | None = None

    def gradient(self, u: Array) -> Array:
        """Return the gradient at inner nodes, u - frame on the boundary."""
        g = u - self.frame
        inner = u[1:-1, 1:-1]
        if self.kind == "surface":
            g[1:-1, 1:-1] = self._area_gradient(u)
            return g
        value = 4.0 * inner - u[:-2, 1:-1] - u[2:, 1:-1] - u[1:-1, :-2] - u[1:-1, 2:] + self.load
        g[1:-1, 1:-1] = value if self.reaction is None else value + self.reaction(inner)[0]
        return g

    def measure(self, u: Array) -> float:
        """Return the infinity norm of ``project(u - g) - u``."""
        g = self.gradient(u)
        return float(np.abs(np.clip(u - g, self.lower, self.upper) - u).max())

    def _triangles(self, u: Array) -> tuple[tuple[Array, Array, Array], tuple[Array, Array, Array]]:
        """Return (dx, dy, h / (2 r)) of both triangles of all cells, r^2 = h^2 + dx^2 + dy^2."""
        h = 1.0 / (self.n + 1)
        dx, dy = np.diff(u, axis=1), np.diff(u, axis=0)
        pairs = (dx[:-1], dy[:, :-1]), (dx[1:], dy[:, 1:])
        first, second = ((a, b, 0.5 * h / np.sqrt(h * h + a * a + b * b)) for a, b in pairs)
        return first, second

    def _area_gradient(self, u: Array) -> Array:
        (a, b, s), (c, d, t) = self._triangles(u)
        g = np.zeros_like(u)
        sa, sb, tc, td = s * a, s * b, t * c, t * d
        g[:-1, :-1] -= sa + sb
        g[:-1, 1:] += sa
        g[1:, :-1] += sb
        g[1:, 1:] += tc + td
        g[1:, :-1] -= tc
        g[:-1, 1:] -= td
        return g[1:-1, 1:-1]

    def pattern(self) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        """Return rows and columns of the values that `matrix` returns; -1 is left out."""
        m = self.n + 2
        number = np.arange(m * m, dtype=np.int32).reshape(m, m)
        inner = np.full((m, m), -1, np.int32)
        inner[1:-1, 1:-1] = number[1:-1, 1:-1]
        edge = number[inner < 0]
        if self.kind == "surface":
            p, q, r, o = inner[:-1, :-1], inner[:-1, 1:], inner[1:, :-1], inner[1:, 1:]
            pairs = [
                (x, y)
                for corner in (p, o)
                for left, down in (((q, r) if corner is p else (r, q)),)
                for x, y in (
                    (corner, corner), (left, left), (down, down), (left, down), (down, left),
                    (corner, left), (left, corner), (corner, down), (down, corner),
                )
            ]  # fmt: skip
        else:
            c = inner[1:-1, 1:-1]
            around = (inner[:-2, 1:-1], inner[2:, 1:-1], inner[1:-1, :-2], inner[1:-1, 2:])
            pairs = [(c, c), *((c, other) for other in around)]
        rows = np.concatenate([edge, *(x.ravel() for x, _ in pairs)])
        columns = np.concatenate([edge, *(y.ravel() for _, y in pairs)])
        return rows, columns

    def matrix(self, u: Array) -> Array:
        """Return the values of the Hessian in the order of `pattern`."""
        edge = np.ones(4 * (self.n + 1))
        if self.kind == "surface":
            parts = []
            for a, b, s in self._triangles(u):
                cube = s**3 * (4.0 * (self.n + 1) ** 2)
                xx, yy, xy = s - cube * a * a, s - cube * b * b, -cube * a * b
                px, py = -(xx + xy), -(yy + xy)
                parts += [-(px + py), xx, yy, xy, xy, px, px, py, py]
        else:
            diagonal = np.full((self.n, self.n), 4.0)
            if self.reaction is not None:
                diagonal += self.reaction(u[1:-1, 1:-1])[1]
            parts = [diagonal, np.full(4 * self.n**2, -1.0)]
        return np.concatenate([edge, *(part.ravel() for part in parts)])


def solve(
    discretise: Callable[[int], Discrete], n: int, rtol: float, nested: float = 1e-2, most: int = 50
) -> tuple[Array, list[int], list[int]]:
    """Return the solution on n x n inner nodes, and the Newton and linear iterations of every grid, coarsest first.

    Parameters
    ----------
    discretise : callable
        ``discretise(n)`` returns the problem on a grid.
    n : int
        Inner nodes per side of the finest grid.
    rtol : float
        Of the measure on the finest grid, relative to that of the start.
    nested : float
        The same of all coarser grids.
    most : int
        Most Newton iterations of a grid.
    """
    from petsc4py import PETSc

    sizes = [n]
    while sizes[0] > COARSEST and sizes[0] % 2:
        sizes.insert(0, (sizes[0] - 1) // 2)
    options = PETSc.Options()
    for key, value in OPTIONS.items():
        options[f"peer_{key}"] = value
    da: Any = PETSc.DMDA().create(
        (sizes[0] + 2, sizes[0] + 2), stencil_width=1, stencil_type=PETSc.DMDA.StencilType.BOX, setup=True
    )
    start: Array | None = None
    newton, linear = [], []
    for size in sizes:
        problem = discretise(size)
        if start is None:
            start = np.clip(problem.frame, problem.lower, problem.upper)
        else:
            fine = da.refine()
            interpolation, _ = da.createInterpolation(fine)
            before, after = da.createGlobalVec(), fine.createGlobalVec()
            before.setArray(start.ravel())
            interpolation.mult(before, after)
            da, start = fine, after.getArray().reshape(size + 2, size + 2).copy()
            start[[0, -1]], start[:, [0, -1]] = problem.frame[[0, -1]], problem.frame[:, [0, -1]]
            start = np.clip(start, problem.lower, problem.upper)
        cold = np.clip(problem.frame, problem.lower, problem.upper)
        goal = problem.measure(cold) * (rtol if size == n else nested)
        start, its, inner = _newton(PETSc, da, problem, start, goal, most)
        newton.append(its)
        linear.append(inner)
    return start, newton, linear


def _newton(petsc: Any, da: Any, problem: Discrete, start: Array, goal: float, most: int) -> tuple[Array, int, int]:
    """Return the solution of one grid, and the iterations."""
    shape, size = start.shape, start.size
    snes = petsc.SNES().create(petsc.COMM_SELF)
    snes.setOptionsPrefix("peer_")
    snes.setDM(da)
    x, r, lower, upper = (da.createGlobalVec() for _ in range(4))
    x.setArray(start.ravel())
    lower.setArray(np.maximum(problem.lower, petsc.NINFINITY).ravel())
    upper.setArray(np.minimum(problem.upper, petsc.INFINITY).ravel())
    matrix = petsc.Mat().create(petsc.COMM_SELF)
    matrix.setSizes((size, size))
    matrix.setType("aij")
    matrix.setPreallocationCOO(*problem.pattern())

    def residual(_: Any, x: Any, f: Any) -> None:
        f.setArray(problem.gradient(x.getArray(readonly=True).reshape(shape)).ravel())

    def jacobian(_: Any, x: Any, J: Any, P: Any) -> None:
        P.setValuesCOO(problem.matrix(x.getArray(readonly=True).reshape(shape)))

    def test(snes: Any, its: int, norms: Any) -> Any:
        done = problem.measure(snes.getSolution().getArray(readonly=True).reshape(shape)) <= goal
        if done:
            return petsc.SNES.ConvergedReason.CONVERGED_FNORM_ABS
        return petsc.SNES.ConvergedReason.DIVERGED_MAX_IT if its >= most else petsc.SNES.ConvergedReason.ITERATING

    snes.setFunction(residual, r)
    snes.setJacobian(jacobian, matrix, matrix)
    snes.setVariableBounds(lower, upper)
    snes.setConvergenceTest(test)
    snes.setFromOptions()
    snes.solve(None, x)
    return (
        x.getArray().reshape(shape).copy(),
        int(snes.getIterationNumber()),
        int(snes.getLinearSolveIterations()),
    )


def main() -> None:
    """Print the iterations of every grid for a membrane over a flat obstacle."""

    def membrane(n: int) -> Discrete:
        zero = np.zeros((n + 2, n + 2))
        lower = np.full_like(zero, -np.inf)
        lower[1:-1, 1:-1] = -0.25
        return Discrete(n, lower, np.full_like(zero, np.inf), zero, load=10 / (n + 1) ** 2)

    _, newton, linear = solve(membrane, int(sys.argv[1]) if len(sys.argv) > 1 else 63, 1e-8)
    print(f"Newton {newton}, linear {linear}, coarsest grid first")


if __name__ == "__main__":
    main()
