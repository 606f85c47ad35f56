"""Whether a closure of torch is what solvers of several evaluations take it for: one function, with its gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from mldd.solvers.parts.closure import ClosureObjective

_AGREE = 2.0  # factor between slopes that difference quotients may have where the loss is rough


def check_closure(f: ClosureObjective, x: Tensor, value: Tensor, g: Tensor) -> None:
    """Evaluate a few times more after a step, and warn of a closure that is no function or whose gradient is another's.

    Warn also where values are compared in less than float64.

    Parameters
    ----------
    f : ClosureObjective
        With its evaluations of the step.
    x : Tensor, shape (n,)
        Where the step began.
    value : Tensor, shape ()
        The loss there.
    g : Tensor, shape (n,)
        The gradient there.
    """
    again, g_again = f.evaluate(x)
    assert again is not None  # noqa: S101 (it has been evaluated)
    eps, solver = torch.finfo(g.dtype).eps, f.around.solver
    largest = float(torch.maximum(value.abs(), again.abs()))
    noise, slack = float(torch.linalg.vector_norm(g_again - g)), float(torch.linalg.vector_norm(g))
    if not (float((again - value).abs()) <= eps**0.75 * largest and noise <= eps**0.5 * slack + eps * largest):
        f.around.tell(
            "closure",
            f"the closure must give the same at the same parameters, got loss {float(value):.9g} and then "
            f"{float(again):.9g}, with gradients that differ by {noise:.1e} (dropout, another mini-batch per "
            f"call?); {solver} evaluates it several times a step: fix the sample, or use a solver that "
            "evaluates it once (adam, sgd)",
        )
    elif f.compared:
        _check_slope(f, x, g)
    if f.compared and g.dtype != torch.float64:
        f.around.tell(
            "float32",
            f"{solver} compares function values, got {g.dtype}, which cannot tell them apart below a relative "
            f"difference of {eps:.0e}; for accurate minimisers use module.double()",
        )


def _check_slope(f: ClosureObjective, x: Tensor, g: Tensor) -> None:
    """Compare the slope of the loss along `g` by two more evaluations with that of the gradient."""
    norm, eps = float(torch.linalg.vector_norm(g)), torch.finfo(g.dtype).eps
    if not f.bounds.is_free or not norm > 0:
        return
    t = eps ** (1 / 3) * (1 + float(x.abs().max())) / norm
    ahead, behind = (float(f.value(torch.add(x, g, alpha=s))) for s in (t, -t))
    found, expected = ahead - behind, 2 * t * norm**2
    if not max(abs(found), expected) > 1e3 * eps * max(abs(ahead), abs(behind)):
        return  # rounding would decide, or a value is not finite
    factor = found / expected
    if not 1 / _AGREE < factor < _AGREE:
        f.around.tell(
            "slope",
            "the gradient must be that of the loss that the closure returns, got slopes that differ by the factor "
            f"{factor:.1e} (a scaled loss, clipped gradients, another loss?), which {f.around.solver} cannot match; "
            "return the loss of backward(), and leave GradScaler and clipping out",
        )
