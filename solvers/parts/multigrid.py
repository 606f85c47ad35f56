"""Multigrid for the quadratic model of an objective on free unknowns: V-cycles that precondition conjugate gradients.

On every level Jacobi's method is accelerated by a Chebyshev polynomial, so that all a level has to offer is products
with its Hessian and the diagonal of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mldd.algebra import Hessian, Hierarchy, Transfer, hessian, sampled

DENSE = 300  # unknowns of a coarsest level whose system is solved by factors
_PART = 0.25  # the polynomial is small from this part of the largest eigenvalue on


@dataclass(frozen=True)
class GridStage:
    """One level: its Hessian H, and the way to the next one.

    Parameters
    ----------
    hessian : Hessian
        Of the level's own objective.
    largest : float
        Estimate of the largest eigenvalue of ``D^-1 H``, D the diagonal of H.
    transfer : Transfer or None
        To the next coarser level, None on the coarsest.
    """

    hessian: Hessian
    largest: float
    transfer: Transfer | None

    def steps(self, free: Tensor, degree: int) -> list[Tensor]:
        """Return the diagonals of the Jacobi steps that make the Chebyshev polynomial of a degree.

        Parameters
        ----------
        free : Tensor, shape (n,)
            One at free unknowns, zero at fixed ones.
        degree : int
            Number of steps.
        """
        diagonal, high = self.hessian.diagonal, self.largest
        inverse = torch.where(diagonal > 0, free / diagonal, 0.0)
        centre, radius = 0.5 * (1 + _PART) * high, 0.5 * (1 - _PART) * high
        nodes = [math.cos(math.pi * (i + 0.5) / degree) for i in range(degree)]
        return [inverse / (centre - radius * node) for node in nodes]

    def factors(self, free: Tensor) -> Tensor:
        """Return the Cholesky factor of ``F H F``, with the diagonal of H at fixed unknowns.

        Parameters
        ----------
        free : Tensor, shape (n,)
            One at free unknowns, zero at fixed ones.
        """
        H = self.hessian.product(torch.diag(free)).mul_(free)
        H.diagonal().add_((1.0 - free) * self.hessian.diagonal)
        L, failed = torch.linalg.cholesky_ex(H)
        return L if int(failed) == 0 else torch.diag(self.hessian.diagonal.abs().sqrt())


class Multigrid:
    """An approximate inverse of ``F H F``, F the projection onto free unknowns: one symmetric V-cycle.

    Coarse unknowns are fixed where the fine ones at their nodes are.

    Parameters
    ----------
    stages : list of GridStage
        The finest first.
    free : Tensor, shape (n,)
        One at free unknowns of the finest level, zero at fixed ones.
    degree : int
        Of the polynomial, before and after every coarse correction.
    last : int
        Its degree on a coarsest level that is too large for factors.
    """

    def __init__(self, stages: list[GridStage], free: Tensor, degree: int, last: int) -> None:
        self._stages, self._free, self._steps = stages, [free], []
        for stage in stages[:-1]:
            assert stage.transfer is not None  # noqa: S101 (only the last one has none)
            self._steps.append(stage.steps(free, degree))
            free = (stage.transfer.inject(free) > 0.5).to(free.dtype)
            self._free.append(free)
        is_direct = len(free) <= DENSE
        self._factors = stages[-1].factors(free) if is_direct else None
        self._steps.append([] if is_direct else stages[-1].steps(free, last))

    def __call__(self, r: Tensor, k: int = 0) -> Tensor:
        """Return an approximation of ``(F H F)^-1 r``, zero at fixed unknowns.

        Parameters
        ----------
        r : Tensor, shape (n,)
            Right-hand side, zero at fixed unknowns.
        k : int
            Number of the stage.
        """
        stage, steps, free = self._stages[k], self._steps[k], self._free[k]
        if stage.transfer is None and self._factors is not None:
            return torch.cholesky_solve(r[:, None], self._factors)[:, 0].mul_(free)
        e = stage.hessian.relaxed(torch.mul(r, steps[0]), r, steps[1:])
        if stage.transfer is None:
            return e
        coarse = stage.transfer.restrict(stage.hessian.defect(e, r, free)).mul_(self._free[k + 1])
        e.addcmul_(stage.transfer.prolong(self(coarse, k + 1)), free)
        return stage.hessian.relaxed(e, r, steps[::-1])


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    inverse: Callable[[Tensor], Tensor],
    b: Tensor,
    free: Tensor,
    rtol: float,
    most: int,
) -> Tensor:
    """Return s with ``|F (b - H s)| <= rtol |F b|``, or what `most` iterations or negative curvature have left.

    Parameters
    ----------
    product : callable
        Products with H.
    inverse : callable
        The preconditioner, symmetric; its results are zero at fixed unknowns.
    b : Tensor, shape (n,)
        Right-hand side.
    free : Tensor, shape (n,)
        One at free unknowns, zero at fixed ones.
    rtol : float
        Of the 2-norm of the residual.
    most : int
        Iterations.
    """
    r = b * free
    s, goal = torch.zeros_like(r), rtol * float(torch.linalg.vector_norm(r))
    z = inverse(r)
    p, rho = z, float(torch.dot(r, z))
    for i in range(most):
        Hp = product(p).mul_(free)
        curvature = float(torch.dot(p, Hp))
        if not (curvature > 0 and rho > 0):
            return p.clone() if i == 0 else s
        s.add_(p, alpha=rho / curvature)
        r.sub_(Hp, alpha=rho / curvature)
        if float(torch.linalg.vector_norm(r)) <= goal:
            break
        z = inverse(r)
        before, rho = rho, float(torch.dot(r, z))
        p = torch.add(z, p, alpha=rho / before)
    return s


def linear_stages(
    hierarchy: Hierarchy, k: int, here: Hessian, x: Tensor, step: int, largest: list[float]
) -> list[GridStage]:
    """Return the levels from `k` down, each linearised at the injected iterate.

    Parameters
    ----------
    hierarchy : Hierarchy
        All levels.
    k : int
        Number of the finest one that is used.
    here : Hessian
        That of level `k` at `x`.
    x : Tensor, shape (n,)
        The iterate on level `k`.
    step : int
        Number of the outer step, for objectives that are sampled.
    largest : list of float
        Estimates of the largest eigenvalue of every level; zeros are replaced.
    """
    found = []
    for j in range(k, len(hierarchy)):
        if j > k:
            transfer = hierarchy[j].transfer
            assert transfer is not None  # noqa: S101 (checked by Hierarchy)
            x = transfer.inject(x)
            here = hessian(sampled(hierarchy[j].objective, step), x)
        is_last = j + 1 == len(hierarchy)
        if not largest[j] and not (is_last and len(x) <= DENSE):  # factors need none
            largest[j] = here.largest
        found.append(GridStage(here, largest[j], None if is_last else hierarchy[j + 1].transfer))
    return found
