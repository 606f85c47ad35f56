"""MOFFTR on residual networks whose levels are depths: work to a loss with exact and noisy gradients.

    python -m experiments.gratton2023multilevel.depth [--quick] [--data digits] [--levels 1 2 3 4] [--noise 0 0.1]

A residual network is ``y_{l+1} = y_l + (T / L) tanh(W_l y_l + b_l)``, L steps of time; every coarser level has half as
many, and its parameters are prolonged by copies to two steps each (as in arXiv 2107.07572). Single-level steps are
those of ASTR1 (AdaGrad without momentum); noise is relative and Gaussian on every component of every gradient, as in
arXiv 2203.01647. Architectures, data and numbers of arXiv 2302.07049 are not at hand: this is our reference run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from experiments.images import images_of
from experiments.operators import Residual
from experiments.study import Case, Picture, Study, minimise
from mldd import Bounds, Stop
from mldd.algebra import Hierarchy, Level, MatrixTransfer, ModuleObjective, Noisy, Price
from mldd.loop import Result
from mldd.ranks import Communicator
from mldd.solvers import AdaGrad, Mofftr, Recursion

TARGETS = (1.0, 0.5, 0.2, 0.1)


@dataclass(frozen=True)
class Config:
    """Network, noise, levels and steps."""

    data: str = "digits"
    blocks: int = 8
    width: int = 32
    horizon: float = 4.0
    levels: tuple[int, ...] = (1, 2, 3, 4)
    noise: tuple[float, ...] = (0.0, 0.15, 0.5)
    seeds: tuple[int, ...] = (0, 1, 2)
    rate: float = 0.03
    coarse_steps: int = 5
    steps: int = 400


def copies(fine: torch.nn.Module, coarse: torch.nn.Module) -> MatrixTransfer:
    """Return the prolongation that copies every coarse block to two fine ones and keeps the other layers."""
    columns = {name: k for k, (name, _) in enumerate(coarse.named_parameters())}
    starts, at = [], 0
    for parameter in coarse.parameters():
        starts.append(at)
        at += parameter.numel()
    found = []
    for name, parameter in fine.named_parameters():
        of = re.sub(r"blocks\.(\d+)", lambda match: f"blocks.{int(match[1]) // 2}", name)
        found.append(starts[columns[of]] + torch.arange(parameter.numel()))
    column = torch.cat(found)
    entries = torch.stack([torch.arange(len(column)), column])
    ones = torch.ones(len(column), dtype=torch.float64)
    return MatrixTransfer(torch.sparse_coo_tensor(entries, ones, (len(column), at), check_invariants=True).coalesce())


def depth_hierarchy(
    nets: list[torch.nn.Module], loss: Callable[[torch.nn.Module], torch.Tensor], shares: list[float], box: float
) -> Hierarchy:
    """Return the losses of networks, each of half the depth of the one before; all parameters lie in [-box, box]."""
    made = []
    for k, (net, share) in enumerate(zip(nets, shares, strict=True)):
        size = sum(p.numel() for p in net.parameters())
        bounds = Bounds(*(torch.full((size,), sign * box, dtype=torch.float64) for sign in (-1, 1)), box == math.inf)
        f = ModuleObjective(net, loss, bounds, Price(share, fine=k == 0))
        made.append(Level(f, copies(nets[k - 1], net) if k else None, share))
    return Hierarchy(tuple(made))


def residual_hierarchy(
    data: str, sizes: tuple[int, int, float], levels: int, seed: int, box: float = math.inf
) -> Hierarchy:
    """Return the losses of residual networks of L, L / 2, L / 4, ... steps on images."""
    width, blocks, horizon = sizes
    images, labels, test = images_of(data)
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    x, y = images[train], labels[train]
    torch.manual_seed(seed)
    nets: list[torch.nn.Module] = [
        Residual(images.shape[1], width, blocks >> k, horizon).double() for k in range(levels)
    ]

    def loss(module: torch.nn.Module) -> torch.Tensor:
        return torch.nn.functional.cross_entropy(module(x), y)

    return depth_hierarchy(nets, loss, [(2 + (blocks >> k)) / (2 + blocks) for k in range(levels)], box)


def noisy(hierarchy: Hierarchy, noise: float, seed: int) -> Hierarchy:
    """Return the hierarchy with noise on the gradients of all levels."""
    if noise == 0.0:
        return hierarchy
    made = (
        replace(level, objective=Noisy(level.objective, noise, seed + k)) for k, level in enumerate(hierarchy.levels)
    )
    return Hierarchy(tuple(made))


def costs_to(result: Result, targets: tuple[float, ...]) -> Case:
    """Return the work at which the loss was below each target for the first time, NaN if never."""
    reached = {}
    for target in targets:
        works = (record.cost.work_total for record in result.history.records if record.value <= target)
        reached[f"work_to_{target:g}"] = next(works, math.nan)
    return reached


def cases(config: Config) -> Iterator[Case]:
    """Return noise, levels and seed."""
    for noise in config.noise:
        for levels in config.levels:
            for seed in config.seeds:
                yield {"noise": noise, "levels": levels, "seed": seed}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Train one network."""
    sizes = (config.width, config.blocks, config.horizon)
    hierarchy = noisy(
        residual_hierarchy(config.data, sizes, case["levels"], case["seed"]), case["noise"], 10 * case["seed"]
    )
    f = hierarchy[0].objective
    inner = f.f if case["noise"] else f
    smoother = AdaGrad(varsigma=0.1, curvature="none", rate=config.rate)
    solver = Mofftr(hierarchy, smoother, Recursion(steps=config.coarse_steps))
    result = minimise(f, inner.initial(), solver, stop=Stop(config.steps, target=min(TARGETS)), values=1)
    end = result.record
    return {"steps": end.step, "work": end.cost.work_total, "loss": end.value} | costs_to(result, TARGETS)


STUDY = Study(
    __file__,
    "own reference run of the method of arXiv 2302.07049 (recursion reconstructed)",
    Config(),
    Config(blocks=4, width=16, levels=(1, 2), noise=(0.0,), seeds=(0,), steps=15),
    cases,
    run,
    Picture("levels", "work_to_0.2", ("noise",), (), "y", ("levels", "work to loss 0.2, fine gradients")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
