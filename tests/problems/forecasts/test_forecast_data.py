"""Samples of a series: order of time, no leakage, normalisation by the past, inputs as what they are called."""

from dataclasses import replace

import numpy as np
import pytest

from mldd.problems.data import DataError
from mldd.problems.forecasts.forecast_data import PARTS, ForecastData
from mldd.problems.forecasts.forecast_plan import Plan
from tests.small_series import waves

SERIES = waves(200, 3, 4)


def data(series=SERIES, **plan):
    return ForecastData(series, Plan(**{"horizon": (6,), **plan}))


@pytest.mark.parametrize("labels", ["train", "all"])
@pytest.mark.parametrize("leads", [(6,), (1, 6, 12)])
def test_parts_are_in_order_and_forecasts_stay_inside(leads, labels):
    d = data(horizon=leads, labels=labels)
    assert d.cuts == (120, 160)
    assert d.fitted == (120 if labels == "train" else 160)
    ends = {"train": d.fitted, "validation": 160, "test": 200}
    starts = {"train": d.first, "validation": 120, "test": 160}
    for part in PARTS:
        origins = d.origins[part]
        assert origins[0] == starts[part]
        assert (np.diff(origins) == 1).all()
        assert origins[-1] + leads[0] == ends[part] - 1
        mask = d.targets(origins, d.end_of(part))[1]
        for k, lead in enumerate(leads):
            assert (mask[:, :, k] == (origins + lead < ends[part])).all()


def test_test_origins_are_the_last_fifth():
    assert data().origins["test"].tolist() == list(range(160, 194))


def test_stride_thins_the_training_part_alone():
    one, three = data(), data(stride=3)
    assert (three.origins["train"] == one.origins["train"][::3]).all()
    assert (three.origins["test"] == one.origins["test"]).all()


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"horizon": (1, 6, 30)},
        {"base": "linear"},
        {"base": "linear", "horizon": (24,), "history": 1},
        {"rollout": 3, "horizon": (2,)},
        {"labels": "all"},
    ],
    ids=str,
)
def test_nothing_of_the_future_leaks(plan):
    d = data(**plan)
    values = SERIES.values.copy()
    values[d.fitted :] = np.random.default_rng(9).standard_normal(values[d.fitted :].shape) * 50
    later = data(replace(SERIES, values=values), **plan)
    train = d.origins["train"]
    assert np.allclose(d.window(train), later.window(train), rtol=1e-12)
    assert np.allclose(d.known(train), later.known(train), rtol=1e-12)
    assert np.allclose(d.targets(train, d.fitted)[0], later.targets(train, d.fitted)[0], rtol=1e-12)
    assert np.allclose(d.scales, later.scales, rtol=1e-12)
    assert np.allclose(d.mean, later.mean)
    assert np.allclose(d.deviation, later.deviation)
    # inputs at the origin t know nothing of t + 1, whatever the part
    t = np.array([150, 170])
    changed = SERIES.values.copy()
    changed[171:] += 10.0
    shifted = data(replace(SERIES, values=changed), **plan)
    for turn in range(d.plan.rollout):
        assert np.allclose(d.known(t, turn), shifted.known(t, turn), rtol=1e-12)
    assert np.allclose(d.window(t), shifted.window(t), rtol=1e-12)
    assert np.allclose(d.base(t, d.plan.leads[0]), shifted.base(t, d.plan.leads[0]))


def test_normalisation_is_that_of_the_training_part():
    d = data()
    past = SERIES.values[:120]
    assert d.mean == pytest.approx(past.mean())
    assert d.deviation == pytest.approx(past.std())


def test_scales_make_the_base_have_the_loss_one():
    for base in ("persistence", "linear"):
        d = data(base=base, horizon=(1, 6))
        values, mask = d.targets(d.origins["train"], d.fitted)
        weights = mask * SERIES.weights[:, None, None]
        assert (weights * values**2).sum((0, 1)) / weights.sum((0, 1)) == pytest.approx([1.0, 1.0])


def test_inputs_are_what_they_are_called():
    d = data(horizon=(6, 24), history=3)
    t = np.array([40, 130])
    features = dict(zip(d.feature_names, d.features(t).transpose(2, 1, 0), strict=True))
    z = d.normal[:, :, 0]
    assert np.allclose(features["a"], z[t])
    assert np.allclose(features["a: increment 1"] * d.spreads["increment"], z[t] - z[t - 1])
    assert np.allclose(features["a: increment 2"] * d.spreads["increment"], z[t - 1] - z[t - 2])
    assert np.allclose(features["a: last day at lead 6"] * d.spreads["day 0"], z[t - 18] - z[t])
    cycle = d.cycle(np.arange(200))[:, :, 0]
    assert np.allclose(features["a: anomaly"] * d.spreads["anomaly"], z[t] - cycle[t])
    assert np.allclose(features["a: daily cycle to lead 6"] * d.spreads["cycle 0"], cycle[t + 6] - cycle[t])
    angle = 2 * np.pi * ((t + 6)[:, None] % 24 / 24 + SERIES.longitude / 360)
    assert np.allclose(features["sin_hour at lead 6"], np.sin(angle))
    assert np.allclose(features["x"].mean(1), 0)
    assert "a: last day at lead 24" not in features  # it is the value itself
    assert "a: last day at lead 30" in data(horizon=(6, 24, 30)).feature_names
    assert not any("day" in name and name.startswith(("sin", "cos")) for name in features)  # no year of training


