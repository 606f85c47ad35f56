"""Limited-memory SR1 and BFGS matrices in spectral form, and the trust-region sub-problem they make easy to solve."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["sr1", "bfgs"]
_NEWTON_STEPS = 40


@dataclass
class Secant:
    """``B = sigma I + P^T diag(mu) P``, orthonormal rows of P, of the last h pairs (s, y); one per member of a batch.

    B is the limited-memory SR1 or BFGS matrix, ``B s = y`` for the newest pair; SR1 may be indefinite. P is kept as the
    combinations ``P = E^T W`` of the pairs, so that a new pair costs a few products with W and algebra of 2 h x 2 h
    matrices. A member that refuses a pair keeps what it has.

    Attributes
    ----------
    kind : {"sr1", "bfgs"}
    W : Tensor, shape (..., 2 h, n)
        Steps s, then differences of gradients y; each a ring.
    G : Tensor, shape (..., 2 h, 2 h), float64
        ``W W^T``.
    sigma : Tensor, shape (..., 1)
        Scale of the initial matrix, of the newest pair of positive curvature: y^T y / s^T y for BFGS; s^T y / (2 s^T s)
        for SR1, which gains from adding curvature rather than taking it away (and needs another factor than 1: that
        would explain the newest pair along s, and leave no update). 0 before the first pair.
    E : Tensor, shape (..., 2 h, r)
        r is h for SR1, 2 h for BFGS; columns that are not needed are zero.
    mu : Tensor, shape (..., r)
    newest : Tensor, shape (...,), int64
        Row of the newest pair in its ring.

    References
    ----------
    Byrd, Nocedal, Schnabel, Math. Program. 63 (1994), theorems 2.3 and 5.1 (compact forms); Brust, Erway, Marcia,
    Comput. Optim. Appl. 66 (2017), and Burdakov et al., Math. Program. Comput. 9 (2017) (the spectral form).
    """

    kind: Kind
    W: Tensor
    G: Tensor
    sigma: Tensor
    E: Tensor
    mu: Tensor
    newest: Tensor

    @staticmethod
    def empty(like: Tensor, memory: int, kind: Kind = "sr1") -> Secant:
        """Return the zero matrix for vectors like `like`, shape (..., n), with room for `memory` pairs."""
        batch, h = like.shape[:-1], 2 * memory
        return Secant(
            kind,
            like.new_zeros((*batch, h, like.shape[-1])),
            like.new_zeros((*batch, h, h), dtype=torch.float64),
            like.new_zeros((*batch, 1)),
            like.new_zeros((*batch, h, 0)),
            like.new_zeros((*batch, 0)),
            torch.full(batch, -1, dtype=torch.int64, device=like.device),
        )

    @property
    def is_empty(self) -> bool:
        """Whether no member has a pair."""
        return self.mu.shape[-1] == 0

    def product(self, v: Tensor) -> Tensor:
        """Return ``B v``."""
        if self.is_empty:
            return torch.zeros_like(v)
        return (self.sigma * v).add_(self._columns(self.mu * self._rows(v)))

    def _rows(self, v: Tensor) -> Tensor:
        """Return ``P v``."""
        return _along(self.E, _across(self.W, v))

    def _columns(self, c: Tensor) -> Tensor:
        """Return ``P^T c``."""
        return _along(self.W, _across(self.E, c))

    def push(self, s: Tensor, y: Tensor) -> None:
        """Add a pair in place of the oldest, where a member does not refuse it.

        SR1 needs ``|s^T (y - B s)| > 1e-8 |s| |y - B s|`` (Nocedal and Wright, equation 6.26), BFGS positive curvature.
        """
        sy, ss, yy = inner(s, y), inner(s, s), inner(y, y)
        if self.kind == "bfgs":
            good = sy > 1e-10 * yy
        else:
            residual = y - self.product(s)
            bend, sizes = inner(s, residual), ss * inner(residual, residual)
            good = bend * bend > 1e-16 * sizes
        good &= torch.isfinite(yy) & torch.isfinite(ss)
        if not bool(good.any()):
            return
        h = self.W.shape[-2] // 2
        place = (self.newest + 1) % h
        self.newest = torch.where(good[..., 0], place, self.newest)
        self._put(place, s, good)
        self._put(place + h, y, good)
        positive, one = good & (sy > 1e-10 * yy), torch.ones_like(sy)
        above, below = (yy, sy) if self.kind == "bfgs" else (0.5 * sy, ss)
        self.sigma = torch.where(positive, above / torch.where(positive, below, one), self.sigma)
        first = good & (self.sigma == 0)  # negative curvature only: its size
        self.sigma = torch.where(first, torch.sqrt(yy / torch.where(good, ss, one)), self.sigma)
        self._decompose()

    def _put(self, place: Tensor, v: Tensor, good: Tensor) -> None:
        """Put v into its place where it is good, and its inner products into G."""
        place = place[..., None, None]
        where = place.expand(*v.shape[:-1], 1, v.shape[-1])
        v = torch.where(good, v, self.W.gather(-2, where)[..., 0, :])
        self.W.scatter_(-2, where, v[..., None, :])
        products = _across(self.W, v).double()
        self.G.scatter_(-2, place.expand(*products.shape[:-1], 1, products.shape[-1]), products[..., None, :])
        self.G.scatter_(-1, place.expand(*products.shape, 1), products[..., None])

    def _decompose(self) -> None:
        """Find E and mu: rows ``psi = F^T W`` of the compact form span what B changes; the rest is small algebra."""
        F, middle, present = self._compact()
        gram = F.mT @ self.G @ F
        tolerance = torch.finfo(self.W.dtype).eps ** (2 / 3)
        size = torch.diagonal(gram, dim1=-2, dim2=-1)
        present = present & (size > 0)
        scale = torch.where(present, torch.rsqrt(size.clamp_min(1e-300)), 0.0)  # an empty place gets a zero row
        scales = scale[..., :, None] * scale[..., None, :]
        pieces, V = torch.linalg.eigh(gram * scales)
        keep = pieces > tolerance
        root = torch.where(keep, pieces, 1.0).sqrt()
        basis = torch.where(keep, 1.0 / root, 0.0)[..., None, :] * V
        to_basis = torch.where(keep, root, 0.0)[..., None, :] * V  # its transpose maps scaled rows to the basis
        inverse = _inverse(middle * scales + torch.diag_embed((~present).double()), tolerance)
        mu, U = torch.linalg.eigh(to_basis.mT @ inverse @ to_basis)
        self.E, self.mu = (F @ (scale[..., :, None] * (basis @ U))).to(self.W.dtype), mu.to(self.W.dtype)

    def _compact(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return F and M of ``B = sigma I + psi^T M^-1 psi``, ``psi = F^T W``, and which rows of psi are there."""
        h, sigma = self.W.shape[-2] // 2, self.sigma[..., None].double()
        SS, SY = self.G[..., :h, :h], self.G[..., :h, h:]
        age = (self.newest[..., None] - torch.arange(h, device=self.W.device)) % h
        newer = age[..., :, None] < age[..., None, :]
        there = torch.diagonal(SS, dim1=-2, dim2=-1) > 0
        diagonal = torch.diag_embed(torch.diagonal(SY, dim1=-2, dim2=-1))
        L, one = torch.where(newer, SY, 0.0), torch.eye(h, dtype=torch.float64, device=self.W.device).expand_as(SS)
        if self.kind == "sr1":  # psi = Y - sigma S
            return torch.cat([-sigma * one, one], -2), diagonal + L + L.mT - sigma * SS, there
        left = torch.cat([-sigma * SS, -L.mT], -2)  # psi = (sigma S, Y)
        middle = torch.cat([left, torch.cat([-L, diagonal], -2)], -1)
        scale = torch.cat([sigma.expand(*there.shape, 1), torch.ones_like(there[..., None], dtype=torch.float64)], -2)
        return torch.diag_embed(scale[..., 0]), middle, torch.cat([there, there], -1)

    def minimise_in_ball(self, g: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
        """Return the minimiser s of ``q(s) = g^T s + s^T B s / 2`` over ``|s| <= radius`` (2-norm), and ``-q(s)``.

        Parameters
        ----------
        g : Tensor, shape (..., n)
        radius : Tensor, shape (..., 1)

        References
        ----------
        Conn, Gould, Toint, Trust-Region Methods (2000), section 7.3: Newton's method on the secular equation, here in
        the eigenvectors of B, with the hard case.
        """
        if self.is_empty:
            norm = inner(g, g).sqrt()
            scale = torch.where(norm > 0, radius / torch.where(norm > 0, norm, 1.0), 0.0)
            return -scale * g, scale * norm * norm
        sigma = self.sigma.double()
        c = self._rows(g).double()
        rest = (inner(g, g).double() - inner(c, c)).clamp_min(0.0).sqrt()
        a = torch.cat([c, rest], -1)
        eigenvalues = torch.cat([sigma + self.mu.double(), sigma], -1)
        z = _secular(a, eigenvalues, radius.double())
        decrease = -(z * (a + 0.5 * eigenvalues * z)).sum(-1, keepdim=True)
        outside = torch.where(rest > 0, z[..., -1:] / rest.clamp_min(1e-300), 0.0)
        inside = z[..., :-1] - outside * c
        s = (outside.to(g.dtype) * g).add_(self._columns(inside.to(g.dtype)))
        length = inner(s, s).sqrt()
        return s.mul_(torch.where(length > radius, radius / length.clamp_min(1e-300), 1.0)), decrease.to(g.dtype)


def _secular(a: Tensor, eigenvalues: Tensor, radius: Tensor) -> Tensor:
    """Return z with ``(eigenvalues + t) z = -a`` for the least t >= 0 such that ``|z| <= radius`` and all are >= 0.

    `a` and `eigenvalues` have shape (..., k); the last entry of `a` stands for a whole subspace.
    """
    least, where = eigenvalues.min(-1, keepdim=True)
    scale = torch.linalg.vector_norm(a, dim=-1, keepdim=True) / radius
    scale = torch.maximum(scale, eigenvalues.abs().amax(-1, keepdim=True)).clamp_min(1e-290)
    t = torch.where(least > 1e-14 * scale, 0.0, 1e-12 * scale - least)

    def point(t: Tensor) -> tuple[Tensor, Tensor]:
        z = -a / (eigenvalues + t)
        return z, torch.linalg.vector_norm(z, dim=-1, keepdim=True)

    z, norm = point(t)
    outside = norm > radius
    hard = ~outside & (t > 0)
    for _ in range(_NEWTON_STEPS):
        if not bool((outside & (norm > radius * (1 + 1e-12))).any()):
            break
        slope = (z * z / (eigenvalues + t)).sum(-1, keepdim=True)
        more = norm * norm / slope * (norm - radius) / radius
        t = torch.where(outside, t + more, t)
        z, norm = point(t)
    z = torch.where(norm > radius, z * (radius / norm.clamp_min(1e-300)), z)
    if bool(hard.any()):  # along the eigenvector of the least eigenvalue to the boundary
        at = torch.gather(z, -1, where)
        other = (norm * norm - at * at).clamp_min(0.0)
        whole = torch.sqrt((radius * radius - other).clamp_min(0.0))
        sign = torch.where(torch.gather(a, -1, where) > 0, -1.0, 1.0)
        z = torch.where(hard, z.scatter(-1, where, sign * whole), z)
    return z


def _inverse(matrix: Tensor, tolerance: float) -> Tensor:
    """Return the inverse of symmetric matrices without the directions in which they are singular to rounding."""
    values, V = torch.linalg.eigh(matrix)
    keep = values.abs() > tolerance * values.abs().amax(-1, keepdim=True)
    inverse = torch.where(keep, 1.0 / torch.where(keep, values, 1.0), 0.0)
    result: Tensor = (V * inverse[..., None, :]) @ V.mT
    return result


def inner(a: Tensor, b: Tensor) -> Tensor:
    """Return the inner product along the last axis, which is kept."""
    return torch.dot(a, b).reshape(1) if a.dim() == 1 else (a * b).sum(-1, keepdim=True)


# Row vectors on the left: batched products of a matrix with a column take seven times as long.


def _across(matrix: Tensor, v: Tensor) -> Tensor:
    """Return ``matrix v`` for shapes (..., h, n) and (..., n)."""
    return (v[..., None, :] @ matrix.mT)[..., 0, :]


def _along(matrix: Tensor, c: Tensor) -> Tensor:
    """Return ``matrix^T c`` for shapes (..., h, n) and (..., h)."""
    return (c[..., None, :] @ matrix)[..., 0, :]
