"""A nonlinear Schwarz iteration as a function, with the action of its Jacobian: what ASPIN and RASPEN solve."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import (
    Corrected,
    Decomposition,
    Hessian,
    Level,
    LocalRestrictions,
    Objective,
    Proximal,
    Remembered,
    hessian,
    layers_of,
    on_this_rank,
    with_products,
    without_memory,
)
from mldd.loop import State
from mldd.solvers.newton import NewtonCG
from mldd.solvers.parts import Inverse, Sweep, SweepState, half_bandwidth

# By this factor the gradient of a local model has to fall for its problem to count as solved.
SOLVED = 1e-2


@dataclass(frozen=True)
class Linear:
    """How the linear systems of subdomains and of the coarse level are solved.

    Parameters
    ----------
    dense : int
        Most unknowns for dense matrices.
    rtol : float
        Of CG for the others.
    steps : int
        Most iterations of CG.
    """

    dense: int = 512
    rtol: float = 1e-12
    steps: int = 3000


def proximal(decomposition: Decomposition, mu: float) -> Decomposition:
    """Return the decomposition with a proximal term in its local models, around where they start.

    Parameters
    ----------
    decomposition : Decomposition
        The subdomains.
    mu : float
        Weight of the term, > 0.
    """

    def build(d: Decomposition, f: Objective, x: Tensor, g: Tensor | None) -> Proximal:
        return Proximal(decomposition.build(d, f, x, g), mu, d.gather(x))

    return replace(decomposition, build=build)


class Linearised:
    r"""``F(x) = G(x) - x`` for a sweep G of nonlinear Schwarz, after a coarse correction if there is one.

    With ``w = x + P_0 c(x)`` and local solutions C_i,

        F(x) = P_0 c(x) + sum_i P_i D_i C_i(w),
        F'(x) z = u - z - sum_i P_i D_i (H_i + mu)^{-1} R_i H u,    u = z + P_0 c'(x) z.

    Exact: ``R_i H`` and ``H_i = R_i H P_i`` at ``w + P_i C_i(w)``. Approximate (ASPIN): at the same point for all,
    ``w + sum_i P_i D_i C_i(w)``. See `mldd.solvers.aspin`.

    Parameters
    ----------
    sweep : Sweep
        Additive; of a `Decomposition`.
    coarse : Level or None
        The coarse level.
    exact : bool
        Take the exact Jacobian, that of RASPEN.
    linear : Linear
        How linear systems are solved.
    objective : Objective
        What is minimised.
    x : Tensor, shape (n,)
        The iterate.
    state : SweepState
        What the sweep keeps.
    floor : float
        Norm of the gradient of a local model below which it counts as solved whatever it was at the start.

    Attributes
    ----------
    residual : Tensor, shape (n,)
        F(x).
    unsolved : int
        Subdomains of all ranks whose local problem was not solved: the gradient of the local model has not fallen by
        the factor `SOLVED`. The Jacobian assumes that all are.
    """

    def __init__(
        self,
        sweep: Sweep,
        coarse: Level | None,
        exact: bool,
        linear: Linear,
        objective: Objective,
        x: Tensor,
        state: SweepState,
        floor: float = 0.0,
    ) -> None:
        assert isinstance(sweep.decomposition, Decomposition)  # noqa: S101 (checked by the solvers)
        self._decomposition = d = sweep.decomposition
        self._sweep, self._state, self._exact, self._f = sweep, state, exact, objective
        self._coarse = None if coarse is None else CoarseCorrection(coarse, linear, objective, x)
        start, before = x if self._coarse is None else x + self._coarse.correction, state.failed
        c = sweep.corrections(objective, start, state)
        total = sweep.total(c, state)
        self._failed = state.failed - before
        local, y0 = d.models(objective, start, None), d.gather(start)
        self.unsolved = self._count_unsolved(local, y0, c, floor)
        self.residual = start + total - x
        at, y = (start, y0 + c) if exact else (start + total, d.gather(start + total))
        models = with_products(local if exact else d.models(objective, at, None))
        restrictions = next((layer for layer in layers_of(models) if isinstance(layer, LocalRestrictions)), None)
        self._points = start + d.spread(c * d.valid) if exact else at
        if exact and restrictions is not None:
            self._f = restrictions.f  # evaluated on this rank alone
        local_product = hessian(models, y).product
        self._inverse = Inverse(local_product, y, linear.dense, linear.rtol, linear.steps, half_bandwidth(models))

    def _count_unsolved(self, models: Objective, y: Tensor, c: Tensor, floor: float) -> int:
        """Measure the gradients of the local models before and after the local solves; one collective on a number."""
        d, missed = self._decomposition, 0
        if len(d.local):
            before, after = (torch.linalg.vector_norm(models.gradient(at) * d.valid, dim=1) for at in (y, y + c))
            missed = int((~(after <= (SOLVED * before).clamp_min(floor))).sum())
        return int(self._sweep.comm.sum_scalars([float(missed)])[0])

    def product(self, z: Tensor) -> Tensor:
        """Return ``F'(x) z``, shape (n,); one synchronisation.

        Parameters
        ----------
        z : Tensor, shape (n,)
            A vector.
        """
        u = z if self._coarse is None else z + self._coarse.derivative(z)
        rows = self._rows(u)
        if len(rows):
            rows = self._inverse.solve(rows)
        return u - z - self._sweep.total(rows, self._state)

    def negative_product(self, z: Tensor) -> Tensor:
        """Return ``-F'(x) z``; many of the eigenvalues are one.

        Parameters
        ----------
        z : Tensor, shape (n,)
            A vector.
        """
        return self.product(z).neg_()

    @property
    def _is_batched(self) -> bool:
        return bool(getattr(without_memory(self._f), "batched", False))

    @cached_property
    def _hessians(self) -> list[Hessian]:
        """The Hessians at the points: one of a batch, or one for each."""
        if not self._exact or self._is_batched:
            return [hessian(self._f, self._points)]
        return [hessian(self._f, point) for point in self._points]

    def _rows(self, u: Tensor) -> Tensor:
        """Return ``R_i H u`` of this rank's subdomains, shape (p, m)."""
        d = self._decomposition
        if not self._exact:
            return d.gather(self._hessians[0].product(u)).mul_(d.valid)
        if not len(d.local):
            return u.new_zeros(d.indices.shape)
        with on_this_rank():
            if self._is_batched:
                spread = self._hessians[0].product(u.expand_as(self._points).contiguous())
            else:
                spread = torch.stack([here.product(u) for here in self._hessians])
        return spread.gather(1, d.indices).mul_(d.valid)

    def report(self, state: State) -> None:
        """Note what was out of the ordinary on any rank.

        Parameters
        ----------
        state : State
            Its notes are added to.
        """
        inverse = self._inverse
        counts = [self._failed, int(inverse.raised.sum()), int(inverse.negative.sum()), inverse.unsolved]
        whats = (
            "local solves that diverged, left out",
            "local Hessians that were not positive definite, made so",
            "local Hessians with negative curvature",
            "local linear solves that missed their tolerance",
        )
        for what, times in zip(whats, self._sweep.comm.sum_scalars([float(n) for n in counts]), strict=True):
            state.note(what, int(times))
        if float(inverse.shift.sum()) > 0:
            shift, residual = float(inverse.shift.max()), inverse.residual
            state.note(f"local Hessians shifted by up to {shift:.1g} for CG, relative residual up to {residual:.1g}")
        if self._coarse is not None:
            state.note("coarse Hessians that were not positive definite, made so", self._coarse.raised)


