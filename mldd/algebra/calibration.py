"""Prices by measurement: CPU time of evaluations over that of a fine gradient of a single process."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from mldd.algebra.cost import count, counting, rescaled, uncounted
from mldd.algebra.curvature import AroundHessian, hessian
from mldd.algebra.decompositions import Decomposition, SharedDecomposition
from mldd.algebra.hierarchy import Hierarchy, Level
from mldd.algebra.objective import Around, Objective, offers, sampled, value_and_gradient

Decomposed = TypeVar("Decomposed", Decomposition, SharedDecomposition)

_LEAST, _MOST = 3, 25  # evaluations that are timed
_ENOUGH = 0.05  # seconds of CPU time that they take together
# Numbers (of four bytes) that are written between evaluations, so that these find the caches as cold as in a run, where
# a solver's vectors and other evaluations go through them: so many vectors, but at least 16 MB and at most 64 MB, which
# no cache holds. With half of it a stencil on 511 x 511 nodes was measured up to three times too cheap, and a graph
# network on Cora by a third.
_VECTORS, _FEWEST_OTHERS, _MOST_OTHERS = 40, 2**22, 2**24
_LONG = 1.0  # seconds of the first one, which then is the only one


@dataclass(frozen=True)
class CostFactors:
    """Measured over estimated cost of the evaluations of an objective.

    Parameters
    ----------
    gradient, both, value, product : float
        Factors on the work of a gradient, of a gradient with its value, of a value, and of a Hessian product.
    draw : float
        Fine gradients of drawing a sample, 0 where there is nothing to draw.
    """

    gradient: float
    both: float
    value: float
    product: float
    draw: float = 0.0


@dataclass(frozen=True)
class Calibrated(Around):
    """`f`, whose evaluations count as what they have been measured to cost.

    Parameters
    ----------
    f : Objective
        The fine one, a coarse level, or a batch of local models.
    factors : CostFactors
        On the work that `f` counts.
    """

    factors: CostFactors

    @property
    def batched(self) -> bool:
        """Whether `f` takes a batch of vectors."""
        return bool(getattr(self.f, "batched", False))

    def value(self, x: Tensor) -> Tensor:
        """Return the value of `f`."""
        with rescaled(self.factors.value):
            return self.f.value(x)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient of `f`."""
        with rescaled(self.factors.gradient):
            return self.f.gradient(x)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, in one sweep where `f` offers it."""
        if not hasattr(self.f, "value_and_gradient"):
            return self.value(x), self.gradient(x)
        with rescaled(self.factors.both):
            return value_and_gradient(self.f, x)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` of `f`."""
        with rescaled(self.factors.product):
            return super().hessian_product(x, v)

    def hessian(self, x: Tensor) -> AroundHessian:
        """Return the Hessian of `f` at a point.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            The point.
        """

        def rescale(evaluate: Callable[[], Any]) -> Any:
            with rescaled(self.factors.product):
                return evaluate()

        return AroundHessian(hessian(self.f, x), rescale)


@dataclass(frozen=True)
class StochasticCalibrated(Calibrated):
    """A `Calibrated` stochastic objective: its samples have the same factors."""

    def sample(self, step: int) -> Calibrated:
        """Return the objective of outer step `step`, which is drawn for all evaluations of the step."""
        count(work=self.factors.draw)
        return calibrated(sampled(self.f, step), self.factors)


def calibrated(f: Objective, factors: CostFactors) -> Calibrated:
    """Return `f` with other prices.

    Parameters
    ----------
    f : Objective
        Whose work is estimated.
    factors : CostFactors
        Measured over estimated work.
    """
    return (StochasticCalibrated if hasattr(f, "sample") else Calibrated)(f, factors)


def measured(evaluate: Callable[[], Any], size: int, agree: Callable[[float], float]) -> tuple[float, float]:
    """Return CPU seconds and counted work of one evaluation on this rank: the median of several, after a first one.

    Parameters
    ----------
    evaluate : callable
        Evaluates once; all ranks call it together.
    size : int
        Length of a vector: between evaluations some are written, as a solver does.
    agree : callable
        Returns the mean over ranks of a number, so that all evaluate equally often.
    """

    def once() -> tuple[float, float]:
        begin = time.process_time()
        with counting() as cost:
            evaluate()
        return time.process_time() - begin - cost.waited, cost.work

    mine, work = once()
    first, times = agree(mine), [mine]
    others = torch.zeros(min(max(_VECTORS * size, _FEWEST_OTHERS), _MOST_OTHERS))
    for _ in range(int(min(_MOST, max(_LEAST, _ENOUGH / max(first, 1e-9)))) if first < _LONG else 0):
        others.add_(1.0)
        times.append(once()[0])
    return max(statistics.median(times[1:] or times), 1e-9), work


