"""The loss of a forecasting network over samples that are read while it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import check_least
from mldd.problems.forecasts import ForecastLoss
from mldd.problems.nets import MiniBatches
from mldd.problems.weather.samples import StreamedSamples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StreamedBatches:
    """Samples that are read and evaluated together.

    Parameters
    ----------
    batch : int
        Samples per gradient, drawn anew for every step; 0: all.
    chunk : int
        Samples that are evaluated at once, which bounds memory; 0: all of the batch.
    shown : int
        Samples, evenly spread over the training part, by which a run with mini-batches shows its loss, at either end at
        least; 0: all of them.

    Raises
    ------
    ValueError
        Values out of range.
    """

    batch: int = 2
    chunk: int = 1
    shown: int = 0

    def __post_init__(self) -> None:
        """Refuse values out of range."""
        check_least(self, {"batch": 0, "chunk": 0, "shown": 0})
        if self.shown and not self.batch:
            raise ValueError(f"`shown` needs mini-batches, got shown={self.shown} and batch=0; leave one of them out")


@dataclass(frozen=True, kw_only=True)
class StreamedLoss(ForecastLoss):
    """Weighted squares as in `ForecastLoss`, over samples of which only those of a chunk are in memory.

    Parameters
    ----------
    stream : StreamedSamples
        Where the samples are from; ``batch`` has the grid of them alone.
    origins : ndarray, shape (S,), int64
        Of the samples.
    batches : MiniBatches, optional
        Which samples a step sees; all of them by default.
    whole : StreamedLoss, optional
        The loss that the samples of a step are drawn from, where this one is an estimate of it; itself by default.
    """

    stream: StreamedSamples
    origins: Ints
    batches: MiniBatches | None = None
    whole: StreamedLoss | None = None

    def estimated(self, rows: Ints) -> StreamedLoss:
        """Return the loss over some of the samples, whose mini-batches are drawn from all.

        Parameters
        ----------
        rows : ndarray, shape (k,), int64
            Numbers of the samples.
        """
        return replace(self.drawn(torch.from_numpy(rows)), batches=self.batches, whole=self)

    def over(self, origins: Ints) -> StreamedLoss:
        """Return the loss over other samples, without weight decay.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Of the samples.
        """
        return replace(self.whole or self, origins=origins, decay=0.0, batches=None, whole=None)

    def chunks(self) -> Iterator[Any]:
        """Yield the batches of its samples, a chunk at a time; all ranks do so together."""
        size = self.chunk or len(self.origins)
        for start in range(0, len(self.origins), size):
            some = self.origins[start : start + size]
            inputs, targets = self.stream.samples(some)
            yield replace(self.batch, features=(inputs,), targets=targets, samples=len(some))

    _chunks = chunks  # what the evaluations of the base class go through

    def drawn(self, rows: Tensor | None) -> StreamedLoss:
        """Return the loss over the samples `rows` in place of all, without a new price.

        Parameters
        ----------
        rows : Tensor, shape (b,), int64
            Numbers of the samples.
        """
        if rows is None:
            return self
        share = len(rows) / len(self.origins)
        price = replace(self.price, gradient=self.price.gradient * share)
        some = self.origins[rows.numpy()]
        return replace(self, origins=some, price=price, rows=rows, scale=self.scale / share, batches=None, whole=None)

    def sample(self, step: int) -> StreamedLoss:
        """Return the objective of an outer step: the same samples on all ranks and levels.

        Parameters
        ----------
        step : int
            Number of the step.
        """
        return self if self.batches is None else (self.whole or self).drawn(self.batches.rows(step))
