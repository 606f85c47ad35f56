"""Linear systems with the Hessians of a batch: dense factors or conjugate gradients, negative curvature or not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from mldd.algebra import Around, Objective, layers_of

Product = Callable[[Tensor], Tensor]


def hessians(product: Product, like: Tensor, band: int | None = None) -> Tensor:
    """Return the dense Hessians of a batch, shape (p, m, m) or (m, m), by products with m unit vectors.

    Unit vectors of unknowns farther apart than twice the `band`, outside of which there are only zeros, are taken
    together: 2 band + 1 products (Curtis, Powell and Reid, J. Inst. Math. Appl. 13, 1974).

    Parameters
    ----------
    product : Product
        ``v -> H v``, row by row.
    like : Tensor, shape (p, m) or (m,)
        It gives shape, type and device.
    band : int, optional
        Half bandwidth of the Hessians, if they are banded.
    """
    number = colours(like.shape[-1], band)
    unknowns = torch.arange(like.shape[-1], device=like.device)
    probe = torch.empty_like(like)
    found = torch.stack([product(probe.copy_(unknowns % number == k)) for k in range(number)])
    H = found[unknowns % number].movedim(0, -1)
    if band is not None:
        H = torch.where((unknowns[:, None] - unknowns).abs() <= band, H, 0.0)
    return (H + H.mT).mul_(0.5)


def colours(m: int, band: int | None) -> int:
    """Return how many products `hessians` takes for rows of m unknowns.

    Parameters
    ----------
    m : int
        Unknowns of a row.
    band : int, optional
        Half bandwidth, if there is one.
    """
    return m if band is None else min(m, 2 * band + 1)


def half_bandwidth(f: Objective) -> int | None:
    """Return the attribute ``band`` of an objective whose Hessian is banded, None where it has none.

    Parameters
    ----------
    f : Objective
        The objective.
    """
    own = next(layer for layer in layers_of(f) if not isinstance(layer, Around))  # the layers around it keep the band
    return getattr(own, "band", None)


@dataclass(frozen=True)
class Factors:
    """Cholesky factors of symmetric matrices, made positive definite where they are not.

    Parameters
    ----------
    L : Tensor, shape (p, m, m) or (m, m)
        The lower triangular factors.
    raised : Tensor, shape (p,) or ()
        Rows whose matrix was not positive definite to working accuracy, so that ``|H|`` has taken its place.
    negative : Tensor, shape (p,) or ()
        Rows with eigenvalues below ``-sqrt(eps) |lambda|_max``.
    """

    L: Tensor
    raised: Tensor
    negative: Tensor

    @staticmethod
    def of(H: Tensor, active: Tensor) -> Factors:
        """Return factors of the matrices of active rows, of the identity for others and for what is not finite.

        An unknown without any curvature (padding) gets the largest entry of its matrix on the diagonal, one if that is
        zero: the solve is regular, and zero there for a right-hand side that is.

        Parameters
        ----------
        H : Tensor, shape (p, m, m) or (m, m)
            Symmetric matrices.
        active : Tensor, shape (p,) or ()
            Rows that are factorised.
        """
        root = torch.finfo(H.dtype).eps ** 0.5
        usable = active & torch.isfinite(H).flatten(-2).all(-1)
        identity = torch.eye(H.shape[-1], dtype=H.dtype, device=H.device)
        H = torch.where(usable[..., None, None], H, identity)
        dead = H.abs().amax(-1) == 0.0
        largest = H.abs().amax((-2, -1))
        largest = torch.where(largest > 0, largest, 1.0)
        H = H + torch.diag_embed(dead * largest[..., None])
        L, failed = torch.linalg.cholesky_ex(H)
        pivots = L.diagonal(dim1=-2, dim2=-1)
        raised = (failed > 0) | ~(pivots.amin(-1) > root * pivots.amax(-1))
        negative = torch.zeros_like(raised)
        if bool(raised.any()):
            H, negative = _absolute(H, raised, negative, root)
            L = torch.linalg.cholesky_ex(H)[0]
        return Factors(L, raised & active, negative & active)

    def solve(self, b: Tensor) -> Tensor:
        """Return ``H^-1 b`` of every row, of the shape of `b`.

        Parameters
        ----------
        b : Tensor, shape (p, m) or (m,)
            Right-hand sides.
        """
        return torch.cholesky_solve(b[..., None], self.L)[..., 0]


def _absolute(H: Tensor, raised: Tensor, negative: Tensor, root: float) -> tuple[Tensor, Tensor]:
    """Replace the chosen matrices by |H|, and say which of them have negative eigenvalues."""
    values, V = torch.linalg.eigh(H[raised])
    floor = root * values.abs().amax(-1, keepdim=True)
    lifted = torch.maximum(values.abs(), floor)
    H, negative = H.clone(), negative.clone()
    H[raised] = (V * lifted[..., None, :]) @ V.mT
    negative[raised] = values[..., 0] < -floor[..., 0]
    return H, negative


@dataclass(frozen=True)
class TruncatedSolve:
    """End of `truncated_cg`, row by row.

    Parameters
    ----------
    x : Tensor, shape (p, m) or (m,)
        The solutions.
    negative : Tensor, shape (p,) or (), bool
        CG met a direction of negative (or no) curvature and ended with a step along it.
    """

    x: Tensor
    negative: Tensor


def truncated_cg(product: Product, b: Tensor, tolerance: Tensor, active: Tensor, steps: int) -> TruncatedSolve:
    """Return approximate solutions of ``H x = b`` in every active row by conjugate gradients from zero.

    Parameters
    ----------
    product : callable
        ``v -> H v``, row by row.
    b : Tensor, shape (p, m) or (m,)
        Right-hand sides.
    tolerance : Tensor, shape (p,) or ()
        Bounds on the 2-norm of the residual.
    active : Tensor, shape (p,) or (), bool
        The others stay zero.
    steps : int
        Most iterations.
    """
    x, r, p, rr = torch.zeros_like(b), b, b, (b * b).sum(-1)
    tiny, eps = torch.finfo(b.dtype).tiny, torch.finfo(b.dtype).eps
    largest = torch.zeros_like(rr)
    negative, running = torch.zeros_like(active), active & (rr.sqrt() > tolerance)
    for _ in range(steps):
        if not bool(running.any()):
            break
        Hp = product(p)
        curvature, pp = (p * Hp).sum(-1), (p * p).sum(-1).clamp_min(tiny)
        quotient = torch.where(running, curvature / pp, 0.0)
        largest = torch.maximum(largest, quotient.abs())
        bad = running & ~(quotient > eps * largest)
        alpha = rr / (pp * torch.maximum(quotient.abs(), 1e-8 * largest))
        alpha = torch.where(largest > 0, alpha, 1.0)  # no curvature at all: a gradient step
        alpha = torch.where(running & torch.isfinite(alpha), alpha, 0.0)[..., None]
        x = torch.where(alpha != 0, x + alpha * p, x)
        r = torch.where(alpha != 0, r - alpha * Hp, r)
        negative = negative | bad
        new = (r * r).sum(-1)
        running = running & ~bad & (new.sqrt() > tolerance)
        p = torch.where(running[..., None], r + (new / rr)[..., None] * p, p)
        rr = torch.where(running, new, rr)
    return TruncatedSolve(x, negative)


class Inverse:
    """``H^-1`` of every row of a batch, for many right-hand sides.

    Rows of at most `dense` unknowns are factorised (see `Factors`), longer ones solved by CG. Where the Lanczos process
    finds negative curvature, ``H + shift`` takes the place of H, with one shift for all right-hand sides: twice the
    lowest eigenvalue and the error of its estimate, in absolute value, so that the operator is the same whenever it is
    applied.

    Parameters
    ----------
    product : callable
        ``v -> H v`` on tensors (p, m).
    like : Tensor, shape (p, m)
        For its shape, dtype and device.
    dense : int
        Most unknowns of a row for dense factors.
    rtol : float
        Of CG, in the 2-norm of the residual.
    steps : int
        Most iterations of CG.
    band : int, optional
        See `hessians`.

    Attributes
    ----------
    raised : Tensor, shape (p,), bool
        Rows whose H was not positive definite, and was made so.
    negative : Tensor, shape (p,), bool
        Rows with negative curvature.
    shift : Tensor, shape (p, 1)
        Of the rows that CG solves.
    residual : float
        Largest residual of a solution by CG, relative to its right-hand side.
    unsolved : int
        Solutions by CG that have missed their tolerance.
    """

    def __init__(
        self, product: Product, like: Tensor, dense: int, rtol: float, steps: int, band: int | None = None
    ) -> None:
        self._product, self._rtol, self._steps = product, rtol, steps
        self._rows = torch.ones(len(like), dtype=torch.bool, device=like.device)
        self.raised, self.negative, self.unsolved, self.residual = ~self._rows, ~self._rows, 0, 0.0
        self.shift = like.new_zeros(len(like), 1)
        self._factors = None
        if not len(like):
            return
        if like.shape[-1] <= dense:
            self._factors = Factors.of(hessians(product, like, band), self._rows)
            self.raised, self.negative = self._factors.raised, self._factors.negative
            return
        lowest, error, largest = extreme_eigenvalues(product, like)
        root = torch.finfo(like.dtype).eps ** 0.5
        self.negative, self.raised = lowest < -root * largest, lowest <= root * largest
        shift = 2.0 * (error - lowest).clamp_min(0.0) + root * largest
        self.shift = torch.where(self.raised, shift, 0.0)[:, None]

    def solve(self, b: Tensor) -> Tensor:
        """Return ``H^-1 b``, or ``(H + shift)^-1 b`` for rows with a shift.

        Parameters
        ----------
        b : Tensor, shape (p, m)
            Right-hand sides.
        """
        if self._factors is not None:
            return self._factors.solve(b)
        size = torch.linalg.vector_norm(b, dim=-1)
        x = truncated_cg(self._shifted, b, self._rtol * size, self._rows, self._steps).x
        residual = torch.linalg.vector_norm(b - self._shifted(x), dim=-1)
        self.unsolved += int((residual > 10.0 * self._rtol * size).sum())
        self.residual = max(self.residual, float(torch.where(size > 0, residual / size, 0.0).max()))
        return x

    def _shifted(self, v: Tensor) -> Tensor:
        return self._product(v).addcmul(self.shift, v)


def extreme_eigenvalues(product: Product, like: Tensor, most: int = 160) -> tuple[Tensor, Tensor, Tensor]:
    """Estimate the lowest eigenvalue and the largest absolute one of every row's matrix by the Lanczos process.

    It ends once all lowest Ritz values are known to a tenth of their size, or of a thousandth of the largest.

    Parameters
    ----------
    product : callable
        ``v -> H v`` on tensors (p, m), H symmetric.
    like : Tensor, shape (p, m)
        For its shape, dtype and device.
    most : int
        Most products.

    Returns
    -------
    lowest, error, largest : Tensor, shape (p,)
        The lowest Ritz value, a bound on its distance from an eigenvalue, and the largest Ritz value in absolute value.

    References
    ----------
    Parlett, The Symmetric Eigenvalue Problem (1998), sections 13.2 and 13.8 (no reorthogonalisation: copies of extreme
    Ritz values do no harm here).
    """
    p, m = like.shape
    generator = torch.Generator().manual_seed(0)
    v = torch.randn(m, generator=generator, dtype=like.dtype).to(like.device).expand(p, m)
    v = _normalised(product(v))  # from the range of H: padding, which has no curvature, is not met
    before, beta = torch.zeros_like(like), like.new_zeros(p, 1)
    diagonal: list[Tensor] = []
    beside: list[Tensor] = []
    steps = min(m, most)
    for k in range(1, steps + 1):
        w = product(v) - beta * before
        alpha = (w * v).sum(-1, keepdim=True)
        if diagonal:  # where the space was exhausted, a number from the spectrum takes the place of zero
            alpha = torch.where(beta > 0, alpha, diagonal[0])
        w = w - alpha * v
        beta = torch.linalg.vector_norm(w, dim=-1, keepdim=True)
        diagonal.append(alpha)
        beside.append(beta)
        before, v = v, _normalised(w)
        if k % 20 == 0 or k == steps:
            lowest, error, largest = _ritz(torch.cat(diagonal, 1), torch.cat(beside, 1))
            if bool((error <= 0.1 * torch.maximum(lowest.abs(), 1e-3 * largest)).all()):
                break
    return lowest, error, largest


def _normalised(v: Tensor) -> Tensor:
    """Return the rows divided by their norms, zero where they are."""
    normalised: Tensor = v / torch.linalg.vector_norm(v, dim=-1, keepdim=True).clamp_min(torch.finfo(v.dtype).tiny)
    return normalised


def _ritz(diagonal: Tensor, beside: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the lowest Ritz values, the norms of their residuals, and the largest ones in absolute value."""
    T = torch.diag_embed(diagonal) + torch.diag_embed(beside[:, :-1], 1) + torch.diag_embed(beside[:, :-1], -1)
    finite = torch.isfinite(T).flatten(1).all(1)
    values, vectors = torch.linalg.eigh(torch.where(finite[:, None, None], T, 0.0))
    return values[:, 0], beside[:, -1] * vectors[:, -1, 0].abs(), values.abs().amax(1)
