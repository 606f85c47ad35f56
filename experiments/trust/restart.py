"""Restart matrix: runs that are cut in two by a checkpoint, beside uninterrupted ones, on one and more ranks.

    python experiments/trust/restart.py [--ranks 1 2] [--out paper/results/trust] [--cases NAME ...]

Every case is run whole, and to the middle with a checkpoint, on 1 and on 2 ranks, or on others that are named, as far
as there are subdomains for them; each checkpoint is then resumed on all of these. The resumed run is compared with the
uninterrupted one of the ranks that wrote the checkpoint: the iterate, all columns of the history that are no seconds,
and the gradients and work that were counted. On the same ranks all have to be the same bits; where the number changed,
the iterate and the loss to rounding. A solver whose memory cannot be saved has to be refused in one line.

Written are ``restart.json`` and the table ``restart.txt``, with the numbers of ranks in the name if they are others.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import mldd
from mldd.command.training import Training
from mldd.loop import CheckpointError, replacing
from mldd.problems.graphs import NodeClassification
from mldd.ranks import Communicator, prepare, world

RANKS = (1, 2)
ROUNDING = 1e-6  # relative, after the few steps that follow a restart
EXACT = ("step", "level", "measure", "value", "accepted", "rejected")
COUNTED = (
    "gradient_evaluations",
    "work_units",
    "work_total",
    "synchronisations",
    "scalar_synchronisations",
    "exchanges",
)


@dataclass(frozen=True)
class Case:
    """A problem, a solver and how they are run.

    Attributes
    ----------
    problem, solver : str
        As on the command line.
    parts, levels : int
        Subdomains and levels, 0 for none.
    steps : int
        Of the whole run; the checkpoint is written after half of them.
    ranks : tuple of int
        Numbers of ranks that it can be run on; empty for any, as far as there are parts.
    refused : str
        Words of the message where its checkpoint cannot be written, or be resumed on other ranks.
    """

    problem: str
    solver: str
    parts: int = 0
    levels: int = 0
    steps: int = 6
    ranks: tuple[int, ...] = ()
    refused: str = ""

    @property
    def keys(self) -> dict[str, int]:
        """Options of `mldd.train`."""
        return {name: getattr(self, name) for name in ("parts", "levels") if getattr(self, name)}

    def runs_on(self, ranks: int) -> bool:
        """Return whether it can be run on so many ranks.

        Parameters
        ----------
        ranks : int
            Their number.
        """
        return (not self.ranks or ranks in self.ranks) and (not self.parts or ranks <= self.parts)


OBSTACLE, SURFACE, QUADRATIC, GRAPH = "obstacle:n=15", "morebv:n=15", "quadratic:n=31", "graph.npz"
DATA, LAYERS = "digits:samples=200,hidden=16,subdomains=data", "digits:samples=200,hidden=16-16"
CASES = {
    "adagrad": Case(OBSTACLE, "adagrad"),
    "adagrad with pairs": Case(GRAPH, "adagrad:curvature=lbfgs"),
    "ml-adagrad": Case(OBSTACLE, "ml-adagrad", levels=3),
    "ml-adagrad, graph": Case(GRAPH, "ml-adagrad", levels=2),
    "dd-adagrad": Case(OBSTACLE, "dd-adagrad", parts=4, levels=2),
    "dd-adagrad, graph": Case(GRAPH, "dd-adagrad", parts=4, levels=2),
    "schwarz": Case(SURFACE, "schwarz", parts=4),
    "schwarz, multiplicative": Case(QUADRATIC, "schwarz:order=multiplicative", parts=4, levels=2),
    "schwarz that keeps memory": Case(OBSTACLE, "schwarz:memory=keep", parts=5),
    "aspin": Case(QUADRATIC, "aspin", parts=4, steps=2),
    "raspen": Case(QUADRATIC, "raspen", parts=4, steps=2),
    "aspqn": Case("poisson1d:points=20,network.depth=3,network.width=6", "aspqn", parts=2),
    "mspqn": Case("poisson1d:points=20,network.depth=3,network.width=6", "mspqn", parts=2),
    "apts": Case(LAYERS, "apts", parts=3),
    "apts that keeps pairs": Case(LAYERS, "apts:keep_pairs=true", parts=3),
    "apts, data": Case(DATA, "apts", parts=4),
    "mofftr": Case(GRAPH + ":dropout=0", "mofftr:smoother=adagrad(varsigma=1,rate=0.1,curvature=none)", levels=2),
    "localsgd": Case(DATA, "localsgd", parts=4),
    "localsgd that keeps momenta": Case(DATA, "localsgd:memory=keep,local=adam", parts=4),
    "localsgd that averages momenta": Case(DATA, "localsgd:memory=average,local=sgd(momentum=0.9)", parts=4),
    "local-adam, delayed": Case(DATA, "local-adam:local_steps=4,delay=2", parts=4),
    "local-adam, growing, with control variates": Case(
        DATA, "local-adam:control=true,growth=true,schedule=cosine,length=12", parts=4
    ),
    "diloco": Case(DATA, "diloco", parts=4),
    "adam": Case(GRAPH, "adam"),
    "adam, mini-batches": Case("digits:samples=200,hidden=16,batch=20", "adam"),
    "sgd": Case(GRAPH, "sgd:momentum=0.9,nesterov=true"),
    "torch-adagrad": Case(GRAPH, "torch-adagrad"),
    "lbfgs": Case(GRAPH + ":dropout=0", "lbfgs"),
    "ml-lbfgs": Case(GRAPH + ":dropout=0", "ml-lbfgs", levels=2),
    "newton": Case(GRAPH + ":dropout=0", "newton"),
    "trust-region": Case(LAYERS, "trust-region"),
    "tao": Case(QUADRATIC, "tao:lmvm", refused="memory that cannot be saved"),
    "shards": Case("shards", "adam", ranks=(2,)),
    "shards, stale halos": Case("shards:halo=stale", "adam", ranks=(2,)),
    "shards, smoothed stale halos": Case("shards:halo=stale,lag=2,smoothing=0.5", "adam", ranks=(2,)),
    "shards, historical halos": Case("shards:halo=history,lag=4,dropout=0", "lbfgs", ranks=(2,)),
    "shards, dd-adagrad": Case("shards", "dd-adagrad", parts=4, levels=2, ranks=(2,)),
}


def main() -> None:
    """Run the matrix, or what one process of it has to do."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("paper/results/trust"), help="folder of the table")
    parser.add_argument("--cases", nargs="*", default=list(CASES), metavar="NAME", help="names of cases")
    parser.add_argument("--ranks", nargs="*", type=int, default=list(RANKS), metavar="P", help="numbers of ranks")
    parser.add_argument("--stage", choices=("begin", "resume"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.stage is not None:
        work(options.stage, options.cases, options.ranks)
        return
    rows = matrix(options.cases, options.ranks)
    options.out.mkdir(parents=True, exist_ok=True)
    name = "restart" if options.ranks == list(RANKS) else "restart_" + "_".join(map(str, options.ranks))
    for ending, text in ((".json", json.dumps(rows, indent=1) + "\n"), (".txt", table(rows))):
        with replacing(options.out / (name + ending)) as new:
            new.write_text(text)
    print(table(rows), end="")
    sys.exit(0 if all(row["as_it_should_be"] for row in rows) else 1)


def matrix(cases: Sequence[str], numbers: Sequence[int] = RANKS) -> list[dict[str, Any]]:
    """Return one row per case, ranks before and ranks after.

    Parameters
    ----------
    cases : sequence of str
        Names of them.
    numbers : sequence of int
        Numbers of ranks.
    """
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        _make_data(here)
        for stage in ("begin", "resume"):
            for ranks in numbers:
                _start(here, ranks, stage, cases, numbers)
        pairs = [(before, after) for before in numbers for after in numbers]
        return [compared(here, name, *pair) for name in cases for pair in pairs if all(map(CASES[name].runs_on, pair))]


def work(stage: str, cases: Sequence[str], numbers: Sequence[int]) -> None:
    """Do one stage of the cases on the ranks that there are, in the current folder.

    Parameters
    ----------
    stage : {"begin", "resume"}
        Whole runs and runs to the middle, or from there to the end.
    cases : sequence of str
        Names of them.
    numbers : sequence of int
        Numbers of ranks, of this process among others.
    """
    comm = world()
    prepare(comm)
    warnings.simplefilter("ignore")  # of single precision and notes of problems
    for name in cases:
        case = CASES[name]
        if not case.runs_on(comm.ranks):
            continue
        if stage == "begin":
            _run(case, comm, _file(name, comm.ranks, "whole"))
            _run(
                case,
                comm,
                _file(name, comm.ranks, "half"),
                steps=case.steps // 2,
                checkpoint=_checkpoint(name, comm.ranks),
            )
            continue
        for before in filter(case.runs_on, numbers):
            _run(case, comm, _file(name, before, f"to{comm.ranks}"), resume=_checkpoint(name, before))


def compared(here: Path, name: str, before: int, after: int) -> dict[str, Any]:
    """Return what came of a run that was cut in two, beside the uninterrupted one.

    Parameters
    ----------
    here : Path
        Folder of the results.
    name : str
        Of the case.
    before, after : int
        Numbers of ranks.
    """
    case = CASES[name]
    row: dict[str, Any] = {
        "case": name,
        "problem": case.problem,
        "solver": case.solver,
        "before": before,
        "after": after,
    }
    told, half = (_read(here / _file(name, before, kind)) for kind in (f"to{after}", "half"))
    refusal = half["error"] or told["error"]
    if refusal:
        return row | {"refused": refusal, "as_it_should_be": bool(case.refused) and case.refused in refusal}
    whole = _read(here / _file(name, before, "whole"))
    same_ranks = before == after
    error = np.linalg.norm(told["x"] - whole["x"]) / np.linalg.norm(whole["x"])
    identical = all(np.array_equal(told[key], whole[key], equal_nan=True) for key in ("x", *EXACT))
    extra = {key: float(told[key][-1] - whole[key][-1]) for key in COUNTED}
    counted = [key for key in extra if key != "work_units" or after == 1]  # maxima over ranks do not add up
    nothing = all(abs(extra[key]) <= 1e-9 * abs(whole[key][-1]) for key in counted)
    good = identical and nothing if same_ranks else error <= ROUNDING and not extra["gradient_evaluations"]
    found = {"identical": bool(identical), "relative_error": float(error), "counted_too_much": extra}
    return row | found | {"refused": "", "as_it_should_be": bool(good) and not case.refused}


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return the rows as text, one line per case.

    Parameters
    ----------
    rows : sequence of dict
        Of `matrix`.
    """
    pairs = sorted({(row["before"], row["after"]) for row in rows})
    lines = [f"{'case':32}" + "".join(f"{f'{a} -> {b}':>18}" for a, b in pairs)]
    for name in dict.fromkeys(row["case"] for row in rows):
        cells = {(row["before"], row["after"]): _cell(row) for row in rows if row["case"] == name}
        lines.append(f"{name:32}" + "".join(f"{cells.get(pair, '-'):>18}" for pair in pairs))
    good = sum(row["as_it_should_be"] for row in rows)
    lines.append(f"{good} of {len(rows)} as they should be; a number is the relative difference of the iterates")
    return "\n".join(lines) + "\n"


def _cell(row: dict[str, Any]) -> str:
    text = "refused" if row["refused"] else "identical" if row["identical"] else f"{row['relative_error']:.1e}"
    return text if row["as_it_should_be"] else f"WRONG: {text}"


def _run(case: Case, comm: Communicator, file: Path, *, steps: int = 0, **paths: Path) -> None:
    """Run a case, and write what came of it; rank 0 writes."""
    content: dict[str, Any] = {"error": ""}
    try:
        run = mldd.train(
            case.problem, solver=case.solver, seed=1, comm=comm, steps=steps or case.steps, **case.keys, **paths
        )
        content |= _content(run)
    except (CheckpointError, FileNotFoundError) as error:
        content["error"] = str(error)
    if comm.rank == 0:
        np.savez(file, **content)


def _content(run: Training) -> dict[str, Any]:
    history = run.history
    return {"x": run.x.numpy(), **{name: np.array(history.column(name)) for name in (*EXACT, *COUNTED)}}


def _read(file: Path) -> dict[str, Any]:
    with np.load(file) as content:
        return {key: str(value) if key == "error" else value for key, value in content.items()}


def _name(name: str) -> str:
    return "".join(c if c.isalnum() else "_" for c in name)


def _file(name: str, ranks: int, kind: str) -> Path:
    return Path(f"{_name(name)}.{ranks}.{kind}.npz")


def _checkpoint(name: str, ranks: int) -> Path:
    return Path(f"{_name(name)}.{ranks}.checkpoint")


def _make_data(here: Path) -> None:
    """Write a graph of three classes, whole and in two shards."""
    random = torch.Generator().manual_seed(0)
    n = 90
    labels = torch.arange(n) % 3
    chance = torch.where(labels[:, None] == labels, 0.2, 0.02)
    edges = (torch.rand(n, n, generator=random) < chance).triu(1).nonzero()
    features = torch.randn(n, 8, generator=random) + 0.5 * torch.nn.functional.one_hot(labels, 8)
    np.savez(here / "graph.npz", edges=edges.numpy(), node_features=features.numpy(), node_labels=labels.numpy())
    NodeClassification(str(here / "graph.npz")).write_shards(torch.arange(n) * 2 // n, here / "shards")


def _start(here: Path, ranks: int, stage: str, cases: Sequence[str], numbers: Sequence[int]) -> None:
    own = Path(sys.executable).with_name("mpiexec")  # that of the MPI library beside this Python
    launcher = [str(own) if own.exists() else "mpiexec", "-n", str(ranks), sys.executable, "-m", "mpi4py"]
    words = [str(Path(__file__).resolve()), "--stage", stage, "--ranks", *map(str, numbers), "--cases", *cases]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}  # sums depend on the threads that share them
    subprocess.run([*(launcher if ranks > 1 else [sys.executable]), *words], cwd=here, check=True, env=environment)


if __name__ == "__main__":
    main()
