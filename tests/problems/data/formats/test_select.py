"""Levels and members of a file, and series in several files; nodes that were never observed."""

from dataclasses import replace

import numpy as np
import pytest

import mldd
from mldd.problems.data import DataError, load_series
from mldd.problems.forecasts import Forecasting
from mldd.problems.verification import verify
from tests.small_series import waves

xarray = pytest.importorskip("xarray")


def levels(times=60, start="2019-03-01"):
    """A field over time, member, level and a grid, whose value says where it is from."""
    time = np.datetime64(start, "ns") + np.arange(times) * np.timedelta64(3600, "s")
    values = np.arange(times)[:, None, None, None, None] + np.array([0.0, 1000.0])[:, None, None, None]
    values = values + 100.0 * np.arange(3)[:, None, None] + np.arange(20.0).reshape(4, 5)
    where = {"time": time, "number": [0, 7], "level": [850.0, 500.0, 250.0]}
    where |= {"lat": np.linspace(50, 53, 4), "lon": np.linspace(0, 4, 5)}
    return xarray.Dataset({"t": (("time", "number", "level", "lat", "lon"), values, {"units": "K"})}, where)


@pytest.mark.parametrize("kind", ["nc", "zarr"])
def test_levels_and_members_are_selected_by_their_values(tmp_path, kind):
    if kind == "zarr":
        pytest.importorskip("zarr")
    made = levels()
    (made.to_netcdf if kind == "nc" else made.to_zarr)(tmp_path / f"a.{kind}")
    series = load_series(tmp_path / f"a.{kind}", select=("level=500", "number=7"))
    wanted = made.t.sel(level=500, number=7).values.reshape(60, 20)
    np.testing.assert_array_equal(series.values[..., 0], wanted)


@pytest.mark.parametrize(
    ("select", "words"),
    [
        ((), r"got number \(2\), level \(3\) too; choose one by select=number=0"),
        (("number=0",), r"got level \(3\) too; choose one by select=level=850"),
        (("number=3", "level=500"), "number must be one of 0:7, got '3'"),
        (
            ("number=0", "level=500", "depth=3"),
            "`select` must name a dimension of t besides time and place, got 'depth'",
        ),
    ],
)
def test_what_is_ambiguous_or_not_there_is_refused(tmp_path, select, words):
    levels().to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match=words) as error:
        load_series(tmp_path / "a.nc", select=select)
    assert "\n" not in str(error.value)


def test_the_command_line_selects_in_training_prediction_and_verification(run, tmp_path):
    made = levels(120)
    made["t"] = made.t + np.random.default_rng(0).standard_normal(made.t.shape)
    made.to_netcdf(tmp_path / "a.nc")
    line = f"train {tmp_path}/a.nc:select=level=500:number=7,horizon=1,hidden=4 --solver adam --steps 2 --quiet --out"
    assert run(f"{line} {tmp_path}/out") == (0, "", "")
    code, _, err = run(
        f"predict {tmp_path}/out {tmp_path}/a.nc --start 2019-03-05T03..2019-03-05T20 --out {tmp_path}/f.nc"
    )
    assert (code, err) == (0, "")
    code, said, err = run(f"verify {tmp_path}/f.nc {tmp_path}/a.nc:select=level=500:number=7")
    assert (code, err) == (0, "") and "t (K)" in said
    code, _, err = run(f"verify {tmp_path}/f.nc {tmp_path}/a.nc")
    assert code == 2 and "choose one by select=number=0" in err


def test_select_is_not_of_formats_without_dimensions(tmp_path):
    np.savez(tmp_path / "a.npz", time=np.arange(3), latitude=np.zeros(2), longitude=np.zeros(2), t=np.zeros((3, 2)))
    with pytest.raises(DataError, match="`select` is of NetCDF, Zarr and GRIB"):
        load_series(tmp_path / "a.npz", select=("level=1",))


def test_several_files_are_one_series_in_the_order_of_time(run, tmp_path):
    whole = levels().isel(number=0, level=0, drop=True)
    for name, piece in (("b", slice(0, 25)), ("a", slice(25, 50)), ("c", slice(50, 60))):
        whole.isel(time=piece).to_netcdf(tmp_path / f"part_{name}.nc")
    whole.to_netcdf(tmp_path / "whole.nc")
    one, many = load_series(tmp_path / "whole.nc"), load_series(tmp_path / "part_*.nc")
    np.testing.assert_array_equal(one.values, many.values)
    assert (one.time == many.time).all() and "3 files were joined along time" in many.notes
    line = f"train {tmp_path}/part_*.nc:horizon=1,history=1,hidden=4 --solver adam --steps 1 --quiet"
    assert run(line) == (0, "", "")
    whole.isel(time=slice(40, 60)).to_netcdf(tmp_path / "part_d.nc")
    with pytest.raises(DataError, match="every time must occur once"):
        load_series(tmp_path / "part_*.nc", sort=True)
    whole.isel(lat=slice(1, 4)).to_netcdf(tmp_path / "part_e.nc")
    with pytest.raises(DataError, match="files of one series must share the latitude"):
        load_series(tmp_path / "part_*.nc")
    with pytest.raises(DataError, match="expected a file, got none"):
        load_series(tmp_path / "none_*.nc")


def test_nodes_that_were_never_observed_are_left_out_and_said(tmp_path):
    values = waves(times=200).values.copy()
    values[:, ::3] = np.nan
    values[:5, 1] = np.nan
    whole = replace(waves(times=200), values=values)
    problem = mldd.problem(Forecasting, name=whole, horizon=2, hidden=4)
    assert problem.series.nodes == 20 and problem.graph.nodes == 20
    assert "10 of 30 nodes were never observed and are left out" in problem.details()["notes"]
    cosine = np.cos(np.radians(whole.latitude))
    seen = np.arange(30) % 3 > 0
    np.testing.assert_allclose(problem.series.weights, cosine[seen] / cosine[seen].mean(), rtol=1e-12)
    made = problem.module(problem.initial(0)).predict(whole, start=list(range(170, 190)))
    assert made.sizes["node"] == 20 and any("10 nodes that the training" in note for note in made.notes)
    made.write(tmp_path / "f.nc")
    rows, columns = whole.grid
    grid = {
        "time": whole.time.astype("datetime64[ns]"),
        "lat": whole.latitude[::columns],
        "lon": whole.longitude[:columns],
    }
    field = values.reshape(-1, rows, columns)
    xarray.Dataset({"a": (("time", "lat", "lon"), field)}, grid).to_netcdf(tmp_path / "truth.nc")
    done = verify(tmp_path / "f.nc", tmp_path / "truth.nc")
    error = made["a"][:, 0] - values[172:192, seen, 0]  # zero network: persistence
    wanted = np.sqrt((error**2 * cosine[seen]).sum() / (20 * cosine[seen].sum()))
    assert done.rows()[0]["rmse"] == pytest.approx(wanted, rel=1e-9)
