"""Component-wise bounds ``lower <= x <= upper`` and the criticality measure that goes with them."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Bounds:
    """The box ``{x : lower <= x <= upper}``.

    Parameters
    ----------
    lower, upper : Tensor, shape (n,) or (p, m)
        Bounds, infinite where there is none. A batch of subdomains has one row per subdomain.
    is_free : bool
        No component has a bound; every operation is then free of cost. By default it is looked for.
    """

    lower: Tensor
    upper: Tensor
    is_free: bool = field(default=None)  # type: ignore[assignment]

    def __post_init__(self) -> None:
        """Look whether there is a bound where that is not said.

        Raises
        ------
        ValueError
            Bounds that are no tensors.
        """
        for name, bound in (("lower", self.lower), ("upper", self.upper)):
            if not isinstance(bound, Tensor):
                raise ValueError(
                    f"`{name}` must be a tensor with a bound for every unknown, got {type(bound).__name__}; take "
                    "torch.full((n,), bound, dtype=x.dtype)"
                )
        if self.is_free is None:
            lower, upper = self.lower, self.upper  # on the meta device there are no values to look at
            none = not lower.is_meta and bool(torch.isneginf(lower).all() & torch.isposinf(upper).all())
            object.__setattr__(self, "is_free", none)

    @staticmethod
    def free(*shape: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> Bounds:
        """Return no bounds on ``free(n)`` unknowns or on a batch of ``free(p, m)``, without taking memory.

        Parameters
        ----------
        *shape : int
            Of the vectors.
        dtype : torch.dtype
            Of the vectors.
        device : torch.device | str
            Where they live.
        """
        infinity = torch.tensor([torch.inf], dtype=dtype, device=device)
        return Bounds((-infinity).expand(shape), infinity.expand(shape), is_free=True)

    def check(self, x: Tensor) -> None:
        """Refuse bounds that fit no vector like `x`.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            A vector of the space.

        Raises
        ------
        ValueError
            Wrong shape, NaN, a lower bound above its upper bound, or no finite number between them.
        """
        for name, bound in (("lower", self.lower), ("upper", self.upper)):
            if bound.shape != x.shape:
                raise ValueError(f"`{name}` must have the shape of x, {tuple(x.shape)}, got {tuple(bound.shape)}")
        if self.is_free:
            return
        wrong = ~(self.lower <= self.upper)
        if bool(wrong.any()):
            i = int(wrong.flatten().nonzero()[0])
            raise ValueError(
                f"bounds need lower <= upper in every component, got {float(self.lower.flatten()[i])} > "
                f"{float(self.upper.flatten()[i])} at component {i} ({int(wrong.sum())} in all); swap or widen them"
            )
        if bool((self.lower == torch.inf).any() or (self.upper == -torch.inf).any()):
            raise ValueError("bounds need a finite number between them, got a lower one of inf or an upper of -inf")

    def project(self, x: Tensor, out: Tensor | None = None) -> Tensor:
        """Return the nearest point of the box, ``clip(x, lower, upper)``.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Any point.
        out : Tensor, optional
            Where the result is written to; may be `x`.
        """
        if self.is_free:
            return x.clone() if out is None else out.copy_(x)
        return torch.clamp(x, self.lower, self.upper, out=out)

    def shifted(self, x: Tensor) -> Bounds:
        """Return bounds on a correction ``e`` such that ``x + e`` stays in the box.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            A point of the box.
        """
        return self if self.is_free else Bounds(self.lower - x, self.upper - x, False)

    def criticality(self, x: Tensor, g: Tensor) -> Tensor:
        """Return the projected first-order step ``d = project(x - g) - x``; it vanishes exactly at critical points.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            A point of the box.
        g : Tensor, shape (n,) or (p, m)
            The gradient there.
        """
        if self.is_free:
            return -g
        return torch.clamp(x - g, self.lower, self.upper).sub_(x)

    def measure(self, x: Tensor, g: Tensor, norm: float = torch.inf) -> float:
        """Return the norm of ``project(x - g) - x`` (infinity norm unless `norm` says otherwise).

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            A point of the box.
        g : Tensor, shape (n,) or (p, m)
            The gradient there.
        norm : float
            Order of the norm.
        """
        d = g if self.is_free else self.criticality(x, g)
        if norm == torch.inf:
            return float(d.abs().max())  # ten times faster than vector_norm, which does not vectorise this norm
        return float(torch.linalg.vector_norm(d, norm))

    def violation(self, x: Tensor) -> float:
        """Return the largest amount by which a component of `x` lies outside (0.0 inside).

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, m)
            Any point.
        """
        if self.is_free or x.numel() == 0:
            return 0.0
        return max(0.0, float((self.lower - x).max()), float((x - self.upper).max()))
