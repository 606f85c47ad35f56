"""What an objective has to return, looked at where solvers get it: a user's own may return anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mldd.algebra.bounds import Bounds


def check_objective(objective: Any) -> None:
    """Refuse what is no objective.

    Parameters
    ----------
    objective : object
        What is to be minimised.

    Raises
    ------
    ValueError
        An attribute is missing, bounds are none of mldd's, or there is no unknown.
    """
    kind = type(objective).__name__
    if isinstance(objective, type):
        raise ValueError(f"an objective must be an object, got the class {objective.__name__}; make one of it")
    lacking = [name for name in ("size", "bounds", "gradient") if not hasattr(objective, name)]
    if lacking:
        raise ValueError(
            f"an objective must have size, bounds, gradient(x) and value(x), got {kind} without {', '.join(lacking)}; "
            "bounds = Bounds.free(n) says that there are none"
        )
    if not isinstance(objective.bounds, Bounds):
        got = type(objective.bounds).__name__
        raise ValueError(f"`bounds` of {kind} must be mldd.algebra.Bounds, got {got}; take Bounds.free(n) for none")
    if objective.size < 1:
        raise ValueError(f"`size` of {kind} must be >= 1, got {objective.size}; there is nothing to minimise")


def check_left(f: Any, x: Tensor, version: int, what: str) -> None:
    """Refuse an objective that writes to the point at which it is evaluated.

    Parameters
    ----------
    f : Objective
        The objective.
    x : Tensor, shape (n,) or (p, m)
        The point.
    version : int
        Of its tensor before the evaluation.
    what : str
        What was evaluated.

    Raises
    ------
    ValueError
        It was written to.
    """
    if x._version != version:
        raise ValueError(
            f"{what} of {type(f).__name__} must leave x as it is, got one that writes to it in place; let it write to "
            "a copy (x = x.clone())"
        )


def check_rows(f: Any, x: Tensor, values: Any, g: Any) -> None:
    """Refuse what an objective that is ``batched`` returns for several points, where it is not one result per point.

    Parameters
    ----------
    f : Objective
        The objective.
    x : Tensor, shape (p, n)
        The points.
    values : Tensor, shape (p,), or None
        Their values; None where they were not asked for.
    g : Tensor, shape (p, n), or None
        Their gradients, likewise.

    Raises
    ------
    ValueError
        Other shapes.
    """
    for name, found, shape in (("value", values, x.shape[:1]), ("gradient", g, x.shape)):
        if found is not None and getattr(found, "shape", None) != shape:
            got = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
            while not hasattr(type(f), "batched") and hasattr(f, "f"):
                f = f.f  # what others wrap
            raise ValueError(
                f"{name}(x) of {type(f).__name__}, which says batched = True, must have shape {tuple(shape)} for x of "
                f"shape {tuple(x.shape)}, got {got}; sum over the last axes alone, or leave `batched` out"
            )


def version_of(x: Tensor) -> int:
    """Return how often a tensor was written to, -1 where torch does not count.

    Parameters
    ----------
    x : Tensor
        Any tensor.
    """
    return -1 if x.is_inference() else x._version


def as_value(value: Any, x: Tensor) -> Tensor:
    """Return a value as a tensor, numbers of Python and NumPy included.

    Parameters
    ----------
    value : Tensor or number
        As an objective has returned it.
    x : Tensor, shape (n,) or (p, m)
        The point.
    """
    return value if isinstance(value, Tensor) else torch.as_tensor(value, dtype=x.dtype, device=x.device)


def check_gradient(f: Any, x: Tensor, g: Any, before: tuple[Tensor | None, int]) -> None:
    """Refuse what is no gradient at `x`, and one in memory that has been handed out before.

    Parameters
    ----------
    f : Objective
        The objective.
    x : Tensor, shape (n,) or (p, m)
        The point.
    g : object
        What it has returned.
    before : tuple of Tensor and int
        The gradient before, and the version of its tensor when it was returned; None without one.

    Raises
    ------
    ValueError
        Not a tensor like x, or the memory of the gradient before.
    """
    if not isinstance(g, Tensor) or g.shape != x.shape or g.dtype != x.dtype or g.device != x.device:
        got = f"{g.dtype} {tuple(g.shape)} on {g.device}" if isinstance(g, Tensor) else type(g).__name__
        raise ValueError(
            f"gradient(x) of {type(f).__name__} must be a tensor like x, {x.dtype} {tuple(x.shape)} on {x.device}, got "
            f"{got}; take torch.as_tensor(g, dtype=x.dtype)"
        )
    last, version = before
    if last is None or g.numel() == 0 or g.data_ptr() != last.data_ptr() or g.is_meta:
        return
    if g is not last or version_of(g) != version:
        raise ValueError(
            f"gradient(x) of {type(f).__name__} must be a new tensor every time, got the memory of the gradient "
            "before, which solvers still need; return g.clone()"
        )
