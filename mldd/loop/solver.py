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
