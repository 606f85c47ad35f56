"""Any SNES solver of PETSc as an mldd solver, with any mldd solver as its nonlinear preconditioner."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from mldd.algebra import Objective
from mldd.loop import Solver
from mldd.solvers.petsc.petsc_solver import PetscSolver
from mldd.solvers.petsc.petsc_types import SnesSolver
from mldd.solvers.petsc.snes_problem import SnesProblem


@dataclass(frozen=True)
class Snes(PetscSolver):
    r"""Any SNES solver for ``F(x) = grad f(x) = 0``, one iteration per step.

    With `npc`, a nonlinear preconditioner: the map G of `npc_steps` steps of an mldd solver, made anew each time. From
    the right, ``ngmres anderson qn`` go on from ``G(x)``; from the left, ``qn ncg nrichardson`` and Newton types solve
    ``x - G(x) = 0``.

    The loop that calls `step` decides when to stop; SNES's own tolerances and limits (``-snes_rtol``, ``-snes_max_it``)
    have no effect. Where SNES stops by itself, the state says `Status.stalled`. If the iterate is changed between two
    steps, SNES starts anew from there. Critical points that are no minima are solutions, too. The state cannot be saved
    (``resumable`` is False). Every rank runs the same SNES on its own; what is distributed is the objective.

    Parameters
    ----------
    type : str
        SNES's name of the method: ``newtonls newtontr ngmres anderson qn ncg nrichardson``, with bounds
        ``vinewtonrsls``, or ``python``, which calls the mldd solver `solver` or the one of the option
        ``-snes_python_type``.
    prefix : str
        Of its options in PETSc's database: ``-<prefix>snes_monitor``, ``-<prefix>npc_snes_monitor``.
    npc : Solver, optional
        Nonlinear preconditioner.
    npc_steps : int
        Steps of `npc` in one application.
    npc_side : {"auto", "left", "right"}
        Left for ncg and nrichardson, which know no other; right for all others unless it says left.
    solver : Solver, optional
        For the type ``python``.

    References
    ----------
    Brune, Knepley, Smith and Tu, SIAM Rev. 57 (2015) 535-565, doi 10.1137/130936725: composition of nonlinear solvers;
    Balay et al., PETSc/TAO Users Manual, ANL-21/39.
    """

    type: str = "newtontr"
    prefix: str = ""
    npc: Solver | None = None
    npc_steps: int = 1
    npc_side: Literal["auto", "left", "right"] = "auto"
    solver: Solver | None = None

    def __post_init__(self) -> None:
        """Refuse values that can never be meant."""
        if self.npc_steps < 1:
            raise ValueError(f"`npc_steps` must be >= 1, got {self.npc_steps}")
        if self.npc_side not in ("auto", "left", "right"):
            raise ValueError(f"`npc_side` must be one of auto, left, right, got {self.npc_side!r}")
        if self.solver is not None and self.type != "python":
            raise ValueError(f"`solver` is for `type` python, got {self.type!r}; leave one of them out (or use npc)")
        if self.npc is not None and self.type == "python":
            raise ValueError("`npc` is for types of PETSc, got `type` python; use its `solver`")

    def _problem(self, objective: Objective, x: Tensor) -> SnesProblem:
        def configure(snes: Any) -> None:
            if self.solver is not None:
                snes.setPythonContext(SnesSolver(self.solver))
            if self.npc is not None:
                npc = snes.getNPC()
                npc.setType("python")
                npc.setPythonContext(SnesSolver(self.npc, steps=self.npc_steps))

        return SnesProblem(objective, x, self.type, self.prefix, configure, side=self.npc_side)
