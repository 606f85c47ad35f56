"""Subdomains of samples, of layers, and of both: the local models of a module's loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache

import torch
from torch import Tensor

from mldd.algebra import (
    Corrected,
    Decomposition,
    LocalRestrictions,
    Objective,
    Price,
    SharedDecomposition,
)
from mldd.problems.modules.module_layers import ModuleLayers
from mldd.problems.modules.part_losses import PartLosses
from mldd.problems.modules.sample_loss import SampleLoss, SampleModel
from mldd.problems.nets import Draw, draw_of, pieces
from mldd.ranks import Communicator


@dataclass(frozen=True, eq=False)
class SampleParts:
    """What makes the local models of a module's loss.

    Parameters
    ----------
    model : SampleModel
        Module, loss and samples, without dropout.
    drawn : callable
        ``drawn(rows, step, comm, fine=..., of=...)`` returns the loss over some samples of an outer step.
    layers : ModuleLayers
        Of the module.
    """

    model: SampleModel
    drawn: Callable[..., SampleLoss]
    layers: ModuleLayers

    @property
    def _total(self) -> int:
        return len(self.model.samples)

    @cached_property
    def _whole(self) -> Callable[[Draw | None], SampleLoss]:
        """The loss that the layers of this rank see: that of all samples, for other ranks hold other layers."""

        @lru_cache(maxsize=1)
        def whole(drawn: Draw | None) -> SampleLoss:
            if drawn is not None:
                return self.drawn(drawn.rows, drawn.step, None, fine=True)
            return SampleLoss(self.model, torch.arange(self._total))

        return whole

    def restrictions(
        self, decomposition: Decomposition, f: Objective, x: Tensor, g: Tensor | None
    ) -> LocalRestrictions:
        """Return the local models of layers, whose gradient needs no correction.

        Parameters
        ----------
        decomposition : Decomposition
            Into runs of layers.
        f : Objective
            The objective, of a step or not.
        x : Tensor, shape (n,)
            The iterate.
        g : Tensor, shape (n,), optional
            The gradient there.
        """
        return LocalRestrictions(self._whole(draw_of(f)), decomposition, x.clone())

    def decomposition(self, parts: int, overlap: int, comm: Communicator, *, by_layers: bool) -> SharedDecomposition:
        """Return parts of the samples, each of them once, or once for every layer.

        Parameters
        ----------
        parts : int
            Parts of the samples.
        overlap : int
            Samples that are added to every part on both sides.
        comm : Communicator
            Its ranks share the subdomains.
        by_layers : bool
            A subdomain per part and layer.

        Raises
        ------
        ValueError
            Fewer subdomains than ranks.
        """
        layers = len(self.layers.names) if by_layers else 1
        count, like = parts * layers, self.model.flat.flat
        if count < comm.ranks:
            raise ValueError(f"there must be >= {comm.ranks} subdomains (the ranks), got {count}; use more `parts`")
        losses = self._losses(parts, overlap, layers)

        def build(decomposition: SharedDecomposition, f: Objective, x: Tensor, g: Tensor | None) -> Objective:
            y0, local = decomposition.gather(x), losses(decomposition.local, draw_of(f))
            bounds = decomposition.gather_bounds(f.bounds, y0)
            if g is None and layers == 1 and bounds.is_free:
                return local
            if g is None and layers == 1:
                return Corrected(local, torch.zeros_like(y0), y0, bounds)
            own = local.gradient(y0)
            return Corrected(local, (own if g is None else g) * decomposition.valid - own, y0, bounds)

        def shares(f: Objective) -> Tensor:
            drawn = draw_of(f)
            rows, m = (torch.arange(self._total), self._total) if drawn is None else (drawn.rows, len(drawn.rows))
            of_parts = pieces(rows, parts, -(-overlap * m // self._total))
            weights = torch.tensor([self.model.weight_of(of_part) for of_part in of_parts], dtype=torch.float64)
            return weights / weights.sum()

        mask = None
        if by_layers:
            mask = (torch.arange(count)[:, None] % layers == self.layers.layout.layer).to(like.device)
        mine, blocks = comm.share(count), self.layers.layout.slices
        own, device = None if by_layers else shares, like.device
        return SharedDecomposition(len(like), count, build, None, mine, mask, blocks=blocks, device=device, shares=own)

    def _losses(self, parts: int, overlap: int, layers: int) -> Callable[[range, Draw | None], PartLosses]:
        """Return what makes the losses of the chosen subdomains, over all samples or those of a step."""
        own, n, like = pieces(torch.arange(self._total), parts, overlap), self._total, self.model.flat.flat

        @cache
        def whole(chosen: range) -> PartLosses:
            rows = [own[k // layers] for k in chosen]
            return PartLosses(
                [SampleLoss(self.model, of, Price(len(of) / n, fine=False), of=n) for of in rows], like, len(like)
            )

        @lru_cache(maxsize=parts * layers)
        def share(chosen: range, drawn: Draw) -> PartLosses:
            m = len(drawn.rows)
            rows = pieces(drawn.rows, parts, -(-overlap * m // n))
            chosen_rows = [rows[k // layers] for k in chosen]
            return PartLosses(
                [self.drawn(of, drawn.step, None, fine=False, of=m) for of in chosen_rows], like, len(like)
            )

        return lambda chosen, drawn: whole(chosen) if drawn is None else share(chosen, drawn)
