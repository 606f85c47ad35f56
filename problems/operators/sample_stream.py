"""The stream of samples of a solution operator: sample k of a seed is made on demand, the same for whoever asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from mldd.problems.operators.allen_cahn import LARGEST, AllenCahn, Floats

Stream = Literal["training", "validation"]
Key = tuple[Stream, int]
_LENGTH = 1.27, 1.91  # correlation lengths of u and of log kappa
_SIZE = 0.8, 0.7  # their standard deviations
BOUND = 1.6  # of |u| in random fields
_STREAMS = ("training", "validation")
_KEPT = 2**26  # numbers that are kept in memory


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


@dataclass(frozen=True, eq=False)
class SampleStream:
    """Samples (u_0, kappa) -> u(T) - u_0 of an equation, each made from its number alone.

    Parameters
    ----------
    equation : AllenCahn
        What is solved.
    n : int
        Nodes of a side.
    seed : int
        Other seeds give independent samples.
    dtype : torch.dtype
        Of the tensors.
    device : torch.device or str
        Where they are.
    """

    equation: AllenCahn
    n: int
    seed: int = 0
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    _kept: OrderedDict[Key, Tensor] = field(default_factory=OrderedDict, repr=False)

    def inputs(self, stream: Stream, number: int) -> tuple[Floats, Floats]:
        """Return the state u_0 and the diffusivity kappa of a sample, each of shape (n, n).

        Parameters
        ----------
        stream : {"training", "validation"}
            Streams have no sample in common.
        number : int
            Of the sample, from 0.
        """
        generator = np.random.default_rng((self.seed, _STREAMS.index(stream), number))
        fields = [smooth_field(generator, self.n, self.equation.spacing, length) for length in _LENGTH]
        u, kappa = np.clip(_SIZE[0] * fields[0], -BOUND, BOUND), np.exp(_SIZE[1] * fields[1])
        return u, np.minimum(kappa, LARGEST)

    def fields(self, stream: Stream, numbers: Iterable[int]) -> Tensor:
        """Return u_0, kappa - 1 and u(T) - u_0 of samples at all nodes, row by row, shape (b, 3, n^2).

        Parameters
        ----------
        stream : {"training", "validation"}
            Which one.
        numbers : iterable of int
            Of the samples.
        """
        wanted: list[Key] = [(stream, int(number)) for number in numbers]
        found = {key: self._kept[key] for key in wanted if key in self._kept}
        found |= self._made([key for key in dict.fromkeys(wanted) if key not in found])
        if not wanted:
            return torch.empty(0, 3, self.n**2, dtype=self.dtype, device=self.device)
        return torch.stack([found[key] for key in wanted])

    def _made(self, keys: list[Key]) -> dict[Key, Tensor]:
        """Make samples and keep the latest ones; their values do not depend on which are made together."""
        if not keys:
            return {}
        u, kappa = map(np.stack, zip(*(self.inputs(*key) for key in keys), strict=True))
        change = self.equation.advance(u, kappa) - u
        stacked = np.stack([u, kappa - 1, change], 1).reshape(len(keys), 3, -1)
        made = dict(zip(keys, torch.from_numpy(stacked).to(self.device, self.dtype), strict=True))
        self._kept.update(made)
        while len(self._kept) * 3 * self.n**2 > _KEPT:
            self._kept.popitem(last=False)
        return made
