"""Zarr stores that lack chunks, and those that hold what is no data."""

import numpy as np
import pytest

from mldd import problem
from mldd.problems.data import DataError, load_series
from mldd.problems.forecasts import Forecasting

xarray = pytest.importorskip("xarray")
pytest.importorskip("zarr")
TIMES = 96


@pytest.fixture(params=[2, 3])
def store(tmp_path, request):
    """A store of four chunks in time, each a file."""
    values = np.random.default_rng(0).random((TIMES, 3, 4)).astype(np.float32)
    time = np.datetime64("2020-01-01", "ns") + np.arange(TIMES) * np.timedelta64(3600, "s")
    places = {"time": time, "latitude": np.linspace(50, 48, 3), "longitude": np.linspace(0, 3, 4)}
    made = xarray.Dataset({"t2m": (("time", "latitude", "longitude"), values)}, places)
    path = tmp_path / "s.zarr"
    encoding = {"t2m": {"chunks": (24, 3, 4)}}
    made.to_zarr(path, zarr_format=request.param, encoding=encoding, consolidated=False)
    return path


def chunk(store, name, k):
    """The file of a chunk."""
    files = [f for f in (store / name).rglob("*") if f.is_file() and f.name[0] != "." and f.name != "zarr.json"]
    return sorted(files)[k]


def test_whole_stores_have_nothing_to_say(store):
    assert load_series(store).notes == ()


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store")
def test_chunks_that_are_missing_are_said(store):
    whole = load_series(store).values
    chunk(store, "t2m", 1).unlink()
    series = load_series(store)
    assert series.notes == ("1 of 4 chunks of t2m are not in the store: every value there is the fill value nan",)
    assert np.isnan(series.values[24:48]).all() and np.array_equal(
        np.delete(series.values, range(24, 48), 0)[:24], whole[:24]
    )


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store")
def test_no_chunk_at_all_or_none_of_a_coordinate_is_refused(store):
    content = chunk(store, "latitude", 0).read_bytes()
    place = chunk(store, "latitude", 0)
    place.unlink()
    with pytest.raises(
        DataError, match="expected all chunks of the coordinate latitude, got 1 of 1 that are not there"
    ):
        load_series(store)
    place.write_bytes(content)
    for _ in range(4):
        chunk(store, "t2m", 0).unlink()
    with pytest.raises(DataError, match="expected values of t2m, got a store without any"):
        load_series(store)


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store")
def test_a_part_without_observations_is_said(store):
    chunk(store, "t2m", 3).unlink()
    made = Forecasting(str(store))
    assert made.details()["notes"][-1] == "the test part has gaps only: its errors are NaN"
    assert np.isfinite(made.weights[1]).all()


@pytest.mark.filterwarnings("ignore:Failed to open Zarr store")
def test_a_device_in_a_store_is_refused(store):
    place = chunk(store, "t2m", 2)
    place.unlink()
    place.symlink_to("/dev/zero")
    with pytest.raises(DataError, match="expected a file, got a device, pipe or socket"):
        load_series(store)


def test_an_output_without_targets_is_refused():
    """Observations at every second time: no forecast of one step has both ends."""
    from tests.small_series import waves

    series = waves()
    series.values[1::2] = np.nan
    with pytest.raises(DataError, match="expected observations to train every output with, got gaps at the start or"):
        problem(Forecasting, name=series, horizon=1).weights  # noqa: B018
