"""Data sets of Anemoi as forecasting problems: what the file says, number by number."""

import numpy as np
import pytest
import torch

from mldd import minimise
from mldd.loop import Stop
from mldd.problems.data import DataError, load_series
from mldd.problems.forecasts import Forecasting, Plan, Reading
from mldd.solvers import LBFGS
from tests.small_anemoi import FORCING, grid, write_zarr

zarr = pytest.importorskip("zarr")
T, ROWS, COLUMNS = 60, 4, 6
CELLS = ROWS * COLUMNS
VARIABLES = ["2t", FORCING, "lsm", "q", "z"]  # as they are sorted in the file
LATITUDES, LONGITUDES = grid(ROWS, COLUMNS)
DATES = np.datetime64("2020-01-01T00", "s") + np.arange(T) * np.timedelta64(6 * 3600, "s")
MISSING = (7, 30)


def numbers():
    """Values, shape (T, V, 1, C), float32: constant fields do not change, and two times are missing."""
    random = np.random.default_rng(0)
    values = random.normal(280, 5, (T, len(VARIABLES), 1, CELLS)).cumsum(0) / 50
    values[:, 1] = np.cos(np.radians(LATITUDES))
    values[:, 2] = np.arange(CELLS) % 2
    values[:, 4] = 9.80665 * 10 * np.arange(CELLS)
    values[list(MISSING)] = np.nan
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("anemoi") / "set.zarr"
    options = {"missing": DATES[list(MISSING)], "constant_fields": [FORCING, "lsm", "z"]}
    return write_zarr(path, numbers(), VARIABLES, DATES, LATITUDES, LONGITUDES, field_shape=[ROWS, COLUMNS], **options)


def test_variables_are_those_of_the_file(store):
    series = load_series(store, variables=("q", "2t"))
    expected = numbers()[:, [3, 0], 0].transpose(0, 2, 1).astype(np.float64)
    np.testing.assert_array_equal(series.values, expected)
    np.testing.assert_array_equal(series.time, DATES)
    np.testing.assert_array_equal(series.latitude, LATITUDES)
    np.testing.assert_array_equal(series.longitude, LONGITUDES)
    assert (series.variables, series.units, series.grid) == (("q", "2t"), ("K", "K"), (ROWS, COLUMNS))
    assert series.gaps == len(MISSING) * CELLS * 2
    np.testing.assert_allclose(series.altitude, 10 * np.arange(CELLS), rtol=1e-6)
    assert list(series.supplement.static) == ["lsm"]
    np.testing.assert_array_equal(series.supplement.static["lsm"], np.arange(CELLS) % 2)
    notes = " ".join(series.notes)
    assert "2 times are missing_dates of the file" in notes and f"not read: {FORCING}" in notes
    assert "normalised by the statistics in the file" in notes


def test_a_forecast_is_normalised_and_has_the_static_fields(store):
    reading = Reading(variable=("2t", "q"))
    problem = Forecasting(str(store), Plan(horizon=2, history=2, stride=3), reading=reading)
    data = problem.forecast_data
    past = numbers()[: int(0.8 * T), [0, 3], 0].astype(np.float64)
    np.testing.assert_allclose(data.mean, np.nanmean(past, (0, 2)), rtol=1e-12)
    np.testing.assert_allclose(data.deviation, np.nanstd(past, (0, 2)), rtol=1e-12)
    columns, names = data.static
    lsm = np.arange(CELLS) % 2
    np.testing.assert_allclose(columns[:, names.index("lsm")], (lsm - lsm.mean()) / lsm.std(), rtol=1e-12)
    np.testing.assert_allclose(
        data.normal[5, :, 1], (numbers()[5, 3, 0] - data.mean[1]) / data.deviation[1], rtol=1e-12
    )
    x = problem.initial(0)
    assert float(problem.objective().value(x)) == pytest.approx(1.0, rel=1e-6)  # it starts from persistence
    result = minimise(problem.objective(), x, LBFGS(), stop=Stop(max_steps=3))
    assert result.record.value < 0.999 and bool(torch.isfinite(result.x).all())
    assert set(problem.details()["inputs"]) >= {"2t", "q", "lsm", "altitude"}
    chosen = problem.series.chosen(("q",))
    assert chosen.supplement.mean.tolist() == [data.mean[1]]


def test_cells_of_no_grid(tmp_path):
    shuffled = np.random.default_rng(1).permutation(CELLS)
    values = numbers()[:, :1, :, shuffled]
    place = LATITUDES[shuffled], LONGITUDES[shuffled]
    path = write_zarr(tmp_path / "flat.zarr", values, ["2t"], DATES, *place, field_shape=[CELLS])
    series = load_series(path)  # the only variable
    assert series.grid is None
    np.testing.assert_array_equal(series.values[..., 0], values[:, 0, 0])
    np.testing.assert_array_equal(series.latitude, place[0])
    assert "2 times have no values, and are no missing_dates" in " ".join(series.notes)


def test_a_member_of_an_ensemble_is_read_trained_on_and_predicted_from(tmp_path):
    both = np.concatenate([numbers(), numbers()[::-1] + 1], axis=2)[:, [0, 2]]
    path = write_zarr(tmp_path / "both.zarr", both, ["2t", "lsm"], DATES, LATITUDES, LONGITUDES)
    series = load_series(path, variables=("2t",), select=("ensemble=1",))
    np.testing.assert_array_equal(series.values[..., 0], both[:, 0, 1])
    problem = Forecasting(
        str(path), Plan(horizon=1, history=2), reading=Reading(variable=("2t",), select=("ensemble=1",))
    )
    np.testing.assert_array_equal(problem.series.values, series.values)
    x = problem.initial(0)  # the forecast is the last value
    made = problem.module(x).predict(path, start=[40])
    np.testing.assert_allclose(made["2t"].ravel(), both[40, 0, 1], rtol=1e-6)


def test_what_cannot_be_read_is_refused_in_one_line(store, tmp_path):
    with pytest.raises(DataError, match="neither forcing nor constant, got 2t, q; choose by variable=NAME"):
        load_series(store)
    with pytest.raises(DataError, match="variable must be one of 2t, cos_latitude, lsm, q, z, got 'u'"):
        load_series(store, variables=("u",))
    place = LATITUDES, LONGITUDES
    members = write_zarr(tmp_path / "m.zarr", numbers()[:, :1].repeat(2, 2), ["2t"], DATES, *place)
    for select, words in (
        ((), "expected one ensemble member, got 2; choose one by select=ensemble=0, or another of 0..1"),
        (("ensemble=2",), "ensemble must be one of 0..1, got '2'; correct `select`"),
        (("level=850",), "`select` must be one member of the data, ensemble=0, got level=850"),
        (("ensemble=0", "ensemble=1"), "`select` must be one member of the data"),
    ):
        with pytest.raises(DataError, match=words):
            load_series(members, select=select)
    names = write_zarr(tmp_path / "n.zarr", numbers()[:, :1], ["2t", "q"], DATES, *place)
    with pytest.raises(DataError, match=r"expected data of shape \(60, 2, 1, 24\) .*, got \(60, 1, 1, 24\)"):
        load_series(names, variables=("2t",))
    damaged = write_zarr(tmp_path / "d.zarr", numbers()[:, :1], ["2t"], DATES, *place)
    next(damaged.glob("data/3.*")).write_bytes(b"no chunk")
    with pytest.raises(DataError, match="expected a data set of Anemoi that zarr can read"):
        load_series(damaged)
