"""Trained networks of `Weather`: the numbers of `Forecasting` and of xarray, files, rollouts, gaps, what is refused."""

import csv
import json

import numpy as np
import pytest
import torch

import mldd
from mldd.loop import read_csv
from mldd.models import load, save
from mldd.problems.data import FORCING_NAMES, DataError, Series, forcing
from mldd.problems.forecasts import Forecasting
from mldd.problems.nets import MeshSource, stack_meshes
from mldd.problems.weather import Weather
from tests.helpers import commands, needs_mpi, result
from tests.small_anemoi import grid, write_zarr

xarray = pytest.importorskip("xarray")
pytest.importorskip("zarr")
T, ROWS, COLUMNS = 40, 9, 16
CELLS = ROWS * COLUMNS
LATITUDES, LONGITUDES = grid(ROWS, COLUMNS)
HOURS = np.timedelta64(6 * 3600, "s")
DATES = np.datetime64("2020-01-01T00", "s") + np.arange(T) * HOURS
NAMES = ["cos_latitude", "q", "t", "z"]
SHAPE = {"hidden": 5, "layers": 2, "mesh_nodes": 42, "dtype": "float64"}


def numbers():
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (T, len(NAMES), 1, CELLS)).cumsum(0) * np.array([1, 0.01, 3, 1])[:, None, None] + 280
    values[:, 0] = np.cos(np.radians(LATITUDES))
    values[:, 3] = 9.81 * np.arange(CELLS)
    return values.astype(np.float32)


def written(path, values, dates=DATES, order=slice(None), **attributes):
    attributes = {"field_shape": [ROWS, COLUMNS]} | attributes
    return write_zarr(path, values[..., order], NAMES, dates, LATITUDES[order], LONGITUDES[order], **attributes)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return written(tmp_path_factory.mktemp("weather") / "set.zarr", numbers())


@pytest.fixture(scope="module")
def gappy(tmp_path_factory):
    values = numbers()
    values[9, 1, 0, 40] = np.nan
    values[5] = np.nan
    return written(tmp_path_factory.mktemp("weather") / "gaps.zarr", values, missing=DATES[[5]])


def problem(path, **options):
    return mldd.problem(Weather, path=str(path), **SHAPE | {"batch": 0} | options)


def point(p):
    return p.initial(0) + 0.2 * torch.randn(p.net.layout.size, generator=torch.Generator().manual_seed(1)).double()


def kept(folder, p, x):
    save(folder / "model.pt", p.module(x), {})
    return load(folder)


def open_store(path):
    """The data set as xarray has it, with names and dates of its own."""
    raw = xarray.open_zarr(path, consolidated=False)
    names = json.loads((path / ".zattrs").read_text())["variables"]
    data = raw["data"].assign_coords(time=raw["dates"].values, variable=names).isel(ensemble=0)
    return data.assign_coords(latitude=("cell", raw["latitudes"].values), longitude=("cell", raw["longitudes"].values))


# ------------------------------------------------------------------------------------------ the same as in memory


def as_in_memory(weather, x, series):
    """The parameters with which a network of `Forecasting` is that of `Weather`: its inputs are affine in those."""
    origins = weather.origins["train"]
    n, samples = CELLS, len(origins)
    theirs = weather.fine.samples(origins)[0].reshape(n * samples, -1).numpy()
    ours = series.forecaster.inputs(origins).reshape(n * samples, -1)
    design = np.column_stack([ours, np.ones(len(ours))])
    first = theirs.shape[1] - len(FORCING_NAMES)
    yearly = [first + FORCING_NAMES.index(name) for name in ("sin_day", "cos_day")]  # a series of days does not have it
    theirs[:, yearly] = 0.0
    affine = np.linalg.lstsq(design, theirs, rcond=None)[0]
    assert np.abs(design @ affine - theirs).max() < 1e-9
    matrix, shift = torch.from_numpy(affine[:-1]), torch.from_numpy(affine[-1])
    here = dict(zip(weather.net.names, weather.net.layout.views(x.clone()), strict=True))
    for name in ("grid.weight", "skip.weight"):
        here[name][yearly] = 0.0
    made = {name: of.clone() for name, of in here.items()}
    made |= {"grid.weight": matrix @ here["grid.weight"], "skip.weight": matrix @ here["skip.weight"]}
    made |= {"grid.bias": here["grid.bias"] + shift @ here["grid.weight"]}
    made |= {"head.bias": here["head.bias"] + shift @ here["skip.weight"]}
    assert [tuple(made[name].shape) for name in series.net.names] == list(series.net.layout.shapes)
    flat = torch.cat([here[name].flatten() for name in weather.net.names])
    return flat, torch.cat([made[name].flatten() for name in series.net.names])


