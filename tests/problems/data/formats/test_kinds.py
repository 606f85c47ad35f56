"""Thirty kinds of files of fields: the numbers of an independent reading, or a refusal whose way out works.

What is right comes from xarray with its own decoding and from cftime, or from the arrays a file was made of.
"""

import warnings

import numpy as np
import pytest

from mldd.problems.data import DataError, load_series

xarray = pytest.importorskip("xarray")
cftime = pytest.importorskip("cftime")
pytest.importorskip("h5netcdf")

T, ROWS, COLUMNS = 60, 3, 4
LATITUDE, LONGITUDE = np.array([60.0, 57.5, 55.0]), np.array([0.0, 2.5, 5.0, 7.5])
HOUR = np.arange(T)
FIELD = 280 + 5 * np.sin(2 * np.pi * HOUR / 24)[:, None, None] + np.random.default_rng(0).standard_normal((T, 3, 4))
TIME = np.datetime64("2020-02-27T00", "s") + HOUR * np.timedelta64(3600, "s")
DEGREES = {"latitude": {"units": "degrees_north"}, "longitude": {"units": "degrees_east"}}
DIMS = ("time", "latitude", "longitude")


def dataset(values=FIELD, time=None, time_attrs=None, attrs=None, places=(LATITUDE, LONGITUDE)):
    """Return a field with raw times: hours since a date, unless others are given."""
    time = HOUR if time is None else np.asarray(time)
    since = {"units": "hours since 2020-02-27"} if time_attrs is None else time_attrs
    return xarray.Dataset(
        {"t2m": (DIMS, values, {"units": "K"} | (attrs or {}))},
        {
            "time": ("time", time, since),
            "latitude": ("latitude", places[0], DEGREES["latitude"]),
            "longitude": ("longitude", places[1], DEGREES["longitude"]),
        },
    )


def written(made, path, engine="h5netcdf", **encoding):
    """Write a data set as it is: without the fill value that xarray adds of its own accord."""
    keep = {name: {"_FillValue": None} for name in made.variables if "_FillValue" not in made[name].attrs}
    if engine == "zarr":
        made.to_zarr(path.with_suffix(".zarr"), consolidated=False, **encoding)
        return path.with_suffix(".zarr")
    made.to_netcdf(path.with_suffix(".nc"), engine=engine, encoding=keep)
    return path.with_suffix(".nc")


def independent(path, name="t2m", time="time"):
    """Return values (T, n), dates of cftime, latitudes and longitudes as xarray decodes them."""
    coder = xarray.coders.CFDatetimeCoder(use_cftime=True)
    engine = "zarr" if path.suffix == ".zarr" else "scipy" if path.read_bytes()[:3] == b"CDF" else "h5netcdf"
    with xarray.open_dataset(path, engine=engine, decode_times=coder) as ds:
        array = ds[name]
        first = ds[time].dims[0]
        north = ds[lat_of(ds)].dims
        places = [d for d in array.dims if d != first and array.sizes[d] > 1]
        places.sort(key=lambda d: d not in north)  # rows first
        flat = array.squeeze().transpose(first, *places).to_numpy().reshape(array.sizes[first], -1)
        latitude, longitude = xarray.broadcast(ds[lat_of(ds)], ds[lon_of(ds)])
        order = [d for d in places if d in latitude.dims]
        return (
            flat,
            ds[time].to_numpy(),
            latitude.transpose(*order).to_numpy().ravel(),
            longitude.transpose(*order).to_numpy().ravel(),
        )


def lat_of(ds):
    return "latitude" if "latitude" in ds else "lat"


def lon_of(ds):
    return "longitude" if "longitude" in ds else "lon"


def same(series, path, name="t2m", time="time"):
    """Compare a series with what xarray and cftime read."""
    values, dates, latitude, longitude = independent(path, name, time)
    order = np.argsort(dates)
    np.testing.assert_allclose(series.values[:, :, 0], values[order], rtol=1e-6)
    elapsed = [round((date - dates[order[0]]).total_seconds()) for date in dates[order]]
    assert ((series.time - series.time[0]).astype(int) == elapsed).all()
    assert str(series.time[0])[:19] == dates[order[0]].strftime("%Y-%m-%dT%H:%M:%S")
    np.testing.assert_allclose(series.latitude, latitude)
    np.testing.assert_allclose(series.longitude, longitude)


