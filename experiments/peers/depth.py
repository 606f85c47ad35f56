"""B4: how soon does a deep network fit a sine when its levels are depths?

    OMP_NUM_THREADS=1 python -m experiments.peers.depth [--quick] [--seeds 0 1 2] [--methods A B]

``y = sin(4 pi x)`` at 1,000 points of (0, 1); 16 residual steps of width 32, ``y_{l+1} = y_l + tanh(W_l y_l + b_l) /
4``, mini-batches of 50 in a drawn order that every epoch has anew, or full batches where a name says so. Levels are
networks of 16, 8 and 4 steps; a coarse step is copied to two fine ones. Targets are mean squares over all points.
torchbraid's MG/Opt is recorded, after a nested iteration of 2.4 s that is part of its time; its network has a linear
opening layer and tanh steps as ours, its last layer another start.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from experiments.gratton2023multilevel.depth import copies
from experiments.machine import Need
from experiments.peers.benchmark import Benchmark, Outside
from experiments.peers.plain import torch_lbfgs
from experiments.peers.race import Budget, Method, Task, first_order, ours
from mldd.algebra import (
    Hierarchy,
    Level,
    ModuleObjective,
    Objective,
    Price,
    Stochastic,
    contiguous,
    index_decomposition,
)
from mldd.ranks import SERIAL, Communicator
from mldd.solvers import LBFGS, AdaGrad, Adam, Mofftr, MultilevelAdaGrad, MultilevelLBFGS, Recursion, SchwarzLBFGS

STEPS, WIDTH, POINTS, BATCH = 16, 32, 1000, 50
X = torch.linspace(0.0, 1.0, POINTS, dtype=torch.float64)[:, None]
Y = torch.sin(4 * math.pi * X)


class Net(torch.nn.Module):
    """Linear, residual steps, linear."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.first, self.last = torch.nn.Linear(1, WIDTH), torch.nn.Linear(WIDTH, 1)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(steps))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the outputs."""
        y = torch.tanh(self.first(x))
        for block in self.blocks:
            y = y + torch.tanh(block(y)) * (4.0 / len(self.blocks))
        out: torch.Tensor = self.last(y)
        return out


def batch(step: int) -> torch.Tensor:
    """Return the points of a step: a piece of the epoch's permutation."""
    epoch, piece = divmod(step, POINTS // BATCH)
    order = torch.randperm(POINTS, generator=torch.Generator().manual_seed(epoch))
    return order[piece * BATCH : (piece + 1) * BATCH]


@dataclass(frozen=True)
class Sine:
    """The problem.

    Parameters
    ----------
    full : bool
        Full batches.
    """

    full: bool = False
    comm: Communicator = SERIAL

    def level(self, k: int) -> tuple[Net, Objective]:
        """Return the network and the loss of level k."""
        torch.manual_seed(0)
        net = Net(STEPS >> k).double()
        share = (STEPS >> k) / STEPS

        def of(rows: torch.Tensor | None) -> ModuleObjective:
            x, y = (X, Y) if rows is None else (X[rows], Y[rows])
            price = Price(share * len(x) / POINTS, fine=k == 0)
            return ModuleObjective(net, lambda m: torch.nn.functional.mse_loss(m(x), y), price=price)

        whole = of(None)
        return net, whole if self.full else Stochastic(whole, lambda step: of(batch(step)))

    @cached_property
    def levels(self) -> list[tuple[Net, Objective]]:
        """Three depths."""
        return [self.level(k) for k in range(3)]

    def objective(self) -> Objective:
        """Return the loss."""
        return self.levels[0][1]

    def initial(self, seed: int = 0) -> torch.Tensor:
        """Return the parameters that torch draws."""
        torch.manual_seed(seed)
        return torch.nn.utils.parameters_to_vector(Net(STEPS).double().parameters()).detach()

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the first levels."""
        nets = self.levels[:levels]
        return Hierarchy(
            tuple(
                Level(f, copies(nets[k - 1][0], net) if k else None, 0.5**k)  # type: ignore[arg-type]
                for k, (net, f) in enumerate(nets)
            )
        )

    def decomposition(self, parts: int) -> Any:
        """Return runs of tensors."""
        sizes = [p.numel() for p in self.levels[0][0].parameters()]
        return index_decomposition(self.objective(), contiguous(sizes, parts))


def loss(problem: Sine) -> Callable[[torch.Tensor], float]:
    """Return the mean square over all points."""
    f = Sine(full=True).objective()
    return lambda x: float(f.value(x))


TASK = Task(
    "sine",
    lambda comm: Sine(comm=comm),
    loss,
    (1e-1, 1e-2, 2e-3, 1e-4),
    Need(6.0 * POINTS * (STEPS * WIDTH**2 + 2 * WIDTH)),
    budget=Budget(3.0, pause=0.05),
)
RATES = (1e-3, 3e-3, 1e-2)
ADAGRAD = (0.003, 0.01, 0.03, 0.1)


def methods(task: Task) -> dict[str, Method]:
    """Return the methods."""

    def multilevel(levels: int, **changes: Any) -> Method:
        return ours(
            lambda p, rate: MultilevelAdaGrad(p.hierarchy(levels), first_order(rate), Recursion(steps=5)),
            ADAGRAD,
            **changes,
        )

    full = {"full": True}
    return {
        "adam": ours(lambda p, rate: Adam(rate), RATES),
        "adagrad": ours(lambda p, rate: first_order(rate), ADAGRAD),
        "ml-adagrad, 2 levels": multilevel(2),
        "ml-adagrad, 3 levels": multilevel(3),
        "mofftr, 3 levels": ours(lambda p, rate: Mofftr(p.hierarchy(3), AdaGrad(0.1, rate, curvature="none")), ADAGRAD),
        "lbfgs, full": ours(lambda p, rate: LBFGS(), **full),
        "torch lbfgs, full": torch_lbfgs(full=True),
        "ml-lbfgs, full, 3 levels": ours(lambda p, rate: MultilevelLBFGS(p.hierarchy(3)), **full),
        "aspqn, full": ours(lambda p, rate: SchwarzLBFGS(p.decomposition(2)), **full),
        "mspqn, full": ours(lambda p, rate: SchwarzLBFGS(p.decomposition(4), order="multiplicative"), **full),
    }


# Of our notes on torchbraid 29b42ce: 1 rank, wall time; reached at that time or before, nested iteration included.
RECORDED = (
    {"problem": "sine", "method": "torchbraid MG/Opt, 2 levels", "target": 2e-3, "cpu": 6.9, "source": "recorded"},
    {"problem": "sine", "method": "torchbraid MG/Opt, 3 levels", "target": 1e-1, "cpu": 8.8, "source": "recorded"},
)
BENCHMARK = Benchmark(
    __file__,
    (TASK,),
    methods,
    ("ml-lbfgs, full, 3 levels",),
    110.0,
    {"torchbraid": Outside(None, RECORDED)},
    "mean square",
)


def main() -> None:
    """Run all methods."""
    BENCHMARK.command()


if __name__ == "__main__":
    main()
