"""Find known files of data sets, check them against their checksums, download them into the user's cache."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from mldd.problems.data.contents import DataError


@dataclass(frozen=True)
class KnownFile:
    """Name a known file.

    Parameters
    ----------
    place : str
        Path below a data folder.
    sha256 : str
        Checksum of its content.
    url : str or None
        Where to get it; None where nobody offers it.
    """

    place: str
    sha256: str
    url: str | None


def _cache() -> Path:
    """Name the user's cache folder; asked for only where a file is in no other one."""
    import pooch

    return Path(pooch.os_cache("mldd"))


def _folders(data: str | os.PathLike[str] | None) -> list[Path]:
    """List the folders to look into before the cache, in order."""
    folders = []
    for what, given in (("`data`", data), ("$MLDD_DATA", os.environ.get("MLDD_DATA"))):
        if given:
            folder = Path(given)
            if not folder.is_dir():
                raise DataError(f"{what} must be a folder that exists, got {os.fspath(given)!r}; correct or omit it")
            folders.append(folder)
    shared = [root.parent / "shared" / "data" for root in (Path(__file__).resolve().parents[2], Path.cwd())]
    return list(dict.fromkeys([*folders, *shared]))


def obtain(name: str, files: tuple[KnownFile, ...], data: str | os.PathLike[str] | None) -> tuple[KnownFile, Path]:
    """Find or download the first of several equivalent files, verify it, and return it with its path.

    Parameters
    ----------
    name : str
        Of the data set, for messages.
    files : tuple of KnownFile
        Of the same contents; the last one is downloaded where none is found.
    data : path or None
        Folder to look into first.

    Raises
    ------
    DataError
        No file is found or can be downloaded, or it has another checksum.
    """
    folders = _folders(data)
    found = _found(files, folders)
    if found is None:
        folders.append(_cache())
        found = _found(files, folders[-1:])
    return (files[-1], _download(name, files[-1], folders)) if found is None else found


def _found(files: tuple[KnownFile, ...], folders: list[Path]) -> tuple[KnownFile, Path] | None:
    """Return the first file that is in one of the folders, verified."""
    for file in files:
        parts = Path(file.place).parts
        for folder in folders:
            for start in range(len(parts)):  # the data folder itself, or a folder further down
                path = folder.joinpath(*parts[start:])
                if path.is_file():
                    return file, _verified(path, file)
    return None


def _verified(path: Path, file: KnownFile) -> Path:
    """Compare the checksum."""
    import pooch

    try:
        found = pooch.file_hash(str(path))
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror or error}; correct the path") from None
    if found != file.sha256:
        raise DataError(
            f"{path}: expected sha256 {file.sha256[:12]}..., got {found[:12]}... ({path.stat().st_size} bytes): "
            "truncated or another file; delete it to have it found elsewhere or downloaded"
        )
    return path


def _download(name: str, file: KnownFile, folders: list[Path]) -> Path:
    """Download a file into the cache, the last of the folders."""
    import pooch

    looked = f"{name}: expected {file.place} in one of {', '.join(map(str, folders))}, got none"
    if file.url is None:
        raise DataError(f"{looked}; put it there")
    target = folders[-1] / file.place
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        pooch.utils.make_local_storage(target.parent)
    except OSError as error:
        raise DataError(
            f"{name}: expected a writable cache, got {error.strerror} for {target}; set XDG_CACHE_HOME"
        ) from None
    pooch.get_logger().setLevel("ERROR")
    try:
        pooch.retrieve(
            file.url, f"sha256:{file.sha256}", target.name, target.parent, downloader=pooch.HTTPDownloader(timeout=20)
        )
    except (OSError, ValueError) as error:  # no network or no such page; another checksum
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DataError(
            f"{looked}, and {file.url} could not be downloaded ({reason}); put the file there, or set MLDD_DATA to a "
            "folder that has it"
        ) from None
    return target
