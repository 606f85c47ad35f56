"""What a run tells: one record per outer step, and the monitors that keep, show or write it."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, field, fields
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Record:
    """One outer step; record 0 is the start.

    Attributes
    ----------
    step, level : int
        Outer steps done, and the coarsest level visited by the last one.
    seconds : float
        Wall time of the run, without monitors and values computed for the user.
    measure : float
        Norm of ``project(x - g) - x``.
    value : float
        Objective, NaN where it was not computed for the user.
    gradient_evaluations : int
        Gradients of the fine objective.
    work_units : float
        Cost of everything evaluated, on all ranks, in fine gradients.
    synchronisations, bytes_exchanged : int
        Collectives on vectors; bytes sent in them by all ranks.
    accepted, rejected : int
        Corrections (coarse or subdomain) accepted and rejected so far.
    halo_rows, halo_bytes : int
        Rows of halos that all ranks sent to their neighbours, and their bytes.
    exchanges : int
        Exchanges with neighbours in which they were sent.
    """

    step: int
    level: int
    seconds: float
    measure: float
    value: float
    gradient_evaluations: int
    work_units: float
    synchronisations: int
    bytes_exchanged: int
    accepted: int
    rejected: int
    halo_rows: int = 0
    halo_bytes: int = 0
    exchanges: int = 0


Monitor = Callable[[Record], None]
FIELDS = tuple(f.name for f in fields(Record))


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of something else: a folder, or a device such as ``/dev/null``.

    Raises
    ------
    OSError
    """
    if path.exists() and not path.is_file():
        raise OSError(
            f"{path} must be a file, got {'a folder' if path.is_dir() else 'a device or pipe'}; give another name"
        )


def unwritten(path: Path, error: OSError) -> OSError:
    """Return the error that says which file could not be written and why: a full disk does not name the file.

    Parameters
    ----------
    path : Path
        Of the file.
    error : OSError
        What the system said.
    """
    return OSError(
        f"{path} could not be written ({error.strerror or error}); free the way to it, or name another place"
    )


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give the name of a new file beside `path`, which it replaces once the block has written it whole.

    Raises
    ------
    OSError
        It cannot be written, or would replace something that is no file.
    """
    check_replaceable(path)
    new = path.with_name(f".{path.stem}.{os.getpid()}{path.suffix}")
    try:
        yield new
        with open(new, "rb") as stream:
            os.fsync(stream.fileno())
        os.replace(new, path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        new.unlink(missing_ok=True)


@dataclass
class History:
    """A monitor that keeps every record."""

    records: list[Record] = field(default_factory=list)

    def __call__(self, record: Record) -> None:
        """Keep `record`."""
        self.records.append(record)

    def column(self, name: str) -> list[float]:
        """Return one field over all records."""
        return [getattr(record, name) for record in self.records]


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the keys of the first one as a CSV file, whole or not at all."""
    with replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> History:
    """Read a history written by `CsvWriter`.

    Raises
    ------
    ValueError
        The header is not that of a history, or a row is broken.
    """
    try:
        with open(path, newline="") as stream:
            rows = list(csv.reader(stream))
    except (csv.Error, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be a history.csv of mldd, got a file that is no text table ({error})") from error
    if not rows or tuple(rows[0]) != FIELDS:
        raise ValueError(f"{path} must start with the header {','.join(FIELDS)}; is it a history.csv of mldd?")
    kinds: list[Any] = [float if f.type == "float" else int for f in fields(Record)]
    try:
        return History([Record(*(k(v) for k, v in zip(kinds, row, strict=True))) for row in rows[1:]])
    except ValueError as error:
        raise ValueError(f"{path} has a row that is not a record ({error}); write it again") from error


class CsvWriter:
    """A monitor that appends each record to a CSV file, whole lines only, so that a killed run keeps its past.

    Parameters
    ----------
    path : Path
    past : History, optional
        Records of the run that is resumed; they are written first.
    """

    def __init__(self, path: Path, past: History | None = None) -> None:
        self._path = path
        self._stream = open(path, "w", newline="", buffering=1)  # noqa: SIM115 (lives as long as the run)
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._writer.writerow(FIELDS)
        for record in past.records if past else ():
            self(record)

    def __call__(self, record: Record) -> None:
        """Append one row; floats keep all their digits."""
        try:
            self._writer.writerow(repr(v) if isinstance(v, float) else v for v in astuple(record))
        except OSError as error:
            raise unwritten(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


class Progress:
    """A progress bar on standard error: rank 0 only, off when that is not a terminal.

    Parameters
    ----------
    steps : int
        Steps asked for.
    label : str
    shown : bool
        False on all ranks but 0, and with --quiet.
    """

    def __init__(self, steps: int, label: str, shown: bool = True) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=steps, desc=label, disable=not (shown and sys.stderr.isatty()), leave=False)

    def __call__(self, record: Record) -> None:
        """Show the record."""
        if self._bar.disable:
            return
        self._bar.set_postfix(measure=f"{record.measure:.2e}", value=f"{record.value:.4g}", refresh=False)
        self._bar.update(record.step - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
