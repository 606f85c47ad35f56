"""Bytes of what a rank holds of a graph in shards."""

from __future__ import annotations

import resource

from torch import Tensor

from mldd.problems.data import Shard
from mldd.problems.nets import Batch, HaloOperator, Sparse


def memory(shard: Shard, batch: Batch) -> dict[str, int]:
    """Return the bytes of what a rank holds, by kind, and the most that its process has had in memory.

    Parameters
    ----------
    shard : Shard
        What the rank holds of the graph.
    batch : Batch
        What it evaluates.
    """
    operators = [b for layer in batch.operators for b in layer if b is not None]
    held = [part for b in operators for part in (b.held if isinstance(b, HaloOperator) else (b.pattern,))]
    return {
        "features": sum(map(_bytes, batch.features)),
        "operators": sum(map(_bytes, held)) + sum(map(_bytes, batch.attributes)),
        "targets": _bytes(batch.targets),
        "halos": sum(b.exchange.bytes for b in operators if isinstance(b, HaloOperator)),
        "shard": shard.bytes,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def _bytes(tensor: Tensor | Sparse) -> int:
    if isinstance(tensor, Tensor):
        return tensor.numel() * tensor.element_size()
    return sum(_bytes(part) for m in (tensor.matrix, tensor.transposed) for part in _pieces(m)) + _bytes(tensor.order)


def _pieces(matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return matrix.values(), matrix.col_indices(), matrix.crow_indices()
