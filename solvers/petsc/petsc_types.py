"""Every mldd solver as a solver of PETSc: TAO and SNES of type python, where PETSc owns the loop.

    tao = PETSc.TAO().createPython(TaoSolver(AdaGrad(), objective))

On the command line, options name them: ``-tao_type python -tao_python_type mldd.solvers.petsc.petsc_types.ml_adagrad``
(the solver ``ml-adagrad`` with the run's subdomains, levels and seeds), ``-npc_snes_type python -npc_snes_python_type
mldd.solvers.petsc.petsc_types.schwarz``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar

import torch
from torch import Tensor

from mldd.algebra import Bounds, Corrected, Objective, Remembered, sampled, uncounted
from mldd.command import SOLVERS, current, described, name_of, solver_spec
from mldd.loop import Solver, State, Status
from mldd.ranks import as_tensor, load_petsc, read, write
from mldd.solvers.petsc.petsc_problem import PetscProblem

# What a status means to PETSc; every other one is DIVERGED_USER.
_TAO_REASONS = {
    Status.converged_atol: "CONVERGED_GATOL",
    Status.converged_rtol: "CONVERGED_GRTOL",
    Status.target_reached: "CONVERGED_MINF",
    Status.max_steps: "DIVERGED_MAXITS",
    Status.stalled: "DIVERGED_LS_FAILURE",
    Status.diverged: "DIVERGED_NAN",
}
_SNES_REASONS = {
    Status.converged_atol: "CONVERGED_FNORM_ABS",
    Status.converged_rtol: "CONVERGED_FNORM_RELATIVE",
    Status.max_steps: "DIVERGED_MAX_IT",
    Status.stalled: "DIVERGED_LINE_SEARCH",
    Status.diverged: "DIVERGED_FUNCTION_NANORINF",
}


@dataclass(frozen=True)
class PetscObjective:
    """The objective behind the callbacks of a TAO or SNES object that was set up in PETSc: value and gradient.

    Parameters
    ----------
    solver : PETSc.TAO or PETSc.SNES
        A SNES must be the gradient of something, and knows a value only where ``SNESSetObjective`` was called.
    """

    solver: Any

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return int(self.solver.getSolution().getSize())

    @property
    def bounds(self) -> Bounds:
        """The box."""
        if isinstance(self.solver, load_petsc().TAO):
            lower, upper = self.solver.getVariableBounds()
            if lower and upper:  # a null object where there are none
                return Bounds(as_tensor(lower).clone(), as_tensor(upper).clone())
        return Bounds.free(self.size)

    def _vec(self, x: Tensor) -> Any:
        vec = self.solver.getSolution().duplicate()
        write(x, vec)
        return vec

    def value(self, x: Tensor) -> Tensor:
        """Return PETSc's value at x."""
        return torch.tensor(self.solver.computeObjective(self._vec(x)), dtype=x.dtype)

    def gradient(self, x: Tensor) -> Tensor:
        """Return PETSc's gradient (or function) at x."""
        vec = self._vec(x)
        out = vec.duplicate()
        if isinstance(self.solver, load_petsc().TAO):
            self.solver.computeGradient(vec, out)
        else:
            self.solver.computeFunction(vec, out)
        return read(out, torch.empty_like(x))


class _Context:
    """What both contexts have in common: the mldd solver, its objective and its vector."""

    def __init__(self, solver: Solver, objective: Objective | None = None) -> None:
        self.mldd_solver = solver
        self.objective = objective
        self.state: State | None = None

    def view(self, solver: Any, viewer: Any) -> None:
        """Print the solver with all its keys, and its levels."""
        viewer.printfASCII(f"  mldd solver {described(self.mldd_solver)}\n")
        hierarchy = getattr(self.mldd_solver, "hierarchy", None)
        for line in str(hierarchy).splitlines() if hierarchy is not None else ():
            viewer.printfASCII(f"    {line}\n")

    def _of(self, solver: Any) -> Objective:
        """Return the objective of this step: the one given here, that of the run around it, or PETSc's own."""
        if self.objective is not None:
            return sampled(self.objective, 0 if self.state is None else self.state.step)
        problem = _around(solver)
        return PetscObjective(solver) if problem is None else problem.plain

    def _start(self, solver: Any, vec: Any) -> _Point:
        """Forget the last run, and take `vec`, moved into the bounds, for the iterate."""
        if vec.getComm().getSize() > 1:
            raise ValueError(
                "mldd's solvers need vectors that are whole on every rank, got one that is distributed; use COMM_SELF"
            )
        self.state = None
        bounds = self._of(solver).bounds
        point = _Point(vec, bounds.lower)
        point.put(bounds.project(point.x))
        return point

    def _step(self, solver: Any, f: Remembered, point: _Point, state: State) -> State:
        """Do one step of the mldd solver, and let the run around `solver` know its counts and status."""
        stage = _stage(name_of(self.mldd_solver))
        stage.push()
        try:
            reached, self.state = self.mldd_solver.step(f, point.x, state)
            self.state.step += 1
        finally:
            stage.pop()
        point.put(reached)
        problem = _around(solver)
        if problem is not None:
            problem.inner = self.state
        return self.state