# ------------------------------------------------------------------------------------------------ same numbers


def packed(**attrs):
    """Return the field in short integers, one value marked as missing by -32768 and one by -5000."""
    raw = np.round((FIELD - 280) / 0.01).astype("i2")
    raw[7, 1, 2], raw[9, 0, 0] = -32768, -5000
    return dataset(raw, attrs={"scale_factor": 0.01, "add_offset": 280.0} | attrs)


def with_text_times():
    made = dataset().drop_vars("time")
    return made.assign_coords(time=("time", [str(t) for t in TIME]))


def stations():
    return xarray.Dataset(
        {"t2m": (("station", "time"), FIELD[:, :, 0].T, {"units": "K"})},
        {
            "time": ("time", HOUR, {"units": "hours since 2020-02-27"}),
            "lat": ("station", LATITUDE, DEGREES["latitude"]),
            "lon": ("station", LONGITUDE[:3], DEGREES["longitude"]),
        },
    )


def rotated():
    """Return a rotated grid: coordinates of two dimensions, and the axes of the rotated pole."""
    y, x = np.meshgrid(LATITUDE, LONGITUDE, indexing="ij")
    return xarray.Dataset(
        {"t2m": (("time", "rlat", "rlon"), FIELD, {"units": "K", "coordinates": "lat lon", "grid_mapping": "pole"})},
        {
            "time": ("time", HOUR, {"units": "hours since 2020-02-27"}),
            "rlat": ("rlat", [-1.0, 0.0, 1.0], {"units": "degrees", "standard_name": "grid_latitude"}),
            "rlon": ("rlon", [-2.0, -1.0, 0.0, 1.0], {"units": "degrees", "standard_name": "grid_longitude"}),
            "lat": (("rlat", "rlon"), y + 0.1 * x, {"units": "degrees_north", "standard_name": "latitude"}),
            "lon": (("rlat", "rlon"), x - 0.2 * y, {"units": "degrees_east", "standard_name": "longitude"}),
            "pole": ((), 0, {"grid_mapping_name": "rotated_latitude_longitude"}),
        },
    )


def in_calendar(calendar, unit="hours", start="2019-02-27"):
    return dataset(time=HOUR.astype("f8"), time_attrs={"units": f"{unit} since {start}", "calendar": calendar})


