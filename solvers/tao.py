"""Any TAO solver of PETSc as an mldd solver: one step is one TAO iteration.

TAO owns its loop, and so does `mldd.minimise`. The two are joined by a greenlet, a coroutine with a stack of its own
on the same thread: ``tao.solve()`` runs inside it and switches back to the caller at the end of every iteration. So
every solver is stopped by the same test and timed by the same clock. PETSc counts levels from the coarsest, mldd from
the finest.
"""

from __future__ import annotations

import contextvars
import importlib
import weakref
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mldd.objective import Objective, remember
from mldd.petsc import TaoProblem, petsc, read
from mldd.solver import State, Status

_UNLIMITED = 2**31 - 1


def _greenlet() -> Any:
    try:
        return importlib.import_module("greenlet")
    except ImportError as error:
        raise ImportError(f"tao:TYPE needs greenlet ({error}); install it with `pip install greenlet`") from error


class _Session:
    """One ``tao.solve()`` inside a greenlet."""

    def __init__(self, objective: Objective, x: Tensor, type: str, prefix: str) -> None:  # noqa: A002
        self._greenlet = _greenlet()
        self.problem = TaoProblem(objective, x, type, prefix)
        self._coroutine = self._greenlet.greenlet(self.problem.solve)
        self._iteration = 0
        self._ending = False
        self.reason = 0
        self._leave_stopping_to_the_loop(self.problem.tao)

    def _leave_stopping_to_the_loop(self, tao: Any) -> None:
        """Switch off TAO's tolerances and limits, after its options were read. A failed line search still ends it."""
        tao.setTolerances(gatol=0.0, grtol=0.0, gttol=0.0)
        tao.setMaximumIterations(_UNLIMITED)
        tao.setMaximumFunctionEvaluations(_UNLIMITED)
        tao.setConvergenceTest(self._end_of_iteration)  # petsc4py calls it after TAO's own test

    def _end_of_iteration(self, tao: Any) -> None:
        """Switch to the caller: TAO calls this once or more at the start (iteration 0) and after every iteration."""
        if tao.getIterationNumber() > self._iteration and tao.getConvergedReason() == 0:
            self._iteration = tao.getIterationNumber()
            self._coroutine.parent.switch()
        if self._ending:
            tao.setConvergedReason(petsc().TAO.ConvergedReason.CONVERGED_USER)

    @property
    def ended(self) -> bool:
        """Whether TAO has left its loop."""
        return bool(self._coroutine.dead)

    def _resume(self) -> None:
        self._coroutine.parent = self._greenlet.getcurrent()
        # A greenlet has context variables of its own; the ledger of costs is one.
        self._coroutine.gr_context = contextvars.copy_context()
        self._coroutine.switch()

    def advance(self) -> None:
        """Run to the end of the next iteration, or to the end of TAO."""
        try:
            self._resume()
        except BaseException:
            self.problem.destroy()
            raise
        if self.ended:
            self.reason = int(self.problem.tao.getConvergedReason())

    def end(self) -> None:
        """Let TAO leave its loop by its own door, and free what it holds."""
        self._ending = True
        if self._coroutine and not self.ended:
            try:
                self._resume()
            except self._greenlet.error:  # the collector runs in another thread: its memory is lost, nothing else
                return
        self.problem.destroy()


class _Run:
    """What a state holds of a session: when the state goes, or Python ends, the session is ended."""

    def __init__(self, session: _Session) -> None:
        self.session = session
        self.end = weakref.finalize(self, session.end)
        self._x: Tensor | None = None
        self._version = -1

    def hand_out(self, x: Tensor) -> None:
        """Note that `x` is the iterate that the caller has got."""
        self._x, self._version = x, x._version

    def stands_at(self, x: Tensor) -> bool:
        """Say whether `x` is that iterate, and not written to since."""
        return x is self._x and x._version == self._version

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise TypeError(
            "a run inside TAO cannot be copied or saved, its memory belongs to PETSc; "
            "run it to its end, or use a solver with a state of its own (lbfgs, adagrad)"
        )


@dataclass
class TaoState(State):
    """State of `Tao`.

    Attributes
    ----------
    run : object or None
        The running TAO solver; it can be neither copied nor saved.
    reason : int
        TAO's converged reason once it has stopped by itself, else 0.
    resumable : bool
        False: this state cannot be written to a checkpoint.
    """

    run: Any = None
    reason: int = 0
    resumable: bool = False


@dataclass(frozen=True)
class Tao:
    """Any TAO solver, one iteration per step.

    The loop that calls `step` decides when to stop; TAO's own tolerances and limits (``-tao_gatol``, ``-tao_max_it``)
    have no effect. Where TAO stops by itself, the state says `Status.stalled`. If the iterate is changed between two
    steps, TAO starts anew from there. A stochastic objective is evaluated with the sample of the step, but TAO
    compares gradients of different samples: use it on deterministic objectives. The state cannot be saved
    (``resumable`` is False). Every rank runs the same TAO solver on its own; what is distributed is the objective.

    Parameters
    ----------
    type : str
        TAO's name of the method. With bounds ``blmvm bqnls bqnkls bqnktr bqnktl bncg`` and, for an objective with
        ``hessian_product``, ``bnls bntr bntl tron``; without bounds also ``lmvm cg`` and ``nls ntr ntl``.
    prefix : str
        Of its options in PETSc's database: ``-<prefix>tao_view``.

    References
    ----------
    Balay et al., PETSc/TAO Users Manual, ANL-21/39; Benson and More, ANL/MCS-P909-0901 (2001): blmvm.
    """

    type: str = "blmvm"
    prefix: str = ""

    def init(self, objective: Objective, x: Tensor) -> TaoState:
        """Return an empty state.

        Raises
        ------
        ImportError
            PETSc or greenlet is missing.
        ValueError
            The method does not fit the objective, see `mldd.petsc.TaoProblem`.
        """
        petsc()
        _greenlet()
        TaoProblem(objective, x, self.type, self.prefix).destroy()
        return TaoState()

    def step(self, objective: Objective, x: Tensor, state: TaoState) -> tuple[Tensor, TaoState]:
        """Do one TAO iteration and write the iterate to `x`.

        Raises
        ------
        ValueError
            The method does not fit the objective, see `mldd.petsc.TaoProblem`.
        RuntimeError
            PETSc reports an error.
        """
        if state.run is not None and not state.run.stands_at(x):
            state.run.end()
            state.run = None
        if state.run is None:
            state.run = _Run(_Session(objective, x, self.type, self.prefix))
        run = state.run
        session, problem = run.session, run.session.problem
        problem.objective = objective
        session.advance()
        if problem.finite:
            read(problem.solution, x)
            g = problem.known_at(x)
            if g is not None:
                remember(objective, x, g)
        if session.ended:
            state.reason = session.reason
            state.status = Status.stalled if problem.finite else Status.diverged
            run.end()
            state.run = None
        else:
            run.hand_out(x)
        return x, state
