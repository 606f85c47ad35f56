"""What is refused before a run begins: folders that hold other results, options that lack what they need."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

from mldd.command.options import evaluations
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


def check_times(options: argparse.Namespace) -> None:
    """Refuse times that lack what they are times of.

    Parameters
    ----------
    options : argparse.Namespace
        Of the command line.

    Raises
    ------
    ValueError
        One line that names the option.
    """
    if options.target > -math.inf and evaluations(str(options.evaluate_every)) is None:
        raise ValueError("--target needs the loss on the way, got --evaluate-every never; leave one of them out")
    if getattr(options, "checkpoint", None) is None:
        if getattr(options, "checkpoint_every", None) is not None:
            raise ValueError(f"--checkpoint-every {options.checkpoint_every} needs --checkpoint FILE, got none; add it")
        if is_auto(getattr(options, "resume", None)):
            raise ValueError("--resume auto goes on from --checkpoint FILE, got none; add it, or name the checkpoint")


def is_auto(resume: Path | None) -> bool:
    """Return whether a run goes on from its own checkpoint if there is one.

    Parameters
    ----------
    resume : Path or None
        What ``--resume`` says; a file of the name is ``./auto``.
    """
    return resume is not None and str(resume) == "auto"


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
        Records of the run that goes on: results that begin with them are its own. Where there are none a history that
        has not come beyond its start is that of a run that was ended before its first checkpoint.

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
    if there[:1] == ["history.csv"] and past is not None:
        written = _written(folder / "history.csv")
        if _goes_on(written, past) if past.records else len(there) == 1 and len(written.records) <= 1:
            return ""
    return there[0] if there else ""


def _written(path: Path) -> History:
    """Return a history; one that was ended before its first line was whole is empty."""
    return read_csv(path) if path.read_bytes().count(b"\n") else History()


def _goes_on(written: History, past: History) -> bool:
    """Say whether a history that was written and the past of a run are of the same run, as far as both go."""
    pairs = zip(written.records, past.records, strict=False)
    return all(repr((a.step, a.measure, a.value)) == repr((b.step, b.measure, b.value)) for a, b in pairs)
