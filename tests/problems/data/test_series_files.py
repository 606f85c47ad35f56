"""Known series and the user's own files: npz, NetCDF, Zarr; nothing bad gets in unnoticed."""

import pickle

import numpy as np
import pytest

from mldd.command.names import problem_spec
from mldd.problems.data import DataError, load_series
from mldd.problems.data.series_files import NAMES
from mldd.problems.forecasts import Forecasting
from tests.small_series import waves

FIELD = waves(40, 3, 4)
HOURS = FIELD.time.astype("datetime64[h]")
GRID = FIELD.values.reshape(40, 3, 4)
PLACES = {"latitude": FIELD.latitude[::4], "longitude": FIELD.longitude[:4]}


def known(name, **options):
    try:
        return load_series(name, **options)
    except DataError as error:
        if "expected" in str(error) and "got none" in str(error):
            pytest.skip(f"the data set is not here: {error}")
        raise


def saved(path, **arrays):
    np.savez(path, **{"time": HOURS, **PLACES, "t": GRID, **arrays})
    return path


@pytest.mark.parametrize(
    ("name", "shape", "figures", "step"),
    [
        ("era5-uk", (744, 1617, 1), (265.68, 291.56, 280.774, 2.288), 3600),
        ("molene", (744, 37, 1), (269.85, 289.55, None, 2.933), 3600),
        ("metr-la", (2016, 207, 1), (1, 70, 58.891, 12.527), 300),
    ],
)
def test_known_sets_have_the_figures_of_their_description(name, shape, figures, step):
    series = known(name)
    assert series.values.shape == shape
    assert series.step == step
    values = series.values
    for found, said in zip((values.min(), values.max(), values.mean(), values.std()), figures, strict=True):
        assert said is None or abs(found - said) < 0.006
    assert series.gaps == 0
    assert series.units[0]


def test_molene_with_gaps():
    series = known("molene", stations=46, variables=("t", "ff"))
    missing = np.isnan(series.values).mean((0, 1))
    assert missing == pytest.approx([0.069, 0.145], abs=0.001)
    assert series.altitude is not None
    with pytest.raises(DataError, match="`stations` must be 37"):
        load_series("molene", stations=40)


def test_roads_come_with_their_graph():
    series = known("metr-la")
    assert series.graph.edges == 2626
    assert series.graph.nodes == 207
    assert (series.time[0] - np.datetime64("2012-03-01T00:00")) / np.timedelta64(1, "h") == 8  # midnight there, in UTC
    with pytest.raises(DataError, match="variable must be one of speed, got 'flow'"):
        load_series("metr-la", variables=("flow",))


def test_a_wrong_checksum_is_told(tmp_path):
    (tmp_path / "los_speed.csv").write_text("1,2\n3,4\n")
    with pytest.raises(DataError, match="expected sha256"):
        load_series("metr-la", data=tmp_path)


def test_npz_of_a_grid(tmp_path):
    series = load_series(saved(tmp_path / "a.npz", altitude=FIELD.altitude.reshape(3, 4)))
    assert series.grid == (3, 4)
    assert (series.time == FIELD.time).all()
    for name in ("values", "latitude", "longitude", "altitude"):
        assert np.allclose(getattr(series, name), getattr(FIELD, name))


