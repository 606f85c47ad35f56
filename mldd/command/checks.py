"""What is refused before a run begins: folders that hold other results, options that lack what they need."""

from __future__ import annotations

import argparse
from pathlib import Path

from mldd.loop import History, check_loggers, read_csv, replacing
from mldd.models import MODEL, SOLUTION
from mldd.ranks import Communicator

RESULTS = ("result.json", "convergence.png", MODEL, SOLUTION)  # of a run, beside its history


def check_validation(options: argparse.Namespace) -> None:
    """Refuse what needs a validation, or a folder, where none is asked for.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.

    Raises
    ------
    ValueError
        One line that names the option.
    """
    best = options.keep != "last"
    if options.validate_every is None and (best or options.patience is not None):
        given = f"--keep {options.keep}" if best else f"--patience {options.patience}"
        raise ValueError(f"{given} needs a validation, got none; add --validate-every K")
    if best and options.out is None:
        raise ValueError(f"--keep {options.keep} needs a folder to keep it in, got none; add --out DIR")


def check_log(options: argparse.Namespace) -> None:
    """Refuse a logger that there is not, or that has no folder for its files.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.

    Raises
    ------
    ValueError
        One line that names the option.
    """
    check_loggers(options.log)
    if options.log and options.out is None:
        raise ValueError(f"--log {','.join(options.log)} needs a folder for its files, got none; add --out DIR")


def check_folder(folder: Path, comm: Communicator) -> None:
    """Make `folder` and see that files can be written there, before any work is done (on rank 0).

    Parameters
    ----------
    folder : Path
        It is made where it is missing.
    comm : Communicator
        The ranks.

    Raises
    ------
    OSError
        One line that names the folder.
    """
    if comm.rank != 0:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with replacing(folder / "probe") as probe:
            probe.write_bytes(b"")
        (folder / "probe").unlink()
    except OSError as error:
        reason = error.strerror or error
        raise OSError(f"the folder {folder} must be writable, but it is not ({reason}); give another one") from error


def check_free(folder: Path, overwrite: bool, comm: Communicator, past: History | None = None) -> None:
    """Refuse a folder with the results of another run: rank 0 looks, and all ranks refuse it together.

    Parameters
    ----------
    folder : Path
        Of ``--out``.
    overwrite : bool
        Whether they may be replaced.
    comm : Communicator
        The ranks.
    past : History, optional
        Records of the run that goes on: results that begin with them are its own.

    Raises
    ------
    FileExistsError
        One line that names the folder.
    """
    found = _results(folder, past) if comm.rank == 0 and not overwrite else ""
    found = comm.gather_items(found)[0]
    if found:
        raise FileExistsError(
            f"the folder {folder} must be free, got one with the results of another run ({found}); give another one, "
            "or --overwrite"
        )


def _results(folder: Path, past: History | None) -> str:
    """Return the name of a file with results that are not those of the run that goes on, empty where there is none."""
    there = [name for name in ("history.csv", "compare.csv", *RESULTS) if (folder / name).exists()]
    there += [str(path.relative_to(folder)) for of in ("*", "*/*") for path in folder.glob(f"{of}/history.csv")]
    if there[:1] == ["history.csv"] and past is not None and _goes_on(read_csv(folder / "history.csv"), past):
        return ""
    return there[0] if there else ""


def _goes_on(written: History, past: History) -> bool:
    """Say whether a history that was written and the past of a run are of the same run, as far as both go."""
    pairs = zip(written.records, past.records, strict=False)
    return all(repr((a.step, a.measure, a.value)) == repr((b.step, b.measure, b.value)) for a, b in pairs)
