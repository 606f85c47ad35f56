"""Dropout and batch normalisation of a network that sees a part of a graph as on the whole graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from mldd.problems.nets import Dropout
from mldd.ranks import Communicator


@dataclass(frozen=True)
class Noise:
    """The sample of dropout of an outer step.

    Parameters
    ----------
    seed, step : int
        Other pairs are independent.
    """

    seed: int
    step: int


class PartFunctions(TorchFunctionMode):
    """Lets dropout depend on the global numbers of nodes and edges, and batch statistics on the nodes of all ranks.

    Inside of the context ``torch.nn.functional.dropout`` drops the same entries of a node on any number of ranks, and
    ``batch_norm`` takes mean and variance over the nodes that the ranks own, or over the edges that lead to these. For
    tensors that have a row for neither nodes nor edges, nor for edges and a loop at every node as attention has,
    dropout is torch's own with the same generator on all ranks, and batch statistics of several ranks are refused.

    Parameters
    ----------
    nodes : Tensor, shape (m,), int64
        Global numbers of the nodes of the part.
    edges : Tensor, shape (e,), int64
        Global numbers of its edges.
    owned : int
        How many of the nodes, the first ones, count in batch statistics on this rank.
    noise : Noise, optional
        The sample of dropout; without it dropout is torch's.
    comm : Communicator, optional
        Ranks over which batch statistics are taken; without them those of the part count.
    ends : Tensor, shape (2, e), int64, optional
        Ends of the edges.
    """

    def __init__(
        self,
        nodes: Tensor,
        edges: Tensor,
        owned: int,
        noise: Noise | None,
        comm: Communicator | None,
        ends: Tensor | None = None,
    ) -> None:
        """Keep what is needed inside of the context."""
        super().__init__()
        self.rows = {len(edges): edges, len(nodes): nodes}
        self.nodes, self.owned, self.noise, self.comm, self.calls = len(nodes), owned, noise, comm, 0
        self.looped = nodes, edges, ends

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Call `func`, or what stands for it here.

        Parameters
        ----------
        func : callable
            Of torch.
        types : sequence of type
            Of its arguments.
        args : sequence
            Its arguments by position.
        kwargs : dict
            Those by name.
        """
        kwargs = kwargs or {}
        if func is functional.dropout and self.noise is not None:
            return self._dropout(*args, **kwargs)
        if func is functional.batch_norm and self._has_statistics:
            return self._batch_norm(*args, **kwargs)
        return func(*args, **kwargs)

    @property
    def _has_statistics(self) -> bool:
        return self.comm is not None

    def _dropout(self, x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
        if not training or p == 0:
            return x
        self.calls += 1
        numbers = self._numbers(len(x)) if x.dim() else None
        if numbers is None:
            return functional.dropout(x, p, True)
        assert self.noise is not None
        width = x[0].numel() if len(x) else 1
        ids = numbers.to(x.device)[:, None] * width + torch.arange(width, device=x.device)
        scale = Dropout(p, self.noise.seed, self.noise.step).scale(ids, self.calls, x.dtype)
        return x * scale.view(x.shape)

    def _numbers(self, count: int) -> Tensor | None:
        """Return the numbers of so many rows, None if they are neither nodes nor edges."""
        if count in self.rows:
            return self.rows[count]
        nodes, edges, ends = self.looped
        if ends is None or count < len(nodes):
            return None
        if count != len(edges) + len(nodes):  # loops of the graph have been removed before those of all nodes are added
            edges = edges[ends[0] != ends[1]]
        if count != len(edges) + len(nodes):
            return None
        self.rows[count] = torch.cat([edges, -1 - nodes])
        return self.rows[count]

    def _batch_norm(
        self,
        x: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        training: bool = False,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> Tensor:
        if not training:
            return functional.batch_norm(x, running_mean, running_var, weight, bias, training, momentum, eps)
        count, mean, variance = self._statistics(self._counted(x))
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.detach().to(running_mean), momentum)
            unbiased = variance.detach() * count.detach() / (count.detach() - 1).clamp(min=1)
            running_var.lerp_(unbiased.to(running_var), momentum)
        shape = (1, -1, *[1] * (x.dim() - 2))
        scale = (variance.clamp(min=0) + eps).rsqrt().to(x)
        y: Tensor = (x - mean.to(x).view(shape)) * scale.view(shape)
        y = y if weight is None else y * weight.view(shape)
        return y if bias is None else y + bias.view(shape)

    def _counted(self, x: Tensor) -> Tensor:
        """Return the rows that count in batch statistics: of nodes the own ones, of edges those that lead to them."""
        if len(x) == self.nodes:
            return x[: self.owned]
        nodes, edges, ends = self.looped
        if ends is not None:
            own = ends[1] < self.owned
            if len(x) == len(edges):
                return x[own]
            own = own if len(x) == len(edges) + len(nodes) else own[ends[0] != ends[1]]
            if len(x) == len(own) + len(nodes):
                return x[torch.cat([own, torch.arange(len(nodes), device=own.device) < self.owned])]
        raise ValueError(
            f"batch normalisation on several ranks must have a row for every node or edge, got {len(x)} rows where "
            f"there are {len(nodes)} nodes and {len(edges)} edges; use one rank, or another norm (nn.LayerNorm)"
        )

    def _statistics(self, own: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return how many entries a column has on all ranks, their means, and their variances."""
        columns = own.double().transpose(0, 1).flatten(1)
        local = torch.stack(
            [torch.full_like(columns.sum(1), columns.shape[1]), columns.sum(1), columns.square().sum(1)]
        )
        count, total, squares = summed(local, self.comm)
        mean = total / count
        return count, mean, squares / count - mean.square()


Statistics = tuple[Tensor, Tensor, Tensor]


class SampleFunctions(PartFunctions):
    """The same for a batch of samples, all of which count in batch statistics.

    Parameters
    ----------
    numbers : dict of int to Tensor
        Global numbers of what a tensor has rows for, by how many rows it has.
    noise : Noise, optional
        The sample of dropout; without it dropout is torch's.
    comm : Communicator, optional
        Ranks over which batch statistics are taken; without them those of the batch count.
    fixed : list of tuple, optional
        Batch statistics that are taken as constants; an empty list is filled by those of the batch.
    """

    def __init__(
        self,
        numbers: Mapping[int, Tensor],
        noise: Noise | None,
        comm: Communicator | None,
        fixed: list[Statistics] | None = None,
    ) -> None:
        """Keep what is needed inside of the context."""
        nobody = torch.empty(0, dtype=torch.int64)
        super().__init__(nobody, nobody, 0, noise, comm)
        self.rows, self.fixed, self.norms = dict(numbers), fixed, 0

    @property
    def _has_statistics(self) -> bool:
        return self.comm is not None or self.fixed is not None

    def _counted(self, x: Tensor) -> Tensor:
        return x

    def _statistics(self, own: Tensor) -> Statistics:
        if self.fixed is None:
            return super()._statistics(own)
        self.norms += 1
        if self.norms > len(self.fixed):
            count, mean, variance = super()._statistics(own.detach())
            self.fixed.append((count, mean, variance))
        return self.fixed[self.norms - 1]


class _Summed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        ctx.comm = comm
        return comm.sum(x.clone())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return summed(grads[0], ctx.comm), None


def summed(x: Tensor, comm: Communicator | None) -> Tensor:
    """Return the sum over ranks, which autograd differentiates: the derivative by a rank's share is summed likewise.

    Parameters
    ----------
    x : Tensor
        The share of this rank.
    comm : Communicator, optional
        The ranks; None for one.
    """
    if comm is None:
        return x
    made: Tensor = _Summed.apply(x, comm)  # type: ignore[no-untyped-call]
    return made
