"""How well a learned operator does on samples that were not trained on: its loss, and its skill over many intervals."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mldd.problems.operators.local_graphs import Floats, GraphBatch
from mldd.problems.operators.residual_sage import ResidualSage
from mldd.problems.operators.sample_stream import SampleStream

_AT_ONCE = 8  # samples


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
        One unit of the outputs in that of the state.
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

    def change(self, x: Tensor, features: Tensor) -> Tensor:
        """Return the network's change over an interval, shape (b, n).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        features : Tensor, shape (b, inputs, n)
            What it reads.
        """
        inputs = features.permute(2, 0, 1)[None].contiguous()
        return self.net.outputs(self.net.layout.views(x[None]), inputs, self.graph.means)[0].T * self.scale

    def _slices(self) -> Iterator[range]:
        """Yield a few samples at a time."""
        for begin in range(0, len(self.numbers), _AT_ONCE):
            yield self.numbers[begin : begin + _AT_ONCE]

    def squares(self, x: Tensor) -> tuple[float, int]:
        """Return the sum of squared errors after one interval in units of the outputs, and the number of values.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        total, values = 0.0, 0
        with torch.no_grad():
            for numbers in self._slices():
                fields = self.stream.fields("validation", numbers)
                gap = (self.change(x, fields[:, :-1]) - fields[:, -1]) / self.scale
                total, values = total + float(gap.double().square().sum()), values + gap.numel()
        return total, values

    @cached_property
    def truth(self) -> Floats:
        """Where the equation takes the samples, shape (leads + 1, b, n), the start first."""
        state, settings = self.stream.states("validation", self.numbers)
        states = [state]
        for _ in range(self.leads):
            states.append(self.stream.evolution.advance(states[-1], settings))
        return np.stack(states)

    def rollout(self, x: Tensor) -> Floats:
        """Return where the network takes the samples by its own outputs, shape (leads + 1, b, n).

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        runs, evolution = [], self.stream.evolution
        for numbers in self._slices():
            state, settings = self.stream.states("validation", numbers)
            states = [state]
            for _ in range(self.leads):
                features = torch.from_numpy(evolution.features(states[-1], settings))
                with torch.no_grad():
                    change = self.change(x, features.to(self.stream.device, self.stream.dtype))
                states.append(states[-1] + change.double().cpu().numpy())
            runs.append(np.stack(states))
        return np.concatenate(runs, 1)

    def rollout_squares(self, x: Tensor) -> tuple[list[float], list[float]]:
        """Return sums of squared errors of the network and of persistence after every interval but the start.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters.
        """
        if not self.numbers:
            return [0.0] * self.leads, [0.0] * self.leads
        truth, made = self.truth, self.rollout(x)
        errors, still = ((made - truth) ** 2).sum((1, 2)), ((truth[:1] - truth) ** 2).sum((1, 2))
        return errors[1:].tolist(), still[1:].tolist()
