"""Inputs that are known about the time of the forecast: covariates, and values at the boundary of a region."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data import DataError, Series
from mldd.problems.forecasts.normalising import scale

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def covariate_scales(series: Series, end: int) -> dict[str, Floats]:
    """Return mean and standard deviation of every covariate over the leading times, shape (2,).

    Parameters
    ----------
    series : Series
        With its covariates.
    end : int
        Number of leading times.
    """
    past = {name: values[:end] for name, values in series.supplement.known.items()}
    return {name: np.array([values.mean(), float(scale(values.std()))]) for name, values in past.items()}


def known_names(series: Series, lead: int) -> list[str]:
    """Return the names of what `known_ahead` gives for a lead time.

    Parameters
    ----------
    series : Series
        With its covariates and boundary.
    lead : int
        Steps ahead.
    """
    outer = series.variables if series.supplement.outer is not None else ()
    return [f"{name} at lead {lead}" for name in (*series.supplement.known, *(f"boundary {v}" for v in outer))]


def known_ahead(series: Series, normal: Floats, scales: dict[str, Floats], times: Ints, is_open: bool) -> Floats:
    """Return what is known about times, normalised, shape (S, n, k); values of the boundary are 0 inside of it.

    Parameters
    ----------
    series : Series
        With its covariates and boundary.
    normal : ndarray, shape (T, n, V)
        Its values, normalised.
    scales : dict
        Of the covariates, as `covariate_scales` returns them.
    times : ndarray, shape (S,), int64
        Steps that forecasts are of.
    is_open : bool
        Whether forecasts go beyond what is observed, so that all of this must be there.

    Raises
    ------
    DataError
        Steps that the series does not hold, or gaps at the boundary.
    """
    known, outer, last = series.supplement.known, series.supplement.outer, series.times - 1
    parts: list[Any] = []
    if (known or outer is not None) and is_open and times.max(initial=0) > last:
        what = f"covariates ({', '.join(known)})" if known else "values at the boundary"
        raise DataError(
            f"{series.name}: {what} must be known to {series.moments(np.array([times.max()]))[0]}, got times to "
            f"{series.time[-1]}; give a file that reaches so far, or an earlier start"
        )
    at = np.minimum(times, last)  # targets beyond the end do not count
    for name, values in known.items():
        mean, deviation = scales[name]
        parts.append((values[at] - mean)[..., None] / deviation)
    if outer is not None:
        gaps = int(np.isnan(series.values[at][:, outer]).sum()) if is_open else 0
        if gaps:
            raise DataError(
                f"{series.name}: values at the boundary must be known at the times of forecasts, got {gaps} gaps; "
                "fill them, or give an earlier start"
            )
        parts.append(np.where(outer[:, None], normal[at], 0.0))
    return np.concatenate(parts, axis=-1) if parts else np.zeros((len(times), series.nodes, 0))
