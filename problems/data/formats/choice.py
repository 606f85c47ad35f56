"""Which reader a file gets: that of its suffix, or the one that the user names."""

from __future__ import annotations

import os
import typing
from functools import cache
from glob import glob, has_magic
from pathlib import Path
from typing import Any, Literal, cast

from mldd.algebra import did_you_mean, from_outside, loaded, registered
from mldd.loop import UntrustedError, check_regular
from mldd.problems.data import DataError, File, GraphArrays, Reader, SeriesArrays, one_line, verify
from mldd.problems.data.formats.several import along_time

Kind = Literal["graph", "series"]
_WITH_DIMENSIONS = ("nc", "zarr", "grib")
_KINDS: dict[type, Kind] = {GraphArrays: "graph", SeriesArrays: "series"}


@cache
def _readers() -> dict[str, str]:
    """Return ``module:function`` by suffix, those of other packages too."""
    return registered("mldd.problems.data.formats")


def suffixes() -> tuple[str, ...]:
    """Return the suffixes that have a reader, with their dots."""
    return tuple(f".{name.lstrip('.')}" for name in _readers())


def is_file_name(text: str) -> bool:
    """Return whether a text ends with a suffix that has a reader.

    Parameters
    ----------
    text : str
        A name or a path.
    """
    return Path(text).suffix.lower() in suffixes()


def user_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a person means: ``~`` is the home folder, a slash at the end is of no matter.

    Parameters
    ----------
    text : str or path
        As it was typed.
    """
    return Path(text).expanduser() if os.fspath(text).startswith("~") else Path(text)


def _target(path: Path, reader: str) -> str:
    """Return ``module:function`` of the reader of a file."""
    suffix, known = path.suffix.lower().lstrip("."), _readers()
    if not reader:
        if suffix in known:
            return known[suffix]
        raise DataError(
            f"{path}: expected a file {' '.join(suffixes())}, got suffix {path.suffix!r}; name a reader of it, "
            "reader=file.py:function"
        )
    if from_outside(reader, known) == reader:
        return reader
    if reader.lstrip(".") in known:
        return known[reader.lstrip(".")]
    raise DataError(
        f"`reader` must be one of {' '.join(known)}{did_you_mean(reader, known)}, file.py:function or "
        f"package.module:function, got {reader!r}"
    )


def holds(path: str | os.PathLike[str], reader: str = "") -> Kind:
    """Return whether a file holds a graph or a time series, by what its reader returns.

    Parameters
    ----------
    path : str or path
        Of the file.
    reader : str
        A suffix whose reader is used, ``file.py:function`` or ``package.module:function``; empty: by the suffix.

    Raises
    ------
    DataError
        There is no reader, or its annotation does not say what it returns.
    """
    place = next(iter(matching(user_path(path))), user_path(path))
    target = _target(place, reader)
    _check_file(place)
    returned = typing.get_type_hints(loaded(target, "function")).get("return")
    if returned in _KINDS:
        return _KINDS[returned]
    if set(typing.get_args(returned)) == set(_KINDS):
        return cast(Kind, loaded(f"{target.rpartition(':')[0]}:holds", "function")(place))
    raise DataError(f"{target}: expected a reader annotated `-> GraphArrays` or `-> SeriesArrays`, got {returned}")


def _check_file(path: Path) -> None:
    try:
        check_regular(path)
    except UntrustedError as error:
        raise DataError(str(error)) from None


def read_graph(path: str | os.PathLike[str], reader: str = "") -> GraphArrays:
    """Return the graph in a file.

    Parameters
    ----------
    path : str or path
        Of the file.
    reader : str
        As in `holds`.

    Raises
    ------
    DataError
        There is no reader, or it finds something else.
    """
    return cast(GraphArrays, _read(File(user_path(path)), reader, GraphArrays))


def matching(path: Path) -> list[Path]:
    """Return the files that a path means, in the order of their names: more than one where it is a pattern.

    Parameters
    ----------
    path : Path
        As ``months/era5_*.nc``; a file with such a name is that file.
    """
    if path.exists() or not has_magic(str(path)):
        return [path] if path.exists() else []
    return [Path(name) for name in sorted(glob(str(path)))]


def read_series(
    path: str | os.PathLike[str],
    variables: tuple[str, ...] = (),
    reader: str = "",
    select: tuple[str, ...] = (),
    static: tuple[str, ...] = (),
) -> SeriesArrays:
    """Return the time series in a file, or in several files along time.

    Parameters
    ----------
    path : str or path
        Of the file.
    variables : tuple of str
        Which ones; by default the only one.
    reader : str
        As in `holds`.
    select, static : tuple of str
        What is taken along other dimensions than time and place, and names of fields without time.

    Raises
    ------
    DataError
        There is no reader, or it finds something else.
    """
    place = user_path(path)
    found = [_read(File(one, variables, select, static), reader, SeriesArrays) for one in matching(place) or [place]]
    return cast(SeriesArrays, found[0] if len(found) == 1 else along_time(found, str(place)))


def _read(file: File, reader: str, kind: type) -> Any:
    target = _target(file.path, reader)
    function: Reader = loaded(target, "function")
    if file.select and target not in {_readers()[name] for name in _WITH_DIMENSIONS}:
        raise DataError(
            f"{file.name}: `select` is of NetCDF, Zarr and GRIB, got a file that {target} reads; leave it out, and "
            "select in the reader"
        )
    try:
        _check_file(file.path)
        verify(file.path)
        found = function(file)
    except (DataError, ImportError, MemoryError, OSError):
        raise
    except UntrustedError as error:
        raise DataError(str(error)) from None
    except Exception as error:  # of a reader from outside, or of a library on a damaged file
        raise DataError(
            f"{file.name}: expected a file that {target} can read, got {one_line(error)}; correct one of the two"
        ) from error
    if not isinstance(found, kind):
        other = {"graph": "a graph", "series": "a time series"}
        got = other[_KINDS[type(found)]] if type(found) in _KINDS else type(found).__name__
        raise DataError(f"{file.name}: expected {other[_KINDS[kind]]}, got {got}; load it as what it is")
    return found
