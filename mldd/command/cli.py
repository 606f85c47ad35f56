"""The command ``mldd``: list, info, train, compare, supervise, predict, verify, plot, partition, advise, data, anemoi.

Nothing here needs torch before a problem is built, so a wrong argument is answered at once. Exit status: 0 when the run
ended as asked, 1 when it failed or a file could not be written, 2 for a bad argument, 130 after Ctrl-C, 143 after TERM
or USR1 or where the time limit is near, 141 when nobody reads what it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import re
import sys
import traceback
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mldd.algebra import way_to_install
from mldd.command import names, output
from mldd.command.options import parse
from mldd.command.values import one_line
from mldd.loop import Terminated, terminable
from mldd.ranks import launched, launched_rank

if TYPE_CHECKING:
    from mldd.command.report import Files
    from mldd.command.run import Run
    from mldd.loop import Result
    from mldd.ranks import Communicator


@dataclass
class Stage:
    """How far a run has come: before its first record, what the user asked for is at fault; later, the run.

    Attributes
    ----------
    comm : Communicator or None
        The ranks, once they are known.
    running : bool
        Whether the first record was made.
    debug : bool
        Whether tracebacks are shown.
    """

    comm: Communicator | None = None
    running: bool = False
    debug: bool = False

    @property
    def launched(self) -> bool:
        """Whether a launcher has started this process as one of several ranks."""
        return launched()

    @property
    def rank(self) -> int:
        """Number of this rank, from the launcher where MPI does not run yet."""
        if self.comm is not None:
            return self.comm.rank
        return launched_rank()

    def start(self) -> None:
        """Note the first record."""
        self.running = True

    def agree(self) -> None:
        """Wait for all ranks to be ready; leave where one is not.

        Raises
        ------
        _ElsewhereError
            Another rank has failed and says why.
        """
        if self.comm is not None and self.comm.agree(False) != self.comm.ranks:
            raise _ElsewhereError


class _ElsewhereError(Exception):
    """Another rank has failed in the preparation."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit status.

    Parameters
    ----------
    argv : sequence of str, optional
        Words of the command line, by default those of the process.
    """
    output.tolerate()
    code = _answer(list(sys.argv[1:] if argv is None else argv))
    output.close()
    return code


def _answer(words: list[str]) -> int:
    stage = Stage(debug="--debug" in words)
    try:
        with contextlib.redirect_stdout(sys.stdout if stage.rank == 0 else io.StringIO()):  # --help comes once
            options = parse(words)
        with warnings.catch_warnings():
            warnings.formatwarning = lambda message, *_: f"mldd: warning: {message}\n"  # where it was is of no use here
            if stage.rank != 0:
                warnings.simplefilter("ignore")
            with terminable():
                code = int(_COMMANDS[options.command](options, stage))
        sys.stdout.flush()
        return code
    except SystemExit as end:
        return int(end.code or 0)
    except _ElsewhereError:
        return 2
    except KeyboardInterrupt as error:
        code = 143 if isinstance(error, Terminated) else 130
        print("mldd: interrupted", file=sys.stderr, flush=True)
        if stage.comm is not None:
            stage.comm.abort(code)
        return code
    except Exception as error:
        if isinstance(error, BrokenPipeError) and output.reader_is_gone():
            return output.READER_IS_GONE
        return _fail(error, stage)


def _fail(error: Exception, stage: Stage) -> int:
    """Print one line, on one rank where all have failed, and end the other ranks where they have not."""
    expected = isinstance(error, ValueError | OSError | ImportError)
    code = 2 if expected and not stage.running else 1
    text = _with_way_out(error)
    ranks = 1 if stage.comm is None else stage.comm.ranks
    lowest = 0 if stage.comm is None else stage.comm.agree(True, patience=10.0 if code == 2 else 2.0)
    if stage.debug:
        traceback.print_exception(error)
    if lowest is None or lowest == stage.rank:
        where = f" on rank {stage.rank}" if ranks > 1 and lowest != 0 else ""
        hint = "" if expected or stage.debug else " (--debug shows where)"
        print(f"mldd: error{where}: {text}{hint}", file=sys.stderr, flush=True)
    if lowest is None and stage.comm is not None:
        stage.comm.abort(1)
    return code


def _with_way_out(error: Exception) -> str:
    """Return what went wrong on one line, with the way out where Python or torch do not name it."""
    text = one_line(error)
    if isinstance(error, ModuleNotFoundError) and error.name and "install" not in text:
        return f"{text}; {way_to_install(error.name)}"
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", text):
        return f"the run does not fit into memory ({text[-120:]}); make it smaller, or try --dtype float32"
    return text


def _list(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.command import listing

    if stage.rank == 0:
        print("\n".join(listing.listing() if options.name is None else listing.keys(options.name)))
    return 0


def _info(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.command import info

    lines = info.lines()
    if stage.rank == 0:
        print("\n".join(lines))
    return 0


def _begin(options: argparse.Namespace, stage: Stage) -> Communicator:
    """Start MPI and PETSc as far as they are asked for, and give each rank its threads."""
    from mldd.ranks import prepare, with_network, world

    comm = stage.comm = world()
    if options.network is not None:
        comm = stage.comm = with_network(comm, options.network)
    prepare(comm)
    if options.petsc:
        from mldd.ranks import insert_options

        insert_options(options.petsc)
    return comm


def _train(options: argparse.Namespace, stage: Stage) -> int:
    if options.seeds is not None:
        for option in ("checkpoint", "checkpoint_every", "resume"):
            if getattr(options, option) is not None:
                raise ValueError(
                    f"--{option.replace('_', '-')} is of one run, got --seeds; give --seed S, or leave it out"
                )
        return _several(options, [options.solver], stage)
    early = _begin(options, stage) if stage.launched else None  # under MPI no rank may leave before the others
    names.check_solver(options.solver)
    pair = names.problem_spec(options.problem), names.solver_spec(options.solver)
    comm = early or _begin(options, stage)
    from mldd.command import builder
    from mldd.command import report as reports
    from mldd.command import run as runs
    from mldd.loop import deferred

    builder.check_options(options, [pair[1]])
    run, past = runs.begin(pair, options, lambda: builder.build_problem(pair[0], options, options.seed, comm), comm)
    stage.agree()
    keeper = None if options.checkpoint is None else runs.Keeper(options.checkpoint, run)
    with deferred():  # a signal at the end does not take the result away
        result = runs.execute(run, past, out=options.out, keeper=keeper, shown=not options.quiet, first=stage.start)
        stage.running = True
        files = reports.Files()
        if keeper is not None and not result.status.failed:
            files.failed += [keeper.failed] if keeper.failed else []
            files.written += [] if keeper.failed else [keeper.path]
        content = reports.reported(files, run, result, options.out)
        failed = comm.rank == 0 and _say(files, run, result, content, options)
        failed = comm.gather_items(failed)[0]
    return result.status.exit_code or int(failed)


def _say(files: Files, run: Run, result: Result, content: dict[str, Any], options: argparse.Namespace) -> bool:
    """Say how a run ended, then draw (rank 0); return whether a file could not be written."""
    from mldd.command import report as reports

    said, of_files = reports.summary(run, result, content)
    if not options.quiet:
        print(said, flush=True)
    if options.out is not None:
        reports.draw(files, run, result, content, options.out)
    if files.written and not options.quiet:
        print(of_files + " ".join(map(str, files.written)), flush=True)
    for line in files.failed:
        print(f"mldd: error: {line}", file=sys.stderr, flush=True)
    if result.status.failed:
        print(f"mldd: error: {result.status.name}: {result.status.advice}", file=sys.stderr, flush=True)
    return bool(files.failed)


def _compare(options: argparse.Namespace, stage: Stage) -> int:
    return _several(options, names.split_specs(options.solvers), stage)


def _several(options: argparse.Namespace, texts: Sequence[str], stage: Stage) -> int:
    """Run one or several solvers from all seeds."""
    early = _begin(options, stage) if stage.launched else None
    for text in texts:
        names.check_solver(text)
    problem = names.problem_spec(options.problem)
    solvers = [names.solver_spec(text) for text in texts]
    comm = early or _begin(options, stage)
    from mldd.command import builder, checks, compare

    builder.check_options(options, solvers)
    checks.check_validation(options)
    checks.check_log(options)
    checks.check_times(options)
    if options.out is not None:
        checks.check_free(options.out, options.overwrite, comm)
        checks.check_folder(options.out, comm)
    return compare.compare(problem, solvers, options, stage)


def _supervise(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.command import supervise

    return supervise.supervise(options.supervised, options.restarts)


def _predict(options: argparse.Namespace, stage: Stage) -> int:
    if stage.rank == 0:  # one process does it, however many there are
        from mldd.command import predict

        lines = predict.run(options)
        if not options.quiet:
            print("\n".join(lines))
    return 0


def _verify(options: argparse.Namespace, stage: Stage) -> int:
    if stage.rank == 0:
        from mldd.algebra import loaded
        from mldd.command import predict

        verify = loaded("mldd.problems.verification.verification:verify", "function")
        table = options.out and options.out / "verification.csv"
        if table and table.exists() and not options.overwrite:
            raise FileExistsError(f"{table} must be new, got one that is there; give another --out, or --overwrite")
        truth, keys = predict.keys_of(options.truth, verify, ("past", "block", "seed", "folder"))
        more = {"past": options.past, "block": options.block, "seed": options.seed, "folder": options.data}
        done = verify(options.forecast, truth, **keys, **more)
        print("\n".join(done.lines()))
        if options.out is not None:
            print("written", *done.write(options.out))
    return 0


def _plot(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.command import plot

    if stage.rank == 0:
        print(*plot.plot(options))
    return 0


def _data(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.algebra import loaded

    if stage.rank == 0:
        write = loaded("mldd.problems.data.checksums:write_checksum", "function")
        print(*[write(file, options.overwrite) for file in options.files])
    return 0


def _anemoi(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.algebra import loaded

    if stage.rank == 0:
        for line in loaded(f"mldd.anemoi:{options.action}", "function")(options):
            print(line)
    return 0


def _advise(options: argparse.Namespace, stage: Stage) -> int:
    spec = names.problem_spec(options.problem)
    if stage.rank == 0:
        from mldd.advice import advise
        from mldd.command import builder
        from mldd.ranks import SERIAL, Interconnect, prepare

        prepare(SERIAL)
        made = builder.build_problem(spec, options, options.seed, SERIAL)
        print(*advise(made, options.ranks, Interconnect.of(options.network), options.seconds).lines(), sep="\n")
    return 0


def _partition(options: argparse.Namespace, stage: Stage) -> int:
    spec = names.problem_spec(options.problem)
    if stage.rank == 0:  # one process does it, however many there are
        from mldd.command import builder, checks, partition_table
        from mldd.ranks import SERIAL

        for folder in (options.out, options.write):
            if folder is not None:
                checks.check_folder(folder, SERIAL)
        partition_table.run(builder.build_problem(spec, options, options.seed, SERIAL), spec.text, options)
    return 0


_COMMANDS = {
    "list": _list,
    "info": _info,
    "train": _train,
    "compare": _compare,
    "supervise": _supervise,
    "predict": _predict,
    "verify": _verify,
    "plot": _plot,
    "partition": _partition,
    "advise": _advise,
    "data": _data,
    "anemoi": _anemoi,
}
