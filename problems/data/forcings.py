"""Forcing: what is known about a future time without a forecast. Hour, day of the year, height of the sun."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FORCING_NAMES = ("sin_hour", "cos_hour", "sin_day", "cos_day", "cos_zenith")
_YEAR = 365.2422  # days


def hour(time: Any) -> Floats:
    """Return the hour of the day (UTC), 0 <= hour < 24, shape (T,).

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Moments in UTC.
    """
    seconds = np.asarray(time, "datetime64[s]").astype(np.int64) % 86400
    return seconds / 3600.0


def day(time: Any) -> Floats:
    """Return the days since the beginning of the year, with fractions, shape (T,).

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Moments in UTC.
    """
    seconds = np.asarray(time, "datetime64[s]")
    return np.asarray((seconds - seconds.astype("datetime64[Y]")) / np.timedelta64(86400, "s"))


def cos_zenith(time: Any, latitude: Floats, longitude: Floats) -> Floats:
    """Return the cosine of the solar zenith angle, 0 at night, shape (T, n).

    ``sin(phi) sin(delta) + cos(phi) cos(delta) cos(H)`` with the hour angle ``H = 15 deg (t + E / 60 - 12) + lambda``,
    t in hours UTC; declination delta and equation of time E (minutes) are Spencer's Fourier series in the day of the
    year. Leap years shift the calendar against the sun: they are good to 0.35 degrees and 0.7 minutes, the cosine to
    0.007.

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Moments in UTC.
    latitude, longitude : ndarray, shape (n,)
        Degrees.

    References
    ----------
    J. W. Spencer, Fourier series representation of the position of the sun, Search 2, 1971, p. 172
    """
    angle = 2 * np.pi * day(time) / 365.0
    (c1, s1), (c2, s2), (c3, s3) = ((np.cos(k * angle), np.sin(k * angle)) for k in (1, 2, 3))
    delta = 0.006918 - 0.399912 * c1 + 0.070257 * s1 - 0.006758 * c2 + 0.000907 * s2 - 0.002697 * c3 + 0.00148 * s3
    minutes = 229.18 * (0.000075 + 0.001868 * c1 - 0.032077 * s1 - 0.014615 * c2 - 0.04089 * s2)
    turned = np.radians(15.0 * (hour(time) + minutes / 60.0 - 12.0))[:, None] + np.radians(longitude)
    phi = np.radians(latitude)
    height = np.sin(phi) * np.sin(delta)[:, None] + np.cos(phi) * np.cos(delta)[:, None] * np.cos(turned)
    return np.asarray(np.maximum(height, 0.0))


def forcing(time: Any, latitude: Floats, longitude: Floats) -> Floats:
    """Return the forcing features `FORCING_NAMES` at times and nodes, shape (T, n, 5); hours are local solar ones.

    Parameters
    ----------
    time : array of datetime64, shape (T,)
        Moments in UTC.
    latitude, longitude : ndarray, shape (n,)
        Degrees.
    """
    local = 2 * np.pi * (hour(time)[:, None] / 24.0 + longitude / 360.0)
    of_year = np.broadcast_to((2 * np.pi * day(time) / _YEAR)[:, None], local.shape)
    sun = cos_zenith(time, latitude, longitude)
    return np.stack([np.sin(local), np.cos(local), np.sin(of_year), np.cos(of_year), sun], axis=-1)
