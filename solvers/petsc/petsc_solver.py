"""PETSc solvers one iteration at a time: a run inside a greenlet that the loop of mldd stops and resumes.

PETSc owns its loop, and so does `mldd.minimise`. The two are joined by a greenlet, a coroutine with a stack of its own
on the same thread: PETSc's solver runs inside it and switches back to the caller at the end of every iteration. So
every solver is stopped by the same test and timed by the same clock.
"""

from __future__ import annotations

import contextvars
import importlib
import weakref
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mldd.algebra import DIFFERENCES, Objective, remember, way_to_install
from mldd.loop import State, Status
from mldd.ranks import load_petsc, read
from mldd.solvers.petsc.petsc_problem import PetscProblem


def greenlets() -> Any:
    """Return the module ``greenlet``.

    Raises
    ------
    ImportError
        It is missing.
    """
    try:
        return importlib.import_module("greenlet")
    except ImportError as error:
        raise ImportError(
            f"PETSc's solvers as solvers of mldd need greenlet ({error}); {way_to_install('greenlet')}"
        ) from error


class Session:
    """One run of a PETSc solver inside a greenlet.

    Parameters
    ----------
    problem : PetscProblem
        PETSc's solver, set up.
    """

    def __init__(self, problem: PetscProblem) -> None:
        self._greenlet = greenlets()
        self.problem = problem
        self._coroutine = self._greenlet.greenlet(problem.run)
        self._iteration = 0
        self._ending = False
        problem.hand_over(self._end_of_iteration)

    def _end_of_iteration(self, iteration: int) -> bool:
        """Switch to the caller after a new iteration; return whether to end."""
        if iteration > self._iteration and not self._ending:
            self._iteration = iteration
            self._coroutine.parent.switch()
        return self._ending

    @property
    def ended(self) -> bool:
        """Whether PETSc has left its loop."""
        return bool(self._coroutine.dead)

    def _resume(self) -> None:
        self._coroutine.parent = self._greenlet.getcurrent()
        # A greenlet has context variables of its own; the ledger of costs is one.
        self._coroutine.gr_context = contextvars.copy_context()
        self._coroutine.switch()

    def advance(self) -> None:
        """Run to the end of the next iteration, or to the end of PETSc's loop."""
        try:
            self._resume()
        except BaseException:
            self.problem.destroy()
            raise

    def end(self) -> None:
        """Let PETSc leave its loop by its own door, and free what it holds."""
        self._ending = True
        if self._coroutine and not self.ended:
            try:
                self._resume()
            except self._greenlet.error:  # the collector runs in another thread: its memory is lost, nothing else
                return
        self.problem.destroy()


class SessionHandle:
    """What a state holds of a session: when the state goes, or Python ends, the session is ended.

    Parameters
    ----------
    session : Session
        The run that is held.
    """

    def __init__(self, session: Session) -> None:
        self.session = session
        self.end = weakref.finalize(self, session.end)
        self._x: Tensor | None = None
        self._version = -1

    def hand_out(self, x: Tensor) -> None:
        """Note that `x` is the iterate that the caller has got.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.
        """
        self._x, self._version = x, x._version

    def stands_at(self, x: Tensor) -> bool:
        """Return whether `x` is that iterate, and not written to since.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The point.
        """
        return x is self._x and x._version == self._version

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a run inside PETSc cannot be copied or saved, its memory belongs to PETSc; "
            "run it to its end, or use a solver with a state of its own (lbfgs, adagrad)"
        )


@dataclass
class PetscState(State):
    """State of a solver of PETSc.

    Attributes
    ----------
    run : object or None
        The running solver; it can be neither copied nor saved.
    reason : int
        PETSc's converged reason once it has stopped by itself, else 0.
    resumable : bool
        False: this state cannot be written to a checkpoint.
    """

    run: Any = None
    reason: int = 0
    resumable: bool = False


class PetscSolver(ABC):
    """A solver of PETSc as an mldd solver: one step is one of its iterations."""

    @abstractmethod
    def _problem(self, objective: Objective, x: Tensor) -> PetscProblem:
        """Return PETSc's solver, set up for `objective` at `x`."""

    def init(self, objective: Objective, x: Tensor) -> PetscState:
        """Return the state of a run that is set up.

        Raises
        ------
        ImportError
            PETSc or greenlet is missing.
        ValueError
            The method does not fit the objective, see `TaoProblem` and `SnesProblem`.
        """
        load_petsc()
        greenlets()
        run = SessionHandle(Session(self._problem(objective, x)))
        run.hand_out(x)
        return PetscState(run=run)

    def step(self, objective: Objective, x: Tensor, state: PetscState) -> tuple[Tensor, PetscState]:
        """Do one iteration of PETSc and write the iterate to `x`; PETSc is set up anew where no run stands at `x`.

        Raises
        ------
        ValueError
            The method does not fit the objective, see `TaoProblem` and `SnesProblem`.
        RuntimeError
            PETSc reports an error.
        """
        if state.run is not None and not state.run.stands_at(x):
            state.run.end()
            state.run = None
        if state.run is None:
            state.run = SessionHandle(Session(self._problem(objective, x)))
        run = state.run
        session, problem = run.session, run.session.problem
        problem.renew(objective, x)
        session.advance()
        state.note(DIFFERENCES, int(problem.by_differences))
        if problem.finite:
            read(problem.solution, x)
            g = problem.known_at_solution(x)
            if g is not None:
                remember(objective, x, g)
        inner = problem.inner
        if inner is not None:
            state.level, state.accepted, state.rejected = inner.level, inner.accepted, inner.rejected
        if session.ended:
            state.reason = int(problem.solver.getConvergedReason())
            own = Status.stalled if problem.finite else Status.diverged
            state.status = own if inner is None or inner.status is None else inner.status
            run.end()
            state.run = None
        else:
            run.hand_out(x)
        return x, state
