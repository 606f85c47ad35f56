"""Which samples a mini-batch consists of: the same on every rank, from nothing but numbers."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor


@lru_cache(maxsize=16)
def _permutation(samples: int, *key: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(key).permutation(samples))


def subset(samples: int, count: int, *key: int) -> Tensor:
    """Return some different numbers below `samples`, shape (count,), int64.

    Parameters
    ----------
    samples : int
        Number of samples to choose from.
    count : int
        How many are drawn.
    key : int
        Seeds; the same ones give the same numbers.
    """
    return torch.from_numpy(np.random.default_rng(key).choice(samples, count, replace=False))


def pieces(rows: Tensor, parts: int, overlap: int = 0) -> list[Tensor]:
    """Return consecutive pieces of `rows` of nearly equal length, each widened by `overlap` on both sides.

    Parameters
    ----------
    rows : Tensor, shape (n,)
        What is cut.
    parts : int
        Number of pieces.
    overlap : int
        Rows that are added on either side, as far as there are any.

    Examples
    --------
    >>> [piece.tolist() for piece in pieces(torch.arange(5), 2, overlap=1)]
    [[0, 1, 2], [1, 2, 3, 4]]
    """
    n = len(rows)
    cuts = [k * n // parts for k in range(parts + 1)]
    return [rows[max(0, a - overlap) : min(n, b + overlap)] for a, b in zip(cuts, cuts[1:], strict=False)]


def shares_of(rows: Sequence[Sized]) -> Tensor:
    """Return how many of all rows each set has, shape (parts,), float64: weights of mean losses in that over all.

    Parameters
    ----------
    rows : sequence of Tensor
        What every part has.
    """
    lengths = torch.tensor([float(len(of_part)) for of_part in rows], dtype=torch.float64)
    return lengths / lengths.sum()


@dataclass(frozen=True)
class MiniBatches:
    """Mini-batches that pass through a permutation of the samples, a new one per epoch, without replacement.

    Epoch e has batches of ``b_e = min(samples, floor(batch growth^e))`` samples, ``floor(samples / b_e)`` of them (the
    rest of the permutation waits for the next one). When ``b_e = samples``, every step sees all samples.

    Parameters
    ----------
    samples, batch : int
        Samples of all ranks.
    growth : float
        Factor per epoch, >= 1.
    key : tuple of int
        Seeds; other keys give independent batches.

    Examples
    --------
    >>> growing = MiniBatches(samples=8, batch=2, growth=2.0)
    >>> [len(growing.rows(step)) for step in range(8)]
    [2, 2, 2, 2, 4, 4, 8, 8]
    """

    samples: int
    batch: int
    growth: float = 1.0
    key: tuple[int, ...] = ()

    def _place(self, step: int) -> tuple[int, int, int]:
        """Return the epoch of a step, its number in that epoch, and the size of its batch."""
        epoch, size = 0, float(self.batch)
        while int(size) < self.samples:
            steps = self.samples // int(size)
            if step < steps or self.growth == 1.0:
                return epoch + step // steps, step % steps, int(size)
            epoch, size, step = epoch + 1, size * self.growth, step - steps
        return epoch + step, 0, self.samples

    def rows(self, step: int) -> Tensor:
        """Return the numbers of the samples of an outer step, shape (b,), int64.

        Parameters
        ----------
        step : int
            Number of the step, from 0.
        """
        epoch, position, size = self._place(step)
        if size == self.samples:
            return torch.arange(size)
        return _permutation(self.samples, *self.key, epoch)[position * size : (position + 1) * size]
