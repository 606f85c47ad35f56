"""The few numbers that ranks sum once per step: what was spent, what rank 0 says for all, and who asks for an end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import NamedTuple

from mldd.algebra import Ledger
from mldd.loop.monitor import Cost
from mldd.loop.signals import Signals
from mldd.loop.status import Status
from mldd.ranks import Communicator

_REASONS = tuple(Status)


class Spoken(NamedTuple):
    """What rank 0 says for all, so that ranks whose clocks and last digits differ decide the same.

    Attributes
    ----------
    seconds : float
        On the clock, without what is done for the user's eyes.
    measure, value : float
        Of this step; the value is NaN where it was not evaluated.
    wall : float
        Seconds of wall time.
    evaluates, keeps, late : float
        1 where the next record gets a value, where a checkpoint is due after this step, and where the time limit is
        near; 0 otherwise.
    """

    seconds: float
    measure: float
    value: float
    wall: float
    evaluates: float
    keeps: float
    late: float


@dataclass(frozen=True)
class Totals:
    """The sums over ranks.

    Attributes
    ----------
    spent : tuple of float
        Bytes of collectives on vectors, rows of halos, and their bytes.
    spoken : Spoken
        What rank 0 says.
    signals : tuple of float
        Ranks that have had Ctrl-C, and ranks that have had TERM or USR1.
    reasons : tuple of float
        For each status, the ranks whose solver cannot go on because of it.
    works : tuple of float
        Work of every rank.
    """

    spent: tuple[float, ...]
    spoken: Spoken
    signals: tuple[float, ...]
    reasons: tuple[float, ...]
    works: tuple[float, ...]

    @property
    def reported(self) -> Status | None:
        """The first reason for which the solver of any rank cannot go on."""
        return next((reason for reason, times in zip(_REASONS, self.reasons, strict=True) if times), None)

    @property
    def ended(self) -> Status | None:
        """Why the run is ended from outside: by Ctrl-C, by another signal or by the time limit."""
        asked = (
            (self.signals[0], Status.interrupted),
            (self.signals[1], Status.terminated),
            (self.spoken.late, Status.time_limit),
        )
        return next((status for times, status in asked if times), None)

    def cost(self, ledger: Ledger) -> Cost:
        """Return what the ranks have spent together.

        Parameters
        ----------
        ledger : Ledger
            Of this rank, for what is the same on all of them.
        """
        sent, rows, row_bytes = self.spent
        return Cost(
            seconds=self.spoken.seconds,
            gradient_evaluations=ledger.gradients,
            work_units=max(self.works),
            work_total=sum(self.works),
            synchronisations=ledger.synchronisations,
            scalar_synchronisations=ledger.scalar_synchronisations,
            bytes_exchanged=int(sent),
            halo_rows=int(rows),
            halo_bytes=int(row_bytes),
            exchanges=ledger.exchanges,
        )


def summed(comm: Communicator, ledger: Ledger, spoken: Spoken, signals: Signals, status: Status | None) -> Totals:
    """Return the sums over ranks; one scalar synchronisation.

    Parameters
    ----------
    comm : Communicator
        The ranks.
    ledger : Ledger
        What this rank has spent.
    spoken : Spoken
        Of this rank; that of rank 0 holds.
    signals : Signals
        Those that this rank has had.
    status : Status or None
        Why the solver of this rank cannot go on.
    """
    own = (
        (float(ledger.bytes), float(ledger.halo_rows), float(ledger.halo_bytes)),
        spoken if comm.rank == 0 else (0.0,) * len(spoken),
        (float(signals.interrupted), float(signals.terminated)),
        tuple(float(status is reason) for reason in _REASONS),
        tuple(ledger.work if k == comm.rank else 0.0 for k in range(comm.ranks)),
    )
    sums = tuple(comm.sum_scalars([number for group in own for number in group]))
    ends = list(accumulate(map(len, own)))
    spent, said, caught, reasons, works = (sums[b - len(group) : b] for group, b in zip(own, ends, strict=True))
    return Totals(spent, Spoken(*said), caught, reasons, works)
