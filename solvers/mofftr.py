"""MOFFTR: multilevel optimisation without function values and without bounds, whose first-order member is AdaGrad."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from torch import Tensor

from mldd.algebra import Hierarchy, Objective
from mldd.solvers.adagrad import Curvature
from mldd.solvers.multilevel_adagrad import MultilevelAdaGrad, MultilevelState


@dataclass(frozen=True)
class Mofftr:
    r"""MOFFTR with the weights of ASTR1, ``w_{k,i} = sqrt(varsigma + sum_{j <= k} g_{j,i}^2)``.

    On every level, steps with ``|s_i| <= Delta_i = rate |g_i| / w_i`` (without curvature ``s = -rate g / w``: AdaGrad
    without momentum) alternate with recursive ones on the first-order corrected model of the next coarser level.

    The recursion is that of `MultilevelAdaGrad`. Without bounds the two methods differ in nothing but the first value
    of the weights: ASTR1 adds varsigma to the sum of *squares*, where ADAGB2 starts from ``w = varsigma``. So this is
    ``MultilevelAdaGrad`` with the square root of `varsigma`, and it makes no other claim.

    Parameters
    ----------
    hierarchy : Hierarchy
        With one level it is ASTR1.
    varsigma : float
        Added to the sums of squares, in (0, 1].
    rate : float
        Factor on all radii, ``1 / sqrt(theta)`` of ASTR1. Of its exponents mu only 1/2, AdaGrad's, is there.
    curvature : {"none", "auto", "exact", "diagonal", "lbfgs"}
        B of the quadratic model; see `AdaGrad`.
    model_steps
        See `AdaGrad`.
    cycle, smoothing, coarse_steps, coarse_rtol, recursion, cap, safeguard
        See `MultilevelAdaGrad`.

    References
    ----------
    arXiv 2302.07049 (MOFFTR), of which only the single-level member is known exactly: ASTR1, arXiv 2203.01757, with the
    default varsigma of arXiv 2203.01647. The recursion is a reconstruction.
    """

    hierarchy: Hierarchy
    varsigma: float = 0.01
    rate: float = 1.0
    curvature: Curvature = "none"
    model_steps: int = 3
    cycle: Literal["V", "W"] = "V"
    smoothing: int = 1
    coarse_steps: int = 20
    coarse_rtol: float = 1e-3
    recursion: float = 0.5
    cap: float = 30.0
    safeguard: bool = True

    def __post_init__(self) -> None:
        """Refuse parameters outside of their ranges."""
        if not 0 < self.varsigma <= 1:
            raise ValueError(f"`varsigma` must be in (0, 1], got {self.varsigma}")
        _ = self.recursive

    @cached_property
    def recursive(self) -> MultilevelAdaGrad:
        """The method as a case of ML-ADAGB2."""
        return MultilevelAdaGrad(
            self.hierarchy,
            varsigma=math.sqrt(self.varsigma),
            rate=self.rate,
            curvature=self.curvature,
            model_steps=self.model_steps,
            cycle=self.cycle,
            smoothing=self.smoothing,
            coarse_steps=self.coarse_steps,
            coarse_rtol=self.coarse_rtol,
            recursion=self.recursion,
            cap=self.cap,
            safeguard=self.safeguard,
        )

    def init(self, objective: Objective, x: Tensor) -> MultilevelState:
        """Return fresh weights for every level.

        Raises
        ------
        ValueError
            The objective has bounds, or does not offer the `curvature`.
        """
        if not objective.bounds.is_free:
            raise ValueError("mofftr needs an objective without bounds, got one with bounds; use ml-adagrad")
        return self.recursive.init(objective, x)

    def step(self, objective: Objective, x: Tensor, state: MultilevelState) -> tuple[Tensor, MultilevelState]:
        """Do one iteration of the finest level, in place."""
        return self.recursive.step(objective, x, state)
