"""The loss of many graph networks whose outputs are blended: each has parameters and a part of the graph of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from mldd.algebra import Bounds, Price, Stochastic
from mldd.problems.nets import Batch, Dropout, GraphNet, Sparse
from mldd.ranks import Communicator


@dataclass(frozen=True, eq=False)
class NetworkGroup:
    """Networks of one shape, evaluated in one batch, and what they add to the blended outputs.

    Parameters
    ----------
    net : GraphNet
        The network that all share in shape.
    batch : Batch
        p graphs.
    blend : Sparse, shape (M, p r)
        How much each of their outputs counts at each of the M blended ones: a partition of unity.
    unknowns : slice or Tensor
        Where their parameters, p N of them, lie in the unknowns, laid end to end.
    model : Tensor, shape (p,), int64
        The loss, of a batch of losses, that each network belongs to.
    dropout : Dropout, optional
        None where nothing is dropped.
    """

    net: GraphNet
    batch: Batch
    blend: Sparse
    unknowns: slice | Tensor
    model: Tensor
    dropout: Dropout | None = None

    def of(self, x: Tensor) -> Tensor:
        """Return the parameters among the unknowns `x`, shape (p, N).

        Parameters
        ----------
        x : Tensor, shape of the unknowns
            All unknowns.
        """
        return x.reshape(-1)[self.unknowns].view(-1, self.net.layout.size)

    def store(self, rows: Tensor, x: Tensor) -> None:
        """Write what belongs to these parameters, shape (p, N), to its places in `x`.

        Parameters
        ----------
        rows : Tensor, shape (p, N)
            One row per network.
        x : Tensor, shape of the unknowns
            It is written to.
        """
        x.view(-1)[self.unknowns] = rows.reshape(-1)

    @cached_property
    def _sample(self) -> tuple[Batch, list[Tensor] | None]:
        return self.batch.with_dropout(self.dropout, self.net.widths)

    def share(self, parameters: list[Tensor]) -> Tensor:
        """Return what the networks add to the blended outputs, shape (M, C).

        Parameters
        ----------
        parameters : list of Tensor
            Of all networks, as the layout has them.
        """
        batch, scales = self._sample
        return self.blend @ self.net.outputs(parameters, batch, scales)


@dataclass(frozen=True, eq=False)
class BlendedLoss:
    """Cross-entropy of blended outputs plus weight decay on the first layer of every network; or a batch of k losses.

    ``f(x) = -sum_i sum_c Y_ic log softmax(z_i)_c + decay / 2 sum_k ||W_1^k||^2``, ``z = frozen + sum_k w_k N_k(x_k)``.
    Over several ranks each evaluates its own networks: one collective sums the blended outputs, a second one gradients.

    Parameters
    ----------
    groups : sequence of NetworkGroup
        Networks of this rank.
    frozen : Tensor, shape (M, C)
        What other networks add, where these are fixed.
    targets : Tensor, shape (M, C)
        Y; a batch has the M / k outputs of each loss one after the other.
    shape : tuple of int
        Of the unknowns: (n,), or (k, n) for a batch.
    decay : float
        Factor of the weight decay.
    constant : Tensor, shape (k,), optional
        Share of the losses that does not depend on these unknowns.
    price : Price
        Cost of an evaluation in fine gradients.
    comm : Communicator or None
        None where all networks are on this rank.
    remembers : bool
        Whether to keep the last blended outputs, for `known`.
    """

    groups: Sequence[NetworkGroup]
    frozen: Tensor
    targets: Tensor
    shape: tuple[int, ...]
    decay: float = 0.0
    constant: Tensor | None = None
    price: Price = Price()  # noqa: RUF009 (frozen)
    comm: Communicator | None = None
    remembers: bool = False
    _last: dict[str, Tensor] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Number of unknowns (of a row)."""
        return self.shape[-1]

    @property
    def models(self) -> int:
        """Number k of losses, 1 where it is no batch."""
        return self.shape[0] if len(self.shape) == 2 else 1

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        return Bounds.free(*self.shape, dtype=self.frozen.dtype, device=self.frozen.device)

    def _leaves(self, x: Tensor) -> list[list[Tensor]]:
        return [group.net.layout.leaves(group.of(x)) for group in self.groups]

    def _own(self, leaves: Sequence[list[Tensor]]) -> Tensor:
        """Return what the networks of this rank add to the outputs."""
        z = torch.zeros_like(self.frozen)
        for group, parameters in zip(self.groups, leaves, strict=True):
            z = z + group.share(parameters)
        return z

    def _sum(self, buffer: Tensor) -> Tensor:
        return buffer if self.comm is None else self.comm.sum(buffer)

    def _decays(self, x: Tensor) -> Tensor:
        """Return the weight decay of the networks of this rank, shape (k,)."""
        total = x.new_zeros(self.models)
        for group in self.groups:
            squares = group.of(x)[:, : group.net.decayed].square().sum(1)
            total.index_add_(0, group.model, squares, alpha=0.5 * self.decay)
        return total

    def _blended(self, own: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the outputs and the weight decay of all ranks, in one collective."""
        together = self._sum(torch.cat([own.detach().flatten(), self._decays(x)]))
        z = together[: own.numel()].view_as(own) + self.frozen
        if self.remembers:
            self._last.update(x=x.clone(), z=z)
        return z, together[own.numel() :]

    def outputs(self, x: Tensor) -> Tensor:
        """Return the blended outputs, shape (M, C).

        Parameters
        ----------
        x : Tensor, shape of the unknowns
            The point.
        """
        with torch.no_grad():
            return self._blended(self._own([group.net.layout.views(group.of(x)) for group in self.groups]), x)[0]

    def known(self, x: Tensor) -> Tensor | None:
        """Return the blended outputs if `x` is where they were computed last: nothing is evaluated.

        Parameters
        ----------
        x : Tensor, shape of the unknowns
            The point.
        """
        last = self._last.get("x")
        return self._last["z"] if last is not None and torch.equal(last, x) else None

    def losses(self, z: Tensor) -> Tensor:
        """Return the cross-entropy of outputs of shape (M, C), shape (k,).

        Parameters
        ----------
        z : Tensor, shape (M, C)
            Blended outputs.
        """
        values = -(self.targets * torch.log_softmax(z, dim=1)).view(self.models, -1).sum(1)
        return values if self.constant is None else values + self.constant

    def _shaped(self, values: Tensor) -> Tensor:
        return values if len(self.shape) == 2 else values[0]

    def value(self, x: Tensor) -> Tensor:
        """Return the loss, shape () or (k,)."""
        self.price.of_value()
        with torch.no_grad():
            own = self._own([group.net.layout.views(group.of(x)) for group in self.groups])
            z, decays = self._blended(own, x)
            return self._shaped(self.losses(z) + decays)

    def gradient(self, x: Tensor) -> Tensor:
        """Return the gradient, of the shape of x."""
        return self.value_and_gradient(x)[1]

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both in one sweep and two collectives."""
        self.price.of_gradient()
        leaves = self._leaves(x)
        own = self._own(leaves)
        z, decays = self._blended(own, x)
        values = self.losses(z.requires_grad_())
        (g,) = torch.autograd.grad(values.sum(), z)
        z.requires_grad_(False)
        return self._shaped(values.detach() + decays), self._sum(self._pulled(own, leaves, g, x))

    def _pulled(self, own: Tensor, leaves: Sequence[list[Tensor]], g: Tensor, x: Tensor) -> Tensor:
        """Return the gradient of this rank's networks, given that with respect to the outputs; zero for the others."""
        out = torch.zeros_like(x)
        if not self.groups:
            return out
        pieces = iter(torch.autograd.grad(own, [leaf for of in leaves for leaf in of], g))
        for group, of in zip(self.groups, leaves, strict=True):
            rows = group.net.layout.pack([next(pieces) for _ in of])
            rows[:, : group.net.decayed].add_(group.of(x)[:, : group.net.decayed], alpha=self.decay)
            group.store(rows, out)
        return out

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v = J^T L'' J v + sum_i (dL/dz_i) z_i'' v``, in three collectives."""
        self.price.of_product()
        leaves = self._leaves(x)
        own, flat = self._own(leaves), [leaf for of in leaves for leaf in of]
        along = [view for group in self.groups for view in group.net.layout.views(group.of(v))]
        z = self._blended(own, x)[0].requires_grad_()
        (g,) = torch.autograd.grad(self.losses(z).sum(), z, create_graph=True)
        seed = g.detach().requires_grad_()  # the derivative by it is J v, the one by the parameters bends
        slope = seed.sum() * 0.0
        if flat:
            pulled = torch.autograd.grad(own, flat, seed, create_graph=True)
            slope = slope + torch.stack([(a * b).sum() for a, b in zip(pulled, along, strict=True)]).sum()
        found = torch.autograd.grad(slope, [seed, *flat], materialize_grads=True, retain_graph=True)
        moved = self._sum(found[0].clone())
        (turned,) = torch.autograd.grad((g * moved).sum(), z)
        z.requires_grad_(False)
        out = self._pulled(own, leaves, turned, v)
        bends = iter(found[1:])
        for group, of in zip(self.groups, leaves, strict=True):
            group.store(group.of(out) + group.net.layout.pack([next(bends) for _ in of]), out)
        return self._sum(out)


def blended_with_dropout(
    loss: BlendedLoss, samples: Sequence[Batch | None], probability: float, seed: int
) -> Stochastic:
    """Return the loss of networks that are trained with dropout: itself without, with a new objective per outer step.

    Parameters
    ----------
    loss : BlendedLoss
        The loss without dropout.
    samples : sequence of Batch or None
        Graphs for samples, one per group, their features not yet propagated; None for networks without dropout.
    probability : float
        With which an entry of the features or of a hidden state is dropped.
    seed : int
        Samples depend on this seed and the step alone.
    """

    def draw(step: int) -> BlendedLoss:
        dropout = Dropout(probability, seed, step)
        groups = [
            group if batch is None else replace(group, batch=batch, dropout=dropout)
            for group, batch in zip(loss.groups, samples, strict=True)
        ]
        return replace(loss, groups=groups, remembers=False, _last={})

    return Stochastic(loss, draw)


@dataclass(frozen=True, eq=False)
class LocalBlends:
    """The local models of some of the networks of a `BlendedLoss`: what the others add is fixed.

    They are restrictions of the loss, and evaluate networks and outputs of their own parts alone.

    Parameters
    ----------
    local : BlendedLoss
        A batch of k losses; its frozen outputs are ignored.
    index : Tensor, shape (k M,), int64
        Outputs of the batch as numbers of outputs of the whole.
    valid : Tensor, shape (k M, 1)
        One, and zero at padding.
    """

    local: BlendedLoss
    index: Tensor
    valid: Tensor

    def at(self, y: Tensor, z: Tensor, value: Tensor) -> BlendedLoss:
        """Return the local models at the local unknowns `y`, shape (k, m), where outputs and loss are `z`, `value`.

        Parameters
        ----------
        y : Tensor, shape (k, m)
            Local unknowns.
        z : Tensor, shape (M, C)
            Blended outputs of the whole there.
        value : Tensor, shape ()
            Loss of the whole there.
        """
        self.local.price.of_value()
        zero = replace(self.local, frozen=torch.zeros_like(self.local.frozen))
        frozen = (z[self.index] - zero.outputs(y)).mul_(self.valid)
        own = self.local.losses(z[self.index] * self.valid) + self.local._decays(y)
        return replace(self.local, frozen=frozen, constant=value - own)
