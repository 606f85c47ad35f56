"""Errors by variable and lead time beside persistence, climatology and the linear model: by hand with xarray."""

import csv
from dataclasses import replace

import numpy as np
import pytest

import mldd
from mldd.problems.forecasts import Forecasting
from tests.figures.boxes import outside
from tests.small_series import waves

LEADS = (1, 4, 9)
SERIES = replace(waves(160, 4, 5, gaps=0.1, variables=2, seed=1), units=("K", ""))


def problem(series, **options):
    return mldd.problem(Forecasting, **{"name": series, "hidden": 4, "horizon": LEADS, "activation": "tanh", **options})


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A problem, a point, its metrics, and the folder of its pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    p = problem(SERIES)
    x = p.initial(1) + 0.05
    written = p.pictures(folder, x)
    assert {"lead_times.csv", "skill.png", "forecast.png"} == {path.name for path in written}
    return p, x, p.metrics(x), folder


def by_xarray(p, x):
    """Return squared errors (origin, node, variable) by forecast and lead, NaN where a forecast does not count."""
    xarray = pytest.importorskip("xarray", reason="needs xarray")
    data, field = p.forecast_data, ("time", "node", "variable")
    series = xarray.DataArray(p.series.values, dims=field, coords={"time": p.series.time.astype("datetime64[ns]")})
    before = series.isel(time=slice(0, data.cuts[1]))
    usual = before.groupby("time.hour").mean("time")
    begin = data.cuts[1]
    found = {}
    for k, lead in enumerate(LEADS):
        truth = series.shift(time=-lead)
        counts = series.notnull() & truth.notnull()
        hours = (series.time + np.timedelta64(lead, "h")).dt.hour
        own = series.copy(data=np.full(series.shape, np.nan))
        origins = data.origins["test"]
        own[origins] = p.forecasts(x, origins)[:, :, k]
        for name, made in {"network": own, "persistence": series, "climatology": usual.sel(hour=hours)}.items():
            found[name, lead] = ((made - truth) ** 2).where(counts).isel(time=slice(begin, None))
    return found


def test_errors_are_those_by_hand(drawn):
    p, x, metrics, folder = drawn
    with (folder / "lead_times.csv").open(newline="") as stream:
        rows = {(row["variable"], int(row["lead_hours"])): row for row in csv.DictReader(stream)}
    assert len(rows) == 6 and [rows[v, 1]["unit"] for v in "ab"] == ["K", ""]
    for (name, lead), squares in by_xarray(p, x).items():
        ending = "" if name == "network" else f"_{name}"
        for v, variable in enumerate("ab"):
            mean = float(squares.isel(variable=v).mean())
            row = rows[variable, lead]
            assert float(row[f"rmse{ending}"]) == pytest.approx(np.sqrt(mean), rel=1e-6)
            assert metrics[f"test_rmse{ending}_{variable}_{lead}"] == pytest.approx(np.sqrt(mean), rel=1e-9)
            if ending:
                skill = 1 - float(row["rmse"]) ** 2 / mean
                assert float(row[f"skill_{name}"]) == pytest.approx(skill, abs=1e-6)


def test_numbers_of_all_lead_times_come_first(drawn):
    names = list(drawn[2])
    split = [name.endswith(("_a", "_b", *(f"_{lead}" for lead in LEADS))) for name in names]
    assert split == sorted(split) and names[0] == "train_rmse" and "test_rmse_climatology_area" in names[:20]
    assert len(names) == len(set(names)) == 17 * (1 + 2 + 2 * 3) + 1  # and test_gaps


def test_climatology_without_hours_and_without_observations():
    daily = replace(waves(90, 2, 3, seconds=86400, noise=0.5), grid=None)
    p = problem(daily, horizon=(1, 2))
    data, end = p.forecast_data, p.forecast_data.cuts[1]
    mean, t = daily.values[:end].mean(0), data.origins["test"]
    errors = mean - daily.values[t[t + 1 < 90] + 1]
    assert p.references["climatology"].square[0] == pytest.approx((errors**2).mean((0, 1)))
    values = waves(160, 2, 3).values.copy()
    values[: int(0.8 * 160), 2] = np.nan  # a node without a past: the mean of all takes its place
    p = problem(replace(waves(160, 2, 3), values=values), gaps="mask")
    assert np.isfinite(p.references["climatology"].square).all()


@pytest.mark.parametrize("variables", [2, 3, 5])
@pytest.mark.parametrize("leads", [[6.0], [1.0, 6.0, 24.0]])
def test_all_variables_are_drawn(tmp_path, leads, variables, monkeypatch):
    from mldd.figures import maps

    curves = {name: np.linspace(1, 2, len(leads)) * k for k, name in enumerate(("persistence", "climatology"), 1)}
    errors = {f"temperature at {v} metres above ground (K)": curves for v in range(variables)}
    figure = maps.skill(leads, errors, tmp_path / "a.png", unit="h", title="test part")
    assert outside(figure, monkeypatch) == []
    shown = [ax for ax in figure.axes if ax.get_visible()]
    assert len(shown) == variables * (1 if len(leads) == 1 else 2)


def test_validations_one_after_another_are_those_of_the_forecasts():
    p = problem(SERIES, base="linear", history=3)
    data, t = p.forecast_data, p.forecast_data.origins["validation"]
    for x in (p.initial(1), p.initial(1) + 0.1, p.initial(2) - 0.1):
        made, errors = p.forecasts(x, t), []
        for k, lead in enumerate(LEADS):
            inside = t[t + lead < data.cuts[1]]
            truth = np.where(np.isnan(SERIES.values[inside]), np.nan, SERIES.values[inside + lead])
            errors.append(np.nanmean((made[: len(inside), :, k, 0] - truth[..., 0]) ** 2))
        assert p.validation(x)["validation_rmse"] == pytest.approx(np.sqrt(np.mean(errors)), rel=1e-9)
