"""Any TAO solver of PETSc as an mldd solver: one step is one TAO iteration. PETSc counts levels from the coarsest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mldd.algebra import Objective
from mldd.loop import Solver
from mldd.solvers.petsc.petsc_solver import PetscSolver
from mldd.solvers.petsc.petsc_types import TaoSolver
from mldd.solvers.petsc.tao_problem import TaoProblem


@dataclass(frozen=True)
class Tao(PetscSolver):
    """Any TAO solver, one iteration per step.

    The loop that calls `step` decides when to stop; TAO's own tolerances and limits (``-tao_gatol``, ``-tao_max_it``)
    have no effect. Where TAO stops by itself, the state says `Status.stalled`. If the iterate is changed between two
    steps, TAO starts anew from there. A stochastic objective is evaluated with the sample of the step, but TAO
    compares gradients of different samples: use it on deterministic objectives. The state cannot be saved
    (``resumable`` is False). Every rank runs the same TAO solver on its own; what is distributed is the objective.

    Parameters
    ----------
    type : str
        TAO's name of the method. With bounds ``blmvm bqnls bqnkls bqnktr bqnktl bncg`` and ``bnls bntr bntl tron``,
        which take differences of gradients where the objective has no ``hessian_product``; without bounds also ``lmvm
        cg`` and ``nls ntr ntl``. With ``python``, TAO's loop calls the mldd solver `solver`, or the one of the option
        ``-tao_python_type``.
    prefix : str
        Of its options in PETSc's database: ``-<prefix>tao_view``.
    solver : Solver, optional
        For the type ``python``.

    References
    ----------
    Balay et al., PETSc/TAO Users Manual, ANL-21/39; Benson and More, ANL/MCS-P909-0901 (2001): blmvm.
    """

    type: str = "blmvm"
    prefix: str = ""
    solver: Solver | None = None

    def __post_init__(self) -> None:
        """Refuse a solver that would not be used."""
        if self.solver is not None and self.type != "python":
            raise ValueError(f"`solver` is for `type` python, got {self.type!r}; leave one of them out")

    def _problem(self, objective: Objective, x: Tensor) -> TaoProblem:
        def configure(tao: Any) -> None:
            if self.solver is not None:
                tao.setPythonContext(TaoSolver(self.solver))

        return TaoProblem(objective, x, self.type, self.prefix, configure)
