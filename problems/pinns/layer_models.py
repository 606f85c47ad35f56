"""Residual losses as functions of some layers only: what lies below these layers is evaluated once per local model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import LocalRestrictions, Price
from mldd.problems.pinns.residual_loss import PointSet, ResidualLoss
from mldd.problems.pinns.taylor_sweeps import Linear, StreamEvaluation, scaled, unscale


@dataclass(frozen=True)
class LayerModels(LocalRestrictions):
    """Local models of runs of layers, one after the other, each from the cached state below its first layer.

    With L layers of equal width, a model of the layers a..b-1 needs ``(L - a) / L`` of a forward sweep, as much of the
    adjoints, and ``(b - a) / L`` of the products that make gradients of weights; these are about a third of a gradient
    each. One subdomain per layer costs ``(L + 2) / (3 L)`` gradients on average. Values and gradients are those of
    `LocalRestrictions`, which batches subdomains instead: the faster way where points are few.

    Parameters
    ----------
    f : ResidualLoss
        The loss over all points.
    """

    f: ResidualLoss

    @cached_property
    def _layers(self) -> list[range]:
        """Layers that each local subdomain updates."""
        runs, slices = self.decomposition.runs, self.f.net.layout.slices
        assert runs is not None  # layers are consecutive unknowns
        found = []
        for run in runs:
            inside = [k for k, layer in enumerate(slices) if run.start <= layer.start and layer.stop <= run.stop]
            found.append(range(inside[0], inside[-1] + 1))
        return found

    @cached_property
    def _prices(self) -> list[Price]:
        """What one evaluation of every local model costs."""
        made, most = [], self.f.net.layers
        for layers in self._layers:
            swept = (most - layers.start) / most
            share = (2 * swept + len(layers) / most) / 3
            made.append(Price(self.f.price.gradient * share, fine=False, value=swept / share / 3))
        return made

    @cached_property
    def _tails(self) -> list[list[Tail]]:
        """For every local subdomain the sweeps above its first layer, at each piece of the points."""
        net, pieces = self.f.net, self.f.pieces(self.x)
        tails: list[list[Tail]] = [[] for _ in self._layers]
        parameters = [view[None] for view in net.layout.views(self.x)]
        if not any(layers.start for layers in self._layers):
            return [[Tail(piece, layers, None) for piece in pieces] for layers in self._layers]
        for piece in pieces:
            whole = piece.streams.layered(parameters)
            for own, layers in zip(tails, self._layers, strict=True):
                state = whole.states[layers.start - 1] if layers.start else None
                own.append(
                    Tail(piece, layers, None if state is None else type(state)(piece.streams, state.all.clone()))
                )
            whole.release()
        Price(self.f.price.gradient, fine=False).of_value()
        return tails

    @cached_property
    def _linear(self) -> list[list[Linear]]:
        """For every local subdomain weights, bias and scale of all layers: views of its full vector, made once."""
        net = self.f.net
        return [list(net.linear([view[None] for view in net.layout.views(row)])) for row in self._buffer]

    @cached_property
    def _out(self) -> list[tuple[Tensor, list[Tensor]]]:
        """Two vectors for gradients, with their views: of all points, and of one piece of them."""
        vectors = [self.x.new_zeros(self.f.size) for _ in range(2)]
        return [(vector, [view[None] for view in self.f.net.layout.views(vector)]) for vector in vectors]

    @cached_property
    def _scaled(self) -> list[list[Linear]]:
        return [scaled(linear) for linear in self._linear]

    def _weights(self, k: int) -> list[Linear]:
        """Return what subdomain `k` multiplies by: views, or products with scales that are made anew."""
        return scaled(self._linear[k]) if self.f.net.kind == "residual" else self._scaled[k]

    def value(self, y: Tensor) -> Tensor:
        """Return the values, shape (p,).

        Parameters
        ----------
        y : Tensor, shape (p, m)
            Parameters of the subdomains, one in a row.
        """
        self._points(y)
        values = y.new_zeros(len(y))
        for k, tails in enumerate(self._tails):
            self._prices[k].of_value()
            weights = self._weights(k)
            for tail in tails:
                values[k] += tail.value(weights)
        return values.div_(self.f.total)

    def gradient(self, y: Tensor) -> Tensor:
        """Return the gradients of all local models, shape (p, m).

        Parameters
        ----------
        y : Tensor, shape (p, m)
            Parameters of the subdomains, one in a row.
        """
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return values and gradients of all local models.

        Parameters
        ----------
        y : Tensor, shape (p, m)
            Parameters of the subdomains, one in a row.
        """
        self._points(y)
        net, runs, values, rows = self.f.net, self.decomposition.runs, y.new_zeros(len(y)), torch.zeros_like(y)
        (total, out), (part, out_of_part) = self._out
        assert runs is not None
        for k, (run, tails) in enumerate(zip(runs, self._tails, strict=True)):
            self._prices[k].of_gradient()
            weights = self._weights(k)
            values[k] = tails[0].pullback(weights, out)
            for tail in tails[1:]:
                values[k] += tail.pullback(weights, out_of_part)
                total[run] += part[run]
            if net.kind == "residual":
                own = slice(self._layers[k].start, self._layers[k].stop)
                unscale(self._linear[k][own], list(net.linear(out))[own])
            rows[k, : run.stop - run.start] = total[run]
        return values.div_(self.f.total), rows.div_(self.f.total)


