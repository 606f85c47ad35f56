"""Verification: every measure against a computation by xarray, confidence, other people's files, what is refused."""

import csv
from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.models import Field, Prediction
from mldd.problems.data import DataError
from mldd.problems.forecasts import Forecasting
from mldd.problems.verification import verify
from mldd.problems.verification.scores import drawn_times
from tests.small_series import waves

xarray = pytest.importorskip("xarray")
HOUR = np.timedelta64(3600, "s")
STARTS, LEADS = np.arange(100, 190, 3), np.array([2, 5])


def truth(gaps=0.0, names=("u10", "v10"), units=("m/s", "m s-1")):
    """Two components of a wind on a grid, with a daily cycle."""
    made = waves(times=200, rows=4, columns=5, variables=2, gaps=gaps, seed=3)
    return replace(made, variables=names, units=units, altitude=None)


def written(path, series):
    dims, (rows, columns) = ("time", "latitude", "longitude"), series.grid
    fields = {
        name: (dims, series.values[..., v].reshape(-1, rows, columns), {"units": series.units[v]})
        for v, name in enumerate(series.variables)
    }
    where = {
        "time": series.time.astype("datetime64[ns]"),
        "latitude": series.latitude.reshape(rows, columns)[:, 0],
        "longitude": series.longitude[:columns],
    }
    made = xarray.Dataset(fields, where)
    made.to_netcdf(path)
    return made


def forecasts(path, series, members=3, noise=0.5):
    """Forecasts that are the truth with errors that differ by lead time, with members; return them as a data set."""
    random, (rows, columns) = np.random.default_rng(7), series.grid
    filled = np.nan_to_num(series.values, nan=10.0)
    fields = {}
    for v, name in enumerate(series.variables):
        exact = np.stack([filled[STARTS + lead, :, v] for lead in LEADS], axis=1)
        error = 0.3 + noise * random.standard_normal((members, *exact.shape)) * LEADS[:, None]
        values = (exact + error).reshape(members, len(STARTS), len(LEADS), rows, columns)
        dims = ("member", "time", "lead_time", "latitude", "longitude")
        fields[name] = Field(dims, values, {"units": series.units[v]})
    where = {
        "member": Field(("member",), np.arange(members), {"standard_name": "realization"}),
        "time": Field(("time",), series.time[STARTS], {"standard_name": "forecast_reference_time"}),
        "lead_time": Field(("lead_time",), 1.0 * LEADS, {"standard_name": "forecast_period", "units": "hours"}),
        "latitude": Field(("latitude",), series.latitude.reshape(rows, columns)[:, 0], {"standard_name": "latitude"}),
        "longitude": Field(("longitude",), series.longitude[:columns], {"standard_name": "longitude"}),
    }
    made = Prediction(fields, where, ("time", "lead_time", "latitude", "longitude"))
    made.write(path)
    return made.dataset()


@pytest.mark.parametrize("gaps", [0.0, 0.1])
def test_every_measure_is_that_of_xarray(tmp_path, gaps):
    series = truth(gaps)
    observed, made = written(tmp_path / "truth.nc", series), forecasts(tmp_path / "f.nc", series)
    done = verify(tmp_path / "f.nc", tmp_path / "truth.nc")
    rows = {(row["variable"], row["lead_hours"]): row for row in done.rows()}
    weights, space = np.cos(np.radians(observed.latitude)), ("latitude", "longitude")
    past = observed.isel(time=slice(0, STARTS[0]))
    usual = past.groupby("time.hour").mean().fillna(past.mean("time"))
    squares = {}
    for lead in LEADS:
        valid = made.time + int(lead) * HOUR
        there = observed.sel(time=valid).assign_coords(time=made.time)
        start = observed.sel(time=made.time)
        clim = usual.sel(hour=valid.dt.hour).drop_vars("hour").assign_coords(time=made.time)
        mean = made.sel(lead_time=lead).mean("member")
        for name in series.variables:
            row, error = rows[name, lead], mean[name] - there[name]
            squares[name, lead] = error**2

            def average(field, *more):
                return field.weighted(weights).mean((*space, *more))

            wanted = {
                "rmse": np.sqrt(average(error**2, "time")),
                "bias": average(error, "time"),
                "spread": np.sqrt(
                    average(made.sel(lead_time=lead)[name].var("member", ddof=1).where(error.notnull()), "time")
                ),
            }
            member, n = made.sel(lead_time=lead)[name], made.sizes["member"]
            pairs = sum(abs(member.isel(member=i) - member.isel(member=k)) for i in range(n) for k in range(n))
            ranked = abs(member - there[name]).mean("member") - pairs / (2 * n * (n - 1))
            wanted["crps"] = average(ranked.where(error.notnull()), "time")
            a, b = (mean[name] - clim[name]).where(error.notnull()), there[name] - clim[name]
            wanted["acc"] = (average(a * b) / np.sqrt(average(a**2) * average(b**2))).mean("time")
            for which, other in (("persistence", start[name]), ("climatology", clim[name])):
                both = (other - there[name]).notnull()
                own, others = average((error**2).where(both), "time"), average((other - there[name]) ** 2, "time")
                wanted |= {f"rmse_{which}": np.sqrt(others), f"skill_{which}": 1 - own / others}
            for measure, value in wanted.items():
                assert row[measure] == pytest.approx(float(value), abs=1e-6), (name, lead, measure)
        both = (squares["u10", lead] + squares["v10", lead]).weighted(weights).mean()
        assert rows["u10,v10", lead]["rmse"] == pytest.approx(float(np.sqrt(both)), abs=1e-6)
        assert np.isnan(rows["u10,v10", lead]["bias"])


