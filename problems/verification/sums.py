"""Sums of errors over places, per start: all that measures and their confidence are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.problems.verification.forecast_file import ForecastFile
from mldd.problems.verification.references import REFERENCES, Truth

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quantity:
    """A variable, or a vector of two of them, whose error is the length of the difference.

    Parameters
    ----------
    name, unit : str
        For tables.
    components : tuple of int
        Numbers of the variables.
    """

    name: str
    unit: str
    components: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over places with their areas as weights, each of shape (S, L, Q) but for the maps.

    Attributes
    ----------
    weight, square, error : ndarray
        Weights of the pairs of forecast and truth, their squares, and their differences (NaN for vectors).
    variance : ndarray
        Of the members around their mean, weighted likewise; zeros without members.
    crps : ndarray
        Continuous ranked probability scores, weighted likewise; NaN for vectors.
    correlation : ndarray
        Of the anomalies of forecast and truth from climatology; NaN where there is none.
    own, other, common : dict of str to ndarray
        Per reference forecast: squares of the forecast and of the reference where there are both, and the weights.
    map_error, map_square, map_count : ndarray, shape (n, Q)
        Sums over starts at the last lead time.
    """

    weight: Floats
    square: Floats
    error: Floats
    variance: Floats
    crps: Floats
    correlation: Floats
    own: dict[str, Floats]
    other: dict[str, Floats]
    common: dict[str, Floats]
    map_error: Floats
    map_square: Floats
    map_count: Floats


def quantities(forecasts: ForecastFile) -> list[Quantity]:
    """Return the variables, then the winds.

    Parameters
    ----------
    forecasts : ForecastFile
        Of these variables.
    """
    units = forecasts.units
    single = [Quantity(name, units[v], (v,)) for v, name in enumerate(forecasts.variables)]
    return single + [Quantity(name, units[pair[0]], pair) for name, pair in forecasts.vectors.items()]


def summed(forecasts: ForecastFile, truth: Truth, wanted: Sequence[Quantity]) -> Sums:
    """Return the sums of all errors; one lead time after the other is in memory.

    Parameters
    ----------
    forecasts : ForecastFile
        What is verified.
    truth : Truth
        At its places.
    wanted : sequence of Quantity
        What is measured.
    """
    shape = len(forecasts.starts), forecasts.valid.shape[1], len(wanted)
    weight, square, error, variance, crps, correlation = (np.zeros(shape) for _ in range(6))
    own, other, common = ({name: np.zeros(shape) for name in REFERENCES} for _ in range(3))
    maps = [np.zeros((truth.series.nodes, shape[2])) for _ in range(3)]
    sums = Sums(weight, square, error, variance, crps, correlation, own, other, common, *maps)
    for lead in range(shape[1]):
        made, valid = forecasts.values(lead), forecasts.valid[:, lead]
        happened, others = truth.at(valid), dict(truth.references(forecasts.starts, valid))
        for q, quantity in enumerate(wanted):
            part = list(quantity.components)
            fields = made[..., part], happened[..., part], {name: of[..., part] for name, of in others.items()}
            _add(sums, (slice(None), lead, q), truth.series.weights, *fields)
    return sums


def _add(sums: Sums, at: Any, weights: Floats, made: Floats, happened: Floats, others: dict[str, Floats]) -> None:
    """Fill in the sums of one lead time and one quantity; the last axis of fields numbers components."""
    mean = made.mean(0)
    difference = mean - happened
    square = (difference**2).sum(-1)
    there = ~np.isnan(square)

    def over_places(values: Floats, counts: NDArray[np.bool_]) -> Floats:
        return np.asarray(np.where(counts, values, 0.0) @ weights)

    sums.weight[at] = over_places(np.ones_like(square), there)
    sums.square[at] = over_places(square, there)
    sums.error[at] = over_places(difference[..., 0], there) if made.shape[-1] == 1 else np.nan
    if len(made) > 1:
        sums.variance[at] = over_places(made.var(0, ddof=1).sum(-1), there)
    is_vector = made.shape[-1] > 1
    sums.crps[at] = np.nan if is_vector else over_places(_ranked(made[..., 0], happened[..., 0]), there)
    sums.correlation[at] = _correlation(mean, happened, others["climatology"], weights)
    for name, other in others.items():
        of_other = ((other - happened) ** 2).sum(-1)
        both = there & ~np.isnan(of_other)
        sums.own[name][at], sums.other[name][at] = over_places(square, both), over_places(of_other, both)
        sums.common[name][at] = over_places(np.ones_like(square), both)
    q = at[2]  # the maps keep the last lead time
    sums.map_error[:, q] = np.where(there, difference[..., 0], 0.0).sum(0)
    sums.map_square[:, q] = np.where(there, square, 0.0).sum(0)
    sums.map_count[:, q] = there.sum(0)


def _ranked(made: Floats, happened: Floats) -> Floats:
    """Return the fair continuous ranked probability score of members, shape (S, n); one member: the absolute error.

    ``mean_m |x_m - o| - sum_mk |x_m - x_k| / (2 M (M - 1))``; of sorted members ``x_0 <= x_1 <= ...`` the double sum is
    ``2 sum_k (2 k - M + 1) x_k``.

    References
    ----------
    C. A. T. Ferro, Fair scores for ensemble forecasts, Q. J. R. Meteorol. Soc. 140, 2014, p. 1917.
    """
    members, error = len(made), np.abs(made - happened).mean(0)
    if members == 1:
        return np.asarray(error)
    weights = (2.0 * np.arange(members) - members + 1) / (members * (members - 1))
    return np.asarray(error - np.einsum("m,msn->sn", weights, np.sort(made, axis=0)))


def _correlation(made: Floats, happened: Floats, usual: Floats, weights: Floats) -> Floats:
    """Return the correlation over places of the anomalies from climatology per start, shape (S,)."""
    one, other = made - usual, happened - usual
    there = ~np.isnan((one * other).sum(-1))[..., None]
    one, other = np.where(there, one, 0.0), np.where(there, other, 0.0)
    products = ((a * b).sum(-1) @ weights for a, b in ((one, other), (one, one), (other, other)))
    both, of_one, of_other = products
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(both / np.sqrt(of_one * of_other))