@pytest.mark.parametrize("history", [1, 2])
def test_losses_errors_and_forecasts_are_those_of_the_problem_in_memory(tmp_path, history):
    store = written(tmp_path / "set.zarr", numbers()[:32], DATES[:32])  # few enough samples that all give the scales
    weather = problem(store, horizon=4, history=history)
    plan = {"horizon": 4, "history": history, "climatology": False}
    series = mldd.problem(Forecasting, name=str(store), variable=("q", "t"), model="epd", **plan, **SHAPE)
    x, y = as_in_memory(weather, point(weather), series)
    assert float(weather.objective().value(x)) == pytest.approx(float(series.objective().value(y)), rel=1e-9)
    assert weather.validation(x)["validation_loss"] == pytest.approx(series.validation(y)["validation_loss"], rel=1e-9)
    ours, theirs = weather.metrics(x), series.metrics(y)
    for v in ("q", "t"):
        assert ours[f"test_rmse_{v}"] == pytest.approx(theirs[f"test_rmse_area_{v}"], rel=1e-9)
        assert ours[f"test_rmse_persistence_{v}"] == pytest.approx(theirs[f"test_rmse_persistence_area_{v}"], rel=1e-9)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    options = {"start": "2020-01-07..2020-01-08T12", "members": 2, "perturb": 0.1, "seed": 3}
    one, other = kept(tmp_path / "a", weather, x).predict(store, **options), kept(tmp_path / "b", series, y)
    other = other.predict(str(store), **options)
    assert one.rows == other.rows and set(one.coordinates) == set(other.coordinates)
    for name in one.all:
        assert one.all[name].dims == other.all[name].dims and dict(one.all[name].attributes) == dict(
            other.all[name].attributes
        )
        if name in one.coordinates:
            np.testing.assert_array_equal(one[name], other[name])
    for v in ("q", "t"):
        np.testing.assert_allclose(one[v][0], other[v][0], rtol=1e-9)  # perturbations are of values that are read
        assert np.abs(one[v][1] - one[v][0]).max() > 0 and one[v].shape == (2, 7, 1, ROWS, COLUMNS)


# ------------------------------------------------------------------------------------------ by hand


def outputs(p, inputs, x):
    """Outputs of the network for one sample, shape (n, V)."""
    kind = {"dtype": torch.float64, "device": torch.device("cpu")}
    source = MeshSource(p.mesh, inputs, np.zeros((CELLS, 1)))
    batch = stack_meshes([source.piece(np.arange(CELLS), p.net.layers)], single=True, **kind)
    return p.net.outputs(p.net.layout.views(x), batch).numpy()


