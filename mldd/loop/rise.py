"""The watch on a run's values: one that ends above its start has minimised nothing, and its status says so."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

# Rises in a row, above the start, after which a run is ended: methods without values may rise for a few steps.
PATIENCE = 10
_NOISE = 1e-6  # relative; a run in single precision that stays where it is has not risen


@dataclass
class Rise:
    """What the values of a run have done since its start.

    Parameters
    ----------
    start : float
        Value at the start; NaN before it is known.
    last : float
        The latest value.
    rises : int
        Values in a row, up to the latest one, that were above the one before.
    """

    start: float = math.nan
    last: float = math.nan
    rises: int = 0

    @staticmethod
    def of(values: Iterable[float]) -> Rise:
        """Return the watch of a run that has had these values.

        Parameters
        ----------
        values : iterable of float
            From the start on; NaN where there was none.
        """
        rise = Rise()
        for value in values:
            rise.see(value)
        return rise

    def see(self, value: float) -> None:
        """Take note of the next value, if there is one.

        Parameters
        ----------
        value : float
            NaN for none.
        """
        if math.isnan(value):
            return
        self.start = value if math.isnan(self.start) else self.start
        self.rises = self.rises + 1 if value > self.last else 0
        self.last = value

    @property
    def is_blank(self) -> bool:
        """Whether there was no value yet."""
        return math.isnan(self.start)

    @property
    def is_above(self) -> bool:
        """Whether the latest value is above the start by more than rounding."""
        return self.last - self.start > _NOISE * max(abs(self.start), abs(self.last))

    @property
    def goes_on(self) -> bool:
        """Whether the values are above the start and have risen for long."""
        return self.is_above and self.rises >= PATIENCE
