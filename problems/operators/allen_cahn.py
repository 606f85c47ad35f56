"""The Allen-Cahn equation with variable diffusivity on a torus: finite volumes in space, Runge-Kutta in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from mldd.problems.operators.local_graphs import Floats

LARGEST = 2.2  # bound of kappa in random fields; time steps are chosen for it
_STABLE = 2.0  # dt times the largest rate; the method of Runge is stable up to 2.78 on the negative axis


@dataclass(frozen=True)
class AllenCahn:
    r"""``u_t = div(D kappa grad u) + r (u - u^3)`` on a torus of n x n nodes.

    In space: fluxes through the faces between nodes with the mean of kappa on both sides, of second order in the
    spacing. In time: the classical method of Runge and Kutta, of fourth order.

    Parameters
    ----------
    diffusion : float
        D, in units of length^2 / time.
    reaction : float
        r, in units of 1 / time.
    time : float
        The interval that the learned operator goes ahead.
    spacing : float
        Distance of neighbouring nodes; the side of the torus is n times as long.

    Raises
    ------
    ValueError
        A number that is negative or not finite, or no interval or spacing.

    References
    ----------
    Allen and Cahn, doi:10.1016/0001-6160(79)90196-2, equation 11, with a diffusivity that varies in space.

    Examples
    --------
    >>> float(AllenCahn(reaction=0.0).advance(np.ones((1, 4, 4)), np.ones((1, 4, 4))).max())
    1.0
    """

    diffusion: float = 1.2
    reaction: float = 2.0
    time: float = 0.48
    spacing: float = 1.0

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for field in fields(self):
            value, positive = getattr(self, field.name), field.name in ("time", "spacing")
            if not (value > 0 or (value == 0 and not positive)) or not math.isfinite(value):
                raise ValueError(f"`{field.name}` must be {'>' if positive else '>='} 0 and finite, got {value}")

    @property
    def steps(self) -> int:
        """Time steps of one interval, by the stability limit for the largest kappa."""
        rate = 8 * self.diffusion * LARGEST / self.spacing**2 + 2 * self.reaction
        return max(1, math.ceil(self.time * rate / _STABLE))

    def rate(self, u: Floats, faces: tuple[Floats, Floats]) -> Floats:
        """Return u_t of the semi-discrete equation, shape (..., n, n).

        Parameters
        ----------
        u : ndarray, shape (..., n, n)
            State.
        faces : tuple of ndarray, shape (..., n, n)
            As `faces` returns them.
        """
        out = u * u
        out *= u
        np.subtract(u, out, out=out)
        out *= self.reaction
        flux = np.empty_like(out)
        for axis, face in zip((-2, -1), faces, strict=True):
            v, f, o = (np.moveaxis(a, axis, 0) for a in (u, flux, out))  # in place: three times as fast as np.roll
            np.subtract(v[1:], v[:-1], out=f[:-1])
            np.subtract(v[0], v[-1], out=f[-1])
            flux *= face
            o += f
            o[1:] -= f[:-1]
            o[0] -= f[-1]
        return out

    def faces(self, kappa: Floats) -> tuple[Floats, Floats]:
        """Return D kappa / spacing^2 on the faces behind the nodes in both directions, each of shape (..., n, n).

        Parameters
        ----------
        kappa : ndarray, shape (..., n, n)
            Diffusivity at the nodes.
        """
        half = 0.5 * self.diffusion / self.spacing**2
        return half * (kappa + np.roll(kappa, -1, -2)), half * (kappa + np.roll(kappa, -1, -1))

    def advance(self, u: Floats, kappa: Floats, steps: int = 0) -> Floats:
        """Return the state one interval later, shape (..., n, n).

        Parameters
        ----------
        u, kappa : ndarray, shape (..., n, n)
            State and diffusivity.
        steps : int
            Time steps; 0: as many as are stable for kappa up to 2.2.
        """
        steps, faces = steps or self.steps, self.faces(kappa)
        dt = self.time / steps
        for _ in range(steps):
            a = self.rate(u, faces)
            b = self.rate(u + 0.5 * dt * a, faces)
            c = self.rate(u + 0.5 * dt * b, faces)
            d = self.rate(u + dt * c, faces)
            u = u + dt / 6 * (a + 2 * (b + c) + d)
        return u