def test_a_rollout_is_the_network_fed_back_by_hand(store, tmp_path):
    p = problem(store, horizon=1, history=2)
    x, (widths, _) = point(p), p.fine.widths
    made = kept(tmp_path, p, x).predict(store, start="2020-01-05T06", steps=3)
    data = open_store(store).sel(variable=["q", "t"])
    units, at = p.fine.units, list(DATES).index(np.datetime64("2020-01-05T06"))
    now, before = (data.isel(time=at - k).transpose("cell", "variable").values.astype(np.float64) for k in (0, 1))
    fixed = p.fine.samples(np.array([at]))[0].numpy()[:, 4:-5]
    for turn in range(3):
        sun = forcing(DATES[[at + turn + 1]], LATITUDES, LONGITUDES)[0]
        past = [(of - units.mean) / units.deviation for of in (now, before)]
        inputs = np.column_stack([*past, fixed, sun])
        assert inputs.shape == (CELLS, widths)
        now, before = now + outputs(p, inputs, x) * units.scales, now
        for v, name in enumerate(("q", "t")):
            np.testing.assert_allclose(made[name][0, turn].ravel(), now[:, v], rtol=1e-10)
    assert made["valid_time"][0, 2] == DATES[at + 3] and made["lead_time"].tolist() == [6.0, 12.0, 18.0]


def test_train_predict_and_verify_on_the_command_line_agree_with_xarray(run, without_figures, store, tmp_path):
    out, nc = tmp_path / "run", tmp_path / "forecast.nc"
    line = f"train weather:path={store},horizon=2,hidden=5,layers=2,mesh_nodes=42,batch=4,chunk=2,shown=6"
    line += " --solver ml-adagrad --levels 2 --steps 3 --dtype float64 --validate-every 1 --out"
    code, said, err = run(line, out)
    assert (code, err) == (0, ""), err
    content = result(out)
    assert content["status"] == "max_steps" and content["loss"] < 1.2 and "normalised by the statistics" in said
    p = mldd.problem(f"weather:path={store},horizon=2,hidden=5,layers=2,mesh_nodes=42,batch=4,chunk=2", dtype="float64")
    model = mldd.load(out)
    x = torch.cat([of.detach().flatten() for of in model.tensors])
    assert content["metrics"] == pytest.approx(p.metrics(x), rel=1e-12)
    few = p.origins["train"][np.linspace(0, len(p.origins["train"]) - 1, 6).round().astype(int)]
    judged = float(p.objective().over(few).value(x)) * len(p.origins["train"]) / 6
    assert content["loss"] == pytest.approx(judged, rel=1e-12)
    assert len(read_csv(out / "history.csv").records) == 4

    code, said, err = run(f"predict {out} {store} --start 2020-01-07..2020-01-09T12 --out", nc)
    assert (code, err) == (0, ""), err
    data = open_store(store)
    with xarray.open_dataset(nc, decode_timedelta=False) as read:
        assert read.sizes == {"time": 11, "lead_time": 1, "latitude": ROWS, "longitude": COLUMNS}
        assert read.t.attrs["units"] == "K" and read.lead_time.values.tolist() == [12.0]
        starts = read.time.values
        truth = data.sel(variable="t").sel(time=read.valid_time.values[:, 0]).values.astype(np.float64)
        before = data.sel(variable="t").sel(time=starts).values.astype(np.float64)
        found = read.t.values[:, 0].reshape(11, -1)
    area = np.cos(np.radians(data.latitude.values))

    def rmse(difference):
        return np.sqrt((area * difference**2).sum() / (11 * area.sum()))

    code, said, err = run(f"verify {nc} {store} --out", tmp_path / "verified")
    assert (code, err) == (0, ""), err
    with (tmp_path / "verified" / "verification.csv").open(newline="") as stream:
        row = next(row for row in csv.DictReader(stream) if row["variable"] == "t")
    assert float(row["rmse"]) == pytest.approx(rmse(found - truth), rel=1e-6)
    assert float(row["rmse_persistence"]) == pytest.approx(rmse(before - truth), rel=1e-6)


def test_a_network_of_zeros_predicts_persistence(store, tmp_path):
    p = problem(store, horizon=2)
    made = kept(tmp_path, p, p.initial(0)).predict(store, start="all")
    data = open_store(store).sel(time=made["time"])
    assert len(made["time"]) == T - 1
    for name in ("q", "t"):
        wanted = data.sel(variable=name).values.astype(np.float64)
        np.testing.assert_array_equal(made[name][:, 0].reshape(T - 1, -1), wanted)


