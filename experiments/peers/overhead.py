"""B8: what a step costs beside its gradients: step time / (gradients x time of a bare gradient).

    OMP_NUM_THREADS=1 python -m experiments.peers.overhead [--quick] [--methods aspqn apts] [--sizes 3010 17226]

The bare gradient is plain torch on the same data: zero the gradients, forward, loss, backward. Both are timed in turn,
block by block, in CPU time of one thread, and the ratio is the median over blocks, so that a machine that changes its
speed changes both. The loop `minimise` is included (measure, stopping test, records). Subdomains are two runs of
layers; for apts, localsgd and diloco the two halves of the samples, in one batch. The products of raspen are counted as
two gradients each; large networks are too large for its dense local Hessians. "torch adam" and "torch lbfgs" are
torch's own optimisers on the same module, without a loop around them. DD4ML's figures are recorded: 2 ranks, 17,226 and
235,146 parameters, first order and L-SSR1.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

from experiments.gpu.device import Device
from experiments.machine import processor
from experiments.study import PACKAGES, last_commit, read, shown, version_of, write
from mldd import Stop, minimise
from mldd.algebra import (
    Corrected,
    Hierarchy,
    Identity,
    Level,
    Objective,
    Price,
    SharedDecomposition,
    contiguous,
    index_decomposition,
)
from mldd.problems.nets import Classification
from mldd.ranks import SERIAL, prepare
from mldd.solvers import (
    LBFGS,
    AdaGrad,
    Adam,
    Apts,
    DiLoCo,
    Krylov,
    LocalSgd,
    Mofftr,
    MultilevelAdaGrad,
    NonlinearSchwarz,
    Raspen,
    Recursion,
    SchwarzAdaGrad,
    SchwarzLBFGS,
    Sgd,
    TrustRegion,
)

Row = dict[str, Any]
CODE = ["mldd", "problems", "solvers", "experiments/peers/overhead.py"]
HEAD = {
    "command": "python -m experiments.peers.overhead",
    "processor": processor().rpartition(", load")[0],
    "versions": json.dumps({name: version_of(name) for name in PACKAGES}),
}


@dataclass(frozen=True)
class Size:
    """A network and its data.

    Parameters
    ----------
    inputs : int
    hidden : tuple of int
    samples : int
    steps : int
        Of a block.
    """

    inputs: int
    hidden: tuple[int, ...]
    samples: int
    steps: int


SIZES = {
    3_010: Size(32, (48, 24), 1400, 60),
    17_226: Size(64, (128, 64), 1400, 40),
    235_146: Size(784, (256, 128), 4000, 4),
    1_985_930: Size(784, (1024, 1024, 128), 4000, 1),
    10_068_810: Size(784, (2800, 2800), 2000, 1),
    98_156_786: Size(784, (8192, 8192, 3000), 512, 1),
}
ON_A_CPU = list(SIZES)[:4]
# Solvers whose step does many gradients do fewer steps.
SLOWER = {"aspqn": 10, "mspqn": 10, "raspen": 20, "schwarz": 5, "apts": 4, "localsgd": 5, "diloco": 5}
RATE = {"rate": 0.01, "varsigma": 1e-3}
RECORDED = (
    ("dd4ml, first order", 17226, 22.7, 7.0, 3.3),
    ("dd4ml, sr1", 17226, 67.7, 9.2, 7.5),
    ("dd4ml, first order", 235146, 621.0, 7.0, 1.08),
    ("dd4ml, sr1", 235146, 1672.0, 16.1, 1.27),
)


@dataclass(frozen=True)
class Bare:
    """The same network in plain torch, and its gradient."""

    module: torch.nn.Module
    inputs: Tensor
    labels: Tensor

    @staticmethod
    def of(f: Classification) -> Bare:
        """Return the network of a loss."""
        layers: list[torch.nn.Module] = []
        for a, b in zip(f.net.widths, f.net.widths[1:], strict=False):
            layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
        return Bare(torch.nn.Sequential(*layers[:-1]).to(f.inputs.device), f.inputs, f.labels)

    def gradient(self) -> Tensor:
        """Evaluate loss and gradient."""
        self.module.zero_grad()
        loss = torch.nn.functional.cross_entropy(self.module(self.inputs), self.labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss


def problem(size: Size, device: str = "cpu") -> tuple[Classification, Classification]:
    """Return the loss over random samples, and that over the first half of them."""
    generator = torch.Generator().manual_seed(0)
    X = torch.randn(size.samples, size.inputs, generator=generator).to(device)
    y = torch.randint(10, (size.samples,), generator=generator).to(device)
    half = size.samples // 2
    return Classification.of(X, y, size.hidden), Classification.of(
        X[:half], y[:half], size.hidden, price=Price(0.5, fine=False)
    )


def halves(f: Classification) -> SharedDecomposition:
    """Return the two halves of the samples as subdomains that update all parameters."""
    inputs, labels = (t.unflatten(0, (2, -1)) for t in (f.inputs, f.labels))

    @cache
    def of(parts: range) -> Classification:
        chosen = slice(parts.start, parts.stop)
        return Classification(f.net, inputs[chosen], labels[chosen], inputs.shape[1], Price(0.5, fine=False), None)

    def build(d: SharedDecomposition, objective: Objective, x: Tensor, g: Tensor | None) -> Objective:
        y0, local = d.gather(x), of(d.local)
        return local if g is None else Corrected(local, g - local.gradient(y0), y0)

    return SharedDecomposition(f.size, 2, build, None, range(2), blocks=f.net.layout.slices)


def solvers(f: Classification, half: Classification) -> dict[str, Callable[[], Any]]:
    """Return what makes the solvers: one level, two levels of data, two subdomains of layers or of data."""
    first_order, mofftr = AdaGrad(**RATE, curvature="none"), AdaGrad(0.1, 0.01, curvature="none")

    def levels() -> Hierarchy:
        return Hierarchy((Level(f), Level(half, Identity(f.size), 0.5)))

    def layers() -> Any:
        return index_decomposition(f, contiguous(f.sizes, 2))

    made: dict[str, Callable[[], Any]] = {
        "adam": lambda: Adam(lr=1e-3),
        "lbfgs": LBFGS,
        "trust region": TrustRegion,
        "adagrad": lambda: first_order,
        "ml-adagrad": lambda: MultilevelAdaGrad(levels(), first_order, Recursion(steps=5)),
        "mofftr": lambda: Mofftr(levels(), mofftr, Recursion(steps=5)),
        "dd-adagrad": lambda: SchwarzAdaGrad(layers(), local=first_order, local_steps=3, global_steps=1),
        "schwarz": lambda: NonlinearSchwarz(layers(), local_steps=3, damping=0.5),
        "aspqn": lambda: SchwarzLBFGS(layers(), local_steps=10),
        "mspqn": lambda: SchwarzLBFGS(layers(), order="multiplicative", local_steps=10),
        "apts": lambda: Apts(halves(f)),
        "localsgd": lambda: LocalSgd(halves(f), Sgd(0.01)),
        "diloco": lambda: DiLoCo(halves(f)),
    }
    if f.size < 20_000:
        made["raspen"] = lambda: Raspen(layers(), mu=1.0, local_steps=3, krylov=Krylov(steps=10))
    return made


def of_torch(bare: Bare) -> dict[str, Callable[[int], float]]:
    """Return runs of torch's own optimisers: so many steps, and how many gradients they took."""

    def adam(steps: int) -> float:
        optimizer = torch.optim.Adam(bare.module.parameters(), 1e-3, fused=True)
        for _ in range(steps):
            bare.gradient()
            optimizer.step()
        return float(steps)

    def lbfgs(steps: int) -> float:
        options: dict[str, Any] = {"history_size": 10, "line_search_fn": "strong_wolfe", "max_iter": steps}
        optimizer = torch.optim.LBFGS(bare.module.parameters(), tolerance_grad=0.0, tolerance_change=0.0, **options)
        count = 0

        def closure() -> Tensor:
            nonlocal count
            count += 1
            return bare.gradient()

        optimizer.step(closure)  # type: ignore[no-untyped-call]
        return float(count)

    return {"torch adam": adam, "torch lbfgs": lbfgs}


