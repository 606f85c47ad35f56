"""What a solver is: hyper-parameters with two methods, and a state that has all of its memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

from mldd.algebra import Objective
from mldd.loop.status import Status


@dataclass
class State:
    """What every solver's state has; all memory of a solver lives in its state.

    Attributes
    ----------
    step : int
        Outer steps done; the loop counts them.
    level : int
        Coarsest level visited by the last step.
    accepted, rejected : int
        Corrections accepted and rejected so far.
    status : Status or None
        Set by a solver that cannot go on; where ranks differ, all stop for the first of their reasons.
    notes : dict
        How often something happened that a user should know of, as in ``{"negative curvature": 3}``.
    """

    step: int = 0
    level: int = 0
    accepted: int = 0
    rejected: int = 0
    status: Status | None = None
    notes: dict[str, int] = field(default_factory=dict)

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse what is no field: a checkpoint would not have it, and a resumed run would go on without it."""
        if name not in self.__dataclass_fields__:
            raise AttributeError(
                f"a state must have its memory in fields, got {type(self).__name__}.{name}; declare it in a dataclass "
                f"of its own, `class MyState(State)` with `{name}: ...`"
            )
        object.__setattr__(self, name, value)

    def forget(self) -> None:
        """Make no pair of gradients of two functions: called where the next one is of another sample or local model."""

    def note(self, what: str, times: int = 1) -> None:
        """Add to the `notes`.

        Parameters
        ----------
        what : str
            What happened.
        times : int
            How often.
        """
        if times:
            self.notes[what] = self.notes.get(what, 0) + times


class Solver(Protocol):
    """Frozen hyper-parameters with two methods. `step` may write to `x`, and returns the iterate it reached.

    Four class attributes say more. ``batched = True``: it takes (p, m) tensors of p independent vectors.
    ``entrywise = True``: it moves each unknown by the gradient there alone, whatever the others do.
    ``needs_gradient = False``: it never asks for the gradient of the whole, which `minimise` then evaluates for the
    user's eyes only. ``needs_value = True``: it asks for the value where it asks for a gradient, so that both are
    evaluated together.
    """

    def init(self, objective: Objective, x: Tensor) -> Any:
        """Return the state to start from.

        Parameters
        ----------
        objective : Objective
            What is minimised.
        x : Tensor, shape (n,)
            The start.
        """
        ...

    def step(self, objective: Objective, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Do one outer step; return the iterate and the state.

        Parameters
        ----------
        objective : Objective
            What is minimised; asking for the gradient at `x` again costs nothing.
        x : Tensor, shape (n,)
            The iterate, which may be written to.
        state : State
            What the step before has left.
        """
        ...


def is_solver(thing: object) -> bool:
    """Return whether something has the methods of a solver, and is no class that solvers are made of.

    Parameters
    ----------
    thing : object
        Anything.
    """
    return hasattr(thing, "init") and hasattr(thing, "step") and not isinstance(thing, type)


def check_solver(thing: object) -> None:
    """Refuse what is no solver.

    Parameters
    ----------
    thing : object
        Anything.

    Raises
    ------
    ValueError
        It lacks `init` or `step`, or is a class.
    """
    if isinstance(thing, type):
        raise ValueError(f"`solver` must be an object, got the class {thing.__name__}; write {thing.__name__}(...)")
    if not is_solver(thing):
        got = repr(thing) if isinstance(thing, str) else type(thing).__name__
        raise ValueError(
            f"`solver` must have init(objective, x) and step(objective, x, state), got {got}; take LBFGS()"
        )


def checked_state(solver: object, state: Any) -> Any:
    """Return what `init` of a solver has returned, refusing what the loop can keep no books with.

    Parameters
    ----------
    solver : Solver
        Whose state it is.
    state : object
        What it has returned.

    Raises
    ------
    ValueError
        It is no `State`.
    """
    if not all(hasattr(state, name) for name in State.__dataclass_fields__):
        raise ValueError(
            f"init of {type(solver).__name__} must return a mldd.State, got {type(state).__name__}; return State(), or "
            "a dataclass that derives from it"
        )
    return state


def checked_step(solver: object, made: object, x: Tensor) -> tuple[Tensor, Any]:
    """Return what `step` of a solver has returned, refusing anything but an iterate and a state.

    Parameters
    ----------
    solver : Solver
        Whose step it was.
    made : object
        What it has returned.
    x : Tensor, shape (n,)
        An iterate before it.

    Raises
    ------
    ValueError
        It is no pair, or the iterate no tensor like x.
    """
    name = type(solver).__name__
    if not isinstance(made, tuple) or len(made) != 2:
        raise ValueError(f"step of {name} must return iterate and state, got {type(made).__name__}; return x, state")
    y, state = made
    if not isinstance(y, Tensor) or y.shape != x.shape or y.dtype != x.dtype:
        got = f"{y.dtype} {tuple(y.shape)}" if isinstance(y, Tensor) else type(y).__name__
        raise ValueError(f"step of {name} must return an iterate of {x.dtype} {tuple(x.shape)}, got {got}")
    return y, checked_state(solver, state)
