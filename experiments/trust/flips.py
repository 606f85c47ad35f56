"""What single flipped bits do to a run, and what the checks for silent errors see of them.

    python experiments/trust/flips.py [--flips 1000] [--clean] [--out DIR]
    mpiexec -n 2 python -m mpi4py experiments/trust/flips.py [--flips 1000] [--out DIR]

One bit of one number, all drawn from a seed, is flipped in a run: in the iterate, the solver's state or the gradient,
while a gradient is evaluated (a random one of the run, also inside of a step: that is where the time goes); with two
ranks, in a halo that one of them has received, and in the iterate of one rank; and in the file of a checkpoint or of a
shard before it is read. The flip is *detected* (the run went back, ended with a status that says so, or a file was
refused), *harmless* (the end is that of the run without a flip: the objective is higher by at most 1e-6 of what it has
come down) or *harmful* (worse, and nobody was told). `exact` counts the detected flips after which the run has ended
with the iterate of the clean one, bit by bit. Rows are without any checks, with the default ones (1 % of the time),
with checks at every step, and with ``--verify 1`` (a fifth of the flips; half of them without checks). A step of the
five small problems takes about as long as a check, so that 1 % of the time buys few; `cora` is larger.

``--clean`` instead counts false alarms in runs without any flip: problems x solvers x seeds, with ``--verify 1``.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mldd import checkpoints
from mldd.algebra import Around, sampled, value_and_gradient
from mldd.command.builder import build_problem
from mldd.command.names import problem_spec, solver_spec
from mldd.command.options import parse
from mldd.command.preparation import Preparation
from mldd.command.run import prepare
from mldd.graph import partition
from mldd.loop import Detection, Status, Stop, minimise, pack
from mldd.loop.guards.invariants import Leaf, leaves
from mldd.problems.data import load_graph, write
from mldd.problems.graphs import ShardedClassification
from mldd.ranks import SERIAL, Communicator, Halo, world
from mldd.solvers import Adam

MODES = {
    "no checks": Detection(share=0.0),
    "default": Detection(),
    "every step": Detection(verify_every=10**9),
    "--verify 1": Detection(verify_every=1),
}
TOLERANCE = 1e-6  # of the decrease of the objective
SERIAL_CASES = (
    ("obstacle:n=15", "adagrad", 40),
    ("obstacle:n=15", "ml-adagrad", 20),
    ("quadratic:dim=1,n=255", "lbfgs", 40),
    ("sbm", "adam", 10),
    ("sbm", "dd-adagrad", 3),
)
CLEAN = (
    ("obstacle:n=15", ("adagrad", "ml-adagrad", "dd-adagrad", "tao:bncg")),
    ("quadratic:dim=1,n=127", ("lbfgs", "adam", "sgd", "adagrad", "aspin", "mspqn", "newton", "mofftr")),
    ("bratu:n=15", ("ml-adagrad", "schwarz", "adagrad", "tao:blmvm")),
    ("sbm", ("adam", "dd-adagrad", "lbfgs", "localsgd", "diloco", "apts", "torch-adagrad")),
    ("sbm:dropout=0.5", ("adam", "ml-adagrad", "sgd")),
    ("poisson1d", ("mspqn", "lbfgs", "adam")),
    ("digits", ("adam", "sgd")),
    ("sbm:dtype=float32", ("adam", "lbfgs", "dd-adagrad", "adagrad")),
)


@dataclass
class Case:
    """A problem, a solver and a start, ready to be run many times."""

    objective: Any
    start: Tensor
    solver: Any
    steps: int
    comm: Communicator = SERIAL
    parts: dict[str, Any] = field(default_factory=dict)


def made(problem: str, solver: str, steps: int, seed: int = 0, comm: Communicator = SERIAL) -> Case:
    """Return what ``mldd train PROBLEM --solver SOLVER`` runs."""
    words = ["train", problem, "--solver", solver, "--parts", "4", "--levels", "2", "--seed", str(seed)]
    options, spec = parse(words), solver_spec(solver)
    if not any(s.has("decomposition") for s in spec.tree):
        options.parts = None
    if not any(s.has("hierarchy") for s in spec.tree):
        options.levels = None
    pair = problem_spec(problem), spec
    built = build_problem(pair[0], options, seed, comm)
    run = prepare(pair, options, Preparation(built, seed, comm))
    return Case(run.objective, run.x, run.solver, steps, comm)


# ------------------------------------------------------------------------------------------------ in memory


@dataclass(frozen=True)
class Watched(Around):
    """`f`, which calls ``strike(x, g)`` in evaluation number `at` of the run, counted from 1."""

    strike: Callable[[Tensor, Tensor], None]
    at: int
    calls: list[int] = field(default_factory=lambda: [0])

    def __getattr__(self, name: str) -> Any:
        """Offer what `f` offers."""
        if name == "sample":
            draw = self.f.sample  # type: ignore[attr-defined]
            return lambda step: Watched(draw(step), self.strike, self.at, self.calls)
        return getattr(self.f, name)

    def _struck(self, x: Tensor, g: Tensor) -> Tensor:
        self.calls[0] += 1
        if self.calls[0] == self.at:
            self.strike(x, g)
        return g

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of `f`."""
        return self._struck(x, self.f.gradient(x))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient of `f`."""
        value, g = value_and_gradient(self.f, x)
        return value, self._struck(x, g)


@dataclass(frozen=True)
class Open:
    """`solver`, whose iterate and state can be reached while it runs."""

    solver: Any
    now: list[Any] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        """Say of itself what the solver says."""
        return getattr(self.solver, name)

    def init(self, objective: Any, x: Tensor) -> Any:
        """Return the state, and keep both."""
        state = self.solver.init(objective, x)
        self.now[:] = x, state
        return state

    def step(self, objective: Any, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """Do a step, and keep what comes of it."""
        self.now[:] = x, state
        x, state = self.solver.step(objective, x, state)
        self.now[:] = x, state
        return x, state


def flip(tensor: Tensor, draw: random.Random) -> None:
    """Flip a random bit of a tensor."""
    flat = tensor.data.reshape(-1)  # a copy where it is not contiguous
    octets = flat.view(torch.uint8)
    octets[draw.randrange(len(octets))] ^= 1 << draw.randrange(8)
    tensor.data.copy_(flat.view_as(tensor))


def strike_in(where: str, solver: Open, draw: random.Random) -> Callable[[Tensor, Tensor], None]:
    """Return what flips a bit of the iterate, the state or the gradient."""

    def strike(x: Tensor, g: Tensor) -> None:
        if where == "gradient":
            flip(g, draw)
        elif where == "iterate":
            flip(solver.now[0] if solver.now else x, draw)
        elif solver.now:
            found = [part.tensor for part in leaves(solver.now[1]) if isinstance(part, Leaf)]
            if found:
                flip(draw.choices(found, [t.numel() * t.element_size() for t in found])[0], draw)

    return strike


@dataclass(frozen=True)
class Clean:
    """How the run ends that nothing disturbs: iterate, objective at the start and at the end, evaluations."""

    x: Tensor
    first: float
    last: float
    calls: int


def clean_run(case: Case) -> Clean:
    """Run without flips and checks."""
    watched = Watched(case.objective, lambda x, g: None, -1)
    result = run(case, watched, case.solver, MODES["no checks"])
    first, last = (float(case.objective.value(x)) for x in (case.objective.bounds.project(case.start), result.x))
    return Clean(result.x, first, last, watched.calls[0])


def run(case: Case, objective: Any, solver: Any, detection: Detection) -> Any:
    """Minimise as the command line does, with all values."""
    stop = Stop(max_steps=case.steps)
    return minimise(objective, case.start, solver, stop=stop, comm=case.comm, detection=detection)


def outcome(case: Case, clean: Clean, go: Callable[[], Any]) -> str:
    """Return what became of a run with a flip."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = go()
    except (ValueError, RuntimeError, ArithmeticError, IndexError):
        return "detected"
    if result.rollbacks or result.status.failed:
        return "exact" if torch.equal(result.x, clean.x) and not result.status.failed else "detected"
    ends = case.comm.gather_items(result.x)
    lasts = [float(case.objective.value(x)) for x in ends]
    allowed = clean.last + TOLERANCE * abs(clean.first - clean.last)
    apart = " apart" if any(not torch.equal(x, ends[0]) for x in ends) else ""
    return ("harmless" if all(last <= allowed for last in lasts) else "harmful") + apart


