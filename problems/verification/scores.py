"""Measures of forecasts from sums per start, and their confidence by a block bootstrap over starts."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mldd.problems.verification.references import REFERENCES
from mldd.problems.verification.sums import Sums

Floats = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Scores:
    """Measures by name, and the ends of their confidence intervals, each of shape (L, Q).

    Names are ``rmse``, ``bias``, ``acc``, ``crps``, ``spread`` (with members), and per reference ``rmse_NAME`` and
    ``skill_NAME``; intervals are there for ``rmse``, ``bias``, ``acc``, ``crps`` and the skills.

    Parameters
    ----------
    values : dict of str to ndarray
        The measures over all starts.
    low, high : dict of str to ndarray
        Ends of the intervals, NaN where there are too few starts.
    """

    values: dict[str, Floats]
    low: dict[str, Floats]
    high: dict[str, Floats]


def measures(sums: Sums, times: Floats) -> dict[str, Floats]:
    """Return the measures of samples of starts, each of shape (B, L, Q).

    ``rmse^2 = sum w (f - o)^2 / sum w`` over starts and places, f the mean of the members; ``bias = sum w (f - o) / sum
    w``; ``acc`` is the mean over starts of ``sum w f' o' / sqrt(sum w f'^2 sum w o'^2)``, where f' and o' are anomalies
    from climatology; ``crps`` is the fair continuous ranked probability score, the mean absolute error of one member;
    ``spread^2`` is the mean variance of the members; ``skill = 1 - mse / mse of the reference``, both
    over the pairs where there is a reference.

    Parameters
    ----------
    sums : Sums
        Per start.
    times : ndarray, shape (B, S)
        How often every start is in a sample.

    References
    ----------
    A. H. Murphy, Mon. Weather Rev. 116, 1988, p. 2417, equation 4 (skill). D. S. Wilks, Statistical Methods in the
    Atmospheric Sciences, 3rd edition, 2011, section 8.6.4 (anomaly correlation).
    """

    def total(values: Floats) -> Floats:
        return np.asarray(np.einsum("bs,slq->blq", times, values))

    known = ~np.isnan(sums.correlation)
    with np.errstate(invalid="ignore", divide="ignore"):
        weight = total(sums.weight)
        found = {
            "rmse": np.sqrt(total(sums.square) / weight),
            "bias": total(sums.error) / weight,
            "acc": total(np.where(known, sums.correlation, 0.0)) / total(known.astype(np.float64)),
            "crps": total(sums.crps) / weight,
            "spread": np.sqrt(total(sums.variance) / weight),
        }
        for name in REFERENCES:
            own, other, common = (total(of[name]) for of in (sums.own, sums.other, sums.common))
            found[f"rmse_{name}"] = np.sqrt(other / common)
            found[f"skill_{name}"] = 1.0 - own / other
    return found


def scores(sums: Sums, block: int, samples: int, seed: int, confidence: float = 0.95) -> Scores:
    """Return the measures over all starts with intervals from a circular block bootstrap.

    Parameters
    ----------
    sums : Sums
        Per start, in the order of time.
    block : int
        Starts that are drawn together, for forecasts that overlap err alike.
    samples : int
        How many samples are drawn.
    seed : int
        Of the samples.
    confidence : float
        Share of the samples between the ends of an interval.

    References
    ----------
    D. N. Politis and J. P. Romano, A circular block-resampling procedure for stationary data, in: Exploring the Limits
    of Bootstrap, 1992, p. 263.
    """
    starts = sums.weight.shape[0]
    whole = {name: of[0] for name, of in measures(sums, np.ones((1, starts))).items()}
    shown = [name for name in whole if not name.startswith(("rmse_", "spread"))]
    if starts < 2 * block:
        nothing = {name: np.full_like(whole[name], np.nan) for name in shown}
        return Scores(whole, nothing, nothing)
    drawn = measures(sums, drawn_times(starts, block, samples, seed))
    ends = [0.5 - 0.5 * confidence, 0.5 + 0.5 * confidence]
    low, high = {}, {}
    for name in shown:
        low[name], high[name] = np.quantile(drawn[name], ends, axis=0)
    return Scores(whole, low, high)


def drawn_times(starts: int, block: int, samples: int, seed: int) -> Floats:
    """Return how often every start is in every sample of blocks, shape (B, S); a block may go around the end.

    Parameters
    ----------
    starts, block, samples : int
        Number of starts, starts of a block, and number of samples.
    seed : int
        Of the draws.
    """
    random, blocks = np.random.default_rng(seed), -(-starts // block)
    first = random.integers(starts, size=(samples, blocks, 1))
    taken = ((first + np.arange(block)) % starts).reshape(samples, -1)[:, :starts]
    rows = np.repeat(np.arange(samples), starts)
    times = np.zeros((samples, starts))
    np.add.at(times, (rows, taken.ravel()), 1.0)
    return times