class _Point:
    """The iterate as a tensor: in the memory of PETSc's vector, or a copy of another dtype or on another device."""

    def __init__(self, vec: Any, like: Tensor) -> None:
        self._vec = vec
        self._shared = like.dtype == torch.float64 and like.device.type == "cpu"
        self.x = as_tensor(vec) if self._shared else read(vec, like.new_empty(vec.getSize()))

    def put(self, x: Tensor) -> None:
        """Make `x`, where a solver has gone, the iterate."""
        if x is not self.x:
            self.x.copy_(x)
        if not self._shared:
            write(self.x, self._vec)
        self._vec.stateIncrease()


class TaoSolver(_Context):
    """An mldd solver as the context of TAO type python: one TAO iteration is one step.

    TAO's convergence test and monitors get the value (evaluated for them alone, and not counted), and the 2-norm of the
    measure as the residual. ``-tao_view`` prints the solver, ``-log_view`` has a stage for it.

    Parameters
    ----------
    solver : Solver
        Does one step in each iteration of TAO.
    objective : Objective, optional
        By default the one that TAO's callbacks evaluate; solvers that need more than value and gradient (subdomains,
        levels, Hessian products) need the problem's own here.
    values : bool
        False: TAO sees the value 0, for objectives that have none.
    """

    def __init__(self, solver: Solver, objective: Objective | None = None, *, values: bool = True) -> None:
        super().__init__(solver, objective)
        self.values = values

    def setUp(self, tao: Any) -> None:  # noqa: N802 (PETSc's name)
        """Give TAO a vector for its gradient, as all its types have.

        Parameters
        ----------
        tao : PETSc.TAO
            The object that asks.
        """
        if not tao.getGradient()[0]:
            tao.setGradient(None, tao.getSolution().duplicate())

    def solve(self, tao: Any) -> None:
        """Iterate until TAO's test or the solver says stop.

        Parameters
        ----------
        tao : PETSc.TAO
            The object that asks.
        """
        with _guarded(tao):
            point = self._start(tao, tao.getSolution())
            f = _recalling(tao, self._of(tao), point.x)
            while not self._tested(tao, f, point.x):
                if self._of(tao) is not f.f:  # another sample
                    f = _recalling(tao, self._of(tao), point.x)
                state = self.mldd_solver.init(f, point.x) if self.state is None else self.state
                self._step(tao, f, point, state)

    def _tested(self, tao: Any, f: Remembered, x: Tensor) -> bool:
        """Show the iterate to TAO's monitors and test; return whether to end."""
        reasons = load_petsc().TAO.ConvergedReason
        step = 0 if self.state is None else self.state.step
        tao.setIterationNumber(step)
        with uncounted():
            value = float(f.value(x)) if self.values else 0.0
        g = f.gradient(x)
        measure = f.bounds.measure(x, g, 2.0)
        if not (math.isfinite(value) and math.isfinite(measure)):
            _lost(tao)
            tao.setConvergedReason(reasons.DIVERGED_NAN)
            return True
        write(g, tao.getGradient()[0])
        _learn(tao, x, g)
        tao.monitor(step, value, measure, 0.0, 1.0)
        status = None if self.state is None else self.state.status
        if status is not None:
            tao.setConvergedReason(getattr(reasons, _TAO_REASONS.get(status, "DIVERGED_USER")))
            return True
        tao.checkConverged()
        return bool(tao.getConvergedReason() != 0)