def in_memory(cases: list[Case], flips: int, modes: tuple[str, ...], name: str = "") -> Iterator[dict[str, Any]]:
    """Give the rows of iterate, state and gradient."""
    cleans = [clean_run(case) for case in cases]
    for where in ("iterate", "state", "gradient"):
        for mode, detection in ((mode, MODES[mode]) for mode in modes):
            count, draw = Counter[str](), random.Random(1)
            times = number(flips, mode)
            for k in range(times):
                case, clean = cases[k % len(cases)], cleans[k % len(cases)]
                solver = Open(case.solver)
                watched = Watched(case.objective, strike_in(where, solver, draw), draw.randint(2, clean.calls))
                count[outcome(case, clean, partial(run, case, watched, solver, detection))] += 1
            yield row(f"{where}{name}", mode, times, count)


def number(flips: int, mode: str) -> int:
    """Return how many flips a row has."""
    return max(1, flips // {"--verify 1": 5, "no checks": 2}.get(mode, 1))


def row(where: str, mode: str, flips: int, count: Counter[str]) -> dict[str, Any]:
    """Return a row of the table; exact ones are detected, too."""
    found = {name: count[name] + count[f"{name} apart"] for name in ("harmless", "harmful", "exact")}
    line = {"where": where, "checks": mode, "flips": flips, "detected": count["detected"] + count["exact"], **found}
    return line | {"apart": count["harmless apart"] + count["harmful apart"]}


# ------------------------------------------------------------------------------------------------ files


def flip_in(files: list[Path], draw: random.Random) -> Callable[[], None]:
    """Flip a random bit of some files; return what undoes it."""
    file = draw.choices(files, [f.stat().st_size for f in files])[0]
    before = file.read_bytes()
    place, bit = draw.randrange(len(before)), draw.randrange(8)
    file.write_bytes(before[:place] + bytes([before[place] ^ 1 << bit]) + before[place + 1 :])
    return lambda: (file.write_bytes(before), None)[1]


def in_files(name: str, files: list[Path], read: Callable[[], Any], flips: int) -> dict[str, Any]:
    """Return the row of files that are flipped before they are read; `read` returns something to compare."""
    expected, count, draw = read(), Counter[str](), random.Random(2)
    for _ in range(flips):
        undo = flip_in(files, draw)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                count["harmless" if same(read(), expected) else "harmful"] += 1
        except Exception:  # whatever says no
            count["detected"] += 1
        undo()
    return row(name, "default", flips, count)


def same(a: Any, b: Any) -> bool:
    """Say whether two things that were read are the same, to the last bit."""
    if isinstance(a, Tensor):
        return torch.equal(a, b)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    return repr(a) == repr(b)


def of_files(flips: int) -> Iterator[dict[str, Any]]:
    """Give the rows of a checkpoint and of a shard."""
    with tempfile.TemporaryDirectory() as folder:
        case, path = made("sbm", "adam", 10), Path(folder) / "check"
        result = run(case, case.objective, case.solver, Detection())
        checkpoints.save(path, x=result.x, state=result.state, history=result.history, meta={"seed": 0})
        files = list(Path(folder).iterdir())
        template = case.solver.init(sampled(case.objective, 0), case.start)

        def resume() -> Any:
            found = checkpoints.load(path)
            found.check({"seed": 0})
            records = [record.row() for record in found.history.records]
            return found.x, pack(found.state(template), "state"), records, found.meta

        yield in_files("checkpoint", files, resume, flips)
    with tempfile.TemporaryDirectory() as folder:
        data = load_graph("sbm")
        write(data, partition(data.graph, 2), folder)
        files = [file for file in Path(folder).rglob("*") if file.is_file()]

        def start() -> Any:
            problem = ShardedClassification(folder)
            return problem.objective().gradient(problem.initial(0))

        yield in_files("shard", files, start, flips)


# ------------------------------------------------------------------------------------------------ two ranks


@contextmanager
def struck_halos(at: int, victim: bool, draw: random.Random) -> Iterator[list[int]]:
    """Flip a bit in the rows of halo number `at` that a rank receives; yield the number of those received."""
    end, count = Halo.end, [0]

    def struck(self: Halo, pending: Any) -> Tensor:
        rows = end(self, pending)
        count[0] += 1
        if count[0] == at and victim and rows.numel():
            flip(rows, draw)
        return rows

    Halo.end = struck  # type: ignore[method-assign]
    try:
        yield count
    finally:
        Halo.end = end  # type: ignore[method-assign]


def on_ranks(flips: int, comm: Communicator) -> Iterator[dict[str, Any]]:
    """Give the rows of the iterate of one rank, and of halos."""
    data = load_graph("sbm")
    problem = ShardedClassification.of(data, partition(data.graph, comm.ranks), comm)
    sharded = Case(problem.objective(), problem.initial(0), Adam(0.01), 10, comm)
    cases = [made("obstacle:n=15", "dd-adagrad", 5, comm=comm), sharded]
    cleans = [clean_run(case) for case in cases]
    for mode, detection in MODES.items():
        times, count, draw = number(flips, mode), Counter[str](), random.Random(3)
        for k in range(times):
            case, clean = cases[k % 2], cleans[k % 2]
            victim, at, solver = draw.randrange(comm.ranks), draw.randint(2, clean.calls), Open(case.solver)
            strike = strike_in("iterate", solver, random.Random(draw.random()))
            watched = Watched(case.objective, strike if comm.rank == victim else lambda x, g: None, at)
            count[outcome(case, clean, partial(run, case, watched, solver, detection))] += 1
        yield row("one rank", mode, times, count)
    with struck_halos(-1, False, draw) as received:
        clean_run(sharded)
    for mode, detection in MODES.items():
        times, count, draw = number(flips, mode), Counter[str](), random.Random(4)
        for _ in range(times):
            at, victim = draw.randint(1, received[0]), draw.randrange(comm.ranks)
            with struck_halos(at, comm.rank == victim, random.Random(draw.random())):
                go = partial(run, sharded, sharded.objective, sharded.solver, detection)
                count[outcome(sharded, cleans[1], go)] += 1
        yield row("halo", mode, times, count)


# ------------------------------------------------------------------------------------------------ clean runs


def false_alarms(seeds: int) -> dict[str, Any]:
    """Count alarms in runs that nothing disturbs."""
    runs, alarms = 0, []
    for problem, solvers in CLEAN:
        for solver in solvers:
            for seed in range(seeds):
                case = made(problem, solver, 20, seed)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    result = run(case, case.objective, case.solver, MODES["--verify 1"])
                runs += 1
                if result.rollbacks or result.status is Status.corrupted:
                    alarms.append(f"{problem} {solver} seed {seed}: {result.state.notes}")
    return {"runs": runs, "false_alarms": len(alarms), "where": alarms}


def main() -> None:
    """Flip bits and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000)
    parser.add_argument("--clean", action="store_true")
    parser.add_argument("--seeds", type=int, default=4)
    parser.add_argument("--out", type=Path, default=Path("paper/results/trust"))
    options, comm = parser.parse_args(), world()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.clean:
        found = false_alarms(options.seeds)
        (options.out / "false_alarms.json").write_text(json.dumps(found, indent=1) + "\n")
        print(found)
        return
    if comm.ranks > 1:
        rows = on_ranks(options.flips, comm)
    else:
        small, cora = [made(*case) for case in SERIAL_CASES], [made("cora", "adam", 10)]
        rows = chain(
            of_files(options.flips),
            in_memory(small, options.flips, tuple(MODES)),
            in_memory(cora, max(1, options.flips // 10), ("default",), " cora"),
        )
    table = []
    for line in rows:
        table.append(line)
        if comm.rank == 0:
            print(*(f"{value!s:>12}" for value in line.values()), flush=True)
            name = "flips.json" if comm.ranks == 1 else f"flips_{comm.ranks}_ranks.json"
            (options.out / name).write_text(json.dumps(table, indent=1) + "\n")
            (options.out / name).with_suffix(".txt").write_text(as_text(table))


def as_text(table: list[dict[str, Any]]) -> str:
    """Return the table as text."""
    lines = [table[0].keys(), *(line.values() for line in table)]
    return "".join("  ".join(f"{entry!s:>11}" for entry in line).rstrip() + "\n" for line in lines)


if __name__ == "__main__":
    main()
