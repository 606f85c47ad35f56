"""Physics-informed training of a network of one's own, with a residual of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Tensor, nn

from mldd.problems.modules.supervised_problem import SupervisedProblem

Residual = Callable[[nn.Module, Tensor], Tensor]
Term = tuple[Residual, Tensor, float]


@dataclass(frozen=True, eq=False)
class PhysicsProblem(SupervisedProblem):
    """Train a network so that a residual vanishes at points: the mean of its squares, and weighted terms besides.

    Points are the samples of a `SupervisedProblem`: full batches or mini-batches of them, parts of the points or layers
    of the network as subdomains, fewer points on coarser levels. The terms (boundary and initial values) are evaluated
    whole each time. A residual may differentiate the network by the points; so may second derivatives for Hessian
    products.

    Parameters
    ----------
    residual : callable
        ``residual(net, points)`` returns the residuals at points of shape (m, d), shape (m,) or (m, k).
    points : Tensor, shape (n, d)
        Collocation points.
    terms : mapping of str to tuple
        ``(residual, points, weight)`` by name, each adding ``weight`` times the mean of its squares.
    net, batch, subdomains, groups, seed, device, comm
        As for `SupervisedProblem`.

    Raises
    ------
    ValueError
        Points or residuals that do not fit.

    Examples
    --------
    A network with ``u' = u``, ``u(0) = 1`` on (0, 1):

    >>> import torch
    >>> def ode(net, t):
    ...     t = t.requires_grad_()
    ...     u = net(t)
    ...     (slope,) = torch.autograd.grad(u.sum(), t, create_graph=True)
    ...     return slope - u
    >>> net = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1))
    >>> start = (lambda net, t: net(t) - 1, torch.zeros(1, 1), 10.0)
    >>> problem = PhysicsProblem(net, residual=ode, points=torch.linspace(0, 1, 20)[:, None], terms={"start": start})
    >>> problem.objective().size
    25
    """

    residual: Residual | None = None
    points: Tensor | None = None
    terms: Mapping[str, Term] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the points samples, and the squares of residuals the loss."""
        if self.residual is None or not isinstance(self.points, Tensor) or self.points.dim() != 2:
            got = tuple(self.points.shape) if isinstance(self.points, Tensor) else type(self.points).__name__
            raise ValueError(f"a physics problem needs `residual` and `points` of shape (n, d), got points {got}")
        object.__setattr__(self, "data", (self.points,))
        object.__setattr__(self, "loss", partial(_loss, residual=self.residual, terms=self.terms))
        super().__post_init__()

    @property
    def _sees_module(self) -> bool:
        return True

    def residuals(self, x: Tensor, points: Tensor) -> Tensor:
        """Return the residuals of the network with parameters `x`, shape (m,) or (m, k).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        points : Tensor, shape (m, d)
            Where.
        """
        assert self.residual is not None
        with self.flat.at(x):
            return self.residual(self.net, points.detach().clone()).detach()


def _loss(net: nn.Module, batch: Any, residual: Residual, terms: Mapping[str, Term]) -> Tensor:
    """Return the mean of squares of the residuals, and those of the other terms."""
    points = batch[0] if isinstance(batch, tuple | list) else batch
    total = residual(net, points.detach().clone()).square().mean()
    for of_term, where, weight in terms.values():
        total = total + weight * of_term(net, where.detach().clone()).square().mean()
    return total
