"""Training in one call from Python: what the command line does, with a network and data of one's own."""

from __future__ import annotations

import warnings
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from mldd.algebra import did_you_mean, loaded
from mldd.command import report as reports
from mldd.command import run as runs
from mldd.command.builder import check_options
from mldd.command.keys import keys_of, short
from mldd.command.names import Spec, problem, problem_spec, solver_spec
from mldd.command.options import parse, read
from mldd.loop import History, Problem, Result, completed, deferred, summary
from mldd.ranks import Communicator, prepare, world

# Problems around a network: what is no single graph are samples.
_ONE_GRAPH = "mldd.problems.modules.graph_samples:one_graph"
_GRAPH = "mldd.problems.modules.one_graph.graph_problem:GraphProblem"
_SAMPLES = "mldd.problems.modules.supervised_problem:SupervisedProblem"
# Options of the command line that are arguments of `train`, keys of the problem, or of several runs.
_NOT_HERE = "command problem solver seed seeds device dtype data network petsc debug began supervised".split()


@dataclass(frozen=True, repr=False)
class Training:
    """What came of a training.

    Attributes
    ----------
    problem : Problem
        What was trained.
    result : Result
        How it ended: status, history, the last iterate.
    metrics : dict
        Measures of quality of the last iterate.
    content : dict
        What ``result.json`` has: cost, options, versions.
    written : tuple of Path
        Files, if there is a folder for them.
    """

    problem: Problem
    result: Result
    metrics: Mapping[str, float]
    content: Mapping[str, Any]
    written: tuple[Path, ...] = ()

    def _lines(self) -> list[tuple[str, str]]:
        numbers = ", ".join(f"{name.replace('_', ' ')} {value:.4g}" for name, value in self.metrics.items())
        notes = self.content.get("details", {}).get("notes", [])
        more = [("metrics", numbers), *(("data", note) for note in notes)]
        more.append(("written", " ".join(map(str, self.written))))
        return [*summary.of_result(self.result), *((name, text) for name, text in more if text)]

    def __repr__(self) -> str:
        """Return a screen at most: what the result says, metrics, what of the data is not used, and files."""
        return summary.as_text("Training", self._lines())

    def _repr_html_(self) -> str:
        return summary.as_html("Training", self._lines())

    @property
    def x(self) -> Tensor:
        """The last iterate, or the best one of a validation."""
        return reports.kept(self.result, self.content["options"]["keep"])

    @property
    def model(self) -> nn.Module:
        """The trained network.

        Raises
        ------
        ValueError
            The unknowns of the problem are no network.
        """
        return self.problem.module(self.x)

    @property
    def history(self) -> History:
        """Records of all steps."""
        return self.result.history

    def predict(self, data: Any = None, **options: Any) -> Any:
        """Return the outputs for other data, by default those of the training.

        Parameters
        ----------
        data : object, optional
            As the trained model takes them, or a graph with the fields that the network is called with.
        **options : Any
            What else the model takes.

        Raises
        ------
        ValueError
            The problem has no way to predict, or the data do not fit.
        """
        made: Any = self.model
        if hasattr(made, "predict"):
            return made.predict(data, **options)
        outputs: Any = getattr(self.problem, "predict", None)
        if outputs is None:
            raise ValueError(
                f"{type(self.problem).__name__} must have `predict(x, data)`, got none; call the network `run.model`"
            )
        return outputs(self.x, data, **options)


