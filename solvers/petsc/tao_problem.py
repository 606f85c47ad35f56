"""TAO, PETSc's optimisers, set up for an objective, and small problems minimised by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Objective
from mldd.ranks import load_petsc, read
from mldd.solvers.petsc.petsc_problem import UNLIMITED, PetscProblem

# TAO types that take no notice of bounds, those that cannot do without a Hessian, and all that minimise an objective
# from its value, gradient and Hessian alone. Others want residuals, constraints or a state of their own (some of them
# crash without), or add a term to the objective (owlqn, bmrm).
UNBOUNDED = frozenset({"lmvm", "nls", "ntr", "ntl", "cg", "nm", "snes"})
NEWTON = frozenset({"nls", "ntr", "ntl", "bnls", "bntr", "bntl", "tron", "gpcg"})
TYPES = UNBOUNDED | NEWTON | {"blmvm", "bncg", "bqnls", "bqnkls", "bqnktr", "bqnktl", "python"}


class TaoProblem(PetscProblem):
    """A TAO solver of any type; parameters as in `PetscProblem`."""

    KIND = "TAO"

    def _check_type(self, type: str, known: set[str]) -> None:  # noqa: A002
        if type not in known:
            there = " ".join(sorted(TYPES & known))
            raise ValueError(f"`type` must be a TAO type of this PETSc, one of {there}, got {type!r}")
        if type not in TYPES:
            there = " ".join(sorted(TYPES & known))
            raise ValueError(
                f"TAO type {type!r} wants residuals, constraints or a regularised objective, got an objective with "
                f"value and gradient; use one of {there}"
            )
        if type in UNBOUNDED and not self.objective.bounds.is_free:
            raise ValueError(f"TAO type {type!r} ignores bounds, got an objective with bounds; use blmvm or bqnktr")

    def _set_up(self, type: str) -> None:  # noqa: A002
        tao, hessian = self.solver, self._hessian()
        tao.setObjective(self.value)
        tao.setGradient(self.gradient)
        tao.setObjectiveGradient(self.value_and_gradient)
        if not self.objective.bounds.is_free:
            tao.setVariableBounds(self._box())
        tao.setHessian(hessian[1], hessian[0], hessian[0])

    def _solve(self) -> None:
        self.solver.solve(self.solution)

    def hand_over(self, end_of_iteration: Callable[[int], bool]) -> None:
        """See `PetscProblem.hand_over`.

        Parameters
        ----------
        end_of_iteration : callable
            Gets the number of the iteration and returns whether to end.
        """

        def test(tao: Any) -> None:  # TAO calls it after its own test, once or more in an iteration
            if tao.getConvergedReason() == 0 and end_of_iteration(tao.getIterationNumber()):
                tao.setConvergedReason(load_petsc().TAO.ConvergedReason.CONVERGED_USER)

        self.solver.setTolerances(gatol=0.0, grtol=0.0, gttol=0.0)
        self.solver.setMaximumIterations(UNLIMITED)
        self.solver.setMaximumFunctionEvaluations(UNLIMITED)
        self.solver.setConvergenceTest(test)


def tao_minimise(
    objective: Objective,
    x: Tensor,
    *,
    type: str = "bqnktr",  # noqa: A002
    prefix: str = "coarse_",
    max_steps: int = 50,
    atol: float = 1e-8,
) -> tuple[Tensor, int]:
    """Minimise a small `objective` over its bounds with TAO, on this rank.

    Parameters
    ----------
    objective : Objective
        What is minimised.
    x : Tensor, shape (n,)
        Start; not written to.
    type : str
        TAO's name of the method; Newton types take differences of gradients where there is no ``hessian_product``.
    prefix : str
        Options ``-<prefix>tao_...`` in PETSc's database win over the arguments.
    max_steps : int
        Most iterations.
    atol : float
        Bound on TAO's measure, the 2-norm of the projected gradient.

    Returns
    -------
    x : Tensor, shape (n,)
        The last iterate.
    reason : int
        TAO's converged reason: positive converged, negative not (-2: all steps used).

    Raises
    ------
    ValueError
        See `TaoProblem`.

    References
    ----------
    Balay et al., PETSc/TAO Users Manual, ANL-21/39, chapter "TAO: Optimization Solvers".
    """

    def configure(tao: Any) -> None:
        tao.setTolerances(gatol=atol, grtol=0.0, gttol=0.0)
        tao.setMaximumIterations(max_steps)

    problem = TaoProblem(objective, x, type, prefix, configure)
    try:
        problem.run()
        return read(problem.solution, torch.empty_like(x)), int(problem.solver.getConvergedReason())
    finally:
        problem.destroy()