def test_npz_of_stations_with_dates(tmp_path):
    np.savez(
        tmp_path / "a.npz",
        time=FIELD.time,
        lat=FIELD.latitude,
        lon=FIELD.longitude,
        t=FIELD.values[:, :, 0].astype(np.float32),
    )
    series = load_series(tmp_path / "a.npz")
    assert series.grid is None
    assert np.allclose(series.values, FIELD.values, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "options", "said"),
    [
        ({"u": GRID}, {}, "expected one variable over time and nodes, got t, u; choose by variable=NAME"),
        ({"u": GRID}, {"variables": ("v",)}, "variable must be one of t, u, got 'v'"),
        ({"t": GRID[:, :2]}, {}, r"must have the dimensions \(time, latitude, longitude\)"),
        ({"t": GRID.reshape(40, 1, 3, 4)}, {}, "select a level or member first"),
        ({"time": HOURS[::-1]}, {}, "times must ascend, got 39 that go back"),
        ({"time": HOURS.astype(int)}, {}, "times must be dates or have a unit .* got int64 like .* with no unit"),
        ({"time": HOURS.astype(float)}, {}, "times must be dates or have a unit .* got float64"),
        ({"time": HOURS[0]}, {}, "expected one variable over time and nodes, got none"),
        ({"latitude": np.array(["a", "b", "c"])}, {}, "latitude must be numbers, got <U1"),
        ({"latitude": np.array([1.0, np.nan, 2.0])}, {}, r"got shape \(12,\) with 4 not finite"),
        ({"time": np.repeat(HOURS[::2], 2)}, {}, "every time must occur once, got 20 twice"),
        ({"t": np.full_like(GRID, np.nan)}, {}, "variable t must have values, got gaps only"),
        ({"t": GRID + np.where(GRID == GRID[0, 0, 0], np.inf, 0)}, {}, "got 1 infinite"),
    ],
)
def test_bad_npz_files_are_refused_in_one_line(tmp_path, change, options, said):
    path = saved(tmp_path / "a.npz", **change)
    with pytest.raises(DataError, match=said) as error:
        load_series(path, **options)
    assert str(error.value).startswith(str(path))
    assert "\n" not in str(error.value)


def test_files_without_coordinates_or_damaged(tmp_path):
    np.savez(tmp_path / "a.npz", time=HOURS, t=GRID)
    with pytest.raises(DataError, match="expected an array latitude or lat, got time, t; add it"):
        load_series(tmp_path / "a.npz")
    (tmp_path / "b.npz").write_bytes((tmp_path / "a.npz").read_bytes()[:300])
    with pytest.raises(DataError, match="expected a .npz of plain arrays"):
        load_series(tmp_path / "b.npz")
    with pytest.raises(DataError, match="expected a readable file"):
        load_series(tmp_path / "c.npz")
    with pytest.raises(DataError, match="series must be one of era5-uk"):
        load_series("era6")


class Trap:
    """Something whose pickle does harm."""

    def __reduce__(self):
        return (pytest.fail, ("the file was unpickled",))


def test_pickles_in_npz_are_not_opened(tmp_path):
    assert pickle.dumps(Trap())
    np.savez(tmp_path / "a.npz", time=HOURS, **PLACES, t=np.array([Trap()] * 40, dtype=object))
    with pytest.raises(DataError, match="expected a .npz of plain arrays"):
        load_series(tmp_path / "a.npz")


def test_unsorted_files_are_sorted_if_asked(tmp_path):
    path = saved(tmp_path / "a.npz", time=HOURS[::-1], t=GRID[::-1])
    assert np.allclose(load_series(path, sort=True).values, FIELD.values)


# ------------------------------------------------------------------------------------------------ xarray


def dataset(dims=("time", "latitude", "longitude"), name="t2m", **more):
    xarray = pytest.importorskip("xarray")
    coordinates = {"time": FIELD.time.astype("datetime64[ns]"), **PLACES}
    array = xarray.DataArray(GRID, coordinates, ("time", "latitude", "longitude"), attrs={"units": "K"})
    return xarray.Dataset({name: array.transpose(*dims), **more})


def stored(made, path, kind):
    if kind == "zarr":
        pytest.importorskip("zarr")
        made.to_zarr(path.with_suffix(".zarr"), consolidated=False)
        return path.with_suffix(".zarr")
    pytest.importorskip("h5netcdf" if kind == "h5netcdf" else "scipy")
    made.to_netcdf(path.with_suffix(".nc"), engine=kind)
    return path.with_suffix(".nc")


@pytest.mark.parametrize("kind", ["scipy", "h5netcdf", "zarr"])
@pytest.mark.parametrize("dims", [("time", "latitude", "longitude"), ("longitude", "time", "latitude")])
def test_netcdf_and_zarr(tmp_path, kind, dims):
    series = load_series(stored(dataset(dims), tmp_path / "a", kind))
    assert series.grid == (3, 4)
    assert series.label(0) == "t2m (K)"
    assert (series.time == FIELD.time).all()
    for name in ("values", "latitude", "longitude"):
        assert np.allclose(getattr(series, name), getattr(FIELD, name))


