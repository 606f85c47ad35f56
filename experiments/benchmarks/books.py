"""Are the books true? Counted work, collectives and bytes against CPU time and the calls that reach MPI.

    python experiments/benchmarks/books.py [--cases cora citeseer] [--prices measured] [--out FILE]
    mpiexec -n 2 python -m mpi4py experiments/benchmarks/books.py [...]

Every case is a problem with a solver as on the command line, and a few steps. CPU time is taken inside the evaluations
of the fine objective, of coarse levels and of local models, without that of messages, in units of a fine gradient
of a single process that is measured beside it; calls and bytes are taken where they reach MPI. A ratio is counted over
measured: 1 is true, 0.8 to 1.25 is the goal. The runs of other numbers of ranks in the file are kept.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from mldd.algebra import (
    Around,
    AroundHessian,
    Hierarchy,
    Remembered,
    count,
    counting,
    hessian,
    is_counted,
    layers_of,
    sampled,
    unit_of,
    value_and_gradient,
)
from mldd.command import solver_spec
from mldd.command.builder import Builder, build_problem
from mldd.command.names import problem_spec
from mldd.command.options import parse
from mldd.command.preparation import Preparation
from mldd.loop import Stop, minimise, replacing
from mldd.ranks import SERIAL, Communicator, prepare, world

GRAPH = ("lbfgs", "ml-lbfgs --levels 2", "dd-adagrad --parts 4 --levels 2", "apts --parts 4")
CASES: dict[str, tuple[str, ...]] = {
    "obstacle:n=511": ("adagrad", "ml-adagrad --levels 3", "dd-adagrad --parts 4 --levels 2"),
    "quadratic:n=511": ("lbfgs", "schwarz --parts 4", "aspqn --parts 4"),
    "digits:hidden=128-64": ("lbfgs", "trust-region", "schwarz --parts 3", "ml-adagrad --levels 3"),
    "digits:hidden=128-64,subdomains=data": ("apts --parts 4", "dd-adagrad --parts 4 --levels 2"),
    "klein-gordon:points=4000": ("lbfgs", "mspqn --parts 4", "schwarz --parts 4"),
    "poisson1d:model=windows,windows.count=8,points=4000": (
        "lbfgs",
        "schwarz --parts 8",
        "schwarz --parts 8 --overlap 1",
    ),
    "sbm": GRAPH,
    "cora": GRAPH,
    "cora:model=gat,hidden=8": GRAPH,
    "cora:model=sage": GRAPH,
    "citeseer": GRAPH,
    "era5-uk:stride=24": GRAPH,
    "era5-uk:stride=24,model=sage": GRAPH,
    "molene": GRAPH,
}
STEPS = 4
ENOUGH = 0.3  # seconds of CPU time of a row at least, in which the run is repeated
MOST = 30  # repetitions
KINDS = ("fine", "coarse", "local")
FEW = 64  # a collective on fewer entries is one on scalars: all vectors here are longer


@dataclass
class Wire:
    """What has reached MPI on this rank: calls and bytes."""

    vectors: int = 0
    scalars: int = 0
    bytes: int = 0


@dataclass
class Watched:
    """An MPI communicator that takes note of its collectives, and passes everything else on."""

    mpi: Any
    wire: Wire = field(default_factory=Wire)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.mpi, name)

    def _noted(self, vector: int = 0) -> None:
        """Take note of a collective on a vector of so many bytes, 0 for one on scalars."""
        if is_counted():  # or it is for what a run looks at for the user
            self.wire.vectors += vector > 0
            self.wire.scalars += vector == 0
            self.wire.bytes += vector

    def Allreduce(self, in_place: Any, buffer: Any) -> None:  # noqa: N802 (MPI's name)
        """Sum a vector or scalars."""
        self._noted(buffer.nbytes if buffer.size >= FEW else 0)
        self.mpi.Allreduce(in_place, buffer)

    def Allgatherv(self, mine: Any, into: Any) -> None:  # noqa: N802
        """Gather vectors."""
        self._noted(mine.nbytes)
        self.mpi.Allgatherv(mine, into)

    def allgather(self, item: Any) -> list[Any]:
        """Gather objects."""
        self._noted()
        found: list[Any] = self.mpi.allgather(item)
        return found


@dataclass
class Spent:
    """CPU seconds and counted work of one kind of evaluations on this rank."""

    cpu: float = 0.0
    work: float = 0.0


@dataclass
class Meter:
    """Takes the CPU time and the counted work of evaluations, by kind; those inside of others belong to the outer."""

    kinds: dict[str, Spent] = field(default_factory=lambda: {kind: Spent() for kind in KINDS})
    waited: float = 0.0
    busy: bool = False

    def __call__(self, kind: str, evaluate: Callable[[], Any]) -> Any:
        """Return what `evaluate` returns; its counts go on to the run."""
        if self.busy or not is_counted():  # what a run looks at for the user
            return evaluate()
        self.busy = True
        with counting() as cost:
            begin = time.process_time()
            out = evaluate()
            spent = time.process_time() - begin - cost.waited
        self.busy = False
        self.kinds[kind].cpu += spent
        self.waited += cost.waited
        self.kinds[kind].work += cost.work
        counts = {key: getattr(cost, key) for key in vars(cost) if key not in ("bytes", "waited")}
        count(**counts, sent=cost.bytes)
        return out


@dataclass(frozen=True)
class Metered(Around):
    """An objective whose evaluations are metered."""

    meter: Meter
    kind: str

    @property
    def batched(self) -> bool:
        """Whether it takes a batch of vectors."""
        return bool(getattr(self.f, "batched", False))

    def value(self, x: Any) -> Any:
        """Return the value."""
        return self.meter(self.kind, lambda: self.f.value(x))

    def gradient(self, x: Any) -> Any:
        """Return the gradient."""
        return self.meter(self.kind, lambda: self.f.gradient(x))

    def value_and_gradient(self, x: Any) -> Any:
        """Return both."""
        return self.meter(self.kind, lambda: value_and_gradient(self.f, x))

    def hessian_product(self, x: Any, v: Any) -> Any:
        """Return the product."""
        return self.meter(self.kind, lambda: super(Metered, self).hessian_product(x, v))

    def hessian(self, x: Any) -> AroundHessian:
        """Return the Hessian at a point."""
        return AroundHessian(self.meter(self.kind, lambda: hessian(self.f, x)), partial(self.meter, self.kind))


@dataclass(frozen=True)
class StochasticMetered(Metered):
    """So are those of its samples."""

    def sample(self, step: int) -> Metered:
        """Return the sample of a step."""
        return Metered(self.meter(self.kind, lambda: sampled(self.f, step)), self.meter, self.kind)


def metered(f: Any, meter: Meter, kind: str) -> Metered:
    """Return the objective with a meter around it."""
    return (StochasticMetered if hasattr(f, "sample") else Metered)(f, meter, kind)


class MeteredPreparation(Preparation):
    """Subdomains and levels whose objectives are metered."""

    meter: Meter

    def hierarchy(self, levels: int, parts: int | None = None) -> Hierarchy:
        """Return the levels, the coarse ones metered."""
        fine, *coarse = super().hierarchy(levels, parts).levels
        return Hierarchy((fine, *(replace(c, objective=metered(c.objective, self.meter, "coarse")) for c in coarse)))

    def decomposition(self, parts: int, overlap: int) -> Any:
        """Return the subdomains, their making and their local models metered."""
        plain = super().decomposition(parts, overlap)

        def build(d: Any, f: Any, x: Any, g: Any) -> Any:
            bare = next(layer for layer in layers_of(f) if not isinstance(layer, Metered | Remembered))
            models = self.meter("local", lambda: plain.build(d, bare, x, g))
            return metered(models, self.meter, "local")

        return replace(plain, build=build)


def run(text: str, line: str, prices: str, comm: Communicator, wire: Wire) -> dict[str, Any]:
    """Run a solver for some steps; return what this rank has counted and measured."""
    words = ["train", text, "--solver", *line.split(), "--steps", str(STEPS), "--prices", prices]
    options = parse(words)
    problem = build_problem(problem_spec(text), options, 0, comm)
    preparation = MeteredPreparation(problem, 0, comm, prices == "measured")
    preparation.meter = meter = Meter()
    solver = Builder(options, preparation).solver(solver_spec(options.solver))
    alone = build_problem(problem_spec(text), options, 0, SERIAL)

    def unit_now() -> float:
        return unit_of(alone.objective(), alone.initial(0), lambda v: v, lambda v: v)

    f, x = preparation.objective, preparation.start
    fine = metered(f, meter, "fine")
    begin = time.process_time()
    minimise(fine, x, solver, stop=Stop(STEPS), comm=comm)  # what is made lazily, and memory that is touched first
    once = max(comm.gather_items(time.process_time() - begin))
    repeats = min(MOST, 1 + int(ENOUGH / once))
    meter.kinds, meter.waited = {kind: Spent() for kind in KINDS}, 0.0
    before, begin = unit_now(), time.process_time()
    for _ in range(repeats):
        wire.vectors = wire.scalars = wire.bytes = 0
        result = minimise(fine, x, solver, stop=Stop(STEPS), comm=comm)
    cpu = (time.process_time() - begin - meter.waited) / repeats
    unit = 0.5 * (before + unit_now())  # processors do not run at one speed
    kinds = {kind: (spent.work / repeats, spent.cpu / unit / repeats) for kind, spent in meter.kinds.items()}
    wired = {"vectors": wire.vectors, "scalars": wire.scalars, "bytes": wire.bytes}
    return {"cost": asdict(result.record.cost), "kinds": kinds, "wire": wired, "run": cpu / unit, "unit": unit}


def row(text: str, line: str, prices: str, comm: Communicator, wire: Wire) -> dict[str, Any]:
    """Return one row of the table: counted, measured, and their ratios, over all ranks."""
    mine = run(text, line, prices, comm, wire)
    ranks, cost = comm.gather_items(mine), mine["cost"]
    measured = [sum(m for _, m in rank["kinds"].values()) for rank in ranks]
    kinds = {k: [sum(rank["kinds"][k][j] for rank in ranks) for j in (0, 1)] for k in KINDS}
    by_kind = {k: counted / spent for k, (counted, spent) in kinds.items() if counted > 0}
    row = {"problem": text, "solver": line, "ranks": comm.ranks, "prices": prices, **cost}
    row |= {"measured_units": max(measured), "measured_total": sum(measured), "run_total": sum(r["run"] for r in ranks)}
    row |= {"ratio_units": cost["work_units"] / max(measured), "ratio_total": cost["work_total"] / sum(measured)}
    row |= {f"ratio_{k}": by_kind.get(k) for k in KINDS}
    row |= {f"wired_{k}": ranks[0]["wire"][k] for k in ("vectors", "scalars")}
    return row | {"wired_bytes": sum(r["wire"]["bytes"] for r in ranks), "unit_ms": 1e3 * mine["unit"]}


HEAD = "problem solver ranks work ratio total ratio fine coarse local vectors scalars".split()
WIDTHS = (44, 32, 5, 8, 5, 8, 5, 5, 6, 5, 7, 7)


def shown(row: dict[str, Any]) -> str:
    """Return a row for people; calls are counted/wired."""
    numbers = [row["work_units"], row["ratio_units"], row["work_total"], row["ratio_total"]]
    kinds = ["-" if row[f"ratio_{k}"] is None else f"{row[f'ratio_{k}']:.2f}" for k in KINDS]
    pairs = (("synchronisations", "vectors"), ("scalar_synchronisations", "scalars"))
    calls = [f"{row[counted]}/{row[f'wired_{name}']}" for counted, name in pairs]
    cells = [row["problem"][:44], row["solver"][:32], row["ranks"], *(f"{n:.2f}" for n in numbers), *kinds, *calls]
    return _line(cells)


def _line(cells: Any) -> str:
    return "  ".join(str(cell).ljust(width) for cell, width in zip(cells, WIDTHS, strict=True))


def save(path: Path, rows: list[dict[str, Any]]) -> None:
    """Put the rows in the file, in the place of older ones of the same cases."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else []
    keys = ("problem", "solver", "ranks", "prices")
    new = {tuple(r[k] for k in keys): r for r in [*old, *rows]}
    with replacing(path) as to:
        to.write_text(json.dumps(list(new.values()), indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Run all cases on the ranks that there are."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", nargs="+", default=[""], help="beginnings of the problems' names")
    parser.add_argument("--prices", choices=("estimated", "measured"), default="estimated")
    parser.add_argument("--out", type=Path, default=Path("paper/results/books.json"))
    options = parser.parse_args()
    comm, wire = world(), Wire()
    prepare(comm)
    if comm.ranks > 1:
        comm = Communicator(Watched(comm.mpi, wire), comm.reports)
    rows = []
    if comm.rank == 0:
        print(_line(HEAD), flush=True)
    for text, solvers in CASES.items():
        for line in solvers if text.startswith(tuple(options.cases)) else ():
            if comm.ranks > 3 and "--parts 3" in line:  # every rank needs a subdomain
                continue
            rows.append(row(text, line, options.prices, comm, wire))
            if comm.rank == 0:
                print(shown(rows[-1]), flush=True)
                save(options.out, rows)


if __name__ == "__main__":
    main()
