"""The stream of samples of a solution operator: sample k of a seed is made on demand, the same for whoever asks."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from mldd.problems.operators.local_graphs import Floats, NodeDomain

Stream = Literal["training", "validation"]
Key = tuple[Stream, int]
_STREAMS = ("training", "validation")
_KEPT = 2**26  # numbers that are kept in memory


class Evolution(Protocol):
    """An equation on a domain: random states, and where it takes them."""

    @property
    def domain(self) -> NodeDomain:
        """The n nodes."""
        ...

    @property
    def inputs(self) -> int:
        """Fields that a network reads."""
        ...

    @property
    def label(self) -> str:
        """What the state is."""
        ...

    @property
    def interval(self) -> float:
        """The time that it goes ahead."""
        ...

    def draw(self, generator: np.random.Generator) -> tuple[Floats, Floats]:
        """Return a random state and a setting that stays, each of shape (n,).

        Parameters
        ----------
        generator : numpy.random.Generator
            What is random.
        """
        ...

    def advance(self, states: Floats, settings: Floats) -> Floats:
        """Return the states one interval later, shape (b, n).

        Parameters
        ----------
        states, settings : ndarray, shape (b, n)
            Of several samples.
        """
        ...

    def features(self, states: Floats, settings: Floats) -> Floats:
        """Return what a network reads, shape (b, inputs, n).

        Parameters
        ----------
        states, settings : ndarray, shape (b, n)
            Of several samples.
        """
        ...


@dataclass(frozen=True, eq=False)
class SampleStream:
    """Samples of an evolution over one interval, each made from its number alone.

    Parameters
    ----------
    evolution : Evolution
        What is solved.
    seed : int
        Other seeds give independent samples.
    dtype : torch.dtype
        Of the tensors.
    device : torch.device or str
        Where they are.
    """

    evolution: Evolution
    seed: int = 0
    dtype: torch.dtype = torch.float64
    device: torch.device | str = "cpu"
    _kept: OrderedDict[Key, Tensor] = field(default_factory=OrderedDict, repr=False)

    def states(self, stream: Stream, numbers: Iterable[int]) -> tuple[Floats, Floats]:
        """Return states at the start, and settings, of samples, each of shape (b, n).

        Parameters
        ----------
        stream : {"training", "validation"}
            Streams have no sample in common.
        numbers : iterable of int
            Of the samples, from 0.
        """
        keys = [(self.seed, _STREAMS.index(stream), int(number)) for number in numbers]
        found = [self.evolution.draw(np.random.default_rng(key)) for key in keys]
        return np.stack([state for state, _ in found]), np.stack([setting for _, setting in found])

    def fields(self, stream: Stream, numbers: Iterable[int]) -> Tensor:
        """Return what a network reads of samples, and last the change over an interval, shape (b, inputs + 1, n).

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
            shape = 0, self.evolution.inputs + 1, self.evolution.domain.nodes
            return torch.empty(shape, dtype=self.dtype, device=self.device)
        return torch.stack([found[key] for key in wanted])

    def _made(self, keys: list[Key]) -> dict[Key, Tensor]:
        """Make samples of one stream and keep the latest ones; their values do not depend on what is made together."""
        if not keys:
            return {}
        states, settings = self.states(keys[0][0], [number for _, number in keys])
        change = self.evolution.advance(states, settings) - states
        both = np.concatenate([self.evolution.features(states, settings), change[:, None]], 1)
        made = dict(zip(keys, torch.from_numpy(both).to(self.device, self.dtype), strict=True))
        self._kept.update(made)
        while len(self._kept) * both[0].size > _KEPT:
            self._kept.popitem(last=False)
        return made
