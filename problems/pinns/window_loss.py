"""The mean squared residual of a window model: many small networks, each on the points of its window alone."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor

from mldd.algebra import Bounds, Decomposition, Price, on_this_rank
from mldd.problems.pinns.compiled_sweeps import CompiledEvaluation
from mldd.problems.pinns.equations import Equation
from mldd.problems.pinns.taylor import Streams
from mldd.problems.pinns.taylor_sweeps import StreamEvaluation
from mldd.ranks import SERIAL, Communicator

Unknowns = slice | Tensor
Evaluation = StreamEvaluation | CompiledEvaluation


@dataclass(frozen=True)
class Patch:
    """Networks of one shape at the points of their windows, and what they add to the fields there.

    Parameters
    ----------
    streams : Streams
        p networks at m points each, where padding has coefficients of zero.
    coefficients : Tensor, shape (p, R, S, m)
        Derivatives of R fields with respect to the S streams of a network.
    places : Tensor, shape (p R m,), int64
        Where the fields at these points lie in all fields, laid end to end.
    unknowns : slice or Tensor
        Where the parameters of the networks, p n of them, lie in the unknowns, laid end to end.
    """

    streams: Streams
    coefficients: Tensor
    places: Tensor
    unknowns: Unknowns

    @cached_property
    def _parameters(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        layout = self.streams.net.layout
        rows = self.coefficients.new_empty((len(self.coefficients), layout.size))
        return rows, tuple(layout.views(rows))

    @cached_property
    def _gradients(self) -> tuple[Tensor, tuple[Tensor, ...]]:
        layout = self.streams.net.layout
        rows = self.coefficients.new_empty((len(self.coefficients), layout.size))
        return rows, tuple(layout.views(rows))

    @cached_property
    def _only(self) -> Tensor:
        """The coefficients of the only field, shape (p, S, m)."""
        return self.coefficients[:, 0]

    def of(self, x: Tensor) -> Tensor:
        """Return the parameters among the unknowns `x`, shape (p, n).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        return x.reshape(-1)[self.unknowns].view(len(self.coefficients), -1)

    def store(self, rows: Tensor, x: Tensor) -> None:
        """Write parameters, shape (p, n), to their places in the unknowns `x`.

        Parameters
        ----------
        rows : Tensor, shape (p, n)
            Parameters of the networks.
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        x.view(-1)[self.unknowns] = rows.view(-1)

    def forward(self, x: Tensor) -> Evaluation:
        """Return the evaluation of the networks with their parameters in `x`.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        rows, views = self._parameters
        rows.copy_(self.of(x))
        return self.streams.forward(views)

    def backward(self, evaluation: Evaluation, g: Tensor, x: Tensor) -> None:
        """Write the gradient with respect to the parameters to `x`, given that with respect to the fields, `g`.

        Parameters
        ----------
        evaluation : StreamEvaluation or CompiledEvaluation
            The one of `forward`.
        g : Tensor
            Gradient with respect to the fields.
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        rows, views = self._gradients
        evaluation.backward(self._seeds(evaluation, g), views)
        self.store(rows, x)

    def _seeds(self, evaluation: Evaluation, g: Tensor) -> Tensor:
        """Return the gradient with respect to the streams, shape (p, S, m, 1)."""
        if isinstance(evaluation, CompiledEvaluation):
            return evaluation.pulled(self.coefficients, self.places, g.contiguous())
        p, fields, _, points = self.coefficients.shape
        here = g.view(-1).index_select(0, self.places)
        if fields == 1:
            seed = self._only * here.view(p, 1, points)
        else:
            seed = (self.coefficients * here.view(p, fields, 1, points)).sum(1)
        return seed.unsqueeze(-1)

    def add(self, evaluation: Evaluation, fields: Tensor) -> None:
        """Add what the evaluated networks give to all fields.

        Parameters
        ----------
        evaluation : StreamEvaluation or CompiledEvaluation
            The one of `forward`.
        fields : Tensor, shape (R, k, M)
            All fields.
        """
        if isinstance(evaluation, CompiledEvaluation):
            evaluation.add_fields(self.coefficients, self.places, fields)
        else:
            fields.view(-1).index_add_(0, self.places, self.contributions(evaluation.streams))

    def contributions(self, streams: Tensor) -> Tensor:
        """Return what networks with these `streams`, shape (p, S, m, 1), add to the fields, shape (p R m,).

        Parameters
        ----------
        streams : Tensor, shape (p, S, m, 1)
            Streams of the networks.
        """
        streams = streams.squeeze(-1)
        if self.coefficients.shape[1] == 1:
            return (self._only * streams).sum(1).view(-1)
        return (self.coefficients * streams[:, None]).sum(2).flatten()


@dataclass(frozen=True)
class WindowLoss:
    """Mean of squared residuals, ``sum_i r_i^2 / total``; or a batch of k such means over points of their own.

    The residual is a function of *fields*: of u and the derivatives of u that the equation has, or, where it is linear,
    of the one field that is the residual itself. The fields are ``frozen + sum of what the networks add``.

    Parameters
    ----------
    patches : tuple of Patch
        The networks of windows, and the one of the whole domain.
    frozen : Tensor, shape (R, k, M)
        What the fields are without the networks, zero at padding.
    equation : Equation
        The differential equation.
    points : Tensor, shape (k, M, d), optional
        Points of the fields, needed where the residual is not linear.
    mask : Tensor, shape (k, M), optional
        Zero at padding, where there is any.
    shape : tuple of int
        Of the unknowns: (n,), or (k, n) for a batch.
    total : int
        Points of all ranks.
    constant : Tensor, shape (k,), optional
        Share of the mean that does not depend on these unknowns.
    price : Price
        What one evaluation costs.
    comm : Communicator or None
        Value and gradient are summed over its ranks in one collective; None where this rank has all points.
    """

    reads_features: ClassVar[bool] = False  # but coordinates

    patches: tuple[Patch, ...]
    frozen: Tensor
    equation: Equation
    shape: tuple[int, ...]
    total: int
    points: Tensor | None = None
    mask: Tensor | None = None
    constant: Tensor | None = None
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = SERIAL

    @property
    def size(self) -> int:
        """Number of unknowns (of a row)."""
        return self.shape[-1]

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        return Bounds.free(*self.shape, dtype=self.frozen.dtype, device=self.frozen.device)

    def _check(self, x: Tensor) -> None:
        """Refuse a vector of another shape: patches take their parameters by place."""
        if x.shape != self.shape:
            raise ValueError(f"`x` must have shape {self.shape}, got {tuple(x.shape)}")

    def _start(self, x: Tensor) -> tuple[Tensor, list[Evaluation]]:
        """Return the fields, shape (R, k, M), and the evaluations that they came from."""
        self._check(x)
        fields, evaluations = self.frozen.clone(), []
        for patch in self.patches:
            evaluations.append(patch.forward(x))
            patch.add(evaluations[-1], fields)
        return fields, evaluations

    def fields(self, x: Tensor) -> Tensor:
        """Return the fields, shape (R, k, M).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        fields, evaluations = self._start(x)
        for evaluation in evaluations:
            evaluation.release()
        return fields

    def residuals(self, fields: Tensor) -> Tensor:
        """Return the residuals where the fields are these, shape (k, M).

        Parameters
        ----------
        fields : Tensor, shape (R, ..., m)
            Fields of `WindowLoss.fields`.
        """
        if self.points is None:
            return fields[0]
        u = self.patches[0].streams.split(fields.flatten(1)[..., None])
        r = self.equation.residual(u, self.points.flatten(0, 1)).view(fields.shape[1:])
        return r if self.mask is None else r * self.mask

    def _mean(self, fields: Tensor) -> Tensor:
        values = self.residuals(fields).square().sum(-1) / self.total
        return values if self.constant is None else values + self.constant

    def _slopes(self, fields: Tensor) -> tuple[Tensor, Tensor]:
        """Return the values, shape (k,), and the gradient of their sum with respect to the fields."""
        if self.points is None:
            return self._mean(fields), fields.mul(2.0 / self.total)
        with torch.enable_grad():
            values = self._mean(fields.requires_grad_())
            (g,) = torch.autograd.grad(values.sum(), fields, materialize_grads=True)
        return values.detach(), g

    def _rows(self) -> int:
        return self.frozen.shape[1]

    def value(self, x: Tensor) -> Tensor:
        """Return the value, shape () or (k,)."""
        self.price.of_value(self._rows())
        values = self._mean(self.fields(x))
        if len(self.shape) == 2:
            return values
        return values[0] if self.comm is None else self.comm.sum_values(values[0])

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        self.price.of_gradient(self._rows())
        fields, evaluations = self._start(x)
        g = fields.mul_(2.0 / self.total) if self.points is None else self._slopes(fields)[1]
        out = self._pulled(evaluations, g, torch.zeros_like(x))
        return out if self.comm is None else self.comm.sum(out)

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and one collective.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        """
        self.price.of_gradient(self._rows())
        fields, evaluations = self._start(x)
        values, g = self._slopes(fields)
        if len(self.shape) == 2:
            return values, self._pulled(evaluations, g, torch.zeros_like(x))
        buffer = x.new_zeros(self.size + 1)
        buffer[-1:] = values
        self._pulled(evaluations, g, buffer[:-1])
        if self.comm is not None:
            self.comm.sum(buffer)
        return buffer[-1].clone(), buffer[:-1]

    def _pulled(self, evaluations: list[Evaluation], g: Tensor, out: Tensor) -> Tensor:
        for patch, evaluation in zip(self.patches, evaluations, strict=True):
            patch.backward(evaluation, g, out)
        return out

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v`` by differentiating ``<g, v>``."""
        self._check(x)
        self._check(v)
        self.price.of_product(self._rows())
        layouts = [patch.streams.net.layout for patch in self.patches]
        leaves = [layout.leaves(patch.of(x)) for layout, patch in zip(layouts, self.patches, strict=True)]
        along = [layout.views(patch.of(v)) for layout, patch in zip(layouts, self.patches, strict=True)]
        fields = self.frozen.view(-1)
        for patch, parameters in zip(self.patches, leaves, strict=True):
            fields = fields.index_add(0, patch.places, patch.contributions(patch.streams.graph(parameters)))
        flat, directions = sum(leaves, []), sum(along, [])
        loss = self._mean(fields.view(self.frozen.shape)).sum()
        g = torch.autograd.grad(loss, flat, create_graph=True, materialize_grads=True)
        slope = torch.stack([(a * b).sum() for a, b in zip(g, directions, strict=True)]).sum()
        found = iter(torch.autograd.grad(slope, flat, materialize_grads=True))
        out = torch.zeros_like(x)
        for patch, layout, parameters in zip(self.patches, layouts, leaves, strict=True):
            patch.store(layout.pack([next(found) for _ in parameters]), out)
        return out if self.comm is None or len(self.shape) == 2 else self.comm.sum(out)


