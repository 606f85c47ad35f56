"""Checksums beside files whose formats have none: written once, compared whenever the file is read.

``NAME.sha256`` has the lines of ``sha256sum``, one per file, so that ``sha256sum --check`` reads it, too; that of a
folder, as a Zarr store is one, lists all files in it.

References
----------
NIST FIPS 180-4, Secure Hash Standard.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from mldd.loop import check_regular, replacing
from mldd.problems.data.contents import DataError, File

_SUFFIX = ".sha256"
_MARKS = ("zarr.json", ".zgroup", ".zarray", ".zmetadata", "manifest.json")  # in a folder that is one data set
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
_PIECE = 2**20  # bytes


def digest(path: Path) -> str:
    """Return the SHA-256 of a file.

    Parameters
    ----------
    path : Path
        Of the file.

    Raises
    ------
    OSError
        It cannot be read.
    """
    made = hashlib.sha256()
    with open(path, "rb") as stream:
        while piece := stream.read(_PIECE):
            made.update(piece)
    return made.hexdigest()


def beside(path: Path) -> Path:
    """Return where the checksums of a file or folder are kept.

    Parameters
    ----------
    path : Path
        Of the file or folder.
    """
    return path.with_name(path.name + _SUFFIX)


def write_checksum(path: str | os.PathLike[str], overwrite: bool = False) -> Path:
    """Write the checksums of a file or folder beside it, and return where.

    Parameters
    ----------
    path : str or path
        Of the file or folder.
    overwrite : bool
        Whether others that are there may be replaced.

    Raises
    ------
    DataError
        There is no such file, it is a device, a pipe or a folder that is no data set, or its checksums are there and
        are others.
    OSError
        It cannot be read, or the checksums cannot be written.
    """
    place = Path(os.path.normpath(os.path.expanduser(path)))
    check_regular(place)
    if not place.exists() or place.name in ("", ".."):
        got = "a folder above" if place.exists() else "none"
        raise DataError(f"{path}: expected a file or a folder by its name, got {got}; correct the path")
    if place.is_dir() and not any((place / name).exists() for name in _MARKS):
        raise DataError(f"{path}: expected a file, a Zarr store or a folder of shards, got another folder; name a file")
    target = beside(place)
    if target.exists() and not overwrite:
        verify(place)
        return target
    lines = [f"{digest(file)}  {file.relative_to(place.parent).as_posix()}\n" for file in _files(place)]
    if any(line.count("\n") > 1 for line in lines):
        raise DataError(f"{place}: expected names on one line, got one with a line break; rename the file")
    with replacing(target) as new:
        new.write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return target


def verify(path: Path) -> None:
    """Compare a file or folder with the checksums beside it, if there are any.

    Parameters
    ----------
    path : Path
        Of the file or folder.

    Raises
    ------
    DataError
        A file has another content, is missing, or is not listed.
    """
    place = Path(os.path.normpath(path))
    listed = beside(place)
    if not place.name or not listed.is_file() or not place.exists():
        return
    expected = _listed(listed)
    there = {file.relative_to(place.parent).as_posix(): file for file in _files(place)}
    way = f"get it anew, or, if it is meant to be so, write them anew: mldd data checksum --overwrite {place}"
    for name in sorted({*expected, *there}):
        if name not in there:
            raise DataError(f"{place}: expected {name}, which {listed.name} lists, got none; {way}")
        if name not in expected:
            raise DataError(f"{place}: expected the files that {listed.name} lists, got {name} too; {way}")
        found = digest(there[name])
        if found != expected[name]:
            raise DataError(
                f"{place}: expected sha256 {expected[name][:12]}... of {listed.name}, got {found[:12]}... for {name}: "
                f"damaged or changed; {way}"
            )


def _listed(path: Path) -> dict[str, str]:
    """Return the checksums that a file lists, by name."""
    lines = File(path).content().decode("utf-8", "surrogateescape").splitlines()
    found = [_LINE.fullmatch(line) for line in lines]
    if not lines or None in found:
        raise DataError(f"{path}: expected lines of sha256sum, got others; write it anew: mldd data checksum FILE")
    return {match[2]: match[1] for match in found if match is not None}


def _files(path: Path) -> Iterator[Path]:
    """Yield a file, or all files in a folder."""
    if not path.is_dir():
        yield path
        return
    for folder, _, names in os.walk(path):
        for name in names:
            file = Path(folder, name)
            check_regular(file)
            yield file
