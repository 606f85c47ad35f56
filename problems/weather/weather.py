"""Fields of many cells and variables, forecast by an encode-process-decode network whose cells ranks share."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import Hierarchy, Identity, Level, Price, check_choices, check_least
from mldd.graph import Graph, partition
from mldd.loop import Problem
from mldd.problems.data import STANDARD, DataError, HiddenMesh, area_weights, checksum, on_sphere
from mldd.problems.data.formats import AnemoiStore
from mldd.problems.forecasts import Domain, ForecastNetwork, mesh_of
from mldd.problems.nets import MeshSource, MiniBatches, mesh_shard, stack_meshes
from mldd.problems.weather.cell_reader import CellReader
from mldd.problems.weather.samples import CellSamples, CoarseSamples, Kept, Units
from mldd.problems.weather.stores import opened
from mldd.problems.weather.streamed_loss import StreamedBatches, StreamedLoss
from mldd.problems.weather.weather_model import WeatherModel
from mldd.ranks import SERIAL, Communicator
from mldd.ranks import device as pick_device

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
_CUTS = 0.6, 0.8  # of the times: ends of training and validation part
_FEW = 16  # forecasts that scales are estimated from, and that a part is judged by
_SETTINGS: dict[str, dict[str, Any]] = {
    "adam": {"lr": 0.005},
    "adagrad": {"rate": 0.003, "varsigma": 1e-3},
    "ml-adagrad": {"smoother.rate": 0.003, "smoother.varsigma": 1e-3, "coarse.steps": 5},
}


@dataclass(frozen=True)
class Weather(Problem):
    """Forecast many variables on many cells; the loss is the mean of squares over samples, cells and variables.

    As `mldd.problems.forecasts.Forecasting`, for data sets of Anemoi that do not fit into memory: the samples of a step
    are read when it begins, in float32, and every rank holds the values and states of its own cells and mesh nodes
    alone. The network predicts the change of every variable over the lead time in units of the root mean square of such
    changes, so that the zero network, which is the start, is persistence and has about the loss 1. The times are split
    60/20/20 in order.

    Parameters
    ----------
    path : str
        The data set, Zarr.
    variable : tuple of str
        What is forecast; by default all variables that are neither computed nor constant.
    member : int
        Of an ensemble.
    horizon, history : int
        Steps ahead, and values up to the origin that are inputs.
    network : ForecastNetwork
        An encode-process-decode network.
    batches : StreamedBatches
        Samples per gradient, at once, and of the loss that is shown.
    seed : int
        Of mini-batches and partition.
    dtype : {"float32", "float64"}
        Of iterates and evaluations.
    device : {"cpu", "cuda", "auto"}
        Where it is evaluated.
    comm : Communicator
        Ranks that share the cells.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    path: str
    variable: tuple[str, ...] = ()
    member: int = 0
    horizon: int = 1
    history: int = 2
    network: ForecastNetwork = ForecastNetwork(model="epd", hidden=64, layers=4)  # noqa: RUF009 (frozen)
    batches: StreamedBatches = StreamedBatches()
    seed: int = 0
    dtype: Literal["float32", "float64"] = "float32"
    device: str = "cpu"
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_choices(self, {"dtype": ("float32", "float64")})
        check_least(self, {"member": 0, "horizon": 1, "history": 1})
        if self.network.model != "epd":
            raise ValueError(f"the network must be an encode-process-decode one, epd, got {self.network.model}")

    # -------------------------------------------------------------------------------- what everything is made of

    @cached_property
    def store(self) -> AnemoiStore:
        """The data set."""
        return opened(self.path, self.member)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Variables that are forecast.

        Raises
        ------
        DataError
            One that is not there, or none at all.
        """
        store = self.store
        absent = [name for name in self.variable if name not in store.names]
        found = self.variable or tuple(store.free)
        if absent or not found:
            raise DataError(
                f"{store.where}: expected variables of {', '.join(store.names)}, got {', '.join(absent) or 'none'}; "
                "correct `variable`"
            )
        return found

    @property
    def latitude(self) -> Floats:
        """Of all cells, degrees, shape (n,)."""
        return np.asarray(self.store.coordinates[0])

    @property
    def longitude(self) -> Floats:
        """Of all cells, degrees, shape (n,)."""
        return np.asarray(self.store.coordinates[1])

    @cached_property
    def mesh(self) -> HiddenMesh:
        """The hidden mesh: the icosphere where the cells lie all round the globe."""
        return mesh_of(self.latitude, self.longitude, self.network.mesh_options)

    @cached_property
    def part(self) -> Ints:
        """The rank of every cell, shape (n,): METIS on the hidden mesh, each of its nodes with the cells around it."""
        near = self._nearest
        if self.comm.ranks == 1:
            return np.zeros(len(near), np.int64)
        nodes = len(self.mesh.points)
        edges = torch.from_numpy(np.stack(self.mesh.process.matrix.nonzero()).astype(np.int64))
        cells = torch.from_numpy(np.bincount(near, minlength=nodes))
        of_node = partition(Graph.from_edges(edges, nodes), self.comm.ranks, seed=self.seed, node_weights=cells)
        return of_node.numpy()[near]

    @property
    def _nearest(self) -> Ints:
        """The nearest mesh node of every cell."""
        return self.mesh.nearest_points(0)

    @cached_property
    def own(self) -> Ints:
        """Cells of this rank."""
        return np.flatnonzero(self.part == self.comm.rank)

    @cached_property
    def origins(self) -> dict[str, Ints]:
        """Origins of training, validation and test part; forecasts begin and end inside of one, without missing dates.

        Raises
        ------
        DataError
            A part without a forecast.
        """
        total, missing = len(self.store.time), self.store.missing
        ends = [0, *(int(cut * total) for cut in _CUTS), total]
        made = {}
        for name, first, end in zip(("train", "validation", "test"), ends, ends[1:], strict=False):
            t = np.arange(max(first, self.history - 1), end - self.horizon)
            touched = np.stack([missing[t + k] for k in (*range(1 - self.history, 1), self.horizon)])
            made[name] = t[~touched.any(0)]
            if not len(made[name]):
                raise DataError(
                    f"{self.store.where}: the {name} part must hold a forecast, got none in times {first}..{end - 1}; "
                    "shorten horizon or history"
                )
        return made

    @cached_property
    def fine(self) -> CellSamples:
        """Samples of the own cells."""
        reader = CellReader(self.store, self.names, self.own, self.comm)
        area = area_weights(self.latitude) if self.store.grid() else np.ones(self.store.cells)
        total = area.sum() * len(self.origins["train"]) * len(self.names)
        mean, deviation = self._statistics()
        plain = Units(mean, deviation, np.ones(len(mean)))
        weights, times = area[self.own] / total, (self.horizon, self.history)
        few = CellSamples(reader, plain, self._static(self.own), weights, *times, self.kind, Kept())
        units = Units(mean, deviation, self._scales(few, area[self.own]))
        return CellSamples(reader, units, few.static, weights, *times, self.kind, Kept(self._kept))

    @property
    def _kept(self) -> int:
        """Chunks of a mini-batch, which a step may evaluate several times; of a full batch only one is kept."""
        batch, chunk = self.batches.batch, self.batches.chunk
        return -(-batch // chunk) if batch and chunk else 1

    def _statistics(self) -> tuple[Floats, Floats]:
        mean, deviation = self.store.statistics(self.names)
        if mean is None or deviation is None:
            raise DataError(f"{self.store.where}: expected mean and stdev, got none; write it anew by anemoi-datasets")
        return mean, np.where(deviation > 0, deviation, 1.0)

    def _static(self, cells: Ints) -> Floats:
        """Place and constant fields of cells, those normalised over all cells."""
        store, columns = self.store, [*on_sphere(self.latitude, self.longitude).T]
        for name in store.names:
            if store.is_constant(name) and not store.is_computed(name) and name not in self.names:
                of_all = store.constant_field(name)
                columns.append((of_all - of_all.mean()) / (of_all.std() or 1.0))
        return np.stack(columns, axis=1)[cells]

    def _scales(self, samples: CellSamples, area: Floats) -> Floats:
        """Root mean squares of changes over the lead time, over a few samples of the training part."""
        squares = np.zeros((2, len(self.names)))
        for origin in _spread(self.origins["train"], _FEW):
            values = samples.values(np.array([origin]))[:, 0]
            change = (values[:, -1] - values[:, 0]).astype(np.float64)
            there = ~np.isnan(change)
            squares += np.stack([area @ np.where(there, change**2, 0.0), area @ there])
        square, count = np.array(self.comm.sum_scalars(squares.ravel().tolist())).reshape(2, -1)
        scales = np.sqrt(square / np.maximum(count, 1e-300))
        return np.where(scales > 0, scales, 1.0)

    @cached_property
    def kind(self) -> dict[str, Any]:
        """Dtype and device."""
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def net(self) -> Any:
        """The network."""
        return self.network.made(*self.fine.widths)

    # -------------------------------------------------------------------------------- the problem

    @cached_property
    def _shard(self) -> Any:
        """The own cells and mesh nodes without samples."""
        inputs, outputs = self.fine.widths
        none = np.zeros((len(self.own), inputs)), np.zeros((len(self.own), 2 * outputs))
        return mesh_shard(self.mesh, self.part, *none, self.network.layers, self.comm, **self.kind)

    @cached_property
    def _work(self) -> float:
        """Multiplications of a sweep of all ranks together over one sample."""
        return self.comm.sum_scalars([self._shard.work(self.net.widths)])[0]

    def _loss(self, batch: Any, price: Price, stream: Any, comm: Communicator | None) -> StreamedLoss:
        origins, wanted = self.origins["train"], self.batches
        drawn = MiniBatches(len(origins), min(wanted.batch, len(origins)), key=(self.seed % 2**64,))
        given: dict[str, Any] = {"comm": comm, "chunk": wanted.chunk, "stream": stream, "origins": origins}
        given |= {"batches": drawn if wanted.batch else None}
        made = StreamedLoss(self.net, batch, self.network.decay, price, **given)
        return made.estimated(_spread(np.arange(len(origins)), wanted.shown)) if wanted.shown else made

    @cached_property
    def _objective(self) -> StreamedLoss:
        share = self._shard.work(self.net.widths) / self._work
        return self._loss(self._shard, Price(share), self.fine, self.comm)

    def objective(self) -> StreamedLoss:
        """Return the loss; with mini-batches it offers ``sample(step)``."""
        return self._objective

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start with a last layer of zeros, shape (N,): the forecast is persistence."""
        x: Tensor = self.net.initial(seed)
        return x.to(**self.kind)

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss and its models on coarser levels of the hidden mesh, with the same parameters and samples.

        A cell of a coarse level stands for the cells around a node of that level of the mesh. Every rank evaluates all
        of the coarse levels; for every sample it gets the sums over clusters from the others.

        Raises
        ------
        ValueError
            No level, or more than the mesh has.
        """
        most = len(self.mesh.sizes)
        if not 1 <= levels <= most:
            raise ValueError(f"`levels` must be in 1..{most} for a mesh of {self.mesh.sizes[0]} nodes, got {levels}")
        made = [Level(self.objective())]
        for level in range(1, levels):
            f = self._coarse(level)
            made.append(Level(f, Identity(self.net.layout.size), f.price.gradient))
        return Hierarchy(tuple(made))

    def _coarse(self, level: int) -> StreamedLoss:
        labels = self.mesh.labels(level)
        counts = np.bincount(labels).astype(np.float64)
        inputs, outputs = self.fine.widths
        none = np.zeros((len(labels), inputs)), np.zeros((len(labels), 2 * outputs))
        piece = MeshSource(self.mesh, *none).aggregated(labels, self.net.layers)
        batch = stack_meshes([piece], single=True, **self.kind)
        stream = CoarseSamples(self.fine, labels[self.own], counts, self.comm, Kept(self._kept))
        return self._loss(batch, Price(batch.work(self.net.widths) / self._work, fine=False), stream, None)

    # -------------------------------------------------------------------------------- what the user sees

    def _squares(self, x: Tensor, part: str) -> Floats:
        """Mean squares of errors of network and persistence in units of `Units.scales`, shape (2, V)."""
        parameters, total = self.net.layout.views(x.to(**self.kind)), np.zeros((3, len(self.names)))
        for f in (self._objective.over(np.array([origin])) for origin in _spread(self.origins[part], _FEW)):
            for batch in f.chunks():
                moment, weight = batch.targets.double().chunk(2, dim=1)
                change = moment / weight.clamp(min=1e-300)
                with torch.no_grad():
                    error = self.net.outputs(parameters, batch).double() - change
                terms = [(weight * error.square()).sum(0), (weight * change.square()).sum(0), weight.sum(0)]
                total += torch.stack(terms).cpu().numpy()
        sums = np.array(self.comm.sum_scalars(total.ravel().tolist())).reshape(3, -1)
        return np.asarray(sums[:2] / np.maximum(sums[2], 1e-300))

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return the loss over some forecasts of the validation part, without weight decay, and that of persistence."""
        of_network, of_persistence = self._squares(x, "validation").mean(1)
        return {"validation_loss": float(of_network), "validation_persistence": float(of_persistence)}

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return root mean square errors of network and persistence over some forecasts of the test part."""
        errors = np.sqrt(self._squares(x, "test")) * self.fine.units.scales
        whose = ("test_rmse", "test_rmse_persistence")
        rows = zip(whose, errors, strict=True)
        return {f"{of}_{name}": float(e) for of, row in rows for name, e in zip(self.names, row, strict=True)}

    def settings(self, solver: str) -> dict[str, Any]:
        """Return hyper-parameters of a solver of the command line that suit this problem."""
        return dict(_SETTINGS.get(solver, {}))

    def module(self, x: Tensor) -> WeatherModel:
        """Return the forecaster with these parameters, which needs no data of the training."""
        store, units = self.store, self.fine.units
        said = tuple(store.unit(name) for name in self.names)
        place = self.latitude, self.longitude, None, store.grid()
        domain = Domain(store.where, *place, self.names, said, self.step, STANDARD, None, None)
        fitted = asdict(units) | {"static": self._static(np.arange(store.cells))}
        times = {"horizon": self.horizon, "history": self.history, "member": self.member}
        return WeatherModel(self.net, x, domain, fitted, times | self.network.mesh_options)

    def identity(self) -> str:
        """Return a checksum of times, cells, statistics, and the values of the first and the last training sample.

        All values would have to be read for one of them.
        """
        store, ends = self.store, self.origins["train"][[0, -1]]
        arrays = store.time.astype(np.int64), *store.coordinates, *self._statistics()
        return checksum(*arrays, store.rows(np.unique(ends), self.names))

    @property
    def step(self) -> int:
        """Seconds between two times."""
        return int((self.store.time[1] - self.store.time[0]) / np.timedelta64(1, "s"))

    def details(self) -> dict[str, Any]:
        """Return sizes of the problem, and what was done to the data."""
        store = self.store
        missing, computed = int(store.missing.sum()), [name for name in store.names if store.is_computed(name)]
        notes = [f"{missing} times are missing_dates of the file: no forecast reads them"] * (missing > 0)
        made = [name for name in computed if name not in self.names]
        notes += [f"forcings are made from time and place, not read: {', '.join(made)}"] * bool(made)
        notes.append("normalised by the statistics in the file")
        return {
            "cells": self.store.cells,
            "own_cells": len(self.own),
            "mesh_nodes": len(self.mesh.points),
            "samples": {part: len(origins) for part, origins in self.origins.items()},
            "variables": list(self.names),
            "lead_seconds": [self.horizon * self.step],
            "notes": notes,
        }


def _spread(origins: Ints, few: int) -> Ints:
    """Return a few of the origins, evenly spread."""
    return origins[np.linspace(0, len(origins) - 1, min(few, len(origins))).round().astype(np.int64)]
