"""What a run tells: one record per outer step, and the monitors that keep, show or write it."""

from __future__ import annotations

import csv
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from operator import add, attrgetter
from pathlib import Path
from typing import Any

from mldd.loop import summary
from mldd.loop.status import Status
from mldd.loop.untrusted import check_fits, check_regular


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run on all its ranks has cost so far.

    Attributes
    ----------
    gradient_evaluations : int
        Gradients of the fine objective.
    work_units : float
        Work of the busiest rank, in fine gradients of a single process: what bounds the time.
    work_total : float
        Work summed over ranks, in the same unit: what is done twice counts twice.
    synchronisations, scalar_synchronisations : int
        Collectives on vectors, and on a few numbers.
    bytes_exchanged : int
        Bytes sent by all ranks in collectives on vectors.
    halo_rows, halo_bytes : int
        Rows of halos that all ranks sent to their neighbours, and their bytes.
    exchanges : int
        Exchanges with neighbours in which they were sent.
    seconds : float
        Wall time of the run, without set-up, monitors and values computed for the user.
    setup_seconds : float
        Wall time of making subdomains and levels before it.
    setup_work : float
        CPU time of the set-up on the busiest rank over that of a fine gradient of a single process.
    """

    gradient_evaluations: int = 0
    work_units: float = 0.0
    work_total: float = 0.0
    synchronisations: int = 0
    scalar_synchronisations: int = 0
    bytes_exchanged: int = 0
    halo_rows: int = 0
    halo_bytes: int = 0
    exchanges: int = 0
    seconds: float = 0.0
    setup_seconds: float = 0.0
    setup_work: float = 0.0

    def after(self, past: Cost) -> Cost:
        """Return the cost of a run that is resumed after `past`, whose set-up was done once more.

        Parameters
        ----------
        past : Cost
            Of the last record before.
        """
        # not `astuple`, which copies deeply: this is done in every step
        return Cost(*map(add, _spent(self), _spent(past)))


_COSTS = tuple(f.name for f in fields(Cost))
_spent = attrgetter(*_COSTS)
_NO_VALIDATION: Mapping[str, float] = {}  # one for all records, of which a run may keep a million


@dataclass(frozen=True, slots=True)
class Record:
    """One outer step; record 0 is the start.

    Attributes
    ----------
    step, level : int
        Outer steps done, and the coarsest level visited by the last one.
    measure : float
        Norm of ``project(x - g) - x``.
    value : float
        Objective, NaN where it was not computed for the user.
    accepted, rejected : int
        Corrections (coarse or subdomain) accepted and rejected so far.
    cost : Cost
        What the run has cost so far.
    validation : dict of str to float
        Numbers over data that are not trained on, by name; empty where there was no validation.
    """

    step: int
    level: int
    measure: float
    value: float
    accepted: int
    rejected: int
    cost: Cost
    validation: Mapping[str, float] = field(default_factory=lambda: _NO_VALIDATION)

    @staticmethod
    def of(row: Sequence[Any], validation: Mapping[str, float] | None = None) -> Record:
        """Return the record of a row of a table.

        Parameters
        ----------
        row : sequence of float, int or str
            One entry per name in `FIELDS`.
        validation : dict of str to float, optional
            Numbers of the validation after this step.
        """
        numbers: list[Any] = [kind(entry) for kind, entry in zip(KINDS.values(), row, strict=True)]
        own = len(_OWN)
        step, level, measure, value, accepted, rejected = numbers[:own]
        return Record(
            step, level, measure, value, accepted, rejected, Cost(*numbers[own:]), validation or _NO_VALIDATION
        )

    def row(self) -> dict[str, Any]:
        """Return the record as a row of a table: its numbers, those of its cost and of the validation, by name."""
        own = {f.name: getattr(self, f.name) for f in _OWN}
        return own | dict(zip(_COSTS, _spent(self.cost), strict=True)) | dict(self.validation)


Monitor = Callable[[Record], None]
_OWN = fields(Record)[:-2]
KINDS = {f.name: float if f.type == "float" else int for f in (*_OWN, *fields(Cost))}
FIELDS = tuple(KINDS)


def check_replaceable(path: Path) -> None:
    """Refuse to put a file in the place of something else: a folder, or a device such as ``/dev/null``.

    Parameters
    ----------
    path : Path
        Of the file to be.

    Raises
    ------
    OSError
        There is something that is no file.
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
    while error.errno is None and isinstance(error.__cause__, OSError):  # said already, of a file that becomes this one
        error = error.__cause__
    return OSError(
        f"{path} could not be written ({error.strerror or error}); free the way to it, or name another place"
    )


