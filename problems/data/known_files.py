"""Find known files of data sets, check them against their checksums, download them into the user's cache."""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from mldd.problems.data.formats import DataError


@dataclass(frozen=True)
class KnownFile:
    """Name a known file: its place below a data folder, its checksum, where to get it (None: nowhere)."""

    place: str
    sha256: str
    url: str | None


def _cache() -> Path:
    """Name the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mldd"


def _folders(data: str | os.PathLike[str] | None) -> list[Path]:
    """List the folders to look into, in order."""
    folders = []
    for what, given in (("`data`", data), ("$MLDD_DATA", os.environ.get("MLDD_DATA"))):
        if given:
            folder = Path(given)
            if not folder.is_dir():
                raise DataError(f"{what} must be a folder that exists, got {os.fspath(given)!r}; correct or omit it")
            folders.append(folder)
    shared = [root.parent / "shared" / "data" for root in (Path(__file__).resolve().parents[1], Path.cwd())]
    return list(dict.fromkeys([*folders, *shared, _cache()]))


def obtain(name: str, files: tuple[KnownFile, ...], data: str | os.PathLike[str] | None) -> tuple[KnownFile, bytes]:
    """Find or download the first of several equivalent files and verify it."""
    folders = _folders(data)
    for file in files:
        parts = Path(file.place).parts
        for folder in folders:
            for start in range(len(parts)):  # the data folder itself, or a folder further down
                path = folder.joinpath(*parts[start:])
                if path.is_file():
                    return file, _verified(content(path), file, path)
    return files[-1], _download(name, files[-1], folders)


def content(path: Path) -> bytes:
    """Read a file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got {error.strerror or error}; correct the path") from None


def _verified(content: bytes, file: KnownFile, where: object) -> bytes:
    """Compare the checksum."""
    found = hashlib.sha256(content).hexdigest()
    if found != file.sha256:
        raise DataError(
            f"{where}: expected sha256 {file.sha256[:12]}..., got {found[:12]}... ({len(content)} bytes): truncated or "
            "another file; delete it to have it found elsewhere or downloaded"
        )
    return content


def _download(name: str, file: KnownFile, folders: list[Path]) -> bytes:
    """Download a file into the cache."""
    looked = f"{name}: expected {file.place} in one of {', '.join(map(str, folders))}, got none"
    if file.url is None:
        raise DataError(f"{looked}; put it there")
    try:
        with urllib.request.urlopen(file.url, timeout=20) as answer:
            content = bytes(answer.read())
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"{looked}, and {file.url} could not be downloaded ({reason}); put the file there, or set MLDD_DATA to a "
            "folder that has it"
        ) from None
    _verified(content, file, file.url)
    target = _cache() / file.place
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=target.parent, delete=False) as temporary:
            temporary.write(content)
        os.replace(temporary.name, target)
    except OSError as error:
        raise DataError(
            f"{name}: expected a writable cache, got {error.strerror} for {target}; set XDG_CACHE_HOME"
        ) from None
    return content
