"""Runs of the command line: problem and solver are minimised, and what came of it is written down."""

from __future__ import annotations

import argparse
import contextlib
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

import mldd
from mldd import checkpoints
from mldd.algebra import Objective, memory_of, sampled, uncounted
from mldd.command.builder import Builder
from mldd.command.checks import RESULTS, check_folder, check_free, check_log, check_times, check_validation, is_auto
from mldd.command.names import PLACES, Spec, described
from mldd.command.options import evaluations
from mldd.command.output import Survivable
from mldd.command.preparation import Preparation
from mldd.command.values import one_line
from mldd.loop import (
    CheckpointError,
    CsvWriter,
    Detection,
    History,
    Interval,
    Logger,
    Problem,
    Progress,
    Result,
    Schedule,
    Solver,
    Stop,
    TimeLimit,
    Validation,
    check_replaceable,
    has,
    is_resumable,
    minimise,
    unwritten,
)
from mldd.ranks import Communicator

_Made = TypeVar("_Made")


@dataclass(frozen=True)
class Run:
    """A problem, a solver and a start, ready to be minimised.

    Attributes
    ----------
    specs : tuple of Spec
        Problem and solver as they were given.
    solver : Solver
        The method.
    stop : Stop
        When to end.
    schedule : Schedule
        Times of checkpoints, the time limit and the watchdog.
    shape : dict
        ``parts``, ``overlap`` and ``levels`` that are in use.
    options : dict
        The other options, for the record.
    builder : Builder
        Of the solver, and of those that PETSc's options name; it knows the problem and its start.
    """

    specs: tuple[Spec, Spec]
    solver: Solver
    stop: Stop
    schedule: Schedule
    shape: dict[str, int]
    options: dict[str, Any]
    builder: Builder

    @property
    def names(self) -> tuple[str, str]:
        """Problem and solver as they were given."""
        return self.specs[0].text, self.specs[1].text

    @property
    def problem(self) -> Problem:
        """The problem."""
        return self.builder.problem

    @property
    def objective(self) -> Objective:
        """What is minimised."""
        return self.builder.preparation.objective

    @property
    def x(self) -> Tensor:
        """The start, shape (n,)."""
        return self.builder.preparation.start

    @property
    def seed(self) -> int:
        """Of the start, and of what is random in problem and solver."""
        return self.builder.preparation.seed

    @property
    def comm(self) -> Communicator:
        """The ranks."""
        return self.builder.comm

    def validation(self, past: Mapping[str, Any] | None = None) -> Validation | None:
        """Return the validation of the run, None where there is none.

        Parameters
        ----------
        past : dict, optional
            What a checkpoint says of it.
        """
        every = self.options["validate_every"]
        if every is None:
            return None
        by = self.options["keep"].partition(":")[2]
        made = Validation(self.problem.validation, every, self.options["patience"] or 0, by)
        if past:
            made.restore(past)
        return made

    @property
    def meta(self) -> dict[str, Any]:
        """What has to be the same for a checkpoint to be of this run."""
        data = self.problem.identity()  # a run is known by its data, not by how their path is spelt
        places = dict.fromkeys(PLACES, "") if data else {}
        return {
            "problem": described(self.problem, type(self.problem).__name__ if data else self.specs[0].name, places),
            "data": data,
            "network": self.problem.fingerprint(),
            "solver": described(self.solver, self.specs[1].name),
            "seed": self.seed,
            "size": self.objective.size,
            "dtype": str(self.x.dtype),
            "norm": self.options["norm"],  # a history has measures in one norm
            **self.shape,
            "mldd": mldd.__version__,
        }


