"""SNES, PETSc's nonlinear solvers, set up for the equation ``grad f(x) = 0`` of an objective."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from torch import Tensor

from mldd.algebra import Objective
from mldd.ranks import load_petsc
from mldd.solvers.petsc.petsc_problem import UNLIMITED, PetscProblem

# The types that can be set up from callbacks alone: nasm, aspin, fas and others want a grid (DM) of PETSc's.
NEWTON = ("newtonls", "newtontr", "vinewtonrsls")
TYPES = (*NEWTON, "ngmres", "anderson", "qn", "ncg", "nrichardson", "python")
BOUNDED = ("vinewtonrsls", "python")
LEFT_ONLY = ("ncg", "nrichardson")
# They compare values by their ratios, which is wrong for energies below zero; without values they compare norms of F.
WITHOUT_VALUES = ("ngmres", "anderson")


class SnesProblem(PetscProblem):
    """A SNES solver for ``F(x) = grad f(x) = 0`` on this rank; line searches and trust regions get f, too.

    The Jacobian is a Mat of type python with the Hessian's products, or differences of gradients where the objective
    offers none; of ``x - G(x)`` it is PETSc's own difference (``-snes_mf``). KSP is truncated conjugate gradients
    (``stcg``) for the former and GMRES for the latter, without a preconditioner, unless the options name another.

    Parameters
    ----------
    objective, x, type, prefix, configure
        See `PetscProblem`; `configure` sets a nonlinear preconditioner.
    side : {"auto", "left", "right"}
        Of a nonlinear preconditioner. "auto" is right where the type knows both, left for ncg and nrichardson. Newton
        types with a left one work on ``x - G(x)``, whose Jacobian they take from differences.
    """

    KIND = "SNES"

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        type: str,  # noqa: A002 (SNES's word)
        prefix: str = "",
        configure: Callable[[Any], None] = lambda snes: None,
        *,
        side: str = "auto",
    ) -> None:
        self._side = side
        super().__init__(objective, x, type, prefix, configure)

    def _check_type(self, type: str, known: set[str]) -> None:  # noqa: A002
        if type not in known:
            raise ValueError(f"`type` must be a SNES type of this PETSc, one of {' '.join(TYPES)}, got {type!r}")
        if type == "aspin":
            raise ValueError("SNES type 'aspin' wants a grid of PETSc's, got an objective; use mldd's own solver aspin")
        if type not in TYPES:
            raise ValueError(
                f"SNES type {type!r} wants a grid of PETSc's, got an objective; use schwarz, or {' '.join(TYPES)}"
            )
        if type not in BOUNDED and not self.objective.bounds.is_free:
            raise ValueError(
                f"SNES type {type!r} ignores bounds, got an objective with bounds; use vinewtonrsls, or tao:bqnktr"
            )
        if type in LEFT_ONLY and self._side == "right":
            raise ValueError(f"SNES type {type!r} knows a left preconditioner only, got side right; use left or ngmres")

    def _set_up(self, type: str) -> None:  # noqa: A002
        snes, residual = self.solver, self.solution.duplicate()
        self.owned.append(residual)
        snes.setFunction(self.gradient, residual)
        left = type in LEFT_ONLY or self._side == "left"
        if type not in WITHOUT_VALUES and not (type in NEWTON and left):
            snes.setObjective(self.value)
        snes.setNPCSide(load_petsc().PC.Side.LEFT if left else load_petsc().PC.Side.RIGHT)
        if type in NEWTON:
            self._set_jacobian(snes, by_differences=left)
        if type != "python" and not self.objective.bounds.is_free:
            snes.setVariableBounds(*self._box())

    def _set_jacobian(self, snes: Any, by_differences: bool) -> None:
        if by_differences:
            snes.setUseMF(True)
        else:
            hessian = self._hessian()
            snes.setJacobian(hessian[1], hessian[0], hessian[0])
            snes.getKSP().setType("stcg")  # the Hessian is symmetric, and along negative curvature this goes on
        snes.getKSP().getPC().setType("none")

    def _adopt(self, solver: Any) -> None:
        super()._adopt(solver)
        if solver.hasNPC():
            self._adopt(solver.getNPC())

    def _solve(self) -> None:
        self.solver.solve(None, self.solution)
        reasons = load_petsc().SNES.ConvergedReason
        lost = (reasons.DIVERGED_FUNCTION_NANORINF, reasons.DIVERGED_OBJECTIVE_NANORINF)
        self.finite = self.finite and self.solver.getConvergedReason() not in lost

    def hand_over(self, end_of_iteration: Callable[[int], bool]) -> None:
        """See `PetscProblem.hand_over`.

        Parameters
        ----------
        end_of_iteration : callable
            Gets the number of the iteration and returns whether to end.
        """
        reasons = load_petsc().SNES.ConvergedReason

        def test(snes: Any, iteration: int, norms: tuple[float, float, float]) -> int:
            if not math.isfinite(norms[2]):
                return int(reasons.DIVERGED_FUNCTION_NANORINF)
            return int(reasons.CONVERGED_USER if end_of_iteration(iteration) else reasons.ITERATING)

        self.solver.setTolerances(rtol=0.0, atol=0.0, stol=0.0, max_it=UNLIMITED)
        self.solver.setMaxFunctionEvaluations(-1)
        self.solver.setMaxKSPFailures(UNLIMITED)  # an inexact direction is one, too: line search or radius judge it
        self.solver.setConvergenceTest(test)
