"""Graph networks with dense products in bfloat16 and all else in float32.

Sparse products stay in float32, on every device alike: torch has none in bfloat16 on the CPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from mldd.problems.nets.graph_net import Batch, GraphNet
from mldd.problems.nets.operators import Operator, Sparse


@dataclass(frozen=True, eq=False)
class Widened(Sparse):
    """A sparse matrix in float32 for states in bfloat16, which it returns in float32."""

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Return the product with a dense matrix."""
        with torch.autocast(dense.device.type, enabled=False):
            return super().__matmul__(dense.float())

    def with_values(self, values: Tensor) -> Widened:
        """Return the matrix of the same pattern with other entries.

        Parameters
        ----------
        values : Tensor, shape (nnz,)
            Entries, row by row.
        """
        return Widened.around(super().with_values(values))

    @staticmethod
    def around(matrix: Sparse) -> Widened:
        """Return the matrix with the tensors of another one.

        Parameters
        ----------
        matrix : Sparse
            In float32.
        """
        return Widened(matrix.matrix, matrix.transposed, matrix.order)


@dataclass(frozen=True)
class MixedNet(GraphNet):
    """A network whose dense products are in bfloat16; parameters, sparse products, loss and gradient in float32."""

    def outputs(self, parameters: list[Tensor], batch: Batch, scales: list[Tensor] | None = None) -> Tensor:
        """Return the outputs in float32.

        Parameters
        ----------
        parameters : list of Tensor
            Tensors of the network, views of its parameters.
        batch : Batch
            Made by `widened`.
        scales : list of Tensor, optional
            As for `GraphNet.outputs`.
        """
        with torch.autocast(batch.targets.device.type, dtype=torch.bfloat16):
            return super().outputs(parameters, batch, scales).float()


def widened(batch: Batch) -> Batch:
    """Return a batch with sparse matrices that `MixedNet` can use.

    Parameters
    ----------
    batch : Batch
        In float32.

    Raises
    ------
    ValueError
        An operator that is not held by one rank.
    """
    return replace(
        batch,
        features=tuple(Widened.around(x) if isinstance(x, Sparse) else x for x in batch.features),
        operators=tuple(tuple(None if b is None else _widened(b) for b in layer) for layer in batch.operators),
    )


def _widened(operator: Operator) -> Widened:
    if not isinstance(operator, Sparse):
        raise ValueError(f"evaluation in bfloat16 needs operators held by one rank, got {type(operator).__name__}")
    return Widened.around(operator)
