"""A network in the laboratory: messages between processes of one machine take as long as on a slower network.

Results are those of the communicator inside. A sum or gathering is held back, after it has been done, by what it would
take. A halo arrives so long after this rank has posted its own: work that is done meanwhile hides it, as it would
there, but neighbours that post later are waited for only as long as they take here. The messages of `agree`, which
report failures, and those that agree on a halo, are not held back.
"""

from __future__ import annotations

import pickle
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from mldd.ranks.communicator import Communicator
from mldd.ranks.network import Interconnect

_SPIN = 2e-4  # seconds before the end of a pause in which nothing sleeps: a sleeper wakes up so late


def pause(seconds: float) -> None:
    """Wait as precisely as a clock allows.

    Parameters
    ----------
    seconds : float
        How long; nothing is waited for below zero.
    """
    end = time.perf_counter() + seconds
    if seconds > _SPIN:
        time.sleep(seconds - _SPIN)
    while time.perf_counter() < end:
        pass


@dataclass
class Booked:
    """What messages of this rank take on the network; work that hides an exchange does not make it shorter here.

    Attributes
    ----------
    collectives, exchanges : int
        How many there were.
    collective_seconds, exchange_seconds : float
        What they take.
    """

    collectives: int = 0
    exchanges: int = 0
    collective_seconds: float = 0.0
    exchange_seconds: float = 0.0


@dataclass(frozen=True)
class EmulatedCommunicator(Communicator):
    """The ranks of another communicator, with the network that is to be between them.

    Parameters
    ----------
    mpi, reports : None
        Not used.
    real : Communicator
        What carries the messages.
    network : Interconnect
        How long they take.
    now : callable
        Returns the seconds of a clock.
    pause : callable
        Waits for some seconds.
    booked : Booked
        Sums of what messages take.
    """

    real: Communicator = Communicator()  # noqa: RUF009 (frozen)
    network: Interconnect = Interconnect(0.0, float("inf"))  # noqa: RUF009 (frozen)
    now: Callable[[], float] = time.perf_counter
    pause: Callable[[float], None] = pause
    booked: Booked = field(default_factory=Booked)

    @property
    def rank(self) -> int:
        """Number of this rank."""
        return self.real.rank

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.real.ranks

    def _held(self, seconds: float) -> None:
        self.booked.collectives += 1
        self.booked.collective_seconds += seconds
        self.pause(seconds)

    def _sum(self, vector: Tensor) -> None:
        self.real._sum(vector)
        self._held(self.network.sum_seconds(vector.numel() * vector.element_size(), self.ranks))

    def _gather(self, mine: Tensor, out: Tensor, lengths: list[int]) -> None:
        self.real._gather(mine, out, lengths)
        self._held(self.network.gather_seconds(out.numel() * out.element_size(), self.ranks))

    def _exchange(self, out: list[Tensor], into: list[Tensor]) -> Any:
        begin, request = self.now(), self.real._exchange(out, into)
        sent = sum(t.numel() * t.element_size() for rank, t in enumerate(out) if rank != self.rank)
        seconds = self.network.scatter_seconds(sent, self.ranks)
        self.booked.collectives += 1
        self.booked.collective_seconds += seconds
        return HeldRequest(request, self, begin + seconds)

    def _gather_items(self, item: Any) -> list[Any]:
        found = self.real._gather_items(item)
        self._held(self.network.gather_seconds(sum(len(pickle.dumps(one)) for one in found), self.ranks))
        return found

    def _lowest(self, number: Tensor) -> Callable[[], bool]:
        return self.real._lowest(number)

    def _deal(self, counts: Tensor, rows: Tensor) -> tuple[Tensor, Tensor]:
        return self.real._deal(counts, rows)

    def _end_all(self, code: int) -> None:
        self.real._end_all(code)


@dataclass(frozen=True)
class HeldRequest:
    """Messages of all ranks to all that arrive after what they take on a network.

    Attributes
    ----------
    inner : object
        The request.
    comm : EmulatedCommunicator
        Has the clock.
    end : float
        When they arrive, at the earliest.
    """

    inner: Any
    comm: EmulatedCommunicator
    end: float

    def Test(self) -> bool:  # noqa: N802 (as MPI has it)
        """Return whether they have come."""
        return bool(self.inner.Test()) and self.comm.now() >= self.end

    def Wait(self) -> None:  # noqa: N802 (as MPI has it)
        """Wait until they have come."""
        self.inner.Wait()
        self.comm.pause(self.end - self.comm.now())


@dataclass(frozen=True)
class HeldBack:
    """Messages between neighbours that arrive after what they take on a network.

    Attributes
    ----------
    inner : Messenger
        What carries them.
    comm : EmulatedCommunicator
        Knows the network.
    readers, owners : tuple of (int, slice)
        Neighbours, with their parts of the packed rows.
    """

    inner: Any
    comm: EmulatedCommunicator
    readers: tuple[tuple[int, slice], ...]
    owners: tuple[tuple[int, slice], ...]

    def start(self, send: Tensor, receive: Tensor, *, back: bool) -> Any:
        """Post the messages; a link carries both ways at once, one neighbour's after the other's."""
        begin = self.comm.now()
        arrived = self.inner.start(send, receive, back=back)
        messages = max(len(self.readers), len(self.owners))
        size = max(t.numel() * t.element_size() for t in (send, receive))
        seconds = self.comm.network.exchange_seconds(messages, size)
        self.comm.booked.exchanges += 1
        self.comm.booked.exchange_seconds += seconds

        def wait() -> None:
            arrived()
            self.comm.pause(begin + seconds - self.comm.now())

        return wait


def with_network(comm: Communicator, network: str) -> Communicator:
    """Return the communicator with a network between its ranks.

    Parameters
    ----------
    comm : Communicator
        Carries the messages.
    network : str
        As `Interconnect.of` reads it.

    Raises
    ------
    ValueError
        A single rank, or no such network.
    """
    made = Interconnect.of(network)
    if comm.ranks == 1:
        raise ValueError(
            f"--network delays messages between ranks, got one rank; start with mpiexec -n 2, or leave {network} out"
        )
    return EmulatedCommunicator(real=comm, network=made)
