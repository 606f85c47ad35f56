"""NetCDF by xarray; what its numbers mean is asked in `mldd.problems.data.formats.conventions`."""

from __future__ import annotations

import warnings
from importlib.util import find_spec
from typing import Any

import numpy as np

from mldd.algebra import way_to_install
from mldd.loop import UntrustedError, check_fits
from mldd.problems.data import DataError, File, SeriesArrays, Supplement, one_line
from mldd.problems.data.formats.apart import read_apart
from mldd.problems.data.formats.conventions import (
    ALTITUDES,
    LATITUDES,
    LONGITUDES,
    dates,
    default_fill,
    degrees,
    durations,
    measured,
    metres,
    no_variable,
    quantity_of,
)

_ENGINES = ("scipy", "h5netcdf", "netcdf4")  # those of NetCDF


def read(file: File) -> SeriesArrays:
    """Return the series in a NetCDF file: classic, 64-bit offset or NetCDF-4; CDF-5 where netCDF4 is installed.

    Parameters
    ----------
    file : File
        The file.

    Raises
    ------
    DataError
        It is no NetCDF file that can be read here, or holds no series.
    """
    try:
        with file.path.open("rb") as stream:
            head = stream.read(4)
    except OSError as error:
        reason = "none" if isinstance(error, FileNotFoundError) else error.strerror or error
        raise DataError(f"{file.name}: expected a file, got {reason}; correct the path") from None
    if head == b"CDF\x05":
        if find_spec("netCDF4") is None:
            raise DataError(
                f"{file.name}: expected NetCDF-4 or classic NetCDF, got CDF-5 (64-bit data), which needs netCDF4: "
                "pip install netCDF4, or convert it by nccopy -k nc4 IN.nc OUT.nc"
            )
        return read_apart(file, {"engine": "netcdf4"})
    if head[:3] == b"CDF":
        return by_xarray(file, engine="scipy")
    if find_spec("h5netcdf") is None:
        raise DataError(f"{file.name}: NetCDF-4 needs h5netcdf, which is not installed: {way_to_install('h5netcdf')}")
    return read_apart(file, {"engine": "h5netcdf"})


def by_xarray(file: File, **options: Any) -> SeriesArrays:
    """Open a file by xarray, undecoded, and return the series in it.

    Parameters
    ----------
    file : File
        Which one, and which variables.
    **options
        Arguments of `xarray.open_dataset`.

    Raises
    ------
    DataError
        xarray is missing or cannot read the file, or there is no series in it.
    """
    try:
        import xarray
    except ImportError:
        raise DataError(
            f"{file.name}: NetCDF, Zarr and GRIB need xarray, which is not installed: {way_to_install('xarray')}"
        ) from None
    if not file.path.exists():
        raise DataError(f"{file.name}: expected a file, got none; correct the path")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about attributes that other programs have written
            raw: dict[str, Any] = {"decode_times": False, "mask_and_scale": False, "decode_timedelta": False}
            with xarray.open_dataset(file.path, **raw, **options) as dataset:
                return _Fields(dataset, file, options["engine"] in _ENGINES).arrays()
    except DataError:
        raise
    except UntrustedError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # every back end has errors of its own
        way = "get it anew from its source, or write it again"
        if isinstance(error, ImportError) or "unrecognized engine" in str(error):
            way = f"{way_to_install('xarray')} has the readers of NetCDF-4, Zarr and GRIB"
        raise DataError(f"{file.name}: expected a file that xarray can read, got {one_line(error)}; {way}") from None