# ------------------------------------------------------------------------------------------ other files


def test_what_was_read_alone_matters(store, tmp_path):
    """Cells in another order, more variables, a short file, one of a series in memory: the same forecast."""
    p = problem(store)
    model, values = kept(tmp_path, p, point(p)), numbers()
    whole = model.predict(store, start="2020-01-10T18")
    order = np.random.default_rng(1).permutation(CELLS)
    mixed = written(tmp_path / "mixed.zarr", values, order=order, field_shape=[CELLS])
    short = written(tmp_path / "short.zarr", values[37:40], DATES[37:40])
    rows = values[:, [1, 2], 0].transpose(0, 2, 1).astype(np.float64)
    series = Series("memory", rows, DATES, LATITUDES, LONGITUDES, ("q", "t"), grid=(ROWS, COLUMNS), units=("K", "K"))
    for data, start in ((mixed, "2020-01-10T18"), (short, "last"), (series, [39])):
        made = model.predict(data, start=start)
        for name in whole.all:
            np.testing.assert_array_equal(made[name], whole[name])


def test_forecasts_begin_where_nothing_is_missing(gappy, tmp_path):
    p = problem(gappy, horizon=1)
    model = kept(tmp_path, p, point(p))
    made = model.predict(gappy, start="all")
    assert list(made["time"]) == [date for k, date in enumerate(DATES) if k and k not in (5, 6)]
    assert any(note.startswith("2 times that are missing") for note in made.notes)
    assert "1 values are missing where forecasts begin: their forecasts are NaN" in made.notes
    assert np.isnan(made["q"]).sum() == 1 and not np.isnan(made["t"]).any()
    assert np.isnan(made["q"][list(made["time"]).index(DATES[9]), 0].ravel()[40])
    for start in ("2020-01-02T06", [5]):
        with pytest.raises(DataError, match="forecasts must begin at a time with 1 before it"):
            model.predict(gappy, start=start)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"steps": 2}, "`steps` must be 1 for a network of horizon=2 and history=2, which is not fed back, got 2"),
        ({"steps": 0}, "`steps` must be >= 1 lead time, got 0"),
        ({"start": "2021-01-01"}, "`start` must lie in 2020-01-01T06:00:00..2020-01-10T18:00:00, got 2021-01-01"),
        ({"start": "tomorrow"}, "`start` must be last, all, a date or two"),
        ({"start": [0]}, "numbers 1 to 39, got number 0; choose others"),
        ({"start": [40]}, "numbers 1 to 39, got number 40; choose others"),
        ({"start": [1.5]}, "`start` must be whole numbers"),
        ({"members": 2}, "an ensemble must have members >= 2 and perturb > 0, got members=2, perturb=0"),
        ({"member": "1"}, r"ensemble must be one of 0..0, got '1'; correct `member`"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(store, tmp_path, options, words):
    p = problem(store, horizon=2)
    with pytest.raises(ValueError, match=words) as error:
        kept(tmp_path, p, p.initial(0)).predict(store, **options)
    assert "\n" not in str(error.value)


def test_other_data_are_refused_in_one_line(store, tmp_path):
    p = problem(store)
    model, values = kept(tmp_path, p, p.initial(0)), numbers()
    half = written(tmp_path / "half.zarr", values, order=slice(CELLS // 2), field_shape=[CELLS // 2])
    hourly = written(tmp_path / "hourly.zarr", values, DATES[0] + np.arange(T) * np.timedelta64(3600, "s"))
    units = {"variables_metadata": {name: {"units": "degC"} for name in NAMES}}
    celsius = written(tmp_path / "celsius.zarr", values, **units)
    words = ["cos_latitude", "w", "t", "z"]
    names = write_zarr(tmp_path / "names.zarr", values, words, DATES, LATITUDES, LONGITUDES)
    gone = written(tmp_path / "gone.zarr", values, missing=DATES[1:])
    for path, words in (
        (half, "there must be the 144 nodes of the training"),
        (hourly, "times must be 21600 s apart as in the training"),
        (celsius, "q must be in K as in the training"),
        (names, "got 'q'"),
        (gone, "expected 2 times in a row for the history of a forecast, got 40 with 39 missing"),
        (tmp_path, "expected a data set of Anemoi that zarr can read"),
    ):
        with pytest.raises(DataError, match=words) as error:
            model.predict(path)
        assert "\n" not in str(error.value)


def test_a_member_of_an_ensemble_is_read(tmp_path):
    values = np.concatenate([numbers(), numbers() + 1], axis=2)
    path = write_zarr(tmp_path / "set.zarr", values, NAMES, DATES, LATITUDES, LONGITUDES)
    p = problem(path, member=1)
    made = kept(tmp_path, p, p.initial(0))  # persistence
    first, second = (made.predict(path, start=[7], **more)["t"] for more in ({"member": "0"}, {}))
    np.testing.assert_allclose(second, first + 1, rtol=1e-6)


def test_a_checksum_knows_the_data_and_not_where_they_lie(store, tmp_path):
    values = numbers()
    same = problem(written(tmp_path / "same.zarr", values)).identity()
    assert same == problem(store).identity()
    values[1, 2, 0, 7] += 1.0
    assert problem(written(tmp_path / "other.zarr", values)).identity() != same


def test_irregular_times_are_refused(tmp_path):
    dates = DATES + np.where(np.arange(T) > 20, HOURS, 0 * HOURS)
    p = problem(written(tmp_path / "set.zarr", numbers(), dates))
    with pytest.raises(DataError, match="expected times one step apart, got 40 times with 2 different steps"):
        p.objective()


def test_a_loss_that_is_shown_by_few_samples_needs_mini_batches(store):
    with pytest.raises(ValueError, match="`shown` needs mini-batches, got shown=3 and batch=0"):
        problem(store, shown=3)


def test_a_loss_by_few_samples_draws_from_all(store):
    few, whole = problem(store, batch=4, shown=3).objective(), problem(store, batch=4).objective()
    x = point(problem(store))
    for step in range(5):
        assert list(few.sample(step).origins) == list(whole.sample(step).origins)
        assert float(few.sample(step).value(x)) == float(whole.sample(step).value(x))
        assert few.sample(step).price == whole.sample(step).price
    alone = sum(float(whole.over(few.origins[[k]]).value(x)) for k in range(3)) / 3 * len(whole.origins)
    assert float(few.value(x)) == pytest.approx(alone, rel=1e-12) and len(few.origins) == 3
    v = torch.linspace(-1, 1, len(x), dtype=x.dtype)
    difference = float(few.value(x + 1e-6 * v) - few.value(x - 1e-6 * v)) / 2e-6
    assert float(few.gradient(x) @ v) == pytest.approx(difference, rel=1e-6)


@needs_mpi
@pytest.mark.mpi
def test_two_ranks_train_the_same_network(store, tmp_path):
    line = f"train weather:path={store},hidden=5,layers=2,mesh_nodes=42,batch=4,chunk=2,shown=6"
    line += " --solver ml-adagrad --levels 2 --steps 3 --dtype float64 --quiet --out"
    for ranks in (1, 2):
        ((codes, _),) = commands(ranks, f"{line} {tmp_path / str(ranks)}")
        assert codes == {0}
    one, two = (result(tmp_path / str(ranks)) for ranks in (1, 2))
    assert two["ranks"] == 2 and two["loss"] == pytest.approx(one["loss"], rel=1e-9)
    assert two["metrics"] == pytest.approx(one["metrics"], rel=1e-9)
    made = [mldd.load(tmp_path / str(ranks)).predict(store, start="all") for ranks in (1, 2)]
    for name in ("q", "t"):
        np.testing.assert_allclose(made[0][name], made[1][name], rtol=1e-9)
