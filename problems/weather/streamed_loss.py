"""The loss of a forecasting network over samples that are read while it is evaluated."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from mldd.problems.forecasts import ForecastLoss
from mldd.problems.nets import MiniBatches
from mldd.problems.weather.samples import StreamedSamples

Ints = NDArray[np.int64]


@dataclass(frozen=True)
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
    """

    stream: StreamedSamples = None  # type: ignore[assignment]  # fields behind those with defaults need one
    origins: Ints = None  # type: ignore[assignment]
    batches: MiniBatches | None = None

    def over(self, origins: Ints) -> StreamedLoss:
        """Return the loss over other samples, without weight decay.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Of the samples.
        """
        return replace(self, origins=origins, decay=0.0, batches=None)

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
        return replace(self, origins=some, price=price, rows=rows, scale=self.scale / share, batches=None)

    def sample(self, step: int) -> StreamedLoss:
        """Return the objective of an outer step: the same samples on all ranks and levels.

        Parameters
        ----------
        step : int
            Number of the step.
        """
        return self if self.batches is None else self.drawn(self.batches.rows(step))
