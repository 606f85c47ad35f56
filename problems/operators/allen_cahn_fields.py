"""Random states and diffusivities for the Allen-Cahn equation on a torus."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from mldd.problems.operators.allen_cahn import LARGEST, AllenCahn
from mldd.problems.operators.local_graphs import Floats
from mldd.problems.operators.torus import Torus

_LENGTH = 1.27, 1.91  # correlation lengths of u and of log kappa
_SIZE = 0.8, 0.7  # their standard deviations
BOUND = 1.6  # of |u| in random fields


def smooth_field(generator: np.random.Generator, n: int, spacing: float, length: float) -> Floats:
    """Return a Gaussian random field on the torus with unit standard deviation over its nodes, shape (n, n).

    Its correlation function is, up to the size of the torus, ``exp(-r^2 / (4 length^2))``.

    Parameters
    ----------
    generator : numpy.random.Generator
        What is random.
    n : int
        Nodes of a side.
    spacing : float
        Distance of neighbouring nodes.
    length : float
        Correlation length, in the unit of the spacing.
    """
    wave = 2 * np.pi * np.fft.fftfreq(n, spacing)
    damped = np.exp(-0.5 * (length * wave) ** 2)
    found = np.fft.ifft2(np.fft.fft2(generator.standard_normal((n, n))) * damped[:, None] * damped).real
    return np.asarray(found / found.std())


@dataclass(frozen=True)
class AllenCahnFields:
    """The equation on a torus; the setting of a sample is its diffusivity kappa.

    Parameters
    ----------
    equation : AllenCahn
        What is solved.
    domain : Torus
        With the spacing of the equation.
    """

    equation: AllenCahn
    domain: Torus

    label = "u"
    inputs = 2

    @property
    def interval(self) -> float:
        """The interval of the equation."""
        return self.equation.time

    def draw(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Return a random state u and kappa, each of shape (n^2,)."""
        fields = [smooth_field(generator, self.domain.n, self.domain.spacing, length) for length in _LENGTH]
        u, kappa = np.clip(_SIZE[0] * fields[0], -BOUND, BOUND), np.exp(_SIZE[1] * fields[1])
        return u.ravel(), np.minimum(kappa, LARGEST).ravel()

    def advance(self, states: Floats, settings: Floats) -> Floats:
        """Return the states one interval later."""
        u, kappa = (fields.reshape(-1, *self.domain.grid) for fields in (states, settings))
        return self.equation.advance(u, kappa).reshape(states.shape)

    def features(self, states: Floats, settings: Floats) -> Floats:
        """Return u and kappa - 1."""
        return np.stack([states, settings - 1], 1)
