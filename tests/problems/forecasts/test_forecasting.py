"""Forecasting: losses, derivatives, rollouts, local models, levels, mini-batches, gaps, bad input, pictures."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

import mldd
from mldd.algebra import Objective, SharedDecomposition, counting, sampled
from mldd.command import cli
from mldd.command.names import solver_spec
from mldd.loop import Stop, minimise
from mldd.problems.forecasts import Forecasting
from mldd.problems.forecasts.forecast_parts import local_batch
from mldd.solvers import Adam
from tests.small_series import waves

SERIES = waves(160, 4, 5)
GAPPY = waves(160, 4, 5, gaps=0.1, variables=2, seed=1)
ROLLOUT = {"horizon": 2, "rollout": 3, "history": 2}
FED_BACK = {"model": "epd", "horizon": 2, "rollout": 2, "history": 2}


def problem(series=SERIES, **options):
    return mldd.problem(Forecasting, **{"name": series, "hidden": 5, "horizon": 3, "activation": "tanh", **options})


def point(p, seed=1):
    """Return parameters without zeros."""
    x = p.initial(seed)
    return x + 0.1 * torch.randn(len(x), generator=torch.Generator().manual_seed(seed), dtype=x.dtype)


def by_hand(p, x):
    """Return the loss as mean of squares of forecasts in units of the series."""
    data, series = p.forecast_data, p.series
    t = data.origins["train"]
    made = p.forecasts(x, t)
    total = 0.0
    for k, lead in enumerate(data.plan.reached):
        for v in range(len(series.variables)):
            inside = t[t + lead < data.fitted]
            truth = series.values[inside + lead, :, v]
            counts = ~np.isnan(truth) & ~np.isnan(series.values[inside, :, v])
            weights = np.where(counts, series.weights, 0.0)
            error = np.where(counts, made[: len(inside), :, k, v] - truth, 0.0) / data.scales[k, v]
            total += (weights * error**2).sum() / weights.sum()
    return total / (len(data.plan.reached) * len(series.variables))


OPTIONS = [
    {"model": "sage"},
    {"model": "gcn", "horizon": (1, 4)},
    {"model": "gin"},
    {"model": "gat"},
    {"model": "epd", "activation": "silu"},
    {"base": "linear"},
    {"series": GAPPY, "horizon": (2, 5)},
    {"series": GAPPY, "horizon": 2, "rollout": 2},
    ROLLOUT,
    FED_BACK,
    {"decay": 0.0, "stride": 4, "labels": "all"},
    {"edges": "knn", "neighbours": 3, "weighted": True},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_loss_is_that_of_the_forecasts(options):
    p = problem(**options)
    f, x = p.objective(), point(p)
    assert isinstance(f, Objective)
    assert float(f.value(x)) == pytest.approx(by_hand(p, x), rel=1e-9)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_zero_network_is_the_base_and_the_start(options):
    p = problem(**options)
    f, x = p.objective(), p.initial(3)
    assert float(f.value(torch.zeros_like(x))) == pytest.approx(1.0)
    assert float(f.value(x)) == pytest.approx(1.0)
    metrics = p.metrics(x)
    if p.plan.base == "persistence":
        assert metrics["test_rmse"] == pytest.approx(metrics["test_rmse_persistence"])
        assert metrics["test_skill"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("model", ["sage", "gcn", "gin", "gat", "epd"])
def test_the_start_is_no_stationary_point(model):
    p = problem(model=model, activation="auto")
    f, x = p.objective(), p.initial(3)
    g = f.gradient(x)
    x = x - 0.5 * g / g.norm()
    first = p.net.layout.slices[0]
    assert float(f.gradient(x)[first].norm()) > 1e-3, "after a step the first layer learns"


@pytest.mark.parametrize("chunk", [0, 7])
@pytest.mark.parametrize(
    "options", [{"decay": 0.1}, {"series": GAPPY, "horizon": (2, 5)}, ROLLOUT, {"model": "epd"}, FED_BACK], ids=str
)
def test_gradient_and_hessian_product(options, chunk):
    p = problem(**{"activation": "auto" if options.get("model") == "epd" else "tanh", **options, "chunk": chunk})
    f, x = p.objective(), point(p)
    v = torch.randn(len(x), generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    with counting() as cost:
        value, g = f.value_and_gradient(x)
    assert (cost.gradients, cost.work, cost.synchronisations) == (1, 1.0, 1)
    h = 1e-6
    assert float(g @ v) == pytest.approx(float(f.value(x + h * v) - f.value(x - h * v)) / (2 * h), rel=1e-6)
    assert float(value) == pytest.approx(float(f.value(x)), rel=1e-12)
    with counting() as cost:
        product = f.hessian_product(x, v)
    assert cost.work == 2.0
    difference = (f.gradient(x + 1e-5 * v) - f.gradient(x - 1e-5 * v)) / 2e-5
    assert torch.allclose(product, difference, rtol=1e-4, atol=1e-6 * float(difference.abs().max()))


def test_chunks_change_nothing():
    for options in ({}, ROLLOUT):
        one, other = problem(**options, chunk=0), problem(**options, chunk=5)
        x = point(one)
        assert torch.allclose(one.objective().gradient(x), other.objective().gradient(x), rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("options", [{"model": "sage"}, {"model": "gat"}, ROLLOUT, {"model": "epd"}, FED_BACK], ids=str)
def test_own_nodes_have_an_exact_halo(options):
    p = problem(**options, activation="auto" if options.get("model") == "epd" else "tanh", local="own")
    x, parts = point(p), 3
    part = p.parts(parts)
    local = local_batch(p, part, range(parts))
    of_node = torch.from_numpy(p.weights[1].sum((1, 2)))
    shares = torch.stack([of_node[part == k].sum() for k in range(parts)])
    values, gradients = local.value_and_gradient(x.expand(parts, -1).contiguous())
    value, gradient = p.objective().value_and_gradient(x)
    assert float(shares @ values) == pytest.approx(float(value), rel=1e-10)
    assert torch.allclose(shares @ gradients, gradient, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("options", [{}, {"series": GAPPY, "horizon": (2, 5)}, ROLLOUT, {"model": "gcn"}], ids=str)
def test_a_composite_graph_of_single_nodes_is_the_graph(options):
    p = problem(**options)
    x, n = point(p), p.series.nodes
    graphs = p.local_graphs
    batch = graphs.stack([graphs.aggregated(np.arange(n))], **p.kind)
    f = p.loss(batch, p.objective().price, stochastic=False)
    assert torch.allclose(f.gradient(x[None]), p.objective().gradient(x), rtol=1e-9, atol=1e-12)


def test_targets_of_clusters_are_means_with_areas():
    p = problem(series=GAPPY)
    labels = np.arange(20) // 4
    piece = p.local_graphs.aggregated(labels)
    values, weights = p.weights
    targets = np.asarray(piece.targets).reshape(5, len(p.forecast_data.origins["train"]), 2, -1)
    assert targets[:, :, 1] == pytest.approx(np.stack([weights[labels == k].sum(0) for k in range(5)]))
    assert targets[:, :, 0] == pytest.approx(np.stack([(weights * values)[labels == k].sum(0) for k in range(5)]))
    assert weights.sum() == pytest.approx(1.0)


@pytest.mark.parametrize(("options", "most"), [({"layers": 2}, 2), ({"rollout": 2, "layers": 1, "model": "sage"}, 2)])
@pytest.mark.parametrize(("batch", "shares"), [(0, 1), (7, 3)])
def test_parts_with_enough_overlap_and_shares_of_samples_add_up_to_the_whole(options, most, batch, shares):
    p = problem(**options, local="restricted", batch=batch, shares=shares)
    f, x, errors = sampled(p.objective(), 4), point(p), []
    for overlap in (0, most):
        d = p.decomposition(2, overlap)
        assert d.parts == 2 * shares
        g = d.models(f, x, None).gradient(d.gather(x))
        for k in range(d.parts):
            alone = d.alone(k)
            torch.testing.assert_close(alone.models(f, x, None).gradient(alone.gather(x))[0], g[k], rtol=0, atol=1e-14)
        errors.append(float((d.shares_of(f) @ g - f.gradient(x)).abs().max()))
    assert errors[1] < 1e-13 and errors[0] > 1e-6, errors


@pytest.mark.parametrize("local", ["composite", "own"])
@pytest.mark.parametrize("batch", [0, 8])
def test_local_models_are_corrected_to_first_order(local, batch):
    p = problem(local=local, batch=batch)
    f = sampled(p.objective(), 4)
    x = point(p)
    made = p.decomposition(3, 1)
    assert isinstance(made, SharedDecomposition)
    models = made.models(f, x, f.gradient(x))
    gradients = models.gradient(made.gather(x))
    assert torch.allclose(gradients, f.gradient(x).expand(3, -1), rtol=1e-9, atol=1e-12)


def test_mini_batches_are_unbiased_and_shared_by_levels_and_parts():
    p = problem(batch=10)
    f, x = p.objective(), point(p)
    total = f.batch.samples
    epoch = [f.sample(step) for step in range(total // 10)]
    seen = torch.cat([g.rows for g in epoch])
    assert len(seen.unique()) == len(seen)
    every = torch.stack([f.drawn(torch.tensor([k])).value(x) for k in range(total)])
    assert float(every.mean()) == pytest.approx(float(f.value(x)), rel=1e-10)
    assert float(epoch[0].value(x)) == pytest.approx(float(every[epoch[0].rows].mean()), rel=1e-10)
    coarse = p.hierarchy(2)[1].objective
    assert torch.equal(sampled(coarse, 3).rows, f.sample(3).rows)
    with counting() as cost:
        f.sample(0).gradient(x)
    assert (cost.gradients, cost.work) == (1, pytest.approx(10 / total))
    assert torch.equal(problem(batch=10).objective(2).gradient(x), f.sample(2).gradient(x))
    assert not torch.equal(f.sample(1).rows, problem(batch=10, seed=1).objective(1).rows)


def test_levels():
    p = problem(clusters=8)
    levels = p.hierarchy(3)
    x = point(p)
    assert [level.objective.size for level in levels] == [len(x)] * 3
    assert 1 > levels[1].objective.price.gradient > levels[2].objective.price.gradient > 0
    assert torch.isfinite(levels[2].objective.gradient(x)).all()
    for levels_ in (0, 5):
        with pytest.raises(ValueError, match="`levels` must be in 1..3 for a graph of 20 nodes"):
            p.hierarchy(levels_)


def test_forecasts_of_a_rollout_feed_on_themselves():
    p = problem(**ROLLOUT, forcing=False, climatology=False)
    x, t = point(p), np.array([60])
    long = p.forecasts(x, t)
    assert long.shape == (1, 20, 3, 1)
    values = SERIES.values.copy()
    values[62] = long[0, :, 0]  # what was forecast becomes the observation
    data = p.forecast_data
    fed = replace(p, name=replace(SERIES, values=values))
    fed.__dict__["forecast_data"] = type(data)(fed.series, data.plan, data.normalisation())
    again = fed.forecasts(x, np.array([62]))
    # the value of the last day, an input too, is the same one for both
    assert any("last day" in name for name in data.feature_names)
    assert np.allclose(again[0, :, 0], long[0, :, 1], rtol=1e-9)


def test_metrics_of_several_leads_and_variables():
    p = problem(GAPPY, horizon=(2, 5))
    metrics = p.metrics(p.initial())
    assert metrics["test_gaps"] > 0
    data = p.forecast_data
    t = data.origins["test"]
    for lead in (2, 5):
        inside = t[t + lead < 160]
        errors = GAPPY.values[inside, :, 1] - GAPPY.values[inside + lead, :, 1]
        assert metrics[f"test_rmse_b_{lead}"] == pytest.approx(np.sqrt(np.nanmean(errors**2)))
        assert metrics[f"test_bias_b_{lead}"] == pytest.approx(np.nanmean(errors))
    assert metrics["test_rmse_b"] == pytest.approx(
        np.sqrt((metrics["test_rmse_b_2"] ** 2 + metrics["test_rmse_b_5"] ** 2) / 2)
    )
    assert metrics["test_rmse"] == metrics["test_rmse_a"]
    one = metrics["test_rmse_linear_a_2"] ** 2 / metrics["test_rmse_persistence_a_2"] ** 2
    assert metrics["test_skill_linear_a_2"] == pytest.approx(1 - 1 / one, rel=1e-6)
    assert json.dumps(metrics)


def test_area_weights_are_used_on_grids_alone():
    values = SERIES.values + (np.arange(160) % 7 * (SERIES.latitude[:, None] > 50)).T[:, :, None]
    series = replace(SERIES, values=values)
    metrics = problem(series).metrics(problem(series).initial())
    assert metrics["test_rmse_persistence_area"] < metrics["test_rmse_persistence"]  # the north errs, and is small
    stations = replace(series, grid=None)
    assert not any("area" in name for name in problem(stations).metrics(problem(stations).initial()))


@pytest.mark.parametrize("solver", ["adam", "dd-adagrad"])
def test_training_beats_persistence(solver):
    p = problem(hidden=8, stride=2)
    made = (
        Adam(lr=0.01)
        if solver == "adam"
        else solver_spec(solver).make(decomposition=p.decomposition(3, 1), **p.settings(solver))
    )
    result = minimise(p.objective(), p.initial(0), made, stop=Stop(max_steps=60 if solver == "adam" else 15))
    assert p.metrics(result.x)["test_skill"] > 0.5


# ------------------------------------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"model": "cnn"}, "`model` must be one of gcn, sage, gin, gat, gatv2, transformer, epd, or file.py:Class"),
        ({"horizon": 0}, "`horizon` must be >= 1"),
        ({"horizon": (6, 3)}, "several of them ascending"),
        ({"horizon": (3, 6), "rollout": 2}, "`rollout` needs one horizon"),
        ({"rollout": 2, "base": "linear"}, "`rollout` needs one horizon"),
        ({"history": 0}, "`history` must be >= 1, got 0"),
        ({"stride": 0}, "`stride` must be >= 1"),
        ({"batch": -1}, "`batch` must be >= 0"),
        ({"decay": float("nan")}, "`decay` must be >= 0 and finite"),
        ({"gaps": "fill"}, "`gaps` must be one of mask, refuse"),
        ({"model": "gat", "weighted": True}, "`weighted` needs the model sage or gcn"),
    ],
)
def test_bad_options_are_one_line(options, said):
    with pytest.raises(ValueError, match=said) as error:
        problem(**options)
    assert "\n" not in str(error.value)


def test_gaps_are_masked_or_refused():
    assert problem(GAPPY).details()["gaps"] == GAPPY.gaps
    with pytest.raises(ValueError, match=r"expected no gaps, got \d+ \(\d+\.\d %\); set gaps=mask"):
        problem(GAPPY, gaps="refuse").objective()
    assert problem(gaps="refuse").series.gaps == 0


def test_horizon_longer_than_the_series():
    with pytest.raises(ValueError, match="part must hold a forecast, got none"):
        problem(horizon=200).objective()


def test_constant_fields_train_to_nothing():
    p = problem(replace(SERIES, values=np.full_like(SERIES.values, 280.0)))
    f, x = p.objective(), p.initial(0)
    assert float(f.value(x)) == 0.0
    assert p.metrics(x)["test_rmse"] == 0.0
    assert p.details()["constant"] == ["a"]


def test_isolated_nodes_and_single_ones():
    far = replace(SERIES, latitude=np.linspace(-60, 60, 20), grid=None)
    p = problem(far, edges="radius", radius=1.0)
    assert int(p.graph.degree.max()) == 0
    assert torch.isfinite(p.objective().gradient(point(p))).all()


@pytest.mark.parametrize(
    ("rows", "columns", "grid", "edges"), [(1, 1, True, 0), (2, 3, True, 22), (1, 1, False, 0), (1, 3, False, 6)]
)
def test_few_nodes_have_a_graph(rows, columns, grid, edges):
    p = problem(waves(160, rows, columns, grid=grid))
    assert p.graph.edges == edges
    assert torch.isfinite(p.objective().gradient(point(p))).all()


@pytest.mark.parametrize(("parts", "overlap"), [(0, 0), (3, -1), (21, 0)])
def test_bad_parts(parts, overlap):
    with pytest.raises(ValueError, match="`parts`|`overlap`"):
        problem().decomposition(parts, overlap)


def test_one_node_per_part():
    p = problem(stride=8, local="own")
    assert p.decomposition(20, 0).models(p.objective(), point(p), None).gradient(point(p).expand(20, -1)).shape[0] == 20


# ------------------------------------------------------------------------------------------------ the command line


def test_a_run_writes_results_and_pictures(tmp_path, capsys):
    path = tmp_path / "waves.npz"
    places = {"latitude": SERIES.latitude[::5], "longitude": SERIES.longitude[:5]}
    np.savez(path, time=SERIES.time, t=SERIES.values.reshape(160, 4, 5), **places)
    out = tmp_path / "out"
    line = f"train {path}:horizon=3:6,hidden=4 --solver dd-adagrad --parts 2 --steps 2 --quiet --out {out}"
    assert cli.main(line.split()) == 0
    content = json.loads((out / "result.json").read_text())
    metrics = content["metrics"]
    for name in ("test_rmse", "test_rmse_persistence", "test_rmse_linear", "test_bias", "test_skill", "test_rmse_6"):
        assert np.isfinite(metrics[name])
    assert content["details"]["lead_seconds"] == [10800, 21600]
    for picture in ("convergence", "forecast", "skill", "parts"):
        assert (out / f"{picture}.png").read_bytes().startswith(b"\x89PNG")