def test_cycle_is_that_of_each_node():
    hours = np.arange(200)[:, None]
    series = replace(SERIES, values=(np.arange(12) * np.sin(2 * np.pi * hours / 24 + np.arange(12)))[:, :, None])
    d = data(series)
    assert np.allclose(d.cycle(np.arange(200)), d.normal, atol=1e-9)
    assert np.allclose(d.cycle(np.array([205])), d.normal[[205 - 48]], atol=1e-9)  # beyond the end


def test_the_day_of_the_year_is_an_input_after_a_year():
    days = waves(900, 2, 2, seconds=86400)
    assert "sin_day at lead 6" in data(days).feature_names
    assert "sin_day at lead 6" not in data().feature_names


def test_options_leave_inputs_out():
    assert data(forcing=False, climatology=False).feature_names == (
        *("a", *(f"a: increment {k}" for k in range(1, 6)), "a: last day at lead 6"),
        *("x", "y", "z", "altitude"),
    )


def test_windows_of_a_rollout_have_its_step():
    d = data(horizon=(3,), rollout=4, history=2)
    assert d.plan.reached == (3, 6, 9, 12)
    window = d.window(np.array([50]))
    assert np.allclose(window[:, 0, :], d.normal[[50, 47], :, 0].T)


def test_features_of_a_turn_are_those_of_its_origin_if_forecasts_are_right():
    d = data(horizon=(2,), rollout=3, history=3)
    t = np.array([60, 100])
    for turn in range(3):
        later = d.window(t + 2 * turn) @ d.mixing + d.known(t, turn)
        direct = d.window(t + 2 * turn) @ d.mixing + d.known(t + 2 * turn, 0)
        names = [k for k, name in enumerate(d.feature_names) if "last day" not in name]
        assert np.allclose(later[..., names], direct[..., names])


def test_gaps_are_carried_masked_and_told():
    series = waves(200, 3, 4, gaps=0.1, variables=2)
    d = data(series, horizon=(3, 6))
    t = d.origins["train"]
    values, mask = d.targets(t, d.fitted)
    there = ~np.isnan(series.values)
    expected = [there[t] & there[np.minimum(t + h, 199)] & (t + h < 120)[:, None, None] for h in (3, 6)]
    assert (mask == np.concatenate(expected, 2).transpose(1, 0, 2)).all()
    assert (values[~mask] == 0).all()
    assert np.isfinite(d.features(t)).all()
    shown = dict(zip(d.feature_names, d.features(t).transpose(2, 1, 0), strict=True))
    assert (shown["b: observed"] == there[t, :, 1]).all()


def test_constant_fields_have_scale_one():
    series = replace(
        waves(200, 3, 4, variables=2), values=np.stack([SERIES.values[..., 0], np.full((200, 12), 5.0)], -1)
    )
    d = data(series)
    assert d.constant == ("b",)
    assert d.deviation[1] == 1
    assert (d.scales[:, 1] == 1).all()
    assert np.isfinite(d.features(d.origins["test"])).all()
    assert (d.targets(d.origins["test"], 200)[0][:, :, 1] == 0).all()


@pytest.mark.parametrize(
    "plan",
    [{"horizon": 41}, {"horizon": 500}, {"history": 130}, {"horizon": 20, "rollout": 7}, {"horizon": (1, 60)}],
)
def test_a_horizon_longer_than_the_series_is_refused(plan):
    with pytest.raises(DataError, match="part must hold a forecast, got none: 200 times in 60/20/20") as error:
        data(**plan)
    assert "\n" not in str(error.value)


def test_a_variable_without_past_is_refused():
    values = SERIES.values.copy()
    values[:130] = np.nan
    with pytest.raises(DataError, match="a must have values in the training part, got gaps only"):
        data(replace(SERIES, values=values)).mean  # noqa: B018


def test_one_node_and_coarse_steps():
    for series in (waves(200, 1, 1), waves(300, 2, 2, seconds=86400), waves(300, 2, 3, seconds=300, roads=True)):
        d = data(series, horizon=(2,))
        assert np.isfinite(d.features(d.origins["test"])).all()
        assert len(d.feature_names) == d.mixing.shape[1]