class SnesSolver(_Context):
    """An mldd solver as the context of SNES type python: one SNES iteration is `steps` steps.

    As nonlinear preconditioner SNES asks for one iteration from where the accelerator stands; the solver's state is
    made anew, so that it is a map of the iterate alone. A right-hand side b makes it ``grad f(x) = b``.

    Parameters
    ----------
    solver : Solver
        Does the steps.
    objective : Objective, optional
        By default the one whose gradient is SNES's function; see `TaoSolver`.
    steps : int
        Steps in one application.
    """

    _TESTED: ClassVar[tuple[str, ...]] = ("DEFAULT", "ALWAYS")

    def __init__(self, solver: Solver, objective: Objective | None = None, *, steps: int = 1) -> None:
        super().__init__(solver, objective)
        self.steps = steps

    def solve(self, snes: Any, b: Any, x: Any) -> None:
        """Iterate until SNES's test or the solver says stop.

        Parameters
        ----------
        snes : PETSc.SNES
            The object that asks.
        b : PETSc.Vec or None
            Right-hand side of ``F(x) = b``.
        x : PETSc.Vec
            The iterate, written to.
        """
        schedules, reasons = load_petsc().SNES.NormSchedule, load_petsc().SNES.ConvergedReason
        schedule = snes.getNormSchedule()
        tested = schedule in [getattr(schedules, name) for name in self._TESTED]
        with _guarded(snes):
            point = self._start(snes, x)
            f = _recalling(snes, _shifted(self._of(snes), b, point.x), point.x)
            self.state = self.mldd_solver.init(f, point.x)
            limit, k = snes.getTolerances()[3], 0
            ended = tested and self._tested(snes, f, point.x, 0)
            while not ended and k < limit:
                for _ in range(self.steps):
                    if self._step(snes, f, point, self.state).status is not None:
                        break
                k += 1
                ended = tested and self._tested(snes, f, point.x, k)
            if schedule != schedules.NONE and not tested:
                self._note(snes, f, point.x)
            if snes.getConvergedReason() == 0:
                snes.setConvergedReason(reasons.CONVERGED_ITS if not tested else reasons.DIVERGED_MAX_IT)

    def _note(self, snes: Any, f: Remembered, x: Tensor) -> float:
        """Leave the function and its norm in SNES, as accelerators expect of their preconditioner."""
        g = f.gradient(x)
        norm = f.bounds.measure(x, g, 2.0)
        write(g, snes.getFunction()[0])
        snes.setFunctionNorm(norm)
        _learn(snes, x, g)
        return norm

    def _tested(self, snes: Any, f: Remembered, x: Tensor, k: int) -> bool:
        """Show the iterate to SNES's monitors and test; return whether to end."""
        norm = self._note(snes, f, x)
        snes.setIterationNumber(k)
        snes.logConvergenceHistory(norm)
        snes.monitor(k, norm)
        status = None if self.state is None else self.state.status
        reasons = load_petsc().SNES.ConvergedReason
        if not math.isfinite(norm):
            _lost(snes)
            reason = reasons.DIVERGED_FUNCTION_NANORINF
        elif status is not None:
            reason = getattr(reasons, _SNES_REASONS.get(status, "DIVERGED_USER"))
        else:
            reason = snes.callConvergenceTest(k, float(torch.linalg.vector_norm(x)), 0.0, norm)
        snes.setConvergedReason(reason)
        return bool(reason != 0)


class Named:
    """The context that an option names: TAO or SNES, whichever asks, with the solver as the run would build it.

    Parameters
    ----------
    name : str
        Of the solver on the command line.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._context: TaoSolver | SnesSolver | None = None

    def create(self, solver: Any) -> None:
        """Build the mldd solver; options of what is nested in it have the prefix of `solver`.

        Parameters
        ----------
        solver : PETSc.TAO or PETSc.SNES
            The object that asks.

        Raises
        ------
        RuntimeError
            There is no run of the command line around it.
        """
        with _guarded(solver):
            builder = current()
            if builder is None:
                raise RuntimeError(
                    f"{__name__}.{self._name} needs a problem, got none; use the command line "
                    "(mldd train), or createPython(TaoSolver(solver, objective))"
                )
            made = builder.solver(solver_spec(self._name), solver.getOptionsPrefix() or "")
            self._context = TaoSolver(made) if isinstance(solver, load_petsc().TAO) else SnesSolver(made)

    def __getattr__(self, name: str) -> Any:
        """Answer for the context."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._context, name)


def __getattr__(name: str) -> Any:
    """Return what makes the context of the solver `name`, with ``_`` for ``-``."""
    known = name.replace("_", "-")
    if known not in SOLVERS:
        raise AttributeError(f"module {__name__} has no solver {name!r}; `mldd list` names them")
    return lambda: Named(known)


@cache
def _stage(name: str) -> Any:
    return load_petsc().Log.Stage(f"mldd {name}")


def _around(solver: Any) -> PetscProblem | None:
    """Return the run of mldd that `solver` belongs to, if any."""
    return solver.appctx if isinstance(solver.appctx, PetscProblem) else None


@contextmanager
def _guarded(solver: Any) -> Iterator[None]:
    """Keep the exception that leaves the block for the run around it, if any."""
    problem = _around(solver)
    with nullcontext() if problem is None else problem.guarded():
        yield


def _lost(solver: Any) -> None:
    problem = _around(solver)
    if problem is not None:
        problem.finite = False


def _learn(solver: Any, x: Tensor, g: Tensor) -> None:
    problem = _around(solver)
    if problem is not None:
        problem.learn(x, g)


def _recalling(solver: Any, objective: Objective, x: Tensor) -> Remembered:
    """Return the objective with what the run around `solver` knows of its gradient at `x`."""
    f, problem = Remembered(objective), _around(solver)
    g = None if problem is None or objective is not problem.plain else problem.known_at(x)
    if g is not None:
        f.keep(x, g)
    return f


def _shifted(objective: Objective, b: Any, x: Tensor) -> Objective:
    """Return ``f(x) - <b, x>``."""
    if b is None or not b or b.norm() == 0.0:
        return objective
    return Corrected(objective, read(b, torch.empty_like(x)).neg_(), torch.zeros_like(x))
