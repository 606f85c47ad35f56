"""Linear finite elements on the triangles of an icosphere: Laplacian, Jacobian, and derivatives to east and north."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import scipy.sparse as sp

from mldd.problems.data import icosphere, icosphere_faces, on_sphere
from mldd.problems.operators.local_graphs import Cut, Floats, Ints, metis_parts


@dataclass(frozen=True)
class Sphere:
    """The unit sphere with 10 4^r + 2 nodes, and piecewise linear functions on flat triangles between them.

    Parameters
    ----------
    resolution : int
        r, 1..7.

    Raises
    ------
    ValueError
        A resolution out of range.
    """

    resolution: int

    def __post_init__(self) -> None:
        """Refuse meshes that are too coarse to be one, or too fine for a factorisation."""
        if not 1 <= self.resolution <= 7:
            raise ValueError(f"`resolution` must be in 1..7, got {self.resolution}")

    grid = None
    axes = "latitude", "longitude"

    @cached_property
    def places(self) -> Floats:
        """Latitude and longitude in degrees, shape (n, 2)."""
        return np.stack([angle.numpy() for angle in icosphere(self.resolution, multiscale=False)[1:]], 1)

    @property
    def nodes(self) -> int:
        """Number of nodes."""
        return 10 * int(4**self.resolution) + 2

    @property
    def spacing(self) -> float:
        """Side of an equilateral triangle of the mean area: the mean distance of neighbours."""
        return float(np.sqrt(2 * self._areas.mean() / np.sqrt(3)))

    @cached_property
    def points(self) -> Floats:
        """Nodes on the unit sphere, shape (n, 3)."""
        return np.asarray(on_sphere(*self.places.T))

    @cached_property
    def faces(self) -> Ints:
        """Corners of the triangles, against the clock seen from outside, shape (m, 3)."""
        faces = np.asarray(icosphere_faces(self.resolution).numpy())
        a, b, c = (self.points[faces[:, k]] for k in range(3))
        inward = np.einsum("ij,ij->i", np.cross(b - a, c - a), a + b + c) < 0
        return np.where(inward[:, None], faces[:, [0, 2, 1]], faces)

    @cached_property
    def _sides(self) -> Floats:
        """The side opposite to every corner, shape (m, 3, 3)."""
        p = self.points[self.faces]
        return np.stack([p[:, 2] - p[:, 1], p[:, 0] - p[:, 2], p[:, 1] - p[:, 0]], 1)

    @cached_property
    def _areas(self) -> Floats:
        """Twice the area of every triangle, shape (m,)."""
        return np.asarray(np.linalg.norm(np.cross(self._sides[:, 0], self._sides[:, 1]), axis=1))

    @cached_property
    def mass(self) -> Floats:
        """A third of the area of the triangles around every node, shape (n,)."""
        shares = np.repeat(self._areas / 6, 3)
        return np.asarray(np.bincount(self.faces.ravel(), shares, minlength=self.nodes), dtype=np.float64)

    @cached_property
    def stiffness(self) -> Any:
        """``K_ij``, the integral of grad phi_i . grad phi_j, a csr_matrix of shape (n, n)."""
        entries = np.einsum("mik,mjk->mij", self._sides, self._sides) / (2 * self._areas)[:, None, None]
        rows, columns = np.repeat(self.faces, 3, axis=1), np.tile(self.faces, 3)
        return sp.csr_matrix((entries.ravel(), (rows.ravel(), columns.ravel())))

    @cached_property
    def _solve(self) -> Callable[[Floats], Floats]:
        from scipy.sparse.linalg import splu

        solve: Callable[[Floats], Floats] = splu(sp.csc_matrix(self.stiffness)[1:, 1:]).solve
        return solve

    def laplacian(self, u: Floats) -> Floats:
        """Return the Laplacian with lumped masses, shape (b, n).

        Parameters
        ----------
        u : ndarray, shape (b, n)
            Functions.
        """
        return np.asarray(-(self.stiffness @ u.T).T / self.mass)

    def inverse_laplacian(self, q: Floats) -> Floats:
        """Return the functions of mean zero whose Laplacian is q less its mean, shape (b, n).

        Parameters
        ----------
        q : ndarray, shape (b, n)
            Functions.
        """
        total = self.mass.sum()
        right = -(q - (q @ self.mass / total)[:, None]) * self.mass
        out = np.zeros_like(q)
        out[:, 1:] = self._solve(np.ascontiguousarray(right[:, 1:].T)).T
        return np.asarray(out - (out @ self.mass / total)[:, None])

    @cached_property
    def _gathering(self) -> Any:
        """Adds what triangles have to their corners, shape (n, m)."""
        m = len(self.faces)
        places = self.faces.ravel(), np.repeat(np.arange(m), 3)
        return sp.csr_matrix((np.ones(3 * m), places), shape=(len(self.points), m))

    def jacobian(self, a: Floats, b: Floats) -> Floats:
        """Return ``n . (grad a x grad b)`` by Galerkin's method with lumped masses, shape (s, n).

        Its integrals against a and b vanish exactly: sums of squares are conserved.

        Parameters
        ----------
        a, b : ndarray, shape (s, n)
            Functions.
        """
        (a0, a1, a2), (b0, b1, b2) = ([f[:, self.faces[:, k]] for k in range(3)] for f in (a, b))
        twice = (a1 - a0) * (b2 - b0) - (a2 - a0) * (b1 - b0)  # times half the area, over the area
        return np.asarray((self._gathering @ (twice / 6).T).T / self.mass)

    @cached_property
    def matrix(self) -> Any:
        """Ones at neighbours, a csr_matrix of shape (n, n)."""
        pairs = np.concatenate([self.faces[:, [i, j]] for i, j in ((0, 1), (1, 2), (2, 0))])
        n = len(self.points)
        ones = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(n, n))
        return ((ones + ones.T) > 0).astype(np.float64).tocsr()

    @cached_property
    def derivatives(self) -> tuple[Any, Any]:
        """Weights w of derivatives to east and north, ``sum_j w_ij (u_j - u_i)``, at neighbours.

        They are averages over the triangles around a node, in units of the mean distance of neighbours. At a pole any
        two orthogonal directions do.
        """
        longitude = np.radians(self.places[:, 1])
        east = np.stack([-np.sin(longitude), np.cos(longitude), np.zeros_like(longitude)], 1)
        north = np.cross(self.points, east)
        area = self._areas[:, None]
        normal = np.cross(self._sides[:, 0], self._sides[:, 1]) / area
        gradients = np.cross(normal[:, None], self._sides) / area[:, None]  # of the three hat functions
        rows, columns = np.repeat(self.faces, 3, axis=1), np.tile(self.faces, 3)
        made = []
        for direction in (east, north):
            of_corner = np.einsum("mik,mjk->mij", direction[self.faces], gradients) * (self._areas / 6)[:, None, None]
            matrix = sp.csr_matrix((of_corner.ravel(), (rows.ravel(), columns.ravel())))
            matrix = sp.csr_matrix(sp.diags(self.spacing / self.mass) @ matrix)
            made.append(sp.csr_matrix(matrix.multiply(self.matrix)))
        return made[0], made[1]

    def parts(self, parts: int, cut: Cut, seed: int = 0) -> Ints:
        """Return the part of every node by METIS.

        Parameters
        ----------
        parts : int
            Number of parts.
        cut : {"auto", "metis"}
            There are no rectangles.
        seed : int
            Of METIS.

        Raises
        ------
        ValueError
            Rectangles.
        """
        if cut == "rectangles":
            raise ValueError("`cut` must be metis on a sphere, which has no rectangles, got rectangles; leave it out")
        return metis_parts(self.matrix, parts, seed)
