"""MOFFTR: multilevel optimisation without function values and without bounds, whose first-order member is AdaGrad."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from mldd.algebra import Objective
from mldd.solvers.adagrad import AdaGrad
from mldd.solvers.multilevel_adagrad import MultilevelAdaGrad, MultilevelState


@dataclass(frozen=True)
class Mofftr(MultilevelAdaGrad):
    r"""MOFFTR with the weights of ASTR1, ``w_{k,i} = sqrt(varsigma^2 + sum_{j <= k} g_{j,i}^2)``.

    On every level, steps with ``|s_i| <= Delta_i = rate |g_i| / w_i`` (without curvature ``s = -rate g / w``: AdaGrad
    without momentum) alternate with recursive ones on the first-order corrected model of the next coarser level. Of the
    exponents mu of ASTR1 only 1/2, AdaGrad's, is there.

    The recursion is that of `MultilevelAdaGrad`, and without bounds so are the steps: this is that solver for
    objectives without bounds, without curvature by default. The paper adds its varsigma to the sum of *squares*, so
    that it is the square of `smoother.varsigma`.

    Parameters
    ----------
    hierarchy : Hierarchy
        The levels, the finest first; with one level it is ASTR1.
    smoother : AdaGrad
        The iteration of every level; its `rate` is ``1 / sqrt(theta)`` of ASTR1.
    coarse : Recursion
        How coarse levels are used; their `bounds` are of no use.

    Raises
    ------
    ValueError
        A rule for the bounds of coarse levels.

    References
    ----------
    arXiv 2302.07049 (MOFFTR), of which only the single-level member is known exactly: ASTR1, arXiv 2203.01757, with the
    default varsigma of arXiv 2203.01647. The recursion is a reconstruction.
    """

    smoother: AdaGrad = AdaGrad(varsigma=0.1, curvature="none")

    def __post_init__(self) -> None:
        """Refuse a rule for bounds, as there are none."""
        if self.coarse.bounds != "kornhuber":
            raise ValueError(
                "`coarse.bounds` is for objectives with bounds, which mofftr does not take, got "
                f"{self.coarse.bounds!r}; leave it out or use ml-adagrad"
            )

    def init(self, objective: Objective, x: Tensor) -> MultilevelState:
        """Return fresh weights for every level.

        Raises
        ------
        ValueError
            The objective has bounds, or does not offer the curvature.
        """
        if not objective.bounds.is_free:
            raise ValueError("mofftr needs an objective without bounds, got one with bounds; use ml-adagrad")
        return super().init(objective, x)
