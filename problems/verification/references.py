"""Forecasts that need no model beyond the past of the truth: persistence, climatology and a linear model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import DataError, Series, Supplement, places_of, plain_unit
from mldd.problems.forecasts import first_origin, fit_linear, hourly_means, linear_model
from mldd.problems.verification.forecast_file import ForecastFile

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
REFERENCES = ("persistence", "climatology", "linear")


@dataclass(frozen=True, eq=False)
class Truth:
    """What happened at the places of forecasts, and what was known before the first of them.

    Parameters
    ----------
    series : Series
        Observations or analyses at the places and of the variables of the forecasts.
    past : Series
        What climatology and linear model are fitted to; the same series by default.
    end : int
        Number of leading times of it that they are fitted to.
    """

    series: Series
    past: Series
    end: int

    def at(self, moments: Any) -> Floats:
        """Return the values at dates, NaN where there are none, shape (S, n, V).

        Parameters
        ----------
        moments : ndarray of datetime64[s], shape (S,)
            Any dates.
        """
        index = self.index(moments)
        return np.where((index >= 0)[:, None, None], self.series.values[index], np.nan)

    def index(self, moments: Any) -> Ints:
        """Return the numbers of the times at dates, -1 where there is none, shape (S,).

        Parameters
        ----------
        moments : ndarray of datetime64[s], shape (S,)
            Any dates.
        """
        found = np.minimum(np.searchsorted(self.series.time, moments), self.series.times - 1)
        return np.where(self.series.time[found] == moments, found, -1).astype(np.int64)

    def references(self, starts: Any, valid: Any) -> Iterator[tuple[str, Floats]]:
        """Yield names and values of the forecasts without a model, NaN where one cannot be made, shape (S, n, V).

        Parameters
        ----------
        starts, valid : ndarray of datetime64[s], shape (S,)
            When forecasts begin, and of which times they are.
        """
        yield "persistence", self.at(starts)
        yield "climatology", self._climatology(valid)
        yield "linear", self._linear(starts, valid)

    def _climatology(self, valid: Any) -> Floats:
        if self.end == 0:
            return np.full((len(valid), *self.series.values.shape[1:]), np.nan)
        steps = (valid - self.past.time[0]).astype(np.int64) // self.past.step
        return self._means(steps)

    @cached_property
    def _means(self) -> Callable[[Ints], Floats]:
        return hourly_means(self.past, self.end)

    @cached_property
    def _filled_past(self) -> Floats:
        return self._without_gaps(self.past)

    @cached_property
    def _filled(self) -> Floats:
        return self._without_gaps(self.series)

    def _without_gaps(self, series: Series) -> Floats:
        """Return values with gaps filled by the last observation, by the mean of the past before the first one."""
        filled, mean = series.carried(), np.nanmean(self.past.values[: self.end], axis=(0, 1))
        return np.where(np.isnan(filled), mean, filled)

    def _linear(self, starts: Any, valid: Any) -> Floats:
        """Return the forecasts of the linear model, NaN from starts without the history that it needs."""
        series, begin, reached = self.series, self.index(starts), self.index(valid)
        made = np.full((len(starts), *series.values.shape[1:]), np.nan)
        both = (begin >= 0) & (reached >= 0)
        lead = int((reached - begin)[both][0]) if both.any() else 0
        first = first_origin(series, lead)
        ready = both & (reached - begin == lead) & (begin >= first)
        if lead < 1 or not ready.any() or self.end - lead <= first:
            return made
        filled, known = self._filled_past, ~np.isnan(self.past.values)
        for v in range(series.values.shape[2]):
            fit = fit_linear(self.past, filled[:, :, v], known[:, :, v], lead, self.end)
            made[ready, :, v] = linear_model(series, lead, fit.coefficients)(self._filled[:, :, v], begin[ready])
        return made


def matched(forecasts: ForecastFile, series: Series, past: Series | None) -> Truth:
    """Return the truth at the places of forecasts.

    Parameters
    ----------
    forecasts : ForecastFile
        Whose places and variables count.
    series : Series
        The truth, of at least these places and variables.
    past : Series, optional
        What climatology and linear model are fitted to; by default the truth before the first start.

    Raises
    ------
    DataError
        Places or variables that the truth does not have, other units, or another calendar.
    """
    first = forecasts.starts.min()
    here = _at_places(forecasts, series)
    before = here if past is None else _at_places(forecasts, past)
    if past is not None and before.step != here.step:
        raise DataError(f"{past.name}: times must be {here.step} s apart as in {series.name}, got {before.step} s")
    return Truth(here, before, int((before.time < first).sum()))


def _at_places(forecasts: ForecastFile, series: Series) -> Series:
    if series.calendar.name != "standard":
        raise DataError(
            f"{series.name}: forecasts are verified in the standard calendar, got {series.calendar.name}; convert the "
            "times of both"
        )
    chosen = series.chosen(forecasts.variables)
    for name, given, wanted in zip(forecasts.variables, forecasts.units, chosen.units, strict=False):
        if given and wanted and plain_unit(given) != plain_unit(wanted):
            raise DataError(
                f"{series.name}: {name} must be in {given} as in {forecasts.name}, got {wanted}; convert it"
            )
    places = places_of((forecasts.latitude, forecasts.longitude), (series.latitude, series.longitude))
    if (places < 0).any():
        raise DataError(
            f"{series.name}: there must be the {len(places)} places of {forecasts.name}, got {series.nodes} without "
            f"{int((places < 0).sum())} of these; regrid one of the two"
        )
    is_same = np.array_equal(places, np.arange(series.nodes))
    return replace(
        chosen,
        values=np.ascontiguousarray(chosen.values[:, places]),
        latitude=forecasts.latitude,
        longitude=forecasts.longitude,
        altitude=None,
        grid=forecasts.grid,
        supplement=Supplement(graph=series.graph if is_same else None, area=forecasts.area),
    )
