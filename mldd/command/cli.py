"""The command ``mldd``: list, info, train, compare, predict, plot, partition.

Nothing here needs torch before a problem is built, so a wrong argument is answered at once. Exit status: 0 when the run
ended as asked, 1 when it failed, 2 for a bad argument, 130 after Ctrl-C, 141 when nobody reads what it prints.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import math
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from mldd.algebra import did_you_mean
from mldd.command import names, output
from mldd.command.values import one_line
from mldd.ranks import launched, launched_rank

if TYPE_CHECKING:
    from mldd.loop import Status
    from mldd.ranks import Communicator

_EXAMPLES = """
PROBLEM and SOLVER are NAME or NAME:key=value,key=value (`mldd list` names them and their keys; the parts of a tuple are
separated by colons); PROBLEM may be a file .npz, .pt, .nc or .zarr. One-dash options (-tao_monitor) go to PETSc.

  mldd train obstacle:n=63 --solver ml-adagrad --levels 4 --atol 1e-6 --out results
  mpiexec -n 4 mldd train cora --solver dd-adagrad --parts 8 --levels 2
  mldd train cora --solver adam --validate-every 5 --patience 10 --keep best --out results
  mldd predict results my_graph.npz --out classes.csv
  mldd compare cora --solvers adam:lr=0.01,dd-adagrad --seeds 0,1,2 --steps 200 --out results
  mldd partition cora --parts 16 --methods metis,kahypar-km1,best --out parts
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose errors are ordinary exceptions: one line, printed by one rank."""

    def error(self, message: str) -> NoReturn:
        """Raise instead of leaving."""
        unknown = re.match(r"unrecognized arguments: (--[\w-]+)", message)
        if unknown:
            message += did_you_mean(unknown[1], sorted(_long_options(self)))
        raise ValueError(f"{message}; see {self.prog} --help")


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
            code = int(_COMMANDS[options.command](options, stage))
        sys.stdout.flush()
        return code
    except SystemExit as end:
        return int(end.code or 0)
    except _ElsewhereError:
        return 2
    except KeyboardInterrupt:
        print("mldd: interrupted", file=sys.stderr, flush=True)
        if stage.comm is not None:
            stage.comm.abort(130)
        return 130
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
        return f"{text}; install it with `pip install {error.name.partition('.')[0]}`"
    if isinstance(error, MemoryError) or re.search("allocate memory|out of memory", text):
        return f"the run does not fit into memory ({text[-120:]}); make it smaller, or try --dtype float32"
    return text


def parse(words: Sequence[str]) -> argparse.Namespace:
    """Return what the command line says; ``petsc`` gets the one-dash options, which go to PETSc.

    Parameters
    ----------
    words : sequence of str
        The command line without the program's name.

    Raises
    ------
    ValueError
        One line that says what is wrong.
    """
    parser = _parser()
    own, petsc = _split(words)
    options = parser.parse_args(own)
    if options.command is None:
        raise ValueError("a command is needed: list, info, train, compare, predict, plot or partition; see mldd --help")
    if petsc and options.command not in ("train", "compare"):
        raise ValueError(f"{options.command} takes no PETSc options, got {petsc[0]}; leave it out")
    for word in petsc:
        if word.startswith("-") and "-" + word.replace("_", "-") in _long_options(parser):
            raise ValueError(f"{word} with one dash goes to PETSc; did you mean -{word.replace('_', '-')}?")
    options.petsc = petsc
    return options


def _split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take out options of one dash and several letters, each with the value that follows it, if any."""
    own: list[str] = []
    petsc: list[str] = []
    takes_value = False
    for word in words:
        is_option = re.match(r"-[A-Za-z]\w", word) is not None
        is_value = takes_value and not word.startswith("--")
        (petsc if is_option or is_value else own).append(word)
        takes_value = is_option
    return own, petsc


def _long_options(parser: argparse.ArgumentParser) -> set[str]:
    commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    below = {option for a in commands for command in a.choices.values() for option in _long_options(command)}
    return below | {option for option in parser._option_string_actions if option.startswith("--")}


def _at_least(least: int) -> Callable[[str], int]:
    def whole(text: str) -> int:
        if not re.fullmatch(r"[+-]?\d+", text) or int(text) < least:
            raise argparse.ArgumentTypeError(f"must be a whole number >= {least}, got {text!r}")
        return int(text)

    return whole


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if math.isnan(number):
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}")
    return number


def _kept(text: str) -> str:
    if not re.fullmatch(r"last|best(:\w+)?", text):
        raise argparse.ArgumentTypeError(f"must be last, best or best:NAME, got {text!r}")
    return text


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = _at_least(0)(first), _at_least(0)(last or first)
        if high < low or part.endswith("-"):
            raise argparse.ArgumentTypeError(f"must be numbers and ranges as in 0,1,4-9, got {text!r}")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"must differ from each other, got {text!r}")
    return seeds


