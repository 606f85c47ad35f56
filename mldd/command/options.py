"""Options of the command line: what its words say."""

from __future__ import annotations

import argparse
import math
import re
import time
from collections.abc import Callable, Sequence
from functools import cache
from numbers import Integral, Real
from pathlib import Path
from typing import NoReturn

from mldd.algebra import did_you_mean
from mldd.command.values import AtLeast, check_seed
from mldd.loop import Interval, seconds_of
from mldd.ranks import NETWORKS, Interconnect

_MOST_SEEDS = 10_000
_EXAMPLES = """
PROBLEM and SOLVER are NAME or NAME:key=value,key=value (`mldd list` names them and their keys; the parts of a tuple are
separated by colons); PROBLEM may be a file .npz, .pt, .nc or .zarr. One-dash options (-tao_monitor) go to PETSc.

  mldd train obstacle:n=63 --solver ml-adagrad --levels 4 --atol 1e-6 --out results
  mpiexec -n 4 mldd train cora --solver dd-adagrad --parts 8 --levels 2
  mldd train cora --solver adam --validate-every 5 --patience 10 --keep best --out results
  mldd predict results my_graph.npz --out classes.csv
  mldd compare cora --solvers adam:lr=0.01,dd-adagrad --seeds 0,1,2 --steps 200 --out results
  mldd supervise -- mpiexec -n 4 mldd train cora --solver adam --checkpoint cora.ckpt --resume auto --out results
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
    parser, began = _parser(), time.time()
    words, supervised = _until_dashes(words)
    own, petsc = _split(words)
    options = parser.parse_args(own)
    if options.command is None:
        raise ValueError(f"a command is needed: {', '.join(_commands(parser))}; see mldd --help")
    options.began, options.supervised = began, supervised
    if supervised and options.command != "supervise":
        raise ValueError(f"{options.command} takes nothing behind --, got {supervised[0]!r}; leave it out")
    if petsc and options.command not in ("train", "compare"):
        raise ValueError(f"{options.command} takes no PETSc options, got {petsc[0]}; leave it out")
    for word in petsc:
        if word.startswith("-") and "-" + word.replace("_", "-") in _long_options(parser):
            raise ValueError(f"{word} with one dash goes to PETSc; did you mean -{word.replace('_', '-')}?")
    options.petsc = petsc
    return options


def read(command: str, name: str, value: object) -> object:
    """Return the value of an option that was given in Python, checked as on the command line.

    Parameters
    ----------
    command : str
        Whose option it is.
    name : str
        As Python has it: ``max_seconds``.
    value : object
        A text is read as the command line does where no number is asked for; None stays.

    Raises
    ------
    ValueError
        No such choice, a text that cannot be read, no number, or a flag that is neither True nor False.
    """
    action = next(action for action in _commands(_parser())[command]._actions if action.dest == name)
    if value is None:
        return None
    if action.nargs == 0 and not isinstance(value, bool):
        raise ValueError(f"`{name}` must be True or False, got {value!r}")
    if action.choices is not None:
        if str(value) not in action.choices:
            raise ValueError(f"`{name}` must be one of {', '.join(action.choices)}, got {value!r}")
        return str(value)
    kind = Integral if isinstance(action.type, AtLeast) else Real if action.type in (_number, _positive) else object
    if not isinstance(value, kind) or (kind is not object and isinstance(value, bool)):
        raise ValueError(f"`{name}` must be a {'whole ' * (kind is Integral)}number, got {value!r}")
    if not isinstance(value, str) or not callable(action.type):
        return value
    try:
        return action.type(value)
    except argparse.ArgumentTypeError as error:
        raise ValueError(f"`{name}` {error}") from None


def _until_dashes(words: Sequence[str]) -> tuple[Sequence[str], list[str]]:
    """Split at the first word ``--``: behind it is the command that is supervised."""
    end = list(words).index("--") if "--" in words else len(words)
    return words[:end], list(words[end + 1 :])


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


def _commands(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    below = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return {name: command for a in below for name, command in a.choices.items()}


def _long_options(parser: argparse.ArgumentParser) -> set[str]:
    below = {option for command in _commands(parser).values() for option in _long_options(command)}
    return below | {option for option in parser._option_string_actions if option.startswith("--")}


def _path(text: str) -> Path:
    if not text.strip():
        raise argparse.ArgumentTypeError(f"must be a path, got {text!r}")
    return Path(text)


def _seed(text: str) -> int:
    return check_seed(AtLeast(0)(text), "a seed", argparse.ArgumentTypeError)


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


def _read_by(read: Callable[[str], object]) -> Callable[[str], str]:
    """Return a type of argparse that leaves a text as it is once `read` can read it."""

    def checked(text: str) -> str:
        try:
            read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text

    return checked


def evaluations(text: str) -> int | str | None:
    """Return what `minimise` calls ``values``: the steps between two values of the objective.

    Parameters
    ----------
    text : str
        A whole number, auto or never: then the start and the end alone have values, which say whether a run has risen.

    Raises
    ------
    ValueError
        No such text.
    """
    if text in ("auto", "never"):
        return "auto" if text == "auto" else None
    if not re.fullmatch(r"\d+", text) or int(text) < 1:
        raise ValueError(f"must be a whole number >= 1, auto or never, got {text!r}")
    return int(text)


def _limit(text: str) -> float | None:
    return None if text == "auto" else seconds_of(text)


def _positive(text: str) -> float:
    number = _number(text)
    if number <= 0:
        raise argparse.ArgumentTypeError(f"must be > 0, got {text!r}")
    return number


def _words(text: str) -> list[str]:
    return list(dict.fromkeys(text.split(",")))


def _seeds(text: str) -> list[int]:
    seeds: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        low, high = _seed(first), _seed(last or first)
        if high < low or part.endswith("-"):
            raise argparse.ArgumentTypeError(f"must be numbers and ranges as in 0,1,4-9, got {text!r}")
        if len(seeds) + high - low >= _MOST_SEEDS:
            raise argparse.ArgumentTypeError(f"must be at most {_MOST_SEEDS} runs, got {text!r}")
        seeds += range(low, high + 1)
    if len(set(seeds)) < len(seeds):
        raise argparse.ArgumentTypeError(f"must differ from each other, got {text!r}")
    return seeds


@cache
def _parser() -> _Parser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="mldd", description="Multilevel domain-decomposition training.", epilog=_EXAMPLES, formatter_class=raw
    )
    parser.add_argument("--debug", action="store_true", help=argparse.SUPPRESS)
    every = "list info train compare supervise predict verify plot partition advise data anemoi"
    commands = parser.add_subparsers(dest="command", metavar=" | ".join(every.split()))

    def command(name: str, text: str) -> argparse.ArgumentParser:
        new = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        new.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        return new

    listed = command("list", "problems and solvers with a sentence each, or the keys of one of them")
    listed.add_argument("name", nargs="?", metavar="NAME", help="a problem or solver: its keys, defaults and meanings")
    command("info", "versions, devices, partitioners")
    _add_train(command("train", "minimise a problem with a solver"))
    _add_compare(command("compare", "several solvers from the same starts"))
    supervise = command("supervise", "run what is behind -- again from its last checkpoint until it has ended")
    limit = "restarts in a row without a step forward after which it is given up; default 3"
    supervise.add_argument("--restarts", type=AtLeast(0), default=3, metavar="N", help=limit)
    _add_predict(command("predict", "classes of nodes or forecasts by a trained network, with coordinates and units"))
    _add_verify(command("verify", "errors and skill of forecasts in a file, beside those that need no model"))
    _add_plot(command("plot", "compare the results in folders in a figure"))
    data = command("data", "write a checksum beside a file, which is compared whenever the file is read")
    data.add_argument("action", choices=("checksum",))
    data.add_argument("files", nargs="+", metavar="FILE", help="a file, or the folder of a Zarr store")
    data.add_argument("--overwrite", action="store_true", help="replace checksums that are others")
    _add_advise(command("advise", "what a network between ranks and the time of a gradient say about methods"))
    _add_partition(command("partition", "cut the graph of a problem, compare the methods, draw the parts"))
    _add_anemoi(command("anemoi", "graphs and data sets of Anemoi: renumber them for ranks, thin them out"))
    return parser


def _add_anemoi(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", metavar="reorder | thin", required=True)

    def action(name: str, text: str) -> argparse.ArgumentParser:
        new = actions.add_parser(name, help=text, description=text, allow_abbrev=False)
        new.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
        return new

    add = action("reorder", "renumber graph and data, so that ranks read little of each other").add_argument
    add("graph", type=_path, metavar="GRAPH.pt", help="a graph file of Anemoi (system.input.graph)")
    add("data", nargs="*", type=_path, metavar="DATA.zarr", help="the data sets whose cells are nodes of the graph")
    add("--ranks", type=_counts, required=True, metavar="2,4,8", help="over which a model is cut; one file serves all")
    add("--seed", type=_seed, default=0, metavar="S", help="of the partitioner; default 0")
    add("--out", type=_path, required=True, metavar="DIR", help="a new folder for graph, data and rows.csv")
    thin = action("thin", "write a data set with the cells nearest to a coarser mesh, for nested iteration")
    thin.add_argument("data", type=_path, metavar="DATA.zarr", help="a data set of Anemoi")
    cut = "of the icosahedral mesh: how often its triangles are cut into four"
    thin.add_argument("--resolution", type=AtLeast(0), required=True, metavar="R", help=cut)
    thin.add_argument("--out", type=_path, required=True, metavar="NEW.zarr", help="a new folder")


def _counts(text: str) -> list[int]:
    """Read numbers of ranks."""
    return [AtLeast(2)(word) for word in _words(text)]


def _add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", metavar="PROBLEM")
    parser.add_argument("--solver", required=True, metavar="SOLVER")
    start = parser.add_mutually_exclusive_group()
    start.add_argument("--seed", type=_seed, default=0, metavar="S", help="default 0")
    start.add_argument("--seeds", type=_seeds, metavar="0-9", help="a run each, in DIR/SEED, and their quartiles")
    parser.add_argument("--checkpoint", type=_path, metavar="FILE", help="written at intervals and at the end")
    every = "30s, 5m, 2h of wall time, 100steps, or auto: 5m, more where writing takes over 2 %% of the time"
    parser.add_argument("--checkpoint-every", type=_read_by(Interval.of), metavar="T", help=every)
    resume = "go on from a checkpoint; auto: from that of --checkpoint if there is one"
    parser.add_argument("--resume", type=_path, metavar="FILE|auto", help=resume)
    _add_options(parser)


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("problem", metavar="PROBLEM")
    parser.add_argument("--solvers", required=True, metavar="A,B,C")
    parser.add_argument("--seeds", type=_seeds, default=[0], metavar="0,1,4-9", help="default 0")
    _add_options(parser)


def _add_plot(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("folders", nargs="+", type=_path, metavar="DIR")
    written = "the figure, as PDF and PNG or as its suffix says; default: convergence or compare in the first DIR"
    add("--out", type=_path, metavar="FILE", help=written)
    add("--overwrite", action="store_true", help="replace a figure that is there")
    add("--against", type=_words, metavar="A,B", help="costs: step seconds work_units synchronisations ...")
    add("--show", type=_words, metavar="A,B", help="quantities: value gap measure validation_loss ...")


def _add_advise(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("problem", metavar="PROBLEM")
    add("--ranks", type=AtLeast(2), required=True, metavar="P", help="processes that are to share the problem")
    text = f"between them: {', '.join(NETWORKS)} or latency=10ms,bandwidth=1Gb/s; default infiniband"
    add("--network", type=_read_by(Interconnect.of), default="infiniband", metavar="NETWORK", help=text)
    add("--seconds", type=_positive, default=10.0, metavar="S", help="for measuring a gradient; default 10")
    add("--seed", type=_seed, default=0, metavar="S", help="default 0")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    add("--dtype", choices=("float32", "float64"), help="default: the problem's")
    add("--data", type=_path, metavar="DIR", help="where data sets are")


def _add_predict(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("run", type=_path, nargs="+", metavar="RUN", help="folders of runs, or their model.pt; several: an ensemble")
    add("of", metavar="DATA", help="a name or file, with keys as in FILE.txt:reader=my.py:read")
    add(
        "--start", metavar="T", help="of forecasts: last (default), all, a date, or two as in 2019-03-30..2019-03-31T06"
    )
    add("--steps", type=AtLeast(1), metavar="N", help="lead times; more than trained on: forecasts are fed back")
    add("--members", type=AtLeast(2), metavar="M", help="an ensemble from perturbed starts, the first one from true")
    perturb = "errors of observations in perturbed starts, in standard deviations of the variables"
    add("--perturb", type=_positive, metavar="E", help=perturb)
    add("--seed", type=_seed, metavar="S", help="of the perturbations, default 0")
    add("--out", type=_path, required=True, metavar="FILE", help="a new file .nc, .zarr, .npz or .csv")
    add("--overwrite", action="store_true", help="replace a file that is there")
    add("--data", type=_path, metavar="DIR", help="where data sets are")
    add("--quiet", action="store_true", help="no summary")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("forecast", type=_path, metavar="FORECAST", help="a file .nc or .zarr of forecasts, those of predict or others")
    add("truth", metavar="TRUTH", help="what happened: a name or file, with keys as in FILE.txt:reader=my.py:read")
    past = "a series for climatology and linear model; default: the truth before the first forecast"
    add("--past", metavar="SERIES", help=past)
    overlap = "starts that are drawn together for the intervals; default: as many as forecasts overlap"
    add("--block", type=AtLeast(0), default=0, metavar="N", help=overlap)
    add("--seed", type=_seed, default=0, metavar="S", help="of the intervals, default 0")
    add("--out", type=_path, metavar="DIR", help="receives verification.csv, lead_times.png, map.png")
    add("--overwrite", action="store_true", help="replace what is there")
    add("--data", type=_path, metavar="DIR", help="where data sets are")


def _add_partition(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    parser.set_defaults(device="cpu", dtype=None)
    add("problem", metavar="PROBLEM")
    add("--parts", type=AtLeast(1), required=True, metavar="N")
    add(
        "--methods",
        type=_words,
        default=["metis", "metis-volume"],
        metavar="A,B,C",
        help="default metis,metis-volume; file.py:function and package.module:function are methods, too",
    )
    add("--seed", type=_seed, default=0, metavar="S", help="default 0")
    add("--weights", choices=("none", "features", "distance"), default="none", help="of the edges; default none")
    add("--imbalance", type=_number, default=0.03, metavar="E", help="a part may be so much too heavy; default 0.03")
    add(
        "--prices",
        choices=("estimated", "measured"),
        default="estimated",
        help="work of coarse levels and subdomains: by count of operations, or by their CPU time before the run",
    )
    add("--data", type=_path, metavar="DIR", help="where data sets are")
    add("--out", type=_path, metavar="DIR", help="receives partition.json, partition.csv, partition.png")
    add(
        "--write",
        type=_path,
        metavar="DIR",
        help="receives the data, one file per part: fewest halo rows of all methods",
    )
    add("--quiet", action="store_true", help="no table")


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--parts", type=AtLeast(1), metavar="N", help="subdomains; default 4, or what the problem advises")
    add("--overlap", type=AtLeast(0), metavar="K", help="layers added to every subdomain; default 1")
    add("--levels", type=AtLeast(1), metavar="L", help="default 3 for multilevel solvers, 1 for the others")
    add("--combine", choices=("asm", "ras", "wasm"), help="how corrections are combined")
    add("--local-steps", type=AtLeast(0), metavar="M", help="steps on each subdomain")
    add("--steps", type=AtLeast(0), default=200, metavar="N", help="default 200")
    add("--atol", type=_number, default=0.0, metavar="A", help="stop at this measure; default 0")
    add("--rtol", type=_number, default=0.0, metavar="R", help="stop at this fraction of the first measure; default 0")
    add("--target", type=_number, default=-math.inf, metavar="LOSS", help="stop at this loss")
    add("--max-seconds", type=_number, default=math.inf, metavar="S", help="stop after this wall time of the run")
    limit = "end in good time before it, with checkpoint and result: D-HH:MM:SS, minutes, auto: that of the SLURM job"
    add("--time-limit", type=_read_by(_limit), metavar="T", help=f"{limit}, which holds without this option, too")
    values = "steps between two values of the loss; auto (default): in 10 %% of the time; never: only at the ends"
    add("--evaluate-every", type=_read_by(evaluations), default="auto", metavar="K|auto|never", help=values)
    dog = "a step that takes longer is the end of the run, which says where each rank is"
    add("--watchdog", type=_positive, default=math.inf, metavar="S", help=dog)
    add("--norm", choices=("inf", "2"), default="inf", help="of the measure; default inf")
    add(
        "--prices",
        choices=("estimated", "measured"),
        default="estimated",
        help="work of coarse levels and subdomains: by count of operations, or by their CPU time before the run",
    )
    delayed = "hold messages between ranks back as on " + ", ".join(NETWORKS) + " or latency=10ms,bandwidth=1Gb/s"
    add("--network", type=_read_by(Interconnect.of), metavar="NETWORK", help=delayed)
    add("--data", type=_path, metavar="DIR", help="where data sets are")
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    add("--dtype", choices=("float32", "float64"), help="default: the problem's")
    add("--out", type=_path, metavar="DIR", help="receives result.json, history.csv, convergence.png, model.pt")
    add("--overwrite", action="store_true", help="replace the results of another run in DIR")
    add("--validate-every", type=AtLeast(1), metavar="K", help="steps between two validations; default: none")
    add("--patience", type=AtLeast(1), metavar="P", help="stop after P validations in a row without a lower loss")
    add("--keep", type=_kept, default="last", metavar="WHICH", help="model.pt: last (default), best, best:NAME")
    verify = "every K steps, evaluate the gradient again and against values; check iterate and state at every step"
    add("--verify", type=AtLeast(1), default=0, metavar="K", help=verify)
    loggers = "tensorboard, mlflow, wandb: in folders of their names in DIR; csv is there anyway"
    add("--log", type=_words, default=[], metavar="A,B", help=loggers)
    add("--quiet", action="store_true", help="neither progress bar nor summary")