class _Fields:
    """A data set of xarray, and which of its variables are time, coordinates and fields over them."""

    def __init__(self, dataset: Any, file: File, is_netcdf: bool) -> None:
        self.dataset, self.file, self.where, self.is_netcdf = dataset, file, file.name, is_netcdf
        self.known = {str(name): dataset[name] for name in dataset.variables}
        self.latitude, self.longitude = self._place("latitude", LATITUDES), self._place("longitude", LONGITUDES)
        self.time, self.steps = self._time()
        self.axes = list(dict.fromkeys([*self._time_dims, *self.latitude.dims, *self.longitude.dims]))
        self.used = {str(a.name) for a in (self.latitude, self.longitude, self.time, self.steps) if a is not None}
        self.notes: list[str] = []

    def arrays(self) -> SeriesArrays:
        """Return what is asked of the file."""
        fields = self._fields()
        self.used |= set(fields)
        values = {name: measured(self._numbers(self._lean(a)), self._said(a), self.where) for name, a in fields.items()}
        moments, calendar = self._moments()
        static = self._static()
        altitude, longitude = self._altitude(), self.longitude.transpose(*self._like())
        return SeriesArrays(
            moments,
            degrees(self._numbers(self.latitude), self._said(self.latitude), "latitude", self.where),
            degrees(self._numbers(longitude), self._said(longitude), "longitude", self.where),
            values,
            {name: str(a.attrs.get("units", "")) for name, a in fields.items()},
            altitude,
            calendar,
            tuple(name for name in self.known if name not in self.used),
            tuple(self.notes),
            Supplement(static=static, attributes={name: _meant(a) for name, a in fields.items()}),
        )

    def _numbers(self, array: Any) -> Any:
        """Return the numbers of a variable; a damaged header may ask for more than the machine has."""
        check_fits(array.size * max(array.dtype.itemsize, 8), self.where, f"a variable {array.name}")
        return array.to_numpy()

    def _said(self, array: Any) -> dict[str, Any]:
        """Return the attributes of a variable, with the fill value of NetCDF where that is the format."""
        return (default_fill(array) if self.is_netcdf else {}) | dict(array.attrs)

    def _like(self) -> tuple[Any, ...]:
        """Return the dimensions of the longitude, in the order of the latitude where they share them."""
        same = set(self.latitude.dims) == set(self.longitude.dims)
        return tuple(self.latitude.dims if same else self.longitude.dims)

    # ---------------------------------------------------------------------------------------- coordinates

    def _place(self, quantity: str, names: tuple[str, ...]) -> Any:
        """Find latitude or longitude by its standard name, its units or its name."""
        marked = [array for array in self.known.values() if quantity_of(array.attrs) == quantity]
        named = [self.known[name] for name in names if name in self.known]
        for array in (*(a for a in marked if str(a.name) in names), *marked, *named):
            if (
                array.ndim in (1, 2)
                and array.dtype.kind in "fiu"
                and not str(array.name).endswith(("_bnds", "_bounds"))
            ):
                return array
        found = ", ".join(self.known)
        raise DataError(f"{self.where}: expected a coordinate {' or '.join(names)}, got {found}; rename it")

    def _time(self) -> tuple[Any, Any]:
        """Find the time that the fields vary along, or the start of a forecast and its steps."""
        marked = [a for a in self.known.values() if quantity_of(a.attrs) == "time"]
        named = [self.known[name] for name in ("valid_time", "time") if name in self.known]
        candidates = list({str(a.name): a for a in (*named, *marked)}.values())
        flat = [a for a in candidates if a.ndim == 1 and self._is_axis(a)]
        if flat:
            return flat[0], None
        steps = next((self.known[n] for n in ("step", "lead_time", "prediction_timedelta") if n in self.known), None)
        scalar = next((a for a in candidates if a.ndim == 0), None)
        if scalar is not None and steps is not None and steps.ndim == 1:
            return scalar, steps
        if any(a.ndim > 1 for a in candidates):
            dims = " x ".join(map(str, next(a for a in candidates if a.ndim > 1).dims))
            raise DataError(
                f"{self.where}: expected one row of times, got forecasts of several starts ({dims}); select one of "
                "them, as in ds.isel(time=0)"
            )
        if any(a.ndim == 0 for a in candidates):
            raise DataError(f"{self.where}: there must be at least two times, got one; join the files along time")
        raise DataError(
            f"{self.where}: expected a coordinate time or valid_time, got {', '.join(self.known)}; rename it"
        )

    def _is_axis(self, array: Any) -> bool:
        """Say whether some variable has the dimension of a time next to others."""
        return any(array.dims[0] in other.dims and other.ndim > 1 for other in self.known.values())

    @property
    def _time_dims(self) -> tuple[Any, ...]:
        return tuple((self.time if self.steps is None else self.steps).dims)

    def _moments(self) -> tuple[Any, str]:
        if self.steps is None:
            return dates(self._numbers(self.time), self._said(self.time), self.where)
        start, calendar = dates(self._numbers(self.time).reshape(1), self.time.attrs, self.where)
        return start + durations(self._numbers(self.steps), self.steps.attrs, self.where), calendar

    def _altitude(self) -> Any:
        """Return the altitude of the nodes in metres; one that is not a number per node is left out, and said."""
        name = next((name for name in ALTITUDES if name in self.known), None)
        if name is None:
            return None
        array = self.known[name]
        place = [axis for axis in self.axes if axis not in self._time_dims]
        if set(array.dims) != set(place):
            self.notes.append(f"{name} is left out: it must be one number per node, got {_shape_of(array)}")
            return None
        heights = metres(self._numbers(array.transpose(*place)), self._said(array))
        if heights is None:
            unit = array.attrs.get("units")
            self.notes.append(f"{name} is left out: it must be in metres, got unit {unit!r}")
            return None
        missing = int(np.isnan(heights).sum())
        if missing:
            self.notes.append(f"{name} is left out: every node must have one, got {missing} without")
            return None
        self.used.add(name)
        return heights

    # ---------------------------------------------------------------------------------------- fields

    def _fields(self) -> dict[str, Any]:
        """Return the variables that are asked for, the only one if none is."""
        there = {
            str(name): array
            for name, array in self.dataset.data_vars.items()
            if set(self.axes) <= set(array.dims) and array.dtype.kind in "fiu"
        }
        found = ", ".join(there) or "none"
        for name in self.file.variables:
            if name not in self.known:
                no_variable(self.where, name, list(there))
            if name not in there:
                array = self.known[name]
                raise DataError(
                    f"{self.where}: variable {name} must be numbers over {', '.join(map(str, self.axes))}, got "
                    f"{array.dtype} over {', '.join(map(str, array.dims)) or 'nothing'}; choose one of {found}"
                )
        if not self.file.variables and len(there) != 1:
            raise DataError(
                f"{self.where}: expected one variable over {', '.join(map(str, self.axes))}, got {found}; "
                + ("choose by variable=NAME" if there else "name the coordinates of the field so")
            )
        return {name: there[name] for name in self.file.variables or there}

    def _static(self) -> dict[str, Any]:
        """Return the fields without time that are asked for; one over time must not change."""
        made, place = {}, [axis for axis in self.axes if axis not in self._time_dims]
        for name in self.file.static:
            if name not in self.known:
                no_variable(self.where, name, list(self.known))
            array = self.known[name].squeeze(drop=True)
            times = [axis for axis in array.dims if axis in self._time_dims]
            if set(array.dims) - set(times) != set(place) or array.dtype.kind not in "fiu":
                raise DataError(
                    f"{self.where}: static field {name} must be a number per node, got {_shape_of(array)}; leave it out"
                )
            values = measured(self._numbers(array.transpose(*times, *place)), self._said(array), self.where)
            if times and not np.array_equal(values, np.broadcast_to(values[:1], values.shape), equal_nan=True):
                raise DataError(
                    f"{self.where}: static field {name} must not change in time, got one that does; use known={name}"
                )
            made[name] = values[0] if times else values
            self.used.add(name)
        return made

    def _lean(self, array: Any) -> Any:
        """Bring the dimensions into order; others of length one vanish, and of longer ones what is selected stays."""
        for text in self.file.select:
            array = self._selected(array, *(word.strip() for word in text.partition("=")[::2]))
        rest = [d for d in array.dims if d not in self.axes]
        long = [f"{d} ({array.sizes[d]})" for d in rest if array.sizes[d] != 1]
        if long:
            name = next(str(d) for d in rest if array.sizes[d] != 1)
            raise DataError(
                f"{self.where}: {array.name} must vary over {', '.join(map(str, self.axes))} alone, got "
                f"{', '.join(long)} too; choose one by select={name}={self._choices(name)[0]}"
            )
        return array.squeeze(rest, drop=True).transpose(*self.axes)

    def _selected(self, array: Any, name: str, value: str) -> Any:
        """Take the place of a value along a dimension; without a coordinate values are numbers of places."""
        self.used.add(name)
        there = self._choices(name) if name in array.dims or name in self.known else []
        if not there:
            dims = ", ".join(str(d) for d in array.dims if d not in self.axes) or "no other"
            raise DataError(
                f"{self.where}: `select` must name a dimension of {array.name} besides time and place, got {name!r}; "
                f"there is {dims}"
            )
        places = [k for k, known in enumerate(there) if _is_same(known, value)]
        if len(places) != 1:
            shown = ":".join(there[:12]) + (":..." if len(there) > 12 else "")
            raise DataError(f"{self.where}: {name} must be one of {shown}, got {value!r}; correct select={name}=VALUE")
        return array.isel({name: places[0]}) if name in array.dims else array

    def _choices(self, name: str) -> list[str]:
        """Return the values along a dimension, or that of a coordinate that is a single number, as text."""
        if name not in self.known:
            return [str(k) for k in range(self.dataset.sizes[name])]
        values = self._numbers(self.known[name]).ravel()
        return [f"{v:g}" if values.dtype.kind in "fiu" else str(v) for v in values]


def _meant(array: Any) -> dict[str, str]:
    """Return what a variable says of itself, as the CF conventions name it."""
    names = ("standard_name", "long_name", "cell_methods")
    return {name: str(array.attrs[name]) for name in names if array.attrs.get(name)}


def _is_same(known: str, value: str) -> bool:
    try:
        return float(known) == float(value)
    except ValueError:
        return known == value


def _shape_of(array: Any) -> str:
    if array.ndim == 0:
        return "a single number"
    return "one over " + ", ".join(f"{d} ({array.sizes[d]})" for d in array.dims)
