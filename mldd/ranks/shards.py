"""Parameters in pieces on several ranks (FSDP2): the flat vector of whole ones from all pieces, and back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from mldd.algebra import count, waiting

_WAY_OUT = "shard the whole module by fully_shard over one mesh, or use an optimizer of torch.optim"


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
        The ranks, with all copies where pieces are held several times.

    Raises
    ------
    ValueError
        Some parameters in pieces and others whole, pieces of another kind than those of FSDP2, or several meshes.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], modules: Iterable[nn.Module]) -> None:
        """Refuse what is not supported, and number the entries."""
        from torch import distributed
        from torch.distributed.fsdp import FSDPModule

        self._modules = [module for module in modules if isinstance(module, FSDPModule)]
        axes = _axes(parameters, bool(self._modules))
        mesh, cut = _mesh_of(parameters)
        self.group = mesh.get_group() if mesh.ndim == 1 else distributed.group.WORLD
        self._pieces, self._ranks, rank = mesh.get_group(cut), mesh.size(cut), mesh.get_local_rank(cut)
        pieces, start = [], 0
        for p, axis in zip(parameters, axes, strict=True):
            whole = torch.arange(start, start + p.numel()).view(p.shape)
            parts = whole.chunk(self._ranks, axis)  # the rule of DTensor
            pieces.append([*parts, *[whole.new_empty(0)] * (self._ranks - len(parts))])
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
            distributed.all_gather(list(found), mine, group=self._pieces)
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
    whole = sum(not _is_dtensor(p.data) for p in parameters)
    if whole:
        raise ValueError(
            f"all parameters must be in pieces (DTensor) or none, got {whole} of {len(parameters)} whole; {_WAY_OUT}"
        )
    if not are_of_fsdp:
        raise ValueError(f"parameters in pieces must be those of fully_shard, got DTensor without it; {_WAY_OUT}")
    mesh, cut = _mesh_of(parameters)
    axes = []
    for p in parameters:
        data: Any = p.data
        if data.device_mesh != mesh or _cut(data) != cut:
            raise ValueError(f"all parameters must be on one mesh, got {mesh} and {data.device_mesh}; {_WAY_OUT}")
        if local_piece(data).device.type != mesh.device_type:
            raise ValueError(
                f"parameters must stay on the {mesh.device_type} of their mesh, got pieces on the "
                f"{local_piece(data).device.type}; leave out the offload_policy"
            )
        axes.append(data.placements[cut].dim)
    return axes


def _mesh_of(parameters: Sequence[nn.Parameter]) -> tuple[Any, int]:
    """Return the mesh of the parameters, and its axis along which they are cut; along another one they are copied."""
    from torch import distributed

    data: Any = parameters[0].data
    if data.device_mesh.ndim > 1 and data.device_mesh.size() != distributed.get_world_size():
        raise ValueError(
            f"a mesh of several axes must have all {distributed.get_world_size()} ranks, got "
            f"{data.device_mesh.size()}; {_WAY_OUT}"
        )
    return data.device_mesh, _cut(data)


def _cut(data: Any) -> int:
    """Return the axis of the mesh along which a parameter is cut, refusing all but cuts along one axis."""
    from torch.distributed.tensor import Replicate, Shard

    cuts = [k for k, placement in enumerate(data.placements) if not isinstance(placement, Replicate)]
    if len(cuts) != 1 or type(data.placements[cuts[0]]) is not Shard:
        raise ValueError(f"parameters must be cut along one axis of a mesh, got {data.placements}; {_WAY_OUT}")
    return cuts[0]
