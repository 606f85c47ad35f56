"""What a time series must be: times, coordinates, values; gaps, missing times, areas."""

from dataclasses import replace

import numpy as np
import pytest

from mldd.problems.data import DataError, Series
from mldd.problems.data.series import arranged
from tests.small_series import waves

SMALL = waves(48, 3, 4)
TIME = SMALL.time


def changed(**given):
    return lambda: replace(SMALL, **given)


def moved(steps):
    return TIME[0] + np.cumsum([0, *steps]) * np.timedelta64(1, "s")


def with_value(value, where=(3, 2, 0)):
    values = SMALL.values.copy()
    values[where] = value
    return values


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (changed(values=SMALL.values[:, :, 0]), r"values must be float64 of shape \(T, n, V\), got float64 \(48, 12\)"),
        (changed(values=SMALL.values.astype(np.float32)), "values must be float64"),
        (changed(values=SMALL.values[:, :0]), "values must be float64 of shape"),
        (changed(values=SMALL.values[:-1]), "one time per row of values, got 48 for 47"),
        (changed(values=with_value(np.inf)), "finite or NaN, got 1 infinite; make them NaN"),
        (changed(values=np.full_like(SMALL.values, np.nan)), "variable a must have values, got gaps only"),
        (changed(variables=("a", "b")), "there must be 1 different names of variables"),
        (changed(latitude=SMALL.latitude[:-1]), "latitude must be 12 finite numbers"),
        (changed(latitude=SMALL.latitude * np.nan), "latitude must be 12 finite numbers"),
        (changed(latitude=SMALL.latitude + 60), "latitude must be in -90..90 degrees, got 108..112"),
        (changed(longitude=SMALL.longitude - 200), "longitude must be in -180..360 degrees"),
        (changed(altitude=np.zeros(3)), "altitude must be 12 finite numbers"),
        (changed(grid=(3, 5)), r"the grid must have 12 nodes, got \(3, 5\)"),
        (changed(supplement=waves(4, 2, 2, roads=True).supplement), "the graph must have 12 nodes, got 4"),
        (changed(time=TIME[::-1]), "times must ascend, got 47 that go back; sort them or set sort=true"),
        (changed(time=np.where(np.arange(48) == 5, TIME[4], TIME)), "every time must occur once, got 1 twice"),
        (changed(time=moved([3600] * 46 + [5400])), "one step, got 46 of 3600 s, 1 of 5400 s"),
        (changed(time=np.arange(48.0)), "times must be dates"),
        (changed(time=np.where(np.arange(48) == 5, np.datetime64("NaT"), TIME)), "or missing ones"),
        (changed(values=SMALL.values[:1], time=TIME[:1]), "at least two times, got 1"),
    ],
)
def test_what_is_no_series_is_refused_in_one_line(make, said):
    with pytest.raises(DataError, match=said) as error:
        make()
    assert str(error.value).startswith("waves: ")
    assert "\n" not in str(error.value)


def test_sizes():
    series = waves(50, 3, 4, variables=2)
    assert (series.times, series.nodes, series.step, series.per_day) == (50, 12, 3600, 24)
    assert waves(50, 3, 4, seconds=300).per_day == 0
    assert waves(50, 3, 4, seconds=10800).per_day == 8
    assert waves(50, 3, 4, seconds=86400).per_day == 0


def test_weights_are_areas_on_grids_and_ones_for_stations():
    cos = np.cos(np.radians(SMALL.latitude))
    assert np.allclose(SMALL.weights, cos / cos.mean())
    assert (waves(48, 3, 4, grid=False).weights == 1).all()


def rest(series):
    return {"latitude": series.latitude, "longitude": series.longitude, "variables": series.variables}


def test_unsorted_times_are_sorted_if_asked():
    order = np.random.default_rng(0).permutation(48)
    with pytest.raises(DataError, match="times must ascend"):
        arranged("file", SMALL.values[order], TIME[order], **rest(SMALL))
    made = arranged("file", SMALL.values[order], TIME[order], sort=True, **rest(SMALL))
    assert (made.time == TIME).all()
    assert (made.values == SMALL.values).all()


def test_doubles_are_refused_even_when_sorted():
    time = TIME.copy()
    time[7] = time[3]
    with pytest.raises(DataError, match="every time must occur once"):
        arranged("file", SMALL.values, time, sort=True, **rest(SMALL))


def test_missing_times_become_gaps():
    keep = np.setdiff1d(np.arange(48), [5, 6, 20])
    made = arranged("file", SMALL.values[keep], TIME[keep], **rest(SMALL))
    assert (made.time == TIME).all()
    assert made.gaps == 3 * 12
    assert np.isnan(made.values[[5, 6, 20]]).all()
    assert (made.values[keep] == SMALL.values[keep]).all()
    assert made.notes == (
        "3 missing times were inserted as gaps: 2019-03-01 05:00, 2019-03-01 06:00, 2019-03-01 20:00",
    )


def test_times_without_a_step_are_refused():
    with pytest.raises(DataError, match=r"multiples of one step, got 46 of 3600 s, 1 of 4000 s; resample"):
        arranged("file", SMALL.values, moved([3600] * 46 + [4000]), **rest(SMALL))
    with pytest.raises(DataError, match="multiples of one step"):  # a second beside years
        arranged("file", SMALL.values, moved([1] + [10**7] * 46), **rest(SMALL))


def test_gaps_are_filled_by_the_past_alone():
    values = np.array([np.nan, 1, np.nan, np.nan, 4, np.nan]).reshape(6, 1, 1)
    series = Series("gaps", values, TIME[:6], np.zeros(1), np.zeros(1), ("a",))
    assert series.gaps == 4
    assert series.carried().ravel().tolist()[1:] == [1, 1, 1, 4, 4]
    assert np.isnan(series.carried()[0])


def test_variables_are_chosen_by_name():
    series = waves(30, 2, 3, variables=3)
    some = series.chosen(("c", "a"))
    assert some.variables == ("c", "a")
    assert (some.values == series.values[:, :, [2, 0]]).all()
    with pytest.raises(DataError, match="variable must be one of a, b, c, got 'd'"):
        series.chosen(("d",))


def test_labels_have_the_unit():
    assert SMALL.label(0) == "a"
    assert replace(SMALL, units=("K",)).label(0) == "a (K)"
