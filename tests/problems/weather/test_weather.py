"""Weather: loss and errors by hand, derivatives, mini-batches, coarse levels, gaps, what is read, what is refused."""

import numpy as np
import pytest
import torch

import mldd
from mldd.algebra import counting, sampled
from mldd.loop import Stop
from mldd.problems.data import DataError, forcing, on_sphere
from mldd.problems.data.formats import AnemoiStore
from mldd.problems.nets import MeshSource, stack_meshes
from mldd.problems.weather import Weather
from mldd.solvers import AdaGrad, MultilevelAdaGrad, Recursion
from tests.small_anemoi import grid, write_zarr

pytest.importorskip("zarr")
T, ROWS, COLUMNS, LEAD, HISTORY = 30, 9, 16, 2, 2
CELLS = ROWS * COLUMNS
LATITUDES, LONGITUDES = grid(ROWS, COLUMNS)
DATES = np.datetime64("2020-01-01T00", "s") + np.arange(T) * np.timedelta64(6 * 3600, "s")
NAMES = ["cos_latitude", "q", "t", "z"]
MISSING, GAP = 5, (9, 1, 0, 40)  # a date, and one value
KIND = {"dtype": torch.float64, "device": torch.device("cpu")}


def numbers():
    random = np.random.default_rng(0)
    values = random.normal(0, 1, (T, len(NAMES), 1, CELLS)).cumsum(0) * np.array([1, 0.01, 3, 1])[:, None, None] + 280
    values[:, 0] = np.cos(np.radians(LATITUDES))
    values[:, 3] = 9.81 * np.arange(CELLS)
    values[GAP] = np.nan
    values[MISSING] = np.nan
    return values.astype(np.float32)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("weather") / "set.zarr"
    options = {"missing": DATES[[MISSING]], "field_shape": [ROWS, COLUMNS]}
    return write_zarr(path, numbers(), NAMES, DATES, LATITUDES, LONGITUDES, **options)


def problem(path, **options):
    given = {"horizon": LEAD, "history": HISTORY, "hidden": 5, "layers": 2, "mesh_nodes": 42, "batch": 0, "chunk": 4}
    return mldd.problem(Weather, path=str(path), **{"dtype": "float64"} | given | options)


def point(p):
    return p.initial(0) + 0.1 * torch.randn(p.net.layout.size, generator=torch.Generator().manual_seed(1)).double()


def origins(first, end):
    """Those whose inputs and target touch no missing date."""
    t = np.arange(first, end - LEAD)
    return [k for k in t if MISSING not in (k, k - 1, k + LEAD)]


TRAIN = origins(HISTORY - 1, 18)


def by_hand(p, of):
    """Inputs, changes in units of `scales` and weights of all cells, sample by sample, shape (n, S, ...)."""
    values = numbers()[:, [1, 2], 0].astype(np.float64)  # (T, V, n)
    past = numbers()[: int(0.8 * T), [1, 2], 0].astype(np.float64)
    mean, deviation = np.nanmean(past, (0, 2)), np.nanstd(past, (0, 2))
    area = np.cos(np.radians(LATITUDES))
    few = [TRAIN[k] for k in np.linspace(0, len(TRAIN) - 1, min(16, len(TRAIN))).round().astype(int)]
    steps = np.stack([values[t + LEAD] - values[t] for t in few])
    scales = np.sqrt(np.nansum(area * steps**2, (0, 2)) / (area * ~np.isnan(steps)).sum((0, 2)))
    height = 9.81 * np.arange(CELLS)
    fixed = np.column_stack([on_sphere(LATITUDES, LONGITUDES), (height - height.mean()) / height.std()])
    inputs, changes = [], []
    for t in of:
        now, before = ((values[k].T - mean) / deviation for k in (t, t - 1))
        sun = forcing(DATES[[t]] + LEAD * np.timedelta64(6, "h"), LATITUDES, LONGITUDES)[0]
        inputs.append(np.column_stack([np.nan_to_num(now), np.nan_to_num(before), fixed, sun]))
        changes.append((values[t + LEAD] - values[t]).T / scales)
    changes = np.stack(changes, 1)
    return np.stack(inputs, 1), changes, ~np.isnan(changes) * area[:, None, None] / area.sum(), scales


