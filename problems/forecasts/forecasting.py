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

from mldd.algebra import Hierarchy, Identity, Level, Price, SharedDecomposition, sampled
from mldd.graph import Graph, aggregate, partition
from mldd.loop import Problem
from mldd.problems.data import DataError, GraphKind, HiddenMesh, Series, connect, hidden_mesh, load_series
from mldd.problems.forecasts.domain import Domain
from mldd.problems.forecasts.forecast_data import ForecastData
from mldd.problems.forecasts.forecast_loss import ForecastLoss, StochasticForecastLoss
from mldd.problems.forecasts.forecast_metrics import moments, scored
from mldd.problems.forecasts.forecast_model import ForecastModel
from mldd.problems.forecasts.forecast_network import LocalGraphs, network, start
from mldd.problems.forecasts.forecast_parts import decomposition
from mldd.problems.forecasts.forecast_plan import Plan
from mldd.problems.forecasts.forecaster import Forecaster
from mldd.problems.nets import Ints, MiniBatches
from mldd.problems.nets.layers import check_kind, layer_of
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

Floats = NDArray[np.float64]
_SHARE = 0.037  # of the nodes: clusters of the first coarse graph
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.005},
    "ml-lbfgs": {"coarse_steps": 40},
    "adagrad": {"rate": 0.05, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.05, "smoother.varsigma": 1e-3, "coarse.steps": 5},
    "dd-adagrad": {"local.rate": 0.05, "local.varsigma": 1e-3, "local_steps": 5, "global_steps": 0, "coarse.steps": 5},
}
_CHOICES = {
    "edges": ("auto", "knn", "radius", "grid", "mesh"),
    "gaps": ("mask", "refuse"),
    "base": ("persistence", "linear"),
    "labels": ("train", "all"),
    "local": ("composite", "own"),
    "dtype": ("float64", "float32"),
}
_LEAST = dict.fromkeys(("history", "rollout", "stride", "hidden", "layers"), 1)
_LEAST |= dict.fromkeys(("batch", "chunk", "clusters", "mesh_nodes"), 0)


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
    model : str
        Kind of layer (`mldd.problems.nets.layers`), or epd: an encode-process-decode network.
    horizon : int or tuple of int
        Lead time in steps of the series, or several: one output each.
    variable : tuple of str
        Variables of the file; all of them are inputs and outputs.
    history : int
        Values up to the origin that are inputs.
    rollout : int
        How often a forecast of the lead time `horizon` is fed back, in training and in evaluation; history then has
        this spacing too.
    forcing, climatology : bool
        Whether inputs have hour and height of the sun, and the mean daily cycle of every node in the training part.
    base : {"persistence", "linear"}
        What the network corrects: x(t), or the linear model of `mldd.problems.forecasts.linear_forecast` fitted
        likewise.
    edges : {"auto", "knn", "radius", "grid", "mesh"}
        From coordinates, see `mldd.problems.data.geography.connect`; auto: the graph that comes with the series, that
        of a grid, or nearest neighbours.
    neighbours : int
        Of every node: nearest ones, 4 or 8 on a grid.
    radius : float
        Kilometres.
    weighted : bool
        Whether the weights of edges enter the propagation (sage, gcn).
    hidden, layers : int
        Width and number of layers (of `epd`: rounds of message passing inside the mesh).
    mesh_nodes : int
        Nodes of the hidden mesh of `epd`; 0: a quarter of all nodes.
    activation : str
        Of the network; `auto` for what is usual.
    decay : float
        Weight decay.
    batch : int
        Samples per gradient, drawn anew for every step; 0: all.
    stride : int
        Every how many origins of the training part is a sample.
    chunk : int
        Samples that are evaluated at once, which bounds memory; 0: all.
    labels : {"train", "all"}
        Fit on the first 60 % of the series, or on all before the test part.
    clusters : int
        Nodes of the first coarse graph, and clusters of a composite graph; 0: 3.7 % of the nodes.
    local : {"composite", "own"}
        Local models of subdomains: composite graphs, or the loss of the own nodes with exact halo.
    stations : int
        Of `molene`: 37 or 46 (with gaps).
    gaps : {"mask", "refuse"}
        Leave missing values out, or refuse a series that has any.
    missing : float, optional
        The value that stands for a missing one, 0 in many files of traffic.
    sort : bool
        Sort the times of a file.
    reader : str
        Of a file, where its suffix does not say it: a suffix, ``file.py:function`` or ``package.module:function``.
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
    model: str = "sage"
    horizon: int | tuple[int, ...] = 6
    variable: tuple[str, ...] = ()
    history: int = 6
    rollout: int = 1
    forcing: bool = True
    climatology: bool = True
    base: Literal["persistence", "linear"] = "persistence"
    edges: Literal["auto", "knn", "radius", "grid", "mesh"] = "auto"
    neighbours: int = 8
    radius: float = 100.0
    weighted: bool = False
    hidden: int = 32
    layers: int = 2
    mesh_nodes: int = 0
    activation: str = "auto"
    decay: float = 0.0
    batch: int = 0
    stride: int = 1
    chunk: int = 64
    labels: Literal["train", "all"] = "train"
    clusters: int = 0
    local: Literal["composite", "own"] = "composite"
    stations: int = 37
    gaps: Literal["mask", "refuse"] = "mask"
    missing: float | None = None
    sort: bool = False
    reader: str = ""
    seed: int = 0
    data: str | os.PathLike[str] | None = None
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_kind(self.model, "model", ("epd",))
        for name, choices in _CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"`{name}` must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name, least in _LEAST.items():
            if getattr(self, name) < least:
                raise ValueError(f"`{name}` must be >= {least}, got {getattr(self, name)}")
        if not self.leads or min(self.leads) < 1 or list(self.leads) != sorted(set(self.leads)):
            raise ValueError(f"`horizon` must be >= 1, several of them ascending, got {self.horizon}")
        if self.rollout > 1 and (len(self.leads) > 1 or self.base != "persistence" or self.model == "epd"):
            raise ValueError(
                "`rollout` needs one horizon, base=persistence and a model other than epd, got "
                f"horizon={self.horizon}, base={self.base}, model={self.model}"
            )
        if self.weighted and (self.model == "epd" or not layer_of(self.model).weightable):
            raise ValueError(f"`weighted` needs the model sage or gcn, got {self.model}; leave it out")
        if not 0 <= self.decay < np.inf:
            raise ValueError(f"`decay` must be >= 0 and finite, got {self.decay}")

    # -------------------------------------------------------------------------------- what everything is made of

    @property
    def leads(self) -> tuple[int, ...]:
        """Lead times in steps."""
        return (self.horizon,) if isinstance(self.horizon, int) else tuple(self.horizon)

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
            made = load_series(
                made,
                data=self.data,
                variables=self.variable,
                stations=self.stations,
                sort=self.sort,
                missing=self.missing,
                reader=self.reader,
            )
        elif self.variable:
            made = made.chosen(self.variable)
        if self.gaps == "refuse" and made.gaps:
            share = 100.0 * made.gaps / made.values.size
            raise DataError(
                f"{made.name}: expected no gaps, got {made.gaps} ({share:.1f} %); set gaps=mask, which leaves them out"
            )
        return made

    @cached_property
    def forecast_data(self) -> ForecastData:
        """Samples of the series."""
        plan = Plan(
            self.leads,
            self.history,
            self.rollout,
            self.forcing,
            self.climatology,
            self.base,
            self.stride,
            self.labels,
        )
        return ForecastData(self.series, plan)

    @cached_property
    def graph(self) -> Graph:
        """The graph of the nodes."""
        series, kind = self.series, self.edges
        if kind == "auto" and series.graph is not None:
            return series.graph
        usual: GraphKind = "grid" if series.grid is not None else "knn" if series.nodes > 1 else "radius"
        chosen: GraphKind = usual if kind == "auto" else kind
        few = kind == "auto" and chosen == "knn"
        neighbours = min(self.neighbours, series.nodes - 1) if few else self.neighbours
        return connect(series.latitude, series.longitude, chosen, neighbours, self.radius, series.grid)

    @cached_property
    def coordinates(self) -> Tensor:
        """Latitude and longitude of the nodes in degrees, shape (n, 2)."""
        return torch.from_numpy(np.stack([self.series.latitude, self.series.longitude], axis=1))

    @cached_property
    def net(self) -> Any:
        """The network."""
        outputs = (1 if self.rollout > 1 else len(self.leads)) * len(self.series.variables)
        inputs = len(self.forecast_data.feature_names)
        return network(self.model, inputs, outputs, self.hidden, self.layers, self.activation)

    @cached_property
    def mesh(self) -> HiddenMesh | None:
        """The hidden mesh of an encode-process-decode network."""
        if self.model != "epd":
            return None
        return hidden_mesh(self.series.latitude, self.series.longitude, self.mesh_nodes)

    @cached_property
    def kind(self) -> dict[str, Any]:
        """Dtype and device."""
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def weights(self) -> tuple[Floats, NDArray[np.float64]]:
        """Targets and their weights in the loss, shapes (n, S, C); the weights of every output add up to 1 / C."""
        data = self.forecast_data
        values, mask = data.targets(data.origins["train"], data.fitted)
        weights = mask * self.series.weights[:, None, None]
        return values, weights / np.maximum(weights.sum((0, 1)), 1e-300) / weights.shape[2]

    @cached_property
    def local_graphs(self) -> LocalGraphs:
        """The whole graph with inputs and targets of the samples of the training part."""
        values, weights = self.weights
        targets = np.concatenate([values * weights, weights], axis=2)
        return self.forecaster.graphs(self.forecaster.inputs(self.forecast_data.origins["train"]), targets)

    @cached_property
    def forecaster(self) -> Forecaster:
        """The network on the graph of the series, for any origins."""
        return Forecaster(self.forecast_data, self.net, self.graph, self.mesh, self.weighted, self.kind)

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
        shared = self.comm.ranks > 1 and self.model != "epd"
        batch = self._own(np.arange(self.series.nodes)) if shared else self._batch
        return float(batch.work(self.net.widths))

    @cached_property
    def _batch(self) -> Any:
        """What this rank evaluates: with encode-process-decode some of the samples of it."""
        nodes = np.arange(self.series.nodes)
        if self.comm.ranks > 1 and self.model != "epd":
            nodes = np.flatnonzero(partition(self.graph, self.comm.ranks, seed=self.seed).numpy() == self.comm.rank)
        return self._own(nodes)

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
        given: dict[str, Any] = {"comm": comm, "rollout": self.forecaster.rollout, "chunk": self.chunk}
        given["shared"] = self.model == "epd"  # its outputs depend on nearly all nodes: ranks share samples instead
        if self.batch == 0 or stochastic is False:
            return ForecastLoss(self.net, batch, self.decay, price, **given)
        batches = MiniBatches(batch.samples, min(self.batch, batch.samples), key=(self.seed % 2**64,))
        return StochasticForecastLoss(self.net, batch, self.decay, price, **given, batches=batches)

    @cached_property
    def _objective(self) -> Any:
        batch = self._batch
        if self.comm.ranks == 1:
            share = 1.0
        elif self.model == "epd":
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
        return min(n, self.clusters or max(4, round(_SHARE * n)))

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

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return the loss over the validation part, without weight decay, and the root mean square error there."""
        if self.labels == "all":
            raise ValueError(
                "validation needs times that are not trained on, got labels=all, which trains on the validation part; "
                "leave out labels=all or the validation"
            )
        data = self.forecast_data
        found = moments(data, "validation", lambda origins: self.forecasts(x, origins))
        return {
            "validation_loss": float((found.area / data.scales**2).mean()),
            "validation_rmse": float(np.sqrt(found.square[:, 0].mean())),
        }

    def module(self, x: Tensor) -> ForecastModel:
        """Return the forecaster with these parameters, which needs no series of the training."""
        options = {"weighted": self.weighted, "mesh_nodes": self.mesh_nodes}
        options |= {"missing": self.missing, "stations": self.stations}
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
            "notes": list(series.notes),
        }

    def identity(self) -> str:
        """Return the checksum of the data."""
        return self.series.digest

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return errors of the network and of its references, see `mldd.problems.forecasts.forecast_metrics.scored`."""
        return scored(self.forecast_data, lambda origins: self.forecasts(x, origins))
