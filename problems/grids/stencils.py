"""Stencils on grids, on flat vectors or batches of them, and what evaluating them in pieces and windows needs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from mldd.algebra import Bounds, Price
from mldd.problems.grids import compiled_stencils as compiled
from mldd.problems.grids.grid import DENSE
from mldd.problems.grids.grid_windows import GridDecomposition

# Numbers in a piece of a vector: 128 KiB in double precision.
PIECE = 16384


def pieces(*vectors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Yield flat pieces of contiguous tensors of one shape that stay in the cache (on the CPU; whole on other devices).

    Temporaries of the size of a fine vector cost more than the arithmetic: each one is fresh memory.

    Parameters
    ----------
    *vectors : Tensor
        Contiguous tensors of one shape.

    Returns
    -------
    iterator of tuple of Tensor
        Views of the same piece of all vectors, one piece after the other.
    """
    flat = [v.reshape(-1) for v in vectors]
    if flat[0].device.type != "cpu" or len(flat[0]) <= PIECE:
        yield tuple(flat)
    else:
        yield from zip(*(torch.split(v, PIECE) for v in flat), strict=True)


def members(bounds: Bounds, x: Tensor) -> int:
    """Return how many vectors of a whole grid `x` is; the price of windows is that of all of them, so they are one.

    Parameters
    ----------
    bounds : Bounds
        Of one vector of the grid.
    x : Tensor, shape (n,) or (p, n)
        Iterate or batch of iterates.
    """
    return len(x) if x.dim() > bounds.lower.dim() else 1


def local_price(price: Price, decomposition: GridDecomposition) -> Price:
    """Return the price of a batch of subdomains: its unknowns (without padding) over all unknowns.

    Parameters
    ----------
    price : Price
        Of one evaluation on the whole grid.
    decomposition : GridDecomposition
        The windows of this rank.
    """
    share = decomposition.held / decomposition.size
    return Price(price.gradient * share, False, price.value, price.product)


@lru_cache(maxsize=64)
def _second_difference(n: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the dense 1-D matrix [-1 2 -1]."""
    matrix = torch.zeros((n, n), dtype=dtype, device=device)
    matrix.diagonal().fill_(2.0)
    matrix.diagonal(1).fill_(-1.0)
    matrix.diagonal(-1).fill_(-1.0)
    return matrix


def stencil(
    values: Tensor, dim: int, load: Tensor | None = None, scale: float = 1.0, bend: Tensor | None = None
) -> Tensor:
    """Return ``load + (scale A + diag bend) values``, A = [-1 2 -1] or the 5-point matrix with diagonal 4.

    Zeros lie outside of the grid.

    Parameters
    ----------
    values : Tensor, shape (..., columns) or (..., rows, columns)
        Values at the nodes.
    dim : int
        1 or 2; leading axes are a batch.
    load : Tensor, optional
        Broadcasts to `values`.
    scale : float
        Factor of A.
    bend : Tensor, optional
        Broadcasts to `values`.
    """
    functions = compiled.suited(values, load, bend)
    if functions is not None:
        return compiled.five_points(functions, values, values.shape[-dim:], load, scale, bend)
    out = _without_bend(values, dim, load, scale)
    return out if bend is None else out.addcmul_(bend, values)


def _without_bend(values: Tensor, dim: int, load: Tensor | None, scale: float) -> Tensor:
    columns = values.shape[-1]
    if dim == 2 and values.dim() == 2 and max(values.shape) <= DENSE:
        # The Kronecker form in dense 1-D factors: on tiny grids the number of calls is the cost.
        down = _second_difference(values.shape[0], values.dtype, values.device)
        across = _second_difference(columns, values.dtype, values.device)
        out = down @ values if load is None else torch.addmm(load, down, values)
        return out.addmm_(values, across)
    diagonal = 2.0 * dim * scale
    out = values * diagonal if load is None else torch.add(load, values, alpha=diagonal)
    out.narrow(-1, 1, columns - 1).sub_(values.narrow(-1, 0, columns - 1), alpha=scale)
    out.narrow(-1, 0, columns - 1).sub_(values.narrow(-1, 1, columns - 1), alpha=scale)
    if dim == 2:
        rows = values.shape[-2]
        out.narrow(-2, 1, rows - 1).sub_(values.narrow(-2, 0, rows - 1))
        out.narrow(-2, 0, rows - 1).sub_(values.narrow(-2, 1, rows - 1))
    return out


@dataclass(frozen=True)
class EdgeWeights:
    """Weights of the edges of a grid with natural sides: half on edges that run along a natural side.

    Parameters
    ----------
    across : Tensor, shape (..., rows, 1)
        Weight of the edges within a row.
    down : Tensor, shape (..., 1, columns)
        Weight of the edges within a column.
    diagonal : Tensor, shape (..., rows, columns)
        Sum of the weights of a node's edges, those to zero boundary values included.
    """

    across: Tensor
    down: Tensor
    diagonal: Tensor

    def stencil(self, values: Tensor, load: Tensor | None = None, bend: Tensor | None = None) -> Tensor:
        """Return ``load + (A + diag bend) values`` for the weighted 5-point matrix, zeros outside.

        Parameters
        ----------
        values : Tensor, shape (..., rows, columns)
            Values at the nodes.
        load : Tensor, shape of values, optional
            Added to the product.
        bend : Tensor, optional
            Broadcasts to `values`.
        """
        rows, columns = values.shape[-2:]
        out = values * self.diagonal if load is None else torch.addcmul(load, values, self.diagonal)
        out.narrow(-1, 1, columns - 1).addcmul_(values.narrow(-1, 0, columns - 1), self.across, value=-1.0)
        out.narrow(-1, 0, columns - 1).addcmul_(values.narrow(-1, 1, columns - 1), self.across, value=-1.0)
        out.narrow(-2, 1, rows - 1).addcmul_(values.narrow(-2, 0, rows - 1), self.down, value=-1.0)
        out.narrow(-2, 0, rows - 1).addcmul_(values.narrow(-2, 1, rows - 1), self.down, value=-1.0)
        return out if bend is None else out.addcmul_(bend, values)

    def windows(self, decomposition: GridDecomposition) -> EdgeWeights:
        """Return the weights on the windows of a decomposition.

        Parameters
        ----------
        decomposition : GridDecomposition
            The windows of this rank.
        """
        shape = self.diagonal.shape
        return EdgeWeights(
            decomposition.cut(self.across.expand(shape))[..., :1].contiguous(),
            decomposition.cut(self.down.expand(shape))[..., :1, :].contiguous(),
            decomposition.cut(self.diagonal),
        )