def _parser() -> _Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="mldd", description="Multilevel domain-decomposition training.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    commands = parser.add_subparsers(
        dest="command", metavar="list | info | train | compare | predict | plot | partition"
    )

    def command(name: str, text: str) -> argparse.ArgumentParser:
        new = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        new.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        return new

    listed = command("list", "problems and solvers with a sentence each, or the keys of one of them")
    listed.add_argument("name", nargs="?", metavar="NAME", help="a problem or solver: its keys, defaults and meanings")
    command("info", "versions, devices, partitioners")
    train = command("train", "minimise a problem with a solver")
    train.add_argument("problem", metavar="PROBLEM")
    train.add_argument("--solver", required=True, metavar="SOLVER")
    start = train.add_mutually_exclusive_group()
    start.add_argument("--seed", type=_at_least(0), default=0, metavar="S", help="default 0")
    start.add_argument("--seeds", type=_seeds, metavar="0-9", help="a run each, in DIR/SEED, and their quartiles")
    train.add_argument("--checkpoint", type=Path, metavar="FILE", help="write it at the end and every 30 s")
    train.add_argument("--resume", type=Path, metavar="FILE", help="go on from a checkpoint")
    compare = command("compare", "several solvers from the same starts")
    compare.add_argument("problem", metavar="PROBLEM")
    compare.add_argument("--solvers", required=True, metavar="A,B,C")
    compare.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,4-9", help="default 0")
    for both in (train, compare):
        _add_options(both)
    _add_predict(command("predict", "classes of nodes or forecasts by a trained network, with coordinates and units"))
    plot = command("plot", "compare the results in folders in a figure")
    plot.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    plot.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="the figure, as PDF and PNG or as its suffix says; default: convergence or compare in the first DIR",
    )
    plot.add_argument("--overwrite", action="store_true", help="replace a figure that is there")
    plot.add_argument(
        "--against", type=_words, metavar="A,B", help="costs: step seconds work_units synchronisations ..."
    )
    plot.add_argument("--show", type=_words, metavar="A,B", help="quantities: value gap measure validation_loss ...")
    _add_partition(command("partition", "cut the graph of a problem, compare the methods, draw the parts"))
    return parser


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder of a run, or its model.pt")
    add("of", metavar="DATA", help="a name or file, with keys: era5-uk:origins=all, FILE.nc:origins=2019-03-31T06")
    add("--out", type=Path, required=True, metavar="FILE", help="a new file .nc, .npz or .csv")
    add("--overwrite", action="store_true", help="replace a file that is there")
    add("--data", type=Path, metavar="DIR", help="where data sets are")
    add("--quiet", action="store_true", help="no summary")


