"""Forecasts of a network: inputs of any origins, the network on the whole graph, the way back to units of the field."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.graph import Graph
from mldd.problems.data import HiddenMesh
from mldd.problems.forecasts.forecast_data import ForecastData
from mldd.problems.forecasts.forecast_loss import Rollout, outputs_of
from mldd.problems.forecasts.forecast_network import SampledGraphs
from mldd.problems.nets import Ints

Floats = NDArray[np.float64]
_TOGETHER = 64  # forecasts that are evaluated at once, over origins and turns of a rollout


@dataclass(frozen=True, eq=False)
class Forecaster:
    """A network on the graph of a series.

    Parameters
    ----------
    data : ForecastData
        Inputs, and the units of the outputs.
    net : GraphNet or EncodeProcessDecode
        The network.
    graph : Graph
        Of the nodes.
    mesh : HiddenMesh or None
        Of an encode-process-decode network.
    weighted : bool
        Whether the weights of edges enter the propagation.
    kind : dict
        `dtype` and `device` of evaluations.
    """

    data: ForecastData
    net: Any
    graph: Graph
    mesh: HiddenMesh | None
    weighted: bool
    kind: dict[str, Any]

    @cached_property
    def rollout(self) -> Rollout | None:
        """How forecasts are fed back, None where they are not."""
        data, turns = self.data, self.data.plan.rollout
        if turns == 1:
            return None
        change, units = data.scales[0] / data.deviation, (data.deviation / data.scales).ravel()
        return Rollout(turns, *(torch.from_numpy(a).to(**self.kind) for a in (data.mixing, change, units)))

    def inputs(self, origins: Ints) -> Floats:
        """Return the inputs, shape (n, S, F); of a rollout the history and what is known at every turn.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        """
        data, turns = self.data, self.data.plan.rollout
        if turns == 1:
            return data.features(origins)
        return np.concatenate([data.window(origins), *(data.known(origins, k) for k in range(turns))], axis=2)

    def graphs(self, inputs: Floats, targets: Floats) -> SampledGraphs:
        """Return the whole graph with inputs and targets of samples.

        Parameters
        ----------
        inputs : ndarray, shape (n, S, F)
            As `inputs` returns them.
        targets : ndarray, shape (n, S, 2 C)
            Weighted targets, then weights.
        """
        n, samples = inputs.shape[:2]
        flat = inputs.reshape(n, -1), targets.reshape(n, -1)
        return SampledGraphs(self.net, self.graph, *flat, samples, self.data.plan.rollout, self.mesh, self.weighted)

    def __call__(self, parameters: Sequence[Tensor], origins: Ints) -> Floats:
        """Return the forecasts, shape (S, n, L, V), in units of the series.

        Parameters
        ----------
        parameters : sequence of Tensor
            Tensors of the network.
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.

        Raises
        ------
        DataError
            An origin whose inputs the series does not hold.
        """
        return self.evaluated(parameters, self.prepared(origins))

    def prepared(self, origins: Ints) -> Iterator[tuple[Any, Floats]]:
        """Yield what forecasts need besides parameters, some origins at a time: the batch, and the base forecasts.

        Who evaluates the same forecasts again and again keeps it: to make it takes longer than the network.

        Parameters
        ----------
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.

        Raises
        ------
        DataError
            An origin whose inputs the series does not hold.
        """
        data, nodes = self.data, self.data.series.nodes
        data.check_origins(origins)
        together = max(_TOGETHER // data.plan.rollout, 1)
        for first in range(0, len(origins), together):
            t = origins[first : first + together]
            graphs = self.graphs(self.inputs(t), np.zeros((nodes, len(t), 2)))
            batch = graphs.stack([graphs.piece(np.arange(nodes))], single=True, **self.kind)
            yield batch, np.stack([data.base(t, lead) for lead in data.plan.reached], axis=2)

    def evaluated(self, parameters: Sequence[Tensor], prepared: Iterable[tuple[Any, Floats]]) -> Floats:
        """Return the forecasts, shape (S, n, L, V), in units of the series.

        Parameters
        ----------
        parameters : sequence of Tensor
            Tensors of the network.
        prepared : iterable of (batch, base)
            What `prepared` has yielded.
        """
        data = self.data
        made = [np.zeros((0, data.series.nodes, len(data.plan.reached), len(data.series.variables)))]
        for batch, base in prepared:
            with torch.no_grad():
                z = outputs_of(self.net, list(parameters), batch, self.rollout).double().cpu().numpy()
            made.append(base + z.transpose(1, 0, 2).reshape(base.shape) * data.scales)
            made[-1][:, ~data.inner] = np.nan  # a boundary is not forecast
        return np.concatenate(made)
