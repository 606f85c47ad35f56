"""The inputs of the first layer of a network, and the change of variables that whitens them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra.cost import count

Metric = Literal["inputs", "bias"]
Floats = NDArray[np.float64]

_NARROW = 64  # below that many inputs all of their directions are whitened
_RANK = 16  # directions that are whitened by default among more inputs
_EXTRA = 8  # columns of the subspace iteration beyond those that are wanted


@dataclass(frozen=True, eq=False)
class FirstLayer:
    """What the linear maps of a network's first layer are applied to, and where their weights lie.

    Ranks hold rows of the inputs; where all of them hold all rows, moments of the inputs are the same.

    Parameters
    ----------
    inputs : sequence of ndarray or csr_matrix, shapes (m_k, F)
        The inputs of this rank, in blocks of rows; the columns of several terms stand side by side.
    places : Tensor, shape (F, H) or (F + 1, H), int64
        Where in the flat vector of the unknowns the stacked matrices of the layer lie, with the bias as last row if
        there is one: its input is 1.
    work : float
        Multiplications of a sweep forward over all data, by which products with a metric are priced.
    total : callable
        Returns the sum of a tensor over the ranks that hold inputs.

    Raises
    ------
    ValueError
        Numbers of columns and of rows that do not fit.
    """

    inputs: Sequence[Any]
    places: Tensor
    work: float
    total: Callable[[Tensor], Tensor]

    def __post_init__(self) -> None:
        """Check that inputs and weights fit."""
        columns = {int(block.shape[1]) for block in self.inputs}
        if len(columns) != 1 or len(self.places) - min(columns) not in (0, 1):
            raise ValueError(
                f"`places` must have a row per input, and one for a bias, got {len(self.places)} for {sorted(columns)}"
            )

    @property
    def size(self) -> int:
        """Inputs, with the constant one of a bias."""
        return len(self.places)

    @property
    def has_bias(self) -> bool:
        """Whether the last input is the constant one."""
        return self.size > int(self.inputs[0].shape[1])

    @cached_property
    def rows(self) -> int:
        """Rows of the inputs on this rank."""
        return sum(int(block.shape[0]) for block in self.inputs)

    @cached_property
    def squares(self) -> float:
        """Sum of the squares of all inputs on this rank."""
        dense = (block if isinstance(block, np.ndarray) else block.data for block in self.inputs)
        return sum(float(np.linalg.norm(block)) ** 2 for block in dense) + self.has_bias * self.rows

    def moment(self, Q: Floats) -> Floats:
        """Return ``Z^T Z Q`` over the inputs Z of this rank, shape (F', k).

        Parameters
        ----------
        Q : ndarray, shape (F', k)
            Directions in the space of the inputs.
        """
        out = np.zeros_like(Q)
        features = Q.shape[0] - self.has_bias
        for block in self.inputs:
            product = np.asarray(block @ Q[:features])
            if self.has_bias:
                product += Q[-1]
                out[-1] += product.sum(0)
            out[:features] += block.T @ product
        return out


@dataclass(frozen=True, eq=False)
class Whitening:
    r"""The change of variables ``x = B v`` in which the inputs of the first layer have nearly the same moments.

    With the moments ``C = Z^T Z / n`` of the inputs Z (a column of ones for the bias), their leading pairs ``C ~ U
    diag(e) U^T``, the mean t of the other eigenvalues and a damping eps, both below,

        B = I + U diag(sqrt(t / (e + eps)) - 1) U^T,    W_1 = B V_1,

    on the stacked matrices W_1 of the first layer, and the identity on all other unknowns. B is symmetric and positive,
    the gradient in v is B times that in x, and a gradient step in v is one in x with the matrix B^2 in front, which is
    nearly ``t (C + eps)^-1``.

    Parameters
    ----------
    places : Tensor, shape (F', H), int64
        See `FirstLayer`.
    basis : Tensor, shape (F', r)
        U, with orthonormal columns.
    factors : Tensor, shape (r,)
        ``sqrt(t / (e + eps))``.
    price : float
        Work of a product with B or its inverse, in fine gradients.

    References
    ----------
    Known for long: LeCun, Bottou, Orr and Mueller, Efficient BackProp (1998), section 4.3 (centred and decorrelated
    inputs); Martens and Grosse, arXiv 1503.05671 (K-FAC, whose factor of the inputs this is, for the first layer alone,
    where it can be computed once and without sampling); George et al., arXiv 1806.03884 (EKFAC) and Vyas et al., arXiv
    2409.11321 (SOAP), for a diagonal scaling in such a basis.
    """

    places: Tensor
    basis: Tensor
    factors: Tensor
    price: float = 0.0

    @cached_property
    def _run(self) -> slice | None:
        """The places as one run of unknowns, row by row, where they are: it is then worked on without a copy."""
        flat = self.places.flatten()
        start = int(flat[0])
        is_run = torch.equal(flat, torch.arange(start, start + len(flat), device=flat.device))
        return slice(start, start + len(flat)) if is_run else None

    def apply(self, v: Tensor) -> Tensor:
        """Return ``B v``, a new tensor of the shape of v.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, n)
            Unknowns or gradients.
        """
        return self._times(v, self.factors - 1)

    def solve(self, x: Tensor) -> Tensor:
        """Return ``B^-1 x``, a new tensor of the shape of x.

        Parameters
        ----------
        x : Tensor, shape (n,) or (p, n)
            Unknowns or gradients.
        """
        return self._times(x, 1 / self.factors - 1)

    def _times(self, x: Tensor, stretch: Tensor) -> Tensor:
        """Return ``x + U diag(stretch) U^T x`` on the first layer, x elsewhere."""
        count(work=self.price * (x.numel() // x.shape[-1]))
        out, shape = x.clone(), (*x.shape[:-1], *self.places.shape)
        if self._run is not None:
            W = out[..., self._run].view(shape)
            W.add_(self.basis @ (stretch[:, None] * (self.basis.mT @ W)))
            return out
        flat = self.places.flatten()
        W = out.index_select(-1, flat).view(shape)
        moved = self.basis @ (stretch[:, None] * (self.basis.mT @ W))
        return out.index_add_(-1, flat, moved.flatten(-2))


def whitening(
    first: FirstLayer,
    like: Tensor,
    *,
    metric: Metric = "inputs",
    rank: int = 0,
    damping: float = 0.1,
) -> Whitening:
    """Return the change of variables that whitens the first layer; all ranks call it together.

    Few inputs are whitened in all directions, by one sum of the (F', F') matrix of moments over ranks. Of many, the
    leading directions are found by subspace iteration in three passes over the inputs, each with a sum of r + 8
    columns; nothing is gathered. The damping is ``eps = damping (tr C - e_1) / F'``; the mean t is that of the
    eigenvalues beyond the rank, and without any that of all but the largest, plus eps.

    Parameters
    ----------
    first : FirstLayer
        The inputs of this rank.
    like : Tensor, shape (n,)
        The unknowns: type and device.
    metric : {"inputs", "bias"}
        The leading directions of the inputs; or the constant one of the bias alone, whose second moment 1 is often
        much larger than those of features and is known without any pass.
    rank : int
        Directions that are whitened; 0: all below 64 inputs, 16 of more.
    damping : float
        Factor on eps, >= 0.

    Raises
    ------
    ValueError
        A rank or damping out of range, inputs that do not vary, or no bias where it alone is to be scaled.
    """
    if rank < 0 or not 0 <= damping < np.inf:
        raise ValueError(f"`rank` and `damping` must be >= 0 and finite, got {rank} and {damping}")
    size = first.size
    r = min(rank or (size if size < _NARROW else _RANK), size)
    e, U, trace = _bias(first) if metric == "bias" else _leading(first, r)
    eps = damping * max(trace - float(e[0]), 0.0) / size
    others, rest = (size - len(e), trace - float(e.sum())) if len(e) < size else (size - 1, trace - float(e[0]))
    t = max(rest, 0.0) / max(others, 1) + eps
    if not (t > 1e-14 * trace and float(e.min()) + eps > 1e-14 * trace):
        raise ValueError(
            "the inputs of the first layer must vary in all directions to be whitened, got moments from "
            f"{float(e.min()):.2g} to {float(e[0]):.2g}; give damping > 0, or leave out the metric"
        )
    factors = torch.from_numpy(np.sqrt(t / (e + eps))).to(like)
    price = U.size * first.places.shape[1] / max(first.work, 1.0)  # two thin products; a gradient is two sweeps
    return Whitening(first.places.to(like.device), torch.from_numpy(U.copy()).to(like), factors, price)


def _summed(values: Floats, first: FirstLayer) -> tuple[Floats, float]:
    """Return the sum over ranks of `values` over the number of rows, and the trace of C."""
    numbers = np.concatenate([values.ravel(), [first.squares, first.rows]])
    *sums, squares, rows = first.total(torch.from_numpy(numbers)).numpy()
    return np.reshape(sums, values.shape) / rows, float(squares / rows)


def _bias(first: FirstLayer) -> tuple[Floats, Floats, float]:
    if not first.has_bias:
        raise ValueError("`metric` bias needs a first layer with a bias, got one without; use inputs")
    _, trace = _summed(np.zeros(0), first)
    unit = np.zeros((first.size, 1))
    unit[-1] = 1.0
    return np.ones(1), unit, trace


def _leading(first: FirstLayer, rank: int) -> tuple[Floats, Floats, float]:
    """Return the `rank` leading eigenvalues of C, descending, their vectors, and the trace of C."""
    size = first.size
    if size < _NARROW or rank + _EXTRA >= size:
        C, trace = _summed(first.moment(np.eye(size)), first)
        e, U = np.linalg.eigh((C + C.T) / 2)
        return np.maximum(e[::-1][:rank], 0.0), U[:, ::-1][:, :rank], trace
    Q = np.random.default_rng(0).standard_normal((size, rank + _EXTRA))
    for _ in range(2):
        Q, _ = _summed(first.moment(np.linalg.qr(Q)[0]), first)
    Q = np.linalg.qr(Q)[0]
    CQ, trace = _summed(first.moment(Q), first)
    e, V = np.linalg.eigh((Q.T @ CQ + CQ.T @ Q) / 2)
    return np.maximum(e[::-1][:rank], 0.0), Q @ V[:, ::-1][:, :rank], trace
