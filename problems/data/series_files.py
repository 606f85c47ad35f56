"""Load time series: the known sets, and files of a user's in any format that has a reader."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mldd.graph import Graph
from mldd.problems.data.contents import DataError, SeriesArrays, Supplement, unused_note
from mldd.problems.data.formats import Archive, is_file_name, no_variable, read_molene, read_series
from mldd.problems.data.known_files import KnownFile, obtain
from mldd.problems.data.series import Series, arranged

NAMES = ("era5-uk", "molene", "metr-la")
Array = NDArray[Any]

_GITHUB = "https://raw.githubusercontent.com"
_TGCN = f"{_GITHUB}/lehaifeng/T-GCN/219a2346f5bf68d54d91a948e7a41a08f9edc46b/T-GCN/T-GCN-PyTorch/data"
_DCRNN = f"{_GITHUB}/liyaguang/DCRNN/602afd9d767d3aa1c9b3eac51710d6aeee12c227/data/sensor_graph"
# The file as a data folder has it, then the one of the same contents that can be downloaded.
_ERA5 = (
    KnownFile(
        "weather/era5_t2m_uk_201903/era5_t2m_uk_201903.npz",
        "bd74173205341e430a776d00fc05c572c02fee755f16cef692219705149e1fd9",
        None,
    ),
    KnownFile(
        "weather/era5_t2m_uk_201903/era5-2mt-2019-03-uk.grib",
        "e5e82609f0e28e84822852e15d20c88dbb4b142a30264a7e6f87b9b5c7501df9",
        f"{_GITHUB}/pydata/xarray-data/58de68cb45bcbd1557df11a92827758495481b4e/era5-2mt-2019-03-uk.grib",
    ),
)
_MOLENE = {
    37: (
        KnownFile(
            "weather/molene/molene_temperature_37.npz",
            "105974757df9ef7bfb51c4cf1e07fe5216d930f23b0fb6039ed55207b49c1ab7",
            None,
        ),
        KnownFile(
            "weather/molene/gsp_molene_data.mat",
            "16ad27be959c32154b9ae01afd993686da8169ea05479f1415f937615379ca78",
            f"{_GITHUB}/bgirault-usc/Molene-Dataset/a32fd4459e8ecaf986477a459b1a50b94dc75ab3/Matlab/gsp_molene_data.mat",
        ),
    ),
    46: (
        KnownFile(
            "weather/molene/molene_hourly_201401.npz",
            "1c49bfbd1e76bcd5af5efa724eebb557cc44e16898fb9ffc4a6939df58d8dc83",
            None,
        ),
    ),
}
_METR_LA = {
    "speed": KnownFile(
        "traffic/metr_la_week/los_speed.csv",
        "7b732d86ae32b2930595becba28aff39dacbfb2197e250fc0332e1744ce2cbf4",
        f"{_TGCN}/los_speed.csv",
    ),
    "adjacency": KnownFile(
        "traffic/metr_la_week/los_adj.csv",
        "7a6eb41e10677992b5af50f5ab187c6c05c5c3a92cb973950cfddbf857361e76",
        f"{_TGCN}/los_adj.csv",
    ),
    "places": KnownFile(
        "traffic/metr_la_week/graph_sensor_locations.csv",
        "eb8ea96e07358b45d0e4ba3b89c2673fa20c54af50150249e627389e749ade6f",
        f"{_DCRNN}/graph_sensor_locations.csv",
    ),
}
_UNITS = {
    "era5-uk": {"t2m": "K"},
    "molene": {"t": "K", "t_max": "K", "t_min": "K", "td": "K", "u": "%", "dd": "degrees", "ff": "m/s", "fxi": "m/s"}
    | {"rr1": "kg/m2", "pres": "Pa", "pmer": "Pa"},
}
_UTC = np.timedelta64(8, "h")  # Los Angeles keeps Pacific standard time in the first week of March


def load_series(
    name: str | os.PathLike[str],
    *,
    data: str | os.PathLike[str] | None = None,
    variables: tuple[str, ...] = (),
    stations: int = 37,
    sort: bool = False,
    missing: float | None = None,
    reader: str = "",
    select: tuple[str, ...] = (),
    static: tuple[str, ...] = (),
    known: tuple[str, ...] = (),
) -> Series:
    """Return a time series by name, or from a file of the user's.

    Parameters
    ----------
    name : str or path
        One of `NAMES`, or a file: NetCDF, Zarr, GRIB, `.npz` with the arrays `time` (dates), `latitude`, `longitude`
        and variables whose first dimension is time, or one that `reader` reads; or a pattern of several files along
        time, as ``months/era5_*.nc``.
    data : path, optional
        Folder to look into first for the known sets.
    variables : tuple of str
        Which ones; by default the only one of a file, the temperature of `molene`.
    stations : int
        Of `molene`: the 37 without gaps, or all 46.
    sort : bool
        Sort the times of a file; otherwise unsorted ones are refused.
    missing : float, optional
        The value that stands for a missing one, 0 in many files of traffic.
    reader : str
        Of the file, where its suffix does not say it: a suffix, ``file.py:function`` or ``package.module:function``.
    select : tuple of str
        What is taken of a file along other dimensions than time and place, as in ``("level=850", "number=0")``.
    static : tuple of str
        Fields of a file that do not change in time, which become inputs: a land-sea mask, the height of the surface.
    known : tuple of str
        Variables of a file that are known about the future, too, and become inputs.

    Raises
    ------
    DataError
        If the set is unknown, nowhere to be had, damaged, or makes no sense.
    """
    key = os.fspath(name)
    for what, given in (("select", select), ("static", static), ("known", known)):
        if given and key in NAMES:
            raise DataError(f"`{what}` is of files, got {key}, which has nothing else than its variables; leave it out")
    if known and not variables:
        raise DataError(f"{key}: `known` must be beside `variable`, which names what is forecast, got none; name it")
    if key == "era5-uk":
        return _series(key, _era5(data, variables), variables or ("t2m",), missing=missing)
    if key == "molene":
        return _series(key, _molene(stations, data), variables or ("t",), missing=missing)
    if key == "metr-la":
        return _metr_la({what: obtain(key, (file,), data)[1] for what, file in _METR_LA.items()}, variables, missing)
    if not reader and not is_file_name(key):
        raise DataError(f"series must be one of {', '.join(NAMES)}, or a file .nc, .zarr, .grib or .npz, got {key!r}")
    wanted = variables + tuple(name for name in known if name not in variables)
    made = _series(key, read_series(key, wanted, reader, select, static), wanted, sort, missing)
    absent = [name for name in static if name not in made.supplement.static]
    if absent:
        raise DataError(f"{key}: its reader gives no static field {absent[0]}; write NetCDF or Zarr, or leave it out")
    return made.with_known(known) if known else made


def _era5(data: str | os.PathLike[str] | None, variables: tuple[str, ...]) -> SeriesArrays:
    """Read the known file in whichever format it is at hand."""
    file, path = obtain("era5-uk", _ERA5, data)
    return _without_remarks(read_series(path) if file.place.endswith(".grib") else _known_npz(path))


def _molene(stations: int, data: str | os.PathLike[str] | None) -> SeriesArrays:
    if stations not in _MOLENE:
        raise DataError(f"molene: `stations` must be 37 (complete) or 46 (with gaps), got {stations}")
    file, path = obtain("molene", _MOLENE[stations], data)
    return _without_remarks(
        read_molene(path.read_bytes(), "molene") if file.place.endswith(".mat") else _known_npz(path)
    )


def _known_npz(path: Any) -> SeriesArrays:
    """Read a known archive, whose times are whole hours since 1970."""
    arrays: dict[str, Any] = dict(Archive(path, str(path)))
    time = arrays.pop("time").astype("datetime64[h]")
    latitude, longitude, altitude = (arrays.pop(name, None) for name in ("latitude", "longitude", "altitude"))
    fields = {name: a for name, a in arrays.items() if a.ndim >= 2 and len(a) == len(time) and a.dtype.kind in "fiu"}
    return SeriesArrays(time, latitude, longitude, fields, altitude=altitude)


def _without_remarks(arrays: SeriesArrays) -> SeriesArrays:
    """Leave out what is known of a known set."""
    return replace(arrays, unused=(), notes=())


# ---------------------------------------------------------------------------------------------------- series


def _like_missing(name: str, values: Any) -> list[str]:
    """Return a sentence on a lowest or highest value that looks as if it stood for missing ones: -999, 9999, 1e20."""
    found: list[str] = []
    if not np.isfinite(values).any():
        return found
    for extreme in (np.nanmin(values), np.nanmax(values)):
        others = values[np.isfinite(values) & (values != extreme)] if _is_mark(abs(extreme)) else values[:0]
        if others.size < 2:
            continue
        low, high = others.min(), others.max()
        if max(low - extreme, extreme - high) > 3 * (high - low):
            times = int((values == extreme).sum())
            found.append(f"{name} is {extreme:g} {times} times, far from all else; missing={extreme:g} leaves that out")
    return found


def _is_mark(size: float) -> bool:
    """Return whether a number is written for missing ones: nines, the limits of 16 bits, or beyond all measurements."""
    return size in (32767, 32768) or size >= 1e15 or re.fullmatch(r"9{2,6}", f"{size:.15g}") is not None


def _series(
    key: str, arrays: SeriesArrays, wanted: tuple[str, ...] = (), sort: bool = False, missing: float | None = None
) -> Series:
    """Make a series of the arrays of a file: nodes are the points of a grid, or stations."""
    names = wanted or tuple(arrays.variables)
    if not arrays.variables or (not wanted and len(names) > 1):
        found = ", ".join(arrays.variables) or "none"
        raise DataError(f"{key}: expected one variable over time and nodes, got {found}; choose by variable=NAME")
    for name in names:
        if name not in arrays.variables:
            no_variable(key, name, list(arrays.variables))
    shape = arrays.variables[names[0]].shape[1:]
    if any(arrays.variables[name].shape[1:] != shape for name in names):
        raise DataError(f"{key}: variables must have the same nodes, got {', '.join(names)}; choose others")
    latitude, longitude, grid = _nodes(key, names[0], arrays, shape)
    values = np.stack([arrays.variables[name].reshape(-1, latitude.size) for name in names], axis=-1)
    values = values.astype(np.float64)
    altitude = None if arrays.altitude is None else arrays.altitude.astype(np.float64).ravel()
    notes = list(arrays.notes)
    supplement = arrays.supplement.of_nodes(np.arange(latitude.size))
    kept, grid, why = _kept(latitude, longitude, grid)
    if why and len(shape) == 2:
        supplement = supplement.of_nodes(kept)
        notes.append(why)
        latitude, longitude, values = latitude[kept], longitude[kept], values[:, kept]
        altitude = None if altitude is None else altitude[kept]
    if missing is not None:
        taken = values == missing
        values[taken] = np.nan
        notes.append(f"{int(taken.sum())} values equal to {missing:g} were taken for missing")
    else:
        notes += [note for k, name in enumerate(names) for note in _like_missing(name, values[..., k])]
    unused = arrays.unused + tuple(name for name in arrays.variables if name not in names)
    return arranged(
        key,
        values,
        arrays.time,
        sort=sort,
        calendar=arrays.calendar,
        latitude=latitude,
        longitude=np.where((longitude < -180) | (longitude > 360), np.mod(longitude, 360.0), longitude),
        variables=names,
        altitude=altitude,
        grid=grid,
        units=tuple((dict(arrays.units) | _UNITS.get(key, {})).get(name, "") for name in names),
        notes=(*notes, *unused_note(unused)) if key not in NAMES else tuple(notes),
        supplement=supplement,
    )


def _kept(latitude: Array, longitude: Array, grid: tuple[int, int] | None) -> tuple[Array, Any, str]:
    """Return which points of a field are nodes, rows and columns of what remains, and why others are none."""
    placed = np.isfinite(latitude) & np.isfinite(longitude)
    if grid is None:
        lost = int((~placed).sum())
        why = f"{lost} nodes of a curvilinear grid without coordinates were left out" if 0 < lost < placed.size else ""
        return placed, None, why
    columns = longitude[: grid[1]]
    if grid[1] > 2 and abs(abs(columns[-1] - columns[0]) - 360.0) < 1e-6:
        last = np.arange(longitude.size) % grid[1] == grid[1] - 1
        return ~last, (grid[0], grid[1] - 1), "the last meridian was left out: it is the first one again"
    return placed, grid, ""


def _nodes(key: str, name: str, arrays: SeriesArrays, shape: tuple[int, ...]) -> tuple[Array, Array, Any]:
    """Return latitude and longitude of every node, and rows and columns of a latitude-longitude grid."""
    for what in ("latitude", "longitude", "altitude"):
        given = getattr(arrays, what)
        if given is not None and given.dtype.kind not in "fiu":
            raise DataError(f"{key}: {what} must be numbers, got {given.dtype}; convert them")
    latitude, longitude = arrays.latitude.astype(np.float64), arrays.longitude.astype(np.float64)
    if latitude.ndim == 2 and latitude.shape == longitude.shape == shape:
        return latitude.ravel(), longitude.ravel(), None
    rows, columns = latitude.size, longitude.size
    if len(shape) == 2 and shape == (rows, columns):
        return np.repeat(latitude.ravel(), columns), np.tile(longitude.ravel(), rows), (rows, columns)
    if shape != (rows,):
        raise DataError(
            f"{key}: variable {name} must have the dimensions (time, latitude, longitude) or (time, node), got "
            f"{shape} with {rows} latitudes and {columns} longitudes; select a level or member first"
        )
    return latitude.ravel(), longitude.ravel(), None


def _metr_la(paths: Mapping[str, Any], variables: tuple[str, ...], missing: float | None) -> Series:
    """Read the road sensors; their graph is that of the file: a Gaussian kernel of road distances."""
    if variables not in ((), ("speed",)):
        no_variable("metr-la", variables[0], ["speed"])
    speed = np.loadtxt(paths["speed"], delimiter=",", skiprows=1)
    adjacency = np.loadtxt(paths["adjacency"], delimiter=",")
    places = np.loadtxt(paths["places"], delimiter=",", skiprows=1)
    row, column = np.nonzero(adjacency)
    edges, weights = torch.from_numpy(np.stack([row, column])), torch.from_numpy(adjacency[row, column])
    time = np.datetime64("2012-03-01T00:00", "s") + _UTC + np.arange(len(speed)) * np.timedelta64(300, "s")
    taken = speed == missing if missing is not None else np.zeros(speed.shape, dtype=np.bool_)
    return Series(
        "metr-la",
        np.where(taken, np.nan, speed)[:, :, None],
        time,
        places[:, 2],
        places[:, 3],
        ("speed",),
        supplement=Supplement(graph=Graph.from_edges(edges, len(adjacency), weights)),
        units=("mile/h",),
        notes=() if missing is None else (f"{int(taken.sum())} values equal to {missing:g} were taken for missing",),
    )
