"""Nested iteration over coarse levels by L-BFGS, then L-BFGS or any other solver on the objective itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from mldd.algebra import Hierarchy, Identity, Objective, Remembered, remember, sampled, value_and_gradient
from mldd.loop import Solver, State, Status
from mldd.ranks import SERIAL, Communicator
from mldd.solvers.lbfgs import LBFGS, LbfgsState


@dataclass(frozen=True)
class MultilevelLBFGS:
    r"""ML-LBFGS: `coarse_steps` L-BFGS steps on every coarse level, from the coarsest up; then L-BFGS on the objective.

    The first outer step is the nested iteration: with ``y_0 = x`` and ``y_{k+1} = inject(y_k)`` each level k, from the
    coarsest to 1, goes by L-BFGS from ``y_k + P (x_{k+1} - y_{k+1})`` to ``x_k``, and x becomes ``x + P (x_1 - y_1)``
    where that is lower, else it stays (counted as rejected). From a coarse network it goes on where the finer one is
    the same function (``lift(x_{k+1})``, see `mldd.algebra.transfer.carried`). Every other outer step is one of L-BFGS,
    and the loss never rises; or one of the solver `then`.

    Where levels have the same unknowns (coarse graphs), a level begins with the newest secant pair of the one before,
    and so with the right length and scaling of its first step. More pairs would be of another function and were seen to
    slow down the end of the run; none costs the evaluations that find a first step length.

    Coarse levels are evaluated by every rank for itself, so that the whole nested iteration takes one synchronisation:
    rank 0's result is taken by all.

    Parameters
    ----------
    hierarchy : Hierarchy
        One level for plain L-BFGS.
    coarse_steps : int
        Steps on every coarse level. Few are enough: a coarse level can be fitted better than the fine one.
    smoother : LBFGS
        The iteration of every level.
    then : Solver, optional
        The solver of all outer steps but the first instead of L-BFGS, as LocalSGD, which needs few synchronisations
        where parts of the graph are alike.
    comm : Communicator
        Rank 0's result of the nested iteration is taken by all.

    Raises
    ------
    ValueError
        Parameters out of range.

    References
    ----------
    Nested iteration: Briggs, Henson and McCormick, A Multigrid Tutorial (2000), chapter 3; multilevel optimisation:
    Nash, Optim. Methods Softw. 14 (2000). L-BFGS: Nocedal and Wright, Numerical Optimization (2006), algorithm 7.5.
    """

    hierarchy: Hierarchy
    coarse_steps: int = 25
    smoother: LBFGS = LBFGS()
    then: Solver | None = None
    comm: Communicator = SERIAL

    needs_value: ClassVar[bool] = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not self.coarse_steps >= 0:
            raise ValueError(f"`coarse_steps` must be >= 0, got {self.coarse_steps}")

    @property
    def needs_gradient(self) -> bool:
        """Whether the solver of the finest level asks for the gradient of the whole."""
        return bool(getattr(self.then, "needs_gradient", True))

    def init(self, objective: Objective, x: Tensor) -> MultilevelLbfgsState:
        """Return an empty memory.

        Raises
        ------
        ValueError
            The objective has bounds, or the finest level another number of unknowns.
        """
        if not objective.bounds.is_free:
            raise ValueError(
                "ml-lbfgs needs an objective without bounds, got one with bounds; use ml-adagrad or tao:blmvm"
            )
        if self.hierarchy[0].objective.size != len(x):
            raise ValueError(
                f"`hierarchy` must be one of {len(x)} unknowns on level 0, got {self.hierarchy[0].objective.size}"
            )
        return MultilevelLbfgsState(fine=(self.then or self.smoother).init(objective, x))

    def step(self, objective: Objective, x: Tensor, state: MultilevelLbfgsState) -> tuple[Tensor, MultilevelLbfgsState]:
        """Do one outer step, in place."""
        state.level = 0
        if state.step == 0 and len(self.hierarchy) > 1 and self.coarse_steps:
            self._start(objective, x, state)
            state.level = len(self.hierarchy) - 1
            return x, state
        fine = state.fine
        fine.status = None
        x, state.fine = (self.then or self.smoother).step(objective, x, fine)
        fine.step += 1
        state.status, state.notes = fine.status, fine.notes
        return x, state

    def _start(self, objective: Objective, x: Tensor, state: MultilevelLbfgsState) -> None:
        """Replace `x` by the result of the nested iteration, where that is lower."""
        before = float(objective.value(x))
        if not math.isfinite(before):
            state.status = Status.diverged
            return
        found, pair = self._nested(x, state.step)
        packed = torch.stack([found, *(pair or (torch.zeros_like(x),) * 2)])
        if self.comm.rank != 0:
            packed.zero_()
        found, s, y = self.comm.sum(packed)
        value, g = value_and_gradient(objective, found)
        if not float(value) < before:
            state.rejected += 1
            return
        state.accepted += 1
        if isinstance(state.fine, LbfgsState):
            state.fine.pairs.push(s, y)
            state.fine.value, state.fine.gradient = float(value), g
        x.copy_(found)
        remember(objective, x, g)

    def _nested(self, x: Tensor, number: int) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Return where the levels lead from `x`, and their newest secant pair if it is of the finest space."""
        levels = self.hierarchy.levels
        starts = self.hierarchy.injected(x)
        y, pair = starts[-1].clone(), None
        for k in range(len(levels) - 1, 0, -1):
            y, pair = self._solve(sampled(levels[k].objective, number), y, pair)
            y = self.hierarchy.refined(k, y, starts)
            if not isinstance(levels[k].transfer, Identity):
                pair = None
        return y, pair

    def _solve(
        self, plain: Objective, y: Tensor, pair: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, tuple[Tensor, Tensor] | None]:
        """Do the steps of one coarse level; return the iterate and the newest pair."""
        f = Remembered(plain, True)
        mine = self.smoother.init(f, y)
        if pair is not None:
            mine.pairs.push(*pair)
        for _ in range(self.coarse_steps):
            self.smoother.step(f, y, mine)
            if mine.status is not None or mine.length == 0:
                break
        return y, mine.pairs.last


@dataclass
class MultilevelLbfgsState(State):
    """State of `MultilevelLBFGS`.

    Attributes
    ----------
    fine : State
        Of the solver of the finest level.
    """

    fine: Any = field(default_factory=LbfgsState)
