"""Validation during a run: numbers for the history, the best iterate, and the patience after which a run is ended."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mldd.algebra import did_you_mean
from mldd.ranks import SERIAL, Communicator

_GROWING = {"accuracy", "auc", "skill"}  # words of names whose larger values are better


@dataclass
class Validation:
    """Numbers over data that are not trained on, at intervals; it costs seconds, which are counted here, and no work.

    Parameters
    ----------
    measures : callable
        ``measures(x)`` returns numbers by name, the loss first; all ranks call it together.
    every : int
        Outer steps between two validations; the start and the end of a run have one, too.
    patience : int
        Validations in a row without a new lowest loss after which the run is ended; 0 for never.
    chosen : str
        Name of the number by which the best iterate is known; by default the loss.
    best : Tensor, shape (n,), optional
        The best iterate so far.
    step : int
        Outer steps after which it was reached.
    value : float
        Its number.
    lowest : float
        Lowest loss so far.
    waited : int
        Validations since.
    times : int
        Validations so far.
    seconds : float
        Wall time that they have taken.
    """

    measures: Callable[[Tensor], Mapping[str, float]]
    every: int = 1
    patience: int = 0
    chosen: str = ""
    best: Tensor | None = None
    step: int = 0
    value: float = math.nan
    lowest: float = math.inf
    waited: int = 0
    times: int = 0
    seconds: float = 0.0

    def is_due(self, step: int, is_last: bool) -> bool:
        """Return whether there is a validation after a step.

        Parameters
        ----------
        step : int
            Outer steps done.
        is_last : bool
            Whether the run ends with it.
        """
        return is_last or step % self.every == 0

    @property
    def is_exhausted(self) -> bool:
        """Whether the loss has not come down for as long as the patience says."""
        return 0 < self.patience <= self.waited

    def see(self, x: Tensor, step: int, comm: Communicator = SERIAL) -> dict[str, float]:
        """Validate an iterate, keep it if it is the best, and return the numbers: those of rank 0 on all ranks.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        step : int
            Outer steps done.
        comm : Communicator
            The ranks.

        Raises
        ------
        ValueError
            There is no number of the chosen name.
        """
        begin = time.perf_counter()
        found = dict(self.measures(x))
        told = comm.sum_scalars([float(v) if comm.rank == 0 else 0.0 for v in found.values()])
        numbers = dict(zip(found, told, strict=True))
        chosen = self.chosen or next(iter(numbers))
        if chosen not in numbers:
            raise ValueError(
                f"`best` must be by one of {', '.join(numbers)}{did_you_mean(chosen, numbers)}, got {chosen!r}; "
                "choose another"
            )
        if self.best is None or _is_better(chosen, numbers[chosen], self.value):
            self.best, self.step, self.value = x.clone(), step, numbers[chosen]
        loss = next(iter(numbers.values()))
        self.lowest, self.waited = (loss, 0) if loss < self.lowest else (self.lowest, self.waited + 1)
        self.chosen, self.times = chosen, self.times + 1
        self.seconds += time.perf_counter() - begin
        return numbers

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint keeps: all but the options."""
        names = ("best", "step", "value", "lowest", "waited", "times", "seconds", "chosen")
        return {name: getattr(self, name) for name in names}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what a checkpoint has kept; the best by another number is not known any more.

        Parameters
        ----------
        state : dict
            What `state` has returned.
        """
        for name in ("lowest", "waited", "times", "seconds"):
            setattr(self, name, state[name])
        if self.chosen in ("", state["chosen"]):
            self.best, self.step, self.value, self.chosen = (
                state[name] for name in ("best", "step", "value", "chosen")
            )


def _is_better(name: str, value: float, before: float) -> bool:
    if math.isnan(before):
        return not math.isnan(value)
    return value > before if grows(name) else value < before


def grows(name: str) -> bool:
    """Return whether larger values of a number are better: of an accuracy, an area under a curve, or a skill.

    Parameters
    ----------
    name : str
        Words joined by underscores, ``validation_accuracy`` say.
    """
    return bool(_GROWING & set(name.split("_")))