@contextmanager
def replacing(path: Path, previous: Path | None = None) -> Iterator[Path]:
    """Yield the name of a new file beside `path`, which it replaces once the block has written it whole.

    Parameters
    ----------
    path : Path
        Of the file to be.
    previous : Path, optional
        Name under which the file that is replaced is kept.

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
        if previous is not None and path.exists():
            _swap(new, path, previous)
        else:
            os.replace(new, path)
    except OSError as error:
        raise unwritten(path, error) from error
    finally:
        new.unlink(missing_ok=True)


def _swap(new: Path, path: Path, previous: Path) -> None:
    """Put a new file in the place of one that gets another name; whenever this is cut off, a whole one is there."""
    aside = new.with_name(f"{new.name}.old")
    try:
        os.link(path, aside)
    except OSError:  # a disk without hard links
        os.replace(path, previous)
        os.replace(new, path)
        return
    os.replace(new, path)
    os.replace(aside, previous)


@dataclass(repr=False)
class History:
    """A monitor that keeps every record.

    Attributes
    ----------
    records : list of Record
        In the order of the steps.
    norm : float, optional
        Norm of the measure, where it is known.
    status : Status, optional
        Why the run has ended, once it has and where it is known.
    """

    records: list[Record] = field(default_factory=list)
    norm: float | None = None
    status: Status | None = None

    def __call__(self, record: Record) -> None:
        """Keep `record` in the place of those of its step and behind: the run had gone back (`Detection`)."""
        while self.records and self.records[-1].step >= record.step:
            self.records.pop()
        self.records.append(record)

    def column(self, name: str) -> list[float]:
        """Return one number of all records.

        Parameters
        ----------
        name : str
            A field of `Record` or `Cost`, or the name of a number of the validation, which is NaN where there was none.
        """
        if name in Record.__dataclass_fields__:
            return [getattr(record, name) for record in self.records]
        if name in Cost.__dataclass_fields__:
            return [getattr(record.cost, name) for record in self.records]
        return [record.validation.get(name, math.nan) for record in self.records]

    def __repr__(self) -> str:
        """Return a screen at most: status, steps, loss, measure and cost."""
        return summary.as_text("History", summary.of_history(self))

    def _repr_html_(self) -> str:
        return summary.as_html("History", summary.of_history(self))

    @property
    def validated(self) -> tuple[str, ...]:
        """Names of the numbers of the validation, in their order; none where there was no validation."""
        return tuple(dict.fromkeys(name for record in self.records for name in record.validation))


def write_table(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows with the keys of the first one as a CSV file, whole or not at all.

    Parameters
    ----------
    path : Path
        Of the file.
    rows : sequence of dict
        At least one; all with the same keys.
    """
    with replacing(path) as new, open(new, "w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_csv(path: Path) -> History:
    """Return the history that `CsvWriter` has written to a file, as far as it is whole.

    A run that was killed, or a disk that was full, leaves a last row that is cut off: it is left out. Where a row in
    the middle is no record, what stands before it is returned, and a warning says so.

    Parameters
    ----------
    path : Path
        Of the file.

    Raises
    ------
    ValueError
        The header is not that of a history, or the file is a device or a pipe.
    """
    check_regular(path)
    check_fits(path.stat().st_size, str(path), "a file")
    text = path.read_bytes().decode("utf-8", "replace")
    lines = text.split("\n")
    rows = csv.reader(lines[:-1])  # behind the last line break stands nothing, or a row that was cut off
    try:
        names = next(rows, [])
    except csv.Error:
        names = []
    if tuple(names[: len(FIELDS)]) != FIELDS or len(set(names)) < len(names):
        raise ValueError(f"{path} must start with the header {','.join(FIELDS)}; is it a history.csv of mldd?")
    history = History()
    try:
        for row in rows:
            history(_read_row(row, names[len(FIELDS) :]))
    except (ValueError, OverflowError, csv.Error) as error:
        reason = " ".join(str(error).split())[:120]
        number = len(history.records) + 1
        warnings.warn(f"{path}: row {number} is no record ({reason}): the rows before it are read", stacklevel=2)
    return history


def _read_row(row: Sequence[str], names: Sequence[str]) -> Record:
    """Return the record of a row, whose last entries are numbers of the validation, empty where there was none."""
    pairs = zip(names, row[len(FIELDS) :], strict=True)
    return Record.of(row[: len(FIELDS)], {name: float(text) for name, text in pairs if text})


class CsvWriter:
    """A monitor that appends each record to a CSV file, whole lines only, so that a killed run keeps its past.

    Where a run goes back, its steps come once more: the last row of a step is the one that counts.

    Parameters
    ----------
    path : Path
        Of the file, which is written anew.
    past : History, optional
        Records of the run that is resumed; they are written first.
    """

    def __init__(self, path: Path, past: History | None = None) -> None:
        self._path = path
        self._stream = open(path, "w", newline="", buffering=1)  # noqa: SIM115 (lives as long as the run)
        self._writer = csv.writer(self._stream, lineterminator="\n")
        self._names: tuple[str, ...] = ()  # of the numbers of the validation
        self._head(past.validated if past else ())
        for record in past.records if past else ():
            self(record)

    def _head(self, names: tuple[str, ...]) -> None:
        """Write the header, in the place of one that was written before there was a record."""
        self._names = names
        self._stream.seek(0)
        self._stream.truncate()
        self._writer.writerow((*FIELDS, *names))
        self._is_empty = True

    def __call__(self, record: Record) -> None:
        """Append one row; floats keep all their digits, and entries without a validation are empty."""
        if self._is_empty and record.validation and not self._names:
            self._head(tuple(record.validation))
        self._is_empty, row = False, record.row()
        entries = (row.get(name, "") for name in (*FIELDS, *self._names))
        try:
            self._writer.writerow(repr(v) if isinstance(v, float) else v for v in entries)
        except OSError as error:
            raise unwritten(self._path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._stream.close()


def _in_notebook() -> bool:
    """Say whether this is the kernel of a notebook, whose standard error is shown and is no terminal."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return shell is not None and "IPKernelApp" in shell.config


class Progress:
    """A progress bar, of rank 0 only: on standard error where that is a terminal, and in notebooks.

    Parameters
    ----------
    steps : int
        Steps asked for.
    label : str
        What stands before the bar.
    shown : bool
        False on all ranks but 0, and with --quiet.
    """

    def __init__(self, steps: int, label: str, shown: bool = True) -> None:
        from tqdm.auto import tqdm

        seen = shown and (sys.stderr.isatty() or _in_notebook())
        self._bar = tqdm(total=steps, desc=label, disable=not seen, leave=False)

    def __call__(self, record: Record) -> None:
        """Show the record."""
        if self._bar.disable:
            return
        self._bar.set_postfix(measure=f"{record.measure:.2e}", value=f"{record.value:.4g}", refresh=False)
        self._bar.update(record.step - self._bar.n)

    def close(self) -> None:
        """Remove the bar."""
        self._bar.close()
