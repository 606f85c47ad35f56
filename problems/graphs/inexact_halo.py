"""Halos that trade exactness for communication: rows of earlier steps, some of the rows, or rows of fewer bits.

Each is made of the exact halo and gives, for an outer step, an exchange to be used in its place. What it remembers lies
in a record of its own; without memory the exchange is a function of the step alone, and the same on all ranks.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from mldd.problems.nets import Dropout
from mldd.ranks import Communicator, Exchange, Halo, Pending, differentiable

_ROWS = 2**36  # more than a rank has rows: numbers of rows of different ranks do not meet
_LEVELS = 255  # steps between the least and the largest entry of a row in eight bits
_NOISE = 7  # stream of random numbers, which dropout draws for smaller numbers only: those of entries of states


class Inexact(Protocol):
    """What takes the place of a halo."""

    def at(self, step: int) -> Exchange:
        """Return the exchange of an outer step.

        Parameters
        ----------
        step : int
            Number of the outer step.
        """
        ...


@dataclass(frozen=True, eq=False)
class _Around:
    """What all share with the halo that they stand for.

    Parameters
    ----------
    halo : Halo
    """

    halo: Halo

    @property
    def comm(self) -> Communicator:
        """The ranks."""
        return self.halo.comm

    @property
    def own(self) -> int:
        """Number of own rows."""
        return self.halo.own

    @property
    def size(self) -> int:
        """Number of rows of the halo."""
        return self.halo.size

    @property
    def bytes(self) -> int:
        """Bytes that the halo holds."""
        return self.halo.bytes

    def exchange(self: Any, rows: Tensor) -> Tensor:
        """Return the rows of the halo, a new tensor; its derivative is what goes back."""
        return differentiable(self, rows)


# ------------------------------------------------------------------------------------------------ earlier steps


@dataclass
class Lane:
    """Rows on their way in one direction.

    Attributes
    ----------
    posted : (int, Pending) or None
        The step of the message that is under way, and the message.
    arrived : list of (int, Tensor)
        What has arrived, with its step, oldest first.
    """

    posted: tuple[int, Pending] | None = None
    arrived: list[tuple[int, Tensor]] = field(default_factory=list)

    def finish(self, receive: Callable[[Pending], Tensor], smoothing: float) -> None:
        """Wait for the message; another one of the same step takes the place of the first.

        Parameters
        ----------
        receive : Callable[[Pending], Tensor]
            Waits for a message and returns its rows.
        smoothing : float
            Weight of what arrived before, 0 for none.
        """
        if self.posted is None:
            return
        (step, pending), self.posted = self.posted, None
        rows = receive(pending).clone()
        if self.arrived and self.arrived[-1][0] == step:
            self.arrived.pop()
        if self.arrived and smoothing:
            rows.lerp_(self.arrived[-1][1], smoothing)
        self.arrived.append((step, rows))


@dataclass
class HaloLanes:
    """What a halo remembers from step to step, by direction and kind of rows.

    Parameters
    ----------
    lanes : dict[Any, Lane]
        Rows under way, by direction and kind.
    """

    lanes: dict[Any, Lane] = field(default_factory=dict)

    def lane(self, way: str, rows: Tensor) -> Lane:
        """Return the lane of such rows.

        Parameters
        ----------
        way : str
            ``forward`` or ``back``.
        rows : Tensor, shape (n, ...)
            Rows of the kind that is asked for.
        """
        return self.lanes.setdefault((way, rows.shape[1:], rows.dtype), Lane())


def _drain(lanes: dict[Any, Lane]) -> None:
    """Take in what is still under way: MPI must not end before."""
    for lane in lanes.values():
        lane.finish(Pending.arrived, 0.0)


@dataclass(frozen=True, eq=False)
class StaleHalo(_Around):
    """Rows, and gradients, of `lag` outer steps ago: messages have as long to travel and nobody waits for them.

    Until there are such old rows the oldest are taken, at first those of the step itself.

    Parameters
    ----------
    halo : Halo
        For it alone (`Halo.apart`): its messages are under way while others are exchanged.
    lag : int
        0 is exact.
    smoothing : float
        What arrives is averaged, ``s old + (1 - s) new``, in [0, 1).
    memory : HaloLanes
        What is kept from step to step.
    step : int
        Number of the outer step.

    References
    ----------
    Wan et al., arXiv:2203.10428 (PipeGCN: `lag` 1, with smoothing of features and gradients).
    """

    lag: int = 1
    smoothing: float = 0.0
    memory: HaloLanes = field(default_factory=HaloLanes)
    step: int = 0

    def __post_init__(self) -> None:
        """See to it that the last messages are received."""
        if self.step == 0 and not self.memory.lanes:
            weakref.finalize(self.memory, _drain, self.memory.lanes)

    def at(self, step: int) -> Exchange:
        """Return the exchange of an outer step."""
        return self.halo if self.lag == 0 else replace(self, step=step)

    def begin(self, rows: Tensor) -> Lane:
        """Send the own rows for later steps."""
        return self._post(self.memory.lane("out", rows), self.halo.begin, rows)

    def end(self, pending: Lane) -> Tensor:
        """Return the rows of an earlier step."""
        return self._old(pending)

    def begin_back(self, rows: Tensor) -> Lane:
        """Send gradients for later steps."""
        return self._post(self.memory.lane("back", rows), self.halo.begin_back, rows)

    def end_back(self, pending: Lane, into: Tensor) -> Tensor:
        """Add gradients of an earlier step."""
        return self.halo.add(self._old(pending), into)

    def settle(self) -> None:
        """Wait for the messages that are under way; the steps after it find what they would find without."""
        for lane in self.memory.lanes.values():
            lane.finish(self.halo.end, self.smoothing)

    def _post(self, lane: Lane, begin: Callable[[Tensor], Pending], rows: Tensor) -> Lane:
        lane.finish(self.halo.end, self.smoothing)
        old = [k for k, (step, _) in enumerate(lane.arrived) if step <= self.step - self.lag]
        del lane.arrived[: old[-1] if old else 0]
        lane.posted = self.step, begin(rows)
        return lane

    def _old(self, lane: Lane) -> Tensor:
        if not lane.arrived or lane.arrived[0][0] >= self.step:
            lane.finish(self.halo.end, self.smoothing)
        return lane.arrived[0][1]


@dataclass(frozen=True, eq=False)
class HistoricalHalo(_Around):
    """Rows that are fetched every `every` outer steps and kept in between; no gradients are sent back.

    Own rows do not know what they change elsewhere: even with fresh rows the gradient is not exact.

    Parameters
    ----------
    halo : Halo
    every : int
        Outer steps between two exchanges.
    memory : dict
        Rows of the last exchange, by kind.
    step : int
        Number of the outer step.

    References
    ----------
    Fey et al., arXiv:2106.05609 (GAS: historical embeddings of nodes outside of the batch, here of the rank).
    """

    every: int = 1
    memory: dict[Any, Tensor] = field(default_factory=dict)
    step: int = 0

    def at(self, step: int) -> Exchange:
        """Return the exchange of an outer step."""
        return replace(self, step=step)

    def begin(self, rows: Tensor) -> Any:
        """Fetch rows if it is time."""
        key = rows.shape[1:], rows.dtype
        due = self.step % self.every == 0 or key not in self.memory
        return key, self.halo.begin(rows) if due else None

    def end(self, pending: Any) -> Tensor:
        """Return the rows of the last exchange."""
        key, message = pending
        if message is not None:
            self.memory[key] = self.halo.end(message).clone()
        return self.memory[key]

    def begin_back(self, rows: Tensor) -> None:
        """Send nothing."""

    def end_back(self, pending: None, into: Tensor) -> Tensor:
        """Add nothing."""
        return into


# ------------------------------------------------------------------------------------------------ some of the rows


@dataclass(frozen=True, eq=False)
class SampledHalo(_Around):
    """Each row of the halo with probability `keep`, divided by it, another sample in every outer step; zero otherwise.

    Owner and reader draw the same numbers, so nothing is agreed upon; a row is kept in all layers or in none.

    Parameters
    ----------
    halo : Halo
    keep : float
        In (0, 1]; 1 is exact.
    seed : int
        Of the choice of rows.

    References
    ----------
    Wan et al., arXiv:2203.10983 (BNS-GCN: random sampling of boundary nodes).
    """

    keep: float = 1.0
    seed: int = 0

    def at(self, step: int) -> Exchange:
        """Return the exchange of an outer step."""
        if self.keep == 1 or self.comm.ranks == 1:
            return self.halo
        halo, rank, ranks = self.halo, self.comm.rank, self.comm.ranks
        drawn = Dropout(1 - self.keep, self.seed, step)
        read = drawn.scale((rank * ranks + halo.ranks) * _ROWS + halo.indices, _NOISE, torch.float64) > 0
        sent = drawn.scale((halo.readers * ranks + rank) * _ROWS + halo.index, _NOISE, torch.float64) > 0
        return _Sample(halo, halo.part(read, sent), read.nonzero().flatten(), 1 / self.keep)


@dataclass(frozen=True, eq=False)
class _Sample(_Around):
    """The exchange of the rows `kept`, shape (k,), times `factor`: `part` is their halo."""

    part: Halo
    kept: Tensor
    factor: float

    def begin(self, rows: Tensor) -> Pending:
        """Start fetching the rows that are kept."""
        return self.part.begin(rows)

    def end(self, pending: Pending) -> Tensor:
        """Return them among zeros."""
        got = self.part.end(pending)
        return got.new_zeros((self.size, *got.shape[1:])).index_copy_(0, self.kept.to(got.device), got * self.factor)

    def begin_back(self, rows: Tensor) -> Pending:
        """Start sending the gradients of the rows that are kept."""
        return self.part.begin_back(rows.index_select(0, self.kept.to(rows.device)) * self.factor)

    def end_back(self, pending: Pending, into: Tensor) -> Tensor:
        """Add what others sent."""
        return self.part.end_back(pending, into)


# ------------------------------------------------------------------------------------------------ fewer bits


@dataclass(frozen=True, eq=False)
class QuantisedHalo(_Around):
    """Rows and gradients in eight bits, each row between its least and its largest entry, or in bfloat16.

    Rounding is stochastic, so that the rows are right in the mean.

    Parameters
    ----------
    halo : Halo
    bits : int
        8, or 16 for bfloat16.
    seed : int
        Of the rounding.
    stream : int
        Halos with different numbers draw different random numbers.
    step : int
        Number of the outer step.

    References
    ----------
    Wan et al., arXiv:2306.01381 (AdaQP: stochastic integer quantisation of messages; here all have the same width).
    """

    bits: int = 8
    seed: int = 0
    stream: int = 0
    step: int = 0

    def at(self, step: int) -> Exchange:
        """Return the exchange of an outer step."""
        return replace(self, step=step)

    def begin(self, rows: Tensor) -> Any:
        """Start fetching the halo."""
        packed = rows.detach().index_select(0, self.halo.index.to(rows.device))
        return self.halo.send(self._coded(packed, 0)), rows

    def end(self, pending: Any) -> Tensor:
        """Return the rounded rows."""
        return self._decoded(self.halo.end(pending[0]), pending[1])

    def begin_back(self, rows: Tensor) -> Any:
        """Start sending gradients."""
        return self.halo.begin_back(self._coded(rows.detach(), 1)), rows

    def end_back(self, pending: Any, into: Tensor) -> Tensor:
        """Add the rounded gradients."""
        return self.halo.add(self._decoded(self.halo.end(pending[0]), pending[1]), into)

    def _coded(self, rows: Tensor, way: int) -> Tensor:
        stream = 2 * (self.stream * self.comm.ranks + self.comm.rank) + way
        random = torch.Generator(rows.device).manual_seed(Dropout(0.0, self.seed, self.step).key(stream) // 2)
        return coded(rows.flatten(1).float(), self.bits, random)

    def _decoded(self, code: Tensor, like: Tensor) -> Tensor:
        return decoded(code).to(like.dtype).view(len(code), *like.shape[1:])


def coded(rows: Tensor, bits: int, random: torch.Generator) -> Tensor:
    """Round rows, shape (k, w), float32, at random: to bfloat16, or to bytes with least entry and step behind them.

    Parameters
    ----------
    rows : Tensor, shape (k, w), float32
        What is rounded.
    bits : int
        16 for bfloat16, 8 for bytes.
    random : torch.Generator
        Draws the rounding.

    Returns
    -------
    Tensor, shape (k, w) in bfloat16, or (k, w + 8) in bytes
        The rounded rows.
    """
    if bits == 16:
        word = rows.view(torch.int32)
        noise = torch.randint(0, 2**16, rows.shape, generator=random, device=rows.device, dtype=torch.int32)
        return ((word + noise) & -(2**16)).view(torch.float32).to(torch.bfloat16)
    if rows.numel() == 0:
        return rows.new_empty((len(rows), rows.shape[1] + 8), dtype=torch.uint8)
    least, largest = rows.aminmax(dim=1, keepdim=True)
    step = (largest - least) / _LEVELS
    levels = torch.where(step > 0, (rows - least) / step, 0.0)
    levels = (levels + torch.rand(rows.shape, generator=random, device=rows.device)).floor_().clamp_(0, _LEVELS)
    scale = torch.cat([least, step], 1).view(torch.uint8)
    return torch.cat([levels.to(torch.uint8), scale], 1)


def decoded(code: Tensor) -> Tensor:
    """Return the rows, float32, that `coded` has rounded.

    Parameters
    ----------
    code : Tensor, as `coded` returns it
        Rounded rows.
    """
    if code.dtype == torch.bfloat16:
        return code.float()
    scale = code[:, -8:].clone(memory_format=torch.contiguous_format)  # at the start of its memory: words are aligned
    least, step = scale.view(torch.float32).unbind(1)
    return torch.addcmul(least[:, None], code[:, :-8].float(), step[:, None])
