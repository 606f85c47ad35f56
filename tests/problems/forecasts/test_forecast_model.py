"""Trained forecasters: forecasts of pieces of a file, of the same nodes in another order, and what is refused."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.models import load, save
from mldd.problems.data import Calendar, DataError, Series
from mldd.problems.forecasts import Forecasting
from tests.small_series import waves


def trained(series, **options):
    problem = mldd.problem(Forecasting, name=series, **options)
    generator = torch.Generator().manual_seed(1)
    return problem, 0.2 * torch.randn(problem.objective().size, generator=generator, dtype=torch.float64)


def kept(tmp_path, problem, x):
    save(tmp_path / "model.pt", problem.module(x), {})
    return load(tmp_path)


def last(series, count=48):
    return replace(series, values=series.values[-count:], time=series.time[-count:])


def written(path, series, **attributes):
    """Write a series as NetCDF on its grid, by xarray; return the path."""
    xarray = pytest.importorskip("xarray")
    rows, columns = series.grid
    dims = ("time", "latitude", "longitude")
    fields = {
        name: (dims, series.values[:, :, v].reshape(-1, rows, columns), {"units": "K"} | attributes)
        for v, name in enumerate(series.variables)
    }
    where = {
        "time": series.time.astype("datetime64[ns]"),
        "latitude": series.latitude.reshape(rows, columns)[:, 0],
        "longitude": series.longitude[:columns],
    }
    xarray.Dataset(fields, where).to_netcdf(path)
    return path


@pytest.mark.parametrize(
    "options",
    [
        {"horizon": (3, 6), "base": "linear"},
        {"horizon": 6, "rollout": 2},
        {"model": "epd", "hidden": 8},
        {"model": "epd", "hidden": 8, "horizon": 6, "rollout": 2},
        {"model": "gcn", "weighted": True},
    ],
    ids=str,
)
def test_a_kept_model_forecasts_the_last_48_hours_as_the_whole_file(tmp_path, options):
    whole = waves(times=300, variables=2, roads=options.get("weighted", False))
    problem, x = trained(whole, **options)
    model = kept(tmp_path, problem, x)
    wanted = problem.forecasts(x, np.array([299]))
    made = model.predict(last(whole))
    for v, name in enumerate(whole.variables):
        field = made[name].reshape(1, -1, 30).transpose(0, 2, 1)
        assert np.abs(field - wanted[..., v]).max() < 1e-9
    assert (made["time"] == whole.time[-1:]).all()
    step = np.timedelta64(3600, "s")
    assert (made["valid_time"] == whole.time[-1] + step * np.array(problem.forecast_data.plan.reached)).all()
    assert made["lead_time"].tolist() == list(problem.forecast_data.plan.reached)


def test_files_give_the_forecast_of_the_whole_file(tmp_path):
    xarray = pytest.importorskip("xarray")
    series = replace(waves(times=300), altitude=None)
    written(tmp_path / "whole.nc", series)
    written(tmp_path / "last.nc", last(series))
    problem, x = trained(str(tmp_path / "whole.nc"))
    model = kept(tmp_path, problem, x)
    model.predict(tmp_path / "last.nc").write(tmp_path / "forecast.nc")
    with xarray.open_dataset(tmp_path / "forecast.nc") as read:
        assert read.a.dims == ("time", "lead_time", "latitude", "longitude") and read.a.attrs["units"] == "K"
        np.testing.assert_allclose(read.a.values.ravel(), problem.forecasts(x, np.array([299])).ravel(), atol=1e-5)
        assert read.time.values[0] == series.time[-1] and read.lead_time.attrs["units"] == "hours"
        assert read.latitude.values.tolist() == series.latitude[::6].tolist()
        assert read.valid_time.values[0, 0] == series.time[-1] + np.timedelta64(6, "h")


def test_nodes_may_come_in_another_order_and_with_others():
    whole = waves(times=300, grid=False)
    problem, x = trained(whole)
    model = problem.module(x)
    order = np.random.default_rng(0).permutation(30)
    mixed = replace(
        last(whole),
        values=last(whole).values[:, order],
        latitude=whole.latitude[order],
        longitude=np.mod(whole.longitude[order], 360.0),
        altitude=whole.altitude[order],
    )
    np.testing.assert_allclose(model.predict(mixed)["a"], model.predict(last(whole))["a"], atol=1e-12)
    more = replace(
        mixed,
        values=np.concatenate([mixed.values, mixed.values[:, :1]], 1),
        latitude=np.append(mixed.latitude, 10.0),
        longitude=np.append(mixed.longitude, 20.0),
        altitude=None,
    )
    made = model.predict(more)
    np.testing.assert_allclose(made["a"], model.predict(last(whole))["a"], atol=1e-12)
    assert "1 nodes that the training on waves did not have are left out" in made.notes


def test_origins_by_date():
    whole = waves(times=200)
    problem, x = trained(whole)
    model, first = problem.module(x), problem.forecast_data.first
    assert len(model.predict(whole, start="all")["time"]) == 200 - first
    assert model.predict(whole, start="2019-03-05T07")["time"].tolist() == [whole.time[103].tolist()]
    made = model.predict(whole, start="2019-03-05T07..2019-03-05T09")
    np.testing.assert_allclose(made["a"].reshape(3, 30), problem.forecasts(x, np.arange(103, 106))[:, :, 0, 0])
    assert len(model.predict(whole, start=[50, 60])["time"]) == 2
    for bad, words in (
        ("yesterday", "must be last, all, a date or two"),
        ("2020-01-01", r"must lie in 2019-03-01T.*..2019-03-09T07:00:00, got 2020-01-01"),
        ("2019-03-01", "`start` must lie in"),
        ([0], "origins must be in"),
    ):
        with pytest.raises(DataError, match=words) as error:
            model.predict(whole, start=bad)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, variables=("b",)), "variable must be one of b, got 'a'"),
        (lambda s: replace(s, units=("degC",)), "a must be in K as in the training on waves, got degC; convert it"),
        (
            lambda s: replace(s, latitude=s.latitude + 1),
            "there must be the 30 nodes of the training on waves .* without",
        ),
        (
            lambda s: replace(
                s, values=s.values[:, :20], latitude=s.latitude[:20], longitude=s.longitude[:20], altitude=None
            ),
            "there must be the 30 nodes .* got 20 nodes without 10 of these; regrid the series, or train on it",
        ),
        (
            lambda s: replace(s, time=s.time[0] + np.arange(48) * np.timedelta64(1800, "s")),
            "3600 s apart .* got 1800 s",
        ),
        (lambda s: replace(s, calendar=Calendar("noleap")), "the calendar must be standard .* got noleap"),
        (lambda s: last(s, 4), "for the history of a forecast, got 4"),
    ],
)
def test_other_series_are_refused_in_one_line(change, words):
    problem, x = trained(replace(waves(times=300, grid=False), units=("K",)))
    with pytest.raises(DataError, match=words) as error:
        problem.module(x).predict(change(last(problem.series)))
    assert "\n" not in str(error.value)


def test_gaps_are_filled_and_said():
    whole = waves(times=300)
    problem, x = trained(whole)
    values = last(whole).values.copy()
    values[:3, 0] = np.nan
    values[20, 1] = np.nan
    made = problem.module(x).predict(replace(last(whole), values=values))
    assert "4 missing values were filled by the last observation, 3 of them before the first one" in made.notes[-1]


def test_times_of_a_calendar_of_models_are_numbers_of_it(tmp_path):
    xarray = pytest.importorskip("xarray")
    cftime = pytest.importorskip("cftime")
    series = replace(waves(times=300, start="2019-02-20"), calendar=Calendar("noleap"))
    problem, x = trained(series)
    problem.module(x).predict(series).write(tmp_path / "f.nc")
    with xarray.open_dataset(tmp_path / "f.nc") as read:
        wanted = cftime.DatetimeNoLeap(2019, 2, 20) + (series.time[-1] - series.time[0]).astype(object)
        assert read.time.values[0] == wanted


def test_the_series_itself_is_not_in_the_file(tmp_path):
    whole = waves(times=3000)
    problem, x = trained(whole, stride=12)
    save(tmp_path / "model.pt", problem.module(x), {})
    assert isinstance(whole, Series) and (tmp_path / "model.pt").stat().st_size < whole.values.nbytes / 5


@pytest.mark.parametrize(
    "options",
    [
        {"horizon": 3, "rollout": 2, "history": 2},
        {"horizon": 1, "history": 3},
        {"horizon": 3, "rollout": 2, "history": 2, "model": "epd", "hidden": 8},
        {"horizon": 1, "history": 3, "model": "epd", "hidden": 8},
    ],
    ids=str,
)
def test_steps_feed_forecasts_back_as_by_hand(options):
    whole = waves(times=300, variables=2)
    problem, x = trained(whole, **options)
    model, lead = problem.module(x), options["horizon"]
    wanted, series = [], replace(whole, values=whole.values[:240], time=whole.time[:240])
    for _ in range(5):
        made = model.predict(series, steps=1)
        assert made.sizes["lead_time"] == 1
        wanted.append(np.stack([made[name][0, 0].ravel() for name in whole.variables], axis=-1))
        rows = np.full((lead, *series.values.shape[1:]), 1e3)  # what lies between two steps is no input
        rows[-1] = wanted[-1]
        time = series.time[0] + (len(series.time) + np.arange(lead)) * np.timedelta64(3600, "s")
        longer = np.concatenate([series.values, rows]), np.concatenate([series.time, time])
        series = replace(series, values=longer[0], time=longer[1])
    made = model.predict(whole, start=[239], steps=5)
    assert made["lead_time"].tolist() == [lead * k for k in range(1, 6)]
    for v, name in enumerate(whole.variables):
        np.testing.assert_allclose(made[name][0].reshape(5, -1), np.stack(wanted)[..., v], atol=1e-9)


@pytest.mark.parametrize(
    "options", [{"model": "epd", "hidden": 8, "horizon": 2}, {"horizon": 6}, {"horizon": (2, 4)}], ids=str
)
def test_steps_beyond_those_that_can_be_reached_are_refused(options):
    problem, x = trained(waves(times=300), **options)
    with pytest.raises(ValueError, match=r"`steps` must be in 1\.\..* train one by plan.rollout=2") as error:
        problem.module(x).predict(problem.series, steps=3)
    assert "\n" not in str(error.value)


def test_members_begin_at_perturbed_observations():
    whole = waves(times=300)
    problem, x = trained(whole, horizon=(2, 4))
    model = problem.module(x)
    made = model.predict(whole, start=[250, 260], steps=1, members=3, perturb=0.1, seed=5)
    assert made.fields["a"].dims[0] == "member" and made["a"].shape[:3] == (3, 2, 1)
    np.testing.assert_array_equal(made["a"][0], model.predict(whole, start=[250, 260])["a"][:, :1])
    values = whole.values + 0.1 * problem.forecast_data.deviation * np.random.default_rng([5, 2]).standard_normal(
        whole.values.shape
    )
    other = model.predict(replace(whole, values=values), start=[250, 260])
    np.testing.assert_allclose(made["a"][2], other["a"][:, :1], atol=1e-12)


def test_what_a_file_says_of_a_variable_is_in_its_forecasts(tmp_path):
    pytest.importorskip("xarray")
    series = replace(waves(times=300), altitude=None)
    made = written(tmp_path / "a.nc", series, standard_name="wind_speed", cell_methods="time: mean", long_name="wind")
    problem, x = trained(str(made))
    attributes = problem.module(x).predict(made).fields["a"].attributes
    wanted = {
        "standard_name": "wind_speed",
        "cell_methods": "time: mean",
        "long_name": "forecast of wind",
        "units": "K",
    }
    assert attributes == wanted


def test_known_variables_have_standard_names():
    problem, x = trained(replace(waves(times=300), variables=("t2m",), units=("K",)))
    attributes = problem.module(x).predict(problem.series).fields["t2m"].attributes
    assert attributes["standard_name"] == "air_temperature" and attributes["units"] == "K"


def test_a_model_of_another_version_is_refused_in_one_line(tmp_path):
    problem, x = trained(waves(times=300))
    save(tmp_path / "model.pt", problem.module(x), {})
    content = torch.load(tmp_path / "model.pt", weights_only=True)
    for part, name in (("fitted", "covariates"), ("options", "boundary")):
        config = dict(content["config"], **{part: {k: v for k, v in content["config"][part].items() if k != name}})
        torch.save(content | {"config": config}, tmp_path / "old.pt")
        with pytest.raises(ValueError, match=f"must have the configuration of a forecasts model, .*{name}") as error:
            load(tmp_path / "old.pt")
        assert "\n" not in str(error.value)