def outputs(p, inputs, x):
    """Outputs of the network on the whole grid, shape (n, S, V)."""
    samples = inputs.shape[1]
    source = MeshSource(p.mesh, inputs.reshape(CELLS, -1), np.zeros((CELLS, samples)))
    batch = stack_meshes([source.piece(np.arange(CELLS), p.net.layers)], single=True, samples=samples, **KIND)
    return p.net.outputs(p.net.layout.views(x), batch).view(CELLS, samples, -1).numpy()


@pytest.mark.parametrize("chunk", [0, 3])
def test_loss_and_errors_are_those_by_hand(store, chunk):
    p = problem(store, chunk=chunk)
    assert p.names == ("q", "t") and p.origins["train"].tolist() == TRAIN
    x = point(p)
    inputs, changes, weights, scales = by_hand(p, TRAIN)
    error = np.nan_to_num(outputs(p, inputs, x) - changes)
    loss = (weights * error**2).sum() / (2 * len(TRAIN))
    f = p.objective()
    assert float(f.value(x)) == pytest.approx(loss, rel=1e-5)  # values are float32
    assert float(f.value_and_gradient(x)[0]) == pytest.approx(float(f.value(x)), rel=1e-12)
    inputs, changes, weights, _ = by_hand(p, origins(24, T))
    found = p.metrics(x)
    for name, made in (("test_rmse", outputs(p, inputs, x)), ("test_rmse_persistence", 0.0)):
        squares = (weights * np.nan_to_num(made - changes) ** 2).sum((0, 1)) / weights.sum((0, 1))
        for v, variable in enumerate(p.names):
            assert found[f"{name}_{variable}"] == pytest.approx(np.sqrt(squares[v]) * scales[v], rel=1e-4)


def test_the_start_is_persistence(store):
    p = problem(store)
    x = p.initial(3)
    found = p.validation(x)
    assert found["validation_loss"] == pytest.approx(found["validation_persistence"], rel=1e-12)
    assert float(p.objective().value(x)) == pytest.approx(1.0, abs=0.1)


def test_gradient_and_hessian_product(store):
    p = problem(store, decay=0.1)
    f, x = p.objective(), point(p)
    v = torch.randn(len(x), generator=torch.Generator().manual_seed(5), dtype=x.dtype)
    with counting() as cost:
        _, g = f.value_and_gradient(x)
    assert (cost.gradients, cost.work, cost.synchronisations) == (1, 1.0, 1)
    h = 1e-6
    assert float(g @ v) == pytest.approx(float(f.value(x + h * v) - f.value(x - h * v)) / (2 * h), rel=1e-6)
    difference = (f.gradient(x + 1e-5 * v) - f.gradient(x - 1e-5 * v)) / 2e-5
    torch.testing.assert_close(f.hessian_product(x, v), difference, rtol=1e-4, atol=1e-6)


def test_mini_batches_of_an_epoch_are_the_whole(store):
    p, count = problem(store, batch=4, chunk=3), len(TRAIN) // 4
    f, x = p.objective(), point(p)
    seen = [sampled(f, step) for step in range(count)]
    drawn = np.concatenate([one.origins for one in seen])
    assert len(set(drawn)) == len(drawn) == 4 * count
    left = [t for t in TRAIN if t not in drawn]
    total = sum(float(one.value(x)) * 4 for one in seen)
    if left:
        total += float(f.over(np.array(left)).value(x)) * len(TRAIN)
    assert total / len(TRAIN) == pytest.approx(float(f.value(x)), rel=1e-9)
    assert seen[0].price.gradient == pytest.approx(4 / len(TRAIN))


