"""Node classification of a graph of which every rank holds its part alone: halos are exchanged in every layer."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mldd.algebra import (
    Hierarchy,
    Identity,
    Level,
    Objective,
    Price,
    SharedDecomposition,
    Stochastic,
    check_choices,
    check_least,
    corrected_models,
    sampled,
)
from mldd.loop import Problem
from mldd.problems.data import (
    NORMALISED,
    DataError,
    GraphData,
    Shard,
    cut,
    identity,
    joined,
    read_together,
    shares,
    unused_note,
)
from mldd.problems.graphs.graph_options import SHARE, Network, check_validated, settings_of
from mldd.problems.graphs.halo_memory import HaloMemory
from mldd.problems.graphs.halos import Halos
from mldd.problems.graphs.inexact_halo import (
    HistoricalHalo,
    Inexact,
    QuantisedHalo,
    SampledHalo,
    StaleHalo,
)
from mldd.problems.graphs.inexact_loss import with_inexact_halos
from mldd.problems.graphs.node_loss import NodeLoss, with_dropout
from mldd.problems.graphs.node_model import NodeModel
from mldd.problems.graphs.node_scores import NodeScores
from mldd.problems.graphs.shard_clusters import ShardClusters
from mldd.problems.graphs.shard_graph import ShardGraph
from mldd.problems.graphs.shard_memory import memory
from mldd.problems.graphs.shard_subdomains import own_piece, subdomains
from mldd.problems.nets import (
    Batch,
    GraphNet,
    HaloOperator,
    Operator,
    Piece,
    stack,
)
from mldd.ranks import SERIAL, Communicator, Halo
from mldd.ranks import device as pick_device

Ints = NDArray[np.int64]

_CHOICES = {"local": ("composite", "own"), "labels": ("train", "all"), "dtype": ("float64", "float32")}


@dataclass(frozen=True)
class ShardedClassification(Problem):
    """Classify the nodes of a graph that lies in shards: the loss of `NodeClassification`, to rounding.

    Every rank reads its consecutive share of the parts and holds features, labels and edges of its own nodes, and of
    the nodes next to them what a sweep needs. States of these are exchanged in every layer but the first, forward and
    backward; coarse graphs and local models know other ranks by clusters alone. A training is the same on any number of
    ranks with exact halos, as subdomains and clusters follow the shards: only sums over nodes are rounded otherwise,
    which line searches along steps of L-BFGS amplify within some steps. On the whole graph, subdomains by the same
    parts have the same composite models; its coarse graphs and its own local models are others.

    Parameters
    ----------
    folder : str or Shard
        What `mldd.problems.data.write` has written, or the shard of this rank.
    network : Network
        Kind, width and number of layers, dropout and weight decay.
    seed : int
        Of dropout and of the partitions.
    clusters : int
        Nodes of the first coarse graph, and clusters of a local model; 0: 3.7 % of all nodes.
    local : {"composite", "own"}
        Local models of subdomains: the own nodes and clusters of all others, or the mean loss of the own labelled nodes
        on the graph of the own nodes; of that, only a propagation of the features that is done beforehand sees others.
    labels : {"train", "all"}
        Nodes in the loss: the training nodes, or all outside the test set.
    dtype : {"float64", "float32"}
        Of iterates and evaluations.
    device : {"cpu", "cuda", "auto"}
        As torch knows it: cpu, cuda, cuda:1.
    halos : Halos
        What gradients are computed with, and what carries it.
    comm : Communicator
        The ranks, each with its shard.

    Raises
    ------
    ValueError
        An option that makes no sense.
    """

    folder: str | os.PathLike[str] | Shard
    network: Network = Network()
    seed: int = 0
    clusters: int = 0
    local: Literal["composite", "own"] = "composite"
    labels: Literal["train", "all"] = "train"
    dtype: Literal["float64", "float32"] = "float64"
    device: str = "cpu"
    halos: Halos = Halos()
    comm: Communicator = SERIAL

    def __post_init__(self) -> None:
        """Refuse options that make no sense."""
        check_choices(self, _CHOICES)
        check_least(self, {"clusters": 0, "seed": 0})

    @staticmethod
    def of(data: GraphData, part: Tensor, comm: Communicator = SERIAL, **options: Any) -> ShardedClassification:
        """Cut `data` by the part of every node, shape (n,), in memory and keep the shard of this rank.

        Parameters
        ----------
        data : GraphData
            The whole graph.
        part : Tensor, shape (n,)
            Part of every node.
        comm : Communicator
            The ranks.
        **options : Any
            Fields of the problem.

        Returns
        -------
        ShardedClassification
            The problem on the shard of this rank.
        """
        shards = cut(data, part)
        mine = shares(len(shards), comm.ranks)[comm.rank]
        return ShardedClassification(joined(shards[mine.start : mine.stop], comm.ranks), comm=comm, **options)

    # -------------------------------------------------------------------------------- what everything is made of

    @cached_property
    def shard(self) -> Shard:
        """What this rank holds; all ranks read together.

        Raises
        ------
        DataError
            On all ranks, if one of them cannot read its parts.
        """
        return self.folder if isinstance(self.folder, Shard) else read_together(self.folder, self.comm)

    @cached_property
    def _labelled(self) -> Any:
        """Own nodes in the loss, shape (m,), bool."""
        data = self.shard.data
        return data.train if self.labels == "train" else ~data.test & (data.labels >= 0)

    @cached_property
    def graph(self) -> ShardGraph:
        """The own nodes and their halo; the loss is the mean over the labelled nodes of all ranks.

        Raises
        ------
        DataError
            There are none.
        """
        one_hot, labelled = np.eye(self.shard.whole.classes)[self.shard.data.labels], self._total(self._labelled)
        if labelled == 0:
            raise DataError(f"{self.shard.whole.name}: at least one labelled node is needed, got none; take more nodes")
        targets = one_hot * self._labelled[:, None] / labelled
        return ShardGraph(self.shard, self.network.model, targets, self.comm, self.halos.messages, self.dtype)

    def _total(self, mask: Any) -> float:
        """Count nodes on all ranks."""
        return self.comm.sum_scalars([float(mask.sum())])[0]

    @cached_property
    def net(self) -> GraphNet:
        """The network."""
        edges = self.shard.edges.attributes
        attributes = 0 if edges is None or not self.graph.layer.edge_inputs else edges.shape[1]
        return self.network.made(self.shard.data.features.shape[1], self.shard.whole.classes, attributes)

    @cached_property
    def _kind(self) -> dict[str, Any]:
        return {"dtype": getattr(torch, self.dtype), "device": pick_device(self.device, self.comm)}

    @cached_property
    def _work(self) -> float:
        """Cost of the fine objective on all ranks."""
        return self.comm.sum_scalars([self._own_work])[0]

    @property
    def _own_work(self) -> float:
        return self._samples.work(self.net.widths, self.network.dropout > 0)

    @cached_property
    def _batch(self) -> Batch:
        return self.graph.batch(self._labelled, self.network.layers, **self._kind)

    @cached_property
    def _samples(self) -> Batch:
        """What a run evaluates: features with dropout cannot be propagated beforehand."""
        anew = self._batch.propagated and self.network.dropout > 0
        return self.graph.batch(self._labelled, self.network.layers, False, **self._kind) if anew else self._batch

    # -------------------------------------------------------------------------------- the problem

    @cached_property
    def _exact(self) -> NodeLoss:
        """The loss without dropout, with exact halos, at the price of what a run evaluates."""
        return NodeLoss(self.net, self._batch, self.network.decay, Price(self._own_work / self._work), self.comm)

    @cached_property
    def _objective(self) -> NodeLoss | Stochastic:
        if self.network.dropout == 0 and self.halos.halo == "exact":
            return self._exact
        samples = self._samples
        if self.halos.halo == "exact":
            return with_dropout(self._exact, samples, self.network.dropout, self.seed)
        halos = tuple(self._inexact(k, layer[-1]) for k, layer in enumerate(samples.operators))
        loss = with_inexact_halos(self._exact, samples, halos, self.network.dropout, self.seed)
        return replace(loss, memory=HaloMemory(halos))

    def _inexact(self, layer: int, operator: Operator | None) -> Inexact | None:
        """Return what stands for the halo of a layer."""
        if not isinstance(operator, HaloOperator) or not isinstance(operator.exchange, Halo):
            return None
        halo = operator.exchange
        if self.halos.halo == "stale":
            return StaleHalo(halo.apart(), self.halos.lag, self.halos.smoothing)
        if self.halos.halo == "history":
            return HistoricalHalo(halo, self.halos.lag)
        if self.halos.halo == "sampled":
            return SampledHalo(halo, self.halos.keep, self.seed)
        return QuantisedHalo(halo, 8 if self.halos.halo == "int8" else 16, self.seed, layer)

    def objective(self, sample: int | None = None) -> Objective:
        """Return the loss; with dropout it offers ``sample(step)``, and `sample` asks for one of these."""
        return self._objective if sample is None else sampled(self._objective, sample)

    def alone(self) -> None:
        """Return nothing: the graph may fit in the memory of all ranks together only."""

    def initial(self, seed: int = 0) -> Tensor:
        """Return Glorot's start, shape (N,)."""
        return self.net.initial(seed).to(**self._kind)

    # -------------------------------------------------------------------------------- clusters

    @property
    def _clusters(self) -> int:
        """Clusters of the first coarse graph, on all ranks."""
        whole = self.shard.whole
        return min(whole.nodes, self.clusters or max(whole.classes, round(SHARE * whole.nodes)))

    def hierarchy(self, levels: int) -> Hierarchy:
        """Return the loss and its models on coarse graphs: 3.7 % of the nodes (or `clusters`), then a quarter each.

        Clusters lie within the shards, whatever the ranks; on the whole graph those of `NodeClassification` do not. All
        levels have the same parameters. Coarse models have no dropout; every rank evaluates all of them.

        Raises
        ------
        ValueError
            No level, or more than the graph has nodes or shards for.
        """
        sizes = [self._clusters // 4**k for k in range(max(levels - 1, 0))]
        shards = self.shard.whole.parts
        least = max(2, shards)
        if levels < 1 or (sizes and sizes[-1] < least):
            most = 1 + sum(self._clusters // 4**k >= least for k in range(64))
            raise ValueError(
                f"`levels` must be in 1..{most} for {self._clusters} clusters of {self.shard.whole.nodes} nodes in "
                f"{shards} shards, got {levels}; more clusters allow for more levels"
            )
        made = [Level(self.objective())]
        for clusters in ShardClusters.of(self.graph, self.shard.part, self.shard.whole.sizes, sizes, self.seed):
            batch = stack([clusters.coarse(self.network.layers)], single=True, **self._kind)
            price = Price(batch.work(self.net.widths) / self._work, fine=False)
            f = NodeLoss(self.net, batch, self.network.decay, price)
            made.append(Level(f, Identity(self.net.layout.size), price.gradient))
        return Hierarchy(tuple(made))

    # -------------------------------------------------------------------------------- subdomains

    def parts(self, parts: int) -> Ints:
        """Return the subdomain of every own node, numbered over all ranks, shape (m,), int64: see `subdomains`.

        Parameters
        ----------
        parts : int
            Number of subdomains of all ranks.
        """
        return subdomains(self.shard, parts, self.comm.ranks, self.seed)

    def _pieces(self, part: Ints) -> list[Piece]:
        """Return the local graphs of the subdomains of this rank."""
        layers, counts = self.network.layers, np.bincount(part)[part.min() :]
        if self.local == "own":
            members = [np.flatnonzero(part == part.min() + k) for k in range(len(counts))]
            return [own_piece(self.graph, nodes, self._labelled[nodes], layers) for nodes in members]
        nodes = np.concatenate(self.comm.gather_items(counts))
        (clusters,) = ShardClusters.of(self.graph, part, nodes, [self._clusters], self.seed)
        return clusters.composite(part, layers)

    def decomposition(self, parts: int, overlap: int = 0, comm: Communicator | None = None) -> SharedDecomposition:
        """Return the decomposition of the graph into `parts`, of which every rank holds those of its nodes.

        Local models are first-order corrected: their gradient at the current iterate is the global one. They are made
        here and need no exchange.

        Parameters
        ----------
        parts : int
            The number of shards, a multiple of it, or a divisor of it that is a multiple of that of the ranks.
        overlap : int
            Must be 0: a rank knows the nodes of others by clusters.
        comm : Communicator, optional
            Must be the problem's own.

        Raises
        ------
        ValueError
            Another number of parts, an overlap, other ranks.
        """
        if overlap != 0:
            raise ValueError(f"`overlap` must be 0 for a graph in shards, got {overlap}; leave it out, or --overlap 0")
        if comm is not None and comm.ranks != self.comm.ranks:
            raise ValueError(f"`comm` must have the {self.comm.ranks} ranks that hold the shards, got {comm.ranks}")
        part = self.parts(parts)
        pieces, mine = self._pieces(part), range(int(part.min()), int(part.max()) + 1)

        @cache
        def losses(chosen: range) -> NodeLoss:
            batch = stack([pieces[k - mine.start] for k in chosen], **self._kind)
            price = Price(batch.work(self.net.widths) / self._work, fine=False)
            return NodeLoss(self.net, batch, self.network.decay, price)

        build = corrected_models(lambda decomposition, f: losses(decomposition.local))
        _ = self._work  # here, where all ranks are together
        losses(mine)
        given: dict[str, Any] = {"blocks": self.net.layout.slices, "device": self._kind["device"]}
        if self.local == "own":
            counts = [float(self._labelled[part == k].sum()) for k in mine]
            every = torch.tensor([n for of_rank in self.comm.gather_items(counts) for n in of_rank]).double()
            given["shares"] = lambda f: every / every.sum()
        return SharedDecomposition(self.net.layout.size, parts, build, None, mine, **given)

    # -------------------------------------------------------------------------------- what the user sees

    @cached_property
    def _whole(self) -> Batch:
        return self.graph.batch(np.ones(self.shard.own, dtype=bool), self.network.layers, **self._kind)

    def logits(self, x: Tensor) -> Tensor:
        """Return the outputs at the own nodes without dropout, shape (m, C).

        Parameters
        ----------
        x : Tensor, shape (n,)
            Parameters.
        """
        with torch.no_grad():
            return self.net.outputs(self.net.layout.views(x), self._whole)

    @property
    def _scores(self) -> NodeScores:
        shard = self.shard
        return NodeScores.of(shard.data, torch.from_numpy(shard.data.labels), shard.whole.metric, self.comm)

    def validation(self, x: Tensor) -> dict[str, float]:
        """Return the mean cross-entropy and the accuracy over the validation nodes of all ranks, without dropout."""
        check_validated(self.labels)
        return self._scores.validation(self.logits(x))

    def module(self, x: Tensor) -> NodeModel:
        """Return the network with these parameters, which classifies the nodes of any graph of the same features."""
        return NodeModel(self.net, x, self.shard.whole.name, self.shard.whole.name in NORMALISED)

    def settings(self, solver: str) -> dict[str, Any]:
        """Return what suits this problem: hyper-parameters of a solver of the command line, and subdomains."""
        return settings_of(solver, self.shard.whole.name) | {"parts": self.shard.whole.parts, "overlap": 0}

    def identity(self) -> str:
        """Return the checksum of the manifest of the shards."""
        return "" if isinstance(self.folder, Shard) else identity(self.folder)

    def metrics(self, x: Tensor) -> dict[str, float]:
        """Return the accuracies (and `test_auc` where that is the metric) of the network with parameters `x`."""
        return self._scores.metrics(self.logits(x))

    def details(self) -> dict[str, Any]:
        """Return what ``result.json`` says about the distribution: shards, halos, and the memory of ranks in bytes."""
        shard, batch = self.shard, self._exact.batch
        here = memory(shard, batch) | {"own_nodes": shard.own, "halo_nodes": shard.halo.size}
        ranks = self.comm.gather_items(here)
        found = {"shards": shard.whole.parts, "halo": self.halos.told, "messages": self.halos.messages, "ranks": ranks}
        lost = self.graph.layer.unused(shard.edges.weights is not None, shard.edges.attributes is not None)
        return found | ({"notes": list(unused_note(lost))} if lost else {})
