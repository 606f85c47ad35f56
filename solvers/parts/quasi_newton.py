"""Limited-memory SR1 and BFGS matrices in spectral form, and the trust-region sub-problem they make easy to solve."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.solvers.parts.ball import Floats, Reduced, in_ball, quotient

Flags = NDArray[np.bool_]
Kind = Literal["sr1", "bfgs"]

_TINY = 1e-300


@dataclass
class Secant:
    """``B = sigma I + P^T diag(mu) P``, orthonormal rows of P, of the last h pairs (s, y); one per member of a batch.

    B is the limited-memory SR1 or BFGS matrix, ``B s = y`` for the newest pair; SR1 may be indefinite. P is kept as the
    combinations ``P = E^T W`` of the pairs, so that a new pair costs a product of two vectors with W, and algebra of
    2 h x 2 h matrices, in NumPy on the CPU, which is put off until B is used. A member that refuses a pair keeps what
    it has.

    Steps and differences of gradients are two rings of ``k = h + 1`` places each. One place of a ring is spare: the
    next pair is written there, and one product with W gives what decides about the pair and what it adds to G.

    A vector of shape (n,) is a batch of p = 1.

    Attributes
    ----------
    kind : {"sr1", "bfgs"}
        Which update.
    W : Tensor, shape (p, 2 k, n)
        Ring of the steps s, then ring of the differences of gradients y.
    G : Tensor, shape (p, 2 k, 2 k), float64, on the CPU
        ``W W^T``, up to the spare places.
    sigma : Tensor, shape (p,), float64, on the CPU
        Scale of the initial matrix, of the newest pair of positive curvature: y^T y / s^T y for BFGS; s^T y / (2 s^T s)
        for SR1, which gains from adding curvature rather than taking it away (and needs another factor than 1: that
        would explain the newest pair along s, and leave no update). That of `empty` before the first pair.
    newest : Tensor, shape (p,), int64, on the CPU
        Place of the newest pair in its rings; the next one is spare.
    E : Tensor, shape (p, 2 k, r), float64, on the CPU
        r is h for SR1, 2 h for BFGS; columns that are not needed are zero. Empty before the first pair.
    mu : Tensor, shape (p, r), float64, on the CPU
        Curvatures that are added along the rows of P.
    stale : bool
        E and mu are those of earlier pairs.

    References
    ----------
    Byrd, Nocedal, Schnabel, Math. Program. 63 (1994), theorems 2.3 and 5.1 (compact forms); Brust, Erway, Marcia,
    Comput. Optim. Appl. 66 (2017), and Burdakov et al., Math. Program. Comput. 9 (2017) (the spectral form).
    """

    kind: Kind
    W: Tensor
    G: Tensor
    sigma: Tensor
    newest: Tensor
    E: Tensor
    mu: Tensor
    stale: bool = False

    @staticmethod
    def empty(like: Tensor, memory: int, kind: Kind = "sr1", sigma: float = 0.0) -> Secant:
        """Return ``sigma I`` for vectors like `like`, with room for pairs.

        Parameters
        ----------
        like : Tensor, shape (n,) or (p, n)
            It gives shape, type and device.
        memory : int
            The most pairs.
        kind : {"sr1", "bfgs"}
            Which update.
        sigma : float
            Scale of the initial matrix.
        """
        p, n = _rows(like).shape
        places = 2 * (memory + 1)
        return Secant(
            kind,
            like.new_zeros(p, places, n),
            torch.zeros(p, places, places, dtype=torch.float64),
            torch.full((p,), sigma, dtype=torch.float64),
            torch.full((p,), -1, dtype=torch.int64),
            torch.empty(p, places, 0, dtype=torch.float64),
            torch.empty(p, 0, dtype=torch.float64),
        )

    @property
    def is_empty(self) -> bool:
        """Whether no member has a pair."""
        return not self.stale and self.mu.shape[-1] == 0

    def product(self, v: Tensor) -> Tensor:
        """Return ``B v``.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, n)
            A vector per member.
        """
        if self.is_empty:
            return v * column(self.sigma.numpy(), v)
        E, mu = self._spectrum()
        c = _across(E, mu * (self._inner(_rows(v)[:, None]) @ E)[:, 0])
        return torch.baddbmm(_rows(v * column(self.sigma.numpy(), v))[:, None], _small(c, v), self.W).view_as(v)

    def solve(self, v: Tensor) -> Tensor:
        """Return ``B^-1 v`` for BFGS with sigma > 0.

        From the pairs and not the spectrum, whose small eigenvalues are differences.

        Parameters
        ----------
        v : Tensor, shape (n,) or (p, n)
            A vector per member.

        References
        ----------
        Byrd, Nocedal, Schnabel, Math. Program. 63 (1994), theorem 2.2.
        """
        scaled = v / column(self.sigma.numpy(), v)
        if self.is_empty:
            return scaled
        order, G = self._oldest_first()
        h, sigma = G.shape[1] // 2, self.sigma.numpy()[:, None, None]
        R, YY, D = np.triu(G[:, :h, h:]), G[:, h:, h:] / sigma, G[:, :h, h:].diagonal(0, 1, 2)
        R = R + np.eye(h) * (D == 0)[:, None]  # an empty place has a zero row and column
        parts = np.take_along_axis(self._inner(_rows(v)[:, None])[:, 0], order, 1)[..., None]
        along_y = np.linalg.solve(R, parts[:, :h])
        along_s = np.linalg.solve(_transposed(R), D[..., None] * along_y + YY @ along_y - parts[:, h:] / sigma)
        c = np.zeros((len(v) if v.dim() == 2 else 1, self.W.shape[1]))
        np.put_along_axis(c, order, np.concatenate([along_s, -along_y / sigma], 1)[..., 0], 1)
        return torch.baddbmm(_rows(scaled)[:, None], _small(c, v), self.W).view_as(v)

    @np.errstate(all="ignore")
    def push(self, s: Tensor, y: Tensor) -> None:
        """Add a pair in place of the oldest, where a member does not refuse it.

        SR1 needs ``|s^T (y - B s)| > 1e-8 |s| |y - B s|`` (Nocedal and Wright, equation 6.26), BFGS positive curvature.

        Parameters
        ----------
        s : Tensor, shape (n,) or (p, n)
            Steps.
        y : Tensor, shape (n,) or (p, n)
            Differences of gradients.
        """
        residual = y - self.product(s) if self.kind == "sr1" else None
        k, newest = self.W.shape[1] // 2, self.newest.numpy()
        members = np.arange(len(newest))[:, None]
        places = (newest[:, None] + 1) % k + np.array([0, k])
        pair = torch.stack([_rows(s), _rows(y)], 1)
        self._write(places, pair)
        products = self._inner(pair)
        (ss, sy), (_, yy) = products[members[..., None], np.arange(2)[:, None], places[:, None]].transpose(1, 2, 0)
        if residual is None:
            good = sy > 1e-10 * yy
        else:
            bend = inner(s, residual)
            good = bend * bend > 1e-16 * ss * inner(residual, residual)
        good &= np.isfinite(yy) & np.isfinite(ss)
        if not good.all():
            self._write(places, torch.where(column(good, pair[:, 0])[..., None], pair, 0.0))  # perhaps not finite
        if good.any():
            G, members, places, products = self.G.numpy(), members[good], places[good], products[good]
            G[members, places] = G.transpose(0, 2, 1)[members, places] = products
            newest[good] = places[:, 0]
            self._rescale(good, ss, sy, yy)
            self.stale = True

    def _write(self, places: NDArray[np.int64], pair: Tensor) -> None:
        """Write pairs, shape (p, 2, n), into W at their places, shape (p, 2)."""
        flat = places + self.W.shape[1] * np.arange(len(places))[:, None]
        self.W.flatten(0, 1).index_copy_(0, torch.from_numpy(flat.ravel()).to(pair.device), pair.flatten(0, 1))

    def _rescale(self, good: Flags, ss: Floats, sy: Floats, yy: Floats) -> None:
        """Take sigma from the pairs that are good."""
        sigma = self.sigma.numpy()
        positive = good & (sy > 1e-10 * yy)
        sigma[positive] = (yy / sy if self.kind == "bfgs" else 0.5 * sy / ss)[positive]
        first = good & (sigma == 0)  # negative curvature only: its size
        sigma[first] = np.sqrt(yy / ss)[first]

    def _inner(self, V: Tensor) -> Floats:
        """Return ``V W^T`` for a few vectors per member, shape (p, a, n)."""
        return numbers(torch.bmm(V, self.W.mT))

    def _spectrum(self) -> tuple[Floats, Floats]:
        """Return E and mu; where a pair is new, of the compact form ``B = sigma I + psi^T M^-1 psi``."""
        if self.stale:
            E, mu = self._decompose()
            self.E, self.mu, self.stale = torch.from_numpy(E), torch.from_numpy(mu), False
        return self.E.numpy(), self.mu.numpy()

    @np.errstate(all="ignore")
    def _decompose(self) -> tuple[Floats, Floats]:
        """Find E and mu: rows ``psi = F^T W`` of the compact form span what B changes; the rest is small algebra."""
        order, G = self._oldest_first()
        F, gram, middle = self._compact(G)
        size = gram.diagonal(0, 1, 2)
        scale = np.where(size > 0, 1.0 / np.sqrt(size), 0.0)  # an empty place gets a zero row
        scales = scale[:, :, None] * scale[:, None, :]
        middle = np.where(scales > 0, middle * scales, np.eye(len(size[0])))
        tolerance = float(torch.finfo(self.W.dtype).eps) ** (2 / 3)
        pieces, V = np.linalg.eigh(gram * scales)
        root = np.sqrt(np.where(pieces > tolerance, pieces, 0.0))[:, None]
        basis, to_basis = V * quotient(np.ones_like(root), root), V * root  # the latter maps psi from the basis
        mu, U = np.linalg.eigh(_transposed(to_basis) @ _inverse(middle, tolerance) @ to_basis)
        rows = scale[:, :, None] * (basis @ U)
        E = np.zeros((*self.W.shape[:2], mu.shape[1]))
        E[np.arange(len(E))[:, None], order] = rows if F is None else F @ rows
        return E, mu

    def _oldest_first(self) -> tuple[NDArray[np.int64], Floats]:
        """Return the places of the pairs from the oldest to the newest, steps first, shape (p, 2 h), and their G."""
        k = self.W.shape[1] // 2
        steps = (self.newest.numpy()[:, None] + np.arange(2, k + 1)) % k
        order = np.concatenate([steps, steps + k], 1)
        return order, self.G.numpy()[np.arange(len(order))[:, None, None], order[:, :, None], order[:, None, :]]

    def _compact(self, G: Floats) -> tuple[Floats | None, Floats, Floats]:
        """Return F (None for I), ``psi psi^T`` and M of ``B = sigma I + psi^T M^-1 psi``, ``psi = F^T W``.

        `G` is ordered: steps from the oldest to the newest, then differences of gradients.
        """
        h, sigma = G.shape[1] // 2, self.sigma.numpy()[:, None, None]
        if self.kind == "bfgs":  # psi = (S, Y)
            middle, places = G * (_bfgs_mask(h) / sigma), np.arange(h)
            middle[:, places + h, places + h] = G[:, places, places + h]
            return None, G, middle
        SS, SY = G[:, :h, :h], G[:, :h, h:]
        eye, lower = np.eye(h), np.tril(SY)
        F = np.concatenate([-sigma * eye, np.broadcast_to(eye, SS.shape)], 1)  # psi = Y - sigma S
        return F, _transposed(F) @ G @ F, lower + _transposed(np.tril(lower, -1)) - sigma * SS

    @np.errstate(all="ignore")
    def minimise_in_ball(
        self, g: Tensor, radius: Floats, away: Tensor | None = None, reach: Floats | None = None
    ) -> tuple[Tensor, Floats]:
        """Return the minimiser s of ``q(s) = g^T s + s^T B s / 2`` over ``|s| <= radius`` (2-norm), and ``-q(s)``.

        With `away`, ``|away + s| <= reach`` too, and where this makes a difference s lowers q but is no minimiser.

        Parameters
        ----------
        g, away : Tensor, shape (n,) or (p, n)
            ``|away| <= reach``.
        radius, reach : array, shape (p,)
            Radius of the ball, and of the one around `away`.

        References
        ----------
        Conn, Gould, Toint, Trust-Region Methods (2000), section 7.3: Newton's method on the secular equation, here in
        the eigenvectors of B, with the hard case.
        """
        if away is None or reach is None or (np.sqrt(inner(away, away)) + radius <= reach).all():
            away = reach = None
        model = self._reduced(g, away)
        z = in_ball(model.g, model.eigenvalues, radius[:, None])
        if away is not None and reach is not None:
            z = model.confined(z, radius[:, None], reach[:, None])
        s = self._expanded(model, z, g, away)
        _shorten(s, radius)
        if away is not None and reach is not None:
            _shorten(s.add_(away), reach)
            s.sub_(away)
        return s, model.decrease(z)

    def _reduced(self, g: Tensor, away: Tensor | None) -> Reduced:
        """Return the model in the basis of the rows of P, the rest of g, and the rest of `away`."""
        E, mu = self._spectrum()
        sigma, both = self.sigma.numpy()[:, None], [_rows(g)] if away is None else [_rows(g), _rows(away)]
        parts = self._inner(torch.stack(both, 1)) @ E if mu.shape[1] else np.zeros((len(sigma), len(both), 0))
        c, d = parts[:, 0], parts[:, -1]
        rest = _rest(inner(g, g) - (c * c).sum(1))
        if away is None:
            return Reduced(np.concatenate([sigma + mu, sigma], 1), np.concatenate([c, rest], 1), None)
        along = np.where(rest > 0, (inner(g, away) - (c * d).sum(1))[:, None] / rest, 0.0)
        across = _rest(inner(away, away) - (d * d).sum(1) - along[:, 0] ** 2)
        return Reduced(
            np.concatenate([sigma + mu, sigma, sigma], 1),
            np.concatenate([c, rest, np.zeros_like(rest)], 1),
            np.concatenate([d, along, across], 1),
        )

    def _expanded(self, model: Reduced, z: Floats, g: Tensor, away: Tensor | None) -> Tensor:
        """Return the vector with the coordinates `z`."""
        E, mu = self._spectrum()
        r, c, s = mu.shape[1], z, None
        if model.away is not None and away is not None:
            share = quotient(z[:, -1:], model.away[:, -1:])
            c, s = z - share * model.away, away * column(share[:, 0], away)
        share = quotient(c[:, r : r + 1], model.g[:, r : r + 1])
        part = g * column(share[:, 0], g)
        s = part if s is None else s.add_(part)
        if r == 0:
            return s
        c = _across(E, c[:, :r] - share * model.g[:, :r])
        return torch.baddbmm(_rows(s)[:, None], _small(c, g), self.W).view_as(g)


@lru_cache
def _bfgs_mask(h: int) -> Floats:
    """Return what makes of ``W W^T`` the blocks -S^T S, and -L with its transpose, of sigma M."""
    L = np.tril(np.ones((h, h)), -1)
    return np.block([[-np.ones((h, h)), -L], [-L.T, np.zeros((h, h))]])


def _inverse(matrix: Floats, tolerance: float) -> Floats:
    """Return the inverse of symmetric matrices, where they are singular to rounding without these directions."""
    try:
        inverse: Floats = np.linalg.inv(matrix).astype(np.float64, copy=False)
        if ((matrix * matrix).sum((1, 2)) * (inverse * inverse).sum((1, 2)) < tolerance**-2).all():
            return inverse
    except np.linalg.LinAlgError:
        pass
    values, V = np.linalg.eigh(matrix)
    sizes = np.abs(values)
    keep = sizes > tolerance * sizes.max(1, keepdims=True)
    without: Floats = (V * np.where(keep, 1.0 / values, 0.0)[:, None]) @ _transposed(V)
    return without


def _transposed(matrices: Floats) -> Floats:
    return matrices.transpose(0, 2, 1)


def _rest(squares: Floats) -> Floats:
    """Return the roots of squares that may be negative in rounding, as a column."""
    rest: Floats = np.sqrt(np.maximum(squares, 0.0))[:, None]
    return rest


def _across(matrix: Floats, v: Floats) -> Floats:
    """Return ``matrix v`` for shapes (p, a, b) and (p, b)."""
    product: Floats = (matrix @ v[:, :, None])[:, :, 0]
    return product


def _small(c: Floats, like: Tensor) -> Tensor:
    """Return coefficients as rows for products from the left: those with a column take seven times as long."""
    return torch.from_numpy(c).to(like.device, like.dtype)[:, None]


def _shorten(v: Tensor, most: Floats) -> None:
    """Scale v, or its rows, down to a length of `most`."""
    length = np.sqrt(inner(v, v))
    if (length > most).any():
        v.mul_(column(np.where(length > most, most / length, 1.0), v))


def inner(a: Tensor, b: Tensor) -> Floats:
    """Return the inner product of a and b, or of their rows, shape (p,).

    Parameters
    ----------
    a : Tensor, shape (n,) or (p, n)
        One factor.
    b : Tensor, shape (n,) or (p, n)
        The other one.
    """
    return numbers(torch.linalg.vecdot(a, b))


def numbers(values: Tensor) -> Floats:
    """Return a few numbers as float64 on the CPU; a scalar as an array of one.

    Parameters
    ----------
    values : Tensor, shape () or (p,)
        On any device.
    """
    array: Floats = (values if values.dim() else values[None]).double().cpu().numpy()
    return array


def column(values: Floats | Flags, like: Tensor) -> Tensor:
    """Return one number per row on the device of `like`, floats with its dtype, to multiply or mask its rows by.

    Parameters
    ----------
    values : Floats | Flags, shape (p,)
        One number per row.
    like : Tensor, shape (n,) or (p, n)
        It gives type and device.
    """
    dtype = torch.bool if values.dtype == np.bool_ else like.dtype
    tensor = torch.from_numpy(values).to(like.device, dtype)
    return tensor[:, None] if like.dim() == 2 else tensor


def _rows(v: Tensor) -> Tensor:
    return v if v.dim() == 2 else v[None]
