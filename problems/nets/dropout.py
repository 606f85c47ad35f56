"""Dropout that does not depend on how nodes are ordered, batched and shared out to ranks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_WORD = 2**64


def _signed(word: int) -> int:
    """Return the 64-bit word as torch's int64 holds it."""
    word %= _WORD
    return word - _WORD if word >= _WORD // 2 else word


def _mixed(word: int) -> int:
    """Mix a word thoroughly (the finaliser of SplitMix64)."""
    word %= _WORD
    word = (word ^ (word >> 30)) * _FIRST % _WORD
    word = (word ^ (word >> 27)) * _SECOND % _WORD
    return word ^ (word >> 31)


@dataclass(frozen=True)
class Dropout:
    """Dropout as a deterministic function of sample, layer, node and column.

    The same entries are dropped on any number of ranks, for any order and batching of the nodes.

    Parameters
    ----------
    probability : float
        Of an entry to be set to zero, in [0, 1); the others are divided by ``1 - probability``.
    seed, step : int
        Sample; other samples are independent.

    References
    ----------
    Steele, Lea and Flood, doi:10.1145/2660193.2660195 (SplitMix64, here with the counter as its state); Salmon et al.,
    doi:10.1145/2063384.2063405 (counter-based random numbers).
    """

    probability: float
    seed: int = 0
    step: int = 0

    def key(self, layer: int) -> int:
        """Return the offset of the stream of `layer`.

        Parameters
        ----------
        layer : int
            Number of the layer.
        """
        return _mixed(_mixed(_mixed(self.seed + 1) + self.step) + layer)

    def scale(self, ids: Tensor, layer: int, dtype: torch.dtype) -> Tensor:
        """Return the factor of every entry, 0 or ``1 / (1 - probability)``.

        Parameters
        ----------
        ids : Tensor, int64
            Number of every entry, ``node * width + column`` with the global number of the node.
        layer : int
            Number of the layer that the entries enter.
        dtype : dtype
            Of the factors.
        """
        word = ids * _signed(_GOLDEN)
        word += _signed(self.key(layer))
        for shift, factor in ((30, _FIRST), (27, _SECOND)):
            word ^= (word >> shift) & (2 ** (64 - shift) - 1)  # torch shifts in the sign
            word *= _signed(factor)
        kept = (
            word >= round(self.probability * _WORD) - _WORD // 2
        )  # by the top bits, the last xor changes none of them
        return kept.to(dtype).mul_(1.0 / (1.0 - self.probability))