@dataclass(frozen=True)
class Tail:
    """A network from the first of `layers` on, at some points.

    Parameters
    ----------
    piece : PointSet
        Of the points.
    layers : range
        Layers whose gradient is asked for.
    below : Stack or None
        The streams of the state below the first of them, shape (1, w, S, m); None below layer 0.
    """

    piece: PointSet
    layers: range
    below: Any

    def value(self, linear: list[Linear]) -> Tensor:
        """Return the sum of the squared residuals for weights, biases and scales of all layers, shape ().

        Parameters
        ----------
        linear : list
            Weights, bias and scale of every layer, with a leading axis.
        """
        sweep = Upper.of(self, linear)
        value = self.piece.squares(self.piece.streams.split(sweep.streams))
        sweep.release()
        return value[0]

    def pullback(self, linear: list[Linear], out: list[Tensor]) -> Tensor:
        """Return the sum of the squared residuals, and write its gradient with respect to `layers` to `out`.

        Parameters
        ----------
        linear : list
            Of all layers weights and bias, which the gradient is with respect to, with a leading axis of length 1.
        out : list of Tensor
            Views of the network's layout with such an axis.
        """
        sweep = Upper.of(self, linear)
        streams = sweep.streams.clone().requires_grad_()
        with torch.enable_grad():
            value = self.piece.squares(self.piece.streams.split(streams))
            (g,) = torch.autograd.grad(value.sum(), streams)
        sweep.backward(g, out)
        return value.detach()[0]


class Upper(StreamEvaluation):
    """An evaluation of the layers from the first that changes on; its sweep back ends there."""

    tail: Tail
    bound_to: list[Linear] | None = None
    source: Any = None

    @staticmethod
    def of(tail: Tail, linear: list[Linear]) -> Upper:
        """Return the evaluation above ``tail.below``, in buffers that are left from such an evaluation or new ones.

        Parameters
        ----------
        tail : Tail
            The layers and their points.
        linear : list
            Weights, bias and scale of every layer, with a leading axis.
        """
        source = tail.piece.streams
        key = (1, *source._key, Upper)
        left = source.net._spare.get(key)
        sweep = left.pop() if left else Upper(key, source)
        assert isinstance(sweep, Upper)
        sweep.tail = tail
        with torch.no_grad():
            if sweep.bound_to is not linear or sweep.source is not source:
                sweep.bind(source, linear)
                sweep.bound_to, sweep.source = linear, source
            sweep.rise(tail.layers.start, tail.below)
        return sweep

    def _backward(self, g: Tensor, out: Sequence[Tensor]) -> None:
        """Take the adjoints back to the first layer."""
        self.sink(g, out, self.tail.layers, self.tail.below)
