"""What a state says of itself: which of its tensors are the same on all ranks, finite, or never fall; and their bits.

A field of a state declares it by ``field(metadata=declared(Holds.FINITE | Holds.RISING))``, and a record whose fields
belong together has a method ``fault()``. Checks read these declarations and know no solver.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

_KEY = "holds"
_PRIME = 2**53 - 111  # of a checksum: a float64 holds it exactly, so that it travels in a sum of numbers


class Holds(enum.Flag):
    """What holds of the tensors in a field, between two steps of a run."""

    NOTHING = 0
    REPLICATED = enum.auto()  # the same bits on all ranks
    FINITE = enum.auto()
    RISING = enum.auto()  # no entry is lower than after an earlier step
    OWN = enum.auto()  # of this rank's subdomains: neither replicated nor rising, whatever is declared further down
    SCRATCH = enum.auto()  # what is in it does not matter


def declared(holds: Holds) -> Mapping[str, Any]:
    """Return the metadata of a field of which something holds.

    Parameters
    ----------
    holds : Holds
        What holds.
    """
    return {_KEY: holds}


@runtime_checkable
class Checked(Protocol):
    """A record whose fields belong together."""

    def fault(self) -> str:
        """Return what does not hold of the fields, in a few words; empty if all is well."""
        ...


@dataclass(frozen=True)
class Leaf:
    """A tensor of a state.

    Attributes
    ----------
    where : str
        Its place, ``state.pairs.steps``.
    tensor : Tensor
        The tensor itself.
    holds : Holds
        What its field declares.
    """

    where: str
    tensor: Tensor
    holds: Holds

    @property
    def is_replicated(self) -> bool:
        """Whether all ranks hold the same."""
        return Holds.REPLICATED in self.holds and Holds.OWN not in self.holds


@cache
def _fields(kind: type) -> tuple[bool, tuple[tuple[str, Holds], ...]]:
    """Return whether a record can be asked, and name and declaration of its fields."""
    return issubclass(kind, Checked), tuple((f.name, f.metadata.get(_KEY, Holds.NOTHING)) for f in fields(kind))


def leaves(value: Any, where: str = "state", holds: Holds = Holds.NOTHING) -> Iterator[Leaf | Checked]:
    """Yield the tensors of a state that matter, with what holds of them, and the records that can be asked.

    Parameters
    ----------
    value : object
        A state or a part of one.
    where : str
        Its name.
    holds : Holds
        What is declared of it.
    """
    if isinstance(value, Tensor):
        if value.numel() and Holds.SCRATCH not in holds:
            yield Leaf(where, value.detach(), holds)
    elif is_dataclass(value) and not isinstance(value, type):
        is_checked, entries = _fields(type(value))
        if is_checked:
            yield value
        for name, own in entries:
            below = getattr(value, name)
            if below is not None and type(below) not in (int, float, bool, str):
                yield from leaves(below, f"{where}.{name}", own | (holds & Holds.OWN))
    elif isinstance(value, list | tuple | deque):
        for k, item in enumerate(value):
            yield from leaves(item, f"{where}[{k}]", holds)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{where}[{key!r}]", holds)
    elif hasattr(value, "state_dict"):
        yield from leaves(value.state_dict(), where, holds)


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """Return the sum of the bit patterns as integers that wrap around: one pass, and any single bit changes it."""
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).contiguous().view(-1)
    if flat.dtype is torch.bool:
        flat = flat.view(torch.uint8)
    width = flat.element_size()
    if width == 4 and flat.numel() % 2 == 0 and flat.storage_offset() % 2 == 0:
        width = 8
    if width < 4:
        whole = {1: torch.uint8, 2: torch.int16}[width]
        return flat.view(whole).sum(dtype=torch.int64)
    return flat.view(torch.int32 if width == 4 else torch.int64).sum(dtype=torch.int32 if width == 4 else torch.int64)


def sums_of_bits(tensors: Iterable[Tensor]) -> list[int]:
    """Return a whole number per tensor that any single changed bit changes; it depends on no threads and no device.

    Parameters
    ----------
    tensors : iterable of Tensor
        Of any kind.

    Examples
    --------
    >>> x = torch.tensor([1.0, 2.0])
    >>> before = sums_of_bits([x])
    >>> x.view(torch.int32)[1] ^= 1
    >>> sums_of_bits([x]) == before
    False
    """
    sums = [_sum_of_bits(tensor).to(torch.int64) for tensor in tensors]
    here = [s for s in sums if s.device == sums[0].device]
    if len(here) == len(sums) > 0:  # one wait for the device
        return [int(number) for number in torch.stack(sums).tolist()]
    return [int(s) for s in sums]


def checksum(sums: Iterable[int]) -> int:
    """Return one number below 2^53 of the sums of tensors in their order: a float64 holds it.

    Parameters
    ----------
    sums : iterable of int
        Of `sums_of_bits`.
    """
    total = 1
    for number in sums:
        total = (total * 1_000_003 + number) % _PRIME
    return total


def is_finite(tensor: Tensor) -> bool:
    """Return whether all entries are finite: one pass where they are.

    Parameters
    ----------
    tensor : Tensor
        Of any shape.
    """
    return bool(torch.isfinite(tensor.sum())) or bool(torch.isfinite(tensor).all())


def fallen(now: Iterable[Leaf], before: Mapping[str, Tensor]) -> Iterator[str]:
    """Yield the places of tensors that must not fall and have an entry below an earlier one.

    Parameters
    ----------
    now : iterable of Leaf
        Of the state.
    before : mapping of str to Tensor
        Tensors after an earlier step, by place.
    """
    for leaf in now:
        if Holds.RISING in leaf.holds and Holds.OWN not in leaf.holds:
            old = before.get(leaf.where)
            if old is not None and old.shape == leaf.tensor.shape and not bool((leaf.tensor >= old).all()):
                yield leaf.where
