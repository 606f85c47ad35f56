"""The loss of a forecasting network as an objective: weighted squares over nodes, samples and lead times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import Price
from mldd.problems.graphs import NodeLoss
from mldd.problems.nets import MiniBatches


@dataclass(frozen=True, eq=False)
class Rollout:
    """How forecasts are fed back: the features of a batch are the history, then what is known at every turn.

    Parameters
    ----------
    turns : int
        How often a forecast is made.
    mixing : Tensor, shape (H V, F)
        Inputs of a turn are ``history @ mixing + known``.
    change : Tensor, shape (V,)
        One unit of output in units of the history.
    units : Tensor, shape (turns V,)
        One unit of the history in those of the targets.
    """

    turns: int
    mixing: Tensor
    change: Tensor
    units: Tensor

    def outputs(self, net: Any, parameters: list[Tensor], batch: Any) -> Tensor:
        """Return the changes since the origin after every turn, shape (p r, S, turns V).

        Parameters
        ----------
        net : GraphNet or EncodeProcessDecode
            The network.
        parameters : list of Tensor
            Its tensors.
        batch : Batch or MeshBatch
            Graphs with the features described above.
        """
        (stored,), (wide, inputs), v = batch.features, self.mixing.shape, len(self.change)
        history, *known = stored.unflatten(1, (batch.samples, -1)).split([wide, *[inputs] * self.turns], dim=2)
        start, made = history[..., :v], []
        for of_turn in known:
            state = (history @ self.mixing + of_turn).flatten(1)
            out = net.outputs(parameters, replace(batch, features=(state,)), None)
            now = history[..., :v] + out.unflatten(1, (batch.samples, v)) * self.change
            history = torch.cat([now, history[..., :-v]], dim=2)
            made.append(now - start)
        return torch.cat(made, dim=2) * self.units


def outputs_of(net: Any, parameters: list[Tensor], batch: Any, rollout: Rollout | None) -> Tensor:
    """Return the outputs z of a forecasting network, shape (p r, S, C).

    Parameters
    ----------
    net : GraphNet or EncodeProcessDecode
        The network.
    parameters : list of Tensor
        Its tensors.
    batch : Batch or MeshBatch
        Graphs and inputs.
    rollout : Rollout, optional
        None for forecasts in one go.
    """
    if rollout is not None:
        return rollout.outputs(net, parameters, batch)
    outputs: Tensor = net.outputs(parameters, batch, None)
    return outputs.view(len(outputs), batch.samples, -1)


@dataclass(frozen=True)
class ForecastLoss(NodeLoss):
    """Weighted squares ``sum_isc W_isc (z_isc(x) - Y_isc)^2`` plus weight decay, over nodes i, samples s and outputs c.

    The weights contain the areas, are zero at gaps, and add up to one for the whole graph: with Y in units of its root
    mean square, the zero network has the loss 1.

    Parameters
    ----------
    net, batch, decay, price, comm, dropout, mask
        As of `NodeLoss`; ``batch.targets``, shape (p r, S 2 C), has per sample ``W Y`` and W.
    rollout : Rollout, optional
        None for forecasts in one go.
    chunk : int
        Samples that are evaluated at once; 0: all. More cost memory, fewer time.
    scale : float
        Factor on the weights: all samples over those of a mini-batch.
    rows : Tensor, shape (b,), int64, optional
        Numbers of the samples of a mini-batch.
    shared : bool
        Whether ranks share the samples, each with all outputs, instead of the outputs.
    """

    rollout: Rollout | None = None
    chunk: int = 0
    scale: float = 1.0
    rows: Tensor | None = None
    shared: bool = False

    def forecast(self, parameters: list[Tensor], batch: Any) -> Tensor:
        """Return the outputs z, shape (p r, S, C).

        Parameters
        ----------
        parameters : list of Tensor
            Tensors of the network.
        batch : Batch or MeshBatch
            Graphs, inputs and targets.
        """
        return outputs_of(self.net, parameters, batch, self.rollout)

    def _of(self, parameters: list[Tensor], batch: Any) -> Tensor:
        """Return the squares of one chunk, shape () or (p,)."""
        moment, weight = batch.targets.unflatten(1, (batch.samples, -1)).chunk(2, dim=2)
        z = self.forecast(parameters, batch)
        # W (z - Y)^2 from W Y and W; where W = 0 so is W Y
        terms = weight * (z - moment / weight.clamp(min=torch.finfo(weight.dtype).tiny)).square()
        squares: Tensor = terms.sum() if batch.parts is None else terms.view(batch.parts, -1).sum(1)
        return squares * self.scale

    def _loss(self, parameters: list[Tensor]) -> Tensor:
        return torch.stack([self._of(parameters, part) for part in self._chunks()]).sum(0)

    def _chunks(self) -> Iterator[Any]:
        mine = range(self.batch.samples)
        if self.shared and self.comm is not None:
            mine = self.comm.share(self.batch.samples)
        size = self.chunk or max(len(mine), 1)
        if size >= self.batch.samples == len(mine):
            yield self.batch
            return
        for start in range(mine.start, mine.stop, size):
            yield selected(self.batch, slice(start, min(start + size, mine.stop)))
        if not mine:  # more ranks than samples: something of the right shape that counts for nothing
            first = selected(self.batch, slice(0, 1))
            yield replace(first, targets=torch.zeros_like(first.targets))

    def value_and_gradient(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return both, chunk by chunk, and in one collective.

        Parameters
        ----------
        x : Tensor, shape (N,) or (p, N)
            Parameters.
        """
        self.price.of_gradient()
        layout, total = self.net.layout, None
        for part in self._chunks():
            leaves = layout.leaves(x)
            values = self._of(leaves, part)
            pieces = torch.autograd.grad(values.sum(), leaves)
            buffer = layout.pack(pieces, values.detach()[..., None])
            total = buffer if total is None else total.add_(buffer)
        assert total is not None
        total = self._summed(total)
        return total[..., -1] + self._decay(x), self._masked(self._decayed(total[..., :-1], x))

    def hessian_product(self, x: Tensor, v: Tensor) -> Tensor:
        """Return ``H(x) v``, chunk by chunk."""
        self.price.of_product()
        total, alone = None, self._kept() | {"comm": None, "price": _FREE, "decay": 0.0, "chunk": 0}
        for part in self._chunks():
            product = NodeLoss.hessian_product(ForecastLoss(**alone | {"batch": part}), x, v)
            total = product if total is None else total.add_(product)
        assert total is not None
        v = v if self.mask is None else v * self.mask
        return self._masked(self._decayed(self._summed(total), v))

    def drawn(self, rows: Tensor | None) -> ForecastLoss:
        """Return the loss over the samples `rows` in place of all, without a new price.

        Parameters
        ----------
        rows : Tensor, shape (b,), int64
            Numbers of the samples.
        """
        if rows is None:
            return self
        price = replace(self.price, gradient=self.price.gradient * len(rows) / self.batch.samples)
        drawn = {"batch": selected(self.batch, rows), "price": price, "rows": rows}
        return ForecastLoss(**self._kept() | drawn | {"scale": self.batch.samples / len(rows)})

    def _kept(self) -> dict[str, Any]:
        """Return the fields of a loss without further samples."""
        return {f.name: getattr(self, f.name) for f in fields(ForecastLoss)}