def test_a_file_of_predict_has_the_scores_of_the_training(run, tmp_path):
    written(tmp_path / "truth.nc", truth())
    problem = mldd.problem(Forecasting, name=str(tmp_path / "truth.nc:")[:-1], variable=("u10", "v10"), horizon=(2, 4))
    x = 0.1 * torch.randn(problem.objective().size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    starts = problem.forecast_data.origins["test"][:-2]  # all lead times inside of the series
    problem.module(x).predict(problem.series, start=starts).write(tmp_path / "f.nc")
    out = tmp_path / "out"
    code, said, err = run(f"verify {tmp_path}/f.nc {tmp_path}/truth.nc --out {out}")
    assert (code, err) == (0, "") and "skill linear" in said and "climatology and linear model are those of" in said
    with (out / "verification.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    scores = problem.metrics(x)
    longest = [row for row in rows if row["lead_hours"] == "4" and row["variable"] == "v10"][0]
    for measure in ("rmse", "rmse_persistence", "rmse_climatology", "rmse_linear"):
        assert float(longest[measure]) == pytest.approx(scores[f"test_{measure}_area_v10_4"], rel=1e-6)
    assert {path.name for path in out.iterdir()} >= {"map.png", "lead_times.png"}
    code, _, err = run(f"verify {tmp_path}/f.nc {tmp_path}/truth.nc --out {out}")
    assert code == 2 and "must be new, got one that is there" in err


def test_forecasts_of_others_are_found_by_their_names(tmp_path):
    pytest.importorskip("zarr")
    series = truth()
    written(tmp_path / "truth.nc", series)
    made = forecasts(tmp_path / "f.nc", series, members=1)
    names = {"time": "init_time", "lead_time": "prediction_timedelta", "latitude": "lat", "longitude": "lon"}
    other = made.isel(member=0, drop=True).rename(names).transpose("prediction_timedelta", "lon", "lat", "init_time")
    for name in other.variables:
        other[name].attrs = {"units": "hours"} if name == "prediction_timedelta" else {}
    other.isel(init_time=slice(None, None, -1)).to_zarr(tmp_path / "other.zarr", zarr_format=2)
    one, two = (verify(tmp_path / name, tmp_path / "truth.nc") for name in ("f.nc", "other.zarr"))
    for name, values in one.scores.values.items():
        np.testing.assert_allclose(two.scores.values[name][:, :2], values[:, :2], rtol=1e-12, err_msg=name)


def test_the_past_of_another_series_is_what_references_are_made_of(tmp_path):
    series = truth()
    written(tmp_path / "truth.nc", replace(series, values=series.values[100:], time=series.time[100:]))
    written(tmp_path / "past.nc", replace(series, values=series.values[:100], time=series.time[:100]))
    written(tmp_path / "whole.nc", series)
    forecasts(tmp_path / "f.nc", series)
    alone = verify(tmp_path / "f.nc", tmp_path / "truth.nc")
    assert np.isnan(alone.scores.values["rmse_climatology"]).all() and "has no time before" in " ".join(alone.notes())
    both = verify(tmp_path / "f.nc", tmp_path / "truth.nc", past=tmp_path / "past.nc")
    whole = verify(tmp_path / "f.nc", tmp_path / "whole.nc")
    for name in ("rmse_climatology", "acc"):
        np.testing.assert_allclose(both.scores.values[name], whole.scores.values[name], rtol=1e-10)
    assert np.isfinite(both.scores.values["rmse_linear"]).all()


def test_intervals_are_those_of_independent_errors_and_wider_for_blocks_of_like_ones():
    times = drawn_times(12, 4, 200, seed=1)
    assert (times.sum(1) == 12).all()
    random = np.random.default_rng(2)
    errors = random.standard_normal(400)
    drawn = drawn_times(400, 1, 4000, seed=0) @ errors / 400
    assert drawn.std() == pytest.approx(errors.std() / 20, rel=0.06)
    alike = np.repeat(random.standard_normal(40), 10)
    narrow, wide = (drawn_times(400, block, 2000, seed=0) @ alike / 400 for block in (1, 40))
    assert wide.std() > 2 * narrow.std()


def test_too_few_starts_have_no_interval(tmp_path):
    series = truth()
    written(tmp_path / "truth.nc", series)
    forecasts(tmp_path / "f.nc", series)
    done = verify(tmp_path / "f.nc", tmp_path / "truth.nc", block=20)
    assert np.isnan(done.scores.low["rmse"]).all() and "no intervals: 30 starts" in " ".join(done.notes())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: replace(s, units=("K", "K")), "u10 must be in m/s as in .*, got K; convert it"),
        (
            lambda s: replace(s, latitude=s.latitude - 1),
            "there must be the 20 places of .* without 20 of these; regrid",
        ),
        (lambda s: replace(s, variables=("u10", "w")), "'v10'"),
        (lambda s: replace(s, time=s.time + 900 * HOUR), "expected values at the times of the forecasts"),
    ],
)
def test_another_truth_is_refused_in_one_line(tmp_path, change, words):
    forecasts(tmp_path / "f.nc", truth())
    written(tmp_path / "truth.nc", change(truth()))
    with pytest.raises(DataError, match=words) as error:
        verify(tmp_path / "f.nc", tmp_path / "truth.nc")
    assert "\n" not in str(error.value)


def test_what_is_no_file_of_forecasts_is_refused_in_one_line(tmp_path):
    written(tmp_path / "truth.nc", truth())
    (tmp_path / "text.nc").write_text("no data")
    for name, words in (("truth.nc", "lead_time or step"), ("text.nc", "that xarray can read"), ("no.nc", "got none")):
        with pytest.raises(DataError, match=words) as error:
            verify(tmp_path / name, tmp_path / "truth.nc")
        assert "\n" not in str(error.value)
