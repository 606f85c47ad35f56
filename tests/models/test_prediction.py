"""Predictions as files: what is written is what other programs read back."""

import csv
from dataclasses import replace

import numpy as np
import pytest

from mldd.models import Field, Prediction, check_target, joined

TIMES = np.array(["2019-03-01T06", "2019-03-01T12"], dtype="datetime64[s]")


def some():
    return Prediction(
        {
            "t2m": Field(("time", "node"), np.arange(6.0).reshape(2, 3), {"units": "K"}),
            "score": Field(("node", "class"), np.arange(6.0).reshape(3, 2)),
        },
        {
            "time": Field(("time",), TIMES, {"standard_name": "time"}),
            "class": Field(("class",), np.array([4, 7])),
            "latitude": Field(("node",), np.array([50.0, 51.0, 52.0]), {"units": "degrees_north"}),
        },
        ("time", "node"),
        {"title": "some"},
    )


def test_netcdf_is_what_xarray_reads(tmp_path):
    xarray = pytest.importorskip("xarray")
    some().write(tmp_path / "p.nc")
    with xarray.open_dataset(tmp_path / "p.nc") as read:
        assert read.t2m.dims == ("time", "node") and read.t2m.attrs["units"] == "K"
        assert read.time.values.astype("datetime64[s]").tolist() == TIMES.tolist()
        assert read.time.attrs["standard_name"] == "time"
        np.testing.assert_array_equal(read.t2m.values, some()["t2m"])
        np.testing.assert_array_equal(read.latitude.values, some()["latitude"])
        assert read.attrs["Conventions"].startswith("CF-") and read.attrs["title"] == "some"
        xarray.testing.assert_identical(read.load(), some().dataset())


def test_netcdf_without_h5netcdf(tmp_path, monkeypatch):
    xarray = pytest.importorskip("xarray")
    from mldd.models import prediction

    monkeypatch.setattr(prediction, "find_spec", lambda name: None)
    some().write(tmp_path / "p.nc")
    assert (tmp_path / "p.nc").read_bytes()[:3] == b"CDF"
    with xarray.open_dataset(tmp_path / "p.nc") as read:
        np.testing.assert_array_equal(read.score.values, some()["score"])


def test_archive_keeps_units(tmp_path):
    some().write(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz", allow_pickle=False) as read:
        assert str(read["t2m_units"]) == "K" and (read["time"] == TIMES).all()
        np.testing.assert_array_equal(read["t2m"], some()["t2m"])


def test_table_has_a_row_per_time_and_node(tmp_path):
    some().write(tmp_path / "p.csv")
    with open(tmp_path / "p.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["time", "latitude", "t2m", "score_4", "score_7"] and len(rows) == 6
    assert rows[4] == {
        "time": "2019-03-01T12:00:00",
        "latitude": "51.0",
        "t2m": "4.0",
        "score_4": "2.0",
        "score_7": "3.0",
    }


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("p.txt", ValueError, "must be written as .nc .zarr .npz .csv, got 'p.txt'"),
        ("there.csv", OSError, "must be a new file, got one that is there; give another name, or --overwrite"),
        ("no/p.csv", OSError, "the folder of .* must be there, got none"),
    ],
)
def test_targets_that_cannot_be(tmp_path, name, kind, words):
    (tmp_path / "there.csv").write_text("")
    with pytest.raises(kind, match=words):
        check_target(tmp_path / name)
    check_target(tmp_path / "there.csv", overwrite=True)
    check_target(tmp_path / "new.npz")


def test_a_store_is_what_xarray_reads_and_replaces_only_stores(tmp_path):
    xarray = pytest.importorskip("xarray")
    pytest.importorskip("zarr")
    some().write(tmp_path / "p.zarr")
    some().write(tmp_path / "p.zarr")
    with xarray.open_zarr(tmp_path / "p.zarr") as read:
        xarray.testing.assert_identical(read.load(), some().dataset())
    assert [path.name for path in tmp_path.iterdir()] == ["p.zarr"]
    (tmp_path / "mine.zarr").mkdir()
    (tmp_path / "mine.zarr" / "notes.txt").write_text("")
    with pytest.raises(OSError, match="must be a new folder or a Zarr store, got something else"):
        check_target(tmp_path / "mine.zarr", overwrite=True)


def test_members_of_different_places_are_not_joined():
    one = some()
    both = joined([one, one, joined([one, one])])
    assert both.sizes["member"] == 4 and both.fields["t2m"].dims == ("member", "time", "node")
    moved = dict(one.coordinates, latitude=Field(("node",), np.array([50.0, 51.0, 53.0])))
    with pytest.raises(ValueError, match="got another latitude in number 1 than in number 0"):
        joined([one, replace(one, coordinates=moved)])