@dataclass(frozen=True, kw_only=True)
class StochasticForecastLoss(ForecastLoss):
    """The loss over all samples; ``sample(step)`` is that over the mini-batch of a step.

    Parameters
    ----------
    batches : MiniBatches
        Which samples a step sees.
    """

    batches: MiniBatches

    def sample(self, step: int) -> ForecastLoss:
        """Return the objective of an outer step: the same samples on all ranks, levels and subdomains.

        Parameters
        ----------
        step : int
            Number of the step.
        """
        return self.drawn(self.batches.rows(step))


_FREE = Price(0.0, fine=False)


def selected(batch: Any, rows: Tensor | slice) -> Any:
    """Return the batch of some of its samples.

    Parameters
    ----------
    batch : Batch or MeshBatch
        With S samples.
    rows : Tensor of int64, or slice
        Which of its samples.
    """
    index = rows.to(batch.targets.device) if isinstance(rows, Tensor) else rows
    count = len(rows) if isinstance(rows, Tensor) else len(range(*rows.indices(batch.samples)))

    def cut(stored: Tensor) -> Tensor:
        return stored.view(len(stored), batch.samples, -1)[:, index].flatten(1)

    return replace(batch, samples=count, features=tuple(map(cut, batch.features)), targets=cut(batch.targets))
