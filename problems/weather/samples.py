"""Samples that are made when they are asked for: inputs and targets of a rank's cells, or of a coarse grid."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import scipy.sparse as sp
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.problems.data import forcing
from mldd.problems.weather.cell_reader import CellReader
from mldd.ranks import Communicator

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Pair = tuple[Tensor, Tensor]
_FORCING = 5  # sine and cosine of the local hour and of the day, height of the sun


class StreamedSamples(Protocol):
    """Inputs and targets of the rows that a batch is made of."""

    def samples(self, origins: Ints) -> Pair:
        """Return inputs, shape (r, S F), and weighted targets with their weights, shape (r, S 2 V); all ranks call it.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Times at which forecasts begin.
        """
        ...


@dataclass(eq=False)
class Kept:
    """The last few results of a function of origins.

    Parameters
    ----------
    most : int
        How many.
    """

    most: int = 1
    found: dict[bytes, Pair] = field(default_factory=dict, init=False)

    def of(self, origins: Ints, make: Any) -> Pair:
        """Return what is kept for these origins, or make it.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            The argument.
        make : callable
            The function.
        """
        key = origins.tobytes()
        if key not in self.found:
            while len(self.found) >= self.most:
                del self.found[next(iter(self.found))]
            self.found[key] = make(origins)
        return self.found[key]


@dataclass(frozen=True)
class Units:
    """What makes variables comparable.

    Parameters
    ----------
    mean, deviation : ndarray, shape (V,)
        Of the variables.
    scales : ndarray, shape (V,)
        Root mean squares of their changes over the lead time: persistence has the loss 1.
    """

    mean: Floats
    deviation: Floats
    scales: Floats


def cell_inputs(past: Any, units: Units, static: Floats, sun: Floats) -> Any:
    """Return the inputs of the network, shape (c, S, F): those of the past, of the place, and of the sun.

    Parameters
    ----------
    past : ndarray, shape (c, S, history, V)
        Values at the origin and before it, newest first; gaps become the mean.
    units : Units
        Of the variables.
    static : ndarray, shape (c, k)
        Place and constant fields of the cells.
    sun : ndarray, shape (c, S, 5)
        Hour, day and height of the sun at the time of the forecast.
    """
    cells, count = past.shape[:2]
    normal = np.nan_to_num((past - units.mean) / units.deviation).reshape(cells, count, -1)
    return np.concatenate([normal, np.broadcast_to(static[:, None], (cells, count, static.shape[1])), sun], axis=2)


@dataclass(frozen=True, eq=False)
class CellSamples:
    """Samples of the own cells of a rank.

    Inputs are the variables at the origin and before it, normalised, the place of the cell and its constant fields, and
    hour, day and height of the sun at the time of the forecast. Targets are the changes over the lead time in units of
    `Units.scales`. A gap is the mean of the variable as an input, and does not count as a target.

    Parameters
    ----------
    reader : CellReader
        Of the values.
    units : Units
        Of the variables.
    static : ndarray, shape (c, k)
        Place and constant fields of the cells.
    weights : ndarray, shape (c,)
        Of the cells in the loss; those of all ranks add up to one over outputs and training samples.
    lead, history : int
        Steps ahead, and values up to the origin that are inputs.
    kind : dict
        `dtype` and `device` of what is returned.
    kept : Kept
        Samples that are kept.
    """

    reader: CellReader
    units: Units
    static: Floats
    weights: Floats
    lead: int
    history: int
    kind: dict[str, Any]
    kept: Kept

    @property
    def widths(self) -> tuple[int, int]:
        """Inputs and outputs of a cell."""
        variables = len(self.reader.names)
        return self.history * variables + self.static.shape[1] + _FORCING, variables

    def samples(self, origins: Ints) -> Pair:
        """Return inputs and targets of the own cells."""
        return self.kept.of(origins, self._made)

    def _made(self, origins: Ints) -> Pair:
        values = self.values(origins)
        store = self.reader.store
        latitude, longitude = (of[self.reader.own] for of in store.coordinates)
        step = store.time[1] - store.time[0]
        sun = forcing(store.time[origins] + self.lead * step, latitude, longitude).transpose(1, 0, 2)
        inputs = cell_inputs(values[:, :, : self.history], self.units, self.static, sun)
        change = (values[:, :, -1] - values[:, :, 0]) / self.units.scales
        weights = np.where(np.isnan(change), 0.0, self.weights[:, None, None])
        targets = np.concatenate([np.nan_to_num(change) * weights, weights], axis=2)
        made = [
            torch.from_numpy(np.ascontiguousarray(a.reshape(len(values), -1))).to(**self.kind)
            for a in (inputs, targets)
        ]
        return made[0], made[1]

    def values(self, origins: Ints) -> Any:
        """Return the values that samples are made of, shape (c, S, history + 1, V): origin, before it, target.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Times at which forecasts begin.
        """
        offsets = np.array([*(-k for k in range(self.history)), self.lead])
        times = origins[:, None] + offsets
        read = self.reader.read(times.ravel())
        return read.reshape(len(read), *times.shape, read.shape[2])


@dataclass(frozen=True, eq=False)
class CoarseSamples:
    """Samples on a coarse grid, the same on all ranks: means of inputs and sums of targets over clusters of cells.

    Parameters
    ----------
    fine : CellSamples
        Of the own cells.
    labels : ndarray, shape (c,), int64
        The cluster of every own cell.
    counts : ndarray, shape (m,)
        Cells of every cluster, on all ranks together.
    comm : Communicator
        The ranks.
    kept : Kept
        Samples that are kept.
    """

    fine: CellSamples
    labels: Ints
    counts: Floats
    comm: Communicator
    kept: Kept

    def samples(self, origins: Ints) -> Pair:
        """Return inputs and targets of all clusters."""
        return self.kept.of(origins, self._made)

    def _made(self, origins: Ints) -> Pair:
        inputs, targets = (of.cpu().numpy() for of in self.fine.samples(origins))
        shape, cells = (len(self.counts), len(self.labels)), np.arange(len(self.labels))
        collect = sp.csr_matrix((np.ones(len(cells), inputs.dtype), (self.labels, cells)), shape=shape)
        sums = self.comm.sum(torch.from_numpy(np.concatenate([collect @ inputs, collect @ targets], axis=1)))
        first, second = sums[:, : inputs.shape[1]], sums[:, inputs.shape[1] :]
        mean = first / torch.from_numpy(self.counts).to(first.dtype)[:, None]
        return mean.to(**self.fine.kind), second.contiguous().to(**self.fine.kind)