def prepare(specs: tuple[Spec, Spec], options: argparse.Namespace, preparation: Preparation) -> Run:
    """Return everything that a run of a problem and a solver needs, up to the start.

    Parameters
    ----------
    specs : tuple of Spec
        Problem and solver as they were given.
    options : argparse.Namespace
        Of the command line.
    preparation : Preparation
        Of the problem.

    Raises
    ------
    ValueError
        A validation of a problem that has no data for it.
    """
    builder = Builder(options, preparation)
    stop = Stop(
        max_steps=options.steps,
        atol=options.atol,
        rtol=options.rtol,
        target=options.target,
        max_seconds=options.max_seconds,
        norm=math.inf if options.norm == "inf" else 2.0,
    )
    if options.validate_every is not None and not has(builder.problem, "validation"):
        raise ValueError(
            f"--validate-every needs `validation(x)`, which problem {type(builder.problem).__name__} does not have: it "
            "has no data for it; leave it out, or add it to the class"
        )
    kept = "steps atol rtol target max_seconds norm combine local_steps dtype device data prices petsc"
    kept += " validate_every patience keep log evaluate_every time_limit verify network"
    schedule = Schedule(
        every=Interval.of(str(getattr(options, "checkpoint_every", None) or "auto")),
        limit=TimeLimit.of(None if options.time_limit is None else str(options.time_limit), options.began),
        watchdog=float(options.watchdog),
    )
    return Run(
        specs=specs,
        solver=builder.solver(specs[1]),
        stop=stop,
        schedule=schedule,
        shape=builder.shape(specs[1]),
        options={name: getattr(options, name) for name in kept.split()},
        builder=builder,
    )


def begin(
    specs: tuple[Spec, Spec], options: argparse.Namespace, make: Callable[[], Problem], comm: Communicator
) -> tuple[Run, Past]:
    """Return a run and where it goes on from; what cannot be written or resumed is refused before any work is done.

    Parameters
    ----------
    specs : tuple of Spec
        Problem and solver as they were given.
    options : argparse.Namespace
        Of the command line.
    make : callable
        Makes the problem.
    comm : Communicator
        The ranks.

    Raises
    ------
    ValueError
        Options that do not go together, or a checkpoint of another run.
    OSError
        A folder that cannot be written to, or holds the results of another run.
    """
    check_validation(options)
    check_log(options)
    check_times(options)
    resume, auto = options.resume, is_auto(options.resume)
    if auto:  # goes on from its own checkpoint; rank 0 looks whether there is one
        kept = (options.checkpoint, checkpoints.previous(options.checkpoint))
        resume = options.checkpoint if comm.gather_items(any(path.exists() for path in kept))[0] else None
    if options.out is not None and resume is None:
        check_free(options.out, options.overwrite, comm, History() if auto else None)
    for folder in (options.out, options.checkpoint and options.checkpoint.absolute().parent):
        if folder is not None:
            check_folder(folder, comm)
    if options.checkpoint is not None:
        check_replaceable(options.checkpoint)
    run = prepare(specs, options, Preparation(make(), options.seed, comm, options.prices == "measured"))
    if options.checkpoint is not None:
        fresh_state(run)
        checkpoints.check_replacing(options.checkpoint, run.meta, options.overwrite, comm)
    past = resumed(run, resume) if resume is not None else Past(run.x)
    if options.out is not None and resume is not None:
        check_free(options.out, options.overwrite, comm, past.history)
    return run, past


@dataclass
class Keeper:
    """Writes a checkpoint when called; one that cannot be written costs a warning, and not the run.

    Parameters
    ----------
    path : Path
        Of the checkpoint.
    run : Run
        The run that it is of.
    validation : Validation or None
        That of the run.
    failed : str
        Why the last one could not be written, empty where it was.
    """

    path: Path
    run: Run
    validation: Validation | None = None
    failed: str = ""

    def __call__(self, x: Tensor, state: Any, history: History) -> None:
        """Write one: rank 0 does, after the last message between ranks."""
        of_run: dict[str, Any] = {"meta": self.run.meta, "comm": self.run.comm, "validation": self.validation}
        memory, self.failed = memory_of(self.run.objective), ""
        kept = None if memory is None else memory.state()
        try:
            checkpoints.save(self.path, x=x, state=state, history=history, memory=kept, **of_run)
        except OSError as error:
            self.failed = f"checkpoint after step {state.step}: {one_line(error)}"
            warnings.warn(self.failed, stacklevel=2)


def fresh_state(run: Run) -> Any:
    """Return the state of a solver that has done nothing: the template of checkpoints.

    Parameters
    ----------
    run : Run
        The run that a checkpoint is of.

    Raises
    ------
    CheckpointError
        The solver's memory cannot be saved.
    """
    with uncounted(), run.builder.in_use():
        state = run.solver.init(sampled(run.objective, 0), run.x)
    if not is_resumable(state):
        raise CheckpointError(
            f"solver {run.names[1]} keeps memory that cannot be saved, got --checkpoint or --resume; leave them out"
        )
    return state