class CoarseCorrection:
    """The coarse correction of the full approximation scheme and its derivative.

    The coarse model ``f_0(y) + <R_0 g(x) - grad f_0(y0), y - y0>``, ``y0 = inject(x)``, is minimised by `NewtonCG` on
    every rank. From ``grad f_0(y) = grad f_0(y0) - R_0 g(x)`` the derivative of ``c = y - y0`` is

        c'(x) z = H_0(y)^{-1} (H_0(y0) e - R_0 H(x) z) - e,    e = inject(z).

    Parameters
    ----------
    level : Level
        The coarse level.
    linear : Linear
        How linear systems are solved.
    objective : Objective
        What is minimised.
    x : Tensor, shape (n,)
        The iterate.

    Attributes
    ----------
    correction : Tensor, shape (n,)
        ``P_0 c``.
    """

    def __init__(self, level: Level, linear: Linear, objective: Objective, x: Tensor) -> None:
        assert level.transfer is not None  # noqa: S101 (checked by Hierarchy)
        self._f, self._x, self._transfer = objective, x.clone(), level.transfer
        self._coarse = with_products(level.objective)
        self._y0 = self._transfer.inject(x)
        delta = self._transfer.restrict(objective.gradient(x)) - self._coarse.gradient(self._y0)
        model, y = Remembered(Corrected(self._coarse, delta, self._y0)), self._y0.clone()
        newton = NewtonCG(rtol=linear.rtol)
        state = newton.init(model, y)
        for _ in range(50):
            if state.status is not None:
                break
            y, state = newton.step(model, y, state)
        if not bool(torch.isfinite(y).all()):
            y = self._y0.clone()
        self.correction = self._transfer.prolong(y - self._y0)
        at_end, self._at_start = hessian(self._coarse, y), hessian(self._coarse, self._y0)
        self._fine = hessian(self._f, self._x)
        self._inverse = Inverse(
            lambda v: at_end.product(v[0])[None],
            y[None],
            linear.dense,
            linear.rtol,
            linear.steps,
            half_bandwidth(self._coarse),
        )

    @property
    def raised(self) -> int:
        """1 if the coarse Hessian had to be made positive definite."""
        return int(self._inverse.raised.sum())

    def derivative(self, z: Tensor) -> Tensor:
        """Return ``P_0 c'(x) z``, shape (n,).

        Parameters
        ----------
        z : Tensor, shape (n,)
            A vector.
        """
        e = self._transfer.inject(z)
        fine = self._transfer.restrict(self._fine.product(z))
        return self._transfer.prolong(self._inverse.solve((self._at_start.product(e) - fine)[None])[0] - e)
