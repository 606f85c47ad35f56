"""What a run has cost: counted where it arises (objectives, communicator), never by a solver.

``with counting() as cost:`` opens a ledger; every objective evaluated and every vector summed over ranks inside the
block adds to it, however deep in a solver tree it happens. Outside a block, and inside ``with uncounted():``, nothing
is counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace


@dataclass
class Ledger:
    """What one rank has spent in a run.

    Attributes
    ----------
    gradients : int
        Gradients of the fine objective (the one that is minimised), whatever the number of ranks.
    values : int
        Values of the fine objective, those that come with a gradient not counted.
    work : float
        Work that this rank has done, in units of a fine gradient on a single process.
    synchronisations : int
        Collectives on vectors. One is counted on a single rank too, so that runs on any number of ranks compare.
    scalar_synchronisations : int
        Collectives on a few numbers: they cost a latency, and are counted on a single rank too.
    bytes : int
        Bytes that this rank sent in collectives on vectors (0 on a single rank).
    halo_rows, halo_bytes : int
        Rows of halos, of whatever width, that this rank sent to its neighbours or their gradients back to the owners,
        and their bytes.
    exchanges : int
        Exchanges with neighbours in which they were sent; they are no synchronisations.
    waited : float
        CPU seconds inside of messages: who waits for others asks all the time, which is no work.
    """

    gradients: int = 0
    values: int = 0
    work: float = 0.0
    synchronisations: int = 0
    scalar_synchronisations: int = 0
    bytes: int = 0
    halo_rows: int = 0
    halo_bytes: int = 0
    exchanges: int = 0
    waited: float = 0.0

    def add(self, other: Ledger) -> None:
        """Add what `other` has spent.

        Parameters
        ----------
        other : Ledger
            Of the same rank.
        """
        for entry in fields(self):
            setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))


_ledger: ContextVar[Ledger | None] = ContextVar("mldd_cost", default=None)
_look: ContextVar[Callable[[], None] | None] = ContextVar("mldd_look", default=None)


@contextmanager
def counting(cost: Ledger | None = None) -> Iterator[Ledger]:
    """Yield the ledger into which the block counts.

    Parameters
    ----------
    cost : Ledger, optional
        A new one by default.

    Examples
    --------
    >>> with counting() as cost:
    ...     count(gradients=1, work=1.0)
    >>> cost.gradients
    1
    """
    cost = Ledger() if cost is None else cost
    token = _ledger.set(cost)
    try:
        yield cost
    finally:
        _ledger.reset(token)


class Uncounted:
    """A block that is not counted; a plain class, for every step of a run enters it twice."""

    def __enter__(self) -> None:
        """Put the ledger away."""
        self._token = _ledger.set(None)

    def __exit__(self, *_: object) -> None:
        """Take it out again."""
        _ledger.reset(self._token)


def uncounted() -> Uncounted:
    """Return a context whose block is not counted, as it evaluates for the user's eyes."""
    return Uncounted()


@contextmanager
def attended(look: Callable[[], None] | None) -> Iterator[None]:
    """Yield nothing; `look` is called at whatever is counted inside the block, and may end it by raising.

    Parameters
    ----------
    look : callable or None
        None for no one.
    """
    token = _look.set(look)
    try:
        yield
    finally:
        _look.reset(token)


def is_counted() -> bool:
    """Return whether what is evaluated now is counted."""
    return _ledger.get() is not None


def count(
    *,
    gradients: int = 0,
    values: int = 0,
    work: float = 0.0,
    synchronisations: int = 0,
    scalar_synchronisations: int = 0,
    sent: int = 0,
    halo_rows: int = 0,
    halo_bytes: int = 0,
    exchanges: int = 0,
) -> None:
    """Add to the open ledger, if there is one.

    Parameters
    ----------
    gradients, values : int
        Evaluations of the fine objective.
    work : float
        Work of this rank in fine gradients of a single process.
    synchronisations, scalar_synchronisations : int
        Collectives on vectors, and on a few numbers.
    sent : int
        Bytes that this rank sent in collectives on vectors.
    halo_rows, halo_bytes, exchanges : int
        Rows sent to neighbours, their bytes, and the exchanges in which they were sent.
    """
    cost = _ledger.get()
    if cost is None:
        return
    cost.gradients += gradients
    cost.values += values
    cost.work += work
    cost.synchronisations += synchronisations
    cost.scalar_synchronisations += scalar_synchronisations
    cost.bytes += sent
    cost.halo_rows += halo_rows
    cost.halo_bytes += halo_bytes
    cost.exchanges += exchanges
    look = _look.get()
    if look is not None:
        look()


@contextmanager
def waiting() -> Iterator[None]:
    """Yield nothing; the CPU time of the block is that of messages, no work."""
    begin = time.process_time()
    yield
    cost = _ledger.get()
    if cost is not None:
        cost.waited += time.process_time() - begin


@contextmanager
def on_this_rank() -> Iterator[None]:
    """Yield nothing; fine evaluations inside the block count as work of subdomains, not by number."""
    outer = _ledger.get()
    with counting() as inner:
        yield
    if outer is not None:
        inner.gradients = inner.values = 0
        outer.add(inner)


@contextmanager
def rescaled(factor: float) -> Iterator[None]:
    """Yield nothing; the work that is counted inside the block is multiplied.

    Parameters
    ----------
    factor : float
        Measured over estimated work.
    """
    outer = _ledger.get()
    if outer is None:
        yield
        return
    with counting() as inner:
        yield
    inner.work *= factor
    outer.add(inner)


@dataclass(frozen=True)
class Price:
    """What the evaluations of one objective cost this rank, in fine gradients of a single process.

    Parameters
    ----------
    gradient : float
        Cost of one gradient. On a single process it is 1 on the fine level, and the ratio of the work on coarser ones
        and on subdomains; where ranks share an evaluation, it is what this rank does, halo included.
    fine : bool
        Whether its gradients are the fine gradients that are counted by number.
    value, product : float
        Cost of a value and of a Hessian product in gradients of the same objective.
    """

    gradient: float = 1.0
    fine: bool = True
    value: float = 1.0 / 3.0
    product: float = 2.0

    def scaled(self, factor: float) -> Price:
        """Return the price of evaluations that are `factor` times as large: of a share of the samples, say.

        Parameters
        ----------
        factor : float
            On the cost of a gradient, and so on those of a value and a product.
        """
        return replace(self, gradient=self.gradient * factor)

    def of_gradient(self, times: int = 1) -> None:
        """Count gradients (with or without the value that comes with them).

        Parameters
        ----------
        times : int
            Their number.
        """
        count(gradients=times if self.fine else 0, work=times * self.gradient)

    def of_value(self, times: int = 1) -> None:
        """Count values on their own.

        Parameters
        ----------
        times : int
            Their number.
        """
        count(values=times if self.fine else 0, work=times * self.gradient * self.value)

    def of_product(self, times: int = 1) -> None:
        """Count Hessian products.

        Parameters
        ----------
        times : int
            Their number.
        """
        count(work=times * self.gradient * self.product)