@dataclass
class Past:
    """Where a resumed run goes on from; empty for a new one.

    Attributes
    ----------
    x : Tensor, shape (n,)
        Where the run goes on.
    state : State or None
        Of the solver.
    history : History
        Records up to there.
    validation : dict
        What a checkpoint says of it.
    """

    x: Tensor
    state: Any = None
    history: History = field(default_factory=History)
    validation: dict[str, Any] = field(default_factory=dict)


def resumed(run: Run, path: Path) -> Past:
    """Return where a checkpoint says that this run goes on.

    Parameters
    ----------
    run : Run
        The run that is to go on.
    path : Path
        Of the checkpoint.

    Raises
    ------
    CheckpointError
        It is of another run, or no checkpoint.
    FileNotFoundError
        There is no such file.
    """
    saved = checkpoints.load(path)
    if saved.note and run.comm.rank == 0:
        warnings.warn(saved.note, stacklevel=2)
    saved.check(run.meta)
    state = saved.state(fresh_state(run), run.comm)
    memory = memory_of(run.objective)
    if memory is not None:
        memory.restore(saved.memory(run.comm), run.x.device)
    saved.restore_random()
    best = saved.validation.get("best")
    validation = saved.validation | ({} if best is None else {"best": best.to(run.x.device)})
    return Past(saved.x.to(run.x.device), state, saved.history, validation)


def execute(
    run: Run,
    past: Past,
    *,
    out: Path | None = None,
    keeper: Keeper | None = None,
    home: Path | None = None,
    shown: bool = True,
    first: Callable[[], None] = lambda: None,
) -> Result:
    """Minimise, with the history in ``out/history.csv``, a progress bar and checkpoints; return the result.

    Parameters
    ----------
    run : Run
        What is minimised, and how.
    past : Past
        Where it begins.
    out : Path, optional
        The folder that gets the history.
    keeper : Keeper, optional
        Writes checkpoints from time to time and at the end.
    home : Path, optional
        The folder of all runs, where there are several.
    shown : bool
        Whether a progress bar is shown.
    first : callable
        Called when the first record is made.
    """
    validation = run.validation(past.validation)
    if keeper is not None:
        keeper.validation = validation
    with run.builder.in_use(), _monitors(run, past, out, home, shown) as monitors:
        result = minimise(
            run.objective,
            past.x,
            run.solver,
            stop=run.stop,
            monitors=[lambda record: first(), *monitors],
            state=past.state,
            comm=run.comm,
            values=evaluations(str(run.options["evaluate_every"])),
            setup=run.builder.setup(),
            past=past.history if past.history.records else None,
            validation=validation,
            detection=Detection(verify_every=run.options["verify"]),
            schedule=replace(run.schedule, keep=keeper),
        )
        for monitor in monitors:
            if isinstance(monitor, Logger):
                monitor.end(result.status)
    return result


@contextlib.contextmanager
def _monitors(run: Run, past: Past, out: Path | None, home: Path | None, shown: bool) -> Iterator[list[Any]]:
    monitors: list[Any] = []
    if run.comm.rank == 0:
        if out is not None:
            for stale in RESULTS:  # of an older run: they would contradict the new history
                (out / stale).unlink(missing_ok=True)
            try:
                monitors.append(Survivable(CsvWriter(out / "history.csv", past.history)))
            except OSError as error:
                raise unwritten(out / "history.csv", error) from error
            names, shape = dict(zip(("problem", "solver"), run.names, strict=True)), run.shape
            about = {**names, "seed": run.seed, "ranks": run.comm.ranks, **shape, **run.options}
            monitors += [Logger(kind, out, about, past.history, home) for kind in run.options["log"] if kind != "csv"]
        monitors.append(Progress(run.stop.max_steps, " ".join(run.names), shown))
    try:
        yield monitors
    finally:
        for monitor in monitors:
            monitor.close()


def attempt(comm: Communicator, action: Callable[[], _Made]) -> tuple[_Made | None, str]:
    """Do `action`; if it fails in the same way on all ranks, return what went wrong instead of raising.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    action : callable
        Returns what is wanted, which all ranks make together.

    Raises
    ------
    Exception
        It failed on some ranks, and the others wait: only an abort helps.
    """
    try:
        result = action()
    except Exception as error:
        if comm.agree(True, patience=5.0) is None:
            raise
        return None, one_line(error)
    failed = comm.agree(False)
    return (result, "") if failed == comm.ranks else (None, f"failed on rank {failed}")
