"""A trained forecaster: network, normalisation and nodes, which make forecasts of any series of these variables."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.models import Prediction
from mldd.problems.data import DataError, HiddenMesh, Series, graph_digest, hidden_mesh, load_series, mesh_of_graph
from mldd.problems.forecasts.domain import Domain
from mldd.problems.forecasts.forecast_data import ForecastData
from mldd.problems.forecasts.forecast_plan import Plan
from mldd.problems.forecasts.forecaster import Forecaster
from mldd.problems.forecasts.predicted import forecast_of
from mldd.problems.nets import EncodeProcessDecode, Ints, NetworkModel, network_of

Floats = NDArray[np.float64]


class ForecastModel(NetworkModel):
    """A network that forecasts the field it was trained on, from any history of it.

    Parameters
    ----------
    net : GraphNet or EncodeProcessDecode
        The network.
    x : Tensor, shape (N,), optional
        Its parameters; zeros by default.
    plan : Plan
        What is forecast from what.
    domain : Domain
        Nodes, graph, variables and step.
    fitted : dict
        What was fitted to the training part, see `ForecastData.normalisation`.
    options : dict
        ``weighted`` (whether weights of edges enter the propagation), ``mesh_nodes`` of the hidden mesh, and how files
        are read: ``missing`` and ``stations`` of `load_series`.
    """

    def __init__(
        self, net: Any, x: Tensor | None, plan: Plan, domain: Domain, fitted: dict[str, Any], options: dict[str, Any]
    ) -> None:
        super().__init__(net, x)
        self.plan, self.domain, self.fitted, self.options = plan, domain, fitted, options

    def config(self) -> dict[str, Any]:
        """Return network, plan, domain, normalisation and options."""
        return {
            "network": asdict(self.net),
            "plan": asdict(self.plan),
            "domain": self.domain.config(),
            "fitted": _tensors(self.fitted),
            "options": self.options,
        }

    @classmethod
    def of(cls, config: dict[str, Any]) -> ForecastModel:
        """Return a model with parameters of zero.

        Parameters
        ----------
        config : dict
            What `config` has returned.
        """
        network = config["network"]
        net = EncodeProcessDecode(**network) if "rounds" in network else network_of(network)
        horizon = config["plan"]["horizon"]
        plan = Plan(**dict(config["plan"], horizon=tuple(horizon) if isinstance(horizon, list) else horizon))
        domain = Domain.from_config(config["domain"])
        return cls(net, None, plan, domain, _arrays(config["fitted"]), config["options"])

    def predict(  # type: ignore[override]  # which options there are is said
        self,
        data: Any,
        *,
        origins: str | Sequence[int] = "last",
        folder: str | os.PathLike[str] | None = None,
        reader: str = "",
        sort: bool = False,
    ) -> Prediction:
        """Return forecasts in units of the series, over origins, lead times and nodes.

        Parameters
        ----------
        data : str, path or Series
            A known series, a file, or the series itself; it may be as short as the history.
        origins : str or sequence of int
            Where forecasts begin: ``last`` (the end of the series), ``all``, a date, two dates as in
            ``2019-03-30T06..2019-03-31``, or numbers of times.
        folder : path, optional
            Of the known series.
        reader : str
            Of a file, where its suffix does not say it.
        sort : bool
            Sort the times of a file.

        Raises
        ------
        DataError
            A series of other variables, nodes or steps, too short a one, or origins that it does not have.
        """
        series = data
        if not isinstance(series, Series):
            read: dict[str, Any] = {"missing": self.options["missing"], "stations": self.options["stations"]}
            series = load_series(data, data=folder, variables=self.domain.variables, sort=sort, reader=reader, **read)
        matched = self.domain.matched(series)
        of_model = ForecastData(replace(matched, notes=(*matched.notes, *_filled(matched))), self.plan, self.fitted)
        chosen = _chosen(of_model, origins)
        return forecast_of(of_model, chosen, self.forecasts(of_model, chosen), self.domain.name)

    def forecasts(self, data: ForecastData, origins: Ints) -> Floats:
        """Return the forecasts, shape (S, n, L, V), in units of the series.

        Parameters
        ----------
        data : ForecastData
            Of a series that matches the domain, with the normalisation of the training.
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.
        """
        domain = self.domain
        is_mesh = isinstance(self.net, EncodeProcessDecode)
        mesh = mesh_of(domain, self.options) if is_mesh else None
        forecaster = Forecaster(data, self.net, domain.graph, mesh, self.options["weighted"], self.kind)
        return forecaster([p.detach() for p in self.tensors], origins)


def mesh_of(place: Series | Domain, options: Mapping[str, Any]) -> HiddenMesh:
    """Return the hidden mesh of a network: that of a graph file, or one that is made for the nodes.

    Parameters
    ----------
    place : Series or Domain
        Its nodes.
    options : dict
        ``mesh_nodes``, or ``mesh_graph`` (the file) and ``mesh_digest``, its checksum.

    Raises
    ------
    DataError
        The graph file is another one than that of the training.
    """
    path = options.get("mesh_graph")
    if not path:
        return hidden_mesh(place.latitude, place.longitude, options["mesh_nodes"])
    if options["mesh_digest"] != graph_digest(path):
        raise DataError(f"{path}: expected the graph of the training, got another one; put that one back")
    return mesh_of_graph(path, place.latitude, place.longitude)


def _filled(series: Series) -> tuple[str, ...]:
    """Return the sentence that says how gaps were filled, none where there are none."""
    if not series.gaps:
        return ()
    before = int(np.isnan(series.carried()).sum())
    means = f", {before} of them before the first one by the mean of the training" if before else ""
    return (f"{series.gaps} missing values were filled by the last observation{means}",)


def _chosen(data: ForecastData, origins: Any) -> Ints:
    """Return the numbers of the origins that are asked for."""
    last = data.series.times - 1
    if not isinstance(origins, str):
        return np.asarray(origins)
    if origins == "last":
        return np.array([last])
    if origins == "all":
        return np.arange(data.first, last + 1)
    begin, two, end = origins.partition("..")
    try:
        dates = np.datetime64(begin, "s"), np.datetime64(end or begin, "s")
    except ValueError:
        raise DataError(
            f"`origins` must be last, all, a date or two, as in 2019-03-30T06..2019-03-31, got {origins!r}; correct it"
        ) from None
    moments = data.series.moments(np.arange(last + 1))
    found = np.flatnonzero((moments >= dates[0]) & (moments <= dates[1]))
    if len(found) == 0 or (not two and found[0] < data.first):
        raise DataError(
            f"{data.series.name}: `origins` must lie in {moments[data.first]}..{moments[last]}, got {origins}; choose "
            "others"
        )
    return found[found >= data.first]


def _tensors(value: Any) -> Any:
    """Return arrays as tensors, in dicts, lists and tuples."""
    if isinstance(value, dict):
        return {key: _tensors(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_tensors(item) for item in value]
    return torch.from_numpy(np.array(value)) if isinstance(value, np.ndarray) else value


def _arrays(value: Any) -> Any:
    """Return tensors as arrays, in dicts and lists."""
    if isinstance(value, dict):
        return {key: _arrays(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_arrays(item) for item in value]
    return value.numpy() if isinstance(value, Tensor) else value