def of_mldd(f: Classification, solver: Any) -> Callable[[int], float]:
    """Return runs of a solver."""
    x = f.initial(0).to(f.inputs)

    def run(steps: int) -> float:
        return minimise(f, x, solver, stop=Stop(steps), values=False).record.cost.work_units

    return run


def ratios(bare: Bare, run: Callable[[int], float], steps: int, repeats: int, device: Device) -> Row:
    """Return medians over blocks: bare gradient and step in ms, gradients per step, ratio."""

    def block() -> tuple[float, float, float, float]:
        alone = device.once(lambda: [bare.gradient() for _ in range(steps)])[0] / steps
        total, work = device.once(lambda: run(steps))
        return 1e3 * alone, 1e3 * total / steps, work / steps, total / (work * alone)

    blocks = [block() for _ in range(repeats + 1)][1:]
    names = ("bare_ms", "step_ms", "gradients_per_step", "ratio")
    return dict(zip(names, (median(column) for column in zip(*blocks, strict=True)), strict=True))


def runs_of(f: Classification, half: Classification, bare: Bare) -> dict[str, Callable[[], Callable[[int], float]]]:
    """Return what makes the runs of all methods."""
    ours = {name: (lambda make=make: of_mldd(f, make())) for name, make in solvers(f, half).items()}
    return ours | {name: (lambda run=run: run) for name, run in of_torch(bare).items()}


