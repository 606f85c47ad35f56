"""Gradients that are looked at twice: evaluated again, and compared with differences of values."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mldd.algebra import Objective
from mldd.ranks import Communicator

_SLOPE = 0.05  # relative difference between a slope and a difference of values that is laid to curvature
_ROUNDING = 100.0  # of values that are sums of many terms, in units of rounding of the largest


def _differs(g: Tensor, h: Tensor, first: float) -> bool:
    """Return whether two gradients differ by more than rounding.

    What is left of large terms that cancel out is rounding as well: entries below ``sqrt(eps)`` of the first measure
    are not asked to agree.
    """
    if torch.equal(g, h):
        return False
    eps = torch.finfo(g.dtype).eps
    size = max(float(g.abs().max()), float(h.abs().max()), math.sqrt(eps) * first)
    return not (size < math.inf and float((g - h).abs().max()) <= eps**0.375 * size)


def is_another(f: Objective, x: Tensor, g: Tensor, first: float, comm: Communicator) -> bool:
    """Return whether a gradient is another one when it is evaluated again, twice with the same result.

    Called by all ranks. Sums whose order changes from one evaluation to the next differ each time, which is no fault.

    Parameters
    ----------
    f : Objective
        What has been evaluated, without memory.
    x : Tensor, shape (n,)
        Where.
    g : Tensor, shape (n,)
        What has come of it.
    first : float
        Measure at the start of the run.
    comm : Communicator
        The ranks, which evaluate together.
    """
    again = f.gradient(x)
    differs = _differs(g, again, first)
    if comm.sum_scalars([float(differs)])[0] == 0:
        return False
    return not _differs(again, f.gradient(x), first) and differs


def is_slope(f: Objective, x: Tensor, g: Tensor) -> bool:
    """Return whether ``<g, d>`` along ``d = g / |g|`` agrees with a central difference of values, one of two lengths.

    Called by all ranks. Unknowns that the difference would move out of their bounds stay where they are.

    Parameters
    ----------
    f : Objective
        What has been evaluated, without memory.
    x : Tensor, shape (n,)
        Where.
    g : Tensor, shape (n,)
        The gradient that is looked at.

    References
    ----------
    The lengths are those of Nocedal and Wright, Numerical Optimization (2006), section 8.1, equation 8.7.
    """
    eps, norm = torch.finfo(x.dtype).eps, float(torch.linalg.vector_norm(g))
    longest = eps ** (1 / 3) * max(1.0, float(torch.linalg.vector_norm(x)))
    d = g / norm if 0 < norm < math.inf else torch.ones_like(g) / math.sqrt(len(g))
    if not f.bounds.is_free:
        inside = (x - longest * d.abs() >= f.bounds.lower) & (x + longest * d.abs() <= f.bounds.upper)
        d = torch.where(inside, d, 0.0)
    slope, agrees = float(torch.dot(g, d)), False
    for length in (longest, longest / 8):
        above, below = (float(f.value(x + t * d)) for t in (length, -length))
        error = abs((above - below) / (2 * length) - slope)
        noise = _ROUNDING * eps * (abs(above) + abs(below)) / length
        agrees |= not error < math.inf or error <= _SLOPE * abs(slope) + noise  # values that overflow say nothing
    return agrees
