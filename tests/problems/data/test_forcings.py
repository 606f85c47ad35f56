"""Hour, day and height of the sun against what is known of them."""

import numpy as np
import pytest

from mldd.problems.data import FORCING_NAMES, forcing, hour
from mldd.problems.data.forcings import cos_zenith, day

HOURS = np.arange("2019-01-01", "2020-01-01", dtype="datetime64[h]")


def test_hour_and_day():
    time = np.array(["2019-01-01T00:00", "2019-03-01T18:30", "1969-12-31T06:00"], dtype="datetime64[s]")
    assert hour(time).tolist() == [0.0, 18.5, 6.0]
    assert day(time) == pytest.approx([0.0, 59 + 18.5 / 24, 364.25])


@pytest.mark.parametrize(
    ("date", "latitude", "height"),
    [("2019-06-21", 51.5, 61.94), ("2019-12-22", 51.5, 15.06), ("2019-03-20", 0.0, 90.0), ("2019-06-21", 23.44, 90.0)],
)
def test_noon_height_is_that_of_the_almanac(date, latitude, height):
    time = np.datetime64(date) + np.arange(0, 1440, 4) * np.timedelta64(1, "m")
    highest = np.degrees(np.arcsin(cos_zenith(time, np.array([latitude]), np.array([0.0])).max()))
    assert highest == pytest.approx(height, abs=0.4)  # the declination changes by up to 0.4 degrees a day


def almanac(time, latitude, longitude):
    """Return the cosine of the zenith angle by the Astronomical Almanac (low precision, 0.01 degrees)."""
    n = ((time - np.datetime64("2000-01-01T12:00:00")) / np.timedelta64(1, "D"))[:, None]
    g, mean = np.radians(357.528 + 0.9856003 * n), 280.460 + 0.9856474 * n
    ecliptic = np.radians(mean + 1.915 * np.sin(g) + 0.020 * np.sin(2 * g))
    tilt, phi = np.radians(23.439 - 4e-7 * n), np.radians(latitude)
    ascension = np.arctan2(np.cos(tilt) * np.sin(ecliptic), np.cos(ecliptic))
    delta = np.arcsin(np.sin(tilt) * np.sin(ecliptic))
    angle = np.radians(280.46062 + 360.98564737 * n + longitude) - ascension
    return np.maximum(np.sin(phi) * np.sin(delta) + np.cos(phi) * np.cos(delta) * np.cos(angle), 0.0)


@pytest.mark.parametrize("year", [2016, 2019, 2025])
def test_height_is_that_of_the_almanac_at_all_times_and_places(year):
    time = np.arange(f"{year}-01-01", f"{year + 1}-01-01", dtype="datetime64[h]")[::7]
    places = np.array([-90.0, -40.0, 0.0, 45.0, 70.0]), np.array([0.0, 170.0, -170.0, 10.0, 300.0])
    assert np.abs(cos_zenith(time, *places) - almanac(time, *places)).max() < 0.007


def test_sun_is_highest_at_solar_noon():
    time = np.datetime64("2019-02-11") + np.arange(1440) * np.timedelta64(1, "m")
    sun = cos_zenith(time, np.zeros(2), np.array([0.0, 90.0]))
    noon = sun.argmax(0)
    assert noon[0] == pytest.approx(720 + 14, abs=2)  # the equation of time is -14 minutes in February
    assert noon[0] - noon[1] == pytest.approx(360, abs=1)


def test_half_of_the_year_is_night_everywhere():
    lit = (cos_zenith(HOURS, np.array([-60.0, 0.0, 45.0]), np.zeros(3)) > 0).mean(0)
    assert lit == pytest.approx(0.5, abs=0.02)


def test_mean_of_the_year_is_that_of_the_sphere():
    latitude = np.degrees(np.arcsin(np.linspace(-0.975, 0.975, 40)))  # equal areas
    assert cos_zenith(HOURS, latitude, np.zeros(40)).mean() == pytest.approx(0.25, abs=0.003)


def test_forcing_is_that_of_local_time():
    time = np.array(["2019-03-01T06:00"], dtype="datetime64[s]")
    made = forcing(time, np.zeros(2), np.array([90.0, -90.0]))
    assert made.shape == (1, 2, len(FORCING_NAMES))
    assert made[0, :, 0] == pytest.approx([0.0, 0.0], abs=1e-12)
    assert made[0, :, 1] == pytest.approx([-1.0, 1.0])
    assert made[0, 0, 4] > 0.9
    assert made[0, 1, 4] == 0
