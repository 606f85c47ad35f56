"""Bound-constrained problems of mldd once more, in numpy, without mldd: what SNES with multigrid solves (B6)."""

from __future__ import annotations

from collections.abc import Callable
from math import pi

import numpy as np

from experiments.peers.multigrid import Array, Discrete
from mldd.problems.grids import Bratu, GridProblem, Ignition, MinimalSurface, Obstacle


def padded(n: int, values: Array | float, edge: float) -> Array:
    """Return an array of all nodes from values at inner ones."""
    out = np.full((n + 2, n + 2), edge)
    out[1:-1, 1:-1] = values
    return out


def obstacle(n: int) -> Discrete:
    """Return the obstacle problem, as `Obstacle`."""
    return Discrete(
        n, padded(n, -0.25, -np.inf), np.full((n + 2, n + 2), np.inf), np.zeros((n + 2, n + 2)), load=10 / (n + 1) ** 2
    )


def bratu(n: int) -> Discrete:
    """Return Bratu's problem, as `Bratu`."""

    def reaction(u: Array) -> tuple[Array, Array]:
        e = -3.0 / (n + 1) ** 2 * np.exp(u)
        return e, e

    zero = np.zeros((n + 2, n + 2))
    return Discrete(n, np.full_like(zero, -np.inf), padded(n, 0.45, np.inf), zero, reaction=reaction)


def ignition(n: int) -> Discrete:
    """Return the ignition problem, as `Ignition`."""
    h2, t = 1.0 / (n + 1) ** 2, np.arange(1, n + 1) / (n + 1)
    x, y = t[None, :], t[:, None]
    bump = x**2 - x**3
    f = (9 * pi**2 + np.exp(bump * np.sin(3 * pi * y)) * bump + 6 * x - 2) * np.sin(3 * pi * x)
    lower = 0.2 - 8 * (x - 7 / 16) ** 2 - 8 * (y - 7 / 16) ** 2

    def reaction(u: Array) -> tuple[Array, Array]:
        e = h2 * np.exp(u)
        return -u * e, -(1 + u) * e

    zero = np.zeros((n + 2, n + 2))
    return Discrete(n, padded(n, lower, -np.inf), padded(n, 0.5, np.inf), zero, load=-h2 * f, reaction=reaction)


def enneper(x: Array, y: Array) -> Array:
    """Return the heights of Enneper's surface over points (x, y), by Newton's method."""
    u, v = x.copy(), -y
    for _ in range(6):
        f, g = u + u * v**2 - u**3 / 3 - x, -v - u**2 * v + v**3 / 3 - y
        a, b, c = 1 + v**2 - u**2, 2 * u * v, v**2 - u**2 - 1
        determinant = a * c + b * b
        u, v = u - (f * c - g * b) / determinant, v - (g * a + f * b) / determinant
    heights: Array = u**2 - v**2
    return heights


def surface(n: int) -> Discrete:
    """Return the minimal surface over a plate, as `MinimalSurface`."""
    t = np.arange(n + 2) / (n + 1) - 0.5
    half = np.full_like(t, 0.5)
    frame = np.zeros((n + 2, n + 2))
    frame[0], frame[-1] = enneper(t, -half), enneper(t, half)
    frame[:, 0], frame[:, -1] = enneper(-half, t), enneper(half, t)
    plate = (np.abs(t)[None, :] <= 0.25) & (np.abs(t)[:, None] <= 0.25)
    return Discrete(n, np.where(plate, 0.1, -np.inf), np.full_like(frame, np.inf), frame, kind="surface")


PROBLEMS: dict[str, tuple[Callable[[int], Discrete], type[GridProblem]]] = {
    "obstacle": (obstacle, Obstacle),
    "ignition": (ignition, Ignition),
    "bratu": (bratu, Bratu),
    "minimal-surface": (surface, MinimalSurface),
}
