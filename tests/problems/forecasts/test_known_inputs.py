"""Covariates that are known ahead, static fields, and the boundary of a region as inputs."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.models import load, save
from mldd.problems.data import DataError, load_series
from mldd.problems.forecasts import Forecasting
from tests.small_series import waves

xarray = pytest.importorskip("xarray")
DIMS = ("time", "latitude", "longitude")


def region(times=200):
    """A field a, a covariate c and a mask on a grid of 5 x 6 cells, as a data set."""
    made = waves(times=times, variables=2)
    where = {
        "time": made.time.astype("datetime64[ns]"),
        "latitude": made.latitude[::6],
        "longitude": made.longitude[:6],
    }
    fields = {name: (DIMS, made.values[..., v].reshape(-1, 5, 6)) for v, name in enumerate("ac")}
    return xarray.Dataset(fields | {"lsm": (DIMS[1:], np.arange(30.0).reshape(5, 6) % 2)}, where)


def trained(path, **options):
    problem = mldd.problem(Forecasting, name=str(path), variable=("a",), horizon=(2, 4), hidden=6, **options)
    generator = torch.Generator().manual_seed(1)
    return problem, 0.3 * torch.randn(problem.objective().size, generator=generator, dtype=torch.float64)


def test_a_covariate_is_an_input_at_the_time_of_the_forecast(tmp_path):
    made = region()
    made.to_netcdf(tmp_path / "a.nc")
    problem, x = trained(tmp_path / "a.nc", known=("c",))
    data = problem.forecast_data
    column = data.feature_names.index("c at lead 4")
    covariate = made.c.values.reshape(200, 30)
    past = covariate[: data.fitted]
    wanted = (covariate[[54, 74]] - past.mean()) / past.std()
    np.testing.assert_allclose(data.features(np.array([50, 70]))[:, :, column], wanted.T, rtol=1e-12)
    save(tmp_path / "model.pt", problem.module(x), {})
    model = load(tmp_path / "model.pt")
    before = model.predict(tmp_path / "a.nc", start=[150])["a"]
    wanted = problem.forecasts(x, np.array([150]))[0, :, :, 0]
    np.testing.assert_allclose(before[0].reshape(2, 30).T, wanted, atol=1e-12)
    for later, changes in ((154, True), (153, False), (155, False)):
        other = made.copy(deep=True)
        other.c[later] += 5.0
        other.to_netcdf(tmp_path / f"b{later}.nc")
        after = model.predict(tmp_path / f"b{later}.nc", start=[150])["a"]
        assert (np.abs(after - before).max() > 1e-6) == changes


def test_the_last_start_is_the_last_observation_and_covariates_must_reach_beyond(tmp_path):
    made = region()
    made.to_netcdf(tmp_path / "a.nc")
    problem, x = trained(tmp_path / "a.nc", known=("c",))
    model = problem.module(x)
    made["a"][196:] = np.nan
    made.to_netcdf(tmp_path / "ahead.nc")
    ahead = model.predict(tmp_path / "ahead.nc")
    assert ahead["time"].tolist() == [made.time.values[195].astype("datetime64[s]").tolist()] and not ahead.notes[1:]
    np.testing.assert_allclose(ahead["a"], model.predict(tmp_path / "a.nc", start=[195])["a"], atol=1e-12)
    made.isel(time=slice(0, 199)).to_netcdf(tmp_path / "short.nc")
    with pytest.raises(
        DataError, match=r"covariates \(c\) must be known to 2019-03-09T07:00:00, got times to .*T06"
    ) as e:
        model.predict(tmp_path / "short.nc")
    assert "\n" not in str(e.value)


def test_static_fields_are_inputs(tmp_path):
    made = region()
    made.to_netcdf(tmp_path / "a.nc")
    problem, _ = trained(tmp_path / "a.nc", static=("lsm",))
    values, names = problem.forecast_data.static
    mask = made.lsm.values.ravel()
    np.testing.assert_allclose(values[:, names.index("lsm")], (mask - mask.mean()) / mask.std(), rtol=1e-12)
    timed = made.assign(lsm=made.lsm.expand_dims(time=made.time))
    timed.to_netcdf(tmp_path / "timed.nc")
    series = load_series(tmp_path / "timed.nc", variables=("a",), static=("lsm",))
    np.testing.assert_array_equal(series.supplement.static["lsm"], mask)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"static": ("c",)}, "static field c must not change in time, got one that does; use known=c"),
        ({"static": ("moon",)}, "variable must be one of .*, got 'moon'"),
        ({"known": ("moon",)}, "got 'moon'"),
        ({"variables": (), "known": ("c",)}, "`known` must be beside `variable`"),
        ({"known": ("hole",)}, "known covariate hole must have no gaps, got 1; fill them"),
    ],
)
def test_covariates_that_are_none_are_refused(tmp_path, keys, words):
    made = region()
    made = made.assign(hole=made.c.where(made.c != made.c[3, 2, 2]))
    made.to_netcdf(tmp_path / "a.nc")
    with pytest.raises(DataError, match=words) as error:
        load_series(tmp_path / "a.nc", **({"variables": ("a",)} | keys))
    assert "\n" not in str(error.value)


def test_a_boundary_is_input_and_does_not_count(tmp_path):
    made = region()
    made.to_netcdf(tmp_path / "a.nc")
    problem, x = trained(tmp_path / "a.nc", boundary=1)
    outer = np.ones((5, 6), dtype=bool)
    outer[1:-1, 1:-1] = False
    data, values = problem.forecast_data, made.a.values.reshape(200, 30)
    column = data.feature_names.index("boundary a at lead 2")
    inputs = data.features(np.array([50]))[:, 0, column]
    wanted = np.where(outer.ravel(), (values[52] - data.mean[0]) / data.deviation[0], 0.0)
    np.testing.assert_allclose(inputs, wanted, rtol=1e-12)
    t = data.origins["test"]
    t = t[t + 4 < 200]
    change = (values[t + 4] - values[t])[:, ~outer.ravel()]
    scores = problem.metrics(torch.zeros_like(x))
    assert scores["test_rmse_4"] == pytest.approx(np.sqrt((change**2).mean()), rel=1e-12)
    made["a"][196:, 1:-1, 1:-1] = np.nan  # ahead of the last observation another model knows the boundary alone
    made.to_netcdf(tmp_path / "ahead.nc")
    ahead = problem.module(x).predict(tmp_path / "ahead.nc")
    assert ahead["time"].tolist() == [made.time.values[195].astype("datetime64[s]").tolist()]
    assert np.isnan(ahead["a"][0, :, outer]).all() and np.isfinite(ahead["a"][0, :, ~outer]).all()
    whole = problem.forecasts(x, np.array([195]))[0, :, :, 0]
    np.testing.assert_allclose(ahead["a"][0].reshape(2, 30).T, whole, atol=1e-12)
    made["a"][199] = np.nan
    made.to_netcdf(tmp_path / "gap.nc")
    with pytest.raises(DataError, match="values at the boundary must be known at the times of forecasts, got 18 gaps"):
        problem.module(x).predict(tmp_path / "gap.nc")


def test_a_boundary_needs_a_region_and_direct_forecasts():
    with pytest.raises(DataError, match="a boundary must be that of a regional latitude-longitude grid"):
        mldd.problem(Forecasting, name=waves(grid=False), boundary=1).objective()
    with pytest.raises(DataError, match="boundary must leave nodes inside of 5 x 6, got 3 rows"):
        mldd.problem(Forecasting, name=waves(), boundary=3).objective()
    with pytest.raises(ValueError, match="`boundary` needs forecasts that are not fed back"):
        mldd.problem(Forecasting, name=replace(waves()), boundary=1, rollout=2)
