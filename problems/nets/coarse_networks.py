"""Coarse graph networks, narrower or shallower, and the transfers that let a finer network be the same function.

*Width*: half the hidden units. The finer network has every coarse unit twice; the two share its outgoing weights, so
that what they pass on adds up to what it passed on. It holds for every kind of layer and every activation.

*Depth*: every second layer. Between them come layers that change nothing, and there are two kinds of these. A layer of
a residual network whose last weights are zero adds ``act(0) = 0``; it learns unless the activation is ReLU, whose
derivative vanishes there. A layer of GraphSAGE with the identity for the own node and zero for the neighbours lets a
state pass that is behind a ReLU, and so not negative. The other layers always propagate or bend.

In both cases the finer parameters are affine in the coarse ones, ``x = P y + c``, and f_H(y) = f(P y + c) for every
graph and every target, the weight decay included where all units have equally many copies.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Bounds, Layout, MatrixTransfer, Rule
from mldd.problems.nets.graph_net import GraphNet

_SHARES = (0.75, 0.25)  # of the outgoing weights; equal ones would leave the two copies of a unit equal for ever


@dataclass(frozen=True, eq=False)
class NetworkTransfer:
    """Every fine unknown is a multiple of one coarse unknown, or a constant: ``x_i = a_i y_s(i) + c_i``.

    Corrections go up by P alone, ``(P e)_i = a_i e_s(i)``; iterates go up by `lift`, which keeps the function.

    Parameters
    ----------
    source : Tensor, shape (n,), int64
        s, any number where a is zero; every coarse unknown is the source of a fine one.
    factor : Tensor, shape (n,)
        a.
    constant : Tensor, shape (n,)
        c, zero where a is not.
    size : int
        Number m of coarse unknowns.
    """

    source: Tensor
    factor: Tensor
    constant: Tensor
    size: int

    @property
    def shape(self) -> tuple[int, int]:
        """(n, m)."""
        return len(self.source), self.size

    def prolong(self, e: Tensor) -> Tensor:
        """Return ``P e``."""
        return e[self.source].mul_(self.factor)

    def restrict(self, g: Tensor) -> Tensor:
        """Return ``P^T g``."""
        return g.new_zeros(self.size).index_add_(0, self.source, g * self.factor)

    def lift(self, y: Tensor) -> Tensor:
        """Return ``P y + c``: the finer network that is the same function as the coarse one.

        Parameters
        ----------
        y : Tensor, shape (m,)
            Parameters of the coarse network.
        """
        return self.prolong(y).add_(self.constant)

    @cached_property
    def _squares(self) -> Tensor:
        return self.restrict(self.factor)

    def inject(self, x: Tensor) -> Tensor:
        """Return ``(P^T P)^-1 P^T (x - c)``: the coarse network nearest to x, y itself for ``x = lift(y)``."""
        return self.restrict(x).div_(self._squares)  # P^T c = 0

    def restrict_bounds(self, bounds: Bounds, rule: Rule = "kornhuber") -> Bounds:
        """Return coarse bounds as `MatrixTransfer` does."""
        if bounds.is_free:
            return Bounds.free(self.size, dtype=bounds.lower.dtype, device=bounds.lower.device)
        rows = torch.arange(len(self.source), device=self.source.device)
        entries = torch.stack([rows, self.source])
        matrix = torch.sparse_coo_tensor(entries, self.factor, self.shape, check_invariants=False)
        return MatrixTransfer(matrix.coalesce()).restrict_bounds(bounds, rule)


# ------------------------------------------------------------------------------------------------ networks


def most_levels(net: GraphNet, width: bool, depth: bool) -> int:
    """Return how many networks there are, `net` included, each coarser than the one before in all that is asked for.

    Parameters
    ----------
    net : GraphNet
        The finest network.
    width : bool
        Whether there are fewer hidden units on every level.
    depth : bool
        Whether there are fewer layers on every level.

    Raises
    ------
    ValueError
        Depth of a network that has no layers that change nothing.
    """
    if depth and not (_zero_branches(net) or _identities(net)):
        raise ValueError(
            "coarsening in depth needs layers that can leave a state as it is, those of residual networks with gelu, "
            f"tanh or elu, or of sage with relu; got {net.kind} with {net.activation}, residual={net.residual}"
        )
    found = 1
    while (width or depth) and (not width or _narrows(net)) and (not depth or len(_kept(net.layers)) < net.layers):
        net = coarser(net, width, depth)
        found += 1
    return found


def coarser(net: GraphNet, width: bool, depth: bool) -> GraphNet:
    """Return the network with half the hidden units (of every head, rounded up), with every second layer, or both.

    The first and the last layer stay. `most_levels` says how often this is possible.

    Parameters
    ----------
    net : GraphNet
        The finer network.
    width : bool
        Whether half the hidden units are left out.
    depth : bool
        Whether every second layer is left out.
    """
    widths = net.widths
    if depth:
        widths = (*(widths[k] for k in _kept(net.layers)), widths[-1])
    if width:
        widths = (widths[0], *(_half(w, net.heads) for w in widths[1:-1]), widths[-1])
    return replace(net, widths=widths)


def copies(fine: GraphNet, coarse: GraphNet) -> float:
    """Return the mean number of copies of a unit of the first layer: ``|W_1|^2 / |W_H1|^2`` if all have as many.

    Parameters
    ----------
    fine : GraphNet
        The wider network.
    coarse : GraphNet
        The narrower one.
    """
    return fine.widths[1] / coarse.widths[1]


def transfer(fine: GraphNet, width: bool, depth: bool, dtype: torch.dtype, device: torch.device) -> NetworkTransfer:
    """Return the transfer between `fine` and ``coarser(fine, width, depth)``.

    Parameters
    ----------
    fine : GraphNet
        The finer network.
    width : bool
        Whether the coarse one is narrower.
    depth : bool
        Whether the coarse one is shallower.
    dtype : dtype
        Of the factors and constants.
    device : device
        Where they are kept.

    References
    ----------
    Chen, Goodfellow and Shlens, arXiv:1511.05641, sections 2.2 (wider; here uneven shares stand for its noise) and 2.3
    (deeper).
    """
    narrow = coarser(fine, width, False)
    source, factor, constant = _copied(fine, narrow)
    coarse = coarser(narrow, False, depth)
    if depth:
        deep = _inserted(narrow, coarse)
        source, factor, constant = deep[0][source], factor * deep[1][source], factor * deep[2][source]
    factor, constant = factor.to(device, dtype), constant.to(device, dtype)
    return NetworkTransfer(source.to(device), factor, constant, coarse.layout.size)


def _half(width: int, heads: int) -> int:
    return heads * -(-width // (2 * heads))


def _narrows(net: GraphNet) -> bool:
    """Whether there is a narrower network with the same residual layers."""
    half = coarser(net, True, False).widths
    agree = [[a == b for a, b in zip(widths[1:], widths[2:], strict=False)] for widths in (net.widths, half)]
    return half != net.widths and (not net.residual or agree[0] == agree[1])


def _zero_branches(net: GraphNet) -> bool:
    return net.residual and net.activation != "relu"


def _identities(net: GraphNet) -> bool:
    return not net.residual and bool(net.layer.passing) and net.activation == "relu"


def _kept(layers: int) -> list[int]:
    """Return every second layer, and the last."""
    return sorted({*range(0, layers, 2), layers - 1})


# ------------------------------------------------------------------------------------------------ affine maps

Affine = tuple[Tensor, Tensor, Tensor]  # source, factor, constant


def _joined(layout: Layout, pieces: list[Affine]) -> Affine:
    source, factor, constant = (layout.pack(column) for column in zip(*pieces, strict=True))
    return source, factor, constant


def _named(net: GraphNet) -> list[tuple[int, str, tuple[int, ...]]]:
    """Return layer, name and shape of every tensor."""
    return [(k, name, shape) for k in range(net.layers) for name, shape in net.tensors(k).items()]


def _copied(fine: GraphNet, coarse: GraphNet) -> Affine:
    """Copy units: unit j of a head of `fine` is a copy of unit j // 2 of that head of `coarse`."""
    numbers = coarse.layout.views(torch.arange(coarse.layout.size))
    units = [_copies_of_units(w, half, fine.heads) for w, half in zip(fine.widths, coarse.widths, strict=True)]
    pieces = []
    for number, (layer, name, shape) in zip(numbers, _named(fine), strict=True):
        (rows, row_share), (columns, column_share) = units[layer], units[layer + 1]
        if shape[-1] != len(columns):  # the heads of a last layer of GAT, or one number
            columns, column_share = torch.arange(shape[-1]), torch.ones(shape[-1], dtype=torch.float64)
        if name in fine.layer.edge_inputs:
            rows, row_share = torch.arange(shape[0]), torch.ones(shape[0], dtype=torch.float64)
        elif name not in fine.layer.inputs:
            rows, row_share = columns, column_share
        source = number[rows][:, columns] if len(shape) == 2 else number[columns]
        # what is multiplied with a unit is shared by its copies: rows of weights, and the columns of scores
        factor = torch.ones(shape, dtype=torch.float64)
        if len(shape) == 2:
            factor = factor * row_share[:, None]
        if name in fine.layer.scores:
            few, each = (net.layer.score_factor(net.widths[layer + 1] // net.heads) for net in (coarse, fine))
            # a matrix has decay, which stays that of two copies if one of them has the whole score
            share = column_share if len(shape) == 1 else (column_share > 0.5).double()
            factor = factor * share * (few / each)
        pieces.append((source, factor, torch.zeros(shape, dtype=torch.float64)))
    return _joined(fine.layout, pieces)


def _copies_of_units(width: int, half: int, heads: int) -> tuple[Tensor, Tensor]:
    """Return the coarse unit that each fine one is a copy of, and its share of the outgoing weights; shape (width,)."""
    unit, one = torch.arange(width), torch.ones(width, dtype=torch.float64)
    if half == width:
        return unit, one
    each, few = width // heads, half // heads
    coarse = unit // each * few + unit % each // 2
    shares = torch.tensor(_SHARES, dtype=torch.float64)[unit % each % 2]
    return coarse, torch.where(torch.bincount(coarse)[coarse] == 2, shares, one)


def _inserted(fine: GraphNet, coarse: GraphNet) -> Affine:
    """Insert layers that change nothing: zero branches of residual networks, or identities on the own node."""
    numbers = iter(coarse.layout.views(torch.arange(coarse.layout.size)))
    kept, passing = _kept(fine.layers), "" if fine.residual else fine.layer.passing
    pieces = []
    for layer, name, shape in _named(fine):
        zero = torch.zeros(shape, dtype=torch.float64)
        if layer in kept:
            pieces.append((next(numbers), zero + 1.0, zero))
        else:
            pieces.append((zero.long(), zero, torch.eye(*shape).double() if name == passing else zero))
    return _joined(fine.layout, pieces)
