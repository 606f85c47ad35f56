"""Which kind of method pays: the time of a gradient beside that of a sum over ranks on a network."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass

from mldd.algebra import sampled, value_and_gradient
from mldd.loop import Problem
from mldd.ranks import Interconnect

_LENGTHS = (5, 10, 20, 40)  # local steps between two averages
_VECTORS = 3  # of an average: the iterate and both moments of Adam
_SMALL = 0.1  # share of the time that communication may take
_LEAST, _MOST = 3, 1000  # gradients that are timed


@dataclass(frozen=True)
class Advice:
    """Times of a step on several ranks, and what they say.

    Parameters
    ----------
    unknowns : int
        Numbers that a sum over ranks takes.
    itemsize : int
        Bytes of each.
    gradient : float
        Seconds of wall time of a gradient in one process.
    ranks : int
        P, which share it.
    interconnect : Interconnect
        The network between them.
    stochastic : bool
        Whether gradients change from step to step, by mini-batches or dropout.
    """

    unknowns: int
    itemsize: int
    gradient: float
    ranks: int
    interconnect: Interconnect
    stochastic: bool

    @property
    def share(self) -> float:
        """Seconds of a rank's share of a gradient, evenly divided."""
        return self.gradient / self.ranks

    def sum_seconds(self, vectors: int = 1) -> float:
        """Return the seconds of a sum over ranks.

        Parameters
        ----------
        vectors : int
            As long as the unknowns, in one message.
        """
        return self.interconnect.sum_seconds(vectors * self.unknowns * self.itemsize, self.ranks)

    @property
    def price(self) -> float:
        """Shares of a gradient that a rank could evaluate during one sum.

        A method that needs S synchronisations fewer and W shares of gradients more is faster where ``W < price S``.
        """
        return self.sum_seconds() / self.share

    def communication(self, local_steps: int) -> float:
        """Return the share of the time that communication takes.

        Parameters
        ----------
        local_steps : int
            Steps between two averages of the iterate and two moments; 1 for a sum of gradients in every step.
        """
        spent = self.sum_seconds() if local_steps == 1 else self.sum_seconds(_VECTORS) / local_steps
        return spent / (self.share + spent)

    @property
    def local_steps(self) -> int | None:
        """The fewest steps between averages that leave communication a tenth of the time; None where none tried do."""
        return next((h for h in (1, *_LENGTHS) if self.communication(h) <= _SMALL), None)

    def lines(self) -> Iterator[str]:
        """Yield what was measured and what it says, line by line."""
        share, summed = _time(self.share), _time(self.sum_seconds())
        yield f"gradient        {_time(self.gradient)} in one process, {share} on each of {self.ranks} ranks at best"
        yield f"sum over ranks  {summed} for {self.unknowns} numbers: {self.price:.3g} shares of a gradient"
        yield "communication   share of the time, halos of graphs not included"
        for h in (1, *_LENGTHS):
            kind = "gradients summed in every step" if h == 1 else f"averages after every {h} local steps"
            yield f"                {self.communication(h):6.1%}  {kind}"
        yield f"advice          {self.says}"

    @property
    def says(self) -> str:
        """What follows from the numbers, in words."""
        if self.price <= _SMALL:
            kind = "adam on mini-batches, lbfgs on a full batch" if self.stochastic else "lbfgs"
            return f"work decides, not communication: {kind}, with metric=inputs for a network"
        full = "ml-lbfgs, with metric=inputs for a network"
        if not self.stochastic:
            return f"synchronisations decide: {full}"
        h = max(self.local_steps or _LENGTHS[-1], _LENGTHS[0])
        return (
            f"synchronisations decide: on mini-batches local-adam with --local-steps {h}, by shares of the samples (by "
            f"parts of the graph with overlap where a sample does not fit one device); on a full batch {full}"
        )


def advise(problem: Problem, ranks: int, interconnect: Interconnect, seconds: float = 10.0) -> Advice:
    """Measure a gradient of a problem in this process, and return what a network makes of it.

    Parameters
    ----------
    problem : Problem
        On one rank.
    ranks : int
        How many are to share it.
    interconnect : Interconnect
        The network between them.
    seconds : float
        How long gradients are evaluated, about.

    Raises
    ------
    ValueError
        Less than two ranks, or no time.
    """
    if ranks < 2 or not seconds > 0:
        raise ValueError(f"advice needs `ranks` >= 2 and `seconds` > 0, got {ranks} and {seconds}")
    f, x = problem.objective(), problem.initial(0)
    times: list[float] = []
    end = time.perf_counter() + seconds
    for step in itertools.count():
        begin = time.perf_counter()
        value, _ = value_and_gradient(sampled(f, step), x)
        float(value)  # waits for a device
        times.append(time.perf_counter() - begin)
        if step >= _LEAST and (time.perf_counter() > end or step >= _MOST):
            break
    best = min(times)  # what else runs on this machine only makes it longer
    return Advice(x.numel(), x.element_size(), best, ranks, interconnect, stochastic=sampled(f, 0) is not f)


def _time(seconds: float) -> str:
    unit, size = next((of for of in (("s", 1.0), ("ms", 1e-3)) if seconds >= of[1]), ("us", 1e-6))
    return f"{seconds / size:.3g} {unit}"