def _add_partition(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(device="cpu", dtype=None)
    add("problem", metavar="PROBLEM")
    add("--parts", type=_at_least(1), required=True, metavar="N")
    add(
        "--methods",
        type=_words,
        default=["metis", "metis-volume"],
        metavar="A,B,C",
        help="default metis,metis-volume; file.py:function and package.module:function are methods, too",
    )
    add("--seed", type=_at_least(0), default=0, metavar="S", help="default 0")
    add("--weights", choices=("none", "features", "distance"), default="none", help="of the edges; default none")
    add("--imbalance", type=_number, default=0.03, metavar="E", help="a part may be so much too heavy; default 0.03")
    add(
        "--prices",
        choices=("estimated", "measured"),
        default="estimated",
        help="work of coarse levels and subdomains: by count of operations, or by their CPU time before the run",
    )
    add("--data", type=Path, metavar="DIR", help="where data sets are")
    add("--out", type=Path, metavar="DIR", help="receives partition.json, partition.csv, partition.png")
    add(
        "--write",
        type=Path,
        metavar="DIR",
        help="receives the data, one file per part: fewest halo rows of all methods",
    )
    add("--quiet", action="store_true", help="no table")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parts", type=_at_least(1), metavar="N", help="subdomains; default 4, or as many as ranks if these are more")
    add("--overlap", type=_at_least(0), metavar="K", help="layers added to every subdomain; default 1")
    add("--levels", type=_at_least(1), metavar="L", help="default 3 for multilevel solvers, 1 for the others")
    add("--combine", choices=("asm", "ras", "wasm"), help="how corrections are combined")
    add("--local-steps", type=_at_least(0), metavar="M", help="steps on each subdomain")
    add("--steps", type=_at_least(0), default=200, metavar="N", help="default 200")
    add("--atol", type=_number, default=0.0, metavar="A", help="stop at this measure; default 0")
    add("--rtol", type=_number, default=0.0, metavar="R", help="stop at this fraction of the first measure; default 0")
    add("--target", type=_number, default=-math.inf, metavar="LOSS", help="stop at this loss")
    add("--max-seconds", type=_number, default=math.inf, metavar="S", help="stop after this time")
    add("--norm", choices=("inf", "2"), default="inf", help="of the measure; default inf")
    add(
        "--prices",
        choices=("estimated", "measured"),
        default="estimated",
        help="work of coarse levels and subdomains: by count of operations, or by their CPU time before the run",
    )
    add("--data", type=Path, metavar="DIR", help="where data sets are")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    add("--dtype", choices=("float32", "float64"), help="default: the problem's")
    add("--out", type=Path, metavar="DIR", help="receives result.json, history.csv, convergence.png, model.pt")
    add("--overwrite", action="store_true", help="replace the results of another run in DIR")
    add("--validate-every", type=_at_least(1), metavar="K", help="steps between two validations; default: none")
    add("--patience", type=_at_least(1), metavar="P", help="stop after P validations in a row without a lower loss")
    add("--keep", type=_kept, default="last", metavar="WHICH", help="model.pt: last (default), best, best:NAME")
    loggers = "tensorboard, mlflow, wandb: in folders of their names in DIR; csv is there anyway"
    add("--log", type=_words, default=[], metavar="A,B", help=loggers)
    add("--quiet", action="store_true", help="neither progress bar nor summary")


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
    from mldd.ranks import prepare, world

    comm = stage.comm = world()
    prepare(comm)
    if options.petsc:
        from mldd.ranks import insert_options

        insert_options(options.petsc)
    return comm


def _train(options: argparse.Namespace, stage: Stage) -> int:
    if options.seeds is not None:
        for option in ("checkpoint", "resume"):
            if getattr(options, option) is not None:
                raise ValueError(f"--{option} is of one run, got --seeds; give --seed S, or leave --{option} out")
        return _several(options, [options.solver], stage)
    early = _begin(options, stage) if stage.launched else None  # under MPI no rank may leave before the others
    names.check_solver(options.solver)
    pair = names.problem_spec(options.problem), names.solver_spec(options.solver)
    comm = early or _begin(options, stage)
    from mldd.command import builder, checks
    from mldd.command import report as reports
    from mldd.command import run as runs
    from mldd.command.preparation import Preparation
    from mldd.loop import check_replaceable

    builder.check_options(options, [pair[1]])
    checks.check_validation(options)
    checks.check_log(options)
    if options.out is not None and options.resume is None:
        checks.check_free(options.out, options.overwrite, comm)
    for folder in (options.out, options.checkpoint and options.checkpoint.absolute().parent):
        if folder is not None:
            runs.check_folder(folder, comm)
    if options.checkpoint is not None:
        check_replaceable(options.checkpoint)
    problem = builder.build_problem(pair[0], options, options.seed, comm)
    preparation = Preparation(problem, options.seed, comm, options.prices == "measured")
    run = runs.prepare(pair, options, preparation)
    if options.checkpoint is not None:
        runs.fresh_state(run)
    past = runs.resumed(run, options.resume) if options.resume is not None else runs.Past(run.x)
    if options.out is not None and options.resume is not None:
        checks.check_free(options.out, options.overwrite, comm, past.history)
    stage.agree()
    shown = not options.quiet
    result = runs.execute(run, past, out=options.out, checkpoint=options.checkpoint, shown=shown, first=stage.start)
    stage.running = True
    content = reports.report(run, result)
    if comm.rank == 0:
        written = []
        if options.out is not None:
            written = [
                *reports.write_result(options.out, content, result.history),
                *reports.keep(run, result, content, options.out),
                *reports.pictures(run, result, options.out),
            ]
        if options.checkpoint is not None and not result.status.failed:
            written.append(options.checkpoint)
        if shown:
            print(reports.summary(run, result, content, written), flush=True)
        if result.status.failed:
            print(f"mldd: error: {result.status.name}: {result.status.advice}", file=sys.stderr, flush=True)
    return exit_status(result.status)


def exit_status(status: Status) -> int:
    """Return what the shell gets: 0, 1 when the run failed, 130 after Ctrl-C.

    Parameters
    ----------
    status : Status
        Why the run ended.
    """
    return 130 if status.name == "interrupted" else int(status.failed)


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
    from mldd.command import run as runs

    builder.check_options(options, solvers)
    checks.check_validation(options)
    checks.check_log(options)
    if options.out is not None:
        checks.check_free(options.out, options.overwrite, comm)
        runs.check_folder(options.out, comm)
    return compare.compare(problem, solvers, options, stage)


def _predict(options: argparse.Namespace, stage: Stage) -> int:
    if stage.rank == 0:  # one process does it, however many there are
        from mldd.command import predict

        lines = predict.run(options)
        if not options.quiet:
            print("\n".join(lines))
    return 0


def _plot(options: argparse.Namespace, stage: Stage) -> int:
    from mldd.command import plot

    if stage.rank == 0:
        print(*plot.plot(options))
    return 0


def _partition(options: argparse.Namespace, stage: Stage) -> int:
    spec = names.problem_spec(options.problem)
    if stage.rank == 0:  # one process does it, however many there are
        from mldd.command import builder, partition_table
        from mldd.command import run as runs
        from mldd.ranks import SERIAL

        for folder in (options.out, options.write):
            if folder is not None:
                runs.check_folder(folder, SERIAL)
        partition_table.run(builder.build_problem(spec, options, options.seed, SERIAL), spec.text, options)
    return 0


_COMMANDS = {
    "list": _list,
    "info": _info,
    "train": _train,
    "compare": _compare,
    "predict": _predict,
    "plot": _plot,
    "partition": _partition,
}
