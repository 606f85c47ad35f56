"""The barotropic vorticity equation on the rotating sphere: finite elements in space, Runge-Kutta in time."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

import numpy as np

from mldd.problems.operators.local_graphs import Floats
from mldd.problems.operators.sphere import Sphere


@dataclass(frozen=True)
class BarotropicVorticity:
    r"""``zeta_t + J(psi, zeta + 2 Omega sin(latitude)) = nu Laplace(zeta)`` with ``Laplace(psi) = zeta``.

    The sphere has radius 1, and the wind is ``k x grad psi``. Linear finite elements conserve energy and the sum of
    squares of absolute vorticity but for viscosity and the time steps, which are those of the classical method of Runge
    and Kutta.

    Parameters
    ----------
    rotation : float
        Omega, in radians per unit of time.
    viscosity : float
        nu, in units of radius^2 / time.
    time : float
        The interval that the learned operator goes ahead.

    Raises
    ------
    ValueError
        A number that is negative or not finite, or no interval.

    References
    ----------
    Charney, Fjortoft and von Neumann, doi:10.3402/tellusa.v2i4.8607, equation 6.
    """

    rotation: float = 2.0
    viscosity: float = 1e-4
    time: float = 0.25

    def __post_init__(self) -> None:
        """Refuse numbers that make no sense."""
        for field in fields(self):
            value = getattr(self, field.name)
            if not (value > 0 or (value == 0 and field.name != "time")) or not math.isfinite(value):
                raise ValueError(f"`{field.name}` must be >= 0 (time: > 0) and finite, got {value}")

    def rate(self, zeta: Floats, sphere: Sphere) -> Floats:
        """Return zeta_t of the semi-discrete equation, shape (b, n).

        Parameters
        ----------
        zeta : ndarray, shape (b, n)
            Relative vorticity.
        sphere : Sphere
            The mesh.
        """
        absolute = zeta + 2 * self.rotation * sphere.points[:, 2]
        out = -sphere.jacobian(sphere.inverse_laplacian(zeta), absolute)
        return out + self.viscosity * sphere.laplacian(zeta) if self.viscosity else out

    def advance(self, zeta: Floats, sphere: Sphere, steps: int) -> Floats:
        """Return the state one interval later, shape (b, n).

        Parameters
        ----------
        zeta : ndarray, shape (b, n)
            Relative vorticity.
        sphere : Sphere
            The mesh.
        steps : int
            Time steps.
        """
        dt = self.time / steps
        for _ in range(steps):
            a = self.rate(zeta, sphere)
            b = self.rate(zeta + 0.5 * dt * a, sphere)
            c = self.rate(zeta + 0.5 * dt * b, sphere)
            d = self.rate(zeta + dt * c, sphere)
            zeta = np.asarray(zeta + dt / 6 * (a + 2 * (b + c) + d))
        return zeta
