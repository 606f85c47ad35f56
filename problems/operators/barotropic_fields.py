"""Random vorticities on the sphere, and what a network reads of them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from mldd.problems.operators.barotropic import BarotropicVorticity
from mldd.problems.operators.local_graphs import Floats
from mldd.problems.operators.sphere import Sphere

_WAVES, _LENGTHS = 60, (3.0, 8.0)  # waves of a random state, and their wave numbers
_WIND = 1.0  # bound of the wind of random states, for which time steps are chosen
_STREAM = 7.0  # unit of the stream function in that of the vorticity


@dataclass(frozen=True)
class BarotropicFields:
    """The equation on an icosphere; samples have no setting.

    Parameters
    ----------
    equation : BarotropicVorticity
        What is solved.
    domain : Sphere
        The mesh.
    """

    equation: BarotropicVorticity
    domain: Sphere

    label = "vorticity"
    inputs = 3

    @property
    def steps(self) -> int:
        """Time steps of one interval, by the stability limit for the largest wind."""
        spacing = self.domain.spacing
        rate = 1.5 * _WIND / spacing + 8 * self.equation.viscosity / spacing**2
        return max(1, math.ceil(self.equation.time * rate / 2.0))

    @property
    def interval(self) -> float:
        """The interval of the equation."""
        return self.equation.time

    def draw(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Return a sum of random waves with mean zero and unit root mean square, and no setting; shape (n,)."""
        directions = generator.standard_normal((_WAVES, 3))
        directions *= generator.uniform(*_LENGTHS, (_WAVES, 1)) / np.linalg.norm(directions, axis=1, keepdims=True)
        phases = generator.uniform(0.0, 2 * np.pi, _WAVES)
        zeta = np.cos(self.domain.points @ directions.T + phases).sum(1)
        mass = self.domain.mass / self.domain.mass.sum()
        zeta -= mass @ zeta
        return zeta / np.sqrt(mass @ (zeta * zeta)), np.zeros_like(zeta)

    def advance(self, states: Floats, settings: Floats) -> Floats:
        """Return the states one interval later."""
        return self.equation.advance(states, self.domain, self.steps)

    def features(self, states: Floats, settings: Floats) -> Floats:
        """Return vorticity, stream function and sine of latitude, all of about unit size."""
        sine = np.broadcast_to(self.domain.points[:, 2], states.shape)
        return np.stack([states, _STREAM * self.domain.inverse_laplacian(states), sine], 1)
