"""Curvature pairs of limited-memory BFGS: products with B and with its inverse, for one vector or a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Pairs:
    """The last h pairs (s, y) of every member of a batch, oldest first, in fixed buffers.

    A member that refuses a pair (no positive curvature) keeps a zero in its place, which contributes nothing.

    Attributes
    ----------
    S, Y : Tensor, shape (..., h, n)
        Steps and differences of gradients.
    sigma : Tensor, shape (..., 1)
        Scale of the initial matrix ``B_0 = sigma I``: y^T y / s^T y of the newest pair, 1 before the first.
    """

    S: Tensor
    Y: Tensor
    sigma: Tensor

    @staticmethod
    def empty(like: Tensor, memory: int) -> Pairs:
        """Return `memory` empty places for vectors like `like`, shape (..., n)."""
        buffer = like.new_zeros((*like.shape[:-1], memory, like.shape[-1]))
        return Pairs(buffer, buffer.clone(), like.new_ones((*like.shape[:-1], 1)))

    def push(self, s: Tensor, y: Tensor) -> None:
        """Add a pair where ``s^T y > 1e-10 y^T y``; the others keep their scale."""
        sy, yy = (s * y).sum(-1, keepdim=True), (y * y).sum(-1, keepdim=True)
        good = sy > 1e-10 * yy
        for buffer, vector in ((self.S, s), (self.Y, y)):
            buffer.copy_(torch.roll(buffer, -1, dims=-2))
            buffer[..., -1, :] = torch.where(good, vector, 0.0)
        self.sigma = torch.where(good, yy / torch.where(good, sy, 1.0), self.sigma)

    def product(self, v: Tensor) -> Tensor:
        """Return ``B v`` by the compact representation.

        References
        ----------
        Byrd, Nocedal, Schnabel, Math. Program. 63 (1994), eq. (2.17).
        """
        middle, SY = self._middle()
        sigma = self.sigma
        right = torch.cat([sigma * _rows(self.S, v), _rows(self.Y, v)], -1)
        p, q = torch.linalg.solve(middle, right[..., None])[..., 0].split(SY.shape[-1], -1)
        return sigma * v - sigma * _columns(self.S, p) - _columns(self.Y, q)

    def _middle(self) -> tuple[Tensor, Tensor]:
        SY = self.S @ self.Y.mT
        diagonal = torch.diagonal(SY, dim1=-2, dim2=-1)
        # An empty place has a zero row and column: a one on the diagonal keeps the system regular.
        hole = (diagonal == 0).to(SY.dtype)
        SS = self.sigma[..., None] * (self.S @ self.S.mT) + torch.diag_embed(hole)
        L = torch.tril(SY, -1)
        D = torch.diag_embed(diagonal + hole)
        return torch.cat([torch.cat([SS, L], -1), torch.cat([L.mT, -D], -1)], -2), SY

    def solve(self, v: Tensor) -> Tensor:
        """Return ``B^{-1} v`` by the two-loop recursion (Nocedal and Wright, algorithm 7.4)."""
        sy = (self.S * self.Y).sum(-1)
        rho = torch.where(sy > 0, 1.0 / torch.where(sy > 0, sy, 1.0), 0.0)
        q, alphas = v.clone(), []
        for k in range(self.S.shape[-2] - 1, -1, -1):
            alphas.append((rho[..., k] * (self.S[..., k, :] * q).sum(-1))[..., None])
            q.sub_(alphas[-1] * self.Y[..., k, :])
        q.div_(self.sigma)
        for k, alpha in enumerate(reversed(alphas)):
            beta = (rho[..., k] * (self.Y[..., k, :] * q).sum(-1))[..., None]
            q.add_((alpha - beta) * self.S[..., k, :])
        return q


def _rows(matrix: Tensor, v: Tensor) -> Tensor:
    return (matrix @ v[..., None])[..., 0]


def _columns(matrix: Tensor, c: Tensor) -> Tensor:
    return (matrix.mT @ c[..., None])[..., 0]
