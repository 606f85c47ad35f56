"""Levels and hierarchies: plain records that functions in `mldd.problems` build."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mldd.algebra.objective import Objective
from mldd.algebra.transfer import Transfer, carried


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
    lifting : Tensor, shape (n,), optional
        A smooth function with the boundary values, on this level: a coarse solution z is the fine function
        ``lifting + P (z - coarse lifting)``. Without one, it is told by what has changed since the start.
    """

    objective: Objective
    transfer: Transfer | None = None
    work: float = 1.0
    lifting: Tensor | None = None


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

    def injected(self, x: Tensor) -> list[Tensor]:
        """Return the iterate on all levels, each injected from the finer one, the finest first.

        Parameters
        ----------
        x : Tensor, shape (n,)
            On the finest level; it is the first of them, not a copy.
        """
        found = [x]
        for level in self.levels[1:]:
            assert level.transfer is not None  # noqa: S101 (checked above)
            found.append(level.transfer.inject(found[-1]))
        return found

    def refined(self, k: int, z: Tensor, starts: list[Tensor]) -> Tensor:
        """Return the iterate of level ``k - 1`` that stands for `z` of level `k`, which may leave the bounds.

        Parameters
        ----------
        k : int
            Number of the level, at least 1.
        z : Tensor, shape (m,)
            Its iterate.
        starts : list of Tensor
            What `injected` has returned for the start.
        """
        fine, coarse = self.levels[k - 1], self.levels[k]
        assert coarse.transfer is not None  # noqa: S101 (checked above)
        if coarse.lifting is None or fine.lifting is None:
            return carried(coarse.transfer, z, starts[k], starts[k - 1])
        return carried(coarse.transfer, z, coarse.lifting, fine.lifting)

    def __str__(self) -> str:
        """Return a table: level, unknowns, cost of a gradient, operator complexity below."""
        rows = [f"{'level':>5} {'unknowns':>10} {'work':>9}  transfer"]
        for k, level in enumerate(self.levels):
            name = "-" if level.transfer is None else type(level.transfer).__name__
            rows.append(f"{k:>5} {level.objective.size:>10} {level.work:>9.4f}  {name}")
        total = sum(level.objective.size for level in self.levels) / self.levels[0].objective.size
        return "\n".join([*rows, f"grid complexity {total:.3f}"])