KINDS = {
    "netcdf-4": (dataset(), {}),
    "classic": (dataset(), {"engine": "scipy"}),
    "zarr 2": (dataset(), {"engine": "zarr", "zarr_format": 2}),
    "zarr 3": (dataset(), {"engine": "zarr", "zarr_format": 3}),
    "single precision": (dataset(FIELD.astype("f4")), {}),
    "packed with a fill value": (packed(_FillValue=np.int16(-32768)), {}),
    "packed with two of them": (packed(_FillValue=np.int16(-32768), missing_value=np.int16(-5000)), {}),
    "missing_value": (dataset(np.where(FIELD > 286, -999.0, FIELD), attrs={"missing_value": -999.0}), {}),
    "other order": (dataset().transpose("longitude", "time", "latitude"), {}),
    "south to north": (dataset(places=(LATITUDE[::-1].copy(), LONGITUDE)), {}),
    "across greenwich": (dataset(places=(LATITUDE, np.array([0.0, 2.5, 355.0, 357.5]))), {}),
    "one level": (dataset().expand_dims(level=[850.0], axis=1), {}),
    "stations": (stations(), {}),
    "rotated": (rotated(), {}),
    "noleap": (in_calendar("noleap"), {}),
    "365_day by days": (in_calendar("365_day", "days"), {}),
    "all_leap": (in_calendar("all_leap", "days"), {}),
    "360_day": (in_calendar("360_day", "days", "2019-02-01"), {}),
    "days with fractions": (dataset(time=HOUR / 24, time_attrs={"units": "days since 1900-01-01"}), {}),
    "since year one": (dataset(time=17706000 + HOUR, time_attrs={"units": "hours since 1-1-1 00:00:0.0"}), {}),
    "another time zone": (dataset(time_attrs={"units": "hours since 2020-02-27 00:00 +01:00"}), {}),
    "unsigned": (dataset(time=HOUR.astype("u4"), time_attrs={"units": "hours since 2020-02-27"}), {}),
    "minutes": (dataset(time=HOUR * 10, time_attrs={"units": "minutes since 2020-02-27"}), {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_are_those_of_xarray_and_cftime(tmp_path, kind):
    made, options = KINDS[kind]
    if options.get("engine") == "zarr":
        pytest.importorskip("zarr")
    path = written(made, tmp_path / "file", **options)
    same(load_series(path), path)


def known(series, values=FIELD, time=TIME):
    """Compare a series with the arrays that its file was made of."""
    np.testing.assert_allclose(series.values[:, :, 0], np.reshape(values, (len(values), -1)), rtol=1e-6)
    assert (series.time == time).all()


DAYS = np.datetime64("2020-02-27", "s") + HOUR * np.timedelta64(86400, "s")


def digits(times, letters):
    return [int("".join(c for c in str(t) if c.isdigit())[:letters]) for t in times]


DECODED = {
    "YYYYMMDD": (digits(DAYS, 8), {"units": "YYYYMMDD"}, DAYS),
    "YYYYMMDD without a unit": (digits(DAYS, 8), {}, DAYS),
    "YYYYMMDDHH": (digits(TIME, 10), {"units": "YYYYMMDDHH"}, TIME),
    "day with a fraction": (
        np.array(digits(TIME, 8)) + (HOUR % 24) / 24,
        {"units": "day as %Y%m%d.%f"},
        TIME,
    ),
    "epoch in the long name": (TIME.astype(int), {"long_name": "seconds since the epoch"}, TIME),
    "nanoseconds": (HOUR * 3600 * 10**9, {"units": "nanoseconds since 2020-02-27"}, TIME),
    "in capitals": (HOUR, {"units": "Hours Since 2020-02-27"}, TIME),
}


@pytest.mark.parametrize("kind", DECODED)
def test_times_with_one_meaning_are_decoded(tmp_path, kind):
    raw, attrs, time = DECODED[kind]
    known(load_series(written(dataset(time=raw, time_attrs=attrs), tmp_path / "file")), time=time)


def test_text_and_sorted_npz(tmp_path):
    known(load_series(written(with_text_times(), tmp_path / "file")))
    np.savez(tmp_path / "a.npz", time=[f"{t}Z" for t in TIME], lat=LATITUDE, lon=LONGITUDE, t=FIELD)
    known(load_series(tmp_path / "a.npz"))
    np.savez(tmp_path / "b.npz", valid_time=digits(TIME, 10), lat=LATITUDE, lon=LONGITUDE, t=FIELD)
    known(load_series(tmp_path / "b.npz"))


@pytest.mark.parametrize(
    ("value", "attrs"),
    [
        (-9999.0, {"valid_range": np.array([200, 350], "f4")}),
        (-9999.0, {"valid_min": np.float32(200)}),
        (1e9, {"valid_max": np.float32(400)}),
        (9.969209968386869e36, {}),
        (np.nan, {}),
        (-1.0, {"_FillValue": np.float32(-1), "missing_value": np.array([-2, -3], "f4")}),
        (-3.0, {"missing_value": np.array([-2, -3], "f4")}),
    ],
)
def test_what_means_missing_is_missing(tmp_path, value, attrs):
    values = FIELD.astype("f4")
    values[7, 1, 2] = value
    series = load_series(written(dataset(values, attrs=attrs), tmp_path / "file"))
    assert np.argwhere(np.isnan(series.values)).tolist() == [[7, 6, 0]]


def test_ranges_of_packed_numbers_are_packed_or_not_by_their_type(tmp_path):
    for attrs in ({"valid_min": np.int16(-3000)}, {"valid_range": np.array([250.0, 310.0])}):
        series = load_series(written(packed(**attrs), tmp_path / "file"))
        assert np.argwhere(np.isnan(series.values)).tolist() == [[7, 6, 0], [9, 0, 0]]


def test_bytes_that_mean_unsigned_numbers(tmp_path):
    raw = np.random.default_rng(0).integers(0, 255, (T, ROWS, COLUMNS)).astype("u1")
    raw[7, 1, 2] = 255
    made = dataset(raw.view("i1"), attrs={"_Unsigned": "true", "_FillValue": np.int8(-1), "scale_factor": 0.5})
    known(load_series(written(made, tmp_path / "file")), np.where(raw == 255, np.nan, raw * 0.5))


def test_radians(tmp_path):
    made = dataset(places=(np.radians(LATITUDE), np.radians(LONGITUDE)))
    made["latitude"].attrs = {"units": "radian", "standard_name": "latitude"}
    made["longitude"].attrs = {"units": "radian", "standard_name": "longitude"}
    series = load_series(written(made, tmp_path / "file"))
    np.testing.assert_allclose(series.latitude, np.repeat(LATITUDE, 4))
    np.testing.assert_allclose(series.longitude, np.tile(LONGITUDE, 3))


def test_nodes_of_a_curvilinear_grid_without_coordinates_are_left_out(tmp_path):
    made = rotated()
    made["lat"].values[0, :2] = np.nan
    series = load_series(written(made, tmp_path / "file"))
    assert series.nodes == 10 and series.grid is None
    assert "2 nodes of a curvilinear grid without coordinates were left out" in series.notes
    assert "not used: rlat, rlon, pole" in series.notes
    np.testing.assert_allclose(series.values[:, :, 0], FIELD.reshape(T, 12)[:, 2:])


def test_a_meridian_that_comes_twice_is_one(tmp_path):
    around = np.array([0.0, 120.0, 240.0, 360.0])
    series = load_series(written(dataset(places=(LATITUDE, around)), tmp_path / "file"))
    assert series.grid == (3, 3) and series.longitude[:3].tolist() == [0, 120, 240]
    assert "the last meridian was left out: it is the first one again" in series.notes
    np.testing.assert_allclose(series.values[:, :, 0], FIELD[:, :, :3].reshape(T, 9))


def test_longitudes_beyond_a_turn_are_turned_back(tmp_path):
    series = load_series(written(dataset(places=(LATITUDE, LONGITUDE - 362)), tmp_path / "file"))
    assert series.longitude[:4].tolist() == [358.0, 0.5, 3.0, 5.5]
    known(series)


def test_forecasts_are_read_along_the_time_they_are_valid_at(tmp_path):
    made = dataset().rename(time="step").drop_vars("step")
    start = xarray.DataArray(24, attrs={"units": "hours since 2020-02-26", "standard_name": "forecast_reference_time"})
    steps = {"step": ("step", HOUR, {"units": "hours"}), "time": start}
    known(load_series(written(made.assign_coords(steps), tmp_path / "a")))
    valid = ("step", HOUR + 24, {"units": "hours since 2020-02-26", "standard_name": "time"})
    known(load_series(written(made.assign_coords(**steps, valid_time=valid), tmp_path / "b")))


@pytest.mark.parametrize("shift", [0, 14])
def test_months(tmp_path, shift):
    since = {"units": "months since 2000-01-01"}
    made = dataset(time=HOUR, time_attrs=since)
    month = (np.datetime64("2000-01", "M") + HOUR).astype("datetime64[s]")
    if shift:  # the middle of every month, as dates
        length = (np.datetime64("2000-01", "M") + HOUR + 1).astype("datetime64[s]") - month
        month = month + length / 2
        made = made.assign_coords(time=("time", month.astype("datetime64[s]")))
    series = load_series(written(made, tmp_path / "file"))
    known(series, time=month)
    assert series.calendar.months == 1 and abs(series.step / 86400 - 30.44) < 0.2
    assert (series.moments(np.array([T]))[0] - np.datetime64("2005-01-01")) < np.timedelta64(20, "D")


def test_days_of_the_year_are_those_of_the_calendar(tmp_path):
    for calendar, length in (("noleap", 365), ("360_day", 360)):
        time = np.arange(0, 60 * 180, 180.0)  # thirty years
        made = dataset(time=time, time_attrs={"units": "days since 2000-02-26 06:00", "calendar": calendar})
        series = load_series(written(made, tmp_path / calendar))
        dates = cftime.num2date(time, "days since 2000-02-26 06:00", calendar)
        found = series.moments(np.arange(T))
        for date, moment in zip(dates, found.astype(object), strict=True):
            assert (moment.year, moment.hour) == (date.year, date.hour)
            assert abs(moment.timetuple().tm_yday / 365 - date.dayofyr / length) < 2 / 360


def test_zeros_are_missing_if_the_user_says_so(tmp_path):
    values = np.where(FIELD > 285, 0.0, FIELD)
    path = written(dataset(values), tmp_path / "file")
    assert load_series(path).gaps == 0
    series = load_series(path, missing=0)
    assert (np.isnan(series.values) == (values.reshape(T, 12, 1) == 0)).all()
    assert f"{series.gaps} values equal to 0 were taken for missing" in series.notes


@pytest.mark.parametrize("mark", [-999.0, 9999.0, -32767.0, 1e20])
def test_numbers_that_look_like_missing_ones_are_said_and_their_way_out_works(tmp_path, mark):
    """In files without an attribute that says so, nothing but the user's word tells."""
    gone = FIELD > 285
    path = written(dataset(np.where(gone, mark, FIELD)), tmp_path / "file")
    (note,) = load_series(path).notes
    assert note == f"t2m is {mark:g} {gone.sum()} times, far from all else; missing={mark:g} leaves that out"
    series = load_series(path, missing=mark)
    assert np.array_equal(series.values, np.where(gone, np.nan, FIELD).reshape(T, 12, 1), equal_nan=True)
    near = np.where(gone, 99.0, FIELD - 180)  # between other values nothing is suspicious
    assert load_series(written(dataset(near), tmp_path / "near")).notes == ()


def test_what_is_not_used_and_what_was_inserted_is_said(tmp_path):
    made = dataset().isel(time=np.delete(HOUR, [3, 30])).assign(u10=2 * dataset()["t2m"], crs=0)
    made = made.assign_coords(altitude=2.0)
    series = load_series(written(made, tmp_path / "file"), variables=("t2m",))
    assert series.gaps == 24
    first, second, third = series.notes
    assert first == "altitude is left out: it must be one number per node, got a single number"
    assert sorted(second.removeprefix("not used: ").split(", ")) == ["altitude", "crs", "u10"]
    assert third == "2 missing times were inserted as gaps: 2020-02-27 03:00, 2020-02-28 06:00"


@pytest.mark.parametrize("kind", ["a level", "over sea"])
def test_an_altitude_that_is_none_is_left_out(tmp_path, kind):
    if kind == "a level":
        made = dataset().expand_dims(altitude=[2.0], axis=1)
    else:
        height = np.arange(12.0).reshape(3, 4)
        height[0, 0] = np.nan
        made = dataset().assign(elevation=(("latitude", "longitude"), height, {"units": "m"}))
    series = load_series(written(made, tmp_path / "file"))
    assert series.altitude is None and any("is left out: " in note for note in series.notes)
    known(series)


def test_cdf_5(tmp_path, monkeypatch):
    library = pytest.importorskip("netCDF4")
    dataset().to_netcdf(tmp_path / "four.nc", engine="netcdf4")
    path = tmp_path / "five.nc"
    with library.Dataset(tmp_path / "four.nc") as old, library.Dataset(path, "w", format="NETCDF3_64BIT_DATA") as new:
        for name, size in old.dimensions.items():
            new.createDimension(name, len(size))
        for name, variable in old.variables.items():
            made = new.createVariable(name, variable.dtype, variable.dimensions)
            made.setncatts({key: variable.getncattr(key) for key in variable.ncattrs() if key != "_FillValue"})
            made[:] = variable[:]
    known(load_series(path))
    monkeypatch.setattr("mldd.problems.data.formats.netcdf.find_spec", lambda name: None)
    with pytest.raises(DataError, match=r"got CDF-5 \(64-bit data\), which needs netCDF4: pip install netCDF4"):
        load_series(path)


# ------------------------------------------------------------------------------------------------ ways out


def opened(path):
    return xarray.open_dataset(path, engine="h5netcdf", decode_times=False).load()


def with_units(path):
    made = opened(path)
    made["time"].attrs["units"] = "hours since 2020-02-27"
    return load_series(written(made, path.with_name("mended")))


def selected(**one):
    return lambda path: load_series(written(opened(path).isel(**one), path.with_name("mended")))


def averaged(path):
    with xarray.open_dataset(path, engine="h5netcdf") as ds:
        made = ds.resample(time="1s").mean()
        return load_series(written(made, path.with_name("mended")))


def with_places(path):
    made = opened(path).assign_coords(latitude=LATITUDE, longitude=LONGITUDE)
    made["latitude"].attrs, made["longitude"].attrs = DEGREES["latitude"], DEGREES["longitude"]
    return load_series(written(made, path.with_name("mended")))


def projected():
    made = dataset(places=(LATITUDE * 1e5, LONGITUDE * 1e5))
    made["latitude"].attrs, made["longitude"].attrs = {"units": "m"}, {"units": "m"}
    return made


def several_starts():
    made = dataset().expand_dims(start=2).transpose("start", "time", "latitude", "longitude").rename(time="step")
    valid = (
        ("start", "step"),
        np.stack([HOUR, HOUR + 12]),
        {"units": "hours since 2020-02-27", "standard_name": "time"},
    )
    return made.drop_vars("step").assign_coords(valid_time=valid)


def in_double_precision(path):
    made = opened(path)
    made = made.assign_coords(time=("time", 43887 + HOUR / 24, {"units": "days since 1900-01-01"}))
    return load_series(written(made, path.with_name("mended")))


HALVES = np.datetime64("2020-02-27", "ms") + HOUR * np.timedelta64(500, "ms")
REFUSED = {
    "times without a unit": (dataset(time_attrs={}), "got int64 like 0 with no unit; write dates, or set", with_units),
    "seconds without a date": (dataset(time_attrs={"units": "hours"}), "with unit 'hours'", with_units),
    "members": (
        dataset().expand_dims(number=2),
        r"number \(2\) too; choose one by select=number=0",
        lambda path: load_series(path, select=("number=0",)),
    ),
    "several starts": (several_starts(), "several starts .*; select one of them, as in ds.isel", selected(start=0)),
    "metres": (projected(), "latitude must be in degrees or radians, got unit 'm'", with_places),
    "half seconds": (
        dataset(time=HALVES.astype("datetime64[ns]"), time_attrs={}),
        "got steps of 0.5 s, below a second; average them",
        averaged,
    ),
    "days in single precision": (
        dataset(time=(43887 + HOUR / 24).astype("f4"), time_attrs={"units": "days since 1900-01-01"}),
        "times must be whole seconds, got steps of 3375 s; write them as whole numbers, or in double precision",
        in_double_precision,
    ),
    "unsorted": (
        dataset(time=HOUR[::-1].copy()),
        "times must ascend, got 59 that go back; sort them or set sort=true",
        lambda path: load_series(path, sort=True),
    ),
    "two variables": (
        dataset().assign(u10=dataset()["t2m"]),
        "got t2m, u10; choose by variable=NAME",
        lambda path: load_series(path, variables=("t2m",)),
    ),
    "calendar of nobody": (
        in_calendar("martian"),
        "the calendar must be one of .* got 'martian'; set the attribute calendar",
        lambda path: with_calendar(path, "noleap"),
    ),
}


def with_calendar(path, name):
    made = opened(path)
    made["time"].attrs["calendar"] = name
    return load_series(written(made, path.with_name("mended")))


@pytest.mark.parametrize("kind", REFUSED)
def test_refusals_are_one_line_and_their_way_out_works(tmp_path, kind):
    made, said, way = REFUSED[kind]
    path = written(made, tmp_path / "file")
    with pytest.raises(DataError, match=said) as error:
        load_series(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        series = way(path)
    assert series.gaps == 0 and series.nodes == ROWS * COLUMNS