def train(
    what: str | Problem | nn.Module,
    data: Any = None,
    *,
    solver: str = "adam",
    seed: int = 0,
    comm: Communicator | None = None,
    options: Mapping[str, Any] | None = None,
    **keys: Any,
) -> Training:
    """Train a network, or solve another problem, as the command line does, and return what came of it.

    Parameters
    ----------
    what : nn.Module, Problem or str
        A network, with `data`, whose parameters are the trained ones afterwards; a problem; or a PROBLEM of the command
        line.
    data : object, optional
        For a network: a graph (a torch_geometric ``Data``, or a dict with ``edge_index``), or samples as
        `SupervisedProblem` takes them, many graphs among them.
    solver : str
        A SOLVER of the command line, with keys: ``"ml-lbfgs:memory=5"``.
    seed : int
        Of the start, and of what is random in the problem.
    comm : Communicator, optional
        The ranks; by default all that a launcher has started. `mldd.ranks.with_network` puts a network between them.
    options : dict, optional
        Other options of ``mldd train`` by name: ``{"max_seconds": 60, "validate_every": 10, "keep": "best"}``.
    **keys : Any
        ``parts``, ``overlap``, ``levels``, ``steps``, ``out`` and the other options of ``mldd train``, and keys of the
        problem (``loss=...``, ``local="own"``).

    Raises
    ------
    ValueError
        A name or key that there is none of, or one that cannot be used.

    Examples
    --------
    ::

        run = mldd.train(net, data, solver="ml-lbfgs", parts=8, levels=3)
        run.model, run.metrics["test_accuracy"], run.history
    """
    given = parse(["train", "-", "--solver", solver, "--quiet"])
    known = [name for name in vars(given) if name not in _NOT_HERE]
    chosen = {**(options or {}), **{key: keys.pop(key) for key in list(keys) if key in known}}
    for key, value in chosen.items():
        if key not in known:
            raise ValueError(f"mldd.train has no option {key!r}; its options are {' '.join(known)}")
        setattr(given, key, read("train", key, value))
    if not isinstance(seed, Integral):
        raise ValueError(f"`seed` must be a whole number, got {seed!r}")
    given.seed = int(seed)
    comm = world() if comm is None else comm
    prepare(comm)
    check_options(given, [solver_spec(solver)])
    made = _trained(_problem_of(what, data, seed, comm, keys, known), given, comm)
    if isinstance(what, nn.Module):
        _ = made.model  # what the caller holds is the trained network from here on
    return made


def _problem_of(
    what: Any, data: Any, seed: int, comm: Communicator, keys: dict[str, Any], options: list[str]
) -> Problem:
    """Return the problem around a network, one by name, or the given one."""
    if isinstance(what, nn.Module):
        if data is None:
            raise ValueError("a network needs `data` to be trained on, got None; write mldd.train(net, data)")
        graph: Any = loaded(_ONE_GRAPH, "function")(data)
        kind = loaded(_SAMPLES if graph is None else _GRAPH, "class")
        _check_keys(kind, keys, options)
        return problem(kind, net=what, data=data if graph is None else graph, seed=seed, comm=comm, **keys)
    if isinstance(what, type):
        raise ValueError(f"mldd.train needs an object, got the class {what.__name__}; write {what.__name__}(...)")
    if data is not None:
        got = repr(what) if isinstance(what, str) else type(what).__name__
        raise ValueError(f"`data` go with a network (nn.Module), got them with {got}; leave them out, or swap the two")
    if isinstance(what, str):
        has = problem_spec(what).has
        return problem(what, **{key: v for key, v in (("seed", seed), ("comm", comm)) if has(key)}, **keys)
    if keys:
        raise ValueError(
            f"keys of a problem that is made already cannot be set, got {' '.join(keys)}; make it with them"
        )
    if not isinstance(what, completed(type(what))):
        kind = type(what).__name__
        raise ValueError(f"a problem must derive from mldd.Problem, got {kind}; write class {kind}(mldd.Problem)")
    made: Problem = what
    return made


def _check_keys(kind: type, keys: Mapping[str, Any], options: list[str]) -> None:
    """Refuse keys that neither a problem around a network nor `train` has, and say where those of solvers are."""
    spec = Spec(kind.__name__, kind.__name__, kind)
    for key in keys:
        if not spec.has(key) and key not in short(keys_of(kind)).values() and key not in keys_of(kind):
            raise ValueError(
                f"mldd.train and {kind.__name__} have no key {key!r}{did_you_mean(key, options)}; those of "
                f'solvers stand behind their name: solver="adam:lr=0.1"; others are {" ".join(keys_of(kind))}'
            )


def _trained(made: Problem, options: Namespace, comm: Communicator) -> Training:
    name = type(made).__name__
    specs = Spec(name, name, type(made)), solver_spec(options.solver)
    run, past = runs.begin(specs, options, lambda: made, comm)
    keeper = None if options.checkpoint is None else runs.Keeper(options.checkpoint, run)
    with deferred():
        result = runs.execute(run, past, out=options.out, keeper=keeper, shown=not options.quiet)
        files = reports.Files()
        content = reports.reported(files, run, result, options.out)
        if comm.rank == 0 and options.out is not None:
            reports.draw(files, run, result, content, options.out)
    for line in files.failed:
        warnings.warn(line, stacklevel=3)
    return Training(made, result, content["metrics"], content, tuple(files.written))
