"""Discrete energies on grids: value, gradient and curvature by vectorised stencils, without a matrix.

Every energy acts on flat vectors (n,) or on batches (p, n), and gives *dual* gradients (sums over cells of size h^2),
so the same energy on a coarser grid is a consistent coarse model with R = P^T. The batch of the subdomains of a rank
is an energy too: the same stencil on windows of the grid, with what is fixed outside moved into the load.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from mldd.algebra import Bounds, Hessian, Price
from mldd.problems.grids import compiled_stencils as compiled
from mldd.problems.grids.grid_windows import GridDecomposition
from mldd.problems.grids.stencils import EdgeWeights, local_price, members, pieces, stencil


class Reaction(Protocol):
    """A pointwise energy density phi(u) and its first two derivatives."""

    def value(self, u: Tensor) -> Tensor:
        """Return phi(u).

        Parameters
        ----------
        u : Tensor, any shape
            Values of the unknown at the nodes.
        """
        ...

    def slope(self, u: Tensor) -> Tensor:
        """Return phi'(u).

        Parameters
        ----------
        u : Tensor, any shape
            Values of the unknown at the nodes.
        """
        ...

    def curvature(self, u: Tensor) -> Tensor:
        """Return phi''(u).

        Parameters
        ----------
        u : Tensor, any shape
            Values of the unknown at the nodes.
        """
        ...


@dataclass(frozen=True)
class BratuReaction:
    """``phi(u) = -factor e^u``.

    Parameters
    ----------
    factor : float
        The lambda of Bratu's equation.
    """

    factor: float

    def value(self, u: Tensor) -> Tensor:
        """Return phi(u)."""
        return torch.exp(u).mul_(-self.factor)

    slope = value
    curvature = value


@dataclass(frozen=True)
class IgnitionReaction:
    """``phi(u) = -(u e^u - e^u)``."""

    def value(self, u: Tensor) -> Tensor:
        """Return ``(1 - u) e^u``."""
        return torch.exp(u).mul_(1.0 - u)

    def slope(self, u: Tensor) -> Tensor:
        """Return ``-u e^u``."""
        return torch.exp(u).mul_(u).neg_()

    def curvature(self, u: Tensor) -> Tensor:
        """Return ``-(1 + u) e^u``."""
        return torch.exp(u).mul_(1.0 + u).neg_()


@dataclass(frozen=True)
class StencilEnergy:
    """``scale/2 u^T A u + <load, u> + weight sum_i phi(u_i)`` over a box.

    Parameters
    ----------
    shape : tuple of int
        (columns,) or (rows, columns) of the grid, or of every window of a batch.
    bounds : Bounds
        Of the unknowns, and with them their number and device.
    load : Tensor, shape (), `shape` or (p, *shape)
        Linear term, at the nodes or constant.
    reaction : Reaction, optional
        Pointwise density phi; none by default.
    weight : float
        Cell size h^2 of the lumped reaction term.
    scale : float
        Factor of A: one, but on the coarser grids of the interval ((n_coarse+1)/(n+1): the energy of [-1 2 -1]
        depends on h).
    edges : EdgeWeights, optional
        For natural sides (two dimensions).
    price : Price
        Work of one evaluation in fine gradients.
    valid : Tensor, shape (p, m), optional
        One at unknowns, zero at the padding of windows.
    """

    shape: tuple[int, ...]
    bounds: Bounds
    load: Tensor
    reaction: Reaction | None = None
    weight: float = 0.0
    scale: float = 1.0
    edges: EdgeWeights | None = None
    price: Price = field(default_factory=Price)
    valid: Tensor | None = None
    batched: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """Number of unknowns (of a row of a batch)."""
        return self.bounds.lower.shape[-1]

    @property
    def band(self) -> int | None:
        """Half bandwidth of the Hessian in one dimension, where it is tridiagonal."""
        return 1 if len(self.shape) == 1 else None

    @cached_property
    def _weights(self) -> tuple[Tensor, ...]:
        return () if self.edges is None else (self.edges.across, self.edges.down, self.edges.diagonal)

    def _apply(self, v: Tensor, load: Tensor | None, bend: Tensor | None = None) -> Tensor:
        functions = compiled.suited(v, load, bend, *self._weights)
        if functions is not None:
            return compiled.five_points(functions, v, self.shape, load, self.scale, bend, self.edges)
        values = v.reshape(v.shape[:-1] + self.shape)
        bend = None if bend is None else bend.view(bend.shape[:-1] + self.shape)
        if self.edges is not None:
            return self.edges.stencil(values, load, bend).view(v.shape)
        return stencil(values, len(self.shape), load, self.scale, bend).view(v.shape)

    def _inner(self, u: Tensor, v: Tensor) -> Tensor:
        return torch.dot(u, v) if u.dim() == 1 else (u * v).sum(-1)

    def _work_of_load(self, x: Tensor) -> Tensor:
        if self.load.dim() == 0:
            return self.load * x.sum(-1)
        return self._inner(x, self.load.reshape(self.load.shape[: -len(self.shape)] + (-1,)).expand_as(x))

    def _reaction(self, x: Tensor) -> Tensor | float:
        if self.reaction is None:
            return 0.0
        if x.dim() > 1:
            return self.weight * self.reaction.value(x).sum(-1)
        return self.weight * torch.stack([self.reaction.value(u).sum() for (u,) in pieces(x)]).sum()

    def _curve(self, x: Tensor, linear: Tensor) -> Tensor:
        if self.reaction is not None:
            for out, u in pieces(linear, x):
                out.add_(self.reaction.slope(u), alpha=self.weight)
        return linear if self.valid is None else linear.mul_(self.valid)

    def value(self, x: Tensor) -> Tensor:
        """Return the energy, shape () or (p,)."""
        self.price.of_value(members(self.bounds, x))
        value = 0.5 * self._inner(x, self._apply(x, None)) + self._work_of_load(x)
        return value + self._reaction(x)

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``scale A x + load + weight phi'(x)``."""
        self.price.of_gradient(members(self.bounds, x))
        return self._curve(x, self._apply(x, self.load))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient with one stencil.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Iterate.
        """
        self.price.of_gradient(members(self.bounds, x))
        linear = self._apply(x, self.load)
        value = 0.5 * (self._inner(x, linear) + self._work_of_load(x)) + self._reaction(x)
        return value, self._curve(x, linear)

    def hessian(self, x: Tensor) -> StencilHessian:
        """Return ``scale A + weight diag phi''(x)``, from one evaluation of phi''.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            The point.
        """
        if self.reaction is None:
            return StencilHessian(self, None, self._constant.expand(x.shape))
        bend = torch.empty_like(x)
        for out, u in pieces(bend, x):
            torch.mul(self.reaction.curvature(u), self.weight, out=out)
        return StencilHessian(self, bend, bend + self._constant)

    @cached_property
    def _constant(self) -> Tensor:
        """The diagonal of scale A, which broadcasts to points."""
        if self.edges is None:
            return self.bounds.lower.new_full((1,), 2.0 * len(self.shape) * self.scale)
        return self.edges.diagonal.reshape(self.edges.diagonal.shape[:-2] + (-1,))

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``scale A v + weight phi''(x) v``."""
        return self.hessian(x).product(v)

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Return the diagonal of the Hessian (at padding that of its node)."""
        return self.hessian(x).diagonal.clone()

    def local(self, decomposition: GridDecomposition, x: Tensor) -> StencilEnergy:
        """Return the batch of local energies ``y_i -> f(x + P_i (y_i - R_i x))`` up to constants.

        Parameters
        ----------
        decomposition : GridDecomposition
            The windows of this rank.
        x : Tensor, shape (n,)
            Iterate, which is fixed outside of the windows.
        """
        load = decomposition.cut(self.load)
        edges = None if self.edges is None else self.edges.windows(decomposition)
        for part, values, axis in decomposition.rings(load, x):
            if edges is None:
                part.sub_(values, alpha=self.scale)
            else:
                part.sub_(values * (edges.down[:, 0] if axis == 0 else edges.across[:, :, 0]))
        y = decomposition.gather(x)
        return replace(
            self,
            shape=tuple(load.shape[1:]),
            bounds=decomposition.gather_bounds(self.bounds, y),
            load=load,
            edges=edges,
            price=local_price(self.price, decomposition),
            valid=decomposition.mask(x.dtype),
        )


@dataclass(frozen=True)
class StencilHessian:
    """The Hessian of a `StencilEnergy` at one point.

    Parameters
    ----------
    energy : StencilEnergy
        Its matrix A and price are used.
    bend : Tensor, shape (n,) or (p, n), optional
        ``weight phi''`` at the point; None without a reaction.
    diagonal : Tensor, shape (n,) or (p, n)
        Of the Hessian (at padding that of its node).
    """

    energy: StencilEnergy
    bend: Tensor | None
    diagonal: Tensor

    @property
    def largest(self) -> float:
        """Gershgorin's bound: A has as much beside the diagonal as on it, at most."""
        lowest = float(self.diagonal.min())
        if self.bend is None or not lowest > 0:
            return 2.0
        return 1.0 + float(self.energy._constant.max()) / lowest

    def product(self, v: Tensor) -> Tensor:
        """Return ``scale A v + weight phi'' v``."""
        f = self.energy
        f.price.of_product(members(f.bounds, v))
        v = v if f.valid is None else v * f.valid
        out = f._apply(v, None, self.bend)
        return out if f.valid is None else out.mul_(f.valid)

    def defect(self, v: Tensor, b: Tensor, weight: Tensor) -> Tensor:
        """Return ``weight (b - H v)``."""
        f = self.energy
        functions = compiled.suited(v, b, weight, self.bend, *f._weights) if f.valid is None else None
        if functions is None:
            return Hessian.defect(self, v, b, weight)
        f.price.of_product(members(f.bounds, v))
        return compiled.five_points(functions, v, f.shape, None, f.scale, self.bend, f.edges, (b, weight))

    def relaxed(self, v: Tensor, b: Tensor, steps: Sequence[Tensor]) -> Tensor:
        """Return what the steps ``v <- v + w (b - H v)`` make of v."""
        f = self.energy
        functions = compiled.suited(v, b, *steps, self.bend, *f._weights) if f.valid is None else None
        if functions is None:
            return Hessian.relaxed(self, v, b, steps)
        f.price.of_product(len(steps) * members(f.bounds, v))
        return compiled.relaxed_five_points(functions, v, f.shape, f.scale, self.bend, f.edges, b, steps)


