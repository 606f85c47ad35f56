"""Copies of one module on several ranks of torch.distributed: who they are, and means of their losses."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mldd.algebra import count, waiting


@dataclass(frozen=True)
class Replicas:
    """Ranks that train copies of one module, each on its share of the data, with averaged gradients.

    Parameters
    ----------
    group : torch.distributed.ProcessGroup
        The ranks.
    """

    group: Any

    def mean(self, value: Tensor, g: Tensor) -> Tensor:
        """Return the mean over the ranks, the same to the last bit on all of them; one scalar synchronisation.

        Parameters
        ----------
        value : Tensor, shape ()
            Of this rank.
        g : Tensor, shape (n,)
            Its gradient, which is averaged already.

        Raises
        ------
        ValueError
            Gradients that differ from rank to rank, on all ranks.
        """
        from torch import distributed

        ranks = distributed.get_world_size(self.group)
        # Everyone's numbers in places of their own: sums with zeros are exact in whichever order they are formed.
        numbers = torch.zeros(2, ranks, dtype=torch.float64, device=value.device)
        numbers[:, distributed.get_rank(self.group)] = torch.stack([value, torch.linalg.vector_norm(g)])
        count(scalar_synchronisations=1)
        with waiting():
            distributed.all_reduce(numbers, group=self.group)
        values, norms = numbers
        if not torch.allclose(norms, norms[0], rtol=torch.finfo(g.dtype).eps ** 0.75, atol=0, equal_nan=True):
            raise ValueError(
                f"gradients must be the same on all {ranks} ranks, got norms from {float(norms.min()):.9g} to "
                f"{float(norms.max()):.9g}; average them over the group (DistributedDataParallel without no_sync does)"
            )
        mean: Tensor = values.mean().to(value.dtype)
        return mean


def torch_ranks() -> int:
    """Return the number of ranks of torch.distributed, 1 where it is not in use."""
    from torch import distributed

    in_use = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if in_use else 1


def replicas_of(modules: Iterable[nn.Module]) -> Replicas | None:
    """Return the ranks that hold copies of the modules, None where no gradient is averaged.

    Parameters
    ----------
    modules : iterable of nn.Module
        All that hold the parameters; those of type DistributedDataParallel know their ranks.

    Raises
    ------
    ValueError
        Parameters that a module in pieces has left whole, or copies on different ranks.
    """
    if torch_ranks() == 1:
        return None
    from torch.distributed.fsdp import FSDPModule
    from torch.nn.parallel import DistributedDataParallel

    found = []
    for module in modules:
        if isinstance(module, FSDPModule):
            raise ValueError(
                "parameters must be in pieces where others of their module are, got whole ones in "
                f"{type(module).__name__}; leave out ignored_params, or average their gradients "
                "over the ranks yourself and give `group`"
            )
        if isinstance(module, DistributedDataParallel) and module.require_backward_grad_sync:
            found.append(module.process_group)
    if any(group is not found[0] for group in found):
        raise ValueError(
            "all copies of modules must be on the same ranks, got several process groups; give `group`, or make an "
            "optimizer for each"
        )
    return Replicas(found[0]) if found else None


def refuse_fsdp1(modules: Iterable[nn.Module]) -> None:
    """Refuse parameters that are pieces of which nothing says where they belong.

    Parameters
    ----------
    modules : iterable of nn.Module
        All that hold the parameters.

    Raises
    ------
    ValueError
        One of them is of type FullyShardedDataParallel.
    """
    from torch.distributed.fsdp import FullyShardedDataParallel

    if any(isinstance(module, FullyShardedDataParallel) for module in modules):
        raise ValueError(
            "every rank must hold all parameters, or pieces by fully_shard, got FullyShardedDataParallel (FSDP1); use "
            "fully_shard (FSDP2) or DistributedDataParallel instead"
        )
