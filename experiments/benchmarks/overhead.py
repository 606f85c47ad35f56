"""What a step costs beside its gradients: step time / (work units x bare gradient), CPU time, one thread.

    python experiments/benchmarks/overhead.py [--repeats 7]

The bare gradient is plain torch on the same data: zero the gradients, forward, loss, backward. Both are timed in turn,
block by block, and the ratio is the median over blocks, so that a machine that changes its speed changes both. The loop
`minimise` is included (measure, stopping test, records), values for the user are not computed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch

from mldd import Stop, minimise
from mldd.cost import Price
from mldd.decomposition import contiguous, index_decomposition
from mldd.hierarchy import Hierarchy, Level
from mldd.parallel import SERIAL, prepare
from mldd.problems.dense import Classification
from mldd.solvers.adagrad import AdaGrad
from mldd.solvers.baselines import Adam
from mldd.solvers.recursive import MultilevelAdaGrad
from mldd.solvers.schwarz import SchwarzAdaGrad
from mldd.transfer import Identity

# inputs, hidden widths, samples, steps per block
SIZES = ((64, (128, 64), 1400, 60), (784, (256, 128), 4000, 6), (784, (1024, 1024, 128), 4000, 2))
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


def solvers(f: Classification, half: Classification) -> dict[str, Any]:
    """Return the solvers: one level, two levels of data, two subdomains of layers."""
    levels = Hierarchy((Level(f), Level(half, Identity(f.size), 0.5)))
    layers = contiguous(f.sizes, 2)
    return {
        "adam": Adam(lr=1e-3),
        "adagrad": AdaGrad(curvature="none", **RATE),
        "ml-adagrad": MultilevelAdaGrad(levels, curvature="none", coarse_steps=5, **RATE),
        "dd-adagrad": SchwarzAdaGrad(
            index_decomposition(f, layers), local_steps=3, global_steps=1, curvature="none", **RATE
        ),
    }


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
        work = result.record.work_units
        return 1e3 * alone, 1e3 * total / steps, work / steps, total / (work * alone)

    blocks = [block() for _ in range(repeats + 1)][1:]
    return [median(column) for column in zip(*blocks, strict=True)]


def main() -> None:
    """Print one row per size and solver."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    prepare(SERIAL)
    torch.set_num_threads(1)
    print(f"{'parameters':>10} {'solver':<11} {'bare ms':>8} {'ms/step':>8} {'work/step':>9} {'ratio':>6}")
    for inputs, hidden, samples, steps in SIZES:
        generator = torch.Generator().manual_seed(0)
        X = torch.randn(samples, inputs, generator=generator)
        y = torch.randint(10, (samples,), generator=generator)
        f = Classification.of(X, y, hidden)
        half = Classification.of(X[: samples // 2], y[: samples // 2], hidden, price=Price(0.5, fine=False))
        for name, solver in solvers(f, half).items():
            row = ratios(f, bare(f, X, y), solver, steps, repeats)
            print("{:>10} {:<11} {:>8.2f} {:>8.2f} {:>9.2f} {:>6.3f}".format(f.size, name, *row), flush=True)


if __name__ == "__main__":
    main()
