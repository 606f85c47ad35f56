"""Minimisers of quadratic models in a ball, from their eigenvalues."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

_NEWTON_STEPS = 40
_ZERO = 1e-14  # eigenvalues of this part of the largest are zero to rounding


def in_ball(a: Floats, eigenvalues: Floats, radius: Floats) -> Floats:
    """Return the minimisers z of ``a^T z + z^T diag(eigenvalues) z / 2`` over ``|z| <= radius``, shape (p, k).

    ``(eigenvalues + t) z = -a`` for the least t >= 0 for which ``|z| <= radius`` and no ``eigenvalues + t`` is
    negative, by Newton's method on ``1 / |z|``. In the hard case, where there is negative curvature and even then
    ``|z| < radius``, z goes on to the boundary along the eigenvector of the least eigenvalue. Along directions without
    slope and without curvature it does not move.

    Parameters
    ----------
    a : array, shape (p, k)
        Slopes, one row per model.
    eigenvalues : array, shape (p, k)
        Curvatures.
    radius : array, shape (p, 1)
        Radii, > 0.

    References
    ----------
    Conn, Gould and Toint, Trust-Region Methods (2000), section 7.3.
    """
    least = eigenvalues.min(1, keepdims=True)
    scale = np.maximum(lengths(a) / radius, np.abs(eigenvalues).max(1, keepdims=True))
    scale = np.maximum(scale, 1e-290)
    t = np.where(least > _ZERO * scale, 0.0, 1e-12 * scale - least)
    z = -a / (eigenvalues + t)
    length = lengths(z)
    outside = length > radius
    hard = ~outside & (least < -_ZERO * scale)
    for _ in range(_NEWTON_STEPS):
        if not (outside & (length > radius * (1 + 1e-12))).any():
            break
        slope = (z * z / (eigenvalues + t)).sum(1, keepdims=True)
        t = np.where(outside, t + length * length / slope * (length - radius) / radius, t)
        z = -a / (eigenvalues + t)
        length = lengths(z)
    z = np.where(length > radius, z * (radius / length), z)
    if hard.any():  # along the eigenvector of the least eigenvalue to the boundary
        where = eigenvalues.argmin(1)[:, None]
        at = np.take_along_axis(z, where, 1)
        whole = np.sqrt(np.maximum(radius * radius - np.maximum(length * length - at * at, 0.0), 0.0))
        sign = np.where(np.take_along_axis(a, where, 1) > 0, -1.0, 1.0)
        np.put_along_axis(z, where, np.where(hard, sign * whole, at), 1)
    return z


def lengths(rows: Floats) -> Floats:
    """Return the 2-norm of every row, shape (p, 1).

    Parameters
    ----------
    rows : array, shape (p, k)
        Vectors.
    """
    found: Floats = np.sqrt((rows * rows).sum(1, keepdims=True))
    return found


def quotient(a: Floats, b: Floats) -> Floats:
    """Return ``a / b``, 0 where b is 0.

    Parameters
    ----------
    a, b : array
        Of shapes that fit.
    """
    return np.where(b != 0, a / b, 0.0)


@dataclass(frozen=True)
class Reduced:
    """``q(z) = g^T z + z^T diag(eigenvalues) z / 2`` in an orthonormal basis of eigenvectors of B.

    Attributes
    ----------
    eigenvalues, g, away : array, shape (p, r + 1), or (p, r + 2) where there is an `away`
        The basis is the rows of P, the rest of g, and the rest of `away`, a vector with which steps are confined; the
        eigenvalue of both rests is sigma.
    """

    eigenvalues: Floats
    g: Floats
    away: Floats | None

    def decrease(self, z: Floats) -> Floats:
        """Return ``-q(z)``, shape (p,).

        Parameters
        ----------
        z : Floats, shape (p, k)
            Steps in the basis.
        """
        decrease: Floats = -(z * (self.g + 0.5 * self.eigenvalues * z)).sum(1)
        return decrease

    def confined(self, z: Floats, radius: Floats, reach: Floats) -> Floats:
        """Return `z` with other steps in place of those that leave the ball of radius `reach` around ``-away``.

        First choice: toward the minimiser of the model in that ball, as far as the radius allows (the way there is in
        the ball). Where the model does not fall on it: toward the minimiser of the linear model, exactly (a Frank-Wolfe
        step, on which the slope is not positive).

        Parameters
        ----------
        z : Floats, shape (p, k)
            Minimisers in the ball.
        radius : Floats, shape (p, 1)
            Of the ball.
        reach : Floats, shape (p, 1)
            Of the ball around `away`.
        """
        away = self.away
        assert away is not None  # noqa: S101
        leaves = lengths(away + z) > reach
        if not leaves.any():
            return z
        inside = in_ball(self.g - self.eigenvalues * away, self.eigenvalues, reach) - away
        inside *= np.minimum(quotient(radius, lengths(inside)), 1.0)
        falls = self.decrease(inside)[:, None] > 0
        if (leaves & ~falls).any():
            linear = -self.g * quotient(reach, lengths(self.g)) - away
            linear *= np.minimum(quotient(radius, lengths(linear)), 1.0)
            curvature = (linear * self.eigenvalues * linear).sum(1, keepdims=True)
            slope = (linear * self.g).sum(1, keepdims=True)
            t = np.where(curvature > 0, np.clip(-slope / curvature, 0.0, 1.0), 1.0)
            inside = np.where(falls, inside, t * linear)
        return np.where(leaves, inside, z)
