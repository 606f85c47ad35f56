"""Sums over the parts of a decomposition whose last digits do not depend on how many ranks hold the parts.

The parts are the leaves of a binary tree. Every rank adds up those subtrees that it holds as a whole; what is left to
add is sent to the rank that owns these columns of the result, which adds in the order of the tree, and all ranks gather
the columns. With one part per rank the messages are those of a usual sum: a scattered reduction and a gathering.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mldd.algebra import count, waiting
from mldd.ranks.communicator import Communicator

Block = tuple[int, int]  # parts start .. stop - 1, all leaves of one subtree


def blocks_of(held: range, parts: int) -> list[Block]:
    """Return the largest subtrees whose leaves all lie in a range of parts.

    Parameters
    ----------
    held : range
        Consecutive parts.
    parts : int
        All leaves of the tree.

    Examples
    --------
    >>> blocks_of(range(1, 6), 6)
    [(1, 2), (2, 4), (4, 6)]
    """
    found, start = [], held.start
    while start < held.stop:
        size = 1
        while start % (2 * size) == 0 and min(start + 2 * size, parts) <= held.stop and start + size < parts:
            size *= 2
        found.append((start, min(start + size, parts)))
        start += size
    return found


def _size(parts: int) -> int:
    """Return the least power of two that is not below `parts`."""
    return 1 << max(parts - 1, 0).bit_length()


def _added(known: Mapping[Block, Tensor], start: int, size: int, parts: int) -> Tensor:
    """Return the sum over a subtree: its left half plus its right half."""
    block = start, min(start + size, parts)
    if block in known:
        return known[block]
    half = size // 2
    left = _added(known, start, half, parts)
    return left if start + half >= parts else left + _added(known, start + half, half, parts)


@dataclass(frozen=True)
class PartSum:
    """A sum over parts that has begun; `result` waits for its end, and what is done before overlaps with messages.

    Parameters
    ----------
    comm : Communicator
        The ranks that share the parts.
    parts : int
        Parts on all ranks.
    like : Tensor, shape (n,)
        Of the kind of the result, and on its device.
    exchange : tuple or None
        What waits for the exchange, and what is being sent; None on one rank.
    arrived : dict of Tensor
        Sums over subtrees: of all columns on one rank, else of the columns of this rank, once the exchange is over.
    """

    comm: Communicator
    parts: int
    like: Tensor
    exchange: tuple[Any, list[Tensor]] | None
    arrived: Mapping[Block, Tensor]

    def advance(self) -> None:
        """Let the messages go on: some libraries only work while they are called."""
        if self.exchange is not None:
            self.exchange[0].Test()

    def result(self) -> Tensor:
        """Return the sum over all parts, shape (n,), the same on all ranks."""
        if self.exchange is None:
            return _added(self.arrived, 0, _size(self.parts), self.parts)
        columns = self.comm.shares(len(self.like))
        with waiting():
            self.exchange[0].Wait()
            mine = _added(self.arrived, 0, _size(self.parts), self.parts).contiguous()
            out = mine.new_empty(len(self.like))
            self.comm._gather(mine, out, [len(span) for span in columns])
        return out.to(self.like.device)


def begin_part_sum(rows: Tensor, held: Sequence[range], comm: Communicator) -> PartSum:
    """Begin the sum of one vector per part, in an order that does not depend on the number of ranks.

    It counts as one synchronisation.

    Parameters
    ----------
    rows : Tensor, shape (p, n)
        The vectors of the parts of this rank; they may be written to afterwards.
    held : sequence of range
        The parts that every rank holds, one rank's behind the other's; some may hold none.
    comm : Communicator
        The ranks that share the parts.

    Returns
    -------
    PartSum
        What waits for the result.
    """
    mine, parts = held[comm.rank], held[-1].stop
    own = {(k, k + 1): row for k, row in zip(mine, rows, strict=True)}
    sums = [_added(own, a, _size(b - a), parts) for a, b in blocks_of(mine, parts)]
    sent = 0 if comm.ranks == 1 else len(sums) * rows.shape[1] * rows.element_size()
    count(synchronisations=1, sent=sent)
    like = rows.new_empty(rows.shape[1])
    if comm.ranks == 1:
        return PartSum(comm, parts, like, None, {(0, parts): sums[0].clone() if parts == 1 else sums[0]})
    return _exchanged(sums, held, like, comm)


def _exchanged(sums: list[Tensor], held: Sequence[range], like: Tensor, comm: Communicator) -> PartSum:
    """Begin to give every rank its columns of the sums over all subtrees."""
    parts, columns = held[-1].stop, comm.shares(len(like))
    staged = torch.stack(sums).detach().cpu() if sums else like.new_empty(0, len(like), device="cpu")
    there = [blocks_of(of_rank, parts) for of_rank in held]
    into = [staged.new_empty(len(blocks), len(columns[comm.rank])) for blocks in there]
    out = [staged[:, span.start : span.stop].contiguous() for span in columns]
    request = comm._exchange(out, into)
    arrived: dict[Block, Tensor] = {}
    for blocks, piece in zip(there, into, strict=True):
        arrived |= zip(blocks, piece, strict=True)
    return PartSum(comm, parts, like, (request, out), arrived)


def part_sum(rows: Tensor, parts: int, comm: Communicator) -> Tensor:
    """Return the sum over all parts of one vector each, shape (n,): the same digits on any number of ranks.

    Parameters
    ----------
    rows : Tensor, shape (p, n)
        The vectors of the parts of this rank, those of its ``share(parts)``.
    parts : int
        Parts on all ranks.
    comm : Communicator
        The ranks that share the parts.
    """
    return begin_part_sum(rows, comm.shares(parts), comm).result()