@dataclass(frozen=True)
class BoundaryValueEnergy:
    """``h^2 sum_i r_i^2`` with ``r = -A u / h^2 - 1/2 (u + shift)^3``: a boundary value problem in least squares.

    A is the 5-point matrix (diagonal 4), so -A u / h^2 is the discrete Laplacian. Subdomains see two layers around
    them; they are evaluated as restrictions of the whole (no method ``local``).

    Parameters
    ----------
    shift : Tensor, shape (rows, columns)
        x + y + 1 at the nodes.
    bounds : Bounds
        Of the unknowns.
    h : float
        Mesh width.
    price : Price
        Work of one evaluation in fine gradients.
    """

    shift: Tensor
    bounds: Bounds
    h: float
    price: Price = field(default_factory=Price)
    batched: ClassVar[bool] = True

    @property
    def size(self) -> int:
        """Number of unknowns."""
        return self.shift.numel()

    def _grid(self, x: Tensor) -> Tensor:
        return x.reshape(x.shape[:-1] + self.shift.shape)

    def _residual(self, x: Tensor) -> Tensor:
        """Return ``-h^2 r = A u + h^2/2 w^3`` with w = u + shift, on the grid."""
        out = stencil(self._grid(x), 2)
        for part, u, shift in self._with_shift(out, x):
            w = u + shift
            part.addcmul_(w.square(), w, value=0.5 * self.h**2)
        return out

    def _with_shift(self, *fields: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Cut fields on the grid, or batches of them, and the shift into pieces."""
        if fields[0].dim() == 2:
            yield from pieces(*fields, self.shift)
        else:
            yield from pieces(*fields, self.shift.expand(fields[0].shape))

    def _value(self, residual: Tensor) -> Tensor:
        return residual.square().sum((-2, -1)) / self.h**2

    def _gradient(self, x: Tensor, residual: Tensor) -> Tensor:
        """Return ``2/h^2 (A + 3/2 h^2 diag w^2)`` applied to the scaled residual."""
        out = stencil(residual, 2)
        for part, r, u, shift in self._with_shift(out, residual, x):
            part.addcmul_((u + shift).square_(), r, value=1.5 * self.h**2).mul_(2.0 / self.h**2)
        return out.view(x.shape)

    def value(self, x: Tensor) -> Tensor:
        """Return the squared residual, shape () or (p,)."""
        self.price.of_value(members(self.bounds, x))
        return self._value(self._residual(x))

    def gradient(self, x: Tensor) -> Tensor:
        """Return ``2 h^2 J^T r`` with J the Jacobian of the residual."""
        self.price.of_gradient(members(self.bounds, x))
        return self._gradient(x, self._residual(x))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return value and gradient in one sweep.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Iterate.
        """
        self.price.of_gradient(members(self.bounds, x))
        residual = self._residual(x)
        return self._value(residual), self._gradient(x, residual)

    def hessian(self, x: Tensor) -> BoundaryValueHessian:
        """Return the Hessian from one residual.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            The point.
        """
        w, residual = self._grid(x) + self.shift, self._residual(x)
        bend, own = w.square().mul_(1.5 * self.h**2), residual.mul_(w).mul_(3.0 * self.h**2)
        return BoundaryValueHessian(self, bend, own)

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``2 h^2 (J^T J v + sum_i r_i H_i v)``."""
        return self.hessian(x).product(v)

    def hessian_diagonal(self, x: Tensor) -> Tensor:
        """Return the diagonal of the Hessian."""
        return self.hessian(x).diagonal


@dataclass(frozen=True)
class BoundaryValueHessian(Hessian):
    """The Hessian ``2/h^2 ((A + diag bend)^2 + diag own)`` of a `BoundaryValueEnergy` at one point.

    Parameters
    ----------
    energy : BoundaryValueEnergy
        Its mesh width and price are used.
    bend : Tensor, shape (..., rows, columns)
        ``3/2 h^2 w^2``, w = u + shift.
    own : Tensor, shape (..., rows, columns)
        The scaled residual times ``3 h^2 w``.
    """

    energy: BoundaryValueEnergy
    bend: Tensor
    own: Tensor

    @cached_property
    def diagonal(self) -> Tensor:
        """The diagonal, shape (..., n)."""
        around = 4.0 - stencil(torch.ones_like(self.energy.shift), 2)  # neighbours of a node
        squares = (self.bend + 4.0).square_().add_(around).add_(self.own)
        return squares.mul_(2.0 / self.energy.h**2).flatten(-2)

    def product(self, v: Tensor) -> Tensor:
        """Return ``H v``."""
        f = self.energy
        f.price.of_product(members(f.bounds, v))
        values = f._grid(v)
        along = stencil(values, 2, bend=self.bend)
        out = stencil(along, 2, bend=self.bend).addcmul_(self.own, values)
        return out.mul_(2.0 / f.h**2).view(v.shape)
