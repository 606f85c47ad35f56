"""Values of a rank's own cells, read from a data set of Anemoi at the times that are asked for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.problems.data import DataError
from mldd.problems.data.formats import AnemoiStore, damage_said
from mldd.ranks import SERIAL, Communicator, Halo

Ints = NDArray[np.int64]
Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class CellReader:
    """Reads variables of a data set at some of its cells, every chunk once per call.

    Where a chunk holds all cells, as `anemoi-datasets` writes them, no rank can read its own cells alone: every chunk
    is then read and decompressed by one rank, which hands the others their cells. A rank holds one whole chunk at a
    time.

    Parameters
    ----------
    store : AnemoiStore
        The data set.
    names : tuple of str
        Of the V variables.
    own : ndarray, shape (c,), int64
        Cells of this rank.
    comm : Communicator
        Ranks that read together: all of them call `read` with the same times.
    """

    store: AnemoiStore
    names: tuple[str, ...]
    own: Ints
    comm: Communicator = SERIAL

    @cached_property
    def is_dealt(self) -> bool:
        """Whether every chunk is read by one rank, which hands out its cells."""
        return self.comm.ranks > 1 and int(self.store.group["data"].chunks[3]) >= self.store.cells

    def read(self, times: Ints) -> Array:
        """Return the values, shape (c, t, V), float32; gaps and missing dates are NaN.

        Parameters
        ----------
        times : ndarray, shape (t,), int64
            Numbers of times, in any order, the same on all ranks.

        Raises
        ------
        DataError
            A chunk is damaged, or has infinite values.
        """
        wanted, places = np.unique(times, return_inverse=True)
        values = np.empty((len(self.own), len(wanted), len(self.names)), np.float32)
        with damage_said(self.store.where):
            for shares in self._rounds(wanted):
                if self.is_dealt:
                    self._deal(values, wanted, shares)
                else:
                    values[:, shares[0]] = self._read(wanted[shares[0]], self.own)
        values[:, self.store.missing[wanted]] = np.nan
        if np.isinf(values).any():
            name = self.names[int(np.argmax(np.isinf(values).any((0, 1))))]
            raise DataError(
                f"{self.store.where}: values must be finite or NaN, got infinite ones of {name}; make them NaN"
            )
        return values[:, places]

    def _rounds(self, wanted: Ints) -> Iterator[list[Ints]]:
        """Yield places among the wanted times, those of one chunk for every rank that reads one."""
        chunks = wanted // max(1, int(self.store.group["data"].chunks[0]))
        groups = [np.flatnonzero(chunks == chunk) for chunk in np.unique(chunks)]
        readers = self.comm.ranks if self.is_dealt else 1
        for start in range(0, len(groups), readers):
            some = groups[start : start + readers]
            yield some + [np.zeros(0, np.int64)] * (readers - len(some))

    def _read(self, times: Ints, cells: Any) -> Array:
        """Return values of cells, shape (c, t, V)."""
        return np.ascontiguousarray(self.store.rows(times, self.names, cells).transpose(2, 0, 1))

    def _deal(self, values: Array, wanted: Ints, shares: list[Ints]) -> None:
        """Read the own share of a round, and fill in what all ranks have read."""
        mine, most = shares[self.comm.rank], max(map(len, shares))
        rows = np.zeros((self.store.cells, most, len(self.names)), np.float32)
        if len(mine):
            rows[:, : len(mine)] = self._read(wanted[mine], slice(None))
        values[:, mine] = rows[self.own, : len(mine)]
        got = self._halo.end(self._halo.begin(torch.from_numpy(rows))).numpy()
        others = [rank for rank in range(self.comm.ranks) if rank != self.comm.rank]
        for rank, block in zip(others, np.split(got, len(others)), strict=True):
            values[:, shares[rank]] = block[:, : len(shares[rank])]

    @cached_property
    def _halo(self) -> Halo:
        """The own cells among those that each of the other ranks has read."""
        others = [rank for rank in range(self.comm.ranks) if rank != self.comm.rank]
        ranks = np.repeat(np.array(others, np.int64), len(self.own))
        indices = np.tile(self.own, len(others))
        return Halo(self.comm, self.store.cells, torch.from_numpy(ranks), torch.from_numpy(indices))
