"""What a run has cost: counted where it arises (objectives, communicator), never by a solver.

``with counting() as cost:`` opens a ledger; every objective evaluated and every vector summed over ranks inside the
block adds to it, however deep in a solver tree it happens. Outside a block, and inside ``with uncounted():``, nothing
is counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Cost:
    """Ledger of one run.

    Attributes
    ----------
    gradients : int
        Gradients of the fine objective (the one that is minimised), whatever the number of ranks.
    values : int
        Values of the fine objective, those that come with a gradient not counted.
    work : float
        Work units that are the same on every rank: one is the cost of a fine gradient.
    local_work : float
        Work units of the subdomains of this rank; the work of a run is ``work`` plus their sum over ranks.
    synchronisations : int
        Collectives on vectors. One is counted on a single rank too, so that runs on any number of ranks compare.
    bytes : int
        Bytes that this rank sent in them (0 on a single rank).
    halo_rows, halo_bytes : int
        Rows of halos, of whatever width, that this rank sent to its neighbours or their gradients back to the owners,
        and their bytes.
    exchanges : int
        Exchanges with neighbours in which they were sent; they are no synchronisations.
    """

    gradients: int = 0
    values: int = 0
    work: float = 0.0
    local_work: float = 0.0
    synchronisations: int = 0
    bytes: int = 0
    halo_rows: int = 0
    halo_bytes: int = 0
    exchanges: int = 0


_ledger: ContextVar[Cost | None] = ContextVar("mldd_cost", default=None)


@contextmanager
def counting(cost: Cost | None = None) -> Iterator[Cost]:
    """Count into `cost` (a new ledger by default) inside the block.

    Examples
    --------
    >>> with counting() as cost:
    ...     count(gradients=1, work=1.0)
    >>> cost.gradients
    1
    """
    cost = Cost() if cost is None else cost
    token = _ledger.set(cost)
    try:
        yield cost
    finally:
        _ledger.reset(token)


@contextmanager
def uncounted() -> Iterator[None]:
    """Evaluate for the user's eyes: nothing inside the block is counted."""
    token = _ledger.set(None)
    try:
        yield
    finally:
        _ledger.reset(token)


def count(
    *,
    gradients: int = 0,
    values: int = 0,
    work: float = 0.0,
    local_work: float = 0.0,
    synchronisations: int = 0,
    sent: int = 0,
    halo_rows: int = 0,
    halo_bytes: int = 0,
    exchanges: int = 0,
) -> None:
    """Add to the open ledger, if there is one; `sent` is in bytes."""
    cost = _ledger.get()
    if cost is None:
        return
    cost.gradients += gradients
    cost.values += values
    cost.work += work
    cost.local_work += local_work
    cost.synchronisations += synchronisations
    cost.bytes += sent
    cost.halo_rows += halo_rows
    cost.halo_bytes += halo_bytes
    cost.exchanges += exchanges


@contextmanager
def on_this_rank() -> Iterator[None]:
    """Count what is evaluated inside the block as work of this rank's subdomains, not as fine gradients."""
    outer = _ledger.get()
    with counting() as inner:
        yield
    if outer is not None:
        outer.local_work += inner.work + inner.local_work
        outer.halo_rows += inner.halo_rows
        outer.halo_bytes += inner.halo_bytes
        outer.exchanges += inner.exchanges


@dataclass(frozen=True)
class Price:
    """What the evaluations of one objective cost, in fine gradients.

    Parameters
    ----------
    gradient : float
        Cost of one gradient: 1 on the fine level, the ratio of unknowns or nodes on coarser ones.
    fine : bool
        Whether its gradients are the fine gradients that are counted by number.
    value, product : float
        Cost of a value and of a Hessian product in gradients of the same objective.
    local : bool
        Count the work as that of this rank's subdomains.
    """

    gradient: float = 1.0
    fine: bool = True
    value: float = 1.0 / 3.0
    product: float = 2.0
    local: bool = False

    def _work(self, units: float) -> dict[str, float]:
        return {"local_work" if self.local else "work": units * self.gradient}

    def of_gradient(self, times: int = 1) -> None:
        """Count `times` gradients (with or without the value that comes with them)."""
        count(gradients=times if self.fine else 0, **self._work(times))  # type: ignore[arg-type]

    def of_value(self, times: int = 1) -> None:
        """Count `times` values on their own."""
        count(values=times if self.fine else 0, **self._work(times * self.value))  # type: ignore[arg-type]

    def of_product(self, times: int = 1) -> None:
        """Count `times` Hessian products."""
        count(**self._work(times * self.product))  # type: ignore[arg-type]
