"""ASPIN on the lid-driven cavity: outer and Krylov iterations against Reynolds number, subdomains, overlap and levels.

    python -m experiments.cai2002aspin.cavity [--quick] [--reynolds 100 1000] [--parts 4 16] [--overlaps 1 2]

Velocities u, v and vorticity w in the unit square, the lid at the top moves with speed one:

    -lap u - dw/dy = 0,    -lap v + dw/dx = 0,    -lap w / Re + u dw/dx + v dw/dy = 0,    w = dv/dx - du/dy on walls,

by the 5-point formula, first-order upwind differences for convection and one-sided ones of second order at walls, from zero, as in the
paper (SIAM J. Sci. Comput. 24, 2002); its grids and counts are not at hand: this is our reference run. "newton" is
Newton's method whose GMRES is preconditioned by the linear Schwarz method with the same subdomains; all methods stop
when the residual (2-norm) has fallen by `rtol`. The coarse level of "levels 2" is a grid of about two cells per side of
a subdomain. These equations are the gradient of nothing: `experiments.equations` solves them, on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt

import torch
from torch import Tensor

from experiments.equations import Coarse, Schwarz, solve
from experiments.study import Case, Picture, Study
from mldd.ranks import Communicator


@dataclass(frozen=True)
class Config:
    """Reynolds numbers, methods, subdomains and the test of convergence."""

    reynolds: tuple[float, ...] = (100.0, 1000.0, 3000.0, 10000.0)
    n: int = 63
    methods: tuple[str, ...] = ("newton", "aspin")
    levels: tuple[int, ...] = (1, 2)
    overlaps: tuple[int, ...] = (1, 2, 4)
    parts: tuple[int, ...] = (4, 16, 64)
    rtol: float = 1e-8
    max_steps: int = 40


@dataclass(frozen=True)
class Cavity:
    """The equations of the cavity; rows count upwards, columns to the right.

    Parameters
    ----------
    n : int
        Inner nodes per side.
    reynolds : float
        Reynolds number.
    """

    n: int
    reynolds: float
    fields = 3

    @cached_property
    def frame(self) -> Tensor:
        """Velocities on the walls: one on the lid, zero elsewhere; vorticities follow from inner velocities."""
        full = torch.zeros(3, self.n + 2, self.n + 2, dtype=torch.float64)
        full[0, -1] = 1.0
        return full

    def walls(self, u: Tensor, sides: tuple[bool, ...]) -> Tensor:
        """Set the vorticity at walls, ``dv/dx - du/dy`` by one-sided differences of second order."""
        bottom, top, left, right = sides
        h, full = 1.0 / (self.n + 1), u.clone()
        if bottom:
            full[2, 0, 1:-1] = one_sided(u[0, :3, 1:-1]) / -h
        if top:
            full[2, -1, 1:-1] = one_sided(u[0, -3:, 1:-1].flip(0)) / h
        if left:
            full[2, 1:-1, 0] = one_sided(u[1, 1:-1, :3].t()) / h
        if right:
            full[2, 1:-1, -1] = one_sided(u[1, 1:-1, -3:].t().flip(0)) / -h
        return full

    def residual(self, u: Tensor, corner: tuple[int, int]) -> Tensor:
        """Return the three equations, times the area of a cell."""
        h = 1.0 / (self.n + 1)
        centre, below, above = u[:, 1:-1, 1:-1], u[:, :-2, 1:-1], u[:, 2:, 1:-1]
        before, after = u[:, 1:-1, :-2], u[:, 1:-1, 2:]
        laplacian = 4.0 * centre - below - above - before - after
        w = 2
        first = laplacian[0] - 0.5 * h * (above[w] - below[w])
        second = laplacian[1] + 0.5 * h * (after[w] - before[w])
        wind = [centre[k].clamp_min(0.0) * h for k in (0, 1)], [centre[k].clamp_max(0.0) * h for k in (0, 1)]
        across = wind[0][0] * (centre[w] - before[w]) + wind[1][0] * (after[w] - centre[w])
        up = wind[0][1] * (centre[w] - below[w]) + wind[1][1] * (above[w] - centre[w])
        return torch.stack([first, second, laplacian[w] / self.reynolds + across + up])


def one_sided(values: Tensor) -> Tensor:
    """Return h times the derivative at the first of three nodes in a row."""
    return -1.5 * values[0] + 2.0 * values[1] - 0.5 * values[2]


def cases(config: Config) -> Iterator[Case]:
    """Return Reynolds number, method, levels, overlap and subdomains."""
    for reynolds in config.reynolds:
        for method in config.methods:
            for levels in config.levels:
                for overlap in config.overlaps:
                    for parts in config.parts:
                        names = {"reynolds": reynolds, "method": method, "levels": levels}
                        yield names | {"overlap": overlap, "parts": parts}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method."""
    equations = Cavity(config.n, case["reynolds"])
    coarse = None
    if case["levels"] > 1:
        coarse = Coarse(Cavity(2 * isqrt(case["parts"]) - 1, case["reynolds"]), config.n)
    schwarz = Schwarz(equations, case["method"], case["parts"], case["overlap"], coarse)
    found = solve(schwarz, torch.zeros(3, config.n, config.n, dtype=torch.float64), config.rtol, config.max_steps)
    middle = found.u[0, :, config.n // 2]
    return {
        "status": found.status,
        "steps": found.steps,
        "krylov": found.krylov,
        "krylov_per_step": found.krylov / max(1, found.steps),
        "unsolved": found.unsolved,
        "measure": found.measure,
        "slowest": float(middle.min()),
    }


STUDY = Study(
    __file__,
    "own reference run of the method of Cai and Keyes (2002) on the problem of the paper",
    Config(),
    Config(reynolds=(100.0,), n=15, levels=(1,), overlaps=(2,), parts=(4,)),
    cases,
    run,
    Picture("parts", "steps", ("method", "levels", "overlap"), ("reynolds",), "xy", ("subdomains", "outer steps")),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
