"""Copies of a run in memory, to which it goes back after a silent error."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.loop import History, Validation
from mldd.loop.guards.invariants import checksum, sums_of_bits, tensors_of


@dataclass(frozen=True)
class Snapshot:
    """The last iterate and state that have passed all checks.

    Attributes
    ----------
    x, state
        The copies.
    seal : int
        Their checksum: the copy lies in memory for long.
    records : int
        Length of the history.
    validation : dict
        State of the validation.
    random : tuple
        States of the global generators.
    memory : object
        What the samples of the objective remember.
    """

    x: Tensor
    state: Any
    seal: int
    records: int
    validation: dict[str, Any]
    random: tuple[Tensor, Any]
    memory: Any

    @staticmethod
    def of(x: Tensor, state: Any, seal: int, history: History, validation: Validation | None, memory: Any) -> Snapshot:
        """Return a copy of a run.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The iterate.
        state : State
            Of the solver.
        seal : int
            Checksum of both.
        history : History
            All records, the one of this step included.
        validation : Validation or None
            That of the run.
        memory : object
            What the samples of the objective remember; it is not copied.
        """
        said = {} if validation is None else validation.state()
        random = torch.get_rng_state(), np.random.get_state()
        return Snapshot(x.clone(), copy.deepcopy(state), seal, len(history.records), said, random, memory)

    @property
    def is_damaged(self) -> bool:
        """Whether the copy itself has other bits than when it was made."""
        return checksum(sums_of_bits(tensors_of(self.x, self.state))) != self.seal

    def iterate(self) -> tuple[Tensor, Any]:
        """Return iterate and state as new copies, and set the global generators back."""
        torch.set_rng_state(self.random[0])
        np.random.set_state(self.random[1])
        return self.x.clone(), copy.deepcopy(self.state)

    def rewind(self, history: History, validation: Validation | None) -> None:
        """Drop what history and validation know of the steps behind the copy.

        Parameters
        ----------
        history : History
            All records of the run.
        validation : Validation or None
            That of the run.
        """
        del history.records[self.records :]
        if validation is not None:
            for name, value in self.validation.items():
                setattr(validation, name, value)
