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

from mldd.models import Prediction, check_said
from mldd.problems.data import DataError, HiddenMesh, Series, graph_digest, hidden_mesh, load_series, mesh_of_graph
from mldd.problems.forecasts.domain import Domain
from mldd.problems.forecasts.forecast_data import FITTED, ForecastData
from mldd.problems.forecasts.forecast_plan import Plan
from mldd.problems.forecasts.forecaster import Forecaster
from mldd.problems.forecasts.predicted import PerturbedStarts, forecast_of, starts_of
from mldd.problems.nets import EncodeProcessDecode, Ints, NetworkModel, network_of

Floats = NDArray[np.float64]
_OPTIONS = ("weighted", "mesh_nodes", "missing", "stations", "select", "boundary")


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
        are read: ``missing``, ``stations`` and ``select`` of `load_series`.
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

        Raises
        ------
        ValueError
            It lacks what this version fits.
        """
        network = config["network"]
        net = EncodeProcessDecode(**network) if "rounds" in network else network_of(network)
        horizon = config["plan"]["horizon"]
        plan = Plan(**dict(config["plan"], horizon=tuple(horizon) if isinstance(horizon, list) else horizon))
        domain = Domain.from_config(config["domain"])
        fitted, options = config["fitted"], config["options"]
        check_said(fitted, FITTED)
        check_said(options, _OPTIONS)
        if domain.graph is None:
            raise ValueError("nothing is said of the graph")
        return cls(net, None, plan, domain, _arrays(fitted), options)

    def predict(  # type: ignore[override]  # which options there are is said
        self,
        data: Any,
        *,
        start: str | Sequence[int] = "last",
        steps: int | None = None,
        members: int = 1,
        perturb: float = 0.0,
        seed: int = 0,
        folder: str | os.PathLike[str] | None = None,
        reader: str = "",
        sort: bool = False,
    ) -> Prediction:
        """Return forecasts in units of the series, over starts, lead times and nodes, and over members if asked for.

        Parameters
        ----------
        data : str, path or Series
            A known series, a file, or the series itself; it may be as short as the history.
        start : str or sequence of int
            Where forecasts begin: ``last`` (the last time with an observation), ``all``, a date, two dates as in
            ``2019-03-30T06..2019-03-31``, or numbers of times.
        steps : int, optional
            Number of lead times, by default that of the training; more of them feed forecasts back.
        members : int
            Of an ensemble: the first one begins at the observations, the others at perturbed ones.
        perturb : float
            Standard deviation of independent normal errors of all observations, in those of the variables over the
            training part.
        seed : int
            Of the perturbations.
        folder : path, optional
            Of the known series.
        reader : str
            Of a file, where its suffix does not say it.
        sort : bool
            Sort the times of a file.

        Raises
        ------
        DataError
            A series of other variables, nodes or steps, too short a one, or starts that it does not have.
        ValueError
            Lead times that the network cannot reach, or members without perturbations.
        """
        ensemble = PerturbedStarts(members, perturb, seed)
        wanted = len(self.plan.reached) if steps is None else steps
        plan = self.plan.reaching(wanted)
        series = data
        if not isinstance(series, Series):
            read: dict[str, Any] = {name: self.options[name] for name in ("missing", "stations")}
            read |= {"variables": self.domain.variables, "select": tuple(self.options["select"])}
            read |= {"known": tuple(self.fitted["covariates"])}
            series = load_series(data, data=folder, sort=sort, reader=reader, **read)
        matched = self._matched(series)
        matched = replace(matched, notes=(*matched.notes, *_filled(matched)))
        leads = np.array(plan.reached[:wanted])

        def forecast(values: Floats) -> Prediction:
            of_member = ForecastData(replace(matched, values=values), plan, _reaching(self.fitted, plan))
            chosen = _chosen(of_member, start)
            forecasts = self.forecasts(of_member, chosen)
            return forecast_of(of_member.series, leads, chosen, forecasts[:, :, :wanted], self.domain.name)

        one = ensemble.predicted(matched.values, self.fitted["deviation"], forecast)
        about = {"data": series.name, "data_checksum": f"sha256:{series.digest}"}
        return replace(one, attributes={**one.attributes, **about})

    def _matched(self, series: Series) -> Series:
        """Return a series with the variables, nodes, covariates and boundary of the training."""
        absent = [name for name in self.fitted["covariates"] if name not in series.supplement.known]
        if absent:
            raise DataError(
                f"{series.name}: the covariate {absent[0]} must be known as in the training on {self.domain.name}, got "
                "none; give a file that has it"
            )
        matched = self.domain.matched(series)
        return matched.with_boundary(self.options["boundary"]) if self.options["boundary"] else matched

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
        assert domain.graph is not None  # `of` refuses others
        mesh = mesh_of(domain.latitude, domain.longitude, self.options) if is_mesh else None
        forecaster = Forecaster(data, self.net, domain.graph, mesh, self.options["weighted"], self.kind)
        return forecaster([p.detach() for p in self.tensors], origins)


def mesh_of(latitude: Floats, longitude: Floats, options: Mapping[str, Any]) -> HiddenMesh:
    """Return the hidden mesh of a network: that of a graph file, or one that is made for the nodes.

    Parameters
    ----------
    latitude, longitude : ndarray, shape (n,)
        Of the nodes, degrees.
    options : dict
        ``mesh_nodes``, or ``mesh_graph`` (the file) and ``mesh_digest``, its checksum.

    Raises
    ------
    DataError
        The graph file is another one than that of the training.
    """
    path = options.get("mesh_graph")
    if not path:
        return hidden_mesh(latitude, longitude, options["mesh_nodes"])
    if options["mesh_digest"] != graph_digest(path):
        raise DataError(f"{path}: expected the graph of the training, got another one; put that one back")
    return mesh_of_graph(path, latitude, longitude)


def _reaching(fitted: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return what was fitted, with units of outputs for all lead times: those of a rollout are of any size."""
    scales = fitted["scales"]
    missing = max(len(plan.reached) - len(scales), 0)
    return {**fitted, "scales": np.concatenate([scales, np.repeat(scales[-1:], missing, axis=0)])[: len(plan.reached)]}


def _filled(series: Series) -> tuple[str, ...]:
    """Return the sentence that says how gaps were filled, none where there are none."""
    outer = series.supplement.outer
    seen = ~np.isnan(series.values if outer is None else series.values[:, ~outer])
    end = max(np.flatnonzero(seen.any((1, 2))).max(initial=0) + 1, 2)  # what lies behind is the future
    series = replace(series, values=series.values[:end], time=series.time[:end])
    if not series.gaps:
        return ()
    before = int(np.isnan(series.carried()).sum())
    means = f", {before} of them before the first one by the mean of the training" if before else ""
    return (f"{series.gaps} missing values were filled by the last observation{means}",)


def _chosen(data: ForecastData, start: Any) -> Ints:
    """Return the numbers of the times that are asked for."""
    known = np.flatnonzero(data.observed[:, data.inner].any((1, 2)))  # what lies behind is known ahead only
    last = int(known[-1]) if len(known) else data.series.times - 1
    return starts_of(start, data.series.name, data.series.moments(np.arange(last + 1)), data.first)


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
