"""GRIB of both editions by cfgrib, which is built on ECMWF's ecCodes."""

from __future__ import annotations

from importlib.util import find_spec

from mldd.algebra import way_to_install
from mldd.problems.data import DataError, File, SeriesArrays
from mldd.problems.data.formats.netcdf import by_xarray


def read(file: File) -> SeriesArrays:
    """Return the series in a file whose messages are on one grid and one level.

    Parameters
    ----------
    file : File
        The file; no index is written beside it.

    Raises
    ------
    DataError
        cfgrib is missing, or the file holds no such series.
    """
    if find_spec("cfgrib") is None:
        raise DataError(f"{file.name}: GRIB needs cfgrib, which is not installed: {way_to_install('cfgrib')}")
    return by_xarray(file, engine="cfgrib", backend_kwargs={"indexpath": ""})