def test_a_coarse_level_is_the_aggregated_grid(store):
    p = problem(store)
    fine, coarse = p.hierarchy(2).levels
    x, labels = point(p), p.mesh.labels(1)
    inputs, changes, weights, _ = by_hand(p, TRAIN)
    weights = weights / (2 * len(TRAIN))
    targets = np.concatenate([np.nan_to_num(changes) * weights, weights], axis=2)
    source = MeshSource(p.mesh, inputs.reshape(CELLS, -1), targets.reshape(CELLS, -1))
    batch = stack_meshes([source.aggregated(labels, p.net.layers)], single=True, samples=len(TRAIN), **KIND)
    z = p.net.outputs(p.net.layout.views(x), batch).view(len(batch.targets), len(TRAIN), -1)
    moment, weight = batch.targets.view(len(z), len(TRAIN), -1).chunk(2, dim=2)
    wanted = (weight * (z - moment / weight.clamp(min=1e-300)) ** 2).sum()
    assert float(coarse.objective.value(x)) == pytest.approx(float(wanted), rel=1e-5)
    assert coarse.objective.price.gradient < 0.7 * fine.objective.price.gradient
    solver = MultilevelAdaGrad(p.hierarchy(2), AdaGrad(1e-3, 0.003), Recursion(steps=3))
    result = mldd.minimise(fine.objective, p.initial(0), solver, stop=Stop(max_steps=5))
    assert result.record.value < float(fine.objective.value(p.initial(0)))
    with pytest.raises(ValueError, match=r"`levels` must be in 1..2 for a mesh of 42 nodes, got 3"):
        p.hierarchy(3)


def test_only_what_is_needed_is_read_and_every_chunk_once(store, monkeypatch):
    read, rows = [], AnemoiStore.rows
    monkeypatch.setattr(
        AnemoiStore, "rows", lambda self, t, n, c=slice(None): read.append((list(t), n)) or rows(self, t, n, c)
    )
    p = problem(store, variable=("t",), batch=4, chunk=4)
    f, x = p.objective().sample(0), point(p)
    read.clear()
    f.value_and_gradient(x)
    wanted = {t + k for t in f.origins for k in (-1, 0, LEAD)}
    times = [t for some, _ in read for t in some]
    assert len(times) == len(set(times)) and set(times) == wanted and {n for _, n in read} == {("t",)}
    read.clear()
    f.value_and_gradient(x + 1)
    assert not read  # kept for the step


def test_infinite_values_are_refused(tmp_path):
    values = numbers()
    values[28, 2, 0, 3] = np.inf
    path = write_zarr(tmp_path / "set.zarr", values, NAMES, DATES, LATITUDES, LONGITUDES)
    p = problem(path, variable=("q",))
    assert np.isfinite(list(p.metrics(p.initial(0)).values())).all()  # nobody reads t
    p = problem(path)
    with pytest.raises(DataError, match="values must be finite or NaN, got infinite ones of t; make them NaN"):
        p.metrics(p.initial(0))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"variable": ("u",)}, "expected variables of cos_latitude, q, t, z, got u; correct `variable`"),
        ({"horizon": 9}, "the validation part must hold a forecast, got none in times 18..23; shorten horizon"),
        ({"member": 1}, r"ensemble must be one of 0..0, got '1'"),
        ({"model": "sage"}, "the network must be an encode-process-decode one, epd, got sage"),
        ({"dtype": "float16"}, "`dtype`"),
        ({"path": "none.zarr"}, "none.zarr: expected a data set of Anemoi that zarr can read"),
    ],
)
def test_what_makes_no_sense_is_refused_in_one_line(store, options, words):
    with pytest.raises(ValueError, match=words) as error:
        problem(**{"path": store} | options).objective()
    assert "\n" not in str(error.value) and isinstance(error.value, DataError | ValueError)
