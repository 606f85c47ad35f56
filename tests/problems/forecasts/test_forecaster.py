"""Forecasts from any origin: those of a piece of a series are those of the whole one, and no origin is made up."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.problems.data import DataError
from mldd.problems.forecasts import Forecasting
from mldd.problems.forecasts.forecast_data import ForecastData
from tests.small_series import waves


def some(problem, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return 0.2 * torch.randn(problem.objective().size, generator=generator, dtype=torch.float64)


def last(series, count):
    return replace(series, values=series.values[-count:], time=series.time[-count:])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"horizon": (3, 6), "base": "linear"},
        {"horizon": 6, "rollout": 4, "history": 3},
        {"model": "epd", "hidden": 8, "climatology": False},
        {"model": "epd", "hidden": 8, "horizon": 6, "rollout": 3, "history": 3},
        {"forcing": False, "model": "gat"},
    ],
    ids=str,
)
@pytest.mark.parametrize("series", [{}, {"variables": 2, "roads": True, "grid": False}], ids=["grid", "roads"])
def test_the_last_48_hours_alone_give_the_forecast_of_the_whole_file(options, series):
    whole = waves(times=300, **series)
    problem = mldd.problem(Forecasting, name=whole, **options)
    x = some(problem)
    short = last(whole, 48)
    data = ForecastData(short, problem.forecast_data.plan, problem.forecast_data.normalisation())
    alone = replace(problem.forecaster, data=data)
    parameters = problem.net.layout.views(x)
    origins = np.arange(data.first, 48)
    made = alone(parameters, origins)
    assert np.abs(made - problem.forecasts(x, origins + 252)).max() < 1e-9
    assert np.ptp(made) > 1.0, "there is something to forecast"


def test_normalisation_is_not_fitted_again():
    whole = waves(times=300)
    problem = Forecasting(whole)
    warmer = replace(last(whole, 48), values=last(whole, 48).values + 100.0)
    data = ForecastData(warmer, problem.forecast_data.plan, problem.forecast_data.normalisation())
    assert np.array_equal(data.mean, problem.forecast_data.mean)
    assert data.normal.mean() > 10


def test_gaps_of_the_new_series_are_carried_and_marks_stay():
    whole = waves(times=300, gaps=0.05)
    problem = Forecasting(whole)
    full = last(waves(times=300), 48)
    data = ForecastData(full, problem.forecast_data.plan, problem.forecast_data.normalisation())
    assert data.feature_names == problem.forecast_data.feature_names
    place = data.feature_names.index("a: observed")
    assert (data.features(np.array([40]))[:, :, place] == 1).all()


@pytest.mark.parametrize("base", ["persistence", "linear"])
def test_origins_without_history_or_beyond_the_end_are_refused(base):
    problem = mldd.problem(Forecasting, name=waves(times=200), base=base)
    first, x = problem.forecast_data.first, some(problem)
    assert first >= 5
    assert problem.forecasts(x, np.array([first, 199])).shape == (2, 30, 1, 1)
    assert problem.forecasts(x, np.array([], dtype=np.int64)).shape == (0, 30, 1, 1)
    for bad in (-1, 0, first - 1, 200):
        with pytest.raises(DataError, match=rf"origins must be in {first}..199 .* got {bad}; leave it out") as error:
            problem.forecasts(x, np.array([100, bad]))
        assert "\n" not in str(error.value)
    with pytest.raises(DataError, match=r"whole numbers of shape \(S,\), got float64"):
        problem.forecasts(x, np.array([20.5]))


def test_a_series_shorter_than_the_history_is_refused():
    whole = waves(times=300)
    problem = Forecasting(whole)
    plan, fitted = problem.forecast_data.plan, problem.forecast_data.normalisation()
    with pytest.raises(DataError, match=r"there must be \d+ times for the history of a forecast, got 4"):
        ForecastData(last(whole, 4), plan, fitted)
