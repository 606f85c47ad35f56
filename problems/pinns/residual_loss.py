"""The mean squared residual of a differential equation as a function of the parameters of a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from mldd.algebra import Bounds, Price
from mldd.problems.nets import Draw
from mldd.problems.pinns.equations import Equation, composed, jets_of
from mldd.problems.pinns.taylor import Jets, Streams, TaylorNetwork
from mldd.ranks import SERIAL, Communicator

_IN_CACHE = 1024  # points whose streams through all layers stay in the cache of a core
_ON_GPU = 2**18


@dataclass(frozen=True)
class ResidualLoss:
    """Mean of the squared residuals ``r(u)`` over points that are divided over the ranks, with ``u = g + l N``.

    Parameters
    ----------
    net : TaylorNetwork
        The network N.
    equation : Equation
        The differential equation.
    points : Tensor, shape (m, d)
        Collocation points of this rank.
    total : int
        Points of all ranks.
    penalised : Tensor, shape (m, 1), bool, optional
        Where the residual is the error of a penalised boundary condition, ``u - g``, and the network is free
        everywhere, ``u = N``. By default the conditions are built in.
    price : Price
        What one evaluation costs.
    comm : Communicator or None
        Value and gradient are summed over its ranks in one collective; None where this rank has all points.
    drawn : Draw, optional
        The mini-batch, where it is one.
    """

    reads_features: ClassVar[bool] = False  # but coordinates

    net: TaylorNetwork
    equation: Equation
    points: Tensor
    total: int
    penalised: Tensor | None = None
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = SERIAL
    drawn: Draw | None = None

    batched = True  # takes (p, N), p copies of the parameters on the same points, too

    @property
    def size(self) -> int:
        """Number N of parameters."""
        return self.net.layout.size

    @property
    def sizes(self) -> tuple[int, ...]:
        """Number of parameters of each layer."""
        return self.net.layout.blocks

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        return Bounds.free(self.size, dtype=self.points.dtype, device=self.points.device)

    @cached_property
    def _splits(self) -> dict[int, list[PointSet]]:
        return {}

    def pieces(self, x: Tensor) -> list[PointSet]:
        """Return the points in pieces that suit evaluations of one or p sets of parameters.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        p = self._rows(x)
        if p not in self._splits:
            most = _ON_GPU if self.points.is_cuda else _IN_CACHE
            count = max(1, -(-len(self.points) * p // most))
            penalised = [None] * count if self.penalised is None else self.penalised.tensor_split(count)
            made = zip(self.points.tensor_split(count), penalised, strict=True)
            self._splits[p] = [PointSet(self.net, self.equation, points, ends) for points, ends in made]
        return self._splits[p]

    def residuals(self, x: Tensor) -> Tensor:
        """Return the residuals at the points of this rank, shape (m,), or (p, m) for x of shape (p, N).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        parameters = self.net.layout.views(x)
        with torch.no_grad():
            found = [piece.residuals(piece.streams.jets(parameters)) for piece in self.pieces(x)]
        return torch.cat(found, -2)[..., 0]

    def _rows(self, x: Tensor) -> int:
        return 1 if x.dim() == 1 else len(x)

    def _summed(self, buffer: Tensor) -> Tensor:
        return buffer if self.comm is None else self.comm.sum(buffer)

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (p,)."""
        self.price.of_value(self._rows(x))
        value = self.residuals(x).square_().sum(-1) / self.total
        return value if self.comm is None else self.comm.sum_values(value)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        self.price.of_gradient(self._rows(x))
        parameters = self.net.layout.views(x.detach())
        pieces = self.pieces(x)
        parts = x.new_zeros((min(len(pieces), 2), *x.shape[:-1], self.size + 1))  # the sum, and the part of a piece
        total = parts[0]
        for k, piece in enumerate(pieces):
            part = parts[min(k, 1)]
            part[..., -1] = piece.pullback(parameters, self.net.layout.views(part[..., :-1]))
            if k > 0:
                total += part
        total = self._summed(total.div_(self.total))
        return total[..., -1].clone(), total[..., :-1]

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``."""
        self.price.of_product(self._rows(x))
        total = torch.zeros_like(x)
        for piece in self.pieces(x):
            leaves = self.net.layout.leaves(x)
            loss = piece.squares(piece.streams.jets(leaves)).sum()
            g = torch.autograd.grad(loss, leaves, create_graph=True, materialize_grads=True)
            slope = torch.stack([(a * b).sum() for a, b in zip(g, self.net.layout.views(v), strict=True)]).sum()
            total += self.net.layout.pack(torch.autograd.grad(slope, leaves, materialize_grads=True))
        return self._summed(total.div_(self.total))


@dataclass(frozen=True)
class PointSet:
    """Some of the points of a `ResidualLoss`, with what does not depend on the parameters.

    Parameters
    ----------
    net : TaylorNetwork
        The network.
    equation : Equation
        The differential equation.
    points : Tensor, shape (m, d)
        Points of the box, one in a row.
    penalised : Tensor, shape (m, 1), or None
        Which points penalise a boundary condition; None: none do.
    """

    net: TaylorNetwork
    equation: Equation
    points: Tensor
    penalised: Tensor | None

    @cached_property
    def streams(self) -> Streams:
        """The network at the points."""
        return self.net.at(self.points, self.equation.orders)

    @cached_property
    def _conditions(self) -> tuple[Jets, Jets]:
        """Return g and l with their derivatives."""
        e = self.equation
        return jets_of(e.lift, self.points, e.orders), jets_of(e.factor, self.points, e.orders)

    def residuals(self, jets: Jets) -> Tensor:
        """Return the residuals for values and derivatives of the network, shape of its values.

        Parameters
        ----------
        jets : Jets
            Values and derivatives of the network.
        """
        g, factor = self._conditions
        if self.penalised is None:
            return self.equation.residual(composed(g, factor, jets), self.points)
        return torch.where(self.penalised, jets.value - g.value, self.equation.residual(jets, self.points))

    def squares(self, jets: Jets) -> Tensor:
        """Return the sum of the squares of the residuals, shape () or (p,).

        Parameters
        ----------
        jets : Jets
            Values and derivatives of the network.
        """
        return self.residuals(jets).square().sum((-2, -1))

    @cached_property
    def _affine(self) -> tuple[Tensor, Tensor]:
        """Of a linear equation the residuals of zero streams, shape (m, 1), and their slopes, shape (S, m, 1)."""
        zero = self.points.new_zeros((self.streams.count, len(self.points), 1)).requires_grad_()
        with torch.enable_grad():
            residuals = self.residuals(self.streams.split(zero))
            (slopes,) = torch.autograd.grad(residuals.sum(), zero)
        return residuals.detach(), slopes

    def pullback(self, parameters: Sequence[Tensor], out: Sequence[Tensor]) -> Tensor:
        """Return the sum of the squares of the residuals, and write its gradient to `out`.

        Parameters
        ----------
        parameters : sequence of Tensor
            Views of the layout, with or without a leading axis.
        out : sequence of Tensor
            Gets the gradient, shaped as the parameters.
        """
        if not self.equation.linear:
            return self.streams.pullback(parameters, self.squares, out)
        offset, slopes = self._affine
        evaluation = self.streams.forward(parameters)
        r: Tensor = torch.linalg.vecdot(evaluation.streams, slopes, dim=-3).add_(offset)
        evaluation.backward(slopes * r.unsqueeze(-3).mul(2.0), out)
        return r.square_().sum((-2, -1))
