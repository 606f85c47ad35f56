"""Levels and hierarchies: plain records that functions in `mldd.problems` build."""

from __future__ import annotations

from dataclasses import dataclass

from mldd.algebra.objective import Objective
from mldd.algebra.transfer import Transfer


@dataclass(frozen=True)
class Level:
    """One level; it does not know its neighbours.

    Parameters
    ----------
    objective : Objective
        The level's own model of the problem.
    transfer : Transfer or None
        From the next finer level to this one, None on level 0 (the finest).
    work : float
        Cost of one gradient in units of a fine one (for the table).
    """

    objective: Objective
    transfer: Transfer | None = None
    work: float = 1.0


@dataclass(frozen=True)
class Hierarchy:
    """Levels from the finest (0) to the coarsest.

    Parameters
    ----------
    levels : tuple of Level
        The finest first.

    Raises
    ------
    ValueError
        No level, a transfer missing, or sizes that do not fit.
    """

    levels: tuple[Level, ...]

    def __post_init__(self) -> None:
        """Check that the sizes of neighbours fit."""
        if not self.levels:
            raise ValueError("a hierarchy needs at least one level, got none")
        for k, (fine, coarse) in enumerate(zip(self.levels, self.levels[1:], strict=False), 1):
            expected = (fine.objective.size, coarse.objective.size)
            got = None if coarse.transfer is None else coarse.transfer.shape
            if got != expected:
                raise ValueError(f"the transfer of level {k} must have shape {expected}, got {got}")

    def __len__(self) -> int:
        return len(self.levels)

    def __getitem__(self, k: int) -> Level:
        return self.levels[k]

    def __str__(self) -> str:
        """Return a table: level, unknowns, cost of a gradient, operator complexity below."""
        rows = [f"{'level':>5} {'unknowns':>10} {'work':>9}  transfer"]
        for k, level in enumerate(self.levels):
            name = "-" if level.transfer is None else type(level.transfer).__name__
            rows.append(f"{k:>5} {level.objective.size:>10} {level.work:>9.4f}  {name}")
        total = sum(level.objective.size for level in self.levels) / self.levels[0].objective.size
        return "\n".join([*rows, f"grid complexity {total:.3f}"])