def test_coordinates_by_units_a_level_of_one_and_a_chosen_variable(tmp_path):
    xarray = pytest.importorskip("xarray")
    made = dataset().rename(latitude="phi", longitude="lam")
    made["phi"].attrs["units"], made["lam"].attrs["units"] = "degrees_north", "degrees_east"
    made = made.expand_dims(level=[850.0])
    made["u10"] = made["t2m"] * 2
    made["mask"] = xarray.DataArray(np.zeros((3, 4)), dims=("phi", "lam"))
    path = stored(made, tmp_path / "a", "scipy")
    assert np.allclose(load_series(path, variables=("u10",)).values, 2 * FIELD.values)
    with pytest.raises(DataError, match="got t2m, u10; choose by variable=NAME"):
        load_series(path)
    with pytest.raises(DataError, match="variable must be one of t2m, u10, got 't3m'"):
        load_series(path, variables=("t3m",))
    with pytest.raises(DataError, match="variable mask must be numbers over time, phi, lam, got float64 over phi, lam"):
        load_series(path, variables=("mask",))


def test_stations_with_altitude_and_gaps(tmp_path):
    xarray = pytest.importorskip("xarray")
    values = FIELD.values[:, :, 0].copy()
    values[5, 3] = np.nan
    made = xarray.Dataset(
        {"t": (("time", "station"), values), "altitude": ("station", FIELD.altitude)},
        {
            "time": FIELD.time.astype("datetime64[ns]"),
            "lat": ("station", FIELD.latitude),
            "lon": ("station", FIELD.longitude),
        },
    )
    series = load_series(stored(made, tmp_path / "a", "h5netcdf"))
    assert series.grid is None
    assert series.gaps == 1
    assert np.allclose(series.altitude, FIELD.altitude)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda d: d.expand_dims(level=[1.0, 2.0]), r"must vary over time, latitude, longitude alone, got level \(2\)"),
        (lambda d: d.drop_vars("latitude").rename(latitude="y"), "expected a coordinate latitude or lat"),
        (lambda d: d.isel(time=slice(None, None, -1)), "times must ascend"),
        (lambda d: d.isel(time=[0, 1, 1, 2]), "every time must occur once"),
    ],
)
def test_bad_fields_are_refused_in_one_line(tmp_path, change, said):
    path = stored(change(dataset()), tmp_path / "a", "scipy")
    with pytest.raises(DataError, match=said) as error:
        load_series(path)
    assert "\n" not in str(error.value)


def test_what_is_no_field_is_one_line(tmp_path):
    pytest.importorskip("xarray")
    (tmp_path / "a.nc").write_bytes(b"CDF\x01 and nothing else")
    with pytest.raises(DataError, match="expected a file that xarray can read") as error:
        load_series(tmp_path / "a.nc")
    assert "\n" not in str(error.value)
    with pytest.raises(DataError, match="expected a file, got none"):
        load_series(tmp_path / "b.nc")


@pytest.mark.parametrize("name", ["pickle", r"\u0070ickle"])
def test_zarr_with_pickled_objects_is_refused_before_reading(tmp_path, name):
    pytest.importorskip("xarray")
    path = stored(dataset(), tmp_path / "a", "zarr")
    (path / "trap").mkdir()
    (path / "trap" / ".zarray").write_text(f'{{"filters": [{{"id": "{name}"}}]}}')
    with pytest.raises(DataError, match="expected plain arrays, got pickled objects in .zarray"):
        load_series(path)


def test_files_are_problems_of_the_command_line(tmp_path):
    path = saved(tmp_path / "a.npz")
    spec = problem_spec(f"{path}:horizon=3:6,variable=t")
    assert spec.kind is Forecasting
    assert (spec.keys["plan.horizon"], spec.keys["reading.variable"]) == ((3, 6), ("t",))
    np.savez(tmp_path / "graph.npz", adj_data=np.ones(2))
    assert problem_spec(str(tmp_path / "graph.npz")).kind is not Forecasting
    (tmp_path / "a.nc").write_bytes(b"")
    assert problem_spec(f"{tmp_path / 'a.nc'}:horizon=6").kind is Forecasting
    (tmp_path / "a.zarr").mkdir()
    assert problem_spec(str(tmp_path / "a.zarr")).kind is Forecasting
    with pytest.raises(FileNotFoundError, match="must be a file, got none"):
        problem_spec(str(tmp_path / "b.nc"))
    for name in NAMES:
        assert problem_spec(f"{name}:horizon=6").fixed == {"name": name}
