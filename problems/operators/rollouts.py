"""How well a learned operator does on samples that were not trained on: its loss, and its skill over many intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mldd.problems.operators.allen_cahn import Floats
from mldd.problems.operators.residual_sage import ResidualSage
from mldd.problems.operators.sample_stream import SampleStream
from mldd.problems.operators.torus import GraphBatch


@dataclass(frozen=True, eq=False)
class Rollouts:
    """Validation samples of this rank, and where the equation takes them.

    Parameters
    ----------
    net : ResidualSage
        The network.
    stream : SampleStream
        Makes the samples.
    graph : GraphBatch
        The whole graph.
    scale : float
        One unit of the outputs in that of u.
    numbers : range
        Validation samples of this rank.
    leads : int
        Intervals of a rollout.
    """

    net: ResidualSage
    stream: SampleStream
    graph: GraphBatch
    scale: float
    numbers: range
    leads: int

    def change(self, x: Tensor, u: Tensor, kappa: Tensor) -> Tensor:
        """Return the network's u(T) - u_0, shape (b, n^2).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        u, kappa : Tensor, shape (b, n^2)
            State and diffusivity less one.
        """
        inputs = torch.stack([u.T, kappa.T], 2)[None]
        return self.net.outputs(self.net.layout.views(x[None]), inputs, self.graph.means)[0].T * self.scale

    def squares(self, x: Tensor) -> tuple[float, int]:
        """Return the sum of squared errors after one interval in units of the outputs, and the number of values.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        total, values = 0.0, 0
        with torch.no_grad():
            for u, kappa, change in self._samples():
                gap = (self.change(x, u, kappa) - change) / self.scale
                total, values = total + float(gap.double().square().sum()), values + gap.numel()
        return total, values

    def _samples(self) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield u_0, kappa - 1 and u(T) - u_0 of a few samples at a time, each of shape (b, n^2)."""
        for begin in range(0, len(self.numbers), 8):
            u, kappa, change = self.stream.fields("validation", self.numbers[begin : begin + 8]).unbind(1)
            yield u, kappa, change

    @cached_property
    def truth(self) -> Floats:
        """Where the equation takes the samples, shape (leads + 1, b, n^2), the start first."""
        found = [self.stream.inputs("validation", number) for number in self.numbers]
        u, kappa = (np.stack([pair[k] for pair in found]) for k in (0, 1))
        states = [u]
        for _ in range(self.leads):
            states.append(self.stream.equation.advance(states[-1], kappa))
        return np.stack(states).reshape(self.leads + 1, len(found), -1)

    def rollout(self, x: Tensor) -> Tensor:
        """Return where the network takes the samples by its own outputs, shape (leads + 1, b, n^2).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        runs = []
        with torch.no_grad():
            for u, kappa, _ in self._samples():
                states = [u]
                for _ in range(self.leads):
                    states.append(states[-1] + self.change(x, states[-1], kappa))
                runs.append(torch.stack(states))
        return torch.cat(runs, 1)

    def rollout_squares(self, x: Tensor) -> tuple[list[float], list[float]]:
        """Return sums of squared errors of the network and of persistence after every interval but the start.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        if not self.numbers:
            return [0.0] * self.leads, [0.0] * self.leads
        truth = torch.from_numpy(self.truth)
        made = self.rollout(x).double().cpu()
        errors, still = (made - truth).square().sum((1, 2)), (truth[:1] - truth).square().sum((1, 2))
        return errors[1:].tolist(), still[1:].tolist()
