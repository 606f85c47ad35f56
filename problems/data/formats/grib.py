"""GRIB of both editions by cfgrib, which is built on ECMWF's ecCodes."""

from __future__ import annotations

import mmap
from importlib.util import find_spec
from pathlib import Path

from mldd.problems.data import DataError, File, SeriesArrays
from mldd.problems.data.formats.netcdf import by_xarray

_END, _LARGE, _LEAST = b"7777", 0x800000, 16


def read(file: File) -> SeriesArrays:
    """Return the series in a file whose messages are on one grid and one level.

    Parameters
    ----------
    file : File
        The file; no index is written beside it.

    Raises
    ------
    DataError
        cfgrib is missing, a message is cut off, or the file holds no such series.
    """
    if find_spec("cfgrib") is None:
        raise DataError(f"{file.name}: GRIB needs cfgrib, which is not installed: pip install mldd[fields]")
    if file.path.is_file() and file.path.stat().st_size > 0:
        _check_messages(file.path)
    return by_xarray(file, engine="cfgrib", backend_kwargs={"indexpath": ""})


def _check_messages(path: Path) -> None:
    """Refuse a file with a message that is cut off: ecCodes leaves it out without a word.

    References
    ----------
    WMO Manual on Codes, FM 92 GRIB, section 0 of editions 1 and 2: the length of a message; its last section is 7777.
    """
    with open(path, "rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        place = content.find(b"GRIB")
        while place >= 0:
            edition = content[place + 7] if place + 8 <= len(content) else 0
            first, last = (place + 8, place + 16) if edition == 2 else (place + 4, place + 7)
            length = int.from_bytes(content[first:last], "big")
            if edition == 1 and length & _LARGE:  # counted in another unit: how long it is, its sections say
                return
            end = place + length
            if edition not in (1, 2) or length < _LEAST or content[end - 4 : end] != _END:
                raise DataError(
                    f"{path}: expected whole messages of GRIB 1 or 2, got one at byte {place} that is cut off or "
                    "damaged; get the file anew from its source"
                )
            place = content.find(b"GRIB", end)
