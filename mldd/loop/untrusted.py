"""What is asked of a file from anywhere before a library reads it: that it is a file, and that it fits into memory.

A file may be a link to a device that never ends, an archive of a few kilobytes that expands to terabytes, or a header
that asks for more numbers than the machine can hold. Each is refused in one line, before anything is allocated.
"""

from __future__ import annotations

import io
import os
import resource
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_SMALL = 2**26  # bytes that every machine has
_CGROUP = Path("/sys/fs/cgroup")  # where Linux says what a container or a job may use
_CGROUP_FILES = ("memory.max", "memory/memory.limit_in_bytes")  # of its versions 2 and 1


class UntrustedError(ValueError):
    """A file that is no file, is damaged, or asks for more than the machine has."""


def check_regular(path: Path) -> None:
    """Refuse to read a device, a pipe or a socket, also behind a link: reading it may never end.

    Parameters
    ----------
    path : Path
        Of a file or a folder that need not be there.

    Raises
    ------
    UntrustedError
        It is something else.
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        raise UntrustedError(f"{path}: expected a file, got a device, pipe or socket; copy its content into a file")


def memory() -> int:
    """Return how many bytes this process may still ask for: what is free, the job's limit, and the user's limit."""
    return min(_limits())


def _limits() -> Iterator[int]:
    yield os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield soft
    with suppress(OSError, ValueError, IndexError):  # Linux alone says it so
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        yield next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    for name in _CGROUP_FILES:
        with suppress(OSError, ValueError):  # no limit: the word "max"
            yield int((_CGROUP / name).read_text(encoding="ascii"))


def check_fits(size: int, where: str, what: str = "arrays") -> None:
    """Refuse what does not fit into memory before it is allocated.

    Parameters
    ----------
    size : int
        Bytes.
    where : str
        Names the file.
    what : str
        Names what is so large.

    Raises
    ------
    UntrustedError
        There is less memory.
    """
    if size < _SMALL:
        return
    free = memory()
    if size > free:
        raise UntrustedError(
            f"{where}: expected {what} that fit into memory ({free / 1e9:.3g} GB), got {size / 1e9:.4g} GB; read it on "
            "a larger machine, or write a part of it"
        )


def check_archive(source: bytes | Path, where: str, *, whole: bool = False) -> None:
    """Refuse a zip archive whose members do not fit into memory once they are expanded.

    The sizes are those that its directory declares: nothing longer is ever read out of a member.

    Parameters
    ----------
    source : bytes or Path
        The archive, or where it is.
    where : str
        Names the file.
    whole : bool
        Whether the checksum of every member is verified, too: for readers that do not do it.

    Raises
    ------
    UntrustedError
        It does not fit, or a member is damaged.
    zipfile.BadZipFile
        It is no archive.
    """
    with zipfile.ZipFile(io.BytesIO(source) if isinstance(source, bytes) else source) as archive:
        check_fits(sum(member.file_size for member in archive.infolist()), where, "contents")
        for member in archive.infolist():
            archive.open(member).close()  # compares its name with that in the directory: none gets lost
        if whole and (damaged := archive.testzip()) is not None:
            raise UntrustedError(f"{where}: expected a whole file, got a damaged {damaged} in it; get it anew")


def check_torch_file(source: bytes | Path, where: str) -> None:
    """Refuse a file of `torch.save` that is damaged or expands to more than the memory: torch compares no checksums.

    Parameters
    ----------
    source : bytes or Path
        The file, or where it is; the format of torch before 1.6 has no checksums and is left to torch.
    where : str
        Names the file.

    Raises
    ------
    UntrustedError
        A member is damaged, or does not fit into memory.
    EOFError
        The archive is truncated.
    """
    if isinstance(source, bytes):
        head = source[:4]
    else:
        with open(source, "rb") as stream:
            head = stream.read(4)
    if head == b"PK\x03\x04":
        try:
            check_archive(source, where, whole=True)
        except (zipfile.BadZipFile, zlib.error) as error:
            raise EOFError(str(error)) from None
