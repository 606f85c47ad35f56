"""Multigrid for the quadratic model of an objective on free unknowns: V-cycles that precondition conjugate gradients.

On every level Jacobi's method is accelerated by a Chebyshev polynomial, so that all a level has to offer is products
with its Hessian and the diagonal of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Hessian, Hierarchy, Transfer, hessian, sampled

DENSE = 300  # unknowns of a coarsest level whose system is solved by factors
_MARGIN, _PART = 1.05, 0.25  # the polynomial is small from _PART to _MARGIN times the largest eigenvalue
_POWER = 5  # steps of the power method for the largest eigenvalue


@dataclass(frozen=True)
class GridStage:
    """One level: ``F H F`` for the Hessian H and the projection F onto free unknowns.

    Parameters
    ----------
    hessian : Hessian
        Of the level's own objective.
    free : Tensor, shape (n,)
        One at free unknowns, zero at fixed ones.
    largest : float
        Estimate of the largest eigenvalue of ``D^-1 H``, D the diagonal of H.
    transfer : Transfer or None
        To the next coarser level, None on the coarsest.
    """

    hessian: Hessian
    free: Tensor
    largest: float
    transfer: Transfer | None

    @cached_property
    def inverse(self) -> Tensor:
        """Inverse of the diagonal at free unknowns with positive curvature, zero at others."""
        diagonal = self.hessian.diagonal
        return torch.where(diagonal > 0, self.free / diagonal, 0.0)

    def steps(self, degree: int) -> list[Tensor]:
        """Return the diagonals of the Jacobi steps that make the Chebyshev polynomial of a degree.

        Parameters
        ----------
        degree : int
            Number of steps.
        """
        high = _MARGIN * self.largest
        centre, radius = 0.5 * (1 + _PART) * high, 0.5 * (1 - _PART) * high
        nodes = [math.cos(math.pi * (i + 0.5) / degree) for i in range(degree)]
        return [self.inverse / (centre - radius * node) for node in nodes]

    @cached_property
    def factors(self) -> Tensor:
        """Cholesky factor of the dense matrix, with the diagonal of H at fixed unknowns."""
        n, free = len(self.free), self.free
        rows = torch.eye(n, dtype=free.dtype, device=free.device)
        H = self.hessian.product(rows).mul_(free).mul_(free[:, None])
        H.diagonal().add_((1.0 - free) * self.hessian.diagonal)
        L, failed = torch.linalg.cholesky_ex(H)
        return L if int(failed) == 0 else torch.diag(self.hessian.diagonal.abs().sqrt())


def largest_eigenvalue(matrix: Hessian, like: Tensor) -> float:
    """Return an estimate of the largest eigenvalue of ``D^-1 H``, by the power method from a start that is not smooth.

    Parameters
    ----------
    matrix : Hessian
        H, and its diagonal D.
    like : Tensor, shape (n,)
        It gives size, type and device.
    """
    v = torch.ones_like(like)
    v[1::2] = -1.0
    v[::3] *= 0.5
    inverse, value = matrix.diagonal.reciprocal(), 1.0
    for _ in range(_POWER):
        v = matrix.product(v.div_(torch.linalg.vector_norm(v))).mul_(inverse)
        value = float(torch.linalg.vector_norm(v))
    return value if math.isfinite(value) and value > 0 else 2.0


class Multigrid:
    """An approximate inverse of the Hessian on free unknowns: one symmetric V-cycle.

    Parameters
    ----------
    stages : list of GridStage
        The finest first.
    degree : int
        Of the polynomial, before and after every coarse correction.
    last : int
        Its degree on a coarsest level that is too large for factors.
    """

    def __init__(self, stages: list[GridStage], degree: int, last: int) -> None:
        self._stages = stages
        self._steps = [stage.steps(degree) for stage in stages[:-1]]
        self._is_direct = len(stages[-1].free) <= DENSE
        self._steps.append([] if self._is_direct else stages[-1].steps(last))

    def __call__(self, r: Tensor, k: int = 0) -> Tensor:
        """Return an approximation of ``(F H F)^-1 r``, zero at fixed unknowns.

        Parameters
        ----------
        r : Tensor, shape (n,)
            Right-hand side, zero at fixed unknowns.
        k : int
            Number of the stage.
        """
        stage, steps = self._stages[k], self._steps[k]
        if not steps:
            return torch.cholesky_solve(r[:, None], stage.factors)[:, 0].mul_(stage.free)
        defect = stage.hessian.defect
        e = torch.mul(r, steps[0])
        for step in steps[1:]:
            e.add_(defect(e, r, step))
        if stage.transfer is None:
            return e
        coarse = stage.transfer.restrict(defect(e, r, stage.free)).mul_(self._stages[k + 1].free)
        e.addcmul_(stage.transfer.prolong(self(coarse, k + 1)), stage.free)
        for step in reversed(steps):
            e.add_(defect(e, r, step))
        return e


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
    hierarchy: Hierarchy, k: int, here: Hessian, x: Tensor, free: Tensor, step: int, largest: list[float]
) -> list[GridStage]:
    """Return the levels from `k` down, each linearised at the injected iterate and fixed where the finer one is.

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
    free : Tensor, shape (n,)
        One at free unknowns, zero at fixed ones.
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
            x, free = transfer.inject(x), (transfer.inject(free) > 0.5).to(free.dtype)
            here = hessian(sampled(hierarchy[j].objective, step), x)
        largest[j] = largest[j] or largest_eigenvalue(here, x)
        found.append(GridStage(here, free, largest[j], hierarchy[j + 1].transfer if j + 1 < len(hierarchy) else None))
    return found
