"""How the halos of a graph in shards are exchanged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from mldd.algebra import check_choices
from mldd.ranks import Messages

_CHOICES = {"halo": ("exact", "stale", "history", "sampled", "int8", "bfloat16"), "messages": ("auto", "mpi", "petsc")}


@dataclass(frozen=True)
class Halos:
    """What gradients are computed with in the place of rows of other ranks, and what carries them.

    Values for the user, metrics and Hessian products are exact. Which rows other ranks have depends on the number of
    ranks, and with inexact halos the training does.

    Parameters
    ----------
    halo : {"exact", "stale", "history", "sampled", "int8", "bfloat16"}
        Exact halos, or with less communication rows of `lag` steps ago, rows fetched every `lag` steps, a share `keep`
        of the rows, or rows of fewer bits: see `mldd.problems.graphs.inexact_halo`.
    lag : int
        Outer steps that stale rows are old.
    smoothing : float
        Of stale rows.
    keep : float
        Share of the rows of a sampled halo that is exchanged.
    messages : {"auto", "mpi", "petsc"}
        What carries halos: see `mldd.ranks.messages`.

    Raises
    ------
    ValueError
        Values out of range.
    """

    halo: Literal["exact", "stale", "history", "sampled", "int8", "bfloat16"] = "exact"
    lag: int = 1
    smoothing: float = 0.0
    keep: float = 0.5
    messages: Messages = "auto"

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_choices(self, _CHOICES)
        if self.lag < (1 if self.halo == "history" else 0):
            raise ValueError(f"`lag` must be >= 0, and >= 1 for a history, got {self.lag}")
        if not 0 <= self.smoothing < 1:
            raise ValueError(f"`smoothing` must be in [0, 1), got {self.smoothing}")
        if not 0 < self.keep <= 1:
            raise ValueError(f"`keep` must be in (0, 1], got {self.keep}")

    @property
    def told(self) -> str:
        """What the halos of gradients are, in words."""
        return {
            "exact": "exact",
            "stale": f"inexact: rows and gradients of {self.lag} steps ago, smoothing {self.smoothing}",
            "history": f"inexact: rows fetched every {self.lag} steps, no gradients sent back",
            "sampled": f"inexact: a random share {self.keep} of the rows, divided by it",
            "int8": "inexact: rows and gradients in 8 bits, rounded at random",
            "bfloat16": "inexact: rows and gradients in bfloat16, rounded at random",
        }[self.halo]