def unit_of(f: Objective, x: Tensor, total: Callable[[float], float], agree: Callable[[float], float]) -> float:
    """Return the CPU seconds of a fine gradient of a single process.

    Parameters
    ----------
    f : Objective
        The fine one; where ranks share it, the time of all is divided by the work of all.
    x : Tensor, shape (n,)
        Where it is evaluated.
    total, agree : callable
        Return the sum and the mean over ranks of a number.
    """
    sample = sampled(f, 0)  # to draw one is no part of it
    seconds, work = measured(lambda: sample.gradient(x), x.numel(), agree)
    return total(seconds) / max(total(work), 1e-9)


def factors_of(f: Objective, x: Tensor, unit: float, agree: Callable[[float], float]) -> CostFactors:
    """Measure the evaluations of an objective and return the factors on its work.

    Parameters
    ----------
    f : Objective
        The fine one or a rank's share of it, a coarse level, or a batch of local models.
    x : Tensor, shape (n,) or (p, m)
        Where it is evaluated.
    unit : float
        CPU seconds of a fine gradient of a single process.
    agree : callable
        Returns the mean over ranks of a number.
    """

    def factor(evaluate: Callable[[], Any]) -> float:
        seconds, work = measured(evaluate, x.numel(), agree)
        return seconds / unit / work if work > 0 else 1.0

    sample, steps = sampled(f, 0), itertools.count()
    return CostFactors(
        gradient=factor(lambda: sample.gradient(x)),
        both=factor(lambda: value_and_gradient(sample, x)),
        value=factor(lambda: sample.value(x)),
        product=factor(partial(hessian(sample, x).product, x)) if offers(sample, "hessian_product") else 1.0,
        draw=_difference(lambda: sampled(f, next(steps)).gradient(x), lambda: sample.gradient(x), x.numel(), agree)
        / unit
        if hasattr(f, "sample")
        else 0.0,
    )


def _difference(more: Callable[[], Any], less: Callable[[], Any], size: int, agree: Callable[[float], float]) -> float:
    """Return by how many CPU seconds the one takes longer than the other."""
    return max(measured(more, size, agree)[0] - measured(less, size, agree)[0], 0.0)


def calibrated_hierarchy(hierarchy: Hierarchy, x: Tensor, unit: float, agree: Callable[[float], float]) -> Hierarchy:
    """Return the levels with measured prices; the fine one is the unit.

    Parameters
    ----------
    hierarchy : Hierarchy
        With estimated prices.
    x : Tensor, shape (n,)
        A point of the finest level.
    unit : float
        CPU seconds of a fine gradient of a single process.
    agree : callable
        Returns the mean over ranks of a number.
    """
    made: list[Level] = [hierarchy[0]]
    for level in hierarchy.levels[1:]:
        assert level.transfer is not None  # a hierarchy checks it
        x = level.transfer.inject(x)
        factors = factors_of(level.objective, x, unit, agree)
        work = level.work * factors.gradient
        made.append(replace(level, objective=calibrated(level.objective, factors), work=work))
    return Hierarchy(tuple(made))


def calibrated_decomposition(
    decomposition: Decomposed, f: Objective, x: Tensor, unit: float, agree: Callable[[float], float]
) -> Decomposed:
    """Return the decomposition whose local models have measured prices.

    Parameters
    ----------
    decomposition : Decomposition or SharedDecomposition
        With estimated prices.
    f : Objective
        The fine one.
    x : Tensor, shape (n,)
        Where the local models are measured.
    unit : float
        CPU seconds of a fine gradient of a single process.
    agree : callable
        Returns the mean over ranks of a number.
    """
    with uncounted():
        models = decomposition.models(sampled(f, 0), x, None)
    points = decomposition.gather(x).contiguous()  # in a run each member has values of its own
    factors = factors_of(models, points, unit, agree)
    plain = decomposition.build
    samples = itertools.count()

    def anew() -> None:
        decomposition.models(sampled(f, next(samples)), x, None).gradient(points)

    making = _difference(anew, lambda: models.gradient(points), x.numel(), agree) / unit

    def build(d: Any, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
        count(work=making)
        with rescaled(factors.gradient):  # of corrections
            models = plain(d, f, x, g)
        return calibrated(models, factors)

    return replace(decomposition, build=build)
