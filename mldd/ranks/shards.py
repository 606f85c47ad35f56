"""Parameters in pieces on several ranks (FSDP2): the flat vector of whole ones from all pieces, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldd.algebra import count, waiting

_WAY_OUT = "shard the whole module by fully_shard over one mesh of one axis, or use an optimizer of torch.optim"


def are_sharded(parameters: Sequence[nn.Parameter]) -> bool:
    """Return whether any of the parameters is in pieces (a DTensor).

    Parameters
    ----------
    parameters : list of Parameter
        Of one model.
    """
    if all(type(p.data) is Tensor for p in parameters):
        return False
    return any(_is_dtensor(p.data) for p in parameters)


def _is_dtensor(data: Tensor) -> bool:
    from torch import distributed

    if not distributed.is_available():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(data, DTensor)


class Shards:
    """Where the pieces of parameters lie in the flat vector of whole ones, and on which rank.

    Parameters
    ----------
    parameters : list of Parameter
        All in pieces, as ``torch.distributed.fsdp.fully_shard`` leaves them.
    modules : iterable of nn.Module
        Those that hold them.

    Attributes
    ----------
    group : torch.distributed.ProcessGroup
        The ranks.

    Raises
    ------
    ValueError
        Some parameters in pieces and others whole, pieces of another kind than those of FSDP2, or several meshes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], modules: Iterable[nn.Module]) -> None:
        """Refuse what is not supported, and number the entries."""
        from torch.distributed.fsdp import FSDPModule

        self._modules = [module for module in modules if isinstance(module, FSDPModule)]
        axes = _axes(parameters, bool(self._modules))
        mesh: Any = parameters[0].data.device_mesh  # type: ignore[attr-defined]
        self.group, self._ranks, rank = mesh.get_group(), mesh.size(), mesh.get_local_rank()
        pieces, start = [], 0
        for p, axis in zip(parameters, axes, strict=True):
            whole = torch.arange(start, start + p.numel()).view(p.shape)
            cut = whole.chunk(self._ranks, axis)  # the rule of DTensor
            pieces.append([*cut, *[whole.new_empty(0)] * (self._ranks - len(cut))])
            start += p.numel()
        owned = [torch.cat([of[r].flatten() for of in pieces]) for r in range(self._ranks)]
        self._sizes = [of[rank].numel() for of in pieces]
        self._longest = max(len(places) for places in owned)
        order = torch.empty(start, dtype=torch.int64)
        for r, places in enumerate(owned):
            order[places] = torch.arange(len(places)) + r * self._longest
        device = parameters[0].device
        self._order, self._own = order.to(device), owned[rank].to(device)

    def whole(self, tensors: Sequence[Tensor | None], of: Tensor) -> Tensor:
        """Return the flat vector of tensors in pieces, on every rank; one synchronisation.

        Parameters
        ----------
        tensors : list of Tensor or None
            In pieces as the parameters are; None for zeros.
        of : Tensor
            Its dtype and device are those of the vector.
        """
        from torch import distributed

        mine = of.new_zeros(self._longest)
        for place, tensor in zip(self._cut(mine), tensors, strict=True):
            if tensor is not None:
                place.copy_(local_piece(tensor).reshape(-1))
        found = of.new_empty(self._ranks, self._longest)
        count(synchronisations=1, sent=mine.numel() * mine.element_size())
        with waiting():
            distributed.all_gather(list(found), mine, group=self.group)
        return found.view(-1)[self._order]

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return what this rank holds of a flat vector, a flat piece per parameter.

        Parameters
        ----------
        x : Tensor, shape (n,)
            Values of whole parameters.
        """
        return self._cut(x[self._own])

    def _cut(self, mine: Tensor) -> tuple[Tensor, ...]:
        """Return the flat pieces of this rank, which lie one behind the other, with padding behind the last."""
        return torch.split(mine[: sum(self._sizes)], self._sizes)

    def reshard(self) -> None:
        """Let the modules forget whole parameters that an evaluation without ``backward`` may have left behind."""
        for module in self._modules:
            module.reshard()


def local_piece(tensor: Tensor) -> Tensor:
    """Return the piece of this rank, sharing its memory.

    Parameters
    ----------
    tensor : DTensor
        A tensor in pieces.
    """
    with torch.no_grad():
        piece: Tensor = tensor.to_local()  # type: ignore[attr-defined]
    return piece


def _axes(parameters: Sequence[nn.Parameter], are_of_fsdp: bool) -> list[int]:
    """Return the axis along which each parameter is cut, refusing all that are not those of FSDP2 on one mesh."""
    from torch.distributed.tensor import Shard

    whole = sum(not _is_dtensor(p.data) for p in parameters)
    if whole:
        raise ValueError(
            f"all parameters must be in pieces (DTensor) or none, got {whole} of {len(parameters)} whole; {_WAY_OUT}"
        )
    if not are_of_fsdp:
        raise ValueError(f"parameters in pieces must be those of fully_shard, got DTensor without it; {_WAY_OUT}")
    axes, mesh = [], parameters[0].data.device_mesh  # type: ignore[attr-defined]
    for p in parameters:
        data: Any = p.data
        if len(data.placements) != 1 or type(data.placements[0]) is not Shard:
            raise ValueError(f"parameters must be cut along one axis, got placements {data.placements}; {_WAY_OUT}")
        if data.device_mesh != mesh:
            raise ValueError(f"all parameters must be on one mesh, got {mesh} and {data.device_mesh}; {_WAY_OUT}")
        if local_piece(data).device.type != mesh.device_type:
            raise ValueError(
                f"parameters must stay on the {mesh.device_type} of their mesh, got pieces on the "
                f"{local_piece(data).device.type}; leave out the offload_policy"
            )
        axes.append(data.placements[0].dim)
    return axes
