"""What a state says of itself: which of its tensors are the same on all ranks, finite, or never fall; and their bits.

A field of a state declares it by its metadata, ``field(metadata=FINITE | RISING)``, and a record whose fields belong
together has a method ``fault()``. Checks read these declarations and know no solver.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mldd.loop import PER_SUBDOMAIN, SCRATCH

# Metadata of fields of states, to be joined by ``|`` with those of `mldd.loop.packing`; for what is below a field of
# PER_SUBDOMAIN, neither holds.
REPLICATED = {"replicated": True}  # the same bits on all ranks
RISING = {"rising": True}  # no entry is lower than after an earlier step
_PRIME = 2**53 - 111  # of a checksum: a float64 holds it exactly, so that it travels in a sum of numbers


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
    said : mapping of str to bool
        What its field declares.
    """

    where: str
    tensor: Tensor
    said: Mapping[str, bool]

    def says(self, what: Mapping[str, bool]) -> bool:
        """Return whether something is declared that holds here.

        Parameters
        ----------
        what : mapping of str to bool
            FINITE, REPLICATED, RISING.
        """
        is_own = PER_SUBDOMAIN.keys() <= self.said.keys()  # a part may diverge, whose correction is then rejected
        return what.keys() <= self.said.keys() and not is_own


@cache
def _fields(kind: type) -> tuple[bool, tuple[tuple[str, Mapping[str, bool]], ...]]:
    """Return whether a record can be asked, and name and metadata of its fields that are no scratch."""
    entries = tuple((f.name, f.metadata) for f in fields(kind) if not SCRATCH.keys() <= f.metadata.keys())
    return issubclass(kind, Checked), entries


_NOTHING: Mapping[str, bool] = {}


def leaves(value: Any, where: str = "state", said: Mapping[str, bool] = _NOTHING) -> Iterator[Leaf | Checked]:
    """Yield the tensors of a state that matter, with what holds of them, and the records that can be asked.

    Parameters
    ----------
    value : object
        A state or a part of one.
    where : str
        Its name.
    said : mapping of str to bool
        What is declared of it.
    """
    if isinstance(value, Tensor):
        if value.numel():
            yield Leaf(where, value.detach(), said)
    elif is_dataclass(value) and not isinstance(value, type):
        is_checked, entries = _fields(type(value))
        if is_checked and isinstance(value, Checked):
            yield value
        inherited = PER_SUBDOMAIN if PER_SUBDOMAIN.keys() <= said.keys() else _NOTHING
        for name, own in entries:
            below = getattr(value, name)
            if below is not None and type(below) not in (int, float, bool, str):
                yield from leaves(below, f"{where}.{name}", {**own, **inherited} if inherited else own)
    elif isinstance(value, list | tuple | deque):
        for k, item in enumerate(value):
            yield from leaves(item, f"{where}[{k}]", said)
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from leaves(item, f"{where}[{key!r}]", said)
    elif hasattr(value, "state_dict"):
        yield from leaves(value.state_dict(), where, said)


def parts_of(state: Any) -> tuple[list[Leaf], list[Checked]]:
    """Return the tensors of a state, and its records that can be asked.

    Parameters
    ----------
    state : State
        Of a solver.
    """
    parts = list(leaves(state))
    return [p for p in parts if isinstance(p, Leaf)], [p for p in parts if not isinstance(p, Leaf)]


def tensors_of(x: Tensor, state: Any) -> list[Tensor]:
    """Return the iterate and the tensors of a state.

    Parameters
    ----------
    x : Tensor, shape (n,)
        The iterate.
    state : State
        Of a solver.
    """
    return [x, *(leaf.tensor for leaf in parts_of(state)[0])]


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
        if leaf.says(RISING):
            old = before.get(leaf.where)
            if old is not None and old.shape == leaf.tensor.shape and not bool((leaf.tensor >= old).all()):
                yield leaf.where
