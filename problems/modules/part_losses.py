"""Losses over the samples of several subdomains, each with parameters of its own: evaluated together where they fit."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from mldd.algebra import Bounds
from mldd.problems.modules.sample_loss import SampleLoss

_LEAST = 6  # subdomains for which vmap saves more on a CPU than it costs: an evaluation by it takes as long as 4 others

_MOST = 2**28  # bytes of samples that are copied to stand side by side


class PartGroup(NamedTuple):
    """Subdomains whose samples have the same shapes.

    Parameters
    ----------
    rows : list of int
        Numbers of the subdomains.
    batch : nest of Tensor, or None
        Their samples, side by side along a first axis, or one batch for all; None where each is evaluated alone.
    weights : Tensor, shape (p,)
        Of their losses.
    shared : bool
        Whether it is one batch for all.
    """

    rows: list[int]
    batch: Any
    weights: Tensor
    shared: bool


@dataclass(frozen=True, eq=False)
class PartLosses:
    """The losses over the samples of several subdomains, each of which has a copy of all parameters.

    Parameters
    ----------
    losses : sequence of SampleLoss
        One per subdomain, on this rank alone.
    like : Tensor
        Of the dtype and on the device of the parameters.
    size : int
        Number n of parameters.
    """

    losses: Sequence[SampleLoss]
    like: Tensor
    size: int

    batched = True

    @cached_property
    def bounds(self) -> Bounds:
        """No bounds."""
        return Bounds.free(len(self.losses), self.size, dtype=self.like.dtype, device=self.like.device)

    @cached_property
    def _groups(self) -> list[PartGroup]:
        """Subdomains that are evaluated together; samples of several evaluations, or with dropout, are not."""
        by_shape: dict[Any, list[int]] = {}
        for k, f in enumerate(self.losses):
            why, shapes = _alone(f), () if len(f.units) != 1 else _shapes(f.units[0].batch)
            if why and len(self.losses) > 1:
                f.model.stacked.tell(why)
            by_shape.setdefault(("alone", k) if why else shapes, []).append(k)
        return [self._group(rows) for rows in by_shape.values()]

    def _group(self, rows: list[int]) -> PartGroup:
        units = [unit for k in rows for unit in self.losses[k].units]
        if len(rows) < (_LEAST if self.like.device.type == "cpu" else 2):
            return PartGroup(rows, None, self.like.new_ones(len(rows)), False)
        weights = self.like.new_tensor([unit.weight for unit in units])
        shared = all(unit.batch is units[0].batch for unit in units)
        if not shared and len(units) * sum(t.nbytes for t in pytree.tree_leaves(units[0].batch)) > _MOST:
            return PartGroup(rows, None, weights, False)
        batch = units[0].batch if shared else pytree.tree_map(lambda *t: torch.stack(t), *(u.batch for u in units))
        return PartGroup(rows, batch, weights, shared)

    def _together(self, group: PartGroup, count: str, evaluate: Callable[[Any], Any]) -> Any:
        """Return what an evaluation of a group gives, None where its members are evaluated alone."""
        if group.batch is None:
            return None
        found = evaluate(self.losses[group.rows[0]].model.stacked)
        if found is not None:
            for k in group.rows:
                getattr(self.losses[k].price_here, count)()
        return found

    def value(self, y: Tensor) -> Tensor:
        """Return the losses, shape (p,)."""
        values = y.new_zeros(len(y))
        for group in self._groups:
            rows, at = group.rows, y[group.rows]
            found = self._together(group, "of_value", lambda m: m.values(at, group.batch, group.shared))  # noqa: B023
            if found is not None:
                values[rows] = found * group.weights
                continue
            for k in rows:
                values[k] = self.losses[k].value(y[k])
        return values

    def gradient(self, y: Tensor) -> Tensor:
        """Return the gradients, shape (p, n)."""
        return self.value_and_gradient(y)[1]

    def value_and_gradient(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Return losses and gradients.

        Parameters
        ----------
        y : Tensor, shape (p, n)
            Parameters of every subdomain.
        """
        values, g = y.new_zeros(len(y)), torch.empty_like(y)
        for group in self._groups:
            rows, at = group.rows, y[group.rows]
            found = self._together(
                group,
                "of_gradient",
                lambda m: m.values_and_gradients(at, group.batch, group.shared),  # noqa: B023
            )
            if found is not None:
                values[rows], g[rows] = found[0] * group.weights, found[1] * group.weights[:, None]
                continue
            for k in rows:
                values[k], g[k] = self.losses[k].value_and_gradient(y[k])
        return values, g

    def hessian_product(self, y: Tensor, v: Tensor) -> Tensor:
        """Return ``H_i(y_i) v_i`` of every subdomain, shape (p, n)."""
        product = torch.empty_like(v)
        for group in self._groups:
            rows, at, along = group.rows, y[group.rows], v[group.rows]
            found = self._together(
                group,
                "of_product",
                lambda m: m.products(at, along, group.batch, group.shared),  # noqa: B023
            )
            if found is not None:
                product[rows] = found * group.weights[:, None]
                continue
            for k in rows:
                product[k] = self.losses[k].hessian_product(y[k], v[k])
        return product


def _alone(f: SampleLoss) -> str:
    """Return why a loss is evaluated by itself, empty where it may stand beside others."""
    if len(f.units) != 1 or f.units[0].comm is not None:
        return "their samples are more than are evaluated at once" if f.units else "one has no sample with a weight"
    if f.model.noisy or f.model.statistics:
        return "the network has dropout or statistics of batches"
    return "" if _shapes(f.units[0].batch) else "their samples are no tensors of equal shapes"


def _shapes(batch: Any) -> tuple[Any, ...]:
    """Return what batches that can be put side by side have in common, nothing for one that cannot."""
    leaves, structure = pytree.tree_flatten(batch)
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        return ()
    return (str(structure), *((leaf.shape, leaf.dtype) for leaf in leaves))