@dataclass(frozen=True)
class LocalWindows:
    """The local models of some of the windows of a `WindowLoss`: the others' share of the fields is frozen.

    They are restrictions of the loss, and evaluate networks and points of their own windows alone.

    Parameters
    ----------
    whole : WindowLoss
        Over all points, on this rank.
    local : WindowLoss
        A batch of k losses over the points of the windows of each; its frozen fields are ignored.
    index : Tensor, shape (k, M), int64
        Points of the batch as numbers of points of the whole.
    valid : Tensor, shape (k, M)
        One, and zero at padding.
    """

    whole: WindowLoss
    local: WindowLoss
    index: Tensor
    valid: Tensor

    def at(self, x: Tensor, decomposition: Decomposition) -> WindowLoss:
        """Return the local models at the iterate `x`.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters of all networks.
        decomposition : Decomposition
            The subdomains of this rank.
        """
        with on_this_rank():
            self.whole.price.of_value()
            self.local.price.of_value(len(self.index))
        fields = self.whole.fields(x)
        squares = self.whole.residuals(fields)[0].square()
        inner = squares.sum() if self.index.numel() == 0 else (squares[self.index] * self.valid).sum(-1)
        own = replace(self.local, frozen=torch.zeros_like(self.local.frozen)).fields(decomposition.gather(x))
        frozen = (fields[:, 0][:, self.index] - own).mul_(self.valid)
        return replace(self.local, frozen=frozen, constant=(squares.sum() - inner) / self.whole.total)
