"""RASPEN, ASPIN and NRAS in two dimensions: Forchheimer flow and nonlinear diffusion, beside Newton's method.

    python -m experiments.dolean2016raspen.plane [--quick] [--problems forchheimer] [--parts 4 16] [--overlaps 1 3]

"forchheimer" is ``div q(-k grad u) = f`` with ``q(g) = 2 g / (1 + sqrt(1 + 4 gamma |g|))``, ``gamma = 1``,
``k = 2 + cos(5 pi x) cos(5 pi y)``, ``f = 50 sin(5 pi x) sin(5 pi y) e^x`` and u = x on the boundary, with linear
triangles; "diffusion" is ``-div((1 + u^2) grad u) = f`` with the 5-point formula, ``f = 10 x sin(3 y)``, u = 1 at x = 1
and natural sides elsewhere. Data are ours (those of arXiv 1605.04419 were not at hand): this is our reference run.

Outer iterations from zero until the residual (2-norm) has fallen by `rtol`. "newton" has GMRES with the linear Schwarz
method of the same subdomains as its preconditioner, "levels 2" a coarse grid of about two cells per side of a
subdomain, "nras" is the fixed-point iteration. The matrix of the diffusion problem is not symmetric:
`experiments.equations` solves both, on one rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from math import isqrt, pi
from typing import Any

import torch
from torch import Tensor

from experiments.equations import Coarse, Schwarz, solve
from experiments.study import Case, Picture, Study
from mldd.ranks import Communicator


@dataclass(frozen=True)
class Config:
    """Problems, methods, subdomains and the test of convergence."""

    problems: tuple[str, ...] = ("forchheimer", "diffusion")
    n: int = 63
    methods: tuple[str, ...] = ("newton", "raspen", "aspin", "nras")
    levels: tuple[int, ...] = (1, 2)
    overlaps: tuple[int, ...] = (1, 3)
    parts: tuple[int, ...] = (4, 16, 64)
    rtol: float = 1e-8
    max_steps: int = 40
    max_sweeps: int = 200


@dataclass(frozen=True)
class Forchheimer:
    """Forchheimer flow on linear triangles: cells are cut by the diagonal that does not meet their first node.

    Parameters
    ----------
    n : int
        Inner nodes per side.
    gamma : float
        Strength of the nonlinearity.
    """

    n: int
    gamma: float = 1.0
    fields = 1

    @cached_property
    def frame(self) -> Tensor:
        """The boundary values u = x."""
        x = torch.linspace(0.0, 1.0, self.n + 2, dtype=torch.float64)
        return x.expand(1, self.n + 2, self.n + 2).clone()

    def walls(self, u: Tensor, sides: tuple[bool, ...]) -> Tensor:
        """Return the window: its ring is fixed."""
        return u

    def _places(self, corner: tuple[int, int], shape: torch.Size, shift: float) -> tuple[Tensor, Tensor]:
        h = 1.0 / (self.n + 1)
        y, x = ((corner[k] + shift + torch.arange(shape[k], dtype=torch.float64)) * h for k in (0, 1))
        return x[None, :], y[:, None]

    def residual(self, u: Tensor, corner: tuple[int, int]) -> Tensor:
        """Return the sums of the fluxes of the triangles around every node, minus the load."""
        h, v = 1.0 / (self.n + 1), u[0]
        dx, dy = v[:, 1:] - v[:, :-1], v[1:] - v[:-1]
        x, y = self._places(corner, dx[:-1].shape, 0.5)
        k = 2.0 + torch.cos(5 * pi * x) * torch.cos(5 * pi * y)
        weights = []
        for a, b in ((dx[:-1], dy[:, :-1]), (dx[1:], dy[:, 1:])):
            length = k / h * torch.sqrt(a * a + b * b + 1e-30)  # the root has no derivative at zero
            weights.append(k / (1.0 + torch.sqrt(1.0 + 4.0 * self.gamma * length)))
        along = dx[1:-1] * (weights[0][1:] + weights[1][:-1])
        down = dy[:, 1:-1] * (weights[0][:, 1:] + weights[1][:, :-1])
        x, y = self._places(corner, v[1:-1, 1:-1].shape, 1.0)
        load = h * h * 50.0 * torch.sin(5 * pi * x) * torch.sin(5 * pi * y) * torch.exp(x)
        return (along[:, :-1] - along[:, 1:] + down[:-1] - down[1:] - load)[None]


@dataclass(frozen=True)
class Diffusion:
    """Diffusion whose coefficient is ``1 + u^2``, the mean of both nodes of an edge.

    Parameters
    ----------
    n : int
        Inner nodes per side.
    """

    n: int
    fields = 1

    @cached_property
    def frame(self) -> Tensor:
        """One at x = 1."""
        full = torch.zeros(1, self.n + 2, self.n + 2, dtype=torch.float64)
        full[:, :, -1] = 1.0
        return full

    def walls(self, u: Tensor, sides: tuple[bool, ...]) -> Tensor:
        """Copy the next inner value to natural sides: no flux crosses them."""
        first, last, left, _ = sides
        full = u.clone()
        if first:
            full[:, 0, 1:-1] = u[:, 1, 1:-1]
        if last:
            full[:, -1, 1:-1] = u[:, -2, 1:-1]
        if left:
            full[:, 1:-1, 0] = u[:, 1:-1, 1]
        return full

    def residual(self, u: Tensor, corner: tuple[int, int]) -> Tensor:
        """Return the sums of the fluxes along the edges of every node, minus the load."""
        h, v = 1.0 / (self.n + 1), u[0]
        k = 1.0 + v * v
        along = 0.5 * (k[1:-1, 1:] + k[1:-1, :-1]) * (v[1:-1, 1:] - v[1:-1, :-1])
        down = 0.5 * (k[1:, 1:-1] + k[:-1, 1:-1]) * (v[1:, 1:-1] - v[:-1, 1:-1])
        y, x = (h * (corner[i] + 1 + torch.arange(u.shape[i + 1] - 2, dtype=torch.float64)) for i in (0, 1))
        load = h * h * 10.0 * x[None, :] * torch.sin(3.0 * y)[:, None]
        return (along[:, :-1] - along[:, 1:] + down[:-1] - down[1:] - load)[None]


PROBLEMS: dict[str, Any] = {"forchheimer": Forchheimer, "diffusion": Diffusion}


def cases(config: Config) -> Iterator[Case]:
    """Return problem, method, levels, overlap and subdomains."""
    for problem in config.problems:
        for method in config.methods:
            for levels in config.levels:
                for overlap in config.overlaps:
                    for parts in config.parts:
                        names = {"problem": problem, "method": method, "levels": levels}
                        yield names | {"overlap": overlap, "parts": parts}


def run(config: Config, case: Case, comm: Communicator) -> Case:
    """Run one method."""
    kind, n = PROBLEMS[case["problem"]], config.n
    coarse = Coarse(kind(2 * isqrt(case["parts"]) - 1), n) if case["levels"] > 1 else None
    schwarz = Schwarz(kind(n), case["method"], case["parts"], case["overlap"], coarse)
    steps = config.max_sweeps if case["method"] == "nras" else config.max_steps
    found = solve(schwarz, torch.zeros(1, n, n, dtype=torch.float64), config.rtol, steps)
    return {
        "status": found.status,
        "steps": found.steps,
        "krylov": found.krylov if case["method"] != "nras" else float("nan"),
        "krylov_per_step": found.krylov / max(1, found.steps) if case["method"] != "nras" else float("nan"),
        "unsolved": found.unsolved,
        "largest": float(found.u.max()),
    }


STUDY = Study(
    __file__,
    "own reference run of the methods of arXiv 1605.04419 on problems of its kind (two levels reconstructed)",
    Config(),
    Config(n=15, methods=("newton", "raspen", "aspin"), levels=(1,), overlaps=(1,), parts=(4,)),
    cases,
    run,
    Picture(
        "parts", "krylov", ("method", "levels"), ("problem", "overlap"), "xy", ("subdomains", "GMRES iterations, sum")
    ),
)


def main() -> None:
    """Run all cases."""
    STUDY.command()


if __name__ == "__main__":
    main()
