"""The records of a run beside its checkpoint: a file to which each checkpoint appends those that are new.

A chunk of it is a line of JSON, with the number of records and the validations among them, and the columns of the
records one after the other. A checkpoint knows how many bytes are its own, and a checksum over them: what a run has
appended later, or could not write whole, is not looked at.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from glob import escape
from io import BytesIO
from operator import attrgetter
from pathlib import Path
from typing import Any

import numpy as np

from mldd.checkpoints.archive import ArchiveError
from mldd.loop import KINDS, Cost, Record, unwritten

_OF_COST = {f.name for f in fields(Cost)}
_COLUMNS = {
    name: (attrgetter(f"cost.{name}" if name in _OF_COST else name), np.dtype("<f8" if kind is float else "<i8"))
    for name, kind in KINDS.items()
}


@dataclass(frozen=True)
class WrittenRecords:
    """What a checkpoint knows of its records.

    Attributes
    ----------
    file : str
        Name of the file beside the checkpoint.
    rows, bytes : int
        How many there are, and their length in the file.
    sha256 : str
        Of the last chunk and of the checksum before it.
    last : list of float
        The last record, by which the run that goes on with it is known.
    columns : list of str
        Names of the numbers of a record.
    """

    file: str
    rows: int = 0
    bytes: int = 0
    sha256: str = ""
    last: list[float] | None = None
    columns: list[str] | None = None

    def is_of(self, records: Sequence[Record]) -> bool:
        """Return whether these records begin with those that are kept.

        Parameters
        ----------
        records : list of Record
            Of a run.
        """
        if self.columns != list(KINDS) or not 0 < self.rows <= len(records):
            return False
        return repr(self.last) == repr(_numbers(records[self.rows - 1]))

    def is_there(self, path: Path) -> bool:
        """Return whether the file has not been lost or cut off.

        Parameters
        ----------
        path : Path
            Of the checkpoint.
        """
        file = path.parent / self.file
        return file.is_file() and file.stat().st_size >= self.bytes

    def as_tree(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def append(path: Path, records: Sequence[Record], kept: WrittenRecords | None) -> WrittenRecords:
    """Write the records that are not kept yet, and return what the next checkpoint has to know.

    Parameters
    ----------
    path : Path
        Of the checkpoint.
    records : list of Record
        All of the run.
    kept : WrittenRecords or None
        Of the last checkpoint. Where it is of another run its file is left alone, and a new one is begun.

    Raises
    ------
    OSError
        They cannot be written.
    """
    if kept is None or not kept.is_of(records) or not kept.is_there(path):
        kept = WrittenRecords(f"{path.name}.history-{secrets.token_hex(4)}", columns=list(KINDS))
    if kept.rows == len(records):
        return kept
    chunk, file = _chunk(records[kept.rows :]), path.parent / kept.file
    try:
        with open(file, "r+b" if file.exists() else "wb") as stream:
            stream.truncate(kept.bytes)  # what a run that was killed had begun to append
            stream.seek(kept.bytes)
            stream.write(chunk)
            stream.flush()
            os.fsync(stream.fileno())  # before the checkpoint that refers to it
    except OSError as error:
        raise unwritten(file, error) from error
    last, length = _numbers(records[-1]), kept.bytes + len(chunk)
    return WrittenRecords(kept.file, len(records), length, _next(kept.sha256, chunk), last, kept.columns)


def read(path: Path, kept: WrittenRecords) -> list[Record]:
    """Return the records of a checkpoint.

    Parameters
    ----------
    path : Path
        Of the checkpoint.
    kept : WrittenRecords
        What it knows of them.

    Raises
    ------
    ArchiveError
        Their file is missing, damaged, or of another version.
    """
    if kept.columns != list(KINDS):
        raise ArchiveError("its records have other columns: it was written by another version of mldd")
    if not re.fullmatch(r"[^/\\]+\.history-[0-9a-f]{8}", kept.file):
        raise ArchiveError("the name of its history is damaged")
    if kept.rows == 0:
        return []
    try:
        with open(path.parent / kept.file, "rb") as stream:
            raw = stream.read(kept.bytes)
    except OSError as error:
        raise ArchiveError(f"its history {kept.file}, which lies beside it, is missing") from error
    try:
        records, found = _parsed(raw)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ArchiveError(f"its history {kept.file} is damaged") from error
    if found != kept.sha256 or len(records) != kept.rows or len(raw) != kept.bytes:
        raise ArchiveError(f"its history {kept.file} is damaged: the checksum differs")
    return records


def clean(path: Path, used: set[str]) -> None:
    """Remove the histories of earlier runs, which no checkpoint refers to any more.

    Parameters
    ----------
    path : Path
        Of the checkpoint.
    used : set of str
        Names of those that are referred to.
    """
    for file in path.parent.glob(f"{escape(path.name)}.history-????????"):
        if file.name not in used:
            file.unlink(missing_ok=True)


def _numbers(record: Record) -> list[float]:
    return [get(record) for get, _ in _COLUMNS.values()]


def _next(sha256: str, chunk: bytes) -> str:
    return hashlib.sha256(sha256.encode() + chunk).hexdigest()


def _chunk(records: Sequence[Record]) -> bytes:
    validated = [[k, dict(record.validation)] for k, record in enumerate(records) if record.validation]
    head = json.dumps({"rows": len(records), "validated": validated}).encode() + b"\n"
    columns = (np.fromiter(map(get, records), kind, len(records)) for get, kind in _COLUMNS.values())
    return head + b"".join(column.tobytes() for column in columns)


def _parsed(raw: bytes) -> tuple[list[Record], str]:
    """Return all records, and the checksum over their chunks."""
    stream, records, sha256, own = BytesIO(raw), list[Record](), "", len(_COLUMNS) - len(_OF_COST)
    while line := stream.readline():
        head = json.loads(line)
        n, validated = head["rows"], dict(head["validated"])
        if type(n) is not int or not 0 < 8 * n <= len(raw):
            raise ValueError("a number of records that cannot be")
        body = stream.read(8 * n * len(_COLUMNS))
        columns = [np.frombuffer(body, kind, n, 8 * n * k).tolist() for k, (_, kind) in enumerate(_COLUMNS.values())]
        for k, row in enumerate(zip(*columns, strict=True)):
            numbers: list[Any] = [*row[:own], Cost(*row[own:]), validated.get(k, {})]
            records.append(Record(*numbers))
        sha256 = _next(sha256, line + body)
    return records, sha256
