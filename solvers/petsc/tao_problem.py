"""TAO, PETSc's optimisers, set up for an objective, and small problems minimised by them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Objective, offers
from mldd.ranks import as_vec, load_petsc, read
from mldd.solvers.petsc.petsc_problem import Callbacks

# TAO types that take no notice of bounds, and those that cannot do without a Hessian.
UNBOUNDED = frozenset({"lmvm", "nls", "ntr", "ntl", "cg", "nm", "owlqn"})
NEWTON = frozenset({"nls", "ntr", "ntl", "bnls", "bntr", "bntl", "tron", "gpcg"})
_UNLIMITED = 2**31 - 1


class TaoProblem(Callbacks):
    """A TAO solver of any type, set up for an objective on this rank.

    Parameters
    ----------
    objective : Objective
    x : Tensor, shape (n,)
        Start, see `mldd.solvers.petsc.petsc_problem.Callbacks`.
    type : str
        TAO's name of the method; the option ``-tao_type`` (with the prefix) wins.
    prefix : str
        Of the options in PETSc's database that belong to this solver.
    configure : callable, optional
        Called with the TAO object before the options are read.

    Raises
    ------
    ValueError
        An unknown type, one that takes no notice of the bounds, or one that needs a Hessian that is not there.
    """

    def __init__(
        self,
        objective: Objective,
        x: Tensor,
        type: str,  # noqa: A002 (TAO's word)
        prefix: str = "",
        configure: Callable[[Any], None] = lambda tao: None,
    ) -> None:
        super().__init__(objective, x, load_petsc().TAO().create(load_petsc().COMM_SELF))
        try:
            self._set_up(type, prefix, configure)
        except BaseException as error:
            self.destroy()
            raise (self.error or error) from None

    @property
    def tao(self) -> Any:
        """The TAO object."""
        return self.solver

    def _set_up(self, type: str, prefix: str, configure: Callable[[Any], None]) -> None:  # noqa: A002
        tao, bounds = self.tao, self.objective.bounds
        tao.setAppCtx(self)
        tao.setOptionsPrefix(prefix)
        self._set_type(type)
        tao.setObjective(self.value)
        tao.setGradient(self.gradient)
        tao.setObjectiveGradient(self.value_and_gradient)
        if not bounds.is_free:
            box = [as_vec(bound.clone()) for bound in (bounds.lower, bounds.upper)]
            self.owned += box
            tao.setVariableBounds(tuple(box))
        hessian = self.hessian()
        if hessian is not None:
            tao.setHessian(hessian[1], hessian[0], hessian[0])
        configure(tao)
        tao.setFromOptions()
        self._check_type(tao.getType())
        self.check_context(tao, "tao_python_type")

    def _set_type(self, type: str) -> None:  # noqa: A002
        known = sorted(v for k, v in vars(load_petsc().TAO.Type).items() if k.isupper())
        if type not in known:
            raise ValueError(f"`type` must be a TAO type of this PETSc, one of {' '.join(known)}, got {type!r}")
        self.tao.setType(type)

    def _check_type(self, type: str) -> None:  # noqa: A002
        if type in UNBOUNDED and not self.objective.bounds.is_free:
            raise ValueError(f"TAO type {type!r} ignores bounds, got an objective with bounds; use blmvm or bqnktr")
        if type in NEWTON and not offers(self.objective, "hessian_product"):
            raise ValueError(f"TAO type {type!r} needs an objective with `hessian_product`, got none; use bqnktr")

    def _solve(self) -> None:
        self.tao.solve(self.solution)

    def hand_over(self, end_of_iteration: Callable[[int], bool]) -> None:
        """Switch off TAO's tolerances and limits, after its options were read. A failed line search still ends it."""

        def test(tao: Any) -> None:  # TAO calls it after its own test, once or more in an iteration
            if tao.getConvergedReason() == 0 and end_of_iteration(tao.getIterationNumber()):
                tao.setConvergedReason(load_petsc().TAO.ConvergedReason.CONVERGED_USER)

        self.tao.setTolerances(gatol=0.0, grtol=0.0, gttol=0.0)
        self.tao.setMaximumIterations(_UNLIMITED)
        self.tao.setMaximumFunctionEvaluations(_UNLIMITED)
        self.tao.setConvergenceTest(test)


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
    x : Tensor, shape (n,)
        Start; not written to.
    type : str
        TAO's name of the method; Newton types need an objective with ``hessian_product``.
    prefix : str
        Options ``-<prefix>tao_...`` in PETSc's database win over the arguments.
    max_steps : int
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
        return read(problem.solution, torch.empty_like(x)), int(problem.tao.getConvergedReason())
    finally:
        problem.destroy()
