"""How long a step of distributed graph training takes: counted work times rates that are fitted or stated.

A step of P ranks is as long as its slowest rank computes and exchanges, and then sums the gradient::

    T = max_p (compute_p + exchange_p) + reduce,      wait_p = T - compute_p - exchange_p - reduce

    compute  = r_calls calls + r_dense dense + r_sparse sparse + r_touched touched
    exchange = r_messages messages + r_halo halo_bytes        reduce = r_rounds rounds + r_reduced reduced_bytes

(the latency-bandwidth model of messages). Exchanges are counted in full: work that hides them makes a step shorter.
Rates come from `fit`, by non-negative least squares on measured pieces, or from the figures of a machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

COMPUTE = ("calls", "dense", "sparse", "touched")
EXCHANGE = ("messages", "halo_bytes")
REDUCE = ("rounds", "reduced_bytes")


@dataclass(frozen=True)
class Work:
    """What one rank does in one step.

    Parameters
    ----------
    calls : float
        Layers evaluated, each with operations whose start costs time (interpreter, kernel launches).
    dense : float
        Multiply-adds of products of states with weights.
    sparse : float
        Multiply-adds of products of the adjacency with states: entries times width.
    touched : float
        Values of states and of the terms of their sums that are written once and read a few times (bias, ReLU,
        derivatives).
    messages, halo_bytes : float
        Messages to neighbours, and bytes in them.
    rounds, reduced_bytes : float
        Rounds of messages in the sum of the gradient, and bytes that a rank sends in it.
    """

    calls: float = 0.0
    dense: float = 0.0
    sparse: float = 0.0
    touched: float = 0.0
    messages: float = 0.0
    halo_bytes: float = 0.0
    rounds: float = 0.0
    reduced_bytes: float = 0.0


def graph_work(
    nodes: float,
    entries: float,
    widths: Sequence[int],
    *,
    halo: float = 0.0,
    neighbours: float = 0.0,
    ranks: int = 1,
    terms: int = 1,
    itemsize: int = 4,
) -> Work:
    """Return the work of a gradient of a graph network on one rank.

    Layer l maps widths i to o: a dense product per term forward and two backward (one in the first layer, whose inputs
    have no gradient), one sparse product of width min(i, o) forward and one backward, each with an exchange. The first
    layer's sparse product does not depend on parameters: it is made once, and costs nothing here.

    Parameters
    ----------
    nodes, entries : float
        Own nodes, and entries of their rows of the adjacency.
    widths : sequence of int
        Features, hidden widths, classes.
    halo, neighbours : float
        Rows of the halo, ranks that own them.
    ranks : int
        Number P of ranks; the sum of N numbers takes 2 ceil(log2 P) rounds, in which a rank sends 2 (P - 1) / P N.
    terms : int
        Dense products per layer: 1 for GCN, 2 for GraphSAGE.
    itemsize : int
        Bytes of a number.

    References
    ----------
    Thakur, Rabenseifner and Gropp, doi:10.1177/1094342005051521 (Rabenseifner's algorithm for the sum).
    """
    pairs = list(zip(widths, widths[1:], strict=False))
    products = [2 if layer == 0 else 3 for layer in range(len(pairs))]
    propagated = [2 * min(pair) for pair in pairs[1:]]
    parameters = sum((terms * i + 1) * o for i, o in pairs)
    return Work(
        calls=len(pairs),
        dense=sum(terms * times * nodes * i * o for times, (i, o) in zip(products, pairs, strict=True)),
        sparse=entries * sum(propagated),
        touched=terms * nodes * sum(o for _, o in pairs),
        messages=2 * neighbours * len(propagated),
        halo_bytes=halo * sum(propagated) * itemsize,
        rounds=2 * math.ceil(math.log2(ranks)),
        reduced_bytes=2 * (ranks - 1) / ranks * parameters * itemsize,
    )


@dataclass(frozen=True)
class Step:
    """A predicted step: its time, and the pieces of every rank, all in seconds.

    Parameters
    ----------
    seconds : float
        Time of the step.
    compute : tuple of float
        Seconds of computing on every rank.
    exchange : tuple of float
        Seconds of exchanging halos on every rank.
    wait : tuple of float
        Seconds that every rank waits for the slowest.
    reduce : float
        Seconds of sums over all ranks.
    """

    seconds: float
    compute: tuple[float, ...]
    exchange: tuple[float, ...]
    wait: tuple[float, ...]
    reduce: float


@dataclass(frozen=True)
class CostModel:
    """Rates, in seconds per unit of each field of `Work`.

    Parameters
    ----------
    calls : float
        Of an operation that is called.
    dense : float
        Of a multiply-add in dense products.
    sparse : float
        Of a multiply-add in sparse products.
    touched : float
        Of a value of a state.
    messages : float
        Of a message.
    halo_bytes : float
        Of a byte of halos.
    rounds : float
        Of a round of messages in a sum over ranks.
    reduced_bytes : float
        Of a byte in such a sum.
    """

    calls: float = 0.0
    dense: float = 0.0
    sparse: float = 0.0
    touched: float = 0.0
    messages: float = 0.0
    halo_bytes: float = 0.0
    rounds: float = 0.0
    reduced_bytes: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ValueError(f"rate `{field.name}` must be finite and >= 0, got {getattr(self, field.name)}")

    def seconds(self, work: Work, terms: Sequence[str]) -> float:
        """Return the time of some terms of the work.

        Parameters
        ----------
        work : Work
            Of one rank.
        terms : sequence of str
            Fields of `Work` that count.
        """
        return float(sum(getattr(self, term) * getattr(work, term) for term in terms))

    def step(self, works: Sequence[Work]) -> Step:
        """Return the predicted step of several ranks.

        Parameters
        ----------
        works : sequence of Work
            One per rank.

        Examples
        --------
        >>> model = CostModel(dense=1e-9, messages=1e-6)
        >>> step = model.step([Work(dense=1e6, messages=2), Work(dense=2e6, messages=2)])
        >>> round(step.seconds, 9), [round(wait, 9) for wait in step.wait]
        (0.002002, [0.001, 0.0])
        """
        compute = tuple(self.seconds(work, COMPUTE) for work in works)
        exchange = tuple(self.seconds(work, EXCHANGE) for work in works)
        reduce = max(self.seconds(work, REDUCE) for work in works)
        busy = [a + b for a, b in zip(compute, exchange, strict=True)]
        return Step(max(busy) + reduce, compute, exchange, tuple(max(busy) - time for time in busy), reduce)


def fit(works: Sequence[Work], measured: Mapping[str, Sequence[float]]) -> CostModel:
    """Return the rates that fit measured pieces: min over r >= 0 of sum_i ((work_i . r - t_i) / t_i)^2, piece by piece.

    Parameters
    ----------
    works : sequence of Work
        One per rank and run.
    measured : mapping from "compute", "exchange", "reduce" to sequences of float
        Seconds of each piece, of the length of `works`; runs whose time of a piece is zero do not count in its fit. A
        piece that is missing has rates zero.

    Raises
    ------
    ValueError
        If lengths differ, a time is negative, or a piece has no time at all.

    References
    ----------
    Lawson and Hanson, Solving Least Squares Problems, chapter 23 (non-negative least squares).
    """
    rates: dict[str, float] = {}
    for piece, seconds in measured.items():
        terms = {"compute": COMPUTE, "exchange": EXCHANGE, "reduce": REDUCE}.get(piece)
        if terms is None:
            raise ValueError(f"pieces of a step are compute, exchange and reduce, got {piece!r}")
        rates |= _rates(works, np.asarray(seconds, dtype=np.float64), terms, piece)
    return CostModel(**rates)


def _rates(
    works: Sequence[Work], seconds: np.ndarray[tuple[int], np.dtype[np.float64]], terms: Sequence[str], piece: str
) -> dict[str, float]:
    from scipy.optimize import nnls

    if seconds.shape != (len(works),) or not np.isfinite(seconds).all() or (seconds < 0).any():
        raise ValueError(f"times of `{piece}` must be {len(works)} numbers >= 0, one per work, got {seconds.tolist()}")
    kept = seconds > 0
    if not kept.any():
        raise ValueError(f"times of `{piece}` must not all be zero; leave the piece out")
    units = np.array([[getattr(work, term) for term in terms] for work in works])[kept] / seconds[kept, None]
    scale = np.where(units.max(axis=0) > 0, units.max(axis=0), 1.0)
    found = nnls(units / scale, np.ones(kept.sum()))[0] / scale
    return dict(zip(terms, found.tolist(), strict=True))


@dataclass(frozen=True)
class Machine:
    """Figures of a parallel computer with one accelerator per rank, from which rates follow without a measurement.

    Parameters
    ----------
    flops : float
        Floating-point operations per second of dense products.
    bandwidth : float
        Of the accelerator's memory, bytes per second.
    network : float
        Bytes per second that one rank sends.
    latency : float
        Seconds of a message between ranks.
    launch : float
        Seconds that starting the operations of one layer takes, forward and backward.
    efficiency : float
        Share of `flops` and `bandwidth` that programs reach.
    """

    flops: float
    bandwidth: float
    network: float
    latency: float
    launch: float
    efficiency: float = 0.6

    def rates(self, itemsize: int = 4) -> CostModel:
        """Return the rates for numbers of `itemsize` bytes.

        A multiply-add is two operations. A sparse one reads a number of a neighbour's row, with no help of caches
        (column numbers and values, read once per row, are left out). A value of a state moves six times: written,
        read by the next operation, and twice each for ReLU and derivative. A byte of a halo is packed and unpacked,
        each a read and a write, besides being sent.

        Parameters
        ----------
        itemsize : int
            Bytes of a number.
        """
        memory = 1 / (self.efficiency * self.bandwidth)
        return CostModel(
            calls=self.launch,
            dense=2 / (self.efficiency * self.flops),
            sparse=itemsize * memory,
            touched=6 * itemsize * memory,
            messages=self.latency,
            halo_bytes=1 / self.network + 4 * memory,
            rounds=self.latency,
            reduced_bytes=1 / self.network,
        )
