"""What a step costs beside its gradients: step time / (work units x bare gradient), CPU time, one thread.

    python experiments/benchmarks/overhead.py [--repeats 5] [--solvers aspqn,apts] [--largest 2110858]

The bare gradient is plain torch on the same data: zero the gradients, forward, loss, backward. Both are timed in turn,
block by block, and the ratio is the median over blocks, so that a machine that changes its speed changes both. The loop
`minimise` is included (measure, stopping test, records), values for the user are not computed. Subdomains are two runs
of layers; for apts, localsgd and diloco the two halves of the samples, in one batch. The products of raspen are counted
as two gradients each; the two largest networks are too large for its dense local Hessians and take no part.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor

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

# inputs, hidden widths, samples, steps per block
SIZES = (
    (32, (48, 24), 1400, 60),
    (64, (128, 64), 1400, 40),
    (784, (256, 128), 4000, 4),
    (784, (1024, 1024, 128), 4000, 1),
)
# Solvers whose step does many gradients do fewer steps.
SLOWER = {"aspqn": 10, "mspqn": 10, "raspen": 20, "schwarz": 5, "apts": 4, "localsgd": 5, "diloco": 5}
RATE = {"rate": 0.01, "varsigma": 1e-3}


def bare(f: Classification, inputs: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    """Return one gradient of the same network in plain torch."""
    layers: list[torch.nn.Module] = []
    for a, b in zip(f.net.widths, f.net.widths[1:], strict=False):
        layers += [torch.nn.Linear(a, b), torch.nn.Tanh()]
    module, loss = torch.nn.Sequential(*layers[:-1]), torch.nn.CrossEntropyLoss()

    def gradient() -> None:
        module.zero_grad()
        loss(module(inputs), labels).backward()

    return gradient


def halves(f: Classification) -> SharedDecomposition:
    """Return the two halves of the samples as subdomains that update all parameters."""
    inputs, labels = (t.unflatten(0, (2, -1)) for t in (f.inputs, f.labels))
    both = Classification(f.net, inputs, labels, inputs.shape[1], Price(0.5, fine=False), None)

    def build(d: SharedDecomposition, objective: Objective, x: Tensor, g: Tensor | None) -> Objective:
        y0 = d.gather(x)
        return both if g is None else Corrected(both, g - both.gradient(y0), y0)

    return SharedDecomposition(f.size, 2, build, None, range(2), blocks=f.net.layout.slices)


def solvers(f: Classification, half: Classification) -> dict[str, Any]:
    """Return the solvers: one level, two levels of data, two subdomains of layers or of data."""
    levels = Hierarchy((Level(f), Level(half, Identity(f.size), 0.5)))
    layers, data = index_decomposition(f, contiguous(f.sizes, 2)), halves(f)
    first_order = AdaGrad(**RATE, curvature="none")
    mofftr = AdaGrad(0.1, 0.01, curvature="none")
    made = {
        "adam": Adam(lr=1e-3),
        "lbfgs": LBFGS(),
        "trust-region": TrustRegion(),
        "adagrad": first_order,
        "ml-adagrad": MultilevelAdaGrad(levels, first_order, Recursion(steps=5)),
        "mofftr": Mofftr(levels, mofftr, Recursion(steps=5)),
        "dd-adagrad": SchwarzAdaGrad(layers, local=first_order, local_steps=3, global_steps=1),
        "schwarz": NonlinearSchwarz(layers, local_steps=3, damping=0.5),
        "aspqn": SchwarzLBFGS(layers, local_steps=10),
        "mspqn": SchwarzLBFGS(layers, order="multiplicative", local_steps=10),
        "apts": Apts(data),
        "localsgd": LocalSgd(data, Sgd(0.01)),
        "diloco": DiLoCo(data),
    }
    if f.size < 20_000:
        made["raspen"] = Raspen(layers, mu=1.0, local_steps=3, krylov=Krylov(steps=10))
    return made


def cpu(task: Callable[[], Any]) -> tuple[float, Any]:
    """Return CPU seconds and the result."""
    begin = time.process_time()
    result = task()
    return time.process_time() - begin, result


def ratios(f: Classification, gradient: Callable[[], None], solver: Any, steps: int, repeats: int) -> list[float]:
    """Return medians: bare gradient and step in ms, work units per step, ratio."""
    x = f.initial(0).float()

    def block() -> tuple[float, float, float, float]:
        alone = cpu(lambda: [gradient() for _ in range(steps)])[0] / steps
        total, result = cpu(lambda: minimise(f, x, solver, stop=Stop(steps)))
        work = result.record.cost.work_units
        return 1e3 * alone, 1e3 * total / steps, work / steps, total / (work * alone)

    blocks = [block() for _ in range(repeats + 1)][1:]
    return [median(column) for column in zip(*blocks, strict=True)]


def main() -> None:
    """Print one row per size and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--solvers", default="", help="only these, separated by commas")
    parser.add_argument("--largest", type=int, default=10**9, help="most parameters")
    options = parser.parse_args()
    prepare(SERIAL)
    torch.set_num_threads(1)
    print(f"{'parameters':>10} {'solver':<12} {'bare ms':>8} {'ms/step':>8} {'work/step':>9} {'ratio':>6}")
    for inputs, hidden, samples, steps in SIZES:
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(samples, inputs, generator=generator)
        y = torch.randint(10, (samples,), generator=generator)
        f = Classification.of(X, y, hidden)
        half = Classification.of(X[: samples // 2], y[: samples // 2], hidden, price=Price(0.5, fine=False))
        for name, solver in solvers(f, half).items() if f.size <= options.largest else ():
            if options.solvers and name not in options.solvers.split(","):
                continue
            row = ratios(f, bare(f, X, y), solver, max(1, steps // SLOWER.get(name, 1)), options.repeats)
            print("{:>10} {:<12} {:>8.2f} {:>8.2f} {:>9.2f} {:>6.3f}".format(f.size, name, *row), flush=True)


if __name__ == "__main__":
    main()
