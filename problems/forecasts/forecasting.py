"""Forecasting on grids, stations and sensors by graph networks, decomposed by graph parts, coarsened by aggregation."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import FirstLayer, Hierarchy, Identity, Level, Price, SharedDecomposition, check_choices, sampled
from mldd.graph import Graph, aggregate, partition
from mldd.loop import Problem
from mldd.problems.data import DataError, GraphKind, HiddenMesh, Series, connect, load_series
from mldd.problems.forecasts.domain import Domain
from mldd.problems.forecasts.forecast_data import PARTS, ForecastData
from mldd.problems.forecasts.forecast_loss import ForecastLoss, StochasticForecastLoss
from mldd.problems.forecasts.forecast_metrics import Moments, moments, references, scored
from mldd.problems.forecasts.forecast_model import ForecastModel, mesh_of
from mldd.problems.forecasts.forecast_network import ForecastNetwork, SampledGraphs, first_layer, start
from mldd.problems.forecasts.forecast_options import Batches, ForecastSpaces, Links, Reading
from mldd.problems.forecasts.forecast_parts import decomposition
from mldd.problems.forecasts.forecast_plan import Plan
from mldd.problems.forecasts.forecaster import Forecaster
from mldd.problems.nets import Ints, MiniBatches
from mldd.problems.nets.layers import layer_of
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

Floats = NDArray[np.float64]
_SHARE = 0.037  # of the nodes: clusters of the first coarse graph
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.005},
    "local-adam": {"local.lr": 0.005},
    "ml-lbfgs": {"coarse_steps": 40},
    "adagrad": {"rate": 0.05, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.05, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.05, "local.varsigma": 1e-3, "local_steps": 5, "global_steps": 0, "coarse.steps": 5},
}


@dataclass(frozen=True)
class Forecasting(Problem):
    """Forecast a field on the nodes of a graph; the loss is the mean of squares over samples, nodes and lead times.

    The network predicts the change from a base forecast (`base`) in units of its root mean square over the training
    part, so that the zero network, which is the start, is the base and has the loss 1. The series is split 60/20/20 in
    order of time; forecasts begin and end inside of one part, and what is normalised or fitted is so on the training
    part alone. Nodes of a latitude-longitude grid are weighted by their area. Missing values (gaps) are filled by the
    last observation in inputs and do not count as targets.

    Parameters
    ----------
    name : str or Series
        `era5-uk`, `molene`, `metr-la`, a file (NetCDF, Zarr, GRIB, `.npz`), or the series itself.
    plan : Plan
        What is forecast from what: lead times, history, inputs, samples.
    network : ForecastNetwork
        Kind, width and number of layers, weight decay.
    links : Links
        Which nodes are neighbours.
    reading : Reading
        What is taken of a file, and how.
    batches : Batches
        Samples per gradient, and at once.
    spaces : ForecastSpaces
        Subdomains and coarse levels.
    seed : int
        Of mini-batches and partitions.
    data : str, optional
        Folder of the data sets.
    dtype : {"float64", "float32"}
        Of iterates and evaluations.
    device : {"cpu", "cuda", "auto"}
        Where it is evaluated.
    comm : Communicator
        Ranks that share the problem.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    name: str | Series = "era5-uk"
    plan: Plan = Plan()
    network: ForecastNetwork = ForecastNetwork()
    links: Links = Links()
    reading: Reading = Reading()
    batches: Batches = Batches()
    spaces: ForecastSpaces = ForecastSpaces()
    seed: int = 0
    data: str | os.PathLike[str] | None = None
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_choices(self, {"dtype": ("float64", "float32")})
        model = self.network.model
        if self.plan.rollout > 1 and self.reading.boundary:
            raise ValueError("`boundary` needs forecasts that are not fed back, got rollout > 1; use horizon=6:12:18")
        if self.spaces.local == "restricted" and model == "epd":
            raise ValueError("`local` restricted needs layers on the graph itself, got model=epd; use local=own")
        if self.links.weighted and (model == "epd" or not layer_of(model).weightable):
            raise ValueError(f"`weighted` needs the model sage or gcn, got {model}; leave it out")

    # -------------------------------------------------------------------------------- what everything is made of

    @cached_property
    def series(self) -> Series:
        """The series.

        Raises
        ------
        DataError
            With ``gaps="refuse"``, if it has any.
        """
        made = self.name
        if not isinstance(made, Series):
            names = "stations", "sort", "missing", "reader", "select", "static", "known"
            chosen: dict[str, Any] = {name: getattr(self.reading, name) for name in names}
            made = load_series(made, data=self.data, variables=self.reading.variable, **chosen)
        elif self.reading.variable:
            made = made.chosen(self.reading.variable)
        made = made.observed()
        made = made.with_boundary(self.reading.boundary) if self.reading.boundary else made
        if self.reading.gaps == "refuse" and made.gaps:
            share = 100.0 * made.gaps / made.values.size
            raise DataError(
                f"{made.name}: expected no gaps, got {made.gaps} ({share:.1f} %); set gaps=mask, which leaves them out"
            )
        return made

    @cached_property
    def forecast_data(self) -> ForecastData:
        """Samples of the series."""
        return ForecastData(self.series, self.plan)

    @cached_property
    def graph(self) -> Graph:
        """The graph of the nodes."""
        series, kind = self.series, self.links.edges
        if kind == "auto" and series.graph is not None:
            return series.graph
        usual: GraphKind = "grid" if series.grid is not None else "knn" if series.nodes > 1 else "radius"
        chosen: GraphKind = usual if kind == "auto" else kind
        few = kind == "auto" and chosen == "knn"
        neighbours = min(self.links.neighbours, series.nodes - 1) if few else self.links.neighbours
        return connect(series.latitude, series.longitude, chosen, neighbours, self.links.radius, series.grid)

    @cached_property
    def coordinates(self) -> Tensor:
        """Latitude and longitude of the nodes in degrees, shape (n, 2)."""
        return torch.from_numpy(np.stack([self.series.latitude, self.series.longitude], axis=1))

    @cached_property
    def net(self) -> Any:
        """The network."""
        outputs = (1 if self.plan.rollout > 1 else len(self.plan.leads)) * len(self.series.variables)
        inputs = len(self.forecast_data.feature_names)
        return self.network.made(inputs, outputs)

    @cached_property
    def mesh(self) -> HiddenMesh | None:
        """The hidden mesh of an encode-process-decode network."""
        if self.network.model != "epd":
            return None
        return mesh_of(self.series.latitude, self.series.longitude, self.network.mesh_options)

    @cached_property
    def kind(self) -> dict[str, Any]:
        """Dtype and device."""
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def weights(self) -> tuple[Floats, NDArray[np.float64]]:
        """Targets and their weights in the loss, shapes (n, S, C); the weights of every output add up to 1 / C.

        Raises
        ------
        DataError
            An output of which no forecast can be compared with an observation: it would be trained on nothing.
        """
        data = self.forecast_data
        values, mask = data.targets(data.origins["train"], data.fitted)
        bare = int((~mask.any((0, 1))).sum())
        if bare:
            raise DataError(
                f"{self.series.name}: expected observations to train every output with, got gaps at the start or the "
                f"end of all forecasts for {bare} of {mask.shape[2]}; give a longer series, or other leads"
            )
        weights = mask * self.series.weights[:, None, None]
        return values, weights / np.maximum(weights.sum((0, 1)), 1e-300) / weights.shape[2]

    @cached_property
    def local_graphs(self) -> SampledGraphs:
        """The whole graph with inputs and targets of the samples of the training part."""
        values, weights = self.weights
        targets = np.concatenate([values * weights, weights], axis=2)
        return self.forecaster.graphs(self.forecaster.inputs(self.forecast_data.origins["train"]), targets)

    @cached_property
    def forecaster(self) -> Forecaster:
        """The network on the graph of the series, for any origins."""
        return Forecaster(self.forecast_data, self.net, self.graph, self.mesh, self.links.weighted, self.kind)

    def share(self, batch: Any) -> float:
        """Return the cost of evaluating a batch over that of the fine objective on a single rank.

        Parameters
        ----------
        batch : Batch or MeshBatch
            What is evaluated.
        """
        return float(batch.work(self.net.widths)) / self._work

    @cached_property
    def _work(self) -> float:
        shared = self.comm.ranks > 1 and self.network.model != "epd"
        batch = self._own(np.arange(self.series.nodes)) if shared else self._batch
        return float(batch.work(self.net.widths))

    @cached_property
    def _batch(self) -> Any:
        """What this rank evaluates: with encode-process-decode some of the samples of it."""
        return self._own(self._nodes)

    @cached_property
    def _nodes(self) -> Ints:
        """Nodes whose outputs this rank evaluates."""
        if self.comm.ranks == 1 or self.network.model == "epd":
            return np.arange(self.series.nodes)
        return np.flatnonzero(partition(self.graph, self.comm.ranks, seed=self.seed).numpy() == self.comm.rank)

    def _own(self, outputs: Ints) -> Any:
        graphs = self.local_graphs
        return graphs.stack([graphs.piece(outputs)], single=True, **self.kind)

    # -------------------------------------------------------------------------------- the problem

    def loss(
        self, batch: Any, price: Price, comm: Communicator | None = None, *, stochastic: bool | None = None
    ) -> Any:
        """Return the loss over a batch.

        Parameters
        ----------
        batch : Batch or MeshBatch
            Graphs, inputs and targets.
        price : Price
            What its evaluations cost this rank, in fine gradients.
        comm : Communicator, optional
            Ranks over which it is summed; none by default.
        stochastic : bool, optional
            Whether it offers mini-batches, by default where the problem has them.
        """
        given: dict[str, Any] = {"comm": comm, "rollout": self.forecaster.rollout, "chunk": self.batches.chunk}
        # outputs of epd depend on nearly all nodes: ranks share samples instead
        given["shared"] = self.network.model == "epd"
        if self.batches.batch == 0 or stochastic is False:
            return ForecastLoss(self.net, batch, self.network.decay, price, **given)
        batches = MiniBatches(batch.samples, min(self.batches.batch, batch.samples), key=(self.seed % 2**64,))
        return StochasticForecastLoss(self.net, batch, self.network.decay, price, **given, batches=batches)

    @cached_property
    def _objective(self) -> Any:
        batch = self._batch
        if self.comm.ranks == 1:
            share = 1.0
        elif self.network.model == "epd":
            share = len(self.comm.share(batch.samples)) / batch.samples
        else:
            share = self.share(batch)
        return self.loss(batch, Price(share), self.comm)

    def objective(self, sample: int | None = None) -> Any:
        """Return the loss; with mini-batches it offers ``sample(step)``.

        Parameters
        ----------
        sample : int, optional
            Step whose mini-batch is asked for.
        """
        return self._objective if sample is None else sampled(self._objective, sample)

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start with a last layer of zeros, shape (N,): the forecast is the base."""
        return start(self.net, seed).to(**self.kind)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss and its models on coarse graphs: 3.7 % of the nodes (or `clusters`), then a quarter each.

        All levels have the same parameters and samples; every rank evaluates all of the coarse ones.

        Raises
        ------
        ValueError
            No level, or more than the graph has nodes for.
        """
        sizes = [self.first_clusters // 4**k for k in range(max(levels - 1, 0))]
        if levels < 1 or (sizes and sizes[-1] < 2):
            most = 1 + sum(self.first_clusters // 4**k >= 2 for k in range(64))
            raise ValueError(f"`levels` must be in 1..{most} for a graph of {self.graph.nodes} nodes, got {levels}")
        made = [Level(self.objective())]
        for size in sizes:
            f = self.coarse(size)
            made.append(Level(f, Identity(self.net.layout.size), f.price.gradient))
        return Hierarchy(tuple(made))

    def first_layer(self) -> FirstLayer:
        """Return the inputs of the first layer at the nodes of this rank, a row per node and sample."""
        return first_layer(self.local_graphs, self._nodes, self._work, self.comm)

    def coarse(self, clusters: int) -> Any:
        """Return the loss on the whole graph, aggregated.

        Parameters
        ----------
        clusters : int
            About how many nodes it then has.
        """
        labels = aggregate(self.graph, clusters, seed=self.seed).numpy()
        graphs = self.local_graphs
        batch = graphs.stack([graphs.aggregated(labels)], single=True, **self.kind)
        return self.loss(batch, Price(self.share(batch), fine=False))

    @property
    def first_clusters(self) -> int:
        """Nodes of the first coarse graph."""
        n = self.graph.nodes
        return min(n, self.spaces.clusters or max(4, round(_SHARE * n)))

    def parts(self, parts: int) -> Tensor:
        """Return the part of every node, shape (n,): METIS, which cuts long edges first.

        Parameters
        ----------
        parts : int
            Number of parts.
        """
        return partition(self.graph, parts, seed=self.seed)

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> SharedDecomposition:
        """Return the decomposition into `parts` of the graph, see `forecast_parts.decomposition`."""
        return decomposition(self, parts, overlap, self.comm if comm is None else comm)

    # -------------------------------------------------------------------------------- what the user sees

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        return dict(_SETTINGS.get(solver, {}))

    def forecasts(self, x: Tensor, origins: Ints) -> Floats:
        """Return the forecasts of the network, shape (S, n, L, V), in units of the series.

        Parameters
        ----------
        x : Tensor, shape (N,)
            Parameters of the network.
        origins : ndarray, shape (S,), int64
            Steps at which forecasts begin.

        Raises
        ------
        DataError
            An origin whose inputs the series does not hold.
        """
        return self.forecaster(self.net.layout.views(x.to(**self.kind)), np.asarray(origins))

    @cached_property
    def references(self) -> dict[str, Moments]:
        """Errors over the test part of the forecasts that need no network, by name."""
        return references(self.forecast_data)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return the loss over the validation part, without weight decay, and the root mean square error there."""
        if self.plan.labels == "all":
            raise ValueError(
                "validation needs times that are not trained on, got labels=all, which trains on the validation part; "
                "leave out labels=all or the validation"
            )
        data, parameters = self.forecast_data, self.net.layout.views(x.to(**self.kind))
        found = moments(data, "validation", lambda origins: self.forecaster.evaluated(parameters, self._validated))
        return {
            "validation_loss": float((found.area / data.scales**2).mean()),
            "validation_rmse": float(np.sqrt(found.square[:, 0].mean())),
        }

    @cached_property
    def _validated(self) -> list[tuple[Any, Floats]]:
        """What the forecasts of the validation part need; kept, as the inputs of the training part are."""
        return list(self.forecaster.prepared(self.forecast_data.origins["validation"]))

    def module(self, x: Tensor) -> ForecastModel:
        """Return the forecaster with these parameters, which needs no series of the training."""
        options: dict[str, Any] = {"weighted": self.links.weighted, **self.network.mesh_options}
        options |= {"missing": self.reading.missing, "stations": self.reading.stations}
        options |= {"select": list(self.reading.select), "boundary": self.reading.boundary}
        data = self.forecast_data
        return ForecastModel(self.net, x, data.plan, Domain.of(self.series, self.graph), data.normalisation(), options)

    def pictures(self, folder: Path, x: Tensor, parts: int = 1) -> list[Path]:
        """Draw forecast, errors and parts into `folder`; return the files."""
        from mldd.problems.forecasts.forecast_pictures import draw

        return draw(self, folder, x, parts)

    def details(self) -> dict[str, Any]:
        """Return what else is to be known of a run: what was done to the data, and what they consist of."""
        series, data = self.series, self.forecast_data
        seconds = [lead * series.step for lead in data.plan.reached]
        return {
            "nodes": series.nodes,
            "edges": self.graph.edges,
            "times": series.times,
            "step_seconds": series.step,
            "lead_seconds": seconds,
            "samples": {part: len(origins) for part, origins in data.origins.items()},
            "inputs": list(data.feature_names),
            "gaps": series.gaps,
            "constant": list(data.constant),
            "notes": [*series.notes, *self._unjudged()],
        }

    def _unjudged(self) -> list[str]:
        """Return a sentence on every part of which no forecast can be compared with an observation."""
        data = self.forecast_data
        if not self.series.gaps:
            return []
        judged = {part: data.targets(data.origins[part], data.end_of(part))[1].any() for part in PARTS}
        return [f"the {part} part has gaps only: its errors are NaN" for part in PARTS if not judged[part]]

    def identity(self) -> str:
        """Return the checksum of the data."""
        return self.series.digest

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return errors of the network and of its references, see `mldd.problems.forecasts.forecast_metrics.scored`."""
        return scored(self.forecast_data, lambda origins: self.forecasts(x, origins), self.references)
