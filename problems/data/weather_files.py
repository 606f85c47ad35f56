"""Formats of the known weather sets as their sources publish them: GRIB of edition 1, and stations in a MATLAB file."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mldd.problems.data.formats import DataError

Array = NDArray[Any]
_MOLENE = {"t": "temperature", "t_max": "maximal temperature", "t_min": "minimal temperature"}
_RADIUS = 6378137.0  # of the sphere of Web Mercator, metres


@dataclass(frozen=True)
class Field:
    """Arrays of a file: a time, coordinates, and variables whose first dimension is time.

    Parameters
    ----------
    time : ndarray, shape (T,)
        Dates, or whole hours since 1970.
    latitude, longitude : ndarray
        Of the rows and columns of a grid, or of all nodes; degrees.
    altitude : ndarray, optional
        Of all nodes, metres.
    variables : dict of str to ndarray, shape (T, R, C) or (T, n)
    units : dict of str to str
    """

    time: Array
    latitude: Array
    longitude: Array
    altitude: Array | None
    variables: dict[str, Array]
    units: dict[str, str]


def read_grib(content: bytes, where: str, name: str) -> Field:
    """Read one variable on one latitude-longitude grid from messages of GRIB edition 1 with simple packing.

    A value is ``(R + 2^E X) / 10^D`` with the reference R, binary and decimal exponents E and D, and the packed integer
    X.

    Parameters
    ----------
    content : bytes
    where : str
        Names the file in errors.
    name : str
        Of the variable.

    Raises
    ------
    DataError
        Another edition, packing or grid, or a damaged file.

    References
    ----------
    WMO Manual on Codes, WMO-No. 306, volume I.2, FM 92 GRIB edition 1.
    """
    times: list[np.datetime64] = []
    values: list[Array] = []
    grids: set[tuple[int, ...]] = set()
    start = content.find(b"GRIB")
    while start >= 0:
        try:
            length = _number(content, start + 4, 3)
            time, grid, field = _message(content[start : start + length])
        except (IndexError, ValueError) as error:
            raise DataError(
                f"{where}: expected GRIB edition 1, simple packing, a latitude-longitude grid, got {error} in message "
                f"{len(times)}; get the file anew"
            ) from None
        times.append(time)
        grids.add(grid)
        values.append(field)
        start = content.find(b"GRIB", start + length)
    if len(grids) != 1:
        raise DataError(f"{where}: expected messages on one grid, got {len(grids)} grids; split the file")
    columns, rows, north, west, south, east = grids.pop()
    return Field(
        np.array(times, dtype="datetime64[s]"),
        np.linspace(north / 1000, south / 1000, rows),
        np.linspace(west / 1000, east / 1000, columns),
        None,
        {name: np.stack(values).reshape(-1, rows, columns).astype(np.float32)},
        {},
    )


def _number(content: bytes, start: int, size: int, signed: bool = False) -> int:
    """Read an integer; the first bit of a signed one is its sign."""
    piece = content[start : start + size]
    if len(piece) < size:
        raise ValueError("the end of the file")
    number = int.from_bytes(piece, "big")
    top = 1 << (8 * size - 1)
    return -(number - top) if signed and number >= top else number


def _message(content: bytes) -> tuple[np.datetime64, tuple[int, ...], Array]:
    """Return time, grid (columns, rows, north, west, south, east in millidegrees) and values of a message."""
    if content[7] != 1 or content[-4:] != b"7777":
        raise ValueError(f"edition {content[7]}" if content[7] != 1 else "no end")
    product = 8
    if content[product + 7] != 0x80:
        raise ValueError("no grid, or a bitmap")
    year = 100 * (content[product + 24] - 1) + content[product + 12]
    month, day, hour, minute = content[product + 13 : product + 17]
    time = np.datetime64(f"{year:04d}-{month:02d}-{day:02d}T{hour:02d}:{minute:02d}", "s")
    decimal = _number(content, product + 26, 2, signed=True)
    grid = product + _number(content, product, 3)
    if content[grid + 5] != 0 or content[grid + 27] != 0:
        raise ValueError(f"grid type {content[grid + 5]}, scan {content[grid + 27]}")
    sizes = _number(content, grid + 6, 2), _number(content, grid + 8, 2)
    edges = tuple(_number(content, grid + k, 3, signed=True) for k in (10, 13, 17, 20))
    data = grid + _number(content, grid, 3)
    return time, (*sizes, *edges), _unpacked(content, data, sizes[0] * sizes[1]) / 10.0**decimal


def _unpacked(content: bytes, start: int, count: int) -> Array:
    """Return the values of a section of simply packed data, before decimal scaling."""
    bits = content[start + 10]
    if content[start + 3] >> 4 != 0 or bits not in (8, 16, 32):
        raise ValueError(f"packing {content[start + 3] >> 4} of {bits} bits")
    binary = _number(content, start + 4, 2, signed=True)
    head = content[start + 6]  # IBM floating point: sign, exponent of 16, 24 bits of fraction
    fraction = _number(content, start + 7, 3) / 2.0**24
    reference = (-1.0 if head >= 128 else 1.0) * fraction * 16.0 ** (head % 128 - 64)
    packed = np.frombuffer(content, f">u{bits // 8}", count, start + 11)
    return np.asarray(reference + packed.astype(np.float64) * 2.0**binary)


def read_molene(content: bytes, where: str) -> Field:
    """Read the stations with complete temperature from the MATLAB file of the Molene data: its second graph.

    Raises
    ------
    DataError
        Not that file.
    """
    import scipy.io

    try:
        graphs = scipy.io.loadmat(io.BytesIO(content), squeeze_me=True, struct_as_record=False)
        graph = graphs["gsp_molene_graphs"][1]
        x, y, altitude = np.asarray(graph.coordinates, dtype=np.float64).T
        fields = dict(zip(map(str, graph.data_name), graph.data, strict=True))
        variables = {name: np.asarray(fields[known], dtype=np.float32).T for name, known in _MOLENE.items()}
    except Exception as error:  # a damaged file can raise anything
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{where}: expected the graphs of Molene, got {reason[:120]}; get the file anew") from None
    latitude = np.degrees(2 * np.arctan(np.exp(y / _RADIUS)) - np.pi / 2)
    time = np.datetime64("2014-01-01", "s") + np.arange(len(next(iter(variables.values())))) * np.timedelta64(1, "h")
    return Field(time, latitude, np.degrees(x / _RADIUS), altitude, variables, {})
