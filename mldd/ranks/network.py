"""Networks between ranks, by latency and bandwidth: how long messages take on them."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

_TIMES = {"s": 1.0, "ms": 1e3, "us": 1e6, "ns": 1e9}  # in a second
_RATES = {"B/s": 1.0, "b/s": 0.125}  # bytes and bits, behind a power of a thousand
_POWERS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
_NUMBER = r"(\d+(?:\.\d*)?(?:[eE][+-]?\d+)?)"
_WAY_OUT = "write latency=10ms,bandwidth=1Gb/s"


@dataclass(frozen=True)
class Interconnect:
    """A network on which a message of b bytes takes ``latency + b / bandwidth``.

    Parameters
    ----------
    latency : float
        Seconds.
    bandwidth : float
        Bytes per second that a rank sends.

    Raises
    ------
    ValueError
        A negative latency, or no bandwidth.

    Examples
    --------
    >>> Interconnect.of("latency=10ms,bandwidth=1Gb/s") == Interconnect.of("sites")
    True
    >>> round(Interconnect(1e-5, 1e9).sum_seconds(1_000_000, ranks=4), 6)
    0.00154
    """

    latency: float
    bandwidth: float

    def __post_init__(self) -> None:
        """Refuse what is no network."""
        if not (0 <= self.latency < math.inf and 0 < self.bandwidth):
            raise ValueError(
                f"a network must have a latency >= 0 and a bandwidth > 0, got {self.latency} s and {self.bandwidth} B/s"
            )

    @staticmethod
    def of(text: str) -> Interconnect:
        """Return the network of a text.

        Parameters
        ----------
        text : str
            A name of `NETWORKS`, or ``latency=TIME,bandwidth=RATE`` with units: 5us, 10ms; 1Gb/s in bits, 25GB/s in
            bytes.

        Raises
        ------
        ValueError
            No such name, key or unit.
        """
        if text in NETWORKS:
            return NETWORKS[text]
        given = dict(item.partition("=")[::2] for item in text.split(","))
        if set(given) != {"latency", "bandwidth"}:
            raise ValueError(
                f"a network must be one of {', '.join(NETWORKS)}, or have both numbers, got {text!r}; {_WAY_OUT}"
            )
        time = re.fullmatch(_NUMBER + f"({'|'.join(_TIMES)})", given["latency"])
        rate = re.fullmatch(_NUMBER + f"([{''.join(_POWERS)}]?)({'|'.join(_RATES)})", given["bandwidth"])
        if time is None or rate is None:
            wrong = given["latency"] if time is None else given["bandwidth"]
            raise ValueError(f"latency and bandwidth of a network must have units, got {wrong!r}; {_WAY_OUT}")
        return Interconnect(float(time[1]) / _TIMES[time[2]], float(rate[1]) * _POWERS[rate[2]] * _RATES[rate[3]])

    def exchange_seconds(self, messages: int, size: float) -> float:
        """Return the seconds in which a rank exchanges messages with neighbours.

        Parameters
        ----------
        messages : int
            To or from it.
        size : float
            Bytes of all of them.
        """
        return messages * self.latency + size / self.bandwidth

    def sum_seconds(self, size: float, ranks: int) -> float:
        """Return the seconds of a sum over ranks, ``2 ceil(log2 P) latency + 2 (P - 1) / P size / bandwidth``.

        Parameters
        ----------
        size : float
            Bytes of a rank's vector.
        ranks : int
            P.

        References
        ----------
        Thakur, Rabenseifner and Gropp, doi:10.1177/1094342005051521, section 4 (Rabenseifner's algorithm).
        """
        return self.exchange_seconds(2 * math.ceil(math.log2(ranks)), 2 * (ranks - 1) / ranks * size)

    def scatter_seconds(self, size: float, ranks: int) -> float:
        """Return the seconds of the first half of a sum, after which every rank has the sum of its own columns.

        Parameters
        ----------
        size : float
            Bytes that a rank sends to all others together.
        ranks : int
            P; it takes ``ceil(log2 P)`` rounds.

        References
        ----------
        Thakur, Rabenseifner and Gropp, doi:10.1177/1094342005051521, section 4 (recursive halving).
        """
        return self.exchange_seconds(math.ceil(math.log2(ranks)), size)

    def gather_seconds(self, size: float, ranks: int) -> float:
        """Return the seconds after which all ranks have what each of them had.

        Parameters
        ----------
        size : float
            Bytes of all ranks together.
        ranks : int
            P; it takes ``ceil(log2 P)`` rounds.

        References
        ----------
        Thakur, Rabenseifner and Gropp, doi:10.1177/1094342005051521, section 3 (recursive doubling).
        """
        return self.exchange_seconds(math.ceil(math.log2(ranks)), (ranks - 1) / ranks * size)


# One link of a rank: NVLink inside a machine, InfiniBand, 10 Gb Ethernet, and a line between two computing centres.
NETWORKS = {
    "nvlink": Interconnect(5e-6, 200e9),
    "infiniband": Interconnect(10e-6, 25e9),
    "ethernet": Interconnect(50e-6, 1.25e9),
    "sites": Interconnect(10e-3, 0.125e9),
}
