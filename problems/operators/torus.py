"""Nodes of a torus: neighbours, places, and parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from mldd.problems.operators.local_graphs import Cut, Floats, Ints, metis_parts


@dataclass(frozen=True)
class Torus:
    """A torus of n x n nodes with four neighbours each, numbered row by row.

    Parameters
    ----------
    n : int
        Nodes of a side.
    spacing : float
        Distance of neighbours.

    Raises
    ------
    ValueError
        Fewer than 3 nodes of a side.
    """

    n: int
    spacing: float = 1.0

    def __post_init__(self) -> None:
        """Refuse a torus on which neighbours meet."""
        if self.n < 3:
            raise ValueError(f"`n` must be >= 3, so that a node has four neighbours, got {self.n}")

    derivatives = ()
    axes = "y", "x"

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return self.n**2

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.n, self.n

    @cached_property
    def places(self) -> Floats:
        """Place of every node, shape (n^2, 2)."""
        return self.spacing * np.argwhere(np.ones((self.n, self.n))).astype(np.float64)

    @cached_property
    def matrix(self) -> Any:
        """Ones at neighbours, a csr_matrix of shape (n^2, n^2)."""
        number = np.arange(self.nodes).reshape(self.n, self.n)
        pairs = [(number, np.roll(number, step, axis)) for axis in (0, 1) for step in (1, -1)]
        rows, columns = (np.concatenate([pair[k].ravel() for pair in pairs]) for k in (0, 1))
        return sp.csr_matrix((np.ones(len(rows)), (rows, columns)), shape=(self.nodes, self.nodes))

    def parts(self, parts: int, cut: Cut, seed: int = 0) -> Ints:
        """Return the part of every node: a grid of rectangles as near to squares as the number of parts allows.

        Parameters
        ----------
        parts : int
            Number of parts.
        cut : {"auto", "rectangles", "metis"}
            METIS, or rectangles.
        seed : int
            Of METIS.

        Raises
        ------
        ValueError
            More rectangles than rows of nodes.
        """
        if cut == "metis":
            return metis_parts(self.matrix, parts, seed)
        down = max(k for k in range(1, int(np.sqrt(parts)) + 1) if parts % k == 0)
        across = parts // down
        if across > self.n:
            raise ValueError(
                f"{parts} parts are {down} x {across} rectangles, which {self.n} x {self.n} nodes do not have; use "
                "another number of parts, or cut=metis"
            )
        places = np.arange(self.n)
        row, column = (((places + 1) * count - 1) // self.n for count in (down, across))
        return np.asarray((row[:, None] * across + column[None]).ravel(), dtype=np.int64)
