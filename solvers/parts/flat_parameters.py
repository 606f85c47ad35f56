"""The parameters of an optimizer as one flat vector, and their gradients as another one; also of sharded ones."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from mldd.algebra import Layout, joined, relink
from mldd.ranks import Shards, are_sharded, local_piece, refuse_fsdp1, torch_ranks
from mldd.solvers.parts.buffers import holders, modules_alive


def flattened(parameters: Sequence[nn.Parameter]) -> FlatParameters:
    """Return the parameters as one flat vector, of views where they are whole and a gathered one where in pieces.

    Parameters
    ----------
    parameters : list of Parameter
        All of one kind.

    Raises
    ------
    ValueError
        Pieces of FSDP1.
    """
    if are_sharded(parameters):
        return ShardedParameters(parameters)
    if torch_ranks() > 1:
        gc.collect()  # a wrapper that was dropped may still be there
        refuse_fsdp1(holders(parameters, modules_alive()))
    return FlatParameters(parameters)


class FlatParameters:
    """Parameters that are views of one flat vector.

    Parameters
    ----------
    parameters : list of Parameter
        Of one dtype, on one device, each there once.

    Attributes
    ----------
    layout : Layout
        Where they lie in the vector.
    vector : Tensor, shape (n,)
        The values.
    group : torch.distributed.ProcessGroup or None
        Ranks that hold the pieces of one vector.

    Raises
    ------
    ValueError
        Parameters that make no flat vector, or one of no real numbers.
    """

    group: Any = None

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        """Make the vector."""
        self.parameters = list(parameters)
        self.vector = self._joined()
        if not self.vector.dtype.is_floating_point:
            raise ValueError(f"parameters must be real floating point numbers, got {self.vector.dtype}")
        self.layout = Layout(tuple(tuple(p.shape) for p in self.parameters))

    @cached_property
    def _views(self) -> list[Tensor]:
        return self.layout.views(self.vector)

    def _joined(self) -> Tensor:
        return joined(self.parameters)

    def read(self) -> Tensor:
        """Return the vector with the values that the parameters have now.

        Returns
        -------
        Tensor, shape (n,)
            The vector itself.

        Raises
        ------
        ValueError
            A parameter that has changed its shape, dtype or device.
        """
        relink(self.parameters, self._views)
        return self.vector

    def write(self, x: Tensor) -> None:
        """Let the parameters have other values.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The values.
        """
        self.vector.copy_(x)

    def gradient(self) -> Tensor:
        """Return the gradients, zero for parameters without one.

        Returns
        -------
        Tensor, shape (n,)
            A new vector.

        Raises
        ------
        ValueError
            No parameter has a gradient, or one has none that is dense.
        """
        if all(p.grad is None for p in self.parameters):
            raise ValueError(
                "a step needs gradients of its parameters, got none; call loss.backward() in the closure, or before "
                "step(), of a module that still has the parameters the optimizer got (fully_shard exchanges them, and "
                "leaves gradients only with set_requires_gradient_sync(True))"
            )
        for p in self.parameters:
            if p.grad is not None and p.grad.layout != torch.strided:
                raise ValueError(
                    f"gradients must be dense, got {p.grad.layout}; use sparse=False (nn.Embedding has it)"
                )
        return self._packed()

    def _packed(self) -> Tensor:
        return self.layout.pack([torch.zeros_like(p) if p.grad is None else p.grad.detach() for p in self.parameters])

    def without_gradient(self, x: Tensor) -> list[Tensor]:
        """Return the parts of a vector that belong to parameters without a gradient.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Any vector.
        """
        if all(p.grad is not None for p in self.parameters):
            return []
        pairs = zip(self.parameters, self.layout.views(x), strict=True)
        return [view for p, view in pairs if p.grad is None]

    @property
    def trained(self) -> list[bool]:
        """Whether each parameter is trained now, or frozen."""
        return [p.requires_grad for p in self.parameters]

    def hold(self, x: Tensor, before: Tensor) -> None:
        """Put frozen parameters back: a solver's memory of the gradients that they had would go on moving them.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Values after a step, written to.
        before : Tensor, shape (n,)
            Values before it.
        """
        if all(self.trained):
            return
        pairs = zip(self.layout.views(x), self.layout.views(before), strict=True)
        for (now, old), trained in zip(pairs, self.trained, strict=True):
            if not trained:
                now.copy_(old)

    def spoil_gradients(self) -> None:
        """Set all gradients to NaN, which shows through where the next ones are added to them."""
        for p in self.parameters:
            if p.grad is not None and p.grad.is_contiguous():
                p.grad.fill_(torch.nan)  # in place: it may be a part of a buffer of DistributedDataParallel
            elif p.grad is not None:
                p.grad = torch.full_like(p, torch.nan)  # entries may share memory

    def drop_gradients(self) -> None:
        """Leave no gradient."""
        for p in self.parameters:
            p.grad = None


class ShardedParameters(FlatParameters):
    """Parameters in pieces on several ranks, of which every rank has a flat vector of whole ones.

    All that solvers compute with is whole on every rank and the same on all of them, so they need no inner products
    over ranks. It takes the memory of as many vectors on every rank as the solver has on one; what the module holds
    and its activations stay in pieces. Reading gathers once, a gradient once.

    Parameters
    ----------
    parameters : list of Parameter
        As fully_shard has left them.

    Raises
    ------
    ValueError
        Pieces of another kind, several dtypes, or one of no real numbers.
    """

    def _joined(self) -> Tensor:
        self._shards = Shards(self.parameters, holders(self.parameters, modules_alive()))
        self.group = self._shards.group
        kinds = {p.dtype for p in self.parameters}
        if len(kinds) > 1:
            raise ValueError(f"parameters must be of one dtype, got {sorted(map(str, kinds))}; use .to()")
        return self._shards.whole(self.parameters, local_piece(self.parameters[0].data))

    def read(self) -> Tensor:
        """Return the vector with the values that the parameters have now, gathered from all ranks."""
        return self.vector.copy_(self._shards.whole(self.parameters, self.vector))

    def write(self, x: Tensor) -> None:
        """Let the parameters have other values: each rank its pieces.

        Parameters
        ----------
        x : Tensor, shape (n,)
            The values, the same on all ranks.
        """
        self._shards.reshard()
        for p, piece in zip(self.parameters, self._shards.pieces(x), strict=True):
            mine = local_piece(p)
            mine.copy_(piece.view(mine.shape))

    def _packed(self) -> Tensor:
        return self._shards.whole([p.grad for p in self.parameters], self.vector)

    def spoil_gradients(self) -> None:
        """Set all gradients to NaN, which shows through where the next ones are added to them."""
        for p in self.parameters:
            if p.grad is not None:
                local_piece(p.grad).fill_(torch.nan)
