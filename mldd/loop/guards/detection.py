"""How a run looks for silent errors, and what is about to be done with an iterate that is looked at."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Detection:
    """How a run looks for silent errors.

    A check compares the bits of iterate and state with those after the step before, the ranks with each other, and what
    solvers declare of their states (`FINITE`, `REPLICATED`, `RISING`, and records with ``fault()``). Checks are made as
    often as `share` allows, before each checkpoint and at the end. A gradient by which a run claims to have converged,
    that is not finite or ten times that of the step before, is evaluated once more; where it stays ten times as large
    in a run that is verified, the steps since the last copy are done again without a word, at most three times in a
    run, and a measure that is another one then was an error. Other runs do no step twice, so that what they cost does
    not depend on when there was time for a copy.

    Parameters
    ----------
    share : float
        Share of the run's time that checks may take; 0: none are made.
    verify_every : int
        Steps between two verifications, at which the gradient is evaluated again and compared with a difference of
        values as well, and checks are made at every step; 0: no verifications.
    most_bytes : int
        Most memory for the copy of iterate and state to which a run goes back; where they are larger, a run ends when
        an error is found.

    References
    ----------
    Aupy, Benoit, Herault, Robert, Vivien, Zaidouni, On the combination of silent error detection and checkpointing,
    PRDC 2013, hal-00836871: checkpoints are to be verified before they are written, and checks more frequent than
    checkpoints. Checks with a certain cost C here have the period C / share, in memory.
    """

    share: float = 0.01
    verify_every: int = 0
    most_bytes: int = 2**30

    def __post_init__(self) -> None:
        """Refuse what cannot be meant."""
        if not 0 <= self.share <= 1:
            raise ValueError(f"`share` must be from 0 to 1, got {self.share}")
        for name in ("verify_every", "most_bytes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"`{name}` must be >= 0, got {getattr(self, name)}")

    @property
    def is_off(self) -> bool:
        """Whether nothing is looked for."""
        return self.share == 0 and self.verify_every == 0


@dataclass(frozen=True)
class Ending:
    """What is about to be done with an iterate.

    Attributes
    ----------
    is_last : bool
        The run ends with it.
    is_claim : bool
        It is said to be a solution, by its gradient.
    is_written : bool
        It goes to a checkpoint.
    is_diverged : bool
        It is said to have diverged.
    """

    is_last: bool = False
    is_claim: bool = False
    is_written: bool = False
    is_diverged: bool = False
