"""The checksum of a graph, by which runs are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from mldd.problems.data import checksum
from mldd.problems.modules.one_graph.graph_arguments import fields_of_data


def checksum_of(data: Any) -> str:
    """Return the checksum of all tensors of a graph, and of their names.

    Parameters
    ----------
    data : torch_geometric.data.Data, or mapping
        The graph.
    """
    fields = {key: value for key, value in sorted(fields_of_data(data).items()) if isinstance(value, Tensor)}
    tensors = (part for value in fields.values() for part in _stored(value.detach().cpu()))
    arrays = (part.float() if part.dtype is torch.bfloat16 else part for part in tensors)
    return checksum(np.array(list(fields)), *(part.numpy() for part in arrays))


def _stored(value: Tensor) -> tuple[Tensor, ...]:
    """Return what a tensor consists of: of a sparse one places and entries, for all its entries may be too many."""
    if value.layout is torch.strided:
        return (value.resolve_conj().resolve_neg(),)
    entries = value.to_sparse(layout=torch.sparse_coo).coalesce()
    return entries.indices(), entries.values()
