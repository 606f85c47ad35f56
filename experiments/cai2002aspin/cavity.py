"""ASPIN on the lid-driven cavity: outer and Krylov iterations against Reynolds number, subdomains, overlap and levels.

    python -m experiments.cai2002aspin.cavity [--quick] [--reynolds 100 1000] [--parts 4 16] [--overlaps 1 2]

Stream function s and vorticity w in the unit square, the lid at the top moves with speed one:

    -lap s = w,    -lap w / Re + u dw/dx + v dw/dy = 0,    u = ds/dy,    v = -ds/dx,

by the 5-point formula, first-order upwind differences for convection and Thom's formula for w on walls, from zero. The
paper (SIAM J. Sci. Comput. 24, 2002) has velocities and vorticity; on grids of this size its velocities are not
solenoidal, and no vortex develops at Reynolds numbers of 400 and more. Its grids and counts are not at hand: this is
our reference run. At Re = 100 the least value of s is -0.1034 (Ghia, Ghia and Shin, J. Comput. Phys. 48, 1982).

"newton" is Newton's method whose GMRES is preconditioned by the linear Schwarz method with the same subdomains; all
methods stop when the residual (2-norm) has fallen by `rtol`. The coarse level of "levels 2" is a grid of about two
cells per side of a subdomain. "unsolved" counts local problems that Newton's method did not solve. These equations are
the gradient of nothing: `experiments.equations` solves them, on one rank.
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

    reynolds: tuple[float, ...] = (100.0, 400.0, 1000.0)
    n: int = 63
    methods: tuple[str, ...] = ("newton", "aspin", "raspen")
    levels: tuple[int, ...] = (1, 2)
    overlaps: tuple[int, ...] = (1, 2, 4)
    parts: tuple[int, ...] = (4, 16)
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
    fields = 2

    @cached_property
    def frame(self) -> Tensor:
        """Zero: the walls are one streamline, and vorticities there follow from inner values."""
        return torch.zeros(2, self.n + 2, self.n + 2, dtype=torch.float64)

    def walls(self, u: Tensor, sides: tuple[bool, ...]) -> Tensor:
        """Set the vorticity at walls by Thom's formula: ``-2 s_1 / h^2``, and ``-2 (s_1 + h) / h^2`` at the lid."""
        first, last, left, right = sides
        h, full = 1.0 / (self.n + 1), u.clone()
        if first:
            full[1, 0, 1:-1] = -2.0 / h**2 * u[0, 1, 1:-1]
        if last:
            full[1, -1, 1:-1] = -2.0 / h**2 * (u[0, -2, 1:-1] + h)
        if left:
            full[1, 1:-1, 0] = -2.0 / h**2 * u[0, 1:-1, 1]
        if right:
            full[1, 1:-1, -1] = -2.0 / h**2 * u[0, 1:-1, -2]
        return full

    def residual(self, u: Tensor, corner: tuple[int, int]) -> Tensor:
        """Return both equations, times the area of a cell."""
        h = 1.0 / (self.n + 1)
        centre, below, above = u[:, 1:-1, 1:-1], u[:, :-2, 1:-1], u[:, 2:, 1:-1]
        before, after = u[:, 1:-1, :-2], u[:, 1:-1, 2:]
        laplacian = 4.0 * centre - below - above - before - after
        across, up = 0.5 * (above[0] - below[0]), 0.5 * (before[0] - after[0])  # h times the velocities
        w = centre[1]
        wind = across.clamp_min(0.0) * (w - before[1]) + across.clamp_max(0.0) * (after[1] - w)
        wind = wind + up.clamp_min(0.0) * (w - below[1]) + up.clamp_max(0.0) * (above[1] - w)
        return torch.stack([laplacian[0] - h * h * w, laplacian[1] / self.reynolds + wind])


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
    found = solve(schwarz, torch.zeros(2, config.n, config.n, dtype=torch.float64), config.rtol, config.max_steps)
    return {
        "status": found.status,
        "steps": found.steps,
        "krylov": found.krylov,
        "krylov_per_step": found.krylov / max(1, found.steps),
        "unsolved": found.unsolved,
        "measure": found.measure,
        "vortex": float(found.u[0].min()),
    }


STUDY = Study(
    __file__,
    "own reference run of the method of Cai and Keyes (2002) on the problem of the paper, in other variables",
    Config(),
    Config(reynolds=(100.0,), n=15, methods=("newton", "aspin"), levels=(1,), overlaps=(2,), parts=(4,)),
    cases,
    run,
    Picture(
        "parts", "krylov", ("method", "levels"), ("reynolds", "overlap"), "xy", ("subdomains", "GMRES iterations, sum")
    ),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