def rows(
    sizes: list[int],
    wanted: list[str] | None,
    repeats: int,
    device: Device,
    there: Collection[tuple[str, str]] = (),
) -> Iterator[Row]:
    """Yield a row per size and method that is not there, until the time of the device is up."""
    for key in sizes:
        f, half = problem(SIZES[key], device.name)
        bare = Bare.of(f)
        for name, make in runs_of(f, half, bare).items():
            is_there = (str(f.size), name) in there
            if (wanted is None or name in wanted) and not is_there and not device.is_late:
                steps = max(1, SIZES[key].steps // SLOWER.get(name, 1))
                row: Row = {"parameters": f.size, "method": name}
                yield row | ratios(bare, make(), steps, repeats, device)


def recorded() -> Iterator[Row]:
    """Yield what was recorded of peers."""
    for name, parameters, step, gradients, ratio in RECORDED:
        row: Row = {"parameters": parameters, "method": name, "bare_ms": math.nan, "step_ms": step}
        yield row | {"gradients_per_step": gradients, "ratio": ratio, "source": "recorded", "commit": ""}


def main() -> None:
    """Print and write one row per size and method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="the smallest network, three methods")
    parser.add_argument("--methods", nargs="+")
    parser.add_argument("--sizes", nargs="+", type=int, choices=list(SIZES), default=ON_A_CPU)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--fresh", action="store_true", help="do not continue what is there")
    parser.add_argument("--out", type=Path, default=Path("runs/peers"))
    options = parser.parse_args()
    if options.quick:
        options.methods, options.sizes, options.repeats = ["adam", "lbfgs", "torch adam"], ON_A_CPU[:1], 1
    prepare(SERIAL)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    path, commit = options.out / "overhead.csv", last_commit(CODE)
    found: list[Row] = [] if options.fresh or not path.exists() else measured_in(path)
    there = {(str(row["parameters"]), row["method"]) for row in found}
    device = Device("cpu", end=math.inf)
    for row in rows(options.sizes, options.methods, options.repeats, device, there):
        found.append(row | {"source": "measured", "commit": commit})
        write(path, HEAD, [*found, *recorded()])
        print("  ".join(f"{name} {shown(value)}" for name, value in row.items()), flush=True)
    print(f"written  {path}")


def measured_in(path: Path) -> list[Row]:
    """Return the rows of a file that were not recorded."""
    return [row for row in read(path)[1] if row["source"] == "measured"]


if __name__ == "__main__":
    main()
